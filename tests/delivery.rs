//! Every recipient of a valid job is notified, and the result says so.

use groupcast::{
    sandbox::{FaultRule, InjectedFault, ReceivedAudience},
    settle::result::{AudienceKind, BatchCounts, ErrorKind, JobResult, RecipientCounts, Status},
};
use serde_json::{Value, json};

use crate::support::{
    producer::header,
    scene::{Scene, job, settings, users},
};

fn fault(fault: InjectedFault, group: &str, calls: u32) -> FaultRule {
    FaultRule { group: Some(group.into()), calls: Some(calls), ..FaultRule::from(fault) }
}

fn error(code: i64) -> InjectedFault {
    InjectedFault::Error { code, info: format!("scripted {code}") }
}

fn assert_sent(result: &JobResult, recipients: u32, batches: u32) {
    assert_eq!(result.status, Status::Sent, "{result:?}");
    assert_eq!(
        result.recipients,
        Some(RecipientCounts { requested: recipients, sent: recipients, ..Default::default() })
    );
    assert_eq!(
        result.batches,
        Some(BatchCounts { total: batches, sent: batches, ..Default::default() })
    );
    assert!(result.errors.is_empty() && !result.duplicate);
}

#[tokio::test]
async fn jobs_of_any_size_are_split_into_batches_of_500() {
    let mut scene = Scene::start().await;
    for (recipients, batches) in [(1, 1), (3, 1), (500, 1), (501, 2), (100_000, 200)] {
        let group = format!("group-of-{recipients}");
        let result = scene.send(&job(&group, recipients)).await;
        assert_sent(&result, recipients as u32, batches);
        assert_eq!(result.calls, u64::from(batches));
        assert_eq!(result.audience, Some(AudienceKind::Members));
        assert_eq!(
            (result.app.as_str(), result.group_id.as_deref()),
            (scene.app.as_str(), Some(group.as_str()))
        );

        let calls = scene.sandbox.received(Some(&group));
        assert!(calls.iter().all(|call| call.audience == ReceivedAudience::Members
            && (1..=500).contains(&call.recipient_count)));
        let mut notified = scene.notified(&group);
        notified.sort_by_key(|user| user["user-".len()..].parse::<usize>().unwrap());
        assert_eq!(notified, users(recipients));
    }
}

#[tokio::test]
async fn a_repeated_recipient_is_notified_once() {
    let mut scene = Scene::start().await;
    let mut recipients = users(1200);
    recipients.insert(700, "user-3".into());
    let result = scene
        .send(&json!({ "GroupId": "g", "Content": "c", "ToMembers_Account": recipients }))
        .await;
    assert_eq!(
        result.recipients,
        Some(RecipientCounts { requested: 1201, duplicates: 1, sent: 1200, ..Default::default() })
    );
    assert_eq!(result.batches.unwrap().total, 3);
    let mut notified = scene.notified("g");
    notified.sort();
    let mut expected = users(1200);
    expected.sort();
    assert_eq!(notified, expected);
}

#[tokio::test]
async fn no_list_and_an_empty_list_go_to_every_member() {
    let mut scene = Scene::start().await;
    for (group, job) in [
        ("absent", json!({ "GroupId": "absent", "Content": "c" })),
        ("empty", json!({ "GroupId": "empty", "Content": "c", "ToMembers_Account": [] })),
    ] {
        let result = scene.send(&job).await;
        assert_eq!(
            (result.status, result.audience, result.recipients),
            (Status::Sent, Some(AudienceKind::All), None)
        );
        assert_eq!(result.batches.unwrap().total, 1);
        let calls = scene.sandbox.received(Some(group));
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].audience, ReceivedAudience::All);
    }
}

#[tokio::test]
async fn an_empty_list_is_rejected_where_the_configuration_says_so() {
    let mut scene = Scene::with("empty_recipients = \"reject\"").await;
    let result =
        scene.send(&json!({ "GroupId": "g", "Content": "c", "ToMembers_Account": [] })).await;
    assert_eq!(result.status, Status::Rejected);
    assert!(
        result.errors[0].info.starts_with("ToMembers_Account: is empty"),
        "{:?}",
        result.errors
    );
    assert_eq!(scene.sandbox.stats().calls, 0);
    let result = scene.send(&json!({ "GroupId": "g", "Content": "c" })).await;
    assert_eq!(result.status, Status::Sent);
}

#[tokio::test]
async fn topic_and_content_arrive_as_they_were_given() {
    let mut scene = Scene::start().await;
    // 12,288 bytes of text that is difficult for JSON and UTF-8.
    let unit = "通知🔔\"\\\n\u{1f468}\u{200d}\u{1f469}é";
    let mut content = unit.repeat(12_288 / unit.len());
    content.push_str(&"x".repeat(12_288 - content.len()));
    let group = "@TGS#_@TGS#cQVLVHIM62CJ";
    let topic = format!("{group}@TOPIC#_news");
    let job = json!({ "GroupId": group, "Content": content, "TopicId": topic, "ToMembers_Account": ["用户", "b\"c\\d"] });
    let result = scene.send(&job).await;
    assert_eq!((result.status, result.topic_id.as_deref()), (Status::Sent, Some(topic.as_str())));
    let call = scene.sandbox.received(Some(group)).remove(0);
    assert_eq!((call.content, call.topic), (content, Some(topic)));
    assert_eq!(call.recipients, Some(vec!["用户".to_owned(), "b\"c\\d".to_owned()]));
}

#[tokio::test]
async fn an_unknown_group_fails_with_the_apis_code_and_leaves_a_dead_letter() {
    let mut scene = Scene::start().await;
    let asked = job("unknown-group", 3);
    let result = scene.send(&asked).await;
    assert_eq!(result.status, Status::Failed);
    assert_eq!(
        result.recipients.unwrap(),
        RecipientCounts { requested: 3, failed: 3, ..Default::default() }
    );
    let error = &result.errors[0];
    assert_eq!(
        (error.kind, error.code, error.attempts, &*error.batches),
        (ErrorKind::Job, Some(10010), 1, &[0][..])
    );

    let letter = scene.dead_letter().await;
    assert_eq!(serde_json::from_slice::<Value>(&letter.data).unwrap(), asked);
    assert_eq!(header(&letter, "groupcast-error-kind").as_deref(), Some("job"));
    assert_eq!(header(&letter, "groupcast-error-code").as_deref(), Some("10010"));
    assert_eq!(header(&letter, "groupcast-status").as_deref(), Some("failed"));
    assert_eq!(header(&letter, "groupcast-job-id"), Some(result.job_id));
    assert_eq!(header(&letter, "groupcast-attempt").as_deref(), Some("1"));
    assert!(
        header(&letter, "groupcast-died-at").is_some()
            && header(&letter, "groupcast-error-info").is_some()
    );
    assert!(!scene.daemon.log().contains("panicked"));
}

#[tokio::test]
async fn one_refused_batch_of_three_makes_a_partial_result_and_a_dead_letter_of_the_unsent() {
    let mut scene = Scene::start().await;
    let refuse_second =
        FaultRule { matching: Some("user-700".into()), ..FaultRule::from(error(10004)) };
    scene.sandbox.add_fault(refuse_second).unwrap();
    let properties = scene
        .producer
        .properties()
        .with_message_id("order-42".into())
        .with_correlation_id("c-7".into());
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 1201)).unwrap(), properties)
        .await;

    let reply = scene.producer.reply().await;
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "c-7");
    let result: JobResult = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!((result.job_id.as_str(), result.status), ("order-42", Status::Partial));
    assert_eq!(
        result.recipients.unwrap(),
        RecipientCounts { requested: 1201, sent: 701, failed: 500, ..Default::default() }
    );
    assert_eq!(
        (result.errors.len(), &*result.errors[0].batches, result.errors[0].recipients),
        (1, &[1][..], Some(500))
    );

    let letter = scene.dead_letter().await;
    let body: Value = serde_json::from_slice(&letter.data).unwrap();
    assert_eq!(body["ToMembers_Account"], json!(&users(1201)[500..1000]));
    assert_eq!((&body["GroupId"], &body["Content"]), (&json!("g"), &json!("hello")));
    assert_eq!(letter.properties.message_id().as_ref().unwrap().as_str(), "order-42");
    assert_eq!(letter.properties.correlation_id().as_ref().unwrap().as_str(), "c-7");
    assert_eq!(header(&letter, "groupcast-status").as_deref(), Some("partial"));

    // The unchanged dead letter, moved back to the jobs queue, sends only the rest.
    scene.sandbox.clear_faults();
    scene.producer.publish(&scene.app, &letter.data, letter.properties.clone()).await;
    let redriven = scene.producer.result().await;
    assert_eq!(
        (redriven.job_id.as_str(), redriven.status, redriven.calls),
        ("order-42", Status::Sent, 1)
    );
    let mut notified = scene.notified("g");
    notified.sort();
    let mut expected = users(1201);
    expected.sort();
    assert_eq!(notified, expected);
}

/// Checks that each recipient of a group was notified once.
fn assert_each_notified_once(scene: &Scene, group: &str, recipients: usize) {
    let (mut notified, mut expected) = (scene.notified(group), users(recipients));
    notified.sort();
    expected.sort();
    assert_eq!(notified, expected);
}

async fn send_with_id(scene: &mut Scene, id: &str, job: &Value) -> JobResult {
    let properties = scene.producer.properties().with_message_id(id.into());
    scene.producer.publish(&scene.app, &serde_json::to_vec(job).unwrap(), properties).await;
    scene.producer.result().await
}

#[tokio::test]
async fn where_the_api_takes_50_recipients_a_job_goes_on_in_batches_of_50_and_the_next_one_begins_so()
 {
    for id in [None, Some("order-50")] {
        let mut scene = Scene::start().await;
        scene.sandbox.change_settings(settings(json!({ "max_recipients": 50 })));
        let result = match id {
            None => scene.send(&job("first", 1201)).await,
            Some(id) => send_with_id(&mut scene, id, &job("first", 1201)).await,
        };
        assert_sent(&result, 1201, 25);
        assert_each_notified_once(&scene, "first", 1201);
        let stats = scene.sandbox.stats();
        let refused = stats.by_code[&10005];
        assert!((1..=3).contains(&refused) && stats.calls == 25 + refused, "{stats:?}");
        assert_eq!(result.calls, stats.calls);

        let result = scene.send(&job("second", 1201)).await;
        assert_sent(&result, 1201, 25);
        assert_each_notified_once(&scene, "second", 1201);
        assert_eq!((result.calls, scene.sandbox.stats().by_code[&10005]), (25, refused));
        assert_eq!(scene.daemon.times_logged("Set batch_size = 50"), 1, "{}", scene.daemon.log());
    }
}

#[tokio::test]
async fn what_was_sent_before_the_api_asked_for_smaller_batches_is_not_sent_again() {
    let mut scene = Scene::start().await;
    let too_many_once = FaultRule {
        matching: Some("user-700".into()),
        calls: Some(1),
        ..FaultRule::from(error(10005))
    };
    scene.sandbox.add_fault(too_many_once).unwrap();
    let result = send_with_id(&mut scene, "order-51", &job("g", 1201)).await;
    assert_sent(&result, 1201, 25);
    assert_each_notified_once(&scene, "g", 1201);
    let stats = scene.sandbox.stats();
    assert_eq!((result.calls, stats.by_code[&10005]), (stats.calls, 1));
    let largest =
        scene.sandbox.received(Some("g")).into_iter().map(|call| call.recipient_count).max();
    assert_eq!(largest, Some(500), "the first batch");
}

#[tokio::test]
async fn a_batch_of_50_that_is_too_large_for_the_api_fails_and_leaves_a_dead_letter() {
    let mut scene = Scene::start().await;
    scene.sandbox.add_fault(error(10005)).unwrap();
    for recipients in [51, 50] {
        let asked = job("g", recipients);
        let result = scene.send(&asked).await;
        let calls = scene.sandbox.stats().calls;
        assert_eq!(
            (result.status, result.errors[0].kind, result.errors[0].code),
            (Status::Failed, ErrorKind::Job, Some(10005))
        );
        assert_eq!(
            (result.errors[0].recipients, result.errors[0].attempts),
            (Some(recipients as u32), 1),
            "{result:?}"
        );
        // 51 recipients are one call, then calls of 50 and 1.
        assert_eq!((result.calls, calls), if recipients == 51 { (3, 3) } else { (1, 4) });
        let letter = scene.dead_letter().await;
        assert_eq!(serde_json::from_slice::<Value>(&letter.data).unwrap(), asked);
        assert_eq!(header(&letter, "groupcast-error-code").as_deref(), Some("10005"));
    }
}

#[tokio::test]
async fn passing_faults_are_tried_again_until_the_job_is_sent() {
    let mut scene = Scene::start().await;
    let faults = [
        ("server-error", error(10002)),
        ("bad-gateway", InjectedFault::HttpStatus(502)),
        ("reset", InjectedFault::Reset),
        ("hang", InjectedFault::Hang),
        ("not-json", InjectedFault::NotJson),
    ];
    for (group, passing) in faults {
        scene.sandbox.add_fault(fault(passing, group, 2)).unwrap();
        let result = scene.send(&job(group, 3)).await;
        assert_eq!((result.status, result.calls), (Status::Sent, 3), "{group}: {result:?}");
        assert_eq!(scene.notified(group), users(3), "{group}");
    }
}

#[tokio::test]
async fn an_answer_that_says_slow_down_is_no_failed_attempt() {
    let mut scene = Scene::start().await;
    scene.sandbox.add_fault(fault(error(60007), "busy", 2)).unwrap();
    scene.sandbox.add_fault(fault(error(10004), "busy", 1)).unwrap();
    let result = scene.send(&job("busy", 1)).await;
    assert_eq!(
        (result.status, result.calls, result.errors[0].attempts),
        (Status::Failed, 3, 1),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_fault_that_does_not_pass_fails_the_job_in_the_end() {
    let mut scene = Scene::with("retry.give_up_after = \"1s\"").await;
    scene.sandbox.add_fault(fault(InjectedFault::HttpStatus(502), "down", 1000)).unwrap();
    let result = scene.send(&job("down", 2)).await;
    assert_eq!(result.status, Status::Failed, "{result:?}");
    let error = &result.errors[0];
    assert_eq!(
        (error.kind, error.code, error.http_status),
        (ErrorKind::Transient, None, Some(502))
    );
    assert!(error.attempts > 2);
    let letter = scene.dead_letter().await;
    assert_eq!(header(&letter, "groupcast-error-kind").as_deref(), Some("transient"));
    assert_eq!(header(&letter, "groupcast-error-code"), None);
}

#[tokio::test]
async fn with_at_most_once_a_lost_answer_is_reported_and_never_sent_again() {
    let mut scene = Scene::start().await;
    let lost_answer = FaultRule {
        after_effect: true,
        matching: Some("user-0".into()),
        ..FaultRule::from(InjectedFault::Reset)
    };
    scene.sandbox.add_fault(lost_answer).unwrap();
    let mut headers = lapin::types::FieldTable::default();
    headers.insert("groupcast-delivery".into(), crate::support::producer::text("at-most-once"));
    let properties = scene.producer.properties().with_headers(headers);
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 501)).unwrap(), properties)
        .await;
    let result = scene.producer.result().await;
    assert_eq!(result.status, Status::Partial, "{result:?}");
    assert_eq!(
        result.recipients.unwrap(),
        RecipientCounts { requested: 501, sent: 1, unknown: 500, ..Default::default() }
    );
    assert_eq!((result.errors[0].kind, result.calls), (ErrorKind::Unknown, 2));
    // A redrive has nothing to send.
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
}

#[tokio::test]
async fn nothing_is_sent_after_the_deadline_nor_before_the_given_time() {
    let mut scene = Scene::start().await;
    let now = jiff::Timestamp::now();
    let with = |name: &str, at: jiff::Timestamp| {
        let mut headers = lapin::types::FieldTable::default();
        headers.insert(name.into(), crate::support::producer::text(&at.to_string()));
        headers
    };
    let past = scene
        .producer
        .properties()
        .with_headers(with("groupcast-deadline", now - jiff::SignedDuration::from_secs(5)));
    scene.producer.publish(&scene.app, &serde_json::to_vec(&job("late", 501)).unwrap(), past).await;
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.calls, result.errors[0].kind),
        (Status::Expired, 0, ErrorKind::Expired)
    );
    assert_eq!(header(&scene.dead_letter().await, "groupcast-status").as_deref(), Some("expired"));

    let due = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let later = scene.producer.properties().with_headers(with("groupcast-not-before", due));
    scene.producer.publish(&scene.app, &serde_json::to_vec(&job("early", 1)).unwrap(), later).await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    assert!(scene.sandbox.received(Some("early"))[0].at >= due);
}

#[tokio::test]
async fn a_refusal_of_the_group_ends_the_job_and_one_of_a_recipient_only_its_batch() {
    let mut scene = Scene::with("batch_size = 1\nmax_in_flight = 8").await;
    let result = scene.send(&job("unknown-group", 400)).await;
    assert_eq!(
        (result.status, result.recipients.unwrap().failed, result.errors.len()),
        (Status::Failed, 400, 1),
        "{result:?}"
    );
    let error = &result.errors[0];
    assert_eq!(
        (error.kind, error.code, error.attempts, error.batches.len()),
        (ErrorKind::Job, Some(10010), 1, 400)
    );
    assert!(result.calls <= 8, "{} calls", result.calls);
    assert_eq!(scene.sandbox.stats().calls as u64, result.calls);
    let letter: Value = serde_json::from_slice(&scene.dead_letter().await.data).unwrap();
    assert_eq!(letter["ToMembers_Account"].as_array().unwrap().len(), 400);

    let refused = InjectedFault::Error { code: 10004, info: "invalid".into() };
    scene
        .sandbox
        .add_fault(FaultRule { matching: Some("user-1".into()), ..FaultRule::from(refused) })
        .unwrap();
    let result = scene.send(&job("g", 9)).await;
    assert_eq!(
        (result.status, result.recipients.unwrap().sent, result.calls),
        (Status::Partial, 8, 9),
        "{result:?}"
    );
}

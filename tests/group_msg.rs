//! Jobs through `send_group_msg`.

use std::{collections::BTreeSet, time::Duration};

use groupcast::{
    sandbox::{FaultRule, InjectedFault, ReceivedAudience, ReceivedCall},
    settle::result::{ErrorKind, JobResult, Status},
};
use serde_json::{Value, json};

use crate::support::{
    broker::Broker,
    eventually,
    scene::{Scene, job, settings, users},
};

const COMMUNITY: &str = "@TGS#_topics";
const SECOND_COMMAND: &str = "command = \"send_group_msg\"\ngroup_msg.targeting = true";

async fn scene(lines: &str) -> Scene {
    Scene::with(&format!("{SECOND_COMMAND}\n{lines}")).await
}

fn calls_to(scene: &Scene, group: &str) -> Vec<ReceivedCall> {
    scene.sandbox.received(Some(group))
}

/// The recipients of the messages that the sandbox delivered.
fn delivered(scene: &Scene, group: &str) -> Vec<String> {
    let calls = calls_to(scene, group).into_iter().filter(|call| call.discarded.is_none());
    calls.filter_map(|call| call.recipients).flatten().collect()
}

/// Every recipient was notified once.
fn assert_notified_once(scene: &Scene, group: &str, recipients: usize) {
    let mut notified = delivered(scene, group);
    notified.sort();
    let mut expected = users(recipients);
    expected.sort();
    assert_eq!(notified, expected, "{group}");
}

#[tokio::test]
async fn a_job_of_any_size_goes_out_in_messages_of_50() {
    let mut scene = scene("group_msg.calls_per_second_per_group = 100").await;
    scene.sandbox.change_settings(settings(json!({ "messages_per_second_per_group": 0 })));
    for (recipients, batches) in [(3, 1), (50, 1), (51, 2), (1200, 24)] {
        let group = format!("g{recipients}");
        let mut job = job(&group, recipients);
        job["ToMembers_Account"].as_array_mut().unwrap().push("user-0".into());
        let result = scene.send(&job).await;
        let counts = result.recipients.unwrap();
        assert_eq!(
            (result.status, result.command.as_str(), counts.sent, counts.duplicates),
            (Status::Sent, "send_group_msg", recipients as u32, 1),
            "{result:?}"
        );
        assert_eq!((result.batches.unwrap().total, result.message), (batches, None));
        assert_notified_once(&scene, &group, recipients);
        let numbers: BTreeSet<_> =
            calls_to(&scene, &group).iter().map(|call| call.random).collect();
        assert_eq!(numbers.len(), batches as usize);
    }
    assert_eq!(scene.sandbox.stats().messages.ignored_targets, 0);
}

#[tokio::test]
async fn a_job_to_everybody_a_topic_and_the_longest_content_are_messages_too() {
    let mut scene = scene("").await;
    let everybody = json!({ "GroupId": "all", "Content": "hello" });
    assert_eq!(scene.send(&everybody).await.status, Status::Sent);
    let call = &calls_to(&scene, "all")[0];
    assert_eq!((call.audience, call.content.as_str()), (ReceivedAudience::All, "hello"));
    let message = call.message.as_ref().unwrap();
    assert!(message.get("To_Account").is_none() && message["OnlineOnlyFlag"] == 1, "{message}");

    let topic =
        json!({ "GroupId": COMMUNITY, "TopicId": "@TGS#_topics@TOPIC#_t", "Content": "hello" });
    assert_eq!(scene.send(&topic).await.status, Status::Sent);
    assert_eq!(calls_to(&scene, COMMUNITY)[0].topic.as_deref(), Some("@TGS#_topics@TOPIC#_t"));

    let longest: String = "é\u{1F600}\"\\".chars().cycle().take(12_288 * 4 / 8).collect();
    assert_eq!(longest.len(), 12_288);
    let mut long = job("long", 2);
    long["Content"] = longest.clone().into();
    assert_eq!(scene.send(&long).await.status, Status::Sent);
    assert_eq!(calls_to(&scene, "long")[0].content, longest);

    let mut both = job(COMMUNITY, 1);
    both["TopicId"] = "@TGS#_topics@TOPIC#_t".into();
    let result = scene.send(&both).await;
    assert_eq!((result.status, result.calls), (Status::Rejected, 0));
    assert!(result.errors[0].info.contains("together with TopicId"), "{result:?}");
}

#[tokio::test]
async fn the_storage_decides_the_fields_and_whether_the_result_names_the_message() {
    for (storage, field) in
        [("silent", "SendMsgControl"), ("ordinary", "MsgBody"), ("online", "OnlineOnlyFlag")]
    {
        for element in ["custom", "text"] {
            let lines =
                format!("group_msg.storage = \"{storage}\"\ngroup_msg.element = \"{element}\"");
            let mut scene = scene(&lines).await;
            let result = scene.send(&json!({ "GroupId": "g", "Content": "hello" })).await;
            assert_eq!(result.status, Status::Sent, "{result:?}");
            assert_eq!(result.message.is_some(), storage != "online", "{result:?}");
            let call = &calls_to(&scene, "g")[0];
            assert_eq!((call.content.as_str(), call.random.is_some()), ("hello", true));
            assert!(call.message.as_ref().unwrap().get(field).is_some(), "{call:?}");
            if let Some(message) = result.message {
                assert_eq!(Some(message.seq), call.msg_seq);
            }
            // The vendor keeps no message to some members for the whole group.
            assert_eq!(scene.send(&job("g", 2)).await.message, None);
        }
    }
}

#[tokio::test]
async fn without_targeted_messages_a_job_with_recipients_is_rejected_before_any_call() {
    let mut scene = Scene::with("command = \"send_group_msg\"").await;
    // What the vendor may do, although nobody documents it.
    scene.sandbox.change_settings(settings(json!({ "targeting": "broadcast" })));
    let result = scene.send(&job("g", 3)).await;
    let error = &result.errors[0];
    assert_eq!(
        (result.status, result.calls, error.kind),
        (Status::Rejected, 0, ErrorKind::Invalid),
        "{result:?}"
    );
    assert!(error.info.contains("group_msg.targeting = true"), "{result:?}");
    assert!(calls_to(&scene, "g").is_empty());
    assert_eq!(scene.send(&json!({ "GroupId": "g", "Content": "c" })).await.status, Status::Sent);
}

/// Faults after which nobody knows whether the message was delivered.
fn doubtful_faults() -> Vec<InjectedFault> {
    vec![
        InjectedFault::Hang,
        InjectedFault::Reset,
        InjectedFault::HttpStatus(502),
        InjectedFault::Error { code: 60008, info: "timed out".into() },
    ]
}

#[tokio::test]
async fn where_the_vendor_discards_repeats_nobody_is_notified_twice_and_nothing_is_unknown() {
    for key in ["random", "sender", "group", "content"] {
        let mut scene = scene("group_msg.calls_per_second_per_group = 100").await;
        let change = json!({ "dedup_key": key, "messages_per_second_per_group": 0 });
        scene.sandbox.change_settings(settings(change));
        for (number, fault) in doubtful_faults().into_iter().enumerate() {
            for promise in ["at-least-once", "at-most-once"] {
                let group = format!("g-{number}-{promise}");
                let rule = FaultRule {
                    group: Some(group.clone()),
                    calls: Some(3),
                    after_effect: true,
                    ..FaultRule::from(fault.clone())
                };
                scene.sandbox.add_fault(rule).unwrap();
                let result = send_promising(&mut scene, &job(&group, 500), promise).await;
                let counts = result.recipients.unwrap();
                assert_eq!(
                    (result.status, counts.sent, counts.unknown),
                    (Status::Sent, 500, 0),
                    "{key} {fault:?} {result:?}"
                );
                assert!(result.calls > 10, "{result:?}");
                assert_notified_once(&scene, &group, 500);
            }
        }
        assert_eq!(scene.sandbox.stats().messages.different_messages_discarded, 0, "{key}");
    }
}

async fn send_promising(scene: &mut Scene, job: &Value, promise: &str) -> JobResult {
    let mut headers = lapin::types::FieldTable::default();
    let value = lapin::types::AMQPValue::LongString(promise.into());
    headers.insert("groupcast-delivery".into(), value);
    let properties = scene.producer.properties().with_headers(headers);
    let body = serde_json::to_vec(job).unwrap();
    scene.producer.publish(&scene.app, &body, properties).await;
    scene.producer.result().await
}

#[tokio::test]
async fn where_the_vendor_does_not_discard_repeats_at_most_once_says_so() {
    let mut scene = scene("group_msg.dedup_window = \"0s\"").await;
    scene.sandbox.change_settings(settings(json!({ "dedup_key": "off" })));
    let fault =
        FaultRule { calls: Some(1), after_effect: true, ..FaultRule::from(InjectedFault::Reset) };
    scene.sandbox.add_fault(fault.clone()).unwrap();
    let result = send_promising(&mut scene, &job("g", 100), "at-most-once").await;
    let counts = result.recipients.unwrap();
    assert_eq!((counts.sent, counts.unknown, result.calls), (50, 50, 2), "{result:?}");
    scene.sandbox.add_fault(fault).unwrap();
    let result = send_promising(&mut scene, &job("h", 100), "at-least-once").await;
    assert_eq!((result.status, delivered(&scene, "h").len()), (Status::Sent, 150), "{result:?}");
}

#[tokio::test]
async fn after_a_crash_a_repeated_message_has_its_number() {
    for key in ["random", "sender", "group", "content"] {
        crash_three_times(key).await;
    }
}

/// Kills the daemon three times while it sends 30 jobs of 40 batches.
async fn crash_three_times(dedup_key: &str) {
    let mut scene = scene("max_in_flight = 64\ngroup_msg.calls_per_second_per_group = 200").await;
    let change = json!({
        "messages_per_second_per_group": 0, "latency_ms": 40, "dedup_key": dedup_key
    });
    scene.sandbox.change_settings(settings(change));
    for number in 0..30 {
        let id = format!("job-{number}");
        scene.publish_with_id(&job(&format!("g{}", number % 5), 2000), &id).await;
    }
    for crash in 1..4u64 {
        eventually("some calls", async || {
            (scene.sandbox.stats().accepted > 200 * crash).then_some(())
        })
        .await;
        scene.daemon.kill().await;
        scene.daemon.start_again().await;
    }
    let mut open: BTreeSet<String> = (0..30).map(|number| format!("job-{number}")).collect();
    while !open.is_empty() {
        let result = scene.producer.result().await;
        assert_eq!((result.status, result.recipients.unwrap().sent), (Status::Sent, 2000));
        open.remove(&result.job_id);
    }
    let stats = scene.sandbox.stats();
    assert!(stats.messages.duplicates_discarded > 0, "no crash met a call: {stats:?}");
    assert_eq!(stats.messages.different_messages_discarded, 0);
    for group in 0..5 {
        // Six jobs of equal content and recipients.
        assert_eq!(delivered(&scene, &format!("g{group}")).len(), 6 * 2000);
    }
}

#[tokio::test]
async fn a_job_without_an_id_that_comes_again_keeps_its_numbers() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, SECOND_COMMAND).await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 300, "dedup_key": "random" })));
    scene.publish(&job("g", 200)).await;
    eventually("a call", async || (scene.sandbox.stats().accepted > 0).then_some(())).await;
    broker.ctl(&["close_all_connections", "test"]).await;
    scene.daemon.until_consuming(2).await;
    scene.producer.reconnect(broker.url()).await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.recipients.unwrap().sent), (Status::Sent, 200));
    assert_notified_once(&scene, "g", 200);
}

#[tokio::test]
async fn a_group_with_too_many_messages_slows_down_alone_and_loses_none() {
    for answer in ["drop_reason", "10023"] {
        let mut scene = scene("group_msg.calls_per_second_per_group = 60").await;
        scene.sandbox.change_settings(settings(json!({ "group_limit_answer": answer })));
        // 200 messages to one group, which takes 40 a second.
        let alone = median_latency(&mut scene, "alone").await;
        scene.publish(&job("busy", 200 * 50)).await;
        let beside = median_latency(&mut scene, "beside").await;
        eprintln!("median latency: {alone:?} alone, {beside:?} beside a group that is too fast");
        assert!(beside < alone * 2, "{alone:?} {beside:?}");
        let result = scene.producer.result().await;
        assert_eq!(
            (result.status, result.recipients.unwrap().sent, result.errors.len()),
            (Status::Sent, 10_000, 0),
            "{result:?}"
        );
        assert!(result.calls > 200, "nothing was dropped: {result:?}");
        assert_notified_once(&scene, "busy", 10_000);
    }
}

/// The median time from a job to its result, of 41 small jobs to groups of their own.
async fn median_latency(scene: &mut Scene, group: &str) -> Duration {
    let mut latencies = Vec::new();
    for number in 0..41 {
        let group = format!("{group}-{number}");
        let began = tokio::time::Instant::now();
        let result = scene.send(&job(&group, 1)).await;
        assert_eq!((result.group_id, result.status), (Some(group), Status::Sent));
        latencies.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    latencies.sort();
    latencies[20]
}

#[tokio::test]
async fn a_plan_without_targeted_messages_pauses_the_app_and_loses_no_job() {
    let mut scene = scene("pause.probe_first = \"100ms\"\npause.probe_max = \"200ms\"").await;
    scene.sandbox.change_settings(settings(json!({ "targeting": "refuse" })));
    scene.publish(&job("g", 3)).await;
    scene.daemon.until_logged("app paused").await;
    scene.sandbox.change_settings(settings(json!({ "targeting": "on" })));
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    assert_notified_once(&scene, "g", 3);
}

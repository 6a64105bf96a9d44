//! Commands look through dead letters without losing them, and redrive them without repeating
//! calls.

use std::{collections::BTreeMap, process::Output, time::Duration};

use groupcast::{sandbox::FaultRule, settle::result::Status};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    eventually,
    producer::{header, text},
    scene::{Scene, job},
};

/// Runs `groupcast dead` with the daemon's configuration.
async fn dead(scene: &Scene, arguments: &[&str]) -> Output {
    let configuration = scene.daemon.file("groupcast.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_groupcast"));
    command.arg("--config").arg(configuration).arg("dead").args(arguments);
    tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .expect("it ends")
        .expect("it starts")
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (text(&output.stdout), text(&output.stderr))
}

/// The output of `groupcast dead`, which must succeed.
pub async fn printed(scene: &Scene, arguments: &[&str]) -> (String, String) {
    let output = dead(scene, arguments).await;
    let (printed, told) = said(&output);
    assert!(output.status.success(), "{arguments:?}: {told}");
    (printed, told)
}

async fn listed(scene: &Scene, arguments: &[&str]) -> Vec<Value> {
    let (printed, _) = printed(scene, &[&["list", "--json"], arguments].concat()).await;
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn ids(letters: &[Value]) -> Vec<&str> {
    letters.iter().map(|letter| letter["job_id"].as_str().expect("an id")).collect()
}

/// An app with three dead letters: a job for a group that does not exist, an invalid job, and an
/// expired job.
async fn with_three_letters() -> Scene {
    let mut scene = Scene::start().await;
    scene.publish_with_id(&job("unknown-1", 3), "refused").await;
    assert_eq!(scene.producer.result().await.status, Status::Failed);
    scene.publish_with_id(&json!({ "GroupId": "g", "Contents": "x" }), "invalid").await;
    assert_eq!(scene.producer.result().await.status, Status::Rejected);
    let headers = FieldTable::from(BTreeMap::from([(
        "groupcast-deadline".into(),
        AMQPValue::LongLongInt(1),
    )]));
    let properties =
        scene.producer.properties().with_message_id("late".into()).with_headers(headers);
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 2)).unwrap(), properties)
        .await;
    assert_eq!(scene.producer.result().await.status, Status::Expired);
    scene
}

pub async fn letters_left(scene: &Scene, count: u32) {
    let queue = scene.queue("dead");
    eventually("the letters to be back", async || {
        (scene.producer.depth(&queue).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn they_are_listed_and_shown_and_stay_where_they_are() {
    let scene = with_three_letters().await;
    let all = listed(&scene, &[]).await;
    assert_eq!(ids(&all), ["refused", "invalid", "late"]);
    let first = &all[0];
    assert_eq!(
        [
            &first["kind"],
            &first["code"],
            &first["group_id"],
            &first["recipients"],
            &first["attempt"],
            &first["status"]
        ],
        [&json!("job"), &json!(10010), &json!("unknown-1"), &json!(3), &json!(1), &json!("failed")]
    );
    for (condition, found) in [
        (["--code", "10010"], vec!["refused"]),
        (["--kind", "expired"], vec!["late"]),
        (["--group", "unknown-1"], vec!["refused"]),
        (["--id", "invalid"], vec!["invalid"]),
        (["--older-than", "1h"], vec![]),
        (["--newer-than", "1h"], vec!["refused", "invalid", "late"]),
    ] {
        letters_left(&scene, 3).await;
        assert_eq!(ids(&listed(&scene, &condition).await), found, "{condition:?}");
    }
    letters_left(&scene, 3).await;
    let (lines, told) = printed(&scene, &["list"]).await;
    assert!(
        lines.contains("refused  failed  job  10010  unknown-1  3 recipients  attempt 1"),
        "{lines}"
    );
    assert!(told.contains("3 of 3 dead letters"), "{told}");

    letters_left(&scene, 3).await;
    let (shown, _) = printed(&scene, &["show", "refused"]).await;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["body"], job("unknown-1", 3));
    assert_eq!(shown["headers"]["groupcast-status"], "failed");
    letters_left(&scene, 3).await;
    let missing = dead(&scene, &["show", "nobody"]).await;
    assert!(!missing.status.success() && said(&missing).1.contains("groupcast dead list"));
    letters_left(&scene, 3).await;
}

#[tokio::test]
async fn a_redrive_is_tried_dry_then_sends_what_was_not_sent_and_leaves_what_is_invalid() {
    let mut scene = with_three_letters().await;
    for (arguments, count) in [
        (&["redrive", "--dry-run"][..], 1),
        (&["redrive", "--dry-run", "--without-deadline"][..], 2),
    ] {
        let (lines, told) = printed(&scene, arguments).await;
        let announced = format!("{count} of 3 dead letters would be sent again");
        assert!(lines.lines().count() == count && told.contains(&announced), "{lines}{told}");
        letters_left(&scene, 3).await;
    }
    assert!(scene.producer.hears_nothing().await, "nothing was sent");

    // The job fails again for the same reason, and its attempt is counted. The others stay, because
    // they would fail again too.
    let (_, told) = printed(&scene, &["redrive"]).await;
    let told_of_others = told.contains("--kind invalid") && told.contains("--without-deadline");
    assert!(told.contains("1 of 3 dead letters sent again") && told_of_others, "{told}");
    let again = scene.producer.result().await;
    assert_eq!(
        (again.job_id.as_str(), again.status, again.duplicate),
        ("refused", Status::Failed, false),
        "it runs anew"
    );
    letters_left(&scene, 3).await;
    let attempts: BTreeMap<String, Value> = listed(&scene, &[])
        .await
        .into_iter()
        .map(|letter| (letter["job_id"].as_str().unwrap().to_owned(), letter["attempt"].clone()))
        .collect();
    assert_eq!(
        (&attempts["refused"], &attempts["late"], &attempts["invalid"]),
        (&json!(2), &json!(1), &json!(1))
    );

    letters_left(&scene, 3).await;
    printed(&scene, &["redrive", "--kind", "expired", "--without-deadline"]).await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    assert_eq!(scene.notified("g"), ["user-0", "user-1"]);
    letters_left(&scene, 2).await;
    printed(&scene, &["redrive", "--kind", "invalid"]).await;
    assert_eq!(scene.producer.result().await.status, Status::Rejected);
    letters_left(&scene, 2).await;
}

#[tokio::test]
async fn what_was_sent_before_is_not_sent_by_a_redrive() {
    let mut scene = Scene::start().await;
    let refuse =
        json!({ "fault": { "error": { "code": 10004 } }, "matching": "user-700", "group": "g" });
    scene.sandbox.add_fault(serde_json::from_value::<FaultRule>(refuse).unwrap()).unwrap();
    scene.publish_with_id(&job("g", 1200), "partly").await;
    assert_eq!(scene.producer.result().await.status, Status::Partial);
    scene.sandbox.clear_faults();
    letters_left(&scene, 1).await;
    printed(&scene, &["redrive", "--code", "10004"]).await;
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.batches.map(|batches| batches.total)),
        (Status::Sent, Some(1))
    );
    let mut notified = scene.notified("g");
    notified.sort();
    let before = notified.len();
    notified.dedup();
    assert_eq!((before, notified.len()), (1200, 1200));
}

#[tokio::test]
async fn a_purge_removes_what_it_is_told_to_and_nothing_before_it_is_told_twice() {
    let scene = with_three_letters().await;
    let (lines, told) = printed(&scene, &["purge", "--kind", "invalid"]).await;
    assert!(lines.lines().count() == 1 && told.contains("--yes"), "{lines}{told}");
    letters_left(&scene, 3).await;
    let (_, told) = printed(&scene, &["purge", "--kind", "invalid", "--yes"]).await;
    assert!(told.contains("1 of 3 dead letters removed"), "{told}");
    letters_left(&scene, 2).await;
    assert_eq!(ids(&listed(&scene, &[]).await), ["refused", "late"]);
}

#[tokio::test]
async fn a_job_that_the_broker_gave_up_on_is_a_letter_too() {
    let scene = Scene::start().await;
    let death = FieldTable::from(BTreeMap::from([
        ("reason".into(), text("delivery_limit")),
        ("time".into(), AMQPValue::Timestamp(1_700_000_000)),
    ]));
    let headers = FieldTable::from(BTreeMap::from([
        ("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into())),
        ("mine".into(), text("kept")),
    ]));
    let properties =
        scene.producer.properties().with_message_id("poison".into()).with_headers(headers);
    let channel = scene.producer.channel().await;
    channel.confirm_select(Default::default()).await.unwrap();
    let body = serde_json::to_vec(&job("g", 1)).unwrap();
    crate::support::producer::publish(&channel, &scene.queue("dead"), &body, properties)
        .await
        .unwrap();
    let letters = listed(&scene, &["--kind", "undeliverable"]).await;
    assert_eq!(ids(&letters), ["poison"]);
    assert_eq!(
        (&letters[0]["died_at"], &letters[0]["attempt"]),
        (&json!("2023-11-14T22:13:20Z"), &Value::Null)
    );
}

#[tokio::test]
async fn no_letter_steers_the_terminal_that_shows_it() {
    let mut scene = Scene::start().await;
    let mut steering = job("g-\u{1b}[2J\n\u{9b}31m", 1);
    steering["Contents"] = json!("no such field");
    scene.publish(&steering).await;
    assert_eq!(scene.producer.result().await.status, Status::Rejected);
    letters_left(&scene, 1).await;
    for arguments in [&["list"][..], &["redrive", "--kind", "invalid", "--dry-run"], &["purge"]] {
        let (lines, _) = printed(&scene, arguments).await;
        assert!(
            lines.contains("g-\\u{1b}[2J\\u{a}\\u{9b}31m")
                && !lines.trim_end().contains(char::is_control),
            "{lines:?}"
        );
        letters_left(&scene, 1).await;
    }
}

#[tokio::test]
async fn a_redrive_that_cannot_be_confirmed_leaves_the_letters() {
    let mut scene = with_three_letters().await;
    scene.daemon.terminate().await;
    scene
        .producer
        .channel()
        .await
        .queue_delete(scene.queue("jobs").as_str().into(), Default::default())
        .await
        .unwrap();
    let output = dead(&scene, &["redrive"]).await;
    assert!(
        !output.status.success() && said(&output).1.contains("there is no queue"),
        "{:?}",
        said(&output)
    );
    letters_left(&scene, 3).await;
}

#[tokio::test]
async fn a_job_without_an_id_keeps_the_one_that_it_was_given_and_its_letter_counts_its_deaths() {
    let mut scene = Scene::start().await;
    scene.publish(&job("unknown-2", 1)).await;
    let first = scene.producer.result().await;
    assert_eq!(first.status, Status::Failed);
    letters_left(&scene, 1).await;
    printed(&scene, &["redrive"]).await;
    let second = scene.producer.result().await;
    assert_eq!(
        (second.job_id, second.duplicate),
        (first.job_id, false),
        "it keeps the id that it was given"
    );
    let letter = scene.dead_letter().await;
    assert_eq!(header(&letter, "groupcast-attempt").as_deref(), Some("2"));
    assert_eq!(header(&letter, "groupcast-error-code").as_deref(), Some("10010"));
    assert_eq!(
        letter.properties.reply_to().as_ref().map(|queue| queue.as_str()),
        Some(scene.producer.reply_queue.as_str())
    );
}

/// A quorum queue drops a message that has gone back too often. An operator's policy may set a low
/// limit.
#[tokio::test]
async fn letters_can_be_looked_at_again_and_again_under_a_low_delivery_limit() {
    let scene = with_three_letters().await;
    let broker = crate::support::broker::Broker::shared().await;
    let policy = format!("p-{}", scene.app);
    let pattern = format!("^groupcast\\.{}\\.", scene.app);
    broker
        .ctl(&["set_policy", "--apply-to", "queues", &policy, &pattern, r#"{"delivery-limit":2}"#])
        .await;
    for _ in 0..8 {
        assert_eq!(ids(&listed(&scene, &[]).await), ["refused", "invalid", "late"]);
        letters_left(&scene, 3).await;
    }
    broker.ctl(&["clear_policy", &policy]).await;
}

//! A result that its queue did not take waits in the unrouted queue. An operator can send it to the
//! intended queue.

use std::{process::Output, time::Duration};

use groupcast::settle::result::JobResult;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use tokio::process::Command;

use crate::support::{
    eventually,
    scene::{Scene, job},
};

async fn unrouted(scene: &Scene, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groupcast"));
    command
        .arg("--config")
        .arg(scene.daemon.file("groupcast.toml"))
        .arg("unrouted")
        .args(arguments);
    let running = tokio::time::timeout(Duration::from_secs(60), command.output());
    let Output { status, stdout, stderr } = running.await.expect("it ends").expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let (printed, told) = (text(stdout), text(stderr));
    assert!(status.success(), "{arguments:?}: {told}");
    (printed, told)
}

async fn left(scene: &Scene, count: u32) {
    let queue = scene.queue("unrouted");
    eventually("results to be unrouted", async || {
        (scene.producer.depth(&queue).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn unrouted_results_are_listed_and_sent_to_where_they_were_meant_for() {
    let scene = Scene::start().await;
    let body = serde_json::to_vec(&job("g", 1)).unwrap();
    let late = format!("late-{}", scene.app);
    for (id, reply_to) in [
        ("one", late.as_str()),
        ("two", "never-there"),
        ("three", late.as_str()),
        ("four", "groupcast.x.jobs"),
    ] {
        let properties =
            scene.producer.properties().with_reply_to(reply_to.into()).with_message_id(id.into());
        scene.producer.publish(&scene.app, &body, properties).await;
    }
    left(&scene, 4).await;
    let (lines, told) = unrouted(&scene, &["list", "--queue", &late]).await;
    assert!(
        lines.lines().count() == 2 && lines.contains(&format!("one  sent  for {late}")),
        "{lines}"
    );
    assert!(told.contains("2 of 4 unrouted results"), "{told}");
    left(&scene, 4).await;
    // While the queue is missing, nothing is lost.
    assert!(unrouted(&scene, &["redrive"]).await.1.contains("0 of 4"));
    left(&scene, 4).await;

    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    scene
        .producer
        .channel()
        .await
        .queue_declare(late.as_str().into(), durable, FieldTable::default())
        .await
        .unwrap();
    let (_, told) = unrouted(&scene, &["redrive"]).await;
    assert!(told.contains("2 of 4 unrouted results sent"), "{told}");
    let mut redriven = Vec::new();
    for _ in 0..2 {
        let message = scene.producer.take(&late).await;
        let result: JobResult = serde_json::from_slice(&message.data).unwrap();
        let message_id = message.properties.message_id().as_ref().unwrap().as_str();
        assert_eq!(message_id, format!("{}.result", result.job_id));
        redriven.push(result.job_id);
    }
    redriven.sort();
    assert_eq!(redriven, ["one", "three"]);
    left(&scene, 2).await;
    assert!(unrouted(&scene, &["purge"]).await.1.contains("--yes"));
    left(&scene, 2).await;
    assert!(
        unrouted(&scene, &["purge", "--id", "four", "--yes"])
            .await
            .1
            .contains("1 of 2 unrouted results removed")
    );
    left(&scene, 1).await;
    scene
        .producer
        .channel()
        .await
        .queue_delete(late.as_str().into(), Default::default())
        .await
        .unwrap();
}

//! Jobs that wait in the queue do not fill the memory.

use std::fs;

use groupcast::settle::result::Status;
use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::Producer,
    scene::{Scene, configuration, sandbox, unique_app},
};

const MIB: usize = 1 << 20;

async fn holding(hold_bytes: &str) -> Scene {
    holding_with(hold_bytes, "").await
}

async fn holding_with(hold_bytes: &str, app_lines: &str) -> Scene {
    let (app, sandbox) = (unique_app(), sandbox().await);
    let url = Broker::shared().await.url();
    let configuration = configuration(url, &app, &sandbox.endpoint(), app_lines);
    let configuration =
        configuration.replace("[broker]\n", &format!("[broker]\nhold_bytes = \"{hold_bytes}\"\n"));
    let daemon = Daemon::start(&configuration).await;
    Scene::of(app, configuration, sandbox, daemon, Producer::connect(url).await).await
}

/// The largest resident memory of the daemon so far, in bytes.
fn peak(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A job of this size, whose batches take minutes to send.
fn large_job(bytes: usize) -> Value {
    let recipients: Vec<String> =
        (0..bytes / 16).map(|number| format!("recipient-{number:04}")).collect();
    json!({ "GroupId": "g", "Content": "hello", "ToMembers_Account": recipients })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_jobs_in_the_queue_take_no_more_memory_than_configured() {
    let scene = holding("32MiB").await;
    let idle = peak(&scene.daemon);
    let job = large_job(5 * MIB);
    for _ in 0..60 {
        scene.publish(&job).await;
    }
    scene.daemon.until_logged("the size of held jobs changed").await;
    eventually("calls", async || (scene.sandbox.stats().calls > 300).then_some(())).await;
    let (bytes, published) = (peak(&scene.daemon) - idle, 60 * 5 * MIB);
    println!(
        "{} MiB over {} MiB when idle, of {} MiB published",
        bytes / MIB,
        idle / MIB,
        published / MIB
    );
    assert!(bytes < 4 * 32 * MIB, "{bytes} bytes");
    scene
        .producer
        .channel()
        .await
        .queue_delete(scene.queue("jobs").into(), QueueDeleteOptions::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_are_taken_fewer_at_a_time_are_all_sent_once() {
    let mut scene = holding("4MiB").await;
    for number in 0..40 {
        let small = json!({ "GroupId": "g", "Content": format!("job \
            {number}"), "ToMembers_Account": ["a"] })
        .to_string();
        let padded = format!("{small}{}", " ".repeat(MIB));
        let properties =
            scene.producer.properties().with_message_id(format!("job-{number}").into());
        scene.producer.publish(&scene.app, padded.as_bytes(), properties).await;
    }
    for _ in 0..40 {
        assert_eq!(scene.producer.result().await.status, Status::Sent);
    }
    assert!(scene.daemon.log().contains("the size of held jobs changed"));
    let deliveries = scene.sandbox.stats().deliveries;
    assert_eq!(
        (deliveries.distinct_deliveries, scene.sandbox.stats().calls),
        (40, 40),
        "none was sent twice"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_without_an_id_are_sent_once_though_the_prefetch_is_resized() {
    const LARGE: usize = 10;
    let scene = holding_with("4MiB", "batch_size = 1\nretry.park = [\"1s\"]").await;
    scene.daemon.signal("STOP");
    for number in 0..LARGE {
        let recipients: Vec<String> =
            (0..40).map(|recipient| format!("user-{number}-{recipient}")).collect();
        let job = json!({ "GroupId": format!("g{number}"), "Content": "hello", "ToMembers_Account": recipients }).to_string();
        // The first jobs are small. They have begun when the large ones come.
        let padding = if number < 5 { 0 } else { MIB };
        let padded = format!("{job}{}", " ".repeat(padding));
        scene.producer.publish(&scene.app, padded.as_bytes(), scene.producer.properties()).await;
        if number == 4 {
            scene.daemon.signal("CONT");
            eventually("calls", async || (scene.sandbox.stats().calls > 20).then_some(())).await;
        }
    }
    let mut scene = scene;
    let mut calls = 0;
    for _ in 0..LARGE {
        let result = scene.producer.result().await;
        assert_eq!(result.status, Status::Sent, "{result:?}");
        calls += result.calls;
    }
    assert!(scene.daemon.log().contains("the size of held jobs changed"), "{}", scene.daemon.log());
    let stats = scene.sandbox.stats();
    assert_eq!((stats.deliveries.repeated_recipients, stats.calls), (0, calls));
    // On a busy machine a call can arrive in a second that is already full. The daemon then repeats
    // it.
    assert!((40 * LARGE as u64..40 * LARGE as u64 + 5).contains(&calls), "{calls}");
}

//! While the state store stalls, or answers and cannot record, the daemon waits. No recipient is
//! notified twice.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use groupcast::settle::result::Status;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::Producer,
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, settings, unique_app},
};

/// Enough batches for the job to run when the store stalls, and for some seconds after.
const BATCHES: usize = 400;
/// How many calls come before the store stalls.
const BEFORE: u64 = 100;
const CALLS_PER_SECOND: u64 = 100;
/// An outcome may wait for its record for a second before calls stop. The other half second is for
/// a busy machine.
const CALLS_DURING: u64 = CALLS_PER_SECOND + CALLS_PER_SECOND / 2;

/// A scene with this state URL, whose API answers after 20 ms.
async fn scene_with(state_url: &str, app_lines: &str) -> Scene {
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let broker = Broker::shared().await;
    let lines = format!("{app_lines}\n[state]\nurl = \"{state_url}\"");
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines);
    let daemon = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    Scene::of(app, configuration, sandbox, daemon, producer).await
}

fn repeats(scene: &Scene, group: &str) -> usize {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for recipient in scene.notified(group) {
        *times.entry(recipient).or_default() += 1;
    }
    times.values().map(|times| times - 1).sum()
}

/// Makes the store stall for so long in the middle of a job, and checks the calls.
async fn nobody_is_notified_twice(
    scene: &mut Scene,
    stall: Duration,
    begin: impl AsyncFnOnce(),
    end: impl AsyncFnOnce(),
) {
    scene.publish_with_id(&job("g", BATCHES), "order-1").await;
    eventually("calls", async || (scene.sandbox.stats().calls >= BEFORE).then_some(())).await;
    let before = scene.sandbox.stats().calls;
    begin().await;
    sleep(stall).await;
    let during = scene.sandbox.stats().calls - before;
    end().await;
    let result = scene.producer.result().await;
    let stats = scene.sandbox.stats();
    let repeats = repeats(scene, "g");
    println!(
        "stalled for {stall:?}: {during} calls meanwhile, {repeats} recipients twice, calls {} of \
            {}",
        result.calls, stats.calls
    );
    assert_eq!(
        (result.status, result.recipients.unwrap().sent as usize),
        (Status::Sent, BATCHES),
        "{result:?}"
    );
    assert_eq!(repeats, 0, "what the daemon knows is recorded when the store works again");
    assert_eq!(result.calls, stats.calls, "each call is told");
    assert!(during <= CALLS_DURING, "{during} calls left while outcomes could not be recorded");
}

const STALLS: [u64; 3] = [2, 12, 40];
const LINES: &str = "batch_size = 1\ncalls_per_second = 100\nburst = 1";

#[tokio::test]
async fn a_redis_that_is_frozen_has_nobody_notified_twice() {
    join_all(STALLS.map(async |seconds| {
        let redis = Redis::start("").await;
        let mut scene = scene_with(redis.url(), LINES).await;
        let stall = Duration::from_secs(seconds);
        nobody_is_notified_twice(
            &mut scene,
            stall,
            async || redis.signal("STOP"),
            async || redis.signal("CONT"),
        )
        .await;
    }))
    .await;
}

#[tokio::test]
async fn a_state_file_that_another_process_has_locked_has_nobody_notified_twice() {
    join_all(STALLS.map(async |seconds| {
        let mut scene = scene_with("sqlite:groupcast.db", LINES).await;
        let other = rusqlite::Connection::open(scene.daemon.file("groupcast.db")).unwrap();
        other.busy_timeout(Duration::from_secs(5)).unwrap();
        let stall = Duration::from_secs(seconds);
        let lock = async || other.execute_batch("BEGIN IMMEDIATE").unwrap();
        nobody_is_notified_twice(&mut scene, stall, lock, async || {
            other.execute_batch("ROLLBACK").unwrap()
        })
        .await;
    }))
    .await;
}

async fn tell_redis(redis: &Redis, command: &str) {
    let address = redis.url().trim_start_matches("redis://").trim_end_matches("/0").to_owned();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 3];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK", "{command}");
}

#[tokio::test]
async fn a_redis_that_passes_a_probe_and_cannot_record_has_no_job_called_again() {
    let redis = Redis::start("").await;
    let mut scene = scene_with(redis.url(), "").await;
    tell_redis(&redis, "ACL SETUSER default -hdel").await;
    for number in 0..5 {
        scene.publish_with_id(&job("g", 1), &format!("order-{number}")).await;
    }
    scene.daemon.until_logged("the state store does not work").await;
    // Three times as long as an operation is tried.
    sleep(Duration::from_secs(30)).await;
    let calls = scene.sandbox.stats().calls;
    assert!(calls <= 5, "{calls} calls for five jobs of one call");
    let (status, body) = scene.daemon.get("/readyz").await;
    assert_eq!(status, 503, "{body}");
    assert!(
        body.contains("record how a batch stands")
            && body.contains("use all commands on the keys groupcast:*"),
        "{body}"
    );

    tell_redis(&redis, "ACL SETUSER default +hdel").await;
    for _ in 0..5 {
        let result = scene.producer.result().await;
        assert_eq!((result.status, result.calls), (Status::Sent, 1), "{result:?}");
    }
    assert_eq!(scene.sandbox.stats().calls, 5, "each job was called for once");
}

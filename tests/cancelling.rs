//! A cancelled job starts no further call, wherever it is, and has one honest answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Output,
    time::Duration,
};

use groupcast::{
    config::{Config, ConfigFile},
    progress::{self, sqlite::FileAccess},
    settle::result::{ErrorKind, JobResult, Status},
};
use lapin::types::FieldTable;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{process::Command, time::sleep};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::{Producer, text},
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, settings, unique_app},
};

const TOKEN: &str = "a-token-for-the-tests";
const BATCHES: usize = 2000;
const UNDER_WAY: usize = 8;
const CALLS_PER_SECOND: usize = 200;

fn lines() -> String {
    format!(
        "batch_size = 1\ncalls_per_second = {CALLS_PER_SECOND}\nmax_in_flight = {UNDER_WAY}\nretry.hold \
            = \"2s\"\nretry.park = [\"2s\"]"
    )
}

/// Runs `groupcast job` in the daemon's folder.
async fn job_command(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_groupcast"))
        .arg("job")
        .args(arguments)
        .current_dir(daemon.file(""))
        .output()
        .await
        .expect("the binary starts")
}

async fn cancel(scene: &Scene, id: &str) -> String {
    let Output { status, stdout, stderr } = job_command(&scene.daemon, &["cancel", id]).await;
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("text")
}

/// A cancelled job was called for as often as its result says, and has no dead letter.
async fn assert_was_stopped(scene: &Scene, result: &JobResult, group: &str, batches: usize) {
    let sent = scene.notified(group).len();
    let counts = result.recipients.expect("its members are named");
    assert_eq!((counts.sent as usize, counts.failed as usize), (sent, batches - sent));
    assert_eq!(result.status, if sent > 0 { Status::Partial } else { Status::Cancelled });
    let [error] = &result.errors[..] else { panic!("{result:?}") };
    assert_eq!((error.kind, error.info.as_str()), (ErrorKind::Cancelled, "the job was cancelled"));
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
}

#[tokio::test]
async fn a_job_that_is_being_sent_stops_within_a_second() {
    let mut scene = Scene::with(&lines()).await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    scene.publish_with_id(&job("g", BATCHES), "order-1").await;
    eventually("some calls", async || (scene.sandbox.stats().calls >= 100).then_some(())).await;

    let told = cancel(&scene, "order-1").await;
    assert!(told.contains("job `order-1`") && told.contains("is cancelled"), "{told}");
    let before = scene.sandbox.stats().calls;
    let result = scene.producer.result().await;
    let after = scene.sandbox.stats().calls - before;
    println!("{after} calls after the command had ended");
    assert!(after <= UNDER_WAY as u64 + CALLS_PER_SECOND as u64 / 10, "{after} calls");
    assert_was_stopped(&scene, &result, "g", BATCHES).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(scene.sandbox.stats().calls, before + after);

    let again = job_command(&scene.daemon, &["cancel", "order-1"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("has already ended"));
    let shown = job_command(&scene.daemon, &["order-1"]).await;
    let shown: JobResult = serde_json::from_slice(&shown.stdout).expect("a result");
    assert_eq!((shown.status, shown.errors), (Status::Partial, result.errors));

    // A copy is answered from the record.
    scene.publish_with_id(&job("g", BATCHES), "order-1").await;
    let copy = scene.producer.result().await;
    assert_eq!((copy.status, copy.duplicate, copy.calls), (Status::Partial, true, result.calls));
}

#[tokio::test]
async fn another_replica_with_the_same_redis_can_cancel_it() {
    let redis = Redis::start("").await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let broker = Broker::shared().await;
    let lines = format!("{}\n[state]\nurl = \"{}\"", lines(), redis.url());
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines)
        .replace("[admin]", &format!("[admin]\ntoken = \"{TOKEN}\""));
    let active = Daemon::start(&configuration).await;
    let standby = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, active, producer).await;
    scene.publish_with_id(&job("g", BATCHES), "order/1 群").await;
    eventually("some calls", async || (scene.sandbox.stats().calls >= 100).then_some(())).await;

    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let post = async |id: &str, token: &str| {
        let url = format!("http://{}/apps/{}/jobs/{id}/cancel", standby.address(), scene.app);
        let answer = client.post(url).bearer_auth(token).send().await.expect("an answer");
        (answer.status(), answer.text().await.expect("a body"))
    };
    assert_eq!(post("order%2F1%20%E7%BE%A4", "wrong").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(post("order%2F1%20%E7%BE%A4", TOKEN).await.0, StatusCode::OK);
    let before = scene.sandbox.stats().calls;
    let result = scene.producer.result().await;
    let after = scene.sandbox.stats().calls - before;
    println!("{after} calls after the answer");
    assert!(after <= UNDER_WAY as u64 + CALLS_PER_SECOND as u64 / 10, "{after} calls");
    assert_was_stopped(&scene, &result, "g", BATCHES).await;

    let (status, told) = post("order%2F1%20%E7%BE%A4", TOKEN).await;
    assert_eq!((status, told.trim()), (StatusCode::CONFLICT, "\"has_ended\""));
    assert_eq!(post("unknown", TOKEN).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_job_that_waits_makes_no_call() {
    let mut scene = Scene::with(&lines()).await;
    let until_parked = async |scene: &Scene| {
        eventually("a parked job", async || {
            let waiting = scene.producer.depth(&scene.queue("wait.2")).await;
            (waiting > 0).then_some(())
        })
        .await;
    };
    // Scheduled for later than a job is held, so it is parked.
    let later = jiff::Timestamp::now() + Duration::from_secs(60);
    let body = serde_json::to_vec(&job("scheduled", 3)).expect("JSON");
    let mut headers = FieldTable::default();
    headers.insert("groupcast-not-before".into(), text(&later.to_string()));
    let properties =
        scene.producer.properties().with_message_id("scheduled".into()).with_headers(headers);
    scene.producer.publish(&scene.app, &body, properties).await;
    until_parked(&scene).await;
    assert!(cancel(&scene, "scheduled").await.contains("is cancelled: no further call"));
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Cancelled, 0), "{result:?}");
    assert_was_stopped(&scene, &result, "scheduled", 3).await;

    assert!(cancel(&scene, "queued").await.contains("it is cancelled when it comes"));
    scene.publish_with_id(&job("queued", 3), "queued").await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Cancelled, 0), "{result:?}");
    assert_was_stopped(&scene, &result, "queued", 3).await;

    // Parked because the API does not answer in time.
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 5000 })));
    scene.publish_with_id(&job("parked", 3), "parked").await;
    until_parked(&scene).await;
    let calls = scene.sandbox.received(Some("parked")).len();
    assert!(cancel(&scene, "parked").await.contains("is cancelled: no further call"));
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.errors[0].kind), (Status::Cancelled, ErrorKind::Cancelled));
    assert_eq!(scene.sandbox.received(Some("parked")).len(), calls);
}

#[tokio::test]
async fn a_cancellation_can_be_undone_until_it_takes_effect() {
    let mut scene = Scene::with(&lines()).await;
    cancel(&scene, "order-1").await;
    let undone = job_command(&scene.daemon, &["cancel", "--undo", "order-1"]).await;
    assert!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
    scene.publish_with_id(&job("g", 3), "order-1").await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    let nothing = job_command(&scene.daemon, &["cancel", "--undo", "order-1"]).await;
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no cancellation"));

    let foreign = job_command(&scene.daemon, &["cancel", "order-2", "--app", "none"]).await;
    assert_eq!(foreign.status.code(), Some(1));
    for wrong in [vec![], vec!["cancel"], vec!["cancel", "--all"]] {
        assert_eq!(job_command(&scene.daemon, &wrong).await.status.code(), Some(2), "{wrong:?}");
    }
}

/// Half of the jobs are cancelled at random moments, while the daemon is killed again and again.
#[tokio::test]
async fn of_a_thousand_jobs_each_has_one_honest_answer_whatever_is_cancelled_and_killed() {
    const JOBS: usize = 1000;
    const MEMBERS: usize = 3;
    const KILLS: usize = 6;
    let mut scene = Scene::with(&lines()).await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let id = |number: usize| format!("job-{number}");
    for number in 0..JOBS {
        scene.publish_with_id(&job(&id(number), MEMBERS), &id(number)).await;
    }
    let mut chance = SmallRng::seed_from_u64(7);
    let mut to_cancel: Vec<usize> = (0..JOBS).filter(|_| chance.random_bool(0.5)).collect();
    for last in (1..to_cancel.len()).rev() {
        to_cancel.swap(last, chance.random_range(0..=last));
    }
    let state = scene.daemon.file("groupcast.db");
    let toml = format!("{}[state]\nurl = \"sqlite:{}\"", scene.configuration, state.display());
    let file = ConfigFile { path: scene.daemon.file("groupcast.toml"), text: toml };
    let config = Config::read(Some(&file), std::iter::empty()).expect("a valid configuration");
    let store = progress::existing_store(&config, FileAccess::Existing).expect("a store");

    let mut cancelled = BTreeSet::new();
    let every = to_cancel.len() / (KILLS + 1);
    for (count, number) in to_cancel.iter().enumerate() {
        if count % every == every - 1 && count / every < KILLS {
            scene.daemon.kill().await;
            scene.daemon.start_again().await;
        }
        store.cancel(scene.app.clone(), id(*number)).await.expect("the file works");
        cancelled.insert(id(*number));
        sleep(Duration::from_millis(chance.random_range(0..40))).await;
    }
    let mut results: BTreeMap<String, JobResult> = BTreeMap::new();
    while results.len() < JOBS {
        let result = scene.producer.result().await;
        let before = results.insert(result.job_id.clone(), result.clone());
        if let Some(before) = before {
            assert_eq!(honest_part(&before), honest_part(&result), "told twice");
        }
    }
    let mut unrecorded = 0;
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, result) in &results {
        let counts = result.recipients.expect("its members are named");
        let notified: BTreeSet<String> = scene.notified(id).into_iter().collect();
        assert!(notified.len() >= counts.sent as usize, "{result:?}");
        unrecorded += notified.len() - counts.sent as usize;
        assert_eq!((counts.sent + counts.failed) as usize, MEMBERS, "{result:?}");
        assert!(cancelled.contains(id) || result.status == Status::Sent, "{result:?}");
        *statuses.entry(result.status.as_str()).or_default() += 1;
    }
    println!("{statuses:?}; {unrecorded} calls had their effect right before a kill");
    assert!(statuses["cancelled"] > 50 && statuses["sent"] >= JOBS - to_cancel.len());
    // After a kill, the daemon does not know the outcomes of the calls in flight.
    assert!(unrecorded <= KILLS * UNDER_WAY, "{unrecorded}");
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
}

/// A result without what may differ between two copies of it.
fn honest_part(result: &JobResult) -> Value {
    let mut told = serde_json::to_value(result).expect("JSON");
    for differs in ["duplicate", "finished_at"] {
        told[differs] = Value::Null;
    }
    told
}

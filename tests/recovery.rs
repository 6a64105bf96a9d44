//! A killed daemon continues where it stopped. Every recipient is reached, and a batch with an
//! answer is not sent again.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use groupcast::{
    sandbox::{FaultRule, InjectedFault},
    settle::result::{ErrorKind, JobResult, Status},
};
use lapin::{BasicProperties, types::FieldTable};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually, most_arrivals_in_1s,
    producer::{Producer, header, text},
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, settings, unique_app, users},
};

const BATCHES: usize = 100;
const KILLS: usize = 3;
/// The number of scenes at a time, and the jobs in each.
const LANES: usize = 3;
const JOBS: usize = 10;
/// The most calls in flight. At 100 calls a second, answered after 20 ms, there are two or three.
/// On a busy machine there may be more.
const UNDER_WAY: usize = 5;

fn slow() -> groupcast::sandbox::SettingsPatch {
    settings(json!({ "latency_ms": 20 }))
}

fn with_id(scene: &Scene, id: &str) -> BasicProperties {
    scene.producer.properties().with_message_id(id.into())
}

fn at_most_once(properties: BasicProperties) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("groupcast-delivery".into(), text("at-most-once"));
    properties.with_headers(headers)
}

async fn publish(scene: &Scene, job: &Value, properties: BasicProperties) {
    scene.producer.publish(&scene.app, &serde_json::to_vec(job).unwrap(), properties).await;
}

/// How often each recipient of a group was notified.
fn times_notified(scene: &Scene, group: &str) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for recipient in scene.notified(group) {
        *times.entry(recipient).or_default() += 1;
    }
    times
}

/// Publishes a job of 100 batches, kills the daemon three times at random moments meanwhile, and
/// waits for the result.
async fn kill_while_sending(
    scene: &mut Scene,
    group: &str,
    properties: BasicProperties,
) -> JobResult {
    publish(scene, &job(group, BATCHES), properties).await;
    let mut moments: Vec<usize> = (0..KILLS).map(|_| rand::random_range(1..BATCHES - 5)).collect();
    moments.sort_unstable();
    for moment in moments {
        let what = format!("call {moment} of {group}");
        eventually(&what, async || (times_notified(scene, group).len() >= moment).then_some(()))
            .await;
        scene.daemon.kill().await;
        scene.daemon.start_again().await;
    }
    scene.producer.result().await
}

async fn lane() -> Scene {
    let lines =
        format!("batch_size = 1\ncalls_per_second = 100\nburst = 1\nmax_in_flight = {UNDER_WAY}");
    let scene = Scene::with(&lines).await;
    scene.sandbox.change_settings(slow());
    scene
}

#[tokio::test]
async fn killed_again_and_again_it_reaches_everybody_and_repeats_only_what_was_under_way() {
    let lanes = join_all((0..LANES).map(|_| async {
        let mut scene = lane().await;
        let mut repeated = Vec::new();
        for number in 0..JOBS {
            let group = format!("g{number}");
            let properties = with_id(&scene, &group);
            let result = kill_while_sending(&mut scene, &group, properties).await;
            assert_eq!(
                (result.job_id.as_str(), result.status),
                (group.as_str(), Status::Sent),
                "{result:?}"
            );
            let times = times_notified(&scene, &group);
            assert_eq!(times.len(), BATCHES, "everybody is reached");
            assert!(times.values().all(|times| *times <= KILLS), "{times:?}");
            repeated.push(times.values().filter(|times| **times > 1).count());
        }
        repeated
    }));
    let repeated: Vec<usize> = lanes.await.concat();
    let (sum, most) =
        (repeated.iter().sum::<usize>(), repeated.iter().max().copied().unwrap_or_default());
    println!(
        "{} jobs of {BATCHES} batches, {KILLS} kills each: {sum} batches sent again, {:.2} a kill, \
            {most} at most in one job",
        repeated.len(),
        sum as f64 / (repeated.len() * KILLS) as f64,
    );
    assert!(most <= KILLS * UNDER_WAY, "{repeated:?}");
}

#[tokio::test]
async fn with_at_most_once_a_killed_daemon_sends_no_batch_twice_and_reports_what_it_cannot_know() {
    let lanes = join_all((0..LANES).map(|_| async {
        let mut scene = lane().await;
        let mut unknown = 0;
        for number in 0..3 {
            let group = format!("g{number}");
            let properties = at_most_once(with_id(&scene, &group));
            let result = kill_while_sending(&mut scene, &group, properties).await;
            let times = times_notified(&scene, &group);
            assert!(times.values().all(|times| *times == 1), "nobody is notified twice: {times:?}");
            let told = result.recipients.unwrap();
            assert_eq!((told.sent + told.unknown) as usize, BATCHES, "{result:?}");
            assert!(
                times.len() >= told.sent as usize
                    && result.errors.iter().all(|error| error.kind == ErrorKind::Unknown)
            );
            assert!((told.unknown as usize) <= KILLS * UNDER_WAY, "{result:?}");
            unknown += told.unknown;
        }
        assert_eq!(
            scene.producer.depth(&scene.queue("dead")).await,
            0,
            "what is unknown is never redriven"
        );
        unknown
    }));
    println!(
        "{} jobs with at-most-once: {} batches unknown",
        LANES * 3,
        lanes.await.iter().sum::<u32>()
    );
}

#[tokio::test]
async fn a_copy_of_a_job_is_answered_from_the_record_without_calls() {
    let mut scene = Scene::start().await;
    publish(&scene, &job("g", 3), with_id(&scene, "order-42").with_correlation_id("first".into()))
        .await;
    let first = scene.producer.result().await;
    // The same job, with its fields in another order.
    let again = json!({ "ToMembers_Account": users(3), "Content": "hello", "GroupId": "g" });
    publish(&scene, &again, with_id(&scene, "order-42").with_correlation_id("second".into())).await;
    let reply = scene.producer.reply().await;
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "second");
    let second: JobResult = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(second, JobResult { duplicate: true, ..first.clone() });
    assert_eq!(
        (first.status, first.duplicate, scene.sandbox.stats().calls),
        (Status::Sent, false, 1)
    );

    // A daemon that was restarted meanwhile gives the same result.
    scene.daemon.kill().await;
    scene.daemon.start_again().await;
    publish(&scene, &job("g", 3), with_id(&scene, "order-42")).await;
    assert_eq!(scene.producer.result().await, second);
    assert_eq!(scene.sandbox.stats().calls, 1);
}

#[tokio::test]
async fn a_copy_of_a_failed_job_gets_its_result_and_no_second_dead_letter() {
    let mut scene = Scene::start().await;
    for duplicate in [false, true] {
        publish(&scene, &job("unknown", 3), with_id(&scene, "order-43")).await;
        let result = scene.producer.result().await;
        assert_eq!((result.status, result.duplicate), (Status::Failed, duplicate));
    }
    scene.dead_letter().await;
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
}

#[tokio::test]
async fn a_copy_that_comes_while_the_first_one_runs_waits_for_its_result() {
    let mut scene = Scene::with("batch_size = 1\ncalls_per_second = 20\nburst = 1").await;
    publish(&scene, &job("g", 20), with_id(&scene, "order-44")).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted >= 3).then_some(())).await;
    publish(&scene, &job("g", 20), with_id(&scene, "order-44")).await;
    let (first, second) = (scene.producer.result().await, scene.producer.result().await);
    assert_eq!((first.status, first.duplicate, second.duplicate), (Status::Sent, false, true));
    assert_eq!(scene.sandbox.stats().calls, 20);
}

#[tokio::test]
async fn an_id_that_belongs_to_another_content_is_rejected() {
    let mut scene = Scene::start().await;
    publish(&scene, &job("g", 3), with_id(&scene, "order-45")).await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    let other = serde_json::to_vec(
        &json!({ "GroupId": "g", "Content": "another", "ToMembers_Account": ["a", "a"] }),
    )
    .unwrap();
    scene.producer.publish(&scene.app, &other, with_id(&scene, "order-45")).await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Rejected, 0));
    assert!(
        result.errors[0].info.starts_with("message_id: belongs to an earlier job"),
        "{result:?}"
    );
    let letter = scene.dead_letter().await;
    assert_eq!(letter.data, other);
    assert_eq!(header(&letter, "groupcast-error-kind").as_deref(), Some("invalid"));
}

#[tokio::test]
async fn a_job_goes_on_in_the_batches_it_began_with_when_the_configuration_has_changed() {
    let mut scene = Scene::with("batch_size = 10\ncalls_per_second = 10\nburst = 1").await;
    let mut job = job("g", 100);
    job["ToMembers_Account"].as_array_mut().unwrap().push(json!("user-0"));
    publish(&scene, &job, with_id(&scene, "order-46")).await;
    eventually("some calls", async || (scene.notified("g").len() >= 30).then_some(())).await;
    scene.daemon.kill().await;
    scene.daemon.reconfigure(&scene.configuration.replace("batch_size = 10", "batch_size = 7"));
    scene.daemon.start_again().await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.batches.unwrap().total), (Status::Sent, 10), "{result:?}");
    assert_eq!(
        (result.recipients.unwrap().requested, result.recipients.unwrap().duplicates),
        (101, 1)
    );
    let times = times_notified(&scene, "g");
    assert_eq!(times.len(), 100);
    assert!(
        times.values().filter(|times| **times > 1).count() <= 10,
        "one batch may have been under way"
    );
}

#[tokio::test]
async fn a_job_that_was_split_again_goes_on_in_its_smaller_batches_after_a_crash() {
    let mut scene = Scene::with("calls_per_second = 20\nburst = 1").await;
    scene.sandbox.change_settings(settings(json!({ "max_recipients": 50 })));
    publish(&scene, &job("g", 1201), with_id(&scene, "order-50")).await;
    eventually("some calls", async || (scene.notified("g").len() >= 250).then_some(())).await;
    scene.daemon.kill().await;
    let refused = scene.sandbox.stats().by_code[&10005];
    scene.daemon.start_again().await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.batches.unwrap().total), (Status::Sent, 25), "{result:?}");
    assert_eq!(
        scene.sandbox.stats().by_code[&10005],
        refused,
        "the record says how small the batches are"
    );
    let times = times_notified(&scene, "g");
    assert_eq!(times.len(), 1201);
    assert!(
        times.values().filter(|times| **times > 1).count() <= 50,
        "one batch may have been under way"
    );
}

#[tokio::test]
async fn a_restart_repeats_no_batch_of_a_job_that_has_no_id() {
    let mut scene =
        Scene::with("batch_size = 1\ncalls_per_second = 20\nburst = 1\nretry.park = [\"1s\"]")
            .await;
    scene.publish(&job("g", 60)).await;
    for calls in [10, 30] {
        eventually("some calls", async || (scene.sandbox.stats().accepted >= calls).then_some(()))
            .await;
        assert!(scene.daemon.terminate().await.success());
        scene.daemon.start_again().await;
    }
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.calls, scene.sandbox.stats().calls),
        (Status::Sent, 60, 60),
        "{result:?}"
    );
}

#[tokio::test]
async fn attempts_and_calls_are_counted_over_a_crash() {
    let mut scene = Scene::start().await;
    scene.daemon.kill().await;
    let slower =
        scene.configuration.replace("\"50ms\"", "\"400ms\"").replace("\"200ms\"", "\"400ms\"");
    scene.daemon.reconfigure(&slower);
    scene.daemon.start_again().await;
    scene
        .sandbox
        .add_fault(FaultRule { calls: Some(3), ..FaultRule::from(InjectedFault::HttpStatus(502)) })
        .unwrap();
    publish(&scene, &job("g", 1), with_id(&scene, "order-47")).await;
    eventually("two attempts", async || (scene.sandbox.stats().calls == 2).then_some(())).await;
    sleep(Duration::from_millis(100)).await;
    scene.daemon.kill().await;
    scene.sandbox.add_fault(InjectedFault::Error { code: 10010, info: "gone".into() }).unwrap();
    scene.daemon.start_again().await;
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.calls, result.errors[0].attempts),
        (Status::Failed, 4, 4),
        "{result:?}"
    );
}

#[tokio::test]
async fn of_two_replicas_on_one_redis_the_second_finishes_what_the_killed_one_began() {
    let redis = Redis::start("").await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let lines = format!(
        "batch_size = 1\ncalls_per_second = 20\nburst = 5\n[state]\nurl = \"{}\"",
        redis.url()
    );
    let broker = Broker::shared().await;
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines);
    let active = Daemon::start(&configuration).await;
    let mut standby = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, active, producer).await;
    publish(&scene, &job("g", 60), with_id(&scene, "order-48")).await;
    eventually("half of the calls", async || (scene.notified("g").len() >= 30).then_some(())).await;
    scene.daemon.kill().await;
    let killed = tokio::time::Instant::now();
    let before = scene.notified("g").len();
    eventually("the standby to call", async || (scene.notified("g").len() > before).then_some(()))
        .await;
    let took_over = killed.elapsed();
    let result = scene.producer.result().await;
    assert_eq!(result.status, Status::Sent, "{result:?}");
    let times = times_notified(&scene, "g");
    let repeated = times.values().filter(|times| **times > 1).count();
    let most = scene.sandbox.stats().max_in_1s;
    println!(
        "took over within {took_over:?}; {repeated} of 60 batches sent again; {most} calls at most \
            in a second"
    );
    assert_eq!(times.len(), 60);
    assert!(repeated <= UNDER_WAY, "{times:?}");
    assert!(most <= most_arrivals_in_1s(20), "{most} calls in one second over both replicas");
    assert!(took_over < Duration::from_secs(8), "{took_over:?}");
    assert!(standby.terminate().await.success());
}

#[tokio::test]
async fn a_replica_that_loses_its_channel_finishes_its_calls_and_the_other_one_repeats_none() {
    let redis = Redis::start("").await;
    let broker = Broker::start("").await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 600 })));
    let lines = format!(
        "batch_size = 1\ncalls_per_second = 20\nburst = 20\n[state]\nurl = \"{}\"",
        redis.url()
    );
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines);
    let first = Daemon::start(&configuration).await;
    let _second = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, first, producer).await;
    publish(&scene, &job("g", 60), with_id(&scene, "order-49")).await;
    eventually("some calls", async || (scene.notified("g").len() >= 25).then_some(())).await;
    broker.ctl(&["close_all_connections", "test"]).await;
    scene.producer.reconnect(broker.url()).await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Sent, 60), "{result:?}");
    assert!(times_notified(&scene, "g").values().all(|times| *times == 1));
}

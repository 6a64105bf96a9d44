//! Everything fails repeatedly while jobs are sent. Each job is answered, and a batch with an
//! answer is not sent again.
//!
//! The gate runs a short form. The long form is `SOAK_JOBS=2000 SOAK_DAEMON_KILLS=10
//! SOAK_BROKER_KILLS=5 SOAK_CUTS=5 tests/run.sh --test promises soak -- --nocapture`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use groupcast::settle::result::{ErrorKind, JobResult, Status};
use lapin::types::FieldTable;
use rand::{RngExt, seq::SliceRandom};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually, most_arrivals_in_1s,
    producer::{Producer, text},
    proxy::Proxy,
    scene::{Scene, configuration, sandbox, settings, unique_app},
};

const CALLS_PER_SECOND: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disruption {
    KillDaemon,
    KillBroker,
    CutNetwork,
    FreezeNetwork,
}

/// A number from the environment, or the gate's default.
fn number(name: &str, gate: usize) -> usize {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    std::env::var(name).map_or(gate, |value| value.parse().expect("a number"))
}

fn blows() -> Vec<Disruption> {
    let cuts = number("SOAK_CUTS", 2);
    let mut blows = vec![Disruption::KillDaemon; number("SOAK_DAEMON_KILLS", 3)];
    blows.extend(vec![Disruption::KillBroker; number("SOAK_BROKER_KILLS", 1)]);
    blows.extend((0..cuts).map(|number| {
        if number % 3 == 2 { Disruption::FreezeNetwork } else { Disruption::CutNetwork }
    }));
    blows.shuffle(&mut rand::rng());
    blows
}

fn group(number: usize) -> String {
    format!("g{number}")
}

fn recipients(number: usize) -> Vec<String> {
    (0..1 + number % 3).map(|member| format!("{number}-{member}")).collect()
}

fn is_at_most_once(number: usize) -> bool {
    number % 4 == 3
}

async fn publish(scene: &Scene, number: usize) {
    let job = json!({ "GroupId": group(number), "Content": "hello", "ToMembers_Account": recipients(number) });
    let mut headers = FieldTable::default();
    if is_at_most_once(number) {
        headers.insert("groupcast-delivery".into(), text("at-most-once"));
    }
    let properties = scene
        .producer
        .properties()
        .with_message_id(number.to_string().into())
        .with_headers(headers);
    scene.producer.publish(&scene.app, &serde_json::to_vec(&job).unwrap(), properties).await;
}

#[tokio::test]
async fn whatever_fails_every_job_is_answered_and_nothing_that_was_answered_is_sent_again() {
    let jobs = number("SOAK_JOBS", 300);
    let blows = blows();
    let broker = Broker::start("").await;
    let proxy = Proxy::start(broker.address());
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let lines = format!("batch_size = 1\ncalls_per_second = {CALLS_PER_SECOND}\nburst = 5");
    let configuration =
        configuration(&proxy.amqp_url(broker.url()), &app, &sandbox.endpoint(), &lines);
    let daemon = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;
    for number in 0..jobs {
        publish(&scene, number).await;
    }
    let start = Instant::now();
    let calls: usize = (0..jobs).map(|number| recipients(number).len()).sum();
    for (index, blow) in blows.iter().enumerate() {
        let reached = calls * (index + 1) / (blows.len() + 2);
        let what = format!("call {reached} before {blow:?}");
        eventually(&what, async || {
            (scene.sandbox.stats().accepted as usize >= reached).then_some(())
        })
        .await;
        sleep(Duration::from_millis(rand::rng().random_range(0..200))).await;
        strike(*blow, &mut scene, &broker, &proxy).await;
    }
    scene.producer.reconnect(broker.url()).await;
    let results = collect(&mut scene, jobs).await;
    tell(&scene, &blows, &results, jobs, start.elapsed());
    check(&scene, &results, blows.len());
}

async fn strike(blow: Disruption, scene: &mut Scene, broker: &Broker, proxy: &Proxy) {
    match blow {
        Disruption::KillDaemon => {
            scene.daemon.kill().await;
            scene.daemon.start_again().await;
        }
        Disruption::KillBroker => {
            broker.kill().await;
            broker.restart().await;
            proxy.heal();
        }
        Disruption::CutNetwork => {
            proxy.cut();
            sleep(Duration::from_millis(500)).await;
            proxy.heal();
        }
        Disruption::FreezeNetwork => {
            proxy.freeze();
            sleep(Duration::from_secs(3)).await;
            proxy.heal();
        }
    }
}

async fn collect(scene: &mut Scene, jobs: usize) -> BTreeMap<String, Vec<JobResult>> {
    let mut results: BTreeMap<String, Vec<JobResult>> = BTreeMap::new();
    while results.len() < jobs {
        let result = scene.producer.result().await;
        results.entry(result.job_id.clone()).or_default().push(result);
    }
    eventually("all to be acknowledged", async || {
        (scene.producer.depth(&scene.queue("jobs")).await == 0).then_some(())
    })
    .await;
    results
}

fn repeated(scene: &Scene) -> usize {
    let stats = scene.sandbox.stats();
    let mut seen = BTreeSet::new();
    let calls = scene.sandbox.received(None);
    assert_eq!(calls.len() as u64, stats.accepted, "the sandbox still knows all calls");
    calls
        .into_iter()
        .filter(|call| !seen.insert((call.group.clone(), call.recipients.clone())))
        .count()
}

fn tell(
    scene: &Scene,
    blows: &[Disruption],
    results: &BTreeMap<String, Vec<JobResult>>,
    jobs: usize,
    took: Duration,
) {
    let count = |kind| blows.iter().filter(|blow| **blow == kind).count();
    let unknown: u32 =
        results.values().map(|results| results[0].recipients.map_or(0, |told| told.unknown)).sum();
    println!(
        "{jobs} jobs, {} daemon kills, {} broker kills, {} cuts, {} freezes in {:.0} s: {} \
            answered, 0 lost, {} answers more than once, {} calls, {} batches sent again, \
            {unknown} unknown, {} calls at most in a second",
        count(Disruption::KillDaemon),
        count(Disruption::KillBroker),
        count(Disruption::CutNetwork),
        count(Disruption::FreezeNetwork),
        took.as_secs_f64(),
        results.len(),
        results.values().filter(|results| results.len() > 1).count(),
        scene.sandbox.stats().calls,
        repeated(scene),
        scene.sandbox.stats().max_in_1s,
    );
}

fn check(scene: &Scene, results: &BTreeMap<String, Vec<JobResult>>, blows: usize) {
    for (id, results) in results {
        let number: usize = id.parse().unwrap();
        let mut notified = scene.notified(&group(number));
        notified.sort();
        for result in results {
            assert_eq!(
                (result.status, &result.errors),
                (results[0].status, &results[0].errors),
                "two answers differ"
            );
        }
        if is_at_most_once(number) {
            assert!(notified.windows(2).all(|pair| pair[0] != pair[1]), "{notified:?}");
            let honest = results[0].errors.iter().all(|error| error.kind == ErrorKind::Unknown);
            assert!(
                honest && notified.len() >= results[0].recipients.unwrap().sent as usize,
                "{results:?}"
            );
        } else {
            assert_eq!(results[0].status, Status::Sent, "{results:?}");
            notified.dedup();
            assert_eq!(notified, recipients(number));
        }
    }
    // At 50 calls a second, answered after 20 ms, two are in flight, and some more on a busy
    // machine.
    assert!(repeated(scene) <= blows * 4, "{}", repeated(scene));
    assert!(scene.sandbox.stats().max_in_1s <= most_arrivals_in_1s(CALLS_PER_SECOND));
}

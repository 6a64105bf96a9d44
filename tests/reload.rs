//! SIGHUP: a running daemon applies a valid configuration, and nothing of an invalid one. No job is
//! lost.

use std::time::Duration;

use groupcast::{sandbox::PUBLIC_KEY, settle::result::Status};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    alone, eventually, most_arrivals_in_1s,
    scene::{Scene, job, settings},
};

/// Writes another configuration, signals the daemon, and waits until it logs `answer`.
async fn reload(scene: &Scene, configuration: &str, answer: &str) {
    let before = scene.daemon.times_logged(answer);
    scene.daemon.reconfigure(configuration);
    scene.daemon.signal("HUP");
    eventually(answer, async || (scene.daemon.times_logged(answer) > before).then_some(())).await;
}

async fn publish(scene: &Scene, contents: std::ops::Range<usize>) {
    for number in contents {
        let mut job = job("g", 1);
        job["Content"] = format!("job {number}").into();
        scene.publish(&job).await;
    }
}

/// The most calls that arrived in a second that begins with a call in this span.
fn most_in_1s(scene: &Scene, from: jiff::Timestamp, until: jiff::Timestamp) -> usize {
    let moments: Vec<_> =
        scene.sandbox.received(Some("g")).into_iter().map(|call| call.at).collect();
    let begins = moments.iter().filter(|at| (from..until).contains(*at));
    begins
        .map(|begin| {
            moments
                .iter()
                .filter(|at| (*begin..*begin + Duration::from_secs(1)).contains(*at))
                .count()
        })
        .max()
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_rate_holds_within_a_second_and_no_job_is_lost_or_sent_twice() {
    const JOBS: usize = 500;
    let _alone = alone().await;
    let slow = "calls_per_second = 20\nburst = 5";
    let mut scene = Scene::start_alone(slow).await;
    let fast = scene.configuration.replace(slow, "calls_per_second = 100\nburst = 20");
    publish(&scene, 0..JOBS).await;
    let arrived = |count: u64| {
        let stats = scene.sandbox.stats();
        (stats.calls >= count).then_some(stats.calls)
    };
    eventually("a second at the low rate", async || arrived(40)).await;

    let raised_at = jiff::Timestamp::now();
    reload(&scene, &fast, "calls_per_second").await;
    sleep(Duration::from_secs(1)).await;
    let before = scene.sandbox.stats().calls;
    sleep(Duration::from_secs(2)).await;
    let gained = scene.sandbox.stats().calls - before;
    assert!((160..=210).contains(&gained), "{gained} calls in two seconds at 100 a second");

    let slow_again = scene.configuration.clone();
    reload(&scene, &slow_again, "calls_per_second").await;
    let lowered_at = jiff::Timestamp::now();
    sleep(Duration::from_secs(3)).await;
    let watched_until = jiff::Timestamp::now();
    reload(&scene, &fast, "calls_per_second").await;

    for _ in 0..JOBS {
        assert_eq!(scene.producer.result().await.status, Status::Sent);
    }
    assert!(scene.producer.hears_nothing().await);
    let deliveries = scene.sandbox.stats().deliveries;
    assert_eq!(deliveries.distinct_deliveries, JOBS as u64);
    assert_eq!(scene.sandbox.stats().accepted, JOBS as u64, "something was sent twice");

    let second = Duration::from_secs(1);
    let at_first = most_in_1s(&scene, jiff::Timestamp::MIN, raised_at - second);
    assert!(at_first <= most_arrivals_in_1s(20), "{at_first} in a second before the change");
    let lowered = most_in_1s(&scene, lowered_at + second, watched_until - second);
    assert!(
        (15..=most_arrivals_in_1s(20)).contains(&lowered),
        "{lowered} in a second after the limit was lowered"
    );
    let most = scene.sandbox.stats().max_in_1s;
    assert!(most <= most_arrivals_in_1s(100), "{most} in a second");
}

#[tokio::test]
async fn a_secret_is_rotated_without_a_failed_job() {
    let mut scene = Scene::with("calls_per_second = 100\nretry.hold = \"10s\"").await;
    publish(&scene, 0..200).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted > 20).then_some(())).await;
    scene.sandbox.change_settings(settings(json!({ "secret_key": "rotated" })));
    reload(&scene, &scene.configuration.replace(PUBLIC_KEY, "rotated"), "secret_key").await;
    for _ in 0..200 {
        assert_eq!(scene.producer.result().await.status, Status::Sent);
    }
    assert_eq!(scene.sandbox.stats().accepted, 200);
    let log = scene.daemon.log();
    assert!(
        log.contains(".secret_key") && !log.contains("rotated") && !log.contains(PUBLIC_KEY),
        "{log}"
    );
}

#[tokio::test]
async fn a_secret_is_read_again_from_its_file() {
    let scene = Scene::start().await;
    let file = scene.daemon.file("key");
    std::fs::write(&file, PUBLIC_KEY).unwrap();
    let from_file = format!("secret_key_file = \"{}\"", file.display());
    let configuration =
        scene.configuration.replace(&format!("secret_key = \"{PUBLIC_KEY}\""), &from_file);
    reload(&scene, &configuration, "secret_key_file").await;

    let mut scene = scene;
    std::fs::write(&file, "rotated").unwrap();
    scene.sandbox.change_settings(settings(json!({ "secret_key": "rotated" })));
    reload(&scene, &configuration, ".secret_key").await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
}

#[tokio::test]
async fn a_bad_configuration_is_refused_whole_with_the_words_of_a_start_and_jobs_go_on() {
    let mut scene = Scene::with("batch_size = 10").await;
    // Each would also change the batch size, if any part of it were applied.
    let changed = scene.configuration.replace("batch_size = 10", "batch_size = 1");
    let app = &scene.app;
    let bad = [
        (
            changed.replace("batch_size", "batch_sise"),
            format!("unknown key apps.{app}.batch_sise; did you mean batch_size?"),
        ),
        (format!("{changed}[log\n"), "groupcast.toml:14:5".to_owned()),
        (changed.replace(PUBLIC_KEY, ""), format!("apps.{app}.secret_key must not be empty")),
        (
            changed.replace("secret_key =", "secret_key_file ="),
            format!("the file `{PUBLIC_KEY}` cannot be read"),
        ),
        (format!("{changed}[log]\nfilter = \"=\"\n"), "log.filter must be a log filter".to_owned()),
        (String::new(), "no apps are configured".to_owned()),
    ];
    for (configuration, says) in bad {
        reload(&scene, &configuration, "not reloaded").await;
        let log = scene.daemon.log();
        let told = log.lines().rfind(|line| line.contains("not reloaded")).unwrap();
        assert!(told.contains(&says) && told.contains("ERROR"), "`{says}` is not in: {told}");
        assert_eq!(scene.send(&job("g", 10)).await.batches.unwrap().total, 1);
    }
    reload(&scene, &changed, "batch_size").await;
    assert_eq!(scene.send(&job("g", 10)).await.batches.unwrap().total, 10);
}

#[tokio::test]
async fn what_takes_effect_at_the_next_start_is_named_and_the_rest_is_applied() {
    let mut scene = Scene::with("retry.park = [\"1s\"]").await;
    let app = scene.app.clone();
    let other_app = scene.configuration.split_once("[apps").unwrap().1.replace(&app, "zzz");
    let configuration = scene
        .configuration
        .replace("retry.park = [\"1s\"]", "retry.park = [\"2s\"]\nempty_recipients = \"reject\"");
    let configuration = configuration
        .replace("[broker]\n", "[broker]\nprefetch = 7\n")
        .replace("127.0.0.1:0", "127.0.0.1:1");
    let configuration = format!(
        "{configuration}[apps{other_app}[state]\nretention = \"1h\"\n[log]\nformat = \"json\"\n"
    );
    reload(&scene, &configuration, "takes effect at the next start").await;
    let log = scene.daemon.log();
    let told = log.lines().find(|line| line.contains("takes effect at the next start")).unwrap();
    let waits = format!(
        "admin.listen, apps.{app}.retry.park, apps.zzz, broker.prefetch, log.format, \
            state.retention"
    );
    assert!(told.contains(&waits) && told.contains("WARN"), "{told}");
    assert!(
        log.contains(&format!("configuration reloaded; changed: apps.{app}.empty_recipients")),
        "{log}"
    );

    let mut broadcast = job("g", 1);
    broadcast["ToMembers_Account"] = json!([]);
    assert_eq!(scene.send(&broadcast).await.status, Status::Rejected);
    // The daemon says so again at each reload, while the change is pending.
    reload(&scene, &configuration, "takes effect at the next start").await;
    assert!(scene.daemon.log().contains("changed: nothing"));
}

#[tokio::test]
async fn an_app_moves_to_another_endpoint_and_account() {
    let mut scene = Scene::start().await;
    assert_eq!(scene.send(&job("here", 1)).await.status, Status::Sent);
    let elsewhere = crate::support::scene::sandbox().await;
    elsewhere.change_settings(settings(json!({ "sdk_app_id": 7, "admins": ["somebody"] })));
    let configuration =
        scene.configuration.replace(&scene.sandbox.endpoint(), &elsewhere.endpoint());
    let configuration =
        configuration.replace("1400000000", "7").replace("\"administrator\"", "\"somebody\"");
    reload(&scene, &configuration, "endpoint").await;
    assert_eq!(scene.send(&job("there", 1)).await.status, Status::Sent);
    assert_eq!((scene.sandbox.stats().calls, elsewhere.stats().accepted), (1, 1));
}

#[tokio::test]
async fn a_changed_timeout_and_number_of_calls_in_flight_hold_for_the_next_calls() {
    let mut scene = Scene::with("max_in_flight = 1").await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 1500 })));
    let configuration =
        scene.configuration.replace("request_timeout = \"1s\"", "request_timeout = \"5s\"");
    let configuration = configuration.replace("max_in_flight = 1", "max_in_flight = 10");
    reload(&scene, &configuration, "request_timeout").await;
    let start = Instant::now();
    publish(&scene, 0..10).await;
    for _ in 0..10 {
        let result = scene.producer.result().await;
        assert_eq!((result.status, result.calls), (Status::Sent, 1));
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "one after the other: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn the_log_filter_changes_while_the_daemon_runs() {
    let mut scene = Scene::start().await;
    scene.send(&job("g", 1)).await;
    assert!(!scene.daemon.log().contains("DEBUG"));
    reload(
        &scene,
        &format!("{}[log]\nfilter = \"debug\"\n", scene.configuration),
        "changed: log.filter",
    )
    .await;
    scene.send(&job("g", 1)).await;
    scene.daemon.until_logged("job sent").await;
    scene.daemon.reconfigure(&format!("{}[log]\nfilter = \"warn\"\n", scene.configuration));
    scene.daemon.signal("HUP");
    eventually("silence", async || {
        let before = scene.daemon.times_logged("job sent");
        scene.send(&job("g", 1)).await;
        sleep(Duration::from_millis(50)).await;
        (scene.daemon.times_logged("job sent") == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sighup_during_a_stop_is_ignored() {
    let mut scene = Scene::start().await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 900 })));
    publish(&scene, 0..20).await;
    eventually("calls in flight", async || (scene.sandbox.stats().calls > 0).then_some(())).await;
    scene.daemon.signal("TERM");
    scene.daemon.until_logged("stopping").await;
    scene.daemon.signal("HUP");
    let status = scene.daemon.ended().await;
    assert_eq!(status.code(), Some(0), "{}", scene.daemon.log());
    assert!(!scene.daemon.log().contains("reloaded"));
}

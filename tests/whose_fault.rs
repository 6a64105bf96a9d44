//! The cause of a fault decides what happens. A fault of a job ends that job. A transient fault is
//! retried. A fault of the account or the configuration pauses the app, and its jobs lose nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use futures_util::future::join_all;
use groupcast::{
    sandbox::{FaultRule, InjectedFault, PUBLIC_KEY, Sandbox},
    settle::result::{ErrorKind, JobResult, Status},
};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    alone,
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::{Producer, header, text},
    scene::{Scene, configuration, job, sandbox, settings, unique_app},
};

const PAUSED: &str = "app paused";

fn refusal(code: i64) -> InjectedFault {
    InjectedFault::Error { code, info: format!("scripted {code}") }
}

fn for_all(fault: InjectedFault) -> FaultRule {
    FaultRule { app_wide: true, ..FaultRule::from(fault) }
}

fn ids(jobs: std::ops::Range<usize>) -> BTreeSet<String> {
    jobs.map(|number| format!("job-{number}")).collect()
}

/// Publishes jobs with one recipient each, all in different groups.
async fn publish(scene: &Scene, ids: &BTreeSet<String>) {
    for id in ids {
        scene.publish_with_id(&job(id, 1), id).await;
    }
}

/// The results of these jobs, each once.
async fn results(scene: &mut Scene, mut open: BTreeSet<String>) -> Vec<JobResult> {
    let mut results = Vec::new();
    while !open.is_empty() {
        let result = scene.producer.result().await;
        if open.remove(&result.job_id) {
            results.push(result);
        }
    }
    results
}

async fn all_are_sent(scene: &mut Scene, open: BTreeSet<String>) {
    for result in results(scene, open).await {
        assert_eq!(result.status, Status::Sent, "{result:?}");
    }
    let repeated = scene.sandbox.stats().deliveries.repeated_recipients;
    assert_eq!(repeated, 0, "nobody is notified twice");
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
}

/// A function that causes a fault, or that repairs it.
type Act = fn(&Sandbox);

const FAULTS_OF_THE_ACCOUNT: [(i64, Act, Act); 3] = [
    (
        70009,
        |sandbox| sandbox.change_settings(settings(json!({ "secret_key": "revoked" }))),
        |sandbox| sandbox.change_settings(settings(json!({ "secret_key": PUBLIC_KEY }))),
    ),
    (60020, |sandbox| sandbox.add_fault(for_all(refusal(60020))).unwrap(), Sandbox::clear_faults),
    (
        60010,
        |sandbox| sandbox.change_settings(settings(json!({ "admins": [] }))),
        |sandbox| sandbox.change_settings(settings(json!({ "admins": ["administrator"] }))),
    ),
];

#[tokio::test]
async fn a_fault_of_the_account_costs_no_job_anything_and_three_calls_in_ten_seconds() {
    join_all(FAULTS_OF_THE_ACCOUNT.map(|(code, break_it, mend_it)| async move {
        let mut scene = Scene::start().await;
        scene.daemon.terminate().await;
        break_it(&scene.sandbox);
        publish(&scene, &ids(0..500)).await;
        scene.daemon.start_again().await;
        scene.daemon.until_logged(PAUSED).await;
        sleep(Duration::from_secs(9)).await;
        let calls = scene.sandbox.stats().calls;
        println!("{code}: {calls} calls in the first ten seconds");
        assert!((1..=3).contains(&calls), "{code}: {calls} calls");
        assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
        assert_eq!(
            scene.producer.depth(&scene.queue("jobs")).await,
            500,
            "they are in the queue again"
        );
        let log = scene.daemon.log();
        let told: Vec<&str> = log.lines().filter(|line| line.contains(PAUSED)).collect();
        assert!(
            told.len() == 1 && told[0].contains(&code.to_string()) && told[0].contains("advice"),
            "{told:?}"
        );

        let (status, told) = scene.daemon.get("/readyz").await;
        let told = &serde_json::from_str::<Value>(&told).unwrap()["apps"][&scene.app];
        assert_eq!(
            (status, &told["state"], &told["code"]),
            (503, &json!("paused"), &json!(code)),
            "{told}"
        );
        assert!(told["advice"].is_string() && told["since"].is_string(), "{told}");
        assert!(scene.daemon.get("/metrics").await.1.contains("groupcast_app_paused{app=\""));

        mend_it(&scene.sandbox);
        all_are_sent(&mut scene, ids(0..500)).await;
        assert_eq!(scene.daemon.get("/readyz").await.0, 200);
    }))
    .await;
}

#[tokio::test]
async fn a_key_that_is_revoked_under_load_costs_what_was_in_flight_and_the_progress_is_kept() {
    let mut scene =
        Scene::with("batch_size = 1\npause.probe_first = \"1s\"\nmax_in_flight = 20").await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    for id in ids(0..4) {
        scene.publish_with_id(&job(&id, 100), &id).await;
    }
    eventually("half of the calls", async || (scene.sandbox.stats().accepted >= 200).then_some(()))
        .await;
    scene.sandbox.change_settings(settings(json!({ "secret_key": "revoked" })));
    scene.daemon.until_logged(PAUSED).await;
    sleep(Duration::from_secs(4)).await;
    let refused = scene.sandbox.stats().refused;
    assert!(
        refused <= 20 + 1 + 3,
        "in flight, once more with a new UserSig, and probes: {refused}"
    );
    scene.sandbox.change_settings(settings(json!({ "secret_key": PUBLIC_KEY })));
    all_are_sent(&mut scene, ids(0..4)).await;
}

#[tokio::test]
async fn a_key_that_is_rotated_in_its_file_under_load_fails_no_job() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, PUBLIC_KEY).unwrap();
    let mut scene = scene_with(|text| with_key_in(&key, text)).await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    publish(&scene, &ids(0..600)).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted >= 200).then_some(())).await;
    std::fs::write(&key, "another key").unwrap();
    scene.sandbox.change_settings(settings(json!({ "secret_key": "another key" })));
    all_are_sent(&mut scene, ids(0..600)).await;
    assert_eq!(scene.daemon.times_logged(PAUSED), 0);
}

fn with_key_in(file: &Path, configuration: String) -> String {
    let key = format!("secret_key = \"{PUBLIC_KEY}\"");
    assert!(configuration.contains(&key));
    configuration.replace(
        &key,
        &format!("secret_key_file = \"{}\"\npause.probe_first = \"500ms\"", file.display()),
    )
}

/// A scene with a changed configuration.
async fn scene_with(change: impl FnOnce(String) -> String) -> Scene {
    let broker = Broker::shared().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = change(configuration(broker.url(), &app, &sandbox.endpoint(), ""));
    let daemon = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    Scene::of(app, configuration, sandbox, daemon, producer).await
}

#[tokio::test]
async fn after_five_groups_with_the_same_doubtful_refusal_the_app_pauses_and_the_others_lose_nothing()
 {
    let mut scene = Scene::with("pause.probe_first = \"500ms\"\nretry.park = [\"1s\"]").await;
    scene.sandbox.add_fault(refusal(11000)).unwrap();
    publish(&scene, &ids(0..20)).await;
    scene.daemon.until_logged("community feature is not enabled (11000)").await;
    // The probes pass, and each time one job meets the fault again.
    eventually("a second pause", async || (scene.daemon.times_logged(PAUSED) >= 2).then_some(()))
        .await;
    scene.sandbox.clear_faults();
    let results = results(&mut scene, ids(0..20)).await;
    let count = |status| results.iter().filter(|result| result.status == status).count();
    assert_eq!((count(Status::Failed), count(Status::Sent)), (4, 16), "{results:?}");
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 4);
}

/// The API may have notified the users before it gave the undocumented answer.
#[tokio::test]
async fn of_an_at_most_once_job_no_call_is_repeated_even_if_the_app_is_to_blame() {
    let mut scene = Scene::with("pause.probe_first = \"500ms\"").await;
    scene.sandbox.add_fault(refusal(60099)).unwrap();
    let headers =
        FieldTable::from(BTreeMap::from([("groupcast-delivery".into(), text("at-most-once"))]));
    for id in ids(0..5) {
        let properties = scene
            .producer
            .properties()
            .with_message_id(id.as_str().into())
            .with_headers(headers.clone());
        scene
            .producer
            .publish(&scene.app, &serde_json::to_vec(&job(&id, 1)).unwrap(), properties)
            .await;
    }
    for result in results(&mut scene, ids(0..5)).await {
        assert_eq!((result.calls, result.errors[0].kind), (1, ErrorKind::Unknown), "{result:?}");
    }
    scene.daemon.until_logged(PAUSED).await;
}

#[tokio::test]
async fn a_deadline_ends_a_job_on_time_while_the_api_is_dead() {
    let mut scene = Scene::start().await;
    scene.sandbox.add_fault(for_all(InjectedFault::Reset)).unwrap();
    publish(&scene, &ids(0..5)).await;
    scene.daemon.until_logged("sends only probes").await;
    let deadline = jiff::Timestamp::now() + Duration::from_secs(3);
    let headers = FieldTable::from(BTreeMap::from([(
        "groupcast-deadline".into(),
        text(&deadline.to_string()),
    )]));
    let properties =
        scene.producer.properties().with_message_id("late".into()).with_headers(headers);
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 1)).unwrap(), properties)
        .await;
    let result = scene.producer.result().await;
    let late = jiff::Timestamp::now().duration_since(deadline);
    assert_eq!(
        (result.job_id.as_str(), result.status, result.calls),
        ("late", Status::Expired, 0),
        "{result:?}"
    );
    assert!((0.0..1.0).contains(&late.as_secs_f64()), "{late:?} after its deadline");
}

#[tokio::test]
async fn a_bad_group_does_not_stop_the_app() {
    let mut scene = Scene::start().await;
    for code in [10007, 10010, 70107, 60004, 10099] {
        scene
            .sandbox
            .add_fault(FaultRule { group: Some(format!("bad-{code}")), ..refusal(code).into() })
            .unwrap();
    }
    for number in 0..10 {
        for code in [10007, 10010, 70107, 60004, 10099] {
            let mut bad = job(&format!("bad-{code}"), 1);
            bad["Content"] = format!("{number}").into();
            scene.publish(&bad).await;
        }
        scene.publish(&job(&format!("good-{number}"), 1)).await;
    }
    let mut failed = 0;
    for _ in 0..60 {
        let result = scene.producer.result().await;
        let is_good = result.group_id.as_deref().is_some_and(|group| group.starts_with("good"));
        assert_eq!(
            result.status,
            if is_good { Status::Sent } else { Status::Failed },
            "{result:?}"
        );
        failed += usize::from(!is_good);
    }
    assert_eq!((failed, scene.daemon.times_logged(PAUSED)), (50, 0));
}

#[tokio::test]
async fn what_nobody_documented_is_tried_a_few_times_and_then_the_jobs_fault() {
    let mut scene = Scene::start().await;
    for (code, calls) in [(60099, 5), (70999, 2), (10099, 1)] {
        let group = format!("g{code}");
        scene
            .sandbox
            .add_fault(FaultRule { group: Some(group.clone()), ..refusal(code).into() })
            .unwrap();
        let result = scene.send(&job(&group, 1)).await;
        assert_eq!(
            (result.status, result.calls, result.errors[0].code),
            (Status::Failed, calls, Some(code)),
            "{result:?}"
        );
        assert_eq!(scene.send(&job("good", 1)).await.status, Status::Sent);
    }
}

#[tokio::test]
async fn too_many_failed_signatures_are_followed_by_a_long_silence_whatever_the_configured_wait() {
    let scene = Scene::with("pause.probe_first = \"100ms\"\npause.probe_max = \"200ms\"").await;
    scene.sandbox.add_fault(for_all(refusal(70050))).unwrap();
    publish(&scene, &ids(0..1)).await;
    scene.daemon.until_logged(PAUSED).await;
    scene.sandbox.clear_faults();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(scene.sandbox.stats().calls, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_limit_below_the_configured_one_is_found_and_used() {
    const JOBS: usize = 1500;
    let _alone = alone().await;
    let mut scene = Scene::start_alone("").await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20, "calls_per_second": 100 })));
    scene.daemon.terminate().await;
    publish(&scene, &ids(0..JOBS)).await;
    scene.daemon.start_again().await;
    eventually("the first call", async || (scene.sandbox.stats().calls > 0).then_some(())).await;
    sleep(Duration::from_secs(3)).await;
    let first = scene.sandbox.stats();
    for result in results(&mut scene, ids(0..JOBS)).await {
        assert!(result.status == Status::Sent && result.errors.is_empty(), "{result:?}");
    }
    let all = scene.sandbox.stats();
    let (calls, refused) = (all.calls - first.calls, all.refused - first.refused);
    println!(
        "in the first three seconds {} of {} calls refused, then {refused} of {calls}",
        first.refused, first.calls
    );
    assert!(refused * 20 < calls, "{refused} of {calls} refused");
    assert!(rate(&scene).await < 150.0);

    // The limit is lifted. With or without jobs, the rate is back within a minute.
    let lifted = Instant::now();
    eventually("the rate's return", async || (rate(&scene).await >= 200.0).then_some(())).await;
    println!("the rate is back after {:.0?}", lifted.elapsed());
}

/// The pacer's current rate.
async fn rate(scene: &Scene) -> f64 {
    let (_, text) = scene.daemon.get("/metrics").await;
    let line =
        text.lines().find(|line| line.starts_with("groupcast_calls_per_second_limit")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn while_the_api_is_dead_only_probes_leave_and_on_its_return_no_burst() {
    const OUTAGE: Duration = Duration::from_secs(30);
    const MAX_DELAY: Duration = Duration::from_secs(5);
    let mut scene = scene_with(|text| {
        text.replace(
            "retry.max_delay = \"200ms\"",
            "retry.max_delay = \"5s\"\nretry.hold = \"5s\"\nretry.park = [\"2s\"]",
        )
    })
    .await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    publish(&scene, &ids(0..1000)).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted >= 300).then_some(())).await;
    scene.sandbox.add_fault(for_all(InjectedFault::Reset)).unwrap();
    scene.daemon.until_logged("sends only probes").await;
    let before = scene.sandbox.stats().calls;
    sleep(OUTAGE).await;
    let probes = scene.sandbox.stats().calls - before;
    println!("{probes} calls in {OUTAGE:?} without the API");
    // The wait doubles from 50 ms to 5 s in seven probes.
    assert!(
        probes as f64 <= OUTAGE.as_secs_f64() / MAX_DELAY.as_secs_f64() + 7.0,
        "{probes} calls"
    );
    assert!(scene.daemon.log().contains("job parked"), "who waits for long waits in the broker");

    scene.sandbox.clear_faults();
    all_are_sent(&mut scene, ids(0..1000)).await;
    let stats = scene.sandbox.stats();
    assert!(stats.max_in_1s <= crate::support::most_arrivals_in_1s(200), "{stats:?}");
}

#[tokio::test]
async fn the_backup_is_used_while_the_first_address_cannot_be_reached() {
    let first = sandbox().await;
    let endpoint = first.endpoint();
    first.stop().await;
    let mut scene = scene_with(|text| {
        let backup = text.lines().find(|line| line.starts_with("endpoint")).unwrap().to_owned();
        text.replace(&backup, &format!("endpoint = \"{endpoint}\"\nbackup_{backup}"))
    })
    .await;
    publish(&scene, &ids(0..5)).await;
    all_are_sent(&mut scene, ids(0..5)).await;
    scene.daemon.until_logged("calls go to the backup").await;
}

fn forbidden(group: &str) -> FaultRule {
    FaultRule { group: Some(group.to_owned()), ..FaultRule::from(InjectedFault::HttpStatus(403)) }
}

/// A filter before the API refuses one group as if the account were not allowed to call.
#[tokio::test]
async fn a_job_that_alone_is_refused_like_the_account_ends_and_pauses_the_app_once() {
    let mut scene = Scene::with("pause.probe_first = \"500ms\"\nretry.park = [\"1s\"]").await;
    scene.sandbox.add_fault(forbidden("filtered")).unwrap();
    scene.publish_with_id(&job("filtered", 1), "filtered").await;
    publish(&scene, &ids(0..50)).await;
    let open = ids(0..50).into_iter().chain(["filtered".to_owned()]).collect();
    for result in results(&mut scene, open).await {
        let is_filtered = result.job_id == "filtered";
        assert_eq!(
            result.status,
            if is_filtered { Status::Failed } else { Status::Sent },
            "{result:?}"
        );
        assert!(
            !is_filtered || result.calls == 5 && result.errors[0].http_status == Some(403),
            "{result:?}"
        );
    }
    assert_eq!(scene.daemon.times_logged(PAUSED), 1);
    assert_eq!(header(&scene.dead_letter().await, "groupcast-job-id").as_deref(), Some("filtered"));
}

#[tokio::test]
async fn a_job_that_is_refused_like_the_account_and_has_no_company_ends_by_give_up_after() {
    let lines = "pause.probe_first = \"500ms\"\npause.probe_max = \"2s\"\nretry.park = \
        [\"1s\"]\nretry.give_up_after = \"8s\"";
    let mut scene = Scene::with(lines).await;
    scene.sandbox.add_fault(forbidden("filtered")).unwrap();
    let result = scene.send(&job("filtered", 1)).await;
    assert_eq!(
        (result.status, result.errors[0].http_status),
        (Status::Failed, Some(403)),
        "{result:?}"
    );
    assert_eq!(scene.send(&job("good", 1)).await.status, Status::Sent);
}

/// This test uses the default waits.
#[tokio::test]
async fn forty_bad_jobs_cost_three_hundred_good_ones_behind_them_seconds() {
    let mut scene = Scene::start().await;
    scene.daemon.terminate().await;
    for number in 0..40 {
        let group = format!("bad-{number}");
        scene
            .sandbox
            .add_fault(FaultRule { group: Some(group.clone()), ..refusal(10007).into() })
            .unwrap();
        scene.publish(&job(&group, 1)).await;
    }
    publish(&scene, &ids(0..300)).await;
    let start = Instant::now();
    scene.daemon.start_again().await;
    let mut good = 0;
    while good < 300 {
        good += usize::from(scene.producer.result().await.status == Status::Sent);
    }
    let paused = scene.daemon.times_logged(PAUSED);
    println!("300 good jobs behind 40 bad ones after {:.1?}, {paused} pauses", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn bad_jobs_alone_in_the_queue_hold_up_those_that_come_later_for_seconds() {
    let mut scene = Scene::start().await;
    for number in 0..10 {
        let group = format!("bad-{number}");
        scene
            .sandbox
            .add_fault(FaultRule { group: Some(group.clone()), ..refusal(11000).into() })
            .unwrap();
        scene.publish(&job(&group, 1)).await;
    }
    scene.daemon.until_logged(PAUSED).await;
    let start = Instant::now();
    publish(&scene, &ids(0..50)).await;
    let mut good = 0;
    while good < 50 {
        good += usize::from(scene.producer.result().await.status == Status::Sent);
    }
    println!("50 good jobs after {:.1?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_pause_does_not_count_towards_giving_up_nor_does_an_outage_after_it_give_up_without_a_call()
 {
    let lines = "pause.probe_first = \"500ms\"\npause.probe_max = \"500ms\"\nretry.hold \
        = \"1s\"\nretry.park = [\"1s\"]\n\
                 retry.give_up_after = \"8s\"";
    let mut scene = Scene::with(lines).await;
    let failing = FaultRule {
        group: Some("failing".into()),
        ..FaultRule::from(InjectedFault::HttpStatus(502))
    };
    scene.sandbox.add_fault(failing.clone()).unwrap();
    scene.publish_with_id(&job("failing", 1), "failing").await;
    eventually("it to fail", async || (scene.sandbox.stats().calls >= 2).then_some(())).await;
    // Another job gets the fault of the account.
    scene.sandbox.add_fault(for_all(refusal(60020))).unwrap();
    scene.publish_with_id(&job("other", 1), "other").await;
    scene.daemon.until_logged(PAUSED).await;
    sleep(Duration::from_secs(10)).await;
    scene.sandbox.clear_faults();
    scene.daemon.until_logged("app resumed").await;
    // A new subscription makes its first call a second later.
    scene.sandbox.add_fault(for_all(InjectedFault::Reset)).unwrap();
    scene.daemon.until_logged("sends only probes").await;
    scene.sandbox.clear_faults();
    all_are_sent(&mut scene, BTreeSet::from(["failing".to_owned(), "other".to_owned()])).await;
}

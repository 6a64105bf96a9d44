//! A broker with a `consumer_timeout` shorter than jobs are held ends one subscription, but no
//! second one.

use std::time::Duration;

use groupcast::{
    sandbox::{FaultRule, InjectedFault},
    settle::result::Status,
};

use crate::support::{
    broker::Broker,
    eventually,
    scene::{Scene, job},
};

/// A broker that takes unacknowledged messages back early, and its timeout.
async fn impatient_broker() -> (Broker, Duration) {
    let broker = Broker::start("").await;
    // From 4.3 on the broker cancels the consumer without a reason. The daemon does not treat a
    // cancellation within half a minute as a timeout.
    let version = broker.ctl(&["version"]).await;
    let names_the_timeout =
        ["3.", "4.0", "4.1", "4.2"].iter().any(|before| version.starts_with(before));
    let timeout = if names_the_timeout { Duration::from_secs(6) } else { Duration::from_secs(32) };
    let set = format!(
        "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, \
            channel_tick_interval, 2000).",
        timeout.as_millis()
    );
    broker.ctl(&["eval", &set]).await;
    (broker, timeout)
}

fn assert_one_subscription_ended(scene: &Scene) {
    let log = scene.daemon.log();
    assert_eq!(scene.daemon.times_logged("lost the subscription"), 1, "{log}");
    let told = log.lines().find(|line| line.contains("consumer_timeout")).expect("it is told");
    assert!(told.contains("held for") && told.contains("retry.hold"), "{told}");
}

#[tokio::test]
async fn a_job_whose_calls_fail_is_parked_in_time_after_the_first_timeout() {
    let (broker, _) = impatient_broker().await;
    let mut scene = Scene::on(&broker, "retry.park = [\"1s\"]").await;
    scene
        .sandbox
        .add_fault(FaultRule {
            group: Some("g".into()),
            ..FaultRule::from(InjectedFault::HttpStatus(502))
        })
        .unwrap();
    scene.publish_with_id(&job("g", 1), "fails").await;
    for times in 1..=3 {
        eventually("the job to be parked", async || {
            (scene.daemon.times_logged("job parked") >= times).then_some(())
        })
        .await;
    }
    scene.sandbox.clear_faults();
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    assert_one_subscription_ended(&scene);
}

#[tokio::test]
async fn a_job_whose_calls_take_long_is_parked_in_between_and_repeats_none() {
    let (broker, timeout) = impatient_broker().await;
    let lines = "batch_size = 1\ncalls_per_second = 5\nburst = 1\nretry.park = [\"1s\"]";
    let mut scene = Scene::on(&broker, lines).await;
    // Twice as many calls as are possible within the timeout.
    let calls = 10 * timeout.as_secs();
    scene.publish_with_id(&job("g", calls as usize), "long").await;
    for part in 1..=4 {
        let made = calls * part / 4;
        eventually("a quarter of the calls", async || {
            (scene.sandbox.stats().calls >= made).then_some(())
        })
        .await;
    }
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Sent, calls), "{result:?}");
    assert_one_subscription_ended(&scene);
}

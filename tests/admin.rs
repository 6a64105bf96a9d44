//! Over HTTP an operator sees whether the daemon works, and if not, what is wrong.

use groupcast::settle::result::Status;
use serde_json::Value;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::Producer,
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, unique_app},
};

/// The status and the body of `/readyz`.
async fn readiness(daemon: &Daemon) -> (u16, Value) {
    let (status, body) = daemon.get("/readyz").await;
    (status, serde_json::from_str(&body).unwrap())
}

async fn until_ready(daemon: &Daemon) {
    eventually("readiness", async || (readiness(daemon).await.0 == 200).then_some(())).await;
}

#[tokio::test]
async fn a_daemon_is_ready_when_it_consumes_and_not_before() {
    let broker = Broker::start("").await;
    broker.kill().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), "");
    let daemon = Daemon::spawn(&configuration);
    daemon.until_logged("cannot consume yet; trying again").await;
    let (status, told) = readiness(&daemon).await;
    assert_eq!(
        (status, &told["ready"], &told["apps"][&app]["state"]),
        (503, &false.into(), &"down".into()),
        "{told}"
    );
    assert!(
        told["apps"][&app]["reason"].as_str().unwrap().contains("connect to the broker"),
        "{told}"
    );
    assert!(told["publisher"]["reason"].as_str().unwrap().contains("not connected"), "{told}");
    assert_eq!(daemon.get("/livez").await.0, 200, "it lives all the same");

    broker.restart().await;
    daemon.until_consuming(1).await;
    until_ready(&daemon).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
    let (_, told) = readiness(&scene.daemon).await;
    assert_eq!(
        (&told["ready"], &told["apps"][&scene.app]["state"]),
        (&true.into(), &"consuming".into()),
        "{told}"
    );
}

#[tokio::test]
async fn a_state_store_that_is_away_is_named() {
    let redis = Redis::start("").await;
    let scene = Scene::with(&format!("[state]\nurl = \"{}\"", redis.url())).await;
    until_ready(&scene.daemon).await;
    redis.kill().await;
    scene.publish_with_id(&job("g", 1), "job-1").await;
    scene.daemon.until_logged("the state store does not work").await;
    let (status, told) = readiness(&scene.daemon).await;
    assert_eq!((status, &told["state_store"]["state"]), (503, &"down".into()), "{told}");
    assert!(
        told["state_store"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
        "{told}"
    );
    redis.restart().await;
    until_ready(&scene.daemon).await;
}

#[tokio::test]
async fn a_standby_replica_is_ready() {
    let scene = Scene::start().await;
    let standby = Daemon::start(&scene.configuration).await;
    until_ready(&scene.daemon).await;
    until_ready(&standby).await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_and_a_port_in_use_is_a_clear_error() {
    let scene = Scene::start().await;
    let (status, told) = scene.daemon.get("/nothing").await;
    assert!(status == 404 && told.contains("/readyz"), "{told}");
    let address = scene.daemon.address();
    let posted =
        reqwest::Client::new().post(format!("http://{address}/readyz")).send().await.unwrap();
    assert_eq!(posted.status(), 405);

    let second = Daemon::spawn(
        &scene
            .configuration
            .replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\"")),
    );
    second.until_logged("admin.listen").await;
    assert!(second.log().contains("free it or choose another"), "{}", second.log());
}

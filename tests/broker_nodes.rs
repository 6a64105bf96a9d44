//! A frozen node of a cluster delays the daemon only once.

use std::{net::Ipv6Addr, time::Duration};

use groupcast::settle::result::Status;
use tokio::time::Instant;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    producer::Producer,
    proxy::Proxy,
    scene::{Scene, configuration, job, sandbox, unique_app},
};

/// The daemon notices missed heartbeats within five seconds. An attempt to connect to the frozen
/// node would take five more.
const AT_MOST: Duration = Duration::from_secs(9);

#[tokio::test]
async fn a_node_that_froze_is_tried_last() {
    let broker = Broker::start("").await;
    let proxies: Vec<Proxy> = (0..2).map(|_| Proxy::start(broker.address())).collect();
    let urls: Vec<String> = proxies
        .iter()
        .map(|proxy| format!("{}?heartbeat=2", proxy.amqp_url(broker.url())))
        .collect();
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = configuration("URLS", &app, &sandbox.endpoint(), "");
    let configuration = configuration.replace("\"URLS\"", &serde_json::to_string(&urls).unwrap());
    let daemon = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);

    // From the second round on, both connections are at the node that freezes.
    for round in 0..6 {
        let frozen = &proxies[round % 2];
        frozen.freeze();
        let begun = Instant::now();
        assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
        let took = begun.elapsed();
        println!("round {round}: a job sent after {took:?}");
        assert!(
            took < AT_MOST,
            "{took:?}: the frozen node was tried first; {}",
            scene.daemon.log()
        );
        frozen.heal();
    }
}

#[tokio::test]
async fn a_broker_is_reached_by_its_ipv6_address() {
    let broker = Broker::shared().await;
    let proxy = Proxy::start_at(Ipv6Addr::LOCALHOST.into(), broker.address());
    let url = proxy.amqp_url(broker.url());
    assert!(url.contains("@[::1]:"), "{url}");
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = configuration(&url, &app, &sandbox.endpoint(), "");
    let daemon = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
}

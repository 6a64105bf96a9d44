//! The daemon connects to its broker and its store over TLS with certificates on both sides, and
//! with only the rights that it needs.

use std::{collections::BTreeMap, net::TcpListener};

use groupcast::settle::result::Status;
use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};

use crate::support::{
    broker::Broker,
    certificates::Certificates,
    daemon::Daemon,
    eventually,
    producer::{Producer, text},
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, unique_app},
};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

/// Sends a job through a daemon with this configuration.
async fn works(app: &str, configuration: &str, plain: &Broker) {
    let daemon = Daemon::start(configuration).await;
    let mut producer = Producer::connect(plain.url()).await;
    for _ in 0..2 {
        let properties = producer.properties().with_message_id("twice".into());
        producer.publish(app, &serde_json::to_vec(&job("g", 3)).unwrap(), properties).await;
        assert_eq!(producer.result().await.status, Status::Sent);
    }
    drop(daemon);
}

async fn refused(configuration: &str) -> String {
    let daemon = Daemon::spawn(configuration);
    daemon.until_logged("cannot consume yet").await;
    daemon.log()
}

#[tokio::test]
async fn the_broker_is_reached_over_tls_with_a_certificate_on_both_sides() {
    let (certificates, port) = (Certificates::make(), free_port());
    let [ca, cert, key] = ["ca.pem", "server.pem", "server.key"]
        .map(|name| certificates.file(name).display().to_string());
    let broker = Broker::start(&format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {ca}\nssl_options.certfile = \
            {cert}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = \
         verify_peer\nssl_options.fail_if_no_peer_cert = true"
    ))
    .await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let with = |keys: &str| {
        configuration(&url, &app, &sandbox.endpoint(), "")
            .replace("[broker]\n", &format!("[broker]\n{keys}\n"))
    };
    works(&app, &with(&certificates.keys()), &broker).await;

    let only_ca = format!("ca_file = \"{ca}\"");
    refused(&with(&only_ca)).await;
    let unknown = refused(&with(&Certificates::make().keys())).await;
    assert!(unknown.to_lowercase().contains("certificate"), "{unknown}");
}

#[tokio::test]
async fn redis_is_reached_over_tls_with_a_certificate_on_both_sides() {
    let (certificates, port) = (Certificates::make(), free_port());
    let [ca, cert, key] = ["ca.pem", "server.pem", "server.key"]
        .map(|name| certificates.file(name).display().to_string());
    let _redis = Redis::start(&format!(
        "tls-port {port}\ntls-ca-cert-file {ca}\ntls-cert-file {cert}\ntls-key-file \
            {key}\ntls-auth-clients yes"
    ))
    .await;
    let broker = Broker::shared().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let with = |keys: &str| {
        let state = format!("[state]\nurl = \"rediss://localhost:{port}/0\"\n{keys}");
        configuration(broker.url(), &app, &sandbox.endpoint(), &state)
    };
    works(&app, &with(&certificates.keys()), broker).await;
    let daemon = Daemon::spawn(&with(&format!("ca_file = \"{ca}\"")));
    daemon.until_logged("the state store does not work").await;
}

/// The permissions that docs/queues.md lists.
#[tokio::test]
async fn a_user_with_the_least_rights_is_enough() {
    let page = std::fs::read_to_string("docs/queues.md").unwrap();
    let listed = |name: &str| {
        let line = page
            .lines()
            .find(|line| line.contains("set_permissions") && line.contains(name))
            .expect("it is listed");
        let patterns: Vec<&str> = line.split('\'').skip(1).step_by(2).collect();
        patterns.try_into().unwrap_or_else(|patterns| panic!("three patterns, not {patterns:?}"))
    };
    let broker = Broker::start("").await;
    // The first user declares the queues, and the second one only checks them.
    for user in ["groupcast-declares", "groupcast-checks"] {
        let patterns: [&str; 3] = listed(user);
        broker.ctl(&["add_user", user, "password"]).await;
        broker.ctl(&[&["set_permissions", "-p", "/", user][..], &patterns].concat()).await;
    }
    let (app, sandbox) = (unique_app(), sandbox().await);
    for (user, declare) in [("groupcast-declares", true), ("groupcast-checks", false)] {
        let url = broker.url().replace("guest:guest", &format!("{user}:password"));
        assert!(url.contains(user), "{url}");
        let configuration = configuration(
            &url,
            &app,
            &sandbox.endpoint(),
            "retry.hold = \"1s\"\nretry.park = [\"1s\"]",
        );
        let configuration =
            configuration.replace("[broker]\n", &format!("[broker]\ndeclare = {declare}\n"));
        works(&app, &configuration, &broker).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("groupcast.toml"), &configuration).unwrap();
        let mut check = tokio::process::Command::new(env!("CARGO_BIN_EXE_groupcast"));
        let checked = check.arg("check").current_dir(folder.path()).output().await.unwrap();
        let printed = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success() && !printed.contains("doubt "), "{user}: {printed}");
        // The rights must also be enough for a dead letter.
        let daemon = Daemon::start(&configuration).await;
        let producer = Producer::connect(broker.url()).await;
        let mut scene = Scene::of(
            app.clone(),
            configuration,
            crate::support::scene::sandbox().await,
            daemon,
            producer,
        )
        .await;
        assert_eq!(scene.send(&job("unknown-group", 1)).await.status, Status::Failed);
        let (lines, _) = crate::dead_letters::printed(&scene, &["list"]).await;
        assert!(lines.contains("unknown-group"), "{lines}");
        crate::dead_letters::letters_left(&scene, 1).await;
        scene.dead_letter().await;
        assert!(!scene.daemon.log().contains("ACCESS_REFUSED"), "{}", scene.daemon.log());
    }
}

/// Queues that an operator declared differently from `groupcast topology`.
#[tokio::test]
async fn a_jobs_queue_that_serves_several_consumers_is_refused() {
    let broker = Broker::start("").await;
    let sandbox = sandbox().await;
    let producer = Producer::connect(broker.url()).await;
    let quorum = || ("x-queue-type".into(), text("quorum"));
    let single = || ("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    let kinds = [
        ("classic", vec![]),
        ("shared", vec![quorum()]),
        ("classic-single", vec![single()]),
        ("right", vec![quorum(), single()]),
    ];
    for (app, arguments) in kinds {
        for queue in
            ["dead", "unrouted", "undeliverable", "wait.30", "wait.120", "wait.600", "wait.1800"]
        {
            let arguments = FieldTable::from(BTreeMap::from([quorum()]));
            declare(&producer, &format!("groupcast.{app}.{queue}"), arguments).await;
        }
        declare(
            &producer,
            &format!("groupcast.{app}.jobs"),
            FieldTable::from(BTreeMap::from_iter(arguments)),
        )
        .await;
        let jobs = format!("groupcast.{app}.jobs");
        let body = serde_json::to_vec(&job("g", 1)).unwrap();
        for _ in 0..5 {
            producer.publish(app, &body, producer.properties()).await;
        }
        let configuration = configuration(broker.url(), app, &sandbox.endpoint(), "");
        let configuration = configuration.replace("[broker]\n", "[broker]\ndeclare = false\n");
        if app == "right" {
            Daemon::start(&configuration).await;
        } else {
            let daemon = Daemon::spawn(&configuration);
            // The daemon must not read the queue repeatedly: a queue with a low delivery limit
            // would lose its jobs.
            eventually("refusals", async || {
                (daemon.times_logged("cannot consume yet") > 2).then_some(())
            })
            .await;
            let log = daemon.log();
            drop(daemon);
            eventually("the jobs", async || (producer.depth(&jobs).await == 5).then_some(())).await;
            assert_eq!(sandbox.stats().calls, 0);
            assert!(
                log.contains("x-single-active-consumer = true")
                    && log.contains("groupcast topology"),
                "{app}: {log}"
            );
        }
    }
}

async fn declare(producer: &Producer, queue: &str, arguments: FieldTable) {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    producer
        .channel()
        .await
        .queue_declare(queue.into(), durable, arguments)
        .await
        .expect("a queue");
}

//! What `groupcast check` says in environments in which the daemon could not send jobs. The page
//! docs/check.md shows all of its output.

use std::{net::TcpListener, path::PathBuf, process::Stdio, time::Duration};

use futures_util::{StreamExt, stream};
use groupcast::sandbox::PUBLIC_KEY;
use lapin::{options::BasicConsumeOptions, types::FieldTable};
use serde_json::json;
use tokio::{process::Command, time::timeout};

use crate::support::{
    broker::Broker,
    certificates::{Certificates, Validity},
    daemon::Daemon,
    eventually,
    producer::Producer,
    redis::Redis,
    scene::{configuration, sandbox, unique_app},
};

const APP: &str = "default";

/// An environment with one fault.
struct World {
    title: &'static str,
    configuration: String,
    variables: Vec<(&'static str, String)>,
    /// The contents of the file `key` beside the configuration.
    key: Vec<u8>,
}

fn world(title: &'static str, configuration: String) -> World {
    World { title, configuration, variables: Vec::new(), key: Vec::new() }
}

impl World {
    fn with(self, variable: &'static str, value: impl ToString) -> World {
        World { variables: vec![(variable, value.to_string())], ..self }
    }

    fn with_key(self, key: &[u8]) -> World {
        World { key: key.to_vec(), ..self }
    }
}

/// The output without the checks that passed, and without quoted words, which differ between
/// versions of the broker.
async fn told_in(world: &World) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("groupcast.toml"), &world.configuration).unwrap();
    std::fs::write(folder.path().join("key"), &world.key).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_groupcast"));
    command.arg("check").current_dir(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    let running = command.envs(world.variables.iter().cloned()).output();
    let output = timeout(Duration::from_secs(60), running).await.expect("check ends").unwrap();
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}: {printed}", world.title);
    println!("--- {}\n{printed}", world.title);
    let is_told = |line: &&str| {
        !["ok  ", "note  ", "        it says: "].iter().any(|other| line.starts_with(other))
    };
    printed.lines().filter(is_told).map(|line| format!("{}\n", without_words(line))).collect()
}

/// A line without the words of the broker.
fn without_words(line: &str) -> String {
    match line.split_once(" (protocol error: ") {
        Some((before, rest)) => {
            format!("{before}{}", rest.split_once(')').map_or("", |(_, after)| after))
        }
        None => line.to_owned(),
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

/// A TLS handshake may take seconds on a busy machine.
fn patient_configuration(broker_url: &str, app: &str, endpoint: &str) -> String {
    configuration(broker_url, app, endpoint, "")
        .replace("request_timeout = \"1s\"", "request_timeout = \"15s\"")
}

/// Users with fewer rights, a virtual host, and queues that differ from the daemon's declarations.
fn definitions() -> String {
    let user = |name: &str| json!({ "name": name, "password": "password", "tags": [] });
    let rights = |user: &str, configure: &str, write: &str, read: &str| json!({ "user": user, "vhost": "/", "configure": configure, "write": write, "read": read });
    let queue = |name: &str, arguments: serde_json::Value| json!({ "name": name, "vhost": "/", "durable": true, "auto_delete": false, "arguments": arguments });
    let shorter = json!({ "x-queue-type": "quorum", "x-message-ttl": 1000 });
    json!({
        "users": [user("no-rights"), user("no-publishing"), user("no-reading")],
        "vhosts": [{ "name": "closed" }],
        "permissions": [
            rights("no-rights", "^$", "^$", "^$"),
            rights("no-publishing", "^groupcast[.].*", "^groupcast[.].*", "^groupcast[.].*"),
            rights("no-reading", "^groupcast[.].*", ".*", "[.]dead$"),
        ],
        "queues": [
            queue("groupcast.classic.jobs", json!({ "x-queue-type": "classic" })),
            queue("groupcast.arguments.wait.30", shorter),
        ],
    })
    .to_string()
}

#[tokio::test]
async fn check_names_what_is_wrong_and_what_to_do() {
    let certificates = Certificates::of_server(&["localhost"], Validity::Now);
    let expired = Certificates::of_server(&["localhost"], Validity::Over);
    let file =
        |certificates: &Certificates, name: &str| certificates.file(name).display().to_string();
    let [ca, cert, key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| file(&certificates, name));
    let [old_ca, old_cert, old_key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| file(&expired, name));
    let (tls, redis_tls) = (free_port(), free_port());
    let broker = Broker::start(&format!(
        "listeners.ssl.1 = 127.0.0.1:{tls}\nssl_options.cacertfile = {ca}\nssl_options.certfile = \
            {cert}\nssl_options.keyfile = {key}"
    ))
    .await;
    let _old = Redis::start(&format!(
        "tls-port {redis_tls}\ntls-ca-cert-file {old_ca}\ntls-cert-file {old_cert}\ntls-key-file \
            {old_key}\ntls-auth-clients no"
    ))
    .await;
    let read_only = Redis::start("replicaof 127.0.0.1 1").await;
    let scratch = tempfile::tempdir().unwrap();
    let imported = scratch.path().join("definitions.json");
    std::fs::write(&imported, definitions()).unwrap();
    broker.ctl(&["import_definitions", imported.to_str().unwrap()]).await;
    let sandbox = sandbox().await;
    let (api, url) = (sandbox.endpoint(), broker.url().to_owned());
    let (mq, http) = (broker.address().port(), url::Url::parse(&api).unwrap().port().unwrap());

    let good = patient_configuration(&url, APP, &api);
    let at = |url: &str| good.replace(broker.url(), url);
    let calling = |endpoint: &str| good.replace(&api, endpoint);
    let by = |user: &str| good.replace("guest:guest", &format!("{user}:password"));
    let of = |app: &str| patient_configuration(&url, app, &api);
    let checking = |text: String| text.replace("[broker]\n", "[broker]\ndeclare = false\n");
    let in_broker =
        |lines: &str, text: String| text.replace("[broker]\n", &format!("[broker]\n{lines}\n"));
    let state = |lines: &str| format!("{good}[state]\n{lines}\n");
    let from_file =
        good.replace(&format!("secret_key = \"{PUBLIC_KEY}\""), "secret_key_file = \"key\"");

    // The queues exist from here on.
    let daemon = Daemon::start(&good).await;
    drop(daemon);
    let stuck = Daemon::spawn(&by("no-rights"));
    stuck.until_logged("cannot consume yet").await;
    let both_are_told =
        async || (stuck.get("/readyz").await.1.matches("user may not").count() == 2).then_some(());
    eventually("the missing rights of publisher and consumer", both_are_told).await;
    let beside_stuck =
        good.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{}\"", stuck.address()));

    let worlds = vec![
        world("The broker is not there", at("amqp://guest:guest@127.0.0.1:1/%2f")),
        world(
            "The broker's host name is unknown",
            at("amqp://guest:guest@no-such-host.invalid:5672/%2f"),
        ),
        world("The password for the broker is wrong", good.replace("guest:guest", "guest:wrong")),
        world("There is no such virtual host", at(&url.replace("%2f", "nowhere"))),
        world(
            "The virtual host is closed to the user",
            at(&url.replace("guest:guest", "no-rights:password").replace("%2f", "closed")),
        ),
        world("The broker's user has no rights", by("no-rights")),
        world("The broker's user may not write to amq.default", by("no-publishing")),
        world("The broker's user may not read the queues", by("no-reading")),
        world("A queue exists as a classic queue", of("classic")),
        world("A queue exists with other arguments", of("arguments")),
        world("Queues are missing and are not to be declared", checking(of("missing"))),
        world(
            "The broker's certificate is of an unknown authority",
            at(&format!("amqps://guest:guest@localhost:{tls}/%2f")),
        ),
        world(
            "The broker's certificate is for another name",
            in_broker(
                &format!("ca_file = \"{ca}\""),
                at(&format!("amqps://guest:guest@127.0.0.1:{tls}/%2f")),
            ),
        ),
        world(
            "The broker's port is one for TLS",
            at(&format!("amqp://guest:guest@localhost:{tls}/%2f")),
        ),
        world("The broker's port is one without TLS", at(&url.replace("amqp://", "amqps://"))),
        world(
            "The broker's port speaks HTTP",
            at(&format!("amqp://guest:guest@127.0.0.1:{http}/%2f")),
        ),
        world("The API's host name is unknown", calling("https://no-such-host.invalid")),
        world("Nothing listens at the API's port", calling("https://127.0.0.1:1")),
        world("The API's port does not speak TLS", calling(&api.replace("http://", "https://"))),
        world(
            "The API's certificate is of an unknown authority",
            calling(&format!("https://localhost:{tls}")),
        ),
        world(
            "The API's certificate is for another name",
            calling(&format!("https://127.0.0.1:{tls}")),
        )
        .with("SSL_CERT_FILE", &ca),
        world(
            "The API's certificate has expired",
            calling(&format!("https://localhost:{redis_tls}")),
        )
        .with("SSL_CERT_FILE", &old_ca),
        world("The proxy is not there", calling("https://adminapisgp.im.qcloud.com"))
            .with("HTTPS_PROXY", "http://127.0.0.1:1"),
        world("The proxy refuses", calling("https://adminapisgp.im.qcloud.com"))
            .with("HTTPS_PROXY", &api),
        world("The key is of another app", good.replace(PUBLIC_KEY, "another-key")),
        world("The app is not in this region", good.replace("1400000000", "1400000001")),
        world("The state store is not there", state("url = \"redis://127.0.0.1:1/0\"")),
        world(
            "The state store's host name is unknown",
            state("url = \"redis://no-such-host.invalid:6379/0\""),
        ),
        world(
            "The state store's certificate has expired",
            state(&format!("url = \"rediss://localhost:{redis_tls}/0\"\nca_file = \"{old_ca}\"")),
        ),
        world("The state store is read-only", state(&format!("url = \"{}\"", read_only.url()))),
        world("The state store's folder is missing", state("url = \"sqlite:no/such/folder.db\"")),
        world("The secret file has a byte-order mark", from_file.clone())
            .with_key(b"\xef\xbb\xbfkey\n"),
        world("The secret file has quotes", from_file.clone()).with_key(b"\"key\"\n"),
        world("The secret file is not UTF-8", from_file.clone())
            .with_key(b"\xff\xfek\x00e\x00y\x00"),
        world("The secret file is missing", from_file.replace("\"key\"", "\"no-key\"")),
        world("A running daemon does not work", beside_stuck),
    ];
    let in_memory_alarm = world("The broker has a memory alarm", good.clone());
    let in_disk_alarm = world("The broker has a disk alarm", good.clone());

    let mut told: Vec<(&str, String)> = stream::iter(&worlds)
        .map(async |world| (world.title, told_in(world).await))
        .buffered(4)
        .collect()
        .await;
    drop(stuck);
    broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await;
    told.push((in_memory_alarm.title, told_in(&in_memory_alarm).await));
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    broker.ctl(&["set_disk_free_limit", "1000000GB"]).await;
    told.push((in_disk_alarm.title, told_in(&in_disk_alarm).await));
    broker.ctl(&["set_disk_free_limit", "50MB"]).await;

    let redis = url::Url::parse(read_only.url()).unwrap().port().unwrap();
    let ports = [(mq, "5672"), (tls, "5671"), (http, "8089"), (redis_tls, "6380"), (redis, "6379")];
    let page = told.iter().map(|(title, told)| {
        let told = ports.iter().fold(told.clone(), |told, (port, shown)| {
            told.replace(&format!(":{port}"), &format!(":{shown}"))
        });
        assert!(told.contains("FAILED  ") || told.contains("groupcast: "), "{title}: {told}");
        format!("\n### {title}\n\n```text\n{told}```\n")
    });
    compare(&page.collect::<String>());
}

/// Compares with the page docs/check.md.
fn compare(expected: &str) {
    const BEGIN: &str = "<!-- worlds: begin -->\n";
    const END: &str = "\n<!-- worlds: end -->\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/check.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("where the worlds begin");
    let (written, after) = rest.split_once(END).expect("where the worlds end");
    #[expect(clippy::disallowed_methods, reason = "of the test, not of the program")]
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some();
    if update {
        return std::fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    }
    let differs = written.lines().zip(expected.lines()).find(|(written, told)| written != told);
    assert!(
        written == expected,
        "docs/check.md is not what the program says (first difference: {differs:?}); write it anew \
            with\n  UPDATE_DOCUMENTS=1 cargo test --test promises broken_worlds"
    );
}

#[tokio::test]
async fn check_takes_no_job_and_none_counts_as_delivered() {
    let broker = Broker::shared().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), "");
    let checked = async || {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("groupcast.toml"), &configuration).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_groupcast"));
        let output = command.arg("check").current_dir(folder.path()).output().await.unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && printed.contains("can be read"), "{printed}");
        assert!(!printed.contains("note ") && !printed.contains("doubt "), "{printed}");
    };
    // Declares the queues.
    checked().await;
    let producer = Producer::connect(broker.url()).await;
    for number in 0..3 {
        producer.publish(&app, number.to_string().as_bytes(), producer.properties()).await;
    }
    for _ in 0..3 {
        checked().await;
    }
    let channel = producer.channel().await;
    let queue = format!("groupcast.{app}.jobs");
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut jobs = channel
        .basic_consume(queue.as_str().into(), "reader".into(), options, arguments)
        .await
        .unwrap();
    for number in 0..3 {
        let job = jobs.next().await.expect("a job").unwrap();
        assert_eq!((job.data, job.redelivered), (number.to_string().into_bytes(), false));
        let headers = job.properties.headers().clone().unwrap_or_default();
        assert!(!headers.inner().contains_key("x-delivery-count"), "{headers:?}");
    }
}

#[tokio::test]
async fn an_idle_daemon_says_that_the_broker_is_in_alarm() {
    let broker = Broker::start("").await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let daemon = Daemon::start(&configuration(broker.url(), &app, &sandbox.endpoint(), "")).await;
    eventually("readiness", async || (daemon.get("/readyz").await.0 == 200).then_some(())).await;
    broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await;
    let told = eventually("an alarm in /readyz", async || {
        let (status, told) = daemon.get("/readyz").await;
        (status == 503).then_some(told)
    })
    .await;
    assert!(
        told.contains("alarm")
            && told.contains("low on memory")
            && told.contains("rabbitmq-diagnostics alarms"),
        "{told}"
    );
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    eventually("readiness again", async || (daemon.get("/readyz").await.0 == 200).then_some(()))
        .await;
}

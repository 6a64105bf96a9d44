//! The commands of the program, and their messages when the input is wrong.

use std::{io::Write, path::Path, process::Stdio};

use groupcast::{
    sandbox::{PUBLIC_KEY, SandboxSettings},
    settle::result::{JobResult, Status},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    scene::{Scene, configuration, job, sandbox, settings, unique_app, users},
};

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn run(directory: &Path, arguments: &[&str]) -> Ran {
    run_with(directory, arguments, &[], "").await
}

async fn run_with(
    directory: &Path,
    arguments: &[&str],
    variables: &[(&str, &str)],
    input: &str,
) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_groupcast"))
        .args(arguments)
        .current_dir(directory)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), input.as_bytes())
        .await
        .unwrap();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn folder(configuration: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::File::create(folder.path().join("groupcast.toml"))
        .unwrap()
        .write_all(configuration.as_bytes())
        .unwrap();
    folder
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_what_to_do() {
    let app = "[apps.default]\nsdk_app_id = 1400000000\nidentifier = \"administrator\"\nregion \
        = \"singapore\"\n";
    let secret = "secret_key = \"k\"\n";
    let cases = [
        (format!("{app}{secret}[broker]\nprefetchh = 3\n"), vec!["broker.prefetchh", "prefetch"]),
        (app.to_owned(), vec!["secret_key"]),
        (format!("{app}{secret}request_timeout = \"5 parsecs\"\n"), vec!["request_timeout", "5s"]),
        (format!("{app}{secret}batch_size = 501\n"), vec!["batch_size", "500"]),
        (format!("{app}secret_key = \"canary\n"), vec!["groupcast.toml:5:", "basic string"]),
        (String::new(), vec!["[apps.default]"]),
    ];
    for (configuration, expected) in cases {
        let folder = folder(&configuration);
        let ran = run(folder.path(), &["run"]).await;
        assert_eq!(ran.code, Some(1), "{configuration}");
        for word in expected {
            assert!(ran.err.contains(word), "`{word}` is not in: {}", ran.err);
        }
        assert!(!ran.err.contains("canary"), "{}", ran.err);
    }
    let folder = folder(&format!("{app}{secret}"));
    let ran =
        run_with(folder.path(), &["config"], &[("GROUPCAST__BROKER__PREFETCHH", "3")], "").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("GROUPCAST__BROKER__PREFETCHH"), "{}", ran.err);
}

#[tokio::test]
async fn bad_usage_exits_with_2() {
    let folder = folder("");
    for arguments in [
        &["send"][..],
        &["fly"],
        &["send", "--group", "g"],
        &["send", "--group", "g", "--content", "c", "--priority", "x"],
    ] {
        assert_eq!(run(folder.path(), arguments).await.code, Some(2), "{arguments:?}");
    }
}

#[tokio::test]
async fn the_help_of_a_command_tells_all_about_it() {
    let folder = folder("");
    for (command, words) in [
        ("run", "SIGTERM"),
        ("run", "SIGHUP"),
        ("check", "notif"),
        ("send", "every member"),
        ("job", "parked"),
    ] {
        let ran = run(folder.path(), &[command, "--help"]).await;
        assert!(
            ran.out.contains(words) && ran.out.contains("Example"),
            "`{words}` is not in: {}",
            ran.out
        );
    }
}

#[tokio::test]
async fn health_asks_the_daemon_at_its_address() {
    let mut scene = Scene::start().await;
    let address = scene.daemon.address();
    let folder = folder(&scene.configuration.replace("127.0.0.1:0", &address));
    for (arguments, told) in [(&["health"][..], "\"ready\":true"), (&["health", "--live"], "")] {
        let ran = run(folder.path(), arguments).await;
        assert_eq!(
            (ran.code, ran.out.replace(": ", ":").contains(told)),
            (Some(0), true),
            "{}{}",
            ran.out,
            ran.err
        );
    }
    scene.daemon.terminate().await;
    for arguments in [&["health"][..], &["health", "--live"]] {
        let ran = run(folder.path(), arguments).await;
        assert_eq!(
            (ran.code, ran.err.contains(&address)),
            (Some(1), true),
            "{}{}",
            ran.out,
            ran.err
        );
    }
}

#[tokio::test]
async fn a_state_file_is_one_daemons() {
    let scene = Scene::start().await;
    let state =
        format!("[state]\nurl = \"sqlite:{}\"\n", scene.daemon.file("groupcast.db").display());
    let ran = run(folder(&format!("{}{state}", scene.configuration)).path(), &["run"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("groupcast.db: another daemon uses it"), "{}", ran.err);
}

#[tokio::test]
async fn check_says_what_is_wrong_with_broker_state_store_and_api() {
    let broker = Broker::shared().await;
    let sandbox = sandbox().await;
    let good = configuration(broker.url(), &unique_app(), &sandbox.endpoint(), "");
    let ran = run(folder(&good).path(), &["check"]).await;
    assert_eq!((ran.code, ran.out.matches("ok ").count()), (Some(0), 6), "{}", ran.out);
    assert!(ran.out.contains("groupcast.db will be made at start"), "{}", ran.out);
    assert!(
        ran.out.contains("are there and can be read")
            && ran.out.contains("the broker takes messages"),
        "{}",
        ran.out
    );

    let cases = [
        (
            good.replace(broker.url(), "amqp://guest:guest@127.0.0.1:1/%2f"),
            vec!["127.0.0.1:1", "refused", "broker.url"],
        ),
        (good.replace("guest:guest", "guest:wrong-password"), vec!["ACCESS_REFUSED", "password"]),
        (
            good.replace(&sandbox.endpoint(), "http://127.0.0.1:1"),
            vec!["127.0.0.1:1", "refused", "endpoint"],
        ),
        (
            good.replace(PUBLIC_KEY, "another-key"),
            vec!["70009", "secret_key belongs to sdk_app_id"],
        ),
        (
            good.replace("\"administrator\"", "\"somebody\""),
            vec!["60010", "administrator of the app"],
        ),
        (
            format!("{good}[state]\nurl = \"sqlite:no/such/folder.db\"\n"),
            vec!["no/such/folder.db", "No such file", "state.url"],
        ),
        (
            format!("{good}[state]\nurl = \"redis://:wrong-password@127.0.0.1:1/0\"\n"),
            vec!["127.0.0.1:1", "refused"],
        ),
    ];
    for (configuration, expected) in cases {
        let ran = run(folder(&configuration).path(), &["check"]).await;
        assert_eq!(ran.code, Some(1), "{}", ran.out);
        for word in expected {
            assert!(ran.out.contains(word), "`{word}` is not in: {}", ran.out);
        }
        assert!(!ran.out.contains("wrong-password"), "{}", ran.out);
    }
}

#[tokio::test]
async fn check_says_since_when_a_running_daemon_has_paused_an_app_and_why() {
    let (broker, sandbox, app) = (Broker::shared().await, sandbox().await, unique_app());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let paused = json!({ "state": "paused", "since": "2026-11-22T10:00:00Z", "reason": "package \
        expired", "advice": "renew it" });
    let body =
        json!({ "apps": { (app.as_str()): paused, "another": { "state": "paused" } } }).to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
    });
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), "");
    let folder = folder(
        &configuration.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\"")),
    );
    let ran = run(folder.path(), &["check"]).await;
    let told = format!(
        "FAILED  daemon: app {app} is paused since 2026-11-22T10:00:00Z: package expired; renew \
            it\n"
    );
    assert!(
        ran.code == Some(1) && ran.out.contains(&told) && ran.out.matches("FAILED").count() == 1,
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn job_shows_the_progress_of_a_job_and_then_its_result() {
    let mut scene = Scene::with("batch_size = 1\ncalls_per_second = 20\nburst = 1").await;
    let state =
        format!("[state]\nurl = \"sqlite:{}\"\n", scene.daemon.file("groupcast.db").display());
    let folder = folder(&format!("{}{state}", scene.configuration));
    let properties = scene.producer.properties().with_message_id("order-1".into());
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 40)).unwrap(), properties)
        .await;
    let running = eventually("some progress", async || {
        let ran = run(folder.path(), &["job", "order-1"]).await;
        let shown: Value = serde_json::from_str(&ran.out).ok()?;
        (shown["batches"]["sent"].as_u64()? > 2).then_some(shown)
    })
    .await;
    assert_eq!(
        (&running["status"], &running["batches"]["total"]),
        (&json!("unfinished"), &json!(40)),
        "{running}"
    );

    let result = scene.producer.result().await;
    // The daemon completes the record after it has published the result.
    let shown = eventually("the recorded result", async || {
        serde_json::from_str::<JobResult>(&run(folder.path(), &["job", "order-1"]).await.out).ok()
    })
    .await;
    assert_eq!(shown, result);
    let unknown = run(folder.path(), &["job", "order-2"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.err.contains("no record of job `order-2`") && unknown.err.contains("retention"),
        "{}",
        unknown.err
    );
}

#[tokio::test]
async fn job_makes_no_state_file_where_there_is_none() {
    let folder = folder(&configuration("amqp://127.0.0.1:1/%2f", "app", "http://127.0.0.1:1", ""));
    let ran = run(folder.path(), &["job", "order-1"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("groupcast.db") && !folder.path().join("groupcast.db").exists(),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn send_publishes_waits_and_prints_the_result() {
    let broker = Broker::shared().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), "");
    let folder = folder(&configuration);

    let ran = run(folder.path(), &["send", "--group", "g", "--content", "c", "--to", "a"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("there is no queue") && ran.err.contains("groupcast run"),
        "{}",
        ran.err
    );

    let _daemon = Daemon::start(&configuration).await;
    let ran = run(
        folder.path(),
        &["send", "--group", "g", "--content", "c", "--to", "a,b", "--id", "order-1", "--wait"],
    )
    .await;
    let result: JobResult = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (ran.code, result.status, result.job_id.as_str()),
        (Some(0), Status::Sent, "order-1")
    );

    let misspelt = r#"{"GroupId":"g","Content":"c","ToMember_Account":["a"]}"#;
    let ran = run_with(folder.path(), &["send", "-", "--wait"], &[], misspelt).await;
    let result: JobResult = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, result.status), (Some(1), Status::Rejected));

    std::fs::write(
        folder.path().join("job.json"),
        serde_json::to_vec(&job("from-a-file", 2)).unwrap(),
    )
    .unwrap();
    assert_eq!(run(folder.path(), &["send", "job.json"]).await.code, Some(0));
    crate::support::eventually("the job", async || {
        (sandbox.received(Some("from-a-file")).len() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn send_direct_goes_through_the_same_pipeline_without_a_broker() {
    let sandbox = sandbox().await;
    let folder = folder(&configuration("amqp://127.0.0.1:1", "default", &sandbox.endpoint(), ""));
    std::fs::write(folder.path().join("users"), users(1201).join("\n")).unwrap();
    let to_file = ["send", "--group", "g", "--content", "c", "--to-file", "users"];
    let ran = run(folder.path(), &[&to_file[..], &["--direct"]].concat()).await;
    let result: JobResult = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, result.status, result.calls), (Some(0), Status::Sent, 3), "{}", ran.err);
    assert_eq!(result.recipients.unwrap().sent, 1201);

    let ran =
        run(folder.path(), &["send", "--group", "unknown", "--content", "c", "--direct"]).await;
    assert_eq!(ran.code, Some(1));
    assert_eq!(serde_json::from_str::<JobResult>(&ran.out).unwrap().errors[0].code, Some(10010));

    let wrong_key = [("GROUPCAST__APPS__DEFAULT__SECRET_KEY", "another-key")];
    let ran = run_with(
        folder.path(),
        &["send", "--group", "g", "--content", "c", "--direct"],
        &wrong_key,
        "",
    )
    .await;
    assert_eq!(ran.code, Some(1));
    assert_eq!(serde_json::from_str::<JobResult>(&ran.out).unwrap().errors[0].code, Some(70009));

    sandbox.change_settings(settings(json!({ "max_recipients": 50 })));
    let ran = run(folder.path(), &[&to_file[..], &["--direct"]].concat()).await;
    let result: JobResult = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (ran.code, result.status, result.batches.unwrap().sent),
        (Some(0), Status::Sent, 25),
        "{}",
        ran.err
    );
    assert_eq!(result.calls, 25 + sandbox.stats().by_code[&10005]);

    let ran = run(folder.path(), &[&to_file[..], &["--dry-run"]].concat()).await;
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("1201 recipients") && ran.out.contains("batches   3"), "{}", ran.out);
}

#[tokio::test]
async fn an_empty_list_of_recipients_on_the_command_line_is_no_broadcast() {
    let sandbox = sandbox().await;
    let folder = folder(&configuration("amqp://127.0.0.1:1", "default", &sandbox.endpoint(), ""));
    std::fs::write(folder.path().join("empty"), "\n \n").unwrap();
    for empty in [
        ["--to", ""],
        ["--to", ","],
        ["--to", "a,,b"],
        ["--to-file", "empty"],
        ["--to-file", "missing"],
    ] {
        let ran = run(
            folder.path(),
            &[&["send", "--direct", "--group", "g", "--content", "c"][..], &empty].concat(),
        )
        .await;
        assert_eq!(ran.code, Some(1), "{empty:?}");
        assert!(ran.err.contains(empty[0]) || ran.err.contains("missing"), "{}", ran.err);
    }
    assert_eq!(sandbox.stats().calls, 0);
}

#[tokio::test]
async fn usersig_prints_one_that_the_api_takes() {
    let sandbox = sandbox().await;
    let folder = folder(&configuration("amqp://127.0.0.1:1", "default", &sandbox.endpoint(), ""));
    let ran = run(folder.path(), &["usersig", "--expire", "1h"]).await;
    let user_sig = ran.out.trim();
    let url = format!(
        "{}/v4/group_open_http_svc/send_group_system_notification?sdkappid=1400000000&identifier=administrator\
         &usersig={user_sig}&random=1&contenttype=json",
        sandbox.endpoint()
    );
    let answer = reqwest::Client::new()
        .post(url)
        .body(job("g", 1).to_string())
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(answer.contains("\"ErrorCode\":0"), "{answer}");
}

#[tokio::test]
async fn the_printed_topology_is_what_the_daemon_needs() {
    let broker = Broker::start("").await;
    let sandbox = sandbox().await;
    let declaring = configuration(
        broker.url(),
        "default",
        &sandbox.endpoint(),
        "results_queue = \"groupcast.default.results\"",
    );
    let checking = declaring.replace("[broker]\n", "[broker]\ndeclare = false\n");
    let folder = folder(&checking);

    let daemon = Daemon::spawn(&checking);
    daemon.until_logged("`groupcast topology > groupcast.json`").await;
    let ran = run(folder.path(), &["topology"]).await;
    std::fs::write(folder.path().join("definitions.json"), &ran.out).unwrap();
    broker
        .ctl(&["import_definitions", folder.path().join("definitions.json").to_str().unwrap()])
        .await;
    daemon.until_consuming(1).await;
    drop(daemon);
    // Declaring the same queues with other arguments would be refused.
    Daemon::start(&declaring).await;
}

#[tokio::test]
async fn the_printed_configuration_shows_no_secret() {
    let folder = folder(&configuration(
        "amqp://worker:canary@127.0.0.1:1/%2f",
        "default",
        "http://127.0.0.1:1",
        "",
    ));
    let ran = run(folder.path(), &["config"]).await;
    assert_eq!(ran.code, Some(0));
    assert!(
        ran.out.contains("worker:***@")
            && !ran.out.contains("canary")
            && !ran.out.contains(PUBLIC_KEY),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn the_sandbox_plays_another_app_if_told_so() {
    let settings =
        SandboxSettings { sdk_app_id: 7, secret_key: "k".into(), ..SandboxSettings::default() };
    let sandbox = groupcast::sandbox::Sandbox::start(settings).await.unwrap();
    let configuration = configuration("amqp://127.0.0.1:1", "default", &sandbox.endpoint(), "");
    let configuration = configuration.replace("1400000000", "7").replace(PUBLIC_KEY, "k");
    let ran =
        run(folder(&configuration).path(), &["send", "--direct", "--group", "g", "--content", "c"])
            .await;
    assert_eq!(ran.code, Some(0), "{}", ran.out);
}

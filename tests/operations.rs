//! The files that operators deploy match the program: the unit, the image, the alert rules and the
//! dashboard.

use std::{
    collections::BTreeSet, fs, os::unix::net::UnixDatagram, process::Command, time::Duration,
};

use groupcast::{
    api::codes::{CODES, Class},
    telemetry::metrics::{ALL, MetricKind},
};
use serde_json::Value;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    scene::{configuration, sandbox, unique_app},
};

/// The names of all series, including those of histograms.
fn series() -> BTreeSet<String> {
    let of = |metric: &&groupcast::telemetry::metrics::Metric| match metric.kind {
        MetricKind::Histogram(_) => {
            ["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", metric.name)).to_vec()
        }
        MetricKind::Counter | MetricKind::Gauge => vec![metric.name.to_owned()],
    };
    ALL.iter().flat_map(of).collect()
}

/// The metrics that an expression names.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("groupcast_")).map(str::to_owned).collect()
}

fn assert_exist(file: &str, expressions: impl IntoIterator<Item = String>) {
    let named: BTreeSet<String> =
        expressions.into_iter().flat_map(|expression| named(&expression)).collect();
    assert!(named.len() >= 5, "{file} names few metrics: {named:?}");
    let existing = series();
    let unknown: Vec<&String> = named.difference(&existing).collect();
    assert!(unknown.is_empty(), "{file} names metrics that do not exist: {unknown:?}");
}

#[test]
fn the_alert_rules_are_valid_hold_in_their_examples_and_name_metrics_that_exist() {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output =
            Command::new("promtool").args(arguments).current_dir("deploy/monitoring").output();
        let output = output.expect("promtool is there; tests/run.sh installs it");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let rules = fs::read_to_string("deploy/monitoring/alerts.yml").unwrap();
    assert_exist("alerts.yml", rules.lines().map(str::to_owned));
    let runbook = fs::read_to_string("docs/operations.md").unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(runbook.contains(&format!("`{alert}`")), "the runbook says nothing of {alert}");
    }
}

#[test]
fn the_alert_of_a_slowed_down_app_knows_every_answer_that_slows_down() {
    let rules = fs::read_to_string("deploy/monitoring/alerts.yml").unwrap();
    let named =
        rules.split_once("code=~\"").and_then(|(_, rest)| rest.split_once('"')).expect("codes").0;
    let slowing = CODES
        .iter()
        .filter(|code| code.class == Class::RateLimited)
        .map(|code| code.code.to_string());
    let slowing: Vec<String> = slowing.chain(["http_429".to_owned()]).collect();
    assert_eq!(named.split('|').collect::<Vec<_>>(), slowing);
}

#[test]
fn the_dashboard_names_metrics_that_exist() {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string("deploy/monitoring/dashboard.json").unwrap())
            .unwrap();
    let targets = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<String> =
        targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(expressions.len() >= 8);
    assert_exist("dashboard.json", expressions);
}

#[test]
fn the_unit_gives_the_service_no_more_than_it_needs() {
    let unit =
        ["--offline=true", "--threshold=20", "--no-pager", "deploy/systemd/groupcast.service"];
    let output = Command::new("systemd-analyze").arg("security").args(unit).output();
    let output = output.expect("systemd-analyze is there; tests/run.sh installs it");
    let report = String::from_utf8_lossy(&output.stdout);
    // The threshold is in tenths.
    assert!(output.status.success() && report.contains("Overall exposure level"), "{report}");
}

#[tokio::test]
async fn systemd_is_told_that_the_daemon_works_lives_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let app = unique_app();
    let sandbox = sandbox().await;
    let configuration = configuration(Broker::shared().await.url(), &app, &sandbox.endpoint(), "");
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")];
    let mut daemon = Daemon::spawn_with(&configuration, &variables);
    let next = async || {
        let socket = socket.try_clone().unwrap();
        let received = tokio::task::spawn_blocking(move || {
            let mut told = [0; 256];
            let length = socket.recv(&mut told).expect("the daemon tells");
            String::from_utf8(told[..length].to_vec()).unwrap()
        });
        received.await.unwrap().trim().to_owned()
    };
    assert_eq!(next().await, "READY=1");
    for _ in 0..5 {
        assert_eq!(next().await, "WATCHDOG=1");
    }
    daemon.until_consuming(1).await;
    assert!(daemon.terminate().await.success());
    let mut last = next().await;
    while last == "WATCHDOG=1" {
        last = next().await;
    }
    assert_eq!(last, "STOPPING=1");
}

#[test]
fn the_image_has_the_program_and_no_shell() {
    let root = tempfile::tempdir().unwrap();
    let made = Command::new("deploy/rootfs.sh")
        .arg(env!("CARGO_BIN_EXE_groupcast"))
        .arg(root.path())
        .status()
        .unwrap();
    assert!(made.success());
    // Runs without the rights of root too.
    let mut program = Command::new("unshare");
    program
        .args(["--user", "--map-root-user", "--root"])
        .arg(root.path())
        .args(["/usr/local/bin/groupcast", "--version"]);
    let output = program.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        told.trim(),
        format!("groupcast {}", env!("CARGO_PKG_VERSION")),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for shell in ["bin/sh", "bin/bash", "usr/bin/sh", "bin/busybox"] {
        assert!(!root.path().join(shell).exists());
    }
    let image = fs::read_to_string("deploy/Dockerfile").unwrap();
    assert!(
        image.contains("deploy/rootfs.sh target/release/groupcast /out")
            && image.contains("FROM scratch")
    );
}

//! A standard error without a reader delays nothing.

use std::net::TcpListener;

use groupcast::settle::result::Status;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::Producer,
    scene::{configuration, job, sandbox, unique_app},
};

const REJECTED: usize = 1500;

/// A daemon whose log has no reader, and the address of its HTTP server.
struct Unread {
    daemon: Daemon,
    address: String,
    app: String,
    producer: Producer,
    _sandbox: groupcast::sandbox::Sandbox,
}

impl Unread {
    async fn start() -> Unread {
        let (broker, app, sandbox) = (Broker::shared().await, unique_app(), sandbox().await);
        let free = TcpListener::bind("127.0.0.1:0")
            .expect("a free port")
            .local_addr()
            .expect("an address");
        let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), "")
            .replace("127.0.0.1:0", &free.to_string());
        let daemon = Daemon::spawn_unread(&configuration);
        let unread = Unread {
            daemon,
            address: free.to_string(),
            app,
            producer: Producer::connect(broker.url()).await,
            _sandbox: sandbox,
        };
        eventually("the daemon to consume", async || unread.get("readyz").await).await;
        unread
    }

    /// The answer, if its status is a success.
    async fn get(&self, path: &str) -> Option<String> {
        let answer = reqwest::get(format!("http://{}/{path}", self.address)).await.ok()?;
        answer.error_for_status().ok()?.text().await.ok()
    }

    /// Makes the daemon reject many jobs, each with a long line in the log. Together they exceed
    /// the pipe and the daemon's own buffer.
    async fn reject_many(&mut self) {
        for number in 0..REJECTED {
            let mut job = job("g", 1);
            job[format!("{number}-{}", "x".repeat(1000))] = json!(1);
            self.producer
                .publish(&self.app, &serde_json::to_vec(&job).unwrap(), self.producer.properties())
                .await;
        }
        for _ in 0..REJECTED {
            assert_eq!(self.producer.result().await.status, Status::Rejected);
        }
    }

    async fn dropped(&self) -> u64 {
        let metrics = self.get("metrics").await.expect("metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("groupcast_log_lines_dropped_total "));
        line.expect("the metric is there from the start").parse().expect("a number")
    }
}

#[tokio::test]
async fn jobs_are_answered_while_nobody_reads_the_log_and_what_was_dropped_is_told_later() {
    let mut unread = Unread::start().await;
    assert_eq!(unread.dropped().await, 0);
    unread.reject_many().await;
    assert!(unread.get("livez").await.is_some());
    let dropped = unread.dropped().await;
    assert!((1..REJECTED as u64).contains(&dropped), "{dropped} lines dropped");

    let mut lines = BufReader::new(unread.daemon.standard_error()).lines();
    let told = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains("log lines were dropped") {
                return line;
            }
        }
        panic!("the log ended");
    };
    let told =
        tokio::time::timeout(std::time::Duration::from_secs(60), told).await.expect("it is told");
    assert!(told.contains(&format!("lines={dropped}")), "{told}, and not {dropped}");

    // The daemon still writes its last lines.
    let ended = tokio::spawn(async move { unread.daemon.terminate().await });
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        last = line;
    }
    assert!(last.contains("stopped"), "{last}");
    assert_eq!(ended.await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_daemon_whose_log_nobody_reads_stops_when_it_is_told_to() {
    let mut unread = Unread::start().await;
    unread.reject_many().await;
    assert_eq!(unread.daemon.terminate().await.code(), Some(0));
}

/// The command cannot report its failure, and still ends.
#[tokio::test]
async fn a_daemon_that_cannot_go_on_ends_though_nobody_reads_why() {
    let mut unread = Unread::start().await;
    unread.reject_many().await;
    // The second signal ends the daemon at once, with a line in the log.
    unread.daemon.signal("TERM");
    unread.daemon.signal("TERM");
    unread.daemon.ended().await;
}

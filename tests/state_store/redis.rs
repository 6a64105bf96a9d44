//! A Redis that is away, has lost its data, or refuses.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use groupcast::progress::{
    redis::RedisStore,
    store::{Store, StoreLost},
};
use tokio::{net::TcpListener, time::timeout};
use tracing_subscriber::fmt::MakeWriter;

use super::{LONG, batches, ended, opening};
use crate::support::{eventually, redis::Redis};

/// The longest that an operation may take, plus a second for a busy machine.
const BOUND: Duration = Duration::from_secs(9);

fn store(url: &str) -> RedisStore {
    RedisStore::new(url, Default::default(), LONG).expect("a URL")
}

async fn refusal(store: &RedisStore) -> String {
    let refused: StoreLost = timeout(BOUND, store.open(opening("job", 0)))
        .await
        .expect("an answer in time")
        .unwrap_err();
    timeout(BOUND, store.probe()).await.expect("an answer in time").unwrap_err();
    refused.to_string()
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn times(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(text).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn records_survive_a_crash_of_the_server_and_the_store_finds_it_again() {
    let server = Redis::start("").await;
    let (store, job) = (store(server.url()), opening("job", 0));
    store.note(job.clone(), 0, ended(1)).await.unwrap();

    server.kill().await;
    // The first operation only finds the connection broken.
    store.probe().await.unwrap_err();
    let told = refusal(&store).await;
    assert!(
        told.contains("127.0.0.1:")
            && told.contains("start Redis, or correct host and port in state.url"),
        "{told}"
    );

    server.restart().await;
    eventually("the store to work", async || store.probe().await.ok()).await;
    assert_eq!(batches(&store, &job).await, [(0, ended(1))]);
}

#[tokio::test]
async fn a_server_that_has_lost_its_data_is_told_of_once_and_used_on() {
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(
        tracing_subscriber::fmt().with_writer(log.clone()).finish(),
    );
    let server = Redis::start("").await;
    let (store, job) = (store(server.url()), opening("job", 0));
    store.probe().await.unwrap();
    store.note(job.clone(), 0, ended(1)).await.unwrap();
    assert_eq!(log.times("lost its data"), 0);

    server.restart_empty().await;
    eventually("the store to work", async || store.open(job.clone()).await.ok()).await;
    store.note(job.clone(), 1, ended(1)).await.unwrap();
    assert_eq!(batches(&store, &job).await, [(1, ended(1))]);
    assert_eq!(log.times("lost its data"), 1);
}

#[tokio::test]
async fn a_refused_login_is_told_of_without_the_password() {
    let server = Redis::start("requirepass correct-horse").await;
    let with =
        |login: &str| store(&server.url().replace("127.0.0.1", &format!("{login}127.0.0.1")));
    for login in ["", ":wrong-canary@", "somebody:wrong-canary@"] {
        let told = refusal(&with(login)).await;
        assert!(told.contains("check the user and the password in state.url"), "{told}");
        assert!(!told.contains("canary") && !told.contains("horse"), "{told}");
    }
    with(":correct-horse@").probe().await.unwrap();
}

#[tokio::test]
async fn a_refused_write_says_what_to_do() {
    for (configuration, advice) in [
        ("maxmemory 1", "raise its maxmemory"),
        ("replicaof 127.0.0.1 1", "set state.url to the primary"),
        (
            "user default on nopass ~* +@all -set -setnx -hsetnx",
            "use all commands on the keys groupcast:*",
        ),
    ] {
        let server = Redis::start(configuration).await;
        let told = refusal(&store(server.url())).await;
        assert!(told.contains(advice), "{told}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = store(&format!("redis://:canary@{}/0", silent.local_addr().unwrap()));
    let told = refusal(&store).await;
    assert!(told.contains("timed out; check the network") && !told.contains("canary"), "{told}");
}

#[tokio::test]
async fn what_is_no_url_is_refused_without_being_told() {
    let refused = RedisStore::new("redis://:canary@host:port/0", Default::default(), LONG)
        .err()
        .expect("a refusal")
        .to_string();
    assert!(!refused.contains("canary"), "{refused}");
}

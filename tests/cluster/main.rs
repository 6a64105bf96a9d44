//! Two replicas with one Redis and a cluster of three nodes. Each scenario has its own cluster. Run
//! with `tests/cluster.sh`.
//!
//! In each scenario, every result is in its reply queue. Only calls in flight and the calls of one
//! second are repeated. No second has more calls than the limit, except within one second.

mod nodes;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the promises use all of it")]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use futures_util::StreamExt;
use groupcast::{
    sandbox::Sandbox,
    settle::result::{JobResult, Status},
};
use jiff::Timestamp;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use self::{
    nodes::{Cluster, NODES},
    support::{
        daemon::Daemon,
        most_arrivals_in_1s,
        producer::{publish, text},
        redis::Redis,
        scene::{configuration, job, sandbox, settings, unique_app},
    },
};

const CALLS_PER_SECOND: usize = 50;
const MAX_IN_FLIGHT: usize = 10;
/// Large jobs, which last for the whole scenario, and small ones, which begin and end in it. All
/// calls fit into the sandbox's memory, even if each is made twice.
const LARGE: (usize, usize) = (8, 350);
const SMALL: (usize, usize) = (400, 5);
const CALLS: usize = LARGE.0 * LARGE.1 + SMALL.0 * SMALL.1;
const REPLIES: &str = "replies";

struct World {
    cluster: Cluster,
    _redis: Redis,
    app: String,
    sandbox: Sandbox,
    replicas: Vec<Daemon>,
}

/// The outcome of a scenario.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
struct Outcome {
    repeated: usize,
    most_in_1s: usize,
    /// The time from the first to the last second with more calls than the limit.
    over_the_limit_for: Duration,
    longest_silence: Duration,
    unrouted: u32,
}

/// Waits longer than `eventually`: elections are slow on a busy machine.
pub async fn patiently<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "waited five minutes in vain for {what}"
        );
        sleep(Duration::from_millis(500)).await;
    }
}

impl World {
    /// Starts a cluster and a replica for each list of nodes. The first replica works, and all jobs
    /// are in the queue.
    async fn open(brokers: &str, replicas: &[&[usize]]) -> World {
        let (cluster, redis) = tokio::join!(Cluster::start(brokers), Redis::start(""));
        let (app, sandbox) = (unique_app(), sandbox().await);
        sandbox.change_settings(settings(json!({ "latency_ms": 20, "calls_per_second": 0 })));
        let mut world = World { cluster, _redis: redis, app, sandbox, replicas: Vec::new() };
        for nodes in replicas {
            let daemon = Daemon::spawn(&world.configuration(nodes));
            patiently("a replica to consume", async || {
                (daemon.times_logged("consuming") > 0).then_some(())
            })
            .await;
            world.replicas.push(daemon);
        }
        world.publish_jobs().await;
        world
    }

    fn configuration(&self, nodes: &[usize]) -> String {
        let lines = format!(
            "batch_size = 1\ncalls_per_second = {CALLS_PER_SECOND}\nburst = 5\nmax_in_flight = \
                {MAX_IN_FLIGHT}\n[state]\nurl = \"{}\"",
            self._redis.url()
        );
        let urls = serde_json::to_string(&self.cluster.urls(nodes)).expect("JSON");
        configuration("URLS", &self.app, &self.sandbox.endpoint(), &lines)
            .replace("\"URLS\"", &urls)
    }

    async fn publish_jobs(&self) {
        let connection =
            Connection::connect(&self.cluster.url(NODES - 1), ConnectionProperties::default())
                .await
                .expect("a node");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        declare_replies(&channel).await;
        for (size, count) in [(LARGE.1, LARGE.0), (SMALL.1, SMALL.0)] {
            for number in 0..count {
                let id = format!("job-{size}-{number}");
                let body = serde_json::to_vec(&job(&id, size)).expect("JSON");
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_reply_to(REPLIES.into())
                    .with_message_id(id.as_str().into());
                let confirmed =
                    publish(&channel, &format!("groupcast.{}.jobs", self.app), &body, properties)
                        .await;
                assert!(matches!(confirmed, Ok(Confirmation::Ack(None))), "{confirmed:?}");
            }
        }
        connection.close(200, "OK".into()).await.expect("closed");
    }

    /// Waits until the API has received so many calls.
    async fn until_called(&self, calls: usize) {
        patiently(&format!("{calls} calls"), async || {
            (self.sandbox.stats().calls as usize >= calls).then_some(())
        })
        .await;
    }

    /// The ids of the results, without repetitions, from a node that is up. Reads until no more
    /// come.
    async fn answers(&self, node: usize) -> BTreeSet<String> {
        let connection =
            Connection::connect(&self.cluster.url(node), ConnectionProperties::default())
                .await
                .expect("a node");
        let channel = connection.create_channel().await.expect("a channel");
        declare_replies(&channel).await;
        let options = BasicConsumeOptions::default();
        let mut replies = channel
            .basic_consume(REPLIES.into(), "answers".into(), options, FieldTable::default())
            .await
            .expect("a consumer");
        let mut answered = BTreeSet::new();
        while answered.len() < LARGE.0 + SMALL.0 {
            let Ok(reply) = timeout(Duration::from_secs(180), replies.next()).await else { break };
            let reply = reply.expect("the subscription lives").expect("the channel lives");
            reply.ack(BasicAckOptions::default()).await.expect("acknowledged");
            let result: JobResult = serde_json::from_slice(&reply.data).expect("a result");
            assert_eq!(result.status, Status::Sent, "{result:?}");
            answered.insert(result.job_id);
        }
        connection.close(200, "OK".into()).await.expect("closed");
        answered
    }

    async fn unrouted(&self, node: usize) -> u32 {
        let connection =
            Connection::connect(&self.cluster.url(node), ConnectionProperties::default())
                .await
                .expect("a node");
        let channel = connection.create_channel().await.expect("a channel");
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let name = format!("groupcast.{}.unrouted", self.app);
        channel
            .queue_declare(name.as_str().into(), passive, FieldTable::default())
            .await
            .expect("it is there")
            .message_count()
    }

    /// Waits for all results, and checks the calls.
    async fn judge(self, scenario: &str, node: usize) {
        let answered = self.answers(node).await;
        let calls = self.sandbox.received(None);
        let mut times: BTreeMap<(String, Vec<String>), usize> = BTreeMap::new();
        for call in &calls {
            *times
                .entry((call.group.clone(), call.recipients.clone().unwrap_or_default()))
                .or_default() += 1;
        }
        let moments: Vec<Timestamp> = calls.iter().map(|call| call.at).collect();
        let outcome = Outcome {
            repeated: calls.len() - times.len(),
            most_in_1s: in_1s(&moments).max().unwrap_or_default(),
            over_the_limit_for: over_the_limit_for(&moments),
            longest_silence: moments
                .windows(2)
                .map(|pair| between(pair[0], pair[1]))
                .max()
                .unwrap_or_default(),
            unrouted: self.unrouted(node).await,
        };
        println!("{scenario}: {} of {} answers, {outcome:?}", answered.len(), LARGE.0 + SMALL.0);
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(scenario.replace(' ', "-"));
        std::fs::create_dir_all(&logs).expect("a folder");
        for (number, replica) in self.replicas.iter().enumerate() {
            std::fs::write(logs.join(format!("replica{number}.log")), replica.log())
                .expect("a log");
        }
        println!("the replicas' logs: {}", logs.display());
        assert_eq!(times.len(), CALLS, "everybody is reached");
        assert_eq!(answered.len(), LARGE.0 + SMALL.0, "every answer is in its reply queue");
        assert!(outcome.repeated <= MAX_IN_FLIGHT + CALLS_PER_SECOND, "{outcome:?}");
        assert!(outcome.over_the_limit_for <= Duration::from_secs(2), "{outcome:?}");
        assert!(outcome.most_in_1s <= 2 * most_arrivals_in_1s(CALLS_PER_SECOND), "{outcome:?}");
    }
}

async fn declare_replies(channel: &Channel) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(REPLIES.into(), durable, arguments).await.expect("a reply queue");
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    later.duration_since(earlier).try_into().unwrap_or_default()
}

/// For each call, the number of calls in the second that begins with it.
fn in_1s(moments: &[Timestamp]) -> impl Iterator<Item = usize> {
    let mut end = 0;
    moments.iter().enumerate().map(move |(first, begin)| {
        while end < moments.len() && between(*begin, moments[end]) < Duration::from_secs(1) {
            end += 1;
        }
        end - first
    })
}

fn over_the_limit_for(moments: &[Timestamp]) -> Duration {
    let over: Vec<Timestamp> = in_1s(moments)
        .zip(moments)
        .filter(|(calls, _)| *calls > most_arrivals_in_1s(CALLS_PER_SECOND))
        .map(|(_, begin)| *begin)
        .collect();
    match (over.first(), over.last()) {
        (Some(first), Some(last)) => between(*first, *last),
        _ => Duration::ZERO,
    }
}

const ANY: &[usize] = &[0, 1, 2];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_node_of_the_active_consumer() {
    let mut world = World::open("", &[ANY, ANY]).await;
    world.until_called(CALLS / 5).await;
    let node = world.cluster.node_of_consumer(&world.app).await;
    world.cluster.kill(node).await;
    world.until_called(CALLS / 2).await;
    world.cluster.start_again(node).await;
    world.judge("crash", (node + 1) % NODES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_of_the_node_of_the_active_consumer() {
    let world = World::open("", &[ANY, ANY]).await;
    world.until_called(CALLS / 5).await;
    let node = world.cluster.node_of_consumer(&world.app).await;
    world.cluster.freeze(node);
    sleep(Duration::from_secs(40)).await;
    world.cluster.thaw(node);
    world.judge("freeze", (node + 1) % NODES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_cuts_the_node_of_the_active_consumer_off_from_the_others() {
    cut_off("partition", "").await;
}

/// RabbitMQ advises this setting up to 4.2. Later versions ignore it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_in_which_the_minority_pauses() {
    cut_off("partition with pause_minority", "cluster_partition_handling = pause_minority").await;
}

async fn cut_off(scenario: &str, brokers: &str) {
    let mut world = World::open(brokers, &[&[0], &[1, 2]]).await;
    if world.cluster.is_version("4.3").await {
        // With this policy, the other nodes give the jobs to another consumer in seconds, not in a
        // minute.
        let policy = r#"{"consumer-disconnected-timeout": 5000}"#;
        world
            .cluster
            .ctl(1, &["set_policy", "--apply-to", "quorum_queues", "soon", "^groupcast", policy])
            .await;
    }
    world.until_called(CALLS / 5).await;
    assert_eq!(world.cluster.node_of_consumer(&world.app).await, 0);
    world.cluster.cut_off(0).await;
    sleep(Duration::from_secs(40)).await;
    world.cluster.rejoin(0).await;
    // Without Khepri, a node learns what it has missed only when it starts.
    world.cluster.kill(0).await;
    world.cluster.start_again(0).await;
    world.judge(scenario, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_is_lost_and_comes_back() {
    // Both replicas use the node that stays. There the broker goes silent, and no connection
    // breaks.
    let mut world = World::open("", &[&[0], &[0]]).await;
    world.until_called(CALLS / 5).await;
    world.cluster.kill(1).await;
    world.cluster.kill(2).await;
    // Longer than the daemon waits for a confirm.
    sleep(Duration::from_secs(45)).await;
    world.cluster.start_again(1).await;
    world.cluster.start_again(2).await;
    world.judge("lost majority", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart() {
    let mut world = World::open("", &[ANY, ANY]).await;
    world.until_called(CALLS / 10).await;
    for node in 0..NODES {
        world.cluster.stop(node).await;
        world.cluster.start_again(node).await;
    }
    world.judge("rolling restart", 0).await;
}

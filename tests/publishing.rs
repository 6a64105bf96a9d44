//! A reply queue, a missing right or a message may cause faults. Every other job is still answered
//! in time, and nothing is lost.

use std::time::Duration;

use groupcast::settle::result::{JobResult, Status};
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::{Producer, header, publish, text},
    scene::{Scene, configuration, job, sandbox, unique_app},
};

/// More jobs than the daemon holds at a time.
const MORE_THAN_ARE_HELD: usize = 230;

fn body(group: &str) -> Vec<u8> {
    serde_json::to_vec(&job(group, 1)).unwrap()
}

fn to(queue: &str) -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2).with_reply_to(queue.into())
}

fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// A queue with room for one message, which it already has.
async fn full_queue(scene: &Scene) -> String {
    let queue = format!("full-{}", uuid::Uuid::new_v4());
    let limit = [("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", text("reject-publish"))];
    declare(scene, &queue, arguments(&limit)).await;
    publish(&scene.producer.channel().await, &queue, b"it is full", to("")).await.unwrap();
    queue
}

async fn declare(scene: &Scene, queue: &str, arguments: FieldTable) {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    scene.producer.channel().await.queue_declare(queue.into(), durable, arguments).await.unwrap();
}

async fn readiness(daemon: &Daemon) -> (u16, Value) {
    let (status, body) = daemon.get("/readyz").await;
    (status, serde_json::from_str(&body).expect("JSON"))
}

/// How many times jobs were parked.
async fn parked(scene: &Scene) -> usize {
    let metrics = scene.daemon.get("/metrics").await.1;
    let name = format!("groupcast_jobs_parked_total{{app=\"{}\"}} ", scene.app);
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .expect("it is counted")
        .parse()
        .expect("a number")
}

async fn until_ready(daemon: &Daemon) {
    eventually("/readyz to be 200", async || (readiness(daemon).await.0 == 200).then_some(()))
        .await;
}

/// Takes `count` results from a queue, with their messages.
async fn take_results(
    scene: &Scene,
    queue: &str,
    count: usize,
) -> Vec<(JobResult, lapin::message::Delivery)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let message = scene.producer.take(queue).await;
        taken.push((serde_json::from_slice(&message.data).expect("a result"), message));
    }
    taken
}

#[tokio::test]
async fn jobs_for_a_full_reply_queue_hold_up_no_other_job_and_their_results_are_kept() {
    let mut scene = Scene::start().await;
    let full = full_queue(&scene).await;
    let start = Instant::now();
    for number in 0..MORE_THAN_ARE_HELD {
        let properties = to(&full).with_message_id(format!("job-{number}").as_str().into());
        scene.producer.publish(&scene.app, &body("g"), properties).await;
    }
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
    let answered_after = start.elapsed();
    assert!(answered_after < Duration::from_secs(20), "answered after {answered_after:?}");

    let unrouted = take_results(&scene, &scene.queue("unrouted"), MORE_THAN_ARE_HELD).await;
    let took = start.elapsed();
    for (result, message) in &unrouted {
        assert_eq!(
            (result.status, header(message, "groupcast-reply-to").as_deref()),
            (Status::Sent, Some(full.as_str()))
        );
    }
    let ids: std::collections::BTreeSet<&str> =
        unrouted.iter().map(|(result, _)| result.job_id.as_str()).collect();
    assert_eq!(ids.len(), MORE_THAN_ARE_HELD);
    let lines = scene.daemon.log().lines().count();
    println!(
        "{MORE_THAN_ARE_HELD} jobs for a full queue: good job after {answered_after:?}, all after \
            {took:?}, {lines} log lines"
    );
    assert!(lines < 200, "{lines} lines");
    let warned = scene.daemon.log();
    let warning =
        warned.lines().find(|line| line.contains("a queue takes no messages")).expect("a warning");
    assert!(
        warning.contains(&scene.app) && warning.contains(&full) && warning.contains("messages="),
        "{warning}"
    );
    let metrics = scene.daemon.get("/metrics").await.1;
    let counted = format!(
        "groupcast_results_unrouted_total{{app=\"{}\",reason=\"full\"}} {MORE_THAN_ARE_HELD}",
        scene.app
    );
    assert!(metrics.contains(&counted), "{metrics}");
    assert_eq!(
        readiness(&scene.daemon).await.0,
        200,
        "a producer's queue is no fault of the daemon"
    );

    // The queue recovers by itself when it is emptied.
    scene
        .producer
        .channel()
        .await
        .queue_purge(full.as_str().into(), QueuePurgeOptions::default())
        .await
        .unwrap();
    eventually("a result in the emptied queue", async || {
        scene.producer.publish(&scene.app, &body("g"), to(&full)).await;
        sleep(Duration::from_millis(500)).await;
        (scene.producer.depth(&full).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_when_a_full_reply_queue_is_deleted_meanwhile() {
    // The broker may not confirm messages for a queue that is being deleted. Such a job waits
    // before its result is published again.
    let scene = Scene::with("retry.park = [\"2s\"]").await;
    let full = full_queue(&scene).await;
    for number in 0..30 {
        let properties = to(&full).with_message_id(format!("job-{number}").as_str().into());
        scene.producer.publish(&scene.app, &body("g"), properties).await;
    }
    eventually("the calls", async || (scene.sandbox.stats().accepted == 30).then_some(())).await;
    // Waits until few messages are in flight: the broker confirms messages for a queue that it is
    // just deleting, and then they are gone.
    scene.daemon.until_logged("a queue takes no messages at present").await;
    scene
        .producer
        .channel()
        .await
        .queue_delete(full.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let kept = take_results(&scene, &scene.queue("unrouted"), 30).await;
    assert!(kept.iter().all(
        |(_, message)| header(message, "groupcast-reply-to").as_deref() == Some(full.as_str())
    ));
    eventually("all to be acknowledged", async || {
        (scene.producer.depth(&scene.queue("jobs")).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reply_queue_whose_limit_was_raised_takes_results_again() {
    let broker = Broker::start("").await;
    let scene = Scene::on(&broker, "").await;
    let quorum = [("x-queue-type", text("quorum")), ("x-overflow", text("reject-publish"))];
    declare(&scene, "limited", arguments(&quorum)).await;
    let limit = async |messages: usize| {
        let definition = format!("{{\"max-length\":{messages}}}");
        broker
            .ctl(&["set_policy", "limit", "^limited$", &definition, "--apply-to", "queues"])
            .await;
    };
    limit(1).await;
    let mut sent = 0;
    eventually("a result to be refused", async || {
        scene.producer.publish(&scene.app, &body("g"), to("limited")).await;
        sent += 1;
        sleep(Duration::from_millis(300)).await;
        (scene.producer.depth(&scene.queue("unrouted")).await > 0).then_some(())
    })
    .await;
    limit(1000).await;
    let before = scene.producer.depth("limited").await;
    eventually("a result in the queue with room", async || {
        scene.producer.publish(&scene.app, &body("g"), to("limited")).await;
        sent += 1;
        sleep(Duration::from_millis(500)).await;
        (scene.producer.depth("limited").await > before + 3).then_some(())
    })
    .await;
    eventually("every result in one of the two", async || {
        let kept = scene.producer.depth("limited").await
            + scene.producer.depth(&scene.queue("unrouted")).await;
        (kept == sent).then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_the_dead_letter_queue_is_full_jobs_are_safe_and_readyz_says_so() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, "retry.park = [\"2s\", \"3s\"]").await;
    let pattern = format!("^groupcast\\.{}\\.dead$", scene.app);
    let limit = "{\"max-length\":1,\"overflow\":\"reject-publish\"}";
    broker.ctl(&["set_policy", "limit", &pattern, limit, "--apply-to", "queues"]).await;
    // Jobs with an id, jobs without one, and messages that are not valid jobs.
    for number in 0..20 {
        let properties = scene.producer.properties();
        let properties = if number % 2 == 0 {
            properties
        } else {
            properties.with_message_id(format!("job-{number}").as_str().into())
        };
        let content = if number % 5 == 0 { b"no job".to_vec() } else { body("unknown") };
        scene.producer.publish(&scene.app, &content, properties).await;
    }
    let told = eventually("/readyz to name the queue", async || {
        let (status, told) = readiness(&scene.daemon).await;
        (status == 503 && told["queues"]["state"] == "down").then_some(told)
    })
    .await;
    let reason = told["queues"]["reason"].as_str().unwrap();
    assert!(reason.contains(&scene.queue("dead")) && reason.contains("full"), "{reason}");
    eventually("jobs to be parked", async || (parked(&scene).await > 0).then_some(())).await;

    broker.ctl(&["clear_policy", "limit"]).await;
    let mut answered = Vec::new();
    while answered.len() < 20 {
        let result = scene.producer.result().await;
        assert!(!result.duplicate, "{result:?}");
        answered.push(result.status);
    }
    assert!(
        answered.iter().all(|status| [Status::Failed, Status::Rejected].contains(status)),
        "{answered:?}"
    );
    until_ready(&scene.daemon).await;
    assert_eq!(scene.sandbox.stats().calls, 16, "no job was called for again");
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 20);
    assert!(scene.producer.hears_nothing().await);
}

#[tokio::test]
async fn without_the_right_to_publish_no_call_starts_and_no_result_goes_astray() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, "").await;
    scene.daemon.terminate().await;
    broker.ctl(&["add_user", "worker", "password"]).await;
    let grant =
        async |write: &str| broker.ctl(&["set_permissions", "worker", "^$", write, ".*"]).await;
    grant("^groupcast\\..*$").await;
    let url = broker.url().replace("guest:guest", "worker:password");
    let configuration = scene
        .configuration
        .replace(broker.url(), &url)
        .replace("[admin]", "declare = false\n[admin]");
    scene.daemon = Daemon::spawn(&configuration);
    scene.daemon.until_logged("listening").await;
    scene.producer.publish(&scene.app, &body("g"), scene.producer.properties()).await;
    let told = eventually("/readyz to name the right", async || {
        let (status, told) = readiness(&scene.daemon).await;
        let reason = told["publisher"]["reason"].as_str().unwrap_or_default().to_owned();
        (status == 503 && reason.contains("amq.default")).then_some(reason)
    })
    .await;
    assert!(told.contains("set_permissions"), "{told}");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(scene.sandbox.stats().calls, 0);

    grant("^(groupcast\\..*|amq\\.default)$").await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    until_ready(&scene.daemon).await;
    assert_eq!(scene.producer.depth(&scene.queue("unrouted")).await, 0);

    // The right is revoked while the daemon works. Its messages wait.
    grant("^groupcast\\..*$").await;
    broker
        .ctl(&[
            "eval",
            "[exit(element(2, lists:keyfind(pid, 1, C)), kill) || C <- \
                rabbit_channel:info_all([pid])], ok.",
        ])
        .await;
    scene.daemon.until_logged("lost the subscription").await;
    scene.producer = Producer::connect(broker.url()).await;
    scene.producer.publish(&scene.app, &body("g"), scene.producer.properties()).await;
    eventually("/readyz to name the right again", async || {
        let (_, told) = readiness(&scene.daemon).await;
        told["publisher"]["reason"]
            .as_str()
            .unwrap_or_default()
            .contains("amq.default")
            .then_some(())
    })
    .await;
    grant("^(groupcast\\..*|amq\\.default)$").await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    assert_eq!(scene.producer.depth(&scene.queue("unrouted")).await, 0);
}

/// Two apps in one daemon: the first one gets bad jobs, and the other one must not suffer.
struct TwoApps {
    scene: Scene,
    other: String,
}

impl TwoApps {
    async fn start() -> TwoApps {
        let (app, other, sandbox) = (unique_app(), unique_app(), sandbox().await);
        let broker = Broker::shared().await;
        let first = configuration(broker.url(), &app, &sandbox.endpoint(), "");
        let second = configuration(broker.url(), &other, &sandbox.endpoint(), "");
        let second = second.split_once("[apps.").expect("an app").1;
        let configuration = format!("{first}[apps.{second}");
        let daemon = Daemon::spawn(&configuration);
        daemon.until_consuming(2).await;
        let producer = Producer::connect(broker.url()).await;
        TwoApps { scene: Scene::of(app, configuration, sandbox, daemon, producer).await, other }
    }

    /// The first app gets a `bad` job now and then. The other one gets ordinary jobs all the time.
    async fn run(&mut self, bad: impl Fn(usize) -> BasicProperties) {
        let Self { scene, other } = self;
        let ordinary = 100;
        for number in 0..ordinary {
            if number % 10 == 0 {
                scene.producer.publish(&scene.app, &body("g"), bad(number / 10)).await;
            }
            let properties = scene
                .producer
                .properties()
                .with_message_id(format!("job-{number}").as_str().into());
            scene.producer.publish(other, &body("g"), properties).await;
            sleep(Duration::from_millis(100)).await;
        }
        let mut answered = std::collections::BTreeSet::new();
        while answered.len() < ordinary {
            answered.insert(scene.producer.result().await.job_id);
        }
        assert_eq!(
            scene.producer.depth(&format!("groupcast.{other}.unrouted")).await,
            0,
            "each went to its reply queue"
        );
    }
}

#[tokio::test]
async fn headers_that_no_result_could_carry_reject_the_job_and_concern_no_other_app() {
    let mut apps = TwoApps::start().await;
    let replies = format!("bad-{}", uuid::Uuid::new_v4());
    declare(&apps.scene, &replies, FieldTable::default()).await;
    apps.run(|_| {
        to(&replies).with_headers(arguments(&[("tracestate", text(&"x".repeat(130_980)))]))
    })
    .await;
    for (result, message) in take_results(&apps.scene, &replies, 10).await {
        assert_eq!(result.status, Status::Rejected);
        let info = &result.errors[0].info;
        assert!(
            info.starts_with("tracestate: ") && info.contains("130996") && info.contains("114688"),
            "{info}"
        );
        assert_eq!(header(&message, "tracestate"), None);
    }
    let letter = apps.scene.dead_letter().await;
    assert_eq!(
        (letter.data.as_slice(), header(&letter, "groupcast-status").as_deref()),
        (&*body("g"), Some("rejected"))
    );
    assert_eq!(apps.scene.daemon.times_logged("the publishing connection is gone"), 0);
}

#[tokio::test]
async fn with_smaller_frames_less_goes_along_and_everything_fits() {
    let broker = Broker::start("frame_max = 8192").await;
    let mut scene = Scene::on(&broker, "").await;
    let with_state = |bytes: usize| {
        let headers = arguments(&[("tracestate", text(&"x".repeat(bytes)))]);
        scene.producer.properties().with_headers(headers)
    };
    let (fitting, too_large) = (with_state(3900), with_state(5000));
    scene.producer.publish(&scene.app, &body("g"), fitting.clone()).await;
    let reply = scene.producer.reply().await;
    assert_eq!(header(&reply, "tracestate").map(|state| state.len()), Some(3900));

    scene.producer.publish(&scene.app, &body("g"), too_large).await;
    let result = scene.producer.result().await;
    assert!(
        result.errors[0].info.starts_with("tracestate: ") && result.errors[0].info.contains("4096"),
        "{result:?}"
    );
    assert_eq!(header(&scene.dead_letter().await, "groupcast-status").as_deref(), Some("rejected"));

    // The description of this mistake takes 4,000 bytes.
    let wrong = format!("{{\"{}\": 1}}", "é".repeat(3000)).into_bytes();
    scene.producer.publish(&scene.app, &wrong, fitting).await;
    assert_eq!(scene.producer.result().await.status, Status::Rejected);
    let letter = scene.dead_letter().await;
    assert_eq!(letter.data, wrong);
    assert_eq!(scene.daemon.times_logged("the publishing connection is gone"), 0);
}

#[tokio::test]
async fn a_message_that_the_broker_closes_connections_over_is_the_only_one_to_blame() {
    let mut apps = TwoApps::start().await;
    // The broker creates such addresses, but it cannot read this one.
    let junk = |number: usize| {
        to("amq.rabbitmq.reply-to.AAAA.eA==")
            .with_message_id(format!("junk-{number}").as_str().into())
    };
    apps.run(junk).await;
    let unrouted = take_results(&apps.scene, &apps.scene.queue("unrouted"), 10).await;
    for (_, message) in &unrouted {
        assert_eq!(
            header(message, "groupcast-reply-to").as_deref(),
            Some("amq.rabbitmq.reply-to.AAAA.eA==")
        );
    }
    let lost = apps.scene.daemon.times_logged("the publishing connection is gone");
    println!(
        "10 messages that the broker closes connections over: the publishing connection was lost \
            {lost} times"
    );
    assert!((1..=20).contains(&lost), "{lost}");
}

#[tokio::test]
async fn a_reply_queue_that_confirms_nothing_is_not_one_that_does_not_exist() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, "retry.park = [\"1s\", \"2s\"]").await;
    declare(&scene, "silent", FieldTable::default()).await;
    // Suspends the queue's process, so that it neither takes nor confirms messages, like a quorum
    // queue without a majority.
    let queue =
        "{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"silent\">>)), ";
    broker.ctl(&["eval", &format!("{queue} sys:suspend(amqqueue:get_pid(Q)).")]).await;
    for number in 0..40 {
        let properties = to("silent");
        let properties = if number % 2 == 0 {
            properties
        } else {
            properties.with_message_id(format!("job-{number}").as_str().into())
        };
        let group = if number % 4 < 2 { "g" } else { "unknown" };
        scene.producer.publish(&scene.app, &body(group), properties).await;
    }
    let start = Instant::now();
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // Some jobs have been parked twice by then.
    eventually("jobs to be parked", async || (parked(&scene).await > 60).then_some(())).await;
    assert_eq!(scene.producer.depth(&scene.queue("unrouted")).await, 0);

    broker.ctl(&["eval", &format!("{queue} sys:resume(amqqueue:get_pid(Q)).")]).await;
    let channel = scene.producer.channel().await;
    let mut answered = std::collections::BTreeSet::new();
    eventually("every answer in its queue", async || {
        while let Some(message) =
            channel.basic_get("silent".into(), BasicGetOptions { no_ack: true }).await.unwrap()
        {
            let result: JobResult = serde_json::from_slice(&message.delivery.data).unwrap();
            assert!(!result.duplicate, "{result:?}");
            answered.insert(result.job_id);
        }
        (answered.len() == 40).then_some(())
    })
    .await;
    assert_eq!(scene.producer.depth(&scene.queue("unrouted")).await, 0);
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 20, "one for each failed job");
    assert_eq!(scene.sandbox.stats().calls, 41, "no job was called for again");
}

#[tokio::test]
async fn a_full_results_queue_holds_up_no_other_job_and_loses_no_result() {
    let broker = Broker::start("").await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let lines =
        format!("results_queue = \"groupcast.{app}.results\"\nretry.park = [\"2s\", \"3s\"]");
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines);
    let daemon = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;
    let results = scene.queue("results");
    let limit = "{\"max-length\":1,\"overflow\":\"reject-publish\"}";
    let pattern = format!("^groupcast\\.{}\\.results$", scene.app);
    broker.ctl(&["set_policy", "limit", &pattern, limit, "--apply-to", "queues"]).await;
    let without_reply_to = || BasicProperties::default().with_delivery_mode(2);
    for number in 0..MORE_THAN_ARE_HELD {
        let properties =
            without_reply_to().with_message_id(format!("job-{number}").as_str().into());
        scene.producer.publish(&scene.app, &body("g"), properties).await;
    }
    let start = Instant::now();
    assert_eq!(scene.send(&job("good", 1)).await.status, Status::Sent);
    let answered_after = start.elapsed();
    assert!(answered_after < Duration::from_secs(20), "answered after {answered_after:?}");

    // What the queue does not take is kept as unrouted.
    let unrouted = scene.queue("unrouted");
    let kept = eventually("every result to be in a queue", async || {
        let kept = [scene.producer.depth(&results).await, scene.producer.depth(&unrouted).await];
        (kept.iter().sum::<u32>() as usize >= MORE_THAN_ARE_HELD).then_some(kept)
    })
    .await;
    let mut all = take_results(&scene, &results, kept[0] as usize).await;
    all.extend(take_results(&scene, &unrouted, kept[1] as usize).await);
    let ids: std::collections::BTreeSet<&str> =
        all.iter().map(|(result, _)| result.job_id.as_str()).collect();
    assert_eq!(ids.len(), MORE_THAN_ARE_HELD);
    assert_eq!(scene.notified("g").len(), MORE_THAN_ARE_HELD, "no job is sent again");
}

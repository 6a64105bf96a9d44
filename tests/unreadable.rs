//! The daemon rejects a message that the AMQP library cannot read, and names the property. The jobs
//! around it are answered at once, and operators can look through the dead letters.

use std::time::Duration;

use groupcast::settle::result::{JobResult, Status};
use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions},
    types::FieldTable,
};
use tokio::time::Instant;

use crate::{
    dead_letters::printed,
    support::{
        producer::header,
        raw_producer::{FRAME_MAX, RawProducer, RawProperties, long, short},
        scene::{Scene, job},
    },
};

struct Bad {
    name: &'static str,
    properties: RawProperties,
    /// The result's description of the mistake.
    info: &'static str,
}

/// Nested arrays or tables, the innermost one empty.
fn nested(kind: u8, depth: usize) -> Vec<u8> {
    (1..depth).fold([&[kind][..], &[0; 4]].concat(), |inner, _| {
        let inner = if kind == b'F' { [short(b"a"), inner].concat() } else { inner };
        [vec![kind], long(&inner)].concat()
    })
}

fn headers(name: &[u8], value: Vec<u8>) -> Vec<u8> {
    long(&[short(name), value].concat())
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [vec![b'S'], long(bytes)].concat()
}

fn bad_messages(reply_queue: &str) -> Vec<Bad> {
    let reply_to = || short(reply_queue.as_bytes());
    let uuid = || {
        short(&[
            0x8f, 0x14, 0xe4, 0x5f, 0xce, 0xea, 0x16, 0x7a, 0x5a, 0x36, 0xde, 0xdd, 0x4b, 0xea,
            0x25, 0x43,
        ])
    };
    let with = |bit: u16, bytes: Vec<u8>| {
        let before = if bit < 6 {
            RawProperties::default().with(bit, bytes.clone())
        } else {
            RawProperties::default()
        };
        let properties = before.with(6, reply_to());
        if bit > 6 { properties.with(bit, bytes) } else { properties }
    };
    let bad = |name, properties, info| Bad { name, properties, info };
    vec![
        bad(
            "a correlation id of raw bytes",
            with(5, uuid()),
            "correlation_id: is not UTF-8 (bytes 8f14e45f",
        ),
        bad("a message id of raw bytes", with(8, uuid()), "message_id: is not UTF-8"),
        bad(
            "a type in Latin-1",
            with(10, short(b"caf\xe9")),
            "type: is not UTF-8 (bytes 636166e9)",
        ),
        bad("an app id in GBK", with(12, short(b"\xc4\xe3")), "app_id: is not UTF-8"),
        bad("a content type in Latin-1", with(0, short(b"\xe9")), "content_type: is not UTF-8"),
        bad(
            "a content encoding in Latin-1",
            with(1, short(b"\xe9")),
            "content_encoding: is not UTF-8",
        ),
        bad(
            "a header's name in Latin-1",
            with(2, headers(b"caf\xe9", text(b"x"))),
            "header `caf\u{fffd}`: its name is not UTF-8",
        ),
        bad(
            "a nested name in Latin-1",
            with(2, headers(b"mine", [vec![b'F'], headers(b"\xe9", text(b"x"))].concat())),
            "header `mine`: a name in it is not UTF-8",
        ),
        bad(
            "arrays in arrays",
            with(2, headers(b"deep", nested(b'A', 8_000))),
            "header `deep`: is nested more than 16 levels",
        ),
        bad(
            "tables in tables",
            with(2, headers(b"deep", nested(b'F', 8_000))),
            "header `deep`: is nested more than 16 levels",
        ),
        bad(
            "a deadline in a deep table",
            with(2, headers(b"groupcast-deadline", nested(b'F', 17))),
            "header `groupcast-deadline`:",
        ),
    ]
}

async fn publish_bad(scene: &Scene, raw: &mut RawProducer, bad: &Bad) {
    raw.publish("", scene.queue("jobs").as_bytes(), &bad.properties, &body_of(bad)).await;
}

fn body_of(bad: &Bad) -> Vec<u8> {
    serde_json::to_vec(&job(bad.name, 1)).unwrap()
}

fn is_of(result: &JobResult, bad: &Bad) -> bool {
    result.group_id.as_deref() == Some(bad.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_good_jobs_around_a_message_of_each_unreadable_kind_are_answered_at_once() {
    let mut scene = Scene::start().await;
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    let bad_messages = bad_messages(&scene.producer.reply_queue);
    for bad in &bad_messages {
        let start = Instant::now();
        for number in 0..20 {
            scene.publish_with_id(&job("good", 1), &format!("{}-{number}", bad.name)).await;
            if number == 9 {
                publish_bad(&scene, &mut raw, bad).await;
            }
        }
        let mut results = Vec::new();
        while results.len() < 21 {
            results.push(scene.producer.result().await);
        }
        assert!(start.elapsed() < Duration::from_secs(15), "{}: {:?}", bad.name, start.elapsed());
        let (rejected, good): (Vec<_>, Vec<_>) =
            results.iter().partition(|result| is_of(result, bad));
        assert!(good.iter().all(|result| result.status == Status::Sent), "{}: {good:?}", bad.name);
        let [rejected] = rejected[..] else { panic!("{}: {rejected:?}", bad.name) };
        assert_eq!((rejected.status, rejected.calls), (Status::Rejected, 0), "{}", bad.name);
        assert!(
            rejected.errors[0].info.starts_with(bad.info),
            "{}: {}",
            bad.name,
            rejected.errors[0].info
        );
    }
    assert_eq!(scene.daemon.times_logged("lost the subscription"), 0);
    // Operators can look through the letters. A redrive does not lose the note of what is missing.
    let (letters, _) = printed(&scene, &["list", "--json"]).await;
    assert_eq!(letters.lines().count(), bad_messages.len());
    let (_, told) = printed(&scene, &["redrive", "--kind", "invalid"]).await;
    assert!(
        told.contains(&format!("{0} of {0} dead letters sent again", bad_messages.len())),
        "{told}"
    );
    for _ in &bad_messages {
        assert_eq!(scene.producer.result().await.status, Status::Rejected);
    }
    // The daemon rejects jobs concurrently, so their letters come in any order.
    let mut letters = Vec::new();
    for _ in &bad_messages {
        letters.push(scene.dead_letter().await);
    }
    for bad in &bad_messages {
        let letter = letters.iter().find(|letter| letter.data == body_of(bad)).expect(bad.name);
        assert!(
            header(letter, "groupcast-error-info").is_some_and(|info| info.starts_with(bad.info))
        );
    }
    assert!(scene.notified(bad_messages[0].name).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn five_unreadable_messages_among_two_hundred_jobs_delay_none() {
    let mut scene = Scene::start().await;
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    let bad_messages = bad_messages(&scene.producer.reply_queue);
    let start = Instant::now();
    for number in 0..200 {
        scene.publish(&job("good", 1)).await;
        if number % 40 == 20 {
            publish_bad(&scene, &mut raw, &bad_messages[number / 40 * 2]).await;
        }
    }
    let mut sent = 0;
    for _ in 0..205 {
        sent += usize::from(scene.producer.result().await.status == Status::Sent);
    }
    println!("205 results after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(15));
    assert_eq!(sent, 200);
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_of_a_job_whose_reply_queue_cannot_be_read_is_unrouted() {
    let mut scene = Scene::start().await;
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    let body = serde_json::to_vec(&job("g", 1)).unwrap();
    let properties = RawProperties::default().with(6, short(b"replies-\xff"));
    raw.publish("", scene.queue("jobs").as_bytes(), &properties, &body).await;
    let letter = scene.dead_letter().await;
    assert_eq!(letter.data, body);
    assert!(header(&letter, "groupcast-error-info").unwrap().starts_with("reply_to: is not UTF-8"));
    let result = scene.producer.take(&scene.queue("unrouted")).await;
    assert_eq!(serde_json::from_slice::<JobResult>(&result.data).unwrap().status, Status::Rejected);
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_key_of_any_bytes_is_no_hindrance() {
    let mut scene = Scene::start().await;
    let channel = scene.producer.channel().await;
    let exchange = format!("{}-exchange", scene.app);
    let declare = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    channel
        .exchange_declare(
            exchange.as_str().into(),
            ExchangeKind::Fanout,
            declare,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let (jobs, bind) = (scene.queue("jobs"), QueueBindOptions::default());
    channel
        .queue_bind(
            jobs.as_str().into(),
            exchange.as_str().into(),
            "".into(),
            bind,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    let properties = RawProperties::default().with(6, short(scene.producer.reply_queue.as_bytes()));
    raw.publish(
        &exchange,
        b"jobs.caf\xe9",
        &properties,
        &serde_json::to_vec(&job("g", 1)).unwrap(),
    )
    .await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
}

/// The broker's additions can make a message's header frame larger than the connection allows.
#[tokio::test(flavor = "multi_thread")]
async fn headers_as_large_as_a_frame_are_rejected_also_when_the_broker_adds_to_them() {
    let mut scene = Scene::start().await;
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    for below in [60, 100] {
        let value = vec![b'x'; FRAME_MAX - below - scene.producer.reply_queue.len()];
        let properties = RawProperties::default()
            .with(2, headers(b"mine", text(&value)))
            .with(6, short(scene.producer.reply_queue.as_bytes()));
        // Publishes through a queue that dead-letters to the jobs queue, so that the broker adds
        // `x-death`.
        let waiting = format!("groupcast-test.{}.{below}", scene.app);
        let arguments = FieldTable::from(std::collections::BTreeMap::from([
            ("x-dead-letter-exchange".into(), crate::support::producer::text("")),
            (
                "x-dead-letter-routing-key".into(),
                crate::support::producer::text(&scene.queue("jobs")),
            ),
            ("x-message-ttl".into(), lapin::types::AMQPValue::LongInt(1)),
            ("x-expires".into(), lapin::types::AMQPValue::LongInt(60_000)),
        ]));
        let channel = scene.producer.channel().await;
        channel
            .queue_declare(waiting.as_str().into(), Default::default(), arguments)
            .await
            .unwrap();
        raw.publish(
            "",
            waiting.as_bytes(),
            &properties,
            &serde_json::to_vec(&job("large", 1)).unwrap(),
        )
        .await;
        let result = scene.producer.result().await;
        assert_eq!((result.status, result.calls), (Status::Rejected, 0));
        let info = &result.errors[0].info;
        assert!(info.starts_with("headers: ") || info.starts_with("mine: has "), "{info}");
        assert_eq!(scene.send(&job("good", 1)).await.status, Status::Sent);
    }
    assert_eq!(printed(&scene, &["list", "--json"]).await.0.lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_cannot_be_read_is_listed_shown_and_stays_what_it_is() {
    let scene = Scene::start().await;
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    let deep = headers(b"deep", nested(b'A', 8_000));
    for properties in [
        RawProperties::default().with(2, deep).with(8, short(b"deep")),
        RawProperties::default().with(8, short(b"\xff")),
    ] {
        raw.publish("", scene.queue("dead").as_bytes(), &properties, b"{}").await;
    }
    for _ in 0..4 {
        let (letters, _) = printed(&scene, &["list", "--json"]).await;
        assert_eq!(letters.lines().count(), 2);
        let (shown, _) = printed(&scene, &["show", "deep"]).await;
        assert!(shown.contains("is nested more than 16 levels deep"), "{shown}");
    }
    printed(&scene, &["purge", "--yes"]).await;
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
}

/// Each part of such a message is small. The rejection must be small too.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_unreadable_headers_are_one_rejection() {
    let mut scene = Scene::start().await;
    let mut raw = RawProducer::connect(crate::support::broker::Broker::shared().await.url()).await;
    let many: Vec<u8> = (0..20_000u32)
        .flat_map(|number| [vec![4, 0xe9], number.to_be_bytes()[1..].to_vec(), vec![b'V']].concat())
        .collect();
    let properties = RawProperties::default()
        .with(2, long(&many))
        .with(6, short(scene.producer.reply_queue.as_bytes()));
    raw.publish("", scene.queue("jobs").as_bytes(), &properties, &body_of_job()).await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Rejected, 0));
    assert_eq!(scene.send(&job("good", 1)).await.status, Status::Sent);
    assert_eq!(scene.daemon.times_logged("lost the subscription"), 0);
}

fn body_of_job() -> Vec<u8> {
    serde_json::to_vec(&job("g", 1)).unwrap()
}

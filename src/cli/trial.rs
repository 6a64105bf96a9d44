//! Tries what the daemon needs from the broker, for `groupcast check`: declare, read, publish.
//! Takes no job out of its queue, and causes no delivery to be counted.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Connection, Event, Queue,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::sleep;

use crate::{
    broker::{
        BrokerError, BrokerErrorKind, bounded, queues, session,
        topology::{self, QueueSpec},
    },
    config::App,
    diagnosis::Diagnosis,
    subscribe::jobs_queue,
};

/// How long the broker may take to return a message that no queue takes.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(5);

/// The findings about an app's queues.
#[derive(Debug, Default)]
pub struct QueueFindings {
    /// Faults with which the daemon cannot work.
    pub failures: Vec<Diagnosis>,
    /// Differences from the daemon's own declaration, with which it can still work.
    pub doubts: Vec<Diagnosis>,
    /// Checks that were not possible without taking messages.
    pub untried: Vec<String>,
}

/// Declares or checks the app's queues as the daemon does at its start. Then tries to read the two
/// that the daemon consumes.
pub async fn queues(
    connection: &Connection,
    name: &str,
    app: &App,
    declare: bool,
) -> QueueFindings {
    let mut tried = QueueFindings::default();
    let mut refusals: Vec<(BrokerErrorKind, Vec<String>)> = Vec::new();
    let (mut jobs, mut undeliverable) = (KnownQueue::Unusable, KnownQueue::Unusable);
    for spec in topology::queues_of(name, app) {
        let known = match spec.ensure(connection, declare).await {
            Ok(seen) if declare => KnownQueue::AsDeclared(seen),
            Ok(seen) => compare(connection, &spec, seen, &mut tried).await,
            Err(error) => {
                // The same refusal usually applies to several queues.
                match refusals
                    .iter_mut()
                    .find(|(kind, _)| *kind == error.kind && *kind != BrokerErrorKind::Lost)
                {
                    Some((_, more)) => more.push(spec.name.clone()),
                    None => {
                        refusals.push((error.kind, Vec::new()));
                        tried.failures.push(error.diagnosis);
                    }
                }
                KnownQueue::Unusable
            }
        };
        if spec.name == queues::jobs(name) {
            jobs = known;
        } else if spec.name == queues::undeliverable(name) {
            undeliverable = known;
        }
    }
    for (failure, (_, more)) in
        tried.failures.iter_mut().zip(refusals).filter(|(_, (_, more))| !more.is_empty())
    {
        failure.what.push_str(&format!("; the same goes for {}", more.join(", ")));
    }
    read_jobs(connection, &queues::jobs(name), &jobs, &mut tried).await;
    consume_undeliverable(connection, &queues::undeliverable(name), &undeliverable, &mut tried)
        .await;
    tried
}

/// What is known about a queue before it is read.
enum KnownQueue {
    /// The queue does not exist, or the check cannot look at it.
    Unusable,
    /// The queue has the type and the arguments that the daemon declares.
    AsDeclared(Option<Queue>),
    /// The queue exists, and may have another type or other arguments.
    Other(Option<Queue>),
}

impl KnownQueue {
    fn is_empty(&self) -> bool {
        match self {
            Self::AsDeclared(queue) | Self::Other(queue) => {
                queue.as_ref().is_some_and(|queue| queue.message_count() == 0)
            }
            Self::Unusable => false,
        }
    }
}

/// With `declare = false`, compares an existing queue with the daemon's declaration, if the rights
/// allow that. Declaring a queue that exists changes nothing.
async fn compare(
    connection: &Connection,
    spec: &QueueSpec,
    seen: Option<Queue>,
    tried: &mut QueueFindings,
) -> KnownQueue {
    if seen.is_none() {
        return KnownQueue::Other(None);
    }
    match spec.ensure(connection, true).await {
        Ok(seen) => KnownQueue::AsDeclared(seen),
        Err(error) => {
            if error.kind == BrokerErrorKind::PreconditionFailed {
                tried.doubts.push(Diagnosis::new(
                    format!(
                        "the queue {} exists with another type or other arguments than the daemon \
                            would declare",
                        spec.name
                    ),
                    "compare it with what `groupcast topology` prints: another type or other \
                        arguments can lose messages",
                ));
            }
            KnownQueue::Other(seen)
        }
    }
}

/// Tests the right to read the jobs queue. An only consumer would receive jobs, and each job that
/// goes back counts as a delivery. So the check asks for one message instead. The broker first
/// checks the right, and then refuses this for a queue with a single active consumer. The check
/// asks other queues only while they are empty.
async fn read_jobs(
    connection: &Connection,
    queue: &str,
    known: &KnownQueue,
    tried: &mut QueueFindings,
) {
    match known {
        KnownQueue::Unusable => return,
        KnownQueue::Other(_) if !known.is_empty() => {
            tried.untried.push(format!(
                "{queue} was not read, for a job in it would be counted as delivered"
            ));
            return;
        }
        KnownQueue::AsDeclared(_) | KnownQueue::Other(_) => {}
    }
    match jobs_queue::serves_one_consumer(connection, queue).await {
        Ok(Ok(())) => {}
        Ok(Err(diagnosis)) => tried.failures.push(diagnosis),
        Err(error) => tried.failures.push(may_not_read(queue, error)),
    }
}

/// Consumes from the queue of jobs that the broker has given up, as the daemon does. This queue is
/// almost always empty. If it is not, the check does not read it.
async fn consume_undeliverable(
    connection: &Connection,
    queue: &str,
    known: &KnownQueue,
    tried: &mut QueueFindings,
) {
    if matches!(known, KnownQueue::Unusable) {
        return;
    }
    if !known.is_empty() {
        return tried.untried.push(format!(
            "{queue} was not read, for a message in it would be counted as delivered"
        ));
    }
    if let Err(error) = consume_and_cancel(connection, queue).await {
        tried.failures.push(may_not_read(queue, error));
    }
}

async fn consume_and_cancel(connection: &Connection, queue: &str) -> Result<(), BrokerError> {
    let channel = bounded("open a channel", connection.create_channel()).await?;
    bounded("set the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
    let tag = format!("groupcast-check-{}", uuid::Uuid::new_v4());
    let consuming = channel.basic_consume(
        queue.into(),
        tag.into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = bounded("consume", consuming).await?;
    bounded(
        "cancel the subscription",
        channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()),
    )
    .await?;
    // Gives back messages that came before the cancellation.
    bounded("close a channel", channel.close(200, "OK".into())).await
}

fn may_not_read(queue: &str, error: BrokerError) -> Diagnosis {
    match error.kind {
        BrokerErrorKind::AccessRefused => Diagnosis::new(
            format!("the broker's user may not read the queue {queue}"),
            format!("give the user its rights: {}", queues::GIVE_RIGHTS),
        )
        .with_words(error.diagnosis.what),
        _ => Diagnosis::new(
            format!("the queue {queue} cannot be consumed"),
            "look at the queue on the broker (`rabbitmq-diagnostics quorum_status QUEUE`): a queue \
                without a majority of its members answers nobody",
        )
        .with_words(error),
    }
}

/// Publishes a message that no queue takes, as the daemon does before it starts a call. The
/// connection must do nothing else, because a broker in alarm stops reading from it.
pub async fn publish(connection: &Connection) -> Result<(), Diagnosis> {
    let mut events = connection.events_listener();
    let mut published = pin!(async {
        session::publish_unroutable(connection).await?;
        // The broker blocks a connection after its first publish. Only a connection that is not
        // blocked answers again.
        connection.create_channel().await.map(drop)
    });
    let refused = |error| match BrokerErrorKind::of(&error) {
        BrokerErrorKind::AccessRefused => session::may_not_publish(),
        _ => Diagnosis::unknown(format!("publish: {error}")),
    };
    let mut late = pin!(sleep(PUBLISHED_WITHIN));
    loop {
        tokio::select! {
            published = &mut published => return published.map_err(refused),
            Some(event) = events.next() => if let Event::ConnectionBlocked(reason) = event {
                return Err(session::blocked(Some(&reason)));
            },
            () = &mut late => {
                return Err(match connection.status().blocked() {
                    true => session::blocked(None),
                    false => silent(),
                });
            }
        }
    }
}

fn silent() -> Diagnosis {
    Diagnosis::new(
        format!("the broker did not confirm a publish within {PUBLISHED_WITHIN:?}"),
        "look for alarms (`rabbitmq-diagnostics alarms`) and at the load of the broker",
    )
}

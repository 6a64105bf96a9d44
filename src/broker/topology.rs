//! The queues of an app. They are declared, checked, or printed as a definitions file.
//!
//! All are durable quorum queues. Settings that prevent the loss of messages are arguments of the
//! queue, not a policy. Only one policy applies to a queue, and an administrator's policy would
//! replace the daemon's.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    Connection, Queue,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Value, json};

use super::queues::{DECLARE, GIVE_RIGHTS};
use super::{BrokerError, BrokerErrorKind, bounded, queues};
use crate::{
    config::{App, Config},
    diagnosis::Diagnosis,
};

/// How many deliveries of one job may end without an acknowledgement. Each lost connection counts,
/// so the limit is high.
const JOB_DELIVERY_LIMIT: i64 = 50;
/// Higher: each restart of a replica counts, and jobs wait there as long as the app is paused.
const UNDELIVERABLE_DELIVERY_LIMIT: i64 = 1000;
/// People read these queues with "get and requeue". Brokers from 4.0 on would drop a message after
/// it went back 20 times.
const KEEP_DELIVERY_LIMIT: i64 = 1_000_000;
const REJECT_PUBLISH: &str = "reject-publish";

/// A queue with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSpec {
    pub name: String,
    pub arguments: BTreeMap<&'static str, Argument>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    Text(String),
    Number(i64),
    Flag(bool),
}

/// The queues of one app, each after those that it dead-letters to.
pub fn queues_of(name: &str, app: &App) -> Vec<QueueSpec> {
    let mut specs =
        vec![kept(queues::dead(name)), kept(queues::unrouted(name)), undeliverable(name)];
    if app.results_queue.as_deref() == Some(queues::results(name).as_str()) {
        specs.push(kept(queues::results(name)));
    }
    specs.push(jobs(name));
    specs.extend(app.retry.park.iter().map(|wait| waiting(name, *wait)));
    specs
}

/// A queue that keeps its messages. If a policy limits its length, the broker refuses further
/// messages, and the daemon keeps them. By default the broker would drop the oldest message.
fn kept(name: String) -> QueueSpec {
    let reject = Argument::Text(REJECT_PUBLISH.into());
    quorum(
        name,
        [("x-delivery-limit", Argument::Number(KEEP_DELIVERY_LIMIT)), ("x-overflow", reject)],
    )
}

/// The daemon publishes a result for each job in this queue. A job becomes a dead letter without a
/// result only if the daemon fails on it again and again.
fn undeliverable(app: &str) -> QueueSpec {
    let mut spec = dead_lettering(queues::undeliverable(app), queues::dead(app));
    spec.arguments.insert("x-delivery-limit", Argument::Number(UNDELIVERABLE_DELIVERY_LIMIT));
    spec
}

fn jobs(app: &str) -> QueueSpec {
    let mut spec = dead_lettering(queues::jobs(app), queues::undeliverable(app));
    spec.arguments.insert("x-single-active-consumer", Argument::Flag(true));
    spec.arguments.insert("x-delivery-limit", Argument::Number(JOB_DELIVERY_LIMIT));
    spec
}

fn waiting(app: &str, wait: Duration) -> QueueSpec {
    let mut spec = dead_lettering(queues::wait(app, wait), queues::jobs(app));
    spec.arguments.insert("x-message-ttl", Argument::Number(wait.as_millis() as i64));
    spec
}

/// Dead-letters through the default exchange, at least once. That strategy requires
/// `reject-publish`.
fn dead_lettering(name: String, to: String) -> QueueSpec {
    quorum(
        name,
        [
            ("x-dead-letter-exchange", Argument::Text(String::new())),
            ("x-dead-letter-routing-key", Argument::Text(to)),
            ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
            ("x-overflow", Argument::Text(REJECT_PUBLISH.into())),
        ],
    )
}

fn quorum(
    name: String,
    arguments: impl IntoIterator<Item = (&'static str, Argument)>,
) -> QueueSpec {
    let kind = ("x-queue-type", Argument::Text("quorum".into()));
    QueueSpec { name, arguments: arguments.into_iter().chain([kind]).collect() }
}

/// Declares the queues, or only checks that they exist.
pub async fn ensure(
    connection: &Connection,
    specs: &[QueueSpec],
    declare: bool,
) -> Result<(), BrokerError> {
    for spec in specs {
        spec.ensure(connection, declare).await?;
    }
    Ok(())
}

fn explain(queue: &str, declare: bool, error: BrokerError) -> BrokerError {
    let said = error.diagnosis;
    let diagnosis = match (error.kind, declare) {
        (BrokerErrorKind::PreconditionFailed, _) => Diagnosis::new(
            format!(
                "the queue {queue} exists with another type or other arguments than the daemon \
                    declares"
            ),
            format!(
                "stop the daemon and the producers. See whether the queue holds messages: \
                    `rabbitmqctl list_queues -p VHOST name type messages`. Deleting it destroys \
                    them, so move them to another queue first (docs/operations.md has the \
                    commands). Then run `rabbitmqctl delete_queue -p VHOST {queue}` and start the \
                    daemon, which declares the queue anew"
            ),
        ),
        (BrokerErrorKind::AccessRefused, true) => Diagnosis::new(
            format!("the broker's user may not declare the queue {queue}"),
            format!(
                "give the user its rights: {GIVE_RIGHTS}; or declare the queues with {DECLARE}, \
                    and set broker.declare = false"
            ),
        ),
        (BrokerErrorKind::NotFound, _) => Diagnosis::new(
            format!("there is no queue {queue}"),
            format!(
                "declare all queues as an administrator of the broker: {DECLARE}. Or set \
                    broker.declare = true, if the user in broker.url may declare queues"
            ),
        ),
        _ => {
            return BrokerError {
                diagnosis: Diagnosis { what: format!("{queue}: {}", said.what), ..said },
                ..error
            };
        }
    };
    BrokerError { diagnosis: diagnosis.with_words(said.what), ..error }
}

/// The queues of all apps in the form that `rabbitmqctl import_definitions` takes.
pub fn definitions(config: &Config, vhost: &str) -> Value {
    let queues: Vec<Value> = config
        .apps
        .iter()
        .flat_map(|(name, app)| queues_of(name, app))
        .map(|spec| {
            let arguments: BTreeMap<_, _> =
                spec.arguments.iter().map(|(name, value)| (*name, value.json())).collect();
            json!({
                "name": spec.name, "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": arguments,
            })
        })
        .collect();
    json!({ "queues": queues })
}

impl QueueSpec {
    /// Declares the queue, or only checks that it exists. Returns its state, if the broker reports
    /// it.
    pub async fn ensure(
        &self,
        connection: &Connection,
        declare: bool,
    ) -> Result<Option<Queue>, BrokerError> {
        let channel = bounded("open a channel", connection.create_channel()).await?;
        let options =
            QueueDeclareOptions { durable: true, passive: !declare, ..Default::default() };
        let arguments = if declare { self.field_table() } else { FieldTable::default() };
        let name: ShortString = self.name.as_str().into();
        match bounded("declare a queue", channel.queue_declare(name, options, arguments)).await {
            Ok(queue) => {
                let _ = bounded("close a channel", channel.close(200, "OK".into())).await;
                Ok(Some(queue))
            }
            // RabbitMQ 4.3.0 requires the configure permission for a passive declare.
            Err(error) if !declare && error.kind == BrokerErrorKind::AccessRefused => Ok(None),
            Err(error) => Err(explain(&self.name, declare, error)),
        }
    }

    fn field_table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in &self.arguments {
            table.insert((*name).into(), value.amqp());
        }
        table
    }
}

impl Argument {
    fn amqp(&self) -> AMQPValue {
        match self {
            Self::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Self::Number(number) => AMQPValue::LongLongInt(*number),
            Self::Flag(flag) => AMQPValue::Boolean(*flag),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
            Self::Flag(flag) => json!(flag),
        }
    }
}

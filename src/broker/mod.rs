//! RabbitMQ as the rest of the crate sees it: [`connection`] opens connections in bounded time,
//! [`publisher`] publishes with confirms over a [`session`], [`topology`] declares the queues.
//! [`subscribe`](crate::subscribe) consumes.
//!
//! Two connections, one to consume and one to publish: a broker in alarm blocks everything on a
//! connection that publishes, acknowledgements too. Neither recovers by itself; whoever meets an
//! error or an await past its bound tears it down and builds it anew, so that nobody believes in a
//! delivery that the broker has long given to somebody else.

pub mod browse;
pub mod connection;
mod dial;
pub mod frame;
mod greeting;
pub mod kept;
mod nodes;
pub mod publisher;
pub mod queues;
pub mod session;
pub mod topology;
pub mod troubles;
pub mod wire;

use std::time::Duration;

use lapin::{
    BasicProperties, ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};
use tokio::time::timeout;

use crate::diagnosis::Diagnosis;

/// A message to publish, persistent and confirmed.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub target: Target,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    /// Whether the broker has closed a connection while this message was under way on it. Then it
    /// is published on a connection of its own.
    pub suspect: bool,
}

/// Where a message goes, by the default exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A queue that the configuration names.
    Own(String),
    /// A queue that a producer named. The broker closes the channel if it refuses the publish, so
    /// these have their own.
    Producer(String),
    /// A producer's direct reply-to address. Not `mandatory`: brokers up to 4.1 return such
    /// messages although they deliver them, later ones accept them although nobody is there. So the
    /// address is asked for beforehand.
    Direct(String),
}

impl Target {
    pub fn queue(&self) -> &str {
        match self {
            Self::Own(queue) | Self::Producer(queue) | Self::Direct(queue) => queue,
        }
    }
}

/// What became of a confirmed publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// A queue has it.
    Routed,
    /// There is no such queue, or the broker does not take this message for it.
    NoSuchQueue,
}

/// The broker is out of reach, or an answer of it did not come in time. What was under way is
/// unknown.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {diagnosis}")]
pub struct BrokerLost {
    pub operation: &'static str,
    pub diagnosis: Diagnosis,
    /// What the broker has refused, if that is what happened.
    pub refusal: Option<Refusal>,
}

impl BrokerLost {
    pub fn new(operation: &'static str, reason: impl ToString) -> Self {
        Self::diagnosed(operation, Diagnosis::unknown(reason))
    }

    pub fn diagnosed(operation: &'static str, diagnosis: Diagnosis) -> Self {
        Self { operation, diagnosis, refusal: None }
    }

    pub fn of(operation: &'static str, error: &lapin::Error) -> Self {
        Self { refusal: Refusal::of(error), ..Self::new(operation, error) }
    }
}

/// Why the broker closes a channel or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The user lacks a right, or the broker does not know the user with this password.
    Forbidden,
    NoSuchQueue,
    /// A queue with that name has another type or other arguments.
    OtherArguments,
    /// The queue is not to be used so: one with a single active consumer is not read message by
    /// message.
    Locked,
    /// There is no such virtual host, or it is closed to the user.
    NoVhost,
    Other,
}

impl Refusal {
    pub fn of(error: &lapin::Error) -> Option<Self> {
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        Some(match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::Forbidden,
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::NoSuchQueue,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::OtherArguments,
            AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Self::Locked,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Self::NoVhost,
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => Self::Other,
        })
    }
}

/// The longest that an answer of the broker to anything but a publish is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the broker in bounded time. An error says what was being done.
pub async fn bounded<T>(
    operation: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerLost> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(BrokerLost::of(operation, &error)),
        Err(_) => Err(BrokerLost::new(operation, format!("no answer within {ANSWER_TIMEOUT:?}"))),
    }
}

//! RabbitMQ as the rest of the crate sees it: [`connection`] opens connections in bounded time,
//! [`publisher`] publishes with confirms over a [`session`], [`topology`] declares the queues.
//! [`subscribe`](crate::subscribe) consumes.
//!
//! The daemon uses two connections, one to consume and one to publish. A broker in alarm blocks
//! everything on a connection that publishes, acknowledgements too. Neither connection recovers by
//! itself. After an error, or a wait that exceeds its bound, the daemon closes the connection and
//! opens a new one. So it never works on a delivery that the broker has already given to another
//! consumer.

pub mod browse;
pub mod confirmed;
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
    pub target: Destination,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    /// Whether the broker has closed a connection while this message was in flight on it. If so,
    /// the publisher uses a separate connection for the message.
    pub suspect: bool,
}

/// The queue that a message goes to, through the default exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A queue that the configuration names.
    Own(String),
    /// A queue that a producer named. These queues have their own channels, because the broker
    /// closes the channel when it refuses a publish.
    Producer(String),
    /// A producer's direct reply-to address. Not `mandatory`: brokers up to 4.1 return such
    /// messages although they deliver them. Later ones accept them although the requester is gone.
    /// So the publisher first asks the broker whether the address exists.
    Direct(String),
}

impl Destination {
    pub fn queue(&self) -> &str {
        match self {
            Self::Own(queue) | Self::Producer(queue) | Self::Direct(queue) => queue,
        }
    }
}

/// The result of a confirmed publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// A queue has the message.
    Routed,
    /// There is no such queue, or the broker does not take this message for it.
    NoSuchQueue,
}

/// An operation on the broker failed. If the broker did not refuse it, its outcome is unknown.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {diagnosis}")]
pub struct BrokerError {
    pub operation: &'static str,
    pub kind: BrokerErrorKind,
    pub diagnosis: Diagnosis,
}

impl BrokerError {
    pub fn lost(operation: &'static str, reason: impl ToString) -> Self {
        Self::diagnosed(operation, Diagnosis::unknown(reason))
    }

    pub fn diagnosed(operation: &'static str, diagnosis: Diagnosis) -> Self {
        Self { operation, kind: BrokerErrorKind::Lost, diagnosis }
    }

    pub fn of(operation: &'static str, error: &lapin::Error) -> Self {
        Self { kind: BrokerErrorKind::of(error), ..Self::lost(operation, error) }
    }
}

/// Why an operation failed. The broker closes the channel or the connection with each refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerErrorKind {
    /// The user lacks a right, or the broker does not know the user with this password.
    AccessRefused,
    /// There is no such queue.
    NotFound,
    /// A queue with that name has another type or other arguments.
    PreconditionFailed,
    /// The queue does not allow this operation: a queue with a single active consumer cannot be
    /// read message by message.
    ResourceLocked,
    /// There is no such virtual host, or the user has no rights in it.
    NotAllowed,
    /// Refused for another reason.
    Closed,
    TimedOut,
    /// The connection is gone.
    Lost,
}

impl BrokerErrorKind {
    pub fn of(error: &lapin::Error) -> Self {
        let ErrorKind::ProtocolError(error) = error.kind() else { return Self::Lost };
        match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::AccessRefused,
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::NotFound,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::PreconditionFailed,
            AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Self::ResourceLocked,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Self::NotAllowed,
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => Self::Closed,
        }
    }
}

/// How long to wait for the broker's answer to any operation but a publish.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the broker in bounded time. The error names the operation.
pub async fn bounded<T>(
    operation: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(BrokerError::of(operation, &error)),
        Err(_) => Err(BrokerError {
            kind: BrokerErrorKind::TimedOut,
            ..BrokerError::lost(operation, format!("no answer within {ANSWER_TIMEOUT:?}"))
        }),
    }
}

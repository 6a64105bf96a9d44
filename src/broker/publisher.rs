//! Publishes persistent messages with confirms, whatever happens to the connection.
//!
//! A publish is tried until the broker has confirmed it; who loses interest drops the future. What a producer chose (its
//! reply queue, its headers) can make the broker refuse or go silent; that ends in an answer, so that no producer holds up
//! the others.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use lapin::{BasicProperties, types::FieldTable};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use super::{BrokerLost, Outgoing, Routing, Target};
use crate::delay;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// Closing the connection or the channel over the same message so often is the message's doing.
const BLAMED_AT_MOST: u32 = 3;

/// A connection to publish on, while it lives: the broker's, or in tests one in memory.
pub trait Link: Send + Sync + 'static {
    /// One attempt. Ends in bounded time, unless the broker says that it blocks publishers.
    fn publish<'a>(
        &'a self,
        lane: Lane,
        queue: &'a str,
        mandatory: Mandatory,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>>;
    /// Whether a requester still listens at a direct reply-to address.
    fn somebody_is_at<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<bool, Unconfirmed>>;
    fn look_at<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Seen, Unconfirmed>>;
    /// Declares our own queues again, or checks them.
    fn restore_queues(&self) -> BoxFuture<'_, Result<(), BrokerLost>>;
    fn is_alive(&self) -> bool;
    fn is_blocked(&self) -> bool;
    /// Gives the connection up: another one is made.
    fn give_up(&self);
}

/// What a queue shows of itself.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Messages that wait; those delivered and not acknowledged are not among them.
    pub messages: u32,
    pub consumers: u32,
}

/// Whose queues: the broker closes a channel over a publish that it refuses, so producers' have channels of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Own,
    Producers,
}

/// Whether the broker has to say if no queue takes the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mandatory {
    Yes,
    No,
}

/// Why one attempt to publish ended without a confirm.
pub enum Unconfirmed {
    /// The broker took the message and could not keep it, as a full queue cannot.
    Nacked,
    /// The channel is closed because the broker refused; the connection lives on.
    Refused(BrokerLost),
    /// No confirm came, and the connection lives on.
    Silent(BrokerLost),
    /// The broker closed the connection over something that it was sent.
    Fatal(BrokerLost),
    Lost(BrokerLost),
}

#[derive(Clone)]
pub struct Publisher {
    link: watch::Receiver<Option<Arc<dyn Link>>>,
}

impl Publisher {
    /// Publishes on whatever link there is; whoever holds the sender keeps one alive.
    pub fn over(link: watch::Receiver<Option<Arc<dyn Link>>>) -> Self {
        Self { link }
    }

    /// Publishes a message to a queue of our own. Waits as long as the broker is away, the queue is gone or full.
    pub async fn publish_to_own(&self, mut message: Outgoing) {
        for kept in [Kept::Properties, Kept::Id].into_iter().chain(std::iter::repeat(Kept::Id)) {
            if self.publish(&message).await == Routing::Routed {
                return;
            }
            warn!(target = ?message.target, "the broker takes a message only without what its producer added");
            message.properties = without_producers_additions(&message.properties, kept);
        }
    }

    /// Publishes a message. Says that a producer's queue does not exist also if the broker refuses it or does not confirm,
    /// and of a queue of our own if the broker closes on this very message.
    pub async fn publish(&self, message: &Outgoing) -> Routing {
        let mut blamed = 0;
        for attempt in 1.. {
            let link = self.link().await;
            let unconfirmed = match attempt_on(&*link, message).await {
                Ok(Routing::NoSuchQueue) if matches!(message.target, Target::Own(_)) => {
                    restore_queues(&*link).await;
                    None
                }
                Ok(routing) => return routing,
                Err(unconfirmed) => Some(unconfirmed),
            };
            match (unconfirmed, &message.target) {
                (None | Some(Unconfirmed::Nacked), _) => {
                    warn!(target = ?message.target, "the queue is gone or full; trying again")
                }
                (Some(Unconfirmed::Refused(error) | Unconfirmed::Silent(error)), Target::Producer(_) | Target::Direct(_)) => {
                    warn!(%error, target = ?message.target, "a reply queue was refused");
                    return Routing::NoSuchQueue;
                }
                (Some(Unconfirmed::Refused(error)), Target::Own(_)) => {
                    warn!(%error, target = ?message.target, "the broker refused a message");
                    blamed += u32::from(error.reason.contains("PRECONDITION_FAILED"));
                }
                (Some(Unconfirmed::Fatal(error)), _) => {
                    warn!(%error, "the broker closed the publishing connection");
                    link.give_up();
                    blamed += 1;
                }
                (Some(Unconfirmed::Lost(error) | Unconfirmed::Silent(error)), _) => {
                    warn!(%error, "lost the publishing connection");
                    link.give_up();
                }
            }
            if blamed >= BLAMED_AT_MOST {
                return Routing::NoSuchQueue;
            }
            sleep(delay::after_attempt(attempt, FIRST_RETRY, MAX_RETRY, delay::jitter())).await;
        }
        unreachable!("the attempts do not end")
    }

    /// Returns when the background task is gone: stopped, or by a panic.
    pub async fn ended(&self) {
        let mut link = self.link.clone();
        while link.changed().await.is_ok() {}
    }

    /// Whether a publish would be confirmed soon. While it would not, no call should start whose outcome could not be told.
    pub fn is_open(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.is_alive() && !link.is_blocked())
    }

    /// Whether somebody is known to consume from a queue now.
    pub async fn is_consumed(&self, queue: &str) -> bool {
        self.look_at(queue).await.is_some_and(|seen| seen.consumers > 0)
    }

    /// A queue as it is now, if the broker lets itself be asked.
    pub async fn look_at(&self, queue: &str) -> Option<Seen> {
        let link = self.link.borrow().clone()?;
        link.look_at(queue).await.ok()
    }

    async fn link(&self) -> Arc<dyn Link> {
        let mut receiver = self.link.clone();
        loop {
            let current = receiver.borrow_and_update().clone();
            if let Some(link) = current.filter(|link| link.is_alive()) {
                return link;
            }
            if receiver.changed().await.is_err() {
                // The process is stopping: whoever still waits is dropped with the runtime.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn attempt_on(link: &dyn Link, message: &Outgoing) -> Result<Routing, Unconfirmed> {
    match &message.target {
        Target::Own(queue) => link.publish(Lane::Own, queue, Mandatory::Yes, message).await,
        Target::Producer(queue) => link.publish(Lane::Producers, queue, Mandatory::Yes, message).await,
        Target::Direct(address) if link.somebody_is_at(address).await? => {
            link.publish(Lane::Producers, address, Mandatory::No, message).await
        }
        Target::Direct(_) => Ok(Routing::NoSuchQueue),
    }
}

async fn restore_queues(link: &dyn Link) {
    if let Err(error) = link.restore_queues().await {
        warn!(%error, "a queue of ours is missing");
    }
}

/// What is left of a message that the broker does not take as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// All properties, and the headers that we set: those of producers may be more than the broker takes.
    Properties,
    /// The id and our headers.
    Id,
}

fn without_producers_additions(properties: &BasicProperties, kept: Kept) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if name.as_str().starts_with("groupcast-") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = match (kept, properties.message_id()) {
        (Kept::Properties, _) => properties.clone(),
        (Kept::Id, Some(id)) => BasicProperties::default().with_message_id(id.clone()),
        (Kept::Id, None) => BasicProperties::default(),
    };
    properties.with_headers(headers).with_delivery_mode(2)
}

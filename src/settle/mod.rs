//! What a finished job owes, in the order it is owed: the [`dead_letter`], then the [`reply`] with the
//! [`result`](mod@result), each confirmed by the broker. The acknowledgement comes after, in [`pipeline`](crate::pipeline).

pub mod dead_letter;
pub mod reply;
pub mod result;

use crate::broker::{Outgoing, Routing, publisher::Publisher, queues};

/// The messages that a finished job owes.
#[derive(Debug)]
pub struct Owed {
    pub dead_letter: Option<Outgoing>,
    pub reply: Option<Outgoing>,
}

/// Publishes what is owed. Waits as long as the broker is away.
pub async fn settle(publisher: &Publisher, app: &str, owed: Owed) {
    if let Some(letter) = owed.dead_letter {
        publisher.publish_to_own(&queues::dead(app), letter).await;
    }
    if let Some(reply) = owed.reply
        && publisher.publish(&reply).await == Routing::NoSuchQueue
    {
        publisher.publish_to_own(&queues::unrouted(app), reply).await;
    }
}

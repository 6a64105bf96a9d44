//! What a finished job owes, in the order it is owed: the [`dead_letter`], then the [`reply`] with the
//! [`result`](mod@result), each confirmed by the broker. The acknowledgement comes after, in [`pipeline`](crate::pipeline).

pub mod dead_letter;
pub mod reply;
pub mod result;

use crate::broker::{BrokerLost, Outgoing, Routing, Target, publisher::Publisher, queues};

/// The messages that a finished job owes.
#[derive(Debug)]
pub struct Owed {
    pub dead_letter: Option<Outgoing>,
    pub reply: Option<Outgoing>,
}

/// Publishes what is owed. Waits as long as the broker is away.
pub async fn settle(publisher: &Publisher, app: &str, owed: Owed) -> Result<(), BrokerLost> {
    if let Some(letter) = owed.dead_letter {
        publish_to_own(publisher, letter).await?;
    }
    let Some(reply) = owed.reply else { return Ok(()) };
    match publisher.publish(&reply).await {
        Routing::Routed => Ok(()),
        Routing::NoSuchQueue => publish_to_own(publisher, Outgoing { target: Target::Own(queues::unrouted(app)), ..reply }).await,
    }
}

/// A queue of ours that is gone must be declared again: the subscription does so when it begins anew.
async fn publish_to_own(publisher: &Publisher, message: Outgoing) -> Result<(), BrokerLost> {
    match publisher.publish(&message).await {
        Routing::Routed => Ok(()),
        Routing::NoSuchQueue => Err(BrokerLost::new("publish", format!("{:?} does not exist", message.target))),
    }
}

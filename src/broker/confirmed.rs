//! One publish to the default exchange, with its confirm. No other code publishes.
//!
//! A channel may have one message in flight (see [`session`](super::session)).

use lapin::{
    BasicProperties, Channel, Confirmation, options::BasicPublishOptions, types::ShortString,
};

use super::{Routing, publisher::Mandatory};

/// The broker did not take the message, because the queue is full for example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nacked;

pub async fn publish_confirmed(
    channel: &Channel,
    queue: ShortString,
    body: &[u8],
    properties: BasicProperties,
    mandatory: Mandatory,
) -> lapin::Result<Result<Routing, Nacked>> {
    let mandatory = mandatory == Mandatory::Yes;
    let options = BasicPublishOptions { mandatory, ..Default::default() };
    #[expect(clippy::disallowed_methods, reason = "this is the one place that publishes")]
    let written = channel.basic_publish("".into(), queue, options, body, properties).await?;
    Ok(match written.await? {
        Confirmation::Ack(None) => Ok(Routing::Routed),
        Confirmation::Ack(Some(_)) => Ok(Routing::NoSuchQueue),
        Confirmation::Nack(_) | Confirmation::NotRequested => Err(Nacked),
    })
}

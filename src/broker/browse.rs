//! Looks through a queue, message by message. Only messages that the reader removes leave the
//! queue.
//!
//! The browser holds each message that it reads, and gives it back when it closes. A quorum queue
//! counts how often a message goes back, and drops it above its delivery limit. An operator's
//! policy can lower the daemon's limit. So if the first message has gone back before, the browser
//! replaces each message that stays with a copy. The broker's count starts anew for a copy. The
//! browser removes the original after the broker has confirmed the copy: a crash in between leaves
//! both.

use lapin::{
    BasicProperties, Channel, Connection,
    message::BasicGetMessage,
    options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, ConfirmSelectOptions},
    types::{FieldTable, ShortString},
};

use super::{
    BrokerError, Routing, bounded,
    confirmed::{Nacked, publish_confirmed},
    connection::{self, Connector},
    publisher::Mandatory,
};
use crate::{amqp::as_number, broker::kept::kept_properties, job::ALTERED_HEADER};

/// The broker's count of how often a message went back.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// The messages of a queue as they were when it was opened.
pub struct Browser {
    queue: String,
    connection: Connection,
    held: Channel,
    copies: Channel,
    /// The first message, which [`Browser::open`] has taken to learn how many there are.
    first: Option<Browsed>,
    left: u32,
    /// If the first message is replaced, all are, so that they keep their order.
    replaces: bool,
}

/// A message that is held.
pub struct Browsed(BasicGetMessage);

impl Browsed {
    pub fn body(&self) -> &[u8] {
        &self.0.delivery.data
    }

    pub fn properties(&self) -> &BasicProperties {
        &self.0.delivery.properties
    }

    /// The properties of a copy. It leaves out the broker's count, and headers that would delete
    /// the copy or send it elsewhere too.
    pub fn properties_of_copy(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in self.properties().headers().iter().flat_map(FieldTable::inner) {
            if ![DELIVERY_COUNT, ALTERED_HEADER, "CC", "BCC"].contains(&name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        kept_properties(self.properties()).with_headers(headers).with_delivery_mode(2)
    }

    /// Whether the message in the broker has properties that the daemon could not read.
    fn is_altered(&self) -> bool {
        self.properties()
            .headers()
            .as_ref()
            .is_some_and(|headers| headers.inner().contains_key(ALTERED_HEADER))
    }

    fn has_gone_back(&self) -> bool {
        let headers = self.properties().headers().as_ref();
        headers
            .and_then(|headers| as_number(headers.inner().get(DELIVERY_COUNT)?))
            .is_some_and(|times| times > 0)
    }
}

impl Browser {
    pub async fn open(connector: &Connector, queue: String) -> Result<Self, BrokerError> {
        let connection = connector.connect("browser").await?;
        let held = bounded("open a channel", connection.create_channel()).await?;
        let copies = bounded("open a channel", connection.create_channel()).await?;
        bounded("ask for confirms", copies.confirm_select(ConfirmSelectOptions::default())).await?;
        // Reads the length from a message: newer brokers let a client ask for the length only with
        // the right to configure the queue.
        let first = take(&held, &queue).await?;
        let left = first.as_ref().map_or(0, |first| first.message_count + 1);
        let first = first.map(Browsed);
        let replaces = first.as_ref().is_some_and(Browsed::has_gone_back);
        Ok(Self { queue, connection, held, copies, first, left, replaces })
    }

    /// How many messages are not taken yet.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Takes the next message. Messages that arrive after [`Browser::open`] are not among them.
    pub async fn next(&mut self) -> Result<Option<Browsed>, BrokerError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => Ok(take(&self.held, &self.queue).await?.map(Browsed)),
        }
    }

    /// Leaves a message in the queue.
    pub async fn leave(&self, message: Browsed) -> Result<(), BrokerError> {
        // A copy would lack the properties that the daemon could not read.
        if message.is_altered() || !(self.replaces || message.has_gone_back()) {
            return Ok(());
        }
        match self.publish(&self.queue, message.body(), message.properties_of_copy()).await? {
            Ok(Routing::Routed) => self.remove(message).await,
            // The queue is full: the original stays.
            Ok(Routing::NoSuchQueue) | Err(Nacked) => Ok(()),
        }
    }

    pub async fn remove(&self, message: Browsed) -> Result<(), BrokerError> {
        bounded("remove a message", message.0.delivery.acker.ack(BasicAckOptions::default()))
            .await
            .map(|_| ())
    }

    /// Publishes a message, confirmed and mandatory.
    pub async fn publish(
        &self,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Result<Routing, Nacked>, BrokerError> {
        let Ok(queue) = ShortString::try_new(queue) else { return Ok(Ok(Routing::NoSuchQueue)) };
        let publishing = publish_confirmed(&self.copies, queue, body, properties, Mandatory::Yes);
        bounded("publish a message again", publishing).await
    }

    /// Gives back the messages that were not removed. Since 4.3 the broker does not count messages
    /// that a client gives back, only those that a lost connection gives back.
    pub async fn close(self) {
        let everything = BasicNackOptions { multiple: true, requeue: true };
        let _ = bounded("give messages back", self.held.basic_nack(0, everything)).await;
        let _ = bounded("close a channel", self.held.close(200, "OK".into())).await;
        connection::close(&self.connection).await;
    }
}

async fn take(held: &Channel, queue: &str) -> Result<Option<BasicGetMessage>, BrokerError> {
    bounded("take a message", held.basic_get(queue.into(), BasicGetOptions::default())).await
}

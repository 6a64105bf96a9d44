//! A producer: publishes jobs and receives results.

use std::time::Duration;

use futures_util::StreamExt;
use groupcast::settle::result::JobResult;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::eventually;

pub struct Producer {
    connection: Connection,
    channel: Channel,
    /// The queue for its results.
    pub reply_queue: String,
    replies: Consumer,
}

impl Producer {
    pub async fn connect(url: &str) -> Producer {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .expect("the broker takes producers");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        // Durable and not exclusive, so that the queue survives a killed broker.
        let reply_queue = format!("replies-{}", uuid::Uuid::new_v4());
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel
            .queue_declare(reply_queue.as_str().into(), durable, FieldTable::default())
            .await
            .expect("a reply queue");
        let replies = consume(&channel, &reply_queue).await;
        Producer { connection, channel, reply_queue, replies }
    }

    /// Connects again, after the broker was killed, to the same reply queue.
    pub async fn reconnect(&mut self, url: &str) {
        self.connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .expect("the broker is back");
        self.channel = self.connection.create_channel().await.expect("a channel");
        self.channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        self.replies = consume(&self.channel, &self.reply_queue).await;
    }

    /// Properties of a job whose result comes to this producer.
    pub fn properties(&self) -> BasicProperties {
        BasicProperties::default()
            .with_delivery_mode(2)
            .with_reply_to(self.reply_queue.as_str().into())
    }

    /// Publishes a job and waits until the broker has it.
    pub async fn publish(&self, app: &str, body: &[u8], properties: BasicProperties) {
        let queue = format!("groupcast.{app}.jobs");
        let confirmation =
            publish(&self.channel, &queue, body, properties).await.expect("the broker confirms");
        assert!(matches!(confirmation, Confirmation::Ack(None)), "{queue} took the job");
    }

    /// The next result.
    pub async fn result(&mut self) -> JobResult {
        let reply = self.reply().await;
        serde_json::from_slice(&reply.data).expect("a result")
    }

    /// The next result as a message.
    pub async fn reply(&mut self) -> Delivery {
        let reply =
            timeout(Duration::from_secs(60), self.replies.next()).await.expect("a result in time");
        let reply = reply.expect("the subscription lives").expect("the channel lives");
        reply.ack(BasicAckOptions::default()).await.expect("acknowledged");
        reply
    }

    /// Whether no result comes within 500 ms.
    pub async fn hears_nothing(&mut self) -> bool {
        timeout(Duration::from_millis(500), self.replies.next()).await.is_err()
    }

    /// Takes the next message from a queue.
    pub async fn take(&self, queue: &str) -> Delivery {
        eventually(&format!("a message in {queue}"), async || {
            let taken = self
                .channel
                .basic_get(queue.into(), BasicGetOptions { no_ack: true })
                .await
                .expect("the queue exists");
            taken.map(|message| message.delivery)
        })
        .await
    }

    /// Messages ready in a queue.
    pub async fn depth(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.connection.create_channel().await.expect("a channel");
        let depth = channel
            .queue_declare(queue.into(), passive, FieldTable::default())
            .await
            .expect("the queue exists")
            .message_count();
        channel.close(200, "OK".into()).await.expect("closed");
        depth
    }

    /// A second channel of this connection.
    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("a channel")
    }

    pub async fn close(self) {
        self.connection.close(200, "OK".into()).await.expect("closed");
    }
}

async fn consume(channel: &Channel, queue: &str) -> Consumer {
    let tag = uuid::Uuid::new_v4().to_string();
    channel
        .basic_consume(
            queue.into(),
            tag.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("a subscription")
}

/// Publishes to a queue, confirmed and mandatory.
pub async fn publish(
    channel: &Channel,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    #[expect(clippy::disallowed_methods, reason = "a producer, confirmed and mandatory")]
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await?;
    confirm.await
}

pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A header of a message, as text.
pub fn header(message: &Delivery, name: &str) -> Option<String> {
    match message.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

//! An app's jobs queue at the broker: each subscription has a connection of its own, which ends with it.
//!
//! What waits for the broker here is bounded; an error says that the subscription is gone.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture};
use lapin::{
    Acker, Channel, Connection, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use tokio::time::timeout;

use super::{
    BrokerLost, bounded,
    connection::{self, Connector, Socket},
    queues,
    topology::{self, QueueSpec},
};
use crate::accept::{
    consume::{Delivery, Queue, Subscription},
    lease::Acknowledge,
};

const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The queue, and how to subscribe to it.
pub struct JobsQueue {
    pub app: String,
    pub connector: Arc<Connector>,
    pub topology: Vec<QueueSpec>,
    pub declare: bool,
}

/// A consumer with its connection.
pub struct Consuming {
    queue: String,
    connection: Connection,
    socket: Socket,
    channel: Channel,
    consumer: Consumer,
}

impl Queue for JobsQueue {
    type Subscription = Consuming;

    async fn subscribe(&self, prefetch: u16) -> Result<Consuming, BrokerLost> {
        let (connection, socket) = self.connector.connect_with_socket("consumer").await?;
        match self.subscribe_on(&connection, prefetch).await {
            Ok((channel, consumer)) => Ok(Consuming { queue: queues::jobs(&self.app), connection, socket, channel, consumer }),
            Err(error) => {
                connection::close(&connection).await;
                Err(error)
            }
        }
    }
}

impl JobsQueue {
    async fn subscribe_on(&self, connection: &Connection, prefetch: u16) -> Result<(Channel, Consumer), BrokerLost> {
        topology::ensure(connection, &self.topology, self.declare).await?;
        let channel = bounded("open a channel", connection.create_channel()).await?;
        bounded("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        // A tag of its own for each subscription: reused tags lost deliveries of quorum queues until 3.12.5.
        let tag = format!("groupcast-{}", uuid::Uuid::new_v4());
        let queue = queues::jobs(&self.app);
        let consuming = channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = bounded("consume", consuming).await?;
        Ok((channel, consumer))
    }
}

impl Subscription for Consuming {
    async fn next(&mut self) -> Result<Delivery, BrokerLost> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => {
                Ok(Delivery { body: delivery.data, properties: delivery.properties, acknowledge: Arc::new(delivery.acker) })
            }
            Some(Err(error)) => Err(BrokerLost::new("consume", error)),
            None => Err(BrokerLost::new("consume", "the broker ended the subscription")),
        }
    }

    async fn look_for_jobs(&self) -> Result<(), BrokerLost> {
        let channel = bounded("open a channel", self.connection.create_channel()).await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(self.queue.as_str().into(), options, FieldTable::default());
        match bounded("look at the queue", queue).await {
            Ok(queue) if queue.message_count() > 0 => {
                let reason = format!("{} jobs wait and none is delivered", queue.message_count());
                Err(BrokerLost::new("consume", reason))
            }
            Ok(_) => {
                let _ = bounded("close a channel", channel.close(200, "OK".into())).await;
                Ok(())
            }
            // RabbitMQ 4.3.0 asks for the configure permission even to look.
            Err(error) if error.reason.contains("ACCESS_REFUSED") => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn cancel(&self) {
        let cancelled = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        // If it cannot be cancelled, closing the connection does it.
        let _ = bounded("cancel the subscription", cancelled).await;
    }

    fn cut(&self) {
        self.socket.shut_down();
    }

    async fn close(self) {
        connection::close(&self.connection).await;
    }
}

impl Acknowledge for Acker {
    fn acknowledge(&self) -> BoxFuture<'_, Result<(), BrokerLost>> {
        Box::pin(written("acknowledge", self.ack(BasicAckOptions::default())))
    }

    fn give_back(&self) -> BoxFuture<'_, Result<(), BrokerLost>> {
        Box::pin(written("give a delivery back", self.reject(BasicRejectOptions { requeue: true })))
    }

    fn is_taken_away(&self) -> bool {
        self.poisoned()
    }
}

/// Waits until the broker's library has written it, which is not to say that the broker has read it.
async fn written(operation: &'static str, writing: impl Future<Output = lapin::Result<bool>>) -> Result<(), BrokerLost> {
    match timeout(ACK_TIMEOUT, writing).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(BrokerLost::new(operation, "the channel is closed")),
        Ok(Err(error)) => Err(BrokerLost::new(operation, error)),
        Err(_) => Err(BrokerLost::new(operation, format!("not written within {ACK_TIMEOUT:?}"))),
    }
}

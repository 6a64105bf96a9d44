//! An app's jobs queue at the broker, and beside it the queue of jobs that the broker has given up.
//! Each subscription has its own connection, which closes with it.
//!
//! Every wait for the broker is bounded. An error means that the subscription is lost.

use std::{
    future::pending,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use lapin::{
    Acker, Channel, Connection, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions,
        BasicRejectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use tokio::time::timeout;

use crate::{
    broker::{
        BrokerError, BrokerErrorKind, bounded,
        connection::{self, Connector, Socket},
        queues,
        topology::{self, QueueSpec},
    },
    diagnosis::Diagnosis,
    subscribe::{
        consume::{Delivery, OldestDeliveries, Queue, Source, Subscription},
        lease::Acknowledge,
    },
};

const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// If the broker cancels a consumer sooner after a delivery, the reason is not an acknowledgement
/// timeout. The broker's documentation advises against a timeout below a minute.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The queue, and how to subscribe to it.
pub struct JobsQueue {
    pub app: String,
    pub connector: Arc<Connector>,
    pub topology: Vec<QueueSpec>,
    pub declare: bool,
    /// Why the daemon cannot use the queue until it restarts. Each further check would count as a
    /// delivery of the first job.
    pub refusal: OnceLock<BrokerError>,
}

/// The consumers of an app, and their connection.
pub struct Consuming {
    queue: String,
    undeliverable_queue: String,
    prefetch: u16,
    connection: Connection,
    socket: Socket,
    jobs: QueueConsumer,
    undeliverable: QueueConsumer,
    end: Option<End>,
}

/// A consumer on a channel of its own.
struct QueueConsumer {
    channel: Channel,
    consumer: Consumer,
}

/// How the broker ended a subscription.
enum End {
    /// The broker closed the channel, because a delivery was not acknowledged within this time.
    TimedOut(Duration),
    /// The broker cancelled the consumer of this queue and does not say why.
    Cancelled(Source),
    Otherwise,
}

impl Queue for JobsQueue {
    type Subscription = Consuming;

    async fn subscribe(&self, prefetch: u16) -> Result<Consuming, BrokerError> {
        if let Some(refusal) = self.refusal.get() {
            return Err(refusal.clone());
        }
        let (connection, socket) = self.connector.connect_with_socket("consumer").await?;
        match self.subscribe_on(&connection, prefetch).await {
            Ok((jobs, undeliverable)) => {
                let (queue, undeliverable_queue) =
                    (queues::jobs(&self.app), queues::undeliverable(&self.app));
                Ok(Consuming {
                    queue,
                    undeliverable_queue,
                    prefetch,
                    connection,
                    socket,
                    jobs,
                    undeliverable,
                    end: None,
                })
            }
            Err(error) => {
                connection::close(&connection).await;
                Err(error)
            }
        }
    }
}

impl JobsQueue {
    async fn subscribe_on(
        &self,
        connection: &Connection,
        prefetch: u16,
    ) -> Result<(QueueConsumer, QueueConsumer), BrokerError> {
        topology::ensure(connection, &self.topology, self.declare).await?;
        if !self.declare {
            self.check_single_consumer(connection).await?;
        }
        let jobs = QueueConsumer::start(connection, &queues::jobs(&self.app), prefetch).await?;
        // One job at a time: something is wrong with these jobs.
        let undeliverable =
            QueueConsumer::start(connection, &queues::undeliverable(&self.app), 1).await?;
        Ok((jobs, undeliverable))
    }

    /// With `declare = false`, the operator creates the queues. If the jobs queue served two
    /// consumers at once, two replicas could send the same batches, each at the full rate.
    async fn check_single_consumer(&self, connection: &Connection) -> Result<(), BrokerError> {
        match serves_one_consumer(connection, &queues::jobs(&self.app)).await? {
            Ok(()) => Ok(()),
            Err(diagnosis) => {
                let refusal = BrokerError::diagnosed("consume", diagnosis);
                Err(self.refusal.get_or_init(|| refusal).clone())
            }
        }
    }
}

/// Whether a queue is a quorum queue with a single active consumer. Only such a queue refuses
/// `basic.get`. Every other queue answers it, and counts a delivery if it has a message (measured
/// on RabbitMQ 3.10.8, 4.0.5 and 4.3.6). Before that, the broker checks the right to read the
/// queue.
pub async fn serves_one_consumer(
    connection: &Connection,
    queue: &str,
) -> Result<Result<(), Diagnosis>, BrokerError> {
    let channel = bounded("open a channel", connection.create_channel()).await?;
    match bounded("look at the queue", channel.basic_get(queue.into(), BasicGetOptions::default()))
        .await
    {
        Err(error) if error.kind == BrokerErrorKind::ResourceLocked => Ok(Ok(())),
        Err(error) => Err(error),
        Ok(_) => Ok(Err(Diagnosis::new(
            format!("{queue} serves several consumers at once"),
            "make it a quorum queue with x-single-active-consumer = true, as `groupcast topology` \
                prints it, then start the daemon again",
        ))),
    }
}

impl QueueConsumer {
    async fn start(
        connection: &Connection,
        queue: &str,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let channel = bounded("open a channel", connection.create_channel()).await?;
        bounded("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default()))
            .await?;
        // Each subscription has its own tag. Until RabbitMQ 3.12.5, quorum queues lost deliveries
        // if a tag was reused.
        let tag = format!("groupcast-{}", uuid::Uuid::new_v4());
        let consuming = channel.basic_consume(
            queue.into(),
            tag.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = bounded("consume", consuming).await?;
        Ok(Self { channel, consumer })
    }

    async fn cancel<T: Send>(&mut self, done: impl Future<Output = T> + Send) -> T {
        let Self { channel, consumer } = self;
        let tag = consumer.tag();
        let cancelled = async {
            // If this fails, closing the connection ends the subscription.
            let _ = bounded(
                "cancel the subscription",
                channel.basic_cancel(tag, BasicCancelOptions::default()),
            )
            .await;
            pending().await
        };
        // The AMQP library keeps deliveries in memory until they are read, up to the prefetch, and
        // each may have the largest size. So they are read and dropped.
        let dropped = async {
            while consumer.next().await.is_some() {}
            pending().await
        };
        tokio::select! {
            biased;
            done = done => done,
            () = cancelled => unreachable!("it is pending"),
            () = dropped => unreachable!("it is pending"),
        }
    }
}

impl Consuming {
    async fn exists(&self, source: Source) -> bool {
        let queue = match source {
            Source::Jobs => &self.queue,
            Source::Undeliverable => &self.undeliverable_queue,
        };
        look_at(&self.connection, queue).await.is_ok()
    }
}

/// The broker's time limit, if the error says that a delivery was not acknowledged in time.
fn acknowledgement_timeout(error: &lapin::Error) -> Option<Duration> {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return None };
    timeout_in(error.get_message().as_str())
}

/// Only the text of the broker's error has this time. The text is the same in all versions that
/// close the channel: `delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000
/// ms. …`
fn timeout_in(text: &str) -> Option<Duration> {
    let (_, told) = text
        .split_once("delivery acknowledgement on channel")?
        .1
        .split_once("Timeout value used: ")?;
    told.split_once(" ms")?.0.parse().ok().map(Duration::from_millis)
}

impl Subscription for Consuming {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let (source, next) = tokio::select! {
            next = self.jobs.consumer.next() => (Source::Jobs, next),
            next = self.undeliverable.consumer.next() => (Source::Undeliverable, next),
        };
        match next {
            Some(Ok(delivery)) => {
                let acknowledge = Arc::new(delivery.acker);
                Ok(Delivery {
                    source,
                    body: delivery.data,
                    properties: delivery.properties,
                    acknowledge,
                })
            }
            Some(Err(error)) => {
                self.end =
                    Some(acknowledgement_timeout(&error).map_or(End::Otherwise, End::TimedOut));
                Err(BrokerError::lost("consume", error))
            }
            None => {
                self.end.get_or_insert(End::Cancelled(source));
                Err(BrokerError::lost("consume", "the broker ended the subscription"))
            }
        }
    }

    /// The channel answers only while it is open. Setting the same prefetch again changes nothing.
    async fn confirm(&self) -> Result<(), BrokerError> {
        bounded(
            "confirm the subscription",
            self.jobs.channel.basic_qos(self.prefetch, BasicQosOptions::default()),
        )
        .await
    }

    async fn acknowledgement_timeout(&mut self, oldest: &OldestDeliveries) -> Option<Duration> {
        // Read the consumers to their end. An acknowledgement may have failed on the closed channel
        // before the consumer reported the reason.
        while self.end.is_none() && self.next().now_or_never().is_some_and(|next| next.is_ok()) {}
        match self.end {
            Some(End::TimedOut(timeout)) => Some(timeout),
            // RabbitMQ 4.3 and later cancels the consumer after a timeout. It also cancels it when
            // the queue is deleted, so check that the queue still exists.
            Some(End::Cancelled(source)) => {
                let held_for = oldest.of(source)?.elapsed();
                (held_for >= SHORTEST_TIMEOUT && self.exists(source).await).then_some(held_for)
            }
            Some(End::Otherwise) | None => None,
        }
    }

    async fn look_for_jobs(&self) -> Result<(), BrokerError> {
        match look_at(&self.connection, &self.queue).await? {
            Some(queue) if queue.message_count() > 0 => {
                let reason = format!("{} jobs wait and none is delivered", queue.message_count());
                Err(BrokerError::lost("consume", reason))
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn cancel<T: Send>(&mut self, done: impl Future<Output = T> + Send) -> T {
        self.jobs.cancel(self.undeliverable.cancel(done)).await
    }

    async fn close(mut self) {
        let Self { connection, jobs, .. } = &mut self;
        let dropped = async {
            while jobs.consumer.next().await.is_some() {}
            pending().await
        };
        tokio::select! {
            () = connection::close(connection) => {}
            () = dropped => unreachable!("it is pending"),
        }
        // Deliveries that the daemon no longer reads would keep the connection from closing.
        self.socket.shut_down();
    }
}

/// The state of a queue, or `None` if the broker refuses to give it.
async fn look_at(
    connection: &Connection,
    queue: &str,
) -> Result<Option<lapin::Queue>, BrokerError> {
    let channel = bounded("open a channel", connection.create_channel()).await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), options, FieldTable::default());
    match bounded("look at the queue", queue).await {
        Ok(queue) => {
            let _ = bounded("close a channel", channel.close(200, "OK".into())).await;
            Ok(Some(queue))
        }
        // RabbitMQ 4.3.0 requires the configure permission even for a passive declaration.
        Err(error) if error.kind == BrokerErrorKind::AccessRefused => Ok(None),
        Err(error) => Err(error),
    }
}

impl Acknowledge for Acker {
    fn acknowledge(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(written("acknowledge", self.ack(BasicAckOptions::default())))
    }

    fn give_back(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(written("give a delivery back", self.reject(BasicRejectOptions { requeue: true })))
    }

    fn is_taken_away(&self) -> bool {
        self.poisoned()
    }
}

/// Waits until the AMQP library has written the frame. This does not mean that the broker has read
/// it.
async fn written(
    operation: &'static str,
    writing: impl Future<Output = lapin::Result<bool>>,
) -> Result<(), BrokerError> {
    match timeout(ACK_TIMEOUT, writing).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(BrokerError::lost(operation, "the channel is closed")),
        Ok(Err(error)) => Err(BrokerError::lost(operation, error)),
        Err(_) => Err(BrokerError::lost(operation, format!("not written within {ACK_TIMEOUT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_which_to_acknowledge_is_read_from_the_brokers_words() {
        let told = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout \
            value used: 60000 ms. This timeout value can be configured, see consumers doc guide to \
            learn more";
        assert_eq!(timeout_in(told), Some(Duration::from_secs(60)));
        for other in [
            "PRECONDITION_FAILED - unknown delivery tag 80",
            "delivery acknowledgement on channel 1 timed out",
            "",
        ] {
            assert_eq!(timeout_in(other), None);
        }
    }
}

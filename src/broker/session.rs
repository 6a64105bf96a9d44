//! The publishing connection: one attempt to publish at a time on each channel of a pool, judged by what the broker says.
//!
//! With more than one in flight on a channel, a returned message is told to the wrong one of them (measured), which would
//! count an undelivered message as delivered.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture};
use lapin::{
    Channel, Confirmation, Connection, ErrorKind, Event, Queue,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPHardError},
};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    BrokerLost, Outgoing, Routing,
    connection::{self, Connector},
    publisher::{Lane, Link, Mandatory, Publisher, Seen, Unconfirmed},
    topology::{self, QueueSpec},
};
use crate::delay;

/// Publishes in flight on a connection, for queues of ours and for those of producers.
const CHANNELS: usize = 64;
/// How long a confirm may take, unless the broker says that it blocks publishers.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// The queues that must be there, to declare them again if somebody deletes one.
pub struct OwnQueues {
    pub specs: Vec<QueueSpec>,
    pub declare: bool,
}

/// One connection's life.
struct Session {
    connection: Connection,
    own: Pool,
    producers: Pool,
    lost: CancellationToken,
    queues: Arc<OwnQueues>,
}

struct Pool {
    free: Mutex<Vec<Channel>>,
    permits: Semaphore,
}

/// A publisher over a connection that is kept alive in the background until `stop`.
pub fn publisher(connector: Arc<Connector>, queues: OwnQueues, stop: CancellationToken) -> Publisher {
    let (sender, link) = watch::channel(None);
    let queues = Arc::new(queues);
    tokio::spawn(async move { stop.run_until_cancelled(keep_connected(&connector, &queues, &sender)).await });
    Publisher::over(link)
}

/// Connects, announces the session, and does so again whenever it is lost.
async fn keep_connected(connector: &Connector, queues: &Arc<OwnQueues>, sender: &watch::Sender<Option<Arc<dyn Link>>>) {
    let mut failures = 0;
    loop {
        match connector.connect("publisher").await {
            Ok(connection) => {
                failures = 0;
                info!("connected to publish");
                let session = Arc::new(Session::new(connection, queues.clone()));
                sender.send_replace(Some(session.clone()));
                let reason = session.until_lost().await;
                sender.send_replace(None);
                warn!(reason, "the publishing connection is gone");
                connection::close(&session.connection).await;
            }
            Err(error) => {
                failures += 1;
                warn!(%error, "cannot publish yet; trying again");
            }
        }
        sleep(delay::after_attempt(failures, FIRST_RETRY, MAX_RETRY, delay::jitter())).await;
    }
}

impl Session {
    fn new(connection: Connection, queues: Arc<OwnQueues>) -> Self {
        Self { connection, own: Pool::new(), producers: Pool::new(), lost: CancellationToken::new(), queues }
    }

    async fn until_lost(&self) -> String {
        let mut events = self.connection.events_listener();
        loop {
            tokio::select! {
                () = self.lost.cancelled() => return "a publish was not confirmed".into(),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => warn!(reason, "the broker blocks publishing; no new calls start"),
                    Some(Event::ConnectionUnblocked) => info!("the broker takes messages again"),
                    // A refusal closes a channel and makes an event too; the connection lives on.
                    Some(Event::Error(error)) if !self.connection.status().connected() => return error.to_string(),
                    Some(_) => {}
                    None => return "closed".into(),
                },
                // Not every way to lose a connection makes an event.
                () = sleep(Duration::from_secs(1)) => if !self.connection.status().connected() {
                    return "disconnected".into();
                },
            }
        }
    }

    async fn publish_on(
        &self,
        lane: Lane,
        queue: &str,
        mandatory: Mandatory,
        message: &Outgoing,
    ) -> Result<Routing, Unconfirmed> {
        let pool = match lane {
            Lane::Own => &self.own,
            Lane::Producers => &self.producers,
        };
        let _permit = pool.permits.acquire().await.expect("never closed");
        let channel = self.channel(pool).await?;
        let options = BasicPublishOptions { mandatory: mandatory == Mandatory::Yes, ..Default::default() };
        let confirmed = async {
            #[expect(clippy::disallowed_methods, reason = "this is the publisher")]
            let written =
                channel.basic_publish("".into(), queue.into(), options, &message.body, message.properties.clone()).await?;
            written.await
        };
        let confirmation = self.while_blocked_or_soon(confirmed).await?;
        let routing = match confirmation {
            Confirmation::Ack(None) => Routing::Routed,
            Confirmation::Ack(Some(_)) => Routing::NoSuchQueue,
            Confirmation::Nack(_) | Confirmation::NotRequested => {
                pool.put_back(channel);
                return Err(Unconfirmed::Nacked);
            }
        };
        // Only a channel with nothing under way goes back: a publish that was dropped half-way takes its channel with it.
        pool.put_back(channel);
        Ok(routing)
    }

    async fn channel(&self, pool: &Pool) -> Result<Channel, Unconfirmed> {
        if let Some(channel) = pool.take() {
            return Ok(channel);
        }
        self.while_blocked_or_soon(async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        })
        .await
    }

    /// Looks at a queue; a refusal closes the channel.
    async fn ask_about(&self, queue: &str) -> Result<Queue, Unconfirmed> {
        let _permit = self.producers.permits.acquire().await.expect("never closed");
        let channel = self.channel(&self.producers).await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.while_blocked_or_soon(channel.queue_declare(queue.into(), options, Default::default())).await?;
        self.producers.put_back(channel);
        Ok(queue)
    }

    /// A direct reply-to address is a queue to a passive declare while its requester is connected.
    async fn ask_for(&self, address: &str) -> Result<bool, Unconfirmed> {
        match self.ask_about(address).await {
            Ok(_) => Ok(true),
            // RabbitMQ 4.3.0 asks for the configure permission even to look: then nobody knows.
            Err(Unconfirmed::Refused(error)) => Ok(error.reason.contains("ACCESS_REFUSED")),
            Err(unconfirmed) => Err(unconfirmed),
        }
    }

    /// Waits for a confirm in bounded time; while the broker blocks publishers, as long as that takes.
    async fn while_blocked_or_soon<T>(&self, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Unconfirmed> {
        let mut answer = std::pin::pin!(answer);
        loop {
            match timeout(CONFIRM_TIMEOUT, answer.as_mut()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) if error.is_amqp_soft_error() => {
                    return Err(Unconfirmed::Refused(BrokerLost::new("publish", error)));
                }
                Ok(Err(error)) if closed_over_a_message(&error) => {
                    return Err(Unconfirmed::Fatal(BrokerLost::new("publish", error)));
                }
                Ok(Err(error)) => return Err(Unconfirmed::Lost(BrokerLost::new("publish", error))),
                Err(_) if self.connection.status().blocked() => {}
                Err(_) => {
                    let reason = format!("no confirm within {CONFIRM_TIMEOUT:?}");
                    return Err(Unconfirmed::Silent(BrokerLost::new("publish", reason)));
                }
            }
        }
    }
}

impl Link for Session {
    fn publish<'a>(
        &'a self,
        lane: Lane,
        queue: &'a str,
        mandatory: Mandatory,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>> {
        Box::pin(self.publish_on(lane, queue, mandatory, message))
    }

    fn somebody_is_at<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<bool, Unconfirmed>> {
        Box::pin(self.ask_for(address))
    }

    fn look_at<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Seen, Unconfirmed>> {
        Box::pin(async {
            let queue = self.ask_about(queue).await?;
            Ok(Seen { messages: queue.message_count(), consumers: queue.consumer_count() })
        })
    }

    fn restore_queues(&self) -> BoxFuture<'_, Result<(), BrokerLost>> {
        Box::pin(topology::ensure(&self.connection, &self.queues.specs, self.queues.declare))
    }

    fn is_alive(&self) -> bool {
        !self.lost.is_cancelled() && self.connection.status().connected()
    }

    fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    fn give_up(&self) {
        self.lost.cancel();
    }
}

/// Whether the broker closed the connection over what it was sent, and not because it stops or an operator said so.
fn closed_over_a_message(error: &lapin::Error) -> bool {
    let forced = AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Hard(_)) && *error.kind() != forced)
}

impl Pool {
    fn new() -> Self {
        Self { free: Mutex::default(), permits: Semaphore::new(CHANNELS) }
    }

    fn take(&self) -> Option<Channel> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| free.pop()).find(|channel| channel.status().connected())
    }

    fn put_back(&self, channel: Channel) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    }
}

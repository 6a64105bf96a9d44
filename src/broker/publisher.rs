//! Publishes persistent messages with confirms, over one connection that it keeps alive.
//!
//! One publish is in flight on each channel of a pool: with more, a returned message is told to the wrong one of them
//! (measured), which would count an undelivered message as delivered. A publish is tried until the broker has confirmed
//! it; who loses interest drops the future. What a producer chose (its reply queue, its headers) can make the broker refuse
//! or go silent; that ends in an answer, so that no producer holds up the others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ErrorKind, Event,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPHardError},
    types::FieldTable,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    BrokerLost, Outgoing, Routing, Target,
    connection::{self, Connector},
    topology::{self, QueueSpec},
};
use crate::delay;

/// Publishes in flight on a connection, for queues of ours and for those of producers.
const CHANNELS: usize = 8;
/// How long a confirm may take, unless the broker says that it blocks publishers.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Publisher {
    session: watch::Receiver<Option<Arc<Session>>>,
    queues: Arc<OwnQueues>,
}

/// The queues that must be there, to declare them again if somebody deletes one.
struct OwnQueues {
    specs: Vec<QueueSpec>,
    declare: bool,
}

/// One connection's life.
struct Session {
    connection: Connection,
    own: Pool,
    producers: Pool,
    lost: CancellationToken,
}

struct Pool {
    free: Mutex<Vec<Channel>>,
    permits: Semaphore,
}

/// Closing the connection or the channel over the same message so often is the message's doing.
const BLAMED_AT_MOST: u32 = 3;

/// Why one attempt to publish ended without a confirm.
enum Unconfirmed {
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

impl Publisher {
    /// Keeps a publishing connection alive in the background until `stop`. `specs` are our own queues.
    pub fn start(connector: Arc<Connector>, specs: Vec<QueueSpec>, declare: bool, stop: CancellationToken) -> Self {
        let (sender, session) = watch::channel(None);
        tokio::spawn(async move { stop.run_until_cancelled(keep_connected(&connector, &sender)).await });
        Self { session, queues: Arc::new(OwnQueues { specs, declare }) }
    }

    /// Publishes a message to a queue of our own. Waits as long as the broker is away, the queue is gone or full.
    pub async fn publish_to_own(&self, queue: &str, mut message: Outgoing) {
        message.target = Target::Own(queue.to_owned());
        while self.publish(&message).await == Routing::NoSuchQueue {
            warn!(queue, "the broker takes a message only without what its producer added");
            message.properties = without_producers_additions(&message.properties);
        }
    }

    /// Publishes a message. Says that a producer's queue does not exist also if the broker refuses it or does not confirm,
    /// and of a queue of our own if the broker closes on this very message.
    pub async fn publish(&self, message: &Outgoing) -> Routing {
        let mut blamed = 0;
        for attempt in 1.. {
            let session = self.session().await;
            let unconfirmed = match session.publish(message).await {
                Ok(Routing::NoSuchQueue) if matches!(message.target, Target::Own(_)) => {
                    self.restore_queues(&session).await;
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
                    session.lost.cancel();
                    blamed += 1;
                }
                (Some(Unconfirmed::Lost(error) | Unconfirmed::Silent(error)), _) => {
                    warn!(%error, "lost the publishing connection");
                    session.lost.cancel();
                }
            }
            if blamed >= BLAMED_AT_MOST {
                return Routing::NoSuchQueue;
            }
            sleep(delay::after_attempt(attempt, FIRST_RETRY, MAX_RETRY, rand::random())).await;
        }
        unreachable!("the attempts do not end")
    }

    async fn restore_queues(&self, session: &Session) {
        if let Err(error) = topology::ensure(&session.connection, &self.queues.specs, self.queues.declare).await {
            warn!(%error, "a queue of ours is missing");
        }
    }

    /// Returns when the background task is gone: stopped, or by a panic.
    pub async fn ended(&self) {
        let mut session = self.session.clone();
        while session.changed().await.is_ok() {}
    }

    /// Whether a publish would be confirmed soon. While it would not, no call should start whose outcome could not be told.
    pub fn is_open(&self) -> bool {
        self.session.borrow().as_ref().is_some_and(|session| session.is_alive() && !session.connection.status().blocked())
    }

    async fn session(&self) -> Arc<Session> {
        let mut receiver = self.session.clone();
        loop {
            let current = receiver.borrow_and_update().clone();
            if let Some(session) = current.filter(|session| session.is_alive()) {
                return session;
            }
            if receiver.changed().await.is_err() {
                // The process is stopping: whoever still waits is dropped with the runtime.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Connects, announces the session, and does so again whenever it is lost.
async fn keep_connected(connector: &Connector, sender: &watch::Sender<Option<Arc<Session>>>) {
    let mut failures = 0;
    loop {
        match connector.connect("publisher").await {
            Ok(connection) => {
                failures = 0;
                info!("connected to publish");
                let session = Arc::new(Session::new(connection));
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
        sleep(delay::after_attempt(failures, FIRST_RETRY, MAX_RETRY, rand::random())).await;
    }
}

impl Session {
    fn new(connection: Connection) -> Self {
        Self { connection, own: Pool::new(), producers: Pool::new(), lost: CancellationToken::new() }
    }

    fn is_alive(&self) -> bool {
        !self.lost.is_cancelled() && self.connection.status().connected()
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

    async fn publish(&self, message: &Outgoing) -> Result<Routing, Unconfirmed> {
        match &message.target {
            Target::Own(queue) => self.publish_on(&self.own, queue, Mandatory::Yes, message).await,
            Target::Producer(queue) => self.publish_on(&self.producers, queue, Mandatory::Yes, message).await,
            Target::Direct(address) if self.somebody_is_at(address).await? => {
                self.publish_on(&self.producers, address, Mandatory::No, message).await
            }
            Target::Direct(_) => Ok(Routing::NoSuchQueue),
        }
    }

    async fn publish_on(
        &self,
        pool: &Pool,
        queue: &str,
        mandatory: Mandatory,
        message: &Outgoing,
    ) -> Result<Routing, Unconfirmed> {
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

    /// A direct reply-to address is a queue to a passive declare while its requester is connected.
    async fn somebody_is_at(&self, address: &str) -> Result<bool, Unconfirmed> {
        let _permit = self.producers.permits.acquire().await.expect("never closed");
        let channel = self.channel(&self.producers).await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        match self.while_blocked_or_soon(channel.queue_declare(address.into(), options, Default::default())).await {
            Ok(_) => {
                self.producers.put_back(channel);
                Ok(true)
            }
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

/// Whether the broker closed the connection over what it was sent, and not because it stops or an operator said so.
fn closed_over_a_message(error: &lapin::Error) -> bool {
    let forced = AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Hard(_)) && *error.kind() != forced)
}

/// A message's properties with only the headers that we set: those of producers may be more than the broker takes.
fn without_producers_additions(properties: &BasicProperties) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if name.as_str().starts_with("groupcast-") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let kept = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    match properties.message_id() {
        Some(id) => kept.with_message_id(id.clone()),
        None => kept,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mandatory {
    Yes,
    No,
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

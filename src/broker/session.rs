//! The publishing connection. It has a pool of channels, and each channel publishes one message at
//! a time.
//!
//! With several messages in flight on one channel, the library reports a returned message for the
//! wrong one of them (measured). The daemon would then count an undelivered message as delivered.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture};
use lapin::{
    BasicProperties, Channel, Connection, ErrorKind, Event, Queue,
    options::{ConfirmSelectOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPHardError},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    BrokerError, BrokerErrorKind, Outgoing, Routing,
    confirmed::{Nacked, publish_confirmed},
    connection::{self, Connector},
    frame,
    publisher::{
        Link, LinkState, Mandatory, PublishLane, Publisher, QueueState, Unconfirmed, attempt_on,
    },
    queues::GIVE_RIGHTS,
    topology::{self, QueueSpec},
};
use crate::{delay, diagnosis::Diagnosis, watch};

/// How many messages may be in flight on a connection, separately for the daemon's queues and for
/// producers' queues.
const CHANNELS: usize = 64;
/// How long to wait for a confirm, unless the broker says that it blocks publishers. After that the
/// publisher tries again, or the job waits and its result is published later. So the limit need
/// only cover the election of a quorum queue's leader.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to check whether the user has been given the right to publish.
const RIGHT_LOOKED_FOR_EVERY: Duration = Duration::from_secs(2);
/// How often to publish a message that no queue takes. A broker in alarm says so only to
/// connections that publish, and an idle daemon publishes nothing else.
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// How often to check whether messages have been taken out of the daemon's own queues in trouble.
const TROUBLES_LOOKED_AT_EVERY: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// The queues that the daemon needs, so that it can declare them again if an operator deletes one.
pub struct OwnQueues {
    pub specs: Vec<QueueSpec>,
    pub declare: bool,
}

/// One publishing connection.
struct Session {
    connection: Connection,
    own: Pool,
    producers: Pool,
    lost: CancellationToken,
    queues: Arc<OwnQueues>,
    /// Opens the separate connections for suspects.
    connector: Arc<Connector>,
}

struct Pool {
    free: Mutex<Vec<Channel>>,
    permits: Semaphore,
}

/// Returns a publisher. A background task keeps its connection open until `stop`.
pub fn publisher(
    connector: Arc<Connector>,
    queues: OwnQueues,
    stop: CancellationToken,
) -> Publisher {
    let (sender, link) =
        watch::channel(LinkState::No { reason: "not connected to the broker yet".into() });
    let queues = Arc::new(queues);
    let publisher = Publisher::over(link);
    let looking = publisher.clone();
    let work = async move {
        tokio::select! {
            () = keep_connected(&connector, &queues, &sender) => {}
            () = keep_looking(&looking) => {}
        }
    };
    tokio::spawn(async move { stop.run_until_cancelled(work).await });
    publisher
}

async fn keep_looking(publisher: &Publisher) {
    loop {
        sleep(TROUBLES_LOOKED_AT_EVERY).await;
        publisher.look_at_queues_in_trouble().await;
    }
}

/// Connects and sends the session to `sender`. Starts again whenever the connection is lost.
async fn keep_connected(
    connector: &Arc<Connector>,
    queues: &Arc<OwnQueues>,
    sender: &watch::Sender<LinkState>,
) {
    let mut failures = 0;
    let away = |reason: &str| {
        sender.send_replace(LinkState::No { reason: reason.to_owned() });
    };
    loop {
        match connector.connect("publisher").await {
            Ok(connection) => {
                failures = 0;
                let session = Arc::new(Session::new(connection, queues.clone(), connector.clone()));
                if session.until_allowed(sender).await {
                    info!("connected to publish");
                    sender.send_replace(LinkState::Yes(session.clone()));
                    let reason = session.until_lost().await;
                    away(&format!("not connected to the broker: {reason}"));
                    warn!(reason, "the publishing connection is gone");
                }
                connection::close(&session.connection).await;
            }
            Err(error) => {
                failures += 1;
                warn!(%error, "cannot publish yet; trying again");
                away(&format!("not connected to the broker: {error}"));
            }
        }
        sleep(delay::after_attempt(failures, FIRST_RETRY, MAX_RETRY, delay::jitter())).await;
    }
}

impl Session {
    fn new(connection: Connection, queues: Arc<OwnQueues>, connector: Arc<Connector>) -> Self {
        Self {
            connection,
            own: Pool::new(),
            producers: Pool::new(),
            lost: CancellationToken::new(),
            queues,
            connector,
        }
    }

    /// Waits until the user has the right to publish. Returns `false` if the connection is lost
    /// before that. Without the right the daemon could publish no result, and each refusal would
    /// look like a missing reply queue.
    async fn until_allowed(&self, sender: &watch::Sender<LinkState>) -> bool {
        let mut told = false;
        while self.connection.status().connected() {
            let mut asking = pin!(self.check_publish_permission());
            let asked = loop {
                tokio::select! {
                    asked = &mut asking => break asked,
                    // The broker reports that it blocks publishing at the first publish, and this
                    // is the first.
                    () = sleep(Duration::from_secs(1)) => if self.connection.status().blocked() {
                        sender.send_replace(LinkState::No { reason: blocked(None).to_string() });
                    },
                }
            };
            match asked {
                Ok(true) => return true,
                Ok(false) => {
                    let reason = may_not_publish().to_string();
                    if !std::mem::replace(&mut told, true) {
                        warn!(reason, "results cannot be published; no call starts");
                    }
                    sender.send_replace(LinkState::Forbidden { reason });
                }
                Err(_) => return false,
            }
            sleep(RIGHT_LOOKED_FOR_EVERY).await;
        }
        false
    }

    /// Publishes a message that no queue takes. Before the broker returns it, the broker checks the
    /// right to publish.
    async fn check_publish_permission(&self) -> Result<bool, Unconfirmed> {
        match self.confirmed_in_time(publish_unroutable(&self.connection)).await {
            Ok(_) => Ok(true),
            Err(Unconfirmed::Refused(BrokerErrorKind::AccessRefused, _)) => Ok(false),
            Err(unconfirmed) => Err(unconfirmed),
        }
    }

    async fn attempt_alone(&self, message: &Outgoing) -> Result<Routing, Unconfirmed> {
        let connection =
            self.connector.connect("publisher of one message").await.map_err(Unconfirmed::Lost)?;
        let alone = Session::new(connection, self.queues.clone(), self.connector.clone());
        let attempted = attempt_on(&alone, message).await;
        connection::close(&alone.connection).await;
        attempted
    }

    async fn until_lost(&self) -> String {
        let mut events = self.connection.events_listener();
        let mut refused = pin!(self.until_refused());
        loop {
            tokio::select! {
                reason = &mut refused => return reason,
                () = self.lost.cancelled() => return "a publish failed, or the broker closed the \
                    connection over a message".into(),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => warn!(reason, "the broker blocks \
                        publishing; no new calls start"),
                    Some(Event::ConnectionUnblocked) => info!("the broker takes messages again"),
                    // A refused publish also makes an error event, but closes only its channel.
                    Some(Event::Error(error)) if !self.connection.status().connected() => {
                        return error.to_string();
                    }
                    Some(_) => {}
                    None => return "closed".into(),
                },
                // Some losses of the connection make no event.
                () = sleep(Duration::from_secs(1)) => if !self.connection.status().connected() {
                    return "disconnected".into();
                },
            }
        }
    }

    /// Checks the right to publish at intervals. Returns the reason when the check fails.
    async fn until_refused(&self) -> String {
        let mut was_silent = false;
        loop {
            sleep(ASKED_EVERY).await;
            match self.check_publish_permission().await {
                Ok(true) => was_silent = false,
                Ok(false) => return may_not_publish().to_string(),
                // A single timeout may only mean that the broker is slow.
                Err(Unconfirmed::Silent(_)) if !std::mem::replace(&mut was_silent, true) => {
                    continue;
                }
                Err(
                    Unconfirmed::Silent(error)
                    | Unconfirmed::Fatal(error)
                    | Unconfirmed::Refused(_, error),
                ) => {
                    return error.to_string();
                }
                // The other branches of `until_lost` give a better reason.
                Err(Unconfirmed::Lost(_) | Unconfirmed::Nacked) => pending().await,
            }
        }
    }

    async fn publish_on(
        &self,
        lane: PublishLane,
        queue: &str,
        mandatory: Mandatory,
        message: &Outgoing,
    ) -> Result<Routing, Unconfirmed> {
        let pool = match lane {
            PublishLane::Own => &self.own,
            PublishLane::Producers => &self.producers,
        };
        let _permit = pool.permits.acquire().await.expect("never closed");
        let channel = self.channel(pool).await?;
        let (body, properties) = (&message.body, message.properties.clone());
        let publishing = publish_confirmed(&channel, queue.into(), body, properties, mandatory);
        // Without a confirm, the channel does not return to the pool. After the limit of a full
        // queue is raised, an old channel still refuses messages (rabbitmq-server #12206).
        let routing =
            self.confirmed_in_time(publishing).await?.map_err(|Nacked| Unconfirmed::Nacked)?;
        // Only an idle channel returns to the pool. A publish that is dropped halfway drops its
        // channel too.
        pool.put_back(channel);
        Ok(routing)
    }

    async fn channel(&self, pool: &Pool) -> Result<Channel, Unconfirmed> {
        if let Some(channel) = pool.take() {
            return Ok(channel);
        }
        self.confirmed_in_time(async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        })
        .await
    }

    /// Asks for the state of a queue. If the broker refuses, it closes the channel.
    async fn ask_about(&self, queue: &str) -> Result<Queue, Unconfirmed> {
        let _permit = self.producers.permits.acquire().await.expect("never closed");
        let channel = self.channel(&self.producers).await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self
            .confirmed_in_time(channel.queue_declare(queue.into(), options, Default::default()))
            .await?;
        self.producers.put_back(channel);
        Ok(queue)
    }

    /// Whether the requester of a direct reply-to address is connected. The broker then answers a
    /// passive declare of the address as for a queue.
    async fn ask_for(&self, address: &str) -> Result<bool, Unconfirmed> {
        match self.ask_about(address).await {
            Ok(_) => Ok(true),
            // RabbitMQ 4.3.0 requires the configure permission for a passive declare. Without it
            // the daemon cannot know, and assumes that the requester is there.
            Err(Unconfirmed::Refused(refusal, _)) => Ok(refusal == BrokerErrorKind::AccessRefused),
            Err(unconfirmed) => Err(unconfirmed),
        }
    }

    /// Waits for a confirm in bounded time. While the broker blocks publishers, there is no bound.
    async fn confirmed_in_time<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Unconfirmed> {
        let mut answer = pin!(answer);
        loop {
            match timeout(CONFIRM_TIMEOUT, answer.as_mut()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) if error.is_amqp_soft_error() => {
                    let refusal = BrokerErrorKind::of(&error);
                    return Err(Unconfirmed::Refused(refusal, BrokerError::lost("publish", error)));
                }
                Ok(Err(error)) if closed_over_a_message(&error) => {
                    return Err(Unconfirmed::Fatal(BrokerError::lost("publish", error)));
                }
                Ok(Err(error)) => {
                    return Err(Unconfirmed::Lost(BrokerError::lost("publish", error)));
                }
                Err(_) if self.connection.status().blocked() => {}
                Err(_) => {
                    let reason = format!("no confirm within {CONFIRM_TIMEOUT:?}");
                    return Err(Unconfirmed::Silent(BrokerError::lost("publish", reason)));
                }
            }
        }
    }
}

impl Link for Session {
    fn publish<'a>(
        &'a self,
        lane: PublishLane,
        queue: &'a str,
        mandatory: Mandatory,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>> {
        Box::pin(self.publish_on(lane, queue, mandatory, message))
    }

    fn publish_alone<'a>(
        &'a self,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>> {
        Box::pin(self.attempt_alone(message))
    }

    fn may_publish(&self) -> BoxFuture<'_, Result<bool, Unconfirmed>> {
        Box::pin(self.check_publish_permission())
    }

    fn has_requester<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<bool, Unconfirmed>> {
        Box::pin(self.ask_for(address))
    }

    fn queue_state<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueState, Unconfirmed>> {
        Box::pin(async {
            let queue = self.ask_about(queue).await?;
            Ok(QueueState { messages: queue.message_count(), consumers: queue.consumer_count() })
        })
    }

    fn restore_queues(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(topology::ensure(&self.connection, &self.queues.specs, self.queues.declare))
    }

    fn frame_max(&self) -> usize {
        match self.connection.configuration().frame_max() {
            0 => frame::DEFAULT_FRAME_MAX,
            bytes => bytes as usize,
        }
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

/// Publishes a message that no queue takes, and waits until the broker returns it. The broker
/// checks the right to publish first.
pub async fn publish_unroutable(connection: &Connection) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let queue = format!("groupcast-asks-for-the-right-to-publish-{}", uuid::Uuid::new_v4());
    let nothing = BasicProperties::default();
    publish_confirmed(&channel, queue.into(), &[], nothing, Mandatory::Yes).await.map(drop)
}

pub fn may_not_publish() -> Diagnosis {
    Diagnosis::new(
        "the broker's user may not write to the default exchange (amq.default), so results cannot \
            be published",
        format!("give the user its rights: {GIVE_RIGHTS}"),
    )
}

/// Describes an alarm: the broker blocks all connections that publish.
pub fn blocked(reason: Option<&str>) -> Diagnosis {
    Diagnosis::new(
        format!(
            "the broker blocks publishing: it has raised an alarm because it is {}",
            reason.unwrap_or("low on memory or disk")
        ),
        "run `rabbitmq-diagnostics alarms` on the broker: it names the node and the alarm. Memory: \
            empty long queues or add memory, or raise vm_memory_high_watermark. Disk: free space \
            on that node, or lower disk_free_limit, the free space that the broker insists on",
    )
}

/// Whether the broker closed the connection because of a frame that it was sent. Otherwise the
/// broker is stopping, or an operator closed the connection.
fn closed_over_a_message(error: &lapin::Error) -> bool {
    let forced = AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED);
    match error.kind() {
        ErrorKind::ProtocolError(error) => {
            matches!(error.kind(), AMQPErrorKind::Hard(_)) && *error.kind() != forced
        }
        _ => false,
    }
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

//! Publishes persistent messages with confirms, whatever happens to the connection.
//!
//! While the broker cannot be reached, a publish waits; to stop it, drop the future. A producer's
//! choices (its reply queue, its headers) can make the broker refuse a message, not answer, or
//! close the connection. The publisher returns an answer in bounded time in each case, so that no
//! producer holds up the others:
//!
//! - A queue that refuses messages or does not confirm them is tried for a few seconds, and then
//!   remembered ([`troubles`](super::troubles)).
//! - Headers that do not fit into a frame are left out before the message is sent ([`frame`]).
//! - When the broker closes the connection over a message, every message in flight is a suspect.
//!   Each suspect is published on a separate connection, where it can harm no other message. Only a
//!   message that fails there is to blame.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use lapin::{BasicProperties, types::FieldTable};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use super::{
    BrokerError, BrokerErrorKind, Destination, Outgoing, Routing, frame, session,
    troubles::{LogAction, PublishTurn, QueueTrouble, Troubles, UnroutedResults},
};
use crate::{delay, telemetry::metrics, watch};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long to try a queue that refuses messages or does not confirm them.
const QUEUE_TRIED_FOR: Duration = Duration::from_secs(5);
/// How often a suspect may fail on its separate connection before it is to blame.
const BLAMED_AT_MOST: u32 = 3;
/// After so many lost connections in a row, for any reason, a message gets a separate connection.
const LOST_AT_MOST: u32 = 3;
/// How many suspects are published at a time.
const SUSPECTS: usize = 4;
/// How many messages may be in flight for one queue that a producer named. A queue that confirms
/// nothing then leaves room for others.
const MAX_IN_FLIGHT_PER_QUEUE: usize = 16;

/// A live connection to publish on: the broker's, or one in memory for tests.
pub trait Link: Send + Sync + 'static {
    /// Tries once to publish. Ends in bounded time, unless the broker says that it blocks
    /// publishers.
    fn publish<'a>(
        &'a self,
        lane: PublishLane,
        queue: &'a str,
        mandatory: Mandatory,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>>;
    /// Tries once to publish, on a connection that is opened for this message alone.
    fn publish_alone<'a>(
        &'a self,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>>;
    /// Whether the broker's user has the right to publish. A confirmed answer also shows that the
    /// connection works.
    fn may_publish(&self) -> BoxFuture<'_, Result<bool, Unconfirmed>>;
    /// Whether a requester still listens at a direct reply-to address.
    fn has_requester<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<bool, Unconfirmed>>;
    fn queue_state<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueState, Unconfirmed>>;
    /// Declares the daemon's own queues again, or checks them.
    fn restore_queues(&self) -> BoxFuture<'_, Result<(), BrokerError>>;
    /// The largest frame that the broker and this connection have agreed on, in bytes.
    fn frame_max(&self) -> usize;
    fn is_alive(&self) -> bool;
    fn is_blocked(&self) -> bool;
    /// Closes the connection. The background task then opens another one.
    fn give_up(&self);
}

/// Whether there is a connection to publish on.
#[derive(Clone)]
pub enum LinkState {
    Yes(Arc<dyn Link>),
    No {
        reason: String,
    },
    /// Connected, without the right to publish.
    Forbidden {
        reason: String,
    },
}

/// Why the state of a queue is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueStateError {
    /// The broker says that there is no such queue.
    Missing,
    NotKnown,
}

/// The state of a queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueState {
    /// Messages ready for delivery. Messages that are delivered and not acknowledged are not
    /// counted.
    pub messages: u32,
    pub consumers: u32,
}

/// Which channels to use. Producers' queues have channels of their own, because the broker closes a
/// channel when it refuses a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishLane {
    Own,
    Producers,
}

/// Whether the broker must report a message that no queue takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mandatory {
    Yes,
    No,
}

/// Why one attempt to publish ended without a confirm.
pub enum Unconfirmed {
    /// The broker rejected the message with a nack, for example because the queue is full.
    Nacked,
    /// The broker refused the publish and closed the channel. The connection lives on.
    Refused(BrokerErrorKind, BrokerError),
    /// No confirm came, and the connection lives on.
    Silent(BrokerError),
    /// The broker closed the connection because of a message on it.
    Fatal(BrokerError),
    Lost(BrokerError),
}

/// The final result of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Published {
    Routed,
    /// The queue does not exist, or the daemon has no right to write to it.
    NoSuchQueue,
    /// The broker refuses this message, or closes the connection over it.
    Refused,
    /// The queue takes no messages at present.
    NotTaken(QueueTrouble),
}

#[derive(Clone)]
pub struct Publisher {
    link: watch::Receiver<LinkState>,
    shared: Arc<PublisherState>,
}

struct PublisherState {
    troubles: Mutex<Troubles>,
    unrouted: Mutex<UnroutedResults>,
    /// The daemon's own queues that existed at the last check.
    present: Mutex<HashSet<String>>,
    suspects: Semaphore,
    under_way: Mutex<HashMap<String, Arc<Semaphore>>>,
    frame_max: AtomicUsize,
}

/// The failures of one message so far.
#[derive(Default)]
struct FailedAttempts {
    alone: bool,
    blamed: u32,
    lost: u32,
    /// Whether this message tests if a queue in trouble works again.
    tests_queue: bool,
    /// The trouble of the last attempts, when it began, and how many attempts met it.
    in_trouble: Option<(QueueTrouble, Instant, u32)>,
}

impl FailedAttempts {
    /// A lost connection says nothing about the queue.
    fn start_over(&mut self) {
        self.in_trouble = None;
    }

    /// Whether the queue was tried for long enough: for some seconds, and at least twice.
    fn is_enough(&mut self, trouble: QueueTrouble, began: Instant) -> bool {
        let same = self.in_trouble.filter(|(before, ..)| *before == trouble);
        let (_, since, attempts) = same.unwrap_or((trouble, began, 0));
        self.in_trouble = Some((trouble, since, attempts + 1));
        since.elapsed() >= QUEUE_TRIED_FOR && attempts >= 1
    }
}

impl Publisher {
    /// Publishes on the current link. The holder of the sender keeps the link alive.
    pub fn over(link: watch::Receiver<LinkState>) -> Self {
        let shared = PublisherState {
            troubles: Mutex::default(),
            unrouted: Mutex::default(),
            present: Mutex::default(),
            suspects: Semaphore::new(SUSPECTS),
            under_way: Mutex::default(),
            frame_max: AtomicUsize::new(frame::DEFAULT_FRAME_MAX),
        };
        Self { link, shared: Arc::new(shared) }
    }

    /// Publishes a message to one of the daemon's own queues. If the broker refuses it, tries again
    /// without the producer's additions.
    pub async fn publish_to_own(&self, app: &str, message: &Outgoing) -> Result<(), QueueTrouble> {
        let mut message = Cow::Borrowed(message);
        for kept in [Some(KeptParts::Properties), Some(KeptParts::Id), None] {
            match (self.publish(app, &message).await, kept) {
                (Published::Routed, _) => return Ok(()),
                (Published::NotTaken(trouble), _) => return Err(trouble),
                (Published::NoSuchQueue | Published::Refused, Some(kept)) => {
                    let (queue, job_id) = (message.target.queue(), job_id(&message));
                    warn!(
                        app,
                        queue,
                        job_id,
                        "the broker takes a message only without what its producer added"
                    );
                    let properties = without_producers_additions(&message.properties, kept);
                    message =
                        Cow::Owned(Outgoing { properties, suspect: true, ..message.into_owned() });
                }
                (Published::NoSuchQueue | Published::Refused, None) => break,
            }
        }
        let (queue, job_id) = (message.target.queue(), job_id(&message));
        warn!(app, queue, job_id, "the broker refuses a message, whatever is left out of it");
        Err(QueueTrouble::Refused)
    }

    /// Publishes a message. Tries for a few seconds while the queue takes no messages. Waits
    /// without limit while the broker cannot be reached.
    pub async fn publish(&self, app: &str, message: &Outgoing) -> Published {
        let queue = message.target.queue();
        let is_own = matches!(message.target, Destination::Own(_));
        let mut tried = FailedAttempts { alone: message.suspect, ..Default::default() };
        let _permit = if is_own { None } else { Some(self.permit_for(queue).await) };
        for attempt in 1.. {
            let link = self.link().await;
            if !tried.tests_queue {
                let turn = self.troubles().turn(app, queue, Instant::now());
                match turn {
                    PublishTurn::Publish => {}
                    PublishTurn::TryOnce => tried.tests_queue = true,
                    PublishTurn::NotNow(trouble) => {
                        return self.not_taken(app, queue, trouble, false);
                    }
                }
            }
            let fitting = self.fitting(app, message, &*link);
            let began = Instant::now();
            let outcome = match tried.alone {
                false => attempt_on(&*link, &fitting).await,
                true => {
                    let _turn = self.shared.suspects.acquire().await.expect("never closed");
                    link.publish_alone(&fitting).await
                }
            };
            let trouble = match outcome {
                Ok(Routing::Routed) => {
                    if self.troubles().taken(app, queue) {
                        info!(app, queue, "the queue takes messages again");
                    }
                    return Published::Routed;
                }
                Ok(Routing::NoSuchQueue) if is_own => {
                    self.note_missing(app, queue);
                    restore_queues(&*link).await;
                    Some(QueueTrouble::Missing)
                }
                Ok(Routing::NoSuchQueue) => return Published::NoSuchQueue,
                Err(Unconfirmed::Nacked) => Some(QueueTrouble::Full),
                Err(Unconfirmed::Silent(error)) => {
                    // Finds out whether only the queue is silent, or the whole connection.
                    let works = tried.alone || link.may_publish().await.is_ok();
                    if !works {
                        warn!(%error, "the publishing connection says nothing; connecting anew");
                        link.give_up();
                    }
                    works.then_some(QueueTrouble::Silent)
                }
                Err(Unconfirmed::Refused(BrokerErrorKind::AccessRefused, error)) => {
                    match link.may_publish().await {
                        // A missing right is no fault of the message. The next link comes once the
                        // user has the right.
                        Ok(false) => {
                            link.give_up();
                            None
                        }
                        Ok(true) if !is_own => {
                            debug!(app, queue, %error, "the broker does not let the daemon write \
                                to a reply queue");
                            return Published::NoSuchQueue;
                        }
                        Ok(true) => {
                            tried.blamed += 1;
                            None
                        }
                        Err(_) => None,
                    }
                }
                Err(Unconfirmed::Refused(BrokerErrorKind::NotFound, _)) if !is_own => {
                    return Published::NoSuchQueue;
                }
                Err(Unconfirmed::Refused(_, error)) => {
                    debug!(app, queue, %error, "the broker refused a message");
                    if !is_own {
                        return Published::Refused;
                    }
                    tried.blamed += 1;
                    None
                }
                Err(Unconfirmed::Fatal(error)) => {
                    debug!(app, queue, %error, alone = tried.alone, "the broker closed the \
                        connection of a message");
                    if tried.alone {
                        tried.blamed += 1;
                    } else {
                        link.give_up();
                        tried.alone = true;
                    }
                    None
                }
                Err(Unconfirmed::Lost(error)) => {
                    debug!(app, queue, %error, "the connection of a message was lost");
                    tried.start_over();
                    if !tried.alone {
                        link.give_up();
                        tried.lost += 1;
                        tried.alone = tried.lost >= LOST_AT_MOST;
                    }
                    None
                }
            };
            if let Some(trouble) = trouble
                && (tried.is_enough(trouble, began) || tried.tests_queue)
            {
                return self.not_taken(app, queue, trouble, true);
            }
            if tried.blamed >= BLAMED_AT_MOST {
                let job_id = job_id(message);
                warn!(
                    app,
                    queue,
                    job_id,
                    "the broker refuses this message, or closes the connection over it"
                );
                // This failure says nothing about the queue. Another message, or this one without
                // the producer's additions, may test it.
                self.troubles().test_inconclusive(app, queue, Instant::now());
                return Published::Refused;
            }
            sleep(delay::after_attempt(attempt, FIRST_RETRY, MAX_RETRY, delay::jitter())).await;
        }
        unreachable!("the attempts do not end")
    }

    /// Returns when the background task has stopped or panicked.
    pub async fn ended(&self) {
        let mut link = self.link.clone();
        while link.changed().await.is_ok() {}
    }

    /// Whether the broker would confirm a publish soon. Otherwise no call may start, because its
    /// result could not be published.
    pub fn is_open(&self) -> bool {
        match &*self.link.borrow() {
            LinkState::Yes(link) => link.is_alive() && !link.is_blocked(),
            _ => false,
        }
    }

    /// Whether the broker's user lacks the right to publish.
    pub fn is_forbidden(&self) -> bool {
        matches!(&*self.link.borrow(), LinkState::Forbidden { .. })
    }

    /// Returns when messages can be published.
    pub async fn until_open(&self) {
        let mut link = self.link.clone();
        loop {
            link.borrow_and_update();
            if self.is_open() {
                return;
            }
            // When the broker stops blocking publishers, the link does not change.
            let _ = tokio::time::timeout(LOOK_AGAIN, link.changed()).await;
        }
    }

    /// Returns when publishing has been impossible for `bound` without a break.
    pub async fn until_closed_for(&self, bound: Duration) {
        let mut since = Instant::now();
        while since.elapsed() < bound {
            sleep(LOOK_AGAIN).await;
            if self.is_open() {
                since = Instant::now();
            }
        }
    }

    /// Why nothing can be published at present.
    pub fn why_closed(&self) -> Option<String> {
        match &*self.link.borrow() {
            LinkState::No { reason } | LinkState::Forbidden { reason } => Some(reason.clone()),
            LinkState::Yes(link) if !link.is_alive() => Some("the connection was lost".into()),
            LinkState::Yes(link) if link.is_blocked() => Some(session::blocked(None).to_string()),
            LinkState::Yes(_) => None,
        }
    }

    /// The daemon's own queues that take no messages, and why.
    pub fn queues_in_trouble(&self) -> Vec<(String, QueueTrouble)> {
        self.troubles()
            .own(Instant::now())
            .into_iter()
            .map(|(_, queue, trouble)| (queue, trouble))
            .collect()
    }

    /// Checks whether messages have been taken out of the daemon's own queues in trouble.
    pub async fn look_at_queues_in_trouble(&self) {
        let in_trouble = self.troubles().own(Instant::now());
        for (app, queue, _) in in_trouble {
            if let Ok(seen) = self.queue_state(&queue).await {
                self.troubles().record_length(&app, &queue, seen.messages);
            }
        }
    }

    /// The largest frame that the broker takes, in bytes: of the last link, or RabbitMQ's default
    /// before the first one.
    pub fn frame_max(&self) -> usize {
        self.shared.frame_max.load(Ordering::Relaxed)
    }

    /// Whether the queue is known to have a consumer now.
    pub async fn is_consumed(&self, queue: &str) -> bool {
        self.queue_state(queue).await.is_ok_and(|seen| seen.consumers > 0)
    }

    /// The state of a queue now, if the broker answers.
    pub async fn queue_state(&self, queue: &str) -> Result<QueueState, QueueStateError> {
        let link = match &*self.link.borrow() {
            LinkState::Yes(link) => link.clone(),
            LinkState::No { .. } | LinkState::Forbidden { .. } => {
                return Err(QueueStateError::NotKnown);
            }
        };
        link.queue_state(queue).await.map_err(|unconfirmed| match unconfirmed {
            Unconfirmed::Refused(BrokerErrorKind::NotFound, _) => QueueStateError::Missing,
            _ => QueueStateError::NotKnown,
        })
    }

    /// Notes that one of the daemon's own queues exists.
    pub fn note_present(&self, queue: &str) {
        self.present().insert(queue.to_owned());
    }

    /// Notes that one of the daemon's own queues does not exist. If it existed before, the log says
    /// so once.
    pub fn note_missing(&self, app: &str, queue: &str) {
        if self.present().remove(queue) {
            warn!(
                app,
                queue,
                "a queue has vanished, and what was in it: see whether a policy with `expires` \
                    applies to it"
            );
            metrics::count_vanished_queues(app);
        }
    }

    fn present(&self) -> MutexGuard<'_, HashSet<String>> {
        self.shared.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares the daemon's own queues again. With `broker.declare = false` it only checks them.
    pub async fn restore_queues(&self) {
        let link = match &*self.link.borrow() {
            LinkState::Yes(link) => link.clone(),
            LinkState::No { .. } | LinkState::Forbidden { .. } => return,
        };
        restore_queues(&*link).await;
    }

    async fn link(&self) -> Arc<dyn Link> {
        let mut receiver = self.link.clone();
        loop {
            if let LinkState::Yes(link) = &*receiver.borrow_and_update()
                && link.is_alive()
            {
                self.shared.frame_max.store(link.frame_max(), Ordering::Relaxed);
                return link.clone();
            }
            if receiver.changed().await.is_err() {
                // The process is stopping, and the runtime drops this future.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Logs that a result of this app went to `.unrouted` instead of this queue.
    pub fn log_unrouted(&self, app: &str, queue: &str, reason: &str) {
        let told = self
            .shared
            .unrouted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .note(app, Instant::now());
        if let Some(results) = told {
            warn!(
                app,
                results,
                queue,
                reason,
                "results went to .unrouted, the last one instead of this queue; see `groupcast \
                    unrouted list`"
            );
        }
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_taken(
        &self,
        app: &str,
        queue: &str,
        trouble: QueueTrouble,
        was_tried: bool,
    ) -> Published {
        let told = self.troubles().not_taken(app, queue, trouble, was_tried, Instant::now());
        if let LogAction::Refused(messages) = told {
            warn!(app, queue, messages, reason = %trouble, "a queue takes no messages at present");
        }
        Published::NotTaken(trouble)
    }

    /// The message with headers that fit into a frame of the link.
    fn fitting<'a>(&self, app: &str, message: &'a Outgoing, link: &dyn Link) -> Cow<'a, Outgoing> {
        let Some((properties, left_out)) = frame::fit(&message.properties, link.frame_max()) else {
            return Cow::Borrowed(message);
        };
        let left_out: Vec<String> =
            left_out.iter().map(|(name, bytes)| format!("{name} ({bytes} bytes)")).collect();
        let (queue, job_id, left_out) =
            (message.target.queue(), job_id(message), left_out.join(", "));
        warn!(
            app,
            queue,
            job_id,
            left_out,
            "left out or shortened headers that do not fit into a frame of the broker"
        );
        Cow::Owned(Outgoing { properties, ..message.clone() })
    }

    /// Waits until the number of messages in flight for a producer's queue is below its limit.
    async fn permit_for(&self, queue: &str) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut under_way =
                self.shared.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            if under_way.len() >= MOST_SEMAPHORES {
                under_way.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            }
            let new = || Arc::new(Semaphore::new(MAX_IN_FLIGHT_PER_QUEUE));
            under_way.entry(queue.to_owned()).or_insert_with(new).clone()
        };
        semaphore.acquire_owned().await.expect("never closed")
    }
}

/// Above this number, the semaphores of queues without messages in flight are dropped.
const MOST_SEMAPHORES: usize = 1000;
/// How often to check whether the broker still blocks publishers.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Tries once to publish, on the given link.
pub async fn attempt_on(link: &dyn Link, message: &Outgoing) -> Result<Routing, Unconfirmed> {
    match &message.target {
        Destination::Own(queue) => {
            link.publish(PublishLane::Own, queue, Mandatory::Yes, message).await
        }
        Destination::Producer(queue) => {
            link.publish(PublishLane::Producers, queue, Mandatory::Yes, message).await
        }
        Destination::Direct(address) if link.has_requester(address).await? => {
            link.publish(PublishLane::Producers, address, Mandatory::No, message).await
        }
        Destination::Direct(_) => Ok(Routing::NoSuchQueue),
    }
}

async fn restore_queues(link: &dyn Link) {
    if let Err(error) = link.restore_queues().await {
        debug!(%error, "a queue of ours is missing");
    }
}

/// The id of the job that a message belongs to.
fn job_id(message: &Outgoing) -> &str {
    message.properties.message_id().as_ref().map_or("", |id| id.as_str())
}

/// What a message keeps when the broker refuses it as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeptParts {
    /// All properties, and the daemon's headers. The producer's headers may be more than the broker
    /// takes.
    Properties,
    /// The id and the daemon's headers.
    Id,
}

fn without_producers_additions(properties: &BasicProperties, kept: KeptParts) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if name.as_str().starts_with("groupcast-") {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = match (kept, properties.message_id()) {
        (KeptParts::Properties, _) => properties.clone(),
        (KeptParts::Id, Some(id)) => BasicProperties::default().with_message_id(id.clone()),
        (KeptParts::Id, None) => BasicProperties::default(),
    };
    properties.with_headers(headers).with_delivery_mode(2)
}

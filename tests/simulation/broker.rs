//! A broker in memory. It keeps the messages that it has confirmed. It takes unacknowledged
//! messages back when a consumer is gone, and it has one active consumer. Confirms come late, in
//! any order, or not at all.

mod partition;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use self::partition::Partition;
use super::{
    defects::Defect,
    scenario::{APP, FULL, MISSING, REPLIES, SILENT, Span},
    world::{Life, Shared},
};
use crate::{
    broker::{
        BrokerError, Destination, Outgoing, Routing, frame,
        publisher::{Link, LinkState, Mandatory, PublishLane, QueueState, Unconfirmed, attempt_on},
        wire,
    },
    job::REPLY_TO_HEADER,
    settle::result::{ErrorKind, JobResult, Status},
    subscribe::{
        consume::{Delivery, Queue, Source, Subscription},
        lease::Acknowledge,
    },
    watch,
};

/// How long a daemon waits for calls in flight before it gives the other jobs back.
const DRAINED_WITHIN: Duration = Duration::from_secs(20);
/// No delivery is held longer: ten minutes, and then the calls in flight.
const HELD_AT_MOST: Duration = Duration::from_secs(11 * 60);
/// How long the daemon may try to publish a result to a full queue: some seconds, and the time in
/// which the connection is away or blocked.
const TRIED_AT_MOST: Duration = Duration::from_secs(120);
/// How long a publisher waits for a confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Message {
    body: Vec<u8>,
    properties: BasicProperties,
    /// A header that the AMQP library cannot read, as sent on the wire.
    unreadable: Option<Vec<u8>>,
    /// How often the message came back because its consumer ended.
    returns: u32,
}

impl Message {
    /// The properties that a consumer reads. `None` if the library closes the connection over them.
    fn read(&self, looked_at: bool) -> Option<BasicProperties> {
        let Some(header) = &self.unreadable else { return Some(self.properties.clone()) };
        wire::as_read(&self.properties, header, looked_at)
    }
}

/// What happened to a message that a producer published. In the order of the plan.
#[derive(Default)]
pub struct Fate {
    pub results: Vec<JobResult>,
    pub letters: Vec<Vec<u8>>,
    pub parkings: usize,
    acknowledged: usize,
    /// Whether the broker gave the message up.
    pub given_up: bool,
    /// Since when a full queue has refused this delivery's result.
    refused_since: Option<Instant>,
    /// Whether the last publish had a transient refusal.
    refused_in_passing: bool,
}

impl Fate {
    /// Whether each acknowledged delivery was parked or answered before. `recorded` says whether
    /// the result is recorded, if the job has a record.
    fn is_settled(&self, recorded: bool) -> bool {
        let answered = self.acknowledged.saturating_sub(self.parkings);
        let needs_record = self
            .results
            .iter()
            .any(|result| !result.duplicate && result.status != Status::Rejected);
        answered <= self.results.len() && (answered == 0 || !needs_record || recorded)
    }

    fn has_its_letter(&self) -> bool {
        !self.letters.is_empty() || !self.results.iter().any(needs_letter)
    }
}

pub struct Broker {
    jobs: VecDeque<Message>,
    /// Jobs that the broker has given up.
    undeliverable: VecDeque<Message>,
    /// The broker gives a job up if it goes back more often.
    delivery_limit: u32,
    waiting: usize,
    consumers: Vec<Consumer>,
    next_id: u64,
    missing_queues: BTreeSet<String>,
    blocked: bool,
    partition: Partition,
    pub fates: Vec<Fate>,
    changed: Arc<Notify>,
    unblocked: Arc<Notify>,
}

struct Consumer {
    id: u64,
    life: Arc<Life>,
    gone: Arc<AtomicBool>,
    cancelled: bool,
    /// Copies of jobs that the consumer still gets, if its node has lost its peers.
    cut_off: Option<VecDeque<Message>>,
    unacknowledged: BTreeMap<u64, (Message, Instant)>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held: Vec<usize> =
            self.consumers.iter().map(|consumer| consumer.unacknowledged.len()).collect();
        let results: Vec<usize> = self.fates.iter().map(|fate| fate.results.len()).collect();
        write!(
            out,
            "{} ready, {} in wait queues, {held:?} held, results {results:?}",
            self.jobs.len(),
            self.waiting
        )
    }
}

/// The plan's number of a message: its correlation id.
fn number(properties: &BasicProperties) -> Option<usize> {
    properties.correlation_id().as_ref()?.as_str().parse().ok()
}

/// Whether a redrive could send anything.
fn needs_letter(result: &JobResult) -> bool {
    let is_to_be_redriven =
        |kind: ErrorKind| !matches!(kind, ErrorKind::Unknown | ErrorKind::Cancelled);
    !result.duplicate
        && result.status != Status::Cancelled
        && result.errors.iter().any(|error| is_to_be_redriven(error.kind))
}

impl Broker {
    pub fn new(messages: usize, delivery_limit: u32) -> Self {
        Self {
            jobs: VecDeque::new(),
            undeliverable: VecDeque::new(),
            delivery_limit,
            waiting: 0,
            consumers: Vec::new(),
            next_id: 0,
            missing_queues: BTreeSet::new(),
            blocked: false,
            partition: Partition::default(),
            fates: std::iter::repeat_with(Fate::default).take(messages).collect(),
            changed: Arc::default(),
            unblocked: Arc::default(),
        }
    }

    pub fn is_quiet(&self) -> bool {
        let held = self.consumers.iter().any(|consumer| !consumer.unacknowledged.is_empty());
        self.jobs.is_empty() && self.undeliverable.is_empty() && self.waiting == 0 && !held
    }

    /// Whether a process holds a delivery of one of these messages.
    pub fn holds(&self, life: &Arc<Life>, numbers: &[usize]) -> bool {
        let of = |consumer: &&Consumer| {
            Arc::ptr_eq(&consumer.life, life) && !consumer.gone.load(Ordering::Relaxed)
        };
        let mut held =
            self.consumers.iter().filter(of).flat_map(|consumer| consumer.unacknowledged.values());
        held.any(|(message, _)| {
            number(&message.properties).is_some_and(|number| numbers.contains(&number))
        })
    }

    fn enqueue_job(&mut self, message: Message) {
        self.jobs.push_back(message);
        self.changed.notify_waiters();
    }

    /// Removes these consumers, and takes their deliveries back.
    fn remove(&mut self, which: impl Fn(&Consumer) -> bool) {
        let (removed, left) =
            std::mem::take(&mut self.consumers).into_iter().partition(|consumer| which(consumer));
        self.consumers = left;
        for consumer in <Vec<Consumer>>::into_iter(removed).rev() {
            consumer.gone.store(true, Ordering::Relaxed);
            // The broker has already taken back the deliveries of a consumer that is cut off.
            if consumer.cut_off.is_none() {
                self.take_back(
                    consumer.unacknowledged.into_values().map(|(message, _)| message).collect(),
                );
            }
        }
        self.changed.notify_waiters();
    }

    fn take_back(&mut self, deliveries: Vec<Message>) {
        for mut message in deliveries.into_iter().rev() {
            message.returns += 1;
            if message.returns > self.delivery_limit {
                self.give_up(message);
            } else {
                self.jobs.push_front(message);
            }
        }
    }

    fn give_up(&mut self, message: Message) {
        if let Some(number) = number(&message.properties) {
            self.fates[number].given_up = true;
        }
        self.undeliverable.push_back(message);
    }
}

impl Shared {
    pub fn publish_job(
        &self,
        body: Vec<u8>,
        properties: BasicProperties,
        unreadable: Option<Vec<u8>>,
    ) {
        self.lock().broker.enqueue_job(Message { body, properties, unreadable, returns: 0 });
    }

    /// Breaks the connections of a process.
    pub fn disconnect(&self, life: &Arc<Life>) {
        self.note(format_args!("replica {} is disconnected", life.replica));
        self.interrupted();
        self.lock().broker.remove(|consumer| Arc::ptr_eq(&consumer.life, life));
    }

    pub fn block(&self, blocked: bool) {
        self.note(format_args!("publishing is blocked: {blocked}"));
        let mut world = self.lock();
        world.broker.blocked = blocked;
        world.broker.unblocked.notify_waiters();
    }

    fn accept(&self, queue: &str, message: &Outgoing) {
        let number = number(&message.properties).expect("the daemon keeps correlation ids");
        self.note(format_args!("{queue} takes message {number}"));
        if queue.starts_with(&format!("groupcast.{APP}.wait.")) {
            return self.accept_parked(queue, number, message);
        }
        let unrouted = format!("groupcast.{APP}.unrouted");
        if queue == unrouted {
            self.check_unrouted(number, message);
        }
        let mut world = self.lock();
        if queue == format!("groupcast.{APP}.jobs") {
            // A given-up job, which another replica passes on to the one with the app's jobs.
            let (body, properties) = (message.body.clone(), message.properties.clone());
            world.broker.fates[number].parkings += 1;
            return world.broker.enqueue_job(Message {
                body,
                properties,
                unreadable: None,
                returns: 0,
            });
        }
        let fate = &mut world.broker.fates[number];
        if [REPLIES, FULL, SILENT].contains(&queue) || queue == unrouted {
            fate.refused_since = None;
            fate.results.push(serde_json::from_slice(&message.body).expect("a result"));
            let complete = fate.has_its_letter();
            drop(world);
            if !complete {
                self.broken(format!(
                    "message {number} was answered before its dead letter was confirmed"
                ));
            }
        } else if queue == format!("groupcast.{APP}.dead") {
            fate.letters.push(message.body.clone());
        } else {
            drop(world);
            self.broken(format!("published to {queue}"));
        }
    }

    /// Checks that only a result belongs there whose reply queue is missing or full, or over which
    /// the broker closes connections.
    fn check_unrouted(&self, number: usize, message: &Outgoing) {
        let planned = &self.scenario().messages[number];
        let was_full = planned.reply_to == FULL
            && self.scenario().full.is_some_and(|full| self.elapsed() >= full.span.from);
        if !(planned.reply_to == MISSING || was_full || planned.poison) {
            self.broken(format!(
                "the result of message {number} is in .unrouted although its reply queue takes \
                    results"
            ));
        }
        let headers = message.properties.headers().clone().unwrap_or_default();
        if headers.inner().get(REPLY_TO_HEADER)
            != Some(&AMQPValue::LongString(planned.reply_to.into()))
        {
            self.broken(format!(
                "the result of message {number} in .unrouted does not say where it was meant for"
            ));
        }
    }

    fn is_in(&self, span: Span) -> bool {
        (span.from..span.until).contains(&self.elapsed())
    }

    fn is_full(&self, queue: &str) -> bool {
        self.scenario().full.is_some_and(|full| {
            let is_meant = match queue.rsplit_once('.') {
                _ if queue == FULL => true,
                Some((_, "dead")) => full.dead_too,
                Some((_, "unrouted")) => full.unrouted_too,
                Some((before, _)) if before.ends_with(".wait") => full.waits_too,
                _ => false,
            };
            is_meant && self.is_in(full.span)
        })
    }

    /// A full queue refuses a message.
    fn refuse(&self, queue: &str, number: usize) {
        self.note(format_args!("{queue} is full and refuses message {number}"));
        let has_nowhere_to_go =
            self.scenario().full.is_some_and(|full| full.unrouted_too && full.waits_too);
        if queue != FULL || has_nowhere_to_go {
            return;
        }
        let since =
            *self.lock().broker.fates[number].refused_since.get_or_insert_with(Instant::now);
        if since.elapsed() > TRIED_AT_MOST {
            self.broken(format!(
                "message {number} has waited {:?} for a full reply queue",
                since.elapsed()
            ));
        }
    }

    /// Whether a publish is refused although the queue has room. This does not happen twice in a
    /// row to a message.
    fn is_refused_in_passing(&self, number: usize) -> bool {
        let happens = self.happens(self.scenario().faults.publish_nacked);
        let fate = &mut self.lock().broker.fates[number];
        fate.refused_in_passing = happens && !fate.refused_in_passing;
        fate.refused_in_passing
    }

    fn accept_parked(&self, queue: &str, number: usize, message: &Outgoing) {
        if message
            .properties
            .headers()
            .as_ref()
            .is_some_and(|headers| headers.inner().contains_key("x-death"))
        {
            self.broken(format!(
                "message {number} takes its x-death to {queue}, where a broker would drop it"
            ));
        }
        let seconds: u64 =
            queue.rsplit('.').next().and_then(|wait| wait.parse().ok()).expect("a wait in seconds");
        let mut headers = message.properties.headers().clone().unwrap_or_default();
        headers.insert("x-death".into(), AMQPValue::FieldTable(FieldTable::default()));
        let properties = message.properties.clone().with_headers(headers);
        let returned =
            Message { body: message.body.clone(), properties, unreadable: None, returns: 0 };
        let mut world = self.lock();
        world.broker.fates[number].parkings += 1;
        world.broker.fates[number].refused_since = None;
        world.broker.waiting += 1;
        drop(world);
        let shared = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(seconds)).await;
            shared.note(format_args!("message {number} comes back from {seconds} s of waiting"));
            let mut world = shared.lock();
            world.broker.waiting -= 1;
            world.broker.enqueue_job(returned);
        });
    }
}

/// The jobs queue, for one process.
pub struct SimulatedQueue {
    pub world: Shared,
    pub life: Arc<Life>,
}

pub struct SimulatedSubscription {
    world: Shared,
    life: Arc<Life>,
    id: u64,
    gone: Arc<AtomicBool>,
    prefetch: usize,
}

impl Queue for SimulatedQueue {
    type Subscription = SimulatedSubscription;

    async fn subscribe(&self, prefetch: u16) -> Result<SimulatedSubscription, BrokerError> {
        self.world.round_trip().await;
        self.life.until_known_alive().await;
        let gone = Arc::new(AtomicBool::new(false));
        let mut world = self.world.lock();
        let id = world.broker.next_id;
        world.broker.next_id += 1;
        world.broker.consumers.push(Consumer {
            id,
            life: self.life.clone(),
            gone: gone.clone(),
            cancelled: false,
            cut_off: None,
            unacknowledged: BTreeMap::new(),
        });
        let prefetch = usize::from(prefetch);
        Ok(SimulatedSubscription {
            world: self.world.clone(),
            life: self.life.clone(),
            id,
            gone,
            prefetch,
        })
    }
}

impl SimulatedSubscription {
    fn try_next(&self) -> Option<Result<Delivery, BrokerError>> {
        if self.gone.load(Ordering::Relaxed) {
            return Some(Err(BrokerError::lost("consume", "disconnected")));
        }
        let broker = &mut self.world.lock().broker;
        let id = broker.next_id;
        let is_active = broker
            .consumers
            .iter()
            .find(|consumer| consumer.is_active())
            .is_some_and(|active| active.id == self.id);
        let consumer = broker
            .consumers
            .iter_mut()
            .find(|consumer| consumer.id == self.id && !consumer.cancelled)?;
        // Each replica reads the jobs that the broker has given up.
        let reads = !self.world.has(Defect::UndeliverableUnread);
        let has_room = consumer.unacknowledged.len() < self.prefetch;
        let (source, message) = match &mut consumer.cut_off {
            Some(copies) => (Source::Jobs, copies.pop_front_if(|_| has_room)?),
            None => match broker.undeliverable.pop_front_if(|_| reads) {
                Some(message) => (Source::Undeliverable, message),
                None => (Source::Jobs, broker.jobs.pop_front_if(|_| is_active && has_room)?),
            },
        };
        broker.next_id += 1;
        if let Some(number) = number(&message.properties) {
            broker.fates[number].refused_since = None;
        }
        consumer.unacknowledged.insert(id, (message.clone(), Instant::now()));
        let acknowledge = SimulatedDelivery {
            world: self.world.clone(),
            life: self.life.clone(),
            consumer: self.id,
            id,
            gone: self.gone.clone(),
        };
        let Some(properties) = message.read(!self.world.has(Defect::UnreadablePassed)) else {
            // The library closes the connection, and all its deliveries go back.
            broker.remove(|consumer| consumer.id == self.id);
            return Some(Err(BrokerError::lost("consume", "failed to parse")));
        };
        let Message { body, returns, .. } = message;
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(returns.into()));
        let properties = properties.with_headers(headers);
        Some(Ok(Delivery { source, body, properties, acknowledge: Arc::new(acknowledge) }))
    }
}

impl Subscription for SimulatedSubscription {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let changed = self.world.lock().broker.changed.clone();
        loop {
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            self.life.until_known_alive().await;
            if let Some(delivery) = self.try_next() {
                return delivery;
            }
            notified.await;
        }
    }

    async fn confirm(&self) -> Result<(), BrokerError> {
        self.world.round_trip().await;
        self.life.until_known_alive().await;
        let gone = self.gone.load(Ordering::Relaxed);
        if gone { Err(BrokerError::lost("confirm", "disconnected")) } else { Ok(()) }
    }

    async fn look_for_jobs(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn cancel<T: Send>(&mut self, done: impl Future<Output = T> + Send) -> T {
        if self.world.has(Defect::CutAtOnce) {
            self.world.lock().broker.remove(|consumer| consumer.id == self.id);
        }
        let begun = Instant::now();
        let cancelled = async {
            self.world.round_trip().await;
            {
                let broker = &mut self.world.lock().broker;
                let ours = broker.consumers.iter_mut().filter(|consumer| consumer.id == self.id);
                ours.for_each(|consumer| consumer.cancelled = true);
                broker.changed.notify_waiters();
            }
            std::future::pending().await
        };
        let done = tokio::select! {
            biased;
            done = done => done,
            () = cancelled => unreachable!("it is pending"),
        };
        if begun.elapsed() >= DRAINED_WITHIN {
            // A job that is not settled by then starts anew if it has no record.
            self.world.interrupted();
        }
        done
    }

    async fn close(self) {
        // A job that could not be parked goes back. Without an id it starts anew.
        if self.world.scenario().full.is_some_and(|full| full.waits_too) {
            self.world.interrupted();
        }
        self.world.lock().broker.remove(|consumer| consumer.id == self.id);
    }
}

struct SimulatedDelivery {
    world: Shared,
    life: Arc<Life>,
    consumer: u64,
    id: u64,
    gone: Arc<AtomicBool>,
}

impl SimulatedDelivery {
    fn settle(&self) -> Result<(), BrokerError> {
        let lost = || BrokerError::lost("acknowledge", "disconnected");
        let (number, held) = {
            let broker = &mut self.world.lock().broker;
            let consumer = broker
                .consumers
                .iter_mut()
                .find(|consumer| consumer.id == self.consumer)
                .ok_or_else(lost)?;
            let (message, since) = consumer.unacknowledged.remove(&self.id).ok_or_else(lost)?;
            let number = number(&message.properties).expect("each message has one");
            if consumer.cut_off.is_some() {
                broker.changed.notify_waiters();
                return Ok(());
            }
            broker.fates[number].acknowledged += 1;
            broker.changed.notify_waiters();
            (number, since.elapsed())
        };
        let settled = {
            let world = self.world.lock();
            let id = self.world.scenario().messages[number].id.as_ref();
            world.broker.fates[number].is_settled(id.is_none_or(|id| world.records.has_result(id)))
        };
        self.world.note(format_args!("message {number} is acknowledged"));
        if !settled {
            self.world.broken(format!(
                "message {number} was acknowledged before what it owes was confirmed"
            ));
        }
        if held > HELD_AT_MOST {
            self.world.broken(format!("message {number} was held for {held:?}"));
        }
        Ok(())
    }
}

impl Acknowledge for SimulatedDelivery {
    fn acknowledge(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async {
            self.world.round_trip().await;
            self.life.until_known_alive().await;
            if self.world.happens(self.world.scenario().faults.ack_lost) {
                // The acknowledgement was written, and then the connection broke.
                self.world.disconnect(&self.life);
                return Ok(());
            }
            self.settle()
        })
    }

    fn give_back(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async {
            self.world.round_trip().await;
            self.life.until_known_alive().await;
            let lost = || BrokerError::lost("give back", "disconnected");
            let broker = &mut self.world.lock().broker;
            let consumer = broker
                .consumers
                .iter_mut()
                .find(|consumer| consumer.id == self.consumer)
                .ok_or_else(lost)?;
            let (message, _) = consumer.unacknowledged.remove(&self.id).ok_or_else(lost)?;
            if consumer.cut_off.is_none() {
                broker.take_back(vec![message]);
            }
            broker.changed.notify_waiters();
            Ok(())
        })
    }

    fn is_taken_away(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// A publishing connection of one process.
pub struct SimulatedLink {
    world: Shared,
    life: Arc<Life>,
    alive: AtomicBool,
    /// Whether the broker closed the connection over a message.
    killed: AtomicBool,
    ended: Notify,
}

/// Keeps a link open for a process.
pub async fn keep_linked(world: Shared, life: Arc<Life>, sender: watch::Sender<LinkState>) {
    loop {
        world.round_trip().await;
        let link = Arc::new(SimulatedLink::new(world.clone(), life.clone()));
        sender.send_replace(LinkState::Yes(link.clone()));
        link.ended.notified().await;
        sender.send_replace(LinkState::No { reason: "lost".into() });
        sleep(world.up_to(Duration::from_secs(1))).await;
    }
}

impl SimulatedLink {
    fn new(world: Shared, life: Arc<Life>) -> Self {
        Self {
            world,
            life,
            alive: AtomicBool::new(true),
            killed: AtomicBool::new(false),
            ended: Notify::new(),
        }
    }

    fn lost(&self) -> Unconfirmed {
        let error = BrokerError::lost("publish", "disconnected");
        if self.killed.load(Ordering::Relaxed) {
            Unconfirmed::Fatal(error)
        } else {
            Unconfirmed::Lost(error)
        }
    }

    async fn attempt(
        &self,
        queue: &str,
        mandatory: Mandatory,
        message: &Outgoing,
    ) -> Result<Routing, Unconfirmed> {
        let faults = &self.world.scenario().faults;
        let number = number(&message.properties).expect("the daemon keeps correlation ids");
        self.until_unblocked().await;
        self.world.round_trip().await;
        self.life.until_known_alive().await;
        if !self.is_alive() {
            return Err(self.lost());
        }
        if self.world.happens(faults.publish_lost / 2.0) {
            self.give_up();
            return Err(self.lost());
        }
        let headers = message.properties.headers().clone().unwrap_or_default();
        if headers.inner().contains_key("tracestate") {
            self.world.note(format_args!("the broker closes a connection over message {number}"));
            self.killed.store(true, Ordering::Relaxed);
            self.give_up();
            return Err(self.lost());
        }
        let is_silent = queue == SILENT
            && self.world.scenario().silent.is_some_and(|span| self.world.is_in(span));
        // Even a node that is cut off knows that this queue does not exist.
        let is_in_vain = queue != MISSING && self.world.publishes_in_vain(&self.life);
        if is_silent || is_in_vain {
            return self.say_nothing(queue, message).await;
        }
        while self.world.is_full(queue) {
            self.world.refuse(queue, number);
            if !self.world.has(Defect::WaitForFullQueue) || self.world.is_broken() {
                return Err(Unconfirmed::Nacked);
            }
            sleep(Duration::from_secs(1)).await;
        }
        if self.world.is_refused_in_passing(number) {
            return Err(Unconfirmed::Nacked);
        }
        let own = queue.starts_with("groupcast.");
        if own && self.world.happens(faults.own_queue_missing) {
            self.world.lock().broker.missing_queues.insert(queue.to_owned());
        }
        let missing = queue == MISSING || self.world.lock().broker.missing_queues.contains(queue);
        match (missing, mandatory) {
            (true, Mandatory::Yes) => return Ok(Routing::NoSuchQueue),
            (true, Mandatory::No) => return Ok(Routing::Routed),
            (false, _) => self.world.accept(queue, message),
        }
        self.world.round_trip().await;
        self.life.until_known_alive().await;
        if self.world.happens(faults.publish_lost / 2.0) {
            self.give_up();
        }
        if self.is_alive() { Ok(Routing::Routed) } else { Err(self.lost()) }
    }

    /// The queue takes the message or not, and the broker confirms nothing.
    async fn say_nothing(&self, queue: &str, message: &Outgoing) -> Result<Routing, Unconfirmed> {
        if self.world.coin() {
            self.world.accept(queue, message);
        }
        sleep(CONFIRM_TIMEOUT).await;
        self.life.until_known_alive().await;
        match self.is_alive() {
            true if self.world.has(Defect::SilenceIsMissing) => Ok(Routing::NoSuchQueue),
            true => Err(Unconfirmed::Silent(BrokerError::lost("publish", "no confirm"))),
            false => Err(self.lost()),
        }
    }

    async fn until_unblocked(&self) {
        let unblocked = self.world.lock().broker.unblocked.clone();
        loop {
            let mut notified = std::pin::pin!(unblocked.notified());
            notified.as_mut().enable();
            if !self.is_blocked() {
                return;
            }
            notified.await;
        }
    }

    /// The defect of a daemon that treats a written message as confirmed.
    fn without_waiting(&self, queue: &str, mandatory: Mandatory, message: &Outgoing) -> Routing {
        let (world, life) = (self.world.clone(), self.life.clone());
        let (queue, message) = (queue.to_owned(), message.clone());
        tokio::spawn(async move {
            let link = SimulatedLink::new(world, life);
            let _ = link.attempt(&queue, mandatory, &message).await;
        });
        Routing::Routed
    }
}

impl Link for SimulatedLink {
    fn publish<'a>(
        &'a self,
        _: PublishLane,
        queue: &'a str,
        mandatory: Mandatory,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>> {
        Box::pin(async move {
            let mandatory =
                if self.world.has(Defect::NotMandatory) { Mandatory::No } else { mandatory };
            let defect = match queue {
                parked if parked.contains(".wait.") => Defect::ParkWithoutConfirm,
                dead if dead.ends_with(".dead") => Defect::LetterWithoutConfirm,
                _ => Defect::AckBeforeConfirm,
            };
            if self.world.has(defect) {
                return Ok(self.without_waiting(queue, mandatory, message));
            }
            self.attempt(queue, mandatory, message).await
        })
    }

    fn publish_alone<'a>(
        &'a self,
        message: &'a Outgoing,
    ) -> BoxFuture<'a, Result<Routing, Unconfirmed>> {
        Box::pin(async {
            if self.world.has(Defect::BlameAllUnderWay)
                && !matches!(message.target, Destination::Own(_))
            {
                return Err(Unconfirmed::Fatal(BrokerError::lost(
                    "publish",
                    "it was under way then",
                )));
            }
            self.world.round_trip().await;
            attempt_on(&SimulatedLink::new(self.world.clone(), self.life.clone()), message).await
        })
    }

    fn may_publish(&self) -> BoxFuture<'_, Result<bool, Unconfirmed>> {
        Box::pin(async {
            self.world.round_trip().await;
            self.life.until_known_alive().await;
            if self.is_alive() { Ok(true) } else { Err(self.lost()) }
        })
    }

    fn frame_max(&self) -> usize {
        frame::DEFAULT_FRAME_MAX
    }

    fn has_requester<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool, Unconfirmed>> {
        Box::pin(async { Ok(true) })
    }

    fn queue_state<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<QueueState, Unconfirmed>> {
        Box::pin(async {
            self.world.round_trip().await;
            let broker = &self.world.lock().broker;
            let consumers =
                broker.consumers.iter().filter(|consumer| consumer.is_active()).count() as u32;
            Ok(QueueState { messages: broker.jobs.len() as u32, consumers })
        })
    }

    fn restore_queues(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async {
            self.world.round_trip().await;
            self.world.lock().broker.missing_queues.clear();
            Ok(())
        })
    }

    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    fn is_blocked(&self) -> bool {
        self.world.lock().broker.blocked
    }

    fn give_up(&self) {
        self.alive.store(false, Ordering::Relaxed);
        self.ended.notify_one();
    }
}

//! Keeps one app's subscription alive and hands its deliveries out.
//!
//! Any error, the end of the stream, or a wait past its bound ends the subscription. Its leases are
//! lost, and the work on them gets a bounded time to end before a new subscription begins. Work
//! that still waits for the state store then goes on, and `Claims` keeps this process from working
//! on its job twice at a time.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    future::ready,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use lapin::BasicProperties;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    lease::{Acknowledge, Lease},
    prefetch::Prefetch,
};
use crate::{broker::BrokerError, clock::Moment, delay, subscribe::ack_batch::AckBatch};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// After this time without a delivery, the daemon asks the broker whether jobs wait in the queue.
const SILENCE: Duration = Duration::from_secs(60);
/// The same for a subscription that never had a delivery. Most likely another replica has the jobs.
const STANDBY_SILENCE: Duration = Duration::from_secs(15 * 60);
/// If a subscription lived longer than this, its end counts as a new fault, and the delay before
/// the next attempt is short again.
const TRUSTED_AFTER: Duration = Duration::from_secs(10);
/// A process that has not looked at its subscription for this long was frozen. The broker may have
/// given its jobs to another replica.
pub const FROZEN_AFTER: Duration = Duration::from_secs(3);
/// How often the process looks at its subscription while it has jobs.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How long calls in flight and their results may take after the end of a subscription.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Which of an app's queues a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The jobs queue. The daemon sends these jobs.
    Jobs,
    /// The queue of jobs that the broker has given up. The daemon answers these without a call.
    Undeliverable,
}

/// A message delivered and not yet acknowledged.
pub struct Delivery {
    pub source: Source,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    pub acknowledge: Arc<dyn Acknowledge>,
}

/// When the oldest unacknowledged delivery of each queue came.
#[derive(Debug, Default)]
pub struct OldestDeliveries {
    jobs: Option<Instant>,
    undeliverable: Option<Instant>,
}

impl OldestDeliveries {
    /// `in_hand` is in the order of arrival.
    fn among(in_hand: &BTreeMap<u64, (Source, Instant)>) -> Self {
        let oldest = |queue| {
            in_hand.values().find(|(source, _)| *source == queue).map(|(_, came_at)| *came_at)
        };
        Self { jobs: oldest(Source::Jobs), undeliverable: oldest(Source::Undeliverable) }
    }

    pub fn of(&self, source: Source) -> Option<Instant> {
        match source {
            Source::Jobs => self.jobs,
            Source::Undeliverable => self.undeliverable,
        }
    }
}

/// A queue to subscribe to: the broker's, or in tests one in memory.
pub trait Queue: Send + Sync + 'static {
    type Subscription: Subscription;
    /// Subscribes. The broker delivers at most `prefetch` unacknowledged jobs at a time.
    fn subscribe(
        &self,
        prefetch: u16,
    ) -> impl Future<Output = Result<Self::Subscription, BrokerError>> + Send;
}

/// A live subscription.
pub trait Subscription: Send {
    /// The next delivery. An error is the end of the subscription.
    fn next(&mut self) -> impl Future<Output = Result<Delivery, BrokerError>> + Send;
    /// Asks the broker whether the subscription is still there.
    fn confirm(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Fails if jobs wait in the queue and none is delivered. A subscription can be dead without
    /// another sign of it.
    fn look_for_jobs(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// After the end of the subscription: the broker's time limit for acknowledgements, if this
    /// limit ended it.
    fn acknowledgement_timeout(
        &mut self,
        _oldest: &OldestDeliveries,
    ) -> impl Future<Output = Option<Duration>> + Send {
        ready(None)
    }
    /// Cancels the subscription, so that a standby replica may begin. Until `done` ends, drops
    /// deliveries that still arrive.
    fn cancel<T: Send>(
        &mut self,
        done: impl Future<Output = T> + Send,
    ) -> impl Future<Output = T> + Send;
    /// Ends the subscription. Unacknowledged deliveries go back to the queue.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Works on deliveries. The pipeline implements it.
pub trait Work: Send + Sync + 'static {
    type Error: Display + Send;
    /// Returns when the daemon can work on deliveries.
    fn until_ready(&self) -> impl Future<Output = ()> + Send;
    /// Returns when the daemon should hold no job of the app, and says why.
    fn until_paused(&self) -> impl Future<Output = Pause> + Send;
    /// Notes the first delivery from the jobs queue. Until then another replica may have been the
    /// active one.
    fn begin(&self);
    /// Notes that the subscription existed a moment ago. No call starts if the last such note is
    /// older than [`FROZEN_AFTER`].
    fn is_subscribed(&self);
    /// Processes one delivery, up to its acknowledgement.
    fn process(
        &self,
        delivery: Delivery,
        lease: Lease,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Notes that the broker takes back deliveries that are not acknowledged within this time.
    fn acknowledge_within(&self, _timeout: Duration) {}
    /// Notes that the subscription's leases no longer allow calls.
    fn calls_have_ended(&self);
}

/// Whether an app has a subscription. `/readyz` and the status page show it.
#[derive(Debug, Clone)]
pub enum Subscribed {
    /// The app has a subscription, but no job has come. Another replica may have the jobs.
    NoJobYet,
    Yes,
    No {
        reason: String,
    },
}

impl Subscribed {
    /// The state before the first attempt to subscribe.
    pub fn not_yet() -> watch::Sender<Self> {
        watch::Sender::new(Self::No { reason: "it has not begun to consume yet".into() })
    }
}

/// Why the daemon should hold no job of the app. [`Work::until_ready`] returns when the reason is
/// gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The breaker or an operator has paused the app.
    App,
    StoreAway,
    /// Another replica has the jobs too, and took them over later.
    Displaced,
    PublisherAway,
}

/// Why a subscription ended.
enum Ended {
    Stopped,
    Paused(Pause),
    /// The held jobs need another prefetch. `jobs` is their number, and `bytes` is their size
    /// together.
    Resized {
        jobs: usize,
        bytes: u64,
    },
    Lost(BrokerError),
}

/// Consumes until `stop`. Then finishes the calls in flight and gives the other jobs back to the
/// queue.
pub async fn consume<Q: Queue, W: Work>(
    app: &str,
    queue: &Q,
    work: Arc<W>,
    mut prefetch: Prefetch,
    told: watch::Sender<Subscribed>,
    stop: CancellationToken,
) {
    let mut failures = 0;
    let subscribe = async |prefetch| {
        work.until_ready().await;
        queue.subscribe(prefetch).await
    };
    while let Some(subscribed) = stop.run_until_cancelled(subscribe(prefetch.present())).await {
        match subscribed {
            Ok(mut subscription) => {
                info!(app, "consuming");
                told.send_replace(Subscribed::NoJobYet);
                let since = Instant::now();
                let ended =
                    hand_out(app, &mut subscription, &work, &mut prefetch, &told, &stop).await;
                subscription.close().await;
                // The delay grows. Subscriptions that end at once, again and again, must not use up
                // the broker's delivery limit of a job.
                failures = if since.elapsed() > TRUSTED_AFTER { 0 } else { failures + 1 };
                told.send_replace(Subscribed::No { reason: ended.to_string() });
                match ended {
                    Ended::Stopped => break,
                    Ended::Paused(_) => {
                        info!(app, "no longer consuming; held jobs went back to the queue");
                        continue;
                    }
                    Ended::Resized { jobs, bytes } => {
                        let at_a_time = prefetch.present();
                        info!(
                            app,
                            jobs,
                            bytes,
                            at_a_time,
                            "the size of held jobs changed; subscribing again with another prefetch"
                        );
                        continue;
                    }
                    Ended::Lost(error) => {
                        warn!(
                            app,
                            %error,
                            "lost the subscription; the broker delivers its jobs again"
                        )
                    }
                }
            }
            Err(error) => {
                failures += 1;
                warn!(app, %error, "cannot consume yet; trying again");
                told.send_replace(Subscribed::No { reason: error.to_string() });
            }
        }
        let pause = delay::after_attempt(failures, FIRST_RETRY, MAX_RETRY, delay::jitter());
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            break;
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => out.write_str("it is told to stop"),
            Self::Paused(Pause::App) => out.write_str("the app is paused"),
            Self::Paused(Pause::StoreAway) => {
                out.write_str("the state store has been away for too long")
            }
            Self::Paused(Pause::PublisherAway) => {
                out.write_str("nothing could be published for too long")
            }
            Self::Paused(Pause::Displaced) => out.write_str(
                "another replica has the app's jobs too; this one consumes anew after a pause",
            ),
            Self::Resized { .. } => out.write_str("it consumes anew, other jobs at a time"),
            Self::Lost(error) => write!(out, "{error}"),
        }
    }
}

async fn hand_out<S: Subscription, W: Work>(
    app: &str,
    subscription: &mut S,
    work: &Arc<W>,
    prefetch: &mut Prefetch,
    told: &watch::Sender<Subscribed>,
    stop: &CancellationToken,
) -> Ended {
    let calls_end = CancellationToken::new();
    let lost = CancellationToken::new();
    let ack_batch = Arc::new(AckBatch::default());
    let mut tasks = JoinSet::new();
    let mut in_hand = BTreeMap::new();
    let mut deliveries: u64 = 0;
    let mut bytes = 0;
    let mut standing_by = true;
    let mut until_stopped = pin!(stop.cancelled());
    let mut until_lost = pin!(lost.cancelled());
    let mut until_paused = pin!(work.until_paused());
    let mut look_at = Instant::now() + STANDBY_SILENCE;
    let mut until_look = pin!(sleep_until(look_at));
    let mut looked_at = Moment::long_ago();
    let ended = loop {
        let jobs = tasks.len();
        if jobs > 0 {
            if looked_at.elapsed() >= FROZEN_AFTER
                && let Err(error) = subscription.confirm().await
            {
                break Ended::Lost(error);
            }
            looked_at = Moment::now();
            work.is_subscribed();
        }
        ack_batch.set_in_hand(jobs);
        if prefetch.adapt(jobs, bytes, Instant::now()) {
            break Ended::Resized { jobs, bytes };
        }
        tokio::select! {
            biased;
            () = &mut until_stopped => break Ended::Stopped,
            () = &mut until_lost => break Ended::Lost(BrokerError::lost("settle a job", "one could \
                not be settled")),
            why = &mut until_paused => break Ended::Paused(why),
            Some(done) = tasks.join_next() => {
                let (delivery, size) = done.expect("it neither panics nor is aborted");
                in_hand.remove(&delivery);
                bytes -= size;
            }
            delivery = subscription.next() => match delivery {
                Ok(delivery) => {
                    look_at = Instant::now() + SILENCE;
                    if delivery.source == Source::Jobs && std::mem::take(&mut standing_by) {
                        until_look.as_mut().reset(look_at);
                        told.send_replace(Subscribed::Yes);
                        work.begin();
                    }
                    let acknowledge = delivery.acknowledge.clone();
                    let (calls_end, lost) = (calls_end.clone(), lost.clone());
                    let lease =
                        Lease::of_delivery(acknowledge, calls_end, lost.clone(), ack_batch.clone());
                    let (source, size) = (delivery.source, delivery.body.len() as u64);
                    bytes += size;
                    let carried = carry(work.clone(), delivery, lease, lost);
                    let number = deliveries;
                    deliveries += 1;
                    in_hand.insert(number, (source, Instant::now()));
                    tasks.spawn(async move {
                        carried.await;
                        (number, size)
                    });
                }
                Err(error) => break Ended::Lost(error),
            },
            () = sleep(LOOKS_EVERY), if jobs > 0 => {}
            () = &mut until_look => {
                if Instant::now() >= look_at {
                    if tasks.is_empty() && let Err(error) = subscription.look_for_jobs().await {
                        break Ended::Lost(error);
                    }
                    look_at = Instant::now() + if standing_by { STANDBY_SILENCE } else { SILENCE };
                }
                until_look.as_mut().reset(look_at);
            },
        }
    };
    if let Ended::Lost(_) = ended {
        lost.cancel();
    }
    // The right to calls ends before the broker learns that the subscription ends. From then on a
    // standby replica may call.
    calls_end.cancel();
    work.calls_have_ended();
    if let Ended::Lost(_) = ended
        && let Some(timeout) =
            subscription.acknowledgement_timeout(&OldestDeliveries::among(&in_hand)).await
    {
        work.acknowledge_within(timeout);
    }
    let drained = timeout(DRAIN_TIMEOUT, all_done(&mut tasks));
    let drained = match ended {
        Ended::Lost(_) => drained.await,
        Ended::Stopped | Ended::Paused(_) | Ended::Resized { .. } => {
            subscription.cancel(drained).await
        }
    };
    if drained.is_err() {
        warn!(app, "gave up waiting for {} jobs; they come again", tasks.len());
        lost.cancel();
        // While the store is away, a job waits to be recorded, without a right to calls. If its
        // task were aborted, a known outcome would not be recorded.
        tasks.detach_all();
    }
    ended
}

async fn carry<W: Work>(work: Arc<W>, delivery: Delivery, lease: Lease, lost: CancellationToken) {
    match AssertUnwindSafe(work.process(delivery, lease.clone())).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            warn!(%error, "the work on a job failed; the broker delivers the job again");
            lost.cancel();
        }
        // Give back this job alone. If its work panics each time, the broker gives it up at its
        // delivery limit.
        Err(_) => {
            error!("the work on a job panicked; it comes again");
            if lease.give_back().await.is_err() {
                lost.cancel();
            }
        }
    }
}

async fn all_done(tasks: &mut JoinSet<(u64, u64)>) {
    while tasks.join_next().await.is_some() {}
}

//! One app's pipeline: its parts, and what it does for the app's subscription.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::warn;

use super::{
    Interrupted, failures::Failures, generated_ids::GeneratedIds, measured::Measured, meter::Meter,
    reading::rules,
};
use crate::{
    accept::decode::Rules,
    api::call::Api,
    broker::{publisher::Publisher, queues},
    clock::Moment,
    config::App,
    pace::{Pacer, send_window::SPAN},
    progress::{Progress, tenure::Tenure},
    send::{self, Dispatcher, Supervision, condition::Condition},
    subscribe::{
        consume::{Delivery, FROZEN_AFTER, Pause, Work},
        lease::Lease,
    },
};

/// If the store is away for longer, the jobs go back to the queue, because another replica may have
/// a store that works. The daemon records what it knows about them before it works on them again.
const STORE_AWAY_AT_MOST: Duration = Duration::from_secs(10 * 60);
/// How long the daemon holds jobs while it cannot publish. It holds no job for more than ten
/// minutes.
const CLOSED_AT_MOST: Duration = Duration::from_secs(8 * 60);

/// One app's pipeline.
pub struct Pipeline {
    pub(super) app: String,
    /// The app's configuration, which can change while the pipeline works.
    config: watch::Sender<Arc<App>>,
    /// The waits of the wait queues, as they were at the start.
    pub(super) park: Vec<Duration>,
    max_job_bytes: u64,
    /// The longest `request_timeout` since the start. Another replica may not have read a lower
    /// value yet, so its calls may take this long.
    longest_request_timeout: Mutex<Duration>,
    pub(super) pacer: Pacer,
    pub(super) dispatcher: Dispatcher,
    pub(super) publisher: Publisher,
    pub(super) progress: Progress,
    pub(super) tenure: Tenure,
    pub(super) meter: Arc<Meter>,
    pub(super) failures: Failures,
    pub(super) generated_ids: GeneratedIds,
    /// Since when an operator has paused the app.
    pub(super) halted: watch::Sender<Option<Timestamp>>,
    /// When the present subscription took the jobs over, after its first delivery.
    pub(super) taken_over_at: Arc<Mutex<Instant>>,
    /// When the process last saw its subscription.
    subscribed_at: Arc<Mutex<Moment>>,
    /// The maximum number of recipients in a batch, set when the API refuses more.
    pub(super) largest_batch: OnceLock<u32>,
    /// Whether the subscription ended because nothing could be published.
    was_closed_for_long: AtomicBool,
}

impl Work for Pipeline {
    type Error = Interrupted;

    async fn until_ready(&self) {
        // `wait_for` does not fail, because the pipeline owns the senders.
        let _ = self.condition().wait_for(|condition| !condition.is_paused()).await;
        let _ = self.halted.subscribe().wait_for(Option::is_none).await;
        if self.was_closed_for_long.swap(false, Ordering::Relaxed) || self.publisher.is_forbidden()
        {
            self.publisher.until_open().await;
        }
        self.progress.health().until_it_works().await;
        self.tenure.until_pause_ends().await;
    }

    async fn until_paused(&self) -> Pause {
        let (mut condition, mut halted) = (self.condition(), self.halted.subscribe());
        tokio::select! {
            biased;
            _ = condition.wait_for(Condition::is_paused) => Pause::App,
            _ = halted.wait_for(Option::is_some) => Pause::App,
            () = self.tenure.until_displaced() => Pause::Displaced,
            () = self.progress.health().until_away_for(STORE_AWAY_AT_MOST) => Pause::StoreAway,
            () = self.publisher.until_closed_for(CLOSED_AT_MOST) => {
                warn!(app = self.app, "nothing could be published for {CLOSED_AT_MOST:?}; the jobs \
                    go back to the queue");
                self.was_closed_for_long.store(true, Ordering::Relaxed);
                Pause::PublisherAway
            }
        }
    }

    fn begin(&self) {
        self.take_over(Pacer::start_over);
    }

    fn is_subscribed(&self) {
        *lock(&self.subscribed_at) = Moment::now();
    }

    async fn process(&self, delivery: Delivery, lease: Lease) -> Result<(), Interrupted> {
        let _held = self.meter.holds_a_job();
        match self.carry(delivery, lease.clone()).await {
            Ok(()) => Ok(()),
            Err(why) => self.interrupted(why, &lease).await,
        }
    }

    fn acknowledge_within(&self, timeout: Duration) {
        // A third: a job that is split again is held twice, and then its calls in flight have to
        // end.
        let held_at_most = timeout / 3;
        if held_at_most < self.dispatcher.held_at_most() {
            warn!(
                app = self.app,
                "the broker takes jobs back that are not acknowledged within {timeout:?} \
                    (consumer_timeout). From now on a job is held for {held_at_most:?} at most, \
                    then parked. Raise consumer_timeout at the broker, or set retry.hold to a \
                    third of it"
            );
            self.dispatcher.hold_at_most(held_at_most);
        }
    }

    fn calls_have_ended(&self) {
        self.tenure.end();
        self.dispatcher.begin_idle_time();
    }
}

impl Pipeline {
    pub fn new(
        name: &str,
        app: &App,
        max_job_bytes: u64,
        api: Arc<dyn Api>,
        publisher: Publisher,
        progress: Progress,
    ) -> Self {
        let config = watch::Sender::new(Arc::new(app.clone()));
        let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
        let tenure = progress.tenure(name);
        let (to_tell, to_record, to_hold) = (publisher.clone(), progress.clone(), tenure.clone());
        let subscribed_at = Arc::new(Mutex::new(Moment::long_ago()));
        let to_look_at = subscribed_at.clone();
        let meter = Arc::new(Meter::of(name));
        let api = Arc::new(Measured::new(api, meter.clone()));
        let halted = watch::Sender::new(None);
        let to_look = halted.subscribe();
        let (to_ask, jobs) = (publisher.clone(), queues::jobs(name));
        let is_with_another = move || -> BoxFuture<'static, bool> {
            let (to_ask, jobs) = (to_ask.clone(), jobs.clone());
            // A replica that has just stopped consuming may have called within the last second.
            Box::pin(async move {
                to_ask.is_consumed(&jobs).await || {
                    sleep(SPAN).await;
                    to_ask.is_consumed(&jobs).await
                }
            })
        };
        let settings = send::Settings {
            supervision: Supervision::Unattended,
            may_start: Arc::new(move || {
                let was_frozen = lock(&to_look_at).elapsed() >= FROZEN_AFTER;
                to_tell.is_open() && to_record.can_record() && !was_frozen && to_hold.allows_calls()
            }),
            is_with_another: Box::new(is_with_another),
            is_halted: Box::new(move || to_look.borrow().is_some()),
            ..send::Settings::attended(name, api, pacer.clone())
        };
        Self {
            app: name.to_owned(),
            park: app.retry.park.clone(),
            max_job_bytes,
            longest_request_timeout: Mutex::new(app.request_timeout),
            dispatcher: Dispatcher::start(settings, config.subscribe()),
            config,
            pacer,
            publisher,
            progress,
            tenure,
            meter,
            failures: Failures::default(),
            generated_ids: GeneratedIds::default(),
            halted,
            taken_over_at: Arc::new(Mutex::new(Instant::now())),
            subscribed_at,
            largest_batch: OnceLock::new(),
            was_closed_for_long: AtomicBool::new(false),
        }
    }

    /// Takes the jobs over from the replica that had them before. `start_pacer` makes the pacer
    /// wait for that replica's calls.
    pub fn take_over(&self, start_pacer: fn(&Pacer, Instant)) {
        let start = move |pacer: &Pacer, taken_over_at: &Mutex<Instant>| {
            let now = Instant::now();
            start_pacer(pacer, now);
            *lock(taken_over_at) = now;
        };
        start(&self.pacer, &self.taken_over_at);
        // The other replica may call until a second after the store has answered, so both start
        // again then.
        let (pacer, taken_over_at) = (self.pacer.clone(), self.taken_over_at.clone());
        self.tenure.begin(move || start(&pacer, &taken_over_at));
    }

    /// Uses a new configuration of the app from now on, for new jobs and for decisions about held
    /// jobs. The batches of held jobs stay as they were cut. The wait queues stay those of the
    /// start.
    pub fn reconfigure(&self, app: &App) {
        {
            let mut longest = lock(&self.longest_request_timeout);
            *longest = longest.max(app.request_timeout);
        }
        self.pacer.set_limits(app.calls_per_second, app.burst, Instant::now());
        self.config.send_replace(Arc::new(app.clone()));
    }

    pub(super) fn config(&self) -> Arc<App> {
        self.config.borrow().clone()
    }

    /// What a job must satisfy, and how it is cut into batches.
    pub(super) fn rules(&self, app: &App) -> Rules {
        let rules = rules(app, self.max_job_bytes);
        let most = self.largest_batch.get().copied().unwrap_or(rules.batch_size);
        Rules { batch_size: rules.batch_size.min(most), ..rules }
    }

    pub(super) fn longest_request_timeout(&self) -> Duration {
        *lock(&self.longest_request_timeout)
    }

    /// The app's condition, and every later change of it.
    fn condition(&self) -> watch::Receiver<Condition> {
        self.dispatcher.condition()
    }
}

/// No code panics while it holds one of these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Tracks which replica has an app's jobs, according to the store. A broker can give the same jobs
//! to two replicas at once. This happens when the broker is partitioned, or when a frozen replica
//! does not know yet that it has lost its jobs.
//!
//! A subscription takes an epoch when its first delivery comes, before any call. Each write to the
//! store carries the epoch, and the store reports when there is a newer one. Then this replica
//! stops calling and releases its jobs. No call starts unless the store has confirmed the epoch
//! within the last second. While calls go out, their writes confirm it. Otherwise the keeper asks
//! the store.
//!
//! With each confirmation the store also says the number of the app's latest cancellation. If that
//! is a new one, the keeper asks which jobs are cancelled, and the answer confirms nothing. So no
//! call starts for a job that was cancelled more than a second ago.
//!
//! A displaced replica does not take the jobs back from a replica that makes calls. So two replicas
//! that both get deliveries do not displace each other in turn.

use std::{
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{error, info};

use super::{
    Inner,
    store::{CancelNumber, Scope, StoreLost, TakeOver, Taken},
};
use crate::{
    clock::{self, Moment},
    delay, watch,
};

/// How long a confirmation by the store is valid.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// The keeper asks when the last confirmation is so old, so that the next one comes in time.
const ASKED_AFTER: Duration = Duration::from_millis(500);
/// How often a replica that makes calls reports this to the store.
const ANNOUNCED_EVERY: Duration = Duration::from_secs(5);
/// How long a displaced replica takes no jobs. The pause grows each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After holding the jobs for so long, a replica's earlier displacements no longer count.
const TRUSTED_AFTER: Duration = Duration::from_secs(10 * 60);

/// This process's hold on an app's jobs.
#[derive(Clone)]
pub struct Tenure(Arc<TenureState>);

pub(super) struct TenureState {
    app: String,
    inner: Arc<Inner>,
    stage: watch::Sender<Stage>,
    confirmed: Mutex<Confirmed>,
    /// Wakes the keeper to ask the store.
    asked: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No delivery has come yet.
    NoDelivery,
    /// The replica is asking the store. The number identifies the subscription.
    Taking(u64),
    Held(i64),
    /// The subscription has ended. Another replica may take the jobs over. Outcomes that this
    /// replica knows are still recorded.
    Ended(i64),
    Displaced,
}

struct Confirmed {
    /// When the store was asked for its last confirmation of the epoch.
    at: Moment,
    /// When the store was last told that calls go out.
    announced_at: Moment,
    held_since: Instant,
    subscriptions: u64,
    /// How often in a row another replica has taken the jobs over.
    displaced: u32,
    /// Whether another replica displaced the last subscription. Only then this replica leaves the
    /// jobs to a replica that makes calls. Otherwise the active replica is this one.
    was_displaced: bool,
    /// When this replica may take the next delivery.
    pause_ends_at: Instant,
    /// The cancellations up to this one have reached their jobs.
    cancelled_up_to: CancelNumber,
    /// The latest cancellation that the store told of.
    latest_cancellation: CancelNumber,
}

impl Tenure {
    pub(super) fn new(app: &str, inner: Arc<Inner>) -> Self {
        let now = Instant::now();
        let never = Moment::long_ago();
        let confirmed = Confirmed {
            at: never,
            announced_at: never,
            held_since: now,
            subscriptions: 0,
            displaced: 0,
            was_displaced: false,
            pause_ends_at: now,
            cancelled_up_to: CancelNumber::default(),
            latest_cancellation: CancelNumber::default(),
        };
        let shared = Arc::new(TenureState {
            app: app.to_owned(),
            inner,
            stage: watch::Sender::new(Stage::NoDelivery),
            confirmed: Mutex::new(confirmed),
            asked: Notify::new(),
        });
        tokio::spawn(keep(shared.clone()));
        Self(shared)
    }

    /// Takes the app's jobs over, when the first delivery of a subscription comes. Calls `taken`
    /// when that is done.
    pub fn begin(&self, taken: impl FnOnce() + Send + 'static) {
        let shared = self.0.clone();
        let (number, leave_active) = {
            let mut confirmed = shared.lock();
            confirmed.subscriptions += 1;
            (confirmed.subscriptions, confirmed.was_displaced)
        };
        shared.stage.send_replace(Stage::Taking(number));
        tokio::spawn(async move {
            let take_over =
                TakeOver { app: shared.app.clone(), at_least: clock::now(), leave_active };
            let asking = shared.clone();
            // Does not ask after the subscription has ended. That would take the jobs away from the
            // replica that has them then.
            let asked =
                shared.inner.retry_until_answered(move |store| match asking.is_taking(number) {
                    true => store.take_over(take_over.clone()),
                    false => Box::pin(ready(Err(StoreLost::displaced("take the app's jobs over")))),
                });
            let asked = asked.await;
            shared.took_over(number, asked, taken);
        });
    }

    /// Notes that the subscription ends. From now on another replica may take the jobs over.
    pub fn end(&self) {
        self.0.stage.send_if_modified(|stage| {
            *stage = match *stage {
                Stage::Held(epoch) => Stage::Ended(epoch),
                Stage::Taking(_) => Stage::NoDelivery,
                ended => ended,
            };
            true
        });
    }

    /// Whether this replica has the jobs, or is about to.
    pub fn has_begun(&self) -> bool {
        matches!(*self.0.stage.borrow(), Stage::Held(_) | Stage::Taking(_))
    }

    /// Waits until the epoch is taken, and returns it. An error means that another replica has
    /// taken a newer one.
    pub(super) async fn epoch(&self) -> Result<i64, StoreLost> {
        let mut stage = self.0.stage.subscribe();
        loop {
            match *stage.borrow_and_update() {
                Stage::Held(epoch) | Stage::Ended(epoch) => return Ok(epoch),
                Stage::Displaced => return Err(StoreLost::displaced("take the app's jobs over")),
                Stage::NoDelivery | Stage::Taking(_) => {}
            }
            // The sender is in `self`.
            let _ = stage.changed().await;
        }
    }

    /// Whether the store has confirmed within the last second that no other replica has the jobs.
    pub fn allows_calls(&self) -> bool {
        let Stage::Held(_) = *self.0.stage.borrow() else { return false };
        let (age, announced) = {
            let confirmed = self.0.lock();
            (confirmed.at.elapsed(), confirmed.announced_at.elapsed())
        };
        if age >= ASKED_AFTER || announced >= ANNOUNCED_EVERY {
            self.0.asked.notify_one();
        }
        age < CONFIRMED_FOR
    }

    /// Returns when another replica has taken the jobs over.
    pub async fn until_displaced(&self) {
        // The sender is in `self`.
        let _ = self.0.stage.subscribe().wait_for(|stage| *stage == Stage::Displaced).await;
    }

    /// Returns when this replica may subscribe again. A displaced one waits.
    pub async fn until_pause_ends(&self) {
        let pause_ends_at = self.0.lock().pause_ends_at;
        sleep_until(pause_ends_at).await;
        self.0.stage.send_if_modified(|stage| {
            let was_displaced = *stage == Stage::Displaced;
            *stage = Stage::NoDelivery;
            was_displaced
        });
    }

    /// The last epoch that this replica had; 0 if another one has the jobs.
    pub(super) fn last_epoch(&self) -> i64 {
        match *self.0.stage.borrow() {
            Stage::Held(epoch) | Stage::Ended(epoch) => epoch,
            Stage::NoDelivery | Stage::Taking(_) | Stage::Displaced => 0,
        }
    }

    pub(super) fn app(&self) -> &str {
        &self.0.app
    }

    pub(super) fn shared(&self) -> Arc<TenureState> {
        self.0.clone()
    }
}

impl TenureState {
    fn is_taking(&self, number: u64) -> bool {
        *self.stage.borrow() == Stage::Taking(number)
    }

    fn took_over(
        &self,
        number: u64,
        asked: Result<(Taken, Moment), StoreLost>,
        taken: impl FnOnce(),
    ) {
        // A later subscription asks the store itself.
        if !self.is_taking(number) {
            return;
        }
        match asked {
            Ok((Taken::Epoch(epoch), at)) => {
                {
                    let mut confirmed = self.lock();
                    confirmed.at = at;
                    confirmed.announced_at = at;
                    confirmed.held_since = Instant::now();
                    confirmed.was_displaced = false;
                }
                taken();
                self.stage.send_if_modified(|stage| {
                    let is_present = *stage == Stage::Taking(number);
                    if is_present {
                        *stage = Stage::Held(epoch);
                    }
                    is_present
                });
            }
            Ok((Taken::LeftToAnother, _)) => {
                self.displaced(Stage::Taking(number), "another replica makes calls")
            }
            Err(error) => self.displaced(Stage::Taking(number), &error.to_string()),
        }
    }

    /// Records that the store has confirmed the epoch and told its latest cancellation, in answer
    /// to a question asked at `at`.
    pub(super) fn confirmed(&self, epoch: i64, latest: CancelNumber, at: Moment) {
        let mut confirmed = self.lock();
        if latest > confirmed.cancelled_up_to {
            confirmed.latest_cancellation = latest;
            self.asked.notify_one();
        } else if *self.stage.borrow() == Stage::Held(epoch) && at.is_after(confirmed.at) {
            confirmed.at = at;
        }
    }

    /// Processes the store's answer to an operation with this epoch. An answer for the epoch of an
    /// earlier subscription says nothing about the current one.
    pub(super) fn apply_answer<T>(
        &self,
        epoch: i64,
        answered: Result<T, StoreLost>,
    ) -> Result<T, StoreLost> {
        let present = Stage::Held(epoch);
        if let Err(error) = &answered
            && error.scope == Scope::Displaced
            && *self.stage.borrow() == present
        {
            self.displaced(present, "the state store has a newer epoch");
        }
        answered
    }

    /// If there are new cancellations, asks which jobs they concern, and cancels those.
    async fn read_cancellations(&self) -> Result<(), StoreLost> {
        let known = {
            let confirmed = self.lock();
            if confirmed.latest_cancellation <= confirmed.cancelled_up_to {
                return Ok(());
            }
            confirmed.cancelled_up_to
        };
        let app = self.app.clone();
        let asked =
            self.inner.retry_until_answered(move |store| store.cancelled_since(app.clone(), known));
        let (cancellations, _) = asked.await?;
        self.inner.claims.cancel(&self.app, &cancellations.jobs);
        let mut confirmed = self.lock();
        // The numbers of a store that has lost its data are no lower.
        confirmed.cancelled_up_to = cancellations.latest.max(confirmed.latest_cancellation);
        Ok(())
    }

    /// Records that another replica has taken the jobs over. `was` is this replica's stage when it
    /// asked.
    fn displaced(&self, was: Stage, reason: &str) {
        let is_new = self.stage.send_if_modified(|stage| {
            let is_present = *stage == was;
            if is_present {
                *stage = Stage::Displaced;
            }
            is_present
        });
        if !is_new {
            return;
        }
        let mut confirmed = self.lock();
        let held_for_long =
            matches!(was, Stage::Held(_)) && confirmed.held_since.elapsed() > TRUSTED_AFTER;
        confirmed.was_displaced = true;
        confirmed.displaced = if held_for_long { 1 } else { confirmed.displaced + 1 };
        let pause =
            delay::after_attempt(confirmed.displaced, FIRST_PAUSE, LONGEST_PAUSE, delay::jitter());
        confirmed.pause_ends_at = Instant::now() + pause;
        drop(confirmed);
        let app = &self.app;
        error!(
            app,
            reason,
            "another replica has the app's jobs too: this one stops calling and consumes anew in \
                {} s. See whether the broker's nodes are partitioned, or whether this process was \
                frozen",
            pause.as_secs()
        );
    }

    fn lock(&self) -> MutexGuard<'_, Confirmed> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the store for a confirmation when no write brings one.
async fn keep(shared: Arc<TenureState>) {
    loop {
        shared.asked.notified().await;
        let Stage::Held(epoch) = *shared.stage.borrow() else { continue };
        if let Err(error) = shared.read_cancellations().await {
            info!(app = shared.app, %error, "cannot read which jobs are cancelled");
        }
        let app = shared.app.clone();
        let asked =
            shared.inner.retry_until_answered(move |store| store.confirm(app.clone(), epoch)).await;
        if let Ok((_, at)) = &asked {
            shared.lock().announced_at = *at;
        }
        match shared.apply_answer(epoch, asked) {
            Ok((latest, at)) => shared.confirmed(epoch, latest, at),
            Err(error) if error.scope == Scope::Displaced => {}
            Err(error) => info!(app = shared.app, %error, "cannot confirm the epoch"),
        }
    }
}

//! Which replica an app's jobs are with, as the store knows it. A broker can give the same jobs to
//! two replicas at once: when it is partitioned, or when a replica was frozen and does not know yet
//! what it has lost.
//!
//! A subscription takes an epoch when its first delivery comes, before any call. Each write to the
//! store carries it, and the store says when there is a newer one: then this replica stops calling
//! and lets its jobs go. No call starts unless the store has confirmed the epoch within the last
//! second. Writes do that where calls go out; the keeper asks where they do not.
//!
//! A replica that was displaced does not take the jobs back from one that makes calls, so two that
//! both get deliveries do not displace each other in turn.

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
    store::{Scope, StoreLost, TakeOver, Taken},
};
use crate::{
    clock::{self, Moment},
    delay, watch,
};

/// For how long the store's word counts.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// The keeper asks when the store's word is so old, to have another one in time.
const ASKED_AFTER: Duration = Duration::from_millis(500);
/// How often a replica that makes calls tells the store so.
const ANNOUNCED_EVERY: Duration = Duration::from_secs(5);
/// How long a displaced replica takes no jobs; longer each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A replica that had the jobs for so long is as good as one that was never displaced.
const TRUSTED_AFTER: Duration = Duration::from_secs(10 * 60);

/// An app's jobs, as far as this process may have them.
#[derive(Clone)]
pub struct Tenure(Arc<Shared>);

pub(super) struct Shared {
    app: String,
    inner: Arc<Inner>,
    stage: watch::Sender<Stage>,
    confirmed: Mutex<Confirmed>,
    /// The keeper is to ask.
    asked: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No delivery has come yet.
    NoDelivery,
    /// The store is being asked. The number tells one subscription from another.
    Taking(u64),
    Held(i64),
    /// The subscription has ended: another replica may take the jobs over, and what is known here
    /// is still recorded.
    Ended(i64),
    Displaced,
}

struct Confirmed {
    /// When the store was asked that last confirmed the epoch.
    at: Moment,
    /// When it was last told that calls go out.
    announced_at: Moment,
    held_since: Instant,
    subscriptions: u64,
    /// How often in a row another replica has taken the jobs.
    displaced: u32,
    /// Whether the last subscription ended so. Only then the jobs are left to a replica that makes
    /// calls: otherwise that is this one.
    was_displaced: bool,
    /// When the next delivery may be taken.
    pause_ends_at: Instant,
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
        };
        let shared = Arc::new(Shared {
            app: app.to_owned(),
            inner,
            stage: watch::Sender::new(Stage::NoDelivery),
            confirmed: Mutex::new(confirmed),
            asked: Notify::new(),
        });
        tokio::spawn(keep(shared.clone()));
        Self(shared)
    }

    /// The first delivery of a subscription is here: takes the app's jobs over. `taken` is called
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
            // Not once the subscription has ended: that would take the jobs away from the replica
            // that has them then.
            let asked = shared.inner.insist(move |store| match asking.is_taking(number) {
                true => store.take_over(take_over.clone()),
                false => Box::pin(ready(Err(StoreLost::displaced("take the app's jobs over")))),
            });
            let asked = asked.await;
            shared.took_over(number, asked, taken);
        });
    }

    /// The subscription ends. From now on another replica takes the jobs over rightly.
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

    /// The epoch, once it is taken. An error says that another replica has taken a newer one.
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

    /// Whether no other replica had taken the jobs over a second ago.
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

    /// Returns when the replica may subscribe again: a displaced one waits.
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

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.0.clone()
    }
}

impl Shared {
    fn is_taking(&self, number: u64) -> bool {
        *self.stage.borrow() == Stage::Taking(number)
    }

    fn took_over(
        &self,
        number: u64,
        asked: Result<(Taken, Moment), StoreLost>,
        taken: impl FnOnce(),
    ) {
        // A later subscription asks for itself.
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

    /// The store has confirmed the epoch to a question that was asked then.
    pub(super) fn confirmed(&self, at: Moment) {
        let mut confirmed = self.lock();
        if at.is_after(confirmed.at) {
            confirmed.at = at;
        }
    }

    /// Takes note of what the store says about an operation with this epoch. What is recorded with
    /// an older one, of a subscription before, says nothing about the present.
    pub(super) fn heed<T>(
        &self,
        epoch: i64,
        answered: Result<(T, Moment), StoreLost>,
    ) -> Result<T, StoreLost> {
        let present = Stage::Held(epoch);
        let is_present = *self.stage.borrow() == present;
        match answered {
            Ok((value, at)) => {
                if is_present {
                    self.confirmed(at);
                }
                Ok(value)
            }
            Err(error) => {
                if is_present && error.scope == Scope::Displaced {
                    self.displaced(present, "the state store has a newer epoch");
                }
                Err(error)
            }
        }
    }

    /// Another replica has taken the jobs, of which this one was at that stage.
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
                {} s. See whether the broker's nodes \
             are partitioned, or whether this process was frozen",
            pause.as_secs()
        );
    }

    fn lock(&self) -> MutexGuard<'_, Confirmed> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the store for its word where no write brings it.
async fn keep(shared: Arc<Shared>) {
    loop {
        shared.asked.notified().await;
        let Stage::Held(epoch) = *shared.stage.borrow() else { continue };
        let app = shared.app.clone();
        let asked = shared.inner.insist(move |store| store.confirm(app.clone(), epoch)).await;
        if let Ok((_, at)) = &asked {
            shared.lock().announced_at = *at;
        }
        if let Err(error) = shared.heed(epoch, asked)
            && error.scope != Scope::Displaced
        {
            info!(app = shared.app, %error, "cannot confirm the epoch");
        }
    }
}

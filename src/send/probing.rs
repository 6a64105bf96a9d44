//! What concerns the whole app: probes while it is paused or the API away, and the condition that
//! everybody sees.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Dispatch, Done, LOOK_AGAIN, condition::Condition, sending::Sending};
use crate::{
    api::{
        call::{Api, AtWrite},
        classify::{Answer, Verdict, classify},
        codes::Class,
        probe,
    },
    clock,
    pace::Turn,
};

/// After an outage of this length, calls begin with a tenth of the rate.
const LONG_OUTAGE: Duration = Duration::from_secs(10);

impl<A: Api> Dispatch<A> {
    /// A paused app has given its jobs back; in an outage it has them, unless another replica does.
    pub(super) fn may_probe(&self) -> bool {
        self.breaker.condition().is_paused() || self.jobs.values().any(Sending::is_sending)
    }

    pub(super) fn start_probe(&mut self, now: Instant) -> Option<Instant> {
        match self.settings.pacer.turn(now) {
            Turn::Now(slot) => {
                let is_paused = self.breaker.condition().is_paused();
                if is_paused {
                    self.settings.api.renew_user_sig();
                }
                self.breaker.probe_leaves();
                let api = self.settings.api.clone();
                let on_write = move || {
                    slot.written(Instant::now());
                    AtWrite::Send
                };
                // In an outage the jobs are still ours.
                let is_with_another = is_paused.then(|| (self.settings.is_with_another)());
                self.under_way.push(Box::pin(async move {
                    if let Some(is_with_another) = is_with_another
                        && is_with_another.await
                    {
                        return Done::Probed(None);
                    }
                    Done::Probed(Some(api.call(probe::body(), on_write).await))
                }));
                None
            }
            Turn::At(at) => Some(at),
            Turn::AfterAWrite => Some(now + LOOK_AGAIN),
        }
    }

    pub(super) fn judge_probe(&mut self, answer: Option<Answer>, now: Instant) {
        match answer.map(classify) {
            // Should it end, ours has to be there.
            None => self.breaker.resume(now),
            Some(verdict) => {
                if let Verdict::Failed { class: Class::RateLimited, .. } = verdict {
                    self.settings.pacer.slow_down(now);
                }
                self.breaker.judge_probe(&verdict, now);
            }
        }
        self.tell_condition(now);
    }

    /// Tells once what has changed for the whole app.
    pub(super) fn tell_condition(&mut self, now: Instant) {
        let before = self.condition.borrow().clone();
        let present = self.breaker.condition().clone();
        if before == present {
            return;
        }
        let app = &self.settings.app;
        match (&before, &present) {
            (_, Condition::Paused(why)) => {
                let (code, http_status, info, advice) =
                    (why.code, why.http_status, &why.info, why.advice);
                error!(
                    app,
                    code,
                    http_status,
                    info,
                    advice,
                    "app paused: {}; its jobs stay in the queue",
                    why.reason
                );
            }
            (_, Condition::Outage(why)) => {
                warn!(
                    app,
                    info = why.info,
                    advice = why.advice,
                    "{}; single probes until it answers",
                    why.reason
                );
            }
            (Condition::Outage(why), Condition::Working) => {
                info!(app, "the API can be reached again");
                self.settings.pacer.begin_with(rate_after(why.since), now);
            }
            (Condition::Paused(_) | Condition::Working, Condition::Working) => {
                info!(app, "app goes on");
                // A job that returns much later from a wait queue has waited for its own failure.
                if !(self.settings.is_halted)() {
                    self.idle.end(clock::now());
                }
                for (key, batch) in std::mem::take(&mut self.withheld) {
                    if self.jobs.get(&key).is_some_and(Sending::is_sending) {
                        self.queue.put_back(key, batch);
                    }
                }
            }
        }
        self.condition.send_replace(present);
    }
}

/// With which share of the rate calls begin after an outage: the longer it was, the more others
/// wait for its end too.
fn rate_after(outage_since: Timestamp) -> f64 {
    let lasted = clock::now().duration_since(outage_since).as_secs_f64();
    (1.0 - lasted / LONG_OUTAGE.as_secs_f64()).max(0.1)
}

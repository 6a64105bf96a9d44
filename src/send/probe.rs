//! The driver of an app's calls. It grants calls when their time comes, and sends probes while the
//! app is paused or in an outage. The condition of the app is announced here too.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::{
    breaker::Waits,
    condition::Condition,
    gate::{Gate, GateState, LOOK_AGAIN_AFTER, Next},
};
use crate::{
    api::{
        call::AtWrite,
        classify::{Answer, Verdict},
        codes::Class,
        command,
    },
    clock,
    pace::{SendSlot, Turn},
};

/// After an outage of this length or longer, calls begin with a tenth of the rate.
const LONG_OUTAGE: Duration = Duration::from_secs(10);

impl Gate {
    /// Grants calls when their time comes, and sends the probes. Does not end.
    pub async fn drive(self: Arc<Self>) {
        let mut config = self.config.clone();
        let mut probes = FuturesUnordered::new();
        self.lock().breaker.no_probe_is_under_way(Instant::now());
        loop {
            let next = {
                let (mut state, now) = (self.lock(), Instant::now());
                let mut next = self.grant_calls(&mut state, now);
                if let Next::ProbeNow = next {
                    next = match self.settings.pacer.turn(now) {
                        Turn::Now(slot) => {
                            probes.push(self.probe(&mut state, slot));
                            Next::AtAnEvent
                        }
                        Turn::At(at) => Next::At(at),
                        Turn::AfterAWrite => Next::At(now + LOOK_AGAIN_AFTER),
                    };
                }
                state.driver_looks_at = match next {
                    Next::At(at) => Some(at),
                    Next::AtAnEvent | Next::ProbeNow => None,
                };
                state.driver_looks_at
            };
            tokio::select! {
                biased;
                Some(answer) = probes.next() => self.judge_probe(answer),
                () = self.look_again.notified() => {}
                Ok(()) = config.changed() => {
                    let (mut state, now) = (self.lock(), Instant::now());
                    state.breaker.reconfigured(Waits::of(&config.borrow()), now);
                    state.notify_jobs();
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Sends a probe. Returns `None` if it sent none, because another replica consumes.
    fn probe(&self, state: &mut GateState, slot: SendSlot) -> BoxFuture<'static, Option<Answer>> {
        let is_paused = state.breaker.condition().is_paused();
        if is_paused {
            self.settings.api.renew_user_sig();
        }
        state.breaker.probe_leaves();
        let api = self.settings.api.clone();
        let body = command::of(&self.config.borrow().command).probe();
        let on_write = move || {
            slot.written(Instant::now());
            AtWrite::Send
        };
        // No check in an outage: this process still has the jobs.
        let is_with_another = is_paused.then(|| (self.settings.is_with_another)());
        Box::pin(async move {
            if let Some(is_with_another) = is_with_another
                && is_with_another.await
            {
                return None;
            }
            Some(api.call(body, Box::new(on_write)).await)
        })
    }

    fn judge_probe(&self, answer: Option<Answer>) {
        let (mut state, now) = (self.lock(), Instant::now());
        let judge = |answer| command::of(&self.config.borrow().command).judge(answer);
        match answer.map(judge) {
            // This replica must subscribe too, so that it gets the jobs if the other one stops.
            None => state.breaker.resume(now),
            Some(verdict) => {
                if let Verdict::Failed { class: Class::RateLimited, .. } = verdict {
                    self.settings.pacer.slow_down(now);
                }
                state.breaker.judge_probe(&verdict, now);
            }
        }
        self.announce_condition(&mut state, now);
    }

    /// Logs a change of the app's condition once, and tells the jobs.
    pub fn announce_condition(&self, state: &mut GateState, now: Instant) {
        let before = self.condition.borrow().clone();
        let present = state.breaker.condition().clone();
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
                    "{}; the daemon sends only probes until the API answers",
                    why.reason
                );
            }
            (Condition::Outage(why), Condition::Working) => {
                info!(app, "the API can be reached again");
                self.settings.pacer.begin_with(rate_after(why.since), now);
            }
            (Condition::Paused(_) | Condition::Working, Condition::Working) => {
                info!(app, "app resumed");
                // The idle time ends now. A job that returns much later from a wait queue has
                // waited because of its own failure, and that time counts.
                if !(self.settings.is_halted)() {
                    state.idle.end(clock::now());
                }
            }
        }
        self.condition.send_replace(present);
        state.notify_jobs();
    }
}

/// The share of the rate with which calls begin after an outage. The longer the outage was, the
/// more other clients also wait for its end.
fn rate_after(outage_since: Timestamp) -> f64 {
    let lasted = clock::now().duration_since(outage_since).as_secs_f64();
    (1.0 - lasted / LONG_OUTAGE.as_secs_f64()).max(0.1)
}

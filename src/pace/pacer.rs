//! When the next call may leave.
//!
//! A token is taken for every attempt, at the moment of sending. After a start, and whenever another process may have sent
//! in the meantime, the first second is waited out with an empty bucket, so no second that spans two processes exceeds the
//! limit. Answers that say "slow down" lower the rate, the more of them the lower; it grows back by itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    send_window::{Room, SPAN, SendWindow},
    token_bucket::TokenBucket,
};

/// What one refusal costs, as a factor: a single one is an accident of timing, a hundred in a second are another limit.
const LEFT_AFTER_REFUSAL: f64 = 0.98;
/// The rate loses at most half in this time: refusals of calls that left before it fell must not drive it to nothing.
const ROUND: Duration = Duration::from_secs(1);
/// What a second without a refusal gives back, as a share of the configured rate.
const RECOVERED_PER_SECOND: f64 = 0.05;

/// Shared by the dispatcher, which asks, and the calls under way, which stamp.
#[derive(Debug, Clone)]
pub struct Pacer(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    bucket: TokenBucket,
    window: SendWindow,
    quiet_until: Instant,
    ceiling: f64,
    rate: f64,
    rate_set_at: Instant,
    /// The last round of refusals: when it began, and how far the rate may fall in it.
    round: Option<(Instant, f64)>,
}

/// Whether a call may leave.
#[derive(Debug)]
pub enum Turn {
    Now(SendSlot),
    At(Instant),
    /// Ask again when a call that is under way has been written or has failed.
    AfterAWrite,
}

/// The right to write one request. Dropped without [`written`](Self::written), it is given back.
#[derive(Debug)]
pub struct SendSlot(Option<Arc<Mutex<State>>>);

impl Pacer {
    pub fn new(calls_per_second: u32, burst: u32, now: Instant) -> Self {
        let rate = f64::from(calls_per_second);
        Self(Arc::new(Mutex::new(State {
            bucket: TokenBucket::new(rate, f64::from(burst), now + SPAN),
            window: SendWindow::new(calls_per_second as usize),
            quiet_until: now + SPAN,
            ceiling: rate,
            rate,
            rate_set_at: now,
            round: None,
        })))
    }

    pub fn turn(&self, now: Instant) -> Turn {
        let mut state = lock(&self.0);
        if now < state.quiet_until {
            return Turn::At(state.quiet_until);
        }
        state.recover(now);
        match (state.bucket.ready_at(now), state.window.room(now)) {
            (_, Room::AfterAWrite) => Turn::AfterAWrite,
            (token_at, Room::At(room_at)) => Turn::At(token_at.max(room_at)),
            (token_at, Room::Now) if token_at > now => Turn::At(token_at),
            (_, Room::Now) => {
                state.bucket.take();
                state.window.reserve();
                Turn::Now(SendSlot(Some(self.0.clone())))
            }
        }
    }

    /// Somebody else may have sent until `now`: wait a second out and begin with an empty bucket.
    pub fn start_over(&self, now: Instant) {
        let mut state = lock(&self.0);
        state.quiet_until = now + SPAN;
        state.bucket.empty(now + SPAN);
    }

    /// The API said that calls come too fast.
    pub fn slow_down(&self, now: Instant) {
        let mut state = lock(&self.0);
        let half = (state.rate / 2.0).max(1.0);
        let (_, lowest) = match state.round {
            Some((began, lowest)) if now < began + ROUND => (began, lowest),
            _ => *state.round.insert((now, half)),
        };
        let slower = (state.rate * LEFT_AFTER_REFUSAL).max(lowest);
        state.set_rate(slower, now);
    }

    /// The most calls that left in any second so far.
    pub fn most_in_one_second(&self) -> usize {
        lock(&self.0).window.most_in_one_second()
    }

    /// The present rate in calls a second.
    pub fn rate(&self) -> f64 {
        lock(&self.0).rate
    }
}

impl State {
    fn recover(&mut self, now: Instant) {
        if self.rate < self.ceiling && self.round.is_none_or(|(began, _)| now >= began + ROUND) {
            let seconds = now.saturating_duration_since(self.rate_set_at).as_secs_f64();
            let recovered = self.rate + seconds * RECOVERED_PER_SECOND * self.ceiling;
            self.set_rate(recovered.min(self.ceiling), now);
        }
    }

    fn set_rate(&mut self, rate: f64, now: Instant) {
        self.rate = rate;
        self.rate_set_at = now;
        self.bucket.set_rate(rate, now);
    }
}

impl SendSlot {
    /// The request is being written at this moment.
    pub fn written(mut self, now: Instant) {
        if let Some(state) = self.0.take() {
            lock(&state).window.written(now);
        }
    }

    /// There was nothing to send: the token goes back too.
    pub fn unused(self) {
        if let Some(state) = &self.0 {
            lock(state).bucket.give_back();
        }
    }
}

impl Drop for SendSlot {
    fn drop(&mut self) {
        if let Some(state) = self.0.take() {
            lock(&state).window.released();
        }
    }
}

/// No code panics while it holds the lock; if one did, the counts would still be whole.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pacer_tests.rs"]
mod tests;

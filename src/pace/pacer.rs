//! When the next call may leave.
//!
//! Every attempt takes a token, at the moment of sending.
//!
//! After a start, the pacer waits for a second with an empty bucket. It does the same whenever
//! another process may have sent calls. So no second that spans two processes exceeds the limit.
//!
//! Each rate-limited answer lowers the rate, which then grows back by itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    send_window::{SPAN, SendWindow, WindowRoom},
    token_bucket::TokenBucket,
};

/// The pacer makes up for at most this much lateness of the caller, which happens when the machine
/// stands still. A caller that is later had nothing to send.
const MAX_CATCH_UP: Duration = Duration::from_millis(500);
/// The bucket holds at least the tokens of this time, in seconds. A timer may fire this late, and
/// the tokens of that time must not be lost.
const MIN_BURST_SECONDS: f64 = 0.01;
/// Each refusal multiplies the rate by this. A single refusal is an accident of timing. A hundred
/// in a second mean that the API has another limit.
const LEFT_AFTER_REFUSAL: f64 = 0.97;
/// In this time the rate loses at most half. Refusals of calls that left before the rate fell must
/// not lower it again and again.
const ROUND: Duration = Duration::from_secs(1);
/// The rate regained in a second at first, as a share of the rate after the last refusal. The limit
/// has most likely not moved, and every call above it is refused.
const SLOW_RECOVERY_PER_SECOND: f64 = 0.02;
/// A round of refusals that began below this share of the configured rate has found another limit.
const NEAR_CONFIGURED_RATE: f64 = 0.95;
/// After this time without a refusal the pacer assumes that the limit has moved.
const SLOW_RECOVERY_FOR: Duration = Duration::from_secs(20);
/// The rate regained in a second after that, as a share of the configured rate.
const RECOVERY_PER_SECOND: f64 = 0.05;

/// Shared by the gate, which asks for turns, and the calls in flight, which report their writes.
#[derive(Debug, Clone)]
pub struct Pacer(Arc<Mutex<PacerState>>);

#[derive(Debug)]
struct PacerState {
    bucket: TokenBucket,
    window: SendWindow,
    quiet_until: Instant,
    /// Until when the caller was told to wait.
    wait_until: Option<Instant>,
    ceiling: f64,
    rate: f64,
    rate_set_at: Instant,
    /// The last round of refusals: when it began, and how far the rate may fall in it.
    round: Option<(Instant, f64)>,
    /// The last refusal, if it showed another limit: its time, and the rate after it.
    refused: Option<(Instant, f64)>,
    written: u64,
}

/// Whether a call may leave.
#[derive(Debug)]
pub enum Turn {
    Now(SendSlot),
    At(Instant),
    /// Ask again when a call in flight has been written or has failed.
    AfterAWrite,
}

/// The right to write one request. If it is dropped without [`written`](Self::written), the slot is
/// free again.
#[derive(Debug)]
pub struct SendSlot(Option<Arc<Mutex<PacerState>>>);

impl Pacer {
    pub fn new(calls_per_second: u32, burst: u32, now: Instant) -> Self {
        let rate = f64::from(calls_per_second);
        Self(Arc::new(Mutex::new(PacerState {
            bucket: TokenBucket::new(rate, held_at_most(burst, rate), now + SPAN),
            window: SendWindow::new(calls_per_second as usize),
            quiet_until: now + SPAN,
            wait_until: None,
            ceiling: rate,
            rate,
            rate_set_at: now,
            round: None,
            refused: None,
            written: 0,
        })))
    }

    pub fn turn(&self, now: Instant) -> Turn {
        let mut state = lock(&self.0);
        if now < state.quiet_until {
            return Turn::At(state.quiet_until);
        }
        state.recover(now);
        if let Some(told) = state.wait_until.take() {
            state.bucket.catch_up(now.saturating_duration_since(told).min(MAX_CATCH_UP), now);
        }
        let wait_until = match (state.bucket.ready_at(now), state.window.room(now)) {
            (_, WindowRoom::AfterAWrite) => return Turn::AfterAWrite,
            (token_at, WindowRoom::At(room_at)) => token_at.max(room_at),
            (token_at, WindowRoom::Now) => token_at,
        };
        if wait_until > now {
            state.wait_until = Some(wait_until);
            return Turn::At(wait_until);
        }
        state.bucket.take();
        state.window.reserve();
        Turn::Now(SendSlot(Some(self.0.clone())))
    }

    /// Another process may have sent calls until `now`. The pacer waits for a second and begins
    /// with an empty bucket.
    pub fn start_over(&self, now: Instant) {
        let mut state = lock(&self.0);
        state.quiet_until = now + SPAN;
        state.bucket.empty(now + SPAN);
    }

    /// Applies other limits from now on. The calls of the last second count towards a lower one. If
    /// the API has slowed the pacer down below the new limit, it keeps its rate and recovers from
    /// there.
    pub fn set_limits(&self, calls_per_second: u32, burst: u32, now: Instant) {
        let mut state = lock(&self.0);
        state.recover(now);
        let ceiling = f64::from(calls_per_second);
        let rate = if state.rate < state.ceiling { state.rate.min(ceiling) } else { ceiling };
        state.ceiling = ceiling;
        state.round = state.round.map(|(began, lowest)| (began, lowest.min(half_of(rate))));
        state.window.set_limit(calls_per_second as usize);
        state.set_rate(rate, now);
        state.bucket.set_burst(held_at_most(burst, ceiling));
    }

    /// Lowers the rate after a rate-limited answer.
    pub fn slow_down(&self, now: Instant) {
        let mut state = lock(&self.0);
        let half = half_of(state.rate);
        let (_, lowest) = match state.round {
            Some((began, lowest)) if now < began + ROUND => (began, lowest),
            _ => *state.round.insert((now, half)),
        };
        let slower = (state.rate * LEFT_AFTER_REFUSAL).max(lowest);
        // Refusals close to the configured rate are accidents of timing, or the limit is so close
        // that trying it costs little.
        let found_a_limit = lowest * 2.0 < NEAR_CONFIGURED_RATE * state.ceiling;
        state.refused = found_a_limit.then_some((now, slower));
        state.set_rate(slower, now);
    }

    /// Continues with at most this share of the configured rate, which then grows back.
    pub fn begin_with(&self, share: f64, now: Instant) {
        let mut state = lock(&self.0);
        let rate = (state.ceiling * share).max(1.0).min(state.rate);
        state.set_rate(rate, now);
    }

    /// The most calls that left in any one second so far.
    pub fn most_in_one_second(&self) -> usize {
        lock(&self.0).window.most_in_one_second()
    }

    /// The configured rate, in calls per second.
    pub fn limit(&self) -> u32 {
        lock(&self.0).ceiling as u32
    }

    /// The number of calls that have left so far.
    pub fn calls_so_far(&self) -> u64 {
        lock(&self.0).written
    }

    /// The present rate, in calls per second.
    pub fn rate(&self, now: Instant) -> f64 {
        let mut state = lock(&self.0);
        state.recover(now);
        state.rate
    }
}

impl PacerState {
    fn recover(&mut self, now: Instant) {
        let in_round = self.round.is_some_and(|(began, _)| now < began + ROUND);
        if self.rate < self.ceiling && !in_round && now > self.rate_set_at {
            let (limit_moved, left) = self
                .refused
                .map_or((self.rate_set_at, 0.0), |(at, left)| (at + SLOW_RECOVERY_FOR, left));
            let limit_moved = limit_moved.clamp(self.rate_set_at, now);
            let at_first =
                (limit_moved - self.rate_set_at).as_secs_f64() * SLOW_RECOVERY_PER_SECOND * left;
            let then = (now - limit_moved).as_secs_f64() * RECOVERY_PER_SECOND * self.ceiling;
            self.set_rate((self.rate + at_first + then).min(self.ceiling), now);
        }
    }

    fn set_rate(&mut self, rate: f64, now: Instant) {
        self.rate = rate;
        self.rate_set_at = now;
        self.bucket.set_rate(rate, now);
    }
}

fn held_at_most(burst: u32, rate: f64) -> f64 {
    f64::from(burst).max(1.0 + rate * MIN_BURST_SECONDS)
}

fn half_of(rate: f64) -> f64 {
    (rate / 2.0).max(1.0)
}

impl SendSlot {
    /// Records that the request is written at this moment.
    pub fn written(mut self, now: Instant) {
        if let Some(state) = self.0.take() {
            let mut state = lock(&state);
            state.window.written(now);
            state.written += 1;
        }
    }

    /// Gives back the slot and its token, because there was nothing to send.
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

/// No code panics while it holds the lock. Even after a panic the counts would be consistent.
fn lock(state: &Mutex<PacerState>) -> MutexGuard<'_, PacerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pacer_tests.rs"]
mod tests;

//! A token bucket. Tokens come at a steady rate up to a burst, and each send takes one.
//!
//! It begins empty, so that a process that restarts often sends no more than one that keeps
//! running.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub struct TokenBucket {
    tokens_per_second: f64,
    burst: f64,
    tokens: f64,
    counted_at: Instant,
}

impl TokenBucket {
    /// `tokens_per_second` and `burst` are above 0.
    pub fn new(tokens_per_second: f64, burst: f64, now: Instant) -> Self {
        Self { tokens_per_second, burst: burst.max(1.0), tokens: 0.0, counted_at: now }
    }

    /// When a token is available: `now` or later.
    pub fn ready_at(&mut self, now: Instant) -> Instant {
        self.count(now);
        let missing = 1.0 - self.tokens;
        if missing <= 0.0 {
            now
        } else {
            now + Duration::from_secs_f64(missing / self.tokens_per_second)
        }
    }

    /// Takes the token that [`ready_at`](Self::ready_at) has announced.
    pub fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// Returns a token that was not used.
    pub fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.burst.max(self.tokens));
    }

    pub fn empty(&mut self, now: Instant) {
        self.tokens = 0.0;
        self.counted_at = now;
    }

    pub fn set_rate(&mut self, tokens_per_second: f64, now: Instant) {
        self.count(now);
        self.tokens_per_second = tokens_per_second;
    }

    pub fn set_burst(&mut self, burst: f64) {
        self.burst = burst.max(1.0);
        self.tokens = self.tokens.min(self.burst);
    }

    /// Adds the tokens up to `now`. The bucket may exceed the burst by the tokens that came while
    /// the caller was late.
    pub fn catch_up(&mut self, late: Duration, now: Instant) {
        self.count_up_to(self.burst + late.as_secs_f64() * self.tokens_per_second, now);
    }

    fn count(&mut self, now: Instant) {
        self.count_up_to(self.burst, now);
    }

    /// Tokens above the burst stay until they are taken.
    fn count_up_to(&mut self, most: f64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.counted_at).as_secs_f64();
        self.counted_at = self.counted_at.max(now);
        // Rounding durations to nanoseconds loses or gains about a billionth of a token. Without
        // this addend, `ready_at` could return its own `now` for ever.
        self.tokens =
            (self.tokens + elapsed * self.tokens_per_second + 1e-9).min(most.max(self.tokens));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_announced_wait_is_the_wait_needed(rate in 1.0f64..5000.0, burst in 1.0f64..100.0, pauses_ms in prop::collection::vec(0u64..3000, 1..50)) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = TokenBucket::new(rate, burst, start);
            let mut taken = 0u32;
            for pause_ms in pauses_ms {
                now += Duration::from_millis(pause_ms);
                let ready_at = bucket.ready_at(now);
                if ready_at > now {
                    let just_before = ready_at - (ready_at - now) / 100 - Duration::from_nanos(10);
                    prop_assert!(just_before <= now || bucket.ready_at(just_before) > just_before);
                    now = ready_at;
                    prop_assert_eq!(bucket.ready_at(now), now);
                }
                bucket.take();
                taken += 1;
                let allowed = burst + (now - start).as_secs_f64() * rate;
                prop_assert!(f64::from(taken) <= allowed + 0.001, "{} sends where {} were \
                    allowed", taken, allowed);
            }
        }
    }
}

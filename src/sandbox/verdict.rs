//! The path of a call: examine it, apply a fault, deliver it, count it. One lock holds all this
//! state, so the limit, the statistics and the deliveries always agree.

use std::time::Duration;

use super::{
    call::{ArrivalTime, Call},
    deliveries::Deliveries,
    fault::{Faults, InjectedFault, StrikeEffect},
    notification::Notification,
    received::Inbox,
    refusal::ApiRefusal,
    second::SlidingSecond,
    settings::SandboxSettings,
    stats::{CallTally, Stats},
};

#[derive(Debug)]
pub struct SandboxVerdict {
    pub latency: Duration,
    pub answer: SandboxAnswer,
}

#[derive(Debug, PartialEq, Eq)]
pub enum SandboxAnswer {
    Accepted,
    Refused(ApiRefusal),
    Faulty(InjectedFault),
}

impl SandboxAnswer {
    /// The `ErrorCode` that the caller reads, if it gets one.
    pub fn code(&self) -> Option<i64> {
        match self {
            Self::Accepted => Some(0),
            Self::Refused(refusal) => Some(refusal.code),
            Self::Faulty(InjectedFault::Error { code, .. }) => Some(*code),
            Self::Faulty(
                InjectedFault::LatencyMs(_)
                | InjectedFault::HttpStatus(_)
                | InjectedFault::NotJson
                | InjectedFault::Reset
                | InjectedFault::Hang
                | InjectedFault::Redirect,
            ) => None,
        }
    }
}

pub struct SandboxState {
    pub settings: SandboxSettings,
    pub faults: Faults,
    pub inbox: Inbox,
    arrivals: SlidingSecond,
    accepted: SlidingSecond,
    deliveries: Deliveries,
    tally: CallTally,
}

impl SandboxState {
    pub fn new(settings: SandboxSettings) -> Self {
        Self {
            settings,
            faults: Faults::default(),
            inbox: Inbox::default(),
            arrivals: SlidingSecond::default(),
            accepted: SlidingSecond::default(),
            deliveries: Deliveries::default(),
            tally: CallTally::default(),
        }
    }

    /// Moments of successive calls must not go back.
    pub fn judge(&mut self, call: &Call, now: ArrivalTime) -> SandboxVerdict {
        self.arrivals.record(now.instant);
        self.tally.calls += 1;
        let examined = self.examine(call, now);
        let strike = self.faults.strike(examined.as_ref().ok().copied());
        let answer = match (strike.fault, examined) {
            (None, Ok(notification)) => {
                self.deliver(notification, now);
                SandboxAnswer::Accepted
            }
            (None, Err(refusal)) => SandboxAnswer::Refused(refusal),
            (Some(fault), Ok(notification)) => {
                if strike.effect == StrikeEffect::Happens {
                    self.deliver(notification, now);
                }
                SandboxAnswer::Faulty(fault)
            }
            (Some(fault), Err(_)) => SandboxAnswer::Faulty(fault),
        };
        self.tally.record(&answer);
        SandboxVerdict { latency: self.settings.draw_latency() + strike.latency, answer }
    }

    fn examine<'c>(
        &self,
        call: &'c Call,
        now: ArrivalTime,
    ) -> Result<&'c Notification<'c>, ApiRefusal> {
        let credential = call.credential.as_ref().map_err(ApiRefusal::clone)?;
        credential.verify(&self.settings, now.unix_seconds())?;
        self.check_limit(now)?;
        let notification = call.notification.as_ref().map_err(ApiRefusal::clone)?;
        notification.check(self.settings.max_recipients)?;
        Ok(notification)
    }

    /// Only accepted calls count against the limit.
    fn check_limit(&self, now: ArrivalTime) -> Result<(), ApiRefusal> {
        let limit = self.settings.calls_per_second;
        if limit > 0 && self.accepted.count(now.instant) >= limit as usize {
            let info = format!("over {limit} calls per second");
            return Err(ApiRefusal::new(self.settings.limit_code, info));
        }
        Ok(())
    }

    fn deliver(&mut self, notification: &Notification, now: ArrivalTime) {
        self.accepted.record(now.instant);
        self.tally.accepted += 1;
        self.deliveries.record(notification);
        self.inbox.record(notification, now.wall_clock);
    }

    pub fn stats(&self) -> Stats {
        Stats {
            max_in_1s: self.arrivals.most(),
            max_accepted_in_1s: self.accepted.most(),
            deliveries: self.deliveries.counts().clone(),
            ..self.tally.stats()
        }
    }

    pub fn calls_so_far(&self) -> CallsSoFar {
        CallsSoFar { calls: self.tally.calls, refused: self.tally.calls - self.tally.accepted }
    }

    /// Removes calls and faults. The settings stay.
    pub fn reset(&mut self) {
        *self = Self::new(self.settings.clone());
    }
}

/// The two numbers that a running sandbox logs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CallsSoFar {
    pub calls: u64,
    pub refused: u64,
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;

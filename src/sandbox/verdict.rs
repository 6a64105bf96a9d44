//! The path of a call: examine it, apply a fault, deliver it, count it. One lock holds all this
//! state, so the limit, the statistics and the deliveries always agree.

use std::time::Duration;

use super::{
    call::{ArrivalTime, Call},
    command::{CallBody, PerCommand, SandboxCommand},
    deliveries::Deliveries,
    fault::{Faults, InjectedFault, StrikeEffect},
    incoming_message::IncomingMessage,
    messages::{MessageReply, SandboxMessages},
    notification::Notification,
    received::{Inbox, StoredCall},
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
    /// The system notification is accepted.
    Accepted,
    /// The message is accepted, or the caller is told so.
    Sent(MessageReply),
    Refused(ApiRefusal),
    Faulty(InjectedFault),
}

impl SandboxAnswer {
    /// The `ErrorCode` that the caller reads, if it gets one.
    pub fn code(&self) -> Option<i64> {
        match self {
            Self::Accepted | Self::Sent(_) => Some(0),
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

/// A call that no rule of the API refuses.
#[derive(Clone, Copy)]
struct AcceptableCall<'c> {
    /// The identifier of its credential.
    caller: &'c str,
    body: &'c CallBody<'c>,
}

pub struct SandboxState {
    pub settings: SandboxSettings,
    pub faults: Faults,
    pub inbox: Inbox,
    arrivals: SlidingSecond,
    accepted: PerCommand<SlidingSecond>,
    messages: SandboxMessages,
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
            accepted: PerCommand::default(),
            messages: SandboxMessages::default(),
            deliveries: Deliveries::default(),
            tally: CallTally::default(),
        }
    }

    /// Moments of successive calls must not go back.
    pub fn judge(&mut self, call: &Call, now: ArrivalTime) -> SandboxVerdict {
        self.arrivals.record(now.instant);
        self.tally.calls += 1;
        let examined = self.examine(call, now);
        let strike =
            self.faults.strike(examined.as_ref().ok().map(|call| call.body.notification()));
        let answer = match (strike.fault, examined) {
            (None, Ok(call)) => self.carry_out(call, now),
            (None, Err(refusal)) => SandboxAnswer::Refused(refusal),
            (Some(fault), Ok(call)) => {
                if strike.effect == StrikeEffect::Happens {
                    // The caller does not learn this answer.
                    self.carry_out(call, now);
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
    ) -> Result<AcceptableCall<'c>, ApiRefusal> {
        let credential = call.credential.as_ref().map_err(ApiRefusal::clone)?;
        credential.verify(&self.settings, now.unix_seconds())?;
        self.check_limit(credential.command(), now)?;
        let body = call.body.as_ref().map_err(ApiRefusal::clone)?;
        body.check(&self.settings)?;
        Ok(AcceptableCall { caller: credential.identifier(), body })
    }

    /// Each command has a limit of its own. Only accepted calls count against it.
    fn check_limit(&self, command: SandboxCommand, now: ArrivalTime) -> Result<(), ApiRefusal> {
        let limit = self.settings.calls_per_second;
        if limit > 0 && self.accepted.of(command).count(now.instant) >= limit as usize {
            let info = format!("over {limit} calls per second");
            return Err(ApiRefusal::new(self.settings.limit_code, info));
        }
        Ok(())
    }

    fn carry_out(&mut self, call: AcceptableCall, now: ArrivalTime) -> SandboxAnswer {
        self.accepted.of_mut(call.body.command()).record(now.instant);
        match call.body {
            CallBody::Notification(notification) => self.notify(notification, now),
            CallBody::Message(message) => self.post(message, call.caller, now),
        }
    }

    fn notify(&mut self, notification: &Notification, now: ArrivalTime) -> SandboxAnswer {
        self.deliver(notification);
        self.inbox.record(StoredCall::of_notification(notification, now.wall_clock));
        SandboxAnswer::Accepted
    }

    fn post(&mut self, message: &IncomingMessage, caller: &str, now: ArrivalTime) -> SandboxAnswer {
        let posted = self.messages.post(message, caller, &self.settings.messages, now);
        if posted.fate.discard_reason().is_none() {
            self.deliver(&posted.audience);
        }
        self.inbox.record(StoredCall::of_message(message, &posted, now.wall_clock));
        posted.answer
    }

    fn deliver(&mut self, notification: &Notification) {
        self.tally.accepted += 1;
        self.deliveries.record(notification);
    }

    pub fn stats(&self) -> Stats {
        Stats {
            max_in_1s: self.arrivals.most(),
            max_accepted_in_1s: self
                .accepted
                .all()
                .map(SlidingSecond::most)
                .into_iter()
                .max()
                .unwrap_or(0),
            deliveries: self.deliveries.counts().clone(),
            messages: self.messages.counts(),
            refused: self.refused(),
            ..self.tally.stats()
        }
    }

    pub fn calls_so_far(&self) -> CallsSoFar {
        CallsSoFar { calls: self.tally.calls, refused: self.refused() }
    }

    fn refused(&self) -> u64 {
        self.tally.calls - self.tally.accepted - self.messages.counts().discarded()
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

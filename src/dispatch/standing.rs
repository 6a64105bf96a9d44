//! Whose fault a failed call is, as far as the whole app is concerned, and what may be called while something is wrong. Pure:
//! verdicts and moments in, decisions out.
//!
//! ```text
//!             fault of the account, or five groups in a row with the same doubtful refusal
//!   Working ─────────────────────────────────────────────────────────────────────────────> Paused
//!      │ five transport failures in a row                                                     │
//!      └──────────────────────────────────> Outage                                            │
//!      ^                                       │ a probe is answered                          │ a probe is not refused
//!      └───────────────────────────────────────┴──────────────────────────────────────────────┘
//! ```
//!
//! A probe is a call that notifies nobody, so no job's attempt is spent on finding out. Until a job's call has proven that
//! calls are accepted (after a start, a minute without one, a new UserSig, a pause, an outage), calls go one at a time: a
//! revoked key costs two calls and not as many as may be in flight.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Tuning,
    condition::{Condition, Trouble},
};
use crate::{
    clock, delay,
    outcome::Fault,
    send::{
        classify::Verdict,
        codes::{self, Class},
        explain::{Explanation, explain},
        retry::Supervision,
    },
};

/// So many transport failures in a row are an outage: fewer come with a restart of something on the way.
const FAILURES_OF_AN_OUTAGE: u32 = 5;
/// So many groups in a row that are refused alike are not to blame, each for itself.
const GROUPS_OF_A_BREAK: usize = 5;
/// An app whose last good answer is older than this may have lost its key since.
const PROVEN_FOR: Duration = Duration::from_secs(60);
/// A UserSig that is refused so soon after it was made anew is not refused for its age.
const RENEWED_FOR: Duration = Duration::from_secs(60);
/// After too many failed signatures the vendor says to wait a minute.
const AFTER_TOO_MANY_SIGNATURES: Duration = Duration::from_secs(60);

/// What the configuration says about waiting.
#[derive(Debug, Clone)]
pub(super) struct Waits {
    pub outage: (Duration, Duration),
    pub pause: (Duration, Duration),
}

impl Waits {
    pub fn of(Tuning { retry, pause, .. }: &Tuning) -> Self {
        Self { outage: (retry.first_delay, retry.max_delay), pause: (pause.probe_first, pause.probe_max) }
    }
}

pub(super) struct Standing {
    waits: Waits,
    supervision: Supervision,
    condition: Condition,
    /// When the condition that is not `Working` began.
    since: Instant,
    probe: Probe,
    /// Probes since a call was last proven good, of a pause or of an outage.
    probes: u32,
    probes_are_of_a_pause: bool,
    proven_at: Option<Instant>,
    transport_failures: u32,
    /// Groups refused alike since the last good answer.
    refused_alike: Option<(Fault, Vec<String>)>,
    renewed_at: Option<Instant>,
    /// The fault that the app was paused for since a call was last proven good.
    paused_for: Option<Fault>,
    /// No probe before then: the vendor has asked for silence.
    quiet_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Probe {
    At(Instant),
    UnderWay,
    /// Under way, with a configuration that has changed since.
    Outdated,
}

/// What may leave now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Calls, as long as no more than so many are in flight.
    Calls {
        in_flight: usize,
    },
    Probe,
    /// Nothing before then.
    ProbeAt(Instant),
    /// Nothing until the probe is back.
    Nothing,
}

/// Whom a verdict is to be charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The batch or the moment: it is failed, retried or sent by itself.
    Batch,
    /// The UserSig that was in use when the call was made: it goes again with the present one.
    OldUserSig,
    /// The UserSig, which has to be made anew; then it goes again.
    UserSig,
    /// The app: the batch is not touched until the app works again.
    App,
    /// The app, perhaps: this batch should not be the first to try then.
    AppOrBatch,
}

impl Standing {
    pub fn new(waits: Waits, supervision: Supervision, now: Instant) -> Self {
        Self {
            waits,
            supervision,
            condition: Condition::Working,
            since: now,
            probe: Probe::At(now),
            probes: 0,
            probes_are_of_a_pause: false,
            proven_at: None,
            transport_failures: 0,
            refused_alike: None,
            renewed_at: None,
            paused_for: None,
            quiet_until: None,
        }
    }

    /// The configuration has changed: perhaps that was what was wrong.
    pub fn reconfigured(&mut self, waits: Waits, now: Instant) {
        self.waits = waits;
        self.probe = match self.probe {
            Probe::At(_) => Probe::At(self.not_in_silence(now)),
            Probe::UnderWay | Probe::Outdated => Probe::Outdated,
        };
    }

    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Since when the API cannot be reached.
    pub fn outage_since(&self) -> Option<Instant> {
        matches!(self.condition, Condition::Outage(_)).then_some(self.since)
    }

    pub fn allowed(&self, most_in_flight: usize, now: Instant) -> Allowed {
        match (&self.condition, self.probe) {
            (Condition::Working, _) if self.is_proven(now) => Allowed::Calls { in_flight: most_in_flight },
            (Condition::Working, _) => Allowed::Calls { in_flight: 1 },
            (Condition::Outage(_) | Condition::Paused(_), Probe::UnderWay | Probe::Outdated) => Allowed::Nothing,
            (Condition::Outage(_) | Condition::Paused(_), Probe::At(at)) if at <= now => Allowed::Probe,
            (Condition::Outage(_) | Condition::Paused(_), Probe::At(at)) => Allowed::ProbeAt(at),
        }
    }

    fn is_proven(&self, now: Instant) -> bool {
        self.proven_at.is_some_and(|at| now < at + PROVEN_FOR)
    }

    /// Judges a job's call that left at `started` for `group`.
    pub fn judge(&mut self, verdict: &Verdict, group: &str, started: Instant, now: Instant) -> Blame {
        let Verdict::Failed { class, fault } = verdict else {
            self.prove(now);
            return Blame::Batch;
        };
        match class {
            Class::Job | Class::TooManyRecipients => {
                self.prove(now);
                Blame::Batch
            }
            Class::Transient(_) if fault.code.is_none() => {
                self.count_transport_failure(*class, fault, now);
                Blame::Batch
            }
            Class::Transient(_) | Class::RateLimited => {
                self.reach(now);
                Blame::Batch
            }
            Class::Credential => self.blame_user_sig(started, now).unwrap_or_else(|| self.pause(*class, fault, now)),
            Class::CredentialOrJob => {
                self.blame_user_sig(started, now).unwrap_or_else(|| self.blame_group(*class, fault, group, now))
            }
            Class::JobOrConfiguration | Class::TransientOrJob => self.blame_group(*class, fault, group, now),
            Class::Account => self.pause(*class, fault, now),
        }
    }

    pub fn probe_leaves(&mut self) {
        self.probe = Probe::UnderWay;
        self.probes += 1;
    }

    /// Judges a probe.
    pub fn judge_probe(&mut self, verdict: &Verdict, now: Instant) {
        let (class, fault) = match verdict {
            Verdict::Sent => return self.resume(now),
            Verdict::Failed { class, fault } => (class, fault),
        };
        let next = if let Probe::Outdated = self.probe { now } else { now + self.wait() };
        self.hear(fault, now);
        self.probe = Probe::At(self.not_in_silence(next));
        let is_paused = matches!(self.condition, Condition::Paused(_));
        match class {
            Class::Job | Class::TooManyRecipients => self.resume(now),
            Class::Account | Class::Credential | Class::CredentialOrJob => {
                self.pause(*class, fault, now);
            }
            // The refusal that paused the app, or another one that only its jobs get.
            Class::JobOrConfiguration | Class::TransientOrJob if is_paused && self.is_refused_alike(fault) => {}
            Class::JobOrConfiguration | Class::TransientOrJob => self.resume(now),
            Class::Transient(_) if fault.code.is_none() => {}
            // It is reached; whether the account is in order again is not said.
            Class::Transient(_) | Class::RateLimited if is_paused => {}
            Class::Transient(_) | Class::RateLimited => self.resume(now),
        }
    }

    /// A job's call was judged by what it says: the API is there and knows the app.
    fn prove(&mut self, now: Instant) {
        self.reach(now);
        self.proven_at = Some(now);
        self.probes = 0;
        self.refused_alike = None;
        self.paused_for = None;
    }

    /// The API has answered.
    fn reach(&mut self, now: Instant) {
        self.transport_failures = 0;
        if let Condition::Outage(_) = self.condition {
            self.resume(now);
        }
    }

    /// Back to work, one call at a time. What went wrong before does so again at the first sign of it.
    pub fn resume(&mut self, now: Instant) {
        if self.condition != Condition::Working {
            self.condition = Condition::Working;
            self.since = now;
            self.proven_at = None;
            self.transport_failures = FAILURES_OF_AN_OUTAGE - 1;
        }
    }

    fn count_transport_failure(&mut self, class: Class, fault: &Fault, now: Instant) {
        self.transport_failures += 1;
        let is_outage = self.transport_failures >= FAILURES_OF_AN_OUTAGE && self.condition == Condition::Working;
        if is_outage && self.supervision == Supervision::Unattended {
            self.condition = Condition::Outage(trouble(class, fault));
            self.begin(now);
        }
    }

    fn hear(&mut self, fault: &Fault, now: Instant) {
        if fault.code == Some(codes::TOO_MANY_FAILED_SIGNATURES) {
            self.quiet_until = Some(now + AFTER_TOO_MANY_SIGNATURES);
        }
    }

    fn not_in_silence(&self, at: Instant) -> Instant {
        self.quiet_until.map_or(at, |quiet_until| quiet_until.max(at))
    }

    fn pause(&mut self, class: Class, fault: &Fault, now: Instant) -> Blame {
        self.hear(fault, now);
        let is_known = self.paused_for.as_ref().is_some_and(|known| known.cause() == fault.cause());
        match (self.supervision, &self.condition) {
            (Supervision::Attended, _) => return Blame::Batch,
            (Supervision::Unattended, Condition::Paused(_)) if is_known => return Blame::App,
            (Supervision::Unattended, Condition::Paused(before)) => {
                self.condition = Condition::Paused(Trouble { since: before.since, ..trouble(class, fault) });
                if let Probe::At(at) = self.probe {
                    self.probe = Probe::At(self.not_in_silence(at));
                }
            }
            (Supervision::Unattended, Condition::Working | Condition::Outage(_)) => {
                self.condition = Condition::Paused(trouble(class, fault));
                self.begin(now);
            }
        }
        self.paused_for = Some(fault.clone());
        // A probe has passed since, and no call of a job: this job may be the only one that is refused so.
        if is_known { Blame::AppOrBatch } else { Blame::App }
    }

    fn begin(&mut self, now: Instant) {
        let is_pause = self.condition.is_paused();
        if is_pause != self.probes_are_of_a_pause {
            self.probes_are_of_a_pause = is_pause;
            self.probes = 0;
        }
        self.since = now;
        self.proven_at = None;
        self.probe = Probe::At(self.not_in_silence(now + self.wait()));
    }

    /// Never shorter than what is configured, and longer by up to a quarter, so that replicas spread.
    fn wait(&self) -> Duration {
        let (first, longest) = match self.condition {
            Condition::Paused(_) => self.waits.pause,
            Condition::Working | Condition::Outage(_) => self.waits.outage,
        };
        delay::after_attempt(self.probes + 1, first, longest, 0.5 + delay::jitter() / 4.0)
    }

    fn blame_user_sig(&mut self, started: Instant, now: Instant) -> Option<Blame> {
        match self.renewed_at {
            Some(at) if started < at => Some(Blame::OldUserSig),
            Some(at) if now < at + RENEWED_FOR => None,
            _ => {
                self.renewed_at = Some(now);
                self.proven_at = None;
                Some(Blame::UserSig)
            }
        }
    }

    fn blame_group(&mut self, class: Class, fault: &Fault, group: &str, now: Instant) -> Blame {
        self.reach(now);
        if !self.is_refused_alike(fault) {
            self.refused_alike = None;
        }
        let (_, groups) = self.refused_alike.get_or_insert_with(|| (fault.clone(), Vec::new()));
        if groups.iter().all(|known| known != group) {
            groups.push(group.to_owned());
        }
        if groups.len() < GROUPS_OF_A_BREAK {
            return Blame::Batch;
        }
        match self.pause(class, fault, now) {
            Blame::App | Blame::AppOrBatch => Blame::AppOrBatch,
            other => other,
        }
    }

    fn is_refused_alike(&self, fault: &Fault) -> bool {
        self.refused_alike.as_ref().is_some_and(|(known, _)| known.cause() == fault.cause())
    }
}

fn trouble(class: Class, fault: &Fault) -> Trouble {
    let Explanation { meaning, advice, .. } = explain(class, fault);
    let Fault { code, http_status, info } = fault.clone();
    let number = code.map(|code| format!(" ({code})")).or(http_status.map(|status| format!(" (HTTP {status})")));
    let reason = format!("{meaning}{}", number.unwrap_or_default());
    Trouble { since: clock::now(), code, http_status, reason, info, advice }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;

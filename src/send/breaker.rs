//! Decides whose fault a failed call is for the app as a whole, and what the daemon may call while
//! something is wrong. Pure: verdicts and moments in, decisions out.
//!
//! ```text
//!             a fault of the account, or the same doubtful
//!             refusal of five groups and of the groups tried after them
//!   Working ────────────────────────────────────────────────────────> Paused
//!    ^   │ five transport failures in a row                              │
//!    │   └───────────────────────────> Outage                            │
//!    │                                   │ a probe is answered           │ a probe passes
//!    └───────────────────────────────────┴───────────────────────────────┘
//! ```
//!
//! A probe is a call that notifies no user, so no job spends an attempt on it. Until a job's call
//! proves that the API accepts calls, calls go one at a time. So a revoked key costs two calls
//! instead of a full `max_in_flight`. The proof is lost at a start, after a minute without a call,
//! with a new UserSig, after a pause and after an outage.
//!
//! [`groups`] tells a fault of the app from a fault of some groups.

mod groups;

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use self::groups::{RefusedAlike, RefusedGroup, Trial};
use super::{
    Supervision,
    condition::{Condition, Trouble},
};
use crate::{
    api::{
        classify::Verdict,
        codes::{self, Class},
        explain::{Explanation, explain},
    },
    clock,
    config::App,
    delay,
    job::outcome::Fault,
};

/// This many transport failures in a row are an outage. A restart of a proxy causes fewer.
const FAILURES_OF_AN_OUTAGE: u32 = 5;
/// After this time without a good answer, the app's key may have been revoked.
const PROVEN_FOR: Duration = Duration::from_secs(60);
/// A UserSig that is refused so soon after it was made is not refused for its age.
const RENEWED_FOR: Duration = Duration::from_secs(60);
/// After too many failed signatures the vendor asks for a pause of a minute.
const AFTER_TOO_MANY_SIGNATURES: Duration = Duration::from_secs(60);

/// What the configuration says about waiting.
#[derive(Debug, Clone)]
pub(super) struct Waits {
    pub outage: (Duration, Duration),
    pub pause: (Duration, Duration),
}

impl Waits {
    pub fn of(App { retry, pause, .. }: &App) -> Self {
        Self {
            outage: (retry.first_delay, retry.max_delay),
            pause: (pause.probe_first, pause.probe_max),
        }
    }
}

pub(super) struct Breaker {
    waits: Waits,
    supervision: Supervision,
    condition: Condition,
    /// When the condition that is not `Working` began.
    since: Instant,
    probe: Probe,
    /// Probes since the last proof, in a pause or in an outage.
    probes: u32,
    probes_are_of_a_pause: bool,
    proven_at: Option<Instant>,
    transport_failures: u32,
    /// Groups that got the same refusal since the last good answer.
    refused_alike: Option<RefusedAlike>,
    /// Probes that passed since the last accepted call.
    passes: u32,
    /// The answer that probes get while the API accepts calls.
    usual_answer: Option<Cause>,
    last_answer: Option<Cause>,
    /// Groups that met a fault of the account, the last at the end.
    refused_groups: VecDeque<RefusedGroup>,
    renewed_at: Option<Instant>,
    /// The fault that the app was paused for since a call was last proven good.
    paused_for: Option<Fault>,
    /// No probe before this moment, because the vendor asked for a pause.
    quiet_until: Option<Instant>,
}

/// What an answer is known by: its code and its HTTP status.
type Cause = (Option<i64>, Option<u16>);

#[derive(Debug, Clone, Copy)]
enum Probe {
    At(Instant),
    UnderWay,
    /// Under way, with a configuration that has changed since.
    Outdated,
}

/// What the daemon may call now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Calls, up to this number in flight.
    Calls {
        in_flight: usize,
    },
    Probe,
    /// Nothing before this moment.
    ProbeAt(Instant),
    /// Nothing until the probe has ended.
    Nothing,
}

/// Who is to blame for a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The batch, or a passing condition. The batch is decided by itself.
    Batch,
    /// The UserSig of the call, which has been replaced since. The batch goes again at once.
    OldUserSig,
    /// The UserSig. The daemon makes a new one, and the batch goes again.
    UserSig,
    /// The app. The batch waits until the app works again.
    App,
    /// Perhaps the app. Another batch should be tried first.
    AppOrBatch,
    /// The group, which alone gets a fault of the account.
    Group,
}

impl Breaker {
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
            passes: 0,
            usual_answer: None,
            last_answer: None,
            refused_groups: VecDeque::new(),
            renewed_at: None,
            paused_for: None,
            quiet_until: None,
        }
    }

    /// The configuration has changed, which may have mended the fault: probes at once.
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
            (Condition::Working, _) if self.is_proven(now) => {
                Allowed::Calls { in_flight: most_in_flight }
            }
            (Condition::Working, _) => Allowed::Calls { in_flight: 1 },
            (Condition::Outage(_) | Condition::Paused(_), Probe::UnderWay | Probe::Outdated) => {
                Allowed::Nothing
            }
            (Condition::Outage(_) | Condition::Paused(_), Probe::At(at)) if at <= now => {
                Allowed::Probe
            }
            (Condition::Outage(_) | Condition::Paused(_), Probe::At(at)) => Allowed::ProbeAt(at),
        }
    }

    fn is_proven(&self, now: Instant) -> bool {
        self.proven_at.is_some_and(|at| now < at + PROVEN_FOR)
    }

    /// Judges the answer to a job's call for `group`, which was granted at `started`.
    pub fn judge(
        &mut self,
        verdict: &Verdict,
        group: &str,
        started: Instant,
        now: Instant,
    ) -> Blame {
        let Verdict::Failed { class, fault } = verdict else {
            self.prove(group, started, now);
            return Blame::Batch;
        };
        match class {
            Class::Job | Class::TooManyRecipients => {
                self.prove(group, started, now);
                Blame::Batch
            }
            Class::Transient(_) if fault.code.is_none() => {
                self.count_transport_failure(*class, fault, now);
                Blame::Batch
            }
            Class::Transient(_) | Class::RateLimited | Class::GroupRateLimited => {
                self.reach(now);
                Blame::Batch
            }
            Class::Credential if self.is_alone(group, fault) => {
                self.blame_refused_group(*class, fault, group, now)
            }
            Class::Credential => self
                .blame_user_sig(started, now)
                .unwrap_or_else(|| self.blame_refused_group(*class, fault, group, now)),
            Class::CredentialOrJob => self
                .blame_user_sig(started, now)
                .unwrap_or_else(|| self.blame_group(*class, fault, group, started, now)),
            Class::JobOrConfiguration | Class::TransientOrJob => {
                self.blame_group(*class, fault, group, started, now)
            }
            Class::Account => self.blame_refused_group(*class, fault, group, now),
        }
    }

    pub fn probe_leaves(&mut self) {
        self.probe = Probe::UnderWay;
        self.probes += 1;
    }

    /// The driver has started, perhaps after a panic that lost its probe.
    pub fn no_probe_is_under_way(&mut self, now: Instant) {
        if let Probe::UnderWay | Probe::Outdated = self.probe {
            self.probe = Probe::At(self.not_in_silence(now + self.wait()));
        }
    }

    /// Judges a probe.
    pub fn judge_probe(&mut self, verdict: &Verdict, now: Instant) {
        let (class, fault) = match verdict {
            Verdict::Sent => {
                self.last_answer = Some((Some(0), None));
                return self.pass(now);
            }
            Verdict::Failed { class, fault } => (class, fault),
        };
        self.last_answer = Some(fault.cause());
        let next = if let Probe::Outdated = self.probe { now } else { now + self.wait() };
        self.hear(fault, now);
        self.probe = Probe::At(self.not_in_silence(next));
        let is_paused = matches!(self.condition, Condition::Paused(_));
        match class {
            Class::Job | Class::TooManyRecipients => self.pass(now),
            Class::Account | Class::Credential | Class::CredentialOrJob => {
                self.pause(*class, fault, now);
            }
            // The refusal that paused the app, unless the probe's group, which does not exist,
            // always gets it.
            Class::JobOrConfiguration | Class::TransientOrJob
                if is_paused && self.says_something(fault) => {}
            Class::JobOrConfiguration | Class::TransientOrJob => self.pass(now),
            Class::Transient(_) if fault.code.is_none() => {}
            // It is reached; whether the account is in order again is not said.
            Class::Transient(_) | Class::RateLimited | Class::GroupRateLimited if is_paused => {}
            Class::Transient(_) | Class::RateLimited | Class::GroupRateLimited => self.resume(now),
        }
    }

    /// A job's call proves that the API is there and knows the app.
    fn prove(&mut self, group: &str, started: Instant, now: Instant) {
        self.reach(now);
        if self.proven_at.is_none() && self.passes > 0 {
            self.usual_answer = self.last_answer;
        }
        self.proven_at = Some(now);
        self.probes = 0;
        self.passes = 0;
        self.refused_alike = None;
        self.paused_for = None;
        self.refused_groups.retain(|refused| refused.group != group);
        self.refused_groups
            .iter_mut()
            .filter(|refused| refused.at <= started)
            .for_each(|refused| refused.is_alone = true);
    }

    /// The probe did not get a fault of the app.
    fn pass(&mut self, now: Instant) {
        self.passes += u32::from(self.condition.is_paused());
        self.resume(now);
    }

    /// Whether this answer to a probe shows that the fault is still there.
    fn says_something(&self, fault: &Fault) -> bool {
        // What a probe gets while all is well is known once a call was accepted after one. Until
        // then jobs are tried all the same, after every other probe.
        let is_usual = self
            .usual_answer
            .map_or(!self.probes.is_multiple_of(2), |usual| usual == fault.cause());
        self.is_refused_alike(fault) && !is_usual
    }

    /// The API has answered.
    fn reach(&mut self, now: Instant) {
        self.transport_failures = 0;
        if let Condition::Outage(_) = self.condition {
            self.resume(now);
        }
    }

    /// Back to work, one call at a time. The first sign of the same trouble is enough to stop
    /// again.
    pub fn resume(&mut self, now: Instant) {
        if self.condition != Condition::Working {
            self.condition = Condition::Working;
            self.since = now;
            self.proven_at = None;
            self.transport_failures = FAILURES_OF_AN_OUTAGE - 1;
            let left = self.trials();
            if let Some(RefusedAlike { trial: Some(trial), .. }) = &mut self.refused_alike {
                *trial = Trial { since: now, left, after_a_pause: true };
            }
        }
    }

    fn count_transport_failure(&mut self, class: Class, fault: &Fault, now: Instant) {
        self.transport_failures += 1;
        let is_outage = self.transport_failures >= FAILURES_OF_AN_OUTAGE
            && self.condition == Condition::Working;
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
                self.condition =
                    Condition::Paused(Trouble { since: before.since, ..trouble(class, fault) });
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
        // A probe has passed since, and no call of a job: this job may be the only one that is
        // refused so.
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

    /// At least the configured wait, and up to a quarter longer, so that replicas do not probe
    /// together.
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
}

fn trouble(class: Class, fault: &Fault) -> Trouble {
    let Explanation { meaning, advice, .. } = explain(class, fault);
    let Fault { code, http_status, info } = fault.clone();
    let number = code
        .map(|code| format!(" ({code})"))
        .or(http_status.map(|status| format!(" (HTTP {status})")));
    let reason = format!("{meaning}{}", number.unwrap_or_default());
    Trouble { since: clock::now(), code, http_status, reason, info, advice }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;

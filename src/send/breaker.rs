//! Whose fault a failed call is, as far as the whole app is concerned, and what may be called while
//! something is wrong. Pure: verdicts and moments in, decisions out.
//!
//! ```text
//!             fault of the account, or the same doubtful refusal of five groups in a row and of those tried after them
//!   Working ─────────────────────────────────────────────────────────────────────────────> Paused
//!      │ five transport failures in a row                                                     │
//!      └──────────────────────────────────> Outage                                            │
//!      ^                                       │ a probe is answered                          │ a probe is not refused
//!      └───────────────────────────────────────┴──────────────────────────────────────────────┘
//! ```
//!
//! A probe is a call that notifies no user, so no job's attempt is spent on finding out. Until a
//! job's call has proven that calls are accepted (after a start, a minute without one, a new
//! UserSig, a pause, an outage), calls go one at a time: a revoked key costs two calls and not as
//! many as may be in flight.
//!
//! A job can be the only one that meets a fault of the account: something on the way refuses its
//! group. After a pause, jobs of other groups go first. If one of them is accepted, a group that is
//! refused again is refused for itself, and no pause follows. The same holds before a pause: five
//! groups with the same doubtful refusal may be one producer's mistake, so others are tried.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

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

/// So many transport failures in a row are an outage: fewer come with a restart of something on the
/// way.
const FAILURES_OF_AN_OUTAGE: u32 = 5;
/// So many groups in a row that are refused alike are not to blame, each for itself.
const GROUPS_OF_A_BREAK: usize = 5;
/// Jobs of other groups that are tried, one after the other, before five groups pause the app.
/// After each probe that passes, twice as many, or a run of bad jobs would cost a pause each.
const TRIALS: u32 = 2;
const MOST_TRIALS: u32 = 64;
/// How long a job of another group is waited for.
const TRIED_WITHIN: Duration = Duration::from_secs(1);
/// Groups whose fault of the account is remembered.
const REMEMBERED_GROUPS: usize = 200;
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
    /// Probes since a call was last proven good, of a pause or of an outage.
    probes: u32,
    probes_are_of_a_pause: bool,
    proven_at: Option<Instant>,
    transport_failures: u32,
    /// Groups refused alike since the last good answer.
    refused_alike: Option<RefusedAlike>,
    /// Probes that passed, and no call was accepted since.
    passes: u32,
    /// What the probes get while calls are accepted, as far as it is a refusal that might be the
    /// app's.
    usual_answer: Option<Cause>,
    last_answer: Option<Cause>,
    /// Groups that met a fault of the account, the last at the end.
    refused_groups: VecDeque<RefusedGroup>,
    renewed_at: Option<Instant>,
    /// The fault that the app was paused for since a call was last proven good.
    paused_for: Option<Fault>,
    /// No probe before then: the vendor has asked for silence.
    quiet_until: Option<Instant>,
}

/// What an answer is known by: its code and its HTTP status.
type Cause = (Option<i64>, Option<u16>);

struct RefusedAlike {
    class: Class,
    fault: Fault,
    groups: Vec<String>,
    /// Once they are enough: since when others are tried, and how many more.
    trial: Option<Trial>,
}

#[derive(Debug, Clone, Copy)]
struct Trial {
    since: Instant,
    left: u32,
    /// Whether the app was paused before.
    after_a_pause: bool,
}

struct RefusedGroup {
    group: String,
    cause: Cause,
    /// When it was refused first and last.
    since: Instant,
    at: Instant,
    /// Whether a call for another group that started later was accepted.
    is_alone: bool,
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
    /// The group: it meets a fault of the account, and others do not.
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

    /// Judges a job's call that left at `started` for `group`.
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
            Class::Transient(_) | Class::RateLimited => {
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

    /// Whether a call for a group that was not refused should go first: until one is accepted, it
    /// is not known whose fault it is.
    pub fn prefers_other_groups(&self) -> bool {
        let trial = self.refused_alike.as_ref().is_some_and(|alike| alike.trial.is_some());
        self.proven_at.is_none() && (trial || self.paused_for.is_some())
    }

    /// Whether a group was refused in a way that may be the app's fault.
    pub fn has_refused(&self, group: &str) -> bool {
        self.refused_alike.iter().flat_map(|alike| &alike.groups).any(|known| known == group)
            || self.refused_groups.iter().any(|refused| refused.group == group)
    }

    /// Since when this group meets a fault of the account and has not been accepted.
    pub fn refused_since(&self, group: &str) -> Option<Instant> {
        self.refused_groups
            .iter()
            .find(|refused| refused.group == group)
            .map(|refused| refused.since)
    }

    /// Five groups were refused alike: until when to wait for a job of another one, which shows
    /// whether the app is to blame.
    pub fn waits_for_another_group(&self) -> Option<Instant> {
        let trial = self.refused_alike.as_ref()?.trial.filter(|trial| !trial.after_a_pause)?;
        (self.condition == Condition::Working).then_some(trial.since + TRIED_WITHIN)
    }

    /// No such job has come.
    pub fn no_other_group_came(&mut self, now: Instant) {
        if let Some(RefusedAlike { class, fault, .. }) = &self.refused_alike {
            let (class, fault) = (*class, fault.clone());
            self.pause(class, &fault, now);
        }
    }

    pub fn probe_leaves(&mut self) {
        self.probe = Probe::UnderWay;
        self.probes += 1;
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
            Class::Transient(_) | Class::RateLimited if is_paused => {}
            Class::Transient(_) | Class::RateLimited => self.resume(now),
        }
    }

    /// A job's call was judged by what it says: the API is there and knows the app.
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

    /// A probe was not refused for a fault of the app.
    fn pass(&mut self, now: Instant) {
        self.passes += u32::from(self.condition.is_paused());
        self.resume(now);
    }

    fn trials(&self) -> u32 {
        TRIALS.saturating_mul(1 << self.passes.min(8)).min(MOST_TRIALS)
    }

    /// Whether this answer to a probe says that the fault is still there.
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

    /// Back to work, one call at a time. What went wrong before does so again at the first sign of
    /// it.
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

    /// Never shorter than what is configured, and longer by up to a quarter, so that replicas
    /// spread.
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

    fn blame_group(
        &mut self,
        class: Class,
        fault: &Fault,
        group: &str,
        started: Instant,
        now: Instant,
    ) -> Blame {
        self.reach(now);
        if self.supervision == Supervision::Attended {
            return Blame::Batch;
        }
        if !self.is_refused_alike(fault) {
            self.refused_alike = None;
        }
        let left = self.trials();
        let new = || RefusedAlike { class, fault: fault.clone(), groups: Vec::new(), trial: None };
        let alike = self.refused_alike.get_or_insert_with(new);
        if alike.groups.iter().all(|known| known != group) {
            alike.groups.push(group.to_owned());
        }
        if alike.groups.len() < GROUPS_OF_A_BREAK {
            return Blame::Batch;
        }
        match &mut alike.trial {
            None => {
                alike.trial = Some(Trial { since: now, left, after_a_pause: false });
                self.proven_at = None;
            }
            // It left together with the five.
            Some(trial) if started < trial.since => {}
            Some(trial) if trial.left > 1 => trial.left -= 1,
            Some(_) => {
                self.pause(class, fault, now);
            }
        }
        Blame::AppOrBatch
    }

    fn is_refused_alike(&self, fault: &Fault) -> bool {
        self.refused_alike.as_ref().is_some_and(|alike| alike.fault.cause() == fault.cause())
    }

    /// A fault of the account pauses the app, unless only this group meets it.
    fn blame_refused_group(
        &mut self,
        class: Class,
        fault: &Fault,
        group: &str,
        now: Instant,
    ) -> Blame {
        if self.is_alone(group, fault) {
            self.reach(now);
            return Blame::Group;
        }
        let is_first = !self
            .refused_groups
            .iter()
            .any(|refused| refused.group == group && refused.cause == fault.cause());
        let is_of_groups = self
            .refused_groups
            .iter()
            .any(|refused| refused.is_alone && refused.cause == fault.cause());
        let blame = if is_of_groups
            && self.paused_for.is_none()
            && self.supervision == Supervision::Unattended
        {
            // Other groups were refused so, each for itself. If the next call is too, the app
            // pauses.
            self.reach(now);
            self.proven_at = None;
            self.paused_for = Some(fault.clone());
            Blame::AppOrBatch
        } else {
            self.pause(class, fault, now)
        };
        if self.supervision == Supervision::Unattended {
            let since = self.refused_since(group).filter(|_| !is_first).unwrap_or(now);
            self.refused_groups.retain(|refused| refused.group != group);
            let refused = RefusedGroup {
                group: group.to_owned(),
                cause: fault.cause(),
                since,
                at: now,
                is_alone: false,
            };
            self.refused_groups.push_back(refused);
            if self.refused_groups.len() > REMEMBERED_GROUPS {
                self.refused_groups.pop_front();
            }
        }
        blame
    }

    fn is_alone(&self, group: &str, fault: &Fault) -> bool {
        let same =
            |refused: &RefusedGroup| refused.group == group && refused.cause == fault.cause();
        self.refused_groups.iter().any(|refused| refused.is_alone && same(refused))
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

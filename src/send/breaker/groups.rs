//! Whose fault a refusal is when it may be the group's or the whole app's: the same refusal of
//! other groups decides.
//!
//! A job can be the only one that meets a fault of the account: something on the way refuses its
//! group. After a pause, jobs of other groups go first. If the API accepts one of them, and refuses
//! a group again, it refuses that group for itself, and no pause follows. The same holds before a
//! pause: five groups with the same doubtful refusal may be one producer's mistake, so jobs of
//! other groups are tried.

use std::time::Duration;

use tokio::time::Instant;

use super::{Blame, Breaker, Cause};
use crate::{
    api::codes::Class,
    job::outcome::Fault,
    send::{Supervision, condition::Condition},
};

/// If this many groups in a row get the same refusal, the app may be at fault.
pub(super) const GROUPS_OF_A_BREAK: usize = 5;
/// Jobs of other groups that are tried one by one before five groups pause the app. The number
/// doubles with each probe that passes, or each run of bad jobs would cost a pause.
pub(super) const TRIALS: u32 = 2;
const MOST_TRIALS: u32 = 64;
/// How long the daemon waits for a job of another group.
pub(super) const TRIED_WITHIN: Duration = Duration::from_secs(1);
/// How many groups with a fault of the account are remembered.
const REMEMBERED_GROUPS: usize = 200;

pub(super) struct RefusedAlike {
    pub class: Class,
    pub fault: Fault,
    pub groups: Vec<String>,
    /// Set once there are enough groups: other groups are tried now.
    pub trial: Option<Trial>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    pub since: Instant,
    pub left: u32,
    /// Whether the app was paused before.
    pub after_a_pause: bool,
}

pub(super) struct RefusedGroup {
    pub group: String,
    pub cause: Cause,
    /// When it was refused first and last.
    pub since: Instant,
    pub at: Instant,
    /// Whether the API accepted a later call for another group.
    pub is_alone: bool,
}

impl Breaker {
    /// Whether a call for a group that was not refused should go first. Until one is accepted, the
    /// daemon does not know whose fault it is.
    pub fn prefers_other_groups(&self) -> bool {
        let trial = self.refused_alike.as_ref().is_some_and(|alike| alike.trial.is_some());
        self.proven_at.is_none() && (trial || self.paused_for.is_some())
    }

    /// Whether a group got a refusal that may be the app's fault.
    pub fn has_refused(&self, group: &str) -> bool {
        self.refused_alike.iter().flat_map(|alike| &alike.groups).any(|known| known == group)
            || self.refused_groups.iter().any(|refused| refused.group == group)
    }

    /// Since when this group gets a fault of the account, without an accepted call in between.
    pub fn refused_since(&self, group: &str) -> Option<Instant> {
        self.refused_groups
            .iter()
            .find(|refused| refused.group == group)
            .map(|refused| refused.since)
    }

    /// Five groups got the same refusal. Until when to wait for a job of another group, which shows
    /// whether the app is at fault.
    pub fn waits_for_another_group(&self) -> Option<Instant> {
        let trial = self.refused_alike.as_ref()?.trial.filter(|trial| !trial.after_a_pause)?;
        (self.condition == Condition::Working).then_some(trial.since + TRIED_WITHIN)
    }

    /// No job of another group has come in time, so the app pauses.
    pub fn no_other_group_came(&mut self, now: Instant) {
        if let Some(RefusedAlike { class, fault, .. }) = &self.refused_alike {
            let (class, fault) = (*class, fault.clone());
            self.pause(class, &fault, now);
        }
    }

    pub(super) fn blame_group(
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
            // This call left together with those of the five groups.
            Some(trial) if started < trial.since => {}
            Some(trial) if trial.left > 1 => trial.left -= 1,
            Some(_) => {
                self.pause(class, fault, now);
            }
        }
        Blame::AppOrBatch
    }

    /// A fault of the account pauses the app, unless only this group gets it.
    pub(super) fn blame_refused_group(
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
            // Other groups got this refusal, each for itself. If the next call does too, the app
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

    pub(super) fn is_refused_alike(&self, fault: &Fault) -> bool {
        self.refused_alike.as_ref().is_some_and(|alike| alike.fault.cause() == fault.cause())
    }

    pub(super) fn is_alone(&self, group: &str, fault: &Fault) -> bool {
        let same =
            |refused: &RefusedGroup| refused.group == group && refused.cause == fault.cause();
        self.refused_groups.iter().any(|refused| refused.is_alone && same(refused))
    }

    pub(super) fn trials(&self) -> u32 {
        TRIALS.saturating_mul(1 << self.passes.min(8)).min(MOST_TRIALS)
    }
}

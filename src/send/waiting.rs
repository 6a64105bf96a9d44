//! What happens later: a job's time comes, a batch is tried again, a job has been held for long
//! enough.

use std::{cmp::Reverse, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Decision, Dispatch, Supervision, condition::Condition, counted::Work, sending::Sending,
};
use crate::{
    api::call::Api,
    clock,
    job::outcome::{BatchOutcome, BatchState, FailureKind, Fault},
    pace::fair_queue::JobKey,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Later {
    /// The job may be sent from now on.
    Begin,
    /// The batch is tried again.
    Again(u32),
}

impl<A: Api> Dispatch<A> {
    pub(super) fn may_hold_until(&self, at: Instant, now: Instant) -> bool {
        self.settings.supervision == Supervision::Attended
            || at.saturating_duration_since(now) <= self.tuning.borrow().retry.hold
    }

    pub(super) fn begin(&mut self, key: JobKey, now: Instant) {
        // Before anything is given up: a job that comes again after its deadline has to end as it
        // did before.
        self.expire_if_overdue(key, now);
        let Some(job) = self.jobs.get(&key) else { return };
        let (waited_enough, unsent): (Vec<u32>, Vec<u32>) = job
            .unsent()
            .partition(|batch| self.may_be_tried_for(job, *batch) == Some(Duration::ZERO));
        self.queue.add(key, job.submission.envelope.priority, unsent);
        waited_enough.into_iter().for_each(|batch| self.give_up(key, batch, now));
    }

    /// In an outage no call comes back whose failure would end a batch that has been tried for long
    /// enough.
    fn may_be_tried_for(&self, job: &Sending, batch: u32) -> Option<Duration> {
        self.breaker.outage_since()?;
        let since_first = job.batch(batch).failing_for(&self.idle, clock::now())?;
        Some(self.tuning.borrow().retry.give_up_after.saturating_sub(since_first))
    }

    fn try_again(&mut self, key: JobKey, batch: u32, now: Instant) {
        let Some(job) = self.jobs.get(&key) else { return };
        match self.may_be_tried_for(job, batch) {
            None => self.queue.put_back(key, batch),
            Some(Duration::ZERO) => self.give_up(key, batch, now),
            // The job expires as soon as its calls in flight have ended. Another look would be due
            // at once, again and again.
            Some(_) if job.is_overdue(now) => {}
            Some(left) => {
                let soon = left.min(self.tuning.borrow().retry.max_delay);
                self.later.push(Reverse((
                    sooner(now + soon, job.deadline),
                    key,
                    Later::Again(batch),
                )));
            }
        }
    }

    fn give_up(&mut self, key: JobKey, batch: u32, now: Instant) {
        let (Condition::Outage(why), Some(job)) =
            (self.breaker.condition(), self.jobs.get_mut(&key))
        else {
            return;
        };
        let fault = Fault { code: None, http_status: why.http_status, info: why.info.clone() };
        let attempts = job.batch(batch).attempts;
        let outcome = BatchOutcome::Failed { kind: FailureKind::Transient, fault, attempts };
        job.set_state(batch, BatchState::Ended(outcome.clone()));
        let work = Work::record(&job.under_way);
        self.record(key, batch, Decision::Ended(outcome), work, now);
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let later = self.later.peek().map(|Reverse((at, ..))| *at);
        let held_longest = self.held_longest().map(|(_, job)| self.held_until(job));
        let deadline = self.idle_in_outage().filter_map(|(_, job)| job.deadline).min();
        [later, held_longest, deadline].into_iter().flatten().min()
    }

    /// In an outage no turn comes at which a deadline would be noticed.
    fn idle_in_outage(&self) -> impl Iterator<Item = (JobKey, &Sending)> {
        let jobs = self.breaker.outage_since().map(|_| self.jobs.iter());
        let idle =
            |(_, job): &(&JobKey, &Sending)| job.is_sending() && job.under_way.present() == 0;
        jobs.into_iter().flatten().filter(idle).map(|(key, job)| (*key, job))
    }

    pub(super) fn do_what_is_due(&mut self, now: Instant) {
        while let Some(&Reverse((at, key, later))) = self.later.peek()
            && at <= now
        {
            self.later.pop();
            if !self.jobs.get(&key).is_some_and(Sending::is_sending) {
                continue;
            }
            match later {
                Later::Begin => self.begin(key, now),
                Later::Again(batch) => self.try_again(key, batch, now),
            }
            self.expire_if_overdue(key, now);
        }
        let overdue: Vec<JobKey> = self
            .idle_in_outage()
            .filter(|(_, job)| job.is_overdue(now))
            .map(|(key, _)| key)
            .collect();
        overdue.into_iter().for_each(|key| self.expire_if_overdue(key, now));
        while let Some((key, _)) =
            self.held_longest().filter(|(_, job)| self.held_until(job) <= now)
        {
            self.park(key);
        }
    }

    /// The job among those that can be parked which was taken up first.
    fn held_longest(&self) -> Option<(JobKey, &Sending)> {
        let first = match self.settings.supervision {
            Supervision::Unattended => self.jobs.iter().find(|(_, job)| job.is_sending()),
            Supervision::Attended => None,
        };
        first.map(|(key, job)| (*key, job))
    }

    /// In an outage nobody knows how long a job will have to wait.
    fn held_until(&self, job: &Sending) -> Instant {
        let longest = job.taken_up + self.tuning.borrow().held_at_most;
        self.breaker.outage_since().map_or(longest, |since| {
            longest.min(since.max(job.taken_up) + self.tuning.borrow().retry.hold)
        })
    }
}

pub(super) fn sooner(at: Instant, deadline: Option<Instant>) -> Instant {
    deadline.map_or(at, |deadline| deadline.min(at))
}

/// The moment of the runtime's clock at which the wall clock will show `at`.
pub(super) fn instant_of(at: Timestamp, now: Instant) -> Instant {
    let seconds = at.duration_since(clock::now()).as_secs_f64();
    now + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        api::{
            call::Caller,
            codes::{Class, Effect},
        },
        config::{Config, ConfigFile},
        pace::Pacer,
        send::{
            Settings, Tuning,
            sending::{
                Request,
                tests::{failed, sending},
            },
        },
    };

    fn unattended() -> Dispatch<Caller> {
        let text = "[apps.a]\nsdk_app_id = 1\nsecret_key = \"k\"\nregion = \"seoul\"".to_owned();
        let file = ConfigFile { path: "groupcast.toml".into(), text };
        let app = Config::read(Some(&file), []).unwrap().apps.remove("a").unwrap();
        let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
        let attended = Settings::attended("a", Arc::new(Caller::new(&app).unwrap()), pacer);
        let settings = Settings { supervision: Supervision::Unattended, ..attended };
        let tuning = watch::channel(Tuning::of(&app)).1;
        Dispatch::new(Arc::new(settings), tuning, Arc::new(watch::Sender::new(Condition::Working)))
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_outage_no_batch_is_looked_at_again_after_the_deadline_while_another_is_in_flight()
     {
        clock::simulated::start_at(Timestamp::UNIX_EPOCH);
        let (mut dispatch, now) = (unattended(), Instant::now());
        let no_answer = failed(Class::Transient(Effect::None));
        for _ in 0..5 {
            dispatch.breaker.judge(&no_answer, "g", now, now);
        }
        assert!(dispatch.breaker.outage_since().is_some());
        let mut job = sending();
        job.count(0, Request::NotSent, &no_answer, &dispatch.idle);
        job.deadline = Some(now);
        let _in_flight = job.under_way.guard();
        dispatch.jobs.insert(0, job);
        dispatch.try_again(0, 0, now);
        assert!(dispatch.later.is_empty(), "it would be due now, and now again");
    }
}

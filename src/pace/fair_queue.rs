//! Chooses the next batch. The highest priority goes first. The jobs of one priority take turns,
//! and new jobs go first.
//!
//! A job is in its lane, once, exactly while it has a batch ready. Its first turn comes before the
//! next turns of jobs that have begun. So ten jobs of a million recipients hardly delay a job of
//! three. One turn in sixteen belongs to the jobs that have begun, so a stream of small jobs cannot
//! stop a large one.

use std::collections::{HashMap, VecDeque};

pub const PRIORITIES: usize = 10;

/// Identifies a job in the queue; never used twice.
pub type JobKey = u64;

/// Of so many turns, at least one goes to a job that has begun.
const TURNS_PER_BEGUN_JOB: u32 = 16;

#[derive(Debug, Default)]
pub struct FairQueue {
    lanes: [Lane; PRIORITIES],
    jobs: HashMap<JobKey, Waiting>,
    /// Jobs with a batch ready.
    ready: usize,
}

#[derive(Debug, Default)]
struct Lane {
    /// Jobs that have had no turn yet.
    newcomers: VecDeque<JobKey>,
    begun: VecDeque<JobKey>,
    newcomers_in_a_row: u32,
}

#[derive(Debug)]
struct Waiting {
    priority: u8,
    batches: VecDeque<u32>,
}

impl FairQueue {
    /// Adds a job with the batches that are to be sent, at the end of its lane. `priority` is below
    /// [`PRIORITIES`].
    pub fn add(&mut self, key: JobKey, priority: u8, batches: impl IntoIterator<Item = u32>) {
        let batches: VecDeque<u32> = batches.into_iter().collect();
        if !batches.is_empty() {
            self.lanes[priority as usize].newcomers.push_back(key);
            self.ready += 1;
        }
        self.jobs.insert(key, Waiting { priority, batches });
    }

    /// Puts back a batch that is due for another attempt. An unknown job has ended in the meantime
    /// and is ignored.
    pub fn put_back(&mut self, key: JobKey, batch: u32) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if job.batches.is_empty() {
            self.lanes[job.priority as usize].begun.push_back(key);
            self.ready += 1;
        }
        job.batches.push_front(batch);
    }

    /// Takes the next batch of a job that may go. Jobs that may not go keep their place.
    pub fn take_next(&mut self, may_go: impl Fn(JobKey) -> bool) -> Option<(JobKey, u32)> {
        for lane in self.lanes.iter_mut().rev() {
            let Some(key) = lane.take_next(&may_go) else { continue };
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            let Some(batch) = job.batches.pop_front() else { continue };
            match job.batches.is_empty() {
                true => self.ready -= 1,
                false => lane.begun.push_back(key),
            }
            return Some((key, batch));
        }
        None
    }

    /// Takes the next batch of this job, even if it is not its turn.
    pub fn take_of(&mut self, key: JobKey) -> Option<u32> {
        let job = self.jobs.get_mut(&key)?;
        let batch = job.batches.pop_front()?;
        let lane = &mut self.lanes[job.priority as usize];
        lane.remove(key);
        match job.batches.is_empty() {
            true => self.ready -= 1,
            false => lane.begun.push_back(key),
        }
        Some(batch)
    }

    /// The jobs that have a batch ready.
    pub fn ready(&self) -> impl Iterator<Item = JobKey> {
        self.jobs.iter().filter(|(_, job)| !job.batches.is_empty()).map(|(key, _)| *key)
    }

    /// Whether a batch of this job is ready.
    pub fn has(&self, key: JobKey) -> bool {
        self.jobs.get(&key).is_some_and(|job| !job.batches.is_empty())
    }

    pub fn remove(&mut self, key: JobKey) {
        let Some(job) = self.jobs.remove(&key) else { return };
        if !job.batches.is_empty() {
            self.lanes[job.priority as usize].remove(key);
            self.ready -= 1;
        }
    }

    /// Whether no batch is ready.
    pub fn is_empty(&self) -> bool {
        self.ready == 0
    }
}

impl Lane {
    fn take_next(&mut self, may_go: impl Fn(JobKey) -> bool) -> Option<JobKey> {
        let take = |jobs: &mut VecDeque<JobKey>| {
            let index = jobs.iter().position(|key| may_go(*key))?;
            jobs.remove(index)
        };
        let is_for_newcomers =
            self.begun.is_empty() || self.newcomers_in_a_row < TURNS_PER_BEGUN_JOB - 1;
        if is_for_newcomers && let Some(key) = take(&mut self.newcomers) {
            self.newcomers_in_a_row += 1;
            return Some(key);
        }
        self.newcomers_in_a_row = 0;
        take(&mut self.begun).or_else(|| take(&mut self.newcomers))
    }

    fn remove(&mut self, key: JobKey) {
        self.newcomers.retain(|other| *other != key);
        self.begun.retain(|other| *other != key);
    }
}

#[cfg(test)]
#[path = "fair_queue_tests.rs"]
mod tests;

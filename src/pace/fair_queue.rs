//! Whose batch goes next: the highest priority first, and among the jobs of one priority each in turn.
//!
//! A job of a million recipients delays one of three by one turn. A job is in its lane exactly while it has a batch ready,
//! and in it once; so every other ready job of its priority is served between two of its batches.

use std::collections::{HashMap, VecDeque};

pub const PRIORITIES: usize = 10;

/// Identifies a job in the queue; never used twice.
pub type JobKey = u64;

#[derive(Debug, Default)]
pub struct FairQueue {
    lanes: [VecDeque<JobKey>; PRIORITIES],
    jobs: HashMap<JobKey, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    priority: u8,
    batches: VecDeque<u32>,
}

impl FairQueue {
    /// Adds a job with the batches that are to be sent, at the end of its lane. `priority` is below [`PRIORITIES`].
    pub fn add(&mut self, key: JobKey, priority: u8, batches: impl IntoIterator<Item = u32>) {
        let batches: VecDeque<u32> = batches.into_iter().collect();
        if !batches.is_empty() {
            self.lanes[priority as usize].push_back(key);
        }
        self.jobs.insert(key, Waiting { priority, batches });
    }

    /// Brings back a batch that is due for another attempt. Unknown jobs are ignored: they ended in the meantime.
    pub fn put_back(&mut self, key: JobKey, batch: u32) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if job.batches.is_empty() {
            self.lanes[job.priority as usize].push_back(key);
        }
        job.batches.push_front(batch);
    }

    /// Takes the next batch.
    pub fn take_next(&mut self) -> Option<(JobKey, u32)> {
        for lane in self.lanes.iter_mut().rev() {
            while let Some(key) = lane.pop_front() {
                let Some(job) = self.jobs.get_mut(&key) else { continue };
                let Some(batch) = job.batches.pop_front() else { continue };
                if !job.batches.is_empty() {
                    lane.push_back(key);
                }
                return Some((key, batch));
            }
        }
        None
    }

    pub fn remove(&mut self, key: JobKey) {
        if let Some(job) = self.jobs.remove(&key)
            && !job.batches.is_empty()
        {
            self.lanes[job.priority as usize].retain(|waiting| *waiting != key);
        }
    }

    /// Whether no batch is ready.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }
}

#[cfg(test)]
#[path = "fair_queue_tests.rs"]
mod tests;

//! The ids that the daemon has given to jobs without one, for as long as their work has not ended.
//!
//! A job without an id that comes again after a lost connection begins anew. With the id that it
//! had, its messages have the same numbers, so the vendor discards those that it has already
//! delivered. Jobs of equal content may swap their ids: what their recipients get is the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The vendor recognises repeated messages for five minutes.
const KEPT_FOR: Duration = Duration::from_secs(6 * 60);

/// By the fingerprint of the job.
#[derive(Debug, Default, Clone)]
pub(super) struct GeneratedIds(Arc<Mutex<HashMap<String, Vec<UnfinishedId>>>>);

#[derive(Debug)]
struct UnfinishedId {
    job_id: String,
    ended_at: Instant,
}

/// The id of a job whose work goes on. If it is dropped before the job is settled, the next
/// delivery of the job gets the id.
pub(super) struct GeneratedId {
    ids: GeneratedIds,
    fingerprint: String,
    job_id: Option<String>,
}

impl GeneratedIds {
    /// The id that an unfinished job with this fingerprint had, or `new`.
    pub fn of(&self, fingerprint: &str, new: String) -> (String, GeneratedId) {
        let mut ids = self.lock();
        let now = Instant::now();
        ids.retain(|_, unfinished| {
            unfinished.retain(|known| now < known.ended_at + KEPT_FOR);
            !unfinished.is_empty()
        });
        let known = ids.get_mut(fingerprint).and_then(Vec::pop);
        let job_id = known.map_or(new, |known| known.job_id);
        let (ids, fingerprint) = (self.clone(), fingerprint.to_owned());
        (job_id.clone(), GeneratedId { ids, fingerprint, job_id: Some(job_id) })
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<UnfinishedId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GeneratedId {
    /// The job will not come again.
    pub fn settled(mut self) {
        self.job_id = None;
    }
}

impl Drop for GeneratedId {
    fn drop(&mut self) {
        if let Some(job_id) = self.job_id.take() {
            let unfinished = UnfinishedId { job_id, ended_at: Instant::now() };
            let fingerprint = std::mem::take(&mut self.fingerprint);
            self.ids.lock().entry(fingerprint).or_default().push(unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_job_whose_work_has_not_ended_leaves_its_id_to_the_next_delivery() {
        let ids = GeneratedIds::default();
        let next = |new: &str| ids.of("fingerprint", new.to_owned());
        let (first, second) = (next("1"), next("2"));
        assert_eq!((first.0.as_str(), second.0.as_str()), ("1", "2"));
        second.1.settled();
        drop(first.1);
        let (again, guard) = next("3");
        assert_eq!((again.as_str(), next("4").0.as_str()), ("1", "4"));
        assert_eq!(ids.of("other", "5".to_owned()).0, "5");
        drop(guard);
        tokio::time::advance(KEPT_FOR).await;
        assert_eq!(next("6").0, "6");
    }
}

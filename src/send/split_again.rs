//! Cuts a job again whose batches are too large for the API, and carries its progress over to the
//! new batches.
//!
//! Invariant: each recipient of an ended batch keeps its outcome, and each call is counted once.

use std::sync::Arc;

use super::Submission;
use crate::job::{Borders, Cut, Job, outcome::BatchProgress};

impl Submission {
    /// Cuts the job into smaller batches. `touched` is the progress of the present batches. No call
    /// may be in flight for them.
    pub fn split_again(self, touched: &[(u32, BatchProgress)]) -> Self {
        let has_ended = |(_, progress): &(u32, BatchProgress)| progress.outcome().is_some();
        let borders = if touched.iter().any(has_ended) { Borders::Kept } else { Borders::Free };
        let before = self.job.cut();
        let mut job = Arc::unwrap_or_clone(self.job);
        job.split_again(borders);
        let batches = carry_over(touched, before, &job);
        Self { job: Arc::new(job), batches, ..self }
    }
}

/// The progress of the new batches of `job`, from the progress of its earlier, larger batches.
fn carry_over(
    touched: &[(u32, BatchProgress)],
    before: Cut,
    job: &Job,
) -> Vec<(u32, BatchProgress)> {
    let begin_of = |batch: u32| job.cut().batch_of(before.start_of(batch));
    let parts_of = |(batch, progress): &(u32, BatchProgress)| {
        let first = begin_of(*batch);
        // If a batch has ended, the new cut keeps all borders, and each part of an ended batch gets
        // its outcome. An open batch gives its progress to the part in which it begins, because its
        // border may lie inside a part.
        let end =
            progress.outcome().map_or(first + 1, |_| begin_of(batch + 1).min(job.batch_count()));
        let calls = progress.calls;
        let progress = progress.clone();
        (first..end).map(move |part| {
            let calls = if part == first { calls } else { 0 };
            (part, BatchProgress { calls, ..progress.clone() })
        })
    };
    touched.iter().flat_map(parts_of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        job::{
            SMALL_BATCH,
            outcome::{BatchOutcome, BatchState, FailureKind, Fault},
        },
        send::submission::submission,
    };

    fn recipients_in(job: &Job, batch: u32) -> Vec<u32> {
        let body: serde_json::Value = serde_json::from_slice(&job.request_body(batch)).unwrap();
        let recipients: Vec<String> =
            serde_json::from_value(body["ToMembers_Account"].clone()).unwrap();
        assert_eq!(Some(recipients.len() as u32), job.recipients_in(batch));
        recipients.iter().map(|recipient| recipient.parse().unwrap()).collect()
    }

    /// The outcome of each recipient in an ended batch.
    fn outcomes(job: &Job, batches: &[(u32, BatchProgress)]) -> BTreeMap<u32, BatchOutcome> {
        let ended =
            batches.iter().filter_map(|(batch, progress)| Some((*batch, progress.outcome()?)));
        ended
            .flat_map(|(batch, outcome)| {
                recipients_in(job, batch).into_iter().map(|who| (who, outcome.clone()))
            })
            .collect()
    }

    fn calls(batches: &[(u32, BatchProgress)]) -> u32 {
        batches.iter().map(|(_, progress)| progress.calls).sum()
    }

    fn progress(calls: u32, state: BatchState) -> BatchProgress {
        BatchProgress { calls, attempts: 1, state, ..BatchProgress::default() }
    }

    fn any_progress() -> impl Strategy<Value = BatchProgress> {
        let fault = || Fault { code: Some(10010), http_status: None, info: String::new() };
        let failed = BatchOutcome::Failed { kind: FailureKind::Job, fault: fault(), attempts: 1 };
        let unknown = BatchOutcome::Unknown { fault: fault(), attempts: 1 };
        let state = prop_oneof![
            3 => Just(BatchState::Open),
            1 => Just(BatchState::Ended(BatchOutcome::Sent)),
            1 => Just(BatchState::Ended(failed)),
            1 => Just(BatchState::Ended(unknown)),
        ];
        (1..9u32, state).prop_map(|(calls, state)| progress(calls, state))
    }

    proptest! {
        #[test]
        fn everybody_is_in_one_batch_what_came_of_them_stays_and_each_call_counts_once(
            (recipients, batch_size) in (51..900u32, 51..500u32),
            stand in prop::collection::btree_map(0..20u32, any_progress(), 0..12),
        ) {
            let before = submission(recipients, batch_size);
            let count = before.job.batch_count();
            let touched: Vec<_> = stand.into_iter().filter(|(batch, _)| *batch < count).collect();
            let after = before.clone().split_again(&touched);

            prop_assert!((0..after.job.batch_count()).all(|batch| after.job.recipients_in(batch) <= Some(SMALL_BATCH)));
            let fewest = before.job.batch_count() * batch_size.div_ceil(SMALL_BATCH);
            prop_assert!(after.job.batch_count() <= fewest, "{} batches", after.job.batch_count());
            let mut resumed = before.job.as_ref().clone();
            resumed.resume(after.job.cut(), 0);
            let bodies = |job: &Job| (0..job.batch_count()).map(|batch| job.request_body(batch)).collect::<Vec<_>>();
            prop_assert_eq!(bodies(&resumed), bodies(&after.job));
            let all: Vec<u32> = (0..after.job.batch_count()).flat_map(|batch| recipients_in(&after.job, batch)).collect();
            prop_assert_eq!(all, (0..recipients).collect::<Vec<_>>());
            prop_assert_eq!(outcomes(&after.job, &after.batches), outcomes(&before.job, &touched));
            prop_assert_eq!(calls(&after.batches), calls(&touched));
            let distinct: BTreeMap<_, _> = after.batches.iter().cloned().collect();
            prop_assert_eq!(distinct.len(), after.batches.len());
            prop_assert!(distinct.keys().all(|batch| *batch < after.job.batch_count()));
        }
    }

    #[test]
    fn batches_are_of_50_and_of_hardly_fewer_where_one_that_has_ended_keeps_its_borders() {
        let sizes = |batch_size: u32, state: BatchState| {
            let job =
                submission(2 * batch_size, batch_size).split_again(&[(0, progress(1, state))]).job;
            let sizes: Vec<u32> =
                (0..job.batch_count()).filter_map(|batch| job.recipients_in(batch)).collect();
            (sizes.len(), *sizes.iter().min().unwrap(), *sizes.iter().max().unwrap())
        };
        let sent = || BatchState::Ended(BatchOutcome::Sent);
        assert_eq!(
            (sizes(500, BatchState::Open), sizes(120, BatchState::Open)),
            ((20, 50, 50), (5, 40, 50))
        );
        assert_eq!(
            (sizes(500, sent()), sizes(120, sent()), sizes(256, sent())),
            ((20, 50, 50), (6, 40, 40), (12, 41, 43))
        );
        let primes = [499, 401, 101, 53].map(|prime| sizes(prime, sent()));
        assert_eq!(primes, [(20, 49, 50), (18, 41, 45), (6, 33, 34), (4, 26, 27)]);
    }
}

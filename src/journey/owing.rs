//! Publishes what the daemon owes for a job, or parks the job with it.
//!
//! A queue that takes no messages must not block a place for held jobs. So the daemon parks the job
//! with what is still owed. The record says how the job ended, and when the job comes back, the
//! daemon answers it without a call. If no wait queue takes it either, the daemon holds it for a
//! while and then gives it back to the jobs queue.

use std::time::Duration;

use lapin::BasicProperties;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{Context, Interrupted, Pipeline};
use crate::{
    job::{
        Envelope,
        outcome::{BatchOutcome, BatchProgress, BatchState, Report},
    },
    progress::store::Completion,
    settle::{JobContent, Owed, Settled, Tally, parking, settle},
};

/// If no queue takes what is owed, the delivery goes back to the jobs queue after this time. The
/// daemon may hold it for ten minutes, plus the time of its calls in flight.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(9 * 60);
/// The minimum time to settle a job, even if sending it took longer than `GIVEN_BACK_AFTER`.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// How soon the daemon tries again if no queue takes what is owed.
const TRIED_EVERY: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Publishes and records what is owed for a delivery, or parks the job with it.
    pub(super) async fn settle(
        &self,
        mut owed: Owed,
        context: &Context,
    ) -> Result<Tally, Interrupted> {
        let Context { properties, lease, delivered_at } = context;
        let given_back_at = (*delivered_at + GIVEN_BACK_AFTER).max(Instant::now() + SETTLED_WITHIN);
        loop {
            match settle(&self.publisher, &self.app, &self.park, &mut owed).await? {
                Settled::All => return Ok(owed.into_tally()),
                Settled::Blocked(_) if self.park_with_debt(&mut owed, properties).await? => {
                    return Ok(Tally::Parked);
                }
                Settled::Blocked(trouble) => {
                    if Instant::now() >= given_back_at && owed.may_go_back() {
                        warn!(app = self.app, reason = %trouble, "no queue takes the dead \
                            letter or the result of a job; it goes back to the jobs queue");
                        return Err(Interrupted::StillOwed);
                    }
                }
            }
            if !owed.may_go_back() {
                sleep(TRIED_EVERY).await;
            } else if lease.while_calls_may_start(sleep(TRIED_EVERY)).await.is_none() {
                return Err(Interrupted::LetGo);
            }
        }
    }

    /// Parks a job that has ended, together with what is still owed. Returns `false` if no wait
    /// queue takes it.
    async fn park_with_debt(
        &self,
        owed: &mut Owed,
        properties: &BasicProperties,
    ) -> Result<bool, Interrupted> {
        let Owed::Answer { dead_letter, record, tally, job, .. } = owed else { return Ok(false) };
        let body = match (&job.content, &dead_letter) {
            (JobContent::Job(content), _) => content.body(),
            (JobContent::Original(body), _) => body.clone(),
            (JobContent::SameAsDeadLetter, Some(letter)) => letter.body.clone(),
            (JobContent::SameAsDeadLetter, None) => return Ok(false),
        };
        if let (
            JobContent::Job(content),
            Some((fingerprint, report)),
            Tally::Ended { result, .. },
        ) = (&job.content, &job.ended, &*tally)
        {
            let (fingerprint, progress) = (fingerprint.clone(), progress_of(report));
            match &*record {
                // Without a record, the daemon would send the job again when it comes back.
                None => {
                    let remembering = self.progress.remember(
                        &self.tenure,
                        &job.envelope,
                        content,
                        fingerprint,
                        &progress,
                    );
                    *record = Some((remembering.await?, result.json()));
                }
                // The store may postpone a record until a batch is recorded, and a parked job needs
                // its record.
                Some((entry, _)) if result.calls == 0 => {
                    let (batch, first) = &progress[0];
                    entry.record_batch(*batch, first).await?;
                }
                Some(_) => {}
            }
        }
        let only_result =
            (job.letter_is_confirmed || dead_letter.is_none()) && !matches!(tally, Tally::Repeated);
        let left =
            if only_result { parking::Remaining::Result } else { parking::Remaining::Everything };
        let Envelope { job_id, .. } = &*job.envelope;
        let parked = parking::compose(&self.app, body, properties, &job.envelope, &self.park, left);
        if parking::publish(&self.publisher, &self.app, &parked, &self.park).await.is_err() {
            return Ok(false);
        }
        debug!(
            app = self.app,
            job_id,
            queue = parked.target.queue(),
            "job parked with what it owes"
        );
        // Complete the record after parking. A crash in between causes a second answer. In the
        // other order, the only answer would be marked as a duplicate.
        if let Some((entry, result)) = record
            && only_result
        {
            entry.complete(Completion { result: result.clone(), owes_result: true }).await?;
        }
        Ok(true)
    }
}

/// The progress of each batch according to a report, for a record. The first batch carries the
/// calls of all batches.
fn progress_of(report: &Report) -> Vec<(u32, BatchProgress)> {
    let mut calls = u32::try_from(report.calls).unwrap_or(u32::MAX);
    let progress = |(batch, outcome): (u32, &BatchOutcome)| {
        let attempts = match outcome {
            BatchOutcome::Sent => 1,
            BatchOutcome::Failed { attempts, .. } | BatchOutcome::Unknown { attempts, .. } => {
                *attempts
            }
        };
        let state = BatchState::Ended(outcome.clone());
        (
            batch,
            BatchProgress {
                calls: std::mem::take(&mut calls),
                attempts,
                message: report.message,
                state,
                ..BatchProgress::default()
            },
        )
    };
    (0..).zip(&report.batches).map(progress).collect()
}

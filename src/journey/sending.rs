//! Sends a job and composes what the daemon owes for it then.

use tracing::warn;

use super::{Context, Interrupted, Pipeline};
use crate::{
    job::{SMALL_BATCH, outcome::BatchProgress},
    send::{Ending, RETURNED_AT_MOST, Submission, Unfinished},
    settle::Owed,
};

impl Pipeline {
    /// Sends a job, in smaller batches if the API asks for them. Returns what the daemon owes for
    /// the job then.
    pub(super) async fn send(
        &self,
        mut submission: Submission,
        fingerprint: String,
        context: &Context,
    ) -> Result<Owed, Interrupted> {
        loop {
            let sent = self.dispatcher.send(&submission).await;
            let Submission { job, envelope, entry, lease, .. } = &submission;
            let ending = match sent {
                Err(Unfinished::Store(_)) if envelope.redeliveries >= RETURNED_AT_MOST => {
                    return Ok(self.park(job.body(), envelope, context, true));
                }
                sent => sent?,
            };
            match ending {
                Ending::Finished(report) => {
                    return Ok(self.answer(
                        job,
                        report,
                        envelope,
                        context,
                        entry.clone(),
                        fingerprint,
                    ));
                }
                Ending::Parked(touched) => {
                    let may_go_back = entry.is_some() || touched.is_empty();
                    match entry {
                        None => {
                            let remembered = self.progress.remember(
                                &self.tenure,
                                envelope,
                                job,
                                fingerprint,
                                &touched,
                            );
                            lease.unless_lost(remembered).await??;
                        }
                        // The store may postpone a record until a batch is recorded, and a
                        // parked job needs its record.
                        Some(entry) if touched.is_empty() => {
                            entry.record_batch(0, &BatchProgress::default()).await?
                        }
                        Some(_) => {}
                    }
                    return Ok(self.park(job.body(), envelope, context, may_go_back));
                }
                Ending::TooLarge(touched) => {
                    submission = self.split_again(submission, &touched).await?
                }
            }
        }
    }

    /// Cuts a job into smaller batches and records the new cut. From now on, new jobs are cut into
    /// such batches from the start.
    async fn split_again(
        &self,
        submission: Submission,
        touched: &[(u32, BatchProgress)],
    ) -> Result<Submission, Interrupted> {
        if self.largest_batch.set(SMALL_BATCH).is_ok() {
            warn!(
                app = self.app,
                "the API does not take batches of up to {} recipients (code 10005); jobs go on in \
                    batches of {SMALL_BATCH} at most. Set batch_size = {SMALL_BATCH} for this app, \
                    or each start costs some refused calls again",
                submission.job.cut().batch_size,
            );
        }
        let mut split = submission.split_again(touched);
        if let Some(entry) = split.entry.take() {
            let recording = entry.split_again(&split.job, &split.batches);
            // If the broker has taken the delivery away, another replica may already use the job's
            // record.
            split.entry = Some(
                split.lease.while_calls_may_start(recording).await.ok_or(Interrupted::LetGo)??,
            );
        }
        Ok(split)
    }
}

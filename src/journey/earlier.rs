//! Finds out what the daemon knows about a job from earlier deliveries: a result, progress, or
//! nothing.

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep_until};

use super::{Context, Interrupted, Pipeline, pipeline::lock};
use crate::{
    job::{
        Envelope, Identity, Job, Rejection,
        outcome::{BatchProgress, Report},
    },
    progress::{
        Earlier, Entry, Made, Opened,
        store::{Scope, Sharing, StoreLost},
    },
    send::RETURNED_AT_MOST,
    settle::{Owed, undeliverable},
};

/// How long another replica may still start calls after its jobs were taken over. The store's last
/// confirmation to that replica is valid for this time.
const STOPPED_WITHIN: Duration = Duration::from_secs(1);
/// How long another replica may take to record the outcome of a call that has ended.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

/// What the look-up found about a job.
pub(super) enum Found {
    /// The daemon makes no call for the job.
    Owed(Owed),
    /// The job begins, or continues where it stopped.
    Unfinished {
        job: Arc<Job>,
        envelope: Arc<Envelope>,
        entry: Option<Entry>,
        batches: Vec<(u32, BatchProgress)>,
    },
}

impl Pipeline {
    /// Looks a job up in the state store. A job without an id has no record there.
    pub(super) async fn find(
        &self,
        mut job: Job,
        mut envelope: Envelope,
        body: Vec<u8>,
        fingerprint: &str,
        context: &Context,
    ) -> Result<Found, Interrupted> {
        let (mut entry, mut batches) = (None, Vec::new());
        if envelope.identity == Identity::Given {
            if envelope.given_up.is_some() && !self.tenure.has_begun() {
                return Ok(Found::Owed(self.pass_on(body, &envelope, context)));
            }
            let looking_up = self.look_up(&envelope, &job, fingerprint);
            let came_often = envelope.redeliveries >= RETURNED_AT_MOST;
            let park = |body| Ok(Found::Owed(self.park(body, &envelope, context, true)));
            let reject = |why: &str, body| {
                Ok(Found::Owed(self.reject(of_id(&job, why), body, &envelope, context)))
            };
            match context.lease.while_calls_may_start(looking_up).await {
                None if came_often && self.condition_now().is_paused() => return park(body),
                None => return Err(Interrupted::LetGo),
                Some(Ok(Opened::Answered { entry, result })) => {
                    return match serde_json::from_str(&result) {
                        Ok(answer) => {
                            let owed_record = envelope.owes_result.then_some((entry, result));
                            Ok(Found::Owed(self.repeat(answer, owed_record, body, envelope)))
                        }
                        Err(error) => reject(&format!("{UNREADABLE}: {error}"), body),
                    };
                }
                Some(Ok(Opened::OtherContent)) => return reject(OTHER_CONTENT, body),
                Some(Err(error)) if error.scope == Scope::Record => {
                    return reject(&format!("{UNREADABLE}: {error}"), body);
                }
                // The broker counts how often a job goes back, and gives it up at a limit. So the
                // daemon parks the job.
                Some(Err(_)) if came_often => return park(body),
                Some(Err(error)) => return Err(error.into()),
                // Park the original bytes: the job may still be rejected, and its dead letter needs
                // them.
                Some(Ok(Opened::Busy)) => return park(body),
                Some(Ok(Opened::Unfinished(earlier))) => {
                    job.resume(earlier.head.cut(), earlier.head.duplicates);
                    envelope.received_at = earlier.head.received_at;
                    envelope.has_earlier_record = earlier.made == Made::Before;
                    (entry, batches) = (Some(earlier.entry), earlier.batches);
                }
            }
        }
        let (job, envelope) = (Arc::new(job), Arc::new(envelope));
        Ok(Found::Unfinished { job, envelope, entry, batches })
    }

    /// Ends a job that the broker has given up, without a call.
    pub(super) async fn conclude(
        &self,
        job: Arc<Job>,
        envelope: Arc<Envelope>,
        entry: Option<Entry>,
        batches: Vec<(u32, BatchProgress)>,
        fingerprint: String,
        context: &Context,
    ) -> Result<Owed, Interrupted> {
        let reason = envelope.given_up.as_deref().unwrap_or_default();
        let is_cancelled = entry.as_ref().is_some_and(Entry::is_cancelled);
        let batches = undeliverable::conclude(&job, &envelope, reason, batches, is_cancelled);
        if let Some(entry) = &entry {
            // Record the outcomes before the answer. Otherwise the next delivery could get a
            // different answer.
            let noted =
                (0..).zip(&batches).map(|(batch, progress)| entry.record_batch(batch, progress));
            try_join_all(noted).await?;
        }
        let report = Report::of(batches);
        Ok(self.answer(&job, report, &envelope, context, entry, fingerprint))
    }

    /// Looks a job up. The replica that had the jobs before may still have calls in flight for it.
    /// In that case, waits until their outcomes are recorded, and reads the record again.
    async fn look_up(
        &self,
        envelope: &Envelope,
        job: &Job,
        fingerprint: &str,
    ) -> Result<Opened, StoreLost> {
        let open = || {
            self.progress.open(&self.tenure, envelope, job, fingerprint.to_owned(), self.patience())
        };
        let opened = open().await?;
        let taken_over_at = *lock(&self.taken_over_at);
        let others_are_done =
            taken_over_at + STOPPED_WITHIN + self.longest_request_timeout() + RECORDED_WITHIN;
        let made_before = matches!(opened, Opened::Unfinished(Earlier { made: Made::Before, .. }));
        if !made_before
            || self.progress.sharing() == Sharing::OwnMachine
            || Instant::now() >= others_are_done
        {
            return Ok(opened);
        }
        // `opened` holds the claim that the second look-up needs.
        drop(opened);
        sleep_until(others_are_done).await;
        open().await
    }

    /// How long a job may wait for another message with the same id.
    fn patience(&self) -> Duration {
        self.config().retry.hold.min(self.dispatcher.held_at_most())
    }
}

const UNREADABLE: &str = "has a record that cannot be read";
const OTHER_CONTENT: &str =
    "belongs to an earlier job with other content; give each job an id of its own";

fn of_id(job: &Job, reason: &str) -> Rejection {
    Rejection {
        field: "message_id".into(),
        reason: reason.to_owned(),
        group_id: Some(job.group_id.clone()),
        topic_id: job.topic_id.clone(),
    }
}

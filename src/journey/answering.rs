//! Composes what the daemon owes for a delivery. This is the answer to a job that has ended, a
//! rejection, an answer from the record, or a copy for a wait queue.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Span, debug, info, warn};

use super::{Context, Pipeline};
use crate::{
    api::command,
    broker::{Destination, queues},
    clock,
    job::{Envelope, GIVEN_UP_HEADER, Job, Rejection, outcome::Report},
    progress::Entry,
    settle::{
        EndedJob, JobContent, Owed, Tally, dead_letter, parking, reply,
        result::{JobResult, Origin},
    },
};

impl Pipeline {
    pub(super) fn park(
        &self,
        body: Vec<u8>,
        envelope: &Envelope,
        context: &Context,
        may_go_back: bool,
    ) -> Owed {
        let parked = parking::compose(
            &self.app,
            body,
            &context.properties,
            envelope,
            &self.park,
            parking::Remaining::Everything,
        );
        info!(
            app = self.app,
            job_id = envelope.job_id,
            queue = parked.target.queue(),
            "job parked"
        );
        Owed::Parked { job: Box::new(parked), may_go_back }
    }

    /// Passes on a job that the broker has given up. It goes to the jobs queue, or to a wait queue
    /// if it was passed on before. Every replica reads such jobs, but only the replica with the
    /// app's jobs knows what is under way for them.
    pub(super) fn pass_on(&self, body: Vec<u8>, envelope: &Envelope, context: &Context) -> Owed {
        let mut passed_on = parking::compose(
            &self.app,
            body,
            &context.properties,
            envelope,
            &self.park,
            parking::Remaining::Everything,
        );
        let came_back = context
            .properties
            .headers()
            .as_ref()
            .is_some_and(|headers| headers.inner().contains_key(GIVEN_UP_HEADER));
        if !came_back {
            passed_on.target = Destination::Own(queues::jobs(&self.app));
        }
        Owed::Parked { job: Box::new(passed_on), may_go_back: true }
    }

    pub(super) fn answer(
        &self,
        job: &Arc<Job>,
        report: Report,
        envelope: &Arc<Envelope>,
        context: &Context,
        entry: Option<Entry>,
        fingerprint: String,
    ) -> Owed {
        let finished_at = clock::now();
        let result = JobResult::finished(self.origin(), envelope, job, &report, finished_at);
        self.log(&result);
        let json = result.json();
        Owed::Answer {
            dead_letter: dead_letter::of_finished(
                job,
                &report,
                &context.properties,
                envelope,
                &result,
            )
            .map(Box::new),
            reply: reply::compose(&result, &json, envelope).map(Box::new),
            job: EndedJob {
                content: JobContent::Job(job.clone()),
                envelope: envelope.clone(),
                letter_is_confirmed: false,
                ended: Some((fingerprint, report)),
                may_go_back: entry.is_some(),
            },
            record: entry.map(|entry| (entry, json)),
            tally: ended(result, envelope, finished_at),
        }
    }

    pub(super) fn reject(
        &self,
        rejection: Rejection,
        body: Vec<u8>,
        envelope: &Envelope,
        context: &Context,
    ) -> Owed {
        let finished_at = clock::now();
        let result = JobResult::rejected(self.origin(), envelope, &rejection, finished_at);
        self.log(&result);
        let reply = reply::compose(&result, &result.json(), envelope).map(Box::new);
        let letter_is_confirmed = envelope.owes_result;
        let dead_letter =
            Some(Box::new(dead_letter::of_rejected(body, &context.properties, envelope, &result)));
        let envelope = Arc::new(envelope.clone());
        let tally = ended(result, &envelope, finished_at);
        let job = EndedJob {
            content: JobContent::SameAsDeadLetter,
            envelope,
            letter_is_confirmed,
            ended: None,
            may_go_back: true,
        };
        Owed::Answer { dead_letter, reply, record: None, tally, job }
    }

    fn origin(&self) -> Origin<'_> {
        Origin { app: &self.app, command: command::of(&self.config().command).name() }
    }

    fn log(&self, result: &JobResult) {
        note_result(&Span::current(), result);
        let JobResult { job_id, status, calls, .. } = result;
        match result.errors.first() {
            None => debug!(app = self.app, job_id, calls, "job sent"),
            Some(error) => {
                let (status, code, info) = (status.as_str(), error.code, &error.info);
                warn!(app = self.app, job_id, status, calls, code, info, "job ended with an error");
            }
        }
    }

    /// Answers a message from the record of its job. The message is a second copy, or the job
    /// itself, which was parked because its result could not be published. Once that result is
    /// published, the record is kept as long as those of other jobs that have ended.
    pub(super) fn repeat(
        &self,
        result: JobResult,
        owed_record: Option<(Entry, String)>,
        body: Vec<u8>,
        envelope: Envelope,
    ) -> Owed {
        let result = JobResult { duplicate: !envelope.owes_result, ..result };
        debug!(app = result.app, job_id = result.job_id, "job answered from its record");
        let reply = reply::compose(&result, &result.json(), &envelope).map(Box::new);
        let tally = if envelope.owes_result {
            ended(result, &envelope, clock::now())
        } else {
            Tally::Repeated
        };
        let envelope = Arc::new(envelope);
        let job = EndedJob {
            content: JobContent::Original(body),
            envelope,
            letter_is_confirmed: true,
            ended: None,
            may_go_back: true,
        };
        Owed::Answer { dead_letter: None, reply, record: owed_record, tally, job }
    }
}

/// Writes on a job's span how it ended.
fn note_result(span: &Span, result: &JobResult) {
    if span.is_disabled() {
        return;
    }
    span.record("groupcast.group_id", result.group_id.as_deref());
    span.record("groupcast.batches", result.batches.map(|batches| batches.total));
    span.record("groupcast.calls", result.calls);
    span.record("groupcast.status", result.status.as_str());
    span.record("otel.status_code", if result.errors.is_empty() { "OK" } else { "ERROR" });
}

fn ended(result: JobResult, envelope: &Envelope, finished_at: Timestamp) -> Tally {
    let took = finished_at.duration_since(envelope.received_at).try_into().unwrap_or_default();
    Tally::Ended { result: Box::new(result), took }
}

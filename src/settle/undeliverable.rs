//! Concludes a job that the broker has given up: the reason, and the outcomes of its batches. The
//! daemon makes no call for it.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use crate::{
    amqp::as_text,
    api::codes::end_of_job,
    clock,
    job::{
        Envelope, Job,
        outcome::{BatchProgress, DEADLINE_PASSED, FailureKind, Fault, JOB_CANCELLED},
    },
};

/// Ends the job's batches. A batch with an outcome keeps it, and all others fail. An earlier result
/// of the job may have said that the job was refused, cancelled or expired, so these come first.
pub fn conclude(
    job: &Job,
    envelope: &Envelope,
    reason: &str,
    touched: Vec<(u32, BatchProgress)>,
    is_cancelled: bool,
) -> Vec<BatchProgress> {
    let mut batches = vec![BatchProgress::default(); job.batch_count() as usize];
    for (batch, progress) in touched {
        if let Some(known) = batches.get_mut(batch as usize) {
            *known = progress;
            known.conclude_intent();
        }
    }
    let ends_with = batches.iter().find_map(|batch| end_of_job(batch.outcome()?));
    let (kind, fault) = match (ends_with, envelope.deadline) {
        (Some(end), _) => end,
        (None, Some(deadline)) if deadline <= clock::now() => {
            (FailureKind::Expired, Fault::of_job(DEADLINE_PASSED))
        }
        (None, _) if is_cancelled => (FailureKind::Cancelled, Fault::of_job(JOB_CANCELLED)),
        (None, _) => (FailureKind::Undeliverable, Fault::of_job(reason)),
    };
    for batch in batches.iter_mut().filter(|batch| batch.outcome().is_none()) {
        batch.end(kind, fault.clone(), envelope.delivery);
    }
    batches
}

/// Why the broker gave the job up, according to its `x-death` header.
pub fn reason(properties: &BasicProperties) -> String {
    let account = properties.headers().as_ref().and_then(last_death).unwrap_or_default();
    let why = match account.as_str() {
        "delivery_limit" => {
            "it went back to the jobs queue too often without an acknowledgement; look for \
                restarts and lost connections in the daemon's log"
        }
        "expired" => {
            "it was not taken before a message TTL ended; take the TTL off the jobs queue and use \
                groupcast-deadline"
        }
        "maxlen" => {
            "the jobs queue was full and drops its oldest jobs; raise the limit, or set the \
                policy's overflow to reject-publish"
        }
        "rejected" => "another consumer of the jobs queue rejected it",
        _ => "the broker does not say why",
    };
    format!("the broker gave the job up: {why}")
}

/// The reason of the latest death, which the broker puts first.
fn last_death(headers: &FieldTable) -> Option<String> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    as_text(last.inner().get("reason")?)
}

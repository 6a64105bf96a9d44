//! The dead letter of a job that was rejected, not sent or partially sent. A rejected job keeps its
//! original bytes. Any other letter has only the recipients that were not sent, so that a redrive
//! repeats nothing. It never has recipients whose outcome is unknown, or who were cancelled. A job
//! that was cancelled before anything was sent has no dead letter.

use lapin::{BasicProperties, types::AMQPValue};

use super::result::{ErrorEntry, ErrorKind, JobResult, Status};
use crate::{
    broker::{
        Destination, Outgoing,
        kept::{kept_headers, kept_properties},
        queues,
    },
    clock,
    job::{
        ATTEMPT_HEADER, Envelope, Job,
        outcome::{FailureKind, Report},
    },
};

/// The dead letter of a rejected job.
pub fn of_rejected(
    original: Vec<u8>,
    properties: &BasicProperties,
    envelope: &Envelope,
    result: &JobResult,
) -> Outgoing {
    letter(original, properties, envelope, result)
}

/// The dead letter of a finished job; `None` if there is nothing that a redrive should send.
pub fn of_finished(
    job: &Job,
    report: &Report,
    properties: &BasicProperties,
    envelope: &Envelope,
    result: &JobResult,
) -> Option<Outgoing> {
    if result.status == Status::Cancelled {
        return None;
    }
    let mut failed = (0..)
        .zip(&report.batches)
        .filter(|(_, outcome)| {
            outcome.failure_kind().is_some_and(|kind| kind != FailureKind::Cancelled)
        })
        .map(|(batch, _)| batch)
        .peekable();
    failed.peek()?;
    Some(letter(job.body_for(failed), properties, envelope, result))
}

fn letter(
    body: Vec<u8>,
    properties: &BasicProperties,
    envelope: &Envelope,
    result: &JobResult,
) -> Outgoing {
    let mut headers = kept_headers(properties);
    let mut put = |name: &'static str, value: AMQPValue| {
        headers.insert(name.into(), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    if let Some(ErrorEntry { kind, code, info, .. }) = result
        .errors
        .iter()
        .find(|error| !matches!(error.kind, ErrorKind::Unknown | ErrorKind::Cancelled))
    {
        put("groupcast-error-kind", text(kind.as_str()));
        put("groupcast-error-info", text(info));
        if let Some(code) = code {
            put("groupcast-error-code", AMQPValue::LongLongInt(*code));
        }
    }
    put("groupcast-status", text(result.status.as_str()));
    put("groupcast-job-id", text(&envelope.job_id));
    put("groupcast-died-at", text(&format!("{:.3}", clock::now())));
    put(ATTEMPT_HEADER, AMQPValue::LongLongInt(i64::from(envelope.earlier_deaths) + 1));
    Outgoing {
        target: Destination::Own(queues::dead(&result.app)),
        body,
        properties: kept_properties(properties).with_headers(headers).with_delivery_mode(2),
        suspect: false,
    }
}

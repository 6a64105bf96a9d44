//! The dead letter of a job that was not sent whole: the original bytes if it was rejected, otherwise the job with only
//! the recipients that were not sent, so that a redrive repeats nothing. Unknown recipients are never in it.

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use super::result::{ErrorEntry, ErrorKind, JobResult};
use crate::{
    broker::{Outgoing, Target, queues},
    job::{DEAD_LETTER_HEADERS, Envelope, Job},
    outcome::{BatchOutcome, Report},
};

/// Headers that the broker made.
const BROKERS_PREFIXES: [&str; 4] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];

/// The dead letter of a rejected job.
pub fn of_rejected(original: Vec<u8>, properties: &BasicProperties, envelope: &Envelope, result: &JobResult) -> Outgoing {
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
    let mut failed = (0..)
        .zip(&report.batches)
        .filter_map(|(batch, outcome)| matches!(outcome, BatchOutcome::Failed { .. }).then_some(batch))
        .peekable();
    failed.peek()?;
    Some(letter(job.body_for(failed), properties, envelope, result))
}

fn letter(body: Vec<u8>, properties: &BasicProperties, envelope: &Envelope, result: &JobResult) -> Outgoing {
    let mut headers = kept_headers(properties);
    let mut put = |name: &'static str, value: AMQPValue| {
        headers.insert(name.into(), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    if let Some(ErrorEntry { kind, code, info, .. }) = result.errors.iter().find(|error| error.kind != ErrorKind::Unknown) {
        put("groupcast-error-kind", text(kind.as_str()));
        put("groupcast-error-info", text(info));
        if let Some(code) = code {
            put("groupcast-error-code", AMQPValue::LongLongInt(*code));
        }
    }
    put("groupcast-status", text(result.status.as_str()));
    put("groupcast-job-id", text(&envelope.job_id));
    put("groupcast-died-at", text(&format!("{:.3}", Timestamp::now())));
    put("groupcast-attempt", AMQPValue::LongLongInt(i64::from(envelope.earlier_deaths) + 1));
    Outgoing {
        target: Target::Own(queues::dead(&result.app)),
        body,
        properties: kept_properties(properties).with_headers(headers).with_delivery_mode(2),
    }
}

/// What a producer set, without what only made sense on the way here: `x-death` of a queue loses messages sent there
/// again, `CC` and `BCC` copy them elsewhere, earlier death notes would be stale.
fn kept_headers(properties: &BasicProperties) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name_text = name.as_str();
        let copies = ["CC", "BCC"].contains(&name_text);
        let stale = DEAD_LETTER_HEADERS.contains(&name_text) || name_text == "groupcast-attempt";
        if !copies && !stale && !BROKERS_PREFIXES.iter().any(|prefix| name_text.starts_with(prefix)) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// All but `expiration`, which would delete the letter, and `user_id`, which the broker checks against our own user. A bare
/// direct reply-to says "to whoever publishes this", which the broker refuses from us.
fn kept_properties(properties: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($field:ident with $with:ident),* $(,)?) => {
            $(if let Some(value) = properties.$field() { kept = kept.$with(value.clone()); })*
        };
    }
    keep!(
        content_type with with_content_type,
        content_encoding with with_content_encoding,
        priority with with_priority,
        correlation_id with with_correlation_id,
        message_id with with_message_id,
        timestamp with with_timestamp,
        kind with with_type,
        app_id with with_app_id,
    );
    match properties.reply_to() {
        Some(queue) if queue.as_str() != "amq.rabbitmq.reply-to" => kept.with_reply_to(queue.clone()),
        _ => kept,
    }
}

//! Reads what the message's properties and headers say: the job id, where the result goes, how and
//! when to send.
//!
//! Reading always yields an envelope. So a job with a bad header still gets its one result in the
//! reply queue that it named.

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use tracing::debug;

use crate::{
    broker::{frame, kept},
    config::Replies,
    job::{
        ATTEMPT_HEADER, DEAD_LETTER_HEADERS, DEADLINE_HEADER, DeliveryPromise, Envelope,
        GIVEN_UP_HEADER, Identity, OWED_HEADER, PARKED_HEADER, Rejection, ReplyTo, TraceContext,
        UNREADABLE_HEADER,
    },
};

const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Headers with which a producer controls a job.
const CONTROL_HEADERS: [&str; 3] = [DEADLINE_HEADER, "groupcast-not-before", "groupcast-delivery"];
const DEFAULT_PRIORITY: u8 = 4;
const MAX_PRIORITY: u8 = 9;

/// A result's `message_id` is the job id plus `.result`, and AMQP limits it to 255 bytes.
const MAX_JOB_ID_BYTES: usize = 255 - ".result".len();

/// Why a text is not a valid job id; `None` if it is valid.
pub fn objection_to_job_id(id: &str) -> Option<String> {
    if id.trim().is_empty() {
        return Some("is blank; leave it out or give the job's id".into());
    }
    if id.chars().any(char::is_control) {
        return Some("has a control character".into());
    }
    let bytes = id.len();
    (bytes > MAX_JOB_ID_BYTES)
        .then(|| format!("is {bytes} bytes long; at most {MAX_JOB_ID_BYTES} are allowed"))
}

/// Reads a message's envelope, and reports the first mistake in it.
pub fn read(
    properties: &BasicProperties,
    app: &str,
    results_queue: Option<&str>,
    replies: &Replies,
    received_at: Timestamp,
) -> (Envelope, Result<(), Rejection>) {
    let mut envelope = Envelope {
        job_id: uuid::Uuid::new_v4().to_string(),
        identity: Identity::Generated,
        reply_to: results_queue
            .map_or(ReplyTo::Nowhere, |queue| ReplyTo::Configured(queue.to_owned())),
        correlation_id: properties.correlation_id().as_ref().map(|id| id.as_str().to_owned()),
        priority: DEFAULT_PRIORITY,
        earlier_deaths: 0,
        parkings: 0,
        redeliveries: 0,
        has_earlier_record: false,
        given_up: None,
        owes_result: false,
        delivery: DeliveryPromise::default(),
        deadline: None,
        not_before: None,
        trace: TraceContext::default(),
        received_at,
    };
    let readable = check_readable(properties);
    if readable.as_ref().is_err_and(|rejection| rejection.hides_reply_to()) {
        envelope.reply_to = ReplyTo::Refused(String::new());
    }
    let problems = [
        readable,
        envelope.read_job_id(properties.message_id()),
        envelope.read_reply_to(properties.reply_to(), app, replies),
        envelope.read_priority(*properties.priority()),
        check_encoding(properties.content_encoding()),
        check_charset(properties.content_type()),
        envelope.read_headers(properties),
    ];
    (envelope, problems.into_iter().collect())
}

/// Checks that the headers that the daemon publishes again fit into frames of `frame_max` bytes.
/// They go with the job's result, its dead letter or its parked copy.
pub fn check_headers_fit(properties: &BasicProperties, frame_max: usize) -> Result<(), Rejection> {
    let going_out_again =
        |(name, value)| kept::is_kept(name).then(|| (frame::header_bytes(name, value), name));
    let headers =
        || properties.headers().iter().flat_map(FieldTable::inner).filter_map(going_out_again);
    let (total, room) =
        (headers().map(|(bytes, _)| bytes).sum::<usize>(), frame::room_for_headers(frame_max));
    match headers().max() {
        Some((bytes, name)) if total > room => Err(rejection(
            name.as_str(),
            format!(
                "has {bytes} bytes, and all headers together {total}; at most {room} are allowed, \
                    or the job's result could not be published: the broker's frames have \
                    {frame_max} bytes"
            ),
        )),
        _ => Ok(()),
    }
}

fn rejection(field: &str, reason: impl Into<String>) -> Rejection {
    Rejection { field: field.to_owned(), reason: reason.into(), group_id: None, topic_id: None }
}

/// `broker::wire` leaves out a property that it cannot read, and reports it in a header. Without
/// that property the message may mean another job, so it is rejected.
fn check_readable(properties: &BasicProperties) -> Result<(), Rejection> {
    let unreadable =
        properties.headers().as_ref().and_then(|headers| headers.inner().get(UNREADABLE_HEADER));
    match unreadable.map(|problem| text(problem).unwrap_or_default()) {
        Some(problem) => {
            let (field, reason) = problem.split_once(": ").unwrap_or((UNREADABLE_HEADER, problem));
            Err(rejection(field, reason))
        }
        None => Ok(()),
    }
}

impl Rejection {
    /// Whether `reply_to` may be one of the unreadable properties.
    fn hides_reply_to(&self) -> bool {
        let account = self.to_string();
        account.starts_with("reply_to: ")
            || account.contains("; reply_to: ")
            || account.contains("no property behind it")
    }
}

fn check_encoding(encoding: &Option<ShortString>) -> Result<(), Rejection> {
    match encoding.as_ref().map(|encoding| encoding.as_str().to_ascii_lowercase()) {
        Some(encoding) if encoding != "identity" && !is_utf_8(&encoding) => Err(rejection(
            "content_encoding",
            format!("`{encoding}` is not supported; send plain UTF-8 JSON"),
        )),
        _ => Ok(()),
    }
}

/// A body in another charset may also be valid UTF-8. Its recipients would then see wrong
/// characters.
fn check_charset(content_type: &Option<ShortString>) -> Result<(), Rejection> {
    let parameters =
        content_type.iter().flat_map(|content_type| content_type.as_str().split(';').skip(1));
    for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
        let charset = value.trim().trim_matches(['"', '\'']).to_ascii_lowercase();
        if name.trim().eq_ignore_ascii_case("charset") && !is_utf_8(&charset) {
            return Err(rejection(
                "content_type",
                format!("the charset `{charset}` is not supported; send UTF-8 JSON"),
            ));
        }
    }
    Ok(())
}

/// Whether a text in the charset or encoding `name`, in lower case, is UTF-8 without conversion.
fn is_utf_8(name: &str) -> bool {
    ["", "utf-8", "utf8", "us-ascii", "ascii"].contains(&name)
}

impl Envelope {
    fn read_job_id(&mut self, message_id: &Option<ShortString>) -> Result<(), Rejection> {
        let Some(id) = message_id else { return Ok(()) };
        if let Some(objection) = objection_to_job_id(id.as_str()) {
            return Err(rejection("message_id", objection));
        }
        self.job_id = id.as_str().to_owned();
        self.identity = Identity::Given;
        Ok(())
    }

    fn read_reply_to(
        &mut self,
        reply_to: &Option<ShortString>,
        app: &str,
        replies: &Replies,
    ) -> Result<(), Rejection> {
        let Some(queue) =
            reply_to.as_ref().map(ShortString::as_str).filter(|queue| !queue.is_empty())
        else {
            return Ok(());
        };
        self.reply_to = match queue {
            _ if queue.starts_with(DIRECT_REPLY_TO) => direct_address(queue),
            _ if replies.allow(queue, app) => ReplyTo::Named(queue.to_owned()),
            _ => ReplyTo::Refused(queue.to_owned()),
        };
        match self.reply_to {
            ReplyTo::Refused(_) => Err(rejection(
                "reply_to",
                format!(
                    "results may not go to `{queue}`; name a queue of your own that replies.allow \
                        matches"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn read_priority(&mut self, priority: Option<u8>) -> Result<(), Rejection> {
        match priority {
            Some(priority) if priority > MAX_PRIORITY => Err(rejection(
                "priority",
                format!("is {priority}; 0 to {MAX_PRIORITY} are allowed"),
            )),
            Some(priority) => {
                self.priority = priority;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Reads all headers, even after a bad one. The result of a rejected job needs the trace
    /// context too.
    fn read_headers(&mut self, properties: &BasicProperties) -> Result<(), Rejection> {
        let mut first_problem = Ok(());
        for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
            let read = self
                .read_header(name.as_str(), value)
                .map_err(|reason| rejection(name.as_str(), reason));
            first_problem = first_problem.and(read);
        }
        let has_parent = properties
            .headers()
            .as_ref()
            .is_some_and(|headers| headers.contains_key("traceparent"));
        if has_parent && self.trace.traceparent.is_none() {
            // A `tracestate` without a valid `traceparent` has no meaning.
            self.trace = TraceContext::default();
        }
        first_problem
    }

    fn read_header(&mut self, name: &str, value: &AMQPValue) -> Result<(), String> {
        match name {
            DEADLINE_HEADER => self.deadline = Some(read_timestamp(value)?),
            "groupcast-not-before" => self.not_before = Some(read_timestamp(value)?),
            "groupcast-delivery" => self.delivery = delivery_promise(value)?,
            ATTEMPT_HEADER => self.earlier_deaths = read_count(value, "dead-lettered")?,
            PARKED_HEADER => self.parkings = read_count(value, "parked")?,
            GIVEN_UP_HEADER => self.given_up = Some(text(value)?.to_owned()),
            OWED_HEADER if text(value)? == "result" => self.owes_result = true,
            OWED_HEADER => return Err("must be `result`".into()),
            // The broker sets this count.
            "x-delivery-count" => {
                self.redeliveries =
                    integer(value).and_then(|count| u32::try_from(count).ok()).unwrap_or_default()
            }
            // W3C Trace Context says that an invalid trace context is no reason to refuse a
            // request.
            "traceparent" => match traceparent(value) {
                Ok(traceparent) => self.trace.traceparent = Some(traceparent),
                Err(reason) => {
                    debug!(job_id = self.job_id, reason, "the job's traceparent is ignored")
                }
            },
            "tracestate" => self.trace.tracestate = text(value).ok().map(str::to_owned),
            // `check_readable` has already reported this header.
            UNREADABLE_HEADER => {}
            _ if DEAD_LETTER_HEADERS.contains(&name) => {}
            _ => return check_unknown_header(name),
        }
        Ok(())
    }
}

/// Accepts a header that belongs to the producer. A name that looks like one of ours is refused,
/// because a misspelt deadline would be ignored.
fn check_unknown_header(name: &str) -> Result<(), String> {
    let letters: String = name
        .chars()
        .filter(|letter| letter.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect();
    let distance = |known: &str| strsim::osa_distance(&letters, &known.replace('-', ""));
    let has_our_prefix = name
        .trim()
        .to_lowercase()
        .strip_prefix("groupcast")
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(char::is_alphanumeric));
    let nearest = CONTROL_HEADERS.into_iter().min_by_key(|known| distance(known));
    let normalized = name.trim().to_lowercase().replace('_', "");
    let trace_header = ["traceparent", "tracestate"].into_iter().find(|known| *known == normalized);
    match nearest.filter(|known| distance(known) <= 1).or(trace_header) {
        Some(known) => Err(format!("unknown header; did you mean `{known}`?")),
        None if name.starts_with("groupcast-") || has_our_prefix => {
            Err(format!("unknown header; {} are known", CONTROL_HEADERS.join(", ")))
        }
        None => Ok(()),
    }
}

/// Accepts a direct reply-to address only in the form that the broker generates:
/// `amq.rabbitmq.reply-to.<base64>.<key>`. The broker cannot handle another form.
fn direct_address(queue: &str) -> ReplyTo {
    let base64 = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte))
    };
    let parts = queue
        .strip_prefix(DIRECT_REPLY_TO)
        .and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
    match parts {
        Some((process, key)) if base64(process) && base64(key) => ReplyTo::Direct(queue.to_owned()),
        _ => ReplyTo::Refused(queue.to_owned()),
    }
}

fn text(value: &AMQPValue) -> Result<&str, String> {
    match value {
        AMQPValue::LongString(text) => {
            std::str::from_utf8(text.as_bytes()).map_err(|_| "is not UTF-8".into())
        }
        AMQPValue::ShortString(text) => Ok(text.as_str()),
        other => Err(format!("must be a string, not {:?}", other.get_type())),
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        AMQPValue::Timestamp(seconds) => i64::try_from(seconds).ok(),
        _ => None,
    }
}

fn read_timestamp(value: &AMQPValue) -> Result<Timestamp, String> {
    const FORMS: &str =
        "give an RFC 3339 time such as 2026-11-22T10:00:00Z, or Unix seconds as an integer";
    if let Some(seconds) = integer(value) {
        return Timestamp::from_second(seconds).ok().filter(|_| seconds > 0).ok_or_else(|| {
            format!("{seconds} is not a time in Unix seconds (are they milliseconds?); {FORMS}")
        });
    }
    let text = text(value).map_err(|_| format!("is of a wrong type; {FORMS}"))?;
    text.parse().map_err(|_| format!("`{text}` is not a time; {FORMS}"))
}

fn delivery_promise(value: &AMQPValue) -> Result<DeliveryPromise, String> {
    match text(value)? {
        "at-least-once" => Ok(DeliveryPromise::AtLeastOnce),
        "at-most-once" => Ok(DeliveryPromise::AtMostOnce),
        other => Err(format!("`{other}` is neither at-least-once nor at-most-once")),
    }
}

/// Reads a count above `u32::MAX` as `u32::MAX`. The daemon itself can write such a count, because
/// it adds one to the count that it has read.
fn read_count(value: &AMQPValue, what: &str) -> Result<u32, String> {
    let count = integer(value)
        .filter(|count| *count >= 1)
        .map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    count.ok_or_else(|| format!("must be an integer from 1: how often the job was {what}"))
}

/// W3C trace context, version 00 or a later one: `00-<32 hex>-<16 hex>-<2 hex>`.
fn traceparent(value: &AMQPValue) -> Result<String, String> {
    let text = text(value)?;
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let well_formed = match parts[..] {
        [version, trace, span, flags, ..] => {
            hex(version, 2)
                && version != "ff"
                && (version != "00" || parts.len() == 4)
                && hex(trace, 32)
                && hex(span, 16)
                && hex(flags, 2)
                && trace.bytes().any(|byte| byte != b'0')
                && span.bytes().any(|byte| byte != b'0')
        }
        _ => false,
    };
    if well_formed { Ok(text.to_owned()) } else { Err("is not a W3C trace context".into()) }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;

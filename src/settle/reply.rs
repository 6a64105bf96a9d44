//! The message that carries a result to its reply queue.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::result::JobResult;
use crate::{
    broker::{Destination, Outgoing, queues},
    job::{Envelope, REPLY_TO_HEADER, ReplyTo},
};

/// A result's `message_id` is the job id plus this suffix.
const RESULT_SUFFIX: &str = ".result";

/// The message for a result, whose JSON is `json`. `None` if the job wants no result.
pub fn compose(result: &JobResult, json: &str, envelope: &Envelope) -> Option<Outgoing> {
    let target = match &envelope.reply_to {
        ReplyTo::Nowhere => return None,
        ReplyTo::Configured(queue) | ReplyTo::Named(queue) => Destination::Producer(queue.clone()),
        ReplyTo::Direct(address) => Destination::Direct(address.clone()),
        ReplyTo::Refused(_) => Destination::Own(queues::unrouted(&result.app)),
    };
    let mut headers = FieldTable::default();
    if let ReplyTo::Refused(queue) = &envelope.reply_to {
        headers.insert(REPLY_TO_HEADER.into(), AMQPValue::LongString(queue.as_str().into()));
    }
    headers.insert("groupcast-status".into(), AMQPValue::LongString(result.status.as_str().into()));
    for (name, value) in
        [("traceparent", &envelope.trace.traceparent), ("tracestate", &envelope.trace.tracestate)]
    {
        if let Some(value) = value {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    }
    let mut properties = BasicProperties::default()
        .with_type("groupcast.result".into())
        .with_app_id("groupcast".into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_headers(headers);
    if let Ok(id) = ShortString::try_new(format!("{}{RESULT_SUFFIX}", result.job_id)) {
        properties = properties.with_message_id(id);
    }
    if let Some(id) =
        envelope.correlation_id.as_deref().and_then(|id| ShortString::try_new(id).ok())
    {
        properties = properties.with_correlation_id(id);
    }
    Some(Outgoing { target, body: json.as_bytes().to_vec(), properties, suspect: false })
}

/// The same message for `.unrouted`, with a header for the queue that it was meant for.
pub fn unrouted(app: &str, reply: &Outgoing, suspect: bool) -> Outgoing {
    let mut headers = reply.properties.headers().clone().unwrap_or_default();
    headers.insert(REPLY_TO_HEADER.into(), AMQPValue::LongString(reply.target.queue().into()));
    let properties = reply.properties.clone().with_headers(headers);
    Outgoing {
        target: Destination::Own(queues::unrouted(app)),
        body: reply.body.clone(),
        properties,
        suspect,
    }
}

/// The queue that a result in `.unrouted` was meant for.
pub fn meant_for(unrouted: &Outgoing) -> String {
    match unrouted
        .properties
        .headers()
        .as_ref()
        .and_then(|headers| headers.inner().get(REPLY_TO_HEADER))
    {
        Some(AMQPValue::LongString(queue)) => queue.to_string(),
        _ => String::new(),
    }
}

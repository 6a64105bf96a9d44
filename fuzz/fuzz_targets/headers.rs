//! Any headers make an envelope. A rejection names the field that is wrong.
#![no_main]

use groupcast::{accept::envelope, config::Replies};
use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 8] = [
    "groupcast-deadline",
    "groupcast-not-before",
    "groupcast-delivery",
    "groupcast-attempt",
    "groupcast-parked",
    "traceparent",
    "tracestate",
    "x-death",
];

fuzz_target!(|given: (Vec<(u8, u8, i64, String)>, Option<String>, Option<String>, Option<u8>)| {
    let (pairs, message_id, reply_to, priority) = given;
    let mut headers = FieldTable::default();
    for (name, kind, number, text) in pairs {
        let name = NAMES
            .get(usize::from(name))
            .map_or_else(|| format!("groupcast-{text}"), |name| (*name).to_owned());
        let value = match kind % 6 {
            0 => AMQPValue::LongString(text.as_str().into()),
            1 => AMQPValue::LongLongInt(number),
            2 => AMQPValue::Timestamp(number as u64),
            3 => AMQPValue::LongInt(number as i32),
            4 => AMQPValue::Boolean(number > 0),
            _ => AMQPValue::Void,
        };
        if name.len() < 256 {
            headers.insert(name.as_str().into(), value);
        }
    }
    let mut properties = BasicProperties::default().with_headers(headers);
    if let Some(id) = message_id.filter(|id| id.len() < 256) {
        properties = properties.with_message_id(id.as_str().into());
    }
    if let Some(queue) = reply_to.filter(|queue| queue.len() < 256) {
        properties = properties.with_reply_to(queue.as_str().into());
    }
    if let Some(priority) = priority {
        properties = properties.with_priority(priority);
    }
    let (envelope, checked) =
        envelope::read(&properties, "app", None, &Replies::anywhere(), Timestamp::UNIX_EPOCH);
    assert!(!envelope.job_id.is_empty() && envelope.priority <= 9);
    if let Err(rejection) = checked {
        assert!(!rejection.field.is_empty() && !rejection.reason.is_empty());
    }
});

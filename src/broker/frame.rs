//! Computes how large a message's properties and headers are on the wire, and which headers to
//! leave out so that they fit.
//!
//! AMQP sends them in one frame, the content header. A broker closes the whole connection over a
//! frame larger than the limit that both sides agreed on (`frame_max`). Pure.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

/// RabbitMQ's default. It applies until a connection has agreed on a limit.
pub const DEFAULT_FRAME_MAX: usize = 131_072;
/// Frame header and end (8), class, weight, body size and property flags (14).
const EMPTY_HEADER_FRAME: usize = 8 + 14;
/// Room in a frame for the headers that the daemon and the broker add to a job's own. The daemon
/// adds a job id, and the notes of a dead letter with up to 2,000 characters of
/// `groupcast-error-info`. The broker adds `x-death` for each queue that the job passed.
const ROOM_FOR_ADDITIONS: usize = 16 * 1024;
/// Headers with this prefix are the daemon's own. They are shortened, never left out.
const OWN_PREFIX: &str = "groupcast-";

/// How many bytes a producer's headers may have together, in frames of `frame_max` bytes.
pub fn room_for_headers(frame_max: usize) -> usize {
    frame_max - ROOM_FOR_ADDITIONS.min(frame_max / 2)
}

/// The size of a message's header frame in bytes.
pub fn header_frame_bytes(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(short_string_bytes).sum();
    let octets = [properties.delivery_mode(), properties.priority()].into_iter().flatten().count();
    let timestamp = properties.timestamp().map_or(0, |_| 8);
    EMPTY_HEADER_FRAME
        + texts
        + octets
        + timestamp
        + properties.headers().as_ref().map_or(0, table_bytes)
}

/// The size of one header with its name.
pub fn header_bytes(name: &ShortString, value: &AMQPValue) -> usize {
    short_string_bytes(name) + value_bytes(value)
}

/// A header that was left out of a message: its name and its size in bytes.
pub type LeftOut = (String, usize);

/// Returns properties whose header frame has at most `frame_max` bytes, and what was left out.
/// `None` if they fit already. The producer's largest headers go first. If the daemon's own headers
/// are still too large, their longest text is cut.
pub fn fit(
    properties: &BasicProperties,
    frame_max: usize,
) -> Option<(BasicProperties, Vec<LeftOut>)> {
    let mut excess =
        header_frame_bytes(properties).checked_sub(frame_max).filter(|excess| *excess > 0)?;
    let given = properties.headers().clone().unwrap_or_default();
    let is_foreign = |name: &ShortString| !name.as_str().starts_with(OWN_PREFIX);
    let with_size =
        |(name, value): (&ShortString, &AMQPValue)| (header_bytes(name, value), name.clone());
    let mut foreign: Vec<(usize, ShortString)> =
        given.inner().iter().filter(|(name, _)| is_foreign(name)).map(with_size).collect();
    foreign.sort();
    let mut left_out = Vec::new();
    while excess > 0
        && let Some((size, name)) = foreign.pop()
    {
        left_out.push((name.to_string(), size));
        excess = excess.saturating_sub(size);
    }
    let mut headers = FieldTable::default();
    for (name, value) in given.inner() {
        if !left_out.iter().any(|(left, _)| left == name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    if excess > 0 {
        headers = cut_longest_text(&headers, excess, &mut left_out);
    }
    Some((properties.clone().with_headers(headers), left_out))
}

fn cut_longest_text(
    headers: &FieldTable,
    excess: usize,
    left_out: &mut Vec<LeftOut>,
) -> FieldTable {
    let mut cut = headers.clone();
    let text = |(name, value): (&ShortString, &AMQPValue)| match value {
        AMQPValue::LongString(text) => {
            Some((name.clone(), String::from_utf8_lossy(text.as_bytes()).into_owned()))
        }
        _ => None,
    };
    if let Some((name, text)) =
        headers.inner().iter().filter_map(text).max_by_key(|(_, text)| text.len())
    {
        let keep = text.floor_char_boundary(text.len().saturating_sub(excess));
        left_out.push((name.to_string(), text.len() - keep));
        cut.insert(name, AMQPValue::LongString(text[..keep].into()));
    }
    cut
}

fn short_string_bytes(text: &ShortString) -> usize {
    1 + text.as_str().len()
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| header_bytes(name, value)).sum::<usize>()
}

/// Includes the octet for the type.
fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::ShortString(text) => short_string_bytes(text),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => {
            4 + values.as_slice().iter().map(value_bytes).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => table_bytes(table),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::{DecimalValue, FieldArray};
    use proptest::prelude::*;

    use super::*;

    fn text(length: usize) -> AMQPValue {
        AMQPValue::LongString("é".repeat(length / 2).as_str().into())
    }

    fn with(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default()
            .with_headers(table)
            .with_delivery_mode(2)
            .with_message_id("id".into())
    }

    #[test]
    fn each_type_has_the_size_that_the_protocol_says() {
        let empty = header_frame_bytes(&BasicProperties::default());
        assert_eq!(empty, 22);
        let mut inner = FieldTable::default();
        inner.insert("ab".into(), AMQPValue::LongInt(1));
        for (value, size) in [
            (AMQPValue::Void, 1),
            (AMQPValue::Boolean(true), 2),
            (AMQPValue::ShortInt(1), 3),
            (AMQPValue::LongLongInt(1), 9),
            (AMQPValue::DecimalValue(DecimalValue { scale: 1, value: 1 }), 6),
            (AMQPValue::LongString("abc".into()), 8),
            (AMQPValue::FieldTable(inner), 1 + 4 + 3 + 5),
            (
                AMQPValue::FieldArray(FieldArray::from(vec![
                    AMQPValue::Void,
                    AMQPValue::LongInt(1),
                ])),
                1 + 4 + 1 + 5,
            ),
        ] {
            assert_eq!(value_bytes(&value), size, "{value:?}");
        }
        let properties =
            BasicProperties::default().with_priority(1).with_timestamp(1).with_type("abc".into());
        assert_eq!(header_frame_bytes(&properties), 22 + 1 + 8 + 4);
    }

    #[test]
    fn a_message_that_fits_stays_as_it_is() {
        let properties = with(&[("x", text(100))]);
        let size = header_frame_bytes(&properties);
        assert!(fit(&properties, size).is_none());
        assert!(fit(&properties, size - 1).is_some());
    }

    #[test]
    fn the_largest_headers_of_the_producer_go_first_and_those_of_the_daemon_stay() {
        let properties =
            with(&[("small", text(10)), ("large", text(9000)), ("groupcast-status", text(4000))]);
        let (fitting, left_out) = fit(&properties, 8192).expect("it is too large");
        let names: Vec<String> =
            fitting.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(names, ["groupcast-status", "small"]);
        assert_eq!(left_out, [("large".to_owned(), 6 + 5 + 9000)]);
    }

    proptest! {
        #[test]
        fn whatever_it_has_it_fits_afterwards(
            foreign in prop::collection::vec((1usize..40_000, "[a-z]{1,20}"), 0..8),
            info in 0usize..16_000,
            frame_max in prop::sample::select(vec![4096usize, 8192, 131_072]),
        ) {
            let mut headers: Vec<(&str, AMQPValue)> = foreign.iter().map(|(size, name)| (name.as_str(), text(*size))).collect();
            headers.push(("groupcast-error-info", text(info)));
            let properties = with(&headers);
            let fitting = fit(&properties, frame_max).map_or(properties, |(fitting, _)| fitting);
            prop_assert!(header_frame_bytes(&fitting) <= frame_max);
            prop_assert!(fitting.headers().as_ref().unwrap().inner().contains_key("groupcast-error-info"));
            prop_assert_eq!(fitting.message_id().as_ref().map(|id| id.as_str()), Some("id"));
        }
    }
}

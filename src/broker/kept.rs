//! Which properties and headers of a job's message are kept when the daemon publishes it again, as
//! a dead letter or to a wait queue.

use lapin::{
    BasicProperties,
    types::{FieldTable, ShortString},
};

use crate::job::{
    ALTERED_HEADER, ATTEMPT_HEADER, DEAD_LETTER_HEADERS, GIVEN_UP_HEADER, OWED_HEADER,
    PARKED_HEADER,
};

/// Headers that the broker adds, or that the daemon adds when it reads a message.
const BROKERS_PREFIXES: [&str; 5] =
    ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count", ALTERED_HEADER];

/// The producer's headers, without those that apply only to this delivery. With `x-death` of a
/// queue, the broker would drop a message that is sent to that queue again. `CC` and `BCC` would
/// copy the message to other queues. Notes of an earlier dead letter would be stale.
pub fn kept_headers(properties: &BasicProperties) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if is_kept(name) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether a header is kept.
pub fn is_kept(name: &ShortString) -> bool {
    let name = name.as_str();
    let copies = ["CC", "BCC"].contains(&name);
    let stale = DEAD_LETTER_HEADERS.contains(&name)
        || [ATTEMPT_HEADER, GIVEN_UP_HEADER, PARKED_HEADER, OWED_HEADER].contains(&name);
    !copies && !stale && !BROKERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// All properties but `expiration`, which would delete the letter, and `user_id`, which the broker
/// compares with the daemon's own user. A bare direct reply-to names the connection that publishes,
/// so the broker refuses it from the daemon.
pub fn kept_properties(properties: &BasicProperties) -> BasicProperties {
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
        Some(queue) if queue.as_str() != "amq.rabbitmq.reply-to" => {
            kept.with_reply_to(queue.clone())
        }
        _ => kept,
    }
}

//! What of a job's message goes along when the job is published again, as a dead letter or to a
//! wait queue.

use lapin::{
    BasicProperties,
    types::{FieldTable, ShortString},
};

use crate::job::{
    ALTERED_HEADER, ATTEMPT_HEADER, DEAD_LETTER_HEADERS, GIVEN_UP_HEADER, OWED_HEADER,
    PARKED_HEADER,
};

/// Headers that the broker made, or that only mean something on this side of the connection.
const BROKERS_PREFIXES: [&str; 5] =
    ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count", ALTERED_HEADER];

/// What a producer set, without what only made sense on the way here: `x-death` of a queue loses
/// messages sent there again, `CC` and `BCC` copy them elsewhere, earlier death notes would be
/// stale.
pub fn kept_headers(properties: &BasicProperties) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if goes_along(name) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether a header goes along.
pub fn goes_along(name: &ShortString) -> bool {
    let name = name.as_str();
    let copies = ["CC", "BCC"].contains(&name);
    let stale = DEAD_LETTER_HEADERS.contains(&name)
        || [ATTEMPT_HEADER, GIVEN_UP_HEADER, PARKED_HEADER, OWED_HEADER].contains(&name);
    !copies && !stale && !BROKERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// All but `expiration`, which would delete the letter, and `user_id`, which the broker checks
/// against our own user. A bare direct reply-to says "to whoever publishes this", which the broker
/// refuses from us.
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

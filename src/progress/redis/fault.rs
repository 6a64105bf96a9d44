//! Explains why Redis refused an operation, and what an operator can do. Never shows the password.

use redis::{ErrorKind, RedisError};

use crate::diagnosis::Diagnosis;

/// Whether a record's key holds another type of value. Other keys are not affected.
pub fn is_of_one_key(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
        || error.detail().is_some_and(|told| told.contains("WRONGTYPE"))
}

pub fn timed_out() -> Diagnosis {
    Diagnosis::new("it timed out", "check the network, and whether the server is overloaded")
}

/// Redis's message, and the advice.
pub fn diagnose(error: &RedisError) -> Diagnosis {
    // A refused transaction has a list of refusals. The first is enough.
    let refusals = error.clone().into_server_errors();
    let text = match refusals.as_deref().and_then(<[_]>::first) {
        Some((_, refusal)) => {
            format!("{} {}", refusal.code(), refusal.details().unwrap_or_default())
        }
        None if error.is_timeout() => return timed_out(),
        None => error.to_string(),
    };
    match advice(error, &text) {
        Some(advice) => Diagnosis::new(text.trim_end_matches('.'), advice),
        None => Diagnosis::unknown(text),
    }
}

fn advice(error: &RedisError, text: &str) -> Option<&'static str> {
    let has = |code: &str| text.contains(code);
    Some(if error.kind() == ErrorKind::AuthenticationFailed || has("WRONGPASS") || has("NOAUTH") {
        "check the user and the password in state.url"
    } else if has("READONLY") {
        "this is a replica; set state.url to the primary"
    } else if has("OOM") {
        "it is out of memory; raise its maxmemory"
    } else if has("MISCONF") {
        "it cannot save its data; free space on its disk, or see its log"
    } else if has("LOADING") {
        "it is still loading its data; this passes"
    } else if has("NOPERM") || has("can't run this command") || has("ACL failure") {
        "let the user in state.url use all commands on the keys groupcast:*"
    } else if has("MOVED") || has("CROSSSLOT") {
        "a Redis Cluster cannot be used; set state.url to a single server or its replicated primary"
    } else {
        return None;
    })
}

//! Why Redis did not do it, and what an operator can do about it. Never tells the password.

use redis::{ErrorKind, RedisError};

pub const TIMED_OUT: &str = "timed out; check the network, and whether the server is overloaded";

/// Whether something else is where a record should be: the other keys are as good as ever.
pub fn is_of_one_key(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.detail().is_some_and(|told| told.contains("WRONGTYPE"))
}

/// Redis's words, then the advice.
pub fn reason(error: &RedisError) -> String {
    // A refused transaction has a list of refusals; the first is as good as all.
    let refusals = error.clone().into_server_errors();
    let text = match refusals.as_deref().and_then(<[_]>::first) {
        Some((_, refusal)) => format!("{} {}", refusal.code(), refusal.details().unwrap_or_default()),
        None if error.is_timeout() => return TIMED_OUT.to_owned(),
        None => error.to_string(),
    };
    match advice(error, &text) {
        Some(advice) => format!("{}; {advice}", text.trim_end_matches('.')),
        None => text,
    }
}

fn advice(error: &RedisError, text: &str) -> Option<&'static str> {
    let has = |code: &str| text.contains(code);
    Some(if error.kind() == ErrorKind::AuthenticationFailed || has("WRONGPASS") || has("NOAUTH") {
        "check the user and the password in state.url"
    } else if error.is_connection_refusal() {
        "start it, or set state.url to where it runs"
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
    } else if has("peer certificate") {
        "let this machine trust its certificate authority, or name its file in SSL_CERT_FILE"
    } else if has("MOVED") || has("CROSSSLOT") {
        "a Redis Cluster cannot be used; set state.url to a single server or its replicated primary"
    } else {
        return None;
    })
}

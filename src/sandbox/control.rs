//! The control API under `/_sandbox/`. It sets faults and settings, and shows received calls and
//! statistics. It requires no credential. For this reason the sandbox listens on loopback by
//! default.

use hyper::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use url::form_urlencoded;

use super::{
    SharedSandbox,
    fault::FaultRule,
    reply::{self, Reply},
    settings::{SandboxSettings, SettingsPatch},
};

pub const PREFIX: &str = "/_sandbox/";

pub fn answer(
    sandbox: &SharedSandbox,
    method: &Method,
    path: &str,
    query: &str,
    body: &[u8],
) -> Reply {
    let command = path.strip_prefix(PREFIX).unwrap_or(path);
    match (method, command) {
        (&Method::GET, "faults") => ok(sandbox.lock().faults.rules()),
        (&Method::POST, "faults") => done(add_fault(sandbox, body)),
        (&Method::DELETE, "faults") => {
            sandbox.lock().faults.clear();
            ok(&json!({}))
        }
        (&Method::GET, "settings") => ok(&sandbox.lock().settings),
        (&Method::PATCH, "settings") => done(patch_settings(sandbox, body)),
        (&Method::GET, "received") => ok(&sandbox.received(group_in(query).as_deref())),
        (&Method::GET, "stats") => ok(&sandbox.lock().stats()),
        (&Method::POST, "reset") => {
            sandbox.lock().reset();
            ok(&json!({}))
        }
        (_, "faults" | "settings" | "received" | "stats" | "reset") => {
            refuse(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} does not take {method}"))
        }
        _ => refuse(StatusCode::NOT_FOUND, "there is faults, settings, received, stats and reset"),
    }
}

fn add_fault(sandbox: &SharedSandbox, body: &[u8]) -> Result<FaultRule, String> {
    let rule: FaultRule = parse(body)?;
    sandbox.lock().faults.add(rule.clone())?;
    Ok(rule)
}

fn patch_settings(sandbox: &SharedSandbox, body: &[u8]) -> Result<SandboxSettings, String> {
    let patch: SettingsPatch = parse(body)?;
    let mut state = sandbox.lock();
    patch.apply(&mut state.settings);
    Ok(state.settings.clone())
}

fn group_in(query: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "group")
        .map(|(_, group)| group.into_owned())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn done<T: Serialize>(outcome: Result<T, String>) -> Reply {
    outcome.map_or_else(|reason| refuse(StatusCode::BAD_REQUEST, &reason), |value| ok(&value))
}

fn ok<T: Serialize + ?Sized>(value: &T) -> Reply {
    reply::json(
        StatusCode::OK,
        serde_json::to_string(value).expect("nothing here fails to serialize"),
    )
}

fn refuse(status: StatusCode, reason: &str) -> Reply {
    reply::json(status, json!({ "error": reason }).to_string())
}

//! The effective configuration as TOML, in the order of the documentation, with the secrets masked.
//! It loads again once the secrets replace their masks.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use toml::Value;

use super::secret::MASK;
use super::{
    AdminConfig, App, Broker, CommandConfig, Config, EmptyRecipients, GroupMsg, Log, LogFormat,
    PauseConfig, Replies, Retry, StateConfig, Telemetry,
};

/// A key and its value. `None` means that the key is not set and not written.
type Key = (&'static str, Option<Value>);

impl Config {
    pub fn to_masked_toml(&self) -> String {
        self.sections()
            .into_iter()
            .map(|(name, keys)| section(&name, keys))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The keys that are set, by full name. The value of a secret is its mask.
    pub(super) fn masked_keys(&self) -> BTreeMap<String, Value> {
        let full = |(section, keys): (String, Vec<Key>)| {
            keys.into_iter()
                .filter_map(move |(key, value)| Some((format!("{section}.{key}"), value?)))
        };
        self.sections().into_iter().flat_map(full).collect()
    }

    fn sections(&self) -> Vec<(String, Vec<Key>)> {
        let mut sections = vec![
            ("broker".to_owned(), broker(&self.broker)),
            ("state".to_owned(), state(&self.state)),
            ("admin".to_owned(), admin(&self.admin)),
        ];
        for (name, settings) in &self.apps {
            sections.push((format!("apps.{name}"), app(settings)));
            if let CommandConfig::GroupMsg(settings) = &settings.command {
                sections.push((format!("apps.{name}.group_msg"), group_msg(settings)));
            }
            sections.push((format!("apps.{name}.replies"), replies(&settings.replies)));
            sections.push((format!("apps.{name}.retry"), retry(&settings.retry)));
            sections.push((format!("apps.{name}.pause"), pause(&settings.pause)));
        }
        sections.push(("log".to_owned(), log(&self.log)));
        sections.push(("telemetry".to_owned(), telemetry(&self.telemetry)));
        sections
    }
}

fn broker(broker: &Broker) -> Vec<Key> {
    let urls = broker.urls.iter().map(|url| Value::String(url.to_string())).collect();
    vec![
        ("url", broker.url_file.is_none().then_some(Value::Array(urls))),
        ("url_file", path(broker.url_file.as_deref())),
        ("ca_file", path(broker.ca_file.as_deref())),
        ("cert_file", path(broker.cert_file.as_deref())),
        ("key_file", path(broker.key_file.as_deref())),
        ("prefetch", number(u64::from(broker.prefetch))),
        ("hold_bytes", bytes(broker.hold_bytes)),
        ("max_job_bytes", bytes(broker.max_job_bytes)),
        ("declare", Some(Value::Boolean(broker.declare))),
    ]
}

fn state(state: &StateConfig) -> Vec<Key> {
    vec![
        ("url", state.url_file.is_none().then(|| Value::String(state.url.to_string()))),
        ("url_file", path(state.url_file.as_deref())),
        ("ca_file", path(state.ca_file.as_deref())),
        ("cert_file", path(state.cert_file.as_deref())),
        ("key_file", path(state.key_file.as_deref())),
        ("retention", duration(state.retention)),
    ]
}

fn admin(admin: &AdminConfig) -> Vec<Key> {
    let hosts = admin.hosts.iter().cloned().map(Value::String).collect();
    let is_written_here = admin.token.is_some() && admin.token_file.is_none();
    vec![
        ("listen", text(&admin.listen.to_string())),
        ("hosts", Some(Value::Array(hosts))),
        ("token", is_written_here.then(|| Value::String(MASK.to_owned()))),
        ("token_file", path(admin.token_file.as_deref())),
    ]
}

fn app(app: &App) -> Vec<Key> {
    let known = app.region.map(|region| region.domains().1);
    let backup = app.backup_endpoint.as_ref().filter(|url| url.host_str() != known);
    vec![
        ("sdk_app_id", number(app.sdk_app_id)),
        ("identifier", text(&app.identifier)),
        ("secret_key", app.secret_key_file.is_none().then(|| Value::String(MASK.to_owned()))),
        ("secret_key_file", path(app.secret_key_file.as_deref())),
        ("region", app.region.map(|region| Value::String(region.name().to_owned()))),
        ("endpoint", app.region.is_none().then(|| Value::String(address(&app.endpoint)))),
        ("backup_endpoint", backup.map(|url| Value::String(address(url)))),
        ("calls_per_second", number(u64::from(app.calls_per_second))),
        ("burst", number(u64::from(app.burst))),
        ("command", text(app.command.name().as_str())),
        ("batch_size", number(app.batch_size as u64)),
        ("max_in_flight", number(app.max_in_flight as u64)),
        ("request_timeout", duration(app.request_timeout)),
        ("results_queue", text(app.results_queue.as_deref().unwrap_or_default())),
        (
            "empty_recipients",
            text(match app.empty_recipients {
                EmptyRecipients::Broadcast => "broadcast",
                EmptyRecipients::Reject => "reject",
            }),
        ),
    ]
}

fn group_msg(group_msg: &GroupMsg) -> Vec<Key> {
    let avchatroom = group_msg.avchatroom().map(Value::String).collect();
    vec![
        ("storage", text(group_msg.storage.as_str())),
        ("element", text(group_msg.element.as_str())),
        ("priority", text(group_msg.priority.as_str())),
        ("webhooks", Some(Value::Boolean(group_msg.webhooks))),
        ("from_account", text(group_msg.from_account.as_deref().unwrap_or_default())),
        ("targeting", Some(Value::Boolean(group_msg.targeting))),
        ("calls_per_second_per_group", number(u64::from(group_msg.calls_per_second_per_group))),
        ("dedup_window", duration(group_msg.dedup_window)),
        ("avchatroom", Some(Value::Array(avchatroom))),
    ]
}

fn replies(replies: &Replies) -> Vec<Key> {
    vec![("allow", Some(Value::Array(replies.patterns().map(Value::String).collect())))]
}

fn address(url: &url::Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

fn retry(retry: &Retry) -> Vec<Key> {
    vec![
        ("first_delay", duration(retry.first_delay)),
        ("max_delay", duration(retry.max_delay)),
        ("hold", duration(retry.hold)),
        (
            "park",
            Some(Value::Array(retry.park.iter().filter_map(|wait| duration(*wait)).collect())),
        ),
        ("give_up_after", duration(retry.give_up_after)),
    ]
}

fn pause(pause: &PauseConfig) -> Vec<Key> {
    vec![("probe_first", duration(pause.probe_first)), ("probe_max", duration(pause.probe_max))]
}

fn telemetry(telemetry: &Telemetry) -> Vec<Key> {
    vec![("otlp_endpoint", telemetry.otlp_endpoint.as_ref().map(|url| Value::String(address(url))))]
}

fn log(log: &Log) -> Vec<Key> {
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    vec![("format", text(format)), ("filter", text(&log.filter))]
}

fn section(name: &str, keys: Vec<Key>) -> String {
    let lines =
        keys.into_iter().filter_map(|(key, value)| value.map(|value| format!("{key} = {value}\n")));
    format!("[{name}]\n{}", lines.collect::<String>())
}

fn text(text: &str) -> Option<Value> {
    Some(Value::String(text.to_owned()))
}

fn path(path: Option<&Path>) -> Option<Value> {
    path.map(|path| Value::String(path.display().to_string()))
}

/// The configuration accepts no number above `i64::MAX`.
fn number(number: u64) -> Option<Value> {
    i64::try_from(number).ok().map(Value::Integer)
}

fn duration(duration: Duration) -> Option<Value> {
    text(&humantime::format_duration(duration).to_string())
}

/// A size in the largest unit that divides it, so that nothing is rounded.
fn bytes(bytes: u64) -> Option<Value> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit_bytes)| bytes.is_multiple_of(*unit_bytes)) {
        Some((unit, unit_bytes)) => text(&format!("{}{unit}", bytes / unit_bytes)),
        None => number(bytes),
    }
}

//! Logging. The filter is for our own events; what the libraries tell is capped at `info`, because at `trace` they tell
//! frames and headers, and with them passwords and UserSigs. lapin is silent: it tells whole messages at `warn`, and
//! whatever it fails at is an error that we report.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// Starts logging to standard error. Once a process.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| format!("log.filter `{}`: {error}", log.filter))?;
    let ours_or_important = filter_fn(|event| {
        let target = event.target();
        let ours = target == "groupcast" || target.starts_with("groupcast::");
        ours || (*event.level() <= Level::INFO && !target.starts_with("lapin"))
    });
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match log.format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter).with_filter(ours_or_important))
        .try_init()
        .map_err(|error| error.to_string())
}

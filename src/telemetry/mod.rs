//! What the daemon reports about itself: its log, in this file, its [`metrics`] and its [`spans`].
//!
//! The log's filter applies to the daemon's own events. Events of libraries are capped at `info`:
//! at `trace` they show frames and headers, and with them passwords and UserSigs. Events of lapin
//! are dropped, because it shows whole messages at `warn`, and the daemon reports its errors
//! itself. Log lines go through [`standard_error`], so that a slow reader cannot block the daemon.

pub mod metrics;
pub mod spans;
pub mod standard_error;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic,
};

use tracing::{Level, error, field};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, fmt, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use self::standard_error::StandardError;
use crate::config::{Log, LogFormat};

/// The filter of the running log.
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    pub fn replace(&self, directives: &str) -> Result<(), String> {
        self.0.reload(parse(directives)?).map_err(|error| error.to_string())
    }
}

/// Starts logging to standard error, panics included. Call it once per process.
pub fn start(
    log: &Log,
    spans: &spans::Exporter,
    standard_error: &StandardError,
) -> Result<LogFilter, String> {
    let (filter, handle) = reload::Layer::new(parse(&log.filter)?);
    let ours_or_important = filter_fn(|event| {
        let target = event.target();
        if target == spans::TARGET {
            return false;
        }
        let ours = target == "groupcast" || target.starts_with("groupcast::");
        ours || (*event.level() <= Level::INFO && !target.starts_with("lapin"))
    });
    let lines = fmt::layer()
        .with_writer(standard_error.handle())
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match log.format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter).with_filter(ours_or_important))
        .with(spans.layer())
        .try_init()
        .map_err(|error| error.to_string())?;
    // The standard library's own hook writes to standard error directly, and could block on its
    // reader.
    panic::set_hook(Box::new(|panicked| {
        let backtrace = Backtrace::capture();
        let backtrace =
            (backtrace.status() == BacktraceStatus::Captured).then(|| field::display(backtrace));
        error!(backtrace, "{panicked}");
    }));
    Ok(LogFilter(handle))
}

fn parse(directives: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(directives).map_err(|error| format!("log.filter `{directives}`: {error}"))
}

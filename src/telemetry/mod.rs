//! What the daemon tells of itself: its log, here, its [`metrics`] and its [`spans`].
//!
//! The log's filter is for our own events; what the libraries tell is capped at `info`, because at
//! `trace` they tell frames and headers, and with them passwords and UserSigs. lapin is silent: it
//! tells whole messages at `warn`, and whatever it fails at is an error that we report. Its lines
//! go through [`standard_error`], so that no reader of them holds the daemon up.

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
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    pub fn replace(&self, directives: &str) -> Result<(), String> {
        self.0.reload(parse(directives)?).map_err(|error| error.to_string())
    }
}

/// Starts logging to standard error, panics too. Once a process.
pub fn start(
    log: &Log,
    spans: &spans::Exporter,
    standard_error: &StandardError,
) -> Result<Filter, String> {
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
    // The standard library's own hook would write to standard error itself, and wait for its
    // reader.
    panic::set_hook(Box::new(|panicked| {
        let backtrace = Backtrace::capture();
        let backtrace =
            (backtrace.status() == BacktraceStatus::Captured).then(|| field::display(backtrace));
        error!(backtrace, "{panicked}");
    }));
    Ok(Filter(handle))
}

fn parse(directives: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(directives).map_err(|error| format!("log.filter `{directives}`: {error}"))
}

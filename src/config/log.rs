//! `[log]`: what is logged, and in which form.

use serde::Deserialize;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::error::Problem;
use super::written::{Given, Setting, Written, word};

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// Directives as `tracing_subscriber::EnvFilter` reads them: `info`, `groupcast=debug,warn`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogSection {
    format: Option<Given<LogFormat>>,
    filter: Option<Given<String>>,
}

impl LogSection {
    pub(super) fn check(self) -> Result<Log, Problem> {
        let filter = Given::or(self.filter, "info".to_owned());
        if EnvFilter::try_new(&filter).is_err() {
            return Err(Problem::wrong(
                "filter",
                "must be a log filter, such as \"info\" or \"groupcast=debug,warn\"",
            ));
        }
        // The library takes an unknown word for the name of a module, and then logs nothing.
        let directives =
            || filter.split(',').map(str::trim).filter(|directive| !directive.is_empty());
        let is_heard = directives().next().is_none() || directives().any(is_ours);
        if !is_heard || directives().any(|directive| !is_known(directive)) {
            return Err(Problem::wrong(
                "filter",
                "must have a level for groupcast: error, warn, info, debug or trace, alone or as \
                    in \"groupcast=debug,warn\"",
            ));
        }
        Ok(Log { format: Given::or(self.format, LogFormat::Text), filter })
    }
}

/// Whether a directive has a level, or names a part of this program.
fn is_known(directive: &str) -> bool {
    directive.contains(['=', '[']) || is_ours(directive)
}

/// Whether a directive applies to events of this program.
fn is_ours(directive: &str) -> bool {
    directive.starts_with("groupcast")
        || directive.starts_with('[')
        || directive.parse::<LevelFilter>().is_ok()
}

impl Setting for LogFormat {
    fn read(written: Written) -> Result<LogFormat, String> {
        word(&written, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
    }
}

//! Errors in a configuration, written for its author: the place, the mistake, and what to write
//! instead. No message repeats a value that was written as text. It may be a secret, even in the
//! wrong place.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}; check the path (--config) and its \
        permissions", .file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{}:{line}:{column}: {says}", .file.display())]
    Syntax { file: PathBuf, line: usize, column: usize, says: String },
    /// `subject` is a key with its file, or a variable.
    #[error("{subject}; {hint}")]
    Unknown { subject: String, hint: String },
    #[error("{subject} {says}")]
    Wrong { subject: String, says: String, source: Option<io::Error> },
    #[error("{key} is missing; {write} in {file}, or set {variable}")]
    Missing { key: String, write: String, file: String, variable: String },
    #[error(
        "no apps are configured; add [apps.default] with sdk_app_id, secret_key (or \
            secret_key_file) and region to {file}, or set GROUPCAST__APPS__DEFAULT__SDK_APP_ID and \
            so on"
    )]
    NoApps { file: String },
}

impl ConfigError {
    pub(super) fn wrong(subject: &str, says: &str) -> ConfigError {
        ConfigError::Wrong { subject: subject.to_owned(), says: says.to_owned(), source: None }
    }
}

/// An error that a section reports about one of its keys. It does not know yet where the key was
/// written.
#[derive(Debug)]
pub(super) enum Problem {
    Missing { key: String, write: String },
    Wrong { key: String, says: String, source: Option<io::Error> },
}

impl Problem {
    pub(super) fn missing(key: &str, write: impl Into<String>) -> Problem {
        Problem::Missing { key: key.to_owned(), write: write.into() }
    }

    /// `says` continues the sentence that begins with the key.
    pub(super) fn wrong(key: &str, says: impl Into<String>) -> Problem {
        Problem::Wrong { key: key.to_owned(), says: says.into(), source: None }
    }

    pub(super) fn under(self, section: &str) -> Problem {
        let place = |key: String| {
            if key.is_empty() { section.to_owned() } else { format!("{section}.{key}") }
        };
        match self {
            Problem::Missing { key, write } => Problem::Missing { key: place(key), write },
            Problem::Wrong { key, says, source } => {
                Problem::Wrong { key: place(key), says, source }
            }
        }
    }
}

/// The name that the author probably meant: the allowed name with the fewest typing errors, if they
/// are few.
pub(super) fn nearest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let most_errors = (name.len() / 3).clamp(1, 4);
    allowed
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(errors, _)| *errors <= most_errors)
        .min_by_key(|(errors, _)| *errors)
        .map(|(_, candidate)| candidate)
}

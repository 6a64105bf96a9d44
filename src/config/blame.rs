//! Finds the file's key or the variable that a wrong value came from, and words the error.

use config::ConfigError as MergeError;

use super::environment::variable;
use super::error::{ConfigError, Problem, nearest};
use super::find::DEFAULT_FILES;
use super::layer::Layers;

impl Layers {
    /// Passes on only messages that are known to repeat no value.
    pub(super) fn explain(&self, path: &str, error: MergeError) -> ConfigError {
        let says = match innermost(error) {
            MergeError::Message(says) => says,
            _ => String::new(),
        };
        if says.starts_with("unknown field") {
            let allowed = says.rsplit_once(", expected ").map_or("", |(_, allowed)| allowed);
            return self.unknown(path, &allowed.split('`').skip(1).step_by(2).collect::<Vec<_>>());
        }
        let known = says.starts_with("must ");
        ConfigError::wrong(
            &self.subject(path),
            if known { &says } else { "must be a section of keys, such as [broker]" },
        )
    }

    fn unknown(&self, path: &str, allowed: &[&str]) -> ConfigError {
        let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
        let meant = nearest(key, allowed);
        let Some(name) = self.variables.at(path) else {
            let hint = match meant {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("allowed are {}", allowed.join(", ")),
            };
            return ConfigError::Unknown {
                subject: format!("{}: unknown key {path}", self.file_name()),
                hint,
            };
        };
        let sibling = |key: &str| {
            variable(&if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") })
        };
        let hint = match meant {
            Some(meant) => {
                format!("did you mean {}?", name.replacen(&variable(path), &sibling(meant), 1))
            }
            None => format!(
                "allowed are {}",
                allowed.iter().map(|key| sibling(key)).collect::<Vec<_>>().join(", ")
            ),
        };
        ConfigError::Unknown { subject: format!("unknown variable {name}"), hint }
    }

    pub(super) fn blame(&self, problem: Problem) -> ConfigError {
        match problem {
            Problem::Missing { key, write } => {
                let variable = variable(&key);
                ConfigError::Missing { key, write, file: self.file_name(), variable }
            }
            Problem::Wrong { key, says, source } => {
                ConfigError::Wrong { subject: self.subject(&key), says, source }
            }
        }
    }

    pub(super) fn no_apps(&self) -> ConfigError {
        let file = match self.file {
            Some(_) => self.file_name(),
            None => {
                format!("{} (there is none, nor is there {})", DEFAULT_FILES[0], DEFAULT_FILES[1])
            }
        };
        ConfigError::NoApps { file }
    }

    fn subject(&self, path: &str) -> String {
        match self.variables.at(path) {
            Some(name) => name.to_owned(),
            None => format!("{}: {path}", self.file_name()),
        }
    }

    /// The file that was read, or otherwise the default file to write.
    pub(super) fn file_name(&self) -> String {
        self.file.as_ref().map_or(DEFAULT_FILES[0].to_owned(), |file| file.display().to_string())
    }
}

fn innermost(mut error: MergeError) -> MergeError {
    while let MergeError::At { error: inner, .. } = error {
        error = *inner;
    }
    error
}

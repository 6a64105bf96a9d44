//! The environment as a layer: the variables `GROUPCAST__SECTION__KEY`, and which key each of them overrides.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::error::ConfigError;

const PREFIX: &str = "GROUPCAST__";

/// Values by name. No `Debug`: they may be secrets.
pub(super) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Of a whole environment, those that are meant for this program.
    pub(super) fn of(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Variables, ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in environment {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(PREFIX) {
                check_name(&name)?;
                let value = value.into_string().map_err(|_| ConfigError::wrong(&name, "must be valid UTF-8"))?;
                variables.insert(name, value);
            }
        }
        let variables = Variables(variables);
        match variables.0.keys().find(|name| variables.below(name).is_some()) {
            Some(name) => Err(ConfigError::wrong(name, "names a section, which has no value of its own; unset it")),
            None => Ok(variables),
        }
    }

    pub(super) fn all(&self) -> config::Map<String, String> {
        self.0.clone().into_iter().collect()
    }

    pub(super) fn sets(&self, path: &str) -> bool {
        self.0.contains_key(&variable(path))
    }

    /// The variable that sets the key of this path, or one below it.
    pub(super) fn at(&self, path: &str) -> Option<&str> {
        let name = variable(path);
        self.0.get_key_value(&name).map(|(name, _)| name.as_str()).or_else(|| self.below(&name))
    }

    fn below(&self, name: &str) -> Option<&str> {
        let section = format!("{name}__");
        self.0.keys().find(|other| other.starts_with(&section)).map(String::as_str)
    }
}

/// The name of the variable that overrides the key of this path.
pub(super) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_uppercase())
}

/// Names fold to lower case on their way to keys, so two could meet in one key unless only one form is taken.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    let whole = name.strip_prefix(PREFIX).is_some_and(|path| path.split("__").all(|key| !key.is_empty()));
    if whole && name.bytes().all(fits) {
        return Ok(());
    }
    Err(ConfigError::Unknown {
        subject: format!("unknown variable {name}"),
        hint: "write GROUPCAST__SECTION__KEY in capitals, such as GROUPCAST__BROKER__URL".to_owned(),
    })
}

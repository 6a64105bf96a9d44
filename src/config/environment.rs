//! The environment as a layer: the variables `GROUPCAST__SECTION__KEY`, and which key each of them
//! overrides.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use super::error::ConfigError;

const PREFIX: &str = "GROUPCAST__";
const APPS: &str = "GROUPCAST__APPS__";

/// The variables, each under the name that its key's path has. No `Debug`: values may be secrets.
pub(super) struct Variables(BTreeMap<String, Variable>);

struct Variable {
    /// Its name in the environment.
    name: String,
    value: String,
}

impl Variables {
    /// Selects the variables of this program from a whole environment. `apps` has the names of the
    /// apps in the file.
    pub(super) fn of(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        apps: &BTreeSet<String>,
    ) -> Result<Variables, ConfigError> {
        let mut variables: BTreeMap<String, Variable> = BTreeMap::new();
        for (name, value) in environment {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(PREFIX) {
                check_name(&name)?;
                let value = value
                    .into_string()
                    .map_err(|_| ConfigError::wrong(&name, "must be valid UTF-8"))?;
                if let Some(other) =
                    variables.insert(of_app(&name, apps), Variable { name: name.clone(), value })
                {
                    return Err(ConfigError::wrong(
                        &name,
                        &format!("sets the same key as {}; unset one of them", other.name),
                    ));
                }
            }
        }
        let variables = Variables(variables);
        match variables.0.iter().find(|(key, _)| variables.below(key).is_some()) {
            Some((_, Variable { name, .. })) => Err(ConfigError::wrong(
                name,
                "names a section, which has no value of its own; unset it",
            )),
            None => Ok(variables),
        }
    }

    pub(super) fn all(&self) -> config::Map<String, String> {
        self.0.iter().map(|(name, variable)| (name.clone(), variable.value.clone())).collect()
    }

    pub(super) fn sets(&self, path: &str) -> bool {
        self.0.contains_key(&name_of(path))
    }

    /// The variable that sets the key at this path, or a key below it.
    pub(super) fn at(&self, path: &str) -> Option<&str> {
        let name = name_of(path);
        self.0.get(&name).map(|variable| variable.name.as_str()).or_else(|| self.below(&name))
    }

    fn below(&self, name: &str) -> Option<&str> {
        let section = format!("{name}__");
        self.0
            .iter()
            .find(|(other, _)| other.starts_with(&section))
            .map(|(_, variable)| variable.name.as_str())
    }
}

/// The name of the variable that sets the key at this path. No shell can set a variable with a dash
/// in its name.
pub(super) fn variable(path: &str) -> String {
    name_of(path).replace('-', "_")
}

fn name_of(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_uppercase())
}

/// The variable's name with the dashes that its app has in the file. `MY_SHOP` means the app
/// `my-shop`, unless there is a `my_shop`.
fn of_app(name: &str, apps: &BTreeSet<String>) -> String {
    let Some((app, key)) = name.strip_prefix(APPS).and_then(|rest| rest.split_once("__")) else {
        return name.to_owned();
    };
    let app = app.to_lowercase();
    if apps.contains(&app) {
        return name.to_owned();
    }
    let mut meant = apps.iter().filter(|known| known.replace('-', "_") == app);
    match (meant.next(), meant.next()) {
        (Some(known), None) => format!("{APPS}{}__{key}", known.to_uppercase()),
        _ => name.to_owned(),
    }
}

/// Names become keys in lower case, so two names could set the same key. Only upper-case names are
/// accepted to prevent this.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |byte: u8| {
        byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    let whole =
        name.strip_prefix(PREFIX).is_some_and(|path| path.split("__").all(|key| !key.is_empty()));
    if whole && name.bytes().all(fits) {
        return Ok(());
    }
    Err(ConfigError::Unknown {
        subject: format!("unknown variable {name}"),
        hint: "write GROUPCAST__SECTION__KEY in capitals, such as GROUPCAST__BROKER__URL"
            .to_owned(),
    })
}

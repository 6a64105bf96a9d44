//! Merges the file and the environment, which overrides it, into typed sections.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde::Deserialize;

use super::Config;
use super::admin::AdminSection;
use super::app::AppSection;
use super::broker::BrokerSection;
use super::environment::Variables;
use super::error::{ConfigError, Problem};
use super::find::ConfigFile;
use super::log::LogSection;
use super::state::StateSection;
use super::telemetry::TelemetrySection;
use super::written::Section;

/// Keys of one section that set the same thing in two ways. If one is in the environment, it
/// replaces the other in the file.
const ALTERNATIVE_KEYS: [(&str, &str); 4] = [
    ("url", "url_file"),
    ("secret_key", "secret_key_file"),
    ("region", "endpoint"),
    ("token", "token_file"),
];

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sections {
    broker: Section<BrokerSection>,
    state: Section<StateSection>,
    admin: Section<AdminSection>,
    pub(super) apps: BTreeMap<String, Section<AppSection>>,
    log: Section<LogSection>,
    telemetry: Section<TelemetrySection>,
}

impl Sections {
    pub(super) fn check(self) -> Result<Config, Problem> {
        let app = |(name, section): (String, Section<AppSection>)| {
            let app =
                section.0.check(&name).map_err(|problem| problem.under(&format!("apps.{name}")))?;
            Ok((name, app))
        };
        Ok(Config {
            broker: self.broker.0.check().map_err(|problem| problem.under("broker"))?,
            state: self.state.0.check().map_err(|problem| problem.under("state"))?,
            admin: self.admin.0.check().map_err(|problem| problem.under("admin"))?,
            apps: self.apps.into_iter().map(app).collect::<Result<_, _>>()?,
            log: self.log.0.check().map_err(|problem| problem.under("log"))?,
            telemetry: self.telemetry.0.check(),
        })
    }
}

/// The names of the apps in a file. A file with invalid TOML has none here, and is refused later.
fn apps_in(text: &str) -> BTreeSet<String> {
    let file = toml::from_str::<toml::Table>(text).unwrap_or_default();
    file.get("apps")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(toml::Table::keys)
        .cloned()
        .collect()
}

/// The two layers, and where each key was written. No `Debug`: it holds the values of variables.
pub(super) struct Layers {
    pub(super) file: Option<PathBuf>,
    pub(super) variables: Variables,
}

impl Layers {
    pub(super) fn new(
        file: Option<&ConfigFile>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Layers, ConfigError> {
        let apps = file.map_or_else(BTreeSet::new, |file| apps_in(&file.text));
        Ok(Layers {
            file: file.map(|file| file.path.clone()),
            variables: Variables::of(environment, &apps)?,
        })
    }

    pub(super) fn merge(&self, text: &str) -> Result<Sections, ConfigError> {
        self.check_syntax(text)?;
        let environment =
            Environment::with_prefix("GROUPCAST").prefix_separator("__").separator("__");
        let merged = config::Config::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .add_source(environment.source(Some(self.variables.all())))
            .build()
            .and_then(|merged| merged.collect());
        // Both layers have been parsed before. The text of the error may repeat values, so it is
        // dropped.
        let mut keys = merged.map_err(|_| {
            ConfigError::wrong(&self.file_name(), "cannot be merged with the environment")
        })?;
        self.drop_replaced_twins(&mut keys);
        serde_path_to_error::deserialize(Value::from(keys)).map_err(|error| {
            let path = error.path().to_string();
            self.explain(&path, error.into_inner())
        })
    }

    /// Runs before the merge. A parse error of the merge quotes the line, which may hold a secret.
    fn check_syntax(&self, text: &str) -> Result<(), ConfigError> {
        let Err(error) = toml::from_str::<toml::Table>(text) else {
            return Ok(());
        };
        let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Err(ConfigError::Syntax {
            file: self.file.clone().unwrap_or_default(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            says: error.message().to_owned(),
        })
    }

    fn drop_replaced_twins(&self, keys: &mut Map<String, Value>) {
        for (name, section) in keys.iter_mut() {
            let ValueKind::Table(keys) = &mut section.kind else { continue };
            if name == "apps" {
                for (app, section) in keys.iter_mut() {
                    if let ValueKind::Table(keys) = &mut section.kind {
                        self.drop_replaced_in(&format!("apps.{app}"), keys);
                    }
                }
            } else {
                self.drop_replaced_in(name, keys);
            }
        }
    }

    fn drop_replaced_in(&self, section: &str, keys: &mut Map<String, Value>) {
        for (one, other) in ALTERNATIVE_KEYS {
            let is_set = |key: &str| self.variables.sets(&format!("{section}.{key}"));
            match (is_set(one), is_set(other)) {
                (true, false) => drop(keys.remove(other)),
                (false, true) => drop(keys.remove(one)),
                (true, true) | (false, false) => {}
            }
        }
    }
}

//! The configuration: a TOML file, overridden by the environment. It is checked once, when it is
//! loaded.
//!
//! Loading has three steps. `find` reads the file and the environment. `layer` merges them and
//! gives every value its type. Each section's `check` converts the values into the public types and
//! fills in the defaults. `blame` knows where each value was written, and words the errors.
//!
//! No error, no `Debug` and no printed configuration shows a secret.

mod admin;
mod app;
mod blame;
mod broker;
mod broker_url;
mod change;
mod command;
mod endpoint;
mod environment;
mod error;
pub mod file;
mod find;
mod layer;
mod limit;
mod log;
mod masked;
mod proxy;
mod region;
mod replies;
mod retry;
mod secret;
mod state;
mod state_url;
mod telemetry;
mod written;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

pub use admin::AdminConfig;
pub use app::{App, EmptyRecipients};
pub use broker::Broker;
pub use broker_url::BrokerUrl;
pub use change::Reread;
pub use command::{CommandConfig, CommandName, Element, GroupMsg, Priority, Storage};
pub use error::ConfigError;
pub use find::ConfigFile;
pub use log::{Log, LogFormat};
pub use proxy::goes_out;
pub use region::Region;
pub use replies::Replies;
pub use retry::{PauseConfig, Retry};
pub use secret::{SecretFileError, read_secret_file};
pub use state::StateConfig;
pub use state_url::{StateStore, StateUrl};
pub use telemetry::Telemetry;

/// The whole configuration. It has at least one app, and no limit is zero. `Debug` masks every text
/// that may hold a secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub broker: Broker,
    pub state: StateConfig,
    pub admin: AdminConfig,
    /// The apps by name. A name is `[a-z0-9_-]{1,40}`, because it becomes part of queue names.
    pub apps: BTreeMap<String, App>,
    pub log: Log,
    pub telemetry: Telemetry,
}

impl Config {
    /// Reads the environment and the file given with `--config`. Without `--config` it reads the
    /// first default file that exists.
    pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
        Config::read(find::chosen(file)?.as_ref(), find::environment())
    }

    /// Like `load`, but from the given file and environment. It reads no other files than those
    /// that hold secrets.
    pub fn read(
        file: Option<&ConfigFile>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, ConfigError> {
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let proxies = proxy::ProxyVariables::of(&environment);
        let layers = layer::Layers::new(file, environment)?;
        let sections = layers.merge(file.map_or("", |file| &file.text))?;
        if sections.apps.is_empty() {
            return Err(layers.no_apps());
        }
        let config = sections.check().map_err(|problem| layers.blame(problem))?;
        proxies.check(config.apps.values())?;
        Ok(config)
    }
}

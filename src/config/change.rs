//! Compares a configuration that was read again with the running one: which changes apply at once,
//! and which only at the next start.
//!
//! The daemon makes connections, queues and stores once, at the start. It looks up all other
//! settings of an app for every call.

use std::collections::BTreeSet;

use secrecy::ExposeSecret;

use super::app::own_results_queue;
use super::{App, Config, Log, Retry};

/// The outcome of reading the configuration again in a running daemon.
#[derive(Debug)]
pub struct Reread {
    /// The configuration that is in effect from now on.
    pub effective: Config,
    /// The changed keys that are in effect now.
    pub applied: Vec<String>,
    /// The changed keys that take effect at the next start. An added or removed app is listed as
    /// `apps.<app>`.
    pub at_next_start: Vec<String>,
}

impl Config {
    /// Decides what a daemon with this configuration takes over from the one in `read`.
    pub fn reread(&self, read: Config) -> Reread {
        let changed = changed_keys(self, &read);
        let effective = self.apply_live_changes(read);
        let applied = changed_keys(self, &effective);
        let at_next_start = changed.difference(&applied).cloned().collect();
        Reread { effective, applied: applied.into_iter().collect(), at_next_start }
    }

    fn apply_live_changes(&self, mut read: Config) -> Config {
        let mut effective =
            Config { log: Log { filter: read.log.filter, ..self.log.clone() }, ..self.clone() };
        for (name, app) in &mut effective.apps {
            if let Some(read) = read.apps.remove(name) {
                *app = app.apply_live_changes(read, name);
            }
        }
        effective
    }
}

impl App {
    /// Takes over all settings except those that need other queues, and those that decide what
    /// clients receive. A call that is repeated must have the same body as before.
    fn apply_live_changes(&self, read: App, name: &str) -> App {
        let retry = Retry { park: self.retry.park.clone(), ..read.retry };
        let needs_a_queue = read.results_queue.as_deref() == Some(own_results_queue(name).as_str());
        let results_queue =
            if needs_a_queue { self.results_queue.clone() } else { read.results_queue };
        let command = self.command.apply_live_changes(&read.command);
        let batch_size = match read.command.name() == command.name() {
            true => read.batch_size,
            false => self.batch_size,
        };
        App { retry, results_queue, command, batch_size, ..read }
    }
}

fn changed_keys(old: &Config, new: &Config) -> BTreeSet<String> {
    let (old_keys, new_keys) = (old.masked_keys(), new.masked_keys());
    let written = old_keys
        .keys()
        .chain(new_keys.keys())
        .filter(|key| old_keys.get(*key) != new_keys.get(*key));
    let keys = written.map(|key| match app_of(key) {
        Some(app) if old.apps.contains_key(app) != new.apps.contains_key(app) => {
            format!("apps.{app}")
        }
        Some(_) | None => key.clone(),
    });
    keys.chain(changed_secrets(old, new)).collect()
}

/// The keys of changed secrets, which masked values do not show.
fn changed_secrets(old: &Config, new: &Config) -> impl Iterator<Item = String> {
    let broker_urls = |config: &Config| {
        config.broker.urls.iter().map(|url| url.expose().to_owned()).collect::<Vec<_>>()
    };
    let broker = (broker_urls(old) != broker_urls(new)).then(|| "broker.url".to_owned());
    let state = (old.state.url.expose() != new.state.url.expose()).then(|| "state.url".to_owned());
    let keys = old.apps.iter().filter_map(|(name, app)| {
        let other = new.apps.get(name)?;
        (app.secret_key.expose_secret() != other.secret_key.expose_secret())
            .then(|| format!("apps.{name}.secret_key"))
    });
    let token =
        |config: &Config| config.admin.token.as_ref().map(|token| token.expose_secret().to_owned());
    let token = (token(old) != token(new)).then(|| "admin.token".to_owned());
    broker.into_iter().chain(state).chain(token).chain(keys)
}

fn app_of(key: &str) -> Option<&str> {
    key.strip_prefix("apps.")?.split('.').next()
}

//! The URL of the state store: a SQLite file on this machine, or a Redis that replicas share.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::secret::MASK;
use super::written::{Setting, Written};

const EXPECTED: &str = "must be \"sqlite:<file>\", \"redis://:<password>@<host>:6379/0\" or the \
    same with rediss:// for TLS; special characters of the password as %-codes";

/// Where the state is kept. `Display` and `Debug` mask the password.
#[derive(Clone)]
pub struct StateUrl {
    text: SecretString,
    masked: String,
    store: StateStore,
}

/// Which store the URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateStore {
    /// The file as written. A relative path begins in the working directory.
    Sqlite(PathBuf),
    Redis,
}

impl StateUrl {
    /// The URL with its password. Use it only to connect.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    pub fn is_encrypted(&self) -> bool {
        self.expose().starts_with("rediss:")
    }

    pub fn store(&self) -> &StateStore {
        &self.store
    }

    fn sqlite(text: &str, path: &str) -> Option<StateUrl> {
        // Other tools write `sqlite:file` as `sqlite://file`. A query would become part of the
        // file's name.
        let path = path.strip_prefix("//").unwrap_or(path);
        // SQLite reserves these names for a database in memory and for a URI. It would not open a
        // file of that name.
        let is_special = path.trim_start_matches('/').starts_with(':') || path.starts_with("file:");
        let plain = !path.trim().is_empty() && !path.contains(['?', '#']) && !is_special;
        plain.then(|| StateUrl {
            text: text.into(),
            masked: text.to_owned(),
            store: StateStore::Sqlite(Path::new(path).to_owned()),
        })
    }

    fn redis(text: &str) -> Option<StateUrl> {
        let mut url = Url::parse(text).ok()?;
        let database = url.path().trim_start_matches('/');
        let whole = url.host_str().is_some_and(|host| !host.is_empty())
            && (database.is_empty() || database.parse::<u8>().is_ok())
            && url.query().is_none()
            && url.fragment().is_none();
        // A user without a password is usually a misplaced password, and would be shown.
        if !whole || (url.password().is_none() && !url.username().is_empty()) {
            return None;
        }
        if url.password().is_some() {
            url.set_password(Some(MASK)).ok()?;
        }
        Some(StateUrl { text: text.into(), masked: url.into(), store: StateStore::Redis })
    }
}

impl Setting for StateUrl {
    fn read(written: Written) -> Result<StateUrl, String> {
        let Written::Text(text) = written else {
            return Err(EXPECTED.to_owned());
        };
        let text = text.trim();
        let url = match text.split_once(':') {
            Some(("sqlite", path)) => StateUrl::sqlite(text, path),
            Some(("redis" | "rediss", _)) => StateUrl::redis(text),
            _ => None,
        };
        if text.contains(":memory:") {
            return Err(
                "must be a file: what is only in memory is forgotten at a crash, and its jobs \
                    would be sent again"
                    .to_owned(),
            );
        }
        match url {
            Some(url) if url.store == StateStore::Redis && text.contains(&format!(":{MASK}@")) => {
                Err(format!(
                    "must have the password itself; {MASK} is what `groupcast config` shows in its \
                        place"
                ))
            }
            Some(url) => Ok(url),
            None => Err(EXPECTED.to_owned()),
        }
    }
}

impl Default for StateUrl {
    fn default() -> StateUrl {
        let text = "sqlite:groupcast.db";
        StateUrl {
            text: text.into(),
            masked: text.to_owned(),
            store: StateStore::Sqlite("groupcast.db".into()),
        }
    }
}

impl fmt::Display for StateUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.masked)
    }
}

impl fmt::Debug for StateUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "StateUrl({self})")
    }
}

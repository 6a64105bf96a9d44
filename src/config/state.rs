//! `[state]`: where the progress and the results of jobs are recorded, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::error::Problem;
use super::secret::given_or_from_file;
use super::state_url::StateUrl;
use super::written::Given;

#[derive(Clone, Debug)]
pub struct StateConfig {
    pub url: StateUrl,
    /// The file that `url` was read from, if any.
    pub url_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    /// The client's certificate; given together with `key_file`.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// How long the store keeps a finished job. Until then, a second copy of the job is answered
    /// without calls.
    pub retention: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StateSection {
    url: Option<Given<StateUrl>>,
    url_file: Option<Given<PathBuf>>,
    ca_file: Option<Given<PathBuf>>,
    cert_file: Option<Given<PathBuf>>,
    key_file: Option<Given<PathBuf>>,
    retention: Option<Given<Duration>>,
}

impl StateSection {
    pub(super) fn check(self) -> Result<StateConfig, Problem> {
        let url_file = self.url_file.map(|file| file.0);
        let url = given_or_from_file("url", self.url, url_file.as_deref())?;
        let state = StateConfig {
            url: url.unwrap_or_default(),
            url_file,
            ca_file: self.ca_file.map(|file| file.0),
            cert_file: self.cert_file.map(|file| file.0),
            key_file: self.key_file.map(|file| file.0),
            retention: Given::or(self.retention, Duration::from_hours(7 * 24)),
        };
        check_certificates(&state)?;
        Ok(state)
    }
}

fn check_certificates(state: &StateConfig) -> Result<(), Problem> {
    let (ca, cert, key) = (&state.ca_file, &state.cert_file, &state.key_file);
    match (cert, key) {
        (Some(_), None) => {
            return Err(Problem::wrong(
                "cert_file",
                "needs the private key of the certificate: add key_file",
            ));
        }
        (None, Some(_)) => {
            return Err(Problem::wrong(
                "key_file",
                "needs the certificate of the key: add cert_file",
            ));
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    // An operator who sets a certificate expects an encrypted connection.
    match [("ca_file", ca), ("cert_file", cert)].into_iter().find(|(_, file)| file.is_some()) {
        Some((key, _)) if !state.url.is_encrypted() => Err(Problem::wrong(
            key,
            "has no effect, for state.url does not begin with rediss://; write rediss://",
        )),
        Some(_) | None => Ok(()),
    }
}

//! `[state]`: where the progress and the results of jobs are recorded, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::error::Problem;
use super::secret::given_or_from_file;
use super::state_url::StateUrl;
use super::written::Given;

#[derive(Clone, Debug)]
pub struct State {
    pub url: StateUrl,
    /// Where `url` was read from, if not from the configuration itself.
    pub url_file: Option<PathBuf>,
    /// How long a finished job is remembered, so that a second copy of it is answered without calls.
    pub retention: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StateSection {
    url: Option<Given<StateUrl>>,
    url_file: Option<Given<PathBuf>>,
    retention: Option<Given<Duration>>,
}

impl StateSection {
    pub(super) fn check(self) -> Result<State, Problem> {
        let url_file = self.url_file.map(|file| file.0);
        let url = given_or_from_file("url", self.url, url_file.as_deref())?;
        Ok(State { url: url.unwrap_or_default(), url_file, retention: Given::or(self.retention, Duration::from_hours(7 * 24)) })
    }
}

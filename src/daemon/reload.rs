//! SIGHUP: reads the configuration again, and applies the changes that a running daemon can apply.
//!
//! An invalid configuration changes nothing. A valid one loses no job: calls in flight end with the
//! settings that they began with.

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::{
    api::{call::Caller, target::Target},
    config::{App, Config, Reread},
    failure::Failure,
    journey::Pipeline,
    telemetry,
};

/// Reads the configuration on a separate thread, so that a hung disk blocks nothing else.
pub struct Reload<F> {
    load: F,
    reading: JoinSet<Result<Config, Failure>>,
    /// A reload was requested during a read. The file may have changed since, so it is read again.
    asked_again: bool,
}

impl<F: Fn() -> Result<Config, Failure> + Clone + Send + 'static> Reload<F> {
    pub fn new(load: F) -> Self {
        Self { load, reading: JoinSet::new(), asked_again: false }
    }

    pub fn begin(&mut self) {
        if self.reading.is_empty() {
            self.reading.spawn_blocking(self.load.clone());
        } else {
            self.asked_again = true;
        }
    }

    /// Waits for the requested configuration.
    pub async fn read(&mut self) -> Result<Config, Failure> {
        let Some(read) = self.reading.join_next().await else {
            return std::future::pending().await;
        };
        if std::mem::take(&mut self.asked_again) {
            self.begin();
        }
        read?
    }
}

/// The running apps, and the configuration that they run with.
pub struct Running {
    config: Config,
    log_filter: telemetry::LogFilter,
    apps: Vec<RunningApp>,
}

pub struct RunningApp {
    pub name: String,
    pub pipeline: Arc<Pipeline>,
    pub caller: Arc<Caller>,
}

impl Running {
    pub fn new(config: Config, log_filter: telemetry::LogFilter, apps: Vec<RunningApp>) -> Self {
        Self { config, log_filter, apps }
    }

    pub fn reload(&mut self, read: Result<Config, Failure>) {
        let reread = match read {
            Ok(config) => self.config.reread(config),
            Err(Failure(reason)) => return refuse(&reason),
        };
        let targets = match self.targets(&reread.effective) {
            Ok(targets) => targets,
            Err(error) => return refuse(&Failure::with_causes(error).0),
        };
        if let Err(reason) = self.log_filter.replace(&reread.effective.log.filter) {
            return refuse(&reason);
        }
        for (running, app, target) in targets {
            running.caller.set_target(target);
            running.pipeline.reconfigure(app);
        }
        tell(&reread);
        self.config = reread.effective;
    }

    /// Does everything that can fail, before anything changes.
    fn targets<'a>(
        &'a self,
        config: &'a Config,
    ) -> Result<Vec<(&'a RunningApp, &'a App, Target)>, reqwest::Error> {
        let known =
            self.apps.iter().filter_map(|running| Some((running, config.apps.get(&running.name)?)));
        known.map(|(running, app)| Ok((running, app, running.caller.target_of(app)?))).collect()
    }
}

fn refuse(reason: &str) {
    error!("the configuration was not reloaded, the one before stays in effect: {reason}");
}

fn tell(reread: &Reread) {
    let applied = reread.applied.join(", ");
    info!(
        "configuration reloaded; changed: {}",
        if applied.is_empty() { "nothing" } else { &applied }
    );
    if !reread.at_next_start.is_empty() {
        warn!("takes effect at the next start: {}", reread.at_next_start.join(", "));
    }
}

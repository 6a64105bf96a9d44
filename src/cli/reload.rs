//! SIGHUP: reads the configuration again and applies what a running daemon can take on.
//!
//! A configuration that is wrong changes nothing. One that is right never costs a job: calls under way end as they began.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::Failure;
use crate::{
    config::{App, Config, Reread},
    pipeline::Pipeline,
    send::{call::Caller, target::Target},
    telemetry,
};

/// What runs, and the configuration that it runs with.
pub struct Running {
    config: Config,
    log_filter: telemetry::Filter,
    apps: Vec<RunningApp>,
}

pub struct RunningApp {
    pub name: String,
    pub pipeline: Arc<Pipeline>,
    pub caller: Arc<Caller>,
}

impl Running {
    pub fn new(config: Config, log_filter: telemetry::Filter, apps: Vec<RunningApp>) -> Self {
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
            running.caller.aim_at(target);
            running.pipeline.reconfigure(app);
        }
        tell(&reread);
        self.config = reread.effective;
    }

    /// All that can go wrong, before anything has changed.
    fn targets<'a>(&'a self, config: &'a Config) -> Result<Vec<(&'a RunningApp, &'a App, Target)>, reqwest::Error> {
        let known = self.apps.iter().filter_map(|running| Some((running, config.apps.get(&running.name)?)));
        known.map(|(running, app)| Ok((running, app, running.caller.target_of(app)?))).collect()
    }
}

fn refuse(reason: &str) {
    error!("the configuration was not reloaded, the one before stays in effect: {reason}");
}

fn tell(reread: &Reread) {
    let applied = reread.applied.join(", ");
    info!("configuration reloaded; changed: {}", if applied.is_empty() { "nothing" } else { &applied });
    if !reread.at_next_start.is_empty() {
        warn!("takes effect at the next start: {}", reread.at_next_start.join(", "));
    }
}

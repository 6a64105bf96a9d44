//! The interface of `send` to the rest of the crate. The crate starts one dispatcher for each app,
//! gives it jobs, and watches the app's condition.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, task::JoinSet};
use tracing::error;

use super::{
    Ending, HeldJob, Submission, Supervision, Unfinished, condition::Condition, gate::Gate,
    job::SendingJob,
};
use crate::{api::call::Api, clock, config::App, pace::Pacer};

/// Sends the jobs of one app.
pub struct Dispatcher {
    gate: Arc<Gate>,
    condition: watch::Receiver<Condition>,
    /// The driver ends when the dispatcher is dropped.
    _driver: JoinSet<()>,
}

/// What a dispatcher works with.
pub struct Settings {
    pub app: String,
    pub api: Arc<dyn Api>,
    pub pacer: Pacer,
    pub supervision: Supervision,
    /// Whether a call may start now: its outcome can be published and recorded, and no other
    /// replica has the jobs.
    pub may_start: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether another replica consumes the app's jobs. Only one replica may call.
    pub is_with_another: Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
    /// Whether an operator has paused the app.
    pub is_halted: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Settings {
    /// For a user who waits for the result. No other replica calls for the app.
    pub fn attended(app: &str, api: Arc<dyn Api>, pacer: Pacer) -> Self {
        Self {
            app: app.to_owned(),
            api,
            pacer,
            supervision: Supervision::Attended,
            may_start: Arc::new(|| true),
            is_with_another: Box::new(|| Box::pin(async { false })),
            is_halted: Box::new(|| false),
        }
    }
}

impl Dispatcher {
    pub fn start(settings: Settings, config: watch::Receiver<Arc<App>>) -> Self {
        let (announced, condition) = watch::channel(Condition::Working);
        let gate = Arc::new(Gate::new(settings, config, announced));
        let mut driver = JoinSet::new();
        let to_drive = gate.clone();
        driver.spawn(async move {
            while AssertUnwindSafe(to_drive.clone().drive()).catch_unwind().await.is_err() {
                error!("the driver of an app's calls panicked and was restarted");
            }
        });
        Self { gate, condition, _driver: driver }
    }

    /// Sends a job's batches and says how that ended.
    pub async fn send(&self, submission: &Submission) -> Result<Ending, Unfinished> {
        SendingJob::new(&self.gate, submission).run().await
    }

    /// Holds no job for longer than this from now on.
    pub fn hold_at_most(&self, held_at_most: Duration) {
        self.gate.hold_at_most(held_at_most);
    }

    pub fn held_at_most(&self) -> Duration {
        self.gate.lock().held_at_most
    }

    /// How many groups get fewer calls, because the vendor has dropped messages of them.
    pub fn groups_throttled(&self) -> usize {
        self.gate.group_pace.throttled(tokio::time::Instant::now())
    }

    /// Notes that the app has no subscription, and so no jobs. From now on, time does not count
    /// towards giving a batch up.
    pub fn begin_idle_time(&self) {
        self.gate.lock().idle.begin(clock::now());
    }

    /// The jobs that are being sent.
    pub fn held(&self) -> Vec<HeldJob> {
        self.gate.held()
    }

    /// The app's condition, and every later change of it.
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::call::Caller,
        config::{Config, ConfigFile},
    };

    fn app(hold: &str) -> Arc<App> {
        let text = format!(
            "[apps.a]\nsdk_app_id = 1\nsecret_key = \"k\"\nregion = \"seoul\"\nretry.hold \
                = \"{hold}\""
        );
        let file = ConfigFile { path: "groupcast.toml".into(), text };
        Arc::new(Config::read(Some(&file), []).unwrap().apps.remove("a").unwrap())
    }

    #[tokio::test]
    async fn a_shorter_hold_outlives_a_new_configuration() {
        let start = app("60s");
        let pacer = Pacer::new(1, 1, tokio::time::Instant::now());
        let api = Arc::new(Caller::new(&start).unwrap());
        let config = watch::Sender::new(start);
        let dispatcher = Dispatcher::start(Settings::attended("a", api, pacer), config.subscribe());
        let holds = || (dispatcher.gate.hold().as_secs(), dispatcher.held_at_most().as_secs());
        assert_eq!(holds(), (60, 600));
        dispatcher.hold_at_most(Duration::from_secs(20));
        assert_eq!(holds(), (20, 20));
        config.send_replace(app("5s"));
        assert_eq!(holds(), (5, 20));
        config.send_replace(app("60s"));
        assert_eq!(holds(), (20, 20));
        dispatcher.hold_at_most(Duration::from_secs(200));
        assert_eq!(holds(), (20, 20));
    }
}

//! What the rest of the crate has of an app's dispatcher: it starts one, hands it jobs, and sees how its calls fare.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use super::{Dispatch, Ending, HeldJob, Submission, Unfinished, condition::Condition};
use crate::{
    config::{Pause, Retry},
    pace::Pacer,
    send::{call::Api, retry::Supervision},
};

/// Jobs handed over and not yet taken up.
const INBOX: usize = 64;

/// Hands jobs to an app's dispatcher.
#[derive(Clone)]
pub struct Dispatcher {
    commands: mpsc::Sender<Command>,
    tuning: Arc<watch::Sender<Tuning>>,
    condition: watch::Receiver<Condition>,
}

pub(super) enum Command {
    Send(Submission, oneshot::Sender<Result<Ending, Unfinished>>),
    /// Let go of jobs whose lease no longer allows calls.
    LetGo,
    Tell(oneshot::Sender<Vec<HeldJob>>),
}

/// What a dispatcher works with.
pub struct Settings<A> {
    pub app: String,
    pub api: Arc<A>,
    pub pacer: Pacer,
    pub supervision: Supervision,
    /// Whether the outcome of a call that starts now could be told and recorded.
    pub may_start: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether another replica consumes the app's jobs. Only one may call.
    pub is_with_another: Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
    /// Whether an operator has paused the app.
    pub is_halted: Box<dyn Fn() -> bool + Send + Sync>,
}

impl<A> Settings<A> {
    /// For a caller who waits, and works alone.
    pub fn attended(app: &str, api: Arc<A>, pacer: Pacer) -> Self {
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

/// What can change while it runs.
#[derive(Debug, Clone)]
pub struct Tuning {
    pub max_in_flight: usize,
    pub retry: Retry,
    pub pause: Pause,
}

impl Dispatcher {
    /// Runs until the last handle is dropped. A panic ends the jobs that were being sent, not the dispatcher.
    pub fn start<A: Api>(settings: Settings<A>, tuning: Tuning) -> Self {
        let (sender, mut inbox) = mpsc::channel(INBOX);
        let settings = Arc::new(settings);
        let (tuning, tuned) = watch::channel(tuning);
        let (told, condition) = watch::channel(Condition::Working);
        let told = Arc::new(told);
        tokio::spawn(async move {
            let dispatch = || Dispatch::new(settings.clone(), tuned.clone(), told.clone());
            while AssertUnwindSafe(dispatch().run(&mut inbox)).catch_unwind().await.is_err() {
                error!("the dispatcher panicked; its jobs come again");
            }
        });
        Self { commands: sender, tuning: Arc::new(tuning), condition }
    }

    /// Sends a job's batches and says how that ended.
    pub async fn send(&self, submission: Submission) -> Result<Ending, Unfinished> {
        let (done, ending) = oneshot::channel();
        self.commands.send(Command::Send(submission, done)).await.map_err(|_| Unfinished::LetGo)?;
        ending.await.map_err(|_| Unfinished::LetGo)?
    }

    /// Holds for what is decided from now on; a changed pace is noticed too.
    pub fn tune(&self, tuning: Tuning) {
        self.tuning.send_replace(tuning);
    }

    /// Lets go of the jobs whose lease no longer allows calls.
    pub async fn let_go(&self) {
        let _ = self.commands.send(Command::LetGo).await;
    }

    /// The jobs that are being sent.
    pub async fn held(&self) -> Vec<HeldJob> {
        let (answer, told) = oneshot::channel();
        match self.commands.send(Command::Tell(answer)).await {
            Ok(()) => told.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// How the app's calls fare, now and from now on.
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }
}

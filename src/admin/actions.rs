//! The actions on an app: `POST /apps/<app>/pause`, `/resume`, `/redrive` and `/jobs/<id>/cancel`.

use std::sync::Arc;

use hyper::StatusCode;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tracing::info;

use super::{Shown, ShownApp};
use crate::{
    broker::{BrokerError, connection::Connector},
    dead_letters::{self, DeadLetters, Deadline, LetterFilter, Redriven},
    progress::store::{Cancelled, StoreLost},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Pause,
    Resume,
    Redrive,
    /// Cancels the job with this id.
    Cancel(String),
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Redrive => "redrive",
            Self::Cancel(_) => "cancel",
        }
    }
}

/// The result of an action.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionResult {
    Paused,
    Resumed,
    Redriven(Redriven),
    /// The job has a record, and no further call starts for it.
    Cancelled,
    /// No record of the job is there yet. It is cancelled when it comes.
    CancelledWhenItComes,
    /// The job has ended. Nothing is changed.
    HasEnded,
}

impl ActionResult {
    pub fn http_status(&self) -> StatusCode {
        match self {
            Self::Paused | Self::Resumed | Self::Redriven(_) | Self::Cancelled => StatusCode::OK,
            Self::CancelledWhenItComes => StatusCode::ACCEPTED,
            Self::HasEnded => StatusCode::CONFLICT,
        }
    }
}

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
pub enum ActionFailed {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreLost),
}

/// The app and the action that a path names.
pub fn named<'a>(path: &str, shown: &'a Shown) -> Option<(&'a ShownApp, Action)> {
    let (app, action) = path.strip_prefix("/apps/")?.split_once('/')?;
    let action = match action {
        "pause" => Action::Pause,
        "resume" => Action::Resume,
        "redrive" => Action::Redrive,
        other => {
            let id = other.strip_prefix("jobs/")?.strip_suffix("/cancel")?;
            Action::Cancel(percent_decode_str(id).decode_utf8().ok()?.into_owned())
        }
    };
    Some((shown.apps.iter().find(|shown| shown.name == app)?, action))
}

pub async fn act(
    app: &ShownApp,
    action: Action,
    shown: &Shown,
) -> Result<ActionResult, ActionFailed> {
    info!(app = app.name, action = action.name(), "an action was requested at admin.listen");
    match action {
        Action::Pause => {
            app.pipeline.pause();
            Ok(ActionResult::Paused)
        }
        Action::Resume => {
            app.pipeline.resume();
            Ok(ActionResult::Resumed)
        }
        Action::Redrive => {
            // Runs to its end, even if the client disconnects.
            let redriving = tokio::spawn(redrive(shown.connector.clone(), app.name.clone()));
            let redriven = redriving
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            Ok(ActionResult::Redriven(redriven?))
        }
        Action::Cancel(job_id) => {
            info!(app = app.name, job_id, "a job is cancelled");
            Ok(match shown.progress.cancel(&app.name, &job_id).await? {
                Cancelled::UnderWay => ActionResult::Cancelled,
                Cancelled::NotSeen => ActionResult::CancelledWhenItComes,
                Cancelled::HasEnded => ActionResult::HasEnded,
            })
        }
    }
}

async fn redrive(connector: Arc<Connector>, app: String) -> Result<Redriven, BrokerError> {
    let mut letters = DeadLetters::open(&connector, &app).await?;
    let redriven =
        dead_letters::redrive(&mut letters, &LetterFilter::default(), Deadline::Kept, || {}).await;
    letters.close().await;
    redriven
}

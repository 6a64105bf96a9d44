//! The actions on an app: `POST /apps/<app>/pause`, `/resume` and `/redrive`.

use std::sync::Arc;

use serde::Serialize;
use tracing::info;

use super::{Shown, ShownApp};
use crate::{
    broker::{BrokerError, connection::Connector},
    dead_letters::{self, DeadLetters, Deadline, LetterFilter, Redriven},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Pause,
    Resume,
    Redrive,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Redrive => "redrive",
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
}

/// The app and the action that a path names.
pub fn named<'a>(path: &str, shown: &'a Shown) -> Option<(&'a ShownApp, Action)> {
    let (app, action) = path.strip_prefix("/apps/")?.split_once('/')?;
    let action = match action {
        "pause" => Action::Pause,
        "resume" => Action::Resume,
        "redrive" => Action::Redrive,
        _ => return None,
    };
    Some((shown.apps.iter().find(|shown| shown.name == app)?, action))
}

pub async fn act(
    app: &ShownApp,
    action: Action,
    shown: &Shown,
) -> Result<ActionResult, BrokerError> {
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
    }
}

async fn redrive(connector: Arc<Connector>, app: String) -> Result<Redriven, BrokerError> {
    let mut letters = DeadLetters::open(&connector, &app).await?;
    let redriven =
        dead_letters::redrive(&mut letters, &LetterFilter::default(), Deadline::Kept, || {}).await;
    letters.close().await;
    redriven
}

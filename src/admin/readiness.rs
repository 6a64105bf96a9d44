//! Whether every app consumes, and what is wrong if not. A standby replica is ready: its consumer
//! is registered.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Shown, ShownApp};
use crate::{
    progress::health,
    send::condition::{Condition, Trouble},
    subscribe::consume::Subscribed,
};

#[derive(Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    publisher: ReadyPart,
    /// The daemon's own queues.
    queues: ReadyPart,
    state_store: ReadyPart,
    apps: BTreeMap<String, AppState>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum ReadyPart {
    Works,
    Down { reason: String },
}

/// The state of an app.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum AppState {
    Consuming,
    /// The app consumes, but the API cannot be reached.
    Outage(Wrong),
    Paused(Wrong),
    Down {
        reason: String,
    },
}

#[derive(Debug, Serialize)]
struct Wrong {
    since: String,
    code: Option<i64>,
    http_status: Option<u16>,
    reason: String,
    info: String,
    advice: &'static str,
}

pub fn of(shown: &Shown) -> Readiness {
    let publisher = match shown.publisher.why_closed() {
        None => ReadyPart::Works,
        Some(reason) => ReadyPart::Down { reason },
    };
    let troubles = shown.publisher.queues_in_trouble();
    let queues = if troubles.is_empty() {
        ReadyPart::Works
    } else {
        let told = troubles
            .iter()
            .map(|(queue, trouble)| format!("{queue}: {trouble}; {}", trouble.advice()));
        ReadyPart::Down { reason: told.collect::<Vec<_>>().join(". ") }
    };
    let state_store = match shown.progress.health().condition() {
        health::StoreCondition::Works => ReadyPart::Works,
        health::StoreCondition::Unknown => {
            ReadyPart::Down { reason: "it has not answered yet".into() }
        }
        health::StoreCondition::Away { reason, .. } => ReadyPart::Down { reason },
    };
    let apps: BTreeMap<String, AppState> =
        shown.apps.iter().map(|app| (app.name.clone(), AppState::of(app))).collect();
    let works = |part: &ReadyPart| matches!(part, ReadyPart::Works);
    let consumes = |app: &AppState| matches!(app, AppState::Consuming | AppState::Outage(_));
    let ready =
        works(&publisher) && works(&queues) && works(&state_store) && apps.values().all(consumes);
    Readiness { ready, publisher, queues, state_store, apps }
}

impl AppState {
    fn of(app: &ShownApp) -> Self {
        let condition = app.pipeline.condition_now();
        let subscribed = app.subscribed.borrow().clone();
        match (condition, subscribed) {
            (Condition::Paused(why), _) => Self::Paused(why.into()),
            (_, Subscribed::No { reason }) => Self::Down { reason },
            (Condition::Outage(why), Subscribed::Yes | Subscribed::NoJobYet) => {
                Self::Outage(why.into())
            }
            (Condition::Working, Subscribed::Yes | Subscribed::NoJobYet) => Self::Consuming,
        }
    }
}

impl From<Trouble> for Wrong {
    fn from(Trouble { since, code, http_status, reason, info, advice }: Trouble) -> Self {
        Self { since: format!("{since:.3}"), code, http_status, reason, info, advice }
    }
}

//! Looks once a second: counts the calls of each app, and makes what the page shows, if somebody has it open.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Shown,
    status::{Queues, Status},
};
use crate::broker::queues;

const SECOND: Duration = Duration::from_secs(1);
/// As long as the page plots.
const SECONDS_KEPT: usize = 300;
/// Asking the broker for the length of a queue costs a round trip for each.
const QUEUES_SEEN_EVERY: u32 = 3;

pub struct Observer {
    shown: Arc<Shown>,
    actions: bool,
    told: Arc<watch::Sender<Arc<str>>>,
}

impl Observer {
    pub fn of(shown: Arc<Shown>, actions: bool) -> (Self, Arc<watch::Sender<Arc<str>>>) {
        let told = Arc::new(watch::Sender::new("".into()));
        (Self { shown, actions, told: told.clone() }, told)
    }

    pub async fn look(self) -> Infallible {
        let apps = &self.shown.apps;
        let mut calls = vec![VecDeque::from(vec![0; SECONDS_KEPT]); apps.len()];
        let mut counted: Vec<u64> = apps.iter().map(|app| app.pipeline.calls_so_far()).collect();
        let mut seen = vec![Queues::default(); apps.len()];
        let mut seconds_until_queues = 0;
        let mut ticks = interval(SECOND);
        // A second that was missed is not counted twice.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for ((app, counted), calls) in apps.iter().zip(&mut counted).zip(&mut calls) {
                let now = app.pipeline.calls_so_far();
                calls.pop_front();
                calls.push_back(u32::try_from(now - *counted).unwrap_or(u32::MAX));
                *counted = now;
            }
            if self.told.receiver_count() == 0 {
                seconds_until_queues = 0;
                continue;
            }
            if seconds_until_queues == 0 {
                seconds_until_queues = QUEUES_SEEN_EVERY;
                for (app, seen) in apps.iter().zip(&mut seen) {
                    *seen = self.look_at_queues_of(&app.name).await;
                }
            }
            seconds_until_queues -= 1;
            let calls: Vec<Vec<u32>> = calls.iter().map(|calls| calls.iter().copied().collect()).collect();
            let status = Status::of(&self.shown, self.actions, &calls, &seen).await;
            let json = serde_json::to_string(&status).expect("it has no map with keys other than text");
            self.told.send_replace(json.into());
        }
    }

    /// A broker that does not answer must not hold up the page that tells of it.
    async fn look_at_queues_of(&self, app: &str) -> Queues {
        let publisher = &self.shown.publisher;
        let look_at = async |queue: String| match publisher.is_open() {
            true => timeout(SECOND, publisher.look_at(&queue)).await.ok().flatten(),
            false => None,
        };
        Queues { jobs: look_at(queues::jobs(app)).await, dead: look_at(queues::dead(app)).await }
    }
}

//! Counts the calls of each app once a second. Updates the contents of the page if a browser has it
//! open. At longer intervals it counts the messages in the queues, and notices a queue that is
//! gone.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Shown, ShownApp,
    status::{Queues, StatusReport},
};
use crate::{
    broker::{
        publisher::{QueueState, QueueStateError},
        queues,
    },
    telemetry::metrics,
};

const SECOND: Duration = Duration::from_secs(1);
/// The period that the page plots.
const SECONDS_KEPT: usize = 300;
/// Each queue's length costs a round trip to the broker.
const COUNTED_EVERY: Duration = Duration::from_secs(10);
/// The interval while a browser has the page open.
const SHOWN_EVERY: Duration = Duration::from_secs(3);

pub struct Observer {
    shown: Arc<Shown>,
    actions: bool,
    told: Arc<watch::Sender<Arc<str>>>,
    seen: watch::Sender<Vec<Queues>>,
}

impl Observer {
    pub fn of(shown: Arc<Shown>, actions: bool) -> (Self, Arc<watch::Sender<Arc<str>>>) {
        let told = Arc::new(watch::Sender::new("".into()));
        let seen = watch::Sender::new(vec![Queues::default(); shown.apps.len()]);
        (Self { shown, actions, told: told.clone(), seen }, told)
    }

    pub async fn look(self) -> Infallible {
        tokio::select! {
            never = self.look_at_calls() => never,
            never = self.look_at_queues() => never,
        }
    }

    async fn look_at_calls(&self) -> Infallible {
        let apps = &self.shown.apps;
        let mut calls = vec![VecDeque::from(vec![0; SECONDS_KEPT]); apps.len()];
        let mut counted: Vec<u64> = apps.iter().map(|app| app.pipeline.calls_so_far()).collect();
        let mut counted_at = Instant::now();
        let mut ticks = interval(SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let seconds = ticks.tick().await.duration_since(counted_at).as_secs_f64();
            counted_at = Instant::now();
            for ((app, counted), calls) in apps.iter().zip(&mut counted).zip(&mut calls) {
                let now = app.pipeline.calls_so_far();
                note(calls, now - *counted, seconds);
                *counted = now;
            }
            if self.is_watched() {
                let calls: Vec<Vec<u32>> =
                    calls.iter().map(|calls| calls.iter().copied().collect()).collect();
                let seen = self.seen.borrow().clone();
                let status = StatusReport::of(&self.shown, self.actions, &calls, &seen).await;
                let json = serde_json::to_string(&status)
                    .expect("it has no map with keys other than text");
                self.told.send_replace(json.into());
            }
        }
    }

    /// Runs separately: a broker that does not answer must not delay the page that reports it.
    async fn look_at_queues(&self) -> Infallible {
        loop {
            let looked_at = Instant::now();
            let (mut seen, mut missing) = (Vec::new(), false);
            for app in &self.shown.apps {
                seen.push(self.queues_of(app, &mut missing).await);
            }
            if missing {
                self.shown.publisher.restore_queues().await;
            }
            self.seen.send_replace(seen);
            while looked_at.elapsed() < if self.is_watched() { SHOWN_EVERY } else { COUNTED_EVERY }
            {
                sleep(SECOND / 4).await;
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.told.receiver_count() > 0
    }

    async fn queues_of(&self, app: &ShownApp, missing: &mut bool) -> Queues {
        let name = &app.name;
        let jobs = self.messages_in(name, queues::jobs(name), missing).await;
        let dead = self.messages_in(name, queues::dead(name), missing).await;
        let unrouted = self.messages_in(name, queues::unrouted(name), missing).await;
        let mut waiting = Some(0);
        for wait in app.pipeline.waits() {
            let messages = self.messages_in(name, queues::wait(name, *wait), missing).await;
            waiting = waiting.zip(messages).map(|(sum, messages)| sum + messages);
        }
        // The page does not show this queue. The daemon only checks that it still exists.
        self.messages_in(name, queues::undeliverable(name), missing).await;
        for (queue, messages) in
            [("jobs", jobs), ("wait", waiting), ("dead", dead), ("unrouted", unrouted)]
        {
            metrics::set_queue_messages(name, queue, messages);
        }
        Queues { jobs, waiting, dead, unrouted }
    }

    /// `None` if the number is not known now.
    async fn messages_in(&self, app: &str, queue: String, missing: &mut bool) -> Option<u32> {
        let publisher = &self.shown.publisher;
        if !publisher.is_open() {
            return None;
        }
        match timeout(SECOND, publisher.queue_state(&queue)).await {
            Ok(Ok(QueueState { messages, .. })) => {
                publisher.note_present(&queue);
                Some(messages)
            }
            Ok(Err(QueueStateError::Missing)) => {
                publisher.note_missing(app, &queue);
                *missing = true;
                None
            }
            Ok(Err(QueueStateError::NotKnown)) | Err(_) => None,
        }
    }
}

/// Spreads the calls of so many seconds evenly over them. Otherwise the page would show a call rate
/// above the limit after the process was delayed.
fn note(kept: &mut VecDeque<u32>, calls: u64, seconds: f64) {
    let samples = seconds.round().clamp(1.0, SECONDS_KEPT as f64);
    let in_one_second = (calls as f64 / seconds.max(samples)).round() as u32;
    for _ in 0..samples as usize {
        kept.pop_front();
        kept.push_back(in_one_second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(calls: u64, seconds: f64) -> Vec<u32> {
        let mut kept = VecDeque::from(vec![0; 4]);
        note(&mut kept, calls, seconds);
        kept.into()
    }

    #[test]
    fn what_is_counted_late_is_spread_over_the_time_that_it_took() {
        assert_eq!(noted(200, 1.0), [0, 0, 0, 200]);
        assert_eq!(noted(204, 1.02), [0, 0, 0, 200]);
        assert_eq!(noted(600, 3.01), [0, 199, 199, 199]);
        assert_eq!(noted(1, 0.98), [0, 0, 0, 1]);
        assert_eq!(noted(0, 0.0), [0, 0, 0, 0]);
    }
}

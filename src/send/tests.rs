//! Jobs sent to an API that a test scripts, call by call.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, advance, sleep, timeout},
};

use super::{
    Dispatcher, Ending, Settings, Submission, condition::Condition, submission::submission,
};
use crate::{
    api::{
        call::{Api, AtWrite, OnWrite},
        classify::Answer,
    },
    clock,
    config::{App, Config, ConfigFile},
    job::outcome::{BatchOutcome, FailureKind, Report},
    pace::Pacer,
};

type Script = dyn Fn(Call) -> BoxFuture<'static, Answer> + Send + Sync;

struct Call {
    group: String,
    /// How many calls came before this one.
    number: usize,
    on_write: OnWrite,
}

struct ScriptedApi {
    script: Box<Script>,
    calls: AtomicUsize,
}

impl Api for ScriptedApi {
    fn call(&self, body: Vec<u8>, on_write: OnWrite) -> BoxFuture<'_, Answer> {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let group = body["GroupId"].as_str().unwrap().to_owned();
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        (self.script)(Call { group, number, on_write })
    }

    fn renew_user_sig(&self) {}
}

fn answer(code: i64) -> Answer {
    let action_ok = code == 0;
    Answer::Api { http_status: 200, action_ok, code, info: String::new(), message: None }
}

fn app(lines: &str) -> Arc<App> {
    let text = format!("[apps.a]\nsdk_app_id = 1\nsecret_key = \"k\"\nregion = \"seoul\"\n{lines}");
    let file = ConfigFile { path: "groupcast.toml".into(), text };
    Arc::new(Config::read(Some(&file), []).unwrap().apps.remove("a").unwrap())
}

/// The settings of a daemon whose API answers as `script` says. The pacer may send at once.
async fn settings(
    script: impl Fn(Call) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
) -> Settings {
    clock::simulated::start_at(Timestamp::UNIX_EPOCH);
    let pacer = Pacer::new(200, 200, Instant::now());
    advance(Duration::from_secs(3)).await;
    let api = Arc::new(ScriptedApi { script: Box::new(script), calls: AtomicUsize::new(0) });
    Settings { supervision: super::Supervision::Unattended, ..Settings::attended("a", api, pacer) }
}

fn dispatcher(settings: Settings, lines: &str) -> Arc<Dispatcher> {
    Arc::new(Dispatcher::start(settings, watch::Sender::new(app(lines)).subscribe()))
}

fn job_to(group: &str, batches: u32, priority: u8) -> Submission {
    let mut submission = submission(batches, 1);
    let job = Arc::make_mut(&mut submission.job);
    job.group_id = group.to_owned();
    Arc::make_mut(&mut submission.envelope).priority = priority;
    submission
}

fn report(ending: Ending) -> Report {
    match ending {
        Ending::Finished(report) => report,
        Ending::Parked(_) | Ending::TooLarge(_) => panic!("the job has not ended"),
    }
}

/// An app whose calls are known to be accepted, so that they go side by side.
async fn proven(dispatcher: Arc<Dispatcher>) -> Arc<Dispatcher> {
    report(dispatcher.send(&job_to("proof", 1, 5)).await.unwrap());
    dispatcher
}

#[tokio::test(start_paused = true)]
async fn after_the_refusal_of_a_job_none_of_its_calls_is_written() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let script = move |Call { group, number, on_write }: Call| {
        let count = count.clone();
        async move {
            if group == "proof" {
                on_write();
                return answer(0);
            }
            // Handshakes, and the job's first call has the shortest.
            sleep(Duration::from_millis(if number == 1 { 50 } else { 200 })).await;
            match on_write() {
                AtWrite::Withdraw => Answer::Withdrawn,
                AtWrite::Send => {
                    count.fetch_add(1, Ordering::Relaxed);
                    answer(10010)
                }
            }
        }
        .boxed()
    };
    let dispatcher = proven(dispatcher(settings(script).await, "max_in_flight = 8")).await;
    let report = report(dispatcher.send(&job_to("g", 20, 5)).await.unwrap());
    assert_eq!((written.load(Ordering::Relaxed), report.calls), (1, 1));
    assert_eq!(report.batches.len(), 20);
    assert!(report.batches.iter().all(|outcome| matches!(
        outcome,
        BatchOutcome::Failed { kind: FailureKind::Job, fault, .. } if fault.code == Some(10010)
    )));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_goes_again_at_once_keeps_its_turn() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let calls = order.clone();
    let script = move |Call { group, number, on_write }: Call| {
        let calls = calls.clone();
        async move {
            on_write();
            calls.lock().unwrap().push(group);
            sleep(Duration::from_millis(20)).await;
            // The UserSig has expired once.
            answer(if number == 0 { 70001 } else { 0 })
        }
        .boxed()
    };
    let dispatcher = dispatcher(settings(script).await, "max_in_flight = 1");
    let (urgent, other) = (job_to("urgent", 1, 9), job_to("other", 1, 0));
    let (first, second) = tokio::join!(dispatcher.send(&urgent), dispatcher.send(&other));
    assert!(report(first.unwrap()).batches == [BatchOutcome::Sent]);
    assert!(report(second.unwrap()).batches == [BatchOutcome::Sent]);
    assert_eq!(*order.lock().unwrap(), ["urgent", "urgent", "other"]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_panics_while_a_probe_is_out_probes_again() {
    let script = |Call { number, on_write, .. }: Call| {
        async move {
            on_write();
            // The key is refused twice, then it is accepted again.
            answer(if number < 2 { 70003 } else { 0 })
        }
        .boxed()
    };
    let probes = AtomicUsize::new(0);
    let mut settings = settings(script).await;
    settings.is_with_another = Box::new(move || {
        let number = probes.fetch_add(1, Ordering::Relaxed);
        async move {
            assert!(number > 0, "the panic of this test");
            false
        }
        .boxed()
    });
    let dispatcher = dispatcher(settings, "");
    let mut condition = dispatcher.condition();
    let sender = dispatcher.clone();
    let sending = tokio::spawn(async move { sender.send(&job_to("g", 1, 5)).await });
    condition.wait_for(|condition| condition.is_paused()).await.unwrap();
    let works = condition.wait_for(|condition| *condition == Condition::Working);
    timeout(Duration::from_secs(3600), works).await.expect("a second probe").unwrap();
    assert!(report(sending.await.unwrap().unwrap()).batches == [BatchOutcome::Sent]);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_a_job_that_may_not_begin_yet_starts_a_probe() {
    let is_up = Arc::new(AtomicUsize::new(0));
    let up = is_up.clone();
    let script = move |Call { on_write, .. }: Call| {
        let is_up = up.load(Ordering::Relaxed) > 0;
        async move {
            on_write();
            match is_up {
                true => answer(0),
                false => Answer::NoAnswer { info: "reset".into() },
            }
        }
        .boxed()
    };
    let dispatcher = dispatcher(settings(script).await, "retry.hold = \"30s\"");
    let parked = dispatcher.send(&job_to("g", 8, 5)).await.unwrap();
    assert!(matches!(parked, Ending::Parked(_)));
    sleep(Duration::from_secs(600)).await;
    is_up.store(1, Ordering::Relaxed);
    let mut early = job_to("g", 1, 5);
    let not_before = clock::now() + jiff::SignedDuration::from_secs(20);
    Arc::make_mut(&mut early.envelope).not_before = Some(not_before);
    let (mut condition, began_at) = (dispatcher.condition(), Instant::now());
    let works = condition.wait_for(|condition| *condition == Condition::Working);
    let (sent, works) = tokio::join!(dispatcher.send(&early), async {
        works.await.unwrap();
        began_at.elapsed()
    });
    assert!(report(sent.unwrap()).batches == [BatchOutcome::Sent]);
    assert!(works < Duration::from_secs(1), "{works:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_would_be_parked_ends_if_its_deadline_passes_before_its_last_answer() {
    const WAITS: &str = "max_in_flight = 2\nretry.first_delay = \"20s\"\nretry.hold = \"1s\"";
    let script = |Call { number, on_write, group }: Call| {
        async move {
            on_write();
            if group == "proof" {
                return answer(0);
            }
            if number > 1 {
                sleep(Duration::from_secs(20)).await;
                return answer(0);
            }
            sleep(Duration::from_secs(1)).await;
            // A short trouble, and the next attempt is later than the job may be held.
            answer(60008)
        }
        .boxed()
    };
    let dispatcher = proven(dispatcher(settings(script).await, WAITS)).await;
    let mut job = job_to("g", 3, 5);
    let deadline = clock::now() + jiff::SignedDuration::from_secs(10);
    Arc::make_mut(&mut job.envelope).deadline = Some(deadline);
    let report = report(dispatcher.send(&job).await.unwrap());
    let expired = |outcome: &BatchOutcome| {
        matches!(outcome, BatchOutcome::Failed { kind: FailureKind::Expired, .. })
    };
    assert_eq!(report.batches.iter().filter(|outcome| expired(outcome)).count(), 2);
}

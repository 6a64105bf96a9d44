//! The journey of a job, from its delivery to its acknowledgement. Read [`Pipeline::process`] first; it is the map.
//!
//! Invariant: a delivery is acknowledged only after everything it owes is confirmed. Whatever ends earlier leaves it
//! unacknowledged, and the broker delivers it again.

use std::sync::Arc;

use jiff::Timestamp;
use lapin::{BasicProperties, message::Delivery};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use crate::{
    accept::{
        consume::Work,
        decode::{Rules, decode},
        envelope,
        lease::Lease,
    },
    broker::{BrokerLost, publisher::Publisher},
    config::App,
    dispatch::{self, Dispatcher, Submission, Unfinished},
    job::{Envelope, Job, Rejection},
    outcome::Report,
    pace::Pacer,
    send::{call::Caller, retry::OnAccountFault},
    settle::{Owed, dead_letter, reply, result::JobResult, settle},
};

/// A larger body is read on a thread where it holds nobody up.
const READ_ASIDE_BYTES: usize = 128 * 1024;

/// One app's pipeline.
pub struct Pipeline {
    app: String,
    rules: Rules,
    results_queue: Option<String>,
    pacer: Pacer,
    dispatcher: Dispatcher,
    publisher: Publisher,
}

/// A message read: its job, or why it is none, with the original bytes.
struct Received {
    envelope: Envelope,
    job: Result<Job, (Rejection, Vec<u8>)>,
}

impl Work for Pipeline {
    fn begin(&self) {
        self.pacer.start_over(Instant::now());
    }

    /// Carries one delivery from the broker to its acknowledgement.
    async fn process(&self, mut delivery: Delivery, lease: Lease) -> Result<(), BrokerLost> {
        let body = std::mem::take(&mut delivery.data);
        let received = self.receive(body, &delivery.properties).await;
        let owed = match received.job {
            Ok(job) => match self.send(Arc::new(job), Arc::new(received.envelope), &delivery.properties, &lease).await {
                Ok(owed) => owed,
                // It stays unacknowledged and comes again.
                Err(Unfinished) if !lease.allows_calls() => return Ok(()),
                Err(Unfinished) => return Err(BrokerLost::new("send a job", "the dispatcher let go of it")),
            },
            Err((rejection, body)) => self.reject(rejection, body, &received.envelope, &delivery.properties),
        };
        lease.unless_lost(settle(&self.publisher, &self.app, owed)).await?;
        lease.acknowledge().await
    }

    async fn let_go(&self) {
        self.dispatcher.let_go().await;
    }
}

impl Pipeline {
    pub fn new(name: &str, app: &App, max_job_bytes: u64, publisher: Publisher) -> Result<Self, reqwest::Error> {
        let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
        let outcomes_can_be_told = publisher.clone();
        let may_start = move || outcomes_can_be_told.is_open();
        let dispatcher = dispatcher(app, pacer.clone(), OnAccountFault::KeepTrying, may_start)?;
        let results_queue = app.results_queue.clone();
        Ok(Self { app: name.to_owned(), rules: rules(app, max_job_bytes), results_queue, pacer, dispatcher, publisher })
    }

    /// The most calls that left in any second so far.
    pub fn calls_max_1s(&self) -> usize {
        self.pacer.most_in_one_second()
    }

    async fn receive(&self, body: Vec<u8>, properties: &BasicProperties) -> Received {
        let (envelope, checked) = envelope::read(properties, &self.app, self.results_queue.as_deref(), Timestamp::now());
        let rules = self.rules.clone();
        let job = if body.len() > READ_ASIDE_BYTES {
            let reading = tokio::task::spawn_blocking(move || read_body(body, checked, &rules));
            reading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        } else {
            read_body(body, checked, &rules)
        };
        Received { envelope, job }
    }

    async fn send(
        &self,
        job: Arc<Job>,
        envelope: Arc<Envelope>,
        properties: &BasicProperties,
        lease: &Lease,
    ) -> Result<Owed, Unfinished> {
        let submission = Submission { job: job.clone(), envelope: envelope.clone(), lease: lease.clone(), progress: None };
        let report = self.dispatcher.send(submission).await?;
        Ok(self.owed_for(&job, &report, &envelope, properties))
    }

    fn owed_for(&self, job: &Job, report: &Report, envelope: &Envelope, properties: &BasicProperties) -> Owed {
        let result = JobResult::finished(&self.app, envelope, job, report, Timestamp::now());
        let dead_letter = dead_letter::of_finished(job, report, properties, envelope, &result);
        self.log(&result);
        Owed { dead_letter, reply: reply::compose(&result, envelope) }
    }

    fn reject(&self, rejection: Rejection, body: Vec<u8>, envelope: &Envelope, properties: &BasicProperties) -> Owed {
        let result = JobResult::rejected(&self.app, envelope, &rejection, Timestamp::now());
        self.log(&result);
        let dead_letter = Some(dead_letter::of_rejected(body, properties, envelope, &result));
        Owed { dead_letter, reply: reply::compose(&result, envelope) }
    }

    fn log(&self, result: &JobResult) {
        let JobResult { job_id, status, calls, .. } = result;
        match result.errors.first() {
            None => debug!(app = self.app, job_id, calls, "job sent"),
            Some(error) => {
                let (status, code, info) = (status.as_str(), error.code, &error.info);
                warn!(app = self.app, job_id, status, calls, code, info, "job not sent whole");
            }
        }
    }
}

/// Carries one job to its result without a broker: the same reading, pacing, calls and retries.
pub async fn deliver_directly(
    name: &str,
    app: &App,
    rules: &Rules,
    body: Vec<u8>,
    properties: &BasicProperties,
    progress: watch::Sender<u32>,
) -> Result<JobResult, reqwest::Error> {
    let (envelope, checked) = envelope::read(properties, name, None, Timestamp::now());
    let job = match read_body(body, checked, rules) {
        Ok(job) => Arc::new(job),
        Err((rejection, _)) => return Ok(JobResult::rejected(name, &envelope, &rejection, Timestamp::now())),
    };
    let envelope = Arc::new(envelope);
    let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
    let dispatcher = dispatcher(app, pacer, OnAccountFault::Fail, || true)?;
    let lease = Lease::unlimited();
    let submission = Submission { job: job.clone(), envelope: envelope.clone(), lease, progress: Some(progress) };
    let report = dispatcher.send(submission).await.expect("an unlimited lease lets every job finish");
    Ok(JobResult::finished(name, &envelope, &job, &report, Timestamp::now()))
}

fn dispatcher(
    app: &App,
    pacer: Pacer,
    on_account_fault: OnAccountFault,
    may_start: impl Fn() -> bool + Send + Sync + 'static,
) -> Result<Dispatcher, reqwest::Error> {
    Ok(Dispatcher::start(dispatch::Settings {
        api: Arc::new(Caller::new(app)?),
        pacer,
        max_in_flight: app.max_in_flight,
        retry: app.retry.clone(),
        on_account_fault,
        may_start: Box::new(may_start),
    }))
}

/// What the configuration says about an app's jobs.
pub fn rules(app: &App, max_job_bytes: u64) -> Rules {
    Rules {
        // Offsets into a job are 32 bits wide.
        max_job_bytes: usize::try_from(max_job_bytes.min(1 << 31)).unwrap_or(usize::MAX),
        batch_size: app.batch_size as u32,
        empty_recipients: app.empty_recipients,
    }
}

/// Reads a body whose envelope was `checked`; what can be read of a job with a bad header is still told in its result.
fn read_body(body: Vec<u8>, checked: Result<(), Rejection>, rules: &Rules) -> Result<Job, (Rejection, Vec<u8>)> {
    match (checked, decode(&body, rules)) {
        (Ok(()), Ok(job)) => Ok(job),
        (Ok(()), Err(rejection)) => Err((rejection, body)),
        (Err(rejection), Ok(job)) => Err((Rejection { group_id: Some(job.group_id), topic_id: job.topic_id, ..rejection }, body)),
        (Err(rejection), Err(Rejection { group_id, topic_id, .. })) => Err((Rejection { group_id, topic_id, ..rejection }, body)),
    }
}

//! The journey of a job, from its delivery to its acknowledgement. Read [`Pipeline::process`] and `Pipeline::work` first;
//! they are the map.
//!
//! Invariant: a delivery is acknowledged only after everything it owes is confirmed. Whatever ends earlier leaves it
//! unacknowledged, and the broker delivers it again.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, try_join_all};
use jiff::Timestamp;
use lapin::BasicProperties;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{Instrument, Span, debug, info, warn};

pub use self::direct::deliver_directly;
use self::{owing::Left, reading::Received};
use crate::{
    accept::{
        consume::{Delivery, Work},
        decode::Rules,
        envelope,
        lease::Lease,
    },
    broker::{BrokerLost, publisher::Publisher, queues},
    clock,
    config::{App, Replies},
    dispatch::{self, Dispatcher, Ending, RETURNED_AT_MOST, Submission, Tuning, Unfinished, condition::Condition},
    job::{Envelope, Identity, Job, Rejection, SMALL_BATCH},
    outcome::{BatchProgress, Report},
    pace::{Pacer, send_window::SPAN},
    send::{call::Api, measured::Measured, retry::Supervision},
    settle::{
        Content, Owed, Owing, Tally, dead_letter, parking,
        progress::{
            Earlier, Entry, Made, Opened, Progress,
            store::{Scope, Sharing, StoreLost},
        },
        reply,
        result::JobResult,
    },
    telemetry::{failures::Failures, meter::Meter, spans},
};

mod direct;
mod owing;
mod reading;
mod steering;

/// How long another replica's call that has come back may take to be recorded.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

/// Jobs are held for so long while nothing can be published: no job is held for more than ten minutes.
const CLOSED_AT_MOST: Duration = Duration::from_secs(8 * 60);

/// One app's pipeline.
pub struct Pipeline {
    app: String,
    terms: RwLock<Arc<Terms>>,
    park: Vec<Duration>,
    pacer: Pacer,
    dispatcher: Dispatcher,
    publisher: Publisher,
    progress: Progress,
    meter: Arc<Meter>,
    failures: Failures,
    /// Since when an operator wants no job to be taken.
    halted: watch::Sender<Option<Timestamp>>,
    /// When the present subscription had its first delivery.
    first_delivery_at: Mutex<Instant>,
    /// The most recipients of a batch, once the API has refused more.
    largest_batch: OnceLock<u32>,
    /// Whether the subscription ended because nothing could be published.
    was_closed_for_long: AtomicBool,
}

/// What the configuration says about jobs that are taken up; it can change while the pipeline works.
struct Terms {
    rules: Rules,
    results_queue: Option<String>,
    replies: Replies,
    hold: Duration,
    /// The longest that calls of other replicas may take: they may not have read a lower one yet.
    request_timeout: Duration,
}

/// Why a delivery was not carried to its end. It comes again.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// No further call may start for it.
    #[error("let go of a job")]
    LetGo,
    #[error(transparent)]
    Broker(#[from] BrokerLost),
    #[error(transparent)]
    Store(#[from] StoreLost),
}

impl From<Unfinished> for Interrupted {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::LetGo => Self::LetGo,
            Unfinished::Store(error) => Self::Store(error),
        }
    }
}

impl Work for Pipeline {
    type Error = Interrupted;

    async fn until_ready(&self) {
        // The sender lives as long as the dispatcher, and that as long as this.
        let _ = self.condition().wait_for(|condition| !condition.is_paused()).await;
        let _ = self.halted.subscribe().wait_for(Option::is_none).await;
        if self.was_closed_for_long.swap(false, Ordering::Relaxed) || self.publisher.is_forbidden() {
            self.publisher.until_open().await;
        }
        self.progress.health().until_it_works().await;
    }

    async fn until_paused(&self) {
        let (mut condition, mut halted) = (self.condition(), self.halted.subscribe());
        tokio::select! {
            _ = condition.wait_for(Condition::is_paused) => {}
            _ = halted.wait_for(Option::is_some) => {}
            () = self.publisher.until_closed_for(CLOSED_AT_MOST) => {
                warn!(app = self.app, "nothing could be published for {CLOSED_AT_MOST:?}; the jobs go back to the queue");
                self.was_closed_for_long.store(true, Ordering::Relaxed);
            }
        }
    }

    fn begin(&self) {
        let now = Instant::now();
        self.pacer.start_over(now);
        *self.first_delivery_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Carries one delivery from the broker to its acknowledgement.
    async fn process(&self, delivery: Delivery, lease: Lease) -> Result<(), Interrupted> {
        let _held = self.meter.holds_a_job();
        let delivered_at = Instant::now();
        let Delivery { body, properties, .. } = delivery;
        let received = self.receive(body, &properties).await;
        let span = spans::of_job(&self.app, &received.envelope);
        let owed = match self.work(received, &properties, &lease).instrument(span.clone()).await {
            // It stays unacknowledged and comes again.
            Err(Interrupted::LetGo) if !lease.allows_calls() => return Ok(()),
            worked => worked?,
        };
        let will_be_known_again = owed.is_recorded();
        let tally = match lease.unless_lost(self.settle(owed, &properties, &lease, delivered_at)).await?? {
            Left::Nothing(tally) => tally,
            Left::Something => return Ok(lease.give_back().await?),
            Left::SubscriptionEnds => return Ok(()),
        };
        self.meter.count(&tally);
        if let Tally::Ended { result, .. } = tally {
            self.failures.note(&result);
        }
        if will_be_known_again {
            lease.wait_for_company().await?;
        }
        Ok(lease.acknowledge().await?)
    }

    async fn let_go(&self) {
        self.dispatcher.let_go().await;
    }
}

impl Pipeline {
    pub fn new<A: Api>(name: &str, app: &App, max_job_bytes: u64, api: Arc<A>, publisher: Publisher, progress: Progress) -> Self {
        let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
        let (to_tell, to_record) = (publisher.clone(), progress.clone());
        let meter = Arc::new(Meter::of(name));
        let api = Arc::new(Measured::new(api, meter.clone()));
        let halted = watch::Sender::new(None);
        let to_look = halted.subscribe();
        let (to_ask, jobs) = (publisher.clone(), queues::jobs(name));
        let is_with_another = move || -> BoxFuture<'static, bool> {
            let (to_ask, jobs) = (to_ask.clone(), jobs.clone());
            // One that has just stopped may have called in this second.
            Box::pin(async move {
                to_ask.is_consumed(&jobs).await || {
                    sleep(SPAN).await;
                    to_ask.is_consumed(&jobs).await
                }
            })
        };
        let settings = dispatch::Settings {
            supervision: Supervision::Unattended,
            may_start: Box::new(move || to_tell.is_open() && to_record.health().works()),
            is_with_another: Box::new(is_with_another),
            is_halted: Box::new(move || to_look.borrow().is_some()),
            ..dispatch::Settings::attended(name, api, pacer.clone())
        };
        Self {
            app: name.to_owned(),
            terms: RwLock::new(Arc::new(Terms::of(app, rules(app, max_job_bytes)))),
            park: app.retry.park.clone(),
            dispatcher: Dispatcher::start(settings, tuning(app)),
            pacer,
            publisher,
            progress,
            meter,
            failures: Failures::default(),
            halted,
            first_delivery_at: Mutex::new(Instant::now()),
            largest_batch: OnceLock::new(),
            was_closed_for_long: AtomicBool::new(false),
        }
    }

    /// Works by another configuration of the app from now on: for jobs that come, and for what is decided about those that are
    /// here. Their batches stay as they were cut. The wait queues stay those of the start.
    pub fn reconfigure(&self, app: &App) {
        {
            let mut terms = self.terms.write().unwrap_or_else(PoisonError::into_inner);
            let rules = Rules { max_job_bytes: terms.rules.max_job_bytes, ..rules(app, 0) };
            let request_timeout = terms.request_timeout.max(app.request_timeout);
            *terms = Arc::new(Terms { request_timeout, ..Terms::of(app, rules) });
        }
        self.pacer.set_limits(app.calls_per_second, app.burst, Instant::now());
        self.dispatcher.tune(tuning(app));
    }

    fn terms(&self) -> Arc<Terms> {
        self.terms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the app's calls fare, now and from now on.
    fn condition(&self) -> watch::Receiver<Condition> {
        self.dispatcher.condition()
    }

    async fn receive(&self, body: Vec<u8>, properties: &BasicProperties) -> Received {
        let terms = self.terms();
        let (envelope, checked) =
            envelope::read(properties, &self.app, terms.results_queue.as_deref(), &terms.replies, clock::now());
        let checked = checked.and_then(|()| envelope::check_headers_fit(properties, self.publisher.frame_max()));
        let batch_size = self.largest_batch.get().map_or(terms.rules.batch_size, |most| terms.rules.batch_size.min(*most));
        let rules = Rules { batch_size, ..terms.rules.clone() };
        let (body, job) = reading::read(body, checked, rules).await;
        Received { envelope, body, job }
    }

    /// Finds out what a message owes: looks its job up, and sends what is left of it.
    async fn work(&self, received: Received, properties: &BasicProperties, lease: &Lease) -> Result<Owed, Interrupted> {
        let Received { mut envelope, body, job } = received;
        let (mut job, fingerprint) = match job {
            Ok(job) => job,
            Err(rejection) => return Ok(self.reject(rejection, body, &envelope, properties)),
        };
        let (mut entry, mut batches) = (None, Vec::new());
        if envelope.identity == Identity::Given {
            let looking_up = self.look_up(&envelope, &job, &fingerprint);
            let Some(looked_up) = lease.while_calls_may_start(looking_up).await else {
                let returned_often = envelope.redeliveries >= RETURNED_AT_MOST && self.standing().is_paused();
                return if returned_often { Ok(self.park(body, &envelope, properties, true)) } else { Err(Interrupted::LetGo) };
            };
            match looked_up {
                Ok(Opened::Answered(result)) => return Ok(repeat(*result, body, envelope)),
                Ok(Opened::OtherContent) => {
                    let why = "belongs to an earlier job with other content; give each job an id of its own";
                    return Ok(self.reject(of_id(&job, why), body, &envelope, properties));
                }
                Err(error) if error.scope == Scope::Record => {
                    return Ok(self.reject(
                        of_id(&job, &format!("has a record that cannot be read: {error}")),
                        body,
                        &envelope,
                        properties,
                    ));
                }
                Err(error) => return Err(error.into()),
                // It may yet be rejected, with its original bytes.
                Ok(Opened::Busy) => return Ok(self.park(body, &envelope, properties, true)),
                Ok(Opened::Unfinished(earlier)) => {
                    job.resume(earlier.head.batch_size, earlier.head.duplicates);
                    envelope.received_at = earlier.head.received_at;
                    (entry, batches) = (Some(earlier.entry), earlier.batches);
                }
            }
        }
        drop(body);
        let (job, envelope, lease) = (Arc::new(job), Arc::new(envelope), lease.clone());
        let submission = Submission { job, envelope, lease, entry, batches, told: None, span: Span::current() };
        self.send(submission, fingerprint, properties).await
    }

    /// Has a job sent, in smaller batches if the API asks for them, and finds out what it owes then.
    async fn send(
        &self,
        mut submission: Submission,
        fingerprint: String,
        properties: &BasicProperties,
    ) -> Result<Owed, Interrupted> {
        loop {
            let ending = self.dispatcher.send(submission.clone()).await?;
            let Submission { job, envelope, entry, .. } = &submission;
            match ending {
                Ending::Finished(report) => {
                    return Ok(self.answer(job, report, envelope, properties, entry.clone(), fingerprint));
                }
                Ending::Parked(touched) => {
                    let may_go_back = entry.is_some() || touched.is_empty();
                    match entry {
                        None => drop(self.remember(job, envelope, fingerprint, touched).await?),
                        // The store may have waited for something to say.
                        Some(entry) if touched.is_empty() => entry.note(0, &BatchProgress::default()).await?,
                        Some(_) => {}
                    }
                    return Ok(self.park(job.body(), envelope, properties, may_go_back));
                }
                Ending::TooLarge(touched) => submission = self.split_again(submission, &touched).await?,
            }
        }
    }

    /// A job in smaller batches, and recorded so. From now on new jobs are cut so from the start.
    async fn split_again(&self, submission: Submission, touched: &[(u32, BatchProgress)]) -> Result<Submission, Interrupted> {
        if self.largest_batch.set(SMALL_BATCH).is_ok() {
            warn!(
                app = self.app,
                "the API does not take batches of up to {} recipients (code 10005); jobs go on in batches of {SMALL_BATCH} at most. \
                 Set batch_size = {SMALL_BATCH} for this app, or each start costs some refused calls again",
                submission.job.batch_size(),
            );
        }
        let mut split = submission.split_again(touched);
        if let Some(entry) = split.entry.take() {
            let recording = entry.split_again(&split.job, &split.batches);
            // A delivery that was taken away may be in other hands, and the record with it.
            split.entry = Some(split.lease.while_calls_may_start(recording).await.ok_or(Interrupted::LetGo)??);
        }
        Ok(split)
    }

    /// A replica that was active before may have calls in flight for the job. What comes of them is recorded when it is waited
    /// for; so the record is read again then.
    async fn look_up(&self, envelope: &Envelope, job: &Job, fingerprint: &str) -> Result<Opened, StoreLost> {
        let terms = self.terms();
        let open = || self.progress.open(&self.app, envelope, job, fingerprint.to_owned(), terms.hold);
        let first_delivery_at = *self.first_delivery_at.lock().unwrap_or_else(PoisonError::into_inner);
        let others_are_done = first_delivery_at + terms.request_timeout + RECORDED_WITHIN;
        let opened = open().await?;
        let made_before = matches!(opened, Opened::Unfinished(Earlier { made: Made::Before, .. }));
        if !made_before || self.progress.sharing() == Sharing::OwnMachine || Instant::now() >= others_are_done {
            return Ok(opened);
        }
        // It holds the claim that the second look needs.
        drop(opened);
        sleep_until(others_are_done).await;
        open().await
    }

    /// Makes a record of a job that came without an id and now has one.
    async fn remember(
        &self,
        job: &Job,
        envelope: &Envelope,
        fingerprint: String,
        touched: Vec<(u32, BatchProgress)>,
    ) -> Result<Option<Entry>, StoreLost> {
        let opened = self.progress.open(&self.app, envelope, job, fingerprint, self.terms().hold).await?;
        let Opened::Unfinished(earlier) = opened else { return Ok(None) };
        let entry = &earlier.entry;
        try_join_all(touched.iter().map(|(batch, progress)| entry.note(*batch, progress))).await?;
        Ok(Some(earlier.entry))
    }

    fn park(&self, body: Vec<u8>, envelope: &Envelope, properties: &BasicProperties, may_go_back: bool) -> Owed {
        let parked = parking::compose(&self.app, body, properties, envelope, &self.park, parking::Left::Everything);
        info!(app = self.app, job_id = envelope.job_id, queue = parked.target.queue(), "job parked");
        Owed::Parked { job: Box::new(parked), may_go_back }
    }

    fn answer(
        &self,
        job: &Arc<Job>,
        report: Report,
        envelope: &Arc<Envelope>,
        properties: &BasicProperties,
        entry: Option<Entry>,
        fingerprint: String,
    ) -> Owed {
        let finished_at = clock::now();
        let result = JobResult::finished(&self.app, envelope, job, &report, finished_at);
        self.log(&result);
        let json = result.json();
        Owed::Answer {
            dead_letter: dead_letter::of_finished(job, &report, properties, envelope, &result).map(Box::new),
            reply: reply::compose(&result, &json, envelope).map(Box::new),
            job: Owing {
                content: Content::Job(job.clone()),
                envelope: envelope.clone(),
                letter_is_confirmed: false,
                unrecorded: entry.is_none().then_some((fingerprint, report)),
            },
            record: entry.map(|entry| (entry, json)),
            tally: ended(result, envelope, finished_at),
        }
    }

    fn reject(&self, rejection: Rejection, body: Vec<u8>, envelope: &Envelope, properties: &BasicProperties) -> Owed {
        let finished_at = clock::now();
        let result = JobResult::rejected(&self.app, envelope, &rejection, finished_at);
        self.log(&result);
        let reply = reply::compose(&result, &result.json(), envelope).map(Box::new);
        let letter_is_confirmed = envelope.owes_result;
        let dead_letter = Some(Box::new(dead_letter::of_rejected(body, properties, envelope, &result)));
        let envelope = Arc::new(envelope.clone());
        let tally = ended(result, &envelope, finished_at);
        let job = Owing { content: Content::OfLetter, envelope, letter_is_confirmed, unrecorded: None };
        Owed::Answer { dead_letter, reply, record: None, tally, job }
    }

    fn log(&self, result: &JobResult) {
        spans::note_result(&Span::current(), result);
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

/// The recorded result of an earlier copy, to whoever asked with this one; or of this very message, if it was parked because
/// its result could not be published.
fn repeat(result: JobResult, body: Vec<u8>, envelope: Envelope) -> Owed {
    let result = JobResult { duplicate: !envelope.owes_result, ..result };
    debug!(app = result.app, job_id = result.job_id, "job answered from its record");
    let reply = reply::compose(&result, &result.json(), &envelope).map(Box::new);
    let tally = if envelope.owes_result { ended(result, &envelope, clock::now()) } else { Tally::Repeated };
    let envelope = Arc::new(envelope);
    let job = Owing { content: Content::Original(body), envelope, letter_is_confirmed: true, unrecorded: None };
    Owed::Answer { dead_letter: None, reply, record: None, tally, job }
}

fn ended(result: JobResult, envelope: &Envelope, finished_at: Timestamp) -> Tally {
    let took = finished_at.duration_since(envelope.received_at).try_into().unwrap_or_default();
    Tally::Ended { result: Box::new(result), took }
}

fn of_id(job: &Job, reason: &str) -> Rejection {
    Rejection {
        field: "message_id".into(),
        reason: reason.to_owned(),
        group_id: Some(job.group_id.clone()),
        topic_id: job.topic_id.clone(),
    }
}

fn tuning(app: &App) -> Tuning {
    Tuning { max_in_flight: app.max_in_flight, retry: app.retry.clone(), pause: app.pause.clone() }
}

impl Terms {
    fn of(app: &App, rules: Rules) -> Self {
        Self {
            rules,
            results_queue: app.results_queue.clone(),
            replies: app.replies.clone(),
            hold: app.retry.hold,
            request_timeout: app.request_timeout,
        }
    }
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

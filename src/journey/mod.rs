//! The journey of a job, from its delivery to its acknowledgement. Read [`Pipeline::process`] and
//! `Pipeline::work` first; they are the map.
//!
//! Invariant: a delivery is acknowledged only after everything it owes is confirmed. Whatever ends
//! earlier leaves it unacknowledged, and the broker delivers it again.

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
    accept::{decode::Rules, envelope},
    api::call::Api,
    broker::{BrokerLost, Target, publisher::Publisher, queues},
    clock::{self, Moment},
    config::{App, Replies},
    job::{
        Envelope, GIVEN_UP_HEADER, Identity, Job, Rejection, SMALL_BATCH,
        outcome::{BatchProgress, Report},
    },
    journey::{failures::Failures, measured::Measured, meter::Meter},
    pace::{Pacer, send_window::SPAN},
    progress::{
        Earlier, Entry, Made, Opened, Progress,
        store::{Scope, Sharing, StoreLost},
        tenure::Tenure,
    },
    send::{
        self, Dispatcher, Ending, RETURNED_AT_MOST, Submission, Supervision, Tuning, Unfinished,
        condition::Condition,
    },
    settle::{
        Content, Owed, Owing, Tally, dead_letter, parking, reply, result::JobResult, undeliverable,
    },
    subscribe::{
        consume::{Delivery, FROZEN_AFTER, Pause, Source, Work},
        lease::Lease,
    },
    telemetry::spans,
};

mod direct;
pub mod failures;
pub mod measured;
pub mod meter;
mod owing;
mod reading;
mod steering;

/// How long another replica may make calls after its jobs were taken over: until then the store's
/// last word counts.
const STOPPED_WITHIN: Duration = Duration::from_secs(1);
/// How long another replica's call that has come back may take to be recorded.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

/// A store that is away for longer has the jobs go back to the queue, where another replica may
/// have a store that works. What is known of them by then is recorded before this process works on
/// them again.
const STORE_AWAY_AT_MOST: Duration = Duration::from_secs(10 * 60);
/// Jobs are held for so long while nothing can be published: no job is held for more than ten
/// minutes.
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
    tenure: Tenure,
    meter: Arc<Meter>,
    failures: Failures,
    /// Since when an operator wants no job to be taken.
    halted: watch::Sender<Option<Timestamp>>,
    /// When the present subscription took the jobs over, after its first delivery.
    taken_over_at: Arc<Mutex<Instant>>,
    /// When the subscription was last known to be there.
    subscribed_at: Arc<Mutex<Moment>>,
    /// The most recipients of a batch, once the API has refused more.
    largest_batch: OnceLock<u32>,
    /// Whether the subscription ended because nothing could be published.
    was_closed_for_long: AtomicBool,
}

/// What the configuration says about jobs that are taken up; it can change while the pipeline
/// works.
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
        if self.was_closed_for_long.swap(false, Ordering::Relaxed) || self.publisher.is_forbidden()
        {
            self.publisher.until_open().await;
        }
        self.progress.health().until_it_works().await;
        self.tenure.until_pause_ends().await;
    }

    async fn until_paused(&self) -> Pause {
        let (mut condition, mut halted) = (self.condition(), self.halted.subscribe());
        tokio::select! {
            biased;
            _ = condition.wait_for(Condition::is_paused) => Pause::App,
            _ = halted.wait_for(Option::is_some) => Pause::App,
            () = self.tenure.until_displaced() => Pause::Displaced,
            () = self.progress.health().until_away_for(STORE_AWAY_AT_MOST) => Pause::StoreAway,
            () = self.publisher.until_closed_for(CLOSED_AT_MOST) => {
                warn!(app = self.app, "nothing could be published for {CLOSED_AT_MOST:?}; the jobs \
                    go back to the queue");
                self.was_closed_for_long.store(true, Ordering::Relaxed);
                Pause::PublisherAway
            }
        }
    }

    fn begin(&self) {
        self.take_over(Pacer::start_over);
    }

    fn is_subscribed(&self) {
        *self.subscribed_at.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now();
    }

    /// Carries one delivery from the broker to its acknowledgement.
    async fn process(&self, delivery: Delivery, lease: Lease) -> Result<(), Interrupted> {
        let _held = self.meter.holds_a_job();
        let delivered_at = Instant::now();
        let Delivery { source, body, properties, .. } = delivery;
        let received = self.receive(body, &properties, source).await;
        let span = spans::of_job(&self.app, &received.envelope);
        let owed = match self.work(received, &properties, &lease).instrument(span.clone()).await {
            // It stays unacknowledged and comes again.
            Err(Interrupted::LetGo) if !lease.allows_calls() => return Ok(()),
            // The subscription ends.
            Err(Interrupted::Store(error)) if error.scope == Scope::Displaced => return Ok(()),
            Err(Interrupted::Store(error)) => return self.give_back(&lease, &error).await,
            worked => worked?,
        };
        let will_be_known_again = owed.is_recorded();
        let tally =
            match lease.unless_lost(self.settle(owed, &properties, &lease, delivered_at)).await? {
                Ok(Left::Nothing(tally)) => tally,
                Ok(Left::Something) => return Ok(lease.give_back().await?),
                Ok(Left::SubscriptionEnds) => return Ok(()),
                Err(Interrupted::Store(error)) => return self.give_back(&lease, &error).await,
                Err(error) => return Err(error),
            };
        self.meter.count(&tally);
        if let Tally::Ended { result, .. } = tally {
            self.failures.note(&result);
        }
        if will_be_known_again {
            lease.wait_for_others().await?;
        }
        Ok(lease.acknowledge().await?)
    }

    fn acknowledge_within(&self, timeout: Duration) {
        // A job may be held twice, if it is split again, and calls in flight have to end.
        let held_at_most = timeout / 3;
        if held_at_most < self.dispatcher.held_at_most() {
            warn!(
                app = self.app,
                "the broker takes jobs back that are not acknowledged within {timeout:?} \
                    (consumer_timeout). From now on a job is held for {held_at_most:?} at most, \
                    then parked. Raise consumer_timeout at the broker, or set retry.hold to a \
                    third of it"
            );
            self.dispatcher.hold_at_most(held_at_most);
        }
    }

    fn calls_have_ended(&self) {
        self.tenure.end();
        self.dispatcher.begin_idle_time();
    }
}

impl Pipeline {
    pub fn new(
        name: &str,
        app: &App,
        max_job_bytes: u64,
        api: Arc<dyn Api>,
        publisher: Publisher,
        progress: Progress,
    ) -> Self {
        let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
        let tenure = progress.tenure(name);
        let (to_tell, to_record, to_hold) = (publisher.clone(), progress.clone(), tenure.clone());
        let subscribed_at = Arc::new(Mutex::new(Moment::long_ago()));
        let to_look_at = subscribed_at.clone();
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
        let settings = send::Settings {
            supervision: Supervision::Unattended,
            may_start: Arc::new(move || {
                let was_frozen =
                    to_look_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
                        >= FROZEN_AFTER;
                to_tell.is_open() && to_record.can_record() && !was_frozen && to_hold.allows_calls()
            }),
            is_with_another: Box::new(is_with_another),
            is_halted: Box::new(move || to_look.borrow().is_some()),
            ..send::Settings::attended(name, api, pacer.clone())
        };
        Self {
            app: name.to_owned(),
            terms: RwLock::new(Arc::new(Terms::of(app, rules(app, max_job_bytes)))),
            park: app.retry.park.clone(),
            dispatcher: Dispatcher::start(settings, Tuning::of(app)),
            pacer,
            publisher,
            progress,
            tenure,
            meter,
            failures: Failures::default(),
            halted,
            taken_over_at: Arc::new(Mutex::new(Instant::now())),
            subscribed_at,
            largest_batch: OnceLock::new(),
            was_closed_for_long: AtomicBool::new(false),
        }
    }

    /// Takes the jobs over from the replica that had them before. `start_pacer` makes the pacer
    /// wait for that replica's calls.
    pub fn take_over(&self, start_pacer: fn(&Pacer, Instant)) {
        let start = move |pacer: &Pacer, taken_over_at: &Mutex<Instant>| {
            let now = Instant::now();
            start_pacer(pacer, now);
            *taken_over_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
        };
        start(&self.pacer, &self.taken_over_at);
        // Until the store has answered, and for a second more, the other replica may call.
        let (pacer, taken_over_at) = (self.pacer.clone(), self.taken_over_at.clone());
        self.tenure.begin(move || start(&pacer, &taken_over_at));
    }

    /// Works by another configuration of the app from now on: for jobs that come, and for what is
    /// decided about those that are here. Their batches stay as they were cut. The wait queues stay
    /// those of the start.
    pub fn reconfigure(&self, app: &App) {
        {
            let mut terms = self.terms.write().unwrap_or_else(PoisonError::into_inner);
            let rules = Rules { max_job_bytes: terms.rules.max_job_bytes, ..rules(app, 0) };
            let request_timeout = terms.request_timeout.max(app.request_timeout);
            *terms = Arc::new(Terms { request_timeout, ..Terms::of(app, rules) });
        }
        self.pacer.set_limits(app.calls_per_second, app.burst, Instant::now());
        self.dispatcher.tune(Tuning::of(app));
    }

    fn terms(&self) -> Arc<Terms> {
        self.terms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long a job may wait for another one with its id.
    fn patience(&self) -> Duration {
        self.terms().hold.min(self.dispatcher.held_at_most())
    }

    /// How the app's calls fare, now and from now on.
    fn condition(&self) -> watch::Receiver<Condition> {
        self.dispatcher.condition()
    }

    async fn receive(
        &self,
        body: Vec<u8>,
        properties: &BasicProperties,
        source: Source,
    ) -> Received {
        let terms = self.terms();
        let (mut envelope, checked) = envelope::read(
            properties,
            &self.app,
            terms.results_queue.as_deref(),
            &terms.replies,
            clock::now(),
        );
        if source == Source::Undeliverable {
            envelope.given_up.get_or_insert_with(|| undeliverable::reason(properties));
        }
        let checked = checked
            .and_then(|()| envelope::check_headers_fit(properties, self.publisher.frame_max()));
        let batch_size = self
            .largest_batch
            .get()
            .map_or(terms.rules.batch_size, |most| terms.rules.batch_size.min(*most));
        let rules = Rules { batch_size, ..terms.rules.clone() };
        let (body, job) = reading::read(body, checked, rules).await;
        Received { envelope, body, job }
    }

    /// A job whose record fails comes again alone, when the store works: others may have no record
    /// to go on from.
    async fn give_back(&self, lease: &Lease, error: &StoreLost) -> Result<(), Interrupted> {
        warn!(app = self.app, %error, "a job could not be settled; it comes again");
        match lease.while_calls_may_start(self.progress.health().until_it_works()).await {
            Some(()) => Ok(lease.give_back().await?),
            // It goes back with all the others.
            None => Ok(()),
        }
    }

    /// Finds out what a message owes: looks its job up, and sends what is left of it, unless the
    /// broker has given it up.
    async fn work(
        &self,
        received: Received,
        properties: &BasicProperties,
        lease: &Lease,
    ) -> Result<Owed, Interrupted> {
        let Received { mut envelope, body, job } = received;
        let (mut job, fingerprint) = match job {
            Ok(job) => job,
            Err(rejection) => return Ok(self.reject(rejection, body, &envelope, properties)),
        };
        let (mut entry, mut batches) = (None, Vec::new());
        if envelope.identity == Identity::Given {
            if envelope.given_up.is_some() && !self.tenure.has_begun() {
                return Ok(self.pass_on(body, &envelope, properties));
            }
            let looking_up = self.look_up(&envelope, &job, &fingerprint);
            let Some(looked_up) = lease.while_calls_may_start(looking_up).await else {
                let returned_often =
                    envelope.redeliveries >= RETURNED_AT_MOST && self.condition_now().is_paused();
                return if returned_often {
                    Ok(self.park(body, &envelope, properties, true))
                } else {
                    Err(Interrupted::LetGo)
                };
            };
            match looked_up {
                Ok(Opened::Answered { entry, result }) => match serde_json::from_str(&result) {
                    Ok(answer) => {
                        let owed_record = envelope.owes_result.then_some((entry, result));
                        return Ok(repeat(answer, owed_record, body, envelope));
                    }
                    Err(error) => {
                        let why = format!("has a record that cannot be read: {error}");
                        return Ok(self.reject(of_id(&job, &why), body, &envelope, properties));
                    }
                },
                Ok(Opened::OtherContent) => {
                    let why = "belongs to an earlier job with other content; give each job an id \
                        of its own";
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
                // The broker counts how often it has delivered a job, and gives it up in the end.
                Err(_) if envelope.redeliveries >= RETURNED_AT_MOST => {
                    return Ok(self.park(body, &envelope, properties, true));
                }
                Err(error) => return Err(error.into()),
                // It may yet be rejected, with its original bytes.
                Ok(Opened::Busy) => return Ok(self.park(body, &envelope, properties, true)),
                Ok(Opened::Unfinished(earlier)) => {
                    job.resume(earlier.head.cut(), earlier.head.duplicates);
                    envelope.received_at = earlier.head.received_at;
                    (entry, batches) = (Some(earlier.entry), earlier.batches);
                }
            }
        }
        drop(body);
        if let Some(reason) = &envelope.given_up {
            let batches = undeliverable::conclude(&job, &envelope, reason, batches);
            if let Some(entry) = &entry {
                // Before the answer, or the next delivery could be answered otherwise.
                try_join_all(
                    (0..).zip(&batches).map(|(batch, progress)| entry.note(batch, progress)),
                )
                .await?;
            }
            let (job, envelope) = (Arc::new(job), Arc::new(envelope));
            return Ok(self.answer(
                &job,
                Report::of(batches),
                &envelope,
                properties,
                entry,
                fingerprint,
            ));
        }
        let (job, envelope, lease) = (Arc::new(job), Arc::new(envelope), lease.clone());
        let submission = Submission {
            job,
            envelope,
            lease,
            entry,
            batches,
            advance: None,
            span: Span::current(),
        };
        self.send(submission, fingerprint, properties).await
    }

    /// Has a job sent, in smaller batches if the API asks for them, and finds out what it owes
    /// then.
    async fn send(
        &self,
        mut submission: Submission,
        fingerprint: String,
        properties: &BasicProperties,
    ) -> Result<Owed, Interrupted> {
        loop {
            let sent = self.dispatcher.send(&submission).await;
            let Submission { job, envelope, entry, lease, .. } = &submission;
            let ending = match sent {
                Err(Unfinished::Store(_)) if envelope.redeliveries >= RETURNED_AT_MOST => {
                    return Ok(self.park(job.body(), envelope, properties, true));
                }
                sent => sent?,
            };
            match ending {
                Ending::Finished(report) => {
                    return Ok(self.answer(
                        job,
                        report,
                        envelope,
                        properties,
                        entry.clone(),
                        fingerprint,
                    ));
                }
                Ending::Parked(touched) => {
                    let may_go_back = entry.is_some() || touched.is_empty();
                    match entry {
                        None => {
                            let remembered = self.progress.remember(
                                &self.tenure,
                                envelope,
                                job,
                                fingerprint,
                                &touched,
                            );
                            lease.unless_lost(remembered).await??;
                        }
                        // The store may have waited for something to say.
                        Some(entry) if touched.is_empty() => {
                            entry.note(0, &BatchProgress::default()).await?
                        }
                        Some(_) => {}
                    }
                    return Ok(self.park(job.body(), envelope, properties, may_go_back));
                }
                Ending::TooLarge(touched) => {
                    submission = self.split_again(submission, &touched).await?
                }
            }
        }
    }

    /// A job in smaller batches, and recorded so. From now on new jobs are cut so from the start.
    async fn split_again(
        &self,
        submission: Submission,
        touched: &[(u32, BatchProgress)],
    ) -> Result<Submission, Interrupted> {
        if self.largest_batch.set(SMALL_BATCH).is_ok() {
            warn!(
                app = self.app,
                "the API does not take batches of up to {} recipients (code 10005); jobs go on in \
                    batches of {SMALL_BATCH} at most. Set batch_size = {SMALL_BATCH} for this app, \
                    or each start costs some refused calls again",
                submission.job.cut().batch_size,
            );
        }
        let mut split = submission.split_again(touched);
        if let Some(entry) = split.entry.take() {
            let recording = entry.split_again(&split.job, &split.batches);
            // A delivery that was taken away may be in other hands, and the record with it.
            split.entry = Some(
                split.lease.while_calls_may_start(recording).await.ok_or(Interrupted::LetGo)??,
            );
        }
        Ok(split)
    }

    /// A replica that was active before may have calls in flight for the job. What comes of them is
    /// recorded when it is waited for; so the record is read again then.
    async fn look_up(
        &self,
        envelope: &Envelope,
        job: &Job,
        fingerprint: &str,
    ) -> Result<Opened, StoreLost> {
        let terms = self.terms();
        let open = || {
            self.progress.open(&self.tenure, envelope, job, fingerprint.to_owned(), self.patience())
        };
        let opened = open().await?;
        let taken_over_at = *self.taken_over_at.lock().unwrap_or_else(PoisonError::into_inner);
        let others_are_done =
            taken_over_at + STOPPED_WITHIN + terms.request_timeout + RECORDED_WITHIN;
        let made_before = matches!(opened, Opened::Unfinished(Earlier { made: Made::Before, .. }));
        if !made_before
            || self.progress.sharing() == Sharing::OwnMachine
            || Instant::now() >= others_are_done
        {
            return Ok(opened);
        }
        // It holds the claim that the second look needs.
        drop(opened);
        sleep_until(others_are_done).await;
        open().await
    }

    /// Each replica reads what the broker has given up, and only the one that has the jobs knows
    /// what is under way for them.
    fn pass_on(&self, body: Vec<u8>, envelope: &Envelope, properties: &BasicProperties) -> Owed {
        let mut passed_on = parking::compose(
            &self.app,
            body,
            properties,
            envelope,
            &self.park,
            parking::Left::Everything,
        );
        let came_back = properties
            .headers()
            .as_ref()
            .is_some_and(|headers| headers.inner().contains_key(GIVEN_UP_HEADER));
        if !came_back {
            passed_on.target = Target::Own(queues::jobs(&self.app));
        }
        Owed::Parked { job: Box::new(passed_on), may_go_back: true }
    }

    fn park(
        &self,
        body: Vec<u8>,
        envelope: &Envelope,
        properties: &BasicProperties,
        may_go_back: bool,
    ) -> Owed {
        let parked = parking::compose(
            &self.app,
            body,
            properties,
            envelope,
            &self.park,
            parking::Left::Everything,
        );
        info!(
            app = self.app,
            job_id = envelope.job_id,
            queue = parked.target.queue(),
            "job parked"
        );
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
            dead_letter: dead_letter::of_finished(job, &report, properties, envelope, &result)
                .map(Box::new),
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

    fn reject(
        &self,
        rejection: Rejection,
        body: Vec<u8>,
        envelope: &Envelope,
        properties: &BasicProperties,
    ) -> Owed {
        let finished_at = clock::now();
        let result = JobResult::rejected(&self.app, envelope, &rejection, finished_at);
        self.log(&result);
        let reply = reply::compose(&result, &result.json(), envelope).map(Box::new);
        let letter_is_confirmed = envelope.owes_result;
        let dead_letter =
            Some(Box::new(dead_letter::of_rejected(body, properties, envelope, &result)));
        let envelope = Arc::new(envelope.clone());
        let tally = ended(result, &envelope, finished_at);
        let job =
            Owing { content: Content::OfLetter, envelope, letter_is_confirmed, unrecorded: None };
        Owed::Answer { dead_letter, reply, record: None, tally, job }
    }

    fn log(&self, result: &JobResult) {
        note_result(&Span::current(), result);
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

/// Writes on a job's span how it ended.
fn note_result(span: &Span, result: &JobResult) {
    if span.is_disabled() {
        return;
    }
    span.record("groupcast.group_id", result.group_id.as_deref());
    span.record("groupcast.batches", result.batches.map(|batches| batches.total));
    span.record("groupcast.calls", result.calls);
    span.record("groupcast.status", result.status.as_str());
    span.record("otel.status_code", if result.errors.is_empty() { "OK" } else { "ERROR" });
}

/// The recorded result of an earlier copy, to whoever asked with this one; or of this very message,
/// if it was parked because its result could not be published. Then the record is kept for as long
/// as others once the result is out.
fn repeat(
    result: JobResult,
    owed_record: Option<(Entry, String)>,
    body: Vec<u8>,
    envelope: Envelope,
) -> Owed {
    let result = JobResult { duplicate: !envelope.owes_result, ..result };
    debug!(app = result.app, job_id = result.job_id, "job answered from its record");
    let reply = reply::compose(&result, &result.json(), &envelope).map(Box::new);
    let tally =
        if envelope.owes_result { ended(result, &envelope, clock::now()) } else { Tally::Repeated };
    let envelope = Arc::new(envelope);
    let job = Owing {
        content: Content::Original(body),
        envelope,
        letter_is_confirmed: true,
        unrecorded: None,
    };
    Owed::Answer { dead_letter: None, reply, record: owed_record, tally, job }
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

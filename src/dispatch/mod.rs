//! Sends the batches of one app's jobs: the only caller of the API.
//!
//! One task owns the queue, the retries and the calls in flight, so nothing here is locked and no crowd of waiters is woken.
//! The order of a turn is: room in flight, then a token, then the choice of the batch, then the send; so the batch that is
//! due at the moment of sending is the one that goes. What came of a call is recorded before anything follows from it.

mod call;
mod sending;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, error};

use self::{
    call::{Permission, call},
    sending::{Course, Request, Sending},
};
use crate::{
    accept::lease::Lease,
    clock,
    config::Retry,
    delay,
    job::{Envelope, Job},
    outcome::{BatchOutcome, BatchProgress, BatchState, Report},
    pace::{FairQueue, Pacer, SendSlot, Turn, fair_queue::JobKey},
    send::{
        call::Api,
        classify::{Answer, Verdict, classify},
        codes::Class,
        retry::{self, Next, Supervision},
    },
    settle::progress::{Entry, store::StoreLost},
};

/// Jobs handed over and not yet taken up.
const INBOX: usize = 64;
/// When calls may not start, how soon to look whether they may now.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A job that is not done by then is parked, whatever it waits for: a third of the time after which brokers commonly take
/// deliveries away.
const HELD_AT_MOST: Duration = Duration::from_secs(10 * 60);

/// A job to send.
pub struct Submission {
    pub job: Arc<Job>,
    pub envelope: Arc<Envelope>,
    pub lease: Lease,
    /// Where its progress is recorded; `None` for a job that nobody could recognise when it comes again.
    pub entry: Option<Entry>,
    /// How far it has come before.
    pub batches: Vec<(u32, BatchProgress)>,
    /// Told how many batches have ended.
    pub told: Option<watch::Sender<u32>>,
}

/// How the work on a job ended.
pub enum Ending {
    Finished(Report),
    /// It has to wait for longer than it may be held. With the batches that have been touched.
    Parked(Vec<(u32, BatchProgress)>),
}

/// The job was not finished. It comes again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unfinished {
    #[error("the job was let go")]
    LetGo,
    #[error("its progress could not be recorded: {0}")]
    Store(#[from] StoreLost),
}

/// Hands jobs to an app's dispatcher.
#[derive(Clone)]
pub struct Dispatcher(mpsc::Sender<Command>);

enum Command {
    Send(Submission, oneshot::Sender<Result<Ending, Unfinished>>),
    /// Let go of jobs whose lease no longer allows calls.
    LetGo,
}

/// What a dispatcher works with.
pub struct Settings<A> {
    pub api: Arc<A>,
    pub pacer: Pacer,
    pub max_in_flight: usize,
    pub retry: Retry,
    pub supervision: Supervision,
    /// Whether the outcome of a call that starts now could be told and recorded.
    pub may_start: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Dispatcher {
    /// Runs until the last handle is dropped. A panic ends the jobs that were being sent, not the dispatcher.
    pub fn start<A: Api>(settings: Settings<A>) -> Self {
        let (sender, mut inbox) = mpsc::channel(INBOX);
        let settings = Arc::new(settings);
        tokio::spawn(async move {
            while AssertUnwindSafe(Dispatch::new(settings.clone()).run(&mut inbox)).catch_unwind().await.is_err() {
                error!("the dispatcher panicked; its jobs come again");
            }
        });
        Self(sender)
    }

    /// Sends a job's batches and says how that ended.
    pub async fn send(&self, submission: Submission) -> Result<Ending, Unfinished> {
        let (done, ending) = oneshot::channel();
        self.0.send(Command::Send(submission, done)).await.map_err(|_| Unfinished::LetGo)?;
        ending.await.map_err(|_| Unfinished::LetGo)?
    }

    /// Lets go of the jobs whose lease no longer allows calls.
    pub async fn let_go(&self) {
        let _ = self.0.send(Command::LetGo).await;
    }
}

struct Dispatch<A> {
    settings: Arc<Settings<A>>,
    queue: FairQueue,
    /// In the order in which they were taken up.
    jobs: BTreeMap<JobKey, Sending>,
    next_key: JobKey,
    /// What happens later, soonest first.
    later: BinaryHeap<Reverse<(Instant, JobKey, Later)>>,
    /// Calls made whose outcome is not yet recorded: as many may be repeated after a crash.
    calls_in_flight: usize,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    /// When the API last accepted a batch.
    accepted_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    /// The job may be sent from now on.
    Begin,
    /// The batch is tried again.
    Again(u32),
}

/// What was under way and is done, for one batch.
struct Done {
    key: JobKey,
    batch: u32,
    what: What,
}

enum What {
    /// A call came back, or did not start because its intent could not be recorded.
    Called(Result<Answer, StoreLost>),
    Recorded(Result<(), StoreLost>, Then),
}

/// What follows for a batch once its progress is recorded.
#[derive(Debug, Clone, Copy)]
enum Then {
    Ended,
    Again { after: Duration },
    AgainAtOnce,
    Park,
}

impl<A: Api> Dispatch<A> {
    fn new(settings: Arc<Settings<A>>) -> Self {
        Self {
            settings,
            queue: FairQueue::default(),
            jobs: BTreeMap::new(),
            next_key: 0,
            later: BinaryHeap::new(),
            calls_in_flight: 0,
            under_way: FuturesUnordered::new(),
            accepted_at: None,
        }
    }

    async fn run(mut self, inbox: &mut mpsc::Receiver<Command>) {
        loop {
            let now = Instant::now();
            self.do_what_is_due(now);
            let look_again = self.start_calls(now);
            let wake = [look_again, self.next_due()].into_iter().flatten().min();
            tokio::select! {
                biased;
                Some(Done { key, batch, what }) = self.under_way.next() => match what {
                    What::Called(answer) => self.judge(key, batch, answer, Instant::now()),
                    What::Recorded(recorded, then) => self.follow(key, batch, recorded, then, Instant::now()),
                },
                command = inbox.recv() => match command {
                    Some(Command::Send(submission, done)) => self.take_up(submission, done, Instant::now()),
                    Some(Command::LetGo) => self.let_go(),
                    // Whoever waited for a report is gone too.
                    None => return,
                },
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    fn take_up(&mut self, submission: Submission, done: oneshot::Sender<Result<Ending, Unfinished>>, now: Instant) {
        let key = self.next_key;
        self.next_key += 1;
        let not_before = submission.envelope.not_before.map(|at| instant_of(at, now)).filter(|at| *at > now);
        let job = Sending::new(submission, done, now);
        let may_call = job.submission.lease.allows_calls();
        let begin = not_before.map(|at| sooner(at, job.deadline));
        self.jobs.insert(key, job);
        match begin {
            _ if !may_call => self.abandon(key, Unfinished::LetGo),
            Some(at) if !self.may_hold_until(at, now) => self.park(key),
            Some(at) => self.later.push(Reverse((at, key, Later::Begin))),
            None => self.begin(key),
        }
        self.finish_if_done(key);
    }

    fn may_hold_until(&self, at: Instant, now: Instant) -> bool {
        self.settings.supervision == Supervision::Attended || at.saturating_duration_since(now) <= self.settings.retry.hold
    }

    fn begin(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get(&key) else { return };
        self.queue.add(key, job.submission.envelope.priority, job.unsent());
    }

    fn next_due(&self) -> Option<Instant> {
        let later = self.later.peek().map(|Reverse((at, ..))| *at);
        let held_longest = self.held_longest().map(|(_, job)| job.taken_up + HELD_AT_MOST);
        [later, held_longest].into_iter().flatten().min()
    }

    fn do_what_is_due(&mut self, now: Instant) {
        while let Some(&Reverse((at, key, later))) = self.later.peek()
            && at <= now
        {
            self.later.pop();
            if !self.jobs.get(&key).is_some_and(Sending::is_sending) {
                continue;
            }
            match later {
                Later::Begin => self.begin(key),
                Later::Again(batch) => self.queue.put_back(key, batch),
            }
            self.expire_if_overdue(key, now);
        }
        while let Some((key, _)) = self.held_longest().filter(|(_, job)| job.taken_up + HELD_AT_MOST <= now) {
            self.park(key);
        }
    }

    /// The job among those that can be parked which was taken up first.
    fn held_longest(&self) -> Option<(JobKey, &Sending)> {
        let first = match self.settings.supervision {
            Supervision::Unattended => self.jobs.iter().find(|(_, job)| job.is_sending()),
            Supervision::Attended => None,
        };
        first.map(|(key, job)| (*key, job))
    }

    /// Starts as many calls as may leave now. Says when to look again, if time alone can change the answer.
    fn start_calls(&mut self, now: Instant) -> Option<Instant> {
        while !self.queue.is_empty() && self.calls_in_flight < self.settings.max_in_flight {
            if !(self.settings.may_start)() {
                return Some(now + LOOK_AGAIN);
            }
            match self.settings.pacer.turn(now) {
                Turn::Now(slot) => self.start_next(slot, now),
                Turn::At(at) => return Some(at),
                Turn::AfterAWrite => return Some(now + LOOK_AGAIN),
            }
        }
        None
    }

    fn start_next(&mut self, slot: SendSlot, now: Instant) {
        while let Some((key, batch)) = self.queue.take_next() {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            if !job.submission.lease.allows_calls() {
                self.abandon(key, Unfinished::LetGo);
            } else if job.is_overdue(now) {
                self.expire_if_overdue(key, now);
            } else {
                job.busy += 1;
                self.calls_in_flight += 1;
                let permission = Permission { lease: job.submission.lease.clone(), deadline: job.deadline, slot };
                let body = job.submission.job.request_body(batch);
                let intent = job.intend(batch);
                let api = self.settings.api.clone();
                self.under_way.push(Box::pin(async move {
                    let what = What::Called(call(&*api, batch, body, intent, permission).await);
                    Done { key, batch, what }
                }));
                return;
            }
        }
        slot.unused();
    }

    /// Decides what follows from a call, and records it.
    fn judge(&mut self, key: JobKey, batch: u32, called: Result<Answer, StoreLost>, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match called {
            Err(error) => self.follow(key, batch, Err(error), Then::AgainAtOnce, now),
            Ok(Answer::Withdrawn) => {
                job.set_state(batch, BatchState::Open);
                self.record(key, batch, Then::AgainAtOnce, now);
            }
            Ok(answer) => {
                let then = self.decide(key, batch, answer, now);
                self.record(key, batch, then, now);
            }
        }
    }

    fn decide(&mut self, key: JobKey, batch: u32, answer: Answer, now: Instant) -> Then {
        let job = self.jobs.get_mut(&key).expect("the caller has seen it");
        let request = if matches!(answer, Answer::NotSent { .. }) { Request::NotSent } else { Request::Sent };
        let verdict = classify(answer);
        let attempts = job.count(batch, request, &verdict, self.accepted_at);
        match &verdict {
            Verdict::Failed { class: Class::RateLimited, .. } => self.settings.pacer.slow_down(now),
            Verdict::Failed { class: Class::Credential | Class::CredentialOrJob, .. } => self.settings.api.renew_user_sig(),
            Verdict::Failed { .. } => {}
            Verdict::Sent => self.accepted_at = Some(clock::now()),
        }
        if let Verdict::Failed { class, fault } = &verdict {
            debug!(job_id = job.submission.envelope.job_id, batch, ?class, code = fault.code, info = fault.info, "a call failed");
        }
        let promise = job.submission.envelope.delivery;
        let Settings { retry, supervision, .. } = &*self.settings;
        let next = retry::decide(verdict, promise, attempts, retry, *supervision, delay::jitter());
        let attempts = attempts.count;
        let (state, then) = match next {
            Next::Sent => (BatchState::Ended(BatchOutcome::Sent), Then::Ended),
            Next::Failed(kind, fault) => (BatchState::Ended(BatchOutcome::Failed { kind, fault, attempts }), Then::Ended),
            Next::Unknown(fault) => (BatchState::Ended(BatchOutcome::Unknown { fault, attempts }), Then::Ended),
            Next::Again { after } => (BatchState::Open, Then::Again { after }),
            Next::Park => (BatchState::Open, Then::Park),
        };
        job.set_state(batch, state);
        then
    }

    /// Records how a batch stands, if the job has a record, and goes on from there.
    fn record(&mut self, key: JobKey, batch: u32, then: Then, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match &job.submission.entry {
            None => self.follow(key, batch, Ok(()), then, now),
            Some(entry) => {
                let (entry, progress) = (entry.clone(), job.batch(batch).clone());
                self.under_way.push(Box::pin(async move {
                    let what = What::Recorded(entry.note(batch, &progress).await, then);
                    Done { key, batch, what }
                }));
            }
        }
    }

    fn follow(&mut self, key: JobKey, batch: u32, recorded: Result<(), StoreLost>, then: Then, now: Instant) {
        self.calls_in_flight -= 1;
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.busy -= 1;
        match (recorded, then) {
            (Err(error), _) => return self.abandon(key, error.into()),
            (Ok(()), Then::Ended) => job.ended(),
            (Ok(()), Then::Again { after }) => {
                self.later.push(Reverse((sooner(now + after, job.deadline), key, Later::Again(batch))));
            }
            (Ok(()), Then::AgainAtOnce) if job.is_sending() => self.queue.put_back(key, batch),
            (Ok(()), Then::AgainAtOnce) => {}
            (Ok(()), Then::Park) => self.park(key),
        }
        self.expire_if_overdue(key, now);
        self.finish_if_done(key);
    }

    /// After the deadline no call is made: what has no outcome is expired.
    fn expire_if_overdue(&mut self, key: JobKey, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let abandoned = matches!(job.course, Course::Abandoned(_));
        if job.is_overdue(now) && job.busy == 0 && !abandoned {
            self.queue.remove(key);
            job.expire();
            self.finish_if_done(key);
        }
    }

    fn let_go(&mut self) {
        let forbidden = |(_, job): &(&JobKey, &Sending)| !job.submission.lease.allows_calls();
        let keys: Vec<JobKey> = self.jobs.iter().filter(forbidden).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.abandon(key, Unfinished::LetGo));
    }

    /// Starts no further call for a job; it ends when what is under way for it has.
    fn abandon(&mut self, key: JobKey, why: Unfinished) {
        self.leave(key, Course::Abandoned(why));
    }

    /// The same, and then the job waits elsewhere.
    fn park(&mut self, key: JobKey) {
        if self.jobs.get(&key).is_some_and(Sending::is_sending) {
            self.leave(key, Course::Parking);
        }
    }

    fn leave(&mut self, key: JobKey, course: Course) {
        self.queue.remove(key);
        if let Some(job) = self.jobs.get_mut(&key) {
            job.course = course;
        }
        self.finish_if_done(key);
    }

    fn finish_if_done(&mut self, key: JobKey) {
        if self.jobs.get(&key).is_some_and(Sending::is_done)
            && let Some(job) = self.jobs.remove(&key)
        {
            self.queue.remove(key);
            job.finish();
        }
    }
}

fn sooner(at: Instant, deadline: Option<Instant>) -> Instant {
    deadline.map_or(at, |deadline| deadline.min(at))
}

/// The moment of the runtime's clock at which the wall clock will show `at`.
fn instant_of(at: Timestamp, now: Instant) -> Instant {
    let seconds = at.duration_since(clock::now()).as_secs_f64();
    now + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::ZERO)
}

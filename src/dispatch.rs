//! Sends the batches of one app's jobs: the only caller of the API.
//!
//! One task owns the queue, the retries and the calls in flight, so nothing here is locked and no crowd of waiters is woken.
//! The order of a turn is: room in flight, then a token, then the choice of the batch, then the send; so the batch that is
//! due at the moment of sending is the one that goes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
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

use crate::{
    accept::lease::Lease,
    config::Retry,
    job::{Envelope, Job},
    outcome::{BatchOutcome, FailureKind, Fault, Report},
    pace::{FairQueue, Pacer, SendSlot, Turn, fair_queue::JobKey},
    send::{
        call::{Api, AtWrite},
        classify::{Answer, Verdict, classify},
        codes::Class,
        retry::{self, Attempts, Next, OnAccountFault, Others},
    },
};

/// Jobs handed over and not yet taken up.
const INBOX: usize = 64;
/// When calls may not start, how soon to look whether they may now.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A job to send.
pub struct Submission {
    pub job: Arc<Job>,
    pub envelope: Arc<Envelope>,
    pub lease: Lease,
    /// Told how many batches have ended.
    pub progress: Option<watch::Sender<u32>>,
}

/// The job was not finished: its lease was lost or the daemon stops. It comes again.
#[derive(Debug)]
pub struct Unfinished;

/// Hands jobs to an app's dispatcher.
#[derive(Clone)]
pub struct Dispatcher(mpsc::Sender<Command>);

enum Command {
    Send(Submission, oneshot::Sender<Result<Report, Unfinished>>),
    /// Let go of jobs whose lease no longer allows calls.
    LetGo,
}

/// What a dispatcher works with.
pub struct Settings<A> {
    pub api: Arc<A>,
    pub pacer: Pacer,
    pub max_in_flight: usize,
    pub retry: Retry,
    pub on_account_fault: OnAccountFault,
    /// Whether the outcome of a call that starts now could be told.
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

    /// Sends a job's batches and says how each ended.
    pub async fn send(&self, submission: Submission) -> Result<Report, Unfinished> {
        let (done, report) = oneshot::channel();
        self.0.send(Command::Send(submission, done)).await.map_err(|_| Unfinished)?;
        report.await.map_err(|_| Unfinished)?
    }

    /// Lets go of the jobs whose lease no longer allows calls.
    pub async fn let_go(&self) {
        let _ = self.0.send(Command::LetGo).await;
    }
}

struct Dispatch<A> {
    settings: Arc<Settings<A>>,
    queue: FairQueue,
    jobs: HashMap<JobKey, Sending>,
    next_key: JobKey,
    /// What happens later, soonest first.
    later: BinaryHeap<Reverse<(Instant, JobKey, Later)>>,
    calls: FuturesUnordered<BoxFuture<'static, Called>>,
    /// When the API last accepted a batch.
    accepted_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    /// The job may be sent from now on.
    Begin,
    /// The batch is tried again.
    Again(u32),
}

/// A job while it is sent.
struct Sending {
    submission: Submission,
    outcomes: Vec<Option<BatchOutcome>>,
    /// Batches without an outcome.
    open: u32,
    in_flight: u32,
    calls: u64,
    /// Of batches that are tried again.
    attempts: HashMap<u32, Tried>,
    taken_up: Instant,
    deadline: Option<Instant>,
    abandoned: bool,
    done: oneshot::Sender<Result<Report, Unfinished>>,
}

/// A batch's attempts so far.
#[derive(Debug, Clone, Copy)]
struct Tried {
    /// Those that counted.
    count: u32,
    first_at: Instant,
}

/// A call that came back.
struct Called {
    key: JobKey,
    batch: u32,
    answer: Answer,
}

impl<A: Api> Dispatch<A> {
    fn new(settings: Arc<Settings<A>>) -> Self {
        Self {
            settings,
            queue: FairQueue::default(),
            jobs: HashMap::new(),
            next_key: 0,
            later: BinaryHeap::new(),
            calls: FuturesUnordered::new(),
            accepted_at: None,
        }
    }

    async fn run(mut self, inbox: &mut mpsc::Receiver<Command>) {
        loop {
            let now = Instant::now();
            self.do_what_is_due(now);
            let look_again = self.start_calls(now);
            let due = self.later.peek().map(|Reverse((at, ..))| *at);
            let wake = [look_again, due].into_iter().flatten().min();
            tokio::select! {
                biased;
                Some(called) = self.calls.next() => self.judge(called, Instant::now()),
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

    fn take_up(&mut self, submission: Submission, done: oneshot::Sender<Result<Report, Unfinished>>, now: Instant) {
        let key = self.next_key;
        self.next_key += 1;
        let batches = submission.job.batch_count();
        let envelope = &submission.envelope;
        let deadline = envelope.deadline.map(|at| instant_of(at, now));
        match envelope.not_before.map(|at| instant_of(at, now)) {
            Some(at) if at > now => self.later.push(Reverse((sooner(at, deadline), key, Later::Begin))),
            _ => self.queue.add(key, envelope.priority, 0..batches),
        }
        let may_call = submission.lease.allows_calls();
        let sending = Sending {
            submission,
            outcomes: vec![None; batches as usize],
            open: batches,
            in_flight: 0,
            calls: 0,
            attempts: HashMap::new(),
            taken_up: now,
            deadline,
            abandoned: false,
            done,
        };
        self.jobs.insert(key, sending);
        if !may_call {
            self.abandon(key);
        }
    }

    fn do_what_is_due(&mut self, now: Instant) {
        while let Some(&Reverse((at, key, later))) = self.later.peek() {
            if at > now {
                return;
            }
            self.later.pop();
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            match later {
                Later::Begin => {
                    let priority = job.submission.envelope.priority;
                    self.queue.add(key, priority, 0..job.submission.job.batch_count());
                }
                Later::Again(batch) => self.queue.put_back(key, batch),
            }
            self.expire_if_overdue(key, now);
        }
    }

    /// Starts as many calls as may leave now. Says when to look again, if time alone can change the answer.
    fn start_calls(&mut self, now: Instant) -> Option<Instant> {
        while !self.queue.is_empty() && self.calls.len() < self.settings.max_in_flight {
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
                self.abandon(key);
            } else if job.is_overdue(now) {
                self.expire_if_overdue(key, now);
            } else {
                job.in_flight += 1;
                let permission = Permission { lease: job.submission.lease.clone(), deadline: job.deadline, slot };
                let body = job.submission.job.request_body(batch);
                self.calls.push(Box::pin(call(self.settings.api.clone(), key, batch, body, permission)));
                return;
            }
        }
        slot.unused();
    }

    /// Notes the outcome of a call, or when it is tried again.
    fn judge(&mut self, Called { key, batch, answer }: Called, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.in_flight -= 1;
        if answer == Answer::Withdrawn {
            self.queue.put_back(key, batch);
            self.expire_if_overdue(key, now);
            return self.finish_if_done(key);
        }
        job.calls += u64::from(!matches!(answer, Answer::NotSent { .. }));
        let verdict = classify(answer);
        let attempts = job.count_attempt(batch, &verdict, now, self.accepted_at);
        match &verdict {
            Verdict::Failed { class: Class::RateLimited, .. } => self.settings.pacer.slow_down(now),
            Verdict::Failed { class: Class::Credential | Class::CredentialOrJob, .. } => self.settings.api.renew_user_sig(),
            Verdict::Failed { .. } => {}
            Verdict::Sent => self.accepted_at = Some(now),
        }
        if let Verdict::Failed { class, fault } = &verdict {
            debug!(job_id = job.submission.envelope.job_id, batch, ?class, code = fault.code, info = fault.info, "a call failed");
        }
        let promise = job.submission.envelope.delivery;
        let Settings { retry, on_account_fault, .. } = &*self.settings;
        match retry::decide(verdict, promise, attempts, retry, *on_account_fault, rand::random()) {
            Next::Sent => job.end(batch, BatchOutcome::Sent),
            Next::Failed(kind, fault) => job.end(batch, BatchOutcome::Failed { kind, fault, attempts: attempts.count }),
            Next::Unknown(fault) => job.end(batch, BatchOutcome::Unknown { fault, attempts: attempts.count }),
            Next::Again { after } => {
                self.later.push(Reverse((sooner(now + after, job.deadline), key, Later::Again(batch))));
            }
        }
        self.expire_if_overdue(key, now);
        self.finish_if_done(key);
    }

    /// After the deadline no call is made: what has no outcome and is not in flight is expired.
    fn expire_if_overdue(&mut self, key: JobKey, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if !job.is_overdue(now) || job.in_flight > 0 {
            return;
        }
        self.queue.remove(key);
        for batch in 0..job.outcomes.len() as u32 {
            if job.outcomes[batch as usize].is_none() {
                let fault = Fault { code: None, http_status: None, info: "the deadline passed".into() };
                let attempts = job.attempts.get(&batch).map_or(0, |tried| tried.count);
                job.end(batch, BatchOutcome::Failed { kind: FailureKind::Expired, fault, attempts });
            }
        }
        self.finish_if_done(key);
    }

    fn let_go(&mut self) {
        let forbidden = |(_, job): &(&JobKey, &Sending)| !job.submission.lease.allows_calls();
        let keys: Vec<JobKey> = self.jobs.iter().filter(forbidden).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.abandon(key));
    }

    /// Starts no further call for a job; it ends when its calls in flight have.
    fn abandon(&mut self, key: JobKey) {
        self.queue.remove(key);
        if let Some(job) = self.jobs.get_mut(&key) {
            job.abandoned = true;
        }
        self.finish_if_done(key);
    }

    fn finish_if_done(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get(&key) else { return };
        let given_up = job.abandoned && job.in_flight == 0;
        if job.open > 0 && !given_up {
            return;
        }
        self.queue.remove(key);
        let Some(job) = self.jobs.remove(&key) else { return };
        // Nobody listens if the work on the delivery was given up.
        let _ = job.done.send(match job.open {
            0 => Ok(Report { batches: job.outcomes.into_iter().flatten().collect(), calls: job.calls }),
            _ => Err(Unfinished),
        });
    }
}

impl Sending {
    fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn count_attempt(&mut self, batch: u32, verdict: &Verdict, now: Instant, accepted_at: Option<Instant>) -> Attempts {
        let tried = self.attempts.entry(batch).or_insert(Tried { count: 0, first_at: now });
        match verdict {
            Verdict::Failed { class: Class::RateLimited, .. } => {}
            Verdict::Failed { .. } | Verdict::Sent => tried.count += 1,
        }
        let others = if accepted_at.is_some_and(|at| at > tried.first_at) { Others::Accepted } else { Others::Unknown };
        Attempts { count: tried.count, since_first: now - tried.first_at, held: now - self.taken_up, others }
    }

    fn end(&mut self, batch: u32, outcome: BatchOutcome) {
        self.outcomes[batch as usize] = Some(outcome);
        self.attempts.remove(&batch);
        self.open -= 1;
        if let Some(progress) = &self.submission.progress {
            progress.send_replace(self.outcomes.len() as u32 - self.open);
        }
    }
}

async fn call<A: Api>(api: Arc<A>, key: JobKey, batch: u32, body: Vec<u8>, permission: Permission) -> Called {
    let answer = api.call(body, move || permission.use_up(Instant::now())).await;
    Called { key, batch, answer }
}

/// What a call needs at the moment of its writing, which may be a connection's handshake after it was started.
struct Permission {
    lease: Lease,
    deadline: Option<Instant>,
    slot: SendSlot,
}

impl Permission {
    fn use_up(self, now: Instant) -> AtWrite {
        if !self.lease.allows_calls() || self.deadline.is_some_and(|deadline| deadline <= now) {
            return AtWrite::Withdraw;
        }
        self.slot.written(now);
        AtWrite::Send
    }
}

fn sooner(at: Instant, deadline: Option<Instant>) -> Instant {
    deadline.map_or(at, |deadline| deadline.min(at))
}

/// The moment of the runtime's clock at which the wall clock will show `at`.
fn instant_of(at: Timestamp, now: Instant) -> Instant {
    let seconds = at.duration_since(Timestamp::now()).as_secs_f64();
    now + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::ZERO)
}

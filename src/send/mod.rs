//! Sends the batches of one app's jobs: the only caller of the API.
//!
//! One task owns the queue, the retries and the calls in flight, so nothing here is locked and no
//! crowd of waiters is woken. The order of a turn is: room in flight, then a token, then the choice
//! of the batch, then the send; so the batch that is due at the moment of sending is the one that
//! goes. What came of a call is recorded before anything follows from it.

mod breaker;
mod call;
pub mod condition;
mod counted;
mod decision;
mod dispatcher;
mod idle;
mod probing;
mod sending;
mod split_again;
mod submission;
mod waiting;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::debug;

use self::{
    call::{Permission, call, note_answer},
    condition::Condition,
    counted::{Count, Work},
    decision::{Attempts, Circumstances, Decision, decide},
    dispatcher::Command,
    idle::IdleTimes,
    sending::{Course, Request, Sending},
    waiting::{Later, instant_of, sooner},
};
pub use self::{
    decision::Supervision,
    dispatcher::{Dispatcher, Settings, Tuning},
    submission::{Advance, Ending, HeldJob, Submission, Unfinished},
};
use crate::{
    api::{
        call::Api,
        classify::{Answer, Verdict, classify},
        codes::Class,
    },
    clock, delay,
    job::outcome::BatchState,
    pace::{FairQueue, SendSlot, Turn, fair_queue::JobKey},
    progress::store::StoreLost,
    send::breaker::{Allowed, Blame, Breaker, Waits},
};

/// When calls may not start, how soon to look whether they may now.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// When an app pauses, its jobs go back to the queue. One that went back so often is parked
/// instead, because the broker gives up on a message that it has delivered 50 times; so is one
/// without a record that would be sent anew.
pub const RETURNED_AT_MOST: u32 = 10;

struct Dispatch<A> {
    settings: Arc<Settings<A>>,
    tuning: watch::Receiver<Tuning>,
    queue: FairQueue,
    /// In the order in which they were taken up.
    jobs: BTreeMap<JobKey, Sending>,
    next_key: JobKey,
    /// What happens later, soonest first.
    later: BinaryHeap<Reverse<(Instant, JobKey, Later)>>,
    /// Calls made whose outcome is not yet recorded: as many may be repeated after a crash.
    calls_in_flight: Count,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    breaker: Breaker,
    idle: IdleTimes,
    /// Batches that wait for the app to go on; most are let go before.
    withheld: Vec<(JobKey, u32)>,
    condition: Arc<watch::Sender<Condition>>,
}

/// What was under way and is done.
enum Done {
    /// A batch's call came back, or did not start because its intent could not be recorded.
    Called {
        key: JobKey,
        batch: u32,
        started: Instant,
        answer: Result<Answer, StoreLost>,
        work: Work,
    },
    Recorded {
        key: JobKey,
        batch: u32,
        recorded: Result<(), StoreLost>,
        decision: Decision,
        work: Work,
    },
    /// A probe came back, or was not made because another replica consumes.
    Probed(Option<Answer>),
}

impl<A: Api> Dispatch<A> {
    fn new(
        settings: Arc<Settings<A>>,
        tuning: watch::Receiver<Tuning>,
        condition: Arc<watch::Sender<Condition>>,
    ) -> Self {
        condition.send_replace(Condition::Working);
        let waits = Waits::of(&tuning.borrow());
        Self {
            breaker: Breaker::new(waits, settings.supervision, Instant::now()),
            condition,
            idle: IdleTimes::new(),
            withheld: Vec::new(),
            settings,
            tuning,
            queue: FairQueue::default(),
            jobs: BTreeMap::new(),
            next_key: 0,
            later: BinaryHeap::new(),
            calls_in_flight: Count::default(),
            under_way: FuturesUnordered::new(),
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
                Some(done) = self.under_way.next() => self.go_on(done),
                command = inbox.recv() => match command {
                    Some(command) => self.handle(command),
                    // Whoever waited for a report is gone too.
                    None => return,
                },
                Ok(()) = self.tuning.changed() => {
                    let waits = Waits::of(&self.tuning.borrow());
                    self.breaker.reconfigured(waits, Instant::now());
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
            // What else is there is taken in the same turn.
            while let Some(Some(done)) = self.under_way.next().now_or_never() {
                self.go_on(done);
            }
            while let Ok(command) = inbox.try_recv() {
                self.handle(command);
            }
        }
    }

    fn go_on(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Called { key, batch, started, answer, work } => {
                self.judge(key, batch, started, answer, work, now)
            }
            Done::Recorded { key, batch, recorded, decision, work } => {
                self.follow(key, batch, recorded, decision, work, now)
            }
            Done::Probed(answer) => self.judge_probe(answer, now),
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Send(submission, done) => self.take_up(submission, done, Instant::now()),
            Command::LetGo => {
                self.idle.begin(clock::now());
                self.let_go();
            }
            Command::Tell(answer) => {
                // Whoever asked may have left.
                let _ = answer.send(self.jobs.values().map(Sending::held).collect());
            }
        }
    }

    fn take_up(
        &mut self,
        submission: Submission,
        done: oneshot::Sender<Result<Ending, Unfinished>>,
        now: Instant,
    ) {
        let key = self.next_key;
        self.next_key += 1;
        let not_before =
            submission.envelope.not_before.map(|at| instant_of(at, now)).filter(|at| *at > now);
        let job = Sending::new(submission, done, now);
        let may_call = job.submission.lease.allows_calls();
        if may_call {
            self.idle.end(clock::now());
        }
        let begin = not_before.map(|at| sooner(at, job.deadline));
        self.jobs.insert(key, job);
        match begin {
            _ if !may_call => self.let_go_of(key),
            Some(at) if !self.may_hold_until(at, now) => self.park(key),
            Some(at) => self.later.push(Reverse((at, key, Later::Begin))),
            None => self.begin(key, now),
        }
        self.finish_if_done(key);
    }

    /// Starts as many calls as may leave now. Says when to look again, if time alone can change the
    /// answer.
    fn start_calls(&mut self, now: Instant) -> Option<Instant> {
        let most_in_flight = self.tuning.borrow().max_in_flight;
        let most_in_flight = match self.breaker.allowed(most_in_flight, now) {
            Allowed::Calls { in_flight } => in_flight,
            // Whoever has the jobs now finds out.
            Allowed::Probe | Allowed::ProbeAt(_) if !self.may_probe() => return None,
            Allowed::Probe => return self.start_probe(now),
            Allowed::ProbeAt(at) => return Some(at),
            Allowed::Nothing => return None,
        };
        if let Some(until) = self.breaker.waits_for_another_group()
            && self.of_another_group().is_none()
        {
            return self.wait_for_another_group(until, now);
        }
        while !self.queue.is_empty() && self.calls_in_flight.present() < most_in_flight {
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
        while let Some((key, batch)) = self.choose() {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            if !job.submission.lease.allows_calls() {
                self.let_go_of(key);
            } else if job.is_overdue(now) {
                self.expire_if_overdue(key, now);
            } else {
                let work = Work::call(&job.under_way, &self.calls_in_flight);
                let may_start = self.settings.may_start.clone();
                let permission = Permission {
                    may_start,
                    lease: job.submission.lease.clone(),
                    deadline: job.deadline,
                    slot,
                };
                let body = job.submission.job.request_body(batch);
                let intent = job.intend(batch);
                let span = job.span_of_call(batch);
                let api = self.settings.api.clone();
                self.under_way.push(Box::pin(async move {
                    let answer = call(&*api, batch, body, intent, permission).await;
                    if let Ok(answer) = &answer {
                        note_answer(&span, answer);
                    }
                    Done::Called { key, batch, started: now, answer, work }
                }));
                return;
            }
        }
        slot.unused();
    }

    fn choose(&mut self) -> Option<(JobKey, u32)> {
        match self.of_another_group().filter(|_| self.breaker.prefers_other_groups()) {
            Some(key) => self.queue.take_of(key).map(|batch| (key, batch)),
            None => self.queue.take_next(),
        }
    }

    /// The job that came last of a group that was not refused: those before it may be one
    /// producer's mistake.
    fn of_another_group(&self) -> Option<JobKey> {
        let may_be_tried = |(key, job): &(&JobKey, &Sending)| {
            job.is_sending()
                && self.queue.has(**key)
                && !self.breaker.has_refused(&job.submission.job.group_id)
        };
        self.jobs.iter().rev().find(may_be_tried).map(|(key, _)| *key)
    }

    fn wait_for_another_group(&mut self, until: Instant, now: Instant) -> Option<Instant> {
        if self.calls_in_flight.present() > 0 || until > now {
            return (until > now).then_some(until);
        }
        self.breaker.no_other_group_came(now);
        self.tell_condition(now);
        Some(now)
    }

    /// Decides what follows from a call, and records it.
    fn judge(
        &mut self,
        key: JobKey,
        batch: u32,
        started: Instant,
        answer: Result<Answer, StoreLost>,
        work: Work,
        now: Instant,
    ) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match answer {
            Err(error) => self.follow(key, batch, Err(error), Decision::AgainAtOnce, work, now),
            Ok(Answer::Withdrawn) => {
                job.set_state(batch, BatchState::Open);
                self.record(key, batch, Decision::AgainAtOnce, work, now);
            }
            Ok(answer) => {
                let decision = self.decide(key, batch, started, answer, now);
                self.record(key, batch, decision, work, now);
            }
        }
    }

    fn decide(
        &mut self,
        key: JobKey,
        batch: u32,
        started: Instant,
        answer: Answer,
        now: Instant,
    ) -> Decision {
        let job = self.jobs.get_mut(&key).expect("the caller has seen it");
        let request =
            if matches!(answer, Answer::NotSent { .. }) { Request::NotSent } else { Request::Sent };
        let verdict = classify(answer).on_batch_of(job.submission.job.recipients_in(batch));
        let attempts = job.count(batch, request, &verdict, &self.idle);
        let promise = job.submission.envelope.delivery;
        let group = &job.submission.job.group_id;
        let blame = self.breaker.judge(&verdict, group, started, now);
        let group_refused_for =
            self.breaker.refused_since(group).map_or(Duration::ZERO, |since| now - since);
        if let Verdict::Failed { class, fault } = &verdict {
            if *class == Class::RateLimited {
                self.settings.pacer.slow_down(now);
            }
            debug!(
                job_id = job.submission.envelope.job_id,
                batch,
                ?class,
                code = fault.code,
                info = fault.info,
                "a call failed"
            );
        }
        if blame == Blame::UserSig {
            self.settings.api.renew_user_sig();
        }
        let decision = {
            let policy = &self.tuning.borrow().retry;
            let (supervision, jitter) = (self.settings.supervision, delay::jitter());
            let circumstances = Circumstances {
                blame,
                promise,
                attempts,
                group_refused_for,
                policy,
                supervision,
                jitter,
            };
            decide(verdict, &circumstances)
        };
        job.set_state(batch, decision.state());
        self.tell_condition(now);
        decision
    }

    /// Records how a batch stands, if the job has a record, and goes on from there.
    fn record(&mut self, key: JobKey, batch: u32, decision: Decision, work: Work, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match &job.submission.entry {
            None => self.follow(key, batch, Ok(()), decision, work, now),
            Some(entry) => {
                let (entry, progress) = (entry.clone(), job.batch(batch).clone());
                self.under_way.push(Box::pin(async move {
                    let recorded = entry.note(batch, &progress).await;
                    Done::Recorded { key, batch, recorded, decision, work }
                }));
            }
        }
    }

    fn follow(
        &mut self,
        key: JobKey,
        batch: u32,
        recorded: Result<(), StoreLost>,
        decision: Decision,
        work: Work,
        now: Instant,
    ) {
        drop(work);
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match (recorded, decision) {
            (Err(error), _) => return self.abandon(key, error.into()),
            (Ok(()), Decision::Ended(_)) => job.ended(),
            (Ok(()), Decision::Again { after }) => {
                self.later.push(Reverse((
                    sooner(now + after, job.deadline),
                    key,
                    Later::Again(batch),
                )));
            }
            (Ok(()), Decision::AgainAtOnce) if job.is_sending() => self.queue.put_back(key, batch),
            (Ok(()), Decision::AgainAtOnce) => {}
            (Ok(()), Decision::WhenTheAppGoesOn) if self.breaker.condition().is_paused() => {
                self.withheld.push((key, batch))
            }
            (Ok(()), Decision::WhenTheAppGoesOn) if job.is_sending() => {
                self.queue.put_back(key, batch)
            }
            (Ok(()), Decision::WhenTheAppGoesOn) => {}
            (Ok(()), Decision::Park) => self.park(key),
            (Ok(()), Decision::Split) => self.split(key),
        }
        self.expire_if_overdue(key, now);
        self.finish_if_done(key);
    }

    /// After the deadline no call is made: what has no outcome is expired.
    fn expire_if_overdue(&mut self, key: JobKey, now: Instant) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let abandoned = matches!(job.course, Course::Abandoned(_));
        if job.is_overdue(now) && job.under_way.present() == 0 && !abandoned {
            self.queue.remove(key);
            job.expire();
            self.finish_if_done(key);
        }
    }

    fn let_go(&mut self) {
        let forbidden = |(_, job): &(&JobKey, &Sending)| !job.submission.lease.allows_calls();
        let keys: Vec<JobKey> = self.jobs.iter().filter(forbidden).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.let_go_of(key));
        self.withheld.retain(|(key, _)| self.jobs.contains_key(key));
    }

    /// Mostly the job goes back to the queue. One that would begin anew, or has gone back too
    /// often, waits elsewhere if it can.
    fn let_go_of(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get(&key) else { return };
        let would_repeat = job.submission.entry.is_none() && job.has_begun();
        let is_paused = self.breaker.condition().is_paused() || (self.settings.is_halted)();
        let returned_often = is_paused && job.submission.envelope.redeliveries >= RETURNED_AT_MOST;
        if !job.submission.lease.is_lost() && (would_repeat || returned_often) {
            self.park(key);
        } else {
            self.abandon(key, Unfinished::LetGo);
        }
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

    /// The same, and then the job comes back in smaller batches.
    fn split(&mut self, key: JobKey) {
        if self.jobs.get(&key).is_some_and(Sending::is_sending) {
            self.leave(key, Course::Splitting);
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

//! Sends one job: a loop over what can happen to it, from its first batch to its last outcome.
//!
//! The job leaves the loop when it is done, or for another reason in [`Leaving`]. From then on no
//! call starts for it. The calls in flight end and their outcomes are recorded before the job is
//! handed back.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::{
    Decision, Ending, RETURNED_AT_MOST, Submission, Unfinished,
    batches::Batches,
    gate::{Event, Gate, Place, Room},
    patience::MayTry,
    random::MessageNumbers,
};
use crate::{
    clock,
    job::outcome::{FailureKind, Fault},
    progress::{Entry, store::StoreLost},
    send::condition::Trouble,
};

pub(super) struct SendingJob<'a> {
    pub gate: &'a Arc<Gate>,
    pub submission: &'a Submission,
    pub deadline: Option<Instant>,
    /// Set when the job wants no further call. A call that is not yet written is withdrawn.
    pub calls_ended: Arc<AtomicBool>,
    pub numbers: MessageNumbers,
    batches: Mutex<Batches>,
    began_at: Instant,
}

/// Why no further call starts for a job.
enum Leaving {
    /// All batches have ended, the API has refused the whole job, it is cancelled, or the deadline
    /// has passed.
    Done,
    /// It would have to wait for longer than it may be held.
    Park,
    /// The API takes no batches of this size.
    Split,
    /// Its delivery allows no calls any more. The broker delivers the job again.
    GiveBack,
}

/// A batch after an attempt, and what follows for it now that this is recorded.
pub(super) struct Attempted {
    pub batch: u32,
    pub decision: Result<Decision, StoreLost>,
    /// Dropped after the decision is carried out, so that a batch that goes again at once keeps its
    /// turn. `None` for a batch that ended without a call.
    pub room: Option<Room>,
}

type UnderWay<'a> = FuturesUnordered<BoxFuture<'a, Attempted>>;

impl<'a> SendingJob<'a> {
    pub fn new(gate: &'a Arc<Gate>, submission: &'a Submission) -> Self {
        let now = Instant::now();
        let deadline = submission.envelope.deadline.map(|at| instant_of(at, now));
        let batches = Mutex::new(Batches::of(submission, |progress| gate.may_repeat_now(progress)));
        let (numbers, calls_ended) = (gate.numbers_of(submission), Arc::default());
        Self { gate, submission, deadline, calls_ended, numbers, batches, began_at: now }
    }

    pub async fn run(self) -> Result<Ending, Unfinished> {
        let place = self.gate.enter(self.submission, self.batches().ended());
        let mut under_way = FuturesUnordered::new();
        let mut leaving = self.send_batches(&place, &mut under_way).await;
        self.end_calls();
        place.leave();
        while let Some(attempted) = under_way.next().await {
            match attempted.decision {
                Ok(Decision::Ended(_)) => self.batches().count_ended(),
                Ok(_) => {}
                Err(error) => leaving = Err(error),
            }
        }
        drop(under_way);
        if let Err(error) = self.record_cancellation().await {
            leaving = Err(error);
        }
        self.into_ending(leaving)
    }

    async fn send_batches<'b>(
        &'b self,
        place: &Place,
        under_way: &mut UnderWay<'b>,
    ) -> Result<Leaving, StoreLost> {
        let lease = &self.submission.lease;
        let not_before = self.submission.envelope.not_before;
        let mut begins_at =
            Some(not_before.map_or(self.began_at, |at| instant_of(at, self.began_at)));
        let mut retries = BinaryHeap::new();
        // Until the app resumes.
        let mut withheld = Vec::new();
        let mut calls_end = pin!(lease.until_calls_end());
        let mut cancelled = pin!(self.until_cancelled());
        let mut timer = pin!(sleep_until(self.began_at));
        loop {
            let now = Instant::now();
            let held_until = self.gate.held_until(self.began_at);
            match () {
                () if self.batches().have_all_ended() => return Ok(Leaving::Done),
                () if self.batches().job_has_ended() => return Ok(Leaving::Done),
                () if !lease.allows_calls() => return Ok(self.give_back_or_park(under_way)),
                () if self.is_cancelled() || is_past(self.deadline, now) => {
                    return Ok(Leaving::Done);
                }
                () if is_past(held_until, now) || !self.may_wait_until(begins_at, now) => {
                    return Ok(Leaving::Park);
                }
                () => {}
            }
            if is_past(begins_at, now) {
                begins_at = None;
                self.begin(place, under_way);
            }
            while let Some(&Reverse((at, batch))) = retries.peek()
                && at <= now
            {
                retries.pop();
                match self.may_try(batch) {
                    MayTry::Now => place.ready_again(batch),
                    MayTry::LookAgainAfter(wait) => retries.push(Reverse((now + wait, batch))),
                    MayTry::NoMore(why) => under_way.push(self.give_up(batch, why)),
                }
            }
            let next_retry = retries.peek().map(|Reverse((at, _))| *at);
            let due =
                [begins_at, next_retry, held_until, self.deadline].into_iter().flatten().min();
            if let Some(due) = due
                && due != timer.deadline()
            {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                biased;
                Some(attempted) = under_way.next() => {
                    let Attempted { batch, decision, room: _room } = attempted;
                    match decision? {
                        Decision::Ended(_) => self.batches().count_ended(),
                        Decision::Again { after } => {
                            retries.push(Reverse((Instant::now() + after, batch)));
                        }
                        Decision::WhenResumed if self.gate.is_paused() => withheld.push(batch),
                        Decision::AgainAtOnce | Decision::WhenResumed => place.ready_again(batch),
                        Decision::Park => return Ok(Leaving::Park),
                        Decision::Split => return Ok(Leaving::Split),
                    }
                }
                event = place.event() => match event {
                    // The answer to another call, which is not yet recorded.
                    Event::Granted(grant) if self.batches().job_has_ended() => grant.slot.unused(),
                    Event::Granted(grant) => under_way.push(Box::pin(self.attempt(grant))),
                    Event::Changed if self.gate.is_paused() => {}
                    Event::Changed => withheld.drain(..).for_each(|batch| place.ready_again(batch)),
                },
                () = &mut calls_end => {}
                () = &mut cancelled => {}
                () = &mut timer, if due.is_some() => {}
            }
        }
    }

    /// Makes the batches ready that are not yet sent. In an outage, gives up those that have been
    /// tried for long enough.
    fn begin<'b>(&'b self, place: &Place, under_way: &mut UnderWay<'b>) {
        let unsent: Vec<u32> = self.batches().unsent().collect();
        let mut ready = Vec::with_capacity(unsent.len());
        for batch in unsent {
            match self.may_try(batch) {
                MayTry::NoMore(why) => under_way.push(self.give_up(batch, why)),
                MayTry::Now | MayTry::LookAgainAfter(_) => ready.push(batch),
            }
        }
        place.begin(ready);
    }

    fn may_try(&self, batch: u32) -> MayTry {
        self.gate.may_try(self.batches().get(batch))
    }

    /// Ends a batch without a call, as the outage `why` would end it.
    fn give_up<'b>(&'b self, batch: u32, why: Trouble) -> BoxFuture<'b, Attempted> {
        let fault = Fault { code: None, http_status: why.http_status, info: why.info };
        let outcome = self.batches().end(batch, FailureKind::Transient, fault);
        Box::pin(async move {
            let decision = self.record(batch).await.map(|()| Decision::Ended(outcome));
            Attempted { batch, decision, room: None }
        })
    }

    fn is_cancelled(&self) -> bool {
        self.submission.entry.as_ref().is_some_and(Entry::is_cancelled)
    }

    async fn until_cancelled(&self) {
        match &self.submission.entry {
            Some(entry) => entry.until_cancelled().await,
            None => pending().await,
        }
    }

    /// If the job is cancelled, records that with one of its open batches. So it ends like this
    /// also after a crash, even if the cancellation is undone meanwhile. After the deadline the job
    /// has expired: its result may have said so already.
    async fn record_cancellation(&self) -> Result<(), StoreLost> {
        if !self.is_cancelled() || is_past(self.deadline, Instant::now()) {
            return Ok(());
        }
        let ended = self.batches().cancel();
        let Some(batch) = ended else { return Ok(()) };
        self.record(batch).await?;
        self.batches().count_ended();
        Ok(())
    }

    fn may_wait_until(&self, begins_at: Option<Instant>, now: Instant) -> bool {
        let at = begins_at.into_iter().chain(self.deadline).min();
        begins_at.is_none() || at.is_none_or(|at| self.gate.may_hold_until(at, now))
    }

    /// The delivery goes back to the queue as a rule. A job that would begin anew, or has gone back
    /// too often while the app is paused, is parked if that is still possible.
    fn give_back_or_park(&self, under_way: &UnderWay) -> Leaving {
        let Submission { envelope, lease, entry, .. } = self.submission;
        let has_begun = !under_way.is_empty() || self.batches().have_begun();
        let would_repeat = entry.is_none() && has_begun;
        let is_paused = self.gate.is_paused() || (self.gate.settings.is_halted)();
        let returned_often = is_paused && envelope.redeliveries >= RETURNED_AT_MOST;
        match would_repeat || returned_often {
            true if !lease.is_lost() => Leaving::Park,
            true | false => Leaving::GiveBack,
        }
    }

    fn into_ending(self, leaving: Result<Leaving, StoreLost>) -> Result<Ending, Unfinished> {
        let mut batches = self.batches.into_inner().unwrap_or_else(PoisonError::into_inner);
        let may_send_more = match leaving {
            Ok(Leaving::Done) => false,
            // The calls in flight may have taken until after the deadline.
            Ok(Leaving::Park) => {
                !batches.job_has_ended() && !is_past(self.deadline, Instant::now())
            }
            Ok(Leaving::Split | Leaving::GiveBack) | Err(_) => true,
        };
        if !may_send_more {
            batches.end_unsent();
        }
        if batches.have_all_ended() {
            return Ok(Ending::Finished(batches.into_report()));
        }
        match leaving? {
            _ if self.submission.lease.is_lost() => Err(Unfinished::LetGo),
            Leaving::Park => Ok(Ending::Parked(batches.into_touched())),
            Leaving::Split => Ok(Ending::TooLarge(batches.into_touched())),
            Leaving::GiveBack | Leaving::Done => Err(Unfinished::LetGo),
        }
    }

    /// Withdraws every call that is not yet written.
    pub fn end_calls(&self) {
        self.calls_ended.store(true, Ordering::Relaxed);
    }

    /// No code panics while it holds the lock.
    pub fn batches(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_past(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

/// The moment of the runtime's clock at which the wall clock will show `at`.
fn instant_of(at: Timestamp, now: Instant) -> Instant {
    let seconds = at.duration_since(clock::now()).as_secs_f64();
    now + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::ZERO)
}

//! Grants the calls of one app, one by one: first room in flight, then a token, then the choice of
//! the job. So the batch whose turn it is at the moment of the token is the one that goes.
//!
//! # How
//!
//! Each job that is being sent has a [`Place`]. The job says which of its batches are ready, and
//! receives a [`Grant`] for each call that it may make. An event that may allow a call grants what
//! is possible: a batch becomes ready, an outcome is recorded. The app's driver (`probe.rs`) does
//! the same when a token comes or a probe is answered.
//!
//! # What keeps it exact
//!
//! - What the app's jobs share is behind one lock, and no code holds it across an await.
//! - A grant carries its room in flight and its send slot as guards. They are free again when a job
//!   panics or is dropped. Its token is lost, which delays the next call by one token.
//! - A grant is handed to a job only while the job has a place, so no grant is lost.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    HeldJob, Settings, Submission,
    breaker::{Allowed, Breaker, Waits},
    condition::Condition,
    idle::IdleTimes,
    patience,
    random::{MessageNumbers, UsedNumbers},
};
use crate::{
    api::command,
    clock,
    config::App,
    job::{Envelope, Job},
    pace::{
        FairQueue, GroupPace, GroupSlot, SendSlot, Turn, fair_queue::JobKey,
        send_window::WindowRoom,
    },
};

/// How soon to look again when no event tells that calls may start.
pub(super) const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

pub(super) struct Gate {
    pub settings: Settings,
    pub config: watch::Receiver<Arc<App>>,
    pub condition: watch::Sender<Condition>,
    /// Wakes the driver before the time that it has planned.
    pub look_again: Notify,
    pub group_pace: GroupPace,
    state: Mutex<GateState>,
}

pub(super) struct GateState {
    pub breaker: Breaker,
    pub idle: IdleTimes,
    pub used_numbers: UsedNumbers,
    /// A job that is not done after this time is parked, whatever it waits for.
    pub held_at_most: Duration,
    /// When the driver looks for calls to grant, if no event comes before.
    pub driver_looks_at: Option<Instant>,
    queue: FairQueue,
    /// In the order in which they came.
    jobs: BTreeMap<JobKey, Member>,
    next_key: JobKey,
    /// Calls whose outcome is not yet recorded. A crash may repeat this many.
    in_flight: usize,
}

/// A job as the gate knows it.
struct Member {
    job: Arc<Job>,
    envelope: Arc<Envelope>,
    batches_ended: Arc<AtomicU32>,
    /// Whether it still wants calls.
    is_sending: bool,
    /// What the job has not yet taken.
    granted: VecDeque<Grant>,
    /// The app's condition or its configuration has changed, and the job has not yet heard of it.
    has_changed: bool,
    wake: Arc<Notify>,
}

/// What the gate tells a job.
pub(super) enum Event {
    Granted(Grant),
    /// The app's condition or its configuration has changed.
    Changed,
}

/// The right to make one call.
pub(super) struct Grant {
    pub batch: u32,
    pub granted_at: Instant,
    pub slot: SendSlot,
    pub group_slot: GroupSlot,
    pub room: Room,
}

/// Room for a call in flight, until the outcome of the call is recorded.
pub(super) struct Room(Arc<Gate>);

/// A job's place at the gate. The job is granted calls until it leaves or is dropped.
pub(super) struct Place {
    gate: Arc<Gate>,
    key: JobKey,
    priority: u8,
    wake: Arc<Notify>,
}

/// When to look for calls to grant again, if no event comes before.
pub(super) enum Next {
    AtAnEvent,
    At(Instant),
    ProbeNow,
}

impl Gate {
    pub fn new(
        settings: Settings,
        config: watch::Receiver<Arc<App>>,
        condition: watch::Sender<Condition>,
    ) -> Self {
        let waits = Waits::of(&config.borrow());
        let state = GateState {
            breaker: Breaker::new(waits, settings.supervision, Instant::now()),
            idle: IdleTimes::new(),
            used_numbers: UsedNumbers::default(),
            held_at_most: patience::HELD_AT_MOST,
            driver_looks_at: None,
            queue: FairQueue::default(),
            jobs: BTreeMap::new(),
            next_key: 0,
            in_flight: 0,
        };
        let (look_again, group_pace) = (Notify::new(), GroupPace::default());
        Self { settings, config, condition, look_again, group_pace, state: Mutex::new(state) }
    }

    /// No code panics while it holds the lock.
    pub fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a job a place. It is granted no call before it says that a batch is ready.
    pub fn enter(
        self: &Arc<Self>,
        submission: &Submission,
        batches_ended: Arc<AtomicU32>,
    ) -> Place {
        let Submission { job, envelope, lease, .. } = submission;
        let (job, envelope, priority) = (job.clone(), envelope.clone(), envelope.priority);
        let wake = Arc::new(Notify::new());
        let member = Member {
            job,
            envelope,
            batches_ended,
            is_sending: true,
            granted: VecDeque::new(),
            has_changed: false,
            wake: wake.clone(),
        };
        let mut state = self.lock();
        if lease.allows_calls() {
            state.idle.end(clock::now());
        }
        let key = state.next_key;
        state.next_key += 1;
        state.jobs.insert(key, member);
        // In an outage the first job starts the probes.
        self.admit(&mut state);
        Place { gate: self.clone(), key, priority, wake }
    }

    /// Grants the calls that may leave now, and has the driver look when the next one may.
    fn admit(self: &Arc<Self>, state: &mut GateState) {
        let now = Instant::now();
        let next = match self.grant_calls(state, now) {
            Next::AtAnEvent => return,
            Next::At(at) => at,
            Next::ProbeNow => now,
        };
        if state.driver_looks_at.is_none_or(|planned| next < planned) {
            state.driver_looks_at = Some(next);
            self.look_again.notify_one();
        }
    }

    pub fn grant_calls(self: &Arc<Self>, state: &mut GateState, now: Instant) -> Next {
        let most_in_flight = self.config.borrow().max_in_flight;
        let most_in_flight = match state.breaker.allowed(most_in_flight, now) {
            Allowed::Calls { in_flight } => in_flight,
            // The replica that has the jobs makes the probes.
            Allowed::Probe | Allowed::ProbeAt(_) if !state.may_probe() => return Next::AtAnEvent,
            Allowed::Probe => return Next::ProbeNow,
            Allowed::ProbeAt(at) => return Next::At(at),
            Allowed::Nothing => return Next::AtAnEvent,
        };
        if let Some(until) = state.breaker.waits_for_another_group()
            && state.of_another_group().is_none()
        {
            if until > now {
                return Next::At(until);
            }
            if state.in_flight > 0 {
                return Next::AtAnEvent;
            }
            state.breaker.no_other_group_came(now);
            self.announce_condition(state, now);
            return Next::At(now);
        }
        let per_group = command::of(&self.config.borrow().command).calls_per_second_per_group();
        while !state.queue.is_empty() && state.in_flight < most_in_flight {
            if !(self.settings.may_start)() {
                return Next::At(now + LOOK_AGAIN_AFTER);
            }
            if let Some(at) = self.groups_are_busy_until(state, per_group, now) {
                return Next::At(at);
            }
            match self.settings.pacer.turn(now) {
                Turn::Now(slot) => self.grant(state, slot, per_group, now),
                Turn::At(at) => return Next::At(at),
                Turn::AfterAWrite => return Next::At(now + LOOK_AGAIN_AFTER),
            }
        }
        Next::AtAnEvent
    }

    /// Grants a call to the job whose turn it is. Its group has room.
    fn grant(
        self: &Arc<Self>,
        state: &mut GateState,
        slot: SendSlot,
        per_group: Option<u32>,
        now: Instant,
    ) {
        let has_room = |group: &str| match per_group {
            Some(limit) => self.group_pace.room(group, limit, now) == WindowRoom::Now,
            None => true,
        };
        let Some((key, batch)) = state.choose(has_room) else { return slot.unused() };
        let Some(member) = state.jobs.get_mut(&key) else { return slot.unused() };
        let group_slot = match per_group {
            Some(limit) => self.group_pace.reserve(&member.job.group_id, limit, now),
            None => GroupSlot::unlimited(),
        };
        state.in_flight += 1;
        let room = Room(self.clone());
        member.granted.push_back(Grant { batch, granted_at: now, slot, group_slot, room });
        member.wake.notify_one();
    }

    /// When the first group has room again, if no group with a ready batch has room now.
    fn groups_are_busy_until(
        &self,
        state: &GateState,
        per_group: Option<u32>,
        now: Instant,
    ) -> Option<Instant> {
        let limit = per_group?;
        let mut earliest: Option<Instant> = None;
        for key in state.queue.ready() {
            let Some(member) = state.jobs.get(&key) else { continue };
            let at = match self.group_pace.room(&member.job.group_id, limit, now) {
                WindowRoom::Now => return None,
                WindowRoom::At(at) => at,
                WindowRoom::AfterAWrite => now + LOOK_AGAIN_AFTER,
            };
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
        }
        earliest
    }

    /// The numbers of a job's messages.
    pub fn numbers_of(&self, Submission { job, envelope, .. }: &Submission) -> MessageNumbers {
        let app = self.config.borrow();
        let sender = command::of(&app.command).sender().unwrap_or(&app.identifier);
        MessageNumbers::of(app.sdk_app_id, sender, job, envelope)
    }

    /// Whether the breaker has paused the app.
    pub fn is_paused(&self) -> bool {
        self.lock().breaker.condition().is_paused()
    }

    /// The jobs that are being sent.
    pub fn held(&self) -> Vec<HeldJob> {
        let held = |member: &Member| HeldJob {
            job_id: member.envelope.job_id.clone(),
            group_id: member.job.group_id.clone(),
            batches: member.job.batch_count(),
            batches_ended: member.batches_ended.load(Ordering::Relaxed),
        };
        self.lock().jobs.values().map(held).collect()
    }
}

impl GateState {
    /// A paused app has given its jobs back. In an outage this process has them, or another one.
    fn may_probe(&self) -> bool {
        self.breaker.condition().is_paused() || self.jobs.values().any(|member| member.is_sending)
    }

    /// Takes the next batch of a job whose group has room.
    fn choose(&mut self, has_room: impl Fn(&str) -> bool) -> Option<(JobKey, u32)> {
        let jobs = &self.jobs;
        let may_go = |key| jobs.get(&key).is_some_and(|member| has_room(&member.job.group_id));
        let is_preferred = self.breaker.prefers_other_groups();
        let another = is_preferred.then(|| self.of_another_group()).flatten();
        match another.filter(|key| may_go(*key)) {
            Some(key) => self.queue.take_of(key).map(|batch| (key, batch)),
            None => self.queue.take_next(may_go),
        }
    }

    /// The job that came last of a group that was not refused. Those before it may be one
    /// producer's mistake.
    fn of_another_group(&self) -> Option<JobKey> {
        let may_be_tried = |(key, member): &(&JobKey, &Member)| {
            self.queue.has(**key) && !self.breaker.has_refused(&member.job.group_id)
        };
        self.jobs.iter().rev().find(may_be_tried).map(|(key, _)| *key)
    }

    /// Tells every job that the app's condition or its configuration has changed.
    pub fn notify_jobs(&mut self) {
        for member in self.jobs.values_mut() {
            member.has_changed = true;
            member.wake.notify_one();
        }
    }

    fn take_event(&mut self, key: JobKey) -> Option<Event> {
        let member = self.jobs.get_mut(&key)?;
        if std::mem::take(&mut member.has_changed) {
            return Some(Event::Changed);
        }
        member.granted.pop_front().map(Event::Granted)
    }
}

impl Place {
    /// The job begins: these batches are ready.
    pub fn begin(&self, batches: impl IntoIterator<Item = u32>) {
        let mut state = self.gate.lock();
        state.queue.add(self.key, self.priority, batches);
        self.gate.admit(&mut state);
    }

    /// A batch is ready for another attempt.
    pub fn ready_again(&self, batch: u32) {
        let mut state = self.gate.lock();
        state.queue.put_back(self.key, batch);
        self.gate.admit(&mut state);
    }

    /// Waits for the next event.
    pub async fn event(&self) -> Event {
        loop {
            if let Some(event) = self.gate.lock().take_event(self.key) {
                return event;
            }
            self.wake.notified().await;
        }
    }

    /// The job wants no further call. The gate knows it until the place is dropped.
    pub fn leave(&self) {
        let unused = {
            let mut state = self.gate.lock();
            state.queue.remove(self.key);
            state.jobs.get_mut(&self.key).map(|member| {
                member.is_sending = false;
                std::mem::take(&mut member.granted)
            })
        };
        // With the lock free: the room of a grant goes to another job.
        unused.into_iter().flatten().for_each(|grant| grant.slot.unused());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
        let mut state = self.gate.lock();
        state.jobs.remove(&self.key);
        self.gate.admit(&mut state);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        self.0.admit(&mut state);
    }
}

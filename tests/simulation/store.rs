//! A state store in memory. It keeps the writes that it has confirmed, and sometimes others too. It
//! can stall, and it can answer without recording anything.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    defects::Defect,
    world::{Life, Shared},
};
use crate::{
    job::outcome::{BatchProgress, BatchState},
    progress::store::{
        ACTIVE_FOR, Answer, CancelNumber, Cancellations, Cancelled, Completion, Head, Key, Opening,
        Record, Sharing, Store, StoreLost, TakeOver, Taken,
    },
};

/// The time after which a real store reports that there is no answer.
const GIVES_UP_AFTER: Duration = Duration::from_secs(8);

/// Within this time after a failure of the store, a process tries again to record what it knows.
const RECORDED_LATE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Records {
    by_key: BTreeMap<Key, Stored>,
    /// The newest epoch that was taken.
    epoch: i64,
    holder: Option<Holder>,
    /// How often another process took the jobs.
    take_overs: usize,
    last_failure: Option<Instant>,
    unrecorded_at: Option<Instant>,
    active_until: Option<Instant>,
    stalled_until: Option<Instant>,
    refusing_until: Option<Instant>,
    /// The cancelled jobs and the numbers of their cancellations.
    cancelled: BTreeMap<String, i64>,
    latest_cancellation: i64,
}

/// The process that took the newest epoch, and when it took its first one.
struct Holder {
    life: Arc<Life>,
    since: Instant,
    /// Whether a process of another replica had the jobs before.
    is_another_replica: bool,
}

/// Whether a process may still try to record what it knew at `at`.
fn is_late(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < RECORDED_LATE)
}

struct Stored {
    head: Head,
    batches: BTreeMap<u32, BatchProgress>,
    /// The epoch of the writer of each batch's progress.
    epochs: BTreeMap<u32, i64>,
    result: Option<String>,
}

impl Records {
    /// Whether the end of a batch is recorded.
    pub fn has_ended(&self, job_id: &str, batch: u32) -> bool {
        let mut of_job = self.by_key.iter().filter(|(key, _)| key.job_id == job_id);
        of_job.any(|(_, stored)| {
            stored.result.is_some()
                || stored.batches.get(&batch).is_some_and(|progress| progress.outcome().is_some())
        })
    }

    pub fn has_result(&self, job_id: &str) -> bool {
        self.by_key.iter().any(|(key, stored)| key.job_id == job_id && stored.result.is_some())
    }

    pub fn stall_until(&mut self, end: Instant) {
        self.stalled_until = self.stalled_until.max(Some(end));
    }

    pub fn refuse_until(&mut self, end: Instant) {
        self.refusing_until = self.refusing_until.max(Some(end));
    }

    /// When the store last failed.
    pub fn last_failure(&self) -> Option<Instant> {
        self.last_failure
    }

    /// When the store last failed around a take-over by another replica. That replica then did not
    /// read what the previous one knew.
    pub fn unrecorded_at(&self) -> Option<Instant> {
        self.unrecorded_at
    }

    pub fn is_unrecorded_lately(&self) -> bool {
        is_late(self.unrecorded_at)
    }

    pub fn failed(&mut self) {
        let now = Instant::now();
        self.last_failure = Some(now);
        let is_with_another = self
            .holder
            .as_ref()
            .is_some_and(|holder| holder.is_another_replica && is_late(Some(holder.since)));
        if is_with_another || is_late(self.unrecorded_at) {
            self.unrecorded_at = Some(now);
        }
    }

    /// How often another process took the jobs.
    pub fn take_overs(&self) -> usize {
        self.take_overs
    }

    /// How long another process has had the jobs.
    pub fn displaced_for(&self, life: &Arc<Life>) -> Option<Duration> {
        self.holder
            .as_ref()
            .filter(|holder| !Arc::ptr_eq(&holder.life, life))
            .map(|holder| holder.since.elapsed())
    }

    /// When the jobs last went from one process to another.
    pub fn taken_over_at(&self) -> Option<Instant> {
        self.holder.as_ref().map(|holder| holder.since)
    }

    fn take_over(&mut self, leave_active: bool, life: &Arc<Life>) -> Taken {
        if leave_active && self.active_until.is_some_and(|until| Instant::now() < until) {
            return Taken::LeftToAnother;
        }
        self.epoch += 1;
        if self.holder.as_ref().is_none_or(|holder| !Arc::ptr_eq(&holder.life, life)) {
            let is_another_replica =
                self.holder.as_ref().is_some_and(|holder| holder.life.replica != life.replica);
            self.take_overs += usize::from(self.holder.is_some());
            self.holder =
                Some(Holder { life: life.clone(), since: Instant::now(), is_another_replica });
            if is_another_replica && is_late(self.last_failure) {
                self.unrecorded_at = Some(Instant::now());
            }
        }
        self.active_until = Some(Instant::now() + ACTIVE_FOR);
        Taken::Epoch(self.epoch)
    }

    fn confirm(&mut self, epoch: i64) -> bool {
        let is_newest = epoch >= self.epoch;
        if is_newest {
            self.active_until = Some(Instant::now() + ACTIVE_FOR);
        }
        is_newest
    }

    pub fn cancel(&mut self, job_id: &str) -> Cancelled {
        let mut of_job = self.by_key.iter().filter(|(key, _)| key.job_id == job_id);
        let met = match of_job.next() {
            Some((_, Stored { result: Some(_), .. })) => return Cancelled::HasEnded,
            Some(_) => Cancelled::UnderWay,
            None => Cancelled::NotSeen,
        };
        self.latest_cancellation += 1;
        self.cancelled.insert(job_id.to_owned(), self.latest_cancellation);
        met
    }

    pub fn undo_cancel(&mut self, job_id: &str) -> bool {
        self.cancelled.remove(job_id).is_some()
    }

    fn cancelled_since(&self, CancelNumber(known): CancelNumber) -> Cancellations {
        let listed = self.cancelled.iter().filter(|(_, number)| **number > known);
        Cancellations {
            jobs: listed.map(|(job_id, _)| job_id.clone()).collect(),
            latest: self.latest(),
        }
    }

    fn latest(&self) -> CancelNumber {
        CancelNumber(self.latest_cancellation)
    }

    fn refuses(&self) -> bool {
        self.refusing_until.is_some_and(|end| Instant::now() < end)
    }

    fn stored(&mut self, opening: &Opening) -> &mut Stored {
        let new = || Stored {
            head: opening.head.clone(),
            batches: BTreeMap::new(),
            epochs: BTreeMap::new(),
            result: None,
        };
        self.by_key.entry(opening.key.clone()).or_insert_with(new)
    }

    fn record(&mut self, opening: &Opening) -> Record {
        let is_cancelled = self.cancelled.contains_key(&opening.key.job_id);
        let Stored { head, batches, result, .. } = self.stored(opening);
        let batches = batches.iter().map(|(batch, progress)| (*batch, progress.clone())).collect();
        let (key, head, result) = (opening.key.clone(), head.clone(), result.clone());
        Record { key, head, batches, result, is_cancelled }
    }

    pub fn note(&mut self, opening: &Opening, batch: u32, progress: BatchProgress) {
        let stored = self.stored(opening);
        if stored.head.cut() != opening.head.cut() {
            return;
        }
        let known = stored.batches.entry(batch).or_default();
        let written_by = stored.epochs.entry(batch).or_default();
        if known.outcome().is_none()
            && (progress.outcome().is_some() || *written_by <= opening.epoch)
        {
            *known = progress;
            *written_by = opening.epoch;
        }
    }
}

/// The store as one process sees it.
pub struct SimulatedStore {
    pub world: Shared,
    pub life: Arc<Life>,
}

/// How an operation uses the records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Looks,
    Records,
}

impl SimulatedStore {
    async fn apply<T>(
        &self,
        what: &'static str,
        access: Access,
        change: impl FnOnce(&mut Records) -> T,
    ) -> Result<T, StoreLost> {
        let likely = self.world.scenario().faults.store_fails;
        self.world.round_trip().await;
        self.life.until_known_alive().await;
        let stalled_until =
            self.world.lock().records.stalled_until.filter(|end| Instant::now() < *end);
        if let Some(end) = stalled_until {
            self.world.store_failed();
            sleep_until(end.min(Instant::now() + GIVES_UP_AFTER)).await;
            self.life.until_known_alive().await;
            if Instant::now() < end {
                // A server that was frozen first processes the requests that it received meanwhile.
                // A locked file receives nothing.
                if self.world.coin() {
                    change(&mut self.world.lock().records);
                }
                return Err(StoreLost::new(what, "no answer"));
            }
        }
        let refused = access == Access::Records && self.world.lock().records.refuses();
        if refused || self.world.happens(likely / 2.0) {
            self.world.store_failed();
            return Err(StoreLost::new(what, "not done"));
        }
        let done = change(&mut self.world.lock().records);
        self.world.round_trip().await;
        self.life.until_known_alive().await;
        if self.world.happens(likely / 2.0) {
            self.world.store_failed();
            return Err(StoreLost::new(what, "done, and nobody was told"));
        }
        Ok(done)
    }

    /// Like [`SimulatedStore::apply`], for a change that a displaced replica makes only if it is a
    /// fact.
    async fn apply_fenced<T>(
        &self,
        what: &'static str,
        access: Access,
        opening: Arc<Opening>,
        is_certain: bool,
        change: impl FnOnce(&mut Records, &Opening) -> T,
    ) -> Result<(T, CancelNumber), StoreLost> {
        let fenced = |records: &mut Records| {
            let is_displaced =
                opening.epoch < records.epoch && !self.world.has(Defect::EpochUnchecked);
            let done = (is_certain || !is_displaced).then(|| change(records, &opening));
            let told = done.map(|done| (done, self.latest_told(records)));
            if is_displaced { None } else { told }
        };
        self.apply(what, access, fenced).await?.ok_or_else(|| StoreLost::displaced(what))
    }

    fn latest_told(&self, records: &Records) -> CancelNumber {
        if self.world.has(Defect::CancelUntold) { CancelNumber(0) } else { records.latest() }
    }

    async fn record(
        &self,
        opening: Arc<Opening>,
        batch: u32,
        progress: BatchProgress,
    ) -> Result<CancelNumber, StoreLost> {
        let is_certain = progress.state != BatchState::Intended;
        let mut progress = progress;
        if self.world.has(Defect::EpochNotRecorded) {
            progress.message_epoch = 0;
        }
        let note =
            |records: &mut Records, opening: &Opening| records.note(opening, batch, progress);
        let noted = self.apply_fenced("note", Access::Records, opening, is_certain, note).await;
        noted.map(|((), latest)| latest)
    }

    /// The defect of a daemon that treats an outcome as recorded while its write is still in
    /// progress.
    fn record_without_waiting(&self, opening: Arc<Opening>, batch: u32, progress: BatchProgress) {
        let store = SimulatedStore { world: self.world.clone(), life: self.life.clone() };
        tokio::spawn(async move {
            while store.record(opening.clone(), batch, progress.clone()).await.is_err() {
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

impl Store for SimulatedStore {
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, (Record, CancelNumber)> {
        Box::pin(async move {
            let (mut record, latest) =
                self.apply_fenced("open", Access::Looks, opening, false, Records::record).await?;
            if self.world.has(Defect::ResendOfRecorded) {
                record.batches.clear();
            }
            record.is_cancelled &= !self.world.has(Defect::CancelNotLookedUp);
            Ok((record, latest))
        })
    }

    fn note(
        &self,
        opening: Arc<Opening>,
        batch: u32,
        progress: BatchProgress,
    ) -> Answer<'_, CancelNumber> {
        Box::pin(async move {
            if self.world.has(Defect::NoIntents) && progress.state == BatchState::Intended {
                return Ok(CancelNumber(0));
            }
            let is_outcome = progress.outcome().is_some();
            if self.world.has(Defect::CallsUnrecorded) && is_outcome {
                self.record_without_waiting(opening, batch, progress);
                return Ok(CancelNumber(0));
            }
            match self.record(opening, batch, progress).await {
                Err(error) if self.world.has(Defect::OutcomesDropped) && is_outcome => {
                    Err(StoreLost::of_record(error.operation, error.reason))
                }
                Err(_) if self.world.has(Defect::ProbeIsProof) => {
                    self.probe().await.map(|()| CancelNumber(0))
                }
                noted => noted,
            }
        })
    }

    fn split_again(
        &self,
        opening: Arc<Opening>,
        batches: Vec<(u32, BatchProgress)>,
    ) -> Answer<'_, CancelNumber> {
        let split = |records: &mut Records, opening: &Opening| {
            let stored = records.stored(opening);
            if stored.result.is_none() {
                stored.head = opening.head.clone();
                stored.batches = batches.into_iter().collect();
            }
        };
        Box::pin(async move {
            let done = self.apply_fenced("split", Access::Records, opening, false, split).await;
            done.map(|((), latest)| latest)
        })
    }

    fn complete(&self, opening: Arc<Opening>, completion: Completion) -> Answer<'_, CancelNumber> {
        let complete = |records: &mut Records, opening: &Opening| {
            let stored = records.stored(opening);
            stored.result = Some(completion.result);
            stored.batches.clear();
            records.cancelled.remove(&opening.key.job_id);
        };
        Box::pin(async move {
            if self.world.has(Defect::NotCompleted) {
                return Ok(CancelNumber(0));
            }
            let done =
                self.apply_fenced("complete", Access::Records, opening, true, complete).await;
            done.map(|((), latest)| latest)
        })
    }

    fn find(&self, _: String, _: String) -> Answer<'_, Option<Record>> {
        Box::pin(async { Ok(None) })
    }

    fn take_over(&self, take_over: TakeOver) -> Answer<'_, Taken> {
        Box::pin(self.apply("take over", Access::Looks, move |records| {
            records.take_over(take_over.leave_active, &self.life)
        }))
    }

    fn confirm(&self, _: String, epoch: i64) -> Answer<'_, CancelNumber> {
        let confirm =
            move |records: &mut Records| (records.confirm(epoch), self.latest_told(records));
        Box::pin(async move {
            let (is_newest, latest) = self.apply("confirm", Access::Looks, confirm).await?;
            if is_newest || self.world.has(Defect::EpochUnchecked) {
                Ok(latest)
            } else {
                Err(StoreLost::displaced("confirm"))
            }
        })
    }

    fn cancel(&self, _: String, job_id: String) -> Answer<'_, Cancelled> {
        Box::pin(self.apply("cancel", Access::Records, move |records| records.cancel(&job_id)))
    }

    fn undo_cancel(&self, _: String, job_id: String) -> Answer<'_, bool> {
        Box::pin(self.apply("undo", Access::Records, move |records| records.undo_cancel(&job_id)))
    }

    fn cancelled_since(&self, _: String, known: CancelNumber) -> Answer<'_, Cancellations> {
        let list = move |records: &mut Records| records.cancelled_since(known);
        Box::pin(self.apply("list cancellations", Access::Looks, list))
    }

    fn probe(&self) -> Answer<'_, ()> {
        Box::pin(self.apply("probe", Access::Looks, |_| ()))
    }

    fn sharing(&self) -> Sharing {
        self.world.scenario().sharing
    }
}

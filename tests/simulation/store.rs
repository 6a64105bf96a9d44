//! A state store in memory. It keeps what it has confirmed, and at times also what it has not. It can stall, and it can answer
//! without recording anything.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    defects::Defect,
    world::{Life, Shared},
};
use crate::{
    outcome::{BatchProgress, BatchState},
    settle::progress::store::{Answer, Head, Key, Opening, Record, Sharing, Store, StoreLost},
};

/// How long a real store takes to say that there is no answer.
const GIVES_UP_AFTER: Duration = Duration::from_secs(8);

#[derive(Default)]
pub struct Records {
    by_key: BTreeMap<Key, Stored>,
    stalled_until: Option<Instant>,
    refusing_until: Option<Instant>,
}

struct Stored {
    head: Head,
    batches: BTreeMap<u32, BatchProgress>,
    result: Option<String>,
}

impl Records {
    /// How a batch ended, if that is recorded.
    pub fn has_ended(&self, job_id: &str, batch: u32) -> bool {
        let mut of_job = self.by_key.iter().filter(|(key, _)| key.job_id == job_id);
        of_job.any(|(_, stored)| {
            stored.result.is_some() || stored.batches.get(&batch).is_some_and(|progress| progress.outcome().is_some())
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

    fn refuses(&self) -> bool {
        self.refusing_until.is_some_and(|end| Instant::now() < end)
    }

    fn stored(&mut self, opening: &Opening) -> &mut Stored {
        let new = || Stored { head: opening.head.clone(), batches: BTreeMap::new(), result: None };
        self.by_key.entry(opening.key.clone()).or_insert_with(new)
    }

    fn record(&mut self, opening: &Opening) -> Record {
        let Stored { head, batches, result } = self.stored(opening);
        let batches = batches.iter().map(|(batch, progress)| (*batch, progress.clone())).collect();
        Record { key: opening.key.clone(), head: head.clone(), batches, result: result.clone() }
    }

    pub fn note(&mut self, opening: &Opening, batch: u32, progress: BatchProgress) {
        let stored = self.stored(opening);
        if stored.head.batch_size != opening.head.batch_size {
            return;
        }
        let known = stored.batches.entry(batch).or_default();
        if known.outcome().is_none() {
            *known = progress;
        }
    }
}

/// The store as one process sees it.
pub struct SimulatedStore {
    pub world: Shared,
    pub life: Arc<Life>,
}

/// What an operation does with the records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Looks,
    Records,
}

impl SimulatedStore {
    async fn apply<T>(&self, what: &'static str, access: Access, change: impl FnOnce(&mut Records) -> T) -> Result<T, StoreLost> {
        let likely = self.world.scenario().faults.store_fails;
        self.world.round_trip().await;
        self.life.goes_on().await;
        let stalled_until = self.world.lock().records.stalled_until.filter(|end| Instant::now() < *end);
        if let Some(end) = stalled_until {
            self.world.store_failed();
            sleep_until(end.min(Instant::now() + GIVES_UP_AFTER)).await;
            self.life.goes_on().await;
            if Instant::now() < end {
                // A server that was frozen reads what was sent to it meanwhile, before it answers anybody; a file that was
                // locked gets nothing.
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
        self.life.goes_on().await;
        if self.world.happens(likely / 2.0) {
            self.world.store_failed();
            return Err(StoreLost::new(what, "done, and nobody was told"));
        }
        Ok(done)
    }

    async fn record(&self, opening: Arc<Opening>, batch: u32, progress: BatchProgress) -> Result<(), StoreLost> {
        self.apply("note", Access::Records, move |records| records.note(&opening, batch, progress)).await
    }

    /// What a daemon does that takes an outcome for recorded when it is only on its way.
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
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, Record> {
        Box::pin(async move {
            let mut record = self.apply("open", Access::Looks, move |records| records.record(&opening)).await?;
            if self.world.has(Defect::ResendOfRecorded) {
                record.batches.clear();
            }
            Ok(record)
        })
    }

    fn note(&self, opening: Arc<Opening>, batch: u32, progress: BatchProgress) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.world.has(Defect::NoIntents) && progress.state == BatchState::Intended {
                return Ok(());
            }
            let is_outcome = progress.outcome().is_some();
            if self.world.has(Defect::CallsUnrecorded) && is_outcome {
                self.record_without_waiting(opening, batch, progress);
                return Ok(());
            }
            match self.record(opening, batch, progress).await {
                Err(error) if self.world.has(Defect::OutcomesDropped) && is_outcome => {
                    Err(StoreLost::of_record(error.operation, error.reason))
                }
                Err(_) if self.world.has(Defect::ProbeIsProof) => self.probe().await,
                noted => noted,
            }
        })
    }

    fn split_again(&self, opening: Arc<Opening>, batches: Vec<(u32, BatchProgress)>) -> Answer<'_, ()> {
        Box::pin(self.apply("split", Access::Records, move |records| {
            let stored = records.stored(&opening);
            if stored.result.is_none() {
                stored.head = opening.head.clone();
                stored.batches = batches.into_iter().collect();
            }
        }))
    }

    fn complete(&self, opening: Arc<Opening>, result: String) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.world.has(Defect::NotCompleted) {
                return Ok(());
            }
            self.apply("complete", Access::Records, move |records| {
                let stored = records.stored(&opening);
                stored.result = Some(result);
                stored.batches.clear();
            })
            .await
        })
    }

    fn find(&self, _: String, _: String) -> Answer<'_, Option<Record>> {
        Box::pin(async { Ok(None) })
    }

    fn probe(&self) -> Answer<'_, ()> {
        Box::pin(self.apply("probe", Access::Looks, |_| ()))
    }

    fn sharing(&self) -> Sharing {
        self.world.scenario().sharing
    }
}

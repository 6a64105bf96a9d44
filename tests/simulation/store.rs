//! A state store in memory. It keeps what it has confirmed, and at times also what it has not.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    defects::Defect,
    world::{Life, Shared},
};
use crate::{
    outcome::{BatchProgress, BatchState},
    settle::progress::store::{Answer, Head, Key, Opening, Record, Sharing, Store, StoreLost},
};

#[derive(Default)]
pub struct Records(BTreeMap<Key, Stored>);

struct Stored {
    head: Head,
    batches: BTreeMap<u32, BatchProgress>,
    result: Option<String>,
}

impl Records {
    /// How a batch ended, if that is recorded.
    pub fn has_ended(&self, job_id: &str, batch: u32) -> bool {
        let mut of_job = self.0.iter().filter(|(key, _)| key.job_id == job_id);
        of_job.any(|(_, stored)| {
            stored.result.is_some() || stored.batches.get(&batch).is_some_and(|progress| progress.outcome().is_some())
        })
    }

    pub fn has_result(&self, job_id: &str) -> bool {
        self.0.iter().any(|(key, stored)| key.job_id == job_id && stored.result.is_some())
    }

    fn stored(&mut self, opening: &Opening) -> &mut Stored {
        let new = || Stored { head: opening.head.clone(), batches: BTreeMap::new(), result: None };
        self.0.entry(opening.key.clone()).or_insert_with(new)
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

impl SimulatedStore {
    async fn apply<T>(&self, what: &'static str, change: impl FnOnce(&mut Records) -> T) -> Result<T, StoreLost> {
        let likely = self.world.scenario().faults.store_fails;
        self.world.round_trip().await;
        self.life.goes_on().await;
        if self.world.happens(likely / 2.0) {
            self.world.failed();
            return Err(StoreLost::new(what, "not done"));
        }
        let done = change(&mut self.world.lock().records);
        self.world.round_trip().await;
        self.life.goes_on().await;
        if self.world.happens(likely / 2.0) {
            self.world.failed();
            return Err(StoreLost::new(what, "done, and nobody was told"));
        }
        Ok(done)
    }
}

impl Store for SimulatedStore {
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, Record> {
        Box::pin(async move {
            let mut record = self.apply("open", |records| records.record(&opening)).await?;
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
            self.apply("note", |records| records.note(&opening, batch, progress)).await
        })
    }

    fn split_again(&self, opening: Arc<Opening>, batches: Vec<(u32, BatchProgress)>) -> Answer<'_, ()> {
        Box::pin(self.apply("split", move |records| {
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
            self.apply("complete", |records| {
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
        Box::pin(self.apply("probe", |_| ()))
    }

    fn sharing(&self) -> Sharing {
        self.world.scenario().sharing
    }
}

//! Records in a Redis that replicas share: a hash for each, changed by transactions, so that no reader sees half of one.
//!
//! A batch that has ended is in a field that is never overwritten and goes before the field of one that has not, so writes
//! of two processes may come in any order. A field names the size of the batches that it counts by; those of another size than
//! the head's are of no account. The key `groupcast:born` is as old as the data: when it is gone, so are they.

mod birth;
mod fault;
mod link;
mod records;

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, Pipeline};

pub use self::link::Certificates;
use self::{
    birth::Birth,
    link::Link,
    records::{Fields, deaths_key, record_key},
};
use super::store::{Answer, Key, Opening, Record, Retention, Sharing, Store, StoreLost};
use crate::outcome::{BatchProgress, BatchState};

pub struct RedisStore {
    link: Link,
    birth: Birth,
    retention: Retention,
}

impl RedisStore {
    /// Connects with the first operation. Fails if the URL is none.
    pub fn new(url: &str, certificates: Certificates, retention: Retention) -> Result<Self, StoreLost> {
        // A late write to a record that has ended must not shorten its life.
        let under_way = retention.under_way.max(retention.ended);
        Ok(Self { link: Link::new(url, certificates)?, birth: Birth::default(), retention: Retention { under_way, ..retention } })
    }

    /// A transaction that makes the record if it is missing, and keeps it.
    fn change(&self, opening: &Opening, kept_for: Duration) -> Pipeline {
        let key = record_key(&opening.key);
        let mut pipe = redis::pipe();
        pipe.atomic().hset_nx(&key, "head", head_json(opening)).ignore();
        self.keep(&mut pipe, &opening.key, kept_for);
        pipe
    }

    fn keep(&self, pipe: &mut Pipeline, key: &Key, kept_for: Duration) {
        pipe.pexpire(record_key(key), in_ms(kept_for)).ignore();
        // Only of redriven jobs there can be more than one record.
        if key.earlier_deaths > 0 {
            let deaths = deaths_key(&key.app, &key.job_id);
            pipe.sadd(&deaths, key.earlier_deaths).ignore();
            pipe.pexpire(&deaths, in_ms(self.retention.under_way)).ignore();
        }
    }

    async fn open_record(&self, opening: &Opening) -> Result<Record, StoreLost> {
        const OPERATION: &str = "open a job's record";
        let mut pipe = self.change(opening, self.retention.under_way);
        self.birth.ask(&mut pipe);
        pipe.hgetall(record_key(&opening.key));
        let (born, fields): (String, Fields) = self.link.run(OPERATION, &pipe).await?;
        self.birth.compare(born);
        let record = records::decode(&opening.key, &fields).map_err(|error| StoreLost::of_record(OPERATION, error))?;
        record.ok_or_else(|| self.link.lost(OPERATION, "it was evicted at once; raise maxmemory"))
    }

    async fn find_latest(&self, app: String, job_id: String) -> Result<Option<Record>, StoreLost> {
        const OPERATION: &str = "look a job up";
        let mut key = Key { app, job_id, earlier_deaths: 0 };
        let deaths: (Vec<u32>,) = self.link.run(OPERATION, redis::pipe().smembers(deaths_key(&key.app, &key.job_id))).await?;
        let mut deaths = deaths.0;
        deaths.push(0);
        deaths.sort_unstable_by(|one, other| other.cmp(one));
        // Of those, some may have expired.
        for earlier_deaths in deaths {
            key.earlier_deaths = earlier_deaths;
            let fields: (Fields,) = self.link.run(OPERATION, redis::pipe().hgetall(record_key(&key))).await?;
            let record = records::decode(&key, &fields.0).map_err(|error| StoreLost::of_record(OPERATION, error))?;
            if record.is_some() {
                return Ok(record);
            }
        }
        Ok(None)
    }

    async fn write<T: FromRedisValue>(&self, operation: &'static str, pipe: Pipeline) -> Result<T, StoreLost> {
        self.link.run(operation, &pipe).await
    }
}

impl Store for RedisStore {
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, Record> {
        Box::pin(async move { self.open_record(&opening).await })
    }

    fn note(&self, opening: Arc<Opening>, batch: u32, progress: BatchProgress) -> Answer<'_, ()> {
        let mut pipe = self.change(&opening, self.retention.under_way);
        put_batch(&mut pipe, &opening, batch, &progress);
        Box::pin(self.write("record how a batch stands", pipe))
    }

    fn split_again(&self, opening: Arc<Opening>, batches: Vec<(u32, BatchProgress)>) -> Answer<'_, ()> {
        let mut pipe = self.change(&opening, self.retention.under_way);
        pipe.hset(record_key(&opening.key), "head", head_json(&opening)).ignore();
        batches.iter().for_each(|(batch, progress)| put_batch(&mut pipe, &opening, *batch, progress));
        Box::pin(self.write("record that a job is split again", pipe))
    }

    fn complete(&self, opening: Arc<Opening>, result: String) -> Answer<'_, ()> {
        let key = record_key(&opening.key);
        let mut pipe = redis::pipe();
        pipe.atomic().del(&key).ignore();
        pipe.hset_multiple(&key, &[("head", head_json(&opening)), ("result", result)]).ignore();
        self.keep(&mut pipe, &opening.key, self.retention.ended);
        Box::pin(self.write("record a job's result", pipe))
    }

    fn find(&self, app: String, job_id: String) -> Answer<'_, Option<Record>> {
        Box::pin(self.find_latest(app, job_id))
    }

    fn probe(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let mut pipe = redis::pipe();
            self.birth.ask(pipe.atomic());
            let (born,): (String,) = self.link.run("try the state store", &pipe).await?;
            self.birth.compare(born);
            Ok(())
        })
    }

    fn sharing(&self) -> Sharing {
        Sharing::Replicas
    }
}

fn put_batch(pipe: &mut Pipeline, opening: &Opening, batch: u32, progress: &BatchProgress) {
    let (key, size) = (record_key(&opening.key), opening.head.batch_size);
    let json = serde_json::to_string(progress).expect("progress is always JSON");
    let (touched, ended) = (records::touched(size, batch), records::ended(size, batch));
    match progress.state {
        BatchState::Open | BatchState::Intended => pipe.hset(&key, touched, json).ignore(),
        BatchState::Ended(_) => pipe.hset_nx(&key, ended, json).ignore().hdel(&key, touched).ignore(),
    };
}

fn head_json(opening: &Opening) -> String {
    serde_json::to_string(&opening.head).expect("a head is always JSON")
}

fn in_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

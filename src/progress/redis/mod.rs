//! Records in a Redis that replicas share. Each record is a hash. Scripts change it, so no reader
//! sees half of a change.
//!
//! The field of a batch that has ended is never overwritten, and takes precedence over the field of
//! an open batch. So the writes of two processes may come in any order. A field's name says to
//! which cut of the job it belongs. Fields of another cut than the head's are ignored. The key
//! `groupcast:born` is as old as the data: if it is gone, the data are gone.

mod birth;
mod fault;
mod link;
mod records;
mod scripts;

use std::{sync::Arc, time::Duration};

pub use self::link::Certificates;
use self::{
    birth::{BORN, Birth},
    link::RedisLink,
    records::{
        Fields, cancellation_key, cancellations_key, deaths_key, latest_cancellation_key,
        record_key,
    },
    scripts::Script,
};
use super::store::{
    ACTIVE_FOR, Answer, CancelNumber, Cancellations, Cancelled, Completion, Key, LISTED_FOR,
    Opening, Record, Retention, Sharing, Store, StoreLost, TakeOver, Taken,
};
use crate::{
    clock,
    job::outcome::{BatchProgress, BatchState},
};

pub struct RedisStore {
    link: RedisLink,
    birth: Birth,
    retention: Retention,
}

impl RedisStore {
    /// Connects with the first operation. Fails if the URL is not valid.
    pub fn new(
        url: &str,
        certificates: Certificates,
        retention: Retention,
    ) -> Result<Self, StoreLost> {
        // A late write to a record that has ended must not shorten its retention.
        let under_way = retention.under_way.max(retention.ended);
        Ok(Self {
            link: RedisLink::new(url, certificates)?,
            birth: Birth::default(),
            retention: Retention { under_way, ..retention },
        })
    }

    /// Runs a script that changes a record. Fails if the writer has been displaced.
    async fn change(
        &self,
        operation: &'static str,
        script: Script,
        opening: &Opening,
        kept_for: Duration,
        arguments: &[&str],
    ) -> Result<CancelNumber, StoreLost> {
        let (keys, common) = (keys_of(&opening.key), self.common_arguments(opening, kept_for));
        let arguments: Vec<&str> =
            common.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let answer = self.link.run_script(operation, script, &keys, &arguments).await?;
        unless_displaced(operation, answer)
    }

    /// The arguments that every record script takes, in their order.
    fn common_arguments(&self, opening: &Opening, kept_for: Duration) -> [String; 5] {
        let Opening { key, epoch, .. } = opening;
        let (deaths, deaths_kept_for) =
            (key.earlier_deaths.to_string(), in_ms(self.retention.under_way).to_string());
        [
            epoch.to_string(),
            head_json(opening),
            in_ms(kept_for).to_string(),
            deaths,
            deaths_kept_for,
        ]
    }

    async fn open_record(&self, opening: &Opening) -> Result<(Record, CancelNumber), StoreLost> {
        const OPERATION: &str = "open a job's record";
        let mut keys = keys_of(&opening.key).to_vec();
        keys.insert(keys.len() - 1, BORN.to_owned());
        let mut arguments = self.common_arguments(opening, self.retention.under_way).to_vec();
        arguments.push(birth::new_mark());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let opened = self.link.run_script(OPERATION, Script::Open, &keys, &arguments).await?;
        let (answer, is_cancelled, born, fields): (i64, bool, String, Fields) = opened;
        let latest = unless_displaced(OPERATION, answer)?;
        self.birth.compare(born);
        let record = records::decode(&opening.key, &fields, is_cancelled)
            .map_err(|error| StoreLost::of_record(OPERATION, error))?;
        let evicted = || self.link.lost(OPERATION, "it was evicted at once; raise maxmemory");
        Ok((record.ok_or_else(evicted)?, latest))
    }

    async fn find_latest(&self, app: String, job_id: String) -> Result<Option<Record>, StoreLost> {
        const OPERATION: &str = "look a job up";
        let mut key = Key { app, job_id, earlier_deaths: 0 };
        let deaths: (Vec<u32>,) = self
            .link
            .run(OPERATION, redis::pipe().smembers(deaths_key(&key.app, &key.job_id)))
            .await?;
        let mut deaths = deaths.0;
        deaths.push(0);
        deaths.sort_unstable_by(|one, other| other.cmp(one));
        // Some of these records may have expired.
        for earlier_deaths in deaths {
            key.earlier_deaths = earlier_deaths;
            let mut pipe = redis::pipe();
            pipe.hgetall(record_key(&key)).exists(cancellation_key(&key.app, &key.job_id));
            let (fields, is_cancelled): (Fields, bool) = self.link.run(OPERATION, &pipe).await?;
            let record = records::decode(&key, &fields, is_cancelled)
                .map_err(|error| StoreLost::of_record(OPERATION, error))?;
            if record.is_some() {
                return Ok(record);
            }
        }
        Ok(None)
    }
}

impl Store for RedisStore {
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, (Record, CancelNumber)> {
        Box::pin(async move { self.open_record(&opening).await })
    }

    fn note(
        &self,
        opening: Arc<Opening>,
        batch: u32,
        progress: BatchProgress,
    ) -> Answer<'_, CancelNumber> {
        Box::pin(async move {
            let cut = opening.head.cut();
            let (touched, ended) = (records::touched(cut, batch), records::ended(cut, batch));
            let stands = match progress.state {
                BatchState::Open => "o",
                BatchState::Intended => "i",
                BatchState::Ended(_) => "e",
            };
            let (json, kept_for) = (progress_json(&progress), self.retention.under_way);
            let arguments = [touched.as_str(), &ended, &json, stands];
            self.change("record how a batch stands", Script::Note, &opening, kept_for, &arguments)
                .await
        })
    }

    fn split_again(
        &self,
        opening: Arc<Opening>,
        batches: Vec<(u32, BatchProgress)>,
    ) -> Answer<'_, CancelNumber> {
        Box::pin(async move {
            let cut = opening.head.cut();
            let field = |batch: u32, progress: &BatchProgress| match progress.state {
                BatchState::Open | BatchState::Intended => [
                    records::touched(cut, batch),
                    format!("{} {}", opening.epoch, progress_json(progress)),
                ],
                BatchState::Ended(_) => [records::ended(cut, batch), progress_json(progress)],
            };
            let fields: Vec<String> =
                batches.iter().flat_map(|(batch, progress)| field(*batch, progress)).collect();
            let arguments: Vec<&str> = fields.iter().map(String::as_str).collect();
            let kept_for = self.retention.under_way;
            self.change(
                "record that a job is split again",
                Script::SplitAgain,
                &opening,
                kept_for,
                &arguments,
            )
            .await
        })
    }

    fn complete(&self, opening: Arc<Opening>, completion: Completion) -> Answer<'_, CancelNumber> {
        Box::pin(async move {
            let kept_for = self.retention.of(&completion);
            self.change(
                "record a job's result",
                Script::Complete,
                &opening,
                kept_for,
                &[&completion.result, &opening.key.job_id],
            )
            .await
        })
    }

    fn find(&self, app: String, job_id: String) -> Answer<'_, Option<Record>> {
        Box::pin(self.find_latest(app, job_id))
    }

    fn take_over(&self, take_over: TakeOver) -> Answer<'_, Taken> {
        Box::pin(async move {
            let TakeOver { app, at_least, leave_active } = take_over;
            let keys = [records::epoch_key(&app), records::active_key(&app)];
            let (at_least, active_for) =
                (at_least.as_millisecond().to_string(), in_ms(ACTIVE_FOR).to_string());
            let arguments = [at_least.as_str(), &active_for, if leave_active { "1" } else { "0" }];
            let taken = self
                .link
                .run_script("take an app's jobs over", Script::TakeOver, &keys, &arguments)
                .await?;
            Ok(if taken == 0 { Taken::LeftToAnother } else { Taken::Epoch(taken) })
        })
    }

    fn confirm(&self, app: String, epoch: i64) -> Answer<'_, CancelNumber> {
        const OPERATION: &str = "confirm that the app's jobs are here";
        Box::pin(async move {
            let keys = [
                records::epoch_key(&app),
                records::active_key(&app),
                latest_cancellation_key(&app),
            ];
            let (epoch, active_for) = (epoch.to_string(), in_ms(ACTIVE_FOR).to_string());
            let arguments = [epoch.as_str(), &active_for];
            let answer =
                self.link.run_script(OPERATION, Script::Confirm, &keys, &arguments).await?;
            unless_displaced(OPERATION, answer)
        })
    }

    fn cancel(&self, app: String, job_id: String) -> Answer<'_, Cancelled> {
        Box::pin(async move {
            let latest =
                self.find_latest(app.clone(), job_id.clone()).await?.map(|found| found.key);
            let key = latest.unwrap_or(Key { app, job_id, earlier_deaths: 0 });
            let Key { app, job_id, .. } = &key;
            let keys = [
                record_key(&key),
                cancellation_key(app, job_id),
                cancellations_key(app),
                latest_cancellation_key(app),
            ];
            let arguments = [
                clock::now().as_millisecond(),
                in_ms(self.retention.under_way),
                in_ms(self.retention.ended),
                in_ms(LISTED_FOR),
            ];
            let mut arguments = arguments.map(|number| number.to_string()).to_vec();
            arguments.push(job_id.clone());
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let met =
                self.link.run_script("cancel a job", Script::Cancel, &keys, &arguments).await?;
            Ok(match met {
                0 => Cancelled::NotSeen,
                1 => Cancelled::UnderWay,
                _ => Cancelled::HasEnded,
            })
        })
    }

    fn undo_cancel(&self, app: String, job_id: String) -> Answer<'_, bool> {
        Box::pin(async move {
            let mut pipe = redis::pipe();
            pipe.atomic().del(cancellation_key(&app, &job_id));
            pipe.zrem(cancellations_key(&app), &job_id).ignore();
            let (removed,): (bool,) = self.link.run("undo a cancellation", &pipe).await?;
            Ok(removed)
        })
    }

    fn cancelled_since(&self, app: String, known: CancelNumber) -> Answer<'_, Cancellations> {
        Box::pin(async move {
            let mut pipe = redis::pipe();
            // In this order: a cancellation between the two is listed, and is read once more later.
            pipe.get(latest_cancellation_key(&app));
            pipe.zrangebyscore(cancellations_key(&app), format!("({}", known.0), "+inf");
            let (latest, jobs): (Option<i64>, Vec<String>) =
                self.link.run("read which jobs are cancelled", &pipe).await?;
            Ok(Cancellations { jobs, latest: CancelNumber(latest.unwrap_or_default()) })
        })
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

/// A script's answer to a writer with an older epoch.
const DISPLACED: i64 = -1;

fn unless_displaced(operation: &'static str, answer: i64) -> Result<CancelNumber, StoreLost> {
    match answer {
        DISPLACED => Err(StoreLost::displaced(operation)),
        latest => Ok(CancelNumber(latest)),
    }
}

/// The keys that every record script takes, in their order.
fn keys_of(key: &Key) -> [String; 6] {
    let Key { app, job_id, .. } = key;
    [
        records::epoch_key(app),
        record_key(key),
        deaths_key(app, job_id),
        cancellation_key(app, job_id),
        cancellations_key(app),
        latest_cancellation_key(app),
    ]
}

fn progress_json(progress: &BatchProgress) -> String {
    serde_json::to_string(progress).expect("progress is always JSON")
}

fn head_json(opening: &Opening) -> String {
    serde_json::to_string(&opening.head).expect("a head is always JSON")
}

fn in_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

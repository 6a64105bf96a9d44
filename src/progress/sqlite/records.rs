//! What each operation reads and writes, inside the transaction that its caller opened.
//!
//! The state of an ended batch never changes. An expired record counts as absent.

use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use super::{
    super::store::{
        ACTIVE_FOR, CancelNumber, Cancellations, Cancelled, Completion, Key, LISTED_FOR, Opening,
        Retention, TakeOver, Taken,
    },
    schema,
    stored::StoredRecord,
    writer::{Batch, WriteOperation, WriteResult},
};
use crate::job::outcome::BatchState;

/// A record's expiry is moved only if it moves by more than this, not at each access.
const COARSE: Duration = Duration::from_hours(1);

/// How many records one search for expired records reads.
const LOOKED_AT: i64 = 5_000;

/// The result of a search for expired records.
pub struct Removed {
    pub count: usize,
    /// The last record that was read; `None` at the end of the table.
    pub up_to: Option<i64>,
}

/// The records as they are at `now`, in Unix milliseconds.
pub struct Records<'a> {
    connection: &'a Connection,
    now: i64,
    retention: Retention,
}

/// A job's row, for writes.
struct JobRow {
    id: i64,
    head: String,
    result: Option<String>,
    expires_at: i64,
    /// The progress of its only batch.
    progress: Option<String>,
}

impl<'a> Records<'a> {
    pub fn new(connection: &'a Connection, now: i64, retention: Retention) -> Self {
        Self { connection, now, retention }
    }

    /// Carries an operation out. From a displaced process, it writes only facts: the outcomes of
    /// calls, and results.
    pub fn carry_out(&self, work: &WriteOperation) -> rusqlite::Result<WriteResult> {
        match work {
            WriteOperation::Open(opening) => match self.fence(&opening.key.app, opening.epoch)? {
                Some(latest) => Ok(WriteResult::Opened(self.open(opening)?, latest)),
                None => Ok(WriteResult::Displaced),
            },
            WriteOperation::Note { opening, batch } => {
                self.fenced(opening, batch.state != BatchState::Intended, || {
                    self.note(opening, batch)
                })
            }
            WriteOperation::SplitAgain { opening, batches } => {
                self.fenced(opening, false, || self.split_again(opening, batches))
            }
            WriteOperation::Complete { opening, completion } => {
                self.fenced(opening, true, || self.complete(opening, completion))
            }
            WriteOperation::Find { app, job_id } => self.find(app, job_id).map(WriteResult::Found),
            WriteOperation::TakeOver(take_over) => {
                self.take_over(take_over).map(WriteResult::Taken)
            }
            WriteOperation::Confirm { app, epoch } => self.confirm(app, *epoch),
            WriteOperation::Cancel { app, job_id } => {
                self.cancel(app, job_id).map(WriteResult::Cancelled)
            }
            WriteOperation::UndoCancel { app, job_id } => {
                self.remove_cancellation(app, job_id).map(WriteResult::Undone)
            }
            WriteOperation::CancelledSince { app, known } => {
                self.cancelled_since(app, *known).map(WriteResult::Cancellations)
            }
            WriteOperation::Probe => {
                schema::write_version(self.connection).map(|()| WriteResult::Works)
            }
        }
    }

    /// Writes unless the writer has been displaced. Facts are always written.
    fn fenced(
        &self,
        opening: &Opening,
        is_certain: bool,
        write: impl FnOnce() -> rusqlite::Result<()>,
    ) -> rusqlite::Result<WriteResult> {
        let latest = self.fence(&opening.key.app, opening.epoch)?;
        if is_certain || latest.is_some() {
            write()?;
        }
        Ok(latest.map_or(WriteResult::Displaced, WriteResult::Confirmed))
    }

    /// The app's latest cancellation; `None` if there is a newer epoch than this.
    fn fence(&self, app: &str, epoch: i64) -> rusqlite::Result<Option<CancelNumber>> {
        let (newest, latest) = self.newest(app)?;
        Ok((newest <= epoch).then_some(latest))
    }

    /// The app's newest epoch and its latest cancellation.
    fn newest(&self, app: &str) -> rusqlite::Result<(i64, CancelNumber)> {
        let newest = self
            .prepare("SELECT epoch, latest_cancellation FROM epochs WHERE app = ?1")?
            .query_row([app], |row| Ok((row.get(0)?, CancelNumber(row.get(1)?))))
            .optional()?;
        Ok(newest.unwrap_or_default())
    }

    fn take_over(&self, take_over: &TakeOver) -> rusqlite::Result<Taken> {
        let TakeOver { app, at_least, leave_active } = take_over;
        let is_active = "SELECT 1 FROM epochs WHERE app = ?1 AND active_until > ?2";
        if *leave_active && self.prepare(is_active)?.exists(params![app, self.now])? {
            return Ok(Taken::LeftToAnother);
        }
        let epoch = at_least.as_millisecond().max(self.newest(app)?.0 + 1);
        self.hold(app, epoch)?;
        Ok(Taken::Epoch(epoch))
    }

    fn confirm(&self, app: &str, epoch: i64) -> rusqlite::Result<WriteResult> {
        let Some(latest) = self.fence(app, epoch)? else { return Ok(WriteResult::Displaced) };
        self.hold(app, epoch)?;
        Ok(WriteResult::Confirmed(latest))
    }

    fn hold(&self, app: &str, epoch: i64) -> rusqlite::Result<()> {
        let active_until = self.in_future(ACTIVE_FOR);
        self.prepare(
            "INSERT INTO epochs (app, epoch, active_until) VALUES (?1, ?2, ?3)
             ON CONFLICT (app) DO UPDATE
             SET epoch = excluded.epoch, active_until = excluded.active_until",
        )?
        .execute(params![app, epoch, active_until])?;
        Ok(())
    }

    fn cancel(&self, app: &str, job_id: &str) -> rusqlite::Result<Cancelled> {
        let (met, kept_for) = match self.find(app, job_id)? {
            Some(StoredRecord { result: Some(_), .. }) => return Ok(Cancelled::HasEnded),
            Some(_) => (Cancelled::UnderWay, self.retention.under_way),
            None => (Cancelled::NotSeen, self.retention.ended),
        };
        let number = self.now.max(self.newest(app)?.1.0 + 1);
        self.prepare(
            "INSERT INTO epochs (app, epoch, active_until, latest_cancellation)
             VALUES (?1, 0, 0, ?2)
             ON CONFLICT (app) DO UPDATE SET latest_cancellation = excluded.latest_cancellation",
        )?
        .execute(params![app, number])?;
        self.prepare("DELETE FROM cancellations WHERE expires_at <= ?1")?.execute([self.now])?;
        self.prepare(
            "INSERT OR REPLACE INTO cancellations (app, job_id, number, expires_at)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![app, job_id, number, self.in_future(kept_for)])?;
        Ok(met)
    }

    fn remove_cancellation(&self, app: &str, job_id: &str) -> rusqlite::Result<bool> {
        let removed = self
            .prepare("DELETE FROM cancellations WHERE app = ?1 AND job_id = ?2")?
            .execute([app, job_id])?;
        Ok(removed > 0)
    }

    fn is_cancelled(&self, app: &str, job_id: &str) -> rusqlite::Result<bool> {
        self.prepare(
            "SELECT 1 FROM cancellations WHERE app = ?1 AND job_id = ?2 AND expires_at > ?3",
        )?
        .exists(params![app, job_id, self.now])
    }

    fn cancelled_since(&self, app: &str, known: CancelNumber) -> rusqlite::Result<Cancellations> {
        let listed_from = known.0.max(self.now - in_ms(LISTED_FOR));
        let jobs = self
            .prepare("SELECT job_id FROM cancellations WHERE app = ?1 AND number > ?2")?
            .query_map(params![app, listed_from], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        Ok(Cancellations { jobs, latest: self.newest(app)?.1 })
    }

    /// Finds or creates a job's record. For a job of one batch, the first note creates the record.
    fn open(&self, opening: &Opening) -> rusqlite::Result<StoredRecord> {
        let key = opening.key.clone();
        let is_cancelled = self.is_cancelled(&key.app, &key.job_id)?;
        let Some(job) = self.present(opening)? else {
            let head =
                if has_one_batch(opening) { head_of(opening) } else { self.make(opening)?.head };
            return Ok(StoredRecord { key, head, batches: Vec::new(), result: None, is_cancelled });
        };
        let batches = if job.result.is_none() {
            self.keep_under_way(&job)?;
            self.batches(&job)?
        } else {
            Vec::new()
        };
        Ok(StoredRecord { key, head: job.head, batches, result: job.result, is_cancelled })
    }

    fn note(&self, opening: &Opening, batch: &Batch) -> rusqlite::Result<()> {
        if has_one_batch(opening) {
            self.note_only_batch(opening, batch)
        } else {
            self.note_batch(opening, batch)
        }
    }

    fn note_only_batch(&self, opening: &Opening, batch: &Batch) -> rusqlite::Result<()> {
        let Key { app, job_id, earlier_deaths } = &opening.key;
        let expires_at = self.in_future(self.retention.under_way);
        // Updates nothing if the batch or the job has ended meanwhile, or if the job is now cut
        // differently.
        self.prepare(
            "INSERT INTO jobs (app, job_id, earlier_deaths, head, expires_at, progress, \
                progress_ended, progress_epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (app, job_id, earlier_deaths) DO UPDATE
             SET progress = excluded.progress, progress_ended = excluded.progress_ended, \
             progress_epoch = excluded.progress_epoch
             WHERE result IS NULL AND NOT progress_ended
                AND (excluded.progress_ended OR progress_epoch <= excluded.progress_epoch)
                AND head ->> 'batch_size' = excluded.head ->> 'batch_size'
                AND head ->> 'within' IS excluded.head ->> 'within'",
        )?
        .execute(params![
            app,
            job_id,
            earlier_deaths,
            head_of(opening),
            expires_at,
            batch.json,
            batch.has_ended(),
            opening.epoch
        ])?;
        Ok(())
    }

    fn note_batch(&self, opening: &Opening, batch: &Batch) -> rusqlite::Result<()> {
        let Key { app, job_id, earlier_deaths } = &opening.key;
        let Batch { number, json, .. } = batch;
        let cut = opening.head.cut();
        let write = || {
            self.prepare(
                "INSERT INTO batches (job, batch, progress, ended, epoch)
                 SELECT id, ?4, ?5, ?6, ?8 FROM jobs
                 WHERE app = ?1 AND job_id = ?2 AND earlier_deaths = ?3 AND result IS NULL AND \
                 head ->> 'batch_size' = ?7
                        AND head ->> 'within' IS ?9
                 ON CONFLICT (job, batch) DO UPDATE
                 SET progress = excluded.progress, ended = excluded.ended, epoch = excluded.epoch
                 WHERE NOT ended AND (excluded.ended OR epoch <= excluded.epoch)",
            )?
            .execute(params![
                app,
                job_id,
                earlier_deaths,
                number,
                json,
                batch.has_ended(),
                cut.batch_size,
                opening.epoch,
                cut.within
            ])
        };
        // Writes nothing if the batch or the job has ended meanwhile, or if the job is now cut
        // differently. It also writes nothing if the file is new and lacks the job: then the record
        // is made again.
        if write()? == 0 && self.present(opening)?.is_none() {
            self.make(opening)?;
            write()?;
        }
        Ok(())
    }

    fn split_again(&self, opening: &Opening, batches: &[Batch]) -> rusqlite::Result<()> {
        let job = match self.present(opening)? {
            Some(JobRow { result: Some(_), .. }) => return Ok(()),
            Some(job) => job,
            None => self.make(opening)?,
        };
        let expires_at = self.in_future(self.retention.under_way);
        self.prepare(
            "UPDATE jobs SET head = ?2, expires_at = ?3, progress = NULL, progress_ended = 0 WHERE \
                id = ?1",
        )?
        .execute(params![job.id, head_of(opening), expires_at])?;
        self.prepare("DELETE FROM batches WHERE job = ?1")?.execute([job.id])?;
        let mut insert = self.prepare(
            "INSERT INTO batches (job, batch, progress, ended, epoch) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for batch in batches {
            insert.execute(params![
                job.id,
                batch.number,
                batch.json,
                batch.has_ended(),
                opening.epoch
            ])?;
        }
        Ok(())
    }

    fn complete(&self, opening: &Opening, completion: &Completion) -> rusqlite::Result<()> {
        let Key { app, job_id, earlier_deaths } = &opening.key;
        let Completion { result, .. } = completion;
        let expires_at = self.in_future(self.retention.of(completion));
        let write = || {
            self.prepare(
                "UPDATE jobs SET result = ?4, expires_at = ?5, progress = NULL
                 WHERE app = ?1 AND job_id = ?2 AND earlier_deaths = ?3",
            )?
            .execute(params![app, job_id, earlier_deaths, result, expires_at])
        };
        if write()? == 0 {
            self.make(opening)?;
            write()?;
        }
        self.remove_cancellation(app, job_id)?;
        if !has_one_batch(opening) {
            let id = "SELECT id FROM jobs WHERE app = ?1 AND job_id = ?2 AND earlier_deaths = ?3";
            self.prepare(&format!("DELETE FROM batches WHERE job = ({id})"))?.execute(params![
                app,
                job_id,
                earlier_deaths
            ])?;
        }
        Ok(())
    }

    fn find(&self, app: &str, job_id: &str) -> rusqlite::Result<Option<StoredRecord>> {
        let latest = self
            .prepare(
                "SELECT id, head, result, expires_at, progress, earlier_deaths FROM jobs
                 WHERE app = ?1 AND job_id = ?2 AND expires_at > ?3 ORDER BY earlier_deaths DESC \
                 LIMIT 1",
            )?
            .query_row(params![app, job_id, self.now], |row| Ok((JobRow::read(row)?, row.get(5)?)))
            .optional()?;
        let Some((job, earlier_deaths)) = latest else {
            return Ok(None);
        };
        let key = Key { app: app.to_owned(), job_id: job_id.to_owned(), earlier_deaths };
        Ok(Some(StoredRecord {
            key,
            batches: self.batches(&job)?,
            head: job.head,
            result: job.result,
            is_cancelled: self.is_cancelled(app, job_id)?,
        }))
    }

    /// Reads at most [`LOOKED_AT`] records after the one with the id `after`, and removes up to
    /// `most` expired ones.
    pub fn remove_expired(&self, after: i64, most: usize) -> rusqlite::Result<Removed> {
        let mut next =
            self.prepare("SELECT id, expires_at FROM jobs WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let looked_at: Vec<(i64, i64)> = next
            .query_map([after, LOOKED_AT], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let expired: Vec<i64> = looked_at
            .iter()
            .filter(|(_, expires_at)| *expires_at <= self.now)
            .map(|(id, _)| *id)
            .take(most)
            .collect();
        expired.iter().try_for_each(|id| self.remove(*id))?;
        let last = if expired.len() == most {
            expired.last().copied()
        } else {
            looked_at.last().map(|(id, _)| *id)
        };
        Ok(Removed { count: expired.len(), up_to: last })
    }

    fn remove(&self, job: i64) -> rusqlite::Result<()> {
        self.prepare("DELETE FROM batches WHERE job = ?1")?.execute([job])?;
        self.prepare("DELETE FROM jobs WHERE id = ?1")?.execute([job])?;
        Ok(())
    }

    /// The job's row, unless it is missing or expired.
    fn present(&self, opening: &Opening) -> rusqlite::Result<Option<JobRow>> {
        let Key { app, job_id, earlier_deaths } = &opening.key;
        let found = self
            .prepare(
                "SELECT id, head, result, expires_at, progress FROM jobs
                 WHERE app = ?1 AND job_id = ?2 AND earlier_deaths = ?3",
            )?
            .query_row(params![app, job_id, earlier_deaths], JobRow::read)
            .optional()?;
        match found {
            Some(job) if job.expires_at <= self.now => self.remove(job.id).map(|()| None),
            found => Ok(found),
        }
    }

    fn make(&self, opening: &Opening) -> rusqlite::Result<JobRow> {
        let Key { app, job_id, earlier_deaths } = &opening.key;
        let head = head_of(opening);
        let expires_at = self.in_future(self.retention.under_way);
        self.prepare(
            "INSERT INTO jobs (app, job_id, earlier_deaths, head, expires_at) VALUES (?1, ?2, ?3, \
                ?4, ?5)",
        )?
        .execute(params![app, job_id, earlier_deaths, head, expires_at])?;
        Ok(JobRow {
            id: self.connection.last_insert_rowid(),
            head,
            result: None,
            expires_at,
            progress: None,
        })
    }

    fn keep_under_way(&self, job: &JobRow) -> rusqlite::Result<()> {
        let coarse = COARSE.min(self.retention.under_way / 24);
        let expires_at = self.in_future(self.retention.under_way);
        if expires_at - job.expires_at > in_ms(coarse) {
            self.prepare("UPDATE jobs SET expires_at = ?2 WHERE id = ?1")?
                .execute([job.id, expires_at])?;
        }
        Ok(())
    }

    fn batches(&self, job: &JobRow) -> rusqlite::Result<Vec<(u32, String)>> {
        if let Some(progress) = &job.progress {
            return Ok(vec![(0, progress.clone())]);
        }
        let mut statement = self.prepare("SELECT batch, progress FROM batches WHERE job = ?1")?;
        statement.query_map([job.id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    fn in_future(&self, duration: Duration) -> i64 {
        self.now.saturating_add(in_ms(duration))
    }

    fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
        self.connection.prepare_cached(sql)
    }
}

impl Batch {
    fn has_ended(&self) -> bool {
        match self.state {
            BatchState::Open | BatchState::Intended => false,
            BatchState::Ended(_) => true,
        }
    }
}

impl JobRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            head: row.get(1)?,
            result: row.get(2)?,
            expires_at: row.get(3)?,
            progress: row.get(4)?,
        })
    }
}

fn has_one_batch(opening: &Opening) -> bool {
    opening.head.batches == 1
}

fn head_of(opening: &Opening) -> String {
    serde_json::to_string(&opening.head).expect("a head is always JSON")
}

fn in_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

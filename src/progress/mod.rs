//! What the daemon remembers about jobs. A job that comes again continues where it stopped, or gets
//! its recorded result at once.
//!
//! A job with an id from its producer has a record in a [`store`]: what the job is, the progress of
//! each batch, and in the end its result. Two messages with one id are one job: the second waits
//! for the first. A batch counts as ended only after the store has confirmed it. The same holds for
//! the intent before a call that must not be repeated.
//!
//! While the store is [away](health), no call starts. The daemon keeps the outcomes that it knows
//! by then, and records them when the store works again. Such an operation has no time limit, and
//! holds the claim on its job until it succeeds. No call starts either while a write has waited for
//! a second. So after a crash, only calls of about one second are repeated.

mod claims;
pub mod health;
mod pending;
pub mod redis;
pub mod sqlite;
pub mod store;
pub mod tenure;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use tokio::{task::spawn_blocking, time::timeout};

use self::{
    claims::{Claim, Claims},
    health::{Attempt, Health},
    pending::Pending,
    redis::{Certificates, RedisStore},
    sqlite::{FileAccess, SqliteStore},
    store::{
        Answer, CancelNumber, Cancelled, Completion, Head, Key, Opening, Record, Retention, Scope,
        Sharing, Store, StoreLost,
    },
    tenure::Tenure,
};
use crate::{
    clock::Moment,
    config::{Config, StateConfig, StateStore, file},
    job::{
        Cut, Envelope, Job,
        outcome::{BatchProgress, BatchState},
    },
    pem::{self, PemContent},
};

/// The store that the configuration names.
pub fn store_of(config: &Config) -> Result<Arc<dyn Store>, StoreLost> {
    let retention = retention_of(config);
    Ok(match config.state.url.store() {
        StateStore::Sqlite(path) => Arc::new(SqliteStore::new(path.clone(), retention)),
        StateStore::Redis => Arc::new(RedisStore::new(
            config.state.url.expose(),
            certificates_of(&config.state)?,
            retention,
        )?),
    })
}

/// Claims the state file for this process, until the returned file is dropped. Two daemons with the
/// same file would each assume that no other process works on its jobs.
pub async fn claim_file(config: &Config) -> Result<Option<fs::File>, StoreLost> {
    let StateStore::Sqlite(path) = config.state.url.store().clone() else { return Ok(None) };
    let claiming = spawn_blocking(move || sqlite::claim(&path));
    // If the disk hangs, the store reports it.
    timeout(CLAIMED_WITHIN, claiming)
        .await
        .map_or(Ok(None), |claimed| claimed.expect("it does not panic"))
}

/// Opens the store of a daemon for a command beside it. A missing SQLite file is not created, and
/// an old one is not upgraded.
pub fn existing_store(config: &Config, access: FileAccess) -> Result<Arc<dyn Store>, StoreLost> {
    match config.state.url.store() {
        StateStore::Sqlite(path) => {
            Ok(Arc::new(SqliteStore::existing(path.clone(), access, retention_of(config))))
        }
        StateStore::Redis => store_of(config),
    }
}

fn certificates_of(state: &StateConfig) -> Result<Certificates, StoreLost> {
    let read = |key: &str, path: &Option<PathBuf>, content: PemContent| {
        let Some(path) = path else { return Ok(None) };
        let wrong = |reason| StoreLost::new("read the certificates of state", reason);
        let bytes = file::read(path, file::LARGEST_BYTES)
            .map_err(|error| wrong(format!("{}: {error}", path.display())))?;
        pem::check(key, path, &bytes, content).map_err(wrong)?;
        Ok(Some(bytes))
    };
    let ca = read("state.ca_file", &state.ca_file, PemContent::Certificates)?;
    let certificate = read("state.cert_file", &state.cert_file, PemContent::Certificates)?;
    Ok(Certificates {
        ca,
        client: certificate.zip(read("state.key_file", &state.key_file, PemContent::PrivateKey)?),
    })
}

const CLAIMED_WITHIN: Duration = Duration::from_secs(2);

/// How long to keep the record of an unfinished job that does not come back. The job may wait in
/// its queue while the app is paused or has a backlog. Each time the job comes, or is parked again
/// until its time, this period starts anew.
const UNFINISHED_KEPT_FOR: Duration = Duration::from_hours(24 * 90);

/// `state.retention` is for jobs that have ended. The record of an unfinished job must outlive any
/// wait after which the job can still come back, whatever the configuration says.
fn retention_of(config: &Config) -> Retention {
    let retries = config.apps.values().map(|app| &app.retry);
    let longest = retries.map(|retry| {
        let longest_wait = retry.park.iter().max().copied().unwrap_or_default();
        retry.give_up_after + retry.hold + 2 * longest_wait
    });
    let unfinished = UNFINISHED_KEPT_FOR + longest.max().unwrap_or_default();
    Retention { ended: config.state.retention, under_way: unfinished.max(config.state.retention) }
}

/// The daemon's memory of jobs.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    health: Health,
    claims: Claims,
    pending: Pending,
}

/// What the store knows about a job that has come.
pub enum Opened {
    /// The job is new, or has open batches.
    Unfinished(Earlier),
    /// The job has already ended, with this result as JSON.
    Answered { entry: Entry, result: String },
    /// The id belongs to a job with other content.
    OtherContent,
    /// The daemon is still working on another message with this id.
    Busy,
}

/// The progress of a job from earlier deliveries.
pub struct Earlier {
    pub entry: Entry,
    pub head: Head,
    /// The batches that have progress.
    pub batches: Vec<(u32, BatchProgress)>,
    pub made: Made,
}

/// When a record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Now,
    /// By another delivery. Another replica may still be working on the job.
    Before,
}

/// A job's record in the store. While an entry is held, another message with the same id waits.
#[derive(Clone)]
pub struct Entry(Arc<EntryState>);

struct EntryState {
    inner: Arc<Inner>,
    tenure: Arc<tenure::TenureState>,
    opening: Arc<Opening>,
    claim: Arc<Claim>,
}

impl Progress {
    /// Starts to watch the store. Until its first answer the store does not count as working.
    pub fn start(store: Arc<dyn Store>) -> Self {
        let health = Health::watch(store.clone());
        Self(Arc::new(Inner {
            store,
            health,
            claims: Claims::default(),
            pending: Pending::default(),
        }))
    }

    /// Looks a job up, and creates a record if there is none. Waits while another message with the
    /// same id is processed, but at most for `patience`.
    pub async fn open(
        &self,
        tenure: &Tenure,
        envelope: &Envelope,
        job: &Job,
        fingerprint: String,
        patience: Duration,
    ) -> Result<Opened, StoreLost> {
        let epoch = tenure.epoch().await?;
        let opening = Arc::new(opening(tenure.app(), envelope, job, fingerprint, epoch));
        let claiming = self.0.claims.claim(opening.key.clone());
        let Ok(claim) = timeout(patience, claiming).await else { return Ok(Opened::Busy) };
        let Record { key, head, batches, result, is_cancelled } = {
            let opening = opening.clone();
            let opened =
                self.0.retry_until_answered(move |store| store.open(opening.clone())).await;
            let ((record, latest), at) = tenure.shared().apply_answer(epoch, opened)?;
            tenure.shared().confirmed(epoch, latest, at);
            record
        };
        // Set here too: the cancellation may be older than the claim.
        if is_cancelled {
            claim.cancelled.cancel();
        }
        if head.content != opening.head.content {
            return Ok(Opened::OtherContent);
        }
        let made = if head == opening.head { Made::Now } else { Made::Before };
        let opening = Arc::new(Opening { key, head: head.clone(), epoch });
        let (inner, tenure) = (self.0.clone(), tenure.shared());
        let entry = Entry(Arc::new(EntryState { inner, tenure, opening, claim: Arc::new(claim) }));
        if let Some(result) = result {
            return Ok(Opened::Answered { entry, result });
        }
        Ok(Opened::Unfinished(Earlier { entry, head, batches, made }))
    }

    /// Creates a record of a job that came without an id and now has one. No other message has this
    /// id.
    pub async fn remember(
        &self,
        tenure: &Tenure,
        envelope: &Envelope,
        job: &Job,
        fingerprint: String,
        touched: &[(u32, BatchProgress)],
    ) -> Result<Entry, StoreLost> {
        let opening =
            Arc::new(opening(tenure.app(), envelope, job, fingerprint, tenure.last_epoch()));
        let claim = Arc::new(self.0.claims.claim(opening.key.clone()).await);
        let entry = Entry(Arc::new(EntryState {
            inner: self.0.clone(),
            tenure: tenure.shared(),
            opening,
            claim,
        }));
        if touched.is_empty() {
            entry.record_batch(0, &BatchProgress::default()).await?;
        }
        try_join_all(touched.iter().map(|(batch, progress)| entry.record_batch(*batch, progress)))
            .await?;
        Ok(entry)
    }

    /// Cancels a job, wherever it is. If this process is working on it, it learns so at once.
    pub async fn cancel(&self, app: &str, job_id: &str) -> Result<Cancelled, StoreLost> {
        let cancelled = self.0.store.cancel(app.to_owned(), job_id.to_owned()).await?;
        if cancelled != Cancelled::HasEnded {
            self.0.claims.cancel(app, &[job_id.to_owned()]);
        }
        Ok(cancelled)
    }

    /// Returns the tenure of one app in this process.
    pub fn tenure(&self, app: &str) -> Tenure {
        Tenure::new(app, self.0.clone())
    }

    pub fn health(&self) -> &Health {
        &self.0.health
    }

    /// Whether the store would soon record the outcome of a call that starts now.
    pub fn can_record(&self) -> bool {
        self.0.health.works() && self.0.pending.is_on_time()
    }

    pub fn sharing(&self) -> Sharing {
        self.0.store.sharing()
    }
}

fn opening(app: &str, envelope: &Envelope, job: &Job, fingerprint: String, epoch: i64) -> Opening {
    let key = Key {
        app: app.to_owned(),
        job_id: envelope.job_id.clone(),
        earlier_deaths: envelope.earlier_deaths,
    };
    let head = Head {
        content: fingerprint,
        batch_size: job.cut().batch_size,
        within: job.cut().within,
        batches: job.batch_count(),
        duplicates: job.duplicates(),
        received_at: envelope.received_at,
    };
    Opening { key, head, epoch }
}

impl Entry {
    /// Records the progress of a batch. Fails if the record cannot be written. An intent also fails
    /// if another replica has taken the app's jobs over.
    pub async fn record_batch(
        &self,
        batch: u32,
        progress: &BatchProgress,
    ) -> Result<(), StoreLost> {
        let is_intent = progress.state == BatchState::Intended;
        let (opening, progress) = (self.0.opening.clone(), progress.clone());
        match self.record(move |store| store.note(opening.clone(), batch, progress.clone())).await {
            // It is recorded all the same.
            Err(error) if error.scope == Scope::Displaced && !is_intent => Ok(()),
            noted => noted,
        }
    }

    /// Records that the job is now cut differently, and the progress of its batches. Later records
    /// must use the entry that this function returns.
    pub async fn split_again(
        &self,
        job: &Job,
        batches: &[(u32, BatchProgress)],
    ) -> Result<Self, StoreLost> {
        let EntryState { inner, tenure, opening, claim } = &*self.0;
        let Opening { key, head, epoch } = (**opening).clone();
        let Cut { batch_size, within } = job.cut();
        let head = Head { batch_size, within, batches: job.batch_count(), ..head };
        let opening = Arc::new(Opening { key, head, epoch });
        let (recorded, batches) = (opening.clone(), batches.to_vec());
        self.record(move |store| store.split_again(recorded.clone(), batches.clone())).await?;
        let (inner, tenure, claim) = (inner.clone(), tenure.clone(), claim.clone());
        Ok(Self(Arc::new(EntryState { inner, tenure, opening, claim })))
    }

    /// Records how the job has ended. From then on the job is answered from this record.
    pub async fn complete(&self, completion: Completion) -> Result<(), StoreLost> {
        let opening = self.0.opening.clone();
        match self.record(move |store| store.complete(opening.clone(), completion.clone())).await {
            // It is recorded all the same.
            Err(error) if error.scope == Scope::Displaced => Ok(()),
            completed => completed,
        }
    }

    /// Whether an operator has cancelled the job.
    pub fn is_cancelled(&self) -> bool {
        self.0.claim.cancelled.is_cancelled()
    }

    /// Returns when an operator has cancelled the job.
    pub async fn until_cancelled(&self) {
        self.0.claim.cancelled.cancelled().await;
    }

    /// Records what the daemon knows.
    async fn record<O>(&self, operation: O) -> Result<(), StoreLost>
    where
        O: for<'a> Fn(&'a dyn Store) -> Answer<'a, CancelNumber> + Clone + Send + Sync + 'static,
    {
        let EntryState { inner, tenure, opening, .. } = &*self.0;
        let _unconfirmed = inner.pending.begin();
        let answered = inner.retry_until_answered(operation).await;
        let (latest, at) = tenure.apply_answer(opening.epoch, answered)?;
        tenure.confirmed(opening.epoch, latest, at);
        Ok(())
    }
}

impl Inner {
    /// Runs the operation on the store, however long the store is away. Also returns when the store
    /// was asked. Fails only if a record cannot be read or written, or if the store has a newer
    /// epoch.
    async fn retry_until_answered<T, O>(&self, operation: O) -> Result<(T, Moment), StoreLost>
    where
        O: for<'a> Fn(&'a dyn Store) -> Answer<'a, T> + Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        loop {
            self.health.until_it_works().await;
            let asked_at = Moment::now();
            match operation(&*self.store).await {
                Ok(value) => return Ok((value, asked_at)),
                Err(error) if error.scope == Scope::Store => {
                    self.health.failed(&error, attempt(operation.clone()))
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The operation without its result.
fn attempt<T, O>(operation: O) -> Attempt
where
    O: for<'a> Fn(&'a dyn Store) -> Answer<'a, T> + Send + Sync + 'static,
    T: Send + 'static,
{
    Arc::new(move |store| {
        let answer = operation(store);
        Box::pin(async move { answer.await.map(drop) })
    })
}

//! `groupcast job`: shows what the state store knows about a job, and cancels jobs.

use std::{io::IsTerminal, sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::sleep;

use super::{Conclusion, Failure, choose_app, say};
use crate::{
    config::Config,
    job::outcome::{BatchOutcome, FailureKind},
    progress::{
        self,
        sqlite::FileAccess,
        store::{Cancelled, Record, Store},
    },
    settle::result::{BatchCounts, JobResult},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Show the recorded progress or result of a job, or cancel a job.
///
/// The id is the job's message_id. A job that has ended is shown as its result. One that has not is
/// shown as its progress, on a terminal with a bar until it ends; it may be running, parked, or
/// waiting for a daemon.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  groupcast --config groupcast.toml job order-42
  groupcast --config groupcast.toml job cancel order-42"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<JobAction>,
    #[command(flatten)]
    job: Option<NamedJob>,
}

#[derive(clap::Subcommand)]
enum JobAction {
    Cancel(CancelArgs),
}

#[derive(clap::Args)]
struct NamedJob {
    /// The job's id
    id: String,
    /// Which app, if several are configured
    #[arg(long)]
    app: Option<String>,
}

/// Cancel a job, wherever it is: in the jobs queue, parked, scheduled, or being sent.
///
/// No further call starts for the job after a second. Calls that are under way end and are counted.
/// The job's result says `cancelled`, or `partial` if a batch was sent before. A job that waits gets
/// its result when its message reaches the daemon. An id that is not known yet is cancelled when it
/// comes, for as long as `state.retention`. Jobs without a message_id cannot be cancelled.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  groupcast --config groupcast.toml job cancel order-42
  groupcast --config groupcast.toml job cancel --undo order-42")]
struct CancelArgs {
    #[command(flatten)]
    job: NamedJob,
    /// Remove a cancellation that has not taken effect
    #[arg(long)]
    undo: bool,
}

/// A job that has not ended.
#[derive(Serialize)]
struct UnfinishedJob<'a> {
    job_id: &'a str,
    app: &'a str,
    status: &'static str,
    /// Whether the job ends without further calls as soon as a daemon has it.
    cancelled: bool,
    batches: BatchCounts,
    /// Requests sent to the API so far.
    calls: u64,
    received_at: String,
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    match args {
        Args { action: Some(JobAction::Cancel(args)), .. } => cancel(args, config).await,
        Args { job: Some(args), .. } => show(args, config).await,
        Args { .. } => Err("no id is given".into()),
    }
}

async fn show(args: NamedJob, config: Config) -> Result<Conclusion, Failure> {
    let (app, _) = choose_app(&config, args.app.as_deref())?;
    let store = progress::existing_store(&config, FileAccess::ReadOnly)?;
    let mut record = look_up(&*store, app, &args.id).await?;
    if record.result.is_none() && std::io::stderr().is_terminal() {
        record = watch(store, app, record).await?;
    }
    match &record.result {
        Some(result) => {
            let result: JobResult = serde_json::from_str(result)?;
            say(serde_json::to_string_pretty(&result)?)
        }
        None => say(serde_json::to_string_pretty(&unfinished(&record))?),
    }
}

async fn cancel(args: CancelArgs, config: Config) -> Result<Conclusion, Failure> {
    let NamedJob { id, app } = args.job;
    let (app, _) = choose_app(&config, app.as_deref())?;
    let store = progress::existing_store(&config, FileAccess::Existing)?;
    let app = app.to_owned();
    if args.undo {
        return undo(&*store, app, id).await;
    }
    match store.cancel(app.clone(), id.clone()).await? {
        Cancelled::UnderWay => say(format!(
            "job `{id}` of app `{app}` is cancelled: no further call starts for it. Its result \
                comes when the daemon has the job in its hands"
        )),
        Cancelled::NotSeen => say(format!(
            "no record of job `{id}` of app `{app}` yet: it is cancelled when it comes"
        )),
        Cancelled::HasEnded => Err(format!(
            "job `{id}` of app `{app}` has already ended; nothing is changed. `groupcast job {id}` \
                shows its result"
        )
        .into()),
    }
}

async fn undo(store: &dyn Store, app: String, id: String) -> Result<Conclusion, Failure> {
    if !store.undo_cancel(app.clone(), id.clone()).await? {
        return Err(format!(
            "job `{id}` of app `{app}` has no cancellation that could be undone; if it has ended, \
                `groupcast job {id}` shows how"
        )
        .into());
    }
    match store.find(app, id.clone()).await? {
        Some(record) if has_taken_effect(&record) => Err(format!(
            "too late: the daemon has already stopped job `{id}`. Its result will say `cancelled`, \
                or `partial`"
        )
        .into()),
        _ => say(format!("job `{id}` is no longer cancelled")),
    }
}

/// Whether the daemon has ended the job because of the cancellation.
fn has_taken_effect(record: &Record) -> bool {
    record.result.is_some()
        || record.batches.iter().any(|(_, progress)| {
            progress.outcome().and_then(BatchOutcome::failure_kind) == Some(FailureKind::Cancelled)
        })
}

async fn look_up(store: &dyn Store, app: &str, id: &str) -> Result<Record, Failure> {
    let found = store.find(app.to_owned(), id.to_owned()).await?;
    found.ok_or_else(|| {
        format!(
            "no record of job `{id}` of app `{app}`: it has not come yet, was rejected, had no \
                message_id or another one, or is older than state.retention"
        )
        .into()
    })
}

/// Draws a bar until the job has ended.
async fn watch(store: Arc<dyn Store>, app: &str, mut record: Record) -> Result<Record, Failure> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} batches, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(u64::from(record.head.batches)).with_style(style);
    let id = record.key.job_id.clone();
    while record.result.is_none() {
        let counts = count(&record);
        // The number of batches grows when the API asks for smaller ones.
        bar.set_length(u64::from(counts.total));
        bar.set_position(u64::from(counts.sent + counts.failed + counts.unknown));
        sleep(LOOK_EVERY).await;
        record = look_up(&*store, app, &id).await?;
    }
    bar.finish_and_clear();
    Ok(record)
}

fn unfinished(record: &Record) -> UnfinishedJob<'_> {
    UnfinishedJob {
        job_id: &record.key.job_id,
        app: &record.key.app,
        status: "unfinished",
        cancelled: record.is_cancelled,
        batches: count(record),
        calls: record.batches.iter().map(|(_, progress)| u64::from(progress.calls)).sum(),
        received_at: format!("{:.3}", record.head.received_at),
    }
}

fn count(record: &Record) -> BatchCounts {
    let mut counts = BatchCounts { total: record.head.batches, ..Default::default() };
    for (_, progress) in &record.batches {
        match progress.outcome() {
            None => {}
            Some(BatchOutcome::Sent) => counts.sent += 1,
            Some(BatchOutcome::Failed { .. }) => counts.failed += 1,
            Some(BatchOutcome::Unknown { .. }) => counts.unknown += 1,
        }
    }
    counts
}

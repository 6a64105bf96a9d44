//! `groupcast job`: shows what the state store knows about a job.

use std::{io::IsTerminal, sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::sleep;

use super::{Conclusion, Failure, choose_app, say};
use crate::{
    config::Config,
    job::outcome::BatchOutcome,
    progress::{
        self,
        store::{Record, Store},
    },
    settle::result::{BatchCounts, JobResult},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Show the recorded progress or result of a job.
///
/// The id is the job's message_id. A job that has ended is shown as its result. One that has not is
/// shown as its progress, on a terminal with a bar until it ends; it may be running, parked, or
/// waiting for a daemon.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  groupcast --config groupcast.toml job order-42")]
pub struct Args {
    /// The job's id
    id: String,
    /// Which app, if several are configured
    #[arg(long)]
    app: Option<String>,
}

/// A job that has not ended.
#[derive(Serialize)]
struct UnfinishedJob<'a> {
    job_id: &'a str,
    app: &'a str,
    status: &'static str,
    batches: BatchCounts,
    /// Requests sent to the API so far.
    calls: u64,
    received_at: String,
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    let (app, _) = choose_app(&config, args.app.as_deref())?;
    let store = progress::existing_store(&config)?;
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

//! `groupcast dead`: lists, shows, redrives and removes the jobs of an app that were only partially
//! sent or not sent.

use std::{io::IsTerminal, time::Duration};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};

use super::{Conclusion, Failure, choose_app, say};
use crate::{
    broker::connection::Connector,
    config::Config,
    dead_letters::{
        self, DeadLetters, Deadline, EXPIRED, INVALID, Letter, LetterFilter, Redriven, Summary,
    },
};

/// Look through the dead letters of an app: list, show, redrive, purge.
///
/// A dead letter is a job that was not sent whole, with the recipients that were not sent, or a
/// message that was no valid job.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  groupcast dead list --code 10015
  groupcast dead show order-42
  groupcast dead redrive --code 10015 --dry-run
  groupcast dead redrive --code 10015
  groupcast dead purge --kind invalid --older-than 30d --yes")]
pub struct Args {
    #[command(subcommand)]
    command: DeadCommand,
    /// Which app, if several are configured
    #[arg(long, global = true, value_name = "NAME")]
    app: Option<String>,
}

#[derive(Subcommand)]
enum DeadCommand {
    /// List them, the oldest first; takes nothing out
    List {
        #[command(flatten)]
        which: LetterSelection,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show those of one job whole, as JSON: headers, properties and body; takes nothing out
    Show {
        /// The job's id
        id: String,
    },
    /// Send them again, by the jobs queue and so at the app's pace; those of kind `invalid` only if
    /// asked for with --kind, those of kind `expired` only without their deadline
    Redrive {
        #[command(flatten)]
        which: LetterSelection,
        /// Only list what would be sent again
        #[arg(long)]
        dry_run: bool,
        /// Send jobs without the deadline that their producer set
        #[arg(long)]
        without_deadline: bool,
    },
    /// Remove them for good; without --yes only list what would be removed
    Purge {
        #[command(flatten)]
        which: LetterSelection,
        /// Do remove them
        #[arg(long)]
        yes: bool,
    },
}

/// Several conditions are met together.
#[derive(clap::Args)]
struct LetterSelection {
    /// Only of this job
    #[arg(long, value_name = "JOB")]
    id: Option<String>,
    /// Only with this ErrorCode of the API
    #[arg(long, allow_negative_numbers = true)]
    code: Option<i64>,
    /// Only of this kind; `undeliverable` are jobs that the broker has given up
    #[arg(long, value_parser = ["invalid", "job", "transient", "expired", "undeliverable"])]
    kind: Option<String>,
    /// Only for this group
    #[arg(long, value_name = "GROUP_ID")]
    group: Option<String>,
    /// Only those that died at least so long ago, such as 30d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only those that died at most so long ago, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

impl From<LetterSelection> for LetterFilter {
    fn from(
        LetterSelection { id, code, kind, group, older_than, newer_than }: LetterSelection,
    ) -> Self {
        LetterFilter { job_id: id, group_id: group, code, kind, older_than, newer_than }
    }
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    let (app, _) = choose_app(&config, args.app.as_deref())?;
    let connector = Connector::new(&config.broker)?;
    let mut letters = DeadLetters::open(&connector, app).await.map_err(|error| {
        format!(
            "{error}; is the broker running, is broker.url right, and has `groupcast run` declared \
                the queues?"
        )
    })?;
    let done = match args.command {
        DeadCommand::List { which, json } => list(&mut letters, &which.into(), json).await,
        DeadCommand::Show { id } => show(&mut letters, &id).await,
        DeadCommand::Redrive { which, dry_run, without_deadline } => {
            let deadline = if without_deadline { Deadline::Dropped } else { Deadline::Kept };
            match dry_run {
                true => would_redrive(&mut letters, &which.into(), deadline).await,
                false => redrive(&mut letters, &which.into(), deadline).await,
            }
        }
        DeadCommand::Purge { which, yes: true } => purge(&mut letters, &which.into()).await,
        DeadCommand::Purge { which, yes: false } => would_purge(&mut letters, &which.into()).await,
    };
    letters.close().await;
    done
}

async fn list(
    letters: &mut DeadLetters,
    filter: &LetterFilter,
    as_json: bool,
) -> Result<Conclusion, Failure> {
    let print = |summary: &Summary| {
        if as_json { serde_json::to_string(summary) } else { Ok(line(summary)) }
    };
    let (mut listed, total) = (0, letters.left());
    while let Some(letter) = letters.next().await? {
        if filter.matches(&letter.summary) {
            listed += 1;
            say(print(&letter.summary)?)?;
        }
        letters.leave(letter).await?;
    }
    eprintln!("{listed} of {total} dead letters");
    Ok(Conclusion::Good)
}

async fn would_redrive(
    letters: &mut DeadLetters,
    filter: &LetterFilter,
    deadline: Deadline,
) -> Result<Conclusion, Failure> {
    let total = letters.left();
    let count = print_those(letters, |summary| filter.should_redrive(summary, deadline)).await?;
    eprintln!("{count} of {total} dead letters would be sent again");
    say_who_stays(filter, deadline, total - count);
    Ok(Conclusion::Good)
}

async fn would_purge(
    letters: &mut DeadLetters,
    filter: &LetterFilter,
) -> Result<Conclusion, Failure> {
    let total = letters.left();
    let count = print_those(letters, |summary| filter.matches(summary)).await?;
    eprintln!("{count} of {total} dead letters would be removed; add --yes to remove them");
    Ok(Conclusion::Good)
}

async fn print_those(
    letters: &mut DeadLetters,
    meant: impl Fn(&Summary) -> bool,
) -> Result<u32, Failure> {
    let mut count = 0;
    while let Some(letter) = letters.next().await? {
        if meant(&letter.summary) {
            count += 1;
            say(line(&letter.summary))?;
        }
        letters.leave(letter).await?;
    }
    Ok(count)
}

async fn show(letters: &mut DeadLetters, id: &str) -> Result<Conclusion, Failure> {
    let mut found = false;
    while let Some(letter) = letters.next().await? {
        if letter.summary.job_id.as_deref() == Some(id) {
            found = true;
            say(serde_json::to_string_pretty(&whole(&letter))?)?;
        }
        letters.leave(letter).await?;
    }
    if !found {
        return Err(format!("no dead letter of job `{id}`; see `groupcast dead list`").into());
    }
    Ok(Conclusion::Good)
}

async fn redrive(
    letters: &mut DeadLetters,
    filter: &LetterFilter,
    deadline: Deadline,
) -> Result<Conclusion, Failure> {
    let bar = bar(letters.left());
    let redriven = dead_letters::redrive(letters, filter, deadline, || bar.inc(1)).await;
    bar.finish_and_clear();
    let Redriven { sent_again, left } = redriven.map_err(|error| {
        format!(
            "{error}; letters that were sent again are gone from the queue, the others are in it: \
                try again"
        )
    })?;
    eprintln!("{sent_again} of {} dead letters sent again", sent_again + left);
    say_who_stays(filter, deadline, left);
    Ok(Conclusion::Good)
}

fn say_who_stays(filter: &LetterFilter, deadline: Deadline, left: u32) {
    if left == 0 {
        return;
    }
    if filter.kind.is_none() {
        eprintln!(
            "those of kind `{INVALID}` are sent again only with --kind {INVALID}: what is wrong \
                with them stays wrong"
        );
    }
    if deadline == Deadline::Kept && filter.kind.as_deref().is_none_or(|kind| kind == EXPIRED) {
        eprintln!(
            "those of kind `{EXPIRED}` are sent again only with --without-deadline: theirs has \
                passed"
        );
    }
}

async fn purge(letters: &mut DeadLetters, filter: &LetterFilter) -> Result<Conclusion, Failure> {
    let bar = bar(letters.left());
    let (mut removed, mut left) = (0, 0);
    while let Some(letter) = letters.next().await? {
        bar.inc(1);
        if filter.matches(&letter.summary) {
            letters.remove(letter).await?;
            removed += 1;
        } else {
            letters.leave(letter).await?;
            left += 1;
        }
    }
    bar.finish_and_clear();
    eprintln!("{removed} of {} dead letters removed", removed + left);
    Ok(Conclusion::Good)
}

fn bar(length: u32) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} dead letters, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(u64::from(length)).with_style(style)
}

/// A letter in one line, with a dash for unknown values.
fn line(letter: &Summary) -> String {
    let Summary {
        job_id, group_id, recipients, status, kind, code, info, died_at, attempt, ..
    } = letter;
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), harmless);
    let recipients = match (recipients, group_id) {
        (Some(1), _) => "1 recipient".to_owned(),
        (Some(count), _) => format!("{count} recipients"),
        // A message that is not a valid job has no recipients.
        (None, Some(_)) if kind != INVALID => "all members".to_owned(),
        (None, _) => "-".to_owned(),
    };
    format!(
        "{}  {}  {}  {kind}  {}  {}  {recipients}  attempt {}  {}",
        died_at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}")),
        text(job_id),
        text(status),
        code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
        text(group_id),
        attempt.unwrap_or(1),
        text(info),
    )
}

/// Escapes control characters for a terminal. A producer's text could otherwise move the cursor, or
/// change what the user copies.
fn harmless(text: &str) -> String {
    text.chars()
        .map(
            |char| {
                if char.is_control() { char.escape_unicode().to_string() } else { char.to_string() }
            },
        )
        .collect()
}

fn whole(letter: &Letter) -> Value {
    let properties = letter.properties();
    let headers = properties.headers().as_ref().map_or_else(Map::new, json_of_table);
    let body = match std::str::from_utf8(letter.body()) {
        Ok(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Err(_) => json!({ "not_utf8": String::from_utf8_lossy(letter.body()) }),
    };
    json!({
        "letter": letter.summary,
        "message_id": properties.message_id().as_ref().map(|id| id.as_str()),
        "correlation_id": properties.correlation_id().as_ref().map(|id| id.as_str()),
        "reply_to": properties.reply_to().as_ref().map(|queue| queue.as_str()),
        "priority": properties.priority(),
        "headers": headers,
        "body": body,
    })
}

fn json_of_table(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.as_str().to_owned(), json_of(value))).collect()
}

fn json_of(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::Timestamp(seconds) => json!(seconds),
        AMQPValue::FieldTable(table) => Value::Object(json_of_table(table)),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json_of).collect(),
        other => json!(format!("{other:?}")),
    }
}

//! `groupcast unrouted`: lists the results that their reply queue did not take, sends them to that
//! queue, or removes them.

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use super::{Conclusion, Failure, choose_app, say};
use crate::{
    amqp::as_text,
    broker::{
        Routing,
        browse::{Browsed, Browser},
        connection::Connector,
        queues,
    },
    config::{App, Config},
    job::REPLY_TO_HEADER,
};

/// Look through the results that their reply queue did not take: list, redrive, purge.
///
/// Such a result names the queue that it was meant for. Once that queue is there and takes
/// messages, `redrive` sends it there.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  groupcast unrouted list
  groupcast unrouted redrive --queue shop.results
  groupcast unrouted purge --id order-42 --yes")]
pub struct Args {
    #[command(subcommand)]
    command: UnroutedCommand,
    /// Which app, if several are configured
    #[arg(long, global = true, value_name = "NAME")]
    app: Option<String>,
}

#[derive(Subcommand)]
enum UnroutedCommand {
    /// List them, the oldest first; takes nothing out
    List {
        #[command(flatten)]
        which: ResultSelection,
        /// One JSON object a line, with the whole result
        #[arg(long)]
        json: bool,
    },
    /// Send them to the queues that they were meant for; those whose queue is still missing or full
    /// stay
    Redrive {
        #[command(flatten)]
        which: ResultSelection,
    },
    /// Remove them for good; without --yes only list what would be removed
    Purge {
        #[command(flatten)]
        which: ResultSelection,
        /// Do remove them
        #[arg(long)]
        yes: bool,
    },
}

/// Several conditions are met together.
#[derive(clap::Args)]
struct ResultSelection {
    /// Only of this job
    #[arg(long, value_name = "JOB")]
    id: Option<String>,
    /// Only those meant for this queue
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
}

/// The description of an unrouted result.
#[derive(Debug, Serialize)]
struct UnroutedResult {
    job_id: Option<String>,
    status: Option<String>,
    finished_at: Option<String>,
    /// `null` if the result may go to no queue, because `reply_to` was refused.
    meant_for: Option<String>,
    result: Value,
}

impl UnroutedResult {
    fn of(message: &Browsed) -> Self {
        let result: Value = serde_json::from_slice(message.body()).unwrap_or_default();
        let text = |name: &str| result[name].as_str().map(str::to_owned);
        let headers = message.properties().headers().as_ref();
        let meant_for = headers
            .and_then(|headers| as_text(headers.inner().get(REPLY_TO_HEADER)?))
            .filter(|queue| !queue.is_empty());
        Self {
            job_id: text("job_id"),
            status: text("status"),
            finished_at: text("finished_at"),
            meant_for,
            result,
        }
    }

    fn line(&self) -> String {
        let or_dash =
            |text: &Option<String>| text.as_deref().unwrap_or("-").replace(char::is_control, "?");
        let [at, job, status, queue] =
            [&self.finished_at, &self.job_id, &self.status, &self.meant_for].map(or_dash);
        format!("{at}  {job}  {status}  for {queue}")
    }
}

impl ResultSelection {
    fn means(&self, result: &UnroutedResult) -> bool {
        let same =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        same(&self.id, &result.job_id) && same(&self.queue, &result.meant_for)
    }
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    let (name, app) = choose_app(&config, args.app.as_deref())?;
    let connector = Connector::new(&config.broker)?;
    let mut queue = Browser::open(&connector, queues::unrouted(name)).await.map_err(|error| {
        format!(
            "{error}; is the broker running, is broker.url right, and has `groupcast run` declared \
                the queues?"
        )
    })?;
    let done = match args.command {
        UnroutedCommand::List { which, json } => list(&mut queue, &which, json).await,
        UnroutedCommand::Redrive { which } => redrive(&mut queue, &which, name, app).await,
        UnroutedCommand::Purge { which, yes: true } => purge(&mut queue, &which).await,
        UnroutedCommand::Purge { which, yes: false } => {
            let listed = list(&mut queue, &which, false).await;
            eprintln!("add --yes to remove them");
            listed
        }
    };
    queue.close().await;
    done
}

async fn list(
    queue: &mut Browser,
    which: &ResultSelection,
    as_json: bool,
) -> Result<Conclusion, Failure> {
    let (mut listed, total) = (0, queue.left());
    while let Some(message) = queue.next().await? {
        let result = UnroutedResult::of(&message);
        if which.means(&result) {
            listed += 1;
            say(if as_json { serde_json::to_string(&result)? } else { result.line() })?;
        }
        queue.leave(message).await?;
    }
    eprintln!("{listed} of {total} unrouted results");
    Ok(Conclusion::Good)
}

async fn redrive(
    queue: &mut Browser,
    which: &ResultSelection,
    name: &str,
    app: &App,
) -> Result<Conclusion, Failure> {
    let (mut sent, mut left) = (0, 0);
    while let Some(message) = queue.next().await? {
        let result = UnroutedResult::of(&message);
        let target = result
            .meant_for
            .as_deref()
            .filter(|target| which.means(&result) && may_get_results(target, name, app));
        let is_sent = match target {
            Some(target) => {
                let sent =
                    queue.publish(target, message.body(), message.properties_of_copy()).await?;
                matches!(sent, Ok(Routing::Routed))
            }
            None => false,
        };
        if is_sent {
            sent += 1;
            queue.remove(message).await?;
        } else {
            left += 1;
            queue.leave(message).await?;
        }
    }
    eprintln!("{sent} of {} unrouted results sent to their queues", sent + left);
    if left > 0 {
        eprintln!(
            "the others stay: their queue is missing or full, they name none, or they were not \
                meant"
        );
    }
    Ok(Conclusion::Good)
}

/// Excludes direct reply-to addresses: brokers from 4.2 on accept messages for them even after the
/// requester has left.
fn may_get_results(queue: &str, name: &str, app: &App) -> bool {
    let is_direct = queue.starts_with("amq.rabbitmq.reply-to");
    !is_direct && (app.results_queue.as_deref() == Some(queue) || app.replies.allow(queue, name))
}

async fn purge(queue: &mut Browser, which: &ResultSelection) -> Result<Conclusion, Failure> {
    let (mut removed, mut left) = (0, 0);
    while let Some(message) = queue.next().await? {
        if which.means(&UnroutedResult::of(&message)) {
            queue.remove(message).await?;
            removed += 1;
        } else {
            queue.leave(message).await?;
            left += 1;
        }
    }
    eprintln!("{removed} of {} unrouted results removed", removed + left);
    Ok(Conclusion::Good)
}

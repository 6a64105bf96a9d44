//! `groupcast send`: makes a job from options or from its JSON. Publishes it, sends it without a
//! broker, or only counts its calls.

mod direct;
mod job;
mod publish;

use super::{Conclusion, Failure, choose_app, say};
use crate::{
    config::Config,
    settle::result::{JobResult, Status},
};

/// Publish a job, or run one without a broker.
///
/// Without --to and --to-file it goes to every member of the group.
#[derive(clap::Args)]
#[command(after_help = r#"Examples:
  groupcast send --group @TGS#2C5SZEAEF --content 'Maintenance at 22:00' --to alice,bob --wait
  groupcast send job.json
  echo '{"GroupId":"g","Content":"c","ToMembers_Account":["alice"]}' | groupcast send - --id order-42"#)]
pub struct Args {
    #[command(flatten)]
    job: job::JobArgs,
    /// For which app; may be left out if there is one app
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Wait for the result and print it; exit 1 unless the job was sent
    #[arg(long, conflicts_with_all = ["direct", "dry_run"])]
    wait: bool,
    /// Call the API from here, without a broker, and print the result; exit 1 unless the job was
    /// sent
    #[arg(long, conflicts_with = "dry_run")]
    direct: bool,
    /// Print batches, calls and the earliest finish, and send nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    let (name, app) = choose_app(&config, args.app.as_deref())?;
    let message = args.job.message()?;
    if args.dry_run {
        direct::count(name, app, &config, &message)
    } else if args.direct {
        direct::run(name, app, &config, message).await
    } else if args.wait {
        publish::and_wait(name, &config, message).await
    } else {
        publish::only(name, &config, message).await
    }
}

/// A job's body and properties, as a producer publishes them.
struct JobMessage {
    body: Vec<u8>,
    properties: lapin::BasicProperties,
}

fn print(result: &JobResult) -> Result<Conclusion, Failure> {
    say(serde_json::to_string_pretty(result)?)?;
    Ok(if result.status == Status::Sent { Conclusion::Good } else { Conclusion::Bad })
}

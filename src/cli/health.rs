//! `groupcast health`: the health check for a container whose image has no shell.

use super::{Conclusion, Failure, running, say};
use crate::config::Config;

/// Ask the daemon at `admin.listen` whether it is ready.
///
/// Exit code 0 if every app consumes (`/readyz`), or, with `--live`, if the process works at all
/// (`/livez`).
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  groupcast --config groupcast.toml health\n  groupcast health --live"
)]
pub struct Args {
    /// Only whether the process works
    #[arg(long)]
    live: bool,
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    let path = if args.live { "livez" } else { "readyz" };
    let answer = running::ask_for(path, config.admin.listen).await?;
    say(answer.body.trim_end())?;
    Ok(if answer.is_good { Conclusion::Good } else { Conclusion::Bad })
}

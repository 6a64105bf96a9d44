//! The command line: one file a command. Exit code 0 on success, 1 on failure, 2 on bad usage.

mod check;
mod config;
mod dead;
mod health;
mod job;
mod running;
mod sandbox;
mod schema;
mod send;
mod test_message;
mod topology;
mod trial;
mod unrouted;
mod usersig;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

pub use crate::failure::{Conclusion, Failure};
use crate::{
    config::{App, Config},
    daemon,
    telemetry::standard_error,
};

/// Delivers Tencent Chat group system notifications from RabbitMQ: paced, batched, retried and
/// answered.
#[derive(Parser)]
#[command(name = "groupcast", version, propagate_version = true)]
pub struct Cli {
    /// Configuration file [default: ./groupcast.toml if present, then
    /// /etc/groupcast/groupcast.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// Described where their arguments are: a description here would hide that one.
#[derive(Subcommand)]
enum Command {
    Run(daemon::Args),
    Check(check::Args),
    Send(send::Args),
    Job(job::Args),
    Health(health::Args),
    Dead(dead::Args),
    Unrouted(unrouted::Args),
    Sandbox(sandbox::Args),
    Topology(topology::Args),
    Usersig(usersig::Args),
    Schema(schema::Args),
    Config(config::Args),
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match in_runtime(cli) {
        Ok(Conclusion::Good) => ExitCode::SUCCESS,
        Ok(Conclusion::Bad) => ExitCode::FAILURE,
        Err(Failure(reason)) => {
            standard_error::write_last_message(format_args!("groupcast: {reason}"));
            ExitCode::FAILURE
        }
    }
}

/// Uses one thread for all asynchronous work. Passing a task between threads would cost more than
/// most tasks do. Large bodies, the disk and the broker's sockets have threads of their own.
fn in_runtime(cli: Cli) -> Result<Conclusion, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let verdict = runtime.block_on(execute(cli));
    // A look-up of a host name may still block a thread. Its result is no longer needed.
    runtime.shutdown_background();
    verdict
}

async fn execute(cli: Cli) -> Result<Conclusion, Failure> {
    let load = move || Config::load(cli.config.as_deref()).map_err(Failure::with_causes);
    match cli.command {
        Command::Run(args) => daemon::run(args, load).await,
        Command::Check(args) => check::run(args, load()?).await,
        Command::Send(args) => send::run(args, load()?).await,
        Command::Job(args) => job::run(args, load()?).await,
        Command::Health(args) => health::run(args, load()?).await,
        Command::Dead(args) => dead::run(args, load()?).await,
        Command::Unrouted(args) => unrouted::run(args, load()?).await,
        Command::Sandbox(args) => sandbox::run(args).await,
        Command::Topology(args) => topology::run(args, &load()?),
        Command::Usersig(args) => usersig::run(args, &load()?),
        Command::Schema(args) => schema::run(args),
        Command::Config(args) => config::run(&args, &load()?, &mut std::io::stdout())
            .map(|()| Conclusion::Good)
            .map_err(Failure::from),
    }
}

/// Prints a command's output. A reader that stops early, such as `head`, is not a failure.
fn say(text: impl std::fmt::Display) -> Result<Conclusion, Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot print: {error}").into())
        }
        _ => Ok(Conclusion::Good),
    }
}

/// The app that a command is for: the one named, or the only one.
fn choose_app<'a>(config: &'a Config, named: Option<&str>) -> Result<(&'a str, &'a App), Failure> {
    let names = || config.apps.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = match named {
        Some(name) => config
            .apps
            .get_key_value(name)
            .ok_or_else(|| format!("no app `{name}`; configured: {}", names()))?,
        None if config.apps.len() == 1 => {
            config.apps.iter().next().ok_or("no app is configured")?
        }
        None => {
            return Err(format!(
                "several apps are configured: choose one with --app ({})",
                names()
            )
            .into());
        }
    };
    Ok((found.0.as_str(), found.1))
}

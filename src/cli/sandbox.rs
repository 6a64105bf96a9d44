//! `groupcast sandbox`: runs the stand-in for the API until a signal stops it. Logs one line a
//! second about the calls that it saw.

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::ArgAction;
use secrecy::SecretString;
use serde::de::{DeserializeOwned, IntoDeserializer};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::{Conclusion, Failure};
use crate::sandbox::{
    CallsSoFar, DuplicateAnswer, DuplicateKey, GroupLimitAnswer, PUBLIC_KEY, Sandbox,
    SandboxMessageSettings, SandboxSettings, TargetingPlan,
};

/// Run a stand-in for the API on this machine.
///
/// It plays `send_group_system_notification` and `send_group_msg`. It checks the URL parameters and
/// the UserSig, enforces the limits and the documented errors, injects latency and faults, and
/// lists what it received.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// Most calls of one command accepted in any one second; 0: no limit
    #[arg(long, value_name = "CALLS", default_value_t = 200)]
    limit: u32,
    /// ErrorCode of a call over the limit
    #[arg(long, value_name = "CODE", default_value_t = 60007)]
    limit_code: i64,
    /// Most recipients of one system notification
    #[arg(long, value_name = "COUNT", default_value_t = 500)]
    max_recipients: usize,
    #[command(flatten)]
    messages: MessageArgs,
    /// How long every answer takes
    #[arg(long, value_name = "DURATION", default_value = "20ms")]
    #[arg(value_parser = humantime::parse_duration)]
    latency: Duration,
    /// Up to this much more, drawn anew for each call
    #[arg(long, value_name = "DURATION", default_value = "0ms")]
    #[arg(value_parser = humantime::parse_duration)]
    jitter: Duration,
    /// The app that it plays
    #[arg(long, value_name = "ID", default_value_t = 1_400_000_000)]
    sdk_app_id: u64,
    /// An account that may call; repeat it for more
    #[arg(long, value_name = "USER", default_value = "administrator", action = ArgAction::Append)]
    identifier: Vec<String>,
    /// File with the app's secret key; without it the key is `sandbox-secret-key`
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// Log every call
    #[arg(long, short)]
    verbose: bool,
}

/// How it plays `send_group_msg`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of send_group_msg")]
struct MessageArgs {
    /// Most recipients of one message
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    max_targets: usize,
    /// A message with recipients is delivered to them (on), refused with 10059 (refuse), or
    /// delivered to the whole group (broadcast)
    #[arg(long, value_name = "PLAN", default_value = "on", value_parser = word::<TargetingPlan>)]
    targeting: TargetingPlan,
    /// A group that is an AVChatRoom; repeat it for more
    #[arg(long, value_name = "GROUP", action = ArgAction::Append)]
    avchatroom: Vec<String>,
    /// Most messages of one group in any one second; 0: no limit
    #[arg(long, value_name = "MESSAGES", default_value_t = 40)]
    messages_per_second_per_group: u32,
    /// Answer to a message over the group's limit: drop_reason or 10023
    #[arg(long, value_name = "ANSWER", default_value = "drop_reason")]
    #[arg(value_parser = word::<GroupLimitAnswer>)]
    group_limit_answer: GroupLimitAnswer,
    /// What makes a message a duplicate, besides its Random: random (nothing), sender, group, or
    /// content (group, sender and MsgBody); off: no message is a duplicate
    #[arg(long, value_name = "KEY", default_value = "content", value_parser = word::<DuplicateKey>)]
    dedup_key: DuplicateKey,
    /// How long after the first message a duplicate is discarded
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    #[arg(value_parser = humantime::parse_duration)]
    dedup_window: Duration,
    /// Answer to a duplicate: old_seq, zero_seq or an ErrorCode
    #[arg(long, value_name = "ANSWER", default_value = "old_seq")]
    duplicate_answer: DuplicateAnswer,
}

impl MessageArgs {
    fn settings(&self) -> SandboxMessageSettings {
        SandboxMessageSettings {
            max_targets: self.max_targets,
            targeting: self.targeting,
            avchatroom: self.avchatroom.clone(),
            messages_per_second_per_group: self.messages_per_second_per_group,
            group_limit_answer: self.group_limit_answer,
            dedup_key: self.dedup_key,
            dedup_window: self.dedup_window,
            duplicate_answer: self.duplicate_answer,
            ..SandboxMessageSettings::default()
        }
    }
}

/// Reads a setting as the control API does.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, serde::de::value::Error> {
    T::deserialize(text.into_deserializer())
}

const EXAMPLES: &str = r#"Groups are known by their id:
  contains "unknown"      10010, the group does not exist
  contains "avchatroom"   takes no recipient list (10004)
  starts with "@TGS#_"    a community: takes a TopicId, and its id may be long
  any other               exists

Examples:
  groupcast sandbox --listen 127.0.0.1:8089 --limit 200 --latency 20ms

  # refuse the next two calls for a group; lose the answer of the call that has user_7
  control=localhost:8089/_sandbox
  curl $control/faults -d '{"fault": {"error": {"code": 10002}}, "group": "g1", "calls": 2}'
  curl $control/faults -d '{"fault": "reset", "matching": "user_7", "after_effect": true}'
  # an account at fault, for every call
  curl $control/faults -d '{"fault": {"error": {"code": 60020}}, "app_wide": true}'
  # other faults: {"latency_ms": 3000}, {"http_status": 502}, "not_json", "hang", "redirect"
  curl -X DELETE $control/faults

  # what it received and how fast, other settings, and a fresh start
  curl "$control/received?group=g1"
  curl $control/stats
  curl -X PATCH $control/settings -d '{"calls_per_second": 50, "latency_ms": 100}'
  # a plan without targeting, and a vendor that refuses duplicates
  curl -X PATCH $control/settings -d '{"targeting": "broadcast", "duplicate_answer": "10024"}'
  curl -X POST $control/reset"#;

pub async fn run(args: Args) -> Result<Conclusion, Failure> {
    log_to_stderr(if args.verbose { "info,groupcast::sandbox=debug" } else { "info" });
    serve(&args).await?;
    Ok(Conclusion::Good)
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read the secret key from {path}: {source}")]
    Key { path: String, source: io::Error },
    #[error(
        "the secret key file {0} is empty; put the key of the app in it, or leave out \
            --secret-key-file"
    )]
    EmptyKey(String),
    #[error(
        "cannot listen on {0}: another process does; stop it, or choose another address with \
            --listen"
    )]
    AddressInUse(SocketAddr),
    #[error("cannot listen on {listen}: {source}; choose another address with --listen")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("cannot wait for signals: {0}")]
    Signals(#[from] io::Error),
}

async fn serve(args: &Args) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sandbox = start(args).await?;
    println!("{}", greeting(args, &sandbox));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        never = report(&sandbox) => match never {},
    }
    sandbox.stop().await;
    Ok(())
}

async fn start(args: &Args) -> Result<Sandbox, Error> {
    let settings = SandboxSettings {
        listen: args.listen,
        sdk_app_id: args.sdk_app_id,
        admins: args.identifier.clone(),
        secret_key: secret_key(args).await?,
        calls_per_second: args.limit,
        limit_code: args.limit_code,
        max_recipients: args.max_recipients,
        latency: args.latency,
        jitter: args.jitter,
        messages: args.messages.settings(),
    };
    let listen = args.listen;
    Sandbox::start(settings).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse(listen),
        _ => Error::Listen { listen, source },
    })
}

async fn secret_key(args: &Args) -> Result<SecretString, Error> {
    let Some(file) = &args.secret_key_file else { return Ok(PUBLIC_KEY.into()) };
    let path = file.display().to_string();
    match tokio::fs::read_to_string(file).await {
        Ok(key) if key.trim().is_empty() => Err(Error::EmptyKey(path)),
        Ok(key) => Ok(key.trim().into()),
        Err(source) => Err(Error::Key { path, source }),
    }
}

/// The address, and the configuration to call it. A key from a file is not shown, only the file's
/// path.
fn greeting(args: &Args, sandbox: &Sandbox) -> String {
    let key = args.secret_key_file.as_ref().map_or_else(
        || format!("secret_key = {PUBLIC_KEY:?}"),
        |file| format!("secret_key_file = {:?}", file.display().to_string()),
    );
    let identifier = args.identifier.first().map_or("", String::as_str);
    format!(
        "The sandbox listens on {endpoint}; it is controlled under {endpoint}/_sandbox/. To send \
            to it:\n\n\
         [apps.default]\nsdk_app_id = {sdk_app_id}\nidentifier = {identifier:?}\n{key}\nendpoint \
         = \"{endpoint}\"\n",
        endpoint = sandbox.endpoint(),
        sdk_app_id = args.sdk_app_id,
    )
}

/// Logs one line for every second with traffic.
async fn report(sandbox: &Sandbox) -> std::convert::Infallible {
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    let mut before = CallsSoFar::default();
    loop {
        every_second.tick().await;
        let now = sandbox.calls_so_far();
        // A reset sets both numbers to zero.
        let since = if now.calls < before.calls { CallsSoFar::default() } else { before };
        let (calls, refused) = (now.calls - since.calls, now.refused.saturating_sub(since.refused));
        if calls > 0 {
            info!(calls, refused, total = now.calls, "calls");
        }
        before = now;
    }
}

/// If the process already has a subscriber, it stays.
fn log_to_stderr(filter: &str) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if let Err(error) = subscriber.try_init() {
        tracing::debug!(%error, "logging as before");
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;

//! `[apps.<app>]`: one account of the API, the limits of its calls, and the treatment of jobs that
//! it cannot take at once.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use super::command::{CommandConfig, CommandName, GroupMsgSection, command};
use super::endpoint::{CallAddress, Endpoint, place};
use super::error::Problem;
use super::region::Region;
use super::replies::{Replies, RepliesSection};
use super::retry::{PauseConfig, PauseSection, Retry, RetrySection};
use super::secret::given_or_from_file;
use super::written::{Given, Section, Setting, Written, word};

const DEFAULT_BURST_CALLS: u32 = 20;
/// At a stop the daemon waits 20 s for calls in flight and their results.
const LONGEST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The pacer keeps the send time of every call of the last second in memory.
const MOST_CALLS_PER_SECOND: u32 = 100_000;
/// A source address has no more ports than this.
const MOST_IN_FLIGHT: usize = 65_535;

#[derive(Clone, Debug)]
pub struct App {
    pub sdk_app_id: u64,
    /// The administrator account with which the daemon calls the API.
    pub identifier: String,
    pub secret_key: SecretString,
    /// The file that `secret_key` was read from, if any.
    /// [`read_secret_file`](super::read_secret_file) reads it again.
    pub secret_key_file: Option<PathBuf>,
    /// Scheme, host and port of the API.
    pub endpoint: Url,
    /// Where calls go when `endpoint` cannot be reached.
    pub backup_endpoint: Option<Url>,
    /// The data centre of `endpoint`, if it was chosen by name.
    pub region: Option<Region>,
    pub calls_per_second: u32,
    /// How many calls may leave at once. Never above `calls_per_second`.
    pub burst: u32,
    /// The call that the app uses.
    pub command: CommandConfig,
    /// The maximum number of recipients in one call, at most what the command takes.
    pub batch_size: usize,
    pub max_in_flight: usize,
    /// The vendor answers within three seconds, and asks clients to wait longer than that.
    pub request_timeout: Duration,
    /// The queue for the results of jobs without `reply_to`.
    pub results_queue: Option<String>,
    pub empty_recipients: EmptyRecipients,
    pub replies: Replies,
    pub retry: Retry,
    pub pause: PauseConfig,
}

/// What an empty list of recipients means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyRecipients {
    /// Every member, as the API documents.
    Broadcast,
    /// A mistake: the job is rejected.
    Reject,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AppSection {
    sdk_app_id: Option<Given<u64>>,
    identifier: Option<Given<String>>,
    secret_key: Option<Given<SecretString>>,
    secret_key_file: Option<Given<PathBuf>>,
    region: Option<Given<Region>>,
    endpoint: Option<Given<Endpoint>>,
    backup_endpoint: Option<Given<Endpoint>>,
    calls_per_second: Option<Given<u32>>,
    burst: Option<Given<u32>>,
    command: Option<Given<CommandName>>,
    group_msg: Option<Section<GroupMsgSection>>,
    batch_size: Option<Given<usize>>,
    max_in_flight: Option<Given<usize>>,
    request_timeout: Option<Given<Duration>>,
    results_queue: Option<Given<String>>,
    empty_recipients: Option<Given<EmptyRecipients>>,
    replies: Section<RepliesSection>,
    retry: Section<RetrySection>,
    pause: Section<PauseSection>,
}

impl AppSection {
    pub(super) fn check(self, name: &str) -> Result<App, Problem> {
        check_name(name)?;
        let sdk_app_id = self
            .sdk_app_id
            .ok_or_else(|| Problem::missing("sdk_app_id", "write sdk_app_id = 1400000000"))?
            .0;
        let secret_key_file = self.secret_key_file.map(|file| file.0);
        let secret_key =
            given_or_from_file("secret_key", self.secret_key, secret_key_file.as_deref())?
                .ok_or_else(|| {
                    Problem::missing(
                        "secret_key",
                        "write secret_key = \"…\" or secret_key_file = \"<path>\"",
                    )
                })?;
        let CallAddress { region, endpoint, backup } =
            place(self.region, self.endpoint, self.backup_endpoint)?;
        let command = command(self.command, self.group_msg)?;
        let (calls_per_second, burst) = rate(self.calls_per_second, self.burst)?;
        Ok(App {
            sdk_app_id,
            identifier: identifier(self.identifier)?,
            secret_key,
            secret_key_file,
            endpoint,
            backup_endpoint: backup,
            region,
            calls_per_second,
            burst,
            batch_size: batch_size(self.batch_size, command.name())?,
            command,
            max_in_flight: max_in_flight(self.max_in_flight)?,
            request_timeout: request_timeout(self.request_timeout)?,
            results_queue: results_queue(self.results_queue, name)?,
            empty_recipients: Given::or(self.empty_recipients, EmptyRecipients::Broadcast),
            replies: self.replies.0.check(),
            retry: self.retry.0.check().map_err(|problem| problem.under("retry"))?,
            pause: self.pause.0.check().map_err(|problem| problem.under("pause"))?,
        })
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    let fits = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    if (1..=40).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(Problem::wrong(
        "",
        "has a name that cannot be part of a queue's; use 1 to 40 of a-z, 0-9, _ and -",
    ))
}

fn identifier(given: Option<Given<String>>) -> Result<String, Problem> {
    let identifier = Given::or(given, "administrator".to_owned());
    if identifier.trim().is_empty() {
        return Err(Problem::wrong(
            "identifier",
            "must not be empty; the vendor's default is \"administrator\"",
        ));
    }
    Ok(identifier)
}

fn request_timeout(given: Option<Given<Duration>>) -> Result<Duration, Problem> {
    let request_timeout = Given::or(given, Duration::from_secs(5));
    if request_timeout > LONGEST_REQUEST_TIMEOUT {
        return Err(Problem::wrong(
            "request_timeout",
            "must be 15s at most: a stop of the daemon waits for calls in flight",
        ));
    }
    Ok(request_timeout)
}

fn rate(
    calls_per_second: Option<Given<u32>>,
    burst: Option<Given<u32>>,
) -> Result<(u32, u32), Problem> {
    let calls_per_second = Given::or(calls_per_second, 200);
    if calls_per_second > MOST_CALLS_PER_SECOND {
        return Err(Problem::wrong(
            "calls_per_second",
            format!("must be {MOST_CALLS_PER_SECOND} at most"),
        ));
    }
    let burst = Given::or(burst, DEFAULT_BURST_CALLS.min(calls_per_second));
    if burst > calls_per_second {
        return Err(Problem::wrong(
            "burst",
            format!("must not be larger than calls_per_second ({calls_per_second})"),
        ));
    }
    Ok((calls_per_second, burst))
}

fn batch_size(given: Option<Given<usize>>, command: CommandName) -> Result<usize, Problem> {
    let most = command.largest_batch();
    let recipients = Given::or(given, most);
    if recipients > most {
        let command = command.as_str();
        return Err(Problem::wrong(
            "batch_size",
            format!("must be {most} at most, the limit of recipients in one call of {command}"),
        ));
    }
    Ok(recipients)
}

fn max_in_flight(given: Option<Given<usize>>) -> Result<usize, Problem> {
    let calls = Given::or(given, 256);
    if calls > MOST_IN_FLIGHT {
        return Err(Problem::wrong("max_in_flight", format!("must be {MOST_IN_FLIGHT} at most")));
    }
    Ok(calls)
}

/// The results queue that the daemon declares with the app's other queues.
pub(super) fn own_results_queue(app: &str) -> String {
    format!("groupcast.{app}.results")
}

fn results_queue(given: Option<Given<String>>, app: &str) -> Result<Option<String>, Problem> {
    let Some(Given(queue)) = given.filter(|queue| !queue.0.is_empty()) else {
        return Ok(None);
    };
    let own = own_results_queue(app);
    // In a jobs queue, the daemon would take results for jobs and answer them with more results.
    if queue.starts_with("groupcast.") && queue != own {
        return Err(Problem::wrong(
            "results_queue",
            format!("must not begin with \"groupcast.\", unless it is \"{own}\""),
        ));
    }
    if queue.starts_with("amq.") || queue.len() > 255 {
        return Err(Problem::wrong(
            "results_queue",
            "must be the name of a queue, 255 bytes at most, not beginning with \"amq.\"",
        ));
    }
    Ok(Some(queue))
}

impl Setting for EmptyRecipients {
    fn read(written: Written) -> Result<EmptyRecipients, String> {
        word(
            &written,
            &[("broadcast", EmptyRecipients::Broadcast), ("reject", EmptyRecipients::Reject)],
        )
    }
}

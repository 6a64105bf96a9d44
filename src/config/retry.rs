//! `[apps.<app>.retry]` and `[apps.<app>.pause]`: how long to wait after a failed call, and after a
//! fault of the account.

use std::time::Duration;

use serde::Deserialize;

use super::error::Problem;
use super::limit::first_and_longest;
use super::written::{Given, Setting, Written};

/// The broker takes a queue's TTL as a 32-bit number of milliseconds, at most about 49 days.
const LONGEST_PARK: Duration = Duration::from_hours(24 * 30);

/// What happens to a job after a transient failure.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Never above `max_delay`.
    pub first_delay: Duration,
    pub max_delay: Duration,
    /// If a batch fails for longer than this, the daemon parks its job in a wait queue.
    pub hold: Duration,
    /// The waits of the wait queues, in the order in which a job goes through them. At least one,
    /// in whole seconds.
    pub park: Vec<Duration>,
    pub give_up_after: Duration,
}

/// When the daemon tries a paused app again.
#[derive(Clone, Debug)]
pub struct PauseConfig {
    /// Never above `probe_max`.
    pub probe_first: Duration,
    pub probe_max: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RetrySection {
    first_delay: Option<Given<Duration>>,
    max_delay: Option<Given<Duration>>,
    hold: Option<Given<Duration>>,
    park: Option<Given<Park>>,
    give_up_after: Option<Given<Duration>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PauseSection {
    probe_first: Option<Given<Duration>>,
    probe_max: Option<Given<Duration>>,
}

impl RetrySection {
    pub(super) fn check(self) -> Result<Retry, Problem> {
        let default = (Duration::from_millis(500), Duration::from_secs(30));
        let (first, longest) =
            (self.first_delay.map(|delay| delay.0), self.max_delay.map(|delay| delay.0));
        let (first_delay, max_delay) =
            first_and_longest(first, longest, default).ok_or_else(|| {
                Problem::wrong(
                    "first_delay",
                    "must not be longer than max_delay; lower the one or raise the other",
                )
            })?;
        Ok(Retry {
            first_delay,
            max_delay,
            hold: Given::or(self.hold, Duration::from_secs(60)),
            park: Given::or(
                self.park,
                Park([30, 120, 600, 1800].map(Duration::from_secs).to_vec()),
            )
            .0,
            give_up_after: Given::or(self.give_up_after, Duration::from_hours(24)),
        })
    }
}

impl PauseSection {
    pub(super) fn check(self) -> Result<PauseConfig, Problem> {
        let default = (Duration::from_secs(5), Duration::from_mins(5));
        let (first, longest) =
            (self.probe_first.map(|delay| delay.0), self.probe_max.map(|delay| delay.0));
        let (probe_first, probe_max) =
            first_and_longest(first, longest, default).ok_or_else(|| {
                Problem::wrong(
                    "probe_first",
                    "must not be longer than probe_max; lower the one or raise the other",
                )
            })?;
        Ok(PauseConfig { probe_first, probe_max })
    }
}

/// The list of waits. In the environment, commas separate them.
struct Park(Vec<Duration>);

impl Setting for Park {
    fn read(written: Written) -> Result<Park, String> {
        let waits: Option<Vec<Duration>> = match written.or_list() {
            Written::Text(text) => {
                text.split(',').map(|wait| park_wait(Written::Text(wait.to_owned()))).collect()
            }
            Written::List(list) => list.into_iter().map(park_wait).collect(),
            _ => None,
        };
        waits.filter(|waits| !waits.is_empty()).map(Park).ok_or_else(|| {
            "must be a list of one or more durations of whole seconds (they name the wait queues), \
                30 days at most each, such as [\"30s\", \"2m\"]; separated by commas in a variable"
                .to_owned()
        })
    }
}

fn park_wait(written: Written) -> Option<Duration> {
    Duration::read(written).ok().filter(|wait| wait.subsec_nanos() == 0 && *wait <= LONGEST_PARK)
}

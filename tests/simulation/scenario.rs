//! What a seed means: the jobs, the app's configuration, and which faults occur.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::json;

use crate::{
    config::{App, Config, ConfigFile},
    job::DeliveryPromise,
    progress::store::Sharing,
};

pub const APP: &str = "a";
pub const BATCH_SIZE: usize = 2;
pub const REPLIES: &str = "replies";
/// The limit that the daemon declares.
pub const DELIVERY_LIMIT: u32 = 50;
/// A reply queue that does not exist.
pub const MISSING: &str = "missing";
/// A reply queue that is full at times.
pub const FULL: &str = "full";
/// A reply queue for which the broker confirms nothing at times.
pub const SILENT: &str = "silent";

pub struct Scenario {
    pub app: App,
    pub prefetch: u16,
    /// The most bytes of jobs that the daemon may hold. A job has about a hundred.
    pub hold_bytes: u64,
    /// How often a job may go back before the broker gives it up.
    pub delivery_limit: u32,
    pub replicas: usize,
    pub sharing: Sharing,
    pub faults: Faults,
    pub store: StoreTrouble,
    pub episode: Option<Episode>,
    /// The only group that a filter before the API refuses.
    pub filtered: Option<String>,
    /// How the vendor treats messages, if the app uses `send_group_msg`.
    pub vendor: Option<Vendor>,
    pub full: Option<Full>,
    /// When the broker confirms nothing for [`SILENT`].
    pub silent: Option<Span>,
    /// Faults happen until then; afterwards everything heals.
    pub trouble: Duration,
    pub messages: Vec<Planned>,
    pub cancellations: Vec<PlannedCancellation>,
    /// Whether every job must be sent in the end.
    pub all_sent: bool,
}

/// A job that an operator cancels, or whose cancellation the operator undoes.
#[derive(Clone, Debug)]
pub struct PlannedCancellation {
    pub at: Duration,
    pub id: String,
    pub undo: bool,
}

impl PlannedCancellation {
    /// In the order of their times.
    fn by_chance(messages: &[Planned], chance: &mut SmallRng) -> Vec<Self> {
        let mut planned = Vec::new();
        if !chance.random_bool(0.3) {
            return planned;
        }
        let ids: BTreeSet<&String> =
            messages.iter().filter_map(|message| message.id.as_ref()).collect();
        for id in ids {
            if chance.random_bool(0.6) {
                let at = Duration::from_millis(chance.random_range(0..40_000));
                planned.push(Self { at, id: id.clone(), undo: false });
                if chance.random_bool(0.2) {
                    let at = at + Duration::from_millis(chance.random_range(0..10_000));
                    planned.push(Self { at, id: id.clone(), undo: true });
                }
            }
        }
        planned.sort_by_key(|cancellation| cancellation.at);
        planned
    }
}

/// What the vendor does not document about `send_group_msg`.
#[derive(Clone, Copy, Debug)]
pub struct Vendor {
    pub dedup_key: DedupKey,
    /// Whether a dropped message occupies its number.
    pub dropped_occupies_number: bool,
    /// Whether a drop is answered with 10023 instead of a drop reason.
    pub drops_with_code: bool,
    /// How likely a message is dropped.
    pub drops: f64,
}

/// What two messages share if the later one is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DedupKey {
    Number,
    Group,
}

impl Vendor {
    fn by_chance(chance: &mut SmallRng) -> Option<Self> {
        chance.random_bool(0.4).then(|| Self {
            dedup_key: *[DedupKey::Number, DedupKey::Group]
                .get(chance.random_range(0..2))
                .expect("one of two"),
            dropped_occupies_number: chance.random_bool(0.7),
            drops_with_code: chance.random_bool(0.5),
            drops: if chance.random_bool(0.5) { chance.random_range(0.0..0.4) } else { 0.0 },
        })
    }
}

/// A time in which every call fails in the same way. It may outlast the trouble by hours.
#[derive(Clone, Copy, Debug)]
pub struct Episode {
    pub kind: EpisodeKind,
    pub from: Duration,
    pub until: Duration,
}

#[derive(Clone, Copy, Debug)]
pub enum EpisodeKind {
    /// The API cannot be reached, or does not answer.
    Unreachable,
    /// The app is refused with this code.
    Refused(i64),
}

impl Episode {
    fn by_chance(chance: &mut SmallRng) -> Option<Self> {
        let kind = match chance.random_range(0..10) {
            0 => EpisodeKind::Unreachable,
            1 => EpisodeKind::Refused(
                *[60_020, 70_009, 70_050, 10_007, 60_099]
                    .get(chance.random_range(0..5))
                    .expect("one of five"),
            ),
            _ => return None,
        };
        let from = Duration::from_secs(chance.random_range(0..30));
        let longest = if chance.random_bool(0.03) { 7200 } else { 120 };
        Some(Self {
            kind,
            from,
            until: from + Duration::from_secs(chance.random_range(1..longest)),
        })
    }
}

/// A time from the start of the run. It may outlast the trouble by minutes.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: Duration,
    pub until: Duration,
}

impl Span {
    fn by_chance(chance: &mut SmallRng) -> Self {
        let from = Duration::from_secs(chance.random_range(0..20));
        Self { from, until: from + Duration::from_secs(chance.random_range(1..400)) }
    }
}

/// When [`FULL`] is full, and which of the daemon's queues are full too.
#[derive(Clone, Copy, Debug)]
pub struct Full {
    pub span: Span,
    pub dead_too: bool,
    pub unrouted_too: bool,
    /// If set, a job with an unpublished result or dead letter has no queue to wait in.
    pub waits_too: bool,
}

impl Full {
    /// Longer than a job is held before it goes back, but no longer than the daemon may hold a job
    /// without a record.
    const LONG: Duration = Duration::from_secs(600);

    fn by_chance(chance: &mut SmallRng) -> Self {
        let (span, dead_too, unrouted_too) =
            (Span::by_chance(chance), chance.random_bool(0.4), chance.random_bool(0.2));
        let waits_too = chance.random_bool(0.15);
        let until = if waits_too && chance.random_bool(0.3) { Self::LONG } else { span.until };
        Self { span: Span { until, ..span }, dead_too, unrouted_too, waits_too }
    }
}

/// How likely each fault is where it can happen, from 0 to 1. Other faults occur by themselves, so
/// many times a minute.
pub struct Faults {
    pub api_no_effect: f64,
    pub api_unknown: f64,
    pub api_refusal: f64,
    pub api_rate_limited: f64,
    pub api_account: f64,
    pub publish_lost: f64,
    pub publish_nacked: f64,
    pub own_queue_missing: f64,
    pub ack_lost: f64,
    pub store_fails: f64,
    pub crashes_a_minute: f64,
    pub stops_a_minute: f64,
    pub disconnects_a_minute: f64,
    pub blocks_a_minute: f64,
    pub partitions_a_minute: f64,
    pub slowness: f64,
}

/// How often a minute the store fails for some seconds. It keeps its data.
#[derive(Default)]
pub struct StoreTrouble {
    /// The store answers late or not at all.
    pub stalls_a_minute: f64,
    /// The store answers probes and look-ups, and records nothing.
    pub refusals_a_minute: f64,
}

impl StoreTrouble {
    fn by_chance(chance: &mut SmallRng) -> Self {
        let mut often =
            || if chance.random_bool(0.2) { chance.random_range(0.5..4.0) } else { 0.0 };
        Self { stalls_a_minute: often(), refusals_a_minute: often() }
    }
}

/// A message that a producer publishes.
#[derive(Clone, Debug)]
pub struct Planned {
    pub at: Duration,
    pub id: Option<String>,
    pub body: Vec<u8>,
    /// The job that the message asks for, if it is valid.
    pub job: Option<Wanted>,
    pub reply_to: &'static str,
    /// Whether the broker closes a connection over its headers.
    pub poison: bool,
    pub priority: u8,
    pub promise: DeliveryPromise,
    /// Relative to the start of the run.
    pub deadline: Option<Duration>,
    pub not_before: Option<Duration>,
    /// A header that the AMQP library cannot read.
    pub unreadable: Option<Vec<u8>>,
}

/// Recipients without repetitions; `None` means every member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub group: String,
    pub members: Option<Vec<String>>,
}

impl Wanted {
    pub fn batches(&self) -> Vec<Vec<String>> {
        match &self.members {
            None => vec![Vec::new()],
            Some(members) => members.chunks(BATCH_SIZE).map(<[String]>::to_vec).collect(),
        }
    }
}

impl Scenario {
    pub fn of(seed: u64) -> Self {
        let mut chance = SmallRng::seed_from_u64(seed);
        let replicas = if chance.random_bool(0.3) { 2 } else { 1 };
        let sharing = if replicas == 2 || chance.random_bool(0.2) {
            Sharing::Replicas
        } else {
            Sharing::OwnMachine
        };
        let count = chance.random_range(1..=6);
        let mut messages = Vec::new();
        for number in 0..count {
            let planned = Planned::by_chance(number, &mut chance);
            if planned.id.is_some() && chance.random_bool(0.2) {
                messages.push(planned.copy(&mut chance));
            }
            messages.push(planned);
        }
        let mut of_headers = SmallRng::seed_from_u64(seed ^ 0x4ead);
        if of_headers.random_bool(0.1) {
            messages[0].unreadable = Some(unreadable(&mut of_headers));
        }
        messages.sort_by_key(|message| message.at);
        let episode = Episode::by_chance(&mut SmallRng::seed_from_u64(!seed));
        // A doubtful refusal is retried for each job separately. Jobs that waited for the store
        // would all be retried after the trouble, when calls count as calls in vain.
        let is_doubtful = episode
            .is_some_and(|episode| matches!(episode.kind, EpisodeKind::Refused(10_007 | 60_099)));
        let store = StoreTrouble::by_chance(&mut SmallRng::seed_from_u64(seed ^ 0x57_0e));
        let mut queues = SmallRng::seed_from_u64(seed.rotate_left(32) ^ !seed);
        let full = queues.random_bool(0.15).then(|| Full::by_chance(&mut queues));
        let silent = queues.random_bool(0.1).then(|| Span::by_chance(&mut queues));
        let poisoned = queues.random_bool(0.1);
        for message in &mut messages {
            message.poison = poisoned && queues.random_bool(0.4);
            if message.reply_to == REPLIES && queues.random_bool(0.5) {
                message.reply_to = match (full.is_some(), silent.is_some()) {
                    (true, true) if queues.random_bool(0.5) => SILENT,
                    (true, _) => FULL,
                    (false, true) => SILENT,
                    (false, false) => REPLIES,
                };
            }
        }
        let mut of_command = SmallRng::seed_from_u64(seed ^ 0x0667);
        let vendor = Vendor::by_chance(&mut of_command);
        Self {
            app: app(&mut chance, vendor.map(|_| &mut of_command)),
            vendor,
            prefetch: chance.random_range(1..=8),
            delivery_limit: delivery_limit(&mut SmallRng::seed_from_u64(seed ^ 0x11417)),
            hold_bytes: hold_bytes(&mut SmallRng::seed_from_u64(seed.rotate_left(32))),
            replicas,
            sharing,
            faults: Faults {
                partitions_a_minute: partitions_a_minute(
                    replicas,
                    &mut SmallRng::seed_from_u64(seed.rotate_left(16)),
                ),
                ..Faults::by_chance(&mut chance)
            },
            store: if is_doubtful { StoreTrouble::default() } else { store },
            episode,
            filtered: filtered(&mut SmallRng::seed_from_u64(!seed.rotate_left(32))),
            full,
            silent,
            trouble: Duration::from_secs(chance.random_range(5..120)),
            cancellations: PlannedCancellation::by_chance(
                &messages,
                &mut SmallRng::seed_from_u64(seed ^ 0xca9ce1),
            ),
            messages,
            all_sent: false,
        }
    }
}

/// Most brokers have the limit that the daemon declares. Others have a lower one: an operator's
/// policy, or a limit mostly used up by earlier crashes.
fn delivery_limit(chance: &mut SmallRng) -> u32 {
    if chance.random_bool(0.15) { chance.random_range(0..4) } else { DELIVERY_LIMIT }
}

/// Partitions matter only if another replica can get the jobs.
fn partitions_a_minute(replicas: usize, chance: &mut SmallRng) -> f64 {
    if replicas > 1 && chance.random_bool(0.4) { chance.random_range(0.5..6.0) } else { 0.0 }
}

/// A header that clients in other languages can send: a name in Latin-1, or deeply nested tables.
fn unreadable(chance: &mut SmallRng) -> Vec<u8> {
    if chance.random_bool(0.5) {
        return b"\x04caf\xe9V".to_vec();
    }
    let nested = (0..30).fold(Vec::new(), |inner: Vec<u8>, _| {
        let length = (inner.len() as u32).to_be_bytes();
        [b"\x01aF".to_vec(), length.to_vec(), inner].concat()
    });
    [nested, b"\x04caf\xe9V".to_vec()].concat()
}

impl Scenario {
    /// No other fault occurs, and every job can be sent: none is given up or has another reason not
    /// to be.
    pub fn without_the_api_for(self, outage: Duration) -> Self {
        let from = Duration::from_secs(5);
        let episode = Episode { kind: EpisodeKind::Unreachable, from, until: from + outage };
        let mut app = self.app;
        app.retry.give_up_after = Duration::from_secs(24 * 3600);
        let sendable = |planned: &Planned| {
            planned.job.is_some() && planned.deadline.is_none() && planned.unreadable.is_none()
        };
        let at_least_once = |planned| Planned { promise: DeliveryPromise::AtLeastOnce, ..planned };
        let messages = self.messages.into_iter().filter(sendable).map(at_least_once).collect();
        Self {
            app,
            messages,
            faults: Faults::none(),
            store: StoreTrouble::default(),
            episode: Some(episode),
            cancellations: Vec::new(),
            all_sent: true,
            filtered: None,
            delivery_limit: DELIVERY_LIMIT,
            ..self
        }
    }
}

/// Often less than all jobs of a scenario together.
fn hold_bytes(chance: &mut SmallRng) -> u64 {
    if chance.random_bool(0.3) { chance.random_range(100..500) } else { u64::MAX }
}

fn filtered(chance: &mut SmallRng) -> Option<String> {
    chance.random_bool(0.1).then(|| format!("job-{}", chance.random_range(0..4)))
}

/// The app's configuration; with `of_command` it uses `send_group_msg`.
fn app(chance: &mut SmallRng, of_command: Option<&mut SmallRng>) -> App {
    let rate = chance.random_range(2..=20);
    let command = of_command.map_or_else(String::new, |chance| {
        let window = if chance.random_bool(0.8) { "5m" } else { "0s" };
        format!(
            "command = \"send_group_msg\"\n[apps.{APP}.group_msg]\ntargeting = \
                true\ncalls_per_second_per_group = {}\ndedup_window = \"{window}\"\n",
            chance.random_range(1..=rate),
        )
    });
    let text = format!(
        "[apps.{APP}]\nsdk_app_id = 1400000000\nsecret_key = \"0123456789abcdef\"\nendpoint \
            = \"http://127.0.0.1:1\"\n\
         calls_per_second = {rate}\nburst = {}\nbatch_size = {BATCH_SIZE}\nmax_in_flight = \
         {}\nrequest_timeout = \"2s\"\n\
         retry.first_delay = \"100ms\"\nretry.max_delay = \"{}s\"\nretry.hold \
         = \"{}s\"\nretry.park = [\"10s\", \"30s\"]\n\
         retry.give_up_after = \"{}s\"\npause.probe_first = \"{}s\"\npause.probe_max = \"{}s\"\n{command}",
        chance.random_range(1..=rate),
        chance.random_range(1..=6),
        chance.random_range(1..5),
        chance.random_range(2..20),
        chance.random_range(10..300),
        chance.random_range(1..6),
        chance.random_range(6..60),
    );
    let file = ConfigFile { path: "simulated.toml".into(), text };
    let mut config = Config::read(Some(&file), std::iter::empty()).expect("a valid configuration");
    config.apps.remove(APP).expect("the app")
}

impl Faults {
    fn none() -> Self {
        Self {
            api_no_effect: 0.0,
            api_unknown: 0.0,
            api_refusal: 0.0,
            api_rate_limited: 0.0,
            api_account: 0.0,
            publish_lost: 0.0,
            publish_nacked: 0.0,
            own_queue_missing: 0.0,
            ack_lost: 0.0,
            store_fails: 0.0,
            crashes_a_minute: 0.0,
            stops_a_minute: 0.0,
            disconnects_a_minute: 0.0,
            blocks_a_minute: 0.0,
            partitions_a_minute: 0.0,
            slowness: 0.0,
        }
    }

    /// Most seeds have few kinds of fault, so that each kind occurs alone and together with others.
    fn by_chance(chance: &mut SmallRng) -> Self {
        let share_of_kinds =
            *[0.0, 0.2, 0.5, 1.0].get(chance.random_range(0..4)).expect("one of four");
        let mut up_to = |most: f64| {
            if chance.random_bool(share_of_kinds) { chance.random_range(0.0..most) } else { 0.0 }
        };
        Self {
            api_no_effect: up_to(0.5),
            api_unknown: up_to(0.3),
            api_refusal: up_to(0.2),
            api_rate_limited: up_to(0.3),
            api_account: up_to(0.3),
            publish_lost: up_to(0.3),
            publish_nacked: up_to(0.2),
            own_queue_missing: up_to(0.2),
            ack_lost: up_to(0.3),
            store_fails: up_to(0.2),
            crashes_a_minute: up_to(12.0),
            stops_a_minute: up_to(4.0),
            disconnects_a_minute: up_to(12.0),
            blocks_a_minute: up_to(3.0),
            partitions_a_minute: 0.0,
            slowness: up_to(1.0),
        }
    }
}

impl Planned {
    fn by_chance(number: usize, chance: &mut SmallRng) -> Self {
        let at = Duration::from_millis(chance.random_range(0..20_000));
        let recipients = *[0, 1, 2, 3, 5, 8].get(chance.random_range(0..6)).expect("one of six");
        let group = format!("job-{number}");
        let members: Option<Vec<String>> = (recipients > 0)
            .then(|| (0..recipients).map(|member| format!("{number}-{member}")).collect());
        let mut listed = members.clone();
        if let Some(listed) = &mut listed
            && chance.random_bool(0.2)
        {
            listed.push(listed[0].clone());
        }
        let mut body = json!({ "GroupId": group, "Content": "hello" });
        if let Some(listed) = listed {
            body["ToMembers_Account"] = json!(listed);
        }
        let invalid = chance.random_bool(0.08);
        if invalid {
            body["ToMember_Account"] = json!(["misspelt"]);
        }
        let seconds = |chance: &mut SmallRng, likely: f64, most: u64| {
            chance
                .random_bool(likely)
                .then(|| at + Duration::from_secs(chance.random_range(1..most)))
        };
        Self {
            at,
            id: chance.random_bool(0.85).then(|| format!("id-{number}")),
            body: body.to_string().into_bytes(),
            job: (!invalid).then_some(Wanted { group, members }),
            reply_to: if chance.random_bool(0.1) { MISSING } else { REPLIES },
            poison: false,
            priority: chance.random_range(0..10),
            promise: if chance.random_bool(0.3) {
                DeliveryPromise::AtMostOnce
            } else {
                DeliveryPromise::AtLeastOnce
            },
            deadline: seconds(chance, 0.15, 60),
            not_before: seconds(chance, 0.15, 90),
            unreadable: None,
        }
    }

    /// A second message with the same id. Most often it has the same content, sometimes another.
    fn copy(&self, chance: &mut SmallRng) -> Self {
        let mut copy = Self {
            at: self.at + Duration::from_millis(chance.random_range(0..30_000)),
            ..self.clone()
        };
        if chance.random_bool(0.2) {
            let group = format!("other-{}", self.id.as_deref().unwrap_or_default());
            copy.body =
                json!({ "GroupId": &group, "Content": "other", "ToMembers_Account": ["other"] })
                    .to_string()
                    .into_bytes();
            copy.job = Some(Wanted { group, members: Some(vec!["other".into()]) });
        }
        copy
    }
}

//! The API in memory. It knows what really happened to each batch, and checks each call when it is
//! written.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    defects::Defect,
    messages::{Arrival, Messages, WINDOW},
    scenario::{BATCH_SIZE, EpisodeKind, Planned, Vendor},
    world::{Life, Shared},
};
use crate::{
    api::{
        call::{AtWrite, OnWrite},
        classify::Answer,
    },
    diagnosis::Diagnosis,
    job::{
        DeliveryPromise,
        outcome::{BatchOutcome, BatchProgress, BatchState},
    },
    progress::store::{Head, Key, Opening},
};

/// The clocks of the daemon and of this file round differently.
const ROUNDING: Duration = Duration::from_millis(3);
/// How long a process may know an outcome that is not recorded. After that it must make no call.
const UNRECORDED_AT_MOST: Duration = Duration::from_millis(1003);

/// The daemon repeats a message until so long before the vendor forgets it.
const DEDUP_MARGIN: Duration = Duration::from_secs(30);
/// How long the store's confirmation is valid that no other replica has the jobs.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Api {
    /// The calls of the last second, and who made them.
    arrivals: VecDeque<(Instant, Arc<Life>)>,
    /// The batches, by group and first recipient.
    pub batches: BTreeMap<(String, String), Facts>,
    /// Repeated calls of accepted batches, of jobs with an id.
    repeats: usize,
    /// When a group was first called for.
    first_tried: BTreeMap<String, Instant>,
    pub messages: Messages,
    /// The first number of each batch's messages.
    first_numbers: BTreeMap<(String, String), u32>,
    /// The calls of the last second for each group.
    group_arrivals: BTreeMap<String, VecDeque<Instant>>,
    /// Calls during an episode after all other trouble has ended, even those that did not reach the
    /// API.
    pub calls_in_vain: u32,
}

/// What really happened to a batch.
#[derive(Default)]
pub struct Facts {
    pub calls: u32,
    pub accepted: u32,
    pub refused: bool,
    /// How often the batch got a fault of the account.
    pub account_refusals: u32,
    /// Whether the batch got one after its group had been tried for as long as a batch is.
    pub refused_late: bool,
    /// Whether a call was accepted and its answer was on its way.
    is_accepted: bool,
    /// Whether a call had an outcome that the daemon could not know.
    pub in_doubt: bool,
    written_at: Option<Instant>,
    /// When the call was written about which the daemon was told that it is accepted.
    told_of: Option<Instant>,
    /// Which process was told so, and when.
    told_to: Option<(Arc<Life>, Instant)>,
    /// When the last call was written that was accepted, or whose outcome the daemon does not know.
    doubtful_since: Option<Instant>,
    /// The number of the last such call's message, and when the message was first written.
    number_in_doubt: Option<(u32, Instant)>,
    /// The number of the batch's message that was dropped last, and when.
    dropped: Option<(u32, Instant)>,
    /// Whether the batch got a call with that number after a process had failed, which did not
    /// record the drop.
    pub drop_is_unrecorded: bool,
    /// Whether a message was dropped after one that may have been delivered.
    pub dropped_in_doubt: bool,
    delivered_at: Option<Instant>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(rename = "GroupId")]
    group: String,
    #[serde(rename = "ToMembers_Account", alias = "To_Account")]
    members: Option<Vec<String>>,
    /// Only of `send_group_msg`.
    #[serde(rename = "Random")]
    number: Option<u32>,
}

/// The API as one process sees it.
pub struct SimulatedApi {
    pub world: Shared,
    pub life: Arc<Life>,
}

#[derive(Debug)]
enum Outcome {
    Accepted,
    AcceptedUnheard,
    LostUnheard,
    NoEffect,
    Refused,
    RateLimited,
    Account,
    RefusedAll(i64),
    /// The group gets too many messages.
    Dropped,
    /// The vendor has seen the number of this message, and answers as if it had accepted it.
    Discarded,
    DiscardedUnheard,
}

impl crate::api::call::Api for SimulatedApi {
    fn call(&self, body: Vec<u8>, on_write: OnWrite) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let mut request: Request = serde_json::from_slice(&body).expect("JSON");
            self.change_number(&mut request);
            let faults = &self.world.scenario().faults;
            // Sometimes the call needs a connection's handshake.
            if self.world.coin() {
                sleep(self.world.up_to(Duration::from_millis(200))).await;
            }
            self.life.until_known_alive().await;
            self.world
                .lock()
                .api
                .first_tried
                .entry(request.group.clone())
                .or_insert_with(Instant::now);
            let episode = self.episode();
            if matches!(episode, Some(EpisodeKind::Unreachable)) && self.world.coin() {
                return Answer::NotSent { why: Diagnosis::unknown("no route") };
            }
            if self.world.happens(faults.api_no_effect / 2.0) {
                return Answer::NotSent { why: Diagnosis::unknown("connection refused") };
            }
            if self.world.has(Defect::RecordBeforeAnswer) {
                self.record_as_sent(&request);
            }
            if on_write() == AtWrite::Withdraw {
                return Answer::Withdrawn;
            }
            let outcome = match episode {
                Some(EpisodeKind::Unreachable) => Outcome::LostUnheard,
                Some(EpisodeKind::Refused(code)) => Outcome::RefusedAll(code),
                None if self.world.scenario().filtered.as_ref() == Some(&request.group) => {
                    Outcome::Account
                }
                None => self.outcome(),
            };
            if request.group.starts_with("groupcast-probe") {
                self.check_pace();
                self.life.until_known_alive().await;
                return match outcome {
                    Outcome::Accepted => self.answered(&request, &Outcome::Refused),
                    _ => self.answered(&request, &outcome),
                };
            }
            let outcome = self.fate_of_message(&request, outcome);
            self.written(&request, &outcome);
            let answer_after = match outcome {
                Outcome::AcceptedUnheard | Outcome::LostUnheard | Outcome::DiscardedUnheard => {
                    self.world.scenario().app.request_timeout
                }
                _ => self.world.up_to(
                    Duration::from_millis(50)
                        + Duration::from_millis(1800).mul_f64(faults.slowness),
                ),
            };
            sleep(answer_after).await;
            self.life.until_known_alive().await;
            self.answered(&request, &outcome)
        })
    }

    fn renew_user_sig(&self) {}
}

impl SimulatedApi {
    fn outcome(&self) -> Outcome {
        let faults = &self.world.scenario().faults;
        if self.world.happens(faults.api_unknown) {
            if self.world.coin() { Outcome::AcceptedUnheard } else { Outcome::LostUnheard }
        } else if self.world.happens(faults.api_refusal) {
            Outcome::Refused
        } else if self.world.happens(faults.api_rate_limited) {
            Outcome::RateLimited
        } else if self.world.happens(faults.api_account) {
            Outcome::Account
        } else if self.world.happens(faults.api_no_effect) {
            Outcome::NoEffect
        } else {
            Outcome::Accepted
        }
    }

    /// The defects of a daemon that does not keep the number of a message.
    fn change_number(&self, request: &mut Request) {
        let batch = key(request);
        let Some(number) = request.number.as_mut() else { return };
        if self.world.has(Defect::NumberPerAttempt) {
            *number = self.world.up_to(Duration::from_secs(4000)).as_micros() as u32;
        }
        if self.world.has(Defect::NumberAfterDrop) {
            let mut world = self.world.lock();
            *number = *world.api.first_numbers.entry(batch).or_insert(*number);
        }
    }

    /// What the vendor makes of a message that would be accepted.
    fn fate_of_message(&self, request: &Request, outcome: Outcome) -> Outcome {
        let (Some(vendor), Some(number)) = (self.world.scenario().vendor, request.number) else {
            return outcome;
        };
        let is_heard = match outcome {
            Outcome::Accepted => true,
            Outcome::AcceptedUnheard => false,
            _ => return outcome,
        };
        let is_dropped = is_heard && self.world.happens(vendor.drops);
        let mut world = self.world.lock();
        let last_failure = world.last_failure();
        let facts = world.api.batches.entry(key(request)).or_default();
        facts.drop_is_unrecorded |= facts
            .dropped
            .is_some_and(|(dropped, at)| dropped == number && last_failure >= Some(at));
        if is_dropped {
            if vendor.dropped_occupies_number {
                world.api.messages.arrive(vendor.dedup_key, number, &key(request));
            }
            let dropped = Some((number, Instant::now()));
            world.api.batches.entry(key(request)).or_default().dropped = dropped;
            return Outcome::Dropped;
        }
        match (world.api.messages.arrive(vendor.dedup_key, number, &key(request)), is_heard) {
            (Arrival::New, _) => outcome,
            (Arrival::Discarded, true) => Outcome::Discarded,
            (Arrival::Discarded, false) => Outcome::DiscardedUnheard,
        }
    }

    /// Checks what the daemon promises about the numbers of messages.
    fn check_number(&self, request: &Request, outcome: &Outcome) {
        let Some(number) = request.number else { return };
        let now = Instant::now();
        let mut world = self.world.lock();
        let shared = world.api.messages.shares_number(number, &key(request));
        let facts = world.api.batches.entry(key(request)).or_default();
        let is_delivered = matches!(outcome, Outcome::Accepted | Outcome::AcceptedUnheard);
        let is_second = is_delivered
            && facts.accepted > 0
            && facts.delivered_at.is_some_and(|at| now < at + WINDOW - DEDUP_MARGIN)
            // A drop after a doubtful call does not say whether that call was delivered.
            && !facts.dropped_in_doubt;
        if is_delivered {
            facts.delivered_at = Some(now);
        }
        facts.dropped_in_doubt |=
            matches!(outcome, Outcome::Dropped) && facts.doubtful_since.is_some();
        drop(world);
        if let Some(other) = shared {
            self.world.broken(format!("{:?} and {other:?} share a number", key(request)));
        }
        let planned = self.planned(request);
        let has_id =
            planned.first().is_some_and(|n| self.world.scenario().messages[*n].id.is_some());
        if is_second && has_id {
            self.world.broken(format!("{:?} were notified twice", key(request)));
        }
    }

    /// The episode that applies to all calls now.
    fn episode(&self) -> Option<EpisodeKind> {
        let now = self.world.elapsed();
        let episode = self
            .world
            .scenario()
            .episode
            .filter(|episode| (episode.from..episode.until).contains(&now))?;
        let mut world = self.world.lock();
        world.api.calls_in_vain += u32::from(world.is_healed());
        Some(episode.kind)
    }

    /// The planned messages that this call can be for.
    fn planned(&self, request: &Request) -> Vec<usize> {
        let wants =
            |planned: &Planned| planned.job.as_ref().is_some_and(|job| job.group == request.group);
        let messages = self.world.scenario().messages.iter().enumerate();
        messages.filter(|(_, planned)| wants(planned)).map(|(number, _)| number).collect()
    }

    fn written(&self, request: &Request, outcome: &Outcome) {
        let numbers = self.planned(request);
        let Some(planned) = numbers.first().map(|&number| &self.world.scenario().messages[number])
        else {
            return self
                .world
                .broken(format!("a call for {}, which no valid job asks for", request.group));
        };
        let members = request.members.clone().unwrap_or_default();
        self.world.note(format_args!(
            "replica {} calls for {} {members:?} {}{outcome:?}",
            self.life.replica,
            request.group,
            // The numbers of a job without an id differ in each run.
            request
                .number
                .filter(|_| planned.id.is_some())
                .map_or_else(String::new, |number| format!("as {number}: ")),
        ));
        self.check_batch(planned, &numbers, request, &members);
        self.check_time(planned);
        self.check_cancelled(planned);
        self.check_pace();
        self.check_group_pace(request);
        self.check_tenure();
        self.check_unrecorded();
        self.check_number(request, outcome);
        if !self.world.lock().broker.holds(&self.life, &numbers) {
            self.world
                .broken(format!("a call for {} by a replica that does not hold it", request.group));
        }
        let mut world = self.world.lock();
        let facts = world.api.batches.entry(key(request)).or_default();
        facts.calls += 1;
        let is_repeated = facts.is_accepted && planned.id.is_some();
        facts.is_accepted |= matches!(outcome, Outcome::Accepted);
        let accepted = matches!(outcome, Outcome::Accepted | Outcome::AcceptedUnheard);
        let in_doubt = matches!(
            outcome,
            Outcome::AcceptedUnheard | Outcome::LostUnheard | Outcome::DiscardedUnheard
        );
        facts.accepted += u32::from(accepted);
        facts.in_doubt |= in_doubt;
        // The daemon may reject the jobs of four groups before a fifth group shows that the app is
        // at fault.
        facts.refused |= matches!(outcome, Outcome::Refused | Outcome::RefusedAll(10_007 | 60_099));
        facts.account_refusals += u32::from(matches!(
            outcome,
            Outcome::Account | Outcome::RefusedAll(60_020 | 70_009 | 70_050)
        ));
        facts.written_at = Some(Instant::now());
        if accepted || in_doubt {
            facts.doubtful_since = facts.written_at;
        }
        let is_same_message =
            facts.number_in_doubt.is_some_and(|(number, _)| Some(number) == request.number);
        if (accepted || in_doubt) && !is_same_message {
            facts.number_in_doubt = request.number.map(|number| (number, Instant::now()));
        }
        world.api.repeats += usize::from(is_repeated);
        let app = &self.world.scenario().app;
        let (repeats, take_overs) = (world.api.repeats, world.records.take_overs());
        drop(world);
        // The calls that were in flight at a take-over, and the calls of one second.
        if repeats > take_overs * (app.max_in_flight + app.calls_per_second as usize) {
            self.world.broken(format!(
                "{repeats} calls of accepted batches after {take_overs} take-overs"
            ));
        }
    }

    fn answered(&self, request: &Request, outcome: &Outcome) -> Answer {
        let api = |code: i64| Answer::Api {
            http_status: 200,
            action_ok: code == 0,
            code,
            info: "told".into(),
            message: None,
        };
        let foreign = |http_status: u16| Answer::Foreign { http_status, info: "told".into() };
        if matches!(outcome, Outcome::Account | Outcome::RefusedAll(_)) {
            self.refused(request);
        }
        match outcome {
            Outcome::Accepted | Outcome::Discarded => {
                let mut world = self.world.lock();
                let facts = world.api.batches.entry(key(request)).or_default();
                facts.told_of = facts.written_at;
                facts.told_to = Some((self.life.clone(), Instant::now()));
                api(0)
            }
            Outcome::AcceptedUnheard | Outcome::LostUnheard | Outcome::DiscardedUnheard => {
                Answer::NoAnswer { info: "timed out".into() }
            }
            Outcome::Dropped if self.world.has(Defect::DropIgnored) => api(0),
            Outcome::Dropped => match self.world.scenario().vendor {
                Some(Vendor { drops_with_code: true, .. }) => api(10_023),
                _ => Answer::Dropped { reason: "MsgFreqCtrl".into() },
            },
            Outcome::NoEffect => foreign(408),
            Outcome::Refused => api(10004),
            Outcome::RateLimited => foreign(429),
            Outcome::Account => foreign(302),
            Outcome::RefusedAll(code) => api(*code),
        }
    }

    fn refused(&self, request: &Request) {
        let mut world = self.world.lock();
        let tried_for =
            world.api.first_tried.get(&request.group).map(|at| at.elapsed()).unwrap_or_default();
        let is_late = tried_for >= self.world.scenario().app.retry.give_up_after;
        if let Some(facts) = world.api.batches.get_mut(&key(request)) {
            facts.refused_late |= is_late;
        }
    }

    /// Checks that a cancelled job gets no call after a second.
    fn check_cancelled(&self, planned: &Planned) {
        let Some(id) = &planned.id else { return };
        let cancelled = self.world.lock().cancelled.get(id).copied();
        if cancelled.is_some_and(|cancellation| {
            !cancellation.is_undone && cancellation.at.elapsed() > CONFIRMED_FOR + ROUNDING
        }) {
            self.world.broken(format!("a call for {id}, which was cancelled a second ago"));
        }
    }

    /// Checks that a batch gets no call that it does not need.
    fn check_batch(
        &self,
        planned: &Planned,
        numbers: &[usize],
        request: &Request,
        members: &[String],
    ) {
        let batches =
            planned.job.as_ref().map(super::scenario::Wanted::batches).unwrap_or_default();
        let Some(batch) = batches.iter().position(|batch| batch == members) else {
            return self.world.broken(format!(
                "a call for {members:?} of {}, which is no batch of the job",
                request.group
            ));
        };
        let world = self.world.lock();
        let recorded =
            planned.id.as_ref().is_some_and(|id| world.records.has_ended(id, batch as u32));
        // A replica may take the jobs over while the store fails. It may then read a record before
        // the other replica can write its outcomes.
        let recorded = recorded && !world.records.is_unrecorded_lately();
        let facts = world.api.batches.get(&key(request));
        let without_excuse = |since: Option<Instant>| match (since, &planned.id) {
            (None, _) => false,
            (Some(since), Some(_)) => world.last_failure().is_none_or(|failure| failure < since),
            // The daemon cannot recognise a job without an id when it comes again, and it can come
            // more than once. A parked job has a record.
            (Some(since), None) => {
                let was_parked =
                    numbers.iter().any(|&number| world.broker.fates[number].parkings > 0);
                let has_failed =
                    was_parked && world.last_failure().is_some_and(|failure| failure >= since);
                world.last_interruption.is_none() && !has_failed
            }
        };
        let repeated = facts.is_some_and(|facts| without_excuse(facts.told_of));
        let once = planned.promise == DeliveryPromise::AtMostOnce;
        let doubted = facts.and_then(|facts| facts.doubtful_since);
        let doubted =
            if planned.id.is_some() { doubted.is_some() } else { without_excuse(doubted) };
        drop(world);
        if recorded && !self.world.has(Defect::RecordBeforeAnswer) {
            self.world.broken(format!(
                "batch {batch} of {} was sent again although its end is recorded",
                request.group
            ));
        }
        if repeated {
            self.world.broken(format!(
                "batch {batch} of {} was sent again without a cause",
                request.group
            ));
        }
        if once && doubted && !self.is_safe_repeat(request) {
            self.world
                .broken(format!("batch {batch} of {} was to be sent at most once", request.group));
        }
    }

    /// Whether the vendor surely discards this message if it has it already.
    fn is_safe_repeat(&self, request: &Request) -> bool {
        let world = self.world.lock();
        let facts = world.api.batches.get(&key(request));
        facts.and_then(|facts| facts.number_in_doubt).is_some_and(|(number, first_written)| {
            Some(number) == request.number && first_written.elapsed() < WINDOW
        })
    }

    /// Checks that no group gets more calls in a second than its limit. A replica that was
    /// displaced less than a second ago may make as many.
    fn check_group_pace(&self, request: &Request) {
        let command = crate::api::command::of(&self.world.scenario().app.command);
        let Some(limit) = command.calls_per_second_per_group() else { return };
        let now = Instant::now();
        let mut world = self.world.lock();
        let recently = now.checked_sub(CONFIRMED_FOR + Duration::from_secs(1));
        let is_shared = world.records.taken_over_at().is_some_and(|at| {
            recently.is_none_or(|recently| at > recently) && world.broker.was_partitioned_at(at)
        });
        let arrivals = world.api.group_arrivals.entry(request.group.clone()).or_default();
        arrivals.push_back(now);
        while arrivals.front().is_some_and(|at| now - *at >= Duration::from_secs(1)) {
            arrivals.pop_front();
        }
        let (count, allowed) = (arrivals.len(), limit as usize * (1 + usize::from(is_shared)));
        drop(world);
        if count > allowed {
            self.world
                .broken(format!("{count} calls for a group in a second; {limit} are allowed"));
        }
    }

    /// Checks that this process makes no call while it has an outcome unrecorded for more than a
    /// second.
    fn check_unrecorded(&self) {
        let world = self.world.lock();
        let waits = |planned: &&Planned| {
            let (Some(id), Some(job)) = (&planned.id, &planned.job) else { return false };
            (0..).zip(job.batches()).any(|(batch, members)| {
                let key = (job.group.clone(), members.first().cloned().unwrap_or_default());
                let told_to = world.api.batches.get(&key).and_then(|facts| facts.told_to.as_ref());
                told_to.is_some_and(|(life, at)| {
                    Arc::ptr_eq(life, &self.life) && at.elapsed() > UNRECORDED_AT_MOST
                }) && !world.records.has_ended(id, batch)
            })
        };
        let waiting =
            self.world.scenario().messages.iter().find(waits).map(|planned| planned.id.clone());
        drop(world);
        if let Some(id) = waiting {
            self.world.broken(format!(
                "a call while an outcome of {id:?} has waited for its record for a second"
            ));
        }
    }

    fn check_time(&self, planned: &Planned) {
        let now = self.world.elapsed();
        if planned.deadline.is_some_and(|deadline| now > deadline + ROUNDING) {
            self.world.broken("a call after the deadline");
        }
        if planned.not_before.is_some_and(|not_before| now + ROUNDING < not_before) {
            self.world.broken("a call before its time");
        }
    }

    /// Checks that each process keeps the limit, and all processes together too. In a partition,
    /// the calls of a replica that was displaced less than a second ago come on top. They are no
    /// more than its bucket held.
    fn check_pace(&self) {
        let now = Instant::now();
        let app = &self.world.scenario().app;
        let limit = app.calls_per_second as usize;
        let mut world = self.world.lock();
        let taken_over_at = world
            .records
            .taken_over_at()
            .filter(|at| now - *at < CONFIRMED_FOR + Duration::from_secs(1));
        let is_shared = taken_over_at.is_some_and(|at| world.broker.was_partitioned_at(at));
        let arrivals = &mut world.api.arrivals;
        arrivals.push_back((now, self.life.clone()));
        while arrivals.front().is_some_and(|(at, _)| now - *at >= Duration::from_secs(1)) {
            arrivals.pop_front();
        }
        let count = arrivals.len();
        let own = arrivals.iter().filter(|(_, life)| Arc::ptr_eq(life, &self.life)).count();
        drop(world);
        let allowed = if is_shared { limit + app.burst as usize } else { limit };
        if count > allowed || own > limit {
            self.world.broken(format!(
                "{count} calls in a second, {own} of them by one process; {limit} are allowed"
            ));
        }
    }

    /// Checks that this process makes no call more than a second after another replica has taken
    /// the jobs over.
    fn check_tenure(&self) {
        let displaced_for = self.world.lock().records.displaced_for(&self.life);
        if let Some(displaced_for) = displaced_for.filter(|time| *time >= CONFIRMED_FOR) {
            self.world.broken(format!(
                "a call {displaced_for:?} after another replica has taken the jobs over"
            ));
        }
    }

    /// The defect of a daemon that records a batch as sent before it knows.
    fn record_as_sent(&self, request: &Request) {
        let Some(planned) = self
            .planned(request)
            .first()
            .map(|&number| self.world.scenario().messages[number].clone())
        else {
            return;
        };
        let (Some(id), Some(job)) = (planned.id, planned.job) else { return };
        let members = request.members.clone().unwrap_or_default();
        let batches = job.batches();
        let Some(batch) = batches.iter().position(|batch| *batch == members) else { return };
        let head = Head {
            content: String::new(),
            batch_size: job.members.as_ref().map_or(1, |_| BATCH_SIZE as u32),
            within: None,
            batches: batches.len() as u32,
            duplicates: 0,
            received_at: crate::clock::now(),
        };
        let opening = Opening {
            key: Key { app: super::scenario::APP.into(), job_id: id, earlier_deaths: 0 },
            head,
            epoch: 0,
        };
        let progress = BatchProgress {
            calls: 1,
            attempts: 1,
            state: BatchState::Ended(BatchOutcome::Sent),
            ..BatchProgress::default()
        };
        self.world.lock().records.note(&opening, batch as u32, progress);
    }
}

fn key(request: &Request) -> (String, String) {
    let first = request.members.as_ref().and_then(|members| members.first());
    (request.group.clone(), first.cloned().unwrap_or_default())
}

//! What must hold when all activity has ended: each message has its result, and the results are
//! true.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    broker::Fate,
    scenario::{DELIVERY_LIMIT, EpisodeKind, Planned, Scenario, Wanted},
    world::{Shared, World},
};
use crate::{
    job::DeliveryPromise,
    settle::result::{AudienceKind, ErrorKind, JobResult, Status},
};

/// The calls before the first probe of an episode, and the probes before their interval has reached
/// its maximum.
const GROWING_WAITS: u32 = 30;

/// How often a batch is tried that gets a doubtful refusal.
const DOUBTFUL_TRIES: u32 = 5;

#[derive(Deserialize)]
struct Letter {
    #[serde(rename = "ToMembers_Account")]
    members: Option<Vec<String>>,
}

pub fn check(world: &Shared) {
    if world.is_broken() {
        return;
    }
    let broken = {
        let state = world.lock();
        let vain = calls_in_vain(&state, world);
        let messages = world.scenario().messages.iter().zip(&state.broker.fates).enumerate();
        messages
            .map(|(number, (planned, fate))| of_message(number, planned, fate, &state, world))
            .find_map(Result::err)
            .or(vain)
    };
    if let Some(broken) = broken {
        world.broken(broken);
    }
}

/// Checks that only rare probes leave while every call fails.
fn calls_in_vain(state: &World, world: &Shared) -> Option<String> {
    let scenario = world.scenario();
    let episode = scenario.episode?;
    let interval = match episode.kind {
        EpisodeKind::Unreachable => scenario.app.retry.max_delay,
        EpisodeKind::Refused(_) => scenario.app.pause.probe_max,
    };
    let probes = (episode.until - episode.from).as_secs_f64() / interval.as_secs_f64();
    // A doubtful refusal is retried for each batch, until it ends the job or pauses the app.
    let retries = match episode.kind {
        EpisodeKind::Refused(10_007 | 60_099) => batches_of(scenario) * DOUBTFUL_TRIES,
        EpisodeKind::Unreachable | EpisodeKind::Refused(_) => 0,
    };
    let most = scenario.replicas as u32 * (probes as u32 + GROWING_WAITS) + retries;
    let calls = state.api.calls_in_vain;
    (calls > most)
        .then(|| format!("{calls} calls in vain in {:?}, at most {most} were expected", episode))
}

/// Whether a job can have two different ends. In a partition, or if the store fails while another
/// replica takes the jobs over, each of two replicas can end it, for example at its deadline, before
/// it knows what the other one did. A job without an id is not recognised when it comes again.
fn may_differ(planned: &Planned, state: &World, world: &Shared) -> bool {
    planned.id.is_none()
        || world.scenario().faults.partitions_a_minute > 0.0
        || state.records.unrecorded_at().is_some()
}

fn batches_of(scenario: &Scenario) -> u32 {
    let wanted = scenario.messages.iter().filter_map(|planned| planned.job.as_ref());
    wanted.map(|job| job.batches().len() as u32).sum()
}

fn of_message(
    number: usize,
    planned: &Planned,
    fate: &Fate,
    state: &World,
    world: &Shared,
) -> Result<(), String> {
    let Some(first) = fate.results.first() else {
        return Err(format!("message {number} was never answered"));
    };
    for other in &fate.results {
        if told(first) != told(other) && !may_differ(planned, state, world) {
            return Err(format!(
                "message {number} was answered twice and differently: {first:?} {other:?}"
            ));
        }
    }
    let last = fate.results.last().unwrap_or(first);
    if world.scenario().all_sent && last.status != Status::Sent && !has_rival(planned, world) {
        return Err(format!("message {number} was not sent: {last:?}"));
    }
    // Each interruption can send a job back, and so can the displacement of a replica that follows.
    let returns = 2 * state.interruptions;
    if fate.given_up
        && world.scenario().delivery_limit == DELIVERY_LIMIT
        && returns < DELIVERY_LIMIT
    {
        return Err(format!(
            "message {number} went back to the queue so often that the broker gave it up"
        ));
    }
    if planned.unreadable.is_some() {
        let is_rejected = last.status == Status::Rejected
            && last.errors.iter().all(|error| error.info.starts_with("header `"));
        return if is_rejected {
            Ok(())
        } else {
            Err(format!("message {number} cannot be read and was not rejected: {last:?}"))
        };
    }
    match (&planned.job, last.status) {
        (None, Status::Rejected) => is_original(number, planned, fate),
        (None, _) => Err(format!("message {number} is invalid and was not rejected: {last:?}")),
        (Some(_), Status::Rejected) if has_rival(planned, world) => {
            is_original(number, planned, fate)
        }
        (Some(_), Status::Rejected) => {
            Err(format!("message {number} is valid and was rejected: {last:?}"))
        }
        (Some(job), _) => of_job(number, planned, job, last, fate, state, world),
    }
}

/// A result without the values that may differ between two equal ones.
fn told(result: &JobResult) -> JobResult {
    // A rejected job has no record that could keep the time of its first arrival.
    let received_at =
        if result.status == Status::Rejected { String::new() } else { result.received_at.clone() };
    JobResult { duplicate: false, finished_at: String::new(), received_at, ..result.clone() }
}

/// Whether another message has the same id and another content.
fn has_rival(planned: &Planned, world: &Shared) -> bool {
    planned.id.is_some()
        && world
            .scenario()
            .messages
            .iter()
            .any(|other| other.id == planned.id && other.job != planned.job)
}

/// Whether the broker gave this message up, or another of the same job.
fn given_up(planned: &Planned, fate: &Fate, state: &World, world: &Shared) -> bool {
    let others = world.scenario().messages.iter().zip(&state.broker.fates);
    fate.given_up
        || planned.id.is_some()
            && others.into_iter().any(|(other, fate)| other.id == planned.id && fate.given_up)
}

fn is_original(number: usize, planned: &Planned, fate: &Fate) -> Result<(), String> {
    let original =
        !fate.letters.is_empty() && fate.letters.iter().all(|letter| *letter == planned.body);
    if original {
        Ok(())
    } else {
        Err(format!("the dead letter of message {number} is not the original"))
    }
}

fn of_job(
    number: usize,
    planned: &Planned,
    job: &Wanted,
    result: &JobResult,
    fate: &Fate,
    state: &World,
    world: &Shared,
) -> Result<(), String> {
    let batches = job.batches();
    let kinds: BTreeMap<usize, ErrorKind> = result
        .errors
        .iter()
        .flat_map(|error| error.batches.iter().map(|batch| (*batch as usize, error.kind)))
        .collect();
    let is_cancelled = result.status == Status::Cancelled;
    let failed = |batch: usize| {
        let kind = kinds.get(&batch);
        !is_cancelled
            && kind.is_some_and(|kind| !matches!(kind, ErrorKind::Unknown | ErrorKind::Cancelled))
    };
    let was_cancelled = planned.id.as_ref().is_some_and(|id| state.cancelled.contains_key(id));
    for (index, batch) in batches.iter().enumerate() {
        let key = (job.group.clone(), batch.first().cloned().unwrap_or_default());
        let facts = state.api.batches.get(&key);
        let accepted = facts.map_or(0, |facts| facts.accepted);
        let in_doubt = facts.is_some_and(|facts| facts.in_doubt) || state.last_failure().is_some();
        // The daemon cannot recognise a job without an id when it comes again.
        let in_doubt = in_doubt || planned.id.is_none() && state.last_interruption.is_some();
        let of_group = state.api.batches.iter().filter(|((group, _), _)| *group == job.group);
        // Refused again after a probe had passed or other calls were accepted.
        let alone = of_group.map(|(_, facts)| facts.account_refusals).sum::<u32>() >= 2;
        // A batch that has failed for long enough, with any error, ends with the next refusal.
        let refused = facts.is_some_and(|facts| {
            facts.refused || facts.account_refusals > 0 && alone || facts.refused_late
        });
        let lived = planned.deadline.is_none() && kinds.get(&index) == Some(&ErrorKind::Expired);
        match kinds.get(&index) {
            _ if lived => return Err(format!("message {number} has no deadline and expired")),
            Some(ErrorKind::Undeliverable) if !given_up(planned, fate, state, world) => {
                return Err(format!(
                    "batch {index} of message {number} is told as undeliverable, and the broker \
                        did not give it up"
                ));
            }
            Some(ErrorKind::Cancelled) if !was_cancelled => {
                return Err(format!(
                    "batch {index} of message {number} is told as cancelled, and nobody did that"
                ));
            }
            Some(ErrorKind::Job) if !refused => {
                return Err(format!(
                    "batch {index} of message {number} is told as refused and never was"
                ));
            }
            // An undocumented refusal of a repeat may be the answer to a repeated message.
            Some(ErrorKind::Unknown)
                if planned.promise == DeliveryPromise::AtLeastOnce
                    && !(world.scenario().vendor.is_some() && in_doubt) =>
            {
                return Err(format!(
                    "batch {index} of message {number} was to be sent until it is known"
                ));
            }
            // The daemon ended after it was told of the drop, and before it could record that the
            // batch goes on with another number.
            None if accepted == 0 && facts.is_some_and(|facts| facts.drop_is_unrecorded) => {}
            None if accepted == 0 => {
                return Err(format!(
                    "batch {index} of message {number} is told as sent and never was"
                ));
            }
            Some(kind) if accepted > 0 && !in_doubt => {
                return Err(format!(
                    "batch {index} of message {number} was accepted and is told as {kind:?}"
                ));
            }
            _ => {}
        }
    }
    check_counts(number, result, &batches, &kinds)?;
    check_calls(number, planned, job, result, state)?;
    let expected: Vec<&String> = batches
        .iter()
        .enumerate()
        .filter(|(index, _)| failed(*index))
        .flat_map(|(_, b)| b)
        .collect();
    let has_failed = (0..batches.len()).any(failed);
    // If a copy was answered from the record, its letter went out with the first message's result.
    if has_failed && !result.duplicate && fate.letters.is_empty() {
        return Err(format!("message {number} has no dead letter: {result:?}"));
    }
    if !may_differ(planned, state, world) && !has_failed && !fate.letters.is_empty() {
        return Err(format!("message {number} has a dead letter: {result:?}"));
    }
    for letter in &fate.letters {
        let letter: Letter = serde_json::from_slice(letter).map_err(|error| error.to_string())?;
        let members = letter.members.unwrap_or_default();
        // The letter of a job without an id belongs to one of its runs.
        if !may_differ(planned, state, world) && members.iter().ne(expected.iter().copied()) {
            return Err(format!(
                "the dead letter of message {number} is for {members:?}, not for {expected:?}"
            ));
        }
    }
    Ok(())
}

/// Checks that each request is counted. Exceptions: a process failed in between, or the store
/// failed during a take-over.
fn check_calls(
    number: usize,
    planned: &Planned,
    job: &Wanted,
    result: &JobResult,
    state: &World,
) -> Result<(), String> {
    let of_job = state.api.batches.iter().filter(|((group, _), _)| *group == job.group);
    let written: u64 = of_job.map(|(_, facts)| u64::from(facts.calls)).sum();
    let sure = if planned.id.is_some() {
        state.last_failure().is_none()
    } else {
        state.last_interruption.is_none()
    };
    if sure && written != result.calls {
        return Err(format!(
            "message {number} tells {} calls, and there were {written}",
            result.calls
        ));
    }
    Ok(())
}

fn check_counts(
    number: usize,
    result: &JobResult,
    batches: &[Vec<String>],
    kinds: &BTreeMap<usize, ErrorKind>,
) -> Result<(), String> {
    let counts = result.batches.ok_or("a finished job has batches")?;
    let whole = counts.total as usize == batches.len()
        && counts.sent + counts.failed + counts.unknown == counts.total
        && kinds.len() as u32 == counts.failed + counts.unknown;
    let members: usize = batches.iter().map(Vec::len).sum();
    let recipients_whole = match (result.audience, result.recipients) {
        (Some(AudienceKind::All), None) => true,
        (Some(AudienceKind::Members), Some(told)) => {
            (told.sent + told.failed + told.unknown) as usize == members
                && told.requested - told.duplicates == members as u32
        }
        _ => false,
    };
    if whole && recipients_whole {
        Ok(())
    } else {
        Err(format!("the counts of message {number} are wrong: {result:?}"))
    }
}

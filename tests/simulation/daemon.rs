//! Replicas of the real daemon's pipeline, which start, stop and crash. Also the producer and the
//! faults over time.

use std::{sync::Arc, time::Duration};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    api::SimulatedApi,
    broker::{SimulatedQueue, keep_linked},
    defects::Flawed,
    scenario::{APP, Planned, PlannedCancellation},
    store::SimulatedStore,
    world::{Cancellation, Life, Shared},
};
use crate::{
    broker::publisher::{LinkState, Publisher},
    clock,
    job::DeliveryPromise,
    journey::Pipeline,
    progress::{Progress, store::Cancelled},
    subscribe::{
        consume::{Subscribed, consume},
        prefetch::Prefetch,
    },
    watch,
};

const MINUTE: f64 = 60.0;
const RESTART_WITHIN: Duration = Duration::from_secs(5);
const LONGEST_PARTITION: Duration = Duration::from_secs(40);
/// Includes the time that the daemon needs to find out that the trouble is over.
const LONGEST_STORE_TROUBLE: Duration = Duration::from_secs(60);

/// A replica's process. Dropping it is a crash.
struct Process {
    life: Arc<Life>,
    world: Shared,
    stop: CancellationToken,
    consuming: JoinHandle<()>,
    publishing: JoinHandle<()>,
}

/// Runs until every job is answered and all activity has ended.
pub async fn live(world: Shared) {
    tokio::spawn(produce(world.clone()));
    tokio::spawn(operate(world.clone()));
    for replica in 0..world.scenario().replicas {
        tokio::spawn(keep_running(world.clone(), replica));
    }
    tokio::spawn(trouble(world.clone()));
    tokio::spawn(store_trouble(world.clone()));
    tokio::spawn(partitions(world.clone()));
    let end_of_trouble = world.start() + world.scenario().trouble;
    sleep_until(end_of_trouble).await;
    world.heal();
    world.block(false);
    world.reunite();
    let last = world.scenario().messages.iter().map(|planned| planned.at).max().unwrap_or_default();
    sleep_until(world.start() + last + Duration::from_secs(1)).await;
    while !world.lock().broker.is_quiet() && !world.is_broken() {
        sleep(Duration::from_secs(1)).await;
    }
}

async fn produce(world: Shared) {
    let clock_start = clock::now() - world.elapsed();
    for (number, planned) in world.scenario().messages.clone().into_iter().enumerate() {
        sleep_until(world.start() + planned.at).await;
        let properties = properties(number, &planned, clock_start);
        world.note(format_args!("message {number} is published"));
        world.publish_job(planned.body, properties, planned.unreadable);
    }
}

/// Cancels jobs, and undoes that.
async fn operate(world: Shared) {
    for PlannedCancellation { at, id, undo } in world.scenario().cancellations.clone() {
        sleep_until(world.start() + at).await;
        let mut state = world.lock();
        if undo {
            if state.records.undo_cancel(&id)
                && let Some(cancellation) = state.cancelled.get_mut(&id)
            {
                cancellation.is_undone = true;
            }
        } else if state.records.cancel(&id) != Cancelled::HasEnded {
            let cancellation = Cancellation { at: Instant::now(), is_undone: false };
            state.cancelled.insert(id.clone(), cancellation);
        }
        drop(state);
        world.note(format_args!("{id} is {}cancelled", if undo { "no longer " } else { "" }));
    }
}

fn properties(number: usize, planned: &Planned, start: jiff::Timestamp) -> BasicProperties {
    let text = |text: String| AMQPValue::LongString(text.as_str().into());
    let mut headers = FieldTable::default();
    if let Some(deadline) = planned.deadline {
        headers.insert("groupcast-deadline".into(), text((start + deadline).to_string()));
    }
    if let Some(not_before) = planned.not_before {
        headers.insert("groupcast-not-before".into(), text((start + not_before).to_string()));
    }
    if planned.promise == DeliveryPromise::AtMostOnce {
        headers.insert("groupcast-delivery".into(), text("at-most-once".into()));
    }
    if planned.poison {
        headers
            .insert("tracestate".into(), text("the broker closes the connection over this".into()));
    }
    let properties = BasicProperties::default()
        .with_correlation_id(number.to_string().into())
        .with_reply_to(planned.reply_to.into())
        .with_priority(planned.priority)
        .with_headers(headers);
    match &planned.id {
        Some(id) => properties.with_message_id(id.as_str().into()),
        None => properties,
    }
}

impl Process {
    fn start(world: &Shared, replica: usize) -> Self {
        world.note(format_args!("replica {replica} starts"));
        let life = Life::new(replica);
        let (sender, link) = watch::channel(LinkState::No { reason: "not yet".into() });
        let publishing = tokio::spawn(keep_linked(world.clone(), life.clone(), sender));
        let progress =
            Progress::start(Arc::new(SimulatedStore { world: world.clone(), life: life.clone() }));
        let api = Arc::new(SimulatedApi { world: world.clone(), life: life.clone() });
        let pipeline = Pipeline::new(
            APP,
            &world.scenario().app,
            1 << 20,
            api,
            Publisher::over(link),
            progress,
        );
        let work = Arc::new(Flawed { pipeline, world: world.clone() });
        let queue = SimulatedQueue { world: world.clone(), life: life.clone() };
        let prefetch = Prefetch::new(world.scenario().prefetch, world.scenario().hold_bytes);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let consuming = tokio::spawn(async move {
            consume(APP, &queue, work, prefetch, Subscribed::not_yet(), stopping).await
        });
        Self { life, world: world.clone(), stop, consuming, publishing }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.life.end();
        self.consuming.abort();
        self.publishing.abort();
        self.world.disconnect(&self.life);
    }
}

/// Starts a replica again and again, and ends it at random moments.
async fn keep_running(world: Shared, replica: usize) {
    let faults = &world.scenario().faults;
    loop {
        let mut process = Process::start(&world, replica);
        loop {
            sleep(Duration::from_secs(1)).await;
            if world.happens(faults.disconnects_a_minute / MINUTE) {
                world.disconnect(&process.life);
            }
            if world.happens(faults.stops_a_minute / MINUTE) {
                world.note(format_args!("replica {replica} is told to stop"));
                process.stop.cancel();
                let _ = (&mut process.consuming).await;
                // Outcomes that could not be recorded before the process stopped are lost.
                let last_store_failure = world.lock().records.last_failure();
                if last_store_failure
                    .is_some_and(|failure| failure.elapsed() < LONGEST_STORE_TROUBLE)
                {
                    world.failed();
                }
                break;
            }
            if world.happens(faults.crashes_a_minute / MINUTE) {
                world.note(format_args!("replica {replica} crashes"));
                world.failed();
                break;
            }
        }
        drop(process);
        sleep(world.up_to(RESTART_WITHIN)).await;
    }
}

/// Blocks publishing at random.
async fn trouble(world: Shared) {
    loop {
        sleep(Duration::from_secs(1)).await;
        if world.happens(world.scenario().faults.blocks_a_minute / MINUTE) {
            world.block(true);
            sleep(world.up_to(Duration::from_secs(10))).await;
            world.block(false);
        }
    }
}

/// Partitions the broker's nodes at random.
async fn partitions(world: Shared) {
    loop {
        sleep(Duration::from_secs(1)).await;
        if world.happens(world.scenario().faults.partitions_a_minute / MINUTE) {
            world.cut_off(world.coin());
            sleep(world.up_to(LONGEST_PARTITION)).await;
            world.note("the broker's nodes meet again");
            world.reunite();
        }
    }
}

/// Makes the store stall or refuse at random.
async fn store_trouble(world: Shared) {
    let trouble = &world.scenario().store;
    loop {
        sleep(Duration::from_secs(1)).await;
        if world.happens(trouble.stalls_a_minute / MINUTE) {
            let seconds = world.up_to(Duration::from_secs(40));
            world.note(format_args!("the store stalls for {seconds:?}"));
            world.lock().records.stall_until(Instant::now() + seconds);
        }
        if world.happens(trouble.refusals_a_minute / MINUTE) {
            let seconds = world.up_to(Duration::from_secs(40));
            world.note(format_args!("the store records nothing for {seconds:?}"));
            world.lock().records.refuse_until(Instant::now() + seconds);
        }
    }
}

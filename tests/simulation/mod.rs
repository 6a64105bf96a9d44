//! The real pipeline in a world that a seed determines. The broker, the API and the state store are
//! in memory, and time is tokio's paused clock. All three fail as the real ones do.
//!
//! - [`scenario`]: what a seed means: jobs, configuration, and which faults occur.
//! - [`world`]: the state outside the daemon, and the random numbers.
//! - [`broker`], [`api`], [`store`]: the pipeline's interfaces, on top of that state.
//! - [`messages`]: how the vendor treats repeated and too many messages of the second command.
//! - [`daemon`]: replicas that start, stop and crash.
//! - [`invariants`]: what must hold at the end. The modules above assert what must hold at each
//!   moment.
//! - [`defects`]: deliberate mistakes in the interfaces. The simulation must find each.
//!
//! A run that breaks a promise prints its seed. To see it again: `SIMULATION_SEED=<seed> cargo test
//! --lib simulation::one`. More seeds: `SIMULATION_SEEDS=1000000 cargo test --release --lib
//! simulation::many`.

mod api;
mod broker;
mod daemon;
mod defects;
mod invariants;
mod messages;
mod scenario;
mod store;
mod world;

use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use self::{
    defects::Defect,
    scenario::Scenario,
    world::{Broken, Shared},
};
use crate::{clock, delay};

/// The number of seeds in the gate.
const SEEDS: u64 = 10_000;
/// Longer than any working run takes, in simulated time.
const LONGEST_RUN: Duration = Duration::from_secs(3 * 3600);

/// Runs one seed's world to its end. The error says which promise was broken.
fn run(seed: u64, defect: Option<Defect>) -> Result<(), Broken> {
    run_scenario(seed, Scenario::of(seed), defect)
}

fn run_scenario(seed: u64, scenario: Scenario, defect: Option<Defect>) -> Result<(), Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        clock::simulated::start_at("2026-01-01T00:00:00Z".parse().expect("a time"));
        delay::seeded::start_with(seed);
        let world = Shared::new(seed, scenario, defect);
        let ran = tokio::time::timeout(LONGEST_RUN, daemon::live(world.clone())).await;
        if ran.is_err() {
            world.broken(format!("no end after {LONGEST_RUN:?}: {}", world.describe()));
        }
        invariants::check(&world);
        world.verdict()
    })
}

/// The number in an environment variable.
fn number(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs seeds on all cores until `stop` says so. A panic is a broken promise too.
fn run_seeds(
    first: u64,
    count: u64,
    defect: Option<Defect>,
    on_broken: impl Fn(u64, Broken) -> Go + Sync,
) -> u64 {
    let next = AtomicU64::new(first);
    let done = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, defect)));
                    let broken = match ran {
                        Ok(Ok(())) => continue,
                        Ok(Err(broken)) => broken,
                        Err(_) => Broken::new("a panic"),
                    };
                    if let Go::NoFurther = on_broken(seed, broken) {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    done.into_inner()
}

enum Go {
    On,
    NoFurther,
}

#[test]
fn many_seeds_break_no_promise() {
    let count = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let first = number("SIMULATION_FIRST").unwrap_or(0);
    let start = std::time::SystemTime::now();
    let broken = std::sync::Mutex::new(Vec::new());
    run_seeds(first, count, None, |seed, what| {
        eprintln!("seed {seed}: {what}");
        let mut broken = broken.lock().expect("no panic while it is held");
        broken.push(seed);
        if broken.len() < 20 { Go::On } else { Go::NoFurther }
    });
    let seconds = start.elapsed().expect("time goes on").as_secs_f64();
    println!(
        "{count} seeds in {seconds:.1} s: {:.2} s a thousand",
        seconds * 1000.0 / count as f64
    );
    let broken = broken.into_inner().expect("no panic while it was held");
    assert!(
        broken.is_empty(),
        "promises broken; see one with SIMULATION_SEED=<seed> cargo test --lib simulation::one: \
            {broken:?}"
    );
}

#[test]
fn one_seed_can_be_run_again() {
    let seed = number("SIMULATION_SEED").unwrap_or(1);
    if number("SIMULATION_SEED").is_some() {
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_test_writer()
            .try_init();
    }
    let ran = run(seed, None);
    if number("SIMULATION_SEED").is_some() {
        events(seed).iter().for_each(|line| println!("{line}"));
    }
    assert!(ran.is_ok(), "seed {seed}: {}", ran.unwrap_err());
}

/// The events in the world of a seed, with their times.
fn events(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        clock::simulated::start_at("2026-01-01T00:00:00Z".parse().expect("a time"));
        delay::seeded::start_with(seed);
        let world = Shared::new(seed, Scenario::of(seed), None);
        world.lock().trace = Some(Vec::new());
        let _ = tokio::time::timeout(LONGEST_RUN, daemon::live(world.clone())).await;
        world.lock().trace.take().unwrap_or_default()
    })
}

#[test]
fn a_seed_repeats_its_events_at_the_same_times() {
    // The last three have jobs that wait for the same change of the store or the broker.
    let seeds = match (number("SIMULATION_FIRST"), number("SIMULATION_SEEDS")) {
        (None, None) => vec![0, 1, 2, 3, 4, 5, 6, 7, 8346, 9394, 7239],
        (first, count) => (first.unwrap_or(0)..).take(count.unwrap_or(SEEDS) as usize).collect(),
    };
    for seed in seeds {
        let (first, second) = (events(seed), events(seed));
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert!(
            !first.is_empty() && first == second,
            "seed {seed}: two runs differ, first in {differs:?}"
        );
    }
}

#[test]
fn after_two_hours_without_the_api_every_job_is_sent() {
    for seed in 0..50 {
        let ran = run_scenario(
            seed,
            Scenario::of(seed).without_the_api_for(Duration::from_secs(2 * 3600)),
            None,
        );
        assert!(ran.is_ok(), "seed {seed}: {}", ran.unwrap_err());
    }
}

#[test]
fn each_deliberate_defect_is_found_within_ten_thousand_seeds() {
    for defect in Defect::ALL {
        let found = std::sync::Mutex::new(None);
        let seeds = run_seeds(0, 10_000, Some(defect), |seed, broken| {
            found.lock().expect("no panic while it is held").get_or_insert((seed, broken));
            Go::NoFurther
        });
        match found.into_inner().expect("no panic while it was held") {
            Some((seed, broken)) => {
                println!("{defect:?}: found after {seeds} seeds, by seed {seed}: {broken}")
            }
            None => panic!("{defect:?} was not found in {seeds} seeds"),
        }
    }
}

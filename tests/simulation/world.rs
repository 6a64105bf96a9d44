//! The state outside the daemon, which outlives it; the only source of random numbers; and the
//! verdict.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep};

use super::{api::Api, broker::Broker, defects::Defect, scenario::Scenario, store::Records};

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Broken(String);

impl Broken {
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The world, as all its parts share it.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    scenario: Scenario,
    defect: Option<Defect>,
    start: Instant,
    state: Mutex<World>,
}

pub struct World {
    chance: SmallRng,
    healed: bool,
    broken: Option<Broken>,
    /// What happened and when, if the run records it.
    pub trace: Option<Vec<String>>,
    pub broker: Broker,
    pub api: Api,
    pub records: Records,
    /// When a process last failed.
    last_process_failure: Option<Instant>,
    /// When a delivery was last taken from a process that continues to work. Jobs without a record
    /// may then be sent again.
    pub last_interruption: Option<Instant>,
    /// Crashes, lost connections and partitions.
    pub interruptions: u32,
    /// Since when a job has been cancelled.
    pub cancelled: BTreeMap<String, Cancellation>,
}

/// What an operator did about a job.
#[derive(Clone, Copy)]
pub struct Cancellation {
    pub at: Instant,
    pub is_undone: bool,
}

/// One process from its start to its end. After a crash it does nothing more.
pub struct Life {
    pub replica: usize,
    alive: AtomicBool,
}

impl Life {
    pub fn new(replica: usize) -> Arc<Self> {
        Arc::new(Self { replica, alive: AtomicBool::new(true) })
    }

    pub fn end(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Never returns if the process is dead.
    pub async fn until_known_alive(&self) {
        if !self.alive.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

impl World {
    pub fn is_healed(&self) -> bool {
        self.healed
    }

    /// When a process last failed, or the jobs went to another replica while the store failed.
    /// Outcomes that were not recorded by then are lost, and their calls are repeated.
    pub fn last_failure(&self) -> Option<Instant> {
        self.last_process_failure.max(self.records.unrecorded_at())
    }
}

impl Shared {
    pub fn new(seed: u64, scenario: Scenario, defect: Option<Defect>) -> Self {
        let state = World {
            chance: SmallRng::seed_from_u64(seed ^ 0x5eed),
            healed: false,
            broken: None,
            trace: None,
            broker: Broker::new(scenario.messages.len(), scenario.delivery_limit),
            api: Api::default(),
            records: Records::default(),
            last_process_failure: None,
            last_interruption: None,
            interruptions: 0,
            cancelled: BTreeMap::new(),
        };
        Self(Arc::new(Inner { scenario, defect, start: Instant::now(), state: Mutex::new(state) }))
    }

    pub fn scenario(&self) -> &Scenario {
        &self.0.scenario
    }

    pub fn has(&self, defect: Defect) -> bool {
        self.0.defect == Some(defect)
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.state.lock().expect("no panic while it is held")
    }

    pub fn start(&self) -> Instant {
        self.0.start
    }

    pub fn elapsed(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// Whether a fault of this likelihood happens now.
    pub fn happens(&self, likely: f64) -> bool {
        let mut world = self.lock();
        likely > 0.0 && !world.healed && world.chance.random_bool(likely)
    }

    pub fn coin(&self) -> bool {
        self.lock().chance.random_bool(0.5)
    }

    pub fn up_to(&self, most: Duration) -> Duration {
        let micros = most.as_micros().max(1) as u64;
        Duration::from_micros(self.lock().chance.random_range(0..micros))
    }

    /// Waits for a round trip to the broker or the store.
    pub async fn round_trip(&self) {
        let slowest = Duration::from_millis(2)
            + Duration::from_millis(400).mul_f64(self.scenario().faults.slowness);
        sleep(self.up_to(slowest)).await;
    }

    pub fn heal(&self) {
        self.note("everything heals");
        self.lock().healed = true;
    }

    pub fn note(&self, what: impl fmt::Display) {
        let at = self.elapsed();
        if let Some(trace) = &mut self.lock().trace {
            trace.push(format!("{:10.3} {what}", at.as_secs_f64()));
        }
    }

    /// Notes a broken promise; the first counts.
    pub fn broken(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(format_args!("BROKEN: {what}"));
        let at = self.elapsed();
        self.lock()
            .broken
            .get_or_insert_with(|| Broken::new(format!("at {:.3} s: {what}", at.as_secs_f64())));
    }

    pub fn verdict(&self) -> Result<(), Broken> {
        match self.lock().broken.clone() {
            Some(broken) => Err(broken),
            None => Ok(()),
        }
    }

    pub fn is_broken(&self) -> bool {
        self.lock().broken.is_some()
    }

    pub fn failed(&self) {
        let mut world = self.lock();
        world.last_process_failure = Some(Instant::now());
        world.last_interruption = Some(Instant::now());
    }

    /// Records that the store did not answer, or refused. A job without an id cannot be parked
    /// meanwhile.
    pub fn store_failed(&self) {
        self.lock().records.failed();
        self.interrupted();
    }

    pub fn interrupted(&self) {
        let mut world = self.lock();
        world.last_interruption = Some(Instant::now());
        world.interruptions += 1;
    }

    pub fn describe(&self) -> String {
        let world = self.lock();
        format!("{:?}", world.broker)
    }
}

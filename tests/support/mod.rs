//! The tools of the tests: a real broker, the real daemon, a producer, a network that fails, and
//! waiting on conditions.

pub mod broker;
pub mod browser;
pub mod certificates;
pub mod daemon;
pub mod producer;
pub mod proxy;
pub mod raw_producer;
pub mod redis;
pub mod scene;

use std::time::Duration;

use tokio::{
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Instant, sleep},
};

/// Longer than any working operation takes on a busy machine. A condition that is not met by then
/// has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` returns a value. Panics with `what` if it never does.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The limit, and a few more. The machine also runs the broker, the API and the tests. A call may
/// be delayed by more than the 5 ms that the pacer reserves. It then arrives in a second with one
/// call too many. Where calls leave, the limit holds exactly: a unit test of the pacer and the
/// daemon's own count check that.
pub const fn most_arrivals_in_1s(calls_per_second: usize) -> usize {
    calls_per_second + 4 + calls_per_second / 50
}

/// Lets a test that measures speed run alone.
static MACHINE: RwLock<()> = RwLock::const_new(());

pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

pub async fn among_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

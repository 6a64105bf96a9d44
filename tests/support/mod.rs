//! What the tests stand on: a real broker of their own, the real daemon, a producer, a network that
//! fails, and waiting on conditions.

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

/// Longer than anything that works takes on a busy machine; a condition that is not met by then
/// never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value. Says what it waited for if that does not happen.
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

/// The limit, and a few more: on a machine that also runs the broker, the API and the tests, a call
/// may be held up on its way by longer than the 5 ms that the pacer leaves for it, and share a
/// second with one too many. Where calls leave, the limit holds exactly: a unit test of the pacer
/// and the daemon's own count say so.
pub const fn most_arrivals_in_1s(calls_per_second: usize) -> usize {
    calls_per_second + 4 + calls_per_second / 50
}

/// Tests that measure speed have the machine for themselves.
static MACHINE: RwLock<()> = RwLock::const_new(());

pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

pub async fn among_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

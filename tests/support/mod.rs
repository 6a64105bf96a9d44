//! What the tests stand on: a real broker of their own, the real daemon, a producer, and waiting on conditions.

pub mod broker;
pub mod daemon;
pub mod producer;
pub mod scene;

use std::time::Duration;

use tokio::{
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Instant, sleep},
};

/// Longer than anything that works takes on a busy machine; a condition that is not met by then never will be.
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

/// Tests that measure speed have the machine for themselves.
static MACHINE: RwLock<()> = RwLock::const_new(());

pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

pub async fn among_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

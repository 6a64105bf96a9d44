//! Tells systemd that the process works, lives or stops, if systemd supervises it as `Type=notify`.
//! Otherwise these calls have no effect.

use std::{convert::Infallible, future::pending};

use sd_notify::NotifyState;
use tracing::warn;

/// The configuration is valid and everything runs. `/readyz` says whether jobs are consumed:
/// systemd must not restart the process because the broker is away.
pub fn works() {
    tell(NotifyState::Ready);
}

pub fn stops() {
    tell(NotifyState::Stopping);
}

/// Tells systemd that the process lives, as often as systemd requires. All work is done on the
/// thread that does this, so a hung thread is noticed.
pub async fn notify_watchdog() -> Infallible {
    let Some(patience) = sd_notify::watchdog_enabled() else { return pending().await };
    loop {
        tell(NotifyState::Watchdog);
        tokio::time::sleep(patience / 3).await;
    }
}

fn tell(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd could not be notified");
    }
}

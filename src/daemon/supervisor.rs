//! What systemd is told, if it supervises the process as `Type=notify`: that it works, that it
//! lives, that it stops. Elsewhere nobody listens, and nothing of this has an effect.

use std::{convert::Infallible, future::pending};

use sd_notify::NotifyState;
use tracing::warn;

/// The configuration is right and everything runs. Whether jobs are consumed is for `/readyz` to
/// say: a broker that is away is no reason to end the process.
pub fn works() {
    tell(NotifyState::Ready);
}

pub fn stops() {
    tell(NotifyState::Stopping);
}

/// Tells that the process lives, as often as it was asked to. All work is done on the thread that
/// does this.
pub async fn tell_of_life() -> Infallible {
    let Some(patience) = sd_notify::watchdog_enabled() else { return pending().await };
    loop {
        tell(NotifyState::Watchdog);
        tokio::time::sleep(patience / 3).await;
    }
}

fn tell(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd cannot be told how the process fares");
    }
}

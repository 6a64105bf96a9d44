//! The daemon's own HTTP: `/livez`, `/readyz` and `/metrics` at `admin.listen`. It shows, and changes nothing.
//!
//! `readiness` says whether every app consumes and what is wrong if not, [`metrics`] the numbers, `listener` speaks HTTP.

mod listener;
pub mod metrics;
mod readiness;

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::{accept::consume::Subscribed, broker::publisher::Publisher, pipeline::Pipeline, settle::progress::Progress};

/// What there is to show.
pub struct Shown {
    pub apps: Vec<ShownApp>,
    pub publisher: Publisher,
    pub progress: Progress,
}

pub struct ShownApp {
    pub name: String,
    pub pipeline: Arc<Pipeline>,
    pub subscribed: watch::Receiver<Subscribed>,
}

/// The port. Whoever connects before there is something to show waits.
pub struct Admin(TcpListener);

/// Shows until it is dropped.
pub struct Showing {
    _server: AbortOnDropHandle<Infallible>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}, which admin.listen names; free it or choose another: {source}")]
pub struct CannotListen {
    address: SocketAddr,
    source: std::io::Error,
}

impl Admin {
    pub async fn listen(address: SocketAddr) -> Result<Self, CannotListen> {
        let failed = |source| CannotListen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        info!(%address, "listening for /livez, /readyz and /metrics");
        Ok(Self(listener))
    }

    pub fn show(self, shown: Shown) -> Showing {
        Showing { _server: AbortOnDropHandle::new(tokio::spawn(listener::serve(self.0, Arc::new(shown)))) }
    }
}

//! The daemon's own HTTP server at `admin.listen`: `/livez`, `/readyz`, `/metrics`, and the status
//! page at `/`, which `/events` keeps up to date. With a token configured, an operator can pause
//! and resume an app there, redrive its dead letters and cancel a job. Without a token, the server
//! changes nothing.
//!
//! `listener` has the sockets, and `pages` answers each path. [`readiness`] says whether every app
//! consumes, and what is wrong if not. [`status`] has the contents of the page, and `observer`
//! updates them once a second. `access` refuses other sites' pages and clients without the token.
//! `actions` carries out the actions.

mod access;
mod actions;
mod listener;
mod observer;
mod page;
mod pages;
pub mod readiness;
pub mod status;

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::{
    broker::{connection::Connector, publisher::Publisher},
    config,
    journey::Pipeline,
    progress::Progress,
    subscribe::consume::Subscribed,
    telemetry::metrics::Exposition,
};

/// What the pages show, and what the actions act on.
pub struct Shown {
    pub apps: Vec<ShownApp>,
    pub publisher: Publisher,
    pub connector: Arc<Connector>,
    pub progress: Progress,
}

pub struct ShownApp {
    pub name: String,
    pub pipeline: Arc<Pipeline>,
    pub subscribed: watch::Receiver<Subscribed>,
}

/// The port, and the recorder of the metrics. A client that connects before [`Admin::show`] waits.
pub struct Admin {
    listener: TcpListener,
    exposition: Exposition,
    access: access::Access,
}

/// Serves the pages until it is dropped.
pub struct Showing {
    _server: AbortOnDropHandle<Infallible>,
}

#[derive(Debug, thiserror::Error)]
pub enum CannotShow {
    #[error(
        "cannot listen at {address}, which admin.listen names; free it or choose another: {source}"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot record metrics: {0}")]
    Record(String),
}

impl Admin {
    /// Listens, and records metrics from now on. May be called once in a process.
    pub async fn listen(admin: &config::AdminConfig) -> Result<Self, CannotShow> {
        let failed = |source| CannotShow::Listen { address: admin.listen, source };
        let listener = TcpListener::bind(admin.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let exposition = Exposition::start().map_err(CannotShow::Record)?;
        let actions = admin.token.is_some();
        info!(%address, actions, "listening for /livez, /readyz, /metrics and the status page");
        Ok(Self { listener, exposition, access: access::Access::of(admin) })
    }

    pub fn show(self, shown: Shown) -> Showing {
        Showing { _server: AbortOnDropHandle::new(tokio::spawn(listener::serve(self, shown))) }
    }
}

//! The sockets: reads requests and answers them. Dropping the future of [`serve`] closes it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tracing::debug;

use super::{Admin, Shown, observer::Observer, pages::Pages};
use crate::connections::accept;

/// Enough for some collectors and people. Further connections wait.
const MAX_CONNECTIONS: usize = 64;
/// A client that connects and sends nothing must not keep others out.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

pub async fn serve(admin: Admin, shown: Shown) -> Infallible {
    let Admin { listener, exposition, access } = admin;
    let shown = Arc::new(shown);
    let (observer, seen) = Observer::of(shown.clone(), access.has_token());
    let pages = Arc::new(Pages { shown, exposition, access, seen });
    let accept = accept(&listener, MAX_CONNECTIONS, |stream| converse(stream, pages.clone()));
    tokio::select! {
        never = accept => never,
        never = observer.look() => never,
        never = pages.exposition.keep_small() => never,
    }
}

async fn converse(stream: TcpStream, pages: Arc<Pages>) {
    let service = service_fn(|request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a connection to admin.listen broke");
    }
}

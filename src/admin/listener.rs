//! The sockets: reads requests and answers them. Dropping the future of [`serve`] closes it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::JoinSet};
use tracing::{debug, warn};

use super::{Admin, Shown, observer::Observer, pages::Pages};

/// Enough for some collectors and people. Further connections wait.
const MAX_CONNECTIONS: usize = 64;
/// A client that connects and sends nothing must not keep others out.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Without a pause, a process that has run out of file descriptors would retry in a busy loop.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

pub async fn serve(admin: Admin, shown: Shown) -> Infallible {
    let Admin { listener, exposition, access } = admin;
    let shown = Arc::new(shown);
    let (observer, seen) = Observer::of(shown.clone(), access.has_token());
    let pages = Arc::new(Pages { shown, exposition, access, seen });
    let accept = async {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(converse(stream, pages.clone()));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection at admin.listen");
                        tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    };
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

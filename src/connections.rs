//! Accepts connections, a limited number at a time. The admin port and the sandbox use it.

use std::{convert::Infallible, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tracing::warn;

/// Without a pause, a process that has run out of file descriptors would retry in a busy loop.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// Serves each connection in a task of its own. While `most` are open, further connections wait.
/// Dropping the future closes all connections.
pub async fn accept<F>(
    listener: &TcpListener,
    most: usize,
    serve: impl Fn(TcpStream) -> F,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream));
                }
                Err(error) => {
                    let address = listener.local_addr().ok().map(|at| at.to_string());
                    warn!(%error, address, "cannot accept a connection");
                    sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

//! The sockets: accepts connections, reads requests, and resets a connection if a fault says so.
//! Dropping the future of [`serve`] closes the port and every connection at once.

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    Request,
    body::{Body, Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::{
    SharedSandbox,
    call::{ArrivalTime, Call},
    control,
    refusal::{ApiRefusal, PACKET_TOO_LONG},
    reply::{self, Reply, ResetConnection},
    verdict::SandboxVerdict,
};
use crate::connections::accept;

/// More than any test or benchmark needs. Further connections wait.
const MAX_CONNECTIONS: usize = 4096;
/// Large enough for a call far over the recipient limit, so that the caller gets the limit's own
/// code.
const MAX_BODY_BYTES: usize = 4 << 20;

pub async fn serve(listener: TcpListener, sandbox: Arc<SharedSandbox>) -> Infallible {
    accept(&listener, MAX_CONNECTIONS, |stream| converse(stream, sandbox.clone())).await
}

async fn converse(stream: TcpStream, sandbox: Arc<SharedSandbox>) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot turn off Nagle's algorithm");
    }
    let service = service_fn(move |request| answer(request, sandbox.clone()));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let Err(error) = (&mut connection).await else { return };
    if error.source().is_some_and(|source| source.is::<ResetConnection>()) {
        let stream = connection.into_parts().io.into_inner();
        // Closing with a linger of zero sends RST in place of FIN.
        if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
            warn!(%error, "cannot reset a connection");
        }
    } else {
        debug!(%error, "a connection broke");
    }
}

async fn answer(
    request: Request<Incoming>,
    sandbox: Arc<SharedSandbox>,
) -> Result<Reply, ResetConnection> {
    let (head, body) = request.into_parts();
    let body = read_whole(body).await?;
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or(""));
    if path.starts_with(control::PREFIX) {
        return Ok(control::answer(&sandbox, &head.method, path, query, &body.unwrap_or_default()));
    }
    let verdict = judge(
        &Call::read(&head.method, path, query, body.as_deref().map_err(ApiRefusal::clone)),
        &sandbox,
    );
    drop(body);
    reply::reply(verdict).await
}

fn judge(call: &Call, sandbox: &SharedSandbox) -> SandboxVerdict {
    let verdict = {
        let mut state = sandbox.lock();
        // The moment is read under the lock, so that moments never go back.
        state.judge(call, ArrivalTime::now())
    };
    debug!(group = call.group(), answer = ?verdict.answer, "call");
    verdict
}

/// A caller that disconnects before its request is complete has made no call and needs no answer.
async fn read_whole(body: Incoming) -> Result<Result<Bytes, ApiRefusal>, ResetConnection> {
    let too_long = ApiRefusal::new(PACKET_TOO_LONG, "the packet is too long");
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Ok(Err(too_long));
    }
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => Ok(Ok(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(Err(too_long)),
        Err(_gone) => Err(ResetConnection),
    }
}

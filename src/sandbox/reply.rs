//! Turns a verdict into HTTP: waits for the latency, then answers, or applies the fault to the
//! connection.

use http_body_util::Full;
use hyper::{Response, StatusCode, body::Bytes, header};

use super::{
    fault::InjectedFault,
    refusal::{ACCEPTED_JSON, ApiRefusal},
    verdict::{SandboxAnswer, SandboxVerdict},
};

pub type Reply = Response<Full<Bytes>>;

/// Returned in place of a reply to reset the connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is to be reset")]
pub struct ResetConnection;

pub async fn reply(verdict: SandboxVerdict) -> Result<Reply, ResetConnection> {
    if !verdict.latency.is_zero() {
        tokio::time::sleep(verdict.latency).await;
    }
    match verdict.answer {
        SandboxAnswer::Accepted => Ok(json(StatusCode::OK, ACCEPTED_JSON)),
        SandboxAnswer::Sent(reply) => Ok(json(StatusCode::OK, reply.to_json())),
        SandboxAnswer::Refused(refusal) => Ok(json(StatusCode::OK, refusal.to_json())),
        SandboxAnswer::Faulty(fault) => faulty(fault).await,
    }
}

async fn faulty(fault: InjectedFault) -> Result<Reply, ResetConnection> {
    match fault {
        InjectedFault::LatencyMs(_) => Ok(json(StatusCode::OK, ACCEPTED_JSON)),
        InjectedFault::Error { code, info } => {
            Ok(json(StatusCode::OK, ApiRefusal::new(code, info).to_json()))
        }
        InjectedFault::HttpStatus(status) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            Ok(with_type(
                status,
                "text/html",
                format!("<html><head><title>{status}</title></head></html>"),
            ))
        }
        InjectedFault::NotJson => {
            Ok(with_type(StatusCode::OK, "text/html", "<html>this is not JSON</html>"))
        }
        InjectedFault::Reset => Err(ResetConnection),
        InjectedFault::Hang => std::future::pending().await,
        InjectedFault::Redirect => Ok(redirect()),
    }
}

/// The address never resolves, so a client that follows it fails.
fn redirect() -> Reply {
    let mut reply = with_type(StatusCode::FOUND, "text/html", "");
    let elsewhere = header::HeaderValue::from_static("http://elsewhere.invalid/");
    reply.headers_mut().insert(header::LOCATION, elsewhere);
    reply
}

pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    with_type(status, "application/json", body)
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    reply
}

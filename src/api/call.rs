//! Makes one HTTP request to the API. No other code calls the API.
//!
//! The URL contains the UserSig. So no error that leaves this module contains the URL, and the
//! client never follows redirects.

use std::{
    error::Error as _,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use super::{answer::parse, classify::Answer, target::Target};
use crate::config::App;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};

/// The API's answers have about 100 bytes. A larger answer comes from another server.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The API as the sending of jobs sees it. Tests replace it with a stand-in without sockets.
pub trait Api: Send + Sync + 'static {
    /// Sends one request body. When the connection is open and the request is about to be written,
    /// `on_write` decides whether to send it.
    fn call(&self, body: Vec<u8>, on_write: OnWrite) -> BoxFuture<'_, Answer>;

    /// Call this when the API has refused the UserSig. The next call makes a new one. If the key is
    /// in a file, the daemon reads the file again first.
    fn renew_user_sig(&self);
}

/// Called once, when the request is about to be written.
pub type OnWrite = Box<dyn FnOnce() -> AtWrite + Send + Sync>;

/// Whether to send a request that is about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtWrite {
    Send,
    Withdraw,
}

/// Calls the API for one app.
pub struct Caller(RwLock<Arc<Target>>);

impl Caller {
    pub fn new(app: &App) -> Result<Self, reqwest::Error> {
        Ok(Self(RwLock::new(Arc::new(Target::of(app)?))))
    }

    /// The target for another configuration. It reuses the connections and the UserSig if they
    /// still fit.
    pub fn target_of(&self, app: &App) -> Result<Target, reqwest::Error> {
        self.target().for_app(app)
    }

    /// Sets the target from the next call on. Calls in flight keep the old one.
    pub fn set_target(&self, target: Target) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(target);
    }

    fn target(&self) -> Arc<Target> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Api for Caller {
    fn call(&self, body: Vec<u8>, on_write: OnWrite) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let write_state = Arc::new(WriteState::default());
            let state_of_body = write_state.clone();
            let on_write = move || match state_of_body.settle(AT_WRITE) {
                Ok(()) => {
                    let decision = on_write();
                    if decision == AtWrite::Withdraw {
                        state_of_body.0.store(WITHDRAWN, Ordering::Release);
                    }
                    decision
                }
                Err(_) => AtWrite::Withdraw,
            };
            let body = WatchedBody { bytes: Some(body.into()), on_write: Some(Box::new(on_write)) };
            let target = self.target();
            let user_sig = target.user_sig().await;
            let (address, request) = target.request(&user_sig);
            let answer = match request.body(reqwest::Body::wrap(body)).send().await {
                Ok(response) => read(response, &user_sig).await,
                Err(error) => match write_state.settle(GIVEN_UP) {
                    Ok(()) => Answer::NotSent { why: target.why_not_reached(address, error) },
                    Err(WITHDRAWN) => Answer::Withdrawn,
                    Err(_) => Answer::NoAnswer { info: describe(error) },
                },
            };
            target.record(address, &answer);
            answer
        })
    }

    fn renew_user_sig(&self) {
        self.target().invalidate_user_sig();
    }
}

async fn read(mut response: reqwest::Response, user_sig: &str) -> Answer {
    let http_status = response.status().as_u16();
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER_BYTES => {
                body.extend_from_slice(&chunk)
            }
            Ok(Some(_)) => {
                return Answer::Foreign {
                    http_status,
                    info: format!("answer of more than {MAX_ANSWER_BYTES} bytes"),
                };
            }
            Ok(None) => break,
            Err(error) => {
                return Answer::NoAnswer {
                    info: format!("HTTP {http_status}, then {}", describe(error)),
                };
            }
        }
    }
    parse(http_status, &body, user_sig)
}

/// The text of an error with its causes and without its URL.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

const UNDECIDED: u8 = 0;
const AT_WRITE: u8 = 1;
const WITHDRAWN: u8 = 2;
const GIVEN_UP: u8 = 3;

/// What became of a request. The first of two events decides it: the body is written, or the call
/// gives up.
#[derive(Default)]
struct WriteState(AtomicU8);

impl WriteState {
    /// Returns the present value as the error if it is already settled.
    fn settle(&self, write_state: u8) -> Result<(), u8> {
        self.0
            .compare_exchange(UNDECIDED, write_state, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

/// A request body that calls `on_write` when the HTTP client takes it. At that moment the
/// connection is open and the client writes the bytes.
struct WatchedBody {
    bytes: Option<Bytes>,
    on_write: Option<OnWrite>,
}

/// The request was withdrawn before any of it was written.
#[derive(Debug, thiserror::Error)]
#[error("withdrawn before it was sent")]
struct Withdrawn;

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        if self.on_write.take().is_some_and(|on_write| on_write() == AtWrite::Withdraw) {
            return Poll::Ready(Some(Err(Withdrawn)));
        }
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

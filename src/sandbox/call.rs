//! A request as a call. It contains all that can be read without the sandbox's state, so the lock
//! is not held meanwhile.

use hyper::Method;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    address::CallerAddress,
    command::{CallBody, SandboxCommand},
    credential::Credential,
    refusal::ApiRefusal,
};

pub struct Call<'a> {
    pub credential: Result<Credential, ApiRefusal>,
    /// If the path names no command, this is the refusal of the path.
    pub body: Result<CallBody<'a>, ApiRefusal>,
}

impl<'a> Call<'a> {
    pub fn read(
        method: &Method,
        path: &str,
        query: &str,
        body: Result<&'a [u8], ApiRefusal>,
    ) -> Self {
        Self {
            credential: CallerAddress::read(method, path, query).and_then(Credential::read),
            body: SandboxCommand::in_path(path).and_then(|command| CallBody::read(command, body?)),
        }
    }

    /// The group, if it could be read.
    pub fn group(&self) -> Option<&str> {
        self.body.as_ref().ok().map(|body| &*body.notification().group)
    }
}

/// When a call arrived.
#[derive(Clone, Copy)]
pub struct ArrivalTime {
    pub instant: Instant,
    pub wall_clock: Timestamp,
}

impl ArrivalTime {
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall_clock: Timestamp::now() }
    }

    pub fn unix_seconds(self) -> u64 {
        u64::try_from(self.wall_clock.as_second()).unwrap_or(0)
    }
}

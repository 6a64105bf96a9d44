//! A request as a call. It contains all that can be read without the sandbox's state, so the lock
//! is not held meanwhile.

use hyper::Method;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    address::CallerAddress, credential::Credential, notification::Notification, refusal::ApiRefusal,
};

pub struct Call<'a> {
    pub credential: Result<Credential, ApiRefusal>,
    pub notification: Result<Notification<'a>, ApiRefusal>,
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
            notification: body.and_then(Notification::read),
        }
    }

    /// The group, if it could be read.
    pub fn group(&self) -> Option<&str> {
        self.notification.as_ref().ok().map(|notification| &*notification.group)
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

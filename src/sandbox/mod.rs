//! A stand-in for the Tencent Chat REST API, for tests, benchmarks and first steps without an
//! account. It knows two commands, `send_group_system_notification` and `send_group_msg`, and no
//! groups or members: it judges calls by the documented rules.
//!
//! A call passes `listener → call (address, credential, command) → verdict (second, fault,
//! messages, deliveries, received, stats) → reply`. The body of a call is a `notification` or an
//! `incoming_message`. `control` is the API under `/_sandbox/`. It sets faults
//! and settings, and shows what arrived.
//!
//! It uses HTTP without TLS, and its control API requires no credential. So a real key must not be
//! used here.

mod address;
mod call;
mod command;
mod control;
mod credential;
mod dedup;
mod deliveries;
mod fault;
mod group_limit;
mod incoming_message;
mod listener;
mod message_settings;
mod messages;
mod notification;
mod received;
mod refusal;
mod reply;
mod second;
mod settings;
mod stats;
mod verdict;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use self::verdict::SandboxState;
pub use self::{
    command::SandboxCommand,
    deliveries::{DeliveryCounts, Repeated},
    fault::{FaultRule, InjectedFault},
    message_settings::{
        DuplicateAnswer, DuplicateKey, GroupLimitAnswer, SandboxMessageSettings, TargetingPlan,
    },
    messages::{DiscardReason, MessageCounts},
    received::{ReceivedAudience, ReceivedCall},
    settings::{PUBLIC_KEY, SandboxSettings, SettingsPatch},
    stats::Stats,
    verdict::CallsSoFar,
};

/// A running sandbox. It stops when dropped.
pub struct Sandbox {
    addr: SocketAddr,
    shared: Arc<SharedSandbox>,
    server: AbortOnDropHandle<std::convert::Infallible>,
}

impl Sandbox {
    /// Listens and serves from now on. Fails only if the address is not available.
    pub async fn start(settings: SandboxSettings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(SharedSandbox(Mutex::new(SandboxState::new(settings))));
        let server =
            AbortOnDropHandle::new(tokio::spawn(listener::serve(listener, shared.clone())));
        Ok(Self { addr, shared, server })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The `endpoint` with which a configuration calls this sandbox.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Closes the port before it returns. The connections close right after.
    pub async fn stop(self) {
        self.server.abort();
        // The task ends only by being aborted.
        let Err(_aborted) = self.server.await;
    }

    /// The error says why the rule is not valid.
    pub fn add_fault(&self, rule: impl Into<FaultRule>) -> Result<(), &'static str> {
        self.shared.lock().faults.add(rule.into())
    }

    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    pub fn change_settings(&self, patch: SettingsPatch) {
        patch.apply(&mut self.shared.lock().settings);
    }

    /// The newest 10,000 delivered or discarded calls, oldest first; of one group, or of all.
    pub fn received(&self, group: Option<&str>) -> Vec<ReceivedCall> {
        self.shared.received(group)
    }

    pub fn stats(&self) -> Stats {
        self.shared.lock().stats()
    }

    pub fn calls_so_far(&self) -> CallsSoFar {
        self.shared.lock().calls_so_far()
    }

    /// Removes calls, statistics and faults. The settings stay.
    pub fn reset(&self) {
        self.shared.lock().reset();
    }
}

/// The state behind one lock. No task holds the lock across an await.
struct SharedSandbox(Mutex<SandboxState>);

impl SharedSandbox {
    fn lock(&self) -> MutexGuard<'_, SandboxState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, group: Option<&str>) -> Vec<ReceivedCall> {
        let calls = self.lock().inbox.calls(group);
        calls.iter().map(|kept| kept.unfold()).collect()
    }
}

#[cfg(test)]
mod message_tests;
#[cfg(test)]
mod tests;

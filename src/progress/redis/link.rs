//! The connection to Redis. It is opened when it is needed and shared by all concurrent operations.
//! The first error closes it.
//!
//! The library's `ConnectionManager` reconnects only after network errors. It would keep a server
//! that has become a replica, or one that refuses the login. This module reconnects after any
//! error.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, TlsCertificates,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{super::store::StoreLost, fault, scripts::Script};
use crate::diagnosis::{Cause, Diagnosis, Server, ServerKind, look_up};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How many operations may wait for the connection. Further ones wait in their callers.
const PIPELINE_BUFFER: usize = 512;

type Connecting = Shared<BoxFuture<'static, RedisResult<Connected>>>;

/// A connection to a server that has the daemon's scripts.
#[derive(Clone)]
struct Connected {
    connection: MultiplexedConnection,
    /// The server's names for the scripts, in the order of [`Script::ALL`].
    names: Arc<Vec<String>>,
}

/// Certificates for TLS, as PEM, in addition to the authorities that this machine trusts.
#[derive(Default)]
pub struct Certificates {
    /// These authorities replace the machine's.
    pub ca: Option<Vec<u8>>,
    /// The daemon's own certificate and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

pub struct RedisLink {
    client: Client,
    /// Host and port only: the URL contains the password.
    address: String,
    current: Mutex<Option<Connecting>>,
}

impl RedisLink {
    pub fn new(url: &str, Certificates { ca, client }: Certificates) -> Result<Self, StoreLost> {
        // The library's error may quote the URL, so it is dropped.
        let open = || {
            let settings = TcpSettings::default().set_nodelay(true);
            let info = url.into_connection_info()?.set_tcp_settings(settings);
            if ca.is_none() && client.is_none() {
                return Client::open(info);
            }
            let client_tls =
                client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
            Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: ca })
        };
        let client = open().map_err(|_| {
            StoreLost::new("read state.url", "is not a Redis URL, or its certificates are not PEM")
        })?;
        let address = client.get_connection_info().addr().to_string();
        Ok(Self { client, address, current: Mutex::default() })
    }

    /// Sends the commands as one request, and decodes the answer.
    pub async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        pipe: &Pipeline,
    ) -> Result<T, StoreLost> {
        self.ask(operation, async |mut connected| pipe.query_async(&mut connected.connection).await)
            .await
    }

    /// Runs a script with these keys and arguments.
    pub async fn run_script<T: FromRedisValue>(
        &self,
        operation: &'static str,
        script: Script,
        keys: &[String],
        arguments: &[&str],
    ) -> Result<T, StoreLost> {
        let run = async |mut connected: Connected| {
            let mut command = redis::cmd("EVALSHA");
            command.arg(&connected.names[script as usize]).arg(keys.len()).arg(keys).arg(arguments);
            command.query_async(&mut connected.connection).await
        };
        self.ask(operation, run).await
    }

    async fn ask<T>(
        &self,
        operation: &'static str,
        asking: impl AsyncFnOnce(Connected) -> RedisResult<T>,
    ) -> Result<T, StoreLost> {
        let connecting = self.connecting();
        let asked = async { asking(connecting.clone().await?).await };
        let reason = match timeout(CONNECT_TIMEOUT + ANSWER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if fault::is_of_one_key(&error) => {
                return Err(StoreLost::of_record(operation, fault::diagnose(&error)));
            }
            Ok(Err(error)) => self
                .why_not_connected(&error)
                .unwrap_or_else(|| self.at_this_address(fault::diagnose(&error))),
            Err(_) => self.at_this_address(fault::timed_out()),
        };
        self.give_up(&connecting);
        Err(StoreLost::new(operation, reason))
    }

    pub fn lost(&self, operation: &'static str, reason: impl ToString) -> StoreLost {
        StoreLost::new(operation, self.at_this_address(Diagnosis::unknown(reason)))
    }

    fn at_this_address(&self, diagnosis: Diagnosis) -> Diagnosis {
        Diagnosis { what: format!("{}: {}", self.address, diagnosis.what), ..diagnosis }
    }

    /// The reason why no connection was made, if that is what the error means.
    fn why_not_connected(&self, error: &RedisError) -> Option<Diagnosis> {
        let (host, port) = place_of(self.client.get_connection_info().addr())?;
        let cause = Cause::of(error).filter(|_| !error.is_timeout())?;
        Some(cause.explain(&Server { kind: ServerKind::Redis, host, port }).with_words(error))
    }

    fn connecting(&self) -> Connecting {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.get_or_insert_with(|| connect(self.client.clone()).boxed().shared()).clone()
    }

    /// Drops the failed connection, unless another operation has already replaced it.
    fn give_up(&self, failed: &Connecting) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|current| current.ptr_eq(failed));
    }
}

/// Host and port, or `None` for a Unix socket.
fn place_of(address: &ConnectionAddr) -> Option<(&str, u16)> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

async fn connect(client: Client) -> RedisResult<Connected> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT))
        .set_pipeline_buffer_size(PIPELINE_BUFFER);
    if let Some((host, port)) = place_of(client.get_connection_info().addr()) {
        // The library looks the name up again. Its error would not say that the look-up failed.
        look_up(host, port).await.map_err(io::Error::other)?;
    }
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    // A server that requires a password refuses any command before the login. The library expects
    // no refusal at a transaction's start.
    redis::cmd("PING").exec_async(&mut connection).await?;
    let mut load = redis::pipe();
    for script in Script::ALL {
        load.cmd("SCRIPT").arg("LOAD").arg(script.source());
    }
    let names = Arc::new(load.query_async(&mut connection).await?);
    Ok(Connected { connection, names })
}

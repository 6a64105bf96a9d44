//! Opens connections to one of the broker's nodes, each step in bounded time.

use std::{
    io,
    net::Shutdown,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_compat::Compat;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

use super::{
    BrokerLost,
    wire::{self, Wire},
};
use crate::config::{Broker, file};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Chains of certificates have some kilobytes.
const LARGEST_FILE_BYTES: u64 = 1024 * 1024;
/// The broker's default is 60. Below 5, a busy broker looks dead.
const HEARTBEAT_SECONDS: u16 = 10;

/// Knows the broker's nodes and how to reach them.
pub struct Connector {
    nodes: Vec<AMQPUri>,
    tls: OwnedTLSConfig,
    next_node: AtomicUsize,
}

impl Connector {
    pub fn new(broker: &Broker) -> Result<Self, String> {
        let nodes = broker.urls.iter().map(|url| {
            let mut uri: AMQPUri = url.expose().parse().map_err(|error| format!("broker.url {url}: {error}"))?;
            uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
            Ok::<_, String>(uri)
        });
        let nodes: Vec<AMQPUri> = nodes.collect::<Result<_, _>>()?;
        // Replicas that start together spread over the nodes.
        let first = rand::random_range(0..nodes.len().max(1));
        Ok(Self { nodes, tls: tls(broker)?, next_node: AtomicUsize::new(first) })
    }

    /// Opens a connection to one of the nodes, the next one first. Fails if none can be reached, and says why of each.
    pub async fn connect(&self, role: &'static str) -> Result<Connection, BrokerLost> {
        Ok(self.connect_with_socket(role).await?.0)
    }

    /// The same, with what shuts the connection down at once.
    pub async fn connect_with_socket(&self, role: &'static str) -> Result<(Connection, Socket), BrokerLost> {
        let mut reasons = Vec::new();
        for _ in &self.nodes {
            let node = &self.nodes[self.next_node.fetch_add(1, Ordering::Relaxed) % self.nodes.len()];
            match self.connect_to(node, role).await {
                Ok(connected) => return Ok(connected),
                Err(reason) => reasons.push(format!("{}:{}: {reason}", node.authority.host, node.authority.port)),
            }
        }
        Err(BrokerLost::new("connect to the broker", reasons.join("; ")))
    }

    async fn connect_to(&self, node: &AMQPUri, role: &str) -> Result<(Connection, Socket), String> {
        let socket = Socket::default();
        let kept = socket.clone();
        let tls = self.tls.clone();
        let open = async move |uri: AMQPUri, _| {
            let stream = open_socket(&uri).await?;
            kept.keep(SockRef::from(&stream).try_clone()?);
            let plain = AsyncTcpStream::Plain(Compat::new(stream));
            let transport = match uri.scheme {
                AMQPScheme::AMQP => plain,
                AMQPScheme::AMQPS => plain.into_tls(&uri.authority.host, tls.as_ref()).await?,
            };
            Ok(AsyncTcpStream::Plain(Wire::new(transport, uri.query.frame_max)))
        };
        let properties = ConnectionProperties::default().with_connection_name(format!("groupcast {role}").into());
        let connecting = Connection::connector(node.clone(), wire::runtime(), open, properties);
        match timeout(CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok((connection, socket)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                socket.shut_down();
                Err(format!("no AMQP handshake within {HANDSHAKE_TIMEOUT:?}; is this an AMQP port?"))
            }
        }
    }
}

/// A connection's socket. lapin cannot be told to give up a handshake, nor not to read what has been sent to it; shutting the
/// socket down ends both without leaving a thread behind.
#[derive(Clone, Default)]
pub struct Socket(Arc<Mutex<Option<socket2::Socket>>>);

impl Socket {
    fn keep(&self, socket: socket2::Socket) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    pub fn shut_down(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

async fn open_socket(uri: &AMQPUri) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port));
    let stream = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}")))??;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Closes a connection; one that does not answer is dropped.
pub async fn close(connection: &Connection) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
}

fn tls(broker: &Broker) -> Result<OwnedTLSConfig, String> {
    let read = |path: &Path| {
        file::read(path, LARGEST_FILE_BYTES).map_err(|error| format!("broker: cannot read {}: {error}", path.display()))
    };
    let cert_chain = match &broker.ca_file {
        Some(path) => {
            let pem = read(path)?;
            Some(String::from_utf8(pem).map_err(|_| format!("broker.ca_file {}: is not PEM", path.display()))?)
        }
        None => None,
    };
    let identity = match (&broker.cert_file, &broker.key_file) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read(cert)?, key: read(key)? }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

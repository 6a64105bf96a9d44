//! Opens connections to one of the broker's nodes, each step in bounded time.

use std::{
    io,
    net::Shutdown,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
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
    dial::dial,
    nodes::{Node, Nodes},
    wire::{self, Wire},
};
use crate::config::{Broker, file};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// The broker's default is 60. Below 5, a busy broker looks dead.
const HEARTBEAT_SECONDS: u16 = 10;

/// Knows the broker's nodes and how to reach them.
pub struct Connector {
    nodes: Nodes,
    tls: OwnedTLSConfig,
}

impl Connector {
    pub fn new(broker: &Broker) -> Result<Self, String> {
        let nodes = broker.urls.iter().map(|url| {
            let mut uri: AMQPUri = url.expose().parse().map_err(|error| format!("broker.url {url}: {error}"))?;
            uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
            // The library takes an IPv6 address for localhost.
            uri.authority.host = url.host().to_owned();
            Ok::<_, String>(uri)
        });
        let nodes: Vec<AMQPUri> = nodes.collect::<Result<_, _>>()?;
        Ok(Self { nodes: Nodes::new(nodes), tls: tls(broker)? })
    }

    /// Opens a connection to one of the nodes. Fails if none can be reached, and says why of each.
    pub async fn connect(&self, role: &'static str) -> Result<Connection, BrokerLost> {
        Ok(self.connect_with_socket(role).await?.0)
    }

    /// The same, with what shuts the connection down at once.
    pub async fn connect_with_socket(&self, role: &'static str) -> Result<(Connection, Socket), BrokerLost> {
        let mut reasons = Vec::new();
        for node in self.nodes.to_try() {
            match self.connect_to(node, role).await {
                Ok((connection, socket)) => {
                    node.connected(connection.status().clone(), socket.is_cut.clone());
                    return Ok((connection, socket));
                }
                Err(reason) => {
                    node.failed();
                    reasons.push(format!("{}:{}: {reason}", node.uri.authority.host, node.uri.authority.port));
                }
            }
        }
        Err(BrokerLost::new("connect to the broker", reasons.join("; ")))
    }

    async fn connect_to(&self, node: &Node, role: &str) -> Result<(Connection, Socket), String> {
        let (stream, socket) = open_socket(&node.uri).await.map_err(|error| error.to_string())?;
        let stream = Mutex::new(Some(stream));
        let tls = self.tls.clone();
        let handshake = async move |uri: AMQPUri, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Only the library's own recovery, which is off, would ask for a second one.
            let stream = stream.ok_or_else(|| io::Error::other("the connection is used up"))?;
            let plain = AsyncTcpStream::Plain(Compat::new(stream));
            let transport = match uri.scheme {
                AMQPScheme::AMQP => plain,
                AMQPScheme::AMQPS => plain.into_tls(&uri.authority.host, tls.as_ref()).await?,
            };
            Ok(AsyncTcpStream::Plain(Wire::new(transport, uri.query.frame_max)))
        };
        let properties = ConnectionProperties::default().with_connection_name(format!("groupcast {role}").into());
        let connecting = Connection::connector(node.uri.clone(), wire::runtime(), handshake, properties);
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
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
#[derive(Clone)]
pub struct Socket {
    open: Arc<Mutex<Option<socket2::Socket>>>,
    /// By us, which is no fault of the node's.
    is_cut: Arc<AtomicBool>,
}

impl Socket {
    fn of(stream: &TcpStream) -> io::Result<Self> {
        let open = Arc::new(Mutex::new(Some(SockRef::from(stream).try_clone()?)));
        Ok(Self { open, is_cut: Arc::default() })
    }

    pub fn shut_down(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        if let Some(socket) = self.open.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

async fn open_socket(uri: &AMQPUri) -> io::Result<(TcpStream, Socket)> {
    let stream = dial(&uri.authority.host, uri.authority.port).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(20)))?;
    let shared = Socket::of(&stream)?;
    Ok((stream, shared))
}

/// Closes a connection; one that does not answer is dropped.
pub async fn close(connection: &Connection) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
}

fn tls(broker: &Broker) -> Result<OwnedTLSConfig, String> {
    let read = |path: &Path| {
        file::read(path, file::LARGEST_BYTES).map_err(|error| format!("broker: cannot read {}: {error}", path.display()))
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

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
    AsyncTcpStream, Connection, ConnectionProperties, ErrorKind,
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

use super::queues::GIVE_RIGHTS;
use super::{
    BrokerError, BrokerErrorKind,
    dial::dial,
    greeting::{self, SpokenProtocol},
    nodes::{Node, Nodes},
    wire::{self, Wire},
};
use crate::{
    config::{Broker, file},
    diagnosis::{Cause, Diagnosis, Server, ServerKind},
    pem::{self, PemContent},
};

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
            let mut uri: AMQPUri =
                url.expose().parse().map_err(|error| format!("broker.url {url}: {error}"))?;
            uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
            // The library replaces an IPv6 address by `localhost`.
            uri.authority.host = url.host().to_owned();
            Ok::<_, String>(uri)
        });
        let nodes: Vec<AMQPUri> = nodes.collect::<Result<_, _>>()?;
        Ok(Self { nodes: Nodes::new(nodes), tls: tls(broker)? })
    }

    /// Opens a connection to one of the nodes. If none can be reached, the error gives the reason
    /// for each.
    pub async fn connect(&self, role: &'static str) -> Result<Connection, BrokerError> {
        Ok(self.connect_with_socket(role).await?.0)
    }

    /// Like [`Connector::connect`], with the socket, which can shut the connection down at once.
    pub async fn connect_with_socket(
        &self,
        role: &'static str,
    ) -> Result<(Connection, Socket), BrokerError> {
        let mut failures = Vec::new();
        for node in self.nodes.to_try() {
            match self.connect_to(node, role).await {
                Ok((connection, socket)) => {
                    node.connected(connection.status().clone(), socket.is_cut.clone());
                    return Ok((connection, socket));
                }
                Err(diagnosis) => {
                    node.failed();
                    failures.push(diagnosis);
                }
            }
        }
        Err(BrokerError::diagnosed("connect to the broker", all_of(failures)))
    }

    async fn connect_to(&self, node: &Node, role: &str) -> Result<(Connection, Socket), Diagnosis> {
        let (stream, socket) =
            open_socket(&node.uri).await.map_err(|error| unreachable_node(&node.uri, &error))?;
        let stream = Mutex::new(Some(stream));
        let tls = self.tls.clone();
        let handshake = async move |uri: AMQPUri, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Only the library's own recovery would ask for a second stream, and that is off.
            let stream = stream.ok_or_else(|| io::Error::other("the connection is used up"))?;
            let plain = AsyncTcpStream::Plain(Compat::new(stream));
            let transport = match uri.scheme {
                AMQPScheme::AMQP => plain,
                AMQPScheme::AMQPS => plain.into_tls(&uri.authority.host, tls.as_ref()).await?,
            };
            Ok(AsyncTcpStream::Plain(Wire::new(transport, uri.query.frame_max)))
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("groupcast {role}").into());
        let connecting =
            Connection::connector(node.uri.clone(), wire::runtime(), handshake, properties);
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok((connection, socket)),
            Ok(Err(error)) => Err(no_handshake(&node.uri, &error).await),
            Err(_) => {
                socket.shut_down();
                Err(no_amqp(&node.uri, format!("no AMQP handshake within {HANDSHAKE_TIMEOUT:?}"))
                    .await)
            }
        }
    }
}

/// The reasons why no node can be reached. With one node, its reason stays as it is.
fn all_of(mut failures: Vec<Diagnosis>) -> Diagnosis {
    match failures.len() {
        1 => failures.remove(0),
        nodes => {
            let each = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join(". ");
            Diagnosis::unknown(format!("none of {nodes} nodes can be reached: {each}"))
        }
    }
}

fn unreachable_node(uri: &AMQPUri, error: &io::Error) -> Diagnosis {
    let Server { host, port, .. } = server(uri);
    match Cause::of(error) {
        Some(cause) => cause.explain(&server(uri)).with_words(error),
        None => Diagnosis::unknown(format!("{host}:{port}: {error}")),
    }
}

fn server(uri: &AMQPUri) -> Server<'_> {
    Server { kind: ServerKind::Broker, host: &uri.authority.host, port: uri.authority.port }
}

/// Why a node accepted the connection and did not complete the AMQP handshake.
async fn no_handshake(uri: &AMQPUri, error: &lapin::Error) -> Diagnosis {
    let user = &uri.authority.userinfo.username;
    if let ErrorKind::ProtocolError(said) = error.kind() {
        let diagnosis = match BrokerErrorKind::of(error) {
            BrokerErrorKind::AccessRefused => Diagnosis::new(
                format!("the broker refuses the user `{user}` with this password"),
                "correct user and password in broker.url (special characters percent-encoded, such \
                    as %40 for @). By default RabbitMQ lets `guest` log in only from the broker's \
                    own machine: give the daemon a user of its own",
            ),
            BrokerErrorKind::NotAllowed => Diagnosis::new(
                format!(
                    "the broker does not let the user `{user}` into the virtual host `{}`: it does \
                        not exist, or the user has no rights in it, or a limit on connections is \
                        reached",
                    uri.vhost
                ),
                format!(
                    "run `rabbitmqctl list_vhosts` on the broker. If the virtual host is not \
                        listed, correct the end of broker.url (`/` is written %2f), or create it \
                        with `rabbitmqctl add_vhost VHOST`. If it is listed, give the user its \
                        rights: {GIVE_RIGHTS}. If the broker's own words name a limit, raise that \
                        limit"
                ),
            ),
            _ => {
                return Diagnosis::unknown(format!(
                    "{}:{}: {error}",
                    uri.authority.host, uri.authority.port
                ));
            }
        };
        return diagnosis.with_words(said.get_message());
    }
    match Cause::of(error) {
        // TLS failed: the certificate, or no TLS at the other end.
        Some(Cause::NotTls | Cause::Closed | Cause::NoAnswer) | None => no_amqp(uri, error).await,
        Some(cause) => cause.explain(&server(uri)).with_words(error),
    }
}

/// Why the node does not speak AMQP. The protocol that it does speak gives the reason.
async fn no_amqp(uri: &AMQPUri, said: impl ToString) -> Diagnosis {
    let Server { host, port, .. } = server(uri);
    let asked_for_tls = uri.scheme == AMQPScheme::AMQPS;
    let diagnosis = match (greeting::detect_protocol(host, port).await, asked_for_tls) {
        (SpokenProtocol::Amqp, true) => Cause::NotTls.explain(&server(uri)),
        (SpokenProtocol::Tls, false) => Diagnosis::new(
            format!("{host}:{port} speaks TLS, and broker.url asks for a connection without it"),
            "write amqps:// in place of amqp:// in broker.url. To connect without TLS, write the \
                broker's port without TLS (5672 by default)",
        ),
        (SpokenProtocol::Http, _) => Diagnosis::new(
            format!("{host}:{port} speaks HTTP, not AMQP"),
            "write the broker's AMQP port in broker.url: by default 5672 for amqp:// and 5671 for \
                amqps://. 15672 is the management page",
        ),
        (SpokenProtocol::Amqp, false) | (SpokenProtocol::Tls, true) => Diagnosis::new(
            format!("the broker at {host}:{port} ended the connection before it was ready"),
            "look at the broker's log; if it wants certificates of its clients, set \
                broker.cert_file and broker.key_file",
        ),
        (SpokenProtocol::Unknown, _) => Diagnosis::new(
            format!("{host}:{port} takes connections and does not speak AMQP"),
            "check that broker.url names the broker's AMQP port (by default 5672 for amqp:// and \
                5671 for amqps://) and that no proxy is in between. If both are right, look at the \
                broker's log",
        ),
    };
    diagnosis.with_words(said)
}

/// A connection's socket. lapin offers no way to abort a handshake, or to stop reading what the
/// broker has sent. Shutting the socket down ends both and leaves no thread behind.
#[derive(Clone)]
pub struct Socket {
    open: Arc<Mutex<Option<socket2::Socket>>>,
    /// Whether the daemon has shut the socket down. Then the node has not failed.
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
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10)),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(20)))?;
    let shared = Socket::of(&stream)?;
    Ok((stream, shared))
}

/// Closes a connection. If the broker does not answer in time, the connection is dropped.
pub async fn close(connection: &Connection) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
}

fn tls(broker: &Broker) -> Result<OwnedTLSConfig, String> {
    let read = |key: &str, path: &Path, content: PemContent| {
        let bytes = file::read(path, file::LARGEST_BYTES);
        let bytes =
            bytes.map_err(|error| format!("{key}: cannot read {}: {error}", path.display()))?;
        pem::check(key, path, &bytes, content).map(|()| bytes)
    };
    let cert_chain = match &broker.ca_file {
        Some(path) => Some(
            String::from_utf8_lossy(&read("broker.ca_file", path, PemContent::Certificates)?)
                .into_owned(),
        ),
        None => None,
    };
    let identity = match (&broker.cert_file, &broker.key_file) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 {
            pem: read("broker.cert_file", cert, PemContent::Certificates)?,
            key: read("broker.key_file", key, PemContent::PrivateKey)?,
        }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

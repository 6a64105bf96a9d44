//! A network between two programs that can fail. It forwards TCP connections until a test cuts or
//! freezes them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    select,
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// How many bytes the proxy takes from one side before the other side has them. A faster sender
/// waits, as with TCP itself.
const HELD_BYTES: usize = 8 * 1024;

/// Forwards to one target. Ends, with all its connections, when dropped.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy)]
struct Network {
    condition: Condition,
    /// The number of cuts so far. A connection that began at a lower number is reset, even if the
    /// network works again by then.
    cuts: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Condition {
    Works,
    Cut,
    Frozen,
}

impl Proxy {
    /// Listens on a free loopback port. The target need not exist yet.
    pub fn start(target: SocketAddr) -> Proxy {
        Proxy::start_at(Ipv4Addr::LOCALHOST.into(), target)
    }

    pub fn start_at(loopback: IpAddr, target: SocketAddr) -> Proxy {
        let listener = std::net::TcpListener::bind((loopback, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket for the runtime");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (network, seen) = watch::channel(Network { condition: Condition::Works, cuts: 0 });
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, target, seen)));
        Proxy { address, network, _task: task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the same broker through this proxy.
    pub fn amqp_url(&self, broker_url: &str) -> String {
        let mut url = Url::parse(broker_url).expect("a broker's URL");
        url.set_ip_host(self.address.ip()).expect("a URL with a host");
        url.set_port(Some(self.address.port())).expect("a URL with a port");
        url.into()
    }

    /// Resets all connections, and each new one, until [`Proxy::heal`].
    pub fn cut(&self) {
        self.network.send_modify(|network| {
            *network = Network { condition: Condition::Cut, cuts: network.cuts + 1 }
        });
    }

    /// Freezes the network until [`Proxy::heal`]. Connections stay open and new ones can be made,
    /// but nothing passes, not even the end of a connection.
    pub fn freeze(&self) {
        self.network.send_modify(|network| network.condition = Condition::Frozen);
    }

    /// The network works again. Data that a freeze held back arrives late, as TCP would deliver it.
    pub fn heal(&self) {
        self.network.send_modify(|network| network.condition = Condition::Works);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, network: watch::Receiver<Network>) {
    let mut connections = JoinSet::new();
    loop {
        select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("a connection");
                // Closing with a linger of zero sends RST in place of FIN. A FIN is sent only if
                // both sides have closed the connection.
                client.set_zero_linger().expect("a socket that can be reset");
                let now = *network.borrow();
                match now.condition {
                    Condition::Cut => drop(client),
                    Condition::Works | Condition::Frozen => {
                        connections.spawn(connect(client, target, network.clone(), now.cuts));
                    }
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Handles one connection until both sides have closed it, or both are reset.
async fn connect(
    mut client: TcpStream,
    target: SocketAddr,
    mut network: watch::Receiver<Network>,
    cuts: usize,
) {
    let passage = network.clone();
    let whole = async {
        let mut server = dial(target, passage.clone()).await?;
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let there = forward(from_client, to_server, passage.clone());
        let back = forward(from_server, to_client, passage);
        tokio::try_join!(there, back)?;
        SockRef::from(&client).set_linger(None)?;
        SockRef::from(&server).set_linger(None)
    };
    // After a failure on one side, the other side is reset too.
    select! {
        biased;
        _ = network.wait_for(|now| now.cuts > cuts) => {}
        _ = whole => {}
    }
}

async fn dial(target: SocketAddr, mut network: watch::Receiver<Network>) -> io::Result<TcpStream> {
    until(Condition::Works, &mut network).await?;
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Set before the connection is made: a cut may come when the target has the connection and this
    // side does not know it yet.
    socket.set_zero_linger()?;
    socket.connect(target).await
}

async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let mut buffer = vec![0; HELD_BYTES];
    loop {
        let read = from.read(&mut buffer).await;
        // Waits before it looks at the data: a frozen network shows neither an end nor a failure.
        until(Condition::Works, &mut network).await?;
        let mut held = &buffer[..read?];
        if held.is_empty() {
            return to.shutdown().await;
        }
        while !held.is_empty() {
            until(Condition::Works, &mut network).await?;
            select! {
                biased;
                frozen = until(Condition::Frozen, &mut network) => frozen?,
                written = to.write(held) => held = &held[written?..],
            }
        }
    }
}

async fn until(condition: Condition, network: &mut watch::Receiver<Network>) -> io::Result<()> {
    network.wait_for(|now| now.condition == condition).await.map(drop).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// Both ends of a connection through the proxy.
    async fn ends(proxy: &Proxy, target: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
        let (server, _) = patiently(target.accept()).await.expect("the proxy connects");
        (client, server)
    }

    async fn start() -> (Proxy, TcpListener) {
        let target = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        (Proxy::start(target.local_addr().expect("an address")), target)
    }

    async fn send(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.expect("sent");
    }

    async fn receive(stream: &mut TcpStream, text: &str) {
        let mut received = vec![0; text.len()];
        patiently(stream.read_exact(&mut received)).await.expect("received");
        assert_eq!(String::from_utf8_lossy(&received), text);
    }

    async fn is_reset(stream: &mut TcpStream) -> bool {
        patiently(stream.read_u8())
            .await
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    }

    async fn is_refused(proxy: &Proxy) -> bool {
        match TcpStream::connect(proxy.address()).await {
            Ok(mut stream) => is_reset(&mut stream).await,
            // The reset came before `connect` returned.
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    async fn patiently<T>(wait: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(60), wait).await.expect("it happens in time")
    }

    async fn for_a_while<T>(wait: impl Future<Output = T>) -> Option<T> {
        timeout(Duration::from_millis(300), wait).await.ok()
    }

    #[tokio::test]
    async fn a_proxy_forwards_both_ways_until_both_sides_have_closed() {
        let (proxy, target) = start().await;
        let url = proxy.amqp_url("amqp://user:secret@broker.example:5671/vhost?heartbeat=5");
        assert_eq!(url, format!("amqp://user:secret@{}/vhost?heartbeat=5", proxy.address()));

        let (mut client, mut server) = ends(&proxy, &target).await;
        let much = "there ".repeat(1_000_000);
        tokio::join!(send(&mut client, &much), receive(&mut server, &much));
        client.shutdown().await.expect("closed on one side");
        assert_eq!(patiently(server.read(&mut [0])).await.expect("a clean end"), 0);
        send(&mut server, "and back").await;
        receive(&mut client, "and back").await;

        drop(proxy);
        assert!(patiently(client.read_u8()).await.is_err(), "it ends with the proxy");
    }

    #[tokio::test]
    async fn a_cut_resets_both_sides_and_refuses_until_healed() {
        let (proxy, target) = start().await;
        let (mut client, mut server) = ends(&proxy, &target).await;
        proxy.cut();
        assert!(is_reset(&mut client).await && is_reset(&mut server).await);
        assert!(is_refused(&proxy).await);

        proxy.heal();
        let (mut client, mut server) = ends(&proxy, &target).await;
        send(&mut client, "again").await;
        receive(&mut server, "again").await;

        proxy.cut();
        proxy.heal();
        assert!(is_reset(&mut client).await, "however short the cut");
    }

    #[tokio::test]
    async fn a_freeze_holds_back_and_healing_delivers_what_was_held() {
        let (proxy, target) = start().await;
        let (mut client, mut server) = ends(&proxy, &target).await;
        proxy.freeze();
        send(&mut client, "there").await;
        send(&mut server, "back").await;
        client.shutdown().await.expect("closed on one side");
        let mut newcomer = TcpStream::connect(proxy.address()).await.expect("accepted");
        send(&mut newcomer, "anybody?").await;
        let (mut there, mut back, mut answer) = ([0], [0], [0]);
        let got_through = async {
            select! {
                _ = server.read(&mut there) => "there",
                _ = client.read(&mut back) => "back",
                _ = newcomer.read(&mut answer) => "an answer",
                _ = target.accept() => "a new connection",
            }
        };
        assert_eq!(for_a_while(got_through).await, None);

        proxy.heal();
        receive(&mut server, "there").await;
        assert_eq!(patiently(server.read(&mut [0])).await.expect("a clean end"), 0);
        receive(&mut client, "back").await;
        let (mut newcomer, _) = patiently(target.accept()).await.expect("the proxy connects");
        receive(&mut newcomer, "anybody?").await;
    }
}

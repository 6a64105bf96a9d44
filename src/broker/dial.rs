//! Opens a TCP connection to a host that may have several addresses. Some of them may never answer.
//!
//! It tries the addresses shortly one after the other, with the families IPv4 and IPv6 in turn. It
//! keeps the first connection that succeeds (RFC 8305, "happy eyeballs").

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::diagnosis::{UnknownHost, look_up};

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// For each address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for one address before the next one is tried beside it.
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// A name with more addresses is looked up again at the next attempt, commonly in another order.
const ADDRESSES_AT_MOST: usize = 8;

/// Connects to one of the host's addresses. Ends within eight seconds.
pub async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let late = io::Error::new(
        io::ErrorKind::TimedOut,
        format!("its address was not found within {LOOKUP_TIMEOUT:?}"),
    );
    let found = timeout(LOOKUP_TIMEOUT, look_up(host, port)).await;
    let found = found.unwrap_or_else(|_| Err(UnknownHost::new(host, late)));
    let addresses: Vec<SocketAddr> = found.map_err(io::Error::other)?;
    first_to_connect(in_turn(addresses), TcpStream::connect).await
}

/// Puts the addresses in order: the families in turn, beginning with the family of the first
/// address. The resolver has already sorted them by preference.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_family = |address: &SocketAddr| {
        addresses.first().is_some_and(|first| first.is_ipv4() == address.is_ipv4())
    };
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(is_first_family);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let pairs = std::iter::from_fn(|| {
        Some([first.next(), second.next()]).filter(|pair| pair.iter().any(Option::is_some))
    });
    pairs.flatten().flatten().take(ADDRESSES_AT_MOST).collect()
}

/// If no address connects, the error gives the reason for each.
async fn first_to_connect<T, C: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> C,
) -> io::Result<T> {
    let attempt = async |address| {
        let late = |_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {CONNECT_TIMEOUT:?}"),
            )
        };
        (
            address,
            timeout(CONNECT_TIMEOUT, connect(address))
                .await
                .unwrap_or_else(|elapsed| Err(late(elapsed))),
        )
    };
    let mut untried = addresses.into_iter();
    let mut under_way: FuturesUnordered<_> = untried.next().map(attempt).into_iter().collect();
    let mut failures = Vec::new();
    while !under_way.is_empty() {
        let ended = tokio::select! {
            ended = under_way.next() => ended,
            () = sleep(NEXT_AFTER), if !untried.as_slice().is_empty() => None,
        };
        match ended {
            Some((_, Ok(connected))) => return Ok(connected),
            Some((address, Err(error))) => failures.push((address, error)),
            None => {}
        }
        under_way.extend(untried.next().map(attempt));
    }
    Err(match <[_; 1]>::try_from(failures) {
        Ok([(_, error)]) => error,
        Err(failures) if failures.is_empty() => {
            io::Error::new(io::ErrorKind::NotFound, "it has no address")
        }
        Err(failures) => {
            let told: Vec<String> =
                failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
            io::Error::new(failures[0].1.kind(), told.join(", "))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{future::pending, io::ErrorKind};

    use socket2::{Domain, Socket, Type};
    use tokio::{net::TcpListener, time::Instant};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| address(text)).collect()
    }

    #[test]
    fn families_take_turns_in_the_resolvers_order() {
        let cases: [(&[&str], &[&str]); 4] = [
            (&[], &[]),
            (
                &["[::1]:1", "[::2]:1", "1.1.1.1:1", "1.1.1.2:1"],
                &["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1"],
            ),
            (&["1.1.1.1:1", "[::1]:1", "[::2]:1"], &["1.1.1.1:1", "[::1]:1", "[::2]:1"]),
            (&["1.1.1.1:1", "1.1.1.2:1"], &["1.1.1.1:1", "1.1.1.2:1"]),
        ];
        for (given, expected) in cases {
            assert_eq!(in_turn(addresses(given)), addresses(expected));
        }
        assert_eq!(in_turn(vec![address("1.1.1.1:1"); 20]).len(), ADDRESSES_AT_MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_black_hole_costs_a_quarter_of_a_second_and_a_refusal_nothing() {
        let list = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1"]);
        let start = Instant::now();
        let connect = async |at: SocketAddr| match at.to_string().as_str() {
            "1.1.1.2:1" => Ok("connected"),
            "1.1.1.1:1" => Err(ErrorKind::ConnectionRefused.into()),
            _ => pending().await,
        };
        assert_eq!(first_to_connect(list, connect).await.unwrap(), "connected");
        assert_eq!(start.elapsed(), 2 * NEXT_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn if_none_connects_each_is_named_in_bounded_time() {
        let list = addresses(&["[::1]:1", "1.1.1.1:1"]);
        let start = Instant::now();
        let connect = async |at: SocketAddr| match at.is_ipv4() {
            true => Err::<(), _>(ErrorKind::ConnectionRefused.into()),
            false => pending().await,
        };
        let error = first_to_connect(list, connect).await.unwrap_err().to_string();
        assert_eq!(error, "1.1.1.1:1: connection refused, [::1]:1: no connection within 3s");
        assert_eq!(start.elapsed(), CONNECT_TIMEOUT);
        let nowhere = first_to_connect(Vec::new(), async |_| Ok(())).await.unwrap_err();
        assert_eq!(nowhere.to_string(), "it has no address");
    }

    /// A listener whose backlog is full: the kernel drops further connection requests.
    async fn black_hole() -> (Socket, SocketAddr, Vec<TcpStream>) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address("127.0.0.2:0").into()).unwrap();
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(at)).await
        {
            waiting.push(connected.unwrap());
        }
        (listener, at, waiting)
    }

    #[tokio::test]
    async fn the_first_address_that_connects_is_kept_whatever_the_ones_before_it_do() {
        let (_listener, hole, _waiting) = black_hole().await;
        let good = TcpListener::bind("127.0.0.3:0").await.unwrap();
        let connecting =
            first_to_connect(vec![hole, good.local_addr().unwrap()], TcpStream::connect);
        let connected = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .expect("the black hole does not take all of the time")
            .unwrap();
        assert_eq!(connected.peer_addr().unwrap(), good.local_addr().unwrap());
    }
}

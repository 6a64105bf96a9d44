//! Finds out which protocol a server speaks after an AMQP handshake with it has failed. Uses a
//! connection of its own.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::dial::dial;

const ANSWER_WITHIN: Duration = Duration::from_millis(500);
const AMQP: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The first byte of a TLS alert record.
const TLS_ALERT: u8 = 0x15;
/// The first byte of a method frame, which is the broker's answer to a greeting.
const METHOD_FRAME: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpokenProtocol {
    Amqp,
    Tls,
    Http,
    /// Another protocol, or no answer.
    Unknown,
}

/// Greets the server as a client without TLS does.
pub async fn detect_protocol(host: &str, port: u16) -> SpokenProtocol {
    let Ok(mut stream) = dial(host, port).await else { return SpokenProtocol::Unknown };
    // The second greeting is for a server that waits for the end of a line.
    for greeting in [AMQP, b"\r\n\r\n"] {
        let mut answer = [0; 5];
        match timeout(ANSWER_WITHIN, greet(&mut stream, greeting, &mut answer)).await {
            Ok(Ok(())) => return SpokenProtocol::of(&answer),
            Ok(Err(_)) => return SpokenProtocol::Unknown,
            Err(_) => {}
        }
    }
    SpokenProtocol::Unknown
}

async fn greet(
    stream: &mut TcpStream,
    greeting: &[u8],
    answer: &mut [u8; 5],
) -> std::io::Result<()> {
    stream.write_all(greeting).await?;
    stream.read_exact(answer).await.map(drop)
}

impl SpokenProtocol {
    fn of(answer: &[u8; 5]) -> Self {
        match answer {
            [b'A', b'M', b'Q', b'P', ..] | [METHOD_FRAME, 0, 0, ..] => Self::Amqp,
            [TLS_ALERT, 3, ..] => Self::Tls,
            b"HTTP/" => Self::Http,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_say_what_is_spoken() {
        for (answer, spoken) in [
            (b"AMQP\x00", SpokenProtocol::Amqp),
            (b"\x01\x00\x00\x00\x00", SpokenProtocol::Amqp),
            (b"\x15\x03\x03\x00\x02", SpokenProtocol::Tls),
            (b"HTTP/", SpokenProtocol::Http),
            (b"SSH-2", SpokenProtocol::Unknown),
        ] {
            assert_eq!(SpokenProtocol::of(answer), spoken);
        }
    }
}

//! A producer that publishes any bytes as properties. Clients in other languages can send such
//! messages; the AMQP library of this project cannot.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
/// The largest frame that RabbitMQ takes by default.
pub const FRAME_MAX: usize = 131_072;

pub struct RawProducer(TcpStream);

/// A short string: at most 255 bytes, which need not be UTF-8.
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short string")], text].concat()
}

/// A long string, or another value that begins with its length.
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// The properties of a message: their flags, and their bytes in the order of the protocol.
#[derive(Clone, Debug, Default)]
pub struct RawProperties {
    flags: u16,
    bytes: Vec<u8>,
}

impl RawProperties {
    /// Adds a property. `bit` counts from the highest flag: 0 `content_type`, 1 `content_encoding`,
    /// 2 `headers`, 3 `delivery_mode`, 5 `correlation_id`, 6 `reply_to`, 8 `message_id`, 10 `type`,
    /// 12 `app_id`. Calls must follow this order.
    pub fn with(mut self, bit: u16, bytes: Vec<u8>) -> Self {
        let flag: u16 = 0x8000 >> bit;
        assert!(
            self.flags == 0 || self.flags.trailing_zeros() > flag.trailing_zeros(),
            "in the order of the protocol"
        );
        self.flags |= flag;
        self.bytes.extend(bytes);
        self
    }
}

impl RawProducer {
    pub async fn connect(url: &str) -> RawProducer {
        let url = Url::parse(url).expect("a URL");
        let address = (url.host_str().expect("a host"), url.port().expect("a port"));
        let mut producer =
            RawProducer(TcpStream::connect(address).await.expect("the broker listens"));
        producer.0.write_all(b"AMQP\x00\x00\x09\x01").await.expect("written");
        producer.until_method(10, 10).await;
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap_or_default());
        let start_ok =
            [vec![0; 4], short(b"PLAIN"), long(login.as_bytes()), short(b"en_US")].concat();
        producer.method(0, 10, 11, &start_ok).await;
        let mut tune = producer.until_method(10, 30).await;
        tune.truncate(6);
        producer.method(0, 10, 31, &[tune, vec![0, 0]].concat()).await;
        producer.method(0, 10, 40, &[short(b"/"), vec![0, 0]].concat()).await;
        producer.until_method(10, 41).await;
        producer.method(1, 20, 10, &[0]).await;
        producer.until_method(20, 11).await;
        producer.method(1, 85, 10, &[0]).await;
        producer.until_method(85, 11).await;
        producer
    }

    /// Publishes a message, and waits until the broker has confirmed it.
    pub async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &RawProperties,
        body: &[u8],
    ) {
        let target = [vec![0, 0], short(exchange.as_bytes()), short(routing_key), vec![0]].concat();
        self.method(1, 60, 40, &target).await;
        let size = (body.len() as u64).to_be_bytes();
        let flags = properties.flags.to_be_bytes();
        self.frame(HEADER, 1, &[&[0, 60, 0, 0][..], &size, &flags, &properties.bytes].concat())
            .await;
        self.frame(BODY, 1, body).await;
        self.until_method(60, 80).await;
    }

    async fn method(&mut self, channel: u8, class: u8, method: u8, arguments: &[u8]) {
        self.frame(METHOD, channel, &[&[0, class, 0, method][..], arguments].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let head = [&[kind, 0, channel][..], &(payload.len() as u32).to_be_bytes()].concat();
        self.0.write_all(&[&head, payload, &[0xce]].concat()).await.expect("written");
    }

    /// Waits for the next such method, and returns its arguments. Panics with the broker's words if
    /// the broker closes the channel or the connection.
    async fn until_method(&mut self, class: u8, method: u8) -> Vec<u8> {
        loop {
            let (kind, payload) = self.read_frame().await.expect("the broker answers");
            match payload[..] {
                [0, c, 0, m, ref arguments @ ..] if kind == METHOD && (c, m) == (class, method) => {
                    return arguments.to_vec();
                }
                [0, 10, 0, 50, ..] | [0, 20, 0, 40, ..] => {
                    panic!("refused: {}", String::from_utf8_lossy(&payload))
                }
                _ => {}
            }
        }
    }

    async fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.0.read_exact(&mut payload).await?;
        payload.pop();
        Ok((head[0], payload))
    }
}

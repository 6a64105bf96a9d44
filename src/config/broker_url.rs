//! The URL of one broker node. The checks find mistakes that would connect to the wrong place or
//! show a password.

use std::fmt;

use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use url::{Host, Url};

use super::secret::MASK;
use super::written::{Setting, Written};

const EXPECTED: &str = "must be \"amqp://<user>:<password>@<host>:5672/<vhost>\" (amqps:// for \
    TLS), or a list of such URLs; special characters of the password and the vhost as %-codes";

/// The parameters that the AMQP client knows. It would ignore any other.
const PARAMETERS: [&str; 5] =
    ["heartbeat", "connection_timeout", "channel_max", "frame_max", "auth_mechanism"];

/// AMQP has no longer vhost names, and the client panics on one.
const MAX_VHOST_BYTES: usize = 255;

/// One node of the broker. `Display`, `Debug` and `Serialize` mask the password.
#[derive(Clone)]
pub struct BrokerUrl {
    text: SecretString,
    masked: String,
    host: String,
    port: u16,
    tls: Tls,
}

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    Plain,
    Encrypted,
}

impl BrokerUrl {
    /// The URL with its password. Use it only to connect.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn tls(&self) -> Tls {
        self.tls
    }

    fn parse(text: &str) -> Result<BrokerUrl, String> {
        let mut url = Url::parse(text).map_err(|_| EXPECTED.to_owned())?;
        let (tls, default_port) = match url.scheme() {
            "amqp" => (Tls::Plain, 5672),
            "amqps" => (Tls::Encrypted, 5671),
            _ => return Err(EXPECTED.to_owned()),
        };
        let host = match url.host() {
            Some(Host::Domain(host)) if !host.is_empty() && !host.contains(',') => host.to_owned(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(EXPECTED.to_owned()),
        };
        check_rest(&url)?;
        // The client also reads the numbers in the parameters and the %-codes. Its message repeats
        // the URL, so it is dropped.
        let read = text.parse::<AMQPUri>().map_err(|_| EXPECTED.to_owned())?;
        if read.vhost.len() > MAX_VHOST_BYTES {
            return Err(format!("must have a vhost of {MAX_VHOST_BYTES} bytes at most"));
        }
        if url.password().is_some() {
            url.set_password(Some(MASK)).map_err(|()| EXPECTED.to_owned())?;
        }
        let port = url.port().unwrap_or(default_port);
        Ok(BrokerUrl { text: text.into(), masked: url.into(), host, port, tls })
    }
}

/// Checks everything but the scheme and the host.
fn check_rest(url: &Url) -> Result<(), String> {
    if url.password() == Some(MASK) {
        return Err(format!(
            "must have the password itself; {MASK} is what `groupcast config` shows in its place"
        ));
    }
    if url.password().is_none() && !url.username().is_empty() {
        return Err(
            "must have a password with its user: amqp://<user>:<password>@<host>".to_owned()
        );
    }
    if url.path() == "/" {
        return Err(
            "must not end in a bare slash, which names the vhost \"\"; write /%2f for the \
                vhost \"/\""
                .to_owned(),
        );
    }
    // A slash, an @ or a # in a password ends up here unless it is written as a %-code.
    let vhost = url.path().strip_prefix('/').unwrap_or_default();
    if vhost.contains(['/', '@', ':']) || url.fragment().is_some() {
        return Err(EXPECTED.to_owned());
    }
    if url.query_pairs().any(|(name, _)| !PARAMETERS.contains(&&*name)) {
        return Err(format!("must have no other parameters than {}", PARAMETERS.join(", ")));
    }
    Ok(())
}

/// The nodes of the broker, at least one.
pub(super) struct BrokerUrls(pub Vec<BrokerUrl>);

impl BrokerUrls {
    pub(super) fn local() -> BrokerUrls {
        let text = "amqp://guest:guest@127.0.0.1:5672/%2f";
        BrokerUrls(BrokerUrl::parse(text).into_iter().collect())
    }
}

impl Setting for BrokerUrls {
    fn read(written: Written) -> Result<BrokerUrls, String> {
        let texts = match written.or_list() {
            Written::Text(text) => split(&text),
            Written::List(list) => list
                .into_iter()
                .map(String::read)
                .collect::<Result<_, _>>()
                .map_err(|_| EXPECTED)?,
            _ => return Err(EXPECTED.to_owned()),
        };
        if texts.is_empty() {
            return Err("must name at least one broker".to_owned());
        }
        texts
            .iter()
            .map(|text| BrokerUrl::parse(text.trim()))
            .collect::<Result<_, _>>()
            .map(BrokerUrls)
    }
}

/// Splits only at commas before a new URL. Other commas may be part of a password.
fn split(text: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for piece in text.split(',') {
        let begins =
            ["amqp://", "amqps://"].iter().any(|scheme| piece.trim_start().starts_with(scheme));
        match urls.last_mut() {
            Some(url) if !begins => {
                url.push(',');
                url.push_str(piece);
            }
            _ => urls.push(piece.to_owned()),
        }
    }
    urls
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.masked)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BrokerUrl({self})")
    }
}

impl Serialize for BrokerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

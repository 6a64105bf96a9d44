//! `[broker]`: the RabbitMQ nodes, the certificates for them, and how many jobs the daemon holds at
//! a time.

use std::path::PathBuf;

use serde::Deserialize;

use super::broker_url::{BrokerUrl, BrokerUrls, Tls};
use super::error::Problem;
use super::limit::ByteCount;
use super::secret::given_or_from_file;
use super::written::Given;

const MIB: u64 = 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Broker {
    /// At least one. A cluster has one for each node.
    pub urls: Vec<BrokerUrl>,
    /// The file that `urls` were read from, if any.
    pub url_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    /// The client's certificate; given together with `key_file`.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The maximum number of unacknowledged jobs per app.
    pub prefetch: u16,
    /// The maximum size of all held jobs per app, in bytes. One job always fits.
    pub hold_bytes: u64,
    /// The maximum size of a job, in bytes. A larger job is rejected.
    pub max_job_bytes: u64,
    /// Whether the daemon declares its queues. Otherwise it only checks them.
    pub declare: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BrokerSection {
    url: Option<Given<BrokerUrls>>,
    url_file: Option<Given<PathBuf>>,
    ca_file: Option<Given<PathBuf>>,
    cert_file: Option<Given<PathBuf>>,
    key_file: Option<Given<PathBuf>>,
    prefetch: Option<Given<u16>>,
    hold_bytes: Option<Given<ByteCount>>,
    max_job_bytes: Option<Given<ByteCount>>,
    declare: Option<Given<bool>>,
}

impl BrokerSection {
    pub(super) fn check(self) -> Result<Broker, Problem> {
        let url_file = self.url_file.map(|file| file.0);
        let urls = given_or_from_file("url", self.url, url_file.as_deref())?;
        let broker = Broker {
            urls: urls.unwrap_or_else(BrokerUrls::local).0,
            url_file,
            ca_file: self.ca_file.map(|file| file.0),
            cert_file: self.cert_file.map(|file| file.0),
            key_file: self.key_file.map(|file| file.0),
            prefetch: Given::or(self.prefetch, 200),
            hold_bytes: Given::or(self.hold_bytes, ByteCount(256 * MIB)).0,
            max_job_bytes: Given::or(self.max_job_bytes, ByteCount(16 * MIB)).0,
            declare: Given::or(self.declare, true),
        };
        check_certificates(&broker)?;
        Ok(broker)
    }
}

fn check_certificates(broker: &Broker) -> Result<(), Problem> {
    match (&broker.cert_file, &broker.key_file) {
        (Some(_), None) => {
            return Err(Problem::wrong(
                "cert_file",
                "needs the private key of the certificate: add key_file",
            ));
        }
        (None, Some(_)) => {
            return Err(Problem::wrong(
                "key_file",
                "needs the certificate of the key: add cert_file",
            ));
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    // An operator who sets a certificate expects an encrypted connection.
    if broker.urls.iter().any(|url| url.tls() == Tls::Encrypted) {
        return Ok(());
    }
    match [("ca_file", &broker.ca_file), ("cert_file", &broker.cert_file)]
        .into_iter()
        .find(|(_, file)| file.is_some())
    {
        Some((key, _)) => Err(Problem::wrong(
            key,
            "has no effect, for no broker URL begins with amqps://; write amqps://",
        )),
        None => Ok(()),
    }
}

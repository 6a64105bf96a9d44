//! Explains why a server cannot be reached and what to do about it, for the log, `/readyz` and
//! `groupcast check`.
//!
//! A cause is found by the types of the errors, never by their text. Each cause has its own
//! sentence and its own advice.

use std::{borrow::Cow, error::Error, fmt, io, net::SocketAddr, sync::Arc};

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::net::lookup_host;

/// What is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// A sentence without its full stop.
    pub what: String,
    /// The message of the library, the system or the server.
    pub said: Option<String>,
    pub advice: Option<Cow<'static, str>>,
}

impl Diagnosis {
    pub fn new(what: impl Into<String>, advice: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), said: None, advice: Some(advice.into()) }
    }

    /// The diagnosis of an error that has no sentence of its own.
    pub fn unknown(said: impl ToString) -> Self {
        Self { what: said.to_string(), said: None, advice: None }
    }

    pub fn with_words(self, said: impl ToString) -> Self {
        Self { said: Some(said.to_string()), ..self }
    }
}

impl From<String> for Diagnosis {
    fn from(what: String) -> Self {
        Self::unknown(what)
    }
}

impl From<&str> for Diagnosis {
    fn from(what: &str) -> Self {
        Self::unknown(what)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.what)?;
        if let Some(said) = &self.said {
            write!(out, " ({said})")?;
        }
        match &self.advice {
            Some(advice) => write!(out, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// A host name that could not be resolved to an address.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct UnknownHost {
    host: String,
    source: io::Error,
}

impl UnknownHost {
    pub fn new(host: &str, source: io::Error) -> Self {
        Self { host: host.to_owned(), source }
    }
}

/// Resolves a host name. The type of the error shows that the lookup failed.
pub async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, UnknownHost> {
    match lookup_host((host, port)).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(source) => Err(UnknownHost::new(host, source)),
    }
}

/// Why a connection failed, as far as the errors show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    UnknownHost(String),
    Refused,
    NoRoute,
    NoAnswer,
    /// The connection was open, and the server closed it without an answer.
    Closed,
    UnknownAuthority,
    /// The certificate is for other names, which are listed as far as they are known.
    OtherName(Vec<String>),
    Expired,
    NotYetValid,
    /// Another fault of the server's certificate.
    BadCertificate,
    /// The server requires a client certificate, or refuses the one that it got.
    ClientCertificate,
    NotTls,
    /// Both sides speak TLS but have no version or cipher in common.
    NoCommonTls,
}

impl Cause {
    /// The known cause that is nearest to the origin of an error.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        chain(error).filter_map(Self::of_one).last()
    }

    fn of_one(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(unknown) = error.downcast_ref::<UnknownHost>() {
            Some(Self::UnknownHost(unknown.host.clone()))
        } else if let Some(error) = error.downcast_ref::<rustls::Error>() {
            Self::of_tls(error)
        } else {
            error.downcast_ref::<io::Error>().and_then(|error| Self::of_kind(error.kind()))
        }
    }

    fn of_kind(kind: io::ErrorKind) -> Option<Self> {
        use io::ErrorKind::*;
        match kind {
            ConnectionRefused => Some(Self::Refused),
            HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable => {
                Some(Self::NoRoute)
            }
            TimedOut => Some(Self::NoAnswer),
            ConnectionReset | ConnectionAborted | UnexpectedEof | BrokenPipe => Some(Self::Closed),
            _ => None,
        }
    }

    fn of_tls(error: &rustls::Error) -> Option<Self> {
        use CertificateError::*;
        match error {
            rustls::Error::InvalidCertificate(error) => Some(match error {
                UnknownIssuer => Self::UnknownAuthority,
                NotValidForName => Self::OtherName(Vec::new()),
                NotValidForNameContext { presented, .. } => {
                    Self::OtherName(presented.iter().map(|name| plain(name)).collect())
                }
                Expired | ExpiredContext { .. } => Self::Expired,
                NotValidYet | NotValidYetContext { .. } => Self::NotYetValid,
                _ => Self::BadCertificate,
            }),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(Self::NotTls),
            rustls::Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::AccessDenied => Some(Self::ClientCertificate),
                AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity => Some(Self::NoCommonTls),
                _ => None,
            },
            rustls::Error::PeerIncompatible(_) => Some(Self::NoCommonTls),
            _ => None,
        }
    }

    /// Whether the connection was open and TLS failed on it.
    pub fn is_of_tls(&self) -> bool {
        match self {
            Self::UnknownHost(_)
            | Self::Refused
            | Self::NoRoute
            | Self::NoAnswer
            | Self::Closed => false,
            Self::UnknownAuthority
            | Self::OtherName(_)
            | Self::Expired
            | Self::NotYetValid
            | Self::BadCertificate
            | Self::ClientCertificate
            | Self::NotTls
            | Self::NoCommonTls => true,
        }
    }

    pub fn explain(&self, server: &Server<'_>) -> Diagnosis {
        let Server { host, port, .. } = server;
        let host_in_url = if host.contains(':') { format!("[{host}]") } else { (*host).to_owned() };
        let (what, address, settings) =
            (server.name(), format!("{host_in_url}:{port}"), server.settings());
        match self {
            Self::UnknownHost(host) => Diagnosis::new(
                format!("the host name `{host}` of {what} cannot be resolved to an address"),
                format!("correct the host name in {settings}, or check this machine's name server"),
            ),
            Self::Refused => {
                let advice = match server.kind {
                    ServerKind::Api => format!(
                        "correct host and port in {settings}; if they are right, look for a \
                            firewall or a wrong name server"
                    ),
                    ServerKind::Broker | ServerKind::Redis => {
                        format!("start {what}, or correct host and port in {settings}")
                    }
                };
                Diagnosis::new(
                    format!("{address} refuses the connection: nothing listens on that port"),
                    advice,
                )
            }
            Self::NoRoute => Diagnosis::new(
                format!("this machine has no route to {address}"),
                format!("check this machine's network, or correct the host in {settings}"),
            ),
            Self::NoAnswer => Diagnosis::new(
                format!("{address} does not answer"),
                format!(
                    "check that {what} runs and that no firewall drops its connections, or correct \
                        host and port in {settings}"
                ),
            ),
            Self::Closed => Diagnosis::new(
                format!("{address} closed the connection before it answered"),
                format!(
                    "check in {settings} that the port is right and whether it is one for TLS; \
                        {what}'s log may say more"
                ),
            ),
            Self::UnknownAuthority => Diagnosis::new(
                format!(
                    "the certificate of {address} is signed by an authority that is not trusted \
                        here"
                ),
                server.trust(),
            ),
            Self::OtherName(names) => {
                let names = if names.is_empty() {
                    String::new()
                } else {
                    format!(", but for {}", names.join(", "))
                };
                let what =
                    format!("the certificate of {address} is not for the name `{host}`{names}");
                let advice = match server.kind {
                    ServerKind::Api => {
                        format!(
                            "correct the host name in {settings}, or look for a proxy or a name \
                                server that leads elsewhere"
                        )
                    }
                    ServerKind::Broker | ServerKind::Redis => {
                        format!(
                            "write a name from the certificate as the host in {settings}, or give \
                                {} a certificate for `{host}`",
                            server.name()
                        )
                    }
                };
                Diagnosis::new(what, advice)
            }
            Self::Expired => Diagnosis::new(
                format!("the certificate of {address} has expired"),
                match server.kind {
                    ServerKind::Api => {
                        "compare this machine's clock (`date`) with the dates in the \
                        certificate. If the clock is right, look for a proxy that intercepts TLS. \
                        If endpoint names a server of your own, renew its certificate; otherwise \
                        ask the vendor's support"
                            .to_owned()
                    }
                    ServerKind::Broker | ServerKind::Redis => {
                        format!(
                            "renew the certificate of {what}. If its dates say that it is still \
                                valid, correct this machine's clock (`date`)"
                        )
                    }
                },
            ),
            Self::NotYetValid => Diagnosis::new(
                format!("the certificate of {address} is not valid yet"),
                format!(
                    "correct this machine's clock, or give {what} a certificate that is valid now"
                ),
            ),
            Self::BadCertificate => Diagnosis::new(
                format!("the certificate of {address} is not one for a TLS server, or is damaged"),
                format!("give {what} a certificate for TLS servers"),
            ),
            Self::ClientCertificate => Diagnosis::new(
                format!(
                    "{address} wants a certificate from its clients and does not accept this one, \
                        or none was given"
                ),
                server.client_certificate(),
            ),
            Self::NotTls => {
                Diagnosis::new(format!("{address} does not speak TLS"), server.without_tls())
            }
            Self::NoCommonTls => Diagnosis::new(
                format!("{address} offers no TLS version or cipher that is accepted here"),
                format!(
                    "let {what} accept TLS 1.2 or 1.3; if it wants certificates of its clients: {}",
                    server.client_certificate()
                ),
            ),
        }
    }
}

/// The server of a connection that failed.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    pub kind: ServerKind,
    pub host: &'a str,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    Broker,
    Api,
    Redis,
}

impl Server<'_> {
    fn name(&self) -> &'static str {
        match self.kind {
            ServerKind::Broker => "the broker",
            ServerKind::Api => "the API",
            ServerKind::Redis => "Redis",
        }
    }

    /// The settings that have its address.
    fn settings(&self) -> &'static str {
        match self.kind {
            ServerKind::Broker => "broker.url",
            ServerKind::Api => "endpoint (or in region, if endpoint is not set)",
            ServerKind::Redis => "state.url",
        }
    }

    fn trust(&self) -> Cow<'static, str> {
        let file = match self.kind {
            ServerKind::Broker => "broker.ca_file",
            ServerKind::Redis => "state.ca_file",
            ServerKind::Api => {
                return "look for a proxy that intercepts TLS: `openssl s_client -connect \
                    HOST:PORT` shows who issued the certificate. To trust that authority, add it \
                    to this machine's trusted authorities, or set the variable SSL_CERT_FILE of \
                    the daemon to a PEM file with all authorities to trust"
                    .into();
            }
        };
        format!(
            "name the authority's certificate in {file}, or add it to this machine's trusted \
                authorities"
        )
        .into()
    }

    fn client_certificate(&self) -> &'static str {
        match self.kind {
            ServerKind::Broker => {
                "set broker.cert_file and broker.key_file to a certificate that the broker trusts, \
                    and its key"
            }
            ServerKind::Redis => {
                "set state.cert_file and state.key_file to a certificate that Redis trusts, and \
                    its key"
            }
            ServerKind::Api => "look for a proxy on the way; the API itself wants no certificate",
        }
    }

    fn without_tls(&self) -> &'static str {
        match self.kind {
            ServerKind::Broker => {
                "write the broker's TLS port in broker.url (5671 by default), or amqp:// in place \
                    of amqps://"
            }
            ServerKind::Redis => {
                "write the TLS port of Redis in state.url, or redis:// in place of rediss://"
            }
            ServerKind::Api => {
                "correct the port in endpoint, or write http:// if a server without TLS is meant, \
                    such as the sandbox"
            }
        }
    }
}

/// An error and its causes, the origin last.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let Some(inner) = error.get_ref()
        {
            // `source` would skip this error.
            Some(inner)
        } else if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            Some(&**shared)
        } else {
            error.source()
        }
    })
}

/// A certificate's name without the type that the library adds, as in `DnsName("localhost")`.
fn plain(name: &str) -> String {
    name.split_once("(\"").and_then(|(_, name)| name.strip_suffix("\")")).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: Server<'_> = Server { kind: ServerKind::Broker, host: "mq.example", port: 5671 };

    fn certificate(error: CertificateError) -> rustls::Error {
        rustls::Error::InvalidCertificate(error)
    }

    /// Wraps an error as the libraries do.
    fn wrapped(error: rustls::Error) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, io::Error::other(error))
    }

    #[test]
    fn the_cause_of_an_error_is_found_however_deep_it_is() {
        for (error, cause) in [
            (certificate(CertificateError::UnknownIssuer), Cause::UnknownAuthority),
            (certificate(CertificateError::NotValidForName), Cause::OtherName(vec![])),
            (certificate(CertificateError::Expired), Cause::Expired),
            (certificate(CertificateError::NotValidYet), Cause::NotYetValid),
            (certificate(CertificateError::BadEncoding), Cause::BadCertificate),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), Cause::NotTls),
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
                Cause::ClientCertificate,
            ),
            (rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), Cause::NoCommonTls),
        ] {
            assert_eq!(Cause::of(&wrapped(error)), Some(cause.clone()));
            let shared: Arc<dyn Error + Send + Sync> =
                Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
            assert_eq!(Cause::of(&io::Error::other(shared)), Some(Cause::Refused));
        }
        let unknown = UnknownHost { host: "nowhere".into(), source: io::Error::other("not known") };
        assert_eq!(
            Cause::of(&io::Error::other(unknown)),
            Some(Cause::UnknownHost("nowhere".into()))
        );
        assert_eq!(Cause::of(&io::Error::other("something else")), None);
    }

    #[test]
    fn each_cause_has_a_sentence_and_an_advice_of_its_own() {
        let causes = [
            Cause::UnknownHost("mq.example".into()),
            Cause::Refused,
            Cause::NoRoute,
            Cause::NoAnswer,
            Cause::Closed,
            Cause::UnknownAuthority,
            Cause::OtherName(vec!["localhost".into()]),
            Cause::Expired,
            Cause::NotYetValid,
            Cause::BadCertificate,
            Cause::ClientCertificate,
            Cause::NotTls,
            Cause::NoCommonTls,
        ];
        let distinct = |of: fn(&Diagnosis) -> String| {
            let told: std::collections::BTreeSet<String> =
                causes.iter().map(|cause| of(&cause.explain(&BROKER))).collect();
            told.len()
        };
        assert_eq!(distinct(|diagnosis| diagnosis.what.clone()), causes.len());
        assert_eq!(
            distinct(|diagnosis| diagnosis.advice.as_deref().unwrap_or_default().to_owned()),
            causes.len()
        );
    }

    #[test]
    fn the_names_of_a_certificate_are_shown_without_their_type() {
        assert_eq!(plain("DnsName(\"localhost\")"), "localhost");
        assert_eq!(plain("IpAddress(127.0.0.1)"), "IpAddress(127.0.0.1)");
    }
}

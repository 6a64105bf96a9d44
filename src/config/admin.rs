//! `[admin]`: where liveness, readiness, metrics and the status page are served.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::error::Problem;
use super::secret::given_or_from_file;
use super::written::{Given, Setting, Written, texts};

#[derive(Clone, Debug)]
pub struct AdminConfig {
    pub listen: SocketAddr,
    /// Host names of the status page, besides IP addresses and `localhost`.
    pub hosts: Vec<String>,
    /// The token that actions on the status page need. Without it there are no actions.
    pub token: Option<SecretString>,
    /// The file that `token` was read from, if any.
    pub token_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminSection {
    listen: Option<Given<SocketAddr>>,
    hosts: Option<Given<Hosts>>,
    token: Option<Given<Token>>,
    token_file: Option<Given<PathBuf>>,
}

impl AdminSection {
    pub(super) fn check(self) -> Result<AdminConfig, Problem> {
        let token_file = self.token_file.map(|file| file.0);
        Ok(AdminConfig {
            // The pages show much and have no login, so they are served only to this machine by
            // default.
            listen: Given::or(self.listen, (Ipv4Addr::LOCALHOST, 9464).into()),
            hosts: Given::or(self.hosts, Hosts(Vec::new())).0,
            token: given_or_from_file("token", self.token, token_file.as_deref())?
                .map(|token: Token| token.0),
            token_file,
        })
    }
}

/// Host names without a port.
struct Hosts(Vec<String>);

impl Setting for Hosts {
    fn read(written: Written) -> Result<Hosts, String> {
        let is_a_name = |name: &String| !name.is_empty() && !name.contains([':', '/', ' ', '*']);
        texts(written).filter(|names| names.iter().all(is_a_name)).map(Hosts).ok_or_else(|| {
            "must be a list of names without port, such as [\"groupcast.internal\"]".to_owned()
        })
    }
}

/// A token that fits into an HTTP header.
struct Token(SecretString);

impl Setting for Token {
    fn read(written: Written) -> Result<Token, String> {
        let token = SecretString::read(written)?;
        match token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Token(token)),
            false => Err("must be ASCII letters, digits and signs without spaces".to_owned()),
        }
    }
}

impl Setting for SocketAddr {
    fn read(written: Written) -> Result<SocketAddr, String> {
        match written {
            Written::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
        .ok_or_else(|| {
            "must be an IP address and a port, such as \"127.0.0.1:9464\" or \"[::]:9464\""
                .to_owned()
        })
    }
}

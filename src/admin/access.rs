//! Decides who may see the page and who may act. Any web page that an operator opens can make the
//! browser send requests to this address. So the page answers only under names that an attacker
//! cannot point at the daemon. Actions require the token.

use std::net::IpAddr;

use hyper::{HeaderMap, header};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::config;

/// For clients behind a proxy that uses `Authorization` for its own login.
const TOKEN_HEADER: &str = "x-groupcast-token";

pub struct Access {
    hosts: Vec<String>,
    token: Option<SecretString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// An attacker may control the name in the request.
    Host,
    /// The request comes from another site's page.
    Origin,
    Token,
}

impl Denied {
    pub fn advice(self) -> &'static str {
        match self {
            Self::Host => {
                "this name is not known; use an IP address or localhost, or add the name to \
                    admin.hosts"
            }
            Self::Origin => {
                "requests from other sites' pages are refused; add the page's name to admin.hosts \
                    if it is this one"
            }
            Self::Token => {
                "the action needs the token of admin.token, in the header `Authorization: Bearer \
                    …` or `X-Groupcast-Token`"
            }
        }
    }
}

impl Access {
    pub fn of(admin: &config::AdminConfig) -> Self {
        Self { hosts: admin.hosts.clone(), token: admin.token.clone() }
    }

    /// Whether actions are possible at all.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub fn may_see(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).ok_or(Denied::Host)?;
        if !self.knows(host) {
            return Err(Denied::Host);
        }
        let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
        // A proxy may use another name for the daemon than the browser does.
        match origin.split_once("://") {
            Some((_, origin)) if origin == host || self.names(origin) => Ok(()),
            Some(_) | None => Err(Denied::Origin),
        }
    }

    pub fn may_act(&self, headers: &HeaderMap) -> Result<(), Denied> {
        self.may_see(headers)?;
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer =
            || text(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let given = text(TOKEN_HEADER).or_else(bearer).ok_or(Denied::Token)?;
        let token = self.token.as_ref().ok_or(Denied::Token)?;
        // Comparing digests leaks no timing information about the token.
        if Sha256::digest(given) == Sha256::digest(token.expose_secret()) {
            Ok(())
        } else {
            Err(Denied::Token)
        }
    }

    /// Accepts IP addresses, `localhost` and configured names. The owner of a domain name can point
    /// the name at the daemon, but cannot forge an address.
    fn knows(&self, host: &str) -> bool {
        let name = without_port(host);
        let address =
            name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        address.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.names(host)
    }

    /// Whether the configuration lists the name.
    fn names(&self, host: &str) -> bool {
        self.hosts.iter().any(|known| known.eq_ignore_ascii_case(without_port(host)))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access { hosts: vec!["groupcast.internal".into()], token: Some("right".to_owned().into()) }
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a header"))).collect()
    }

    #[test]
    fn only_names_that_nobody_else_can_point_at_us_are_answered() {
        for known in [
            "127.0.0.1:9464",
            "10.1.2.3",
            "[::1]:9464",
            "[::1]",
            "localhost",
            "LOCALHOST:9464",
            "groupcast.internal:80",
        ] {
            assert_eq!(access().may_see(&headers(&[(header::HOST, known)])), Ok(()), "{known}");
        }
        for unknown in [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9464",
            "",
            ":9464",
        ] {
            assert_eq!(
                access().may_see(&headers(&[(header::HOST, unknown)])),
                Err(Denied::Host),
                "{unknown}"
            );
        }
        assert_eq!(access().may_see(&headers(&[])), Err(Denied::Host));
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let from = |origin| {
            access()
                .may_see(&headers(&[(header::HOST, "localhost:9464"), (header::ORIGIN, origin)]))
        };
        assert_eq!(from("http://localhost:9464"), Ok(()));
        assert_eq!(
            from("https://groupcast.internal"),
            Ok(()),
            "a proxy may name the daemon otherwise"
        );
        for other in ["http://localhost:80", "http://10.1.2.3", "https://evil.example", "null", ""]
        {
            assert_eq!(from(other), Err(Denied::Origin), "{other}");
        }
    }

    #[test]
    fn only_whoever_knows_the_token_may_act() {
        let with = |value: &str| {
            access()
                .may_act(&headers(&[(header::HOST, "localhost"), (header::AUTHORIZATION, value)]))
        };
        assert_eq!(with("Bearer right"), Ok(()));
        let own = header::HeaderName::from_static(TOKEN_HEADER);
        let beside_a_login = |token: &str| {
            let login = (header::AUTHORIZATION, "Basic b3A6cHc=");
            access().may_act(&headers(&[(header::HOST, "localhost"), login, (own.clone(), token)]))
        };
        assert_eq!(
            (beside_a_login("right"), beside_a_login("wrong")),
            (Ok(()), Err(Denied::Token))
        );
        for wrong in
            ["Bearer wrong", "Bearer ", "right", "Basic right", "bearer right", "Bearer right "]
        {
            assert_eq!(with(wrong), Err(Denied::Token), "{wrong}");
        }
        assert_eq!(access().may_act(&headers(&[(header::HOST, "localhost")])), Err(Denied::Token));
        let nobody = Access { token: None, ..access() };
        let asked = headers(&[(header::HOST, "localhost"), (header::AUTHORIZATION, "Bearer ")]);
        assert_eq!(nobody.may_act(&asked), Err(Denied::Token));
    }
}

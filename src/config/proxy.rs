//! Checks the variables that name a proxy for the calls. The HTTP client silently drops a value
//! that it cannot read, and connects directly. So the daemon refuses such a value.

use std::{collections::BTreeMap, ffi::OsString};

use url::{Host, Url};

use super::{App, error::ConfigError};

/// In the order in which the HTTP client looks for the proxy of a scheme. It takes the first
/// variable that is set and not empty.
const HTTPS: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const HTTP: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The proxy variables that are set. No `Debug`: a proxy's URL may have a password.
pub(super) struct ProxyVariables(BTreeMap<String, String>);

impl ProxyVariables {
    pub(super) fn of(environment: &[(OsString, OsString)]) -> Self {
        let text = |text: &OsString| text.to_string_lossy().trim().to_owned();
        let variables = environment.iter().map(|(name, value)| (text(name), text(value)));
        let is_about_proxies =
            |name: &str| HTTPS.iter().chain(&HTTP).chain(&EXCEPTIONS).any(|known| *known == name);
        Self(
            variables.filter(|(name, value)| is_about_proxies(name) && !value.is_empty()).collect(),
        )
    }

    /// Refuses an unusable proxy that the calls of one of these apps would use.
    pub(super) fn check<'a>(
        &self,
        apps: impl IntoIterator<Item = &'a App>,
    ) -> Result<(), ConfigError> {
        for app in apps
            .into_iter()
            .filter(|app| goes_out(&app.endpoint) && !self.is_excepted(&app.endpoint))
        {
            let names = if app.endpoint.scheme() == "https" { HTTPS } else { HTTP };
            let used = names.iter().find_map(|name| self.0.get_key_value(*name));
            if let Some((name, _)) = used.filter(|(_, value)| !is_proxy(value)) {
                return Err(ConfigError::wrong(
                    name,
                    "must be http://<host>:<port> (or https://); without a proxy, unset it",
                ));
            }
        }
        Ok(())
    }

    /// Whether an exception names the endpoint's host or one of its parent domains. The client also
    /// accepts IP addresses in other forms. For those, a broken proxy is refused although the
    /// client would not use it.
    fn is_excepted(&self, endpoint: &Url) -> bool {
        let Some(host) = endpoint.host_str() else { return false };
        let names_it = |name: &str| {
            let name = name.trim().trim_start_matches('.');
            name == "*" || name == host || (!name.is_empty() && host.ends_with(&format!(".{name}")))
        };
        EXCEPTIONS
            .iter()
            .find_map(|name| self.0.get(*name))
            .is_some_and(|names| names.split(',').any(names_it))
    }
}

/// Whether the calls leave this machine. The daemon uses no proxy for a sandbox on the same
/// machine.
pub fn goes_out(endpoint: &Url) -> bool {
    match endpoint.host() {
        Some(Host::Domain(name)) => name != "localhost",
        Some(Host::Ipv4(address)) => !address.is_loopback(),
        Some(Host::Ipv6(address)) => !address.is_loopback(),
        None => true,
    }
}

/// Whether the HTTP client accepts the value as a proxy.
fn is_proxy(value: &str) -> bool {
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let has_host = |url: Url| {
        ["http", "https"].contains(&url.scheme())
            && url.host_str().is_some_and(|host| !host.is_empty())
    };
    Url::parse(&url).is_ok_and(has_host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigFile};

    fn read(endpoint: &str, name: &str, value: &str) -> Result<(), String> {
        read_with(endpoint, &[(name, value)])
    }

    fn read_with(endpoint: &str, variables: &[(&str, &str)]) -> Result<(), String> {
        let text =
            format!("[apps.a]\nsdk_app_id = 1\nsecret_key = \"k\"\nendpoint = \"{endpoint}\"\n");
        let file = ConfigFile { path: "groupcast.toml".into(), text };
        let variables =
            variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let read = Config::read(Some(&file), variables);
        read.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn a_proxy_that_the_client_would_drop_is_refused_by_its_variable() {
        let api = "https://api.example";
        for broken in [
            "://proxy:3128",
            "http://",
            "proxy:port",
            "socks5://proxy:1080",
            "ftp://proxy",
            "http://[::1",
        ] {
            for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
                let error = read(api, name, broken).unwrap_err();
                assert!(
                    error.contains(name) && error.contains("http://<host>:<port>"),
                    "{broken}: {error}"
                );
            }
            assert_eq!(read(api, "HTTP_PROXY", broken), Ok(()), "not for https");
            assert_eq!(
                read("http://127.0.0.1:1", "HTTP_PROXY", broken),
                Ok(()),
                "not on this machine"
            );
        }
        for good in [
            "",
            "proxy:3128",
            "http://proxy:3128",
            "https://user:p%40ss@proxy",
            "http://[::1]:3128",
        ] {
            assert_eq!(read(api, "HTTPS_PROXY", good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_broken_variable_that_the_client_would_not_use_is_none_of_our_business() {
        let (api, broken) = ("https://api.example", ("ALL_PROXY", "socks5://proxy:1080"));
        assert_eq!(read_with(api, &[broken, ("HTTPS_PROXY", "http://proxy:3128")]), Ok(()));
        for exception in ["*", "example", ".example", "other, api.example"] {
            assert_eq!(read_with(api, &[broken, ("NO_PROXY", exception)]), Ok(()), "{exception}");
        }
        assert!(read_with(api, &[broken, ("no_proxy", "other.example")]).is_err());
        assert!(read_with(api, &[broken, ("HTTPS_PROXY", "")]).is_err());
    }

    #[test]
    fn the_password_of_a_proxy_is_not_told() {
        assert!(
            !read("https://api.example", "HTTPS_PROXY", "ftp://me:s3cr3t@proxy")
                .unwrap_err()
                .contains("s3cr3t")
        );
    }
}

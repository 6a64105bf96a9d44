//! Where a call goes, with which identity, and over which connections.
//!
//! If an address cannot be reached, calls go to the backup. If the API refuses the key, the daemon
//! reads it again.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{
    dns::{Name, Resolve, Resolving},
    header::HeaderValue,
};
use tokio::time::Instant;
use tracing::{info, warn};
use url::form_urlencoded;

use super::{
    call::describe,
    classify::Answer,
    endpoints::{Address, Endpoints, Reached},
    user_sig::UserSigner,
};
use crate::{
    config::{App, goes_out, read_secret_file},
    diagnosis::{Cause, Diagnosis, Server, ServerKind, look_up},
};

const SERVICE: &str = "v4/group_open_http_svc";
const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Servers and firewalls commonly close idle connections after a minute. The daemon closes its own
/// earlier.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

pub struct Target {
    http: reqwest::Client,
    connections: Connections,
    url: reqwest::Url,
    backup: Option<Backup>,
    /// The part of the query that is the same in every call.
    query: String,
    signer: Arc<UserSigner>,
    secret_key_file: Option<PathBuf>,
    /// Whether to read `secret_key_file` before the next call.
    reread_key: AtomicBool,
}

/// Where calls go when the first address cannot be reached.
struct Backup {
    url: reqwest::Url,
    endpoints: Mutex<Endpoints>,
}

/// The settings that an HTTP client is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connections {
    request_timeout: Duration,
    max_idle: usize,
    proxies: Proxies,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxies {
    OfEnvironment,
    None,
}

impl Target {
    pub fn of(app: &App) -> Result<Self, reqwest::Error> {
        let connections = Connections::of(app);
        Ok(Self::new(app, connections, connections.open()?, Arc::new(signer(app))))
    }

    /// The target for another configuration. It reuses the connections and the UserSig if they
    /// still fit.
    pub fn for_app(&self, app: &App) -> Result<Self, reqwest::Error> {
        let connections = Connections::of(app);
        let http =
            if self.connections == connections { self.http.clone() } else { connections.open()? };
        let same_signer = self.signer.signs_for(app.sdk_app_id, &app.identifier, &app.secret_key);
        let signer = if same_signer { self.signer.clone() } else { Arc::new(signer(app)) };
        Ok(Self::new(app, connections, http, signer))
    }

    fn new(
        app: &App,
        connections: Connections,
        http: reqwest::Client,
        signer: Arc<UserSigner>,
    ) -> Self {
        let backup = app.backup_endpoint.as_ref();
        Self {
            http,
            connections,
            url: command_at(&app.endpoint, app),
            backup: backup.map(|url| Backup {
                url: command_at(url, app),
                endpoints: Mutex::new(Endpoints::new(Instant::now())),
            }),
            query: query_of(app),
            signer,
            secret_key_file: app.secret_key_file.clone(),
            reread_key: AtomicBool::new(false),
        }
    }

    /// A UserSig for the next call.
    pub async fn user_sig(&self) -> Arc<str> {
        if self.reread_key.swap(false, Ordering::Relaxed) {
            self.read_key_again().await;
        }
        self.signer.user_sig(SystemTime::now())
    }

    /// Call this when the API has refused the UserSig.
    pub fn invalidate_user_sig(&self) {
        self.signer.renew(None);
        self.reread_key.store(true, Ordering::Relaxed);
    }

    async fn read_key_again(&self) {
        let Some(path) = self.secret_key_file.clone() else { return };
        match tokio::task::spawn_blocking(move || read_secret_file(&path)).await {
            Ok(Ok(key)) => self.signer.renew(Some(key)),
            Ok(Err(error)) => {
                warn!(%error, "the API refused the UserSig and its key cannot be read again; the \
                    old one is kept")
            }
            Err(_) => {}
        }
    }

    /// A request without its body, and the address that it goes to.
    pub fn request(&self, user_sig: &str) -> (Address, reqwest::RequestBuilder) {
        let (address, url) = self.choose_address();
        let mut url = url.clone();
        // A UserSig's alphabet needs no escaping.
        url.set_query(Some(&format!(
            "{}&usersig={user_sig}&random={}",
            self.query,
            rand::random::<u32>()
        )));
        (address, self.http.post(url).header(reqwest::header::CONTENT_TYPE, APPLICATION_JSON))
    }

    fn choose_address(&self) -> (Address, &reqwest::Url) {
        match self
            .backup
            .as_ref()
            .map(|backup| (lock(&backup.endpoints).choose(Instant::now()), &backup.url))
        {
            Some((Address::Backup, url)) => (Address::Backup, url),
            Some((Address::First, _)) | None => (Address::First, &self.url),
        }
    }

    /// Why a call could not be sent to `address`.
    pub fn why_not_reached(&self, address: Address, error: reqwest::Error) -> Diagnosis {
        let url = match (address, &self.backup) {
            (Address::Backup, Some(backup)) => &backup.url,
            (Address::First | Address::Backup, _) => &self.url,
        };
        let (host, port) =
            (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        let proxy =
            if self.connections.proxies == Proxies::OfEnvironment { proxy_to(url) } else { None };
        let cause = Cause::of(&error).or(error.is_timeout().then_some(Cause::NoAnswer));
        let diagnosis = match (cause, proxy) {
            // The proxy passes TLS through, so these causes are about the server behind it.
            (Some(cause), _) if cause.is_of_tls() => {
                cause.explain(&Server { kind: ServerKind::Api, host, port })
            }
            (cause, Some(proxy)) => behind_proxy(cause, &proxy, proxy_variable(url), host, port),
            (Some(cause), None) => cause.explain(&Server { kind: ServerKind::Api, host, port }),
            (None, None) => {
                return Diagnosis::unknown(format!("{host}:{port}: {}", describe(error)));
            }
        };
        diagnosis.with_words(describe(error))
    }

    /// Records whether a call to `address` reached the API.
    pub fn record(&self, address: Address, answer: &Answer) {
        let Some(backup) = &self.backup else { return };
        let reached = match answer {
            Answer::Api { .. } | Answer::Dropped { .. } => Reached::Answered,
            Answer::Foreign { .. } | Answer::NoAnswer { .. } => Reached::Connected,
            Answer::NotSent { .. } => Reached::Unreachable,
            Answer::Withdrawn => return,
        };
        match lock(&backup.endpoints).record(address, reached, Instant::now()) {
            Some(Address::Backup) => {
                warn!(
                    host = backup.url.host_str(),
                    "the API cannot be reached at its first address; calls go to the backup"
                );
            }
            Some(Address::First) => {
                info!(host = self.url.host_str(), "calls go to the API's first address")
            }
            None => {}
        }
    }
}

/// Host and port of the proxy that the environment names for this address.
fn proxy_to(url: &reqwest::Url) -> Option<String> {
    let proxy = Matcher::from_env().intercept(&url.as_str().parse().ok()?)?;
    proxy
        .uri()
        .authority()
        .map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default().to_owned())
}

/// The variable that names the proxy for calls to this URL.
#[expect(clippy::disallowed_methods, reason = "the HTTP client has read it too")]
fn proxy_variable(url: &reqwest::Url) -> &'static str {
    let names = if url.scheme() == "https" {
        ["HTTPS_PROXY", "https_proxy"]
    } else {
        ["HTTP_PROXY", "http_proxy"]
    };
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    names.into_iter().chain(["ALL_PROXY", "all_proxy"]).find(is_set).unwrap_or(names[0])
}

fn behind_proxy(
    cause: Option<Cause>,
    proxy: &str,
    variable: &str,
    host: &str,
    port: u16,
) -> Diagnosis {
    let what = match cause {
        Some(Cause::UnknownHost(name)) => {
            format!("the host name `{name}` of the proxy cannot be resolved to an address")
        }
        Some(Cause::Refused) => {
            format!("the proxy {proxy} refuses the connection: nothing listens on that port")
        }
        Some(Cause::NoRoute | Cause::NoAnswer) => format!("the proxy {proxy} does not answer"),
        _ => format!("the proxy {proxy} does not let the call through to {host}:{port}"),
    };
    let advice = format!(
        "correct the variable {variable} in the environment of the daemon. If no proxy is needed, \
            unset it or add {host} to NO_PROXY. If the variable is right, see that the proxy runs \
            and allows CONNECT to {host}:{port}"
    );
    Diagnosis::new(what, advice)
}

/// Resolves host names as usual. The type of its error shows that the lookup failed.
struct Lookup;

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The client puts the port of the URL in place of 0.
            let addresses = look_up(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter())
                as Box<dyn Iterator<Item = std::net::SocketAddr> + Send>)
        })
    }
}

fn query_of(app: &App) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("sdkappid", &app.sdk_app_id.to_string());
    query.append_pair("identifier", &app.identifier).append_pair("contenttype", "json").finish()
}

fn signer(app: &App) -> UserSigner {
    UserSigner::new(app.sdk_app_id, app.identifier.clone(), app.secret_key.clone())
}

/// The URL of the app's command at an endpoint.
fn command_at(endpoint: &reqwest::Url, app: &App) -> reqwest::Url {
    let mut url = endpoint.clone();
    let base = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{base}/{SERVICE}/{}", app.command.name().as_str()));
    url
}

fn lock(endpoints: &Mutex<Endpoints>) -> MutexGuard<'_, Endpoints> {
    endpoints.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    fn of(app: &App) -> Self {
        // A proxy from the environment is for calls that leave this machine, not for a local
        // sandbox.
        let proxies = if goes_out(&app.endpoint) { Proxies::OfEnvironment } else { Proxies::None };
        Self { request_timeout: app.request_timeout, max_idle: app.max_in_flight, proxies }
    }

    fn open(self) -> Result<reqwest::Client, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("groupcast/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .dns_resolver(Lookup)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.request_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.max_idle)
            .tcp_nodelay(true);
        match self.proxies {
            Proxies::None => http.no_proxy(),
            Proxies::OfEnvironment => http,
        }
        .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(lines: &str) -> App {
        let text =
            format!("[apps.a]\nsdk_app_id = 1\nendpoint = \"https://api.example\"\n{lines}\n");
        let file = crate::config::ConfigFile { path: "groupcast.toml".into(), text };
        crate::config::Config::read(Some(&file), []).unwrap().apps.remove("a").unwrap()
    }

    #[test]
    fn another_configuration_keeps_the_connections_and_the_user_sig_that_serve_it_too() {
        let before = Target::of(&app("secret_key = \"k\"")).unwrap();
        let kept = |lines: &str| {
            let after = before.for_app(&app(lines)).unwrap();
            (before.connections == after.connections, Arc::ptr_eq(&before.signer, &after.signer))
        };
        assert_eq!(kept("secret_key = \"k\"\ncalls_per_second = 7"), (true, true));
        assert_eq!(kept("secret_key = \"k\"\nrequest_timeout = \"7s\""), (false, true));
        assert_eq!(kept("secret_key = \"k\"\nmax_in_flight = 7"), (false, true));
        assert_eq!(kept("secret_key = \"k\"\nidentifier = \"somebody\""), (true, false));
        assert_eq!(kept("secret_key = \"another\""), (true, false));
    }
}

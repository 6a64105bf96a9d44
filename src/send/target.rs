//! Whom a call goes to, in whose name, and over which connections.
//!
//! An address that cannot be reached is left for the backup; a key that the API refuses is read again.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tracing::{info, warn};
use url::form_urlencoded;

use super::{
    classify::Answer,
    endpoints::{Address, Endpoints, Reached},
    user_sig::UserSigner,
};
use crate::config::{App, goes_out, read_secret_file};

const PATH: &str = "v4/group_open_http_svc/send_group_system_notification";
const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Below the minute after which servers and the boxes before them commonly close idle connections.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

pub struct Target {
    http: reqwest::Client,
    connections: Connections,
    url: reqwest::Url,
    backup: Option<Backup>,
    /// What the query says in each call.
    query: String,
    signer: Arc<UserSigner>,
    secret_key_file: Option<PathBuf>,
    /// Whether the file is to be read before the next call.
    key_is_doubted: AtomicBool,
}

/// Where calls go when the first address cannot be reached.
struct Backup {
    url: reqwest::Url,
    endpoints: Mutex<Endpoints>,
}

/// What an HTTP client is made of.
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

    /// The target of another configuration. The connections and the UserSig are kept if they serve it too.
    pub fn for_app(&self, app: &App) -> Result<Self, reqwest::Error> {
        let connections = Connections::of(app);
        let http = if self.connections == connections { self.http.clone() } else { connections.open()? };
        let same_signer = self.signer.signs_for(app.sdk_app_id, &app.identifier, &app.secret_key);
        let signer = if same_signer { self.signer.clone() } else { Arc::new(signer(app)) };
        Ok(Self::new(app, connections, http, signer))
    }

    fn new(app: &App, connections: Connections, http: reqwest::Client, signer: Arc<UserSigner>) -> Self {
        let backup = app.backup_endpoint.as_ref();
        Self {
            http,
            connections,
            url: command_at(&app.endpoint),
            backup: backup.map(|url| Backup { url: command_at(url), endpoints: Mutex::new(Endpoints::new(Instant::now())) }),
            query: query_of(app),
            signer,
            secret_key_file: app.secret_key_file.clone(),
            key_is_doubted: AtomicBool::new(false),
        }
    }

    /// A UserSig for the next call.
    pub async fn user_sig(&self) -> Arc<str> {
        if self.key_is_doubted.swap(false, Ordering::Relaxed) {
            self.read_key_again().await;
        }
        self.signer.user_sig(SystemTime::now())
    }

    /// The API refused the UserSig.
    pub fn doubt_user_sig(&self) {
        self.signer.renew(None);
        self.key_is_doubted.store(true, Ordering::Relaxed);
    }

    async fn read_key_again(&self) {
        let Some(path) = self.secret_key_file.clone() else { return };
        match tokio::task::spawn_blocking(move || read_secret_file(&path)).await {
            Ok(Ok(key)) => self.signer.renew(Some(key)),
            Ok(Err(error)) => warn!(%error, "the API refused the UserSig and its key cannot be read again; the old one is kept"),
            Err(_) => {}
        }
    }

    /// A request without its body, and where it goes.
    pub fn request(&self, user_sig: &str) -> (Address, reqwest::RequestBuilder) {
        let (address, url) = self.choose_address();
        let mut url = url.clone();
        // A UserSig's alphabet needs no escaping.
        url.set_query(Some(&format!("{}&usersig={user_sig}&random={}", self.query, rand::random::<u32>())));
        (address, self.http.post(url).header(reqwest::header::CONTENT_TYPE, APPLICATION_JSON))
    }

    fn choose_address(&self) -> (Address, &reqwest::Url) {
        match self.backup.as_ref().map(|backup| (lock(&backup.endpoints).choose(Instant::now()), &backup.url)) {
            Some((Address::Backup, url)) => (Address::Backup, url),
            Some((Address::First, _)) | None => (Address::First, &self.url),
        }
    }

    /// Learns from the answer of a call that went to `address`.
    pub fn learn(&self, address: Address, answer: &Answer) {
        let Some(backup) = &self.backup else { return };
        let reached = match answer {
            Answer::Api { .. } => Reached::Yes,
            Answer::Foreign { .. } | Answer::NoAnswer { .. } => Reached::Perhaps,
            Answer::NotSent { .. } => Reached::No,
            Answer::Withdrawn => return,
        };
        match lock(&backup.endpoints).learn(address, reached, Instant::now()) {
            Some(Address::Backup) => {
                warn!(host = backup.url.host_str(), "the API cannot be reached at its first address; calls go to the backup");
            }
            Some(Address::First) => info!(host = self.url.host_str(), "calls go to the API's first address"),
            None => {}
        }
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

/// The address of the command at an endpoint.
fn command_at(endpoint: &reqwest::Url) -> reqwest::Url {
    let mut url = endpoint.clone();
    let base = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{base}/{PATH}"));
    url
}

fn lock(endpoints: &Mutex<Endpoints>) -> MutexGuard<'_, Endpoints> {
    endpoints.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    fn of(app: &App) -> Self {
        // A proxy named in the environment is for the way out, not for a sandbox on this machine.
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
        let text = format!("[apps.a]\nsdk_app_id = 1\nendpoint = \"https://api.example\"\n{lines}\n");
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

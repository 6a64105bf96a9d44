//! What the daemon at `admin.listen` says of its apps, if one runs there. Nothing is made of an answer that cannot be read:
//! it may come from another version, or from another program.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;

use super::Failure;
use crate::config::Config;

/// It is on this machine, or on one nearby.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Which of the configured apps stand still in a running daemon: since when, why, and what to do.
pub async fn standstills(config: &Config) -> Vec<String> {
    let readiness = ask(config.admin.listen, "readyz").await.ok().and_then(|answer| serde_json::from_str(&answer.body).ok());
    let readiness: Value = readiness.unwrap_or_default();
    config.apps.keys().filter_map(|app| Some(format!("app {app} {}", standstill(&readiness["apps"][app])?))).collect()
}

/// What the daemon answers.
pub struct Answer {
    pub is_good: bool,
    pub body: String,
}

/// Asks for `livez` or `readyz`. The body tells more, good or not.
pub async fn ask(listen: SocketAddr, path: &str) -> Result<Answer, Failure> {
    let url = format!("http://{}/{path}", reachable(listen));
    let asked = async {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let response = http.get(&url).send().await?;
        Ok::<_, reqwest::Error>(Answer { is_good: response.status().is_success(), body: response.text().await? })
    };
    asked.await.map_err(|error| format!("no daemon answers at {url} (admin.listen): {}", Failure::with_causes(error).0).into())
}

/// Who listens on every address is reached on this machine's own.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn standstill(app: &Value) -> Option<String> {
    let words = match app["state"].as_str()?.to_ascii_lowercase().as_str() {
        "paused" => "is paused",
        "outage" => "cannot reach the API",
        _ => return None,
    };
    let said = |key: &str, before: &str| app[key].as_str().map_or_else(String::new, |text| format!("{before}{text}"));
    Some(format!("{words}{}{}{}", said("since", " since "), said("reason", ": "), said("advice", "; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_app_that_stands_still_is_told_with_since_when_and_why() {
        let paused =
            json!({ "state": "paused", "since": "2026-11-22T10:00:00Z", "reason": "package expired", "advice": "renew it" });
        assert_eq!(standstill(&paused).unwrap(), "is paused since 2026-11-22T10:00:00Z: package expired; renew it");
        assert_eq!(standstill(&json!({ "state": "Outage" })).unwrap(), "cannot reach the API");
    }

    #[test]
    fn nothing_is_made_of_an_app_that_works_or_of_an_answer_of_another_form() {
        for other in [json!({ "state": "working" }), json!({ "state": 7 }), json!([]), Value::Null] {
            assert_eq!(standstill(&other), None, "{other}");
        }
    }

    #[test]
    fn a_daemon_that_listens_everywhere_is_asked_on_this_machine() {
        let reached = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(reached("[::]:9464"), "[::1]:9464");
        assert_eq!(reached("10.1.2.3:9464"), "10.1.2.3:9464");
    }
}

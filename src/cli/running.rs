//! Reads what the daemon at `admin.listen` says about its apps, if one runs there. An answer that
//! cannot be read has no effect: it may come from another version, or from another program.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;

use super::Failure;
use crate::config::Config;

/// The daemon runs on this machine, or nearby.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The answer at `admin.listen`.
pub enum Answered {
    /// The operating system chooses the port at the start, so it is not known here.
    NotAsked,
    No {
        listen: SocketAddr,
    },
    /// Another program answers.
    OtherProgram {
        listen: SocketAddr,
    },
    Yes(ReadinessReport),
}

/// What a running daemon says about its parts and about the configured apps.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReadinessReport {
    pub works: Vec<String>,
    pub troubles: Vec<String>,
    /// Configured apps that the daemon does not list.
    pub unknown_apps: Vec<String>,
}

/// The parts in `/readyz`, and their names in words.
const PARTS: [(&str, &str); 3] =
    [("publisher", "publisher"), ("queues", "set of queues"), ("state_store", "state store")];

pub async fn ask(config: &Config) -> Answered {
    let listen = reachable(config.admin.listen);
    if listen.port() == 0 {
        return Answered::NotAsked;
    }
    match fetch(listen, "readyz").await {
        Err(_) => Answered::No { listen },
        Ok(HttpAnswer { body, .. }) => {
            match serde_json::from_str::<Value>(&body)
                .ok()
                .filter(|readiness| readiness["apps"].is_object())
            {
                Some(readiness) => Answered::Yes(read(&readiness, config.apps.keys())),
                None => Answered::OtherProgram { listen },
            }
        }
    }
}

/// The daemon's answer.
pub struct HttpAnswer {
    pub is_good: bool,
    pub body: String,
}

/// Asks for `livez` or `readyz`.
pub async fn ask_for(path: &str, listen: SocketAddr) -> Result<HttpAnswer, Failure> {
    let listen = reachable(listen);
    let told = |error| {
        format!(
            "no daemon answers at http://{listen}/{path} (admin.listen): {}",
            Failure::with_causes(error).0
        )
    };
    Ok(fetch(listen, path).await.map_err(told)?)
}

/// Does not fail for an error status, because the body says more.
async fn fetch(listen: SocketAddr, path: &str) -> reqwest::Result<HttpAnswer> {
    let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let response = http.get(format!("http://{listen}/{path}")).send().await?;
    Ok(HttpAnswer { is_good: response.status().is_success(), body: response.text().await? })
}

fn read<'a>(readiness: &Value, apps: impl Iterator<Item = &'a String>) -> ReadinessReport {
    let mut read = ReadinessReport::default();
    for (part, name) in PARTS {
        match readiness[part]["state"].as_str() {
            Some("works") => read.works.push(format!("{name} works")),
            Some("down") => read.troubles.push(format!(
                "its {name} does not work{}",
                said(&readiness[part], "reason", ": ")
            )),
            _ => {}
        }
    }
    for name in apps {
        let app = &readiness["apps"][name];
        match (why_not_sending(app), app["state"].as_str()) {
            (Some(why_not_sending), _) => {
                read.troubles.push(format!("app {name} {why_not_sending}"))
            }
            (None, Some("consuming")) => read.works.push(format!("app {name} consumes")),
            (None, None) if app.is_null() => read.unknown_apps.push(name.clone()),
            (None, _) => {}
        }
    }
    read
}

/// A daemon that listens on every address is asked at the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn why_not_sending(app: &Value) -> Option<String> {
    let words = match app["state"].as_str()?.to_ascii_lowercase().as_str() {
        "paused" => "is paused",
        "outage" => "cannot reach the API",
        "down" => "does not consume",
        _ => return None,
    };
    let info = said(app, "info", " (");
    let info = if info.is_empty() || info == " (" { String::new() } else { format!("{info})") };
    Some(format!(
        "{words}{}{}{info}{}",
        said(app, "since", " since "),
        said(app, "reason", ": "),
        said(app, "advice", "; ")
    ))
}

fn said(told: &Value, key: &str, before: &str) -> String {
    told[key].as_str().map_or_else(String::new, |text| format!("{before}{text}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_app_that_stands_still_is_told_with_since_when_and_why() {
        let paused = json!({ "state": "paused", "since": "2026-11-22T10:00:00Z", "reason": "package expired", "advice": "renew it" });
        assert_eq!(
            why_not_sending(&paused).unwrap(),
            "is paused since 2026-11-22T10:00:00Z: package expired; renew it"
        );
        assert_eq!(why_not_sending(&json!({ "state": "Outage" })).unwrap(), "cannot reach the API");
    }

    #[test]
    fn what_does_not_work_is_told_with_its_reason_and_the_rest_as_working() {
        let told = json!({
            "publisher": { "state": "down", "reason": "blocked" }, "queues": { "state": "works" },
            "apps": { "a": { "state": "down", "reason": "no \
                rights" }, "b": { "state": "consuming" } },
        });
        let apps = ["a", "b", "c"].map(str::to_owned);
        let expected = ReadinessReport {
            works: vec!["set of queues works".into(), "app b consumes".into()],
            troubles: vec![
                "its publisher does not work: blocked".into(),
                "app a does not consume: no rights".into(),
            ],
            unknown_apps: vec!["c".into()],
        };
        assert_eq!(read(&told, apps.iter()), expected);
    }

    #[test]
    fn nothing_is_made_of_an_app_that_works_or_of_an_answer_of_another_form() {
        for other in [json!({ "state": "working" }), json!({ "state": 7 }), json!([]), Value::Null]
        {
            assert_eq!(why_not_sending(&other), None, "{other}");
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

//! `groupcast check`: tries everything that the daemon needs, and says in plain words what is wrong.

use std::path::Path;

use super::{Failure, Verdict, say};
use crate::{
    broker::{
        connection::{self, Connector},
        queues, topology,
    },
    config::{App, Config, StateStore},
    send::{
        call::{Api, AtWrite, Caller},
        classify::{self, classify},
        codes::{self, Class},
    },
    settle::progress,
};

/// Check the configuration, reach the broker, the state store and the API.
///
/// The call to the API is harmless: one recipient of a group that does not exist.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  groupcast --config groupcast.toml check")]
pub struct Args {}

pub async fn run(_: Args, config: Config) -> Result<Verdict, Failure> {
    let mut findings = Findings { verdict: Verdict::Good };
    findings.good("configuration", format!("valid; apps: {}", config.apps.keys().cloned().collect::<Vec<_>>().join(", ")));
    check_broker(&config, &mut findings).await;
    check_state(&config, &mut findings).await;
    for (name, app) in &config.apps {
        check_api(name, app, &mut findings).await;
    }
    Ok(findings.verdict)
}

struct Findings {
    verdict: Verdict,
}

impl Findings {
    fn good(&mut self, what: &str, found: impl std::fmt::Display) {
        let _ = say(format_args!("ok      {what}: {found}"));
    }

    fn bad(&mut self, what: &str, found: impl std::fmt::Display) {
        let _ = say(format_args!("FAILED  {what}: {found}"));
        self.verdict = Verdict::Bad;
    }
}

async fn check_broker(config: &Config, findings: &mut Findings) {
    let urls = config.broker.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let connected = match Connector::new(&config.broker) {
        Ok(connector) => connector.connect("check").await.map_err(|error| error.to_string()),
        Err(error) => Err(error),
    };
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            let advice = "is it running, and are host, port, user, password and virtual host in broker.url right?";
            return findings.bad("broker", format!("{error}; {advice}"));
        }
    };
    findings.good("broker", format!("reached ({urls})"));
    for (name, app) in &config.apps {
        let queues = topology::queues_of(name, app);
        match topology::ensure(&connection, &queues, false).await {
            Ok(()) => findings.good("queues", format!("{} and its companions exist", queues::jobs(name))),
            Err(error) if config.broker.declare && error.reason.contains("NOT_FOUND") => {
                findings.good("queues", format!("{} will be declared at start", queues::jobs(name)));
            }
            Err(error) => findings.bad("queues", error),
        }
    }
    connection::close(&connection).await;
}

async fn check_state(config: &Config, findings: &mut Findings) {
    let url = &config.state.url;
    if let StateStore::Sqlite(path) = url.store()
        && !path.exists()
    {
        // Made here, the file would belong to whoever checks.
        return match can_be_made(path) {
            Ok(()) => findings.good("state store", format!("{url} will be made at start")),
            Err(error) => findings.bad("state store", format!("{}: {error}; state.url names a file there", path.display())),
        };
    }
    let probed = match progress::store_of(config) {
        Ok(store) => store.probe().await,
        Err(error) => Err(error),
    };
    match probed {
        Ok(()) => findings.good("state store", format!("{} can be written to", config.state.url)),
        Err(error) => findings.bad("state store", error),
    }
}

fn can_be_made(path: &Path) -> std::io::Result<()> {
    let trial = path.with_file_name(format!("groupcast-check-{}", uuid::Uuid::new_v4().simple()));
    std::fs::File::create_new(&trial)?;
    std::fs::remove_file(&trial)
}

async fn check_api(name: &str, app: &App, findings: &mut Findings) {
    let what = format!("API of app {name}");
    let caller = match Caller::new(app) {
        Ok(caller) => caller,
        Err(error) => return findings.bad(&what, error),
    };
    // Nobody is notified: the group has a name that nobody chose, and even there only one UserID would be.
    let group = format!("groupcast-check-{}", uuid::Uuid::new_v4().simple());
    let body = serde_json::json!({ "GroupId": group, "Content": "check", "ToMembers_Account": ["groupcast-check"] });
    let answer = caller.call(body.to_string().into_bytes(), || AtWrite::Send).await;
    match classify(answer) {
        classify::Verdict::Sent => findings.good(&what, format!("{} accepts calls", app.endpoint)),
        classify::Verdict::Failed { class, fault } => {
            let code = fault.code.map_or_else(String::new, |code| format!(" ({code})"));
            let told = format!("{}{code}", fault.info);
            match verdict_on(class) {
                Ok(()) => findings.good(&what, format!("{} accepts the key; a group that does not exist: {told}", app.endpoint)),
                Err(explanation) => {
                    let advice = fault.code.and_then(codes::find).map_or(explanation, |code| code.advice);
                    findings.bad(&what, format!("{} says: {told}; {advice}", app.endpoint));
                }
            }
        }
    }
}

/// A refusal of this job means that the account was accepted.
fn verdict_on(class: Class) -> Result<(), &'static str> {
    match class {
        Class::Job | Class::TooManyRecipients | Class::RateLimited => Ok(()),
        Class::JobOrConfiguration => Err("if jobs get this answer too, look at the app in the vendor's console"),
        Class::Credential | Class::CredentialOrJob => Err("check secret_key, sdk_app_id, identifier and this machine's clock"),
        Class::Account => Err("look at the app in the vendor's console, and check region or endpoint"),
        Class::Transient(_) => Err("check region or endpoint and this machine's way to it; if it worked before, it may pass"),
    }
}

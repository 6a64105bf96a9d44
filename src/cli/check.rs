//! `groupcast check`: tries everything that the daemon needs, and says in plain words what is
//! wrong.

use std::{fmt::Display, path::Path};

use url::Url;

use super::{
    Conclusion, Failure, choose_app,
    running::{self, Answered},
    say, test_message,
};
use crate::{
    api::{
        call::{Api, AtWrite, Caller},
        classify::{self, Answer},
        codes::{Class, Effect},
        command,
        explain::{Explanation, explain},
    },
    broker::{
        connection::{self, Connector},
        queues,
    },
    cli::trial,
    config::{App, Config, StateStore},
    diagnosis::Diagnosis,
    progress,
};

/// Try what the daemon needs: the configuration, the broker, the state store and the API.
///
/// At the broker it declares the queues as the daemon does (with `broker.declare = false` it only
/// looks at them), reads them, and publishes a message that no queue takes. It takes no job, and no
/// job counts as delivered. The call to the API notifies no user: it names one recipient of a group
/// that does not exist. If a daemon answers at `admin.listen`, what its `/readyz` says is shown.
///
/// With `--group` and `--to` it also sends one real message, to one user of the group. By that you
/// see whether the API notifies this user alone.
///
/// Exit code 1 means that jobs would not be sent.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  groupcast --config groupcast.toml check\n  groupcast check \
    --group @TGS#2C5SZEAEF --to alice")]
pub struct Args {
    /// The group of the test message.
    #[arg(long, requires = "to")]
    group: Option<String>,
    /// The only user who is to see the test message.
    #[arg(long, requires = "group", value_name = "USER")]
    to: Option<String>,
    /// The app of the test message; by default the only app of the configuration.
    #[arg(long, requires = "group")]
    app: Option<String>,
}

pub async fn run(args: Args, config: Config) -> Result<Conclusion, Failure> {
    let test_message = match (args.group, args.to) {
        (Some(group), Some(user)) => Some((choose_app(&config, args.app.as_deref())?, group, user)),
        _ => None,
    };
    let mut findings = Findings { verdict: Conclusion::Good };
    findings.good(
        "configuration",
        format!("valid; apps: {}", config.apps.keys().cloned().collect::<Vec<_>>().join(", ")),
    );
    check_broker(&config, &mut findings).await;
    check_state(&config, &mut findings).await;
    for (name, app) in &config.apps {
        check_api(name, app, &mut findings).await;
    }
    if let Some(((name, app), group, user)) = test_message {
        let what = format!("test message of app {name}");
        match test_message::send(app, &group, &user).await {
            Ok(found) => findings.good(&what, found),
            Err(found) => findings.bad(&what, found),
        }
    }
    show_daemon(&config, &mut findings).await;
    Ok(findings.verdict)
}

struct Findings {
    verdict: Conclusion,
}

impl Findings {
    fn good(&mut self, what: &str, found: impl Display) {
        let _ = say(format_args!("ok      {what}: {found}"));
    }

    /// A finding that is neither good nor bad.
    fn noted(&mut self, what: &str, found: impl Display) {
        let _ = say(format_args!("note    {what}: {found}"));
    }

    /// A finding that does not keep jobs from being sent now.
    fn doubtful(&mut self, what: &str, found: impl Display) {
        let _ = say(format_args!("doubt   {what}: {found}"));
    }

    fn bad(&mut self, what: &str, found: impl Display) {
        let _ = say(format_args!("FAILED  {what}: {found}"));
        self.verdict = Conclusion::Bad;
    }
}

/// A diagnosis in lines: the sentence, the words of the server that refused, and what to do.
fn in_lines(Diagnosis { what, said, advice }: &Diagnosis) -> String {
    let line = |before: &str, text: Option<&str>| {
        text.map_or_else(String::new, |text| format!("{NEXT_LINE}{before}{text}"))
    };
    format!(
        "{what}{}{}",
        line("it says: ", said.as_deref()),
        line("what to do: ", advice.as_deref())
    )
}

async fn check_broker(config: &Config, findings: &mut Findings) {
    let connector = match Connector::new(&config.broker) {
        Ok(connector) => connector,
        Err(error) => return findings.bad("broker", error),
    };
    let (connection, socket) = match connector.connect_with_socket("check").await {
        Ok(connected) => connected,
        Err(error) => return findings.bad("broker", in_lines(&error.diagnosis)),
    };
    let urls = config.broker.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    findings.good("broker", format!("reached ({urls})"));
    for (name, app) in &config.apps {
        check_queues(
            name,
            trial::queues(&connection, name, app, config.broker.declare).await,
            findings,
        );
    }
    connection::close(&connection).await;
    socket.shut_down();
    check_publishing(&connector, findings).await;
}

fn check_queues(app: &str, tried: trial::QueueFindings, findings: &mut Findings) {
    let what = format!("queues of app {app}");
    for doubt in &tried.doubts {
        findings.doubtful(&what, in_lines(doubt));
    }
    for untried in &tried.untried {
        findings.noted(&what, untried);
    }
    for failure in &tried.failures {
        findings.bad(&what, in_lines(failure));
    }
    if tried.failures.is_empty() {
        findings.good(
            &what,
            format!("{} and its companions are there and can be read", queues::jobs(app)),
        );
    }
}

async fn check_publishing(connector: &Connector, findings: &mut Findings) {
    let what = "publishing";
    // Uses a separate connection: a broker in alarm reads nothing more from a connection that
    // publishes.
    let (connection, socket) = match connector.connect_with_socket("check").await {
        Ok(connected) => connected,
        Err(error) => return findings.bad(what, in_lines(&error.diagnosis)),
    };
    match trial::publish(&connection).await {
        Ok(()) => {
            findings.good(what, "the broker takes messages");
            connection::close(&connection).await;
        }
        Err(diagnosis) => findings.bad(what, in_lines(&diagnosis)),
    }
    socket.shut_down();
}

async fn show_daemon(config: &Config, findings: &mut Findings) {
    let what = "daemon";
    match running::ask(config).await {
        Answered::NotAsked => {}
        Answered::No { listen } => {
            let to_do = "to have one, start it with `groupcast run`; if one runs, set admin.listen \
                to the address in its log";
            findings.noted(what, format!("no daemon answers at {listen}; {to_do}"));
        }
        Answered::OtherProgram { listen } => {
            findings.noted(
                what,
                format!(
                    "another program, or another version of groupcast, answers at {listen}; set \
                        admin.listen to the daemon's address"
                ),
            );
        }
        Answered::Yes(readiness) => {
            for trouble in &readiness.troubles {
                findings.bad(what, trouble);
            }
            for unknown in &readiness.unknown_apps {
                findings.doubtful(
                    what,
                    format!(
                        "it does not know app {unknown}; start it again to make it read its \
                            configuration"
                    ),
                );
            }
            if readiness.troubles.is_empty() {
                findings.good(what, format!("ready; {}", readiness.works.join(", ")));
            }
        }
    }
}

async fn check_state(config: &Config, findings: &mut Findings) {
    let url = &config.state.url;
    if let StateStore::Sqlite(path) = url.store()
        && !path.exists()
    {
        // A file created here would belong to the user who runs the check, so the file is not
        // created.
        return match can_be_made(path) {
            Ok(()) => findings.good("state store", format!("{url} will be made at start")),
            Err(error) => {
                let what = format!("the state file {} cannot be created", path.display());
                let advice = "create its folder, writable for the user that the daemon runs as, or \
                    set state.url to another file";
                findings
                    .bad("state store", in_lines(&Diagnosis::new(what, advice).with_words(error)));
            }
        };
    }
    let probed = match progress::store_of(config) {
        Ok(store) => store.probe().await,
        Err(error) => Err(error),
    };
    match probed {
        Ok(()) => findings.good("state store", format!("{} can be written to", config.state.url)),
        Err(error) => findings.bad("state store", in_lines(&error.reason)),
    }
}

fn can_be_made(path: &Path) -> std::io::Result<()> {
    let trial = path.with_file_name(format!("groupcast-check-{}", uuid::Uuid::new_v4().simple()));
    std::fs::File::create_new(&trial)?;
    std::fs::remove_file(&trial)
}

/// Tries the app's endpoint and its backup. Jobs can be sent without the backup.
async fn check_api(name: &str, app: &App, findings: &mut Findings) {
    let what = format!("API of app {name}");
    match probe_at(&app.endpoint, app).await {
        Ok(found) => findings.good(&what, found),
        Err(found) => findings.bad(&what, found),
    }
    if let Some(backup) = &app.backup_endpoint {
        let what = format!("backup of app {name}");
        match probe_at(backup, app).await {
            Ok(found) => findings.good(&what, found),
            Err(found) => findings.doubtful(&what, found),
        }
    }
}

async fn probe_at(endpoint: &Url, app: &App) -> Result<String, String> {
    let app = App { endpoint: endpoint.clone(), backup_endpoint: None, ..app.clone() };
    let caller = Caller::new(&app).map_err(|error| Failure::with_causes(error).0)?;
    let command = command::of(&app.command);
    match caller.call(command.probe(), Box::new(|| AtWrite::Send)).await {
        Answer::NotSent { why } => Err(in_lines(&why)),
        answer => judge(endpoint.as_str(), command.judge(answer)),
    }
}

/// Explains what the answer to the harmless call says about the account. `Err` if jobs could not be
/// sent.
fn judge(endpoint: &str, verdict: classify::Verdict) -> Result<String, String> {
    let (class, fault) = match verdict {
        classify::Verdict::Sent => return Ok(format!("{endpoint} accepts calls")),
        classify::Verdict::Failed { class, fault } => (class, fault),
    };
    let Explanation { meaning, advice, .. } = explain(class, &fault);
    let code = fault.code.map_or_else(String::new, |code| format!(" ({code})"));
    let explained = |words: &str| format!("{endpoint} {words}: {meaning}{code}");
    match account(class) {
        Account::Accepted(words) => Ok(explained(words)),
        Account::NotAccepted(words) => {
            let said = if fault.info.is_empty() {
                String::new()
            } else {
                format!("{}it says: {}", NEXT_LINE, fault.info)
            };
            Err(format!("{}{said}{NEXT_LINE}what to do: {advice}", explained(words)))
        }
    }
}

const NEXT_LINE: &str = "\n        ";

/// Whether the API accepts jobs of the account. The text stands before the meaning of the code.
enum Account {
    Accepted(&'static str),
    NotAccepted(&'static str),
}

/// A refusal of this one job means that the account was accepted.
fn account(class: Class) -> Account {
    use Account::{Accepted, NotAccepted};
    match class {
        Class::Job => Accepted("accepts the account; to a group that does not exist it answers"),
        Class::TooManyRecipients => Accepted("accepts the account, but not a single recipient"),
        Class::RateLimited | Class::GroupRateLimited => {
            Accepted("accepts the account, but calls come too fast at the moment")
        }
        Class::JobOrConfiguration => NotAccepted(
            "refuses the call; if jobs get this answer too, the configuration is to blame",
        ),
        Class::TransientOrJob => {
            NotAccepted("gives an undocumented answer; if jobs get it too, ask the vendor")
        }
        Class::Credential => NotAccepted("refuses the UserSig or the key that it was made with"),
        Class::CredentialOrJob => {
            NotAccepted("refuses the UserSig, or the UserID it was called for")
        }
        Class::Account => NotAccepted("refuses all calls of this app"),
        Class::Transient(Effect::None) => {
            NotAccepted("did not get the call; that may pass by itself")
        }
        Class::Transient(Effect::Unknown) => {
            NotAccepted("gave no useful answer; that may pass by itself")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::outcome::Fault;

    fn found(class: Class, code: Option<i64>, info: &str) -> Result<String, String> {
        let fault = Fault { code, http_status: None, info: info.to_owned() };
        judge("https://api.example", classify::Verdict::Failed { class, fault })
    }

    #[test]
    fn a_refusal_of_the_one_job_means_that_the_account_is_accepted() {
        for (class, code) in
            [(Class::Job, 10010), (Class::RateLimited, 60007), (Class::TooManyRecipients, 10005)]
        {
            let found = found(class, Some(code), "").unwrap();
            assert!(
                found.contains("accepts the account") && found.contains(&code.to_string()),
                "{found}"
            );
        }
        assert!(judge("https://api.example", classify::Verdict::Sent).is_ok());
    }

    #[test]
    fn what_keeps_jobs_from_being_sent_is_said_in_words_with_the_codes_meaning_and_what_to_do() {
        let cases = [
            (
                Class::Credential,
                Some(70009),
                ["refuses the UserSig", "another key (70009)", "secret_key belongs to sdk_app_id"],
            ),
            (
                Class::CredentialOrJob,
                Some(60004),
                ["or the UserID", "incorrect (60004)", "identifier is right"],
            ),
            (
                Class::CredentialOrJob,
                Some(79_999),
                ["or the UserID", "not documented (79999)", "newest list"],
            ),
            (
                Class::Account,
                Some(60020),
                ["all calls of this app", "package expired (60020)", "renew the package"],
            ),
            (
                Class::JobOrConfiguration,
                Some(10007),
                ["configuration is to blame", "no permission", "app administrator"],
            ),
            (
                Class::Transient(Effect::None),
                None,
                ["did not get the call", "no connection", "names the cause"],
            ),
            (
                Class::Transient(Effect::Unknown),
                Some(10002),
                ["may pass by itself", "internal server error", "tried again"],
            ),
            (
                Class::Transient(Effect::Unknown),
                None,
                ["no useful answer", "no complete answer came", "request_timeout"],
            ),
        ];
        for (class, code, expected) in cases {
            let found = found(class, code, "the vendor's words").unwrap_err();
            for words in expected.into_iter().chain([
                "https://api.example",
                "it says: the vendor's words",
                "what to do: ",
            ]) {
                assert!(found.contains(words), "`{words}` is not in: {found}");
            }
        }
    }
}

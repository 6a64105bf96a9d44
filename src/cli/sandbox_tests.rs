//! The command's arguments, output and error messages.

use clap::{CommandFactory, Parser};

use super::*;
use crate::sandbox::{FaultRule, SettingsPatch};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn args(line: &[&str]) -> Args {
    Command::try_parse_from([&["sandbox"], line].concat()).unwrap().args
}

#[test]
fn the_arguments_are_well_formed() {
    Command::command().debug_assert();
}

#[test]
fn the_examples_in_the_help_are_valid() {
    let bodies: Vec<_> = EXAMPLES
        .lines()
        .filter_map(|line| Some(line.split_once(" -d '")?.1.trim_end_matches('\'')))
        .collect();
    assert_eq!(bodies.len(), 5);
    for body in bodies {
        let rule = serde_json::from_str::<FaultRule>(body);
        let patch = serde_json::from_str::<SettingsPatch>(body);
        assert!(rule.is_ok() || patch.is_ok(), "{body}");
    }
}

#[test]
fn the_defaults_of_messages_are_those_of_the_sandbox() {
    let settings = |settings| serde_json::to_value(settings).unwrap();
    let defaults = args(&[]).messages.settings();
    assert_eq!(settings(defaults), settings(SandboxMessageSettings::default()));
}

#[test]
fn the_settings_of_messages_can_be_chosen() {
    let messages = args(&[
        "--targeting",
        "refuse",
        "--avchatroom",
        "live",
        "--group-limit-answer",
        "10023",
        "--dedup-key",
        "random",
        "--dedup-window",
        "1m",
        "--duplicate-answer",
        "10024",
    ])
    .messages
    .settings();
    assert_eq!(
        (messages.targeting, messages.group_limit_answer, messages.dedup_key),
        (TargetingPlan::Refuse, GroupLimitAnswer::Refusal, DuplicateKey::Random)
    );
    assert_eq!(messages.duplicate_answer, DuplicateAnswer::Code(10024));
    let wrong = Command::try_parse_from(["sandbox", "--targeting", "off"]).err().unwrap();
    assert!(wrong.to_string().contains("broadcast"), "{wrong}");
}

#[tokio::test]
async fn the_greeting_says_how_to_call_it() {
    let args = args(&["--listen", "127.0.0.1:0", "--sdk-app-id", "88", "--identifier", "root"]);
    let sandbox = start(&args).await.unwrap();
    let greeting = greeting(&args, &sandbox);
    let snippet: toml::Table = greeting.split_once("\n\n").unwrap().1.parse().unwrap();
    let app = &snippet["apps"]["default"];
    assert_eq!(app["endpoint"].as_str(), Some(&*sandbox.endpoint()));
    assert_eq!(
        (app["sdk_app_id"].as_integer(), app["identifier"].as_str()),
        (Some(88), Some("root"))
    );
    assert_eq!(app["secret_key"].as_str(), Some(PUBLIC_KEY));
}

#[tokio::test]
async fn a_key_from_a_file_is_trimmed_and_not_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hush\n").unwrap();
    let args =
        args(&["--listen", "127.0.0.1:0", "--secret-key-file", file.path().to_str().unwrap()]);
    assert_eq!(secrecy::ExposeSecret::expose_secret(&secret_key(&args).await.unwrap()), "hush");
    let greeting = greeting(&args, &start(&args).await.unwrap());
    assert!(greeting.contains("secret_key_file = ") && !greeting.contains("hush"), "{greeting}");
}

#[tokio::test]
async fn an_empty_or_absent_key_file_is_an_error_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let empty = start(&args(&["--secret-key-file", &path])).await.err().unwrap();
    drop(file);
    let absent = start(&args(&["--secret-key-file", &path])).await.err().unwrap();
    assert!(empty.to_string().contains("is empty") && empty.to_string().contains(&path), "{empty}");
    assert!(absent.to_string().contains(&path), "{absent}");
}

#[tokio::test]
async fn a_busy_address_is_an_error_that_says_what_to_do() {
    let first = start(&args(&["--listen", "127.0.0.1:0"])).await.unwrap();
    let error = start(&args(&["--listen", &first.addr().to_string()])).await.err().unwrap();
    assert!(error.to_string().contains("--listen"), "{error}");
}

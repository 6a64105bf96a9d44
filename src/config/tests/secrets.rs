//! Checks that no secret is ever shown, and that secrets are read from files.

use std::ffi::OsString;
use std::fs;

use secrecy::ExposeSecret;

use super::{CANARY, SMALLEST, load, refusal, with};
use crate::config::{Config, ConfigFile};

/// Everything that a user can see of an error: its message, its debug form and its causes.
fn shown(text: &str, variables: &[(&str, &str)]) -> String {
    let file = ConfigFile { path: "groupcast.toml".into(), text: text.to_owned() };
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into()));
    match Config::read(Some(&file), environment) {
        Ok(config) => format!("{config:?}\n{config:#?}\n{}", config.to_masked_toml()),
        Err(error) => format!("{error}\n{error:?}\n{:?}", std::error::Error::source(&error)),
    }
}

fn assert_hidden(text: &str, variables: &[(&str, &str)]) {
    let shown = shown(text, variables);
    assert!(!shown.contains(CANARY), "{text}\n{variables:?}\n{shown}");
}

#[test]
fn a_configuration_never_shows_a_secret() {
    let text = format!(
        "[broker]\nurl = [\"amqp://u:{CANARY}@h/v\", \"amqps://u:{CANARY}@h\"]\n[state]\nurl \
            = \"rediss://u:{CANARY}@h:1/2\"\n{SMALLEST}"
    );
    load(&text, &[]).unwrap();
    assert_hidden(&text, &[]);
}

/// Wrong values for keys of every type, each with the secret in it.
fn mistakes() -> Vec<String> {
    let values = [
        "\"_\"",
        "[\"_\"]",
        "[[\"_\"]]",
        "{ a = \"_\" }",
        "{ _ = 1 }",
        "'_",
        "\"_",
        "_",
        "\"\"\"_",
        "\"_\\q\"",
        "\"_\" \"_\"",
        "\"_\" x",
        "\"amqp://u:_@\"",
        "\"amqp://u:1/_@h/v\"",
        "\"amqp://u:1?_@h/v\"",
        "\"amqp://u:1#_@h/v\"",
        "\"amqp://u:1?heartbeat=_@h/v\"",
        "\"amqp://u:_@h:99999/v\"",
        "\"amqp://_@h/v\"",
        "\"amqp://u:p/_@h/v\"",
        "\"amqp://u:%ff_@h/v\"",
        "\"http://u:_@h\"",
        "\"redis://_@h\"",
        "\"redis://u:1/_@h\"",
        "\"redis://:_@h/x\"",
        "\"rediss://u:1#_@h\"",
        "\"redis://u:_@h:x\"",
        "\"sqlite:?_\"",
        "\"https://u:_@h\"",
        "\"https://h/?_\"",
        "\"https://h/_\"",
        "\"groupcast._\"",
        "\"amq._\"",
        "\"a=_=b\"",
        "2026-01-01_",
        "1_",
    ];
    values.iter().map(|value| value.replace('_', CANARY)).collect()
}

#[test]
fn a_refusal_never_repeats_a_secret_of_the_file() {
    let keys = [
        "[broker]\nurl",
        "[broker]\nprefetch",
        "[broker]\nhold_bytes",
        "[broker]\ndeclare",
        "[broker]\nx",
        "broker",
        "[state]\nurl",
        "[state]\nretention",
        "[admin]\nlisten",
        "[log]\nformat",
        "[log]\nx",
        "apps",
        "[apps]\nother",
        "[apps.other]\nsdk_app_id",
        "[apps.other]\nsecret_key",
        "[apps.other]\nsecret_keyy",
        "[apps.other]\nregion",
        "[apps.other]\nendpoint",
        "[apps.other]\nempty_recipients",
        "[apps.other]\nretry",
        "[apps.other]\nretry.hold",
        "[apps.other]\nretry.park",
        "[apps.default]\nsecret_key",
        "[apps.default]\nsecret_key.x",
    ];
    for key in keys {
        for value in mistakes() {
            // An error may name a key, so it shows a secret that was written as a key.
            if !value.starts_with('{') || !value.contains(&format!("{CANARY} =")) {
                assert_hidden(&format!("{key} = {value}\n"), &[]);
                assert_hidden(&format!("{SMALLEST}{key} = {value}\n"), &[]);
            }
        }
    }
}

#[test]
fn a_refusal_never_repeats_a_secret_of_the_environment() {
    let names = [
        "BROKER",
        "BROKER__URL",
        "BROKER__PREFETCH",
        "BROKER__X",
        "STATE__URL",
        "ADMIN__LISTEN",
        "APPS",
        "APPS__DEFAULT",
        "APPS__DEFAULT__SDK_APP_ID",
        "APPS__DEFAULT__SECRET_KEY",
        "APPS__DEFAULT__SECRET_KEYY",
        "APPS__DEFAULT__SECRET_KEY__X",
        "APPS__DEFAULT__REGION",
        "APPS__DEFAULT__ENDPOINT",
        "APPS__DEFAULT__RETRY__HOLD",
        "LOG__FORMAT",
    ];
    for name in names {
        for value in mistakes() {
            assert_hidden(SMALLEST, &[(&format!("GROUPCAST__{name}"), value.trim_matches('"'))]);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_refused_without_its_value() {
    use std::os::unix::ffi::OsStringExt;

    let value = OsString::from_vec([CANARY.as_bytes(), &[0xff]].concat());
    let error =
        Config::read(None, [("GROUPCAST__APPS__DEFAULT__SECRET_KEY".into(), value)]).unwrap_err();
    assert_eq!(error.to_string(), "GROUPCAST__APPS__DEFAULT__SECRET_KEY must be valid UTF-8");
    assert!(!format!("{error:?}").contains(CANARY));
}

#[test]
fn secrets_are_read_from_files_without_one_trailing_newline() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    for (written, read) in [("k", "k"), ("k\n", "k"), ("k\r\n", "k")] {
        let variables = [("GROUPCAST__APPS__DEFAULT__SECRET_KEY_FILE", &*file("key", written))];
        let app = load(SMALLEST, &variables).unwrap().apps.remove("default").unwrap();
        assert_eq!(app.secret_key.expose_secret(), read);
        assert_eq!(app.secret_key_file.unwrap().display().to_string(), variables[0].1);
    }
    for written in [" k", "k \n", "k\n\n", "k\nl", "\"k\"", "\u{feff}k", "k\0"] {
        let from_file = load(
            SMALLEST,
            &[("GROUPCAST__APPS__DEFAULT__SECRET_KEY_FILE", &*file("key", written))],
        )
        .unwrap_err();
        assert!(from_file.contains("_FILE cannot be used: the file"), "{written:?}: {from_file}");
        let from_variable =
            load(SMALLEST, &[("GROUPCAST__APPS__DEFAULT__SECRET_KEY", written)]).unwrap_err();
        assert!(from_variable.contains("must be the secret alone"), "{written:?}: {from_variable}");
    }
    let urls = (
        file("broker", &format!("amqps://u:{CANARY}@h\n")),
        file("state", &format!("redis://:{CANARY}@h\n")),
    );
    let text =
        format!("[broker]\nurl_file = {:?}\n[state]\nurl_file = {:?}\n{SMALLEST}", urls.0, urls.1);
    let config = load(&text, &[]).unwrap();
    assert_eq!(config.broker.urls[0].expose(), format!("amqps://u:{CANARY}@h"));
    assert_eq!(config.state.url.expose(), format!("redis://:{CANARY}@h"));
    assert_hidden(&text, &[]);
    let printed = config.to_masked_toml().replace("***", CANARY);
    assert_eq!(format!("{:?}", load(&printed, &[]).unwrap()), format!("{config:?}"));
}

#[test]
fn a_secret_file_that_gives_no_secret_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::write(path("empty"), "\n").unwrap();
    fs::write(path("large"), "x".repeat(70_000)).unwrap();
    fs::write(path("wrong"), CANARY).unwrap();
    for (name, expected) in
        [("missing", "cannot be read"), ("empty", "is empty"), ("large", "is larger than 64 KiB")]
    {
        let text = SMALLEST.replace(
            &format!("secret_key = {CANARY:?}"),
            &format!("secret_key_file = {:?}", path(name)),
        );
        let said = refusal(&text, &[]);
        assert!(said.starts_with("groupcast.toml: apps.default.secret_key_file "), "{said}");
        assert!(said.contains(&path(name)) && said.contains(expected), "{said}");
    }
    let text = with(&format!("[broker]\nurl_file = {:?}", path("wrong")));
    assert!(refusal(&text, &[]).contains(&path("wrong")));
    assert_hidden(&text, &[]);
}

#[test]
fn a_secret_and_its_file_in_one_layer_are_one_too_many() {
    let said = refusal(&with("secret_key_file = \"k\""), &[]);
    assert_eq!(
        said,
        "groupcast.toml: apps.default.secret_key_file is given together with secret_key; keep one \
            of them"
    );
    let both = [("GROUPCAST__BROKER__URL", "amqp://h"), ("GROUPCAST__BROKER__URL_FILE", "f")];
    assert!(
        refusal(SMALLEST, &both)
            .starts_with("GROUPCAST__BROKER__URL_FILE is given together with url")
    );
}

#[test]
fn a_masked_secret_is_not_taken_for_a_secret() {
    assert!(refusal(&SMALLEST.replace(CANARY, "***"), &[]).contains("groupcast config"));
    assert!(refusal(&SMALLEST.replace(CANARY, "  "), &[]).contains("must not be empty"));
    assert!(
        refusal(&SMALLEST.replace(&format!("{CANARY:?}"), "1234"), &[])
            .contains("must be text in quotes")
    );
}

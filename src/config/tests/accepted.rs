//! The values that a configuration accepts, and what they become.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{CANARY, SMALLEST, load, with};
use crate::config::{Config, EmptyRecipients, LogFormat, Region, StateStore};

/// The documentation's example, which shows every key with its default.
const DOCUMENTED: &str = r#"
[broker]
url = "amqp://guest:guest@127.0.0.1:5672/%2f"
prefetch = 200
hold_bytes = "256MiB"
max_job_bytes = "16MiB"
declare = true
[state]
url = "sqlite:groupcast.db"
retention = "7d"
[admin]
listen = "127.0.0.1:9464"
[apps.default]
sdk_app_id = 1400000000
identifier = "administrator"
secret_key = "c4n4ryS3cret"
region = "singapore"
calls_per_second = 200
burst = 20
command = "send_group_system_notification"
batch_size = 500
max_in_flight = 256
request_timeout = "5s"
results_queue = ""
empty_recipients = "broadcast"
[apps.default.retry]
first_delay = "500ms"
max_delay = "30s"
hold = "60s"
park = ["30s", "2m", "10m", "30m"]
give_up_after = "24h"
[apps.default.pause]
probe_first = "5s"
probe_max = "5m"
[log]
format = "text"
filter = "info"
"#;

#[test]
fn the_documented_example_is_the_defaults() {
    let documented = load(DOCUMENTED, &[]).unwrap();
    assert_eq!(format!("{documented:?}"), format!("{:?}", load(SMALLEST, &[]).unwrap()));
}

#[test]
fn the_documented_settings_of_the_second_command_are_its_defaults() {
    let written = r#"command = "send_group_msg"
batch_size = 50
[apps.default.group_msg]
storage = "online"
element = "custom"
priority = "high"
webhooks = false
from_account = ""
targeting = false
calls_per_second_per_group = 20
dedup_window = "5m"
avchatroom = []
"#;
    let [written, short] =
        [written, "command = \"send_group_msg\""].map(|lines| load(&with(lines), &[]).unwrap());
    assert_eq!(format!("{written:?}"), format!("{short:?}"));
    let printed = load(&with("command = \"send_group_msg\"\ngroup_msg.dedup_window = \"0s\""), &[])
        .unwrap()
        .to_masked_toml();
    assert!(printed.contains("[apps.default.group_msg]\n"), "{printed}");
    assert!(printed.contains("dedup_window = \"0s\"\n"), "{printed}");
}

#[test]
fn the_environment_alone_is_enough() {
    let variables = [("SDK_APP_ID", "1400000000"), ("SECRET_KEY", "0123"), ("REGION", "tokyo")];
    let environment = variables
        .map(|(key, value)| (format!("GROUPCAST__APPS__DEFAULT__{key}").into(), value.into()));
    let config = Config::read(None, environment).unwrap();
    assert_eq!(config.apps["default"].endpoint.as_str(), "https://adminapijpn.im.qcloud.com/");
}

#[test]
fn text_of_the_environment_becomes_every_type() {
    let variables = [
        ("GROUPCAST__BROKER__URL", "amqp://a:x,y@one/v, amqps://b:z@two:5600/%2f"),
        ("GROUPCAST__BROKER__DECLARE", "false"),
        ("GROUPCAST__BROKER__HOLD_BYTES", "1GiB"),
        ("GROUPCAST__BROKER__PREFETCH", "7"),
        ("GROUPCAST__ADMIN__LISTEN", "0.0.0.0:80"),
        ("GROUPCAST__APPS__DEFAULT__RETRY__HOLD", "250ms"),
        ("GROUPCAST__APPS__DEFAULT__RETRY__PARK", "1s, 2m"),
        ("GROUPCAST__APPS__DEFAULT__EMPTY_RECIPIENTS", "reject"),
        ("GROUPCAST__LOG__FORMAT", "json"),
        ("GROUPCAST_PORT", "tcp://10.0.0.1:80"),
        ("PATH", "/bin"),
    ];
    let config = load(SMALLEST, &variables).unwrap();
    let nodes: Vec<_> =
        config.broker.urls.iter().map(|url| (url.host(), url.port(), url.expose())).collect();
    assert_eq!(
        nodes,
        [("one", 5672, "amqp://a:x,y@one/v"), ("two", 5600, "amqps://b:z@two:5600/%2f")]
    );
    assert_eq!(
        (config.broker.declare, config.broker.hold_bytes, config.broker.prefetch),
        (false, 1 << 30, 7)
    );
    assert_eq!(config.admin.listen.to_string(), "0.0.0.0:80");
    let app = &config.apps["default"];
    assert_eq!(app.retry.hold, Duration::from_millis(250));
    assert_eq!(app.retry.park, [Duration::from_secs(1), Duration::from_secs(120)]);
    assert_eq!(app.empty_recipients, EmptyRecipients::Reject);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn a_secret_that_looks_like_a_number_stays_as_it_is() {
    for secret in ["0123", "1e5", "0x10", "true", "1_000", "18446744073709551616"] {
        let config = load(SMALLEST, &[("GROUPCAST__APPS__DEFAULT__SECRET_KEY", secret)]).unwrap();
        assert_eq!(config.apps["default"].secret_key.expose_secret(), secret);
        let config = load(&SMALLEST.replace(CANARY, secret), &[]).unwrap();
        assert_eq!(config.apps["default"].secret_key.expose_secret(), secret);
    }
}

#[test]
fn the_environment_wins_over_the_file_also_as_the_twin_of_a_key() {
    let endpoint = [("GROUPCAST__APPS__DEFAULT__ENDPOINT", "http://127.0.0.1:8089")];
    let app = load(SMALLEST, &endpoint).unwrap().apps.remove("default").unwrap();
    assert_eq!((app.region, app.endpoint.as_str()), (None, "http://127.0.0.1:8089/"));

    let in_file = SMALLEST.replace("secret_key =", "secret_key_file =");
    let app = load(&in_file, &[("GROUPCAST__APPS__DEFAULT__SECRET_KEY", "k")])
        .unwrap()
        .apps
        .remove("default")
        .unwrap();
    assert_eq!((app.secret_key.expose_secret(), app.secret_key_file), ("k", None));

    let state = [("GROUPCAST__STATE__URL", "redis://:k@h:6379/0")];
    let config = load(&format!("[state]\nurl_file = \"/nowhere\"\n{SMALLEST}"), &state).unwrap();
    assert_eq!(
        (config.state.url.store(), config.state.url.expose()),
        (&StateStore::Redis, "redis://:k@h:6379/0")
    );
}

#[test]
fn a_default_gives_way_to_the_limit_it_depends_on() {
    let app = |lines: &str| {
        load(&format!("{SMALLEST}{lines}\n"), &[]).unwrap().apps.remove("default").unwrap()
    };
    assert_eq!(app("calls_per_second = 5").burst, 5);
    assert_eq!(app("retry.max_delay = \"100ms\"").retry.first_delay, Duration::from_millis(100));
    assert_eq!(app("retry.first_delay = \"1m\"").retry.max_delay, Duration::from_secs(60));
    assert_eq!(app("pause.probe_max = \"1s\"").pause.probe_first, Duration::from_secs(1));
}

#[test]
fn every_region_has_its_own_domains() {
    let mut domains = Vec::new();
    for name in ["china", "singapore", "seoul", "tokyo", "frankfurt", "silicon-valley", "jakarta"] {
        let app = load(&SMALLEST.replace("singapore", name), &[])
            .unwrap()
            .apps
            .remove("default")
            .unwrap();
        let (primary, backup) = app.region.map(Region::domains).unwrap();
        assert_eq!(app.region.map(Region::name), Some(name));
        assert_eq!(app.endpoint.as_str(), format!("https://{primary}/"));
        domains.extend([primary, backup]);
    }
    domains.sort_unstable();
    domains.dedup();
    assert_eq!(domains.len(), 14);
}

#[test]
fn an_app_may_answer_into_its_own_results_queue() {
    let queue = |name: &str| load(&format!("{SMALLEST}results_queue = {name:?}\n"), &[]).unwrap();
    for name in ["groupcast.default.results", "mine"] {
        assert_eq!(queue(name).apps["default"].results_queue.as_deref(), Some(name));
    }
}

#[test]
fn what_is_printed_loads_again_once_the_secrets_are_back() {
    let rich = format!(
        "[broker]\nurl = [\"amqp://u:{CANARY}@one/%2f?heartbeat=9\", \"amqps://u:{CANARY}@two\"]\nca_file = \"/a b/c\\\"d\"\n\
         hold_bytes = 1234567\nmax_job_bytes = \"3KiB\"\n[state]\nurl \
         = \"redis://:{CANARY}@[::1]:1/3\"\n{SMALLEST}\
         results_queue = \"answers\"\nretry.park = [\"90s\"]\nretry.give_up_after = \"1h 1s 5ms\"\n\
         [apps.other-1]\nsdk_app_id = 1\nsecret_key = \"{CANARY}\"\nendpoint \
         = \"http://[::1]:80\"\n"
    );
    for text in [SMALLEST, &rich] {
        let config = load(text, &[]).unwrap();
        let printed = config.to_masked_toml();
        let again = load(
            &printed
                .replace("guest:***@", "guest:guest@")
                .replace(":***@", &format!(":{CANARY}@"))
                .replace("\"***\"", &format!("{CANARY:?}")),
            &[],
        );
        let again = again.unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
        assert_eq!(again.to_masked_toml(), printed);
        assert_eq!(again.broker.urls[0].expose(), config.broker.urls[0].expose());
    }
}

#[test]
fn a_list_in_a_variable_is_written_as_in_the_file_or_with_commas() {
    for written in ["a.*,b.*", " a.* , b.* ", "[\"a.*\", \"b.*\"]", "['a.*','b.*',]"] {
        let config =
            load(SMALLEST, &[("GROUPCAST__APPS__DEFAULT__REPLIES__ALLOW", written)]).unwrap();
        assert_eq!(
            config.apps["default"].replies.patterns().collect::<Vec<_>>(),
            ["a.*", "b.*"],
            "{written}"
        );
    }
    let waits =
        load(SMALLEST, &[("GROUPCAST__APPS__DEFAULT__RETRY__PARK", "[\"30s\", \"2m\"]")]).unwrap();
    assert_eq!(
        waits.apps["default"].retry.park,
        [Duration::from_secs(30), Duration::from_secs(120)]
    );
    let nodes =
        load(SMALLEST, &[("GROUPCAST__BROKER__URL", "[\"amqp://u:p@one\", \"amqp://u:p@two:1\"]")])
            .unwrap();
    assert_eq!(
        nodes.broker.urls.iter().map(|url| (url.host(), url.port())).collect::<Vec<_>>(),
        [("one", 5672), ("two", 1)]
    );
    assert!(
        load(SMALLEST, &[("GROUPCAST__APPS__DEFAULT__REPLIES__ALLOW", "[\"a\"")])
            .unwrap_err()
            .contains("must be a list")
    );
}

#[test]
fn an_app_with_a_dash_is_reached_by_a_variable_with_an_underscore() {
    let key = ("GROUPCAST__APPS__MY_SHOP__SECRET_KEY", "0123");
    let section = |name: &str| format!("[apps.{name}]\nsdk_app_id = 1\nregion = \"singapore\"\n");
    let config = load(&section("my-shop"), &[key]).unwrap();
    assert_eq!(config.apps["my-shop"].secret_key.expose_secret(), "0123");
    assert_eq!(config.apps.len(), 1);
    // If an app has exactly this name, the variable means that app.
    let both = format!("{}{}secret_key = \"k\"\n", section("my_shop"), section("my-shop"));
    let config = load(&both, &[key]).unwrap();
    assert_eq!(config.apps["my_shop"].secret_key.expose_secret(), "0123");
    let missing = load(&section("my-shop"), &[]).unwrap_err();
    assert!(missing.contains("GROUPCAST__APPS__MY_SHOP__SECRET_KEY"), "{missing}");
    let wrong =
        load(&section("my-shop"), &[key, ("GROUPCAST__APPS__MY_SHOP__BURST", "0")]).unwrap_err();
    assert!(wrong.starts_with("GROUPCAST__APPS__MY_SHOP__BURST must"), "{wrong}");
    let twice = load(&section("my-shop"), &[key, ("GROUPCAST__APPS__MY-SHOP__SECRET_KEY", "4567")])
        .unwrap_err();
    assert!(twice.contains("sets the same key as"), "{twice}");
}

#[test]
fn a_broker_may_have_an_ipv6_address() {
    let config =
        load(&format!("[broker]\nurl = \"amqps://u:p@[fd00::1]:5671/v\"\n{SMALLEST}"), &[])
            .unwrap();
    assert_eq!((config.broker.urls[0].host(), config.broker.urls[0].port()), ("fd00::1", 5671));
    assert_eq!(config.broker.urls[0].to_string(), "amqps://u:***@[fd00::1]:5671/v");
}

use secrecy::ExposeSecret;

use super::*;
use crate::config::Reread;

fn reread(old: &str, new: &str) -> Reread {
    load(old, &[]).unwrap().reread(load(new, &[]).unwrap())
}

#[test]
fn what_is_asked_anew_for_every_call_applies_at_once() {
    let lines = [
        ("calls_per_second = 50", "apps.default.calls_per_second"),
        ("burst = 5", "apps.default.burst"),
        ("batch_size = 50", "apps.default.batch_size"),
        ("max_in_flight = 5", "apps.default.max_in_flight"),
        ("request_timeout = \"1s\"", "apps.default.request_timeout"),
        ("identifier = \"other\"", "apps.default.identifier"),
        ("results_queue = \"answers\"", "apps.default.results_queue"),
        ("empty_recipients = \"reject\"", "apps.default.empty_recipients"),
        ("retry.first_delay = \"1s\"", "apps.default.retry.first_delay"),
        ("retry.max_delay = \"1m\"", "apps.default.retry.max_delay"),
        ("retry.hold = \"1s\"", "apps.default.retry.hold"),
        ("retry.give_up_after = \"1h\"", "apps.default.retry.give_up_after"),
        ("pause.probe_first = \"1s\"", "apps.default.pause.probe_first"),
        ("pause.probe_max = \"1m\"", "apps.default.pause.probe_max"),
        ("[log]\nfilter = \"debug\"", "log.filter"),
    ];
    for (line, key) in lines {
        let new = with(line);
        let Reread { effective, applied, at_next_start } = reread(SMALLEST, &new);
        assert_eq!((applied, at_next_start), (vec![key.to_owned()], vec![]), "{line}");
        assert_eq!(effective.to_masked_toml(), load(&new, &[]).unwrap().to_masked_toml(), "{line}");
    }
    let elsewhere =
        reread(SMALLEST, &SMALLEST.replace("1400000000", "7").replace("singapore", "seoul"));
    assert_eq!(elsewhere.applied, ["apps.default.region", "apps.default.sdk_app_id"]);
    assert_eq!(
        elsewhere.effective.apps["default"].endpoint.as_str(),
        "https://adminapikr.im.qcloud.com/"
    );
}

#[test]
fn what_was_made_at_the_start_is_left_and_named() {
    let lines = [
        ("retry.park = [\"1s\"]", "apps.default.retry.park"),
        ("results_queue = \"groupcast.default.results\"", "apps.default.results_queue"),
        ("[broker]\nprefetch = 3", "broker.prefetch"),
        ("[broker]\nurl = \"amqp://guest:other@127.0.0.1:5672/%2f\"", "broker.url"),
        ("[state]\nretention = \"1h\"", "state.retention"),
        ("[admin]\nlisten = \"127.0.0.1:1\"", "admin.listen"),
        ("[log]\nformat = \"json\"", "log.format"),
    ];
    for (line, key) in lines {
        let Reread { effective, applied, at_next_start } = reread(SMALLEST, &with(line));
        assert_eq!((applied, at_next_start), (vec![], vec![key.to_owned()]), "{line}");
        assert_eq!(
            effective.to_masked_toml(),
            load(SMALLEST, &[]).unwrap().to_masked_toml(),
            "{line}"
        );
    }
}

#[test]
fn apps_neither_come_nor_go_while_the_daemon_runs() {
    let two = format!("{SMALLEST}{}", SMALLEST.replace("default", "other"));
    let came = reread(SMALLEST, &two);
    assert_eq!((came.applied, came.at_next_start), (vec![], vec!["apps.other".to_owned()]));
    assert!(!came.effective.apps.contains_key("other"));
    let went = reread(&two, SMALLEST);
    assert_eq!((went.applied, went.at_next_start), (vec![], vec!["apps.other".to_owned()]));
    assert!(went.effective.apps.contains_key("other"));
}

#[test]
fn a_secret_that_changed_is_named_and_not_shown() {
    let another = reread(SMALLEST, &SMALLEST.replace(CANARY, "another-canary"));
    assert_eq!(another.applied, ["apps.default.secret_key"]);
    assert_eq!(another.effective.apps["default"].secret_key.expose_secret(), "another-canary");
    assert!(!format!("{another:?}").contains("canary"));
}

#[test]
fn what_waits_for_the_next_start_does_not_keep_the_rest_from_applying() {
    let Reread { effective, applied, at_next_start } = reread(
        SMALLEST,
        &with(
            "batch_size = 7\nretry.park = [\"1s\"]\n[log]\nfilter = \"debug\"\nformat = \"json\"",
        ),
    );
    assert_eq!(applied, ["apps.default.batch_size", "log.filter"]);
    assert_eq!(at_next_start, ["apps.default.retry.park", "log.format"]);
    assert_eq!(
        (effective.apps["default"].batch_size, effective.apps["default"].retry.park.len()),
        (7, 4)
    );
}

#[test]
fn what_clients_receive_changes_only_at_the_next_start() {
    let second = with("command = \"send_group_msg\"");
    let Reread { effective, applied, at_next_start } = reread(SMALLEST, &second);
    assert_eq!(applied, Vec::<String>::new());
    assert!(at_next_start.contains(&"apps.default.command".to_owned()), "{at_next_start:?}");
    // The other command takes fewer recipients.
    assert_eq!(effective.apps["default"].batch_size, 500);
    let lines = "group_msg.targeting = true\ngroup_msg.priority = \"low\"";
    let changed = second.replace("send_group_msg\"", &format!("send_group_msg\"\n{lines}"));
    let Reread { applied, at_next_start, .. } = reread(&second, &changed);
    assert_eq!(applied, ["apps.default.group_msg.targeting"]);
    assert_eq!(at_next_start, ["apps.default.group_msg.priority"]);
}

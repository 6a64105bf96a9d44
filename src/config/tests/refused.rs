//! What a configuration refuses. Each error names the place, the mistake and the fix.

use super::{SMALLEST, refusal, with};

#[test]
fn unknown_keys_are_named_with_their_full_path_and_what_was_meant() {
    let cases = [
        (
            with("retry.holdd = \"1s\""),
            "groupcast.toml: unknown key apps.default.retry.holdd; did you mean hold?",
        ),
        (
            with("[broker]\nprefetchh = 1"),
            "groupcast.toml: unknown key broker.prefetchh; did you mean prefetch?",
        ),
        (with("[app.x]"), "groupcast.toml: unknown key app; did you mean apps?"),
        (
            with("[log]\ncolour = true"),
            "groupcast.toml: unknown key log.colour; allowed are format, filter",
        ),
        (
            with("[admin]\nx.y = 1"),
            "groupcast.toml: unknown key admin.x; allowed are listen, hosts, token, token_file",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(&text, &[]), expected);
    }
}

#[test]
fn unknown_variables_are_named_with_what_was_meant() {
    let cases = [
        (
            "GROUPCAST__BROKER__PREFETCHH",
            "unknown variable GROUPCAST__BROKER__PREFETCHH; did you mean \
                GROUPCAST__BROKER__PREFETCH?",
        ),
        (
            "GROUPCAST__STAT__URL",
            "unknown variable GROUPCAST__STAT__URL; did you mean GROUPCAST__STATE__URL?",
        ),
        (
            "GROUPCAST__APPS__MY__APP__BURST",
            "unknown variable GROUPCAST__APPS__MY__APP__BURST; allowed are \
                GROUPCAST__APPS__MY__SDK_APP_ID",
        ),
        (
            "GROUPCAST__broker__url",
            "unknown variable GROUPCAST__broker__url; write GROUPCAST__SECTION__KEY in capitals",
        ),
        ("GROUPCAST__", "unknown variable GROUPCAST__; write"),
        ("GROUPCAST__BROKER____URL", "unknown variable GROUPCAST__BROKER____URL; write"),
        ("GROUPCAST__BROKER", "GROUPCAST__BROKER must be a section of keys"),
    ];
    for (name, expected) in cases {
        let said = refusal(SMALLEST, &[(name, "1")]);
        assert!(said.starts_with(expected), "{said}\n{expected}");
    }
    let said =
        refusal(SMALLEST, &[("GROUPCAST__BROKER", "x"), ("GROUPCAST__BROKER__PREFETCH", "1")]);
    assert!(said.starts_with("GROUPCAST__BROKER names a section"), "{said}");
}

#[test]
fn a_bad_value_is_refused_at_its_key_with_an_example() {
    let cases = [
        ("retry.hold = \"5\"", "apps.default.retry.hold must be a duration"),
        ("retry.hold = 5", "apps.default.retry.hold must be a duration"),
        ("retry.hold = \"0s\"", "apps.default.retry.hold must be a duration above zero"),
        ("retry.hold = \"900000y\"", "apps.default.retry.hold must be a duration"),
        ("retry.give_up_after = \"0ms\"", "apps.default.retry.give_up_after must"),
        (
            "retry.park = [\"500ms\"]",
            "apps.default.retry.park must be a list of one or more durations of whole seconds",
        ),
        ("retry.park = []", "apps.default.retry.park must be a list of one or more"),
        ("retry.park = [\"60d\"]", "apps.default.retry.park must be"),
        ("retry = 1", "apps.default.retry must be a section"),
        ("[log]\nfilter = \"warning\"", "log.filter must have a level"),
        ("[log]\nfilter = \"info,verbose\"", "log.filter must have a level"),
        ("[log]\nfilter = \"lapin\"", "log.filter must have a level"),
        ("[log]\nfilter = \"grupcast=debug\"", "log.filter must have a level"),
        ("replies.allow = [\"\"]", "apps.default.replies.allow must be a list of queue names"),
        ("replies.allow = [1]", "apps.default.replies.allow must be a list of queue names"),
        ("[admin]\nhosts = [\"a:9464\"]", "admin.hosts must be a list of names without port"),
        ("[admin]\ntoken = \"\"", "admin.token must not be empty"),
        (
            "[admin]\ntoken = \"pass word\"",
            "admin.token must be ASCII letters, digits and signs without spaces",
        ),
        (
            "[admin]\ntoken = \"schlüssel\"",
            "admin.token must be ASCII letters, digits and signs without spaces",
        ),
        (
            "[state]\nca_file = \"ca.pem\"",
            "state.ca_file has no effect, for state.url does not begin with rediss://",
        ),
        (
            "[state]\nurl = \"rediss://h\"\ncert_file = \"c.pem\"",
            "state.cert_file needs the private key",
        ),
        (
            "[telemetry]\notlp_endpoint = \"collector:4318\"",
            "telemetry.otlp_endpoint must be a scheme, a host and a port",
        ),
        (
            "retry.first_delay = \"2s\"\nretry.max_delay = \"1s\"",
            "apps.default.retry.first_delay must not be longer",
        ),
        (
            "pause.probe_first = \"2s\"\npause.probe_max = \"1s\"",
            "apps.default.pause.probe_first must not be longer",
        ),
        ("request_timeout = \"0s\"", "apps.default.request_timeout must be"),
        ("calls_per_second = 0", "apps.default.calls_per_second must be a whole number, 1 to"),
        ("calls_per_second = -1", "apps.default.calls_per_second must"),
        ("calls_per_second = 1.5", "apps.default.calls_per_second must"),
        (
            "calls_per_second = 10\nburst = 11",
            "apps.default.burst must not be larger than calls_per_second (10)",
        ),
        ("burst = 0", "apps.default.burst must"),
        ("calls_per_second = 100001", "apps.default.calls_per_second must be 100000 at most"),
        ("max_in_flight = 65536", "apps.default.max_in_flight must be 65535 at most"),
        ("max_in_flight = 0", "apps.default.max_in_flight must"),
        ("batch_size = 0", "apps.default.batch_size must"),
        ("batch_size = 501", "apps.default.batch_size must be 500 at most"),
        ("command = \"send_group_message\"", "apps.default.command must be one of"),
        (
            "command = \"send_group_msg\"\nbatch_size = 51",
            "apps.default.batch_size must be 50 at most, the limit of recipients in one call of \
                send_group_msg",
        ),
        (
            "[apps.default.group_msg]\ntargeting = true",
            "apps.default.group_msg is only for command = \"send_group_msg\"",
        ),
        (
            "command = \"send_group_msg\"\ngroup_msg.storage = \"offline\"",
            "apps.default.group_msg.storage must be one of \"online\", \"silent\", \"ordinary\"",
        ),
        (
            "command = \"send_group_msg\"\ngroup_msg.dedup_window = \"6m\"",
            "apps.default.group_msg.dedup_window must be a duration of 5m at most",
        ),
        ("identifier = \" \"", "apps.default.identifier must not be empty"),
        ("identifier = 5", "apps.default.identifier must be text"),
        (
            "results_queue = \"groupcast.other.results\"",
            "apps.default.results_queue must not begin",
        ),
        (
            "results_queue = \"amq.rabbitmq.reply-to\"",
            "apps.default.results_queue must be the name",
        ),
        (
            "empty_recipients = \"all\"",
            "apps.default.empty_recipients must be one of \"broadcast\", \"reject\"",
        ),
        ("endpoint = \"http://127.0.0.1\"", "apps.default.endpoint is given together with region"),
        ("[broker]\nprefetch = 0", "broker.prefetch must be a whole number, 1 to 65535"),
        ("[broker]\nprefetch = 65536", "broker.prefetch must"),
        ("[broker]\nhold_bytes = 0", "broker.hold_bytes must be a size above zero"),
        ("[broker]\nmax_job_bytes = \"0MiB\"", "broker.max_job_bytes must be"),
        ("[broker]\nmax_job_bytes = \"many\"", "broker.max_job_bytes must be"),
        ("[broker]\ndeclare = \"yes\"", "broker.declare must be true or false"),
        ("[broker]\ncert_file = \"c\"", "broker.cert_file needs the private key"),
        ("[broker]\nkey_file = \"k\"", "broker.key_file needs the certificate"),
        ("[broker]\nca_file = \"c\"", "broker.ca_file has no effect"),
        ("[broker]\nurl = []", "broker.url must name at least one broker"),
        ("[[broker]]\nprefetch = 1", "broker must be a section"),
        ("[state]\nretention = \"0d\"", "state.retention must"),
        ("[admin]\nlisten = \"9464\"", "admin.listen must be an IP address and a port"),
        ("[log]\nfilter = \"a=b=c\"", "log.filter must be a log filter"),
        ("[log]\nformat = \"xml\"", "log.format must be one of \"text\", \"json\""),
        ("[apps.Default]", "apps.Default has a name"),
        ("[apps.\"a b\"]", "apps.a b has a name"),
        ("[apps.\"\"]", "apps. has a name"),
    ];
    for (lines, expected) in cases {
        let said = refusal(&with(lines), &[]);
        assert!(said.starts_with(&format!("groupcast.toml: {expected}")), "{lines}\n{said}");
    }
}

#[test]
fn a_bad_value_of_the_environment_names_its_variable() {
    let cases = [
        ("GROUPCAST__BROKER__PREFETCH", "many"),
        ("GROUPCAST__APPS__DEFAULT__RETRY__HOLD", "5"),
        ("GROUPCAST__APPS__DEFAULT__BURST", "201"),
        ("GROUPCAST__APPS__DEFAULT__SECRET_KEY", ""),
        ("GROUPCAST__APPS__DEFAULT__REGION", "mars"),
        ("GROUPCAST__BROKER__URL", ""),
        ("GROUPCAST__LOG__FILTER", "a=b=c"),
    ];
    for (name, value) in cases {
        let said = refusal(SMALLEST, &[(name, value)]);
        assert!(said.starts_with(&format!("{name} must ")), "{said}");
    }
}

#[test]
fn urls_that_would_connect_elsewhere_or_nowhere_are_refused() {
    let brokers = [
        "http://h",
        "h:5672",
        "amqp://",
        "amqp:h",
        "amqp://u@h",
        "amqp://u:p@h/",
        "amqp://u:p@h/a/b",
        "amqp://u:p@h/v?heartbeet=1",
        "amqp://u:p@h/v?heartbeat=x",
        "amqp://u:p@one,two/v",
        "amqp://u:1#x@h/v",
        "amqp://u:***@h/v",
    ];
    for url in brokers {
        assert!(
            refusal(&with(&format!("[broker]\nurl = {url:?}")), &[])
                .starts_with("groupcast.toml: broker.url must "),
            "{url}"
        );
    }
    let states = [
        "postgres://h",
        "sqlite:",
        "sqlite::memory:",
        "sqlite://:memory:",
        "sqlite:file::memory:?cache=shared",
        "sqlite:file:x.db",
        "sqlite:a?mode=ro",
        "redis:",
        "redis://h/x",
        "redis://p@h",
        "redis://:***@h",
        "file",
    ];
    for url in states {
        assert!(
            refusal(&with(&format!("[state]\nurl = {url:?}")), &[])
                .starts_with("groupcast.toml: state.url must "),
            "{url}"
        );
    }
    for url in ["ftp://h", "h:80", "http://h/?a=b", "https://h/path", "http://u:p@h", "http://", ""]
    {
        let said = refusal(
            &SMALLEST.replace("region = \"singapore\"", &format!("endpoint = {url:?}")),
            &[],
        );
        assert!(said.starts_with("groupcast.toml: apps.default.endpoint must "), "{url}: {said}");
    }
}

#[test]
fn what_is_missing_is_named_with_both_ways_to_give_it() {
    for (key, line) in [("sdk_app_id", 1), ("secret_key", 2), ("region", 3)] {
        let text: Vec<&str> = SMALLEST
            .lines()
            .enumerate()
            .filter(|(number, _)| *number != line)
            .map(|(_, text)| text)
            .collect();
        let said = refusal(&text.join("\n"), &[]);
        assert!(said.starts_with(&format!("apps.default.{key} is missing; write ")), "{said}");
        let variable = format!("or set GROUPCAST__APPS__DEFAULT__{}", key.to_uppercase());
        assert!(said.contains("in groupcast.toml, ") && said.ends_with(&variable), "{said}");
    }
    for text in ["", "[apps]", "[broker]\nprefetch = 1"] {
        assert!(refusal(text, &[]).contains("add [apps.default]"));
    }
}

#[test]
fn an_unknown_region_lists_the_known_ones() {
    let said = refusal(&SMALLEST.replace("singapore", "mumbai"), &[]);
    assert!(
        said.contains("\"china\", \"singapore\", \"seoul\"") && said.contains("endpoint"),
        "{said}"
    );
}

#[test]
fn a_syntax_error_is_placed_by_line_and_column() {
    let said = refusal("[broker]\n  prefetch = = 1\n", &[]);
    assert!(said.starts_with("groupcast.toml:2:14: "), "{said}");
}

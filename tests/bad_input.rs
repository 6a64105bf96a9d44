//! No mistake becomes a broadcast. Bad input makes no call, gets one result that names the field,
//! and leaves one dead letter with the identical bytes. The daemon continues.

use groupcast::settle::result::{ErrorKind, Status};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::json;

use crate::support::{
    producer::{header, text},
    scene::{Scene, job},
};

/// The message to publish, and the beginning of the result's `info`.
struct Case {
    name: &'static str,
    body: Vec<u8>,
    properties: BasicProperties,
    info: &'static str,
}

fn body(name: &'static str, body: impl Into<Vec<u8>>, info: &'static str) -> Case {
    Case { name, body: body.into(), properties: BasicProperties::default(), info }
}

fn property(name: &'static str, properties: BasicProperties, info: &'static str) -> Case {
    Case { name, body: serde_json::to_vec(&job("g", 1)).unwrap(), properties, info }
}

fn with_header(name: &'static str, key: &'static str, value: AMQPValue) -> Case {
    let mut headers = FieldTable::default();
    headers.insert(key.into(), value);
    property(name, BasicProperties::default().with_headers(headers), key)
}

fn bad_bodies() -> Vec<Case> {
    let of = |field: &str, value: serde_json::Value| {
        let mut job = job("g", 1);
        job[field] = value;
        serde_json::to_vec(&job).unwrap()
    };
    let deep = format!("{}{}", r#"{"GroupId":"g","Content":"#, "[".repeat(100_000));
    vec![
        body(
            "a misspelt recipient list",
            r#"{"GroupId":"g","Content":"c","ToMember_Account":["a"]}"#,
            "ToMember_Account: unknown field",
        ),
        body(
            "a list in another case",
            r#"{"GroupId":"g","Content":"c","tomembers_account":["a"]}"#,
            "tomembers_account: unknown field",
        ),
        body("a misspelt group", r#"{"GroupID":"g","Content":"c"}"#, "GroupID: unknown field"),
        body(
            "an unknown field",
            r#"{"GroupId":"g","Content":"c","Priority":1}"#,
            "Priority: unknown field",
        ),
        body(
            "a field of another API",
            r#"{"GroupId":"g","Content":"c","To_Account":["a"]}"#,
            "To_Account: unknown field",
        ),
        body(
            "two groups",
            r#"{"GroupId":"g","GroupId":"h","Content":"c"}"#,
            "GroupId: is given twice",
        ),
        body(
            "two lists",
            r#"{"ToMembers_Account":["a"],"GroupId":"g","Content":"c","ToMembers_Account":[]}"#,
            "ToMembers_Account: is given twice",
        ),
        body(
            "two contents",
            r#"{"GroupId":"g","Content":"c","Content":"c"}"#,
            "Content: is given twice",
        ),
        body(
            "two topics",
            r#"{"GroupId":"g","Content":"c","TopicId":"t","TopicId":"t"}"#,
            "TopicId: is given twice",
        ),
        body(
            "a list of null",
            of("ToMembers_Account", json!(null)),
            "ToMembers_Account: invalid type: null",
        ),
        body("a null group", of("GroupId", json!(null)), "GroupId: invalid type: null"),
        body("a null content", of("Content", json!(null)), "Content: invalid type: null"),
        body("a null topic", of("TopicId", json!(null)), "TopicId: invalid type: null"),
        body(
            "a null recipient",
            of("ToMembers_Account", json!(["a", null])),
            "ToMembers_Account[1]: invalid type: null",
        ),
        body(
            "a number as recipient",
            of("ToMembers_Account", json!(["a", "b", 7])),
            "ToMembers_Account[2]: invalid type: integer",
        ),
        body(
            "a recipient in a list",
            of("ToMembers_Account", json!([["a"]])),
            "ToMembers_Account[0]: invalid type: sequence",
        ),
        body(
            "a string as list",
            of("ToMembers_Account", json!("a")),
            "ToMembers_Account: invalid type: string",
        ),
        body(
            "an object as list",
            of("ToMembers_Account", json!({"a": 1})),
            "ToMembers_Account: invalid type: map",
        ),
        body(
            "false as list",
            of("ToMembers_Account", json!(false)),
            "ToMembers_Account: invalid type: boolean",
        ),
        body("a number as group", of("GroupId", json!(7)), "GroupId: invalid type: integer"),
        body(
            "an object as content",
            of("Content", json!({"text": "c"})),
            "Content: invalid type: map",
        ),
        body("no group", r#"{"Content":"c"}"#, "GroupId: is missing"),
        body("no content", r#"{"GroupId":"g"}"#, "Content: is missing"),
        body("an empty object", "{}", "GroupId: is missing"),
        body(
            "a list instead of a job",
            r#"[{"GroupId":"g","Content":"c"}]"#,
            "body: invalid type: sequence",
        ),
        body("a string instead of a job", r#""GroupId""#, "body: invalid type: string"),
        body("null instead of a job", "null", "body: invalid type: null"),
        body("nothing", "", "body: is empty"),
        body("blanks", "  \n", "body: is empty"),
        body("text", "hello", "body: expected"),
        body(
            "truncated in the list",
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a","b""#,
            "ToMembers_Account[2]: EOF",
        ),
        body(
            "truncated in a recipient",
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a","b"#,
            "ToMembers_Account[1]: EOF",
        ),
        body(
            "truncated after the list",
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a"]"#,
            "body: EOF",
        ),
        body(
            "a trailing comma",
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a",]}"#,
            "ToMembers_Account[1]: trailing comma",
        ),
        body(
            "two jobs in one message",
            r#"{"GroupId":"g","Content":"c"}{"GroupId":"g","Content":"c"}"#,
            "body: trailing characters",
        ),
        body("single quotes", r"{'GroupId':'g','Content':'c'}", "body: key must be a string"),
        body(
            "not UTF-8",
            b"{\"GroupId\":\"g\",\"Content\":\"\xff\xfe\"}".to_vec(),
            "body: is not UTF-8",
        ),
        body(
            "UTF-16",
            "{\"GroupId\"".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>(),
            "body: ",
        ),
        body(
            "a byte-order mark",
            "\u{feff}{\"GroupId\":\"g\",\"Content\":\"c\"}",
            "body: begins with a byte-order mark",
        ),
        body("a lone surrogate", r#"{"GroupId":"g","Content":"\ud83d"}"#, "Content: "),
        body("a raw NUL", "{\"GroupId\":\"g\",\"Content\":\"a\0b\"}", "Content: control character"),
        body(
            "a NUL after the job",
            "{\"GroupId\":\"g\",\"Content\":\"c\"}\0",
            "body: trailing characters",
        ),
        body(
            "a NUL in an id",
            of("ToMembers_Account", json!(["a\0b"])),
            "ToMembers_Account[0]: has a control character",
        ),
        body("deep nesting", deep, "Content: invalid type: sequence"),
        body("an empty group", of("GroupId", json!("")), "GroupId: is blank"),
        body("a blank group", of("GroupId", json!(" \t ")), "GroupId: is blank"),
        body(
            "an empty recipient",
            of("ToMembers_Account", json!([""])),
            "ToMembers_Account[0]: is blank",
        ),
        body(
            "a blank recipient",
            of("ToMembers_Account", json!(["a", "\u{3000}"])),
            "ToMembers_Account[1]: is blank",
        ),
        body("an empty topic", of("TopicId", json!("")), "TopicId: is blank"),
        body("a long group", of("GroupId", json!("g".repeat(97))), "GroupId: is 97 bytes long"),
        body("a long topic", of("TopicId", json!("t".repeat(97))), "TopicId: is 97 bytes long"),
        body(
            "a long recipient",
            of("ToMembers_Account", json!(["é".repeat(17)])),
            "ToMembers_Account[0]: is 34 bytes long",
        ),
        body(
            "a line break in a group",
            of("GroupId", json!("g\n")),
            "GroupId: has a control character",
        ),
        body(
            "a long content",
            of("Content", json!("é".repeat(6145))),
            "Content: is 12290 bytes long",
        ),
        body(
            "a body over the limit",
            of("ToMembers_Account", json!(vec!["a-user-id-of-some-length"; 40_000])),
            "body: is ",
        ),
    ]
}

fn bad_properties() -> Vec<Case> {
    let plain = BasicProperties::default;
    vec![
        property("a priority over 9", plain().with_priority(10), "priority: is 10"),
        property(
            "a compressed body",
            plain().with_content_encoding("gzip".into()),
            "content_encoding: ",
        ),
        property("a blank job id", plain().with_message_id(" ".into()), "message_id: is blank"),
        property(
            "a job id with a control character",
            plain().with_message_id("a\u{7}".into()),
            "message_id: has a control",
        ),
        property(
            "a job id too long for its result",
            plain().with_message_id("i".repeat(249).as_str().into()),
            "message_id: is 249",
        ),
        with_header("a misspelt deadline", "groupcast-dead-line", text("2030-01-01T00:00:00Z")),
        with_header("a deadline without a zone", "groupcast-deadline", text("2030-01-01T00:00:00")),
        with_header("a deadline of words", "groupcast-deadline", text("tomorrow")),
        with_header(
            "a deadline in milliseconds",
            "groupcast-deadline",
            AMQPValue::LongLongInt(1_900_000_000_000),
        ),
        with_header("a deadline of true", "groupcast-deadline", AMQPValue::Boolean(true)),
        with_header("a time before 1970", "groupcast-not-before", AMQPValue::LongInt(-1)),
        with_header("an empty time", "groupcast-not-before", text("")),
        with_header("an unknown promise", "groupcast-delivery", text("exactly-once")),
        with_header("a number as promise", "groupcast-delivery", AMQPValue::LongInt(1)),
        with_header("an attempt of zero", "groupcast-attempt", AMQPValue::LongInt(0)),
        with_header("an attempt in words", "groupcast-attempt", text("one")),
        with_header("a deadline in capitals", "Groupcast-Deadline", text("2020-01-01T00:00:00Z")),
        with_header(
            "a deadline with an underscore",
            "groupcast_deadline",
            text("2020-01-01T00:00:00Z"),
        ),
        with_header("a deadline with a blank", "groupcast-deadline ", text("2020-01-01T00:00:00Z")),
        property(
            "a body in GBK",
            plain().with_content_type("application/json; charset=GBK".into()),
            "content_type: the charset `gbk`",
        ),
    ]
}

#[tokio::test]
async fn bad_input_is_answered_with_its_reason_and_never_sent() {
    let broker = crate::support::broker::Broker::shared().await;
    let (app, sandbox) =
        (crate::support::scene::unique_app(), crate::support::scene::sandbox().await);
    let configuration =
        crate::support::scene::configuration(broker.url(), &app, &sandbox.endpoint(), "");
    let configuration =
        configuration.replace("[broker]\n", "[broker]\nmax_job_bytes = \"500KB\"\n");
    // At debug level, too, the log must quote none of the jobs.
    let configuration = format!("{configuration}[log]\nfilter = \"debug\"\n");
    let daemon = crate::support::daemon::Daemon::start(&configuration).await;
    let producer = crate::support::producer::Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;

    for Case { name, body, properties, info } in bad_bodies().into_iter().chain(bad_properties()) {
        let properties = properties.with_reply_to(scene.producer.reply_queue.as_str().into());
        scene.producer.publish(&scene.app, &body, properties).await;
        let result = scene.producer.result().await;
        assert_eq!(result.status, Status::Rejected, "{name}: {result:?}");
        assert_eq!(
            (result.calls, result.recipients, result.batches, result.audience),
            (0, None, None, None),
            "{name}"
        );
        assert_eq!((result.errors.len(), result.errors[0].kind), (1, ErrorKind::Invalid), "{name}");
        assert!(result.errors[0].info.starts_with(info), "{name}: {}", result.errors[0].info);
        let letter = scene.dead_letter().await;
        assert_eq!(letter.data, body, "{name}");
        assert_eq!(header(&letter, "groupcast-error-kind").as_deref(), Some("invalid"), "{name}");
        assert_eq!(
            header(&letter, "groupcast-error-info").as_deref(),
            Some(result.errors[0].info.as_str()),
            "{name}"
        );
    }
    assert_eq!(scene.sandbox.stats().calls, 0);
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 0);
    assert!(scene.producer.hears_nothing().await);

    let good = scene.send(&job("g", 2)).await;
    assert_eq!(good.status, Status::Sent);
    assert!(!scene.daemon.log().contains("panicked"));
}

#[tokio::test]
async fn what_could_be_read_of_a_rejected_job_is_in_its_result() {
    let mut scene = Scene::start().await;
    let body = br#"{"GroupId":"g-1","TopicId":"t-1","Content":7}"#;
    scene.producer.publish(&scene.app, body, scene.producer.properties()).await;
    let result = scene.producer.result().await;
    assert_eq!(
        (result.group_id.as_deref(), result.topic_id.as_deref()),
        (Some("g-1"), Some("t-1"))
    );
}

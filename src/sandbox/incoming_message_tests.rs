//! Which bodies of a message are accepted.

use serde_json::json;

use super::*;

fn message() -> Value {
    json!({
        "GroupId": "g",
        "Random": 7,
        "MsgBody": [{"MsgType": "TIMCustomElem", "MsgContent": {"Data": "c", "Desc": "", "Ext": ""}}],
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut body = message();
    body[name] = value;
    body
}

fn read(body: &Value) -> IncomingMessage {
    IncomingMessage::read(body.to_string().as_bytes()).unwrap()
}

fn code_with(body: &Value, settings: &SandboxMessageSettings) -> i64 {
    let checked = IncomingMessage::read(body.to_string().as_bytes())
        .and_then(|message| message.check(settings));
    checked.map_or_else(|refusal| refusal.code, |()| 0)
}

fn code(body: &Value) -> i64 {
    code_with(body, &SandboxMessageSettings::default())
}

fn targeted(targeting: TargetingPlan) -> SandboxMessageSettings {
    SandboxMessageSettings { targeting, ..SandboxMessageSettings::default() }
}

fn recipients(count: usize) -> Value {
    (0..count).map(|n| format!("user_{n}")).collect()
}

#[test]
fn a_message_is_read_with_all_it_says() {
    let mut body = with("To_Account", json!(["a", "b"]));
    body["From_Account"] = json!("sender");
    body["OnlineOnlyFlag"] = json!(1);
    let message = read(&body);
    assert_eq!((&*message.notification.group, &*message.notification.content), ("g", "c"));
    assert_eq!(message.notification.recipients.len(), 2);
    assert_eq!((message.random, message.from_account.as_deref()), (7, Some("sender")));
    assert!(message.online_only && !message.fields_json.contains("To_Account"));
}

#[test]
fn absent_empty_and_misspelt_recipients_mean_everyone() {
    for body in
        [message(), with("To_Account", json!([])), with("ToMembers_Account", json!(["misspelt"]))]
    {
        assert!(read(&body).notification.recipients.is_empty());
        assert_eq!(code(&body), 0, "{body}");
    }
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    let code = |body: &[u8]| IncomingMessage::read(body).unwrap_err().code;
    assert_eq!((code(b"{"), code(b""), code(b"[]"), code(b"null")), (60003, 60003, 10004, 10004));
}

#[test]
fn a_required_field_cannot_be_left_out() {
    for name in ["GroupId", "Random", "MsgBody"] {
        let mut body = message();
        body.as_object_mut().unwrap().remove(name);
        assert_eq!(code(&body), 10004, "{name}");
    }
}

#[test]
fn random_has_32_bits_without_a_sign() {
    assert_eq!(
        (code(&with("Random", json!(0))), code(&with("Random", json!(4_294_967_295_u64)))),
        (0, 0)
    );
    for wrong in [json!(-1), json!(4_294_967_296_u64), json!(1.5), json!("7"), json!(null)] {
        assert_eq!(code(&with("Random", wrong.clone())), 10004, "{wrong}");
    }
}

#[test]
fn a_field_with_a_wrong_type_or_value_is_refused() {
    for (name, wrong) in [
        ("GroupId", json!(5)),
        ("From_Account", json!(5)),
        ("From_Account", json!("")),
        ("To_Account", json!("a")),
        ("To_Account", json!(null)),
        ("To_Account", json!([""])),
        ("OnlineOnlyFlag", json!(true)),
        ("SendMsgControl", json!("NoUnread")),
        ("SendMsgControl", json!(["NoRead"])),
        ("MsgPriority", json!("high")),
        ("ForbidCallbackControl", json!(["ForbidAllCallbacks"])),
        ("OfflinePushInfo", json!([])),
        ("OfflinePushInfo", json!({"PushFlag": 2})),
        ("OfflinePushInfo", json!({"Title": 5})),
        ("CloudCustomData", json!({})),
        ("SupportMessageExtension", json!("1")),
        ("NeedReadReceipt", json!(2)),
        ("GroupAtInfo", json!({})),
        ("TopicId", json!(null)),
    ] {
        assert_eq!(code(&with(name, wrong.clone())), 10004, "{name}: {wrong}");
    }
    assert_eq!(code(&with("To_Account", json!(["a", 5]))), 60015);
}

#[test]
fn every_documented_field_is_accepted() {
    for (name, value) in [
        ("From_Account", json!("admin")),
        ("OnlineOnlyFlag", json!(0)),
        ("SendMsgControl", json!(["NoUnread", "NoLastMsg", "NoMsgCheck"])),
        ("MsgPriority", json!("Lowest")),
        (
            "ForbidCallbackControl",
            json!(["ForbidBeforeSendMsgCallback", "ForbidAfterSendMsgCallback"]),
        ),
        (
            "OfflinePushInfo",
            json!({"PushFlag": 1, "Title": "t", "AndroidInfo": {}, "ApnsInfo": {"BadgeMode": 1}}),
        ),
        ("CloudCustomData", json!("data")),
        ("SupportMessageExtension", json!(1)),
        ("NeedReadReceipt", json!(0)),
        ("GroupAtInfo", json!([{"GroupAtAllFlag": 1}])),
    ] {
        assert_eq!(code(&with(name, value)), 0, "{name}");
    }
}

#[test]
fn the_elements_are_texts_and_at_most_one_custom_element() {
    let text = json!({"MsgType": "TIMTextElem", "MsgContent": {"Text": "t"}});
    let custom = message()["MsgBody"][0].clone();
    let body = with("MsgBody", json!([text, custom, text]));
    assert_eq!((code(&body), &*read(&body).notification.content), (0, "t\nc\nt"));
    for wrong in [
        json!([]),
        json!({}),
        json!(["text"]),
        json!([custom, custom]),
        json!([{"MsgType": "TIMFaceElem", "MsgContent": {"Index": 1}}]),
        json!([{"MsgType": "TIMTextElem"}]),
        json!([{"MsgType": "TIMTextElem", "MsgContent": {"text": "t"}}]),
        json!([{"MsgType": "TIMTextElem", "MsgContent": {"Text": 5}}]),
        json!([{"MsgType": "TIMCustomElem", "MsgContent": {"Data": {}}}]),
        json!([{"MsgType": "TIMCustomElem", "MsgContent": {"Data": "", "Ext": 5}}]),
    ] {
        assert_eq!(code(&with("MsgBody", wrong.clone())), 10004, "{wrong}");
    }
}

#[test]
fn the_content_has_at_most_12_kib() {
    for (kind, name) in [("TIMCustomElem", "Data"), ("TIMTextElem", "Text")] {
        let of = |bytes| {
            let content = "x".repeat(bytes);
            code(&with("MsgBody", json!([{"MsgType": kind, "MsgContent": {name: content}}])))
        };
        assert_eq!((of(12_288), of(12_289)), (0, 80002), "{kind}");
    }
}

#[test]
fn an_online_message_takes_no_send_control() {
    let mut body = with("SendMsgControl", json!(["NoUnread"]));
    assert_eq!(code(&body), 0);
    body["OnlineOnlyFlag"] = json!(1);
    assert_eq!(code(&body), 10004);
}

#[test]
fn the_51st_recipient_is_one_too_many() {
    let of = |count| code(&with("To_Account", recipients(count)));
    assert_eq!((of(50), of(51)), (0, 10005));
}

#[test]
fn a_group_id_can_ask_for_a_group_that_is_not_there() {
    assert_eq!(code(&with("GroupId", json!("unknown-1"))), 10010);
    assert_eq!(code(&with("GroupId", json!(""))), 10015);
}

#[test]
fn a_plan_without_targeting_refuses_or_ignores_recipients() {
    let body = with("To_Account", json!(["a"]));
    assert_eq!(code_with(&body, &targeted(TargetingPlan::Refuse)), 10059);
    assert_eq!(code_with(&body, &targeted(TargetingPlan::Broadcast)), 0);
    assert_eq!(code_with(&message(), &targeted(TargetingPlan::Refuse)), 0);
    assert_eq!(
        code_with(&with("To_Account", json!([])), &targeted(TargetingPlan::Refuse)),
        0,
        "an empty list is an absent one"
    );
}

#[test]
fn a_topic_or_an_avchatroom_takes_no_recipients() {
    let mut in_topic = with("TopicId", json!("@TGS#_g@TOPIC#_t"));
    in_topic["GroupId"] = json!("@TGS#_g");
    assert_eq!(code(&in_topic), 0);
    in_topic["To_Account"] = json!(["a"]);
    assert_eq!(code(&in_topic), 10004);
    let settings = SandboxMessageSettings {
        avchatroom: vec!["g".into()],
        ..SandboxMessageSettings::default()
    };
    assert_eq!(code_with(&message(), &settings), 0);
    assert_eq!(code_with(&with("To_Account", json!(["a"])), &settings), 10004);
}

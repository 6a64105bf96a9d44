//! `send_group_msg` through a real socket.

use hyper::Method;
use serde_json::{Value, json};

use super::{
    DiscardReason, FaultRule, InjectedFault, ReceivedAudience, Sandbox, SandboxCommand,
    tests::{control, exchange, json_in, path_of, started},
};

fn message(group: &str, random: u32) -> Value {
    json!({
        "GroupId": group,
        "Random": random,
        "MsgBody": [{"MsgType": "TIMCustomElem", "MsgContent": {"Data": "hello"}}],
    })
}

fn targeted(random: u32, recipients: &[&str]) -> Value {
    let mut body = message("g", random);
    body["To_Account"] = json!(recipients);
    body
}

async fn post(sandbox: &Sandbox, body: &Value) -> Value {
    let answer = exchange(sandbox, &Method::POST, &path_of("send_group_msg"), body).await.unwrap();
    json_in(&answer)
}

async fn notify(sandbox: &Sandbox) -> Value {
    let path = path_of("send_group_system_notification");
    let body = json!({"GroupId": "g", "Content": "hello", "ToMembers_Account": ["a"]});
    json_in(&exchange(sandbox, &Method::POST, &path, &body).await.unwrap())
}

async fn set(sandbox: &Sandbox, settings: Value) {
    let answer = control(sandbox, Method::PATCH, "settings", settings).await;
    assert!(answer["error"].is_null(), "{answer}");
}

#[tokio::test]
async fn a_message_is_answered_and_received() {
    let sandbox = started(200).await;
    let mut body = targeted(7, &["a", "b"]);
    let answer = post(&sandbox, &body).await;
    let received = sandbox.received(None).remove(0);
    assert_eq!(
        answer,
        json!({
            "ActionStatus": "OK", "ErrorInfo": "", "ErrorCode": 0, "MsgSeq": 1,
            "MsgTime": received.at.as_second(),
        })
    );
    assert_eq!((received.command, received.random), (SandboxCommand::SendGroupMsg, Some(7)));
    assert_eq!((&*received.content, received.audience), ("hello", ReceivedAudience::Members));
    assert_eq!(received.recipients, Some(vec!["a".into(), "b".into()]));
    body.as_object_mut().unwrap().remove("To_Account");
    assert_eq!((received.message, received.msg_seq), (Some(body), Some(1)));
}

#[tokio::test]
async fn the_list_of_calls_names_the_command() {
    let sandbox = started(200).await;
    notify(&sandbox).await;
    post(&sandbox, &message("g", 1)).await;
    let calls = control(&sandbox, Method::GET, "received", json!(null)).await;
    assert_eq!(
        (&calls[0]["command"], &calls[0]["message"]),
        (&json!("send_group_system_notification"), &json!(null))
    );
    assert_eq!(
        (&calls[1]["command"], &calls[1]["audience"]),
        (&json!("send_group_msg"), &json!("all"))
    );
}

#[tokio::test]
async fn only_stored_messages_advance_the_sequence_of_their_group() {
    let sandbox = started(200).await;
    let mut online = message("g", 3);
    online["OnlineOnlyFlag"] = json!(1);
    let mut seqs = Vec::new();
    for body in [
        message("g", 1),
        message("g", 2),
        online,
        message("h", 4),
        message("avchatroom", 5),
        message("g", 6),
    ] {
        seqs.push(post(&sandbox, &body).await["MsgSeq"].as_u64().unwrap());
    }
    assert_eq!(seqs, [1, 2, 2, 1, 0, 3]);
}

#[tokio::test]
async fn a_plan_that_ignores_recipients_tells_the_whole_group() {
    let sandbox = started(200).await;
    set(&sandbox, json!({"targeting": "broadcast"})).await;
    assert_eq!(post(&sandbox, &targeted(1, &["a"])).await["ErrorCode"], 0);
    assert_eq!(post(&sandbox, &message("g", 2)).await["ErrorCode"], 0);
    let received = sandbox.received(None).remove(0);
    assert_eq!((received.audience, received.recipients), (ReceivedAudience::All, None));
    let stats = sandbox.stats();
    assert_eq!((stats.messages.ignored_targets, stats.deliveries.repeated_recipients), (1, 1));
}

#[tokio::test]
async fn a_plan_without_targeting_refuses_a_message_with_recipients() {
    let sandbox = started(200).await;
    set(&sandbox, json!({"targeting": "refuse"})).await;
    assert_eq!(post(&sandbox, &targeted(1, &["a"])).await["ErrorCode"], 10059);
    assert_eq!(post(&sandbox, &targeted(2, &[])).await["ErrorCode"], 0);
    assert_eq!((sandbox.stats().accepted, sandbox.stats().refused), (1, 1));
}

#[tokio::test]
async fn each_command_has_a_call_limit_of_its_own() {
    let sandbox = started(1).await;
    assert_eq!(notify(&sandbox).await["ErrorCode"], 0);
    assert_eq!(post(&sandbox, &message("g", 1)).await["ErrorCode"], 0);
    assert_eq!(sandbox.stats().max_accepted_in_1s, 1);
}

#[tokio::test]
async fn a_recipient_reached_by_both_commands_is_a_repeat() {
    let sandbox = started(200).await;
    notify(&sandbox).await;
    post(&sandbox, &targeted(1, &["a", "b"])).await;
    assert_eq!(sandbox.stats().deliveries.repeated_recipients, 1);
}

#[tokio::test]
async fn faults_strike_messages_by_their_group_and_recipients() {
    let sandbox = started(200).await;
    let fault = InjectedFault::Error { code: 10101, info: String::new() };
    sandbox.add_fault(FaultRule { matching: Some("b".into()), ..fault.into() }).unwrap();
    assert_eq!(post(&sandbox, &targeted(1, &["a"])).await["ErrorCode"], 0);
    assert_eq!(post(&sandbox, &targeted(2, &["b"])).await["ErrorCode"], 10101);
    assert_eq!(sandbox.received(None).len(), 1);
}

/// Two messages of one group at once, of which the limit lets one pass.
async fn post_two(sandbox: &Sandbox) -> [Value; 2] {
    let (first, second) = (message("g", 1), message("g", 2));
    tokio::join!(post(sandbox, &first), post(sandbox, &second)).into()
}

#[tokio::test]
async fn a_message_over_the_limit_of_its_group_is_dropped_with_a_reason() {
    let sandbox = started(200).await;
    set(&sandbox, json!({"messages_per_second_per_group": 1})).await;
    let answers = post_two(&sandbox).await;
    let dropped = answers.iter().find(|answer| answer["MsgDropReason"] == "MsgFreqCtrl").unwrap();
    assert_eq!((&dropped["ErrorCode"], &dropped["MsgSeq"]), (&json!(0), &json!(0)));
    assert!(post(&sandbox, &message("h", 3)).await["MsgDropReason"].is_null());
    let calls = sandbox.received(Some("g"));
    assert_eq!((calls[1].discarded, calls[1].msg_seq), (Some(DiscardReason::GroupLimit), None));
    let stats = sandbox.stats();
    assert_eq!((stats.calls, stats.accepted, stats.refused), (3, 2, 0));
    assert_eq!(
        (stats.messages.dropped_over_group_limit, stats.messages.max_of_a_group_in_1s),
        (1, 1)
    );
}

#[tokio::test]
async fn a_message_over_the_limit_of_its_group_can_be_refused() {
    let sandbox = started(200).await;
    let settings = json!({"messages_per_second_per_group": 1, "group_limit_answer": "10023"});
    set(&sandbox, settings).await;
    let mut codes = post_two(&sandbox).await.map(|answer| answer["ErrorCode"].as_i64());
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(10023)]);
}

#[tokio::test]
async fn a_duplicate_is_answered_like_the_first_message_and_reaches_nobody() {
    let sandbox = started(200).await;
    let first = post(&sandbox, &targeted(1, &["a"])).await;
    post(&sandbox, &message("g", 2)).await;
    assert_eq!(post(&sandbox, &targeted(1, &["a"])).await, first);
    let stats = sandbox.stats();
    assert_eq!(
        (stats.messages.duplicates_discarded, stats.messages.different_messages_discarded),
        (1, 0)
    );
    assert_eq!((stats.accepted, stats.refused, stats.deliveries.repeated_recipients), (2, 0, 0));
    let calls = control(&sandbox, Method::GET, "received", json!(null)).await;
    assert_eq!(
        (&calls[0]["discarded"], &calls[2]["discarded"]),
        (&json!(null), &json!("duplicate"))
    );
}

#[tokio::test]
async fn a_different_message_with_the_same_key_is_discarded_and_counted_apart() {
    let sandbox = started(200).await;
    post(&sandbox, &targeted(1, &["a"])).await;
    post(&sandbox, &targeted(1, &["b"])).await;
    let stats = sandbox.stats();
    assert_eq!(
        (stats.messages.duplicates_discarded, stats.messages.different_messages_discarded),
        (0, 1)
    );
    assert_eq!(sandbox.received(None)[1].discarded, Some(DiscardReason::DifferentMessage));
}

#[tokio::test]
async fn the_answer_to_a_duplicate_can_be_set() {
    let sandbox = started(200).await;
    post(&sandbox, &message("g", 1)).await;
    for (answer, code, seq) in
        [("zero_seq", json!(0), json!(0)), ("10024", json!(10024), json!(null))]
    {
        set(&sandbox, json!({"duplicate_answer": answer})).await;
        let got = post(&sandbox, &message("g", 1)).await;
        assert_eq!((&got["ErrorCode"], &got["MsgSeq"]), (&code, &seq), "{answer}");
    }
    let stats = sandbox.stats();
    assert_eq!((stats.messages.duplicates_discarded, stats.refused), (2, 0));
}

#[tokio::test]
async fn the_deduplication_can_be_switched_off() {
    let sandbox = started(200).await;
    for settings in
        [json!({"dedup_key": "off"}), json!({"dedup_key": "random", "dedup_window_ms": 0})]
    {
        set(&sandbox, settings).await;
        post(&sandbox, &message("g", 1)).await;
        post(&sandbox, &message("g", 1)).await;
    }
    assert_eq!((sandbox.stats().accepted, sandbox.stats().deliveries.repeated_recipients), (4, 3));
}

#[tokio::test]
async fn a_message_delivered_by_a_fault_occupies_its_key() {
    let sandbox = started(200).await;
    for fault in [
        InjectedFault::HttpStatus(502),
        InjectedFault::Reset,
        InjectedFault::Error { code: 60008, info: String::new() },
    ] {
        sandbox.reset();
        let rule = FaultRule { calls: Some(1), after_effect: true, ..fault.into() };
        sandbox.add_fault(rule).unwrap();
        let path = path_of("send_group_msg");
        // The answer is lost.
        drop(exchange(&sandbox, &Method::POST, &path, &targeted(1, &["a"])).await);
        assert_eq!(post(&sandbox, &targeted(1, &["a"])).await["MsgSeq"], 1);
        let stats = sandbox.stats();
        assert_eq!((stats.accepted, stats.messages.duplicates_discarded), (1, 1));
    }
}

#[tokio::test]
async fn a_fault_without_effect_leaves_the_key_free() {
    let sandbox = started(200).await;
    let rule = FaultRule { calls: Some(1), ..InjectedFault::HttpStatus(502).into() };
    sandbox.add_fault(rule).unwrap();
    let path = path_of("send_group_msg");
    exchange(&sandbox, &Method::POST, &path, &message("g", 1)).await.unwrap();
    assert_eq!(post(&sandbox, &message("g", 1)).await["MsgSeq"], 1);
    assert_eq!(sandbox.stats().messages.duplicates_discarded, 0);
}

/// The answer to a message with the `Random` of one that the limit of the group dropped before.
async fn repeat_of_a_dropped_message(dropped_occupies_key: bool) -> (Sandbox, Value) {
    let sandbox = started(200).await;
    let limited =
        json!({"messages_per_second_per_group": 1, "dropped_occupies_key": dropped_occupies_key});
    set(&sandbox, limited).await;
    let answers = post_two(&sandbox).await;
    let dropped = if answers[0]["MsgDropReason"].is_null() { 2 } else { 1 };
    set(&sandbox, json!({"messages_per_second_per_group": 0})).await;
    let answer = post(&sandbox, &message("g", dropped)).await;
    (sandbox, answer)
}

#[tokio::test]
async fn a_dropped_message_occupies_its_key() {
    let (sandbox, answer) = repeat_of_a_dropped_message(true).await;
    assert_eq!((&answer["ErrorCode"], &answer["MsgSeq"]), (&json!(0), &json!(0)));
    assert_eq!(sandbox.stats().messages.duplicates_discarded, 1);
}

#[tokio::test]
async fn a_dropped_message_can_leave_its_key_free() {
    let (sandbox, answer) = repeat_of_a_dropped_message(false).await;
    assert_eq!(answer["MsgSeq"], 2);
    assert_eq!(sandbox.stats().messages.duplicates_discarded, 0);
}

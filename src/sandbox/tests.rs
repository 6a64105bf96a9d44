//! The sandbox through a real socket.

use std::{io::ErrorKind, time::Duration};

use hyper::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::api::user_sig::SignedClaims;

/// Far longer than any operation here takes. A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn started(calls_per_second: u32) -> Sandbox {
    Sandbox::start(SandboxSettings { calls_per_second, ..SandboxSettings::default() })
        .await
        .unwrap()
}

fn path() -> String {
    path_of("send_group_system_notification")
}

pub(super) fn path_of(command: &str) -> String {
    let time = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let claims =
        SignedClaims { sdk_app_id: 1_400_000_000, identifier: "administrator", time, expire: 3600 };
    let user_sig = claims.sign(PUBLIC_KEY);
    format!(
        "/v4/group_open_http_svc/{command}?sdkappid=1400000000&identifier=administrator\
            &usersig={user_sig}&random=1&contenttype=json"
    )
}

/// Sends a request, and reads until the sandbox closes the connection.
pub(super) async fn exchange(
    sandbox: &Sandbox,
    method: &Method,
    path: &str,
    body: &Value,
) -> io::Result<String> {
    let mut stream = TcpStream::connect(sandbox.addr()).await?;
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\ncontent-length: {}",
        body.len()
    );
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .expect("an answer or an end")?;
    Ok(answer)
}

async fn notify(sandbox: &Sandbox, group: &str) -> io::Result<String> {
    let body =
        json!({"GroupId": group, "Content": "hello", "ToMembers_Account": ["user_1", "user_2"]});
    exchange(sandbox, &Method::POST, &path(), &body).await
}

pub(super) async fn control(
    sandbox: &Sandbox,
    method: Method,
    command: &str,
    body: Value,
) -> Value {
    let answer = exchange(sandbox, &method, &format!("/_sandbox/{command}"), &body).await.unwrap();
    json_in(&answer)
}

pub(super) fn json_in(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").expect("a head and a body").1).unwrap()
}

#[tokio::test]
async fn a_notification_is_answered_and_received() {
    let sandbox = started(200).await;
    let answer = notify(&sandbox, "g").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(json_in(&answer), json!({"ActionStatus": "OK", "ErrorInfo": "", "ErrorCode": 0}));
    let received = control(&sandbox, Method::GET, "received?group=g", json!(null)).await;
    assert_eq!(received[0]["recipients"], json!(["user_1", "user_2"]));
    assert_eq!(
        (&received[0]["audience"], &received[0]["topic"]),
        (&json!("members"), &json!(null))
    );
    assert_eq!(control(&sandbox, Method::GET, "received?group=h", json!(null)).await, json!([]));
}

#[tokio::test]
async fn a_refusal_is_a_200_with_its_code() {
    let sandbox = started(200).await;
    let answer = exchange(&sandbox, &Method::GET, "/", &json!(null)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(
        (&json_in(&answer)["ActionStatus"], &json_in(&answer)["ErrorCode"]),
        (&json!("FAIL"), &json!(60002))
    );
}

#[tokio::test]
async fn over_the_limit_calls_get_the_limits_code() {
    let sandbox = started(1).await;
    sandbox.change_settings(SettingsPatch { limit_code: Some(60011), ..SettingsPatch::default() });
    let (first, second) = tokio::join!(notify(&sandbox, "g"), notify(&sandbox, "g"));
    let mut codes =
        [&first, &second].map(|answer| json_in(answer.as_ref().unwrap())["ErrorCode"].as_i64());
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(60011)]);
}

#[tokio::test]
async fn a_reset_ends_the_connection_with_rst() {
    let sandbox = started(200).await;
    let rule = json!({"fault": "reset", "calls": 1, "after_effect": true});
    control(&sandbox, Method::POST, "faults", rule).await;
    assert_eq!(notify(&sandbox, "g").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!((sandbox.received(None).len(), sandbox.stats().accepted), (1, 1));
    assert!(notify(&sandbox, "g").await.is_ok());
}

#[tokio::test]
async fn a_fault_without_effect_delivers_nothing() {
    let sandbox = started(200).await;
    sandbox.add_fault(InjectedFault::HttpStatus(502)).unwrap();
    let answer = notify(&sandbox, "g").await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && answer.contains("text/html"),
        "{answer}"
    );
    assert_eq!((sandbox.received(None).len(), sandbox.stats().by_fault["http_status"]), (0, 1));
}

#[tokio::test]
async fn answers_that_are_not_json_or_lead_elsewhere_come_on_demand() {
    let sandbox = started(200).await;
    sandbox.add_fault(FaultRule { calls: Some(1), ..InjectedFault::NotJson.into() }).unwrap();
    sandbox.add_fault(FaultRule { calls: Some(1), ..InjectedFault::Redirect.into() }).unwrap();
    let not_json = notify(&sandbox, "g").await.unwrap();
    assert!(
        not_json.starts_with("HTTP/1.1 200 OK\r\n") && not_json.ends_with("</html>"),
        "{not_json}"
    );
    let redirect = notify(&sandbox, "g").await.unwrap();
    assert!(
        redirect.starts_with("HTTP/1.1 302 Found\r\n") && redirect.contains("location: http://"),
        "{redirect}"
    );
}

#[tokio::test]
async fn a_call_that_hangs_ends_with_the_sandbox() {
    let sandbox = started(200).await;
    sandbox.add_fault(FaultRule { group: Some("g".into()), ..InjectedFault::Hang.into() }).unwrap();
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    let body = r#"{"GroupId":"g","Content":"hello"}"#;
    let request = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        path(),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let struck = async {
        while sandbox.stats().by_fault.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, struck).await.expect("the call arrives");
    assert!(notify(&sandbox, "another").await.unwrap().contains("OK"));
    sandbox.stop().await;
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the end of the connection");
    assert!(rest.is_empty(), "nothing was answered, then {end:?}");
}

#[tokio::test]
async fn latency_delays_the_answer_by_at_least_that_much() {
    let sandbox = started(200).await;
    sandbox.add_fault(InjectedFault::LatencyMs(50)).unwrap();
    control(&sandbox, Method::PATCH, "settings", json!({"latency_ms": 20})).await;
    let start = tokio::time::Instant::now();
    assert!(notify(&sandbox, "g").await.unwrap().contains("OK"));
    assert!(start.elapsed() >= Duration::from_millis(70));
}

#[tokio::test]
async fn settings_change_while_it_runs_and_never_show_the_key() {
    let sandbox = started(200).await;
    let patch =
        json!({"secret_key": "rotated", "calls_per_second": 5, "admins": ["administrator"]});
    let settings = control(&sandbox, Method::PATCH, "settings", patch).await;
    assert_eq!(settings["calls_per_second"], 5);
    assert!(!settings.to_string().contains("rotated"));
    assert_eq!(json_in(&notify(&sandbox, "g").await.unwrap())["ErrorCode"], 70009);
}

#[tokio::test]
async fn the_control_api_refuses_what_it_does_not_know() {
    let sandbox = started(200).await;
    let misspelt = json!({"fault": "reset", "cals": 1});
    assert!(
        control(&sandbox, Method::POST, "faults", misspelt).await["error"]
            .as_str()
            .unwrap()
            .contains("cals")
    );
    let not_a_command =
        exchange(&sandbox, &Method::GET, "/_sandbox/x", &json!(null)).await.unwrap();
    assert!(not_a_command.starts_with("HTTP/1.1 404 "), "{not_a_command}");
    let wrong_method =
        exchange(&sandbox, &Method::PUT, "/_sandbox/stats", &json!(null)).await.unwrap();
    assert!(wrong_method.starts_with("HTTP/1.1 405 "), "{wrong_method}");
}

#[tokio::test]
async fn reset_and_clear_start_anew() {
    let sandbox = started(200).await;
    notify(&sandbox, "g").await.unwrap();
    control(&sandbox, Method::POST, "faults", json!({"fault": "hang"})).await;
    control(&sandbox, Method::DELETE, "faults", json!(null)).await;
    assert_eq!(control(&sandbox, Method::GET, "faults", json!(null)).await, json!([]));
    assert_eq!(control(&sandbox, Method::GET, "stats", json!(null)).await["calls"], 1);
    control(&sandbox, Method::POST, "reset", json!(null)).await;
    assert_eq!(control(&sandbox, Method::GET, "stats", json!(null)).await["calls"], 0);
}

#[tokio::test]
async fn a_body_far_too_long_is_refused() {
    let sandbox = started(200).await;
    let body = json!({"GroupId": "g", "Content": "x".repeat(5 << 20)});
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        path(),
        body.to_string().len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 2048];
    let length =
        tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.expect("an answer").unwrap();
    assert!(String::from_utf8_lossy(&answer[..length]).contains("80002"));
}

#[tokio::test]
async fn the_port_is_free_after_stop() {
    let sandbox = started(200).await;
    let listen = sandbox.addr();
    sandbox.stop().await;
    Sandbox::start(SandboxSettings { listen, ..SandboxSettings::default() }).await.unwrap();
}

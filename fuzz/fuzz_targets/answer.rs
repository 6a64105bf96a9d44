//! Every possible answer gets a verdict, and only one kind of answer is a success.
#![no_main]

use groupcast::api::{
    answer::parse,
    classify::{Verdict, classify},
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|given: (u16, &[u8])| {
    let (http_status, body) = given;
    if let Verdict::Sent = classify(parse(http_status, body, "secret-user-sig")) {
        assert!((200..300).contains(&http_status));
        let answer: Value = serde_json::from_slice(body).expect("a success is JSON");
        assert_eq!(
            (&answer["ErrorCode"], &answer["ActionStatus"]),
            (&Value::from(0), &Value::from("OK"))
        );
    }
});

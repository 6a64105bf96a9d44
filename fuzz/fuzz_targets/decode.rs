//! A body is rejected, or becomes a job whose batches have each recipient once. A list of
//! recipients that is not empty never becomes a broadcast.
#![no_main]

use groupcast::{
    accept::decode::{RecipientRule, Rules, decode},
    config::EmptyRecipients,
    job::Audience,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let rules = Rules {
        max_job_bytes: 1 << 20,
        batch_size: 3,
        empty_recipients: EmptyRecipients::Broadcast,
        recipients: RecipientRule::Always,
    };
    let Ok(job) = decode(body, &rules) else { return };
    let original: Value = serde_json::from_slice(body).expect("what is taken is JSON");
    let asked = original["ToMembers_Account"].as_array();
    let is_for_all = matches!(job.audience, Audience::All);
    assert_eq!(is_for_all, asked.is_none_or(Vec::is_empty));
    let mut sent = Vec::new();
    for batch in 0..job.batch_count() {
        let request: Value = serde_json::from_slice(&job.request_body(batch)).expect(
            "a request is JSON",
        );
        assert_eq!(request["GroupId"], original["GroupId"]);
        assert_eq!(request["Content"], original["Content"]);
        let recipients = request["ToMembers_Account"].as_array();
        assert_eq!(recipients.is_none(), is_for_all);
        assert!(
            recipients.is_none_or(|recipients| !recipients.is_empty() && recipients.len() <= 3)
        );
        sent.extend(recipients.into_iter().flatten().cloned());
    }
    let mut expected: Vec<Value> = Vec::new();
    for recipient in asked.into_iter().flatten() {
        if !expected.contains(recipient) {
            expected.push(recipient.clone());
        }
    }
    assert_eq!(sent, expected);
});

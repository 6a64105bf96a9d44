use super::*;
use crate::{
    accept::{
        decode::{RecipientRule, Rules, decode},
        envelope,
    },
    config::EmptyRecipients,
};

fn job(recipients: usize) -> Job {
    let rules = Rules {
        max_job_bytes: 1 << 20,
        batch_size: 2,
        empty_recipients: EmptyRecipients::Broadcast,
        recipients: RecipientRule::Always,
    };
    let users: Vec<String> = (0..recipients).map(|number| format!("u{number}")).collect();
    let body = serde_json::json!({ "GroupId": "g", "Content": "c", "ToMembers_Account": users });
    decode(body.to_string().as_bytes(), &rules).unwrap()
}

fn result(job: &Job, batches: Vec<BatchOutcome>) -> JobResult {
    let now = Timestamp::constant(1_800_000_000, 5_000_000);
    let (envelope, _) =
        envelope::read(&Default::default(), "app", None, &crate::config::Replies::anywhere(), now);
    let origin = Origin { app: "app", command: "send_group_msg" };
    let report = Report { batches, calls: 7, message: None };
    JobResult::finished(origin, &envelope, job, &report, now)
}

fn failed(kind: FailureKind, code: i64, attempts: u32) -> BatchOutcome {
    let fault = Fault { code: Some(code), http_status: None, info: format!("info {code}") };
    BatchOutcome::Failed { kind, fault, attempts }
}

fn unknown() -> BatchOutcome {
    BatchOutcome::Unknown {
        fault: Fault { code: None, http_status: None, info: "no answer".into() },
        attempts: 1,
    }
}

#[test]
fn the_status_says_how_much_was_sent() {
    use BatchOutcome::Sent;
    let refused = || failed(FailureKind::Job, 10004, 1);
    let expired = || failed(FailureKind::Expired, 0, 0);
    let cases = [
        (vec![Sent, Sent], Status::Sent),
        (vec![Sent, refused()], Status::Partial),
        (vec![refused(), refused()], Status::Failed),
        (vec![expired(), expired()], Status::Expired),
        (vec![expired(), Sent], Status::Partial),
        (vec![Sent, unknown()], Status::Partial),
        (vec![unknown(), refused()], Status::Failed),
        (vec![unknown(), expired()], Status::Failed),
    ];
    for (batches, status) in cases {
        assert_eq!(result(&job(4), batches.clone()).status, status, "{batches:?}");
    }
}

#[test]
fn every_recipient_is_counted_once() {
    let result = result(
        &job(7),
        vec![BatchOutcome::Sent, failed(FailureKind::Job, 1, 1), unknown(), BatchOutcome::Sent],
    );
    assert_eq!(
        result.recipients,
        Some(RecipientCounts { requested: 7, duplicates: 0, sent: 3, failed: 2, unknown: 2 })
    );
    assert_eq!(result.batches, Some(BatchCounts { total: 4, sent: 2, failed: 1, unknown: 1 }));
    assert_eq!((result.calls, result.received_at.as_str()), (7, "2027-01-15T08:00:00.005Z"));
}

#[test]
fn batches_with_the_same_cause_are_one_error() {
    let batches = vec![
        failed(FailureKind::Job, 10004, 1),
        failed(FailureKind::Transient, 10002, 3),
        failed(FailureKind::Job, 10004, 2),
        BatchOutcome::Sent,
    ];
    let errors = result(&job(8), batches).errors;
    assert_eq!(errors.len(), 2);
    assert_eq!(
        (&*errors[0].batches, errors[0].recipients, errors[0].attempts),
        (&[0, 2][..], Some(4), 2)
    );
    assert_eq!((errors[1].kind, errors[1].code), (ErrorKind::Transient, Some(10002)));
}

#[test]
fn info_has_at_most_2000_characters() {
    let fault = Fault { code: None, http_status: None, info: "é".repeat(3000) };
    let batch = BatchOutcome::Failed { kind: FailureKind::Job, fault, attempts: 1 };
    assert_eq!(result(&job(1), vec![batch]).errors[0].info.chars().count(), 2000);
}

//! Judges the answer to a call. Every possible answer has a verdict, including undocumented ones.

use super::{
    codes::{Class, Effect},
    http_status,
};
use crate::{
    diagnosis::Diagnosis,
    job::{
        SMALL_BATCH,
        outcome::{Fault, MessageId},
    },
};

/// What came back from a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The body has the API's form. `action_ok` says whether `ActionStatus` is `OK`.
    Api { http_status: u16, action_ok: bool, code: i64, info: String, message: Option<MessageId> },
    /// The API accepted the call and dropped the message, because its group gets too many.
    Dropped { reason: String },
    /// An HTTP answer whose body does not have the API's form.
    Foreign { http_status: u16, info: String },
    /// The request was withdrawn at the moment of writing.
    Withdrawn,
    /// The request never left: refused connection, unknown host, failed handshake.
    NotSent { why: Diagnosis },
    /// The request left, but no complete answer came: timeout, reset.
    NoAnswer { info: String },
}

impl Answer {
    /// Whether the API accepted the batch. If any part of the answer contradicts that, the outcome
    /// is unknown.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Api { http_status: 200..=299, action_ok: true, code: 0, .. })
    }
}

/// The verdict on an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The API accepted the batch.
    Sent,
    Failed {
        class: Class,
        fault: Fault,
    },
}

impl Verdict {
    /// Whether a failed call may still have notified its recipients: no complete answer came, or
    /// the vendor does not document what its code means.
    pub fn may_have_had_effect(&self) -> bool {
        matches!(
            self,
            Self::Failed { class: Class::Transient(Effect::Unknown) | Class::TransientOrJob, .. }
        )
    }

    /// Adapts the verdict to the size of the batch; `None` means all members. If the batch is small
    /// enough for one call, the API has refused the job itself.
    pub fn on_batch_of(self, recipients: Option<u32>) -> Self {
        match self {
            Self::Failed { class: Class::TooManyRecipients, fault }
                if recipients.is_none_or(|count| count <= SMALL_BATCH) =>
            {
                Self::Failed { class: Class::Job, fault }
            }
            verdict @ (Self::Sent | Self::Failed { .. }) => verdict,
        }
    }
}

/// `class_of` knows the codes of the command that was called.
pub fn classify(answer: Answer, class_of: impl Fn(i64) -> Class) -> Verdict {
    match answer {
        answer if answer.is_accepted() => Verdict::Sent,
        Answer::Api { http_status, action_ok, code: 0, info, .. } => {
            let info = format!(
                "contradictory answer: HTTP {http_status}, ErrorCode 0, ActionStatus OK: \
                    {action_ok}; {info}"
            );
            failed(Class::Transient(Effect::Unknown), Some(0), None, info)
        }
        Answer::Api { code, info, .. } => failed(class_of(code), Some(code), None, info),
        Answer::Dropped { reason } => {
            failed(Class::GroupRateLimited, None, None, format!("dropped by the API: {reason}"))
        }
        Answer::Foreign { http_status, info } => {
            failed(http_status::find(http_status).class, None, Some(http_status), info)
        }
        Answer::Withdrawn => failed(
            Class::Transient(Effect::None),
            None,
            None,
            "withdrawn before it was sent".into(),
        ),
        Answer::NotSent { why } => {
            failed(Class::Transient(Effect::None), None, None, why.to_string())
        }
        Answer::NoAnswer { info } => failed(Class::Transient(Effect::Unknown), None, None, info),
    }
}

fn failed(class: Class, code: Option<i64>, http_status: Option<u16>, info: String) -> Verdict {
    Verdict::Failed { class, fault: Fault { code, http_status, info } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::codes::class_of;

    fn api(http_status: u16, action_ok: bool, code: i64) -> Answer {
        Answer::Api { http_status, action_ok, code, info: String::new(), message: None }
    }

    fn class(answer: Answer) -> Option<Class> {
        match classify(answer, class_of) {
            Verdict::Sent => None,
            Verdict::Failed { class, .. } => Some(class),
        }
    }

    #[test]
    fn only_a_2xx_with_error_code_0_and_action_status_ok_is_a_success() {
        assert_eq!(class(api(200, true, 0)), None);
        for contradictory in [api(200, false, 0), api(502, true, 0)] {
            assert_eq!(class(contradictory), Some(Class::Transient(Effect::Unknown)));
        }
        assert_eq!(class(api(200, true, 10010)), Some(Class::Job));
    }

    #[test]
    fn an_answer_without_an_error_code_is_judged_by_its_http_status() {
        let foreign = |http_status| class(Answer::Foreign { http_status, info: String::new() });
        let expected = [
            (200, Class::Transient(Effect::Unknown)),
            (302, Class::Account),
            (403, Class::Account),
            (413, Class::JobOrConfiguration),
            (408, Class::Transient(Effect::None)),
            (429, Class::RateLimited),
            (502, Class::Transient(Effect::Unknown)),
        ];
        for (http_status, class) in expected {
            assert_eq!(foreign(http_status), Some(class), "{http_status}");
        }
    }

    #[test]
    fn only_a_request_that_never_left_surely_had_no_effect() {
        assert_eq!(
            class(Answer::NotSent { why: Diagnosis::unknown("") }),
            Some(Class::Transient(Effect::None))
        );
        assert_eq!(
            class(Answer::NoAnswer { info: String::new() }),
            Some(Class::Transient(Effect::Unknown))
        );
    }

    #[test]
    fn too_many_recipients_are_a_refusal_for_good_where_fewer_would_not_help() {
        let on =
            |recipients| match classify(api(200, false, 10005), class_of).on_batch_of(recipients) {
                Verdict::Sent => None,
                Verdict::Failed { class, .. } => Some(class),
            };
        assert_eq!(on(Some(51)), Some(Class::TooManyRecipients));
        for small in [None, Some(50), Some(1)] {
            assert_eq!(on(small), Some(Class::Job), "{small:?}");
        }
        assert_eq!(classify(api(200, true, 0), class_of).on_batch_of(Some(1)), Verdict::Sent);
    }
}

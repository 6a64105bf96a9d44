//! Explains an answer to people: what it means, what groupcast does about it, and what the operator
//! should do. It decides nothing.

use std::fmt::Write;

use super::{
    classify::{Answer, Verdict, classify},
    codes::{self, CODES, Class, Effect},
    http_status::{self, ANY_OTHER, HTTP_STATUSES},
};
use crate::{diagnosis::Diagnosis, job::outcome::Fault};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    pub meaning: &'static str,
    /// What groupcast does.
    pub response: &'static str,
    /// What the operator should do.
    pub advice: &'static str,
}

/// Explains a call that failed.
pub fn explain(class: Class, fault: &Fault) -> Explanation {
    let (meaning, advice) = match (fault.code, fault.http_status) {
        (Some(0), _) => (
            "an answer that contradicts itself",
            "nothing; if it lasts, look for a proxy on the way",
        ),
        (Some(code), _) if codes::is_of_webhook(code) => WEBHOOK,
        (Some(code), _) => {
            codes::find(code).map_or(UNLISTED, |entry| (entry.meaning, entry.advice))
        }
        (None, Some(status)) => {
            (http_status::find(status).meaning, http_status::find(status).advice)
        }
        (None, None) => match class {
            Class::Transient(Effect::None) => ("no connection to the API", NO_CONNECTION),
            Class::GroupRateLimited => DROPPED,
            _ => ("no complete answer came", NO_ANSWER),
        },
    };
    Explanation { meaning, response: class.response(), advice }
}

const UNLISTED: (&str, &str) = (
    "not documented",
    "read info in the result, and look for the code in the vendor's newest list",
);
const WEBHOOK: (&str, &str) =
    ("refused by the app's own webhook", "ask the team that runs the webhook; info has its text");
const DROPPED: (&str, &str) = (
    "the group gets too many messages, and the API dropped this one",
    "lower group_msg.calls_per_second_per_group if members or other programs write to the group",
);
const NO_CONNECTION: &str = "info names the cause and what to do about it; it may pass by itself";
const NO_ANSWER: &str =
    "nothing; if it lasts, look at this machine's way to the API, and raise request_timeout";

/// Ranges of codes that no vendor list has, each with a sample code.
const RANGES: [(&str, i64); 5] = [
    ("10100–10200", 10_100),
    ("120001–130000", 120_001),
    ("other 60000–69999", 69_999),
    ("other 70000–79999", 79_999),
    ("any other", 1),
];

/// The runbook's tables, as Markdown.
pub fn tables() -> String {
    let mut text = String::from(
        "| `ErrorCode` | Meaning | What groupcast does | What to do |\n|---|---|---|---|\n",
    );
    let listed = CODES.iter().map(|entry| (entry.code.to_string(), entry.code));
    let ranges = RANGES.iter().map(|(range, sample)| ((*range).to_owned(), *sample));
    for (label, code) in listed.chain(ranges) {
        let answer = Answer::Api {
            http_status: 200,
            action_ok: false,
            code,
            info: String::new(),
            message: None,
        };
        text.push_str(&row(&label, answer));
    }
    text.push_str(
        "\n| Without an `ErrorCode` | Meaning | What groupcast does | What to do \
            |\n|---|---|---|---|\n",
    );
    for entry in HTTP_STATUSES {
        let (first, last) = (entry.statuses.start(), entry.statuses.end());
        let has_exceptions = HTTP_STATUSES
            .iter()
            .filter(|other| entry.statuses.contains(other.statuses.start()))
            .count()
            > 1;
        let label = match (first == last, has_exceptions) {
            (true, _) => format!("HTTP {first}"),
            (false, false) => format!("HTTP {first}–{last}"),
            (false, true) => format!("other HTTP {first}–{last}"),
        };
        // The last status of a range is in no narrower range, so it stands for the whole range.
        text.push_str(&row(&label, Answer::Foreign { http_status: *last, info: String::new() }));
    }
    let any_other = Answer::Foreign { http_status: *ANY_OTHER.statuses.end(), info: String::new() };
    text.push_str(&row("any other, and 200 with another body", any_other));
    text.push_str(&row(
        "connection refused, unknown host, failed handshake",
        Answer::NotSent { why: Diagnosis::unknown("") },
    ));
    text.push_str(&row("timeout, connection reset", Answer::NoAnswer { info: String::new() }));
    text
}

fn row(label: &str, answer: Answer) -> String {
    let Verdict::Failed { class, fault } = classify(answer, codes::class_of) else {
        return String::new();
    };
    let Explanation { meaning, response, advice } = explain(class, &fault);
    let whole_job = match fault.code {
        Some(code) if codes::concerns_whole_job(code) => {
            " So are all other open batches of the job."
        }
        _ => "",
    };
    let mut row = String::new();
    let _ = writeln!(row, "| {label} | {meaning} | {response}{whole_job} | {advice} |");
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_that_stand_for_a_range_are_not_listed() {
        assert!(RANGES.iter().all(|(_, sample)| codes::find(*sample).is_none()));
    }

    #[test]
    fn the_tables_have_a_row_for_everything_that_can_come_back() {
        let tables = tables();
        let rows = tables.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(rows, 2 + CODES.len() + RANGES.len() + HTTP_STATUSES.len() + 3);
        assert!(
            tables.lines().all(|line| line.is_empty() || line.matches('|').count() == 5),
            "{tables}"
        );
    }

    #[test]
    fn an_answer_is_explained_by_its_code_or_its_status_or_its_absence() {
        let meaning = |class, code, http_status| {
            explain(class, &Fault { code, http_status, info: String::new() }).meaning
        };
        assert_eq!(meaning(Class::Account, Some(60020), None), "package expired");
        assert_eq!(meaning(Class::CredentialOrJob, Some(79_999), None), "not documented");
        assert_eq!(meaning(Class::Account, None, Some(407)), "a proxy wants a password");
        assert_eq!(meaning(Class::Transient(Effect::None), None, None), "no connection to the API");
        assert_eq!(
            meaning(Class::Transient(Effect::Unknown), None, None),
            "no complete answer came"
        );
        assert_eq!(
            meaning(Class::Transient(Effect::Unknown), Some(0), None),
            "an answer that contradicts itself"
        );
    }
}

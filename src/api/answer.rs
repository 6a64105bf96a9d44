//! Parses the body of an answer. The body may echo the request, so the UserSig is removed from
//! every text.

use serde::Deserialize;

use super::classify::Answer;
use crate::job::outcome::{MAX_INFO_CHARS, MessageId};

/// The maximum length of a quoted page title, in characters.
const TITLE_CHARS: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ApiAnswer {
    action_status: Option<String>,
    error_code: i64,
    error_info: Option<String>,
    /// Only `send_group_msg` answers with these.
    msg_seq: Option<u64>,
    msg_time: Option<i64>,
    msg_drop_reason: Option<String>,
}

pub fn parse(http_status: u16, body: &[u8], user_sig: &str) -> Answer {
    match serde_json::from_slice::<ApiAnswer>(body) {
        Ok(body) => {
            let message = body.msg_seq.zip(body.msg_time);
            let answer = Answer::Api {
                http_status,
                action_ok: body.action_status.as_deref() == Some("OK"),
                code: body.error_code,
                info: told(&body.error_info.unwrap_or_default(), user_sig),
                message: message.map(|(seq, time)| MessageId { seq, time }),
            };
            match body.msg_drop_reason.filter(|reason| !reason.is_empty()) {
                Some(reason) if answer.is_accepted() => {
                    Answer::Dropped { reason: told(&reason, user_sig) }
                }
                Some(_) | None => answer,
            }
        }
        Err(_) => Answer::Foreign { http_status, info: description(http_status, body, user_sig) },
    }
}

/// The API's error text without the UserSig, cut to the maximum length.
fn told(info: &str, user_sig: &str) -> String {
    info.replace(user_sig, "***").chars().take(MAX_INFO_CHARS).collect()
}

/// Describes an answer that came from another server on the way. The text does not quote the body,
/// which may echo content and recipients. The title of a page shows which server it was.
fn description(http_status: u16, body: &[u8], user_sig: &str) -> String {
    let page = String::from_utf8_lossy(body);
    let what = match title(&page) {
        Some(title) => {
            let title: String = title.replace(user_sig, "***").chars().take(TITLE_CHARS).collect();
            format!("a page with the title {title:?}")
        }
        None => format!("{} bytes", body.len()),
    };
    format!("HTTP {http_status} without an answer of the API: {what}")
}

fn title(page: &str) -> Option<&str> {
    let lower = page.to_ascii_lowercase();
    let begins = lower.find("<title")?;
    let begins = begins + lower[begins..].find('>')? + 1;
    let ends = begins + lower[begins..].find("</title")?;
    Some(page[begins..ends].trim()).filter(|title| !title.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_echoes_the_request_carries_nothing_of_it_on() {
        let told = |page: &str| description(403, page.as_bytes(), "eJw*secret-_");
        let echo = r#"you sent {"Content":"hello","ToMembers_Account":["alice"]}"#;
        assert_eq!(
            told(echo),
            format!("HTTP 403 without an answer of the API: {} bytes", echo.len())
        );
        let page =
            format!("<HTML><Title lang=en> Blocked: /v4/x?usersig=eJw*secret-_ </TITLE>{echo}");
        assert_eq!(
            told(&page),
            r#"HTTP 403 without an answer of the API: a page with the title "Blocked: /v4/x?usersig=***""#
        );
        assert_eq!(told("<title>"), "HTTP 403 without an answer of the API: 7 bytes");
    }
}

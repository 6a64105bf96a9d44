//! Reads what was answered. An answer that echoes the request must not carry the UserSig on.

use serde::Deserialize;

use super::classify::Answer;
use crate::job::outcome::MAX_INFO_CHARS;

/// So much is told of an answer that is not the API's.
const EXCERPT_CHARS: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ApiAnswer {
    action_status: Option<String>,
    error_code: i64,
    error_info: Option<String>,
}

pub fn parse(http_status: u16, body: &[u8], user_sig: &str) -> Answer {
    match serde_json::from_slice::<ApiAnswer>(body) {
        Ok(answer) => Answer::Api {
            http_status,
            action_ok: answer.action_status.as_deref() == Some("OK"),
            code: answer.error_code,
            info: answer.error_info.filter(|info| !info.is_empty()).map(|info| told(&info, user_sig)).unwrap_or_default(),
        },
        Err(_) => Answer::Foreign { http_status, info: excerpt(http_status, body, user_sig) },
    }
}

/// What the API says of an error, without the UserSig.
fn told(info: &str, user_sig: &str) -> String {
    info.replace(user_sig, "***").chars().take(MAX_INFO_CHARS).collect()
}

fn excerpt(http_status: u16, body: &[u8], user_sig: &str) -> String {
    let text: String = String::from_utf8_lossy(body).replace(user_sig, "***").chars().take(EXCERPT_CHARS).collect();
    format!("HTTP {http_status} without an answer of the API: {text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_echoes_the_request_does_not_carry_the_user_sig_on() {
        let page = b"<a href=\"/v4/x?sdkappid=1&usersig=eJw*secret-_&random=7\">moved</a>";
        let told = excerpt(200, page, "eJw*secret-_");
        assert!(told.contains("usersig=***&random=7") && !told.contains("secret"), "{told}");
    }
}

//! A refusal by the API: an error code and a text. Decides which code each kind of fault gets. The
//! vendor documents the meaning of each code, but rarely which calls get it.

use std::borrow::Cow;

use serde::Serialize;

/// A documented `ErrorCode` with its `ErrorInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRefusal {
    pub code: i64,
    pub info: Cow<'static, str>,
}

impl ApiRefusal {
    pub fn new(code: i64, info: impl Into<Cow<'static, str>>) -> Self {
        Self { code, info: info.into() }
    }

    /// The body of the answer. The HTTP status is still 200.
    pub fn to_json(&self) -> String {
        let body =
            RefusalBody { action_status: "FAIL", error_info: &self.info, error_code: self.code };
        serde_json::to_string(&body).expect("a body of strings and numbers")
    }
}

/// The answer to an accepted call.
pub const ACCEPTED_JSON: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RefusalBody<'a> {
    action_status: &'static str,
    error_info: &'a str,
    error_code: i64,
}

pub const BAD_COMMAND: i64 = 10003;
pub const BAD_PARAMETER: i64 = 10004;
pub const TOO_MANY_ACCOUNTS: i64 = 10005;
pub const NO_SUCH_GROUP: i64 = 10010;
pub const BAD_GROUP_ID: i64 = 10015;
pub const GROUP_TOO_FREQUENT: i64 = 10023;
pub const NOT_IN_PLAN: i64 = 10059;
pub const BAD_URL: i64 = 60002;
pub const BAD_JSON: i64 = 60003;
pub const BAD_ACCOUNT: i64 = 60004;
pub const BAD_SDK_APP_ID: i64 = 60006;
pub const TOO_FREQUENT: i64 = 60007;
pub const NO_SUCH_RESOURCE: i64 = 60009;
pub const NOT_ADMIN: i64 = 60010;
pub const SDK_APP_ID_MISSING: i64 = 60012;
pub const ACCOUNT_NOT_A_STRING: i64 = 60015;
pub const USER_SIG_EXPIRED: i64 = 70001;
pub const USER_SIG_EMPTY: i64 = 70002;
pub const USER_SIG_UNREADABLE: i64 = 70003;
pub const USER_SIG_MISMATCH: i64 = 70009;
pub const USER_SIG_OF_OTHER_ACCOUNT: i64 = 70013;
pub const USER_SIG_OF_OTHER_APP: i64 = 70014;
pub const PACKET_TOO_LONG: i64 = 80002;

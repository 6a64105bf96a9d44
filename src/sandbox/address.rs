//! The address of a call: its path, method and query. Checks that it names this API and has all
//! parameters in the right form. `credential` checks their values. Names and values are
//! case-sensitive.

use hyper::Method;
use url::form_urlencoded;

use super::{
    command::SandboxCommand,
    refusal::{
        ApiRefusal, BAD_ACCOUNT, BAD_SDK_APP_ID, BAD_URL, SDK_APP_ID_MISSING, USER_SIG_EMPTY,
    },
};

/// What a well-formed address says about the caller.
#[derive(Debug, PartialEq, Eq)]
pub struct CallerAddress {
    pub command: SandboxCommand,
    pub sdk_app_id: u64,
    pub identifier: String,
    pub user_sig: String,
}

impl CallerAddress {
    pub fn read(method: &Method, path: &str, query: &str) -> Result<Self, ApiRefusal> {
        let command = SandboxCommand::in_path(path)?;
        if method != Method::POST {
            return Err(ApiRefusal::new(BAD_URL, "the method must be POST"));
        }
        Parameters::split(query)?.check(command)
    }
}

#[derive(Default)]
struct Parameters {
    sdk_app_id: Option<String>,
    identifier: Option<String>,
    user_sig: Option<String>,
    random: Option<String>,
    content_type: Option<String>,
}

impl Parameters {
    /// Parameters with other names are ignored.
    fn split(query: &str) -> Result<Self, ApiRefusal> {
        let mut found = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "sdkappid" => &mut found.sdk_app_id,
                "identifier" => &mut found.identifier,
                "usersig" => &mut found.user_sig,
                "random" => &mut found.random,
                "contenttype" => &mut found.content_type,
                _ => continue,
            };
            if slot.replace(value.into_owned()).is_some() {
                return Err(ApiRefusal::new(
                    BAD_URL,
                    format!("the parameter {name} is there twice"),
                ));
            }
        }
        Ok(found)
    }

    fn check(self, command: SandboxCommand) -> Result<CallerAddress, ApiRefusal> {
        let sdk_app_id =
            self.sdk_app_id.ok_or(ApiRefusal::new(SDK_APP_ID_MISSING, "sdkappid is required"))?;
        let sdk_app_id = sdk_app_id
            .parse()
            .map_err(|_| ApiRefusal::new(BAD_SDK_APP_ID, "sdkappid is not an integer"))?;
        let identifier = self.identifier.filter(|name| !name.is_empty());
        let identifier =
            identifier.ok_or(ApiRefusal::new(BAD_ACCOUNT, "identifier is required"))?;
        let user_sig = self.user_sig.filter(|sig| !sig.is_empty());
        let user_sig = user_sig.ok_or(ApiRefusal::new(USER_SIG_EMPTY, "usersig is empty"))?;
        if !self.random.is_some_and(|random| is_u32(&random)) {
            return Err(ApiRefusal::new(BAD_URL, "random must be a 32-bit unsigned integer"));
        }
        if self.content_type.as_deref() != Some("json") {
            return Err(ApiRefusal::new(BAD_URL, "contenttype must be json"));
        }
        Ok(CallerAddress { command, sdk_app_id, identifier, user_sig })
    }
}

/// `parse` alone would accept a leading plus sign.
fn is_u32(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/v4/group_open_http_svc/send_group_system_notification";
    const QUERY: &str =
        "sdkappid=88&identifier=admin&usersig=sig&random=4294967295&contenttype=json";

    fn code(method: Method, path: &str, query: &str) -> i64 {
        CallerAddress::read(&method, path, query).map_or_else(|refusal| refusal.code, |_| 0)
    }

    #[test]
    fn a_complete_address_is_read() {
        let address = CallerAddress::read(&Method::POST, PATH, QUERY).unwrap();
        assert_eq!(
            address,
            CallerAddress {
                command: SandboxCommand::SendGroupSystemNotification,
                sdk_app_id: 88,
                identifier: "admin".into(),
                user_sig: "sig".into()
            }
        );
    }

    #[test]
    fn both_commands_have_an_address() {
        let second = PATH.replace("send_group_system_notification", "send_group_msg");
        assert_eq!((code(Method::POST, PATH, QUERY), code(Method::POST, &second, QUERY)), (0, 0));
        assert_eq!(code(Method::GET, &second, QUERY), 60002);
    }

    #[test]
    fn a_percent_encoded_identifier_is_decoded() {
        let query = QUERY.replace("admin", "a%20b%26c");
        assert_eq!(CallerAddress::read(&Method::POST, PATH, &query).unwrap().identifier, "a b&c");
    }

    #[test]
    fn a_wrong_path_or_method_is_refused() {
        assert_eq!(code(Method::GET, PATH, QUERY), 60002);
        assert_eq!(code(Method::POST, "/", QUERY), 60002);
        assert_eq!(
            code(Method::POST, "/v3/group_open_http_svc/send_group_system_notification", QUERY),
            60002
        );
        assert_eq!(code(Method::POST, "/v4/openim/sendmsg", QUERY), 60009);
        assert_eq!(code(Method::POST, "/v4/group_open_http_svc/get_group_info", QUERY), 10003);
        assert_eq!(code(Method::POST, &PATH.to_uppercase().replace("/V4", "/v4"), QUERY), 60009);
    }

    #[test]
    fn each_parameter_out_of_form_has_its_code() {
        for (from, to, expected) in [
            ("sdkappid=88", "x=1", 60012),
            ("sdkappid=88", "SdkAppId=88", 60012),
            ("sdkappid=88", "sdkappid=abc", 60006),
            ("sdkappid=88", "sdkappid=", 60006),
            ("identifier=admin", "x=1", 60004),
            ("identifier=admin", "identifier=", 60004),
            ("usersig=sig", "x=1", 70002),
            ("usersig=sig", "usersig=", 70002),
            ("random=4294967295", "x=1", 60002),
            ("random=4294967295", "random=4294967296", 60002),
            ("random=4294967295", "random=-1", 60002),
            ("random=4294967295", "random=%2B1", 60002),
            ("random=4294967295", "random=", 60002),
            ("contenttype=json", "x=1", 60002),
            ("contenttype=json", "contenttype=JSON", 60002),
            ("contenttype=json", "contenttype=json&random=1", 60002),
        ] {
            assert_eq!(code(Method::POST, PATH, &QUERY.replace(from, to)), expected, "{to}");
        }
    }
}

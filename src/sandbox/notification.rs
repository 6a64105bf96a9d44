//! The body of a call. Checks that it is a notification that this API accepts. Unknown fields are
//! ignored, as in the API, so a misspelt recipient list is a broadcast here too.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::refusal::{
    ACCOUNT_NOT_A_STRING, ApiRefusal, BAD_GROUP_ID, BAD_JSON, BAD_PARAMETER, NO_SUCH_GROUP,
    TOO_MANY_ACCOUNTS,
};

/// A custom group id is at most this long; only a community's may be longer.
const MAX_GROUP_ID_BYTES: usize = 48;
const MAX_TOPIC_ID_BYTES: usize = 96;
pub const MAX_USER_ID_BYTES: usize = 32;
const COMMUNITY_PREFIX: &str = "@TGS#_";

/// A well-formed body. Text without escapes is borrowed from it.
#[derive(Debug, Clone, Deserialize)]
pub struct Notification<'a> {
    #[serde(rename = "GroupId", borrow)]
    pub group: Cow<'a, str>,
    #[serde(rename = "Content", borrow)]
    pub content: Cow<'a, str>,
    /// If empty: every member.
    #[serde(rename = "ToMembers_Account", borrow, default)]
    pub recipients: Vec<UserId<'a>>,
    #[serde(rename = "TopicId", borrow, default, deserialize_with = "stated")]
    pub topic: Option<Cow<'a, str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UserId<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// `null` is a wrong type, not an absent field.
fn stated<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Cow<'a, str>>, D::Error> {
    #[derive(Deserialize)]
    struct NotificationText<'a>(#[serde(borrow)] Cow<'a, str>);
    NotificationText::deserialize(deserializer).map(|text| Some(text.0))
}

impl<'a> Notification<'a> {
    pub fn read(body: &'a [u8]) -> Result<Self, ApiRefusal> {
        serde_json::from_slice(body).map_err(|error| objection(body, &error))
    }

    /// Checks the rules of the API, and whether the group's id marks it as missing.
    pub fn check(&self, max_recipients: usize) -> Result<(), ApiRefusal> {
        self.check_addressees("ToMembers_Account", max_recipients)?;
        if is_avchatroom(&self.group) && !self.recipients.is_empty() {
            return Err(ApiRefusal::new(
                BAD_PARAMETER,
                "an AVChatRoom can only be notified as a whole",
            ));
        }
        Ok(())
    }

    /// Checks the group, the topic and the recipients, which are in the named field.
    pub fn check_addressees(
        &self,
        recipients_field: &str,
        max_recipients: usize,
    ) -> Result<(), ApiRefusal> {
        self.check_group_id()?;
        self.check_topic_id()?;
        self.check_recipients(recipients_field, max_recipients)?;
        if self.group.contains("unknown") {
            return Err(ApiRefusal::new(
                NO_SUCH_GROUP,
                "the group does not exist or was disbanded",
            ));
        }
        Ok(())
    }

    fn check_recipients(&self, field: &str, most: usize) -> Result<(), ApiRefusal> {
        if self.recipients.len() > most {
            let info = format!("{} accounts in {field}, at most {most}", self.recipients.len());
            return Err(ApiRefusal::new(TOO_MANY_ACCOUNTS, info));
        }
        if self.recipients.iter().any(|UserId(id)| id.is_empty() || id.len() > MAX_USER_ID_BYTES) {
            let info = format!("a UserID in {field} is empty or over {MAX_USER_ID_BYTES} bytes");
            return Err(ApiRefusal::new(BAD_PARAMETER, info));
        }
        Ok(())
    }

    fn check_group_id(&self) -> Result<(), ApiRefusal> {
        let fits = self.is_community() || self.group.len() <= MAX_GROUP_ID_BYTES;
        let printable = self.group.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
        if self.group.is_empty() || !fits || !printable {
            return Err(ApiRefusal::new(BAD_GROUP_ID, "invalid group id"));
        }
        Ok(())
    }

    fn check_topic_id(&self) -> Result<(), ApiRefusal> {
        match &self.topic {
            None => Ok(()),
            Some(_) if !self.is_community() => {
                Err(ApiRefusal::new(BAD_PARAMETER, "TopicId needs a community group"))
            }
            Some(topic) if topic.is_empty() || topic.len() > MAX_TOPIC_ID_BYTES => {
                Err(ApiRefusal::new(BAD_PARAMETER, "TopicId is empty or over 96 bytes"))
            }
            Some(_) => Ok(()),
        }
    }

    fn is_community(&self) -> bool {
        self.group.starts_with(COMMUNITY_PREFIX)
    }
}

/// Whether the group's id marks it as an AVChatRoom.
pub fn is_avchatroom(group: &str) -> bool {
    group.contains("avchatroom")
}

/// Finds out why the body could not be read. The typed read stops at the first mistake, so this
/// reads the whole body again.
fn objection(body: &[u8], error: &serde_json::Error) -> ApiRefusal {
    match serde_json::from_slice::<Value>(body) {
        Err(error) => ApiRefusal::new(BAD_JSON, format!("the body is not JSON: {error}")),
        Ok(body)
            if body["ToMembers_Account"]
                .as_array()
                .is_some_and(|ids| !ids.iter().all(Value::is_string)) =>
        {
            ApiRefusal::new(ACCOUNT_NOT_A_STRING, "a UserID in ToMembers_Account is not a string")
        }
        Ok(_) => ApiRefusal::new(BAD_PARAMETER, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> i64 {
        let verdict =
            Notification::read(body.as_bytes()).and_then(|notification| notification.check(500));
        verdict.map_or_else(|refusal| refusal.code, |()| 0)
    }

    fn body(group: &str, rest: &str) -> String {
        format!(r#"{{"GroupId":"{group}","Content":"hello"{rest}}}"#)
    }

    fn recipients(count: usize) -> String {
        let ids: Vec<_> = (0..count).map(|n| format!(r#""user_{n}""#)).collect();
        format!(r#","ToMembers_Account":[{}]"#, ids.join(","))
    }

    #[test]
    fn absent_and_empty_recipients_mean_everyone() {
        for rest in ["", r#","ToMembers_Account":[]"#, r#","ToMember_Account":["misspelt"]"#] {
            let body = body("g", rest);
            assert!(Notification::read(body.as_bytes()).unwrap().recipients.is_empty());
            assert_eq!(code(&body), 0);
        }
    }

    #[test]
    fn escapes_are_decoded() {
        let body = r#"{"GroupId":"g","Content":"a\n\u4f60","ToMembers_Account":["a\u0062"]}"#;
        let notification = Notification::read(body.as_bytes()).unwrap();
        assert_eq!((&*notification.content, &*notification.recipients[0].0), ("a\n你", "ab"));
    }

    #[test]
    fn a_body_that_is_not_json_is_refused() {
        for body in ["", "{", "GroupId=g", "{} {}", r#"{"GroupId":5,"#, "\u{feff}{}"] {
            assert_eq!(code(body), 60003, "{body}");
        }
    }

    #[test]
    fn a_missing_field_or_a_wrong_type_is_refused() {
        for body in [
            "{}",
            "[]",
            "null",
            r#"{"GroupId":"g"}"#,
            r#"{"Content":"c"}"#,
            r#"{"groupid":"g","Content":"c"}"#,
            r#"{"GroupId":5,"Content":"c"}"#,
            r#"{"GroupId":"g","Content":{}}"#,
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":"a"}"#,
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":null}"#,
            r#"{"GroupId":"@TGS#_g","Content":"c","TopicId":null}"#,
        ] {
            assert_eq!(code(body), 10004, "{body}");
        }
    }

    #[test]
    fn a_user_id_that_is_no_string_is_refused() {
        assert_eq!(code(&body("g", r#","ToMembers_Account":["a",5]"#)), 60015);
    }

    #[test]
    fn a_user_id_that_is_empty_or_over_32_bytes_is_refused() {
        let of = |id: &str| code(&body("g", &format!(r#","ToMembers_Account":["{id}"]"#)));
        assert_eq!((of(&"a".repeat(32)), of(&"a".repeat(33)), of("")), (0, 10004, 10004));
    }

    #[test]
    fn the_501st_recipient_is_one_too_many() {
        assert_eq!(
            (code(&body("g", &recipients(500))), code(&body("g", &recipients(501)))),
            (0, 10005)
        );
    }

    #[test]
    fn a_group_id_is_printable_and_of_48_bytes_unless_it_is_a_communitys() {
        assert_eq!(code(&body(&"g".repeat(48), "")), 0);
        assert_eq!(code(&body(&format!("@TGS#_{}", "g".repeat(60)), "")), 0);
        for group in [&"g".repeat(49), "", "g\\n", "群"] {
            assert_eq!(code(&body(group, "")), 10015, "{group}");
        }
    }

    #[test]
    fn a_topic_needs_a_community() {
        let topic = r#","TopicId":"@TGS#_g@TOPIC#_t""#;
        assert_eq!((code(&body("@TGS#_g", topic)), code(&body("@TGS#g", topic))), (0, 10004));
    }

    #[test]
    fn a_group_id_can_ask_for_a_group_that_is_not_there_or_takes_no_list() {
        assert_eq!(code(&body("unknown-1", "")), 10010);
        assert_eq!(code(&body("my-avchatroom", "")), 0);
        assert_eq!(code(&body("my-avchatroom", &recipients(1))), 10004);
    }
}

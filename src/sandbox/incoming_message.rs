//! The body of a `send_group_msg` call. Checks that it is a message that this API accepts. Unknown
//! fields are ignored, as in the API, so a misspelt recipient list is a broadcast here too.
//!
//! The vendor limits a message to 12 KB and does not document what it measures. The sandbox
//! measures the longest `Data` or `Text`.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{
    message_settings::{SandboxMessageSettings, TargetingPlan},
    notification::{MAX_USER_ID_BYTES, Notification, UserId},
    refusal::{
        ACCOUNT_NOT_A_STRING, ApiRefusal, BAD_JSON, BAD_PARAMETER, NOT_IN_PLAN, PACKET_TOO_LONG,
    },
};

const RECIPIENTS: &str = "To_Account";
const MAX_CONTENT_BYTES: usize = 12 << 10;

/// A well-formed message.
#[derive(Debug)]
pub struct IncomingMessage {
    /// Its content is the `Data` or `Text` of the elements, one a line.
    pub notification: Notification<'static>,
    pub random: u32,
    pub from_account: Option<String>,
    pub online_only: bool,
    /// The `MsgBody`. Equal elements have equal texts.
    pub elements_json: String,
    /// All fields but the recipients.
    pub fields_json: String,
}

/// A field, whether it must be there, and which values it may have.
struct FieldRule(&'static str, Presence, fn(&Value) -> bool);

#[derive(PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
}
use Presence::{Optional, Required};

const FIELDS: [FieldRule; 14] = [
    FieldRule("GroupId", Required, Value::is_string),
    FieldRule("Random", Required, is_u32),
    FieldRule("MsgBody", Required, is_filled_list),
    FieldRule("From_Account", Optional, is_user_id),
    FieldRule("OnlineOnlyFlag", Optional, is_u32),
    FieldRule("SendMsgControl", Optional, is_send_control),
    FieldRule("MsgPriority", Optional, is_priority),
    FieldRule("ForbidCallbackControl", Optional, is_callback_control),
    FieldRule("OfflinePushInfo", Optional, is_push_info),
    FieldRule("CloudCustomData", Optional, Value::is_string),
    FieldRule("SupportMessageExtension", Optional, is_switch),
    FieldRule("NeedReadReceipt", Optional, is_switch),
    FieldRule("GroupAtInfo", Optional, is_list_of_objects),
    FieldRule("TopicId", Optional, Value::is_string),
];

const PUSH_INFO_FIELDS: [FieldRule; 6] = [
    FieldRule("PushFlag", Optional, is_switch),
    FieldRule("Title", Optional, Value::is_string),
    FieldRule("Desc", Optional, Value::is_string),
    FieldRule("Ext", Optional, Value::is_string),
    FieldRule("AndroidInfo", Optional, Value::is_object),
    FieldRule("ApnsInfo", Optional, Value::is_object),
];

const CUSTOM_ELEMENT: &str = "TIMCustomElem";
const CUSTOM_ELEMENT_FIELDS: [FieldRule; 4] = [
    FieldRule("Data", Required, Value::is_string),
    FieldRule("Desc", Optional, Value::is_string),
    FieldRule("Ext", Optional, Value::is_string),
    FieldRule("Sound", Optional, Value::is_string),
];

const TEXT_ELEMENT: &str = "TIMTextElem";
const TEXT_ELEMENT_FIELDS: [FieldRule; 1] = [FieldRule("Text", Required, Value::is_string)];

impl IncomingMessage {
    pub fn read(body: &[u8]) -> Result<Self, ApiRefusal> {
        let body = serde_json::from_slice(body)
            .map_err(|error| ApiRefusal::new(BAD_JSON, format!("the body is not JSON: {error}")))?;
        let Value::Object(mut fields) = body else {
            return Err(ApiRefusal::new(BAD_PARAMETER, "the body is not an object"));
        };
        let recipients = take_recipients(&mut fields)?;
        check_fields(&fields, &FIELDS)?;
        check_elements(&fields)?;
        check_content_size(&fields)?;
        check_control(&fields)?;
        Ok(Self::of(fields, recipients))
    }

    /// All fields have passed their checks.
    fn of(fields: Map<String, Value>, recipients: Vec<UserId<'static>>) -> Self {
        let text = |name| fields.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            notification: Notification {
                group: text("GroupId").unwrap_or_default().into(),
                content: contents(&fields).collect::<Vec<_>>().join("\n").into(),
                recipients,
                topic: text("TopicId").map(Cow::Owned),
            },
            random: number(&fields, "Random"),
            from_account: text("From_Account"),
            online_only: number(&fields, "OnlineOnlyFlag") > 0,
            elements_json: fields.get("MsgBody").map(Value::to_string).unwrap_or_default(),
            fields_json: Value::Object(fields).to_string(),
        }
    }

    /// Checks the rules that depend on the group and the plan.
    pub fn check(&self, settings: &SandboxMessageSettings) -> Result<(), ApiRefusal> {
        self.notification.check_addressees(RECIPIENTS, settings.max_targets)?;
        if self.notification.recipients.is_empty() {
            return Ok(());
        }
        match settings.targeting {
            TargetingPlan::On => self.check_targeting(settings),
            TargetingPlan::Refuse => {
                Err(ApiRefusal::new(NOT_IN_PLAN, "To_Account is not in the plan of this app"))
            }
            TargetingPlan::Broadcast => Ok(()),
        }
    }

    fn check_targeting(&self, settings: &SandboxMessageSettings) -> Result<(), ApiRefusal> {
        if self.notification.topic.is_some() {
            return Err(ApiRefusal::new(BAD_PARAMETER, "To_Account excludes TopicId"));
        }
        if settings.is_avchatroom(&self.notification.group) {
            return Err(ApiRefusal::new(BAD_PARAMETER, "an AVChatRoom takes no To_Account"));
        }
        Ok(())
    }
}

fn take_recipients(fields: &mut Map<String, Value>) -> Result<Vec<UserId<'static>>, ApiRefusal> {
    let Some(recipients) = fields.remove(RECIPIENTS) else { return Ok(Vec::new()) };
    let Value::Array(ids) = recipients else {
        return Err(ApiRefusal::new(BAD_PARAMETER, "To_Account is not an array"));
    };
    let user_id = |id| match id {
        Value::String(id) => Ok(UserId(Cow::Owned(id))),
        _ => Err(ApiRefusal::new(ACCOUNT_NOT_A_STRING, "a UserID in To_Account is not a string")),
    };
    ids.into_iter().map(user_id).collect()
}

fn check_fields(fields: &Map<String, Value>, rules: &[FieldRule]) -> Result<(), ApiRefusal> {
    for FieldRule(name, presence, is_valid) in rules {
        let objection = match fields.get(*name) {
            None if *presence == Required => format!("{name} is required"),
            Some(value) if !is_valid(value) => format!("{name} has a wrong type or value"),
            _ => continue,
        };
        return Err(ApiRefusal::new(BAD_PARAMETER, objection));
    }
    Ok(())
}

fn check_elements(fields: &Map<String, Value>) -> Result<(), ApiRefusal> {
    for element in elements(fields) {
        check_element(element)?;
    }
    let custom = elements(fields).filter(|element| element["MsgType"] == CUSTOM_ELEMENT);
    if custom.count() > 1 {
        return Err(ApiRefusal::new(BAD_PARAMETER, "MsgBody has more than one TIMCustomElem"));
    }
    Ok(())
}

fn check_element(element: &Value) -> Result<(), ApiRefusal> {
    let rules: &[FieldRule] = match element["MsgType"].as_str() {
        Some(CUSTOM_ELEMENT) => &CUSTOM_ELEMENT_FIELDS,
        Some(TEXT_ELEMENT) => &TEXT_ELEMENT_FIELDS,
        _ => {
            return Err(ApiRefusal::new(
                BAD_PARAMETER,
                "a MsgType is neither TIMCustomElem nor TIMTextElem",
            ));
        }
    };
    let Value::Object(content) = &element["MsgContent"] else {
        return Err(ApiRefusal::new(BAD_PARAMETER, "a MsgContent is not an object"));
    };
    check_fields(content, rules)
}

fn check_content_size(fields: &Map<String, Value>) -> Result<(), ApiRefusal> {
    let longest = contents(fields).map(str::len).max().unwrap_or(0);
    if longest > MAX_CONTENT_BYTES {
        let info = format!("the content has {longest} bytes, at most {MAX_CONTENT_BYTES}");
        return Err(ApiRefusal::new(PACKET_TOO_LONG, info));
    }
    Ok(())
}

fn check_control(fields: &Map<String, Value>) -> Result<(), ApiRefusal> {
    if number(fields, "OnlineOnlyFlag") > 0 && fields.contains_key("SendMsgControl") {
        return Err(ApiRefusal::new(BAD_PARAMETER, "OnlineOnlyFlag excludes SendMsgControl"));
    }
    Ok(())
}

fn elements(fields: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    fields.get("MsgBody").and_then(Value::as_array).into_iter().flatten()
}

/// The `Data` or `Text` of each element.
fn contents(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    elements(fields).filter_map(|element| {
        let content = &element["MsgContent"];
        let name = if element["MsgType"] == CUSTOM_ELEMENT { "Data" } else { "Text" };
        content[name].as_str()
    })
}

/// 0 if the field is absent.
fn number(fields: &Map<String, Value>, name: &str) -> u32 {
    fields.get(name).and_then(as_u32).unwrap_or(0)
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn is_u32(value: &Value) -> bool {
    as_u32(value).is_some()
}

fn is_switch(value: &Value) -> bool {
    matches!(as_u32(value), Some(0 | 1))
}

fn is_filled_list(value: &Value) -> bool {
    value.as_array().is_some_and(|list| !list.is_empty())
}

fn is_list_of_objects(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_object))
}

fn is_list_of(value: &Value, allowed: &[&str]) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|entry| is_one_of(entry, allowed)))
}

fn is_one_of(value: &Value, allowed: &[&str]) -> bool {
    value.as_str().is_some_and(|text| allowed.contains(&text))
}

fn is_user_id(value: &Value) -> bool {
    value.as_str().is_some_and(|id| (1..=MAX_USER_ID_BYTES).contains(&id.len()))
}

fn is_send_control(value: &Value) -> bool {
    is_list_of(value, &["NoUnread", "NoLastMsg", "NoMsgCheck"])
}

fn is_priority(value: &Value) -> bool {
    is_one_of(value, &["High", "Normal", "Low", "Lowest"])
}

fn is_callback_control(value: &Value) -> bool {
    is_list_of(value, &["ForbidBeforeSendMsgCallback", "ForbidAfterSendMsgCallback"])
}

fn is_push_info(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| check_fields(fields, &PUSH_INFO_FIELDS).is_ok())
}

#[cfg(test)]
#[path = "incoming_message_tests.rs"]
mod tests;

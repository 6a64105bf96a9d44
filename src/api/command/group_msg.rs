//! `send_group_msg`: an ordinary group message, which the settings make similar to a system
//! notification. Up to 50 recipients a call, 40 messages a second and group, and the vendor
//! discards a message whose `Random` it has seen within five minutes.

use std::time::Duration;

use serde::Serialize;

use super::{ApiCommand, unknown_group};
use crate::{
    accept::decode::RecipientRule,
    api::codes::{self, Class},
    config::{CommandName, Element, GroupMsg, Priority, Storage},
    job::Job,
};

/// A request body. The recipients are the last field, so that they can be appended.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    group_id: &'a str,
    random: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_id: Option<&'a str>,
    #[serde(rename = "From_Account", skip_serializing_if = "Option::is_none")]
    from_account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online_only_flag: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_msg_control: Option<[&'static str; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offline_push_info: Option<OfflinePushInfo>,
    msg_priority: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    forbid_callback_control: Option<[&'static str; 2]>,
    msg_body: [MessageElement<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OfflinePushInfo {
    push_flag: u8,
}

#[derive(Serialize)]
#[serde(tag = "MsgType", content = "MsgContent")]
enum MessageElement<'a> {
    #[serde(rename = "TIMCustomElem", rename_all = "PascalCase")]
    Custom { data: &'a str, desc: &'static str, ext: &'static str },
    #[serde(rename = "TIMTextElem", rename_all = "PascalCase")]
    Text { text: &'a str },
}

const NO_PUSH: OfflinePushInfo = OfflinePushInfo { push_flag: 1 };
const NO_UNREAD_COUNT: [&str; 2] = ["NoUnread", "NoLastMsg"];
const NO_WEBHOOKS: [&str; 2] = ["ForbidBeforeSendMsgCallback", "ForbidAfterSendMsgCallback"];

impl GroupMsg {
    fn opening<'a>(
        &'a self,
        (group_id, topic_id): (&'a str, Option<&'a str>),
        content: &'a str,
        random: u32,
    ) -> Vec<u8> {
        let is_silent = self.storage == Storage::Silent;
        let is_online_only = self.storage == Storage::Online && !self.is_avchatroom(group_id);
        let body = Body {
            group_id,
            random,
            topic_id,
            from_account: self.from_account.as_deref(),
            online_only_flag: is_online_only.then_some(1),
            send_msg_control: is_silent.then_some(NO_UNREAD_COUNT),
            offline_push_info: is_silent.then_some(NO_PUSH),
            msg_priority: match self.priority {
                Priority::High => "High",
                Priority::Normal => "Normal",
                Priority::Low => "Low",
            },
            forbid_callback_control: (!self.webhooks).then_some(NO_WEBHOOKS),
            msg_body: [match self.element {
                Element::Custom => MessageElement::Custom { data: content, desc: "", ext: "" },
                Element::Text => MessageElement::Text { text: content },
            }],
        };
        let mut json = serde_json::to_vec(&body).expect("text and numbers are always JSON");
        json.pop();
        json
    }
}

impl ApiCommand for GroupMsg {
    fn name(&self) -> &'static str {
        CommandName::GroupMsg.as_str()
    }

    fn body(&self, job: &Job, batch: u32, random: u32) -> Vec<u8> {
        let place = (job.group_id.as_str(), job.topic_id.as_deref());
        let opening = self.opening(place, &job.content, random);
        job.with_recipients(opening, "To_Account", std::iter::once(batch))
    }

    fn probe(&self) -> Vec<u8> {
        let (group, recipient) = unknown_group();
        let mut body = self.opening((&group, None), "probe", rand::random());
        // The account may lack the right to name recipients, which the probe does not ask about.
        if self.targeting {
            body.extend_from_slice(format!(",\"To_Account\":[\"{recipient}\"]").as_bytes());
        }
        body.push(b'}');
        body
    }

    fn class_of(&self, code: i64) -> Class {
        match code {
            // No webhook is asked, or the sender is the same for all jobs.
            10016 if !self.webhooks => Class::JobOrConfiguration,
            10017 => Class::JobOrConfiguration,
            10019 if self.from_account.is_some() => Class::JobOrConfiguration,
            10023 => Class::GroupRateLimited,
            // The plan has no targeted messages, so no job with recipients can succeed.
            10059 if self.targeting => Class::Account,
            code => codes::class_of(code),
        }
    }

    fn recipients(&self) -> RecipientRule {
        if self.targeting { RecipientRule::OutsideTopics } else { RecipientRule::Never }
    }

    fn dedup_window(&self) -> Option<Duration> {
        Some(self.dedup_window)
    }

    fn sender(&self) -> Option<&str> {
        self.from_account.as_deref()
    }

    fn calls_per_second_per_group(&self) -> Option<u32> {
        Some(self.calls_per_second_per_group)
    }

    fn stores_messages(&self, group: &str) -> bool {
        self.storage != Storage::Online && !self.is_avchatroom(group)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::command,
        config::{App, Config, ConfigFile},
        job::Audience,
    };

    fn app(lines: &str) -> App {
        let text = format!(
            "[apps.a]\nsdk_app_id = 1\nsecret_key = \"k\"\nregion = \"seoul\"\ncommand = \
                \"send_group_msg\"\n[apps.a.group_msg]\n{lines}"
        );
        let file = ConfigFile { path: "groupcast.toml".into(), text };
        Config::read(Some(&file), []).unwrap().apps.remove("a").unwrap()
    }

    fn body(lines: &str, group: &str) -> Value {
        let app = app(lines);
        let job = Job {
            group_id: group.into(),
            topic_id: None,
            content: "{\"x\":\"é\"}".into(),
            audience: Audience::All,
        };
        serde_json::from_slice(&command::of(&app.command).body(&job, 0, u32::MAX)).unwrap()
    }

    #[test]
    fn by_default_a_message_is_like_a_system_notification() {
        let expected = json!({
            "GroupId": "g", "Random": u32::MAX, "OnlineOnlyFlag": 1, "MsgPriority": "High",
            "ForbidCallbackControl": ["ForbidBeforeSendMsgCallback", "ForbidAfterSendMsgCallback"],
            "MsgBody": [{
                "MsgType": "TIMCustomElem",
                "MsgContent": { "Data": "{\"x\":\"é\"}", "Desc": "", "Ext": "" }
            }]
        });
        assert_eq!(body("", "g"), expected);
    }

    #[test]
    fn the_settings_decide_what_members_and_webhooks_see() {
        let silent = body("storage = \"silent\"", "g");
        assert_eq!(silent["SendMsgControl"], json!(["NoUnread", "NoLastMsg"]));
        assert_eq!(silent["OfflinePushInfo"], json!({ "PushFlag": 1 }));
        // The vendor forbids both together.
        assert!(silent.get("OnlineOnlyFlag").is_none());
        let lines = "storage = \"ordinary\"\nelement = \"text\"\npriority = \"low\"\nwebhooks = \
            true\nfrom_account = \"boss\"";
        let expected = json!({
            "GroupId": "g", "Random": u32::MAX, "From_Account": "boss", "MsgPriority": "Low",
            "MsgBody": [{ "MsgType": "TIMTextElem", "MsgContent": { "Text": "{\"x\":\"é\"}" } }]
        });
        assert_eq!(body(lines, "g"), expected);
        let live = "avchatroom = [\"live-*\"]";
        assert!(body(live, "live-1").get("OnlineOnlyFlag").is_none());
        assert_eq!(body(live, "other")["OnlineOnlyFlag"], 1);
    }

    #[test]
    fn some_codes_mean_something_else_than_for_a_system_notification() {
        let class = |lines, code| command::of(&app(lines).command).class_of(code);
        assert_eq!(class("", 10023), Class::GroupRateLimited);
        assert_eq!(class("", 10017), Class::JobOrConfiguration);
        assert_eq!(class("", 10016), Class::JobOrConfiguration);
        assert_eq!(class("webhooks = true", 10016), Class::Job);
        assert_eq!(class("", 10059), Class::JobOrConfiguration);
        assert_eq!(class("targeting = true", 10059), Class::Account);
        assert_eq!(class("", 10010), Class::Job);
    }
}

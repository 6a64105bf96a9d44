//! What becomes of an acceptable message: its number, its audience, and the answer to the caller.

use std::borrow::Cow;

use hashbrown::HashMap;
use serde::Serialize;

use super::{
    call::ArrivalTime,
    incoming_message::IncomingMessage,
    message_settings::{SandboxMessageSettings, TargetingPlan},
    notification::Notification,
    verdict::SandboxAnswer,
};

#[derive(Debug, Default, Clone, Serialize)]
pub struct MessageCounts {
    /// Delivered messages whose recipients were ignored: the whole group got them.
    pub ignored_targets: u64,
}

/// The answer of success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MessageReply {
    action_status: &'static str,
    error_info: &'static str,
    error_code: i64,
    /// Unix seconds.
    msg_time: u64,
    msg_seq: u64,
}

impl MessageReply {
    fn new(msg_time: u64, msg_seq: u64) -> Self {
        Self { action_status: "OK", error_info: "", error_code: 0, msg_time, msg_seq }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a body of strings and numbers")
    }
}

/// A message that was processed.
pub struct PostedMessage<'a> {
    pub audience: Cow<'a, Notification<'static>>,
    pub seq: u64,
    pub answer: SandboxAnswer,
}

#[derive(Default)]
pub struct SandboxMessages {
    /// The number of stored messages by group.
    stored: HashMap<String, u64>,
    counts: MessageCounts,
}

impl SandboxMessages {
    pub fn post<'a>(
        &mut self,
        message: &'a IncomingMessage,
        settings: &SandboxMessageSettings,
        now: ArrivalTime,
    ) -> PostedMessage<'a> {
        let audience = audience(message, settings.targeting);
        self.counts.ignored_targets += u64::from(matches!(audience, Cow::Owned(_)));
        let seq = self.number(message, settings);
        let answer = SandboxAnswer::Sent(MessageReply::new(now.unix_seconds(), seq));
        PostedMessage { audience, seq, answer }
    }

    pub fn counts(&self) -> &MessageCounts {
        &self.counts
    }

    /// Only stored messages have a number of their own. The vendor does not document the number of
    /// the others. Here they get the one of the latest stored message.
    fn number(&mut self, message: &IncomingMessage, settings: &SandboxMessageSettings) -> u64 {
        let group = &*message.notification.group;
        if message.online_only || settings.is_avchatroom(group) {
            return self.stored.get(group).copied().unwrap_or(0);
        }
        let seq = self.stored.entry_ref(group).or_default();
        *seq += 1;
        *seq
    }
}

/// Owned if the recipients are ignored.
fn audience(message: &IncomingMessage, targeting: TargetingPlan) -> Cow<'_, Notification<'static>> {
    let notification = &message.notification;
    match targeting {
        TargetingPlan::Broadcast if !notification.recipients.is_empty() => {
            Cow::Owned(Notification { recipients: Vec::new(), ..notification.clone() })
        }
        _ => Cow::Borrowed(notification),
    }
}

//! The newest delivered and discarded calls with their recipients, for tests and people to inspect.

use std::{collections::VecDeque, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    command::SandboxCommand,
    incoming_message::IncomingMessage,
    messages::{DiscardReason, MessageFate, PostedMessage},
    notification::Notification,
};

/// The newest calls of a benchmark are enough. With 500 recipients each they take about 80 MB.
const MAX_CALLS: usize = 10_000;
/// The API's own limit. If the sandbox allows larger calls, it keeps only their number of
/// recipients.
const MAX_RECIPIENTS_KEPT: usize = 500;

/// One delivered call, or one whose message was discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceivedCall {
    pub command: SandboxCommand,
    pub group: String,
    pub content: String,
    pub topic: Option<String>,
    pub audience: ReceivedAudience,
    /// `None` for everyone, or for more than 500.
    pub recipients: Option<Vec<String>>,
    /// 0 for everyone.
    pub recipient_count: usize,
    pub at: Timestamp,
    /// `Random` of the body. This and the following fields are `None` for a system notification.
    pub random: Option<u32>,
    /// The body without `To_Account`.
    pub message: Option<Value>,
    /// `None` for a discarded message too.
    pub msg_seq: Option<u64>,
    /// Why the message was delivered to nobody, if it was not.
    pub discarded: Option<DiscardReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceivedAudience {
    All,
    Members,
}

/// A call as it is kept. Its recipients are one text: 5 million small strings would take several
/// times the memory.
#[derive(Debug)]
pub struct StoredCall {
    command: SandboxCommand,
    group: Box<str>,
    content: Box<str>,
    topic: Option<Box<str>>,
    recipients_json: Option<Box<str>>,
    recipient_count: usize,
    at: Timestamp,
    message: Option<StoredMessage>,
}

#[derive(Debug)]
struct StoredMessage {
    random: u32,
    fields_json: Box<str>,
    fate: MessageFate,
}

impl StoredCall {
    pub fn of_notification(notification: &Notification, at: Timestamp) -> Self {
        Self::new(SandboxCommand::SendGroupSystemNotification, notification, at)
    }

    pub fn of_message(message: &IncomingMessage, posted: &PostedMessage, at: Timestamp) -> Self {
        let stored = StoredMessage {
            random: message.random,
            fields_json: Box::from(&*message.fields_json),
            fate: posted.fate,
        };
        let call = Self::new(SandboxCommand::SendGroupMsg, &posted.audience, at);
        Self { message: Some(stored), ..call }
    }

    fn new(command: SandboxCommand, notification: &Notification, at: Timestamp) -> Self {
        let Notification { group, content, topic, recipients } = notification;
        let kept = (1..=MAX_RECIPIENTS_KEPT).contains(&recipients.len());
        Self {
            command,
            group: Box::from(&**group),
            content: Box::from(&**content),
            topic: topic.as_deref().map(Box::from),
            recipients_json: kept
                .then(|| serde_json::to_string(recipients).expect("a list of strings").into()),
            recipient_count: recipients.len(),
            at,
            message: None,
        }
    }

    pub fn unfold(&self) -> ReceivedCall {
        let recipients = self.recipients_json.as_deref();
        let message = self.message.as_ref();
        ReceivedCall {
            command: self.command,
            group: self.group.to_string(),
            content: self.content.to_string(),
            topic: self.topic.as_deref().map(str::to_owned),
            audience: if self.recipient_count == 0 {
                ReceivedAudience::All
            } else {
                ReceivedAudience::Members
            },
            recipients: recipients
                .map(|json| serde_json::from_str(json).expect("the list it was made from")),
            recipient_count: self.recipient_count,
            at: self.at,
            random: message.map(|message| message.random),
            message: message.map(|message| {
                serde_json::from_str(&message.fields_json).expect("the object it was made from")
            }),
            msg_seq: message.and_then(|message| message.fate.seq()),
            discarded: message.and_then(|message| message.fate.discard_reason()),
        }
    }
}

#[derive(Debug, Default)]
pub struct Inbox(VecDeque<Arc<StoredCall>>);

impl Inbox {
    pub fn record(&mut self, call: StoredCall) {
        if self.0.len() == MAX_CALLS {
            self.0.pop_front();
        }
        self.0.push_back(Arc::new(call));
    }

    /// The calls of one group, or of all, oldest first. They are shared, so that they are decoded
    /// without the lock.
    pub fn calls(&self, group: Option<&str>) -> Vec<Arc<StoredCall>> {
        self.0
            .iter()
            .filter(|kept| group.is_none_or(|group| *kept.group == *group))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfolded(inbox: &Inbox, group: Option<&str>) -> Vec<ReceivedCall> {
        inbox.calls(group).iter().map(|kept| kept.unfold()).collect()
    }

    fn record(inbox: &mut Inbox, body: &str) {
        let notification = Notification::read(body.as_bytes()).unwrap();
        inbox.record(StoredCall::of_notification(&notification, Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_call_is_kept_with_all_it_said() {
        let mut inbox = Inbox::default();
        record(
            &mut inbox,
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a","\"b"],"TopicId":"t"}"#,
        );
        let expected = ReceivedCall {
            command: SandboxCommand::SendGroupSystemNotification,
            group: "g".into(),
            content: "c".into(),
            topic: Some("t".into()),
            audience: ReceivedAudience::Members,
            recipients: Some(vec!["a".into(), "\"b".into()]),
            recipient_count: 2,
            at: Timestamp::UNIX_EPOCH,
            random: None,
            message: None,
            msg_seq: None,
            discarded: None,
        };
        assert_eq!(unfolded(&inbox, None), [expected]);
    }

    #[test]
    fn calls_can_be_asked_for_by_group() {
        let mut inbox = Inbox::default();
        record(&mut inbox, r#"{"GroupId":"g","Content":"c"}"#);
        record(&mut inbox, r#"{"GroupId":"h","Content":"c"}"#);
        let of_h = unfolded(&inbox, Some("h"));
        assert_eq!(
            (of_h.len(), of_h[0].audience, &of_h[0].recipients),
            (1, ReceivedAudience::All, &None)
        );
    }

    #[test]
    fn the_oldest_call_makes_room_for_the_newest() {
        let mut inbox = Inbox::default();
        for n in 0..=MAX_CALLS {
            record(&mut inbox, &format!(r#"{{"GroupId":"{n}","Content":"c"}}"#));
        }
        let calls = inbox.calls(None);
        assert_eq!((calls.len(), &*calls[0].group), (MAX_CALLS, "1"));
    }
}

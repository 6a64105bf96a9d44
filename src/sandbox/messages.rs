//! What becomes of an acceptable message: its number, its audience, and the answer to the caller.

use std::borrow::Cow;

use hashbrown::HashMap;
use serde::Serialize;

use super::{
    call::ArrivalTime,
    dedup::{FirstMessage, MessageFingerprint, RecentMessages},
    group_limit::GroupRates,
    incoming_message::IncomingMessage,
    message_settings::{DuplicateAnswer, GroupLimitAnswer, SandboxMessageSettings, TargetingPlan},
    notification::Notification,
    refusal::{ApiRefusal, GROUP_TOO_FREQUENT},
    verdict::SandboxAnswer,
};

#[derive(Debug, Default, Clone, Serialize)]
pub struct MessageCounts {
    /// Messages that arrived before.
    pub duplicates_discarded: u64,
    /// Messages that differ from the first one with the same key, for example in the recipients.
    pub different_messages_discarded: u64,
    /// Messages over the limit of their group.
    pub dropped_over_group_limit: u64,
    /// Most messages that one group got in any one second.
    pub max_of_a_group_in_1s: usize,
    /// Delivered messages whose recipients were ignored: the whole group got them.
    pub ignored_targets: u64,
}

impl MessageCounts {
    /// Messages that were delivered to nobody.
    pub(super) fn discarded(&self) -> u64 {
        self.duplicates_discarded
            + self.different_messages_discarded
            + self.dropped_over_group_limit
    }

    fn count_discarded(&mut self, reason: DiscardReason) {
        match reason {
            DiscardReason::Duplicate => self.duplicates_discarded += 1,
            DiscardReason::DifferentMessage => self.different_messages_discarded += 1,
            DiscardReason::GroupLimit => self.dropped_over_group_limit += 1,
        }
    }
}

/// Why an acceptable message was delivered to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscardReason {
    /// The same message arrived before.
    Duplicate,
    /// A different message with the same key arrived before.
    DifferentMessage,
    /// The group was at its limit.
    GroupLimit,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_drop_reason: Option<&'static str>,
}

impl MessageReply {
    fn sent(msg_time: u64, msg_seq: u64) -> Self {
        Self {
            action_status: "OK",
            error_info: "",
            error_code: 0,
            msg_time,
            msg_seq,
            msg_drop_reason: None,
        }
    }

    fn dropped(msg_time: u64) -> Self {
        Self { msg_drop_reason: Some("MsgFreqCtrl"), ..Self::sent(msg_time, 0) }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a body of strings and numbers")
    }
}

/// A message that was processed.
pub struct PostedMessage<'a> {
    pub audience: Cow<'a, Notification<'static>>,
    pub fate: MessageFate,
    pub answer: SandboxAnswer,
}

#[derive(Debug, Clone, Copy)]
pub enum MessageFate {
    Delivered { seq: u64 },
    Discarded(DiscardReason),
}

impl MessageFate {
    pub fn seq(self) -> Option<u64> {
        match self {
            Self::Delivered { seq } => Some(seq),
            Self::Discarded(_) => None,
        }
    }

    pub fn discard_reason(self) -> Option<DiscardReason> {
        match self {
            Self::Delivered { .. } => None,
            Self::Discarded(reason) => Some(reason),
        }
    }
}

#[derive(Default)]
pub struct SandboxMessages {
    recent: RecentMessages,
    rates: GroupRates,
    /// The number of stored messages by group.
    stored: HashMap<String, u64>,
    counts: MessageCounts,
}

impl SandboxMessages {
    pub fn post<'a>(
        &mut self,
        message: &'a IncomingMessage,
        caller: &str,
        settings: &SandboxMessageSettings,
        now: ArrivalTime,
    ) -> PostedMessage<'a> {
        let fingerprint = self.recent.fingerprint(message, caller, settings.dedup_key);
        let (fate, answer) = match self.first_message(fingerprint, settings, now) {
            Some((first, reason)) => (
                MessageFate::Discarded(reason),
                duplicate_answer(settings.duplicate_answer, first, now),
            ),
            None => self.process(message, fingerprint, settings, now),
        };
        let audience = audience(message, settings.targeting);
        match fate {
            MessageFate::Delivered { .. } => {
                self.counts.ignored_targets += u64::from(matches!(audience, Cow::Owned(_)));
            }
            MessageFate::Discarded(reason) => self.counts.count_discarded(reason),
        }
        PostedMessage { audience, fate, answer }
    }

    pub fn counts(&self) -> MessageCounts {
        MessageCounts { max_of_a_group_in_1s: self.rates.most(), ..self.counts.clone() }
    }

    /// The earlier message that occupies the key.
    fn first_message(
        &mut self,
        fingerprint: Option<MessageFingerprint>,
        settings: &SandboxMessageSettings,
        now: ArrivalTime,
    ) -> Option<(FirstMessage, DiscardReason)> {
        let fingerprint = fingerprint?;
        let first = self.recent.find(fingerprint, settings.dedup_window, now.instant)?;
        let reason = if first.is_same(fingerprint) {
            DiscardReason::Duplicate
        } else {
            DiscardReason::DifferentMessage
        };
        Some((first, reason))
    }

    /// Processes a message that is no duplicate.
    fn process(
        &mut self,
        message: &IncomingMessage,
        fingerprint: Option<MessageFingerprint>,
        settings: &SandboxMessageSettings,
        now: ArrivalTime,
    ) -> (MessageFate, SandboxAnswer) {
        if self.is_over_limit(message, settings, now) {
            self.remember(fingerprint.filter(|_| settings.dropped_occupies_key), 0, now);
            let answer = limit_answer(settings.group_limit_answer, now);
            return (MessageFate::Discarded(DiscardReason::GroupLimit), answer);
        }
        self.rates.record(&message.notification.group, now.instant);
        let seq = self.number(message, settings);
        self.remember(fingerprint, seq, now);
        let reply = MessageReply::sent(now.unix_seconds(), seq);
        (MessageFate::Delivered { seq }, SandboxAnswer::Sent(reply))
    }

    fn remember(&mut self, fingerprint: Option<MessageFingerprint>, seq: u64, now: ArrivalTime) {
        if let Some(fingerprint) = fingerprint {
            self.recent.remember(fingerprint, seq, now.unix_seconds(), now.instant);
        }
    }

    /// The API keeps the messages with the highest priority. The sandbox keeps the first ones.
    fn is_over_limit(
        &mut self,
        message: &IncomingMessage,
        settings: &SandboxMessageSettings,
        now: ArrivalTime,
    ) -> bool {
        let limit = settings.messages_per_second_per_group;
        limit > 0 && self.rates.count(&message.notification.group, now.instant) >= limit as usize
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

fn duplicate_answer(
    answer: DuplicateAnswer,
    first: FirstMessage,
    now: ArrivalTime,
) -> SandboxAnswer {
    match answer {
        DuplicateAnswer::OldSeq => SandboxAnswer::Sent(MessageReply::sent(first.time, first.seq)),
        DuplicateAnswer::ZeroSeq => SandboxAnswer::Sent(MessageReply::sent(now.unix_seconds(), 0)),
        DuplicateAnswer::Code(code) => {
            SandboxAnswer::Refused(ApiRefusal::new(code, "the message is a duplicate"))
        }
    }
}

fn limit_answer(answer: GroupLimitAnswer, now: ArrivalTime) -> SandboxAnswer {
    match answer {
        GroupLimitAnswer::DropReason => {
            SandboxAnswer::Sent(MessageReply::dropped(now.unix_seconds()))
        }
        GroupLimitAnswer::Refusal => SandboxAnswer::Refused(ApiRefusal::new(
            GROUP_TOO_FREQUENT,
            "msg count exceeds limit,please retry later",
        )),
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

//! The settings of `send_group_msg`. They choose among the behaviours that the vendor does not
//! document.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{notification, settings::milliseconds};

#[derive(Debug, Clone, Serialize)]
pub struct SandboxMessageSettings {
    /// Most recipients of one message.
    pub max_targets: usize,
    pub targeting: TargetingPlan,
    /// Ids of AVChatRooms, besides the groups whose id contains `avchatroom`.
    pub avchatroom: Vec<String>,
    /// Most messages of one group in any one second; 0: no limit.
    pub messages_per_second_per_group: u32,
    pub group_limit_answer: GroupLimitAnswer,
    /// Whether a message over the group's limit makes a later one with the same key a duplicate.
    pub dropped_occupies_key: bool,
    pub dedup_key: DuplicateKey,
    /// How long a key is occupied. A duplicate does not extend it.
    #[serde(rename = "dedup_window_ms", serialize_with = "milliseconds")]
    pub dedup_window: Duration,
    pub duplicate_answer: DuplicateAnswer,
}

impl Default for SandboxMessageSettings {
    fn default() -> Self {
        Self {
            max_targets: 50,
            targeting: TargetingPlan::On,
            avchatroom: Vec::new(),
            messages_per_second_per_group: 40,
            group_limit_answer: GroupLimitAnswer::DropReason,
            dropped_occupies_key: true,
            dedup_key: DuplicateKey::Content,
            dedup_window: Duration::from_secs(300),
            duplicate_answer: DuplicateAnswer::OldSeq,
        }
    }
}

impl SandboxMessageSettings {
    pub(super) fn is_avchatroom(&self, group: &str) -> bool {
        notification::is_avchatroom(group) || self.avchatroom.iter().any(|id| id == group)
    }
}

/// What happens to a message with recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetingPlan {
    /// Only the recipients get it.
    On,
    /// It is refused with 10059.
    Refuse,
    /// The recipients are ignored: the whole group gets it.
    Broadcast,
}

/// What the caller of a message over the group's limit reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupLimitAnswer {
    /// Success with `MsgDropReason`.
    DropReason,
    #[serde(rename = "10023")]
    Refusal,
}

/// What two messages share if the later one is a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuplicateKey {
    /// `Random`.
    Random,
    /// The sender and `Random`.
    Sender,
    /// The group and `Random`.
    Group,
    /// The group, the sender, `MsgBody` and `Random`.
    Content,
    /// No message is a duplicate.
    Off,
}

/// What the caller of a duplicate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateAnswer {
    /// Success with `MsgSeq` and `MsgTime` of the first message.
    OldSeq,
    /// Success with `MsgSeq` 0.
    ZeroSeq,
    /// A refusal with this `ErrorCode`.
    Code(i64),
}

impl FromStr for DuplicateAnswer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "old_seq" => Ok(Self::OldSeq),
            "zero_seq" => Ok(Self::ZeroSeq),
            code => match code.parse() {
                Ok(code) if code != 0 => Ok(Self::Code(code)),
                _ => Err(format!("{text:?} is neither old_seq nor zero_seq nor an ErrorCode")),
            },
        }
    }
}

impl fmt::Display for DuplicateAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldSeq => f.write_str("old_seq"),
            Self::ZeroSeq => f.write_str("zero_seq"),
            Self::Code(code) => write!(f, "{code}"),
        }
    }
}

impl Serialize for DuplicateAnswer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DuplicateAnswer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_serialize_as_they_are_set() {
        let settings = serde_json::to_value(SandboxMessageSettings::default()).unwrap();
        assert_eq!(
            settings,
            json!({
                "max_targets": 50,
                "targeting": "on",
                "avchatroom": [],
                "messages_per_second_per_group": 40,
                "group_limit_answer": "drop_reason",
                "dropped_occupies_key": true,
                "dedup_key": "content",
                "dedup_window_ms": 300_000,
                "duplicate_answer": "old_seq",
            })
        );
    }

    #[test]
    fn a_duplicate_answer_is_a_word_or_a_code() {
        for text in ["old_seq", "zero_seq", "10024"] {
            let answer: DuplicateAnswer = serde_json::from_value(json!(text)).unwrap();
            assert_eq!(serde_json::to_value(answer).unwrap(), json!(text));
        }
        for wrong in [json!("new_seq"), json!("0"), json!(""), json!(null)] {
            assert!(serde_json::from_value::<DuplicateAnswer>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_avchatroom_is_known_by_its_id_or_by_the_list() {
        let settings = SandboxMessageSettings {
            avchatroom: vec!["live".into()],
            ..SandboxMessageSettings::default()
        };
        assert!(settings.is_avchatroom("live") && settings.is_avchatroom("my-avchatroom"));
        assert!(!settings.is_avchatroom("live-2"));
    }
}

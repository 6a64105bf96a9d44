//! The calls of the API that deliver a batch. An app uses one of them, and all differences between
//! them are here: the request body, what an answer means, and what the vendor limits.

mod group_msg;
mod system_notification;

use std::time::Duration;

use super::{
    classify::{Answer, Verdict, classify},
    codes::Class,
};
use crate::{accept::decode::RecipientRule, config, job::Job};

/// One call of the API.
pub trait ApiCommand: Send + Sync {
    /// As in the URL and in results.
    fn name(&self) -> &'static str;

    /// The request body for one batch. `random` is the number by which the vendor recognises a
    /// repeated message.
    fn body(&self, job: &Job, batch: u32, random: u32) -> Vec<u8>;

    /// A request that notifies no user. It finds out whether the API can be reached and knows the
    /// app.
    fn probe(&self) -> Vec<u8>;

    /// Whose fault an `ErrorCode` is.
    fn class_of(&self, code: i64) -> Class;

    /// Which jobs may name recipients.
    fn recipients(&self) -> RecipientRule {
        RecipientRule::Always
    }

    /// How long the vendor discards a repeated message. `None`: it knows no repeated messages.
    fn dedup_window(&self) -> Option<Duration> {
        None
    }

    /// The account that sends, where members see it.
    fn sender(&self) -> Option<&str> {
        None
    }

    /// The most calls for one group in any second.
    fn calls_per_second_per_group(&self) -> Option<u32> {
        None
    }

    /// Whether the vendor keeps the messages to all members of this group, so that their number
    /// identifies them.
    fn stores_messages(&self, _group: &str) -> bool {
        false
    }

    fn judge(&self, answer: Answer) -> Verdict {
        classify(answer, |code| self.class_of(code))
    }
}

/// The call that the configuration names.
pub fn of(command: &config::CommandConfig) -> &dyn ApiCommand {
    match command {
        config::CommandConfig::SystemNotification => &system_notification::SystemNotification,
        config::CommandConfig::GroupMsg(settings) => settings,
    }
}

/// A group that does not exist, and a user to name in a probe. Even if the group existed, the API
/// would notify only this UserID.
fn unknown_group() -> (String, &'static str) {
    let group = format!("groupcast-probe-of-unknown-group-{}", uuid::Uuid::new_v4().simple());
    (group, "groupcast-probe")
}

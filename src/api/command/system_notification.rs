//! `send_group_system_notification`: up to 500 recipients a call, no limit per group, and no way to
//! recognise a repeated call. The vendor does not offer it to new customers.

use super::{ApiCommand, unknown_group};
use crate::{
    api::codes::{self, Class},
    config::CommandName,
    job::Job,
};

pub(super) struct SystemNotification;

impl ApiCommand for SystemNotification {
    fn name(&self) -> &'static str {
        CommandName::SystemNotification.as_str()
    }

    fn body(&self, job: &Job, batch: u32, _random: u32) -> Vec<u8> {
        job.request_body(batch)
    }

    fn probe(&self) -> Vec<u8> {
        let (group, recipient) = unknown_group();
        let body = serde_json::json!({
            "GroupId": group, "Content": "probe", "ToMembers_Account": [recipient]
        });
        body.to_string().into_bytes()
    }

    fn class_of(&self, code: i64) -> Class {
        codes::class_of(code)
    }
}

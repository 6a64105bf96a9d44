//! The job that `send` makes: from options, or from JSON which passes through untouched.

use std::{io::Read, path::PathBuf};

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::json;

use super::{Failure, Message};
use crate::job::DEADLINE_HEADER;

#[derive(clap::Args)]
pub struct JobArgs {
    /// A file with the job's JSON, or - for standard input
    #[arg(value_name = "FILE", required_unless_present = "group", conflicts_with_all = ["group", "content", "to", "to_file", "topic"])]
    file: Option<PathBuf>,
    /// GroupId
    #[arg(long, value_name = "GROUPID", requires = "content")]
    group: Option<String>,
    /// The notification
    #[arg(long, value_name = "TEXT", requires = "group")]
    content: Option<String>,
    /// Recipients: UserIDs with commas between
    #[arg(long, value_name = "USERIDS", conflicts_with = "to_file")]
    to: Option<String>,
    /// Recipients: a file with one UserID a line
    #[arg(long, value_name = "FILE")]
    to_file: Option<PathBuf>,
    /// TopicId, for a topic-enabled community
    #[arg(long, value_name = "TOPICID")]
    topic: Option<String>,
    /// Job id: the message's message_id, told in the result
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// 0 to 9; a higher one is served first
    #[arg(long, value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// No call is made after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    deadline: Option<Timestamp>,
    /// Not sent before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    not_before: Option<Timestamp>,
    /// What to do with a batch whose outcome is unknown
    #[arg(long, value_name = "PROMISE", value_parser = ["at-least-once", "at-most-once"])]
    delivery: Option<String>,
}

impl JobArgs {
    pub fn message(&self) -> Result<Message, Failure> {
        Ok(Message { body: self.body()?, properties: self.properties()? })
    }

    fn body(&self) -> Result<Vec<u8>, Failure> {
        if let Some(file) = &self.file {
            return read(file);
        }
        let mut job = json!({ "GroupId": self.group, "Content": self.content });
        if let Some(recipients) = self.recipients()? {
            job["ToMembers_Account"] = json!(recipients);
        }
        if let Some(topic) = &self.topic {
            job["TopicId"] = json!(topic);
        }
        Ok(serde_json::to_vec(&job)?)
    }

    /// The recipients named; an empty list would go to everybody, so it is an error.
    fn recipients(&self) -> Result<Option<Vec<String>>, Failure> {
        let (option, recipients): (_, Vec<String>) = match (&self.to, &self.to_file) {
            (Some(list), _) => ("--to", list.split(',').map(|id| id.trim().to_owned()).collect()),
            (None, Some(file)) => {
                let text = String::from_utf8(read(file)?).map_err(|_| format!("--to-file {}: is not UTF-8", file.display()))?;
                let lines = text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
                ("--to-file", lines.collect())
            }
            (None, None) => return Ok(None),
        };
        if recipients.is_empty() || recipients.iter().any(String::is_empty) {
            let advice = "name the recipients, or leave the option out to notify every member";
            return Err(format!("{option} has an empty UserID or none at all; {advice}").into());
        }
        Ok(Some(recipients))
    }

    fn properties(&self) -> Result<BasicProperties, Failure> {
        let mut headers = FieldTable::default();
        let given = [
            (DEADLINE_HEADER, self.deadline.map(|time| time.to_string())),
            ("groupcast-not-before", self.not_before.map(|time| time.to_string())),
            ("groupcast-delivery", self.delivery.clone()),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        let mut properties =
            BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(2).with_headers(headers);
        if let Some(id) = &self.id {
            let id = ShortString::try_new(id.as_str()).map_err(|_| "--id: at most 248 bytes")?;
            properties = properties.with_message_id(id);
        }
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        Ok(properties)
    }
}

fn read(file: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    read.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(bytes)
}

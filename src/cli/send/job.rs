//! The job that `send` publishes: from options, or from JSON, which passes unchanged.

use std::{io::Read, path::PathBuf};

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::json;

use super::{Failure, JobMessage};
use crate::job::DEADLINE_HEADER;

#[derive(clap::Args)]
pub struct JobArgs {
    /// A file with the job's JSON, or - for standard input
    #[arg(value_name = "FILE", required_unless_present = "group")]
    #[arg(conflicts_with_all = ["group", "content", "to", "to_file", "topic"])]
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
    pub fn message(&self) -> Result<JobMessage, Failure> {
        Ok(JobMessage { body: self.body()?, properties: self.properties()? })
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

    /// The recipients from the options. An empty list would notify every member, so it is an error.
    fn recipients(&self) -> Result<Option<Vec<String>>, Failure> {
        let (option, recipients): (_, Vec<String>) = match (&self.to, &self.to_file) {
            (Some(list), _) => {
                let recipients: Vec<_> = list.split(',').map(|id| id.trim().to_owned()).collect();
                recipients.iter().try_for_each(|id| {
                    check_user_id(id).map_err(|reason| format!("--to: {id:?} {reason}"))
                })?;
                ("--to", recipients)
            }
            (None, Some(file)) => (
                "--to-file",
                recipients_in(&read(file)?)
                    .map_err(|reason| format!("--to-file {}: {reason}", file.display()))?,
            ),
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
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_headers(headers);
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

/// Reads the UserIDs of a file, one a line. Refuses a line that is clearly not a UserID. Otherwise
/// the daemon would send to recipients that do not exist, and the result would still be `sent`.
fn recipients_in(file: &[u8]) -> Result<Vec<String>, String> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let text = std::str::from_utf8(file).map_err(|_| "is not UTF-8")?;
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty());
    let mut recipients = Vec::new();
    for (number, line) in lines {
        if line.starts_with('#') {
            return Err(format!(
                "line {number} begins with #; comments are not taken. Give a recipient of such a \
                    name in a job's JSON"
            ));
        }
        if recipients.is_empty() && is_heading(line) {
            return Err(format!(
                "line {number} looks like a heading ({line:?}); leave it out. A recipient of that \
                    name can be given with --to"
            ));
        }
        check_user_id(line).map_err(|reason| format!("line {number} {reason}"))?;
        recipients.push(line.to_owned());
    }
    Ok(recipients)
}

fn is_heading(line: &str) -> bool {
    const HEADINGS: [&str; 17] = [
        "account",
        "accounts",
        "id",
        "ids",
        "identifier",
        "member",
        "members",
        "openid",
        "recipient",
        "recipients",
        "toaccount",
        "tomembersaccount",
        "uid",
        "uids",
        "user",
        "userid",
        "userids",
    ];
    let letters: String = line
        .chars()
        .filter(|letter| letter.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect();
    HEADINGS.contains(&letters.as_str())
}

/// The reason why a text is probably not a UserID.
fn check_user_id(text: &str) -> Result<(), &'static str> {
    if text.contains(['[', ']', '{', '}', '"']) {
        return Err(
            "looks like JSON, or is in quotes; give plain UserIDs. A whole job as JSON is \
                `groupcast send FILE`",
        );
    }
    if text.contains([',', ';', '\t']) {
        return Err(
            "has a separator in it, as a line of several columns has; give one UserID a line, with \
                --to commas between",
        );
    }
    if text.contains(char::is_whitespace) {
        return Err("has a blank in it; give one UserID a line, with --to commas between");
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_user_id_a_line() {
        assert_eq!(
            recipients_in(b"\xef\xbb\xbfalice\r\n\n bob \n@TGS#1.x-y\nuserid").unwrap(),
            ["alice", "bob", "@TGS#1.x-y", "userid"]
        );
        assert!(recipients_in(b"\n").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_something_else_is_refused_at_its_line() {
        for (file, told) in [
            ("[\"alice\", \"bob\"]", "line 1 looks like JSON"),
            ("alice\n\"bob\"", "line 2 looks like JSON"),
            ("alice\nbob,bob@example.com", "line 2 has a separator"),
            ("alice;1", "line 1 has a separator"),
            ("alice\t1", "line 1 has a separator"),
            ("alice bob", "line 1 has a blank"),
            ("user_id\nalice", "line 1 looks like a heading"),
            ("To_Account\nalice", "line 1 looks like a heading"),
            ("alice\n# bob", "line 2 begins with #"),
            ("openid\nalice", "line 1 looks like a heading"),
        ] {
            let reason = recipients_in(file.as_bytes()).unwrap_err();
            assert!(reason.starts_with(told), "{file:?}: {reason}");
        }
        assert!(recipients_in(b"\xff\xfea\0").is_err());
    }
}

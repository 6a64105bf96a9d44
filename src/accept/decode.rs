//! Reads a job's body: exactly the API's own request body, of any length.
//!
//! Decoding is strict: an unknown field, a repeated key or a value of the wrong type rejects the
//! job. The API treats a body without recipients as a broadcast, so the daemon must not ignore a
//! misspelt field. The rejection names the field and the reason.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, Expected, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use super::split::Splitter;
use crate::{
    config::EmptyRecipients,
    job::{Audience, Job, Rejection},
};

const MAX_GROUP_ID_BYTES: usize = 96;
const MAX_TOPIC_ID_BYTES: usize = 96;
const MAX_USER_ID_BYTES: usize = 32;
const MAX_CONTENT_BYTES: usize = 12 * 1024;

/// The settings that decide which jobs are valid and how they are split.
#[derive(Debug, Clone)]
pub struct Rules {
    pub max_job_bytes: usize,
    /// The maximum number of recipients in one call.
    pub batch_size: u32,
    pub empty_recipients: EmptyRecipients,
    pub recipients: RecipientRule,
}

/// Which jobs may name recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientRule {
    Always,
    OutsideTopics,
    Never,
}

/// Parses a body into a job, or returns what is wrong with it.
pub fn decode(body: &[u8], rules: &Rules) -> Result<Job, Rejection> {
    let mut read = Reading::default();
    match read.body(body, rules) {
        Ok(job) => Ok(job),
        Err(reason) => Err(Rejection {
            field: read.field,
            reason,
            group_id: read.group_id,
            topic_id: read.topic_id,
        }),
    }
}

/// The state of a read: the current field, which a rejection names, and the values read so far.
#[derive(Default)]
struct Reading {
    field: String,
    group_id: Option<String>,
    topic_id: Option<String>,
    content: Option<String>,
    recipients: Option<Splitter>,
}

impl Reading {
    fn body(&mut self, body: &[u8], rules: &Rules) -> Result<Job, String> {
        self.field = "body".into();
        if body.len() > rules.max_job_bytes {
            return Err(format!(
                "is {} bytes long; broker.max_job_bytes allows {}",
                body.len(),
                rules.max_job_bytes
            ));
        }
        if let Some(reason) = recognise_wrong_format(body) {
            return Err(reason.into());
        }
        let text = std::str::from_utf8(body).map_err(|error| format!("is not UTF-8: {error}"))?;
        let mut json = serde_json::Deserializer::from_str(text);
        let read = json.deserialize_any(BodyVisitor { read: self, rules, body_bytes: body.len() });
        read.map_err(|error| explain(&error, text))?;
        self.field = "body".into();
        json.end().map_err(|error| explain(&error, text))?;
        self.finish(rules)
    }

    fn finish(&mut self, rules: &Rules) -> Result<Job, String> {
        let group_id = self.group_id.clone().ok_or_else(|| self.missing("GroupId"))?;
        let content = self.content.take().ok_or_else(|| self.missing("Content"))?;
        let audience = match self.recipients.take() {
            None => Audience::All,
            Some(recipients) if recipients.is_empty() => {
                self.field = "ToMembers_Account".into();
                match rules.empty_recipients {
                    EmptyRecipients::Broadcast => Audience::All,
                    EmptyRecipients::Reject => {
                        return Err(
                            "is empty, which would notify every member; leave the field out to \
                                mean that (empty_recipients = \"reject\")"
                                .into(),
                        );
                    }
                }
            }
            Some(recipients) => Audience::Members(recipients.finish()),
        };
        self.refuse_audience(&audience, rules.recipients)?;
        Ok(Job { group_id, topic_id: self.topic_id.clone(), content, audience })
    }

    fn missing(&mut self, field: &str) -> String {
        self.field = field.into();
        "is missing".into()
    }

    /// Refuses recipients that the app's command cannot take. Without this, the API might notify
    /// the whole group.
    fn refuse_audience(
        &mut self,
        audience: &Audience,
        allowed: RecipientRule,
    ) -> Result<(), String> {
        if let Audience::All = audience {
            return Ok(());
        }
        let refusal = match (allowed, &self.topic_id) {
            (RecipientRule::Always, _) | (RecipientRule::OutsideTopics, None) => return Ok(()),
            (RecipientRule::OutsideTopics, Some(_)) => {
                "cannot be used together with TopicId: with send_group_msg, the vendor sends a \
                    message of a topic to all members"
            }
            (RecipientRule::Never, _) => {
                "needs a plan of the vendor with targeted group messages (Pro, Pro Plus or \
                    Enterprise); if the app has one, set group_msg.targeting = true in the \
                    configuration of the app, else leave the field out to notify every member"
            }
        };
        self.field = "ToMembers_Account".into();
        Err(refusal.into())
    }
}

/// Recognises common mistakes in a body that is not UTF-8 JSON.
fn recognise_wrong_format(body: &[u8]) -> Option<&'static str> {
    Some(match body {
        [0xef, 0xbb, 0xbf, ..] => "begins with a byte-order mark; send UTF-8 without one",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, b'{', ..] | [b'{', 0, ..] => {
            "is UTF-16; send UTF-8"
        }
        [0x1f, 0x8b, ..] => "is compressed with gzip; send plain UTF-8 JSON",
        _ if body.trim_ascii().is_empty() => {
            "is empty; send a JSON object with GroupId and Content"
        }
        _ => return None,
    })
}

/// Describes a JSON error without quoting the body.
fn explain(error: &serde_json::Error, text: &str) -> String {
    let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
    // The wrong byte is at this column, counted from 1, or right after it.
    let column = error.column();
    let found = |byte| {
        [column.wrapping_sub(1), column].iter().any(|at| line.as_bytes().get(*at) == Some(&byte))
    };
    let hint = match error.classify() {
        Category::Syntax if found(b'/') => "; JSON has no comments",
        Category::Syntax if found(b'\'') && !found(b'\\') => "; JSON strings are in double quotes",
        Category::Syntax if found(b'\'') => "; JSON has no \\', write ' alone",
        Category::Syntax | Category::Data | Category::Eof | Category::Io => "",
    };
    format!("{error}{hint}")
}

/// The error for a value of the wrong type. Unlike serde's own error, it does not quote the value.
/// The value may be content or a recipient, and the daemon logs this text.
fn wrong_type<E: Error>(found: &str, expected: &dyn Expected) -> E {
    E::custom(format_args!("invalid type: {found}, expected {expected}"))
}

/// A visitor's methods for the JSON types that it rejects.
macro_rules! refuse {
    ($($json_type:ident),*) => { $(refuse!(@$json_type);)* };
    (@null) => { refuse!(@ visit_unit() "null"); };
    (@boolean) => { refuse!(@ visit_bool(bool) "boolean"); };
    (@number) => {
        refuse!(@ visit_u64(u64) "integer");
        refuse!(@ visit_i64(i64) "integer");
        refuse!(@ visit_f64(f64) "floating point");
    };
    (@string) => { refuse!(@ visit_str(&str) "string"); };
    (@array) => {
        fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(wrong_type("sequence", &self))
        }
    };
    (@object) => {
        fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(wrong_type("map", &self))
        }
    };
    (@ $method:ident($($argument:ty)?) $found:literal) => {
        fn $method<E: Error>(self, $(_: $argument)?) -> Result<Self::Value, E> {
            Err(wrong_type($found, &self))
        }
    };
}

struct BodyVisitor<'a> {
    read: &'a mut Reading,
    rules: &'a Rules,
    body_bytes: usize,
}

impl<'de> Visitor<'de> for BodyVisitor<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object with GroupId and Content")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let is_job = text.trim_start().starts_with(['{', '[']);
        Err(wrong_type(
            if is_job { "a string with JSON in it (encoded twice?)" } else { "string" },
            &self,
        ))
    }

    refuse!(null, boolean, number, array);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { read, rules, body_bytes } = self;
        while let Some(key) = map.next_key::<String>()? {
            read.field.clone_from(&key);
            let given_before = match key.as_str() {
                "GroupId" => read
                    .group_id
                    .replace(map.next_value_seed(Text::id(MAX_GROUP_ID_BYTES))?)
                    .is_some(),
                "TopicId" => read
                    .topic_id
                    .replace(map.next_value_seed(Text::id(MAX_TOPIC_ID_BYTES))?)
                    .is_some(),
                "Content" => read
                    .content
                    .replace(map.next_value_seed(Text::free(MAX_CONTENT_BYTES))?)
                    .is_some(),
                "ToMembers_Account" => {
                    let splitter = Splitter::new(rules.batch_size, body_bytes);
                    let list = RecipientList { field: &mut read.field, splitter };
                    read.recipients.replace(map.next_value_seed(list)?).is_some()
                }
                _ => {
                    return Err(A::Error::custom(
                        "unknown field; a job has GroupId, Content, ToMembers_Account and TopicId",
                    ));
                }
            };
            read.field = key;
            if given_before {
                return Err(A::Error::custom("is given twice"));
            }
            read.field = "body".into();
        }
        Ok(())
    }
}

/// A string with a maximum length in bytes.
#[derive(Clone, Copy)]
struct Text {
    max_bytes: usize,
    kind: TextKind,
}

#[derive(Clone, Copy)]
enum TextKind {
    Id,
    Free,
}

impl Text {
    fn id(max_bytes: usize) -> Self {
        Self { max_bytes, kind: TextKind::Id }
    }

    fn free(max_bytes: usize) -> Self {
        Self { max_bytes, kind: TextKind::Free }
    }

    fn check<E: Error>(self, text: &str) -> Result<(), E> {
        if text.len() > self.max_bytes {
            return Err(E::custom(format_args!(
                "is {} bytes long; at most {} are allowed",
                text.len(),
                self.max_bytes
            )));
        }
        match self.kind {
            TextKind::Id if text.trim().is_empty() => Err(E::custom("is blank")),
            TextKind::Id if text.chars().any(char::is_control) => {
                Err(E::custom("has a control character"))
            }
            TextKind::Id | TextKind::Free => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = String;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string")
    }

    refuse!(null, boolean, number, array, object);

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        self.check(text).map(|()| text.to_owned())
    }
}

struct RecipientList<'a> {
    field: &'a mut String,
    splitter: Splitter,
}

impl<'de> DeserializeSeed<'de> for RecipientList<'_> {
    type Value = Splitter;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Splitter, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RecipientList<'_> {
    type Value = Splitter;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an array of UserIDs")
    }

    refuse!(null, boolean, number, string, object);

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Splitter, A::Error> {
        for index in 0.. {
            match list.next_element_seed(Recipient(&mut self.splitter)) {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(error) => {
                    *self.field = format!("ToMembers_Account[{index}]");
                    return Err(error);
                }
            }
        }
        Ok(self.splitter)
    }
}

struct Recipient<'a>(&'a mut Splitter);

impl<'de> DeserializeSeed<'de> for Recipient<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Recipient<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a UserID as a string")
    }

    refuse!(null, boolean, number, array, object);

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        Text::id(MAX_USER_ID_BYTES).check(text)?;
        self.0.push(text);
        Ok(())
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

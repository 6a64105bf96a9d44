//! `groupcast schema`: what producers send and get, as JSON Schema.

use schemars::schema_for;
use serde_json::{Value, json};

use super::{Failure, Verdict, say};
use crate::settle::result::JobResult;

/// Print the JSON Schema of jobs and results.
///
/// One document with the definitions `job` and `result`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  groupcast schema > groupcast.schema.json")]
pub struct Args {}

pub fn run(_: Args) -> Result<Verdict, Failure> {
    say(format_args!("{:#}", document()))
}

/// The schema document. Lengths are in characters there and in bytes in the daemon, which has the last word.
pub fn document() -> Value {
    let mut result = schema_for!(JobResult).to_value();
    let mut definitions = result.as_object_mut().and_then(|schema| schema.remove("$defs")).unwrap_or_else(|| json!({}));
    definitions["result"] = without_dialect(result);
    definitions["job"] = job();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "groupcast",
        "description": "Jobs that producers publish and results that they get.",
        "$defs": definitions,
    })
}

fn without_dialect(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
    }
    schema
}

fn job() -> Value {
    let id = |max_bytes: u32, description: &str| json!({ "type": "string", "minLength": 1, "maxLength": max_bytes, "pattern": "\\S", "description": description });
    json!({
        "type": "object",
        "description": "The API's own request body without its limit of 500 recipients.",
        "required": ["GroupId", "Content"],
        "additionalProperties": false,
        "properties": {
            "GroupId": id(96, "The group."),
            "Content": { "type": "string", "maxLength": 12288, "description": "The notification; 12,288 bytes of UTF-8 at most." },
            "ToMembers_Account": {
                "type": "array",
                "items": id(32, "A UserID."),
                "description": "The recipients, any number. Absent or empty: every member of the group.",
            },
            "TopicId": id(96, "A topic of a topic-enabled community."),
        },
    })
}

//! `groupcast schema`: prints what producers send and receive, as JSON Schema or AsyncAPI.

use schemars::schema_for;
use serde_json::{Value, json};

use super::{Conclusion, Failure, say};
use crate::settle::result::JobResult;

/// Print the JSON Schema of jobs and results.
///
/// One document with the definitions `job` and `result`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  groupcast schema > groupcast.schema.json\n  groupcast schema \
        --asyncapi > groupcast.asyncapi.json"
)]
pub struct Args {
    /// Print an AsyncAPI 3 document instead: the queues, with the properties and headers of their
    /// messages too
    #[arg(long)]
    asyncapi: bool,
}

pub fn run(Args { asyncapi }: Args) -> Result<Conclusion, Failure> {
    say(format_args!("{:#}", if asyncapi { asyncapi_document() } else { document() }))
}

/// The queues that producers and operators use, and their messages.
fn asyncapi_document() -> Value {
    let mut schemas = document()["$defs"].take();
    rewrite_references(&mut schemas);
    let app = json!({ "description": "The app, as the configuration names it." });
    let queue = |kind: &str, message: &str, description: &str| {
        json!({
            "address": format!("groupcast.{{app}}.{kind}"),
            "description": description,
            "parameters": { "app": app },
            "messages": { message: { "$ref": format!("#/components/messages/{message}") } },
            "bindings": { "amqp": {
                "is": "queue",
                "queue": { "durable": true, "exclusive": false, "autoDelete": false },
            } },
        })
    };
    let message = |name: &str, payload: &str, headers: Value, summary: &str| {
        json!({
            "name": name, "summary": summary, "contentType": "application/json", "headers": headers,
            "payload": { "$ref": format!("#/components/schemas/{payload}") },
            "bindings": { "amqp": { "contentEncoding": "utf-8", "messageType": name } },
        })
    };
    let text = |description: &str| json!({ "type": "string", "description": description });
    let time =
        |description: &str| json!({ "type": ["string", "integer"], "description": description });
    let job_headers = json!({
        "groupcast-deadline": time("RFC 3339 or Unix seconds. No call is made after it; the job \
            ends expired."),
        "groupcast-not-before": time("RFC 3339 or Unix seconds. Not sent earlier."),
        "groupcast-delivery": {
            "enum": ["at-least-once", "at-most-once"],
            "description": "What to do with a batch whose outcome is unknown: send it again, or \
                report it.",
        },
        "traceparent": text("W3C trace context, copied to the result."),
        "tracestate": text("W3C trace context, copied to the result."),
    });
    let status = json!({ "$ref": "#/components/schemas/Status" });
    let letter_headers = json!({
        "groupcast-status": status,
        "groupcast-job-id": text("The job's id, also a generated one."),
        "groupcast-died-at": text("RFC 3339."),
        "groupcast-attempt": { "type": "integer", "minimum": 1, "description": "How often it has \
            died." },
        "groupcast-error-kind": { "$ref": "#/components/schemas/ErrorKind" },
        "groupcast-error-code": { "type": "integer", "description": "The API's ErrorCode." },
        "groupcast-error-info": text("What the API said."),
    });
    let result_headers = with(json!({ "groupcast-status": status }), &["groupcast-status"]);
    let died = ["groupcast-status", "groupcast-job-id", "groupcast-died-at", "groupcast-attempt"];
    schemas["letter"] = json!({ "description": "A job with the recipients that were not sent, or \
        the bytes of a message that is no job." });
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "groupcast",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Jobs for Tencent Chat group system notifications, their results and \
                their dead letters.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "jobs": queue("jobs", "job", "Publish jobs here, by the default exchange, persistent \
                and mandatory. message_id makes a job idempotent."),
            "results": queue("results", "result", "Results, if results_queue names it; a job's \
                reply_to names any other queue."),
            "dead": queue("dead", "letter", "Jobs that were not sent whole."),
        },
        "operations": {
            "sendJob": {
                "action": "receive",
                "channel": { "$ref": "#/channels/jobs" },
                "reply": { "channel": { "$ref": "#/channels/results" } },
            },
            "tellResult": { "action": "send", "channel": { "$ref": "#/channels/results" } },
            "keepDeadLetter": { "action": "send", "channel": { "$ref": "#/channels/dead" } },
        },
        "components": {
            "schemas": schemas,
            "messages": {
                "job": message("job", "job", with(job_headers, &[]), "What to send, and to whom."),
                "result": message("groupcast.result", "result", result_headers, "The one answer to \
                    a job."),
                "letter": message("letter", "letter", with(letter_headers, &died), "A job that can \
                    be sent again."),
            },
        },
    })
}

/// An AsyncAPI document has its definitions in another place.
fn rewrite_references(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get_mut("$ref") {
                *reference = reference.replace("#/$defs/", "#/components/schemas/");
            }
            members.values_mut().for_each(rewrite_references);
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}

/// The schema document. It gives lengths in characters. The daemon counts bytes, and its limits
/// decide.
pub fn document() -> Value {
    let mut result = schema_for!(JobResult).to_value();
    let mut definitions = result
        .as_object_mut()
        .and_then(|schema| schema.remove("$defs"))
        .unwrap_or_else(|| json!({}));
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
    let id = |max_bytes: u32, description: &str| {
        json!({
            "type": "string",
            "minLength": 1,
            "maxLength": max_bytes,
            "pattern": "\\S",
            "description": description,
        })
    };
    json!({
        "type": "object",
        "description": "The API's own request body without its limit of 500 recipients.",
        "required": ["GroupId", "Content"],
        "additionalProperties": false,
        "properties": {
            "GroupId": id(96, "The group."),
            "Content": { "type": "string", "maxLength": 12288, "description": "The notification; \
                12,288 bytes of UTF-8 at most." },
            "ToMembers_Account": {
                "type": "array",
                "items": id(32, "A UserID."),
                "description": "The recipients, any number. Absent or empty: every member of the \
                    group.",
            },
            "TopicId": id(96, "A topic of a topic-enabled community."),
        },
    })
}

fn with(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required })
}

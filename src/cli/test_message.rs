//! The test message of `groupcast check --group G --to U`: one message to one user, by which a
//! person sees whether the API notifies that user alone.

use crate::{
    accept::decode::{RecipientRule, Rules, decode},
    api::{
        call::{Api, AtWrite, Caller},
        classify::{Answer, Verdict},
        command,
        explain::explain,
    },
    cli::Failure,
    config::{App, EmptyRecipients},
    job::Job,
};

const CONTENT: &str = "test message of groupcast check";

/// Sends the message. The texts say what happened and what to look at.
pub async fn send(app: &App, group: &str, user: &str) -> Result<String, String> {
    let job = job(group, user)?;
    let command = command::of(&app.command);
    let caller = Caller::new(app).map_err(|error| Failure::with_causes(error).0)?;
    // Web clients hide messages with one of their own numbers, which are lower.
    let random = rand::random_range(1 << 31..=u32::MAX);
    let body = command.body(&job, 0, random);
    let answer = caller.call(body, Box::new(|| AtWrite::Send)).await;
    if let Answer::NotSent { why } = answer {
        return Err(why.to_string());
    }
    match command.judge(answer) {
        Verdict::Sent => Ok(format!(
            "{} accepted a message to {user} in group {group}. Look at two clients now: {user} \
                must see \"{CONTENT}\", and another member of the group must not. If another \
                member sees it, the API ignores recipients: with send_group_msg, leave \
                group_msg.targeting = false",
            command.name()
        )),
        Verdict::Failed { class, fault } => {
            let explanation = explain(class, &fault);
            let code = fault.code.map_or_else(String::new, |code| format!(" ({code})"));
            Err(format!(
                "the message to {user} in group {group} was refused: {}{code}. What to do: {}",
                explanation.meaning, explanation.advice
            ))
        }
    }
}

fn job(group: &str, user: &str) -> Result<Job, String> {
    let body = serde_json::json!({
        "GroupId": group, "Content": CONTENT, "ToMembers_Account": [user]
    });
    let rules = Rules {
        max_job_bytes: 1 << 16,
        batch_size: 1,
        empty_recipients: EmptyRecipients::Reject,
        recipients: RecipientRule::Always,
    };
    decode(body.to_string().as_bytes(), &rules).map_err(|rejection| rejection.to_string())
}

//! Reads a message. The result is a job or a rejection.

use tokio::sync::Semaphore;

use super::{Context, Pipeline};
use crate::{
    accept::{
        decode::{Rules, decode},
        envelope,
    },
    api::command,
    clock,
    config::App,
    job::{Envelope, Job, Rejection},
    settle::undeliverable,
    subscribe::consume::Source,
};

/// A larger body is read on a blocking thread, so that it delays no other task.
const READ_ASIDE_BYTES: usize = 128 * 1024;
/// Reading a body needs up to three times its size in memory, so the daemon reads only two large
/// bodies at once. More at once would not save time.
static READ_ASIDE: Semaphore = Semaphore::const_new(2);

/// A message after reading: its job with the fingerprint, or its rejection, and the original bytes.
pub(super) struct ReadMessage {
    pub envelope: Envelope,
    pub body: Vec<u8>,
    pub job: Result<(Job, String), Rejection>,
}

impl Pipeline {
    pub(super) async fn receive(
        &self,
        body: Vec<u8>,
        source: Source,
        Context { properties, .. }: &Context,
    ) -> ReadMessage {
        let app = self.config();
        let results_queue = app.results_queue.as_deref();
        let (mut envelope, checked) =
            envelope::read(properties, &self.app, results_queue, &app.replies, clock::now());
        if source == Source::Undeliverable {
            envelope.given_up.get_or_insert_with(|| undeliverable::reason(properties));
        }
        let frame_max = self.publisher.frame_max();
        let checked = checked.and_then(|()| envelope::check_headers_fit(properties, frame_max));
        let (body, job) = read(body, checked, self.rules(&app)).await;
        ReadMessage { envelope, body, job }
    }
}

/// What the configuration says about an app's jobs.
pub fn rules(app: &App, max_job_bytes: u64) -> Rules {
    Rules {
        // Offsets into a job are 32 bits wide.
        max_job_bytes: usize::try_from(max_job_bytes.min(1 << 31)).unwrap_or(usize::MAX),
        batch_size: app.batch_size as u32,
        empty_recipients: app.empty_recipients,
        recipients: command::of(&app.command).recipients(),
    }
}

/// Reads a body. A large one is read on a blocking thread.
async fn read(
    body: Vec<u8>,
    checked: Result<(), Rejection>,
    rules: Rules,
) -> (Vec<u8>, Result<(Job, String), Rejection>) {
    if body.len() <= READ_ASIDE_BYTES {
        return read_body(body, checked, &rules);
    }
    let _turn = READ_ASIDE.acquire().await.expect("never closed");
    let reading = tokio::task::spawn_blocking(move || read_body(body, checked, &rules));
    reading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Reads a body whose envelope was `checked`. If a header is wrong, the rejection still names the
/// group and the topic from the body.
pub(super) fn read_body(
    body: Vec<u8>,
    checked: Result<(), Rejection>,
    rules: &Rules,
) -> (Vec<u8>, Result<(Job, String), Rejection>) {
    let job = match (checked, decode(&body, rules)) {
        (Ok(()), Ok(job)) => {
            let fingerprint = job.fingerprint();
            Ok((job, fingerprint))
        }
        (Ok(()), Err(rejection)) => Err(rejection),
        (Err(rejection), Ok(Job { group_id, topic_id, .. })) => {
            Err(Rejection { group_id: Some(group_id), topic_id, ..rejection })
        }
        (Err(rejection), Err(Rejection { group_id, topic_id, .. })) => {
            Err(Rejection { group_id, topic_id, ..rejection })
        }
    };
    (body, job)
}

//! A message read: into a job, or into the reason why it is none.

use tokio::sync::Semaphore;

use crate::{
    accept::decode::{Rules, decode},
    job::{Envelope, Job, Rejection},
};

/// A larger body is read on a thread where it holds nobody up.
const READ_ASIDE_BYTES: usize = 128 * 1024;
/// While it is read, a body takes up to three times its size. So few at once cost no more time than
/// many would.
static READ_ASIDE: Semaphore = Semaphore::const_new(2);

/// A message read: its job with its fingerprint, or why it is none; with the original bytes.
pub(super) struct Received {
    pub envelope: Envelope,
    pub body: Vec<u8>,
    pub job: Result<(Job, String), Rejection>,
}

/// Reads a body, one that takes long on a thread aside.
pub(super) async fn read(
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

/// Reads a body whose envelope was `checked`; what can be read of a job with a bad header is still
/// told in its result.
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

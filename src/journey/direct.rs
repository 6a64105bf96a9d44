//! Sends one job without a broker, for a caller that waits for the result.

use std::sync::Arc;

use lapin::BasicProperties;
use tokio::{sync::watch, time::Instant};
use tracing::Span;

use super::reading::read_body;
use crate::{
    accept::{decode::Rules, envelope},
    api::{call::Caller, command},
    clock,
    config::App,
    pace::Pacer,
    send::{self, Advance, Dispatcher, Ending, Submission},
    settle::result::{JobResult, Origin},
    subscribe::lease::Lease,
};

/// Sends one job without a broker and returns its result. Reading, pacing, calls and retries are
/// the same as with a broker.
pub async fn deliver_directly(
    name: &str,
    app: &App,
    rules: &Rules,
    body: Vec<u8>,
    properties: &BasicProperties,
    told: watch::Sender<Advance>,
) -> Result<JobResult, reqwest::Error> {
    let (envelope, checked) = envelope::read(properties, name, None, &app.replies, clock::now());
    let origin = Origin { app: name, command: command::of(&app.command).name() };
    let job = match read_body(body, checked, rules).1 {
        Ok((job, _)) => Arc::new(job),
        Err(rejection) => {
            return Ok(JobResult::rejected(origin, &envelope, &rejection, clock::now()));
        }
    };
    let pacer = Pacer::new(app.calls_per_second, app.burst, Instant::now());
    let settings = send::Settings::attended(name, Arc::new(Caller::new(app)?), pacer);
    let config = watch::Sender::new(Arc::new(app.clone()));
    let dispatcher = Dispatcher::start(settings, config.subscribe());
    let mut submission = Submission {
        job,
        envelope: Arc::new(envelope),
        lease: Lease::unlimited(),
        entry: None,
        batches: Vec::new(),
        advance: Some(told),
        span: Span::none(),
    };
    loop {
        let Submission { job, envelope, .. } = &submission;
        match dispatcher.send(&submission).await {
            Ok(Ending::Finished(report)) => {
                return Ok(JobResult::finished(origin, envelope, job, &report, clock::now()));
            }
            Ok(Ending::TooLarge(touched)) => submission = submission.split_again(&touched),
            Ok(Ending::Parked(_)) | Err(_) => {
                unreachable!("an unlimited lease lets a job finish, and somebody waits for it")
            }
        }
    }
}

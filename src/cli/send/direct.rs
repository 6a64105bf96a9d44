//! Handles jobs without a broker: sends them from here, or only counts their batches and calls.

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Conclusion, Failure, JobMessage, print};
use crate::{
    accept::{decode::decode, envelope},
    api::command,
    cli::say,
    config::{App, Config},
    job::{Audience, Job},
    journey,
    pace::send_window::SPAN,
    send::Advance,
};

pub async fn run(
    name: &str,
    app: &App,
    config: &Config,
    message: JobMessage,
) -> Result<Conclusion, Failure> {
    let rules = journey::rules(app, config.broker.max_job_bytes);
    let (progress, mut advances) = watch::channel(Advance::default());
    let bar = bar();
    let watched = bar.clone();
    let watching = tokio::spawn(async move {
        while advances.changed().await.is_ok() {
            let Advance { ended, batches } = *advances.borrow_and_update();
            watched.set_length(u64::from(batches));
            watched.set_position(u64::from(ended));
        }
    });
    let result =
        journey::deliver_directly(name, app, &rules, message.body, &message.properties, progress)
            .await?;
    watching.await?;
    bar.finish_and_clear();
    print(&result)
}

pub fn count(
    name: &str,
    app: &App,
    config: &Config,
    message: &JobMessage,
) -> Result<Conclusion, Failure> {
    let (_, checked) =
        envelope::read(&message.properties, name, None, &app.replies, Timestamp::now());
    let decoded = decode(&message.body, &journey::rules(app, config.broker.max_job_bytes));
    let job = checked
        .and(decoded)
        .map_err(|rejection| format!("the job would be rejected: {rejection}"))?;
    let calls = job.batch_count();
    let at_app_limit = f64::from(calls.saturating_sub(app.burst)) / f64::from(app.calls_per_second);
    let per_group = command::of(&app.command).calls_per_second_per_group();
    let at_group_limit =
        per_group.map_or(0.0, |limit| f64::from((calls - 1) / limit) * SPAN.as_secs_f64());
    let seconds = at_app_limit.max(at_group_limit);
    let for_one_group =
        per_group.map_or_else(String::new, |limit| format!(", {limit} of them for one group"));
    say(format_args!(
        "group     {}\naudience  {}\nbatches   {calls}, one call each\nearliest  {seconds:.1} s \
            after the first call, at {} calls a second{for_one_group}",
        job.group_id,
        audience(&job),
        app.calls_per_second,
    ))
}

fn audience(job: &Job) -> String {
    match &job.audience {
        Audience::All => "every member of the group".into(),
        Audience::Members(list) => {
            format!(
                "{} recipients ({} given, {} repeated)",
                list.requested() - list.duplicates(),
                list.requested(),
                list.duplicates()
            )
        }
    }
}

/// A progress bar. It is drawn only on a terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} batches, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

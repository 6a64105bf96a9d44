//! The metrics of one app. Counting is cheap: the handles are looked up once, and gauges that
//! mirror a state are set only at a scrape.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;

use crate::{
    api::{
        classify::{Answer, Verdict, classify},
        codes::class_of,
    },
    pace::Pacer,
    send::condition::Condition,
    settle::{
        Tally,
        result::{RecipientCounts, Status},
    },
    telemetry::metrics::{
        APP_PAUSED, CALL_SECONDS, CALLS, CALLS_IN_FLIGHT, CALLS_MAX_1S, CALLS_PER_SECOND_LIMIT,
        GROUPS_THROTTLED, JOB_SECONDS, JOBS, JOBS_HELD, JOBS_PARKED, RECIPIENTS,
        start_counting_unrouted, start_counting_vanished_queues,
    },
};

/// The maximum number of kinds of failed calls with a series of their own. The API documents about
/// a hundred codes, but another server that answers in its place may send any number.
const MAX_FAILURES: usize = 200;
const NOT_PAUSED: &str = "none";

pub struct Meter {
    app: String,
    jobs: Jobs,
    job_seconds: Histogram,
    recipients: RecipientCounters,
    parked: Counter,
    calls_sent: Counter,
    calls_failed: Mutex<HashMap<(Outcome, AnswerCode), Counter>>,
    call_seconds: Histogram,
    held: Level,
    in_flight: Level,
    mirrors: Mirrors,
}

/// Jobs by status.
struct Jobs {
    sent: Counter,
    partial: Counter,
    failed: Counter,
    rejected: Counter,
    expired: Counter,
    cancelled: Counter,
}

/// Recipients by outcome.
struct RecipientCounters {
    sent: Counter,
    failed: Counter,
    unknown: Counter,
}

struct Mirrors {
    held: Gauge,
    in_flight: Gauge,
    calls_per_second_limit: Gauge,
    calls_max_1s: Gauge,
    groups_throttled: Gauge,
    /// The last reason for a pause, and its gauge.
    paused: Mutex<Option<(String, Gauge)>>,
}

/// The outcome of a recipient or a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Sent,
    Failed,
    /// The call failed, but may have notified its recipients.
    Unknown,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// The answer to a call, as the value of the `code` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AnswerCode {
    Api(i64),
    Http(u16),
    NotSent,
    NoAnswer,
    /// `MsgFreqCtrl` is the only reason that the vendor documents.
    Dropped,
    Other,
}

impl fmt::Display for AnswerCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(code) => write!(out, "{code}"),
            Self::Http(status) => write!(out, "http_{status}"),
            Self::NotSent => out.write_str("not_sent"),
            Self::NoAnswer => out.write_str("no_answer"),
            Self::Dropped => out.write_str("MsgFreqCtrl"),
            Self::Other => out.write_str("other"),
        }
    }
}

impl Meter {
    /// Takes its handles from the present metrics recorder. Without a recorder they do nothing.
    pub fn of(app: &str) -> Self {
        let job = |status: Status| JOBS.counter(&[app, status.as_str()]);
        let recipients = |outcome: Outcome| RECIPIENTS.counter(&[app, outcome.as_str()]);
        // The series must exist before the first pause.
        APP_PAUSED.gauge(&[app, NOT_PAUSED]).set(0.0);
        start_counting_unrouted(app);
        start_counting_vanished_queues(app);
        Self {
            app: app.to_owned(),
            jobs: Jobs {
                sent: job(Status::Sent),
                partial: job(Status::Partial),
                failed: job(Status::Failed),
                rejected: job(Status::Rejected),
                expired: job(Status::Expired),
                cancelled: job(Status::Cancelled),
            },
            job_seconds: JOB_SECONDS.histogram(&[app]),
            recipients: RecipientCounters {
                sent: recipients(Outcome::Sent),
                failed: recipients(Outcome::Failed),
                unknown: recipients(Outcome::Unknown),
            },
            parked: JOBS_PARKED.counter(&[app]),
            calls_sent: call_counter(app, Outcome::Sent, AnswerCode::Api(0)),
            calls_failed: Mutex::default(),
            call_seconds: CALL_SECONDS.histogram(&[app]),
            held: Level::default(),
            in_flight: Level::default(),
            mirrors: Mirrors {
                held: JOBS_HELD.gauge(&[app]),
                in_flight: CALLS_IN_FLIGHT.gauge(&[app]),
                calls_per_second_limit: CALLS_PER_SECOND_LIMIT.gauge(&[app]),
                calls_max_1s: CALLS_MAX_1S.gauge(&[app]),
                groups_throttled: GROUPS_THROTTLED.gauge(&[app]),
                paused: Mutex::default(),
            },
        }
    }

    /// Counts a held job until the returned guard is dropped.
    pub fn holds_a_job(&self) -> Counted {
        self.held.one_more()
    }

    /// Counts a call in flight until the returned guard is dropped.
    pub fn has_a_call_in_flight(&self) -> Counted {
        self.in_flight.one_more()
    }

    pub fn count(&self, tally: &Tally) {
        match tally {
            Tally::Ended { result, took } => {
                self.jobs.with(result.status).increment(1);
                self.job_seconds.record(*took);
                if let Some(recipients) = result.recipients {
                    self.recipients.count(recipients);
                }
            }
            Tally::Repeated => {}
            Tally::Parked => self.parked.increment(1),
        }
    }

    pub fn count_call(&self, answer: &Answer, took: Duration) {
        if let Answer::Withdrawn = answer {
            return;
        }
        self.call_seconds.record(took);
        let verdict = classify(answer.clone(), class_of);
        match verdict {
            Verdict::Sent => self.calls_sent.increment(1),
            Verdict::Failed { .. } if verdict.may_have_had_effect() => {
                self.count_failed_call(Outcome::Unknown, code_of(answer))
            }
            Verdict::Failed { .. } => self.count_failed_call(Outcome::Failed, code_of(answer)),
        }
    }

    fn count_failed_call(&self, outcome: Outcome, code: AnswerCode) {
        let mut failed = self.calls_failed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failed.len() < MAX_FAILURES || failed.contains_key(&(outcome, code));
        let code = if known { code } else { AnswerCode::Other };
        failed
            .entry((outcome, code))
            .or_insert_with(|| call_counter(&self.app, outcome, code))
            .increment(1);
    }

    /// Sets the gauges that mirror the present state.
    pub fn mirror(&self, pacer: &Pacer, groups_throttled: usize, condition: &Condition) {
        self.mirrors.groups_throttled.set(groups_throttled as f64);
        self.mirrors.held.set(self.held.count() as f64);
        self.mirrors.in_flight.set(self.in_flight.count() as f64);
        self.mirrors.calls_per_second_limit.set(pacer.rate(Instant::now()));
        self.mirrors.calls_max_1s.set(pacer.most_in_one_second() as f64);
        self.mirror_pause(match condition {
            Condition::Paused(trouble) => Some(&trouble.reason),
            Condition::Working | Condition::Outage(_) => None,
        });
    }

    fn mirror_pause(&self, reason: Option<&str>) {
        let mut paused = self.mirrors.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if paused.as_ref().map(|(before, _)| before.as_str()) == reason {
            return;
        }
        if let Some((_, gauge)) = paused.take() {
            gauge.set(0.0);
        }
        if let Some(reason) = reason {
            let gauge = APP_PAUSED.gauge(&[&self.app, reason]);
            gauge.set(1.0);
            *paused = Some((reason.to_owned(), gauge));
        }
    }
}

impl Jobs {
    fn with(&self, status: Status) -> &Counter {
        match status {
            Status::Sent => &self.sent,
            Status::Partial => &self.partial,
            Status::Failed => &self.failed,
            Status::Rejected => &self.rejected,
            Status::Expired => &self.expired,
            Status::Cancelled => &self.cancelled,
        }
    }
}

impl RecipientCounters {
    fn count(&self, counts: RecipientCounts) {
        self.sent.increment(counts.sent.into());
        self.failed.increment(counts.failed.into());
        self.unknown.increment(counts.unknown.into());
    }
}

fn call_counter(app: &str, outcome: Outcome, code: AnswerCode) -> Counter {
    CALLS.counter(&[app, outcome.as_str(), &code.to_string()])
}

fn code_of(answer: &Answer) -> AnswerCode {
    match answer {
        Answer::Api { code, .. } => AnswerCode::Api(*code),
        Answer::Dropped { .. } => AnswerCode::Dropped,
        Answer::Foreign { http_status, .. } => AnswerCode::Http(*http_status),
        Answer::NotSent { .. } | Answer::Withdrawn => AnswerCode::NotSent,
        Answer::NoAnswer { .. } => AnswerCode::NoAnswer,
    }
}

/// Counts the guards that it has given out and that are not dropped yet.
#[derive(Default)]
struct Level(Arc<()>);

/// A guard of a `Level`.
pub struct Counted(#[expect(dead_code, reason = "held, not read")] Arc<()>);

impl Level {
    fn one_more(&self) -> Counted {
        Counted(self.0.clone())
    }

    fn count(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::send::condition::Trouble;

    /// The exported lines of a metric after `measure` has run, sorted.
    fn lines(metric: &str, measure: impl FnOnce(&Meter)) -> Vec<String> {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || measure(&Meter::of("a")));
        let text = handle.render();
        let mut lines: Vec<String> =
            text.lines().filter(|line| line.starts_with(metric)).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn api(code: i64) -> Answer {
        let (action_ok, info) = (code == 0, String::new());
        Answer::Api { http_status: 200, action_ok, code, info, message: None }
    }

    #[test]
    fn a_call_is_counted_by_what_may_have_come_of_it_and_by_what_was_answered() {
        let info = String::new;
        let answers = [
            (api(0), r#"outcome="sent",code="0""#),
            (
                Answer::Api {
                    http_status: 502,
                    action_ok: true,
                    code: 0,
                    info: info(),
                    message: None,
                },
                r#"outcome="unknown",code="0""#,
            ),
            (api(10010), r#"outcome="failed",code="10010""#),
            (api(60007), r#"outcome="failed",code="60007""#),
            (api(10002), r#"outcome="unknown",code="10002""#),
            (api(60099), r#"outcome="unknown",code="60099""#),
            (
                Answer::Foreign { http_status: 403, info: info() },
                r#"outcome="failed",code="http_403""#,
            ),
            (
                Answer::Foreign { http_status: 502, info: info() },
                r#"outcome="unknown",code="http_502""#,
            ),
            (
                Answer::NotSent { why: crate::diagnosis::Diagnosis::unknown("") },
                r#"outcome="failed",code="not_sent""#,
            ),
            (Answer::NoAnswer { info: info() }, r#"outcome="unknown",code="no_answer""#),
        ];
        let mut expected: Vec<String> = answers
            .iter()
            .map(|(_, labels)| format!("groupcast_calls_total{{app=\"a\",{labels}}} 2"))
            .collect();
        expected.sort();
        let counted = lines("groupcast_calls_total", |meter| {
            for (answer, _) in answers.iter().chain(&answers) {
                meter.count_call(answer, Duration::from_millis(1));
            }
            meter.count_call(&Answer::Withdrawn, Duration::ZERO);
        });
        assert_eq!(counted, expected);
    }

    #[test]
    fn answers_that_make_up_codes_do_not_make_up_any_number_of_series() {
        let counted = lines("groupcast_calls_total", |meter| {
            (1..=10_000).for_each(|code| meter.count_call(&api(code), Duration::ZERO));
        });
        assert!((MAX_FAILURES..MAX_FAILURES + 4).contains(&counted.len()), "{}", counted.len());
        assert!(counted.iter().any(|line| line.contains(r#"code="other""#)));
    }

    #[test]
    fn a_pause_is_told_with_its_reason_and_no_longer_than_it_lasts() {
        let paused = |reason: &str| {
            Condition::Paused(Trouble {
                since: Timestamp::UNIX_EPOCH,
                code: None,
                http_status: None,
                reason: reason.into(),
                info: String::new(),
                advice: "",
            })
        };
        let pacer = Pacer::new(200, 20, Instant::now());
        let after = |conditions: &[Condition]| {
            let lines = lines("groupcast_app_paused", |meter| {
                conditions.iter().for_each(|condition| meter.mirror(&pacer, 0, condition))
            });
            lines.into_iter().filter(|line| line.ends_with(" 1")).collect::<Vec<_>>()
        };
        let told =
            |reason: &str| vec![format!("groupcast_app_paused{{app=\"a\",reason=\"{reason}\"}} 1")];
        assert!(after(&[Condition::Working]).is_empty());
        assert_eq!(
            after(&[paused("package expired"), paused("package expired")]),
            told("package expired")
        );
        assert_eq!(
            after(&[paused("package expired"), paused("app disabled")]),
            told("app disabled")
        );
        assert!(after(&[paused("package expired"), Condition::Working]).is_empty());
    }
}

//! Every metric with its name, labels, unit and meaning. No other code names a metric.
//! [`journey::meter`](crate::journey::meter) sets most metrics of an app, and the functions here
//! set the others.
//!
//! Without [`Exposition::start`] nothing is recorded, and the handles cost almost nothing.

use std::{convert::Infallible, time::Duration};

use metrics::{Counter, Gauge, Histogram, Label};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// The recorder keeps every duration until a scrape or this upkeep sorts it into its bucket.
const SORTED_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    pub unit: &'static str,
    pub meaning: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub enum MetricKind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

impl MetricKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// From 5 ms to the longest `request_timeout`.
const CALL_SECONDS_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0];
/// From 50 ms to a day, because jobs may wait in a wait queue.
const JOB_SECONDS_BUCKETS: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0,
];

pub static JOBS: Metric = Metric {
    name: "groupcast_jobs_total",
    kind: MetricKind::Counter,
    labels: &["app", "status"],
    unit: "jobs",
    meaning: "jobs that ended, by the status of their result; copies that were answered from the \
        record are not counted",
};
pub static JOB_SECONDS: Metric = Metric {
    name: "groupcast_job_seconds",
    kind: MetricKind::Histogram(JOB_SECONDS_BUCKETS),
    labels: &["app"],
    unit: "seconds",
    meaning: "from the first receipt of a job to its end, waits included",
};
pub static RECIPIENTS: Metric = Metric {
    name: "groupcast_recipients_total",
    kind: MetricKind::Counter,
    labels: &["app", "outcome"],
    unit: "recipients",
    meaning: "recipients of jobs that ended; an audience of all is not counted",
};
pub static JOBS_PARKED: Metric = Metric {
    name: "groupcast_jobs_parked_total",
    kind: MetricKind::Counter,
    labels: &["app"],
    unit: "jobs",
    meaning: "times that a job was put into a wait queue",
};
pub static RESULTS_UNROUTED: Metric = Metric {
    name: "groupcast_results_unrouted_total",
    kind: MetricKind::Counter,
    labels: &["app", "reason"],
    unit: "results",
    meaning: "results put into .unrouted because their reply queue was missing, full or refused",
};
pub static QUEUE_MESSAGES: Metric = Metric {
    name: "groupcast_queue_messages",
    kind: MetricKind::Gauge,
    labels: &["app", "queue"],
    unit: "messages",
    meaning: "messages that wait in a queue of the app, as the broker counted them in the last 15 \
        s; wait is all wait queues together",
};
pub static QUEUES_VANISHED: Metric = Metric {
    name: "groupcast_queues_vanished_total",
    kind: MetricKind::Counter,
    labels: &["app"],
    unit: "queues",
    meaning: "times that a queue of the app was gone, and with it what was in it",
};
pub static JOBS_HELD: Metric = Metric {
    name: "groupcast_jobs_held",
    kind: MetricKind::Gauge,
    labels: &["app"],
    unit: "jobs",
    meaning: "jobs delivered and not yet acknowledged",
};
pub static CALLS: Metric = Metric {
    name: "groupcast_calls_total",
    kind: MetricKind::Counter,
    labels: &["app", "outcome", "code"],
    unit: "calls",
    meaning: "calls of the API; unknown are those that failed and may have notified all the same",
};
pub static CALL_SECONDS: Metric = Metric {
    name: "groupcast_call_seconds",
    kind: MetricKind::Histogram(CALL_SECONDS_BUCKETS),
    labels: &["app"],
    unit: "seconds",
    meaning: "from the start of a call to its answer or failure, connecting included",
};
pub static CALLS_IN_FLIGHT: Metric = Metric {
    name: "groupcast_calls_in_flight",
    kind: MetricKind::Gauge,
    labels: &["app"],
    unit: "calls",
    meaning: "calls started and not yet answered, connecting included",
};
pub static CALLS_PER_SECOND_LIMIT: Metric = Metric {
    name: "groupcast_calls_per_second_limit",
    kind: MetricKind::Gauge,
    labels: &["app"],
    unit: "calls per second",
    meaning: "the present pace; below calls_per_second while the API says that calls come too fast",
};
pub static CALLS_MAX_1S: Metric = Metric {
    name: "groupcast_calls_max_1s",
    kind: MetricKind::Gauge,
    labels: &["app"],
    unit: "calls",
    meaning: "the most calls that left in any one second since the start",
};
pub static APP_PAUSED: Metric = Metric {
    name: "groupcast_app_paused",
    kind: MetricKind::Gauge,
    labels: &["app", "reason"],
    unit: "0 or 1",
    meaning: "1 while the app is paused for this reason; the reason none is always there, and 0",
};
pub static BROKER_CONNECTED: Metric = Metric {
    name: "groupcast_broker_connected",
    kind: MetricKind::Gauge,
    labels: &[],
    unit: "0 or 1",
    meaning: "1 while results can be published",
};
pub static LOG_LINES_DROPPED: Metric = Metric {
    name: "groupcast_log_lines_dropped_total",
    kind: MetricKind::Counter,
    labels: &[],
    unit: "lines",
    meaning: "lines of the log that were dropped because nothing read standard error fast enough",
};
pub static BUILD_INFO: Metric = Metric {
    name: "groupcast_build_info",
    kind: MetricKind::Gauge,
    labels: &["version"],
    unit: "1",
    meaning: "always 1; tells the version",
};

pub static GROUPS_THROTTLED: Metric = Metric {
    name: "groupcast_groups_throttled",
    kind: MetricKind::Gauge,
    labels: &["app"],
    unit: "groups",
    meaning: "groups whose calls are slowed down because the vendor dropped messages of them",
};

pub static ALL: [&Metric; 18] = [
    &JOBS,
    &JOB_SECONDS,
    &RECIPIENTS,
    &JOBS_PARKED,
    &RESULTS_UNROUTED,
    &QUEUE_MESSAGES,
    &QUEUES_VANISHED,
    &JOBS_HELD,
    &CALLS,
    &CALL_SECONDS,
    &CALLS_IN_FLIGHT,
    &CALLS_PER_SECOND_LIMIT,
    &CALLS_MAX_1S,
    &GROUPS_THROTTLED,
    &APP_PAUSED,
    &BROKER_CONNECTED,
    &LOG_LINES_DROPPED,
    &BUILD_INFO,
];

impl Metric {
    pub fn counter(&self, values: &[&str]) -> Counter {
        metrics::counter!(self.name, self.labelled(values))
    }

    pub fn gauge(&self, values: &[&str]) -> Gauge {
        metrics::gauge!(self.name, self.labelled(values))
    }

    pub fn histogram(&self, values: &[&str]) -> Histogram {
        metrics::histogram!(self.name, self.labelled(values))
    }

    fn labelled(&self, values: &[&str]) -> Vec<Label> {
        assert_eq!(self.labels.len(), values.len(), "{}", self.name);
        self.labels
            .iter()
            .zip(values)
            .map(|(name, value)| Label::new(*name, (*value).to_owned()))
            .collect()
    }

    fn describe(&self) {
        let text = format!("{}. Unit: {}.", self.meaning, self.unit);
        match self.kind {
            MetricKind::Counter => metrics::describe_counter!(self.name, text),
            MetricKind::Gauge => metrics::describe_gauge!(self.name, text),
            MetricKind::Histogram(_) => metrics::describe_histogram!(self.name, text),
        }
    }
}

/// Whether results can be published.
pub fn set_broker_connected(connected: bool) {
    BROKER_CONNECTED.gauge(&[]).set(f64::from(u8::from(connected)));
}

/// Counts a log line that was not written.
pub fn count_dropped_line() {
    LOG_LINES_DROPPED.counter(&[]).increment(1);
}

/// Sets how many messages wait; `None` if that is not known now.
pub fn set_queue_messages(app: &str, queue: &str, messages: Option<u32>) {
    QUEUE_MESSAGES.gauge(&[app, queue]).set(messages.map_or(f64::NAN, f64::from));
}

/// Counts a queue of the app that was gone.
pub fn count_vanished_queues(app: &str) {
    QUEUES_VANISHED.counter(&[app]).increment(1);
}

/// Creates the series, so that it is there before the first such queue.
pub fn start_counting_vanished_queues(app: &str) {
    QUEUES_VANISHED.counter(&[app]).increment(0);
}

/// Why a result did not go to its reply queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnroutedReason {
    Missing,
    Full,
    /// The job may not name that queue, or the broker refuses the message for it.
    Refused,
}

impl UnroutedReason {
    pub const ALL: [Self; 3] = [Self::Missing, Self::Full, Self::Refused];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Full => "full",
            Self::Refused => "refused",
        }
    }
}

/// Counts a result that was put into `.unrouted`.
pub fn count_unrouted(app: &str, why: UnroutedReason) {
    RESULTS_UNROUTED.counter(&[app, why.as_str()]).increment(1);
}

/// Creates the series, so that they are there before the first such result.
pub fn start_counting_unrouted(app: &str) {
    UnroutedReason::ALL
        .iter()
        .for_each(|why| RESULTS_UNROUTED.counter(&[app, why.as_str()]).increment(0));
}

/// The metrics recorder of this process, which renders them as text.
pub struct Exposition(PrometheusHandle);

impl Exposition {
    /// Records from now on. Call it once per process. Handles that were made before record nothing.
    pub fn start() -> Result<Self, String> {
        let recorder = builder().map_err(|error| error.to_string())?.build_recorder();
        let exposition = Self(recorder.handle());
        metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
        ALL.iter().for_each(|metric| metric.describe());
        BUILD_INFO.gauge(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        // Creates the series, so that it is there before the first such line.
        LOG_LINES_DROPPED.counter(&[]).increment(0);
        Ok(exposition)
    }

    /// Every metric with its value, in the Prometheus text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of the recorder small while no collector scrapes.
    pub async fn keep_small(&self) -> Infallible {
        loop {
            tokio::time::sleep(SORTED_EVERY).await;
            self.0.run_upkeep();
        }
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    ALL.iter().try_fold(PrometheusBuilder::new(), |builder, metric| match metric.kind {
        MetricKind::Histogram(buckets) => {
            builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
        }
        MetricKind::Counter | MetricKind::Gauge => Ok(builder),
    })
}

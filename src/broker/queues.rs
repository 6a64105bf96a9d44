//! The names of an app's queues, and the rights that a user needs on them.

use std::time::Duration;

/// The command that gives a user the rights that the daemon needs.
pub const GIVE_RIGHTS: &str = "`rabbitmqctl set_permissions -p VHOST USER '^groupcast[.].*' \
    '^(groupcast[.].*|amq[.]default)$' '^groupcast[.].*'` on the broker (careful: this replaces \
    all rights that USER has in VHOST)";

/// The commands that declare the queues that the daemon needs.
pub const DECLARE: &str = "`groupcast topology > groupcast.json` and, on the broker, `rabbitmqctl \
    import_definitions groupcast.json`";

/// Jobs, from producers.
pub fn jobs(app: &str) -> String {
    format!("groupcast.{app}.jobs")
}

/// Jobs with recipients that were not notified.
pub fn dead(app: &str) -> String {
    format!("groupcast.{app}.dead")
}

/// Jobs that the broker has given up. The daemon publishes a result for each.
pub fn undeliverable(app: &str) -> String {
    format!("groupcast.{app}.undeliverable")
}

/// Results whose reply queue is missing, full or refused.
pub fn unrouted(app: &str) -> String {
    format!("groupcast.{app}.unrouted")
}

/// The app's own results, if `results_queue` names it.
pub fn results(app: &str) -> String {
    format!("groupcast.{app}.results")
}

/// Jobs that wait this long before they return to [`jobs`].
pub fn wait(app: &str, wait: Duration) -> String {
    format!("groupcast.{app}.wait.{}", wait.as_secs())
}

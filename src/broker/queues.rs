//! The names of an app's queues, and the rights that a user needs on them.

use std::time::Duration;

/// Gives a user the rights that the daemon needs.
pub const GIVE_RIGHTS: &str = "`rabbitmqctl set_permissions -p VHOST USER '^groupcast[.].*' \
    '^(groupcast[.].*|amq[.]default)$' \
                               '^groupcast[.].*'` (in place of all rights that the user has in \
                               that virtual host)";

/// Makes the queues that the daemon needs.
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

/// Jobs that the broker itself has given up, to be answered.
pub fn undeliverable(app: &str) -> String {
    format!("groupcast.{app}.undeliverable")
}

/// Results whose reply queue does not exist.
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

//! The state of the daemon as numbers, read when somebody asks for them. The one place that names metrics.

use metrics::{Unit, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::Shown;

/// What a metric is called, and what it says.
pub const GAUGES: [(&str, Unit, &str); 5] = [
    (
        CALLS_PER_SECOND_LIMIT,
        Unit::CountPerSecond,
        "The pacer's present rate: the configured one, or less after answers that say \"slow down\"",
    ),
    (CALLS_MAX_1S, Unit::Count, "Most calls that left in any second since the start"),
    (APP_PAUSED, Unit::Count, "1 while a fault of the account or the configuration pauses the app"),
    (BROKER_CONNECTED, Unit::Count, "1 while results can be published"),
    (BUILD_INFO, Unit::Count, "Always 1; its label is the version"),
];

const CALLS_PER_SECOND_LIMIT: &str = "groupcast_calls_per_second_limit";
const CALLS_MAX_1S: &str = "groupcast_calls_max_1s";
const APP_PAUSED: &str = "groupcast_app_paused";
const BROKER_CONNECTED: &str = "groupcast_broker_connected";
const BUILD_INFO: &str = "groupcast_build_info";

/// All of them in Prometheus' text format.
pub fn render(shown: &Shown) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    with_local_recorder(&recorder, || set(shown));
    handle.render()
}

fn set(shown: &Shown) {
    for (name, unit, description) in GAUGES {
        describe_gauge!(name, unit, description);
    }
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
    gauge!(BROKER_CONNECTED).set(f64::from(u8::from(shown.publisher.is_open())));
    for app in &shown.apps {
        let name = app.name.clone();
        gauge!(CALLS_PER_SECOND_LIMIT, "app" => name.clone()).set(app.pipeline.calls_per_second());
        gauge!(CALLS_MAX_1S, "app" => name.clone()).set(app.pipeline.calls_max_1s() as f64);
        // Without a reason it is there too, so that an alert can tell "not paused" from "not asked".
        match app.pipeline.condition().borrow().pause() {
            Some(why) => gauge!(APP_PAUSED, "app" => name, "reason" => why.reason.clone()).set(1),
            None => gauge!(APP_PAUSED, "app" => name, "reason" => "").set(0),
        }
    }
}

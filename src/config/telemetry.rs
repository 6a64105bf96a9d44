//! `[telemetry]`: where spans go.

use serde::Deserialize;
use url::Url;

use super::endpoint::Endpoint;
use super::written::Given;

#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// A collector that takes OTLP over HTTP. Without one, the daemon makes no spans.
    pub otlp_endpoint: Option<Url>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TelemetrySection {
    otlp_endpoint: Option<Given<Endpoint>>,
}

impl TelemetrySection {
    pub(super) fn check(self) -> Telemetry {
        Telemetry { otlp_endpoint: self.otlp_endpoint.map(|endpoint| endpoint.0.0) }
    }
}

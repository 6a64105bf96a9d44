//! What the sandbox enforces: its app, its limits and its pace. All but the address can change
//! while it runs.

use std::{net::SocketAddr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    message_settings::{
        DuplicateAnswer, DuplicateKey, GroupLimitAnswer, SandboxMessageSettings, TargetingPlan,
    },
    refusal,
};

/// The default key. It is not a secret: only a sandbox accepts it.
pub const PUBLIC_KEY: &str = "sandbox-secret-key";

#[derive(Debug, Clone, Serialize)]
pub struct SandboxSettings {
    #[serde(skip)]
    pub listen: SocketAddr,
    pub sdk_app_id: u64,
    /// Accounts that may call the API.
    pub admins: Vec<String>,
    #[serde(skip)]
    pub secret_key: SecretString,
    /// Most calls of one command accepted in any one second; 0: no limit.
    pub calls_per_second: u32,
    /// The `ErrorCode` of a call over that limit. The vendor documents several, and does not say
    /// when each one is used.
    pub limit_code: i64,
    /// Most recipients of one system notification.
    pub max_recipients: usize,
    /// How long every answer takes.
    #[serde(rename = "latency_ms", serialize_with = "milliseconds")]
    pub latency: Duration,
    /// The most that is added to the latency, drawn anew for each call.
    #[serde(rename = "jitter_ms", serialize_with = "milliseconds")]
    pub jitter: Duration,
    #[serde(flatten)]
    pub messages: SandboxMessageSettings,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            sdk_app_id: 1_400_000_000,
            admins: vec!["administrator".to_owned()],
            secret_key: SecretString::from(PUBLIC_KEY),
            calls_per_second: 200,
            limit_code: refusal::TOO_FREQUENT,
            max_recipients: 500,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            messages: SandboxMessageSettings::default(),
        }
    }
}

impl SandboxSettings {
    pub(super) fn key(&self) -> &str {
        self.secret_key.expose_secret()
    }

    pub(super) fn draw_latency(&self) -> Duration {
        if self.jitter.is_zero() {
            self.latency
        } else {
            self.latency + rand::random_range(Duration::ZERO..=self.jitter)
        }
    }
}

/// A change of the settings. Absent fields stay unchanged.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsPatch {
    pub sdk_app_id: Option<u64>,
    pub admins: Option<Vec<String>>,
    #[serde(default, deserialize_with = "secret")]
    pub secret_key: Option<SecretString>,
    pub calls_per_second: Option<u32>,
    pub limit_code: Option<i64>,
    pub max_recipients: Option<usize>,
    pub latency_ms: Option<u64>,
    pub jitter_ms: Option<u64>,
    pub max_targets: Option<usize>,
    pub targeting: Option<TargetingPlan>,
    pub avchatroom: Option<Vec<String>>,
    pub messages_per_second_per_group: Option<u32>,
    pub group_limit_answer: Option<GroupLimitAnswer>,
    pub dropped_occupies_key: Option<bool>,
    pub dedup_key: Option<DuplicateKey>,
    pub dedup_window_ms: Option<u64>,
    pub duplicate_answer: Option<DuplicateAnswer>,
}

impl SettingsPatch {
    pub(super) fn apply(mut self, settings: &mut SandboxSettings) {
        self.apply_to_messages(&mut settings.messages);
        replace(&mut settings.sdk_app_id, self.sdk_app_id);
        replace(&mut settings.admins, self.admins);
        replace(&mut settings.secret_key, self.secret_key);
        replace(&mut settings.calls_per_second, self.calls_per_second);
        replace(&mut settings.limit_code, self.limit_code);
        replace(&mut settings.max_recipients, self.max_recipients);
        replace(&mut settings.latency, self.latency_ms.map(Duration::from_millis));
        replace(&mut settings.jitter, self.jitter_ms.map(Duration::from_millis));
    }

    fn apply_to_messages(&mut self, settings: &mut SandboxMessageSettings) {
        replace(&mut settings.max_targets, self.max_targets);
        replace(&mut settings.targeting, self.targeting);
        replace(&mut settings.avchatroom, self.avchatroom.take());
        replace(&mut settings.messages_per_second_per_group, self.messages_per_second_per_group);
        replace(&mut settings.group_limit_answer, self.group_limit_answer);
        replace(&mut settings.dropped_occupies_key, self.dropped_occupies_key);
        replace(&mut settings.dedup_key, self.dedup_key);
        replace(&mut settings.dedup_window, self.dedup_window_ms.map(Duration::from_millis));
        replace(&mut settings.duplicate_answer, self.duplicate_answer);
    }
}

fn replace<T>(present: &mut T, change: Option<T>) {
    if let Some(value) = change {
        *present = value;
    }
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    String::deserialize(deserializer).map(|key| Some(key.into()))
}

pub(super) fn milliseconds<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

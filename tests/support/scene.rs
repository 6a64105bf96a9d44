//! A broker, a sandbox, a daemon with its own app, and a producer.

use groupcast::{
    sandbox::{PUBLIC_KEY, Sandbox, SandboxSettings, SettingsPatch},
    settle::result::JobResult,
};
use lapin::message::Delivery;
use serde_json::{Value, json};
use tokio::sync::RwLockReadGuard;

use super::{among_others, broker::Broker, daemon::Daemon, producer::Producer};

pub struct Scene {
    pub app: String,
    pub configuration: String,
    pub sandbox: Sandbox,
    pub daemon: Daemon,
    pub producer: Producer,
    /// Keeps tests that measure speed from running.
    #[expect(dead_code, reason = "held, not read")]
    machine: Option<RwLockReadGuard<'static, ()>>,
}

impl Scene {
    /// Starts everything, on the shared broker.
    pub async fn start() -> Scene {
        Scene::with("").await
    }

    /// Like [`Scene::start`], with lines added to the app's configuration.
    pub async fn with(app_lines: &str) -> Scene {
        Scene::on(Broker::shared().await, app_lines).await
    }

    pub async fn on(broker: &Broker, app_lines: &str) -> Scene {
        let machine = among_others().await;
        Scene { machine: Some(machine), ..Scene::open(broker, app_lines).await }
    }

    /// For a test that holds [`alone`](super::alone).
    pub async fn start_alone(app_lines: &str) -> Scene {
        Scene::open(Broker::shared().await, app_lines).await
    }

    async fn open(broker: &Broker, app_lines: &str) -> Scene {
        let (app, sandbox) = (unique_app(), sandbox().await);
        let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), app_lines);
        let daemon = Daemon::start(&configuration).await;
        let producer = Producer::connect(broker.url()).await;
        Scene { app, configuration, sandbox, daemon, producer, machine: None }
    }

    /// A scene of parts that already run.
    pub async fn of(
        app: String,
        configuration: String,
        sandbox: Sandbox,
        daemon: Daemon,
        producer: Producer,
    ) -> Scene {
        Scene { app, configuration, sandbox, daemon, producer, machine: Some(among_others().await) }
    }

    /// Publishes a job and waits for its result.
    pub async fn send(&mut self, job: &Value) -> JobResult {
        self.publish(job).await;
        self.producer.result().await
    }

    pub async fn publish(&self, job: &Value) {
        let body = serde_json::to_vec(job).expect("JSON");
        self.producer.publish(&self.app, &body, self.producer.properties()).await;
    }

    pub async fn publish_with_id(&self, job: &Value, id: &str) {
        let body = serde_json::to_vec(job).expect("JSON");
        self.producer
            .publish(&self.app, &body, self.producer.properties().with_message_id(id.into()))
            .await;
    }

    pub async fn dead_letter(&self) -> Delivery {
        self.producer.take(&self.queue("dead")).await
    }

    pub fn queue(&self, name: &str) -> String {
        format!("groupcast.{}.{name}", self.app)
    }

    /// The recipients that the sandbox notified in a group, in order of arrival, with repetitions.
    pub fn notified(&self, group: &str) -> Vec<String> {
        self.sandbox
            .received(Some(group))
            .into_iter()
            .filter_map(|call| call.recipients)
            .flatten()
            .collect()
    }
}

/// A new app name for each test, so that each test has its own queues on the shared broker.
pub fn unique_app() -> String {
    format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// A sandbox with the API's own limits and no latency.
pub async fn sandbox() -> Sandbox {
    let settings = SandboxSettings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        latency: std::time::Duration::ZERO,
        ..SandboxSettings::default()
    };
    Sandbox::start(settings).await.expect("a free port")
}

/// A configuration with one app. Its delays are short, so that retries do not take minutes.
pub fn configuration(broker_url: &str, app: &str, endpoint: &str, app_lines: &str) -> String {
    format!(
        "[broker]\nurl = \"{broker_url}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [apps.{app}]\nsdk_app_id = 1400000000\nidentifier = \"administrator\"\nsecret_key \
         = \"{PUBLIC_KEY}\"\n\
         endpoint = \"{endpoint}\"\nrequest_timeout = \"1s\"\n\
         retry.first_delay = \"50ms\"\nretry.max_delay = \"200ms\"\n{app_lines}\n"
    )
}

/// A change of a sandbox's settings.
pub fn settings(change: Value) -> SettingsPatch {
    serde_json::from_value(change).expect("settings of a sandbox")
}

/// A job for the recipients `user-0`, `user-1` and so on.
pub fn job(group: &str, recipients: usize) -> Value {
    json!({ "GroupId": group, "Content": "hello", "ToMembers_Account": users(recipients) })
}

pub fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

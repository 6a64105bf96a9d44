//! RabbitMQ nodes that the tests start themselves, on free loopback ports, with temporary data.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use tokio::sync::OnceCell;

/// A node. It is stopped and removed when dropped.
pub struct Broker {
    directory: TempDir,
    url: String,
}

impl Broker {
    /// The node that tests share if they do not change it. It ends with the test process, even
    /// after a crash.
    pub async fn shared() -> &'static Broker {
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_init(|| Broker::boot("")).await
    }

    /// A node for one test, which may kill it. `configuration` is appended to its `rabbitmq.conf`.
    pub async fn start(configuration: &str) -> Broker {
        let _machine = super::among_others().await;
        Broker::boot(configuration).await
    }

    async fn boot(configuration: &str) -> Broker {
        let directory = tempfile::Builder::new()
            .prefix("groupcast-broker-")
            .tempdir()
            .expect("a scratch folder");
        let configuration = configuration.to_owned();
        let path = directory.path().to_owned();
        let url = blocking(move || run_node(&path, "start", &[], &configuration)).await;
        Broker { directory, url: url.trim().to_owned() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn address(&self) -> SocketAddr {
        let url = url::Url::parse(&self.url).expect("a URL");
        format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
            .parse()
            .expect("an address")
    }

    /// Kills the node, like a crash.
    pub async fn kill(&self) {
        self.node("kill").await;
    }

    /// Starts the node again: same address, same data.
    pub async fn restart(&self) {
        self.node("start").await;
    }

    /// Runs `rabbitmqctl` against the node.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let arguments: Vec<String> =
            arguments.iter().map(|&argument| argument.to_owned()).collect();
        let path = self.path();
        blocking(move || run_node(&path, "ctl", &arguments, "")).await
    }

    async fn node(&self, action: &'static str) {
        let path = self.path();
        blocking(move || run_node(&path, action, &[], "")).await;
    }

    fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        run_node(self.directory.path(), "stop", &[], "");
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/rabbitmq.sh")
}

fn run_node(directory: &Path, action: &str, arguments: &[String], configuration: &str) -> String {
    let output = Command::new(script())
        .arg(action)
        .arg(directory)
        .args(arguments)
        .env_remove("GROUPCAST__BROKER__URL")
        .env("RABBITMQ_EXTRA_CONF", configuration)
        // Rust does not drop statics. The script ends the node when this process ends, even after a
        // crash.
        .env("RABBITMQ_OWNER", std::process::id().to_string())
        .stdin(Stdio::null())
        .output()
        .expect("deploy/rabbitmq.sh can be run");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "deploy/rabbitmq.sh {action} failed: {told}");
    String::from_utf8(output.stdout).expect("it speaks UTF-8")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the script ran")
}

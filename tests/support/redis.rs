//! Redis servers that the tests start themselves, on free loopback ports, with temporary data.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A server. It is stopped and removed when dropped.
pub struct Redis {
    directory: TempDir,
    configuration: String,
    url: String,
}

impl Redis {
    /// A server for one test, which may kill it. `configuration` is appended to its `redis.conf`.
    pub async fn start(configuration: &str) -> Redis {
        let directory = tempfile::Builder::new()
            .prefix("groupcast-redis-")
            .tempdir()
            .expect("a scratch folder");
        let (path, configuration) = (directory.path().to_owned(), configuration.to_owned());
        let given = configuration.clone();
        let url = blocking(move || run_server(&path, "start", &given)).await;
        Redis { directory, configuration, url: url.trim().to_owned() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills the server, like a crash.
    pub async fn kill(&self) {
        self.server("kill").await;
    }

    /// Starts the server again: same address, same data.
    pub async fn restart(&self) {
        self.server("start").await;
    }

    /// Starts the server again without its data.
    pub async fn restart_empty(&self) {
        self.kill().await;
        std::fs::remove_dir_all(self.directory.path().join("redis/data"))
            .expect("the server's data");
        self.restart().await;
    }

    /// `STOP` freezes the server, `CONT` lets it continue.
    pub fn signal(&self, name: &str) {
        let process = std::fs::read_to_string(self.directory.path().join("redis/server.process"))
            .expect("the server's process");
        let pid = process.split_whitespace().next().expect("a process id");
        let sent = Command::new("kill").args(["-s", name, pid]).status().expect("kill is there");
        assert!(sent.success());
    }

    async fn server(&self, action: &'static str) {
        let (path, configuration): (PathBuf, _) =
            (self.directory.path().to_owned(), self.configuration.clone());
        blocking(move || run_server(&path, action, &configuration)).await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        run_server(self.directory.path(), "stop", "");
    }
}

fn run_server(directory: &Path, action: &str, configuration: &str) -> String {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis.sh"))
        .arg(action)
        .arg(directory)
        .env("REDIS_EXTRA_CONF", configuration)
        // Rust does not drop statics. The script ends the server when this process ends, even after
        // a crash.
        .env("REDIS_OWNER", std::process::id().to_string())
        .stdin(Stdio::null())
        .output()
        .expect("deploy/redis.sh can be run");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "deploy/redis.sh {action} failed: {told}");
    String::from_utf8(output.stdout).expect("it speaks UTF-8")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the script ran")
}

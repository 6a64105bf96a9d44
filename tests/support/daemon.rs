//! The real binary as a child process, with its log in a file.

use std::{
    fs::File,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use super::eventually;

/// A running daemon. It is killed when dropped.
pub struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    /// Starts the daemon with this configuration and does not wait for it.
    pub fn spawn(configuration: &str) -> Daemon {
        Daemon::spawn_with(configuration, &[])
    }

    /// Like [`Daemon::spawn`], with additional environment variables.
    pub fn spawn_with(configuration: &str, variables: &[(&str, &str)]) -> Daemon {
        let directory = folder_with(configuration);
        let mut command = binary();
        command.envs(variables.iter().copied());
        Daemon { child: spawn_command(command, &directory), directory }
    }

    /// Starts the daemon and waits until it consumes for all of its apps.
    pub async fn start(configuration: &str) -> Daemon {
        let daemon = Daemon::spawn(configuration);
        daemon.until_consuming(1).await;
        daemon
    }

    /// Like [`Daemon::spawn`], but files cannot grow beyond so many KiB. For the daemon this is a
    /// full disk.
    pub fn spawn_with_files_up_to(kibibytes: usize, configuration: &str) -> Daemon {
        let directory = folder_with(configuration);
        let mut shell = Command::new("bash");
        // With the signal ignored, a write beyond the limit returns an error.
        let script = format!(
            "trap '' XFSZ; ulimit -S -f {kibibytes}; exec {} run",
            env!("CARGO_BIN_EXE_groupcast")
        );
        shell.arg("-c").arg(script);
        Daemon { child: spawn_command(shell, &directory), directory }
    }

    /// Like [`Daemon::spawn`], with a pipe as standard error. The test reads nothing from it until
    /// it takes it with [`Daemon::standard_error`].
    pub fn spawn_unread(configuration: &str) -> Daemon {
        let directory = folder_with(configuration);
        let mut command = binary();
        command
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Daemon { child: command.kill_on_drop(true).spawn().expect("the binary starts"), directory }
    }

    pub fn standard_error(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("it is a pipe that nobody has taken")
    }

    /// Starts the daemon again in the same folder, and does not wait for it.
    pub fn spawn_again(&mut self) {
        self.child = spawn_command(binary(), &self.directory);
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the daemon runs")
    }

    /// Starts the daemon again in the same folder after it ended.
    pub async fn start_again(&mut self) {
        let before = self.times_logged("consuming");
        self.spawn_again();
        self.until_consuming(before + 1).await;
    }

    /// Writes another configuration, for the next start or SIGHUP.
    pub fn reconfigure(&self, configuration: &str) {
        std::fs::write(self.directory.path().join("groupcast.toml"), configuration)
            .expect("a configuration file");
    }

    /// The path of a file in the daemon's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits until the log reports the given number of subscriptions.
    pub async fn until_consuming(&self, times: usize) {
        eventually("the daemon to consume", async || {
            (self.times_logged("consuming") >= times).then_some(())
        })
        .await;
    }

    pub async fn until_logged(&self, text: &str) {
        eventually(text, async || self.log().contains(text).then_some(())).await;
    }

    pub fn times_logged(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.file("log")
    }

    /// The address of the daemon's HTTP server.
    pub fn address(&self) -> String {
        let log = self.log();
        let told = log
            .lines()
            .rev()
            .find(|line| line.contains("listening for /livez"))
            .expect("it listens");
        let address = told.split_once("address=").expect("an address").1.split_whitespace().next();
        address.expect("an address").to_owned()
    }

    /// Asks the daemon's HTTP server. Returns the status and the body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer =
            reqwest::get(format!("http://{}{path}", self.address())).await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill is there");
        assert!(sent.success());
    }

    /// Asks the daemon to stop. Returns its exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    /// Waits until the daemon has stopped. Returns its exit status.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(Duration::from_secs(30), self.child.wait())
            .await
            .expect("it stops in time")
            .expect("it can be waited for")
    }

    /// Kills the daemon, like a crash.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
            return;
        }
        let log = self.log();
        let quoting = log.lines().find(|line| quotes_a_job(line));
        assert_eq!(quoting, None, "the log quotes a job's content or a recipient");
    }
}

fn folder_with(configuration: &str) -> TempDir {
    let directory =
        tempfile::Builder::new().prefix("groupcast-daemon-").tempdir().expect("a scratch folder");
    std::fs::write(directory.path().join("groupcast.toml"), configuration)
        .expect("a configuration file");
    directory
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groupcast"));
    command.arg("run");
    command
}

/// Whether a line has the content or a recipient of the jobs that the tests publish
/// ([`job`](super::scene::job)).
fn quotes_a_job(line: &str) -> bool {
    let is_recipient = |word: &str| {
        word.strip_prefix("user-")
            .is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    };
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .any(|word| word == "hello" || is_recipient(word))
}

/// Set by a developer who wants to check the log at another level.
#[expect(clippy::disallowed_methods, reason = "the tests read no configuration")]
fn log_filter() -> Option<String> {
    std::env::var("GROUPCAST_TEST_LOG").ok()
}

fn spawn_command(mut command: Command, directory: &TempDir) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.path().join("log"))
        .expect("a log file");
    if let Some(filter) = log_filter() {
        command.env("GROUPCAST__LOG__FILTER", filter);
    }
    command
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the binary starts")
}

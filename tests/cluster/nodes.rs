//! A RabbitMQ cluster of three nodes on free loopback ports, with temporary data. `RABBITMQ_BIN`
//! names the server's folder.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use lapin::{Connection, ConnectionProperties};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::support::eventually;

pub const NODES: usize = 3;
/// The number of ports for each node, and for the port mapper.
const PORTS: u16 = 4;

/// A cluster. All its nodes end when it is dropped.
pub struct Cluster {
    bin: PathBuf,
    port: u16,
    nodes: [Option<Child>; NODES],
    _port_mapper: Child,
    /// Dropped last, because the nodes write to it.
    directory: TempDir,
}

impl Cluster {
    /// Starts three nodes that form a cluster. `configuration` is appended to their
    /// `rabbitmq.conf`.
    pub async fn start(configuration: &str) -> Cluster {
        let bin = environment("RABBITMQ_BIN");
        let directory = tempfile::Builder::new()
            .prefix("groupcast-cluster-")
            .tempdir()
            .expect("a scratch folder");
        let port = free_ports();
        let home = directory.path().join("home");
        std::fs::create_dir(&home).expect("a folder");
        write_cookie(&home.join(".erlang.cookie"));
        let mapper = port + NODES as u16 * PORTS;
        let mapper = Command::new("epmd")
            .args(["-port", &mapper.to_string(), "-address", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("epmd is there, with Erlang");
        let mut cluster =
            Cluster { bin, port, nodes: [const { None }; NODES], _port_mapper: mapper, directory };
        for node in 0..NODES {
            cluster.prepare(node, configuration);
            cluster.spawn(node);
        }
        for node in 0..NODES {
            cluster.until_up(node).await;
        }
        cluster.until_whole().await;
        cluster
    }

    pub fn url(&self, node: usize) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.amqp_port(node))
    }

    pub fn urls(&self, nodes: &[usize]) -> Vec<String> {
        nodes.iter().map(|node| self.url(*node)).collect()
    }

    /// Kills a node, like a crash.
    pub async fn kill(&mut self, node: usize) {
        self.nodes[node].take().expect("it runs").kill().await.expect("it can be killed");
    }

    /// Stops a node in an orderly way.
    pub async fn stop(&mut self, node: usize) {
        self.ctl(node, &["stop"]).await;
        self.nodes[node].take().expect("it ran").wait().await.expect("it ends");
    }

    /// Starts a node again: same address, same data. Waits until it is up.
    pub async fn start_again(&mut self, node: usize) {
        self.spawn(node);
        self.until_up(node).await;
    }

    pub fn freeze(&self, node: usize) {
        self.signal(node, "STOP");
    }

    pub fn thaw(&self, node: usize) {
        self.signal(node, "CONT");
    }

    /// Cuts a node off from the other nodes, but not from its clients.
    pub async fn cut_off(&self, node: usize) {
        let others = self.others(node);
        let cut = format!(
            "Others = [{others}], [erlang:set_cookie(N, wrong) || N <- Others], \
                [erlang:disconnect_node(N) || N <- Others]."
        );
        self.ctl(node, &["eval", &cut]).await;
    }

    /// Reconnects a node to the others.
    pub async fn rejoin(&self, node: usize) {
        let others = self.others(node);
        let mend = format!(
            "[begin erlang:set_cookie(N, erlang:get_cookie()), net_adm:ping(N) end || N <- \
                [{others}]]."
        );
        self.ctl(node, &["eval", &mend]).await;
    }

    /// The node whose consumer has the jobs of an app.
    pub async fn node_of_consumer(&self, app: &str) -> usize {
        let jobs = format!("groupcast.{app}.jobs");
        eventually("an active consumer", async || {
            let listed =
                self.ctl(0, &["list_consumers", "queue_name", "active", "channel_pid"]).await;
            let line =
                listed.lines().find(|line| line.starts_with(&jobs) && line.contains("true"))?;
            (0..NODES).find(|node| line.contains(&self.name(*node)))
        })
        .await
    }

    /// Whether the server is of this version, such as `4.3.`.
    pub async fn is_version(&self, version: &str) -> bool {
        self.ctl(0, &["version"]).await.trim().starts_with(version)
    }

    pub async fn ctl(&self, node: usize, arguments: &[&str]) -> String {
        let mut command = Command::new(self.bin.join("rabbitmqctl"));
        command
            .arg("-q")
            .args(arguments)
            .env_clear()
            .envs(self.environment(node))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(Duration::from_secs(120), command.output())
            .await
            .expect("rabbitmqctl ends")
            .expect("it can be run");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?} at node {node} failed: {told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn prepare(&self, node: usize, configuration: &str) {
        let folder = self.folder(node);
        for name in ["data", "log"] {
            std::fs::create_dir_all(folder.join(name)).expect("a folder");
        }
        std::fs::write(folder.join("enabled_plugins"), "[].").expect("a file");
        let names: String = (0..NODES)
            .map(|other| {
                format!(
                    "cluster_formation.classic_config.nodes.{} = {}\n",
                    other + 1,
                    self.name(other)
                )
            })
            .collect();
        let conf = format!(
            "cluster_formation.peer_discovery_backend = \
                classic_config\n{names}disk_free_limit.absolute = 50MB\n{configuration}\n"
        );
        std::fs::write(folder.join("rabbitmq.conf"), conf).expect("a file");
    }

    fn spawn(&mut self, node: usize) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder(node).join("log/start.log"))
            .expect("a log file");
        let child = Command::new(self.bin.join("rabbitmq-server"))
            .env_clear()
            .envs(self.environment(node))
            // With this setting, the script replaces itself by the node, as under systemd.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        self.nodes[node] = Some(child);
    }

    async fn until_up(&self, node: usize) {
        let url = self.url(node);
        let what = format!("node {node} to come up");
        crate::patiently(&what, async || {
            let connecting = Connection::connect(&url, ConnectionProperties::default());
            let connection = timeout(Duration::from_secs(5), connecting).await.ok()?.ok()?;
            connection.close(200, "OK".into()).await.ok()
        })
        .await;
    }

    async fn until_whole(&self) {
        crate::patiently("three nodes to be one cluster", async || {
            let running = self.ctl(0, &["eval", "length(rabbit_nodes:list_running())."]).await;
            (running.trim() == NODES.to_string()).then_some(())
        })
        .await;
    }

    fn signal(&self, node: usize, name: &str) {
        let pid = self.nodes[node].as_ref().and_then(Child::id).expect("it runs").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill is there");
        assert!(sent.success());
    }

    fn others(&self, node: usize) -> String {
        let others: Vec<String> = (0..NODES)
            .filter(|other| *other != node)
            .map(|other| format!("'{}'", self.name(other)))
            .collect();
        others.join(", ")
    }

    fn name(&self, node: usize) -> String {
        format!("groupcast{}@localhost", self.amqp_port(node))
    }

    fn amqp_port(&self, node: usize) -> u16 {
        self.port + node as u16 * PORTS
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("node{node}"))
    }

    /// The whole environment of a node and its rabbitmqctl.
    fn environment(&self, node: usize) -> Vec<(&'static str, String)> {
        let (port, folder) = (self.amqp_port(node), self.folder(node));
        let path = |name: &str| folder.join(name).display().to_string();
        let mapper = self.port + NODES as u16 * PORTS;
        let loopback = "-kernel inet_dist_use_interface {127,0,0,1}".to_owned();
        vec![
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOME", self.directory.path().join("home").display().to_string()),
            ("LANG", "C.UTF-8".to_owned()),
            ("ERL_EPMD_PORT", mapper.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_CRASH_DUMP", path("erl_crash.dump")),
            ("RABBITMQ_NODENAME", self.name(node)),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", port.to_string()),
            ("RABBITMQ_DIST_PORT", (port + 1).to_string()),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_LOGS", path("log/node.log")),
            ("RABBITMQ_PID_FILE", path("pid")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("{loopback} +S 2:2")),
            ("RABBITMQ_CTL_ERL_ARGS", loopback),
            ("RABBITMQ_CTL_DIST_PORT_MIN", (mapper + 1).to_string()),
            ("RABBITMQ_CTL_DIST_PORT_MAX", (mapper + 400).to_string()),
        ]
    }
}

#[expect(clippy::disallowed_methods, reason = "the script says where the server is")]
fn environment(name: &str) -> PathBuf {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set; run tests/cluster.sh"))
        .into()
}

/// Returns the first of enough free ports in a row for the nodes and the port mapper. They are
/// below the ports that the system assigns.
fn free_ports() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let candidates = std::iter::repeat_with(|| rand::random_range(1_000..3_000_u16) * 10);
    let mut free =
        candidates.take(100).filter(|port| (*port..=*port + NODES as u16 * PORTS).all(is_free));
    free.next().expect("free ports")
}

fn write_cookie(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, uuid::Uuid::new_v4().simple().to_string()).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o400))
        .expect("its owner alone reads it");
}

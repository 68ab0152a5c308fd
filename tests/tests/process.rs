//! The real binary as a process: built once, started on a directory of the real disk, ended in every way.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use taskmaster_client::Client;
use tempfile::TempDir;

/// The binary under test: the one that `TASKMASTER_BINARY` names, else that of this test's profile, brought up to date once
/// per run.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("TASKMASTER_BINARY") {
            return PathBuf::from(named);
        }
        // target/<profile>/deps/<this test>
        let own = std::env::current_exe().unwrap();
        let profile_dir = own.parent().and_then(Path::parent).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "taskmaster", "--bin", "taskmaster"]);
        build.arg("--target-dir").arg(profile_dir.parent().unwrap());
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "the binary does not build");
        profile_dir.join("taskmaster")
    })
}

/// The binary under test, as a command within a network namespace.
pub(crate) fn command_within(namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return Command::new(binary()) };
    // It becomes the program that it starts, under the same process id.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(binary());
    command
}

/// A counter of a node, over its shards.
pub(crate) async fn counter(client: &Client, name: &str) -> u64 {
    let stats = client.stats().await.unwrap();
    let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(other, _)| other == name);
    counters.map(|(_, value)| value).sum()
}

/// What `taskmaster doctor` reports with this configuration.
pub(crate) fn doctor(config: &str) -> Value {
    let directory = directory();
    let file = directory.path().join("doctor.toml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(binary()).args(["doctor", "--output", "json", "--config"]).arg(&file).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One of its checks, if it was made.
pub(crate) fn check<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name)
}

/// A fresh directory on the disk that holds the build: never a memory file system.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().prefix("node-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// An address whose port and the three above it are free. They are below those that the kernel gives to connections: one of these
/// would take a node's port while the node is down.
pub(crate) fn free_address() -> SocketAddr {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(2_654_435_761) % COUNT;
    for _ in 0..200 {
        let port = FIRST + (begin + TAKEN.fetch_add(4, Ordering::Relaxed)) % COUNT;
        let mut ports = (0..4).map(|above| u16::try_from(port + above).unwrap());
        if ports.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        }
    }
    panic!("no four free ports in a row");
}

/// What a node is started with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) data_dir: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) shards: u16,
    /// Further lines of TOML.
    pub(crate) more: String,
    /// Environment variables.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// Network namespace it lives in; `None` is that of the test.
    pub(crate) namespace: Option<String>,
}

impl Setup {
    pub(crate) fn new(directory: &TempDir) -> Self {
        Self::at(directory.path(), free_address())
    }

    /// A node with its files in `folder`, listening on `address`.
    pub(crate) fn at(folder: &Path, address: SocketAddr) -> Self {
        let data_dir = folder.join("data");
        Self { data_dir, address, shards: 1, more: String::new(), variables: Vec::new(), namespace: None }
    }

    pub(crate) fn shards(mut self, shards: u16) -> Self {
        self.shards = shards;
        self
    }

    pub(crate) fn config(&self) -> String {
        let (data_dir, address, shards) = (self.data_dir.display(), self.address, self.shards);
        format!(
            "[node]\ndata_dir = \"{data_dir}\"\nshards = {shards}\n[listen]\naddress = \"{address}\"\n\
             [wal]\nsegment_size = \"32MiB\"\nsegments_ahead = 1\nsnapshot_after = \"64MiB\"\n{}",
            self.more
        )
    }

    /// A client that waits for the node, and comes back soon when it was lost.
    pub(crate) async fn client(&self) -> Client {
        Client::builder()
            .backoff(Duration::from_millis(10), Duration::from_millis(200))
            .wait_for_node(Duration::from_secs(30))
            .connect(self.address.to_string())
            .await
            .unwrap()
    }

    /// Starts the process without waiting for it.
    pub(crate) fn spawn(&self) -> Running {
        let parent = self.data_dir.parent().unwrap();
        let config = parent.join(format!("node-{}.toml", self.address.port()));
        std::fs::write(&config, self.config()).unwrap();
        let stderr = parent.join(format!("node-{}.log", self.address.port()));
        let child = command_within(self.namespace.as_deref())
            .args(["serve", "--output", "json", "--config"])
            .arg(&config)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        Running { child, stderr, address: self.address }
    }

    /// Starts a node and waits until it takes connections.
    pub(crate) fn start(&self) -> Running {
        let mut node = self.spawn();
        let lines = BufReader::new(node.child.stdout.as_mut().unwrap()).lines();
        let listens = lines.map(Result::unwrap).any(|line| line.contains("listening"));
        assert!(listens, "the node did not start: {}", node.log());
        node
    }

    /// Starts a node that must refuse to start. What it says.
    pub(crate) fn refusal(&self) -> (ExitStatus, String) {
        let mut node = self.spawn();
        let mut answer = String::new();
        node.child.stdout.as_mut().unwrap().read_to_string(&mut answer).unwrap();
        let status = node.wait(Duration::from_secs(30));
        assert!(!status.success(), "the node started: {answer}");
        (status, format!("{answer}\n{}", node.log()))
    }
}

/// A node's process. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    stderr: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Running {
    /// What the command line says to this node.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(["--addr", &self.address.to_string()]).args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Likewise, in JSON, of what succeeds.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["--output", "json"]].concat()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The process stands still until [`Running::resume`].
    pub(crate) fn pause(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub(crate) fn resume(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.strike();
    }

    /// `kill -9`, and what it has logged stays to be looked at.
    pub(crate) fn strike(&mut self) {
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }

    /// Names of its threads.
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks
            .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap().trim().to_owned())
            .collect()
    }

    /// SIGTERM, then waits for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.wait(Duration::from_secs(30))
    }

    pub(crate) fn wait(&mut self, longest: Duration) -> ExitStatus {
        let until = Instant::now() + longest;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the process did not end in {longest:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }
}

/// A process beside a node of which nothing is heard, ended with the test.
pub(crate) struct Silent(pub(crate) Child);

impl Silent {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time, as people write it in UTC, after everything so far and before what comes.
pub(crate) async fn iso_time_now() -> String {
    let pause = Duration::from_millis(20);
    tokio::time::sleep(pause).await;
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%6NZ"]).output().unwrap();
    tokio::time::sleep(pause).await;
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

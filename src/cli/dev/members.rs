//! Nodes of `dev --nodes N` and `bench --nodes N` as processes: this program as `serve`, one for each, so that one of them can be killed.
//!
//! Invariants: a child ends with this process, whatever ends it; Ctrl-C at the terminal reaches this process only in effect
//! (children ignore it), so that workers finish before their nodes drain; what a child logs appears under its name.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::cli::{Exit, Failure};
use crate::config::{Config, Origin, is_setting};

/// Longest start of a node: making its log's files takes most of it.
const START_MAX: Duration = Duration::from_secs(60);

/// A node that was started.
pub(in crate::cli) struct Member {
    pub(in crate::cli) name: String,
    /// Where clients connect.
    pub(in crate::cli) address: String,
    pub(in crate::cli) data_dir: PathBuf,
    /// Its configuration, to start it again by hand.
    pub(in crate::cli) file: PathBuf,
    pub(in crate::cli) pid: u32,
    /// The network namespace that it lives in, if not in this process's.
    namespace: Option<String>,
    /// How it ended.
    pub(in crate::cli) ended: Option<ExitStatus>,
}

/// All nodes, and news of those that end.
pub(in crate::cli) struct Members {
    pub(in crate::cli) all: Vec<Member>,
    ends: mpsc::UnboundedReceiver<(usize, ExitStatus)>,
    end: mpsc::UnboundedSender<(usize, ExitStatus)>,
    verbose: u8,
}

impl Members {
    /// Starts a node for each configuration, in the network namespace of the same place if there is one, and returns when all take
    /// connections.
    ///
    /// # Errors
    /// A node that ended or did not start in time.
    pub(in crate::cli) async fn start(
        configs: &[Config],
        namespaces: &[String],
        root: &Path,
        verbose: u8,
    ) -> Result<Self, Failure> {
        std::fs::create_dir_all(root)?;
        let mut started = Vec::new();
        for (number, config) in configs.iter().enumerate() {
            let namespace = namespaces.get(number).cloned();
            let file = root.join(format!("{}.toml", config.node.name));
            std::fs::write(&file, config.to_toml(|_| Origin::Default))?;
            let child = spawn(&file, &config.node.name, namespace.as_deref(), verbose)?;
            started.push((config, file, namespace, child));
        }
        let (end, ends) = mpsc::unbounded_channel();
        let mut all = Vec::new();
        for (number, (config, file, namespace, mut child)) in started.into_iter().enumerate() {
            let name = config.node.name.clone();
            let address = wait_for(&name, &mut child).await?;
            let pid = child.id().unwrap_or_default();
            let data_dir = config.node.data_dir.clone();
            all.push(Member { name, address, data_dir, file, pid, namespace, ended: None });
            tell_end(child, number, end.clone());
        }
        Ok(Self { all, ends, end, verbose })
    }

    /// Starts one again that has ended.
    ///
    /// # Errors
    /// As [`Members::start`].
    pub(in crate::cli) async fn restart(&mut self, number: usize) -> Result<(), Failure> {
        let member = &mut self.all[number];
        let mut child = spawn(&member.file, &member.name, member.namespace.as_deref(), self.verbose)?;
        member.address = wait_for(&member.name, &mut child).await?;
        member.pid = child.id().unwrap_or_default();
        member.ended = None;
        tell_end(child, number, self.end.clone());
        Ok(())
    }

    /// Addresses of all, for clients.
    pub(in crate::cli) fn addresses(&self) -> String {
        self.all.iter().map(|member| member.address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Waits for the next one that ends; never returns when none is left.
    pub(in crate::cli) async fn next_end(&mut self) -> &Member {
        match self.ends.recv().await {
            Some((number, status)) => {
                self.all[number].ended = Some(status);
                &self.all[number]
            }
            None => std::future::pending().await,
        }
    }

    /// How many still run.
    pub(in crate::cli) fn running(&self) -> usize {
        self.all.iter().filter(|member| member.ended.is_none()).count()
    }

    /// Sends a signal to all that still run.
    pub(in crate::cli) fn signal(&self, signal: Signal) {
        (0..self.all.len()).for_each(|number| self.signal_one(number, signal));
    }

    /// Sends a signal to one, if it still runs.
    pub(in crate::cli) fn signal_one(&self, number: usize, signal: Signal) {
        let member = &self.all[number];
        if member.ended.is_none() {
            // Not yet waited for by anybody else, so the number is still its own; one that has just ended needs no signal.
            let pid = i32::try_from(member.pid).ok().and_then(Pid::from_raw);
            let _sent = pid.map(|pid| kill_process(pid, signal));
        }
    }
}

/// Waits until a node takes connections; its address.
async fn wait_for(name: &str, child: &mut Child) -> Result<String, Failure> {
    let waiting = tokio::time::timeout(START_MAX, greeting(child));
    let greeted = waiting.await.unwrap_or_else(|_| Err(format!("has not started within {START_MAX:?}")));
    greeted.map_err(|reason| Failure::new(Exit::Failed, format!("node {name} {reason}")))
}

/// Tells when a node ends.
fn tell_end(mut child: Child, number: usize, end: mpsc::UnboundedSender<(usize, ExitStatus)>) {
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            // Nobody listens any more only when all is over.
            let _over = end.send((number, status));
        }
    });
}

fn spawn(file: &Path, name: &str, namespace: Option<&str>, verbose: u8) -> Result<Child, Failure> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(if namespace.is_some() { Path::new("ip") } else { &program });
    if let Some(namespace) = namespace {
        // It becomes the program that it starts, under the same process id.
        command.args(["netns", "exec", namespace]).arg(&program);
    }
    command.arg("serve").arg("--config").arg(file).args(["--output", "json", "--companion"]);
    command.args((0..verbose).map(|_| "-v"));
    // What overrides the configuration of one node would override it for all.
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(is_setting) {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(log) = child.stderr.take() {
        tokio::spawn(forward(log, name.to_owned()));
    }
    Ok(child)
}

/// Prints what a node logs, under its name.
async fn forward(log: impl AsyncRead + Unpin, name: String) {
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{name}  {line}");
    }
}

/// The address in what a node prints when it takes connections.
async fn greeting(child: &mut Child) -> Result<String, String> {
    let Some(stdout) = child.stdout.take() else { return Err("has no output".to_owned()) };
    let mut lines = BufReader::new(stdout).lines();
    let mut text = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        text.push_str(&line);
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
            let address = value["listening"].as_str().ok_or("prints what is not a start")?;
            return Ok(address.to_owned());
        }
    }
    Err("ended at its start; what it says stands above".to_owned())
}

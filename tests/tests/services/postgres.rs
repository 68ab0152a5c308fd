//! A PostgreSQL server: fresh, durable as by default, with passwords.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::{directory, hand_over, kill_all, program};

/// The password of the superuser `taskmaster`: looked for in every text that must not have it.
pub(crate) const PASSWORD: &str = "hunter2-is-secret";

/// A server; dropping it kills it.
pub(crate) struct Postgres {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
    options: Vec<String>,
    /// The role in [`Postgres::url`].
    pub(crate) user: &'static str,
}

/// Where the newest installed server's programs are.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<(u32, PathBuf)> = installed
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/initdb").exists().then(|| (number, path.join("bin")))
        })
        .collect();
    versions.sort();
    versions.pop().expect("PostgreSQL is not installed: scripts/setup --test").1
}

impl Postgres {
    /// Makes and starts one.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Makes one with further options (`name=value`) and starts it.
    pub(crate) async fn start_with(options: &[&str]) -> Self {
        let folder = directory("postgres-");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, PASSWORD).unwrap();
        hand_over(&secret);
        let made = program(programs().join("initdb"))
            .args(["--auth=scram-sha-256", "--username=taskmaster", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(format!("--pwfile={}", secret.display()))
            .arg("-D")
            .arg(folder.path().join("data"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server =
            Self { folder, port: crate::process::free_address().port(), child: None, options, user: "taskmaster" };
        server.restart().await;
        server
    }

    /// Starts the server, after it was killed or stopped, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = program(programs().join("postgres"));
        command.arg("-D").arg(self.folder.path().join("data")).arg("-p").arg(self.port.to_string());
        command
            .args(["-h", "127.0.0.1", "-c"])
            .arg(format!("unix_socket_directories={}", self.folder.path().display()));
        for option in &self.options {
            command.args(["-c", option]);
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let until = Instant::now() + Duration::from_secs(60);
        let mut child = command.spawn().unwrap();
        while self.connect().await.is_none() {
            if child.try_wait().unwrap().is_some() {
                // What was killed a moment ago may hold its memory for another.
                child = command.spawn().unwrap();
            }
            assert!(Instant::now() < until, "the server does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.child = Some(child);
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where a node finds it, without the password.
    pub(crate) fn url(&self) -> String {
        format!("postgres://{}@127.0.0.1:{}/postgres", self.user, self.port)
    }

    /// A file with the password.
    pub(crate) fn password_file(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    /// `kill -9` of the whole server: what serves a connection would answer for a while without the others.
    pub(crate) fn kill(&mut self) {
        kill_process(self.postmaster(), Signal::STOP).unwrap();
        self.signal_children(Signal::KILL);
        let mut child = self.child.take().expect("it runs");
        kill_all(&child);
        child.wait().unwrap();
    }

    /// Every process of it stands still: connections stay, and nothing answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn postmaster(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.postmaster(), signal).unwrap();
        self.signal_children(signal);
    }

    /// Each of its children leads a group of its own.
    fn signal_children(&self, signal: Signal) {
        let children = format!("/proc/{0}/task/{0}/children", self.postmaster().as_raw_nonzero());
        for child in std::fs::read_to_string(children).unwrap().split_whitespace() {
            let pid = child.parse().ok().and_then(Pid::from_raw).unwrap();
            let _ = kill_process(pid, signal);
        }
    }

    async fn connect(&self) -> Option<Client> {
        let mut config: tokio_postgres::Config = self.url().parse().unwrap();
        let (client, connection) = config.password(PASSWORD).connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// A connection for looking around.
    pub(crate) async fn client(&self) -> Client {
        self.connect().await.expect("it runs")
    }

    /// Lets all sessions read and none write, or lets those that come write again.
    pub(crate) async fn refuse_writes(&self, refuses: bool) {
        let mut client = self.client().await;
        let change = client.build_transaction().read_only(false).start().await.unwrap();
        let sql = format!("ALTER DATABASE postgres SET default_transaction_read_only = {refuses}");
        change.batch_execute(&sql).await.unwrap();
        change.commit().await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        if refuses {
            client.query(end, &[]).await.unwrap();
        }
    }

    /// Connection settings as a node makes them.
    pub(crate) fn settings(&self) -> taskmaster_connect::postgres::Settings {
        taskmaster_connect::postgres::Settings::new(&self.url(), Some(PASSWORD)).unwrap()
    }

    /// Makes the schema.
    pub(crate) async fn migrate(&self) {
        let mut session = taskmaster_connect::postgres::connect(&self.settings()).await.unwrap();
        taskmaster_connect::postgres::migrate(&mut session).await.unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            kill_all(child);
            let _ = child.wait();
        }
    }
}

//! A Redis server: alone, a cluster of one, or watched by a sentinel; with a password.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::{directory, kill_all, private_file, program};

/// The password: looked for in every text that must not have it.
pub(crate) const PASSWORD: &str = "hunter3-is-secret";

/// Options of servers and sentinels that speak TLS, and the files that they name.
const TLS_FILES: [(&str, &str); 3] =
    [("tls-cert-file", "server.pem"), ("tls-key-file", "server.key"), ("tls-ca-cert-file", "ca.pem")];

/// The password of sentinels that have one.
pub(crate) const SENTINEL_PASSWORD: &str = "hunter5-is-secret";

/// A server; dropping it kills it.
pub(crate) struct Redis {
    folder: TempDir,
    port: u16,
    /// Where it speaks TLS, if it does.
    tls_port: Option<u16>,
    child: Option<Child>,
    options: Vec<String>,
}

impl Redis {
    /// Starts one that keeps nothing on disk.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with further options.
    pub(crate) async fn start_with(options: &[&str]) -> Self {
        let folder = directory("redis-");
        private_file(&folder.path().join("secret"), PASSWORD);
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let port = crate::process::free_address().port();
        let mut server = Self { folder, port, tls_port: None, child: None, options };
        server.restart().await;
        server
    }

    /// Starts a replica of this server, and waits until it has all of it.
    pub(crate) async fn replicated(&self) -> Self {
        let port = self.port.to_string();
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &port, "--masterauth", PASSWORD]).await;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let mut client = replica.client().await;
            let info: String = redis::cmd("INFO").arg("replication").query_async(&mut client).await.unwrap();
            if info.contains("master_link_status:up") {
                return replica;
            }
            assert!(Instant::now() < until, "no replica: {info}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts one that speaks TLS as well, and asks for a client's certificate there if `asks`.
    pub(crate) async fn start_with_tls(certificates: &Certificates, asks: bool) -> Self {
        let tls_port = crate::process::free_address().port();
        let mut options = vec!["--tls-port".to_owned(), tls_port.to_string()];
        options.extend(["--tls-auth-clients".to_owned(), if asks { "yes" } else { "no" }.to_owned()]);
        for (option, file) in TLS_FILES {
            options.extend([format!("--{option}"), certificates.text(file)]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut server = Self::start_with(&options).await;
        server.tls_port = Some(tls_port);
        server
    }

    /// Starts the one node of a cluster.
    pub(crate) async fn start_cluster() -> Self {
        // By default the members' port is higher by ten thousand: taken by somebody, or higher than there are ports.
        let members = crate::process::free_address().port().to_string();
        let server = Self::start_with(&["--cluster-enabled", "yes", "--cluster-port", &members]).await;
        let mut client = server.client().await;
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("ADDSLOTSRANGE").arg(0).arg(16_383);
        slots.query_async::<()>(&mut client).await.unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut client).await.unwrap();
            if info.contains("cluster_state:ok") {
                return server;
            }
            assert!(Instant::now() < until, "no cluster: {info}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts a sentinel that calls this server `prime`, and soon has a replica take its place when it is gone.
    pub(crate) fn watched(&self) -> Sentinel {
        let port = crate::process::free_address().port();
        let haste = "sentinel down-after-milliseconds prime 1000\nsentinel failover-timeout prime 5000\n";
        self.watched_at(port, self.port, &format!("port {port}\n"), haste)
    }

    /// Likewise, under TLS, for whoever knows the user `watcher`'s password.
    pub(crate) fn watched_with_tls(&self, certificates: &Certificates) -> Sentinel {
        let port = crate::process::free_address().port();
        let user = format!("requirepass other-{SENTINEL_PASSWORD}\nuser watcher on >{SENTINEL_PASSWORD} ~* &* +@all\n");
        let mut lines = format!("port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\n{user}");
        for (option, file) in TLS_FILES {
            lines.push_str(&format!("{option} {}\n", certificates.text(file)));
        }
        self.watched_at(port, self.tls_port.expect("a server with TLS"), &lines, "")
    }

    fn watched_at(&self, port: u16, server: u16, lines: &str, more: &str) -> Sentinel {
        let folder = directory("sentinel-");
        let config = folder.path().join("sentinel.conf");
        let monitor = format!("sentinel monitor prime 127.0.0.1 {server} 1\nsentinel auth-pass prime {PASSWORD}\n");
        let text = format!("{lines}bind 127.0.0.1\ndir {}\n{monitor}{more}", folder.path().display());
        private_file(&config, &text);
        let mut command = program("redis-server");
        command.arg(&config).arg("--sentinel").current_dir(folder.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Sentinel { folder, port, child }
    }

    /// Starts the server, after it was killed, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = program("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--requirepass", PASSWORD, "--dir"]).arg(self.folder.path()).args(&self.options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is not installed: scripts/setup --test");
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(30);
        while self.connect().await.is_none() {
            assert!(Instant::now() < until, "the server does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where a node finds it, without the password.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where a node finds it under TLS.
    pub(crate) fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.tls_port.expect("a server with TLS"))
    }

    pub(crate) fn cluster_url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{}", self.port)
    }

    /// A file with the password.
    pub(crate) fn password_file(&self) -> String {
        self.folder.path().join("secret").display().to_string()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        kill_all(&child);
        child.wait().unwrap();
    }

    /// It stands still: connections stay, and nothing answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("it runs")), signal).unwrap();
    }

    async fn connect(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("PING").query_async::<()>(&mut connection).await.ok()?;
        Some(connection)
    }

    /// A connection for looking around.
    pub(crate) async fn client(&self) -> MultiplexedConnection {
        self.connect().await.expect("it runs")
    }

    /// The keys and values that are there.
    pub(crate) async fn values(&self) -> Vec<(String, Vec<u8>)> {
        let mut client = self.client().await;
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut client).await.unwrap();
        keys.sort();
        let mut values = Vec::new();
        for key in keys {
            let value: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut client).await.unwrap();
            values.push((key, value));
        }
        values
    }

    pub(crate) async fn set(&self, key: &str, value: &[u8]) {
        redis::cmd("SET").arg(key).arg(value).query_async::<()>(&mut self.client().await).await.unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            kill_all(child);
            let _ = child.wait();
        }
    }
}

/// Who knows where the server is.
pub(crate) struct Sentinel {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Sentinel {
    /// Waits until it knows a replica that may take the server's place.
    pub(crate) async fn knows_a_replica(&self) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = async {
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                let known: redis::Value =
                    redis::cmd("SENTINEL").arg("REPLICAS").arg("prime").query_async(&mut connection).await.ok()?;
                Some(format!("{known:?}"))
            };
            if asked.await.is_some_and(|known| known.contains("slave-priority")) {
                return;
            }
            assert!(Instant::now() < until, "the sentinel knows no replica");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/prime", self.port)
    }

    pub(crate) fn tls_url(&self) -> String {
        format!("rediss+sentinel://127.0.0.1:{}/prime", self.port)
    }

    /// A file with the password.
    pub(crate) fn password_file(&self) -> String {
        let file = self.folder.path().join("secret");
        private_file(&file, SENTINEL_PASSWORD);
        file.display().to_string()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        kill_all(&self.child);
        let _ = self.child.wait();
    }
}

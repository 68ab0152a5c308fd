//! A node within this process, on a given or a temporary data directory, for `dev`, `run` and `bench`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Exit, Failure};
use crate::config::Config;
use crate::doctor;
use crate::node::{Node, NodeHandle};
use crate::reachable::from_here;

/// A running node and the directory it lives in.
pub(crate) struct Embedded {
    handle: Option<NodeHandle>,
    address: SocketAddr,
    data_dir: PathBuf,
    /// Removed when dropped.
    temporary: Option<TempDir>,
}

impl Embedded {
    /// Starts a node that stands alone on `data_dir`, or without one on a temporary directory, on any free port of the loopback.
    ///
    /// # Errors
    /// What keeps it from starting, and what to do.
    pub(crate) fn start_private(mut config: Config, data_dir: Option<&Path>) -> Result<Self, Failure> {
        config.listen.address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.clustered = false;
        let temporary = match data_dir {
            Some(given) => {
                config.node.data_dir = given.to_owned();
                None
            }
            None => {
                let folder = temporary_dir()?;
                config.node.data_dir = folder.path().join("data");
                Some(folder)
            }
        };
        Self::start(config, temporary)
    }

    /// Starts a node as configured.
    ///
    /// # Errors
    /// As [`Embedded::start_private`].
    pub(crate) fn start(config: Config, temporary: Option<TempDir>) -> Result<Self, Failure> {
        doctor::preflight().map_err(|unfit| Failure::new(Exit::Failed, unfit.to_string()))?;
        let data_dir = config.node.data_dir.clone();
        let handle = Node::start(config).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the node cannot start: {error:#}\n(`taskmaster doctor` checks the machine)"),
            )
        })?;
        let address = from_here(handle.addr());
        Ok(Self { handle: Some(handle), address, data_dir, temporary })
    }

    /// Where clients in this process connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its data is.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Whether the data goes with it.
    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Removes a temporary directory under the running node, for a process that ends at once.
    pub(crate) fn abandon(&self) {
        if let Some(folder) = &self.temporary {
            // Nothing in it is needed, and nobody is left to hear of a failure.
            let _removed = std::fs::remove_dir_all(folder.path());
        }
    }

    /// Drains and stops the node, and removes a temporary directory.
    ///
    /// # Errors
    /// What could not be made durable.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        if let Some(handle) = self.handle.take() {
            handle
                .shutdown()
                .map_err(|error| Failure::new(Exit::Failed, format!("the node did not stop cleanly: {error:#}")))?;
        }
        if let Some(folder) = self.temporary.take() {
            folder.close()?;
        }
        Ok(())
    }
}

/// A directory of our own on a real disk: beneath the system's temporary directory, or beneath `/var/tmp` or the working
/// directory where that is memory only. The log is what is measured and what must survive, so memory will not do.
pub(crate) fn temporary_dir() -> Result<TempDir, Failure> {
    let places = [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from(".")];
    let is_memory =
        |place: &PathBuf| doctor::file_system_name(place).map_or(true, |name| name == "tmpfs" || name == "ramfs");
    let mut builder = tempfile::Builder::new();
    builder.prefix("taskmaster-");
    for place in places.iter().filter(|place| !is_memory(place)) {
        if let Ok(folder) = builder.tempdir_in(place) {
            return Ok(folder);
        }
    }
    tracing::warn!(
        "no directory on a real disk can be written: the data is in memory, and figures of the disk mean nothing"
    );
    Ok(builder.tempdir()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_every_address_is_reached_on_the_loopback() {
        let reach = |text: &str| from_here(text.parse().unwrap()).to_string();
        assert_eq!(reach("0.0.0.0:7700"), "127.0.0.1:7700");
        assert_eq!(reach("[::]:7700"), "[::1]:7700");
        assert_eq!(reach("10.0.0.1:7700"), "10.0.0.1:7700");
    }

    #[test]
    fn temporary_directories_avoid_memory_where_a_disk_can_be_written() {
        let folder = temporary_dir().unwrap();
        let name = doctor::file_system_name(folder.path()).unwrap();
        let disk = doctor::file_system_name(Path::new(".")).unwrap();
        assert!(name != "tmpfs" || disk == "tmpfs");
    }

    /// A small node on this directory, and a client of it.
    async fn node(data_dir: Option<&Path>) -> (Embedded, taskmaster_client::Client) {
        let mut config = Config::default();
        config.node.shards = 1;
        config.node.partitions = 4;
        config.wal.segment_size = crate::config::ByteSize::mib(32);
        config.limits.memory = crate::config::Memory::Bytes(crate::config::ByteSize::mib(64));
        let node = Embedded::start_private(config, data_dir).unwrap();
        let client = taskmaster_client::Client::connect(node.address()).await.unwrap();
        (node, client)
    }

    #[tokio::test]
    async fn a_task_runs_on_an_own_node_and_its_result_survives_a_restart() {
        use crate::workers::{Offer, start};
        use taskmaster_client::Task;

        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let (first, client) = node(Some(&data_dir)).await;
        let offer = Offer { queues: vec!["default".into()], concurrency: 2, exec: true, ..Offer::default() };
        let worker = start(&client, &offer, None).await.unwrap();
        let task = Task::new("exec").payload(r#"{"run": "echo hello"}"#);
        let id = client.submit(task).await.unwrap().id;
        assert_eq!(client.result(id).await.unwrap().success().unwrap(), b"hello\n");
        worker.shutdown().await.unwrap();
        tokio::task::spawn_blocking(move || first.stop()).await.unwrap().unwrap();

        let (second, client) = node(Some(&data_dir)).await;
        assert_eq!(client.result(id).await.unwrap().success().unwrap(), b"hello\n");
        tokio::task::spawn_blocking(move || second.stop()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_temporary_directory_goes_with_its_node() {
        let (node, _client) = node(None).await;
        let data_dir = node.data_dir().to_owned();
        assert!(data_dir.exists() && node.is_temporary());
        tokio::task::spawn_blocking(move || node.stop()).await.unwrap().unwrap();
        assert!(!data_dir.parent().unwrap().exists());
    }
}

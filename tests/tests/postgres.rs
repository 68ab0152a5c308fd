//! Finished tasks in a real PostgreSQL: each once, row for row what the engine answers, whatever is killed meanwhile.

mod cached;
mod history;
mod kills;
mod listing;
mod outages;
mod restore;
mod retention;
mod spill;
mod start;
mod states;
mod tls;
mod versions;
mod writer;

use std::time::{Duration, Instant};

use taskmaster_client::Client;
use tempfile::TempDir;

use crate::process::{Running, Setup, directory};
use crate::services::postgres::Postgres;

/// A server with the schema, and a node that uses it.
struct Stage {
    postgres: Postgres,
    setup: Setup,
    node: Running,
    client: Client,
    _directory: TempDir,
}

/// The section of a node's configuration.
fn section(postgres: &Postgres, more: &str) -> String {
    format!(
        "[postgres]\nurl = \"{}\"\npassword_file = \"{}\"\ninterval = \"20ms\"\nstatement_timeout = \"2s\"\n{more}",
        postgres.url(),
        postgres.password_file().display()
    )
}

impl Stage {
    async fn new(more: &str) -> Self {
        let postgres = Postgres::start().await;
        postgres.migrate().await;
        let directory = directory();
        let mut setup = Setup::new(&directory);
        setup.more = section(&postgres, more);
        let node = setup.start();
        let client = Client::connect(node.address.to_string()).await.unwrap();
        Self { postgres, setup, node, client, _directory: directory }
    }

    async fn count(&self, sql: &str) -> i64 {
        self.postgres.client().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until the history has so many tasks.
    async fn stored(&self, tasks: usize) {
        let wanted = i64::try_from(tasks).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.count("SELECT count(*) FROM taskmaster.task_history").await;
            if found == wanted {
                return;
            }
            assert!(Instant::now() < until, "{found} of {wanted} tasks are stored: {}", self.node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

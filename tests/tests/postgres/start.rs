//! What a node says of a database that it cannot use, and what it never says.

use std::time::{Duration, Instant};

use taskmaster_client::{Client, Priority, Retries, Task};

use super::history::worker;
use super::{Stage, section};
use crate::process::{Running, Setup, binary, directory};
use crate::services::postgres::{PASSWORD, Postgres};

/// Waits for a sentence in a node's log.
pub(super) async fn logged(node: &Running, sentence: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while !node.log().contains(sentence) {
        assert!(Instant::now() < until, "the node does not say \"{sentence}\": {}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn migrate(postgres: &Postgres) -> (bool, String) {
    let made = std::process::Command::new(binary())
        .args(["state", "migrate", "--url", &postgres.url()])
        .env("TASKMASTER_POSTGRES__PASSWORD", PASSWORD)
        .output()
        .unwrap();
    (made.status.success(), String::from_utf8_lossy(&[made.stdout, made.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_older_or_newer_keeps_a_node_from_starting_and_says_what_to_do() {
    let postgres = Postgres::start().await;
    let directory = directory();
    let mut setup = Setup::new(&directory);
    setup.more = section(&postgres, "");
    let (_, said) = setup.refusal();
    assert!(said.contains("taskmaster state migrate"), "{said}");
    let (migrated, said) = migrate(&postgres);
    assert!(migrated && said.contains("has version 8 now; it had 0"), "{said}");
    let (migrated, said) = migrate(&postgres);
    assert!(migrated && said.contains("already"), "{said}");
    drop(setup.start());
    let client = postgres.client().await;
    client
        .execute("INSERT INTO taskmaster.migration (version, software) VALUES (1000, 'tomorrow')", &[])
        .await
        .unwrap();
    let (_, said) = setup.refusal();
    assert!(said.contains("use a newer program"), "{said}");
    let (migrated, said) = migrate(&postgres);
    assert!(!migrated && said.contains("use a newer program"), "{said}");
    client.execute("DELETE FROM taskmaster.migration", &[]).await.unwrap();
    let (_, said) = setup.refusal();
    assert!(said.contains("taskmaster state migrate"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_tells_from_what_is_stored_which_contracts_are_restartable() {
    let stage = Stage::new("").await;
    let working = worker(&stage.client).await;
    let task = || Task::new("echo").queue("mixed").retries(Retries::attempts(2).non_retryable("exit:7"));
    for task in [task().restartable(true), task(), task().priority(Priority::High).restartable(true)] {
        let id = stage.client.submit(task).await.unwrap().id;
        stage.client.result(id).await.unwrap();
    }
    stage.stored(3).await;
    working.shutdown().await.unwrap();
    let told = "SELECT string_agg(priority || ' ' || restartable, ', ' ORDER BY priority, restartable) FROM taskmaster.contract";
    let client = stage.postgres.client().await;
    let before: String = client.query_one(told, &[]).await.unwrap().get(0);
    assert_eq!(before, "1 true, 2 false, 2 true");
    drop(stage.node);
    // As version 7 left it.
    client
        .batch_execute(
            "ALTER TABLE taskmaster.final_task DROP COLUMN particulars CASCADE;
             ALTER TABLE taskmaster.contract DROP COLUMN restartable;
             ALTER TABLE taskmaster.queue_setting DROP COLUMN weight CASCADE;
             DELETE FROM taskmaster.migration WHERE version > 7",
        )
        .await
        .unwrap();
    let (migrated, said) = migrate(&stage.postgres);
    assert!(migrated, "{said}");
    let after: String = client.query_one(told, &[]).await.unwrap().get(0);
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_said_once_and_no_secret_ever_is() {
    let postgres = Postgres::start().await;
    postgres.migrate().await;
    let directory = directory();
    let mut setup = Setup::new(&directory);
    let wrong = "wrong-and-secret-too";
    setup.more =
        format!("[postgres]\nurl = \"postgres://taskmaster:{wrong}@127.0.0.1:{}/postgres\"\n", postgres.port());
    setup.more.push_str("[log]\nlevel = \"trace\"\n");
    let mut node = setup.start();
    logged(&node, "checkpoints wait").await;
    // Tasks go on meanwhile.
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let id = client.submit(Task::new("any")).await.unwrap().id;
    client.cancel([id]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let log = node.log();
    assert_eq!(log.matches("checkpoints wait").count(), 1, "{log}");
    assert!(log.contains("password authentication failed"), "{log}");
    assert!(node.terminate().success());
    let config = directory.path().join(format!("node-{}.toml", setup.address.port()));
    let mut said = node.log();
    for arguments in [
        &["config", "show", "--config"][..],
        &["config", "show", "--output", "json", "--config"],
        &["state", "migrate", "--config"],
    ] {
        let shown = std::process::Command::new(binary())
            .args(arguments)
            .arg(&config)
            .env("TASKMASTER_POSTGRES__PASSWORD", PASSWORD)
            .output()
            .unwrap();
        said.push_str(&String::from_utf8_lossy(&[shown.stdout, shown.stderr].concat()));
    }
    assert!(said.contains("127.0.0.1"), "{said}");
    for secret in [wrong, PASSWORD] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn a_node_without_a_database_has_no_foreign_thread() {
    let directory = directory();
    let node = Setup::new(&directory).start();
    let threads = node.threads();
    assert!(threads.iter().any(|name| name.starts_with("shard-")), "{threads:?}");
    assert!(!threads.iter().any(|name| name == "foreign"), "{threads:?}");
}

/// The check of the database by `taskmaster doctor`: its status, and what is said.
fn doctor(postgres: &Postgres, password: &str) -> (String, String) {
    let checked = std::process::Command::new(binary())
        .args(["doctor", "--output", "json"])
        .env("TASKMASTER_POSTGRES__URL", postgres.url())
        .env("TASKMASTER_POSTGRES__PASSWORD", password)
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "postgres").unwrap().clone();
    let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
    (text("status"), format!("{} {}", text("message"), text("fix")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_what_is_wrong_with_a_database() {
    let mut postgres = Postgres::start().await;
    let (status, said) = doctor(&postgres, "wrong");
    assert!(status == "fail" && said.contains("password authentication failed"), "{status}: {said}");
    let (status, said) = doctor(&postgres, PASSWORD);
    assert!(status == "fail" && said.contains("taskmaster state migrate"), "{status}: {said}");
    postgres.migrate().await;
    let (status, said) = doctor(&postgres, PASSWORD);
    assert!(status == "ok" && said.contains("version 8 of the schema"), "{status}: {said}");
    let client = postgres.client().await;
    client.batch_execute(&format!("CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
    client
        .batch_execute(
            "GRANT USAGE ON SCHEMA taskmaster TO guest; GRANT SELECT ON ALL TABLES IN SCHEMA taskmaster TO guest",
        )
        .await
        .unwrap();
    postgres.user = "guest";
    let (status, said) = doctor(&postgres, PASSWORD);
    assert!(status == "fail" && said.contains("may not write"), "{status}: {said}");
    postgres.kill();
    let (status, said) = doctor(&postgres, PASSWORD);
    assert!(status == "fail" && said.contains("cannot be used"), "{status}: {said}");
}

//! Connections under TLS: encrypted and to the right server, or not made at all.

use std::path::Path;

use taskmaster_client::{Client, Task};
use taskmaster_connect::postgres::{TlsMode, connect};

use super::section;
use super::start::logged;
use crate::process::{Setup, directory};
use crate::services::certificates::Certificates;
use crate::services::postgres::Postgres;

/// A server that shows the certificate for a server, and asks for those of this authority if `asks`.
async fn server(certificates: &Certificates, asks: bool) -> Postgres {
    let file = |name: &str, file: &str| format!("{name}={}", certificates.text(file));
    let mut options = vec![
        "ssl=on".to_owned(),
        file("ssl_cert_file", "server.pem"),
        file("ssl_key_file", "server.key"),
    ];
    if asks {
        options.push(file("ssl_ca_file", "ca.pem"));
    }
    Postgres::start_with(&options.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Why a connection that trusts this authority is not made.
async fn refusal(postgres: &Postgres, authority: &Path) -> String {
    let mut settings = postgres.settings();
    settings.set_tls(TlsMode::Verify, Some(authority.to_owned()));
    connect(&settings).await.expect_err("it must not connect").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_verifies_speaks_to_the_database_under_tls_alone() {
    let certificates = Certificates::of("127.0.0.1");
    let postgres = server(&certificates, false).await;
    postgres.migrate().await;
    let directory = directory();
    let mut setup = Setup::new(&directory);
    let authority = certificates.path("ca.pem");
    setup.more = section(&postgres, &format!("tls = \"verify\"\ntls_ca = \"{}\"\n", authority.display()));
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let id = client.submit(Task::new("any")).await.unwrap().id;
    client.cancel([id]).await.unwrap();
    let looking = postgres.client().await;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let count = "SELECT count(*) FROM taskmaster.task_history";
    while looking.query_one(count, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(std::time::Instant::now() < until, "nothing is stored: {}", node.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                     WHERE application_name = 'taskmaster'";
    assert!(looking.query_one(encrypted, &[]).await.unwrap().get::<_, Option<bool>>(0).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_or_name_or_without_tls_is_not_used() {
    let (certificates, others) = (Certificates::of("127.0.0.1"), Certificates::of("db.example"));
    let postgres = server(&certificates, false).await;
    let said = refusal(&postgres, &others.path("ca.pem")).await;
    assert!(said.contains("invalid peer certificate"), "{said}");
    let said = refusal(&postgres, &certificates.path("nothing.pem")).await;
    assert!(said.contains("trusted certificates") && said.contains("nothing.pem"), "{said}");
    let named = server(&others, false).await;
    let said = refusal(&named, &others.path("ca.pem")).await;
    assert!(said.contains("not valid for name"), "{said}");

    // Nor does a node fall back to a connection without it, over which the password would go.
    let plain = Postgres::start().await;
    plain.migrate().await;
    let directory = directory();
    let mut setup = Setup::new(&directory);
    let authority = certificates.path("ca.pem");
    setup.more = section(&plain, &format!("tls = \"verify\"\ntls_ca = \"{}\"\n", authority.display()));
    let node = setup.start();
    logged(&node, "checkpoints wait").await;
    assert!(node.log().contains("does not support TLS"), "{}", node.log());
}

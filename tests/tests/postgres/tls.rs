//! Connections under TLS: encrypted and to the right server, or not made at all.

use std::path::Path;

use taskmaster_client::{Client, Task};
use taskmaster_connect::postgres::{TlsMode, connect};

use super::section;
use super::start::logged;
use crate::process::{Setup, directory};
use crate::services;
use crate::services::certificates::Certificates;
use crate::services::postgres::{PASSWORD, Postgres};

/// A server that shows the certificate for a server, asks for those of the same authority, and has these options.
async fn server(certificates: &Certificates, options: &[String]) -> Postgres {
    let files = [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "ca.pem")];
    let files = files.map(|(name, file)| format!("{name}={}", certificates.text(file)));
    let options = files.iter().chain(options).map(String::as_str);
    Postgres::start_with(&["ssl=on"].into_iter().chain(options).collect::<Vec<_>>()).await
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
    let postgres = server(&certificates, &[]).await;
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
    let postgres = server(&certificates, &[]).await;
    let said = refusal(&postgres, &others.path("ca.pem")).await;
    assert!(said.contains("invalid peer certificate"), "{said}");
    let said = refusal(&postgres, &certificates.path("nothing.pem")).await;
    assert!(said.contains("trusted certificates") && said.contains("nothing.pem"), "{said}");
    let named = server(&others, &[]).await;
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

/// The check of the database by `taskmaster doctor` with these lines of `[postgres]`: its status, and what is said.
fn doctor(postgres: &Postgres, more: &str) -> (String, String) {
    let report = crate::process::doctor(&section(postgres, more));
    assert!(!report.to_string().contains(PASSWORD), "{report}");
    let check = crate::process::check(&report, "postgres").unwrap();
    (check["status"].as_str().unwrap().to_owned(), check["message"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_is_shown_one_and_the_doctor_says_what_is_wrong_with_it() {
    let (certificates, others) = (Certificates::of("127.0.0.1"), Certificates::of("127.0.0.1"));
    let folder = services::directory("hba-");
    let rules = folder.path().join("pg_hba.conf");
    let how = "scram-sha-256";
    let text = format!("hostnossl all all all {how}\nhostssl all all all {how} clientcert=verify-full\n");
    services::private_file(&rules, &text);
    let postgres = server(&certificates, &[format!("hba_file={}", rules.display())]).await;
    postgres.migrate().await;
    let authority = format!("tls = \"verify\"\ntls_ca = \"{}\"\n", certificates.text("ca.pem"));
    let shown = |of: &Certificates, key: &str| {
        format!("{authority}tls_cert = \"{}\"\ntls_key = \"{}\"\n", of.text("client.pem"), of.text(key))
    };
    let (status, said) = doctor(&postgres, &shown(&certificates, "client.key"));
    assert!(status == "ok", "{status}: {said}");
    for (lines, wanted) in [
        (authority.clone(), "name it by postgres.tls_cert and postgres.tls_key"),
        (shown(&others, "client.key"), "does not take the certificate of postgres.tls_cert"),
        (shown(&certificates, "server.key"), "certificate and key cannot be used"),
        (shown(&certificates, "nothing.key"), "nothing.key cannot be read"),
        (shown(&certificates, "client.key").replace("verify", "disable"), "connections are not encrypted"),
        (format!("{authority}tls_key = \"{}\"\n", certificates.text("client.key")), "name both files"),
    ] {
        let (status, said) = doctor(&postgres, &lines);
        assert!(status == "fail" && said.contains(wanted), "{wanted}: {said}");
    }
}

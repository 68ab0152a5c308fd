//! Connections under TLS: encrypted and to the right server, or not made at all.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use taskmaster_client::{Client, Task};
use taskmaster_connect::postgres::{TlsMode, connect};

use super::section;
use super::start::logged;
use crate::process::{Setup, directory};
use crate::services::{self, postgres::Postgres};

/// An authority and the server's certificate, signed by it, in a folder that the server may read.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    /// A certificate for this name or address.
    fn of(name: &str) -> Self {
        let folder = services::directory("certificates-");
        let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let made = Self { folder };
        for (file, text) in [("ca.pem", root.pem()), ("server.pem", server.pem()), ("server.key", key.serialize_pem())]
        {
            services::private_file(&made.path(file), &text);
        }
        made
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// A server that uses it.
    async fn server(&self) -> Postgres {
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        let file = |name: &str, path: &Path| format!("{name}={}", path.display());
        Postgres::start_with(&["ssl=on", &file("ssl_cert_file", &certificate), &file("ssl_key_file", &key)]).await
    }
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
    let postgres = certificates.server().await;
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
    let postgres = certificates.server().await;
    let said = refusal(&postgres, &others.path("ca.pem")).await;
    assert!(said.contains("invalid peer certificate"), "{said}");
    let said = refusal(&postgres, &certificates.path("nothing.pem")).await;
    assert!(said.contains("trusted certificates") && said.contains("nothing.pem"), "{said}");
    let named = others.server().await;
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

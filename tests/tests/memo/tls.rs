//! Servers and sentinels that one reaches under TLS alone.

use std::time::Duration;

use super::{Stand, answer, task, worker};
use crate::services::certificates::Certificates;
use crate::services::redis::{PASSWORD, Redis, SENTINEL_PASSWORD};

/// The check of Redis by `taskmaster doctor` with this configuration: its status, and all that is said.
fn doctor(more: &str) -> (String, String) {
    let directory = crate::process::directory();
    let data = directory.path().join("data");
    let told = crate::process::doctor(&format!("[node]\ndata_dir = \"{}\"\n{more}", data.display()));
    let check = crate::process::check(&told, "redis").expect("a check of it");
    for secret in [PASSWORD, SENTINEL_PASSWORD] {
        assert!(!told.to_string().contains(secret), "{told}");
    }
    (check["status"].as_str().unwrap().to_owned(), check.to_string())
}

/// A result that one node stored answers at another.
async fn shares(more: &str, payload: &str) {
    // Nobody works there: the server must have time to answer on a busy machine.
    let more = format!("{more}timeout = \"1s\"\n");
    let (here, there) = (Stand::configured(&more).await, Stand::configured(&more).await);
    here.reaches("redis_connected", 1).await;
    there.reaches("redis_connected", 1).await;
    let (worker, _) = worker(&here.client, Duration::ZERO).await;
    here.client.result(here.client.submit(task(payload)).await.unwrap().id).await.unwrap();
    here.reaches("redis_stored", 1).await;
    let id = there.client.submit(task(payload)).await.unwrap().id;
    assert_eq!(there.client.result(id).await.unwrap().result, answer(payload.as_bytes()));
    worker.shutdown().await.unwrap();
    for stand in [&here, &there] {
        let log = stand.node.log();
        assert!(!log.contains(PASSWORD) && !log.contains(SENTINEL_PASSWORD), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_with_a_user_a_password_and_tls_lead_to_the_server() {
    let (certificates, others) = (Certificates::of("127.0.0.1"), Certificates::of("127.0.0.1"));
    let redis = Redis::start_with_tls(&certificates, false).await;
    let sentinel = redis.watched_with_tls(&certificates);
    let with = |authority: &Certificates, more: &str| {
        let (url, password) = (sentinel.tls_url(), redis.password_file());
        let authority = authority.text("ca.pem");
        format!("[redis]\nurl = \"{url}\"\npassword_file = \"{password}\"\ntls_ca = \"{authority}\"\n{more}")
    };
    let login = format!("sentinel_user = \"watcher\"\nsentinel_password_file = \"{}\"\n", sentinel.password_file());
    shares(&with(&certificates, &login), "through sentinels").await;
    let (status, said) = doctor(&with(&certificates, &login));
    assert!(status != "fail", "{said}");
    for (configuration, wanted) in [
        (with(&certificates, ""), "NOAUTH"),
        (with(&certificates, &login.replace("watcher", "nobody")), "Password authentication failed"),
        (with(&others, &login), "certificate"),
        // What is not encrypted is not answered.
        (with(&certificates, &format!("{login}sentinel_tls = \"disable\"\n")), "127.0.0.1"),
    ] {
        let (status, said) = doctor(&configuration);
        assert!(status == "fail" && said.contains(wanted), "{wanted}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_is_shown_one_and_the_doctor_says_what_is_wrong_with_it() {
    let (certificates, others) = (Certificates::of("127.0.0.1"), Certificates::of("127.0.0.1"));
    let redis = Redis::start_with_tls(&certificates, true).await;
    let with = |more: &str| {
        let (url, password) = (redis.tls_url(), redis.password_file());
        let authority = certificates.text("ca.pem");
        format!("[redis]\nurl = \"{url}\"\npassword_file = \"{password}\"\ntls_ca = \"{authority}\"\n{more}")
    };
    let shown = |of: &Certificates, key: &str| {
        with(&format!("tls_cert = \"{}\"\ntls_key = \"{}\"\n", of.text("client.pem"), of.text(key)))
    };
    shares(&shown(&certificates, "client.key"), "with a certificate").await;
    for (configuration, wanted) in [
        (with(""), "name it by redis.tls_cert and redis.tls_key"),
        (shown(&others, "client.key"), "does not take the certificate of redis.tls_cert"),
        (shown(&certificates, "nothing.key"), "nothing.key cannot be read"),
        (shown(&certificates, "client.key").replace("rediss:", "redis:"), "connections are not encrypted"),
    ] {
        let (status, said) = doctor(&configuration);
        assert!(status == "fail" && said.contains(wanted), "{wanted}: {said}");
    }
}

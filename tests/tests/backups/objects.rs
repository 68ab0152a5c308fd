//! Backups in an object store: the same as in a directory, over a network that fails, and with sentences for what is wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use taskmaster_client::{Client, Task, TaskId};
use tempfile::TempDir;

use super::text;
use crate::process::{Setup, binary, directory};
use crate::services::objects::{BUCKET, Fate, Objects, SECRET, Way};

/// More than one part of an upload.
const TASKS: usize = 40;
const PAYLOAD_LEN: usize = 700_000;

/// Environment variables that differ from what is right.
type Changes<'a> = &'a [(&'a str, &'a str)];

fn command(address: SocketAddr, changes: Changes<'_>, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    Objects::know(&mut command, address);
    command.arg("state").args(arguments).args(["--output", "json"]).envs(changes.iter().copied());
    command
}

/// Neither what it says nor what it answers has a secret.
fn told(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    for text in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(text);
        assert!(!text.contains(SECRET) && !text.contains("X-Amz-Signature"), "{text}");
    }
    output
}

fn answer(address: SocketAddr, arguments: &[&str]) -> Value {
    let output = told(&mut command(address, &[], arguments));
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(address: SocketAddr, changes: Changes<'_>, arguments: &[&str]) -> String {
    let output = told(&mut command(address, changes, arguments));
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn place(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// A node's data with a long log, and what is in it.
async fn filled(directory: &TempDir) -> (Setup, Vec<(TaskId, Vec<u8>)>) {
    let mut setup = Setup::new(directory);
    setup.variables.push(("TASKMASTER_NODE__PARTITIONS", "4".to_owned()));
    let mut node = setup.start();
    let client = setup.client().await;
    let mut tasks = Vec::new();
    for n in 0..TASKS {
        let payload: Vec<u8> = (0..PAYLOAD_LEN).map(|at| u8::try_from((at * (n + 7)) % 251).unwrap()).collect();
        tasks.push((client.submit(Task::new("echo").payload(payload.clone())).await.unwrap().id, payload));
    }
    assert!(node.terminate().success());
    (setup, tasks)
}

/// All tasks are in a data directory that was restored.
async fn has_all(directory: &TempDir, data_dir: PathBuf, tasks: &[(TaskId, Vec<u8>)]) {
    let mut setup = Setup::new(directory);
    setup.data_dir = data_dir;
    setup.variables.push(("TASKMASTER_NODE__PARTITIONS", "4".to_owned()));
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    for (id, payload) in tasks {
        assert!(client.task(*id).await.unwrap().payload == *payload, "{id}");
    }
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_to_an_object_store_is_what_comes_back_and_a_changed_byte_is_found() {
    let (objects, directory) = (Objects::start().await, directory());
    let (setup, tasks) = filled(&directory).await;
    let (to, restored) = (place("n1/first"), directory.path().join("restored"));
    let before = names(&directory);
    let made = answer(objects.address(), &["backup", "--data-dir", text(&setup.data_dir), "--to", &to]);
    assert!(made["backup"] == to && made["bytes"].as_u64().unwrap() > 16 << 20, "{made}");
    assert_eq!(answer(objects.address(), &["verify", &to])["positions"], made["positions"]);
    assert_eq!(names(&directory), before, "no copy is left");
    let again = refusal(objects.address(), &[], &["backup", "--data-dir", text(&setup.data_dir), "--to", &to]);
    assert!(again.contains("is a backup"), "{again}");

    let back = ["restore", "--from", &to, "--data-dir", text(&restored)];
    let files = objects.objects("n1/first");
    assert_eq!(files.len(), 3, "{files:?}");
    for path in &files {
        let whole = std::fs::read(path).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
        for arguments in [&["verify", to.as_str()][..], &back] {
            let said = refusal(objects.address(), &[], arguments);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(said.contains(name) && said.contains(&to), "{}: {said}", path.display());
        }
        std::fs::write(path, &whole).unwrap();
        // The server knows more of an object than its bytes.
        std::fs::rename(path, objects.aside()).unwrap();
        let said = refusal(objects.address(), &[], &back);
        assert!(said.contains("is missing") || said.contains("is no backup"), "{}: {said}", path.display());
        std::fs::rename(objects.aside(), path).unwrap();
    }
    assert_eq!(names(&directory), before, "nothing is left of these restores");
    answer(objects.address(), &back);
    assert_eq!(names(&directory).len(), before.len() + 1, "no copy is left");
    has_all(&self::directory(), restored, &tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_now_and_then_loses_nothing() {
    let (objects, directory) = (Objects::start().await, directory());
    let (setup, tasks) = filled(&directory).await;
    let (to, restored) = (place("flaky"), directory.path().join("restored"));
    let way = Way::to(objects.address(), |line, number| match number % 5 {
        // The answer to the end of an upload is lost although it ended: what is tried again finds no upload.
        _ if line.starts_with("POST") && line.contains("uploadId") && number % 2 == 0 => Fate::Cut,
        1 => Fate::Busy,
        2 => Fate::Lost,
        4 => Fate::Cut,
        _ => Fate::Pass,
    })
    .await;
    answer(way.address, &["backup", "--data-dir", text(&setup.data_dir), "--to", &to]);
    assert!(way.spoiled() > 4, "{:?}", way.asked());
    answer(way.address, &["verify", &to]);
    answer(way.address, &["restore", "--from", &to, "--data-dir", text(&restored)]);
    has_all(&self::directory(), restored, &tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_fails_or_is_interrupted_takes_back_what_it_sent() {
    let (objects, directory) = (Objects::start().await, directory());
    let (setup, _) = filled(&directory).await;
    let before = names(&directory);
    let to = place("broken");
    let backup = ["backup", "--data-dir", text(&setup.data_dir), "--to", &to];
    // The second part of an upload never arrives.
    let way = Way::to(objects.address(), |line, _| match line.contains("partNumber=2") {
        true => Fate::Busy,
        false => Fate::Pass,
    })
    .await;
    let said = refusal(way.address, &[], &backup);
    assert!(said.contains("503") && said.contains("tries did not help"), "{said}");
    let is_aborted = |way: &Way| way.asked().iter().any(|line| line.starts_with("DELETE") && line.contains("uploadId"));
    assert!(is_aborted(&way), "{:?}", way.asked());
    assert_eq!((objects.objects("").len(), names(&directory)), (0, before.clone()), "nothing is left");

    let way = Way::to(objects.address(), |line, _| match line.contains("partNumber=2") {
        true => Fate::Busy,
        false => Fate::Pass,
    })
    .await;
    let mut child = command(way.address, &[], &backup).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while way.spoiled() == 0 {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "{:?}", way.asked());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(is_aborted(&way), "{:?}", way.asked());
    assert_eq!((objects.objects("").len(), names(&directory)), (0, before), "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_with_what_to_do() {
    let (objects, directory) = (Objects::start().await, directory());
    let mut setup = Setup::new(&directory);
    setup.variables.push(("TASKMASTER_NODE__PARTITIONS", "1".to_owned()));
    assert!(setup.start().terminate().success());
    let said = |changes: Changes<'_>, to: &str| {
        refusal(objects.address(), changes, &["backup", "--data-dir", text(&setup.data_dir), "--to", to])
    };
    for (changes, to, wanted) in [
        (&[][..], "s3://nowhere/n1", "there is no bucket nowhere: make it, or correct the name"),
        (&[("AWS_SECRET_ACCESS_KEY", "another")], &place("n1"), "correct AWS_SECRET_ACCESS_KEY"),
        (&[("AWS_ACCESS_KEY_ID", "AKIANOBODY")], &place("n1"), "correct AWS_ACCESS_KEY_ID"),
        (&[("AWS_ACCESS_KEY_ID", "")], &place("n1"), "AWS_ACCESS_KEY_ID is not set"),
        (&[("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")], &place("n1"), "http://127.0.0.1:9: "),
        (&[("AWS_ENDPOINT_URL_S3", "ftp://127.0.0.1")], &place("n1"), "the object store's address"),
        (&[], "s3:///n1", "names no bucket"),
    ] {
        let said = said(changes, to);
        assert!(said.contains(wanted), "{changes:?} {to}: {said}");
    }
    let said = refusal(objects.address(), &[], &["verify", &place("n1")]);
    assert!(said.contains("is no backup: it has no manifest"), "{said}");
    assert_eq!(objects.objects("").len(), 0);
}

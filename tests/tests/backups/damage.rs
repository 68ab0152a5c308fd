//! What is damaged, incomplete or of another format is refused, and nothing is left that looks like a backup or a node.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use taskmaster_client::Task;
use tempfile::TempDir;

use super::{answer, back_up, refusal, text};
use crate::process::{Setup, binary, directory};

/// A node's directory with some tasks in it, and a backup of it.
async fn backed_up(directory: &TempDir) -> (Setup, PathBuf) {
    let mut setup = Setup::new(directory);
    setup.variables.push(("TASKMASTER_NODE__PARTITIONS", "4".to_owned()));
    let mut node = setup.start();
    let client = setup.client().await;
    for n in 0..100usize {
        client.submit(Task::new("echo").payload(vec![5; n * 100])).await.unwrap();
    }
    assert!(node.terminate().success());
    let backup = directory.path().join("backup");
    let told = back_up(&setup.data_dir, &backup);
    assert!(told["bytes"].as_u64().unwrap() < 8 << 20, "what was never written is left out: {told}");
    (setup, backup)
}

/// Paths of all files under a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_changed_byte_in_any_file_ends_a_verification_and_a_restore() {
    let directory = directory();
    let (_, backup) = backed_up(&directory).await;
    let to = directory.path().join("restored");
    let before = names(directory.path());
    let mut place = u64::from(std::process::id());
    for path in files(&backup) {
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..4 {
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut bytes = whole.clone();
            let at = usize::try_from(place >> 16).unwrap() % bytes.len();
            bytes[at] ^= 1 << (place % 8);
            std::fs::write(&path, bytes).unwrap();
            let said = refusal(&["verify", text(&backup)]);
            assert!(said.contains(text(&path)), "byte {at} of {}: {said}", path.display());
            refusal(&["restore", "--from", text(&backup), "--data-dir", text(&to)]);
            assert_eq!(names(directory.path()), before, "nothing is left of the restore");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        refusal(&["verify", text(&backup)]);
        std::fs::write(&path, &whole).unwrap();
    }
    answer(&["verify", text(&backup)]);
    answer(&["restore", "--from", text(&backup), "--data-dir", text(&to)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_incomplete_of_another_format_or_in_the_way_is_refused_with_a_sentence() {
    let directory = directory();
    let (setup, backup) = backed_up(&directory).await;
    let to = directory.path().join("restored");
    let refused = |why: &str| {
        for arguments in
            [vec!["verify", text(&backup)], vec!["restore", "--from", text(&backup), "--data-dir", text(&to)]]
        {
            let said = refusal(&arguments);
            assert!(said.contains(why), "{arguments:?}: {said}");
        }
        assert!(!to.exists());
    };
    let log = backup.join("data/shard-000/wal/0000000001.wal");
    let aside = directory.path().join("aside");
    std::fs::rename(&log, &aside).unwrap();
    refused("it is missing");
    std::fs::rename(&aside, &log).unwrap();
    std::fs::write(backup.join("data/shard-000/wal/0000000009.wal"), "x").unwrap();
    refused("does not belong to the backup");
    std::fs::remove_file(backup.join("data/shard-000/wal/0000000009.wal")).unwrap();
    let manifest = backup.join("manifest");
    let whole = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, whole.replacen("taskmaster-backup 1 ", "taskmaster-backup 2 ", 1)).unwrap();
    refused("has format 2");
    std::fs::remove_file(&manifest).unwrap();
    refused("is no backup");
    std::fs::write(&manifest, whole).unwrap();

    let exists = refusal(&["restore", "--from", text(&backup), "--data-dir", text(&setup.data_dir)]);
    assert!(exists.contains("exists"), "{exists}");
    let exists = refusal(&["backup", "--data-dir", text(&setup.data_dir), "--to", text(&backup)]);
    assert!(exists.contains("exists"), "{exists}");
    let nothing = refusal(&["backup", "--data-dir", text(&aside), "--to", text(&to)]);
    assert!(nothing.contains("is no data directory"), "{nothing}");
    // What it holds can be looked at as it is.
    let list =
        answer(&["at", "--time", "2100-01-01T00:00:00Z", "--partition", "0", "--data-dir", text(&backup.join("data"))]);
    assert!(!list["tasks"].as_array().unwrap().is_empty());
    answer(&["verify", text(&backup)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_or_restore_that_is_interrupted_leaves_nothing_under_its_name() {
    let directory = directory();
    let (setup, backup) = backed_up(&directory).await;
    let (mut interrupted, mut finished) = (0, 0);
    for wait_ms in [0, 1, 2, 5, 10, 20, 40, 80] {
        let to = directory.path().join(format!("to-{wait_ms}"));
        let copy = ["backup", "--data-dir", text(&setup.data_dir), "--to", text(&to)];
        let mut child =
            Command::new(binary()).arg("state").args(copy).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        if to.exists() {
            finished += 1;
            answer(&["verify", text(&to)]);
        } else {
            interrupted += 1;
        }
        let to = directory.path().join(format!("node-{wait_ms}"));
        let back = ["restore", "--from", text(&backup), "--data-dir", text(&to)];
        let mut child =
            Command::new(binary()).arg("state").args(back).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        if to.exists() {
            let again = directory.path().join(format!("again-{wait_ms}"));
            back_up(&to, &again);
        }
    }
    assert!(interrupted > 0, "{finished} were quicker than the signal");

    // One that fails by itself takes what it made away.
    let before = names(directory.path());
    let log = setup.data_dir.join("shard-000/wal/0000000001.wal");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[4096 + 70] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let said = refusal(&["backup", "--data-dir", text(&setup.data_dir), "--to", text(&directory.path().join("none"))]);
    assert!(said.contains("block"), "{said}");
    assert_eq!(names(directory.path()), before);
}

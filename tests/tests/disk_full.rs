//! A full disk: new work is refused, accepted work goes on, and all is well when there is room again.
//!
//! Needs a small file system of its own: a loop mount where mounting is permitted. Where it is not, the test says so and
//! fails, since a check that silently does nothing is none.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use taskmaster_client::{Client, Code, Error, State, Task, Worker};

use crate::process::{Setup, directory};

/// An ext4 file system in a file, unmounted when dropped.
pub(crate) struct Volume {
    pub(crate) at: PathBuf,
}

fn command(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is missing ({error}): install e2fsprogs and mount"));
    assert!(
        output.status.success(),
        "{program} {}: {}; this test mounts a small file system and needs root (CAP_SYS_ADMIN)",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Volume {
    pub(crate) fn new(directory: &Path, mib: u64) -> Self {
        let image = directory.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let at = directory.join("disk");
        std::fs::create_dir(&at).unwrap();
        command("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        command("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { at }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: the node's descriptors may linger for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Takes all the room there is but `left` bytes.
pub(crate) fn fill(volume: &Path, left: u64) -> PathBuf {
    let ballast = volume.join("ballast");
    let stat = rustix::fs::statvfs(volume).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let file = std::fs::File::create(&ballast).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free.saturating_sub(left)).unwrap();
    file.sync_all().unwrap();
    ballast
}

/// Why a call was refused, also if its time ran out during a later try.
fn refused(error: &Error) -> Option<Code> {
    match error {
        Error::Timeout { refusal: Some(refusal), .. } => Some(refusal.code),
        other => other.code(),
    }
}

async fn impatient(setup: &Setup) -> Client {
    Client::builder().call_timeout(Duration::from_secs(10)).connect(setup.address.to_string()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_new_work_serves_the_rest_and_recovers() {
    let directory = directory();
    let volume = Volume::new(directory.path(), 320);
    let mut setup = Setup::new(&directory);
    setup.data_dir = volume.at.join("data");
    let mut node = setup.start();
    let client = impatient(&setup).await;
    let early = client.submit(Task::new("keep").queue("q").payload("early")).await.unwrap();

    let ballast = fill(&volume.at, 8 << 20);
    let mut kept = Vec::new();
    let until = Instant::now() + Duration::from_secs(60);
    let refusal = loop {
        match client.submit(Task::new("keep").queue("q").payload(vec![1; 256 << 10])).await {
            Ok(outcome) => kept.push(outcome.id),
            Err(error) => break error,
        }
        assert!(Instant::now() < until, "{} submissions and the disk is never full: {}", kept.len(), node.log());
    };
    assert_eq!(refused(&refusal), Some(Code::DiskFull), "{refusal}; {}", node.log());

    // What was accepted can be looked at and completed.
    assert_eq!(client.task(early.id).await.unwrap().state, State::Ready);
    let worker = Worker::builder(&client).queue("q").handler("keep", |_| async { Ok("done") }).start().await.unwrap();
    assert_eq!(client.result_within(early.id, Duration::from_secs(20)).await.unwrap().unwrap().state, State::Succeeded);
    assert_eq!(refused(&client.submit(Task::new("keep").queue("q")).await.unwrap_err()), Some(Code::DiskFull));

    std::fs::remove_file(ballast).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let late = loop {
        match client.submit(Task::new("keep").queue("q").payload("late")).await {
            Ok(outcome) => break outcome.id,
            Err(error) => assert!(Instant::now() < until, "room came back, and still: {error}; {}", node.log()),
        }
    };
    for id in kept.into_iter().chain([late]) {
        let outcome = client.result_within(id, Duration::from_secs(20)).await.unwrap();
        assert_eq!(outcome.unwrap().state, State::Succeeded);
    }
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
    assert!(node.terminate().success(), "{}", node.log());
}

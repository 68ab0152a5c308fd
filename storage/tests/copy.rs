//! Copies of a shard's files: of one that is written all along, of one that is damaged.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "shard_files/small.rs"]
mod small;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use glommio::{LocalExecutorBuilder, Placement};
use small::{IDENTITY, config};
use taskmaster_storage::copy::{copy_shard, read_shard};
use taskmaster_storage::recovery;
use taskmaster_storage::snapshot::{self, ChunkTag, Info, SnapshotFile, snapshot_path};
use taskmaster_storage::wal::driver::Wal;
use taskmaster_storage::wal::segments::segment_path;
use taskmaster_storage::wal::{ApplyError, LogEnd, Record};

const COPIES: usize = 30;

/// How many records there were: each says how many came before it.
#[derive(Default, Debug, PartialEq, Eq)]
struct Count(u64);

impl snapshot::Sink for Count {
    fn begin(&mut self, _info: &Info) -> Result<(), ApplyError> {
        self.0 = 0;
        Ok(())
    }

    fn chunk(&mut self, _tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError> {
        self.0 = u64::from_le_bytes(bytes.try_into()?);
        Ok(())
    }
}

impl recovery::Sink for Count {
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        if record.stamp != self.0 {
            return Err(format!("record {} comes after {}", record.stamp, self.0).into());
        }
        self.0 += 1;
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<Count, taskmaster_storage::copy::Error> {
    copy_shard(from, to, IDENTITY, Count::default, &mut |_| {})
}

/// Writes records, with several writes under way, and snapshots, until it is told to stop or has written `records_max`.
fn write(dir: &Path, records_max: u64, stop: &Arc<AtomicBool>, acknowledged: &Arc<AtomicU64>) {
    let (dir, stop, acknowledged) = (dir.to_path_buf(), Arc::clone(stop), Arc::clone(acknowledged));
    let body = move || async move {
        let wal = Wal::open(&dir.join("wal"), config(), IDENTITY, 1, LogEnd::fresh()).await.unwrap();
        let task = glommio::spawn_local(Rc::clone(&wal).run(|_| ())).detach();
        for stamp in 0..records_max {
            let len = usize::try_from(stamp * 997 % 20_000).unwrap();
            let position = wal.append(1, stamp, &[&vec![3; len]]).unwrap();
            if stamp % 8 == 7 {
                wal.wait_durable(position.seq).await.unwrap();
                acknowledged.store(stamp + 1, Ordering::SeqCst);
            }
            if stamp % 120 == 119 {
                let info = Info { identity: IDENTITY, seq: position.seq, term: 1, stamp };
                let mut file = SnapshotFile::create(&dir, &info).unwrap();
                file.chunk(ChunkTag(5), &(stamp + 1).to_le_bytes()).unwrap();
                file.finish().unwrap();
                if let Some(covered) = snapshot::prune(&dir).unwrap() {
                    wal.retire(covered);
                }
            }
            if stop.load(Ordering::SeqCst) {
                break;
            }
        }
        wal.close();
        task.await.unwrap().unwrap();
    };
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20);
    executor.spawn(body).unwrap().join().unwrap();
}

/// A shard that was written and closed, with so many records.
fn written(dir: &Path, records: u64) {
    write(dir, records, &Arc::default(), &Arc::default());
}

#[test]
fn copies_of_a_log_that_is_written_retired_and_snapshotted_meanwhile_have_all_that_was_acknowledged() {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("shard");
    std::fs::create_dir_all(from.join("wal")).unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&from, u64::MAX, &stop, &acknowledged));
        let mut last = 0;
        for number in 0..COPIES {
            // Each one after something new: also when it is written slowly.
            while acknowledged.load(Ordering::SeqCst) == last && !writer.is_finished() {
                std::thread::yield_now();
            }
            last = acknowledged.load(Ordering::SeqCst);
            let to = temp.path().join(format!("copy-{number}"));
            let count = copy(&from, &to).unwrap();
            assert!(count.0 >= last, "copy {number} has {count:?}, and {last} were acknowledged before");
            let mut again = Count::default();
            read_shard(&to, IDENTITY, &mut again).unwrap();
            assert_eq!(again, count);
        }
        stop.store(true, Ordering::SeqCst);
    });
}

/// Names and bytes of all files of a shard.
fn content(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = [dir.to_path_buf(), dir.join("wal")]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_copy_has_one_snapshot_and_the_log_behind_it_and_leaves_its_source_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("shard"), temp.path().join("copy"));
    std::fs::create_dir_all(from.join("wal")).unwrap();
    written(&from, 500);
    let before = content(&from);
    assert_eq!(copy(&from, &to).unwrap(), Count(500));
    assert!(content(&from) == before);
    let newest = snapshot::list(&from).unwrap()[0];
    assert_eq!(snapshot::list(&to).unwrap(), [newest]);
    assert!(content(&to).len() < before.len(), "segments that hold nothing are left out");
}

#[test]
fn a_damaged_newest_snapshot_gives_way_to_the_older_one() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("shard"), temp.path().join("copy"));
    std::fs::create_dir_all(from.join("wal")).unwrap();
    written(&from, 500);
    let seqs = snapshot::list(&from).unwrap();
    std::fs::write(snapshot_path(&from, seqs[0]), "damaged").unwrap();
    assert_eq!(copy(&from, &to).unwrap(), Count(500));
    assert_eq!(snapshot::list(&to).unwrap(), [seqs[1]]);
    std::fs::write(snapshot_path(&from, seqs[1]), "damaged").unwrap();
    std::fs::remove_dir_all(&to).unwrap();
    assert!(copy(&from, &to).is_err(), "the log does not reach back to its beginning");
}

#[test]
fn a_log_that_is_damaged_gives_an_error_and_never_a_shorter_copy() {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("shard");
    std::fs::create_dir_all(from.join("wal")).unwrap();
    written(&from, 100);
    let path = segment_path(&from.join("wal"), 1);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&path, bytes).unwrap();
        let to = temp.path().join(format!("copy-{at}"));
        match copy(&from, &to) {
            Ok(count) => assert_eq!(count, Count(100), "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 30, "{refused} of 60 refused: the rest is padding");
}

//! Log and snapshots on real files: what a shard wrote comes back, through orderly ends, damage and retirement.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "shard_files/small.rs"]
mod small;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use glommio::{LocalExecutorBuilder, Placement};
use small::{IDENTITY, config};
use taskmaster_storage::recovery::{self, Shard};
use taskmaster_storage::snapshot::{self, BackgroundSnapshot, ChunkTag, Info, SnapshotFile, snapshot_path};
use taskmaster_storage::wal::blocking::Log;
use taskmaster_storage::wal::driver::{Error, SpaceState, Wal, recover_dir};
use taskmaster_storage::wal::segments::segment_path;
use taskmaster_storage::wal::{AppendError, ApplyError, Config, LogEnd, Record, ScanParams};

/// The state of the tests: a sum per stamp.
#[derive(Default, Debug, PartialEq, Eq)]
struct Ledger {
    begun: usize,
    entries: BTreeMap<u64, u32>,
}

impl snapshot::Sink for Ledger {
    fn begin(&mut self, _info: &Info) -> Result<(), ApplyError> {
        self.begun += 1;
        self.entries.clear();
        Ok(())
    }

    fn chunk(&mut self, tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError> {
        assert_eq!(bytes.as_ptr().align_offset(16), 0);
        let (key, value) = bytes.split_at(8);
        assert_eq!(tag, ChunkTag(5));
        self.entries.insert(u64::from_le_bytes(key.try_into()?), u32::from_le_bytes(value[..4].try_into()?));
        Ok(())
    }
}

impl recovery::Sink for Ledger {
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        if self.entries.insert(record.stamp, record.kind).is_some() {
            return Err(format!("record {} comes twice", record.stamp).into());
        }
        Ok(())
    }
}

fn expected(count: u64) -> BTreeMap<u64, u32> {
    (0..count).map(|stamp| (stamp, u32::try_from(stamp % 7).unwrap())).collect()
}

fn write_snapshot(dir: &Path, seq: u64, count: u64) {
    let info = Info { identity: IDENTITY, seq, term: 1, stamp: 0 };
    let mut file = SnapshotFile::create(dir, &info).unwrap();
    for (stamp, kind) in expected(count) {
        let mut bytes = stamp.to_le_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_le_bytes());
        file.chunk(ChunkTag(5), &bytes).unwrap();
    }
    file.finish().unwrap();
}

/// Writes `count` records, snapshots after each third, and closes. Returns the seqs of the snapshots.
fn write_shard(dir: &Path, count: u64) -> Vec<u64> {
    let wal_dir = dir.join("wal");
    let (mut log, _) = Log::open(&wal_dir, config(), ScanParams::whole(IDENTITY), 1, |_| Ok(())).unwrap();
    let mut snapshots = Vec::new();
    for stamp in 0..count {
        log.append(u32::try_from(stamp % 7).unwrap(), stamp, &[&[9; 3000]]).unwrap();
        if stamp % 5 == 4 {
            log.flush().unwrap();
        }
        if (stamp + 1) % (count / 3) == 0 && snapshots.len() < 2 {
            let seq = log.flush().unwrap();
            write_snapshot(dir, seq, stamp + 1);
            snapshots.push(seq);
        }
    }
    log.close().unwrap();
    snapshots
}

fn recover(dir: &Path) -> Result<(Ledger, Shard), recovery::Error> {
    let mut ledger = Ledger::default();
    let shard = recovery::recover(dir, &dir.join("wal"), IDENTITY, &mut ledger)?;
    Ok((ledger, shard))
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_shard_comes_back_from_its_newest_snapshot_and_the_log_behind_it() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = write_shard(temp.path(), 300);
    let (ledger, shard) = recover(temp.path()).unwrap();
    assert_eq!(ledger.entries, expected(300));
    assert_eq!(shard.snapshot.unwrap().seq, snapshots[1]);
    assert_eq!(shard.log.records, 100);
    assert!(shard.log.closed && shard.log.torn.is_none() && shard.rejected.is_empty());
}

#[test]
fn a_damaged_newest_snapshot_gives_way_to_the_older_one_with_a_warning() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = write_shard(temp.path(), 300);
    let newest = snapshot_path(temp.path(), snapshots[1]);
    let len = std::fs::metadata(&newest).unwrap().len();
    for at in [0, 9, 30, 64, 70, usize::try_from(len).unwrap() / 2, usize::try_from(len).unwrap() - 20] {
        flip(&newest, at);
        let (ledger, shard) = recover(temp.path()).unwrap();
        assert_eq!(ledger.entries, expected(300), "byte {at}");
        assert_eq!(shard.snapshot.unwrap().seq, snapshots[0]);
        assert_eq!(shard.rejected.len(), 1);
        flip(&newest, at);
    }
    let whole = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &whole[..whole.len() - 48]).unwrap();
    let (ledger, shard) = recover(temp.path()).unwrap();
    assert_eq!(ledger.entries, expected(300));
    assert!(shard.rejected[0].to_string().contains("ends before its footer"), "{:?}", shard.rejected);
}

#[test]
fn damaged_snapshots_over_a_retired_log_are_an_error_and_not_an_empty_shard() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = write_shard(temp.path(), 300);
    let wal_dir = temp.path().join("wal");
    let params = ScanParams { after_seq: snapshots[1], ..ScanParams::whole(IDENTITY) };
    let (mut log, _) = Log::open(&wal_dir, config(), params, 2, |_| Ok(())).unwrap();
    assert!(log.retire(snapshots[0]).unwrap() > 0);
    log.close().unwrap();
    assert_eq!(recover(temp.path()).unwrap().0.entries, expected(300));
    flip(&snapshot_path(temp.path(), snapshots[1]), 100);
    assert_eq!(recover(temp.path()).unwrap().0.entries, expected(300));
    flip(&snapshot_path(temp.path(), snapshots[0]), 100);
    let error = recover(temp.path()).unwrap_err().to_string();
    assert!(error.contains("log begins with block") && error.contains("damaged snapshot"), "{error}");
}

#[test]
fn an_older_snapshot_is_no_excuse_for_a_log_that_ends_early() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = write_shard(temp.path(), 300);
    flip(&snapshot_path(temp.path(), snapshots[1]), 100);
    let wal_dir = temp.path().join("wal");
    let mut number = 3;
    while segment_path(&wal_dir, number).exists() {
        std::fs::remove_file(segment_path(&wal_dir, number)).unwrap();
        number += 1;
    }
    let error = recover(temp.path()).unwrap_err().to_string();
    assert!(error.contains("a snapshot covers the log up to block"), "{error}");
}

#[test]
fn an_unfinished_snapshot_is_ignored_and_pruned() {
    let temp = tempfile::tempdir().unwrap();
    let snapshots = write_shard(temp.path(), 300);
    let info = Info { identity: IDENTITY, seq: 9999, term: 1, stamp: 0 };
    let unfinished = SnapshotFile::create(temp.path(), &info).unwrap();
    std::mem::forget(unfinished);
    write_snapshot(temp.path(), 3, 1);
    assert_eq!(snapshot::list(temp.path()).unwrap(), [snapshots[1], snapshots[0], 3]);
    assert_eq!(snapshot::prune(temp.path()).unwrap(), Some(snapshots[0]));
    assert_eq!(snapshot::list(temp.path()).unwrap(), [snapshots[1], snapshots[0]]);
    let left = std::fs::read_dir(temp.path()).unwrap().count();
    assert_eq!(left, 3, "two snapshots and the log");
}

#[test]
fn a_strange_file_among_the_segments_is_named() {
    let temp = tempfile::tempdir().unwrap();
    write_shard(temp.path(), 3);
    std::fs::write(temp.path().join("wal/copy.wal"), "x").unwrap();
    let error = recover(temp.path()).unwrap_err().to_string();
    assert!(error.contains("copy.wal"), "{error}");
}

/// Runs `body` on a glommio executor with a small registered memory.
fn on_glommio<F: Future<Output = ()> + 'static>(body: impl FnOnce() -> F + Send + 'static) {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20);
    executor.spawn(move || async move { body().await }).unwrap().join().unwrap();
}

#[test]
fn the_driver_acknowledges_in_order_and_what_it_acknowledged_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_path_buf();
    on_glommio(move || async move {
        let wal = Wal::open(&dir, config(), IDENTITY, 1, LogEnd::fresh()).await.unwrap();
        let heard = Rc::new(std::cell::Cell::new(0));
        let hears = Rc::clone(&heard);
        let run = glommio::spawn_local(Rc::clone(&wal).run(move |durable| {
            assert!(durable > hears.get());
            hears.set(durable);
        }));
        let task = run.detach();
        for stamp in 0..400u64 {
            let len = usize::try_from(stamp * 37 % 5000).unwrap();
            let kind = u32::try_from(stamp % 7).unwrap();
            let position = loop {
                match wal.append(kind, stamp, &[&vec![1; len / 2], &vec![2; len - len / 2]]) {
                    Ok(position) => break position,
                    Err(AppendError::Full { .. }) => wal.wait_durable(wal.durable_seq() + 1).await.unwrap(),
                    Err(error) => panic!("{error}"),
                }
            };
            if stamp % 10 == 0 {
                wal.wait_durable(position.seq).await.unwrap();
                assert!(heard.get() >= position.seq);
            }
        }
        wal.close();
        assert_eq!(wal.append(0, 0, &[]), Err(AppendError::Closed));
        task.await.unwrap().unwrap();
        let stats = wal.stats();
        assert_eq!((stats.records, wal.unflushed_bytes(), wal.space_state()), (400, 0, SpaceState::Free));
        assert_eq!(stats.flushes, wal.durable_seq());
    });
    let mut ledger = Ledger::default();
    let recovered =
        recover_dir(temp.path(), ScanParams::whole(IDENTITY), |record| recovery::Sink::record(&mut ledger, record));
    assert_eq!(ledger.entries, expected(400));
    assert!(recovered.unwrap().closed);
}

#[test]
fn the_driver_reuses_retired_segments_and_snapshots_in_the_background() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_path_buf();
    on_glommio(move || async move {
        let wal_dir = dir.join("wal");
        for term in 1..=3 {
            let mut ledger = Ledger::default();
            let shard = recovery::recover(&dir, &wal_dir, IDENTITY, &mut ledger).unwrap();
            let start = u64::from(term - 1) * 300;
            assert_eq!(ledger.entries, expected(start));
            let wal = Wal::open(&wal_dir, config(), IDENTITY, term, shard.log.end).await.unwrap();
            let task = glommio::spawn_local(Rc::clone(&wal).run(|_| ())).detach();
            for stamp in start..start + 300 {
                let kind = u32::try_from(stamp % 7).unwrap();
                let position = wal.append(kind, stamp, &[&[3; 4000]]).unwrap();
                wal.wait_durable(position.seq).await.unwrap();
                if stamp % 60 != 59 {
                    continue;
                }
                let info = Info { identity: IDENTITY, seq: position.seq, term, stamp };
                let mut snapshot = BackgroundSnapshot::create(&dir, info).await.unwrap();
                for (stamp, kind) in expected(stamp + 1) {
                    let mut bytes = stamp.to_le_bytes().to_vec();
                    bytes.extend_from_slice(&kind.to_le_bytes());
                    snapshot.chunk(ChunkTag(5), bytes).await.unwrap();
                }
                snapshot.finish().await.unwrap();
                if let Some(covered) = snapshot::prune(&dir).unwrap() {
                    wal.retire(covered);
                }
            }
            wal.close();
            task.await.unwrap().unwrap();
            assert!(wal.stats().segments_reused > 0, "{:?}", wal.stats());
        }
        let segments = std::fs::read_dir(&wal_dir).unwrap().count();
        assert!(segments < 16, "{segments} segments for a log that is retired all along");
    });
    assert_eq!(recover(temp.path()).unwrap().0.entries, expected(900));
}

#[test]
fn a_full_disk_shows_in_the_space_state_while_prepared_segments_still_take_records() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_path_buf();
    on_glommio(move || async move {
        let full = Config { disk_reserve_bytes: u64::MAX, ..config() };
        let wal = Wal::open(&dir, full, IDENTITY, 1, LogEnd::fresh()).await.unwrap();
        let task = glommio::spawn_local(Rc::clone(&wal).run(|_| ())).detach();
        let mut last = wal.append(1, 0, &[&[1; 30_000]]).unwrap();
        while wal.space_state() == SpaceState::Free {
            wal.wait_durable(last.seq).await.unwrap();
            glommio::timer::sleep(std::time::Duration::from_millis(1)).await;
        }
        for stamp in 1..10 {
            last = wal.append(1, stamp, &[&[1; 30_000]]).unwrap();
            wal.wait_durable(last.seq).await.unwrap();
        }
        while wal.append(1, 99, &[&[1; 30_000]]).is_ok() {}
        assert!(matches!(wal.append(1, 99, &[&[1; 30_000]]), Err(AppendError::Full { .. })));
        let covered = wal.durable_seq();
        wal.retire(covered);
        wal.wait_durable(last.seq + 8).await.unwrap();
        assert_eq!(wal.space_state(), SpaceState::DiskFull);
        wal.close();
        let error = task.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    });
}

#[test]
fn a_segment_that_cannot_be_made_ends_the_log_with_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_path_buf();
    on_glommio(move || async move {
        let wal = Wal::open(&dir, config(), IDENTITY, 1, LogEnd::fresh()).await.unwrap();
        std::fs::create_dir(dir.join("0000000003.unfinished")).unwrap();
        let task = glommio::spawn_local(Rc::clone(&wal).run(|_| ())).detach();
        wal.append(1, 1, &[&[1; 3000]]).unwrap();
        assert!(task.await.unwrap().is_err());
        assert_eq!(wal.append(1, 1, &[]), Err(AppendError::Closed));
        assert!(wal.wait_durable(1000).await.is_err());
    });
}

#[test]
fn the_log_works_where_direct_io_is_refused_or_memory_backs_the_files() {
    let Ok(shm) = tempfile::tempdir_in("/dev/shm") else { return };
    let dir = shm.path().to_path_buf();
    on_glommio(move || async move {
        let wal = Wal::open(&dir, config(), IDENTITY, 1, LogEnd::fresh()).await.unwrap();
        let task = glommio::spawn_local(Rc::clone(&wal).run(|_| ())).detach();
        for stamp in 0..200 {
            let position = wal.append(u32::try_from(stamp % 7).unwrap(), stamp, &[&[1; 3000]]).unwrap();
            wal.wait_durable(position.seq).await.unwrap();
        }
        wal.close();
        task.await.unwrap().unwrap();
        let mut ledger = Ledger::default();
        let params = ScanParams::whole(IDENTITY);
        recover_dir(&dir, params, |record| recovery::Sink::record(&mut ledger, record)).unwrap();
        assert_eq!(ledger.entries, expected(200));
    });
}

//! The data directory: who holds it, on what file system, direct I/O, room, and how fast an append is durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Check;
use crate::config::Config;
use crate::output::human_bytes;

/// Alignment of direct I/O, in bytes: fits every common device.
const BLOCK_BYTES: usize = 4_096;
/// Blocks of the probe file, written round and round.
const PROBE_BLOCKS: u64 = 256;
/// How long appends are measured.
const MEASURE_TIME: Duration = Duration::from_millis(500);
/// Durable appends per second below which a warning is due: a spinning disk, or a network volume.
const FLUSHES_PER_S_MIN: f64 = 200.0;

/// Magic numbers of file systems worth a name (`man statfs`).
const FILE_SYSTEMS: &[(i64, &str)] = &[
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x2FC1_2FC1, "zfs"),
    (0xF2F5_2010, "f2fs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
    (0x794C_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0x517B, "smb"),
    (0xFF53_4D42, "cifs"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
];

/// Every check of the data directory.
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let place = existing_ancestor(&config.node.data_dir);
    let mut checks = vec![data_dir(&config.node.data_dir, &place), file_system(&place), free_space(config, &place)];
    checks.extend(probe(&place));
    checks
}

/// The directory itself, or the nearest one above it that exists.
fn existing_ancestor(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|folder| folder.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// Whether a node holds the directory, and whether it is ours to write.
fn data_dir(wanted: &Path, place: &Path) -> Check {
    const NAME: &str = "data_dir";
    let shown = wanted.display();
    if rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_err() {
        return Check::fail(
            NAME,
            format!("{} cannot be written by this user.", place.display()),
            "Give the directory to the user that runs the node, or set node.data_dir to another one.",
        );
    }
    if !wanted.exists() {
        return Check::ok(NAME, format!("{shown} does not exist and will be created."));
    }
    if is_locked(wanted) {
        return Check::warn(
            NAME,
            format!("{shown} is in use by a running node."),
            "Nothing, if that node is the one you mean; a second one needs its own node.data_dir.",
        );
    }
    Check::ok(NAME, format!("{shown} is free."))
}

/// Whether a running node holds the directory's lock file. Looking takes a shared lock for an instant.
pub(super) fn is_locked(data_dir: &Path) -> bool {
    let Ok(file) = File::open(data_dir.join(LOCK_FILE)) else { return false };
    matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

/// Name of the lock file in a data directory.
const LOCK_FILE: &str = "lock";

/// Name of the file system a path is on.
pub(crate) fn file_system_name(place: &Path) -> io::Result<String> {
    let magic = rustix::fs::statfs(place)?.f_type;
    let known = FILE_SYSTEMS.iter().find(|&&(number, _)| number == magic);
    Ok(known.map_or_else(|| format!("unknown (0x{magic:x})"), |&(_, name)| name.to_owned()))
}

fn file_system(place: &Path) -> Check {
    const NAME: &str = "file_system";
    match file_system_name(place) {
        Err(error) => Check::warn(NAME, format!("The file system cannot be told: {error}."), "Check the mount."),
        Ok(name) if name == "tmpfs" || name == "ramfs" => Check::warn(
            NAME,
            format!("{} is on {name}: all tasks are lost when the machine stops.", place.display()),
            "Set node.data_dir to a directory on a real disk.",
        ),
        Ok(name) if ["nfs", "smb", "cifs", "9p", "fuse"].contains(&name.as_str()) => Check::warn(
            NAME,
            format!("{} is on {name}: each commit waits for the network.", place.display()),
            "Set node.data_dir to a directory on a local disk.",
        ),
        Ok(name) => Check::ok(NAME, format!("{} is on {name}.", place.display())),
    }
}

fn free_space(config: &Config, place: &Path) -> Check {
    const NAME: &str = "free_space";
    let shards = u64::try_from(config.shard_count()).unwrap_or(u64::MAX);
    let ahead = u64::from(config.wal.segments_ahead) + 1;
    let needed = (config.wal.snapshot_after.0.saturating_mul(2))
        .saturating_add(config.wal.segment_size.0.saturating_mul(ahead))
        .saturating_mul(shards);
    let free = match rustix::fs::statvfs(place) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return Check::warn(NAME, format!("Free space cannot be told: {error}."), "Check the mount."),
    };
    let message =
        format!("{} are free; the log and snapshots take up to about {}.", human_bytes(free), human_bytes(needed));
    if free < config.wal.segment_size.0.saturating_mul(ahead).saturating_mul(shards) {
        return Check::fail(NAME, message, "Make room, or choose a smaller wal.segment_size.");
    }
    if free < needed {
        return Check::warn(NAME, message, "Make room, or choose a smaller wal.snapshot_after.");
    }
    Check::ok(NAME, message)
}

/// Direct I/O and durable appends on a file of our own.
fn probe(place: &Path) -> [Check; 2] {
    const DIRECT: &str = "direct_io";
    const FLUSH: &str = "flush";
    let path = place.join(format!(".taskmaster-doctor-{}", std::process::id()));
    let direct = prepare(&path, libc::O_DIRECT | libc::O_DSYNC);
    let direct_check = match &direct {
        Ok(_) => Check::ok(DIRECT, "Direct I/O (O_DIRECT) works."),
        Err(error) => Check::warn(
            DIRECT,
            format!("Direct I/O is refused ({error}): writes go through the page cache."),
            "Use ext4 or xfs on a block device for the data directory.",
        ),
    };
    let measured = direct.or_else(|_| prepare(&path, libc::O_DSYNC)).and_then(|file| appends_per_s(&file));
    let _leftover = std::fs::remove_file(&path);
    let flush_check = match measured {
        Ok(rate) if rate < FLUSHES_PER_S_MIN => Check::warn(
            FLUSH,
            format!("The disk makes {rate:.0} appends per second durable, one after the other."),
            "Expect high latency; put the data directory on an SSD.",
        ),
        Ok(rate) => {
            Check::ok(FLUSH, format!("The disk makes {rate:.0} appends per second durable, one after the other."))
        }
        Err(error) => Check::fail(
            FLUSH,
            format!("A durable write into {} failed: {error}.", place.display()),
            "Check the free space, the mount and the kernel log.",
        ),
    };
    [direct_check, flush_check]
}

/// A file of zeros, so that the measured writes change no metadata, opened with these flags.
fn prepare(path: &Path, flags: i32) -> io::Result<File> {
    let zeros = vec![0; BLOCK_BYTES * usize::try_from(PROBE_BLOCKS).expect("a small constant")];
    std::fs::write(path, zeros)?;
    File::open(path)?.sync_all()?;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    write_block(&file, 0)?;
    Ok(file)
}

/// One block at a block-aligned offset, out of block-aligned memory.
fn write_block(file: &File, index: u64) -> io::Result<()> {
    let memory = vec![0x5A_u8; 2 * BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = memory.get(start..start + BLOCK_BYTES).ok_or_else(|| io::Error::other("no aligned block in memory"))?;
    file.write_all_at(block, index % PROBE_BLOCKS * BLOCK_BYTES as u64)
}

fn appends_per_s(file: &File) -> io::Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < MEASURE_TIME {
        write_block(file, u64::from(count))?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_missing_data_directory_is_fine_and_its_nearest_ancestor_is_probed() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("a/b");
        assert_eq!(existing_ancestor(&wanted), folder.path());
        assert_eq!(data_dir(&wanted, folder.path()).status, Status::Ok);
    }

    #[test]
    fn a_held_lock_is_seen_and_a_free_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_locked(folder.path()));
        let holder = File::create(folder.path().join(LOCK_FILE)).unwrap();
        assert!(!is_locked(folder.path()));
        holder.lock().unwrap();
        assert!(is_locked(folder.path()));
    }

    #[test]
    fn memory_file_systems_draw_a_warning() {
        if file_system_name(Path::new("/dev/shm")).is_ok_and(|name| name == "tmpfs") {
            assert_eq!(file_system(Path::new("/dev/shm")).status, Status::Warn);
        }
    }

    #[test]
    fn a_directory_without_room_fails() {
        let mut config = Config::default();
        config.wal.segment_size = crate::config::ByteSize(u64::MAX / 8);
        assert_eq!(free_space(&config, Path::new("/")).status, Status::Fail);
    }
}

//! `taskmaster state backup` and `state verify`: the data directory of a node, running or not, as a backup that can be checked, in a
//! directory or an object store.
//!
//! The node takes no part in it: its files are read (`storage/src/copy.rs`), and each shard's copy is recovered once before the
//! backup counts. Nothing has the backup's name before all of it is durable.

pub(super) mod manifest;
pub(super) mod store;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use taskmaster_engine::Positions;
use taskmaster_storage::copy::copy_shard;
use taskmaster_storage::datadir::{DataDir, META, Meta, shard_dir};
use taskmaster_storage::recovery;
use taskmaster_storage::snapshot::{self, ChunkTag, Info};
use taskmaster_storage::wal::segments::sync_dir;
use taskmaster_storage::wal::{ApplyError, Record};
use tempfile::TempDir;

use self::manifest::{Manifest, Position, data_dir};
use self::store::{Location, Outgoing, Store, until_stopped};
use crate::cli::progress::Progress;
use crate::cli::{Exit, Failure};
use crate::config;
use crate::output::{Output, human_bytes, iso_time};
use crate::workers::now_us;

/// Arguments of `state backup`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to: a directory that does not exist, or a place in an object store that has no objects
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    to: Location,
    /// Where the copy for an object store is until it is there [default: beside the data directory]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Which data directory.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Data directory, instead of the configured one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration of the node
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
}

impl Place {
    /// The directory, and the cluster's name if a configuration says it.
    pub(super) fn resolve(&self) -> Result<(PathBuf, Option<String>), Failure> {
        let config = config::load(self.config.as_deref())?.config;
        let name = self.config.is_some().then(|| config.cluster.name.clone());
        Ok((self.data_dir.clone().unwrap_or(config.node.data_dir), name))
    }
}

/// Reads a shard's files for its positions.
struct Scan(Positions);

impl snapshot::Sink for Scan {
    fn begin(&mut self, _info: &Info) -> Result<(), ApplyError> {
        self.0 = Positions::default();
        Ok(())
    }

    fn chunk(&mut self, tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError> {
        Ok(self.0.chunk(tag.0, bytes)?)
    }
}

impl recovery::Sink for Scan {
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        Ok(self.0.record(record.kind, record.bytes)?)
    }
}

/// A directory that gets its name when it is whole, and goes when it is dropped before.
pub(super) struct Unfinished {
    folder: TempDir,
    to: PathBuf,
}

impl Unfinished {
    /// Of a directory that must not exist yet.
    pub(super) fn new(to: &Path) -> Result<Self, Failure> {
        if to.symlink_metadata().is_ok() {
            return Err(Failure::usage(format!("{} exists: name a directory that does not", to.display())));
        }
        let to = std::path::absolute(to)?;
        let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
            return Err(Failure::usage(format!("{} is no name for a directory", to.display())));
        };
        std::fs::create_dir_all(parent)
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", parent.display())))?;
        let made = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".unfinished")
            .tempdir_in(parent)
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", parent.display())))?;
        Ok(Self { folder: made, to })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it its name, durably.
    pub(super) fn finish(self) -> Result<PathBuf, Failure> {
        let Self { folder, to } = self;
        std::fs::rename(folder.path(), &to)
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", to.display())))?;
        // What it would remove has another name now.
        let _moved = folder.keep();
        sync_dir(to.parent().unwrap_or(Path::new("/")))?;
        Ok(to)
    }
}

/// Bytes of a shard's files: of these at most so many are copied.
fn size_of(dir: &Path) -> u64 {
    let entries =
        [dir.to_path_buf(), dir.join("wal")].into_iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten();
    let files = entries.filter_map(|entry| entry.ok()?.metadata().ok()).filter(std::fs::Metadata::is_file);
    files.map(|file| file.len()).sum()
}

/// Carries `state backup` out.
pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let (root, cluster_name) = arguments.place.resolve()?;
    let failed = |error: taskmaster_storage::datadir::Error| Failure::new(Exit::Failed, error.to_string());
    let Some(meta) = DataDir::peek(&root).map_err(failed)? else {
        return Err(Failure::new(Exit::NotFound, format!("{} is no data directory of a node", root.display())));
    };
    let (manifest, to) = match &arguments.to {
        Location::Directory(to) => {
            let unfinished = Unfinished::new(to)?;
            let manifest = make(&root, &meta, cluster_name, unfinished.path())?;
            (manifest, unfinished.finish()?.display().to_string())
        }
        Location::Bucket(address) => {
            let (address, scratch) = (address.clone(), scratch_near(&root, arguments.scratch.as_deref())?);
            until_stopped(move |stop| {
                let outgoing = Outgoing::new(&address, stop)?;
                let manifest = make(&root, &meta, cluster_name, scratch.path())?;
                let to = outgoing.send(scratch.path(), &manifest)?;
                Ok((manifest, to))
            })?
        }
    };
    report(&manifest, &to, output)?;
    Ok(Exit::Success)
}

/// A directory for copies that are needed only until the command ends: in this one, or beside a data directory.
pub(super) fn scratch_near(data_dir: &Path, named: Option<&Path>) -> Result<TempDir, Failure> {
    let data_dir = std::path::absolute(data_dir)?;
    let place = named.or(data_dir.parent()).unwrap_or(Path::new("/"));
    let made = tempfile::Builder::new().prefix(".taskmaster.").suffix(".scratch").tempdir_in(place);
    made.map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", place.display())))
}

/// Makes a whole backup in an empty directory.
fn make(root: &Path, meta: &Meta, cluster_name: Option<String>, to: &Path) -> Result<Manifest, Failure> {
    let begun_at = iso_time(now_us());
    let copied = copy(root, meta, to)?;
    if copied.partitions.is_empty() {
        let sentence = format!("{} has no replica of any partition: there is nothing to back up", root.display());
        return Err(Failure::new(Exit::Failed, sentence));
    }
    let positions = copied.partitions.iter().map(|(&partition, reached)| Position {
        partition,
        term: reached.term,
        position: reached.index,
        time: iso_time(reached.time_us),
    });
    let manifest = Manifest {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        begun_at,
        made_at: iso_time(now_us()),
        cluster: (copied.cluster != 0).then(|| format!("{:032x}", copied.cluster)),
        cluster_name,
        directory: format!("{:032x}", meta.id),
        shards: meta.shards,
        partitions: meta.partitions,
        positions: positions.collect(),
        files: Vec::new(),
    };
    manifest.write(to, &mut |_| {})
}

/// Copies everything that a restore needs into a new folder; how far the partitions are there.
fn copy(root: &Path, meta: &Meta, backup: &Path) -> Result<Positions, Failure> {
    let data = data_dir(backup);
    std::fs::create_dir(&data)?;
    let description = data.join(META);
    std::fs::copy(root.join(META), &description)
        .and_then(|_| std::fs::File::open(&description)?.sync_all())
        .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", root.join(META).display())))?;
    let total = (0..meta.shards).map(|shard| size_of(&shard_dir(root, shard))).sum();
    let mut progress = Progress::new("backup", total, false);
    let mut done = 0;
    let mut all = Positions::default();
    for shard in 0..meta.shards {
        let (from, to) = (shard_dir(root, shard), shard_dir(&data, shard));
        let mut on_bytes = |bytes| {
            done += bytes;
            progress.set(done, || format!("shard {shard}, {}", human_bytes(done)));
        };
        let begin = || Scan(Positions::default());
        let Scan(found) = copy_shard(&from, &to, meta.identity(shard), begin, &mut on_bytes)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        all.cluster = all.cluster.max(found.cluster);
        all.partitions.extend(found.partitions);
    }
    sync_dir(&data)?;
    progress.finish();
    Ok(all)
}

fn report(manifest: &Manifest, at: &str, output: Output) -> Result<(), Failure> {
    let bytes = manifest.bytes();
    if output.is_json() {
        return Ok(output.json(&json!({
            "backup": at,
            "cluster": manifest.cluster,
            "cluster_name": manifest.cluster_name,
            "begun_at": manifest.begun_at,
            "made_at": manifest.made_at,
            "bytes": bytes,
            "files": manifest.files.len(),
            "partitions": manifest.partitions,
            "positions": manifest.positions,
        }))?);
    }
    let mut text = format!(
        "{} of {} partitions, begun at {}, {} in {} files: {}\n",
        manifest.positions.len(),
        manifest.partitions,
        manifest.begun_at,
        human_bytes(bytes),
        manifest.files.len(),
        at
    );
    for position in &manifest.positions {
        text.push_str(&format!(
            "  partition {:>4} at position {}, {}\n",
            position.partition, position.position, position.time
        ));
    }
    if manifest.absent() > 0 {
        text.push_str("this node has not all partitions: a restore needs backups of other nodes as well\n");
    }
    Ok(output.text(&text)?)
}

/// Reads a backup and checks it as a whole; if a directory is named, its files are copied there.
pub(super) fn checked(store: &Store, copies: Option<&Path>) -> Result<Manifest, Failure> {
    let (manifest, present) = Manifest::read(store)?;
    let label = if copies.is_some() { "download" } else { "verify" };
    let mut progress = Progress::new(label, manifest.bytes(), false);
    let mut done = 0;
    let verified = manifest.verify(store, &present, copies, &mut |bytes| {
        done += bytes;
        progress.set(done, || human_bytes(done));
    });
    progress.finish();
    verified.map(|()| manifest)
}

/// Carries `state verify` out.
pub(super) fn verify(location: &Location, output: Output) -> Result<Exit, Failure> {
    let store = Store::open(location)?;
    report(&checked(&store, None)?, &store.to_string(), output)?;
    Ok(Exit::Success)
}

//! `taskmaster state restore --from DIR|s3://BUCKET/PREFIX`: partitions come back from the backups of one or several nodes, of each partition the
//! replica that came furthest, into a data directory of a new node that is a cluster by itself.
//!
//! Invariants: every byte of a backup was checked before it is used; the new directory gets its name when it is whole and durable;
//! a partition that no backup has, or one that does not come as far as its manifest says, ends the restore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use taskmaster_engine::{Config, META_GROUP, Reached, Shard, SnapshotStep, tag};
use taskmaster_protocol::FrameBuffer;
use taskmaster_storage::copy::read_shard;
use taskmaster_storage::datadir::{DataDir, Meta, shard_dir};
use taskmaster_storage::snapshot::{ChunkTag, Info, SnapshotFile};
use tempfile::TempDir;

use super::Arguments;
use super::backup::manifest::{Manifest, Position, data_dir};
use super::backup::store::{Location, Store};
use super::backup::{Unfinished, checked, scratch_near};
use crate::cli::left::failed;
use crate::cli::progress::Progress;
use crate::cli::{Exit, Failure};
use crate::node::random_id;
use crate::output::{Output, iso_time};
use crate::reachable::node_id;
use crate::shard_loop::recovery::Rebuild;
use crate::workers::now_us;

/// A checked backup.
struct Source {
    store: Store,
    /// Its files, if they were in an object store.
    copies: Option<TempDir>,
    manifest: Manifest,
    meta: Meta,
}

impl Source {
    /// The data directory in it.
    fn data_dir(&self) -> PathBuf {
        data_dir(match (&self.copies, &self.store) {
            (Some(copies), _) => copies.path(),
            (None, Store::Directory(root)) => root,
            (None, Store::Bucket(_)) => unreachable!("it was copied when it was checked"),
        })
    }
}

/// Carries it out.
pub(super) fn run(backups: &[Location], arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let to = match &arguments.data_dir {
        Some(dir) => dir.clone(),
        None => arguments.database.config()?.node.data_dir,
    };
    let unfinished = Unfinished::new(&to)?;
    let sources = backups.iter().map(|backup| open(backup, &to)).collect::<Result<Vec<Source>, Failure>>()?;
    let chosen = choose(&sources)?;
    let meta = Meta { id: random_id(), shards: sources[0].meta.shards, partitions: sources[0].meta.partitions };
    let dir = DataDir::open_or_create(unfinished.path(), &meta).map_err(failed)?;
    let restored = fill(&dir, &sources, &chosen)?;
    drop(dir);
    let to = unfinished.finish()?;
    report(&sources, &chosen, &restored, meta.id.max(1), &to, output)?;
    Ok(Exit::Success)
}

fn open(location: &Location, near: &Path) -> Result<Source, Failure> {
    let store = Store::open(location)?;
    let copies = match store {
        Store::Directory(_) => None,
        Store::Bucket(_) => Some(scratch_near(near, None)?),
    };
    let manifest = checked(&store, copies.as_ref().map(TempDir::path))?;
    let mut source = Source { store, copies, manifest, meta: Meta { id: 0, shards: 0, partitions: 0 } };
    let found = DataDir::peek(&source.data_dir()).map_err(failed)?;
    let (shards, partitions) = (source.manifest.shards, source.manifest.partitions);
    let meta = found.filter(|meta| meta.shards == shards && meta.partitions == partitions);
    source.meta = meta.ok_or_else(|| failed(format!("{}: its data is not what its manifest says", source.store)))?;
    Ok(source)
}

/// Of each partition the backup in which it came furthest, and how far.
fn choose(sources: &[Source]) -> Result<BTreeMap<u16, (usize, Position)>, Failure> {
    let first = &sources[0];
    let mut chosen: BTreeMap<u16, (usize, Position)> = BTreeMap::new();
    for (number, source) in sources.iter().enumerate() {
        let (ours, theirs) = (&first.manifest, &source.manifest);
        if ours.cluster != theirs.cluster || ours.partitions != theirs.partitions {
            let (one, other) = (&first.store, &source.store);
            return Err(Failure::usage(format!("{one} and {other} are backups of different clusters")));
        }
        for at in &source.manifest.positions {
            let known = chosen.get(&at.partition).map(|(_, known)| (known.term, known.position));
            if known.is_none_or(|known| (at.term, at.position) > known) {
                chosen.insert(at.partition, (number, at.clone()));
            }
        }
    }
    let missing =
        (0..first.meta.partitions).find(|number| u16::try_from(*number).is_ok_and(|p| !chosen.contains_key(&p)));
    match missing {
        None => Ok(chosen),
        Some(partition) => Err(Failure::new(
            Exit::NotFound,
            format!("partition {partition} is in none of these backups: add --from with that of a node which had it"),
        )),
    }
}

/// What a shard of the lost node is rebuilt with: as the new node, with the lost one's number of shards.
fn shard_config(source: &Source, shard: u32, directory: u128) -> Result<Config, Failure> {
    let partitions = u16::try_from(source.meta.partitions).map_err(failed)?;
    let mut config = Config::standalone(node_id(directory), partitions);
    config.number = u16::try_from(shard).map_err(failed)?;
    // The node says at its first start where it is reached.
    config.node.client_ports = (0..source.meta.shards).map(|shard| 7_700 + u16::try_from(shard).unwrap_or(0)).collect();
    Ok(config)
}

/// Rebuilds each shard of the lost nodes and writes what is chosen of it into the new one's snapshots.
fn fill(
    dir: &DataDir,
    sources: &[Source],
    chosen: &BTreeMap<u16, (usize, Position)>,
) -> Result<BTreeMap<u16, Reached>, Failure> {
    let shards = dir.meta().shards;
    let create = |shard| {
        let info = Info { identity: dir.identity(shard), seq: 0, term: 0, stamp: 0 };
        SnapshotFile::create(&dir.shard_dir(shard), &info).map_err(failed)
    };
    let mut files = (0..shards).map(create).collect::<Result<Vec<SnapshotFile>, Failure>>()?;
    let mut progress = Progress::new("restore", chosen.len() as u64, false);
    let mut restored = BTreeMap::new();
    for (number, source) in sources.iter().enumerate() {
        for shard in 0..source.meta.shards {
            let config = shard_config(source, shard, dir.meta().id)?;
            let mut rebuild = Rebuild::new(|| Shard::new(config.clone(), now_us()), None);
            let from = shard_dir(&source.data_dir(), shard);
            read_shard(&from, source.meta.identity(shard), &mut rebuild).map_err(failed)?;
            let wanted = |group: u16| chosen.get(&group).is_some_and(|(of, _)| *of == number);
            let reached = rebuild.shard.found_anew(dir.meta().id.max(1), wanted).map_err(failed)?;
            for (&partition, at) in &reached {
                let said = chosen.get(&partition).map(|(_, said)| (said.term, said.position));
                if said != Some((at.term, at.index)) {
                    let sentence = "came to another position than its backup says: the backup cannot be used";
                    return Err(failed(format!("partition {partition} {sentence}")));
                }
            }
            write(&mut rebuild.shard, number == 0, &mut files)?;
            restored.extend(reached);
            progress.set(restored.len() as u64, || format!("{} of {} partitions", restored.len(), chosen.len()));
        }
    }
    if let Some(missing) = chosen.keys().find(|partition| !restored.contains_key(partition)) {
        let sentence = "did not come back from the backup that says it has it: the backup cannot be used";
        return Err(failed(format!("partition {missing} {sentence}")));
    }
    files.into_iter().try_for_each(|file| file.finish().map(|_| ()).map_err(failed))?;
    progress.finish();
    Ok(restored)
}

/// Writes a shard's groups into the snapshots of the new shards that are their homes. The cluster's map is written once.
fn write(shard: &mut Shard, with_map: bool, files: &mut [SnapshotFile]) -> Result<(), Failure> {
    let mut chunk = FrameBuffer::new();
    let mut home = None;
    shard.snapshot_begin();
    loop {
        match shard.snapshot_next(&mut chunk) {
            SnapshotStep::Chunk(what) => {
                if what == tag::HEAD {
                    let group = u16::from_le_bytes([chunk[0], chunk[1]]);
                    home = match group {
                        META_GROUP => with_map.then_some(0),
                        group => Some(usize::from(group) % files.len()),
                    };
                }
                if let Some(home) = home {
                    files[home].chunk(ChunkTag(what), &chunk).map_err(failed)?;
                }
            }
            SnapshotStep::End => return Ok(()),
            SnapshotStep::Wait | SnapshotStep::Broken => unreachable!("nobody else writes this shard"),
        }
    }
}

fn report(
    sources: &[Source],
    chosen: &BTreeMap<u16, (usize, Position)>,
    restored: &BTreeMap<u16, Reached>,
    cluster: u128,
    to: &Path,
    output: Output,
) -> Result<(), Failure> {
    let row = |(partition, at): (&u16, &Reached)| {
        let from = chosen.get(partition).map_or(0, |(of, _)| *of);
        (*partition, *at, &sources[from])
    };
    if output.is_json() {
        let partitions: Vec<_> = restored
            .iter()
            .map(row)
            .map(|(partition, at, from)| {
                json!({
                    "partition": partition,
                    "position": at.index,
                    "time": iso_time(at.time_us),
                    "from": from.store.to_string(),
                })
            })
            .collect();
        return Ok(output.json(&json!({
            "data_dir": to.display().to_string(),
            "cluster": sources[0].manifest.cluster,
            "new_cluster": format!("{cluster:032x}"),
            "partitions": partitions,
        }))?);
    }
    let mut text = format!("{} partitions are restored in {}\n", restored.len(), to.display());
    for (partition, at, from) in restored.iter().map(row) {
        text.push_str(&format!("  partition {partition:>4} to position {}, {}", at.index, iso_time(at.time_us)));
        text.push_str(&if sources.len() > 1 { format!(", from {}\n", from.store) } else { "\n".to_owned() });
    }
    text.push_str("what was acknowledged after these positions is not there; it is a new cluster, of one node\n");
    Ok(output.text(&text)?)
}

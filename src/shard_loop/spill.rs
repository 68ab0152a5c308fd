//! Where payloads and results go that leave memory: extents are given to the engine ahead of need, and taken back.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use glommio::timer::sleep;
use taskmaster_engine::Shard;
use taskmaster_engine::arena::{EXTENT_BYTES, EXTENTS_MAX};
use taskmaster_net::wake::Bell;
use taskmaster_storage::offload::offload;
use taskmaster_storage::{spill, wal};

use super::ShardLoop;

/// Segments of the log that find room on a disk that is too full for more to be spilled.
const SEGMENTS_LEFT: u64 = 8;
/// Pause after the disk had no room.
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// A shard's spill file.
pub(crate) struct Spill {
    file: spill::Spill,
    /// Rung when the engine wants an extent, or has one too many.
    due: Bell,
}

impl Spill {
    /// A file in `dir` for at most `bytes_max`, which leaves the log room for so many segments of its own beside its reserve.
    pub(super) fn open(dir: &Path, bytes_max: u64, log: &wal::Config) -> anyhow::Result<Self> {
        let bytes_max = bytes_max.min((EXTENTS_MAX * EXTENT_BYTES) as u64);
        let reserve_bytes = log.disk_reserve_bytes + SEGMENTS_LEFT * log.segment_bytes;
        let file = spill::Spill::open(dir, EXTENT_BYTES, bytes_max, reserve_bytes);
        let file = file.with_context(|| format!("the spill file in {} cannot be made", dir.display()))?;
        Ok(Self { file, due: Bell::default() })
    }

    /// Demotes what a shard that is being brought back has too much of. Without room, it stays in memory for now.
    pub(super) fn relieve(&self, shard: &mut Shard) {
        while shard.demote() {
            if shard.wants_extent() {
                let Ok(Some(extent)) = self.file.extent() else { return };
                shard.give_extent(Box::new(extent));
            }
        }
    }
}

impl ShardLoop {
    /// Starts what serves the engine with extents, where there are some.
    pub(super) fn start_spill(self: &Rc<Self>) {
        if let Some(spill) = &self.spill {
            glommio::spawn_local(Rc::clone(self).spill_task(Rc::clone(spill))).detach();
        }
    }

    /// Looks whether the engine wants an extent, or has one to spare.
    pub(super) fn watch_spill(&self) {
        let Some(spill) = &self.spill else { return };
        let shard = self.shard.borrow();
        if shard.wants_extent() || shard.spares_extent() {
            spill.due.ring();
        }
    }

    /// There is no room for the time being; said once until there is some again.
    async fn spill_ends(&self, was_told: &mut bool, why: &str) {
        if !core::mem::replace(was_told, true) {
            let shard = self.number;
            tracing::warn!(shard, "finished tasks that wait for PostgreSQL stay in memory from here on: {why}");
        }
        sleep(FULL_PAUSE).await;
    }

    /// Gives extents and takes them back.
    async fn spill_task(self: Rc<Self>, spill: Rc<Spill>) {
        let mut is_full = false;
        loop {
            spill.due.wait().await;
            while let Some(extent) = { self.shard.borrow_mut().take_extent() } {
                offload(move || drop(extent)).await;
            }
            while self.shard.borrow().wants_extent() {
                let file = spill.file.clone();
                match offload(move || file.extent()).await {
                    Ok(Some(extent)) => {
                        is_full = false;
                        self.shard.borrow_mut().give_extent(Box::new(extent));
                        self.turn.ring();
                    }
                    Ok(None) => self.spill_ends(&mut is_full, "postgres.spill_size is in use").await,
                    Err(error) => self.spill_ends(&mut is_full, &format!("the disk has no room: {error}")).await,
                }
            }
        }
    }
}

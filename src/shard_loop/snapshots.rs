//! Snapshots of a shard, written whenever its log has grown enough, in slices between other work.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use glommio::timer::sleep;
use taskmaster_engine::SnapshotStep;
use taskmaster_protocol::FrameBuffer;
use taskmaster_storage::offload::offload;
use taskmaster_storage::snapshot::{self, BackgroundSnapshot, ChunkTag, Info};

use super::{ShardLoop, now_us};

/// Pause while a replica's state is on its way to another node or from one.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How a snapshot ended.
enum Ending {
    /// Whole, with this many bytes.
    Written(u64),
    /// A replica was replaced meanwhile: it would be of no use.
    Broken,
}

impl ShardLoop {
    /// Writes a snapshot whenever one is due.
    pub(super) async fn snapshot_task(self: Rc<Self>, dir: PathBuf, identity: u64, term: u32) {
        loop {
            self.snapshot_due.wait().await;
            while !self.shard.borrow().can_snapshot() {
                sleep(BUSY_PAUSE).await;
            }
            let began_us = now_us();
            // Every durable block was given to the engine before this task runs again; with its turn ended, the state covers it.
            self.perform();
            let seq = self.wal.durable_seq();
            let stamp = self.shard.borrow().last_sequence();
            self.shard.borrow_mut().snapshot_begin();
            match self.write_snapshot(&dir, Info { identity, seq, term, stamp }).await {
                Ok(Ending::Written(bytes)) => {
                    self.snapshots.set(self.snapshots.get() + 1);
                    let took_ms = (now_us() - began_us) / 1_000;
                    tracing::info!(shard = self.number, seq, bytes, took_ms, "snapshot written");
                }
                Ok(Ending::Broken) => self.snapshot_due.ring(),
                Err(error) => {
                    tracing::error!(shard = self.number, "the snapshot failed, the log is kept instead: {error}");
                    self.shard.borrow_mut().snapshot_abandon();
                }
            }
        }
    }

    async fn write_snapshot(&self, dir: &Path, info: Info) -> Result<Ending, snapshot::Error> {
        let mut file = BackgroundSnapshot::create(dir, info).await?;
        let mut chunk = FrameBuffer::new();
        loop {
            let step = self.shard.borrow_mut().snapshot_next(&mut chunk);
            match step {
                SnapshotStep::Chunk(tag) => file.chunk(ChunkTag(tag), chunk.to_vec()).await?,
                SnapshotStep::Wait => sleep(BUSY_PAUSE).await,
                SnapshotStep::Broken => return Ok(Ending::Broken),
                SnapshotStep::End => break,
            }
        }
        let bytes = file.finish().await?;
        let dir = dir.to_path_buf();
        if let Some(covered) = offload(move || snapshot::prune(&dir)).await? {
            self.wal.retire(covered);
        }
        Ok(Ending::Written(bytes))
    }
}

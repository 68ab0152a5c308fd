//! What the scheduler learned survives a restart: read at the start, written now and then and at the end.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use glommio::timer::sleep;
use taskmaster_storage::model;
use taskmaster_storage::offload::offload;

use super::ShardLoop;

/// Between two writes, if something was learned.
const WRITE_EVERY: Duration = Duration::from_secs(60);

impl ShardLoop {
    /// Takes over what was learned before the start. What cannot be read is told of and learned anew.
    pub(super) fn restore_model(&self, dir: &Path) {
        match model::read(dir) {
            Ok(Some((version, bytes))) => {
                let cells = self.shard.borrow_mut().restore_model(version, &bytes);
                tracing::debug!(shard = self.number, cells, "what was learned about run times is taken over");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(shard = self.number, "run times are learned anew: {error}"),
        }
    }

    pub(super) async fn model_task(self: Rc<Self>, dir: PathBuf) {
        loop {
            sleep(WRITE_EVERY).await;
            self.save_model(&dir).await;
        }
    }

    /// Writes what was learned, if something was since the last time.
    pub(super) async fn save_model(&self, dir: &Path) {
        let Some(bytes) = self.shard.borrow_mut().save_model() else { return };
        let to = dir.to_path_buf();
        if let Err(error) = offload(move || model::write(&to, &bytes)).await {
            tracing::warn!(shard = self.number, "what was learned about run times is not saved: {error}");
        }
    }
}

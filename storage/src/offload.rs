//! Blocking work beside a shard: on glommio's blocking pool, with a wake-up that cannot be lost.
//!
//! glommio's pool announces a result through a flag that the executor raises just before it parks; a result that comes
//! in between is seen only at the next wake-up, which on an idle shard may be a lease or more away. So a short timer keeps
//! the executor turning while work is out.

use std::time::Duration;

use futures_lite::future::or;
use glommio::timer::sleep;

/// How often the executor looks for the result, which bounds how late it is seen.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Runs `work` off the executor's thread and returns its result.
pub async fn offload<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let turning = async {
        loop {
            sleep(LOOK_EVERY).await;
        }
    };
    or(glommio::executor().spawn_blocking(work), turning).await
}

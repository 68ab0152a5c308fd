//! From the command line's global options to a connected client, on a runtime of this thread.

use std::future::Future;
use std::time::Duration;

use taskmaster_client::Client;
use tokio::runtime;

use super::{Exit, Failure, Global};

/// Longest time of one call with all its repetitions.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a command's future to its end on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("the I/O runtime cannot start: {error}")))?;
    let answer = runtime.block_on(future);
    // A thread that still reads standard input must not hold up the end.
    runtime.shutdown_background();
    answer
}

/// Connects to the node that the global options name.
pub(crate) async fn connect(global: &Global) -> Result<Client, Failure> {
    connect_to(global.address(), global).await
}

/// Connects to this address with the global options otherwise.
pub(crate) async fn connect_to(address: &str, global: &Global) -> Result<Client, Failure> {
    let builder = Client::builder()
        .name(concat!("taskmaster ", env!("CARGO_PKG_VERSION")))
        .namespace(global.namespace.clone().unwrap_or_default())
        .call_timeout(CALL_TIMEOUT);
    Ok(builder.connect(address).await?)
}

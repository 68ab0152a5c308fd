//! Tests, and parts of them, in network namespaces.
//!
//! Where these cannot be made, the test says so and fails, since a check that silently does nothing is none.

use std::future::Future;

use taskmaster_bench::networks::enter;

/// Runs to the end, with all sockets in a namespace.
pub(crate) fn inside<T: Send, F: Future<Output = T>>(namespace: &str, make: impl FnOnce() -> F + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace).unwrap();
            let name = namespace.to_owned();
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().on_thread_start(move || enter(&name).unwrap()).build();
            runtime.unwrap().block_on(make())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

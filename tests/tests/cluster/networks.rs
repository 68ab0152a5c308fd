//! A network of one's own: a namespace for each node, and one for the clients with the bridge that joins them.
//!
//! Needs root and `ip`. Where it cannot be made, the test says so and fails, since a check that silently does nothing is none.

use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Named network namespaces with veth pairs to a bridge; removed when dropped.
pub(crate) struct Networks {
    hub: String,
    nodes: Vec<String>,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output =
        output.unwrap_or_else(|error| panic!("`ip` is missing ({error}): install iproute2 (scripts/setup --test)"));
    assert!(
        output.status.success(),
        "ip {arguments}: {}; this test makes network namespaces and needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

impl Networks {
    pub(crate) fn new(nodes: usize) -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("taskmaster-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let networks = Self {
            hub: format!("{prefix}-hub"),
            nodes: (0..nodes).map(|number| format!("{prefix}-n{}", number + 1)).collect(),
        };
        let hub = &networks.hub;
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link set lo up"));
        ip(&format!("-n {hub} link add bridge type bridge forward_delay 0"));
        ip(&format!("-n {hub} addr add 10.77.0.254/24 dev bridge"));
        ip(&format!("-n {hub} link set bridge up"));
        for (number, node) in networks.nodes.iter().enumerate() {
            let port = Self::port(number);
            ip(&format!("netns add {node}"));
            ip(&format!("-n {hub} link add {port} type veth peer name cable netns {node}"));
            ip(&format!("-n {hub} link set dev {port} master bridge up"));
            ip(&format!("-n {node} link set lo up"));
            ip(&format!("-n {node} addr add {}/24 dev cable", Self::host(number)));
            ip(&format!("-n {node} link set dev cable up"));
        }
        Arc::new(networks)
    }

    pub(crate) fn host(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(number + 1).unwrap())
    }

    /// A node's end of its cable at the bridge.
    fn port(number: usize) -> String {
        format!("port{}", number + 1)
    }

    pub(crate) fn hub(&self) -> &str {
        &self.hub
    }

    pub(crate) fn node(&self, number: usize) -> &str {
        &self.nodes[number]
    }

    /// Pulls a node's cable.
    pub(crate) fn cut(&self, number: usize) {
        ip(&format!("-n {} link set dev {} down", self.hub, Self::port(number)));
    }

    /// Puts it in again.
    pub(crate) fn heal(&self, number: usize) {
        ip(&format!("-n {} link set dev {} up", self.hub, Self::port(number)));
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in self.nodes.iter().chain([&self.hub]) {
            // With a namespace its devices go; one that was not made cannot be removed.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Moves the calling thread into a namespace.
fn enter(namespace: &str) {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Runs to the end, with all sockets in a namespace. For tests and for parts of them.
pub(crate) fn inside<T: Send, F: Future<Output = T>>(namespace: &str, make: impl FnOnce() -> F + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            let name = namespace.to_owned();
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().on_thread_start(move || enter(&name)).build();
            runtime.unwrap().block_on(make())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

//! Networks of one's own: a namespace for each node, and one for the clients with the bridge that joins them, so that a node's
//! cable can be pulled.
//!
//! Needs root and `ip`. The namespaces are removed when dropped; what lives in them lives on without a network.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Named network namespaces with veth pairs to a bridge.
#[derive(Debug)]
pub struct Networks {
    hub: String,
    nodes: Vec<String>,
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.context("network namespaces are made by `ip`: install iproute2")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}; making network namespaces needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

impl Networks {
    /// Networks for so many nodes, at most 99.
    ///
    /// # Errors
    /// When `ip` is missing or may not make them.
    pub fn new(nodes: u8) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure!(nodes < 100, "{nodes} networks are too many");
        let prefix = format!("taskmaster-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Whatever fails from here on, dropping removes what was made.
        let networks = Self {
            hub: format!("{prefix}-hub"),
            nodes: (1..=nodes).map(|number| format!("{prefix}-n{number}")).collect(),
        };
        let hub = &networks.hub;
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} link add bridge type bridge forward_delay 0"))?;
        ip(&format!("-n {hub} addr add 10.77.0.254/24 dev bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for (number, node) in networks.nodes.iter().enumerate() {
            let port = port(number);
            ip(&format!("netns add {node}"))?;
            ip(&format!("-n {hub} link add {port} type veth peer name cable netns {node}"))?;
            ip(&format!("-n {hub} link set dev {port} master bridge up"))?;
            ip(&format!("-n {node} link set lo up"))?;
            ip(&format!("-n {node} addr add {}/24 dev cable", Self::host(number)))?;
            ip(&format!("-n {node} link set dev cable up"))?;
        }
        Ok(networks)
    }

    /// The address of a node, counted from 0.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn host(number: usize) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(number + 1).expect("nodes are few")).into()
    }

    /// The namespace of the clients.
    #[must_use]
    pub fn hub(&self) -> &str {
        &self.hub
    }

    /// The namespaces of the nodes.
    #[must_use]
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Pulls a node's cable: nothing reaches it, and it reaches nothing.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, number: usize) -> Result<()> {
        ip(&format!("-n {} link set dev {} down", self.hub, port(number)))
    }

    /// Puts it in again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn heal(&self, number: usize) -> Result<()> {
        ip(&format!("-n {} link set dev {} up", self.hub, port(number)))
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

/// A node's end of its cable at the bridge.
fn port(number: usize) -> String {
    format!("port{}", number + 1)
}

/// Moves the calling thread into a namespace, and the threads and processes that it starts from then on.
///
/// # Errors
/// When there is no such namespace, or no permission.
pub fn enter(namespace: &str) -> Result<()> {
    let file = std::fs::File::open(format!("/run/netns/{namespace}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

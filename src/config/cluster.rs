//! What is right for the values of `[cluster]`, one by one and together.

use std::net::IpAddr;

use super::sections::name_like;
use super::{Config, Problem, ShardPorts};

/// A host name or an IP address, without a port.
pub(super) fn host(text: &str) -> Result<(), String> {
    let is_name = |text: &str| {
        text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    if text.parse::<IpAddr>().is_ok() || (is_name(text) && !text.is_empty() && !text.starts_with(['-', '.'])) {
        return Ok(());
    }
    Err(format!(
        "is \"{text}\", but must be a host name or an IP address without a port, such as \"n1.example\" or \"10.0.0.1\""
    ))
}

/// A host name or an IP address (IPv6 in brackets), and a port.
pub(super) fn host_and_port(text: &str) -> Result<(), String> {
    let refuse = || {
        format!("has \"{text}\", but needs a host and the port of [cluster] listen there, such as \"n1.example:7800\"")
    };
    let (name, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_bare_v6 = bare.is_none() && name.contains(':');
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    if is_bare_v6 || !is_port || host(bare.unwrap_or(name)).is_err() {
        return Err(refuse());
    }
    Ok(())
}

/// A name of a node or zone: short enough for the cluster's map.
pub(super) fn short_name(name: &str) -> Result<(), String> {
    let most = taskmaster_engine::cluster::NODE_NAME_BYTES_MAX;
    if name.len() > most {
        return Err(format!("has a name of {} bytes, but names of nodes and zones have at most {most}", name.len()));
    }
    name_like(name)
}

/// Each of them a host and a port.
pub(super) fn address_list(texts: &[String]) -> Result<(), String> {
    texts.iter().try_for_each(|text| host_and_port(text))
}

/// An odd number: of an even number of replicas the last one costs and saves nothing.
pub(super) fn odd(value: u16) -> Result<(), String> {
    if value % 2 == 1 {
        return Ok(());
    }
    Err(format!("is {value}, but must be odd: {value} replicas survive no more losses than {}", value - 1))
}

impl Config {
    /// Checks what a node of a cluster needs, across sections.
    pub(super) fn check_cluster(&self, problems: &mut Vec<Problem>) {
        let mut refuse = |message: String| problems.push(Problem::global(message));
        let cluster = &self.cluster;
        let shards = u32::try_from(self.shard_count()).unwrap_or(u32::MAX);
        let peer = u32::from(cluster.listen.port());
        if peer == 0 {
            refuse("cluster.listen has port 0, but other nodes must know the port: write it, such as 7800".to_owned());
        } else if peer + shards - 1 > 65_535 {
            refuse(format!(
                "cluster.listen has port {peer}, which leaves too few ports for {shards} shards, one each: take a lower one"
            ));
        }
        let client = u32::from(self.listen.address.port());
        let client_end = if self.listen.shard_ports == ShardPorts::Follow { client + shards } else { client };
        if client != 0 && peer <= client_end && client < peer + shards {
            refuse(format!(
                "cluster.listen takes the ports {peer} to {} and listen.address {client} to {client_end}: keep them apart",
                peer + shards - 1
            ));
        }
        let reaches_only_here = cluster.advertise.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            || (cluster.advertise.is_empty() && cluster.listen.ip().is_loopback());
        if self.listen.address.ip().is_loopback() && !reaches_only_here {
            refuse(format!(
                "listen.address is {}, which only this host reaches, but clients of a cluster must reach every node: set \
                 listen.address to \"0.0.0.0:{client}\", or cluster.listen to a loopback address for a cluster on one host",
                self.listen.address
            ));
        }
        let given = [&cluster.tls_ca, &cluster.tls_cert, &cluster.tls_key].map(Option::is_some);
        if given.contains(&true) && given.contains(&false) {
            refuse(
                "cluster.tls_ca, tls_cert and tls_key go together: give all three for TLS between nodes, or none"
                    .to_owned(),
            );
        }
    }
}

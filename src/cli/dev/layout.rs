//! Where each of several nodes on one machine listens, keeps its data, and what it gets of memory and cores. Pure but for the
//! search for free ports and a look at directories that exist.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use taskmaster_storage::datadir::DataDir;

use crate::cli::{Exit, Failure};
use crate::config::{ByteSize, Config, Memory, ShardPorts, core_count, memory_limit_bytes};

/// Ports between the first ports of two nodes, at the least.
const PORT_STEP_MIN: u16 = 10;
/// Ports between clients' and peers' first ports, at the least.
const PEER_OFFSET_MIN: u16 = 100;
/// Tries to find a free block of ports.
const PORT_TRIES: usize = 64;

/// How the ports of several nodes follow from the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    step: u16,
    peers: u16,
    end: u16,
}

impl Ports {
    fn new(nodes: u16, shards: u16) -> Self {
        let step = (shards + 1).next_multiple_of(PORT_STEP_MIN);
        let peers = (step * nodes).max(PEER_OFFSET_MIN);
        Self { step, peers, end: peers + step * nodes }
    }
}

/// Configurations of `nodes` nodes beneath `root`, named `n1`, `n2`...
///
/// # Errors
/// A data directory that cannot be read, or no free ports.
pub(in crate::cli) fn configs(base: &Config, root: &Path, nodes: u16) -> Result<Vec<Config>, Failure> {
    let name = |number: u16| format!("n{}", number + 1);
    let known = DataDir::peek(&root.join(name(0))).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let shards = match (base.node.shards, known) {
        (0, Some(meta)) => u16::try_from(meta.shards).unwrap_or(u16::MAX),
        (0, None) => shards_each(nodes).min(base.node.partitions),
        (shards, _) => shards,
    };
    let ports = Ports::new(nodes, shards);
    let mut first = base.listen.address;
    if first.port() == 0 {
        first = free_block(first, ports.end)?;
    }
    if u32::from(first.port()) + u32::from(ports.end) > 65_535 {
        return Err(Failure::usage(format!(
            "{nodes} nodes need {} ports from {first} on: take a lower one",
            ports.end
        )));
    }
    let at = |offset: u16| SocketAddr::new(first.ip(), first.port() + offset);
    let seeds: Vec<String> = (0..nodes).map(|number| at(ports.peers + number * ports.step).to_string()).collect();
    let make = |number: u16| {
        let mut config = base.clone();
        config.clustered = true;
        config.node.name = name(number);
        config.node.data_dir = root.join(name(number));
        config.node.shards = shards;
        config.listen.address = at(number * ports.step);
        config.listen.shard_ports = ShardPorts::Follow;
        config.cluster.node_name = name(number);
        config.cluster.listen = at(ports.peers + number * ports.step);
        config.cluster.seeds.clone_from(&seeds);
        config.limits.memory = Memory::Bytes(memory_each(base, nodes));
        if config.wal.segment_size == Config::default().wal.segment_size {
            config.wal.segment_size = ByteSize::mib(32);
        }
        config
    };
    Ok((0..nodes).map(make).collect())
}

/// The cores shared out.
pub(in crate::cli) fn shards_each(nodes: u16) -> u16 {
    u16::try_from(core_count() / usize::from(nodes)).unwrap_or(u16::MAX).max(1)
}

/// What is configured, or the machine's half shared out.
fn memory_each(base: &Config, nodes: u16) -> ByteSize {
    match base.limits.memory {
        Memory::Bytes(size) => size,
        Memory::Auto => ByteSize::mib((memory_limit_bytes() / (2 << 20) / u64::from(nodes)).max(64)),
    }
}

/// The first of `count` ports in a row that are free now.
fn free_block(address: SocketAddr, count: u16) -> Result<SocketAddr, Failure> {
    for _ in 0..PORT_TRIES {
        let first = TcpListener::bind(address)?.local_addr()?;
        let is_free = |offset: u16| {
            let port = first.port().checked_add(offset);
            port.is_some_and(|port| TcpListener::bind((first.ip(), port)).is_ok())
        };
        if (0..count).all(is_free) {
            return Ok(first);
        }
    }
    Err(Failure::new(Exit::Failed, format!("no {count} free ports in a row were found: choose them by --listen")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_ports_names_and_directories_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut base = Config::default();
        base.node.shards = 2;
        let configs = configs(&base, folder.path(), 3).unwrap();
        let text: Vec<String> = configs
            .iter()
            .map(|config| format!("{} {} {}", config.cluster.node_name, config.listen.address, config.cluster.listen))
            .collect();
        assert_eq!(
            text,
            [
                "n1 127.0.0.1:7700 127.0.0.1:7800",
                "n2 127.0.0.1:7710 127.0.0.1:7810",
                "n3 127.0.0.1:7720 127.0.0.1:7820"
            ]
        );
        for config in &configs {
            assert_eq!(config.cluster.seeds, ["127.0.0.1:7800", "127.0.0.1:7810", "127.0.0.1:7820"]);
            let mut problems = Vec::new();
            config.check_together(&mut problems);
            assert_eq!(problems, []);
        }
        assert_ne!(configs[0].node.data_dir, configs[1].node.data_dir);
    }

    #[test]
    fn many_shards_widen_the_steps_and_nothing_overlaps() {
        assert_eq!(Ports::new(9, 9), Ports { step: 10, peers: 100, end: 190 });
        assert_eq!(Ports::new(9, 10), Ports { step: 20, peers: 180, end: 360 });
    }

    #[test]
    fn ports_are_found_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut base = Config::default();
        base.node.shards = 1;
        base.listen.address.set_port(0);
        assert!(configs(&base, folder.path(), 2).unwrap()[0].listen.address.port() > 0);
        base.listen.address.set_port(65_400);
        assert!(configs(&base, folder.path(), 9).unwrap_err().to_string().contains("take a lower one"));
    }
}

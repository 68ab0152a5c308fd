//! Who a node is to others: its id, its name, and the host by which it is reached.
//!
//! It sends nothing: the address towards a seed is what the kernel's routes say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use taskmaster_protocol::NodeId;

use crate::config::Config;

/// The node's id: the lower half of its data directory's id, which is random and never zero as a whole.
pub(crate) fn node_id(directory: u128) -> NodeId {
    let half = |value: u128| u64::try_from(value & u128::from(u64::MAX)).expect("a half has 64 bits");
    let low = half(directory);
    NodeId(if low == 0 { half(directory >> 64).max(1) } else { low })
}

/// The node's name in its cluster.
pub(crate) fn node_name(config: &Config) -> String {
    if config.cluster.node_name.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.cluster.node_name.clone()
    }
}

/// `name:port` of a DNS name that may have a port of its own.
pub(crate) fn dns_target(name: &str, port: u16) -> String {
    let has_port = name.rsplit_once(':').is_some_and(|(host, port)| !host.contains(':') && port.parse::<u16>().is_ok());
    if has_port { name.to_owned() } else { format!("{name}:{port}") }
}

/// The host by which other nodes and clients reach this one. May look names up, so it blocks.
///
/// # Errors
/// A sentence: it cannot be known and must be configured.
pub(crate) fn host(config: &Config) -> Result<String, String> {
    let cluster = &config.cluster;
    if !cluster.advertise.is_empty() {
        return Ok(cluster.advertise.clone());
    }
    if !cluster.listen.ip().is_unspecified() {
        return Ok(cluster.listen.ip().to_string());
    }
    let mut targets = cluster.seeds.clone();
    if !cluster.dns.is_empty() {
        targets.push(dns_target(&cluster.dns, cluster.listen.port()));
    }
    let resolved = targets.iter().filter_map(|target| target.to_socket_addrs().ok()).flatten();
    resolved.filter_map(towards).next().map(|ip| ip.to_string()).ok_or_else(|| {
        format!(
            "cluster.listen is {}, which is every address, and no seed can be reached to see which one is meant: set \
             cluster.advertise to the host name or address by which other nodes and clients reach this one",
            cluster.listen
        )
    })
}

/// Where this process reaches what listens there: the loopback in place of "every address".
pub(crate) fn from_here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The address that packets to `target` would come from.
fn towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, seeds: &[&str]) -> Config {
        let mut config = Config { clustered: true, ..Config::default() };
        config.cluster.listen = listen.parse().unwrap();
        config.cluster.seeds = seeds.iter().map(|&seed| seed.to_owned()).collect();
        config
    }

    #[test]
    fn a_host_is_told_found_or_asked_for() {
        assert_eq!(host(&config("10.1.2.3:7800", &[])).unwrap(), "10.1.2.3");
        assert_eq!(host(&config("0.0.0.0:7800", &["127.0.0.1:7800"])).unwrap(), "127.0.0.1");
        assert!(host(&config("0.0.0.0:7800", &[])).unwrap_err().contains("set cluster.advertise"));
        let mut told = config("0.0.0.0:7800", &[]);
        told.cluster.advertise = "n1.example".to_owned();
        assert_eq!(host(&told).unwrap(), "n1.example");
    }

    #[test]
    fn ids_come_from_the_directory_and_are_never_zero() {
        assert_eq!(node_id((7 << 64) | 9), NodeId(9));
        assert_eq!(node_id(7 << 64), NodeId(7));
        assert_eq!(node_id(0), NodeId(1));
        assert_eq!(dns_target("nodes.example", 7_800), "nodes.example:7800");
        assert_eq!(dns_target("nodes.example:9", 7_800), "nodes.example:9");
    }
}

//! Those who do not belong: wrong names, other clusters, doubled names, garbage. Each is kept out with a sentence, in the log and
//! in `cluster status`, and the cluster goes on.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use taskmaster_client::{ClusterChange, Task};

use super::nodes::{Cluster, PEER_PORT, Place, until};
use super::probe::Probe;

impl Cluster {
    pub(crate) async fn is_kept_out(&self, stranger: usize) {
        assert_eq!(self.view().await.nodes.len(), 3, "{} was let in", self.nodes[stranger].name);
        let client = self.client().await;
        client.submit(Task::new("probe").queue("probe")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_kept_out_with_a_sentence() {
    let mut cluster = Cluster::start().await;
    a_node_of_a_cluster_with_another_name(&mut cluster).await;
    a_node_of_another_cluster(&mut cluster).await;
    a_node_whose_name_is_taken(&mut cluster).await;
    garbage(&cluster).await;
}

async fn a_node_of_a_cluster_with_another_name(cluster: &mut Cluster) {
    let stranger = cluster.add();
    cluster.nodes[stranger].set("name", "\"elsewhere\"");
    cluster.nodes[stranger].start();
    let words = ["a cluster with another name", "check its seeds"];
    cluster.logged(0, &words).await;
    cluster.problem(0, &words).await;
    cluster.logged(stranger, &words).await;
    cluster.problem(stranger, &words).await;
    cluster.problem(stranger, &["The node belongs to no cluster yet"]).await;
    cluster.is_kept_out(stranger).await;
    cluster.nodes[stranger].kill();
}

/// It was founded by itself and then given our nodes as seeds.
async fn a_node_of_another_cluster(cluster: &mut Cluster) {
    let stranger = cluster.add();
    let seeds = cluster.nodes[stranger].setup.more.clone();
    cluster.nodes[stranger].set("seeds", "[]");
    cluster.nodes[stranger].start();
    let probe = Probe::connect(cluster.nodes[stranger].address()).await.unwrap();
    probe.change(&ClusterChange::Bootstrap).await.unwrap();
    let node = &cluster.nodes[stranger];
    until("a cluster of one", Duration::from_secs(60), || async {
        node.view().await.is_some_and(|view| view.partitions.len() > 1)
    })
    .await;
    cluster.nodes[stranger].kill();
    cluster.nodes[stranger].setup.more = seeds;
    cluster.nodes[stranger].start();
    for number in [0, stranger] {
        let sentence = cluster.problem(number, &["another cluster"]).await;
        eprintln!("{}: {sentence}", cluster.nodes[number].name);
        cluster.logged(number, &["cluster"]).await;
    }
    cluster.is_kept_out(stranger).await;
    // It serves its own cluster meanwhile, and founds no second one.
    let probe = Probe::connect(cluster.nodes[stranger].address()).await.unwrap();
    let error = probe.change(&ClusterChange::Bootstrap).await.expect_err("it has one");
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
    cluster.nodes[stranger].kill();
}

async fn a_node_whose_name_is_taken(cluster: &mut Cluster) {
    let stranger = cluster.add();
    cluster.nodes[stranger].set("node_name", "\"n2\"");
    cluster.nodes[stranger].start();
    for number in [0, stranger] {
        let sentence = cluster.problem(number, &["n2", "name"]).await;
        eprintln!("{}: {sentence}", cluster.nodes[number].name);
    }
    cluster.is_kept_out(stranger).await;
    // Under a name of its own it may come, and go.
    cluster.nodes[stranger].kill();
}

async fn garbage(cluster: &Cluster) {
    let target = (cluster.place.host(1), PEER_PORT);
    let mut bytes = Vec::new();
    let mut state = 1u64;
    for _ in 0..4_096 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.push(state.to_be_bytes()[0]);
    }
    for length in [1, 16, 24, 100, 4_096] {
        let mut stream = TcpStream::connect(target).unwrap();
        // It may be closed before all was written.
        let _ = stream.write_all(&bytes[..length]);
    }
    let mut stream = TcpStream::connect(target).unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n");
    let Place::Loopback([a, b]) = cluster.place else { unreachable!("on the loopback device") };
    let socket = UdpSocket::bind((std::net::Ipv4Addr::new(127, a, b, 200), 0)).unwrap();
    for length in [0, 1, 7, 40, 1_400] {
        socket.send_to(&bytes[..length], target).unwrap();
    }
    let tcp = cluster.logged(1, &["a peer was refused"]).await;
    let udp = cluster.logged(1, &["127.", &format!("{a}.{b}.200"), "ignored"]).await;
    eprintln!("garbage: {tcp}\ngarbage: {udp}");
    cluster.problem(1, &[&format!("{a}.{b}.200"), "ignored"]).await;
    cluster.whole().await;
    assert_eq!(cluster.nodes.iter().filter(|node| node.process.is_some()).count(), 3);
    let client = cluster.client().await;
    client.submit(Task::new("probe").queue("probe")).await.unwrap();
}

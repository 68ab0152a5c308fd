//! A slow and lossy link: what the others send to one node comes late, their connections break, and packets are lost.
//!
//! The node is known to the others by the address of a proxy. Its own messages take the straight way, so the link is slow in
//! one direction, and every round trip over it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ledger::Load;
use super::nodes::{Cluster, PEER_PORT, Place};

const DELAY: Duration = Duration::from_millis(60);
/// Of so many packets one is lost.
const LOSS: u64 = 4;
/// Connections that are broken, one after the other.
const RESETS: usize = 4;

/// A way to one node, for TCP and for UDP.
struct Proxy {
    delay_ms: Arc<AtomicU64>,
    resets: watch::Sender<u32>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(from: IpAddr, to: SocketAddr) -> Self {
        let delay_ms = Arc::new(AtomicU64::new(0));
        let (resets, reset) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let listener = TcpListener::bind((from, PEER_PORT)).await.unwrap();
        tasks.spawn(streams(listener, to, Arc::clone(&delay_ms), reset));
        let socket = UdpSocket::bind((from, PEER_PORT)).await.unwrap();
        tasks.spawn(packets(socket, to, Arc::clone(&delay_ms)));
        Self { delay_ms, resets, _tasks: tasks }
    }

    fn slow(&self, delay: Duration) {
        self.delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Breaks every connection.
    fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }
}

async fn streams(listener: TcpListener, to: SocketAddr, delay_ms: Arc<AtomicU64>, reset: watch::Receiver<u32>) {
    let mut connections = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        // A node that is not there refuses through the proxy, too.
        let Ok(far) = TcpStream::connect(to).await else { continue };
        let (delay_ms, mut reset) = (Arc::clone(&delay_ms), reset.clone());
        connections.spawn(async move {
            reset.borrow_and_update();
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::select! {
                () = pass(near_read, far_write, &delay_ms) => {}
                () = pass(far_read, near_write, &delay_ms) => {}
                _ = reset.changed() => {}
            }
        });
    }
}

/// Passes bytes on in order, each of them late.
async fn pass(
    mut read: tokio::net::tcp::OwnedReadHalf,
    mut write: tokio::net::tcp::OwnedWriteHalf,
    delay_ms: &AtomicU64,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if sender.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

async fn packets(socket: UdpSocket, to: SocketAddr, delay_ms: Arc<AtomicU64>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 2_048];
    let mut count = 0;
    loop {
        let Ok((length, _)) = socket.recv_from(&mut buffer).await else { continue };
        let delay_ms = delay_ms.load(Ordering::Relaxed);
        count += 1;
        if delay_ms > 0 && count % LOSS == 0 {
            continue;
        }
        let (socket, packet) = (Arc::clone(&socket), buffer[..length].to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            // Who is not there hears nothing.
            let _ = socket.send_to(&packet, to).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_that_breaks_now_and_then_costs_nothing_but_time() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    let (own, known) = (cluster.place.host(2), cluster.place.host(102));
    // Clients take the straight way to the address by which all know the node.
    cluster.nodes[2].setup.address.set_ip(known);
    cluster.nodes[2].setup.more.push_str(&format!("advertise = \"{known}\"\n"));
    let proxy = Proxy::start(known, SocketAddr::from((own, PEER_PORT))).await;
    cluster.form().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    proxy.slow(DELAY);
    load.goes_on("over a slow link").await;
    for reset in 0..RESETS {
        proxy.reset();
        load.goes_on(&format!("after the link broke {} times", reset + 1)).await;
    }
    proxy.slow(Duration::ZERO);
    cluster.whole().await;
    load.goes_on("over a link that is mended").await;
    assert_eq!(load.failed(), Vec::<String>::new());
    load.settle("a slow link").await;
    cluster.agreed().await;
}

//! Batches between two nodes over loopback: an executor each, the receiver on another core where there is one. The floor is
//! the same bytes through two bare sockets and two threads.
//!
//! `stream` is the time per batch of 1 or 64 KiB, one batch a turn, as fast as the peer takes them; `round trip` is one
//! batch there and its answer back, where both sides may have to be woken.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glommio::timer::sleep;
use glommio::{LocalExecutorBuilder, Placement};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use taskmaster_net::listener::{Listener, reserve};
use taskmaster_net::peers::{Identity, PeerHandler, Peers, Sent, Tls, TlsFiles};
use taskmaster_net::wake::Bell;
use taskmaster_protocol::{FrameBuffer, NodeId};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
/// First byte of a batch that asks for an answer.
const ECHO: u8 = 1;
const SIZES: [usize; 2] = [1 << 10, 64 << 10];
/// Unsent bytes beyond which the sender lets the socket catch up.
const AHEAD_BYTES: usize = 1 << 20;

/// What the sending executor is asked to time.
struct Order {
    batches: u64,
    bytes: usize,
    round_trips: bool,
}

#[derive(Default)]
struct Owner {
    arrived: Arc<AtomicU64>,
    rung: Bell,
    answer: Cell<bool>,
    peers: RefCell<Option<Rc<Peers>>>,
    scratch: RefCell<FrameBuffer>,
}

impl PeerHandler for Owner {
    fn batch(&self, _: NodeId, _: u16, bytes: &[u8]) {
        self.answer.set(bytes[0] == ECHO);
        // One writer.
        self.arrived.store(self.arrived.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn turn_ended(&self) {
        self.rung.ring();
        if let Some(peers) = &*self.peers.borrow()
            && self.answer.replace(false)
        {
            let mut scratch = self.scratch.borrow_mut();
            scratch.resize(64, 0);
            assert_eq!(peers.send(A, 0, &mut scratch), Sent::Queued);
        }
    }

    fn connected(&self, _: NodeId) {}

    fn lost(&self, _: NodeId) {}
}

fn executor(core: usize) -> LocalExecutorBuilder {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    LocalExecutorBuilder::new(Placement::Fixed(core % cores))
        .io_memory(1 << 20)
        .preempt_timer(Duration::from_secs(1 << 20))
}

fn start(node: NodeId, own: SocketAddr, to: (NodeId, SocketAddr), owner: &Rc<Owner>, tls: Option<Tls>) -> Rc<Peers> {
    let cluster_name = "bench".to_owned();
    let identity = Identity { cluster_name, cluster: 1, node, node_name: format!("n{}", node.0), shard: 0, version: 1 };
    let peers = Peers::new(identity, tls);
    peers.start(Rc::clone(owner) as Rc<dyn PeerHandler>);
    let listener = Listener::bind(own).expect("the address is free");
    glommio::spawn_local(Rc::clone(&peers).accept(listener)).detach();
    peers.locate(to.0, 0, to.1);
    peers
}

/// TLS for both nodes: one authority, and a certificate for each.
fn certificates() -> [Option<Tls>; 2] {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |file: &str| folder.path().join(file);
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = key();
    std::fs::write(path("ca"), params.self_signed(&authority).expect("a certificate").pem()).expect("room");
    let issuer = Issuer::new(params, authority);
    ["n1", "n2"].map(|name| {
        let (params, key) = (CertificateParams::new(vec![name.to_owned()]).expect("a name"), key());
        std::fs::write(path("cert"), params.signed_by(&key, &issuer).expect("a certificate").pem()).expect("room");
        std::fs::write(path("key"), key.serialize_pem()).expect("room");
        let files = TlsFiles { ca: path("ca"), cert: path("cert"), key: path("key") };
        Some(Tls::load(&files, name).expect("good files"))
    })
}

/// Two nodes: the first carries out orders, for as long as there are any.
fn nodes(orders: Receiver<Order>, times: Sender<Duration>, [tls_a, tls_b]: [Option<Tls>; 2]) {
    let free = || reserve(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free");
    let (at_a, at_b) = (free(), free());
    let arrived = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&arrived);
    let receiver = move || async move {
        let owner = Rc::new(Owner { arrived: counted, ..Owner::default() });
        let peers = start(B, at_b, (A, at_a), &owner, tls_b);
        *owner.peers.borrow_mut() = Some(peers);
        std::future::pending::<()>().await;
    };
    executor(1).spawn(receiver).expect("an executor starts");
    let sender = move || async move {
        let owner = Rc::new(Owner::default());
        let peers = start(A, at_a, (B, at_b), &owner, tls_a);
        loop {
            // Not by blocking: a silent peer is given up.
            let Order { batches, bytes, round_trips } = match orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) => {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                }
                Err(TryRecvError::Disconnected) => return,
            };
            let start = Instant::now();
            if round_trips {
                for _ in 0..batches {
                    send(&peers, &owner, ECHO, bytes);
                    owner.rung.wait().await;
                }
            } else {
                stream(&peers, &owner, &arrived, batches, bytes).await;
            }
            times.send(start.elapsed()).expect("the bench waits for it");
        }
    };
    executor(0).spawn(sender).expect("an executor starts");
}

async fn stream(peers: &Rc<Peers>, owner: &Owner, arrived: &AtomicU64, batches: u64, bytes: usize) {
    let end = arrived.load(Ordering::Acquire) + batches;
    for _ in 0..batches {
        send(peers, owner, 0, bytes);
        while peers.unsent_bytes(B) > AHEAD_BYTES {
            sleep(Duration::from_micros(20)).await;
        }
    }
    while arrived.load(Ordering::Acquire) < end {
        sleep(Duration::from_micros(20)).await;
    }
}

fn send(peers: &Rc<Peers>, owner: &Owner, first: u8, bytes: usize) {
    let mut scratch = owner.scratch.borrow_mut();
    scratch.resize(bytes, 0);
    scratch[0] = first;
    assert_eq!(peers.send(B, 0, &mut scratch), Sent::Queued);
}

/// The same over two bare sockets and two threads: the peer answers the last byte of an order with a byte.
fn bare(batches: u64, bytes: usize, round_trips: bool) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let mut near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let mut far = listener.accept().expect("somebody connects").0;
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("a socket");
    }
    let total = batches * bytes as u64;
    let receiver = thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        let (mut seen, mut answered) = (0, 0);
        while seen < total {
            seen += far.read(&mut buffer).expect("a connection") as u64;
            let due = if round_trips { seen / bytes as u64 } else { seen / total };
            if due > answered {
                answered = due;
                far.write_all(&[0; 64]).expect("a connection");
            }
        }
    });
    let (batch, mut answer) = (vec![0; bytes], [0; 64]);
    let start = Instant::now();
    for _ in 0..batches {
        near.write_all(&batch).expect("a connection");
        if round_trips {
            near.read_exact(&mut answer).expect("a connection");
        }
    }
    if !round_trips {
        near.read_exact(&mut answer).expect("a connection");
    }
    let elapsed = start.elapsed();
    receiver.join().expect("it reads everything");
    elapsed
}

/// Starts two nodes and gives what times them.
fn timed(tls: [Option<Tls>; 2]) -> impl Fn(u64, usize, bool) -> Duration {
    let ((orders, to_do), (done, times)) = (channel(), channel());
    nodes(to_do, done, tls);
    move |batches, bytes, round_trips| {
        orders.send(Order { batches, bytes, round_trips }).expect("the sender runs");
        times.recv().expect("the sender answers")
    }
}

fn peers(c: &mut Criterion) {
    let (plain, tls) = (timed([None, None]), timed(certificates()));
    let mut group = c.benchmark_group("peers");
    group.sample_size(10);
    for bytes in SIZES {
        group.throughput(Throughput::Bytes(bytes as u64));
        let size = format!("{} KiB", bytes >> 10);
        for (name, round_trips) in [("stream", false), ("round trip", true)] {
            group.bench_function(BenchmarkId::new(name, &size), |b| {
                b.iter_custom(|batches| plain(batches, bytes, round_trips));
            });
            group.bench_function(BenchmarkId::new(format!("{name} tls"), &size), |b| {
                b.iter_custom(|batches| tls(batches, bytes, round_trips));
            });
            group.bench_function(BenchmarkId::new(format!("{name} floor"), &size), |b| {
                b.iter_custom(|batches| bare(batches, bytes, round_trips));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, peers);
criterion_main!(benches);

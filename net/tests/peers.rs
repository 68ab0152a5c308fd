//! Links between nodes over loopback: shards on executors of their own, peers that behave and peers that do not.

#[path = "peers/tls.rs"]
mod tls;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use glommio::timer::sleep;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use taskmaster_net::listener::{Listener, reserve};
use taskmaster_net::peers::{Identity, PeerHandler, Peers, Refused, Sent, Tls, UNSENT_BYTES_MAX};
use taskmaster_protocol::peer::{self, Kind, PEER_BODY_BYTES_MAX, PeerHello, Reason};
use taskmaster_protocol::{FrameBuffer, NodeId};

const A: NodeId = NodeId(0xA);
const B: NodeId = NodeId(0xB);
const C: NodeId = NodeId(0xC);
const DEADLINE: Duration = Duration::from_secs(30);

/// An executor as the shards of a node have it.
fn shard<F: Future<Output = ()> + 'static>(run: impl FnOnce() -> F + Send + 'static) -> ExecutorJoinHandle<()> {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .preempt_timer(Duration::from_secs(1 << 20))
        .spawn(run)
        .expect("an executor starts")
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited too long until {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

#[derive(Default)]
struct Seen {
    batches: Vec<(NodeId, u16, Vec<u8>)>,
    handed: usize,
    connected: Vec<NodeId>,
    lost: Vec<NodeId>,
}

#[derive(Default)]
struct Recorder {
    seen: RefCell<Seen>,
}

impl PeerHandler for Recorder {
    fn batch(&self, from: NodeId, shard: u16, bytes: &[u8]) {
        assert_eq!(bytes.as_ptr().align_offset(16), 0, "bodies can be used in place");
        self.seen.borrow_mut().batches.push((from, shard, bytes.to_vec()));
    }

    fn turn_ended(&self) {
        let mut seen = self.seen.borrow_mut();
        seen.handed = seen.batches.len();
    }

    fn connected(&self, node: NodeId) {
        self.seen.borrow_mut().connected.push(node);
    }

    fn lost(&self, node: NodeId) {
        self.seen.borrow_mut().lost.push(node);
    }
}

struct Node {
    peers: Rc<Peers>,
    recorder: Rc<Recorder>,
    address: SocketAddr,
}

impl Node {
    fn start(identity: Identity, address: SocketAddr) -> Self {
        Self::start_with(identity, address, None)
    }

    fn start_with(identity: Identity, address: SocketAddr, tls: Option<Tls>) -> Self {
        let (peers, recorder) = (Peers::new(identity, tls), Rc::new(Recorder::default()));
        peers.start(Rc::clone(&recorder) as Rc<dyn PeerHandler>);
        glommio::spawn_local(Rc::clone(&peers).accept(Listener::bind(address).expect("the address is free"))).detach();
        Self { peers, recorder, address }
    }

    fn knows(&self, node: NodeId, other: &Self) {
        self.peers.locate(node, 0, other.address);
    }

    fn send(&self, to: NodeId, bytes: &[u8]) -> Sent {
        self.peers.send(to, 0, &mut buffer(bytes))
    }

    fn batches(&self) -> usize {
        self.recorder.seen.borrow().handed
    }

    fn connected(&self) -> usize {
        self.recorder.seen.borrow().connected.len()
    }

    fn lost(&self) -> usize {
        self.recorder.seen.borrow().lost.len()
    }

    async fn refusal(&self) -> Refused {
        until("a refusal is listed", || !self.peers.refusals().is_empty()).await;
        self.peers.refusals().pop().expect("one is listed")
    }
}

fn buffer(bytes: &[u8]) -> FrameBuffer {
    let mut buffer = FrameBuffer::new();
    buffer.extend_from_slice(bytes);
    buffer
}

fn identity(node: NodeId) -> Identity {
    let cluster_name = "test".to_owned();
    Identity { cluster_name, cluster: 7, node, node_name: format!("n{:x}", node.0), shard: 0, version: 3 }
}

fn address() -> SocketAddr {
    reserve(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free")
}

/// Batch number `number`, of a size that varies.
fn numbered(number: u64) -> Vec<u8> {
    let more = if number.is_multiple_of(5) { number * 7_919 % 40_000 } else { 0 };
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..more).map(|at| at.to_le_bytes()[0]));
    bytes
}

#[test]
fn batches_arrive_whole_and_in_order_between_threads() {
    const BATCHES: u64 = 3_000;
    let (from, to) = (address(), address());
    let (listens, finished) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (ready, heard) = (Arc::clone(&listens), Arc::clone(&finished));
    let receiver = shard(move || async move {
        let node = Node::start(identity(B), to);
        ready.store(true, Ordering::Release);
        until("all batches arrived", || node.batches() as u64 == BATCHES).await;
        for (number, (node, shard, bytes)) in node.recorder.seen.borrow().batches.iter().enumerate() {
            assert_eq!((*node, *shard), (A, 0));
            assert!(*bytes == numbered(number as u64), "batch {number}");
        }
        assert_eq!(node.peers.stats().batches_received, BATCHES);
        heard.store(true, Ordering::Release);
    });
    let sender = shard(move || async move {
        let node = Node::start(identity(A), from);
        node.peers.locate(B, 0, to);
        // What waits for a dial that fails is gone.
        until("the receiver listens", || listens.load(Ordering::Acquire)).await;
        for number in 0..BATCHES {
            while node.send(B, &numbered(number)) == Sent::Dropped {
                sleep(Duration::from_millis(1)).await;
            }
        }
        until("the receiver has them", || finished.load(Ordering::Acquire)).await;
        assert_eq!(node.peers.unsent_bytes(B), 0);
    });
    receiver.join().unwrap();
    sender.join().unwrap();
}

#[test]
fn the_largest_batch_crosses_and_a_larger_one_is_dropped() {
    let both = shard(|| async {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        a.knows(B, &b);
        b.knows(A, &a);
        let large: Vec<u8> = (0..PEER_BODY_BYTES_MAX).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert_eq!(a.send(B, &large), Sent::Queued);
        assert_eq!(b.send(A, b"the other way"), Sent::Queued);
        until("both arrived", || b.batches() == 1 && a.batches() == 1).await;
        assert!(b.recorder.seen.borrow().batches[0].2 == large);
        assert_eq!(a.peers.send(B, 0, &mut buffer(&[large, vec![0]].concat())), Sent::Dropped);
        assert_eq!(a.peers.send(C, 0, &mut buffer(b"nobody knows C")), Sent::Dropped);
        assert_eq!(a.peers.stats().batches_dropped, 2);
    });
    both.join().unwrap();
}

#[test]
fn a_peer_that_comes_back_is_connected_again_and_was_lost_once() {
    let (from, to) = (address(), address());
    let (arrived, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let serve = |arrived: Arc<AtomicU64>, ended: Arc<AtomicBool>| {
        shard(move || async move {
            let node = Node::start(identity(B), to);
            // Connections in both directions: the end of both is still one loss.
            node.peers.locate(A, 0, from);
            let mut greeted = false;
            until("the test ends this peer", || {
                greeted |= node.batches() > 0 && node.send(A, b"hello back") == Sent::Queued;
                arrived.store(node.batches() as u64, Ordering::Release);
                ended.load(Ordering::Acquire) && greeted
            })
            .await;
            node.peers.stop();
            until("its tasks have ended", || Rc::strong_count(&node.peers) == 1).await;
        })
    };
    let (seen, stop) = (Arc::clone(&arrived), Arc::clone(&ended));
    let sender = shard(move || async move {
        let node = Node::start(identity(A), from);
        node.peers.locate(B, 0, to);
        for round in 1..=3 {
            let talk = || {
                let _ = node.send(B, b"are you there");
                node.connected() == round && seen.load(Ordering::Acquire) > 0 && node.batches() >= round
            };
            until("the peer answers", talk).await;
            stop.store(true, Ordering::Release);
            until("the peer is lost", || node.lost() == round).await;
            // Nobody listens, or somebody does again: a loss is not told twice.
            until("it was dialed in vain", || {
                let _ = node.send(B, b"are you there");
                node.peers.links()[0].trouble.is_some()
            })
            .await;
            assert_eq!(node.lost(), round);
        }
    });
    for _ in 0..3 {
        serve(Arc::clone(&arrived), Arc::clone(&ended)).join().unwrap();
        arrived.store(0, Ordering::Release);
        ended.store(false, Ordering::Release);
    }
    sender.join().unwrap();
}

#[test]
fn a_dial_that_is_refused_at_once_is_not_told_in_the_middle_of_the_senders_turn() {
    let test = shard(|| async {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        a.knows(B, &b);
        // Nobody listens for the other shard.
        a.peers.locate(B, 1, address());
        assert_eq!(a.send(B, b"are you there"), Sent::Queued);
        until("one shard is connected", || a.connected() == 1).await;
        {
            let _turn = a.recorder.seen.borrow_mut();
            assert_eq!(a.peers.send(B, 1, &mut buffer(b"and you")), Sent::Queued);
        }
        until("the loss is told after the turn", || a.lost() == 1).await;
    });
    test.join().unwrap();
}

/// Says hello as the node C to whoever dials, and gives the connection.
fn answer_hello(listener: &TcpListener) -> TcpStream {
    let mut stream = listener.accept().expect("somebody dials").0;
    let mut bytes = [0; 512];
    let mut filled = 0;
    let hello = loop {
        filled += stream.read(&mut bytes[filled..]).expect("a hello");
        if let Some((frame, _)) = peer::parse(&bytes[..filled]).expect("a frame") {
            break PeerHello::decode(frame.body).expect("a hello");
        }
    };
    let reply = PeerHello { node: C, to_node: hello.node, node_name: "nc".to_owned(), ..hello };
    let mut out = Vec::new();
    peer::encode(&mut out, Kind::HelloReply, 1, 0, &reply.encode());
    stream.write_all(&out).expect("a connection");
    stream
}

#[test]
fn a_peer_that_does_not_read_stalls_nobody_and_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address_of_c = listener.local_addr().unwrap();
    let sleeper = thread::spawn(move || answer_hello(&listener));
    let both = shard(move || async move {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        a.knows(B, &b);
        a.peers.locate(C, 0, address_of_c);
        let batch = vec![1; 256 << 10];
        assert_eq!(a.send(C, &batch), Sent::Queued);
        until("C is connected", || a.connected() == 1).await;
        let mut queued = 0;
        while a.send(C, &batch) == Sent::Queued {
            queued += 1;
            assert!(a.peers.unsent_bytes(C) <= UNSENT_BYTES_MAX);
        }
        assert!(queued >= UNSENT_BYTES_MAX / peer::stream_bytes(batch.len()) - 1, "the bound is used: {queued}");
        let (mut sent, mut slowest) = (0, Duration::ZERO);
        while a.lost() == 0 {
            let start = Instant::now();
            // Now and then the kernel's buffers still grow.
            let _ = a.send(C, &batch);
            assert_eq!(a.send(B, b"the shard goes on"), Sent::Queued);
            slowest = slowest.max(start.elapsed());
            sent += 1;
            until("B hears", || b.batches() == sent).await;
        }
        assert!(sent > 100 && slowest < Duration::from_secs(3), "{sent} rounds, the slowest {slowest:?}");
        assert!(a.peers.stats().batches_dropped > 100);
        assert_eq!(a.recorder.seen.borrow().lost, [C]);
        assert!(a.peers.links()[1].trouble.as_ref().unwrap().contains("silent"));
        assert_eq!(a.peers.unsent_bytes(C), 0);
    });
    both.join().unwrap();
    sleeper.join().unwrap();
}

#[test]
fn an_idle_connection_stays() {
    let both = shard(|| async {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        a.knows(B, &b);
        assert_eq!(a.send(B, b"once"), Sent::Queued);
        until("it arrived", || b.batches() == 1).await;
        sleep(Duration::from_millis(6_500)).await;
        assert_eq!((a.lost(), b.lost()), (0, 0));
        assert_eq!((a.peers.stats().connections, b.peers.stats().connections), (1, 1));
    });
    both.join().unwrap();
}

#[test]
fn strangers_are_refused_with_a_sentence_and_harm_nobody() {
    let both = shard(|| async {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        let hello = {
            let mut out = Vec::new();
            peer::encode(&mut out, Kind::Hello, 1, 0, &[1; 10]);
            out
        };
        let mut huge = hello.clone();
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let early = {
            let mut out = Vec::new();
            peer::encode(&mut out, Kind::Batch, 1, 0, &[1; 10]);
            out
        };
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "but found \"GET \""),
            (b"TMK1 a client", "clients connect to the client ports"),
            (&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], "configure TLS for peers on all nodes or on none"),
            (&hello, "malformed hello"),
            (&huge, "larger than the limit of 2048 bytes"),
            (&early, "before the greeting"),
        ] {
            let mut stranger = TcpStream::connect(b.address).unwrap();
            stranger.write_all(bytes).unwrap();
            stranger.set_nonblocking(true).unwrap();
            let mut answer = [0; 4_096];
            until("the stranger is shown the door", || match stranger.read(&mut answer) {
                Ok(0) => true,
                Ok(count) => peer::parse(&answer[..count]).unwrap().unwrap().0.kind != Kind::Refusal,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            })
            .await;
            let refused = b.refusal().await;
            let reason = if expected.contains("TLS") { Reason::Tls } else { Reason::Garbage };
            assert_eq!((refused.reason, refused.by_us), (reason, true));
            assert!(refused.sentence.contains(expected) && refused.sentence.contains("\"nb\""), "{}", refused.sentence);
        }
        let counts: u64 = b.peers.refusals().iter().map(|refused| refused.count).sum();
        assert_eq!((b.peers.refusals().len(), counts), (2, 6));
        a.knows(B, &b);
        assert_eq!(a.send(B, b"still there"), Sent::Queued);
        until("a peer is served", || b.batches() == 1).await;
    });
    both.join().unwrap();
}

#[test]
fn a_crowd_of_silent_strangers_is_bounded_and_passes() {
    let both = shard(|| async {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        let crowd: Vec<_> = (0..80).map(|_| TcpStream::connect(b.address).unwrap()).collect();
        assert_eq!(b.refusal().await.reason, Reason::Busy);
        a.knows(B, &b);
        until("the silent ones were given up and a peer is served", || {
            let _ = a.send(B, b"a peer");
            b.batches() > 0
        })
        .await;
        drop(crowd);
    });
    both.join().unwrap();
}

#[test]
fn a_damaged_frame_ends_the_connection_and_reaches_nobody() {
    let one = shard(|| async {
        let b = Node::start(identity(B), address());
        let own = PeerHello {
            peer_version_min: 1,
            peer_version_max: 1,
            version: 3,
            cluster: 7,
            node: C,
            to_node: B,
            shard: 0,
            to_shard: 0,
            cluster_name: "test".to_owned(),
            node_name: "nc".to_owned(),
        };
        let mut stream = TcpStream::connect(b.address).unwrap();
        let mut out = Vec::new();
        peer::encode(&mut out, Kind::Hello, 1, 0, &own.encode());
        stream.write_all(&out).unwrap();
        until("C is connected", || b.connected() == 1).await;
        out.clear();
        peer::encode(&mut out, Kind::Batch, 1, 1, b"good");
        let damaged = out.len() + 40;
        peer::encode(&mut out, Kind::Batch, 1, 2, b"will be damaged");
        out[damaged] ^= 1;
        stream.write_all(&out).unwrap();
        until("C is lost", || b.lost() == 1).await;
        assert_eq!(b.recorder.seen.borrow().batches, [(C, 0, b"good".to_vec())]);
        let refused = b.refusal().await;
        assert!(
            refused.sentence.contains("node \"nc\"") && refused.sentence.contains("checksum"),
            "{}",
            refused.sentence
        );
    });
    one.join().unwrap();
}

#[test]
fn nodes_that_do_not_fit_tell_each_other_why() {
    let both = shard(|| async {
        let wrong = [
            (Identity { cluster_name: "other".to_owned(), ..identity(B) }, Reason::ClusterName, "\"other\""),
            (Identity { cluster: 8, ..identity(B) }, Reason::ClusterId, "empty data directory"),
            (identity(C), Reason::OtherNode, "correct the address"),
            (Identity { version: 5, ..identity(B) }, Reason::Version, "one version at a time"),
            (Identity { shard: 1, ..identity(B) }, Reason::OtherShard, "peer port plus n"),
            (Identity { node_name: "copy".to_owned(), ..identity(A) }, Reason::SameNode, "was copied"),
        ];
        for (identity_of_b, reason, words) in wrong {
            let (a, b) = (Node::start(identity(A), address()), Node::start(identity_of_b, address()));
            a.knows(B, &b);
            assert_eq!(a.send(B, b"never arrives"), Sent::Queued);
            let (at_a, at_b) = (a.refusal().await, b.refusal().await);
            for refused in [&at_a, &at_b] {
                assert_eq!(refused.reason, reason);
                assert!(
                    refused.sentence.contains(words) && refused.sentence.contains("\"na\""),
                    "{}",
                    refused.sentence
                );
            }
            assert_eq!((at_a.by_us, at_b.by_us, at_a.node, at_b.node), (false, true, Some(B), Some(A)));
            assert_eq!(at_a.sentence, at_b.sentence);
            assert_eq!((a.connected(), b.connected(), b.batches()), (0, 0, 0));
            assert_eq!((a.lost(), a.peers.stats().batches_dropped), (0, 1));
            assert_eq!(a.peers.links()[0].trouble.as_ref(), Some(&at_a.sentence));
            a.peers.stop();
            b.peers.stop();
        }
    });
    both.join().unwrap();
}

#[test]
fn what_answers_but_is_no_peer_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    let one = shard(move || async move {
        let a = Node::start(identity(A), address());
        a.peers.locate(B, 0, web);
        assert_eq!(a.send(B, b"hello"), Sent::Queued);
        let refused = a.refusal().await;
        assert_eq!((refused.reason, refused.address, refused.node), (Reason::Garbage, web, Some(B)));
        assert!(refused.sentence.contains("found \"HTTP\""), "{}", refused.sentence);
    });
    one.join().unwrap();
    server.join().unwrap();
}

#[test]
fn a_node_that_joins_a_cluster_keeps_its_nodes_and_leaves_the_others() {
    let all = shard(|| async {
        let a = Node::start(Identity { cluster: 0, ..identity(A) }, address());
        let b = Node::start(identity(B), address());
        let c = Node::start(Identity { cluster: 0, ..identity(C) }, address());
        a.knows(B, &b);
        a.knows(C, &c);
        assert_eq!((a.send(B, b"1"), a.send(C, b"1")), (Sent::Queued, Sent::Queued));
        until("both heard", || b.batches() == 1 && c.batches() == 1).await;
        c.peers.set_cluster(8);
        until("C, which founded another, made a new connection necessary", || a.lost() == 1).await;
        a.peers.set_cluster(7);
        until("they do not fit", || {
            let _ = a.send(C, b"2");
            a.peers.refusals().iter().any(|refused| refused.reason == Reason::ClusterId && refused.node == Some(C))
        })
        .await;
        assert_eq!(a.send(B, b"2"), Sent::Queued);
        until("B was kept", || b.batches() == 2).await;
        assert_eq!((b.lost(), b.peers.stats().connections), (0, 1));
        assert_eq!(a.recorder.seen.borrow().lost, [C]);
    });
    all.join().unwrap();
}

#[test]
fn a_forgotten_node_is_not_called_lost_and_a_moved_one_is_found() {
    let all = shard(|| async {
        let (a, b) = (Node::start(identity(A), address()), Node::start(identity(B), address()));
        a.knows(B, &b);
        assert_eq!(a.send(B, b"1"), Sent::Queued);
        until("it arrived", || b.batches() == 1).await;
        a.peers.forget(B);
        until("B lost A", || b.lost() == 1).await;
        assert_eq!((a.send(B, b"2"), a.lost()), (Sent::Dropped, 0));
        a.peers.locate(B, 0, address());
        assert_eq!(a.send(B, b"3"), Sent::Queued, "where nobody listens");
        until("the dial failed", || a.peers.links()[0].trouble.is_some()).await;
        a.knows(B, &b);
        until("it arrived", || {
            let _ = a.send(B, b"4");
            b.batches() > 1
        })
        .await;
        assert_eq!(b.recorder.seen.borrow().batches[1].2, b"4");
    });
    all.join().unwrap();
}

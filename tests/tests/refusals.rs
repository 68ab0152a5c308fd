//! Starts that must fail, each with a sentence that says what is wrong; and hostile bytes that a node must survive.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use taskmaster_client::{Client, Task};
use taskmaster_protocol::body::{self, Hello, ListTasks};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation, PartitionId};

use crate::process::{Running, Setup, directory};

const PAGE: usize = 4096;

async fn submit_some(node: &Running, count: usize) {
    let client = Client::connect(node.address.to_string()).await.unwrap();
    for _ in 0..count {
        client.submit(Task::new("noop").queue("q").payload(vec![1; 2_000])).await.unwrap();
    }
}

/// Segments of a shard's log, lowest first, and the pages of each at which a block begins.
fn blocks(setup: &Setup) -> Vec<(PathBuf, u64)> {
    let mut segments: Vec<PathBuf> =
        std::fs::read_dir(setup.data_dir.join("shard-000/wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let mut blocks = Vec::new();
    for segment in segments {
        let bytes = std::fs::read(&segment).unwrap();
        for (page, bytes) in bytes.chunks(PAGE).enumerate() {
            if bytes.starts_with(b"TMWB") {
                blocks.push((segment.clone(), (page * PAGE) as u64));
            }
        }
    }
    blocks
}

fn flip(segment: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    file.sync_all().unwrap();
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let mut node = setup.start();
    let other = Setup { address: crate::process::free_address(), ..setup.clone() };
    let (status, said) = other.refusal();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("in use") && said.contains("data"), "{said}");
    assert!(node.is_running());
    submit_some(&node, 1).await;
}

#[test]
fn a_port_in_use_is_refused() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let _listener = TcpListener::bind(setup.address).unwrap();
    let (status, said) = setup.refusal();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("cannot listen on") && said.contains(&setup.address.to_string()), "{said}");
}

#[test]
fn a_bad_configuration_is_refused_with_a_suggestion() {
    let directory = directory();
    let mut setup = Setup::new(&directory);
    setup.more = "[limits]\nmax_conections = 7\n".to_owned();
    let (status, said) = setup.refusal();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("max_conections") && said.contains("max_connections"), "{said}");
}

#[test]
fn a_foreign_directory_is_refused_and_left_alone() {
    let directory = directory();
    let setup = Setup::new(&directory);
    std::fs::create_dir(&setup.data_dir).unwrap();
    std::fs::write(setup.data_dir.join("thesis.txt"), "years of work").unwrap();
    let (status, said) = setup.refusal();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&setup.data_dir.display().to_string()), "{said}");
    let left: Vec<_> = std::fs::read_dir(&setup.data_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["thesis.txt"]);
}

#[tokio::test]
async fn damage_in_the_middle_of_the_log_is_refused_by_file_and_byte() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    submit_some(&node, 30).await;
    node.kill();
    let blocks = blocks(&setup);
    assert!(blocks.len() > 20, "{}", blocks.len());
    let (segment, offset) = &blocks[blocks.len() / 3];
    flip(segment, offset + 200);
    let (status, said) = setup.refusal();
    assert_eq!(status.code(), Some(1));
    let file = segment.file_name().unwrap().to_string_lossy();
    assert!(said.contains(&*file) && said.contains(&format!("byte {offset}")), "{said}");
    // It refuses again, and the damage undone it starts with everything.
    setup.refusal();
    flip(segment, offset + 200);
    let node = setup.start();
    assert_eq!(unfinished(&node).await, 30);
}

async fn unfinished(node: &Running) -> u64 {
    let client = Client::connect(node.address.to_string()).await.unwrap();
    client.queues().await.unwrap().iter().map(|queue| queue.counts.unfinished()).sum()
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_reported() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    submit_some(&node, 20).await;
    node.kill();
    let (segment, offset) = blocks(&setup).last().unwrap().clone();
    // The second half of the last block never reached the disk.
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(&[0; 512], offset + 512).unwrap();
    file.sync_all().unwrap();
    let node = setup.start();
    assert!(node.log().contains("unfinished tail"), "{}", node.log());
    // The last block was acknowledged in truth: only a disk that lies can tear it. Everything before it is there.
    assert_eq!(unfinished(&node).await, 19);
    submit_some(&node, 5).await;
    node.kill();
    assert_eq!(unfinished(&setup.start()).await, 24);
}

/// What the node answers before it closes the connection, or within a moment.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The node may close before all is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        Err(error) => panic!("the node neither answers nor closes: {error}"),
    }
    answer
}

/// The first `count` answers to requests of a client that goes on listening.
fn ask(address: SocketAddr, bytes: &[u8], count: usize) -> Vec<Code> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        answer.extend_from_slice(&buffer[..read]);
        let codes = codes(&answer);
        if codes.len() >= count || read == 0 {
            return codes;
        }
    }
}

fn codes(answer: &[u8]) -> Vec<Code> {
    let mut aligned = FrameBuffer::new();
    aligned.extend_from_slice(answer);
    let mut codes = Vec::new();
    let mut at = 0;
    while let Ok(Some((frame, bytes))) = frame::parse(&aligned[at..]) {
        codes.push(Code::from_number(frame.header.code));
        at += bytes;
    }
    assert_eq!(at, aligned.len(), "the node sends whole frames");
    codes
}

fn hello() -> FrameBuffer {
    let mut bytes = FrameBuffer::new();
    let mut body = Hello { version_min: 1, version_max: 1, ..Hello::default() };
    body.client = body::put(&mut body.bytes, b"test");
    frame::encode(&mut bytes, Header::request(Operation::Hello, 1, None), &body);
    bytes
}

fn with_hello(operation: Operation, partition: Option<PartitionId>, body: &[u8]) -> FrameBuffer {
    let mut bytes = hello();
    frame::encode_raw(&mut bytes, Header::request(operation, 2, partition), body);
    bytes
}

#[tokio::test]
async fn hostile_bytes_are_answered_or_refused_and_the_node_lives_on() {
    let directory = directory();
    let setup = Setup::new(&directory).shards(2);
    let mut node = setup.start();
    let address = node.address;
    assert_eq!(codes(&exchange(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).first(), Some(&Code::Malformed));
    exchange(address, b"");
    exchange(address, &[0; 3]);
    let mut chance = 0x9e37_79b9_7f4a_7c15u64;
    for length in [1usize, 31, 32, 33, 500, 70_000] {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                chance.to_be_bytes()[0]
            })
            .collect();
        exchange(address, &bytes);
    }
    // Every prefix of a good opening, and a flipped bit anywhere in it.
    let good = hello();
    for cut in (1..good.len()).step_by(7) {
        exchange(address, &good[..cut]);
    }
    for bit in (0..good.len() * 8).step_by(53) {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        exchange(address, &bad);
    }
    // A body that claims 4 GiB.
    let mut huge = good.to_vec();
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(codes(&exchange(address, &huge)).iter().all(|code| *code != Code::Ok));
    // Versions from the future.
    let mut future = FrameBuffer::new();
    let body = Hello { version_min: 200, version_max: 201, ..Hello::default() };
    frame::encode(&mut future, Header::request(Operation::Hello, 1, None), &body);
    assert_eq!(codes(&exchange(address, &future)), [Code::UnsupportedVersion]);
    // Work before the hello; then requests that say nonsense, each answered with its code.
    let mut early = FrameBuffer::new();
    frame::encode(&mut early, Header::request(Operation::Ping, 1, None), &body::Empty::default());
    assert_eq!(codes(&exchange(address, &early)), [Code::HelloRequired]);
    let partition = Some(PartitionId(3));
    for (operation, partition, body, code) in [
        (Operation::Submit, partition, &b"no such layout"[..], Code::Malformed),
        (Operation::Submit, partition, &[][..], Code::Malformed),
        (Operation::Expire, partition, &[0; 16][..], Code::UnknownOperation),
        (Operation::Complete, Some(PartitionId(60_000)), &[0xff; 64][..], Code::Malformed),
    ] {
        let answered = ask(address, &with_hello(operation, partition, body), 2);
        assert_eq!(answered, [Code::Ok, code], "{operation:?}");
    }
    assert!(node.is_running(), "{}", node.log());
    submit_some(&node, 3).await;
    assert!(node.terminate().success());
}

/// A connection that asks for much and reads nothing must not hold up others.
#[tokio::test]
async fn a_reader_that_reads_nothing_holds_up_nobody() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let mut node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let tasks = (0..2_000).map(|_| Task::new("noop").queue("q").payload(vec![5; 100]));
    client.submit_many(tasks).await.unwrap();
    let mut idle = TcpStream::connect(node.address).unwrap();
    idle.write_all(&hello()).unwrap();
    let mut asked = FrameBuffer::new();
    for partition in (0..64).map(PartitionId) {
        let body = ListTasks { limit: 1_000, ..ListTasks::default() };
        frame::encode(&mut asked, Header::request(Operation::ListTasks, 9, Some(partition)), &body);
    }
    idle.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // Until its requests find no room any more either.
    for _ in 0..2_000 {
        if idle.write_all(&asked).is_err() {
            break;
        }
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let began = Instant::now();
        client.submit(Task::new("noop").queue("q")).await.unwrap();
        client.ping().await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    eprintln!("slowest of 50 submits and pings beside a connection that does not read: {slowest:?}");
    assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    assert!(node.is_running());
    drop(idle);
}

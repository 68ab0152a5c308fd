//! A server in this process that speaks the protocol, for unit tests without a node.
//!
//! Client and worker talk to it over in-memory streams (or loopback TCP, [`TestServer::listen`]) with real frames, so
//! their own code is the same as in production. Time is tokio's: under `#[tokio::test(start_paused = true)]` delays,
//! backoffs and leases pass at once.
//!
//! It models: submission with duplicates and unique keys (with windows), priorities, delays, deadlines (expire),
//! retries with backoff (without jitter), non-retryable codes, leases with tokens and expiry, heartbeats, release,
//! progress, cancellation with revocation, manual retry, workflows with both failure policies, concurrency keys, paused
//! and draining queues, credit, results, listings.
//!
//! It does not model: durability, limits and overload (but see [`TestServer::refuse_next`]), rate limits, queue-wide
//! concurrency, resources, retention (nothing is ever forgotten), several nodes, or performance.

mod answer;
mod dispatch;
mod engine;
mod states;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use taskmaster_protocol::body::{HelloReply, put};
use taskmaster_protocol::{Code, FrameBuffer, Header, frame, limits};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::error::Error;
use crate::wire::{Connection, FrameReader, Options, Pushes};
use engine::Engine;

/// Bytes a stream holds in each direction.
const STREAM_BYTES: usize = 1 << 20;
/// Partitions.
const PARTITIONS: u16 = 8;

/// The in-memory server. Clones share it; it ends with the last clone and connection.
#[derive(Clone)]
pub struct TestServer {
    server: Arc<Server>,
}

pub(crate) struct Server {
    engine: Mutex<Engine>,
    shards: u16,
    ports: Mutex<Vec<u16>>,
    /// Something changed that may bring the next timer forward.
    changed: Notify,
    connections: AtomicU64,
    /// Counts up to end every connection.
    disconnect: watch::Sender<u64>,
    /// Nothing is read.
    silent: watch::Sender<bool>,
}

/// A connection as the engine sees it.
pub(crate) struct Peer {
    pub(crate) shard: u16,
    pub(crate) out: mpsc::UnboundedSender<FrameBuffer>,
}

pub(crate) type Peers = HashMap<u64, Peer>;

impl TestServer {
    /// Starts a server of one shard.
    ///
    /// # Panics
    /// If it is not called within a tokio runtime.
    #[must_use]
    pub fn start() -> Self {
        Self::with_shards(1)
    }

    /// Starts a server of several shards, which push only their own partitions' tasks, as a node does.
    ///
    /// # Panics
    /// If it is not called within a tokio runtime, or `shards` is 0.
    #[must_use]
    pub fn with_shards(shards: u16) -> Self {
        assert!(shards > 0, "a node has a shard");
        let server = Arc::new(Server {
            engine: Mutex::new(Engine::new(shards)),
            shards,
            ports: Mutex::new(vec![0; usize::from(shards)]),
            changed: Notify::new(),
            connections: AtomicU64::new(0),
            disconnect: watch::Sender::new(0),
            silent: watch::Sender::new(false),
        });
        tokio::spawn(drive(Arc::downgrade(&server)));
        Self { server }
    }

    /// Listens on loopback TCP, one port per shard; the first shard's address.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn listen(&self) -> std::io::Result<SocketAddr> {
        let mut first = None;
        for shard in 0..self.server.shards {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            self.server.ports.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(shard)] = address.port();
            first.get_or_insert(address);
            let server = Arc::downgrade(&self.server);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let Some(server) = server.upgrade() else { return };
                    let (read, write) = stream.into_split();
                    tokio::spawn(serve(server, shard, read, write));
                }
            });
        }
        Ok(first.expect("there is a shard"))
    }

    /// Ends every connection, as a crash or a broken network would. Leases end after a grace of 2 s.
    pub fn disconnect_all(&self) {
        self.server.disconnect.send_modify(|count| *count += 1);
    }

    /// Reads and answers nothing while `silent`, as a frozen node or a half-open connection does; timers go on.
    pub fn set_silent(&self, silent: bool) {
        self.server.silent.send_replace(silent);
    }

    /// Refuses the next `requests` requests (other than hellos) as an overloaded node does.
    pub fn refuse_next(&self, requests: u32, retry_after: Duration) {
        let mut engine = self.server.engine();
        engine.refuse = requests;
        engine.refuse_retry_ms = crate::task::millis_u32(retry_after);
    }

    pub(crate) async fn open(&self, shard: u16, options: &Options) -> Result<(Connection, Pushes), Error> {
        let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
        let (read, write) = tokio::io::split(theirs);
        tokio::spawn(serve(Arc::clone(&self.server), shard, read, write));
        let (read, write) = tokio::io::split(ours);
        Connection::over(read, write, options).await
    }
}

impl Server {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hello(&self, shard: u16, now_us: u64) -> HelloReply {
        let mut bytes = Vec::new();
        let server = put(&mut bytes, b"taskmaster test server");
        let partitions = PARTITIONS.max(self.shards);
        HelloReply {
            server_time_us: now_us,
            node: [1, 1],
            body_bytes_max: u32::try_from(limits::BODY_BYTES_MAX).expect("16 MiB"),
            payload_bytes_max: u32::try_from(limits::PAYLOAD_BYTES_MAX).expect("1 MiB"),
            rows_max: u32::try_from(limits::ROWS_MAX).expect("100,000"),
            credit_max: limits::CREDIT_MAX,
            shard_ports: self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            partition_shards: (0..partitions).map(|partition| partition % self.shards).collect(),
            server,
            bytes,
            shard,
            version: limits::PROTOCOL_VERSION,
            ..HelloReply::default()
        }
    }
}

/// Lets timers fire, for as long as the server lives.
async fn drive(server: Weak<Server>) {
    loop {
        let Some(live) = server.upgrade() else { return };
        let next = {
            let mut engine = live.engine();
            engine.tick();
            engine.next_due()
        };
        let until = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = sleep_until(until) => {}
            () = live.changed.notified() => {}
        }
    }
}

async fn serve<R, W>(server: Arc<Server>, shard: u16, read: R, write: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let connection = server.connections.fetch_add(1, Ordering::Relaxed);
    let mut disconnect = server.disconnect.subscribe();
    let mut silent = server.silent.subscribe();
    let (out, frames) = mpsc::unbounded_channel();
    tokio::spawn(write_frames(write, frames));
    let mut reader = FrameReader::new(read);
    server.engine().peers.insert(connection, Peer { shard, out: out.clone() });
    let mut is_greeted = false;
    loop {
        match reader.buffered() {
            Ok(Some(frame)) if is_greeted => {
                server.engine().handle(connection, &frame);
                server.changed.notify_one();
                continue;
            }
            Ok(Some(frame)) => {
                is_greeted = true;
                let now_us = server.engine().now_us();
                send(&out, frame.header.response(Code::Ok), &server.hello(shard, now_us));
                continue;
            }
            Ok(None) => {}
            Err(_) => break,
        }
        tokio::select! {
            filled = reader.fill(), if !*silent.borrow() => if !matches!(filled, Ok(1..)) { break },
            _ = disconnect.changed() => break,
            _ = silent.changed() => {}
        }
    }
    server.engine().disconnected(connection);
    server.changed.notify_one();
}

async fn write_frames<W: AsyncWrite + Unpin>(mut stream: W, mut frames: mpsc::UnboundedReceiver<FrameBuffer>) {
    while let Some(frame) = frames.recv().await {
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
    // The peer may be gone already.
    drop(stream.shutdown().await);
}

/// Sends a frame; a peer that is gone does not want it.
pub(crate) fn send<B: taskmaster_protocol::Body>(out: &mpsc::UnboundedSender<FrameBuffer>, header: Header, body: &B) {
    let mut buffer = FrameBuffer::new();
    frame::encode(&mut buffer, header, body);
    drop(out.send(buffer));
}

//! The connection: one stream, a writer task that coalesces frames, a reader task, and the requests that wait.
//!
//! Invariants: a request is registered and encoded under one lock, so its answer cannot come before its waiter; after
//! the end every waiter hears of it and every later request fails at once. At most [`OUTGOING_BYTES_MAX`] plus one
//! frame wait to be written: callers wait beyond that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskmaster_protocol::body::{self, ArchivedHelloReply, Body, Hello, feature};
use taskmaster_protocol::{Code, FrameBuffer, Header, Operation, frame, limits};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::pending::{Mailbox, Pending, Waiter};
use super::{FrameReader, Message};
use crate::error::{Error, Refusal};

/// Unwritten bytes beyond which callers wait.
const OUTGOING_BYTES_MAX: usize = 4 << 20;
/// A write buffer that grew beyond this is given back.
const OUTGOING_BYTES_KEPT: usize = 8 << 20;
/// Pushed frames that may wait for their reader; beyond, the stream is not read.
const PUSHES_MAX: usize = 1024;
/// The hello's correlation.
const HELLO_CORRELATION: u64 = 1;

/// How to open a connection.
#[derive(Clone, Debug)]
pub struct Options {
    /// Client software, shown in the server's log.
    pub client: String,
    /// Longest time to connect and to exchange hellos.
    pub connect_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client: concat!("taskmaster-client-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// What the server said at hello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// Server software and version.
    pub server: String,
    /// Identity of the node's data directory.
    pub node: [u64; 2],
    /// Shard this connection is attached to.
    pub shard: u16,
    /// TCP port of each shard.
    pub shard_ports: Vec<u16>,
    /// Owning shard of each partition.
    pub partition_shards: Vec<u16>,
    /// Largest frame body taken, in bytes.
    pub body_bytes_max: usize,
    /// Largest payload taken, in bytes.
    pub payload_bytes_max: usize,
    /// Most rows per frame.
    pub rows_max: usize,
    /// Most credit per connection, in tasks.
    pub credit_max: u32,
    /// Optional features in force, as bits of the protocol's `feature`.
    pub features: u64,
    /// Server clock at hello, in microseconds since 1970.
    pub server_time_us: u64,
}

/// Frames that answer nothing: `assign`, `revoke`, `go_away`. Ends with the connection.
pub type Pushes = mpsc::Receiver<Message>;

struct Outgoing {
    buffer: FrameBuffer,
    pending: Pending,
    ended: Option<String>,
}

struct Shared {
    outgoing: Mutex<Outgoing>,
    /// How often something arrived.
    heard: AtomicU64,
    written: Notify,
    drained: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, reason: &str) {
        let mut outgoing = self.lock();
        if outgoing.ended.is_none() {
            outgoing.ended = Some(reason.to_owned());
            outgoing.pending.clear();
        }
        drop(outgoing);
        self.written.notify_one();
        self.drained.notify_waiters();
    }
}

/// One connection to one shard. Share it by reference or in an `Arc`; it ends when dropped.
pub struct Connection {
    shared: Arc<Shared>,
    info: ServerInfo,
    reader: AbortHandle,
}

impl Connection {
    /// Connects to `address` (`host:port`) over TCP and exchanges hellos.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Refused`] or [`Error::Protocol`].
    pub async fn connect(address: &str, options: &Options) -> Result<(Self, Pushes), Error> {
        let failed = |reason: String| Error::Connect { address: address.to_owned(), reason };
        let opening = async {
            let stream = TcpStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
            stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
            let (read, write) = stream.into_split();
            Self::over(read, write, options).await
        };
        match tokio::time::timeout(options.connect_timeout, opening).await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("no hello within {:?}", options.connect_timeout))),
        }
    }

    /// Exchanges hellos over any stream, which must be at its beginning.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Refused`] or [`Error::Protocol`].
    pub async fn over<R, W>(read: R, mut write: W, options: &Options) -> Result<(Self, Pushes), Error>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut reader = FrameReader::new(read);
        let info = say_hello(&mut reader, &mut write, options).await?;
        let shared = Arc::new(Shared {
            outgoing: Mutex::new(Outgoing { buffer: FrameBuffer::new(), pending: Pending::default(), ended: None }),
            heard: AtomicU64::new(0),
            written: Notify::new(),
            drained: Notify::new(),
        });
        let (push, pushes) = mpsc::channel(PUSHES_MAX);
        let reading = tokio::spawn(read_loop(reader, Arc::clone(&shared), push));
        tokio::spawn(write_loop(write, Arc::clone(&shared), reading.abort_handle()));
        Ok((Self { shared, info, reader: reading.abort_handle() }, pushes))
    }

    /// What the server said at hello.
    #[must_use]
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// Whether the connection ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// How often something arrived.
    pub(crate) fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }

    /// Ends the connection: waiting requests hear that it was lost.
    pub fn end(&self, reason: &str) {
        self.shared.end(reason);
        self.reader.abort();
    }

    /// Sends a request and waits for its answer, whatever its code. The header's correlation is chosen here.
    /// Dropping the future forgets the answer, not the request.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection ended first.
    pub async fn request<B: Body>(&self, header: Header, body: &B) -> Result<Message, Error> {
        self.room().await;
        let (sender, receiver) = oneshot::channel();
        let correlation = self.enqueue(header, body, Some(Waiter::Caller(sender)))?;
        let forget = Forget { shared: &self.shared, correlation };
        let reply = receiver.await;
        drop(forget);
        reply.map_err(|_| Error::lost(self.reason()))
    }

    /// Sends a request whose answer goes to `mailbox` under `tag`. Does not wait for room: for few, bounded requests.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection has ended; then nothing goes to the mailbox.
    pub fn request_into<B: Body>(&self, header: Header, body: &B, mailbox: &Mailbox, tag: u64) -> Result<(), Error> {
        self.enqueue(header, body, Some(Waiter::Mailbox(mailbox.clone(), tag))).map(drop)
    }

    /// Sends a frame that is not answered (`credit`, `progress`).
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection has ended.
    pub fn send<B: Body>(&self, header: Header, body: &B) -> Result<(), Error> {
        self.enqueue(header, body, None).map(drop)
    }

    fn enqueue<B: Body>(&self, mut header: Header, body: &B, waiter: Option<Waiter>) -> Result<u64, Error> {
        let mut outgoing = self.shared.lock();
        if let Some(reason) = &outgoing.ended {
            return Err(Error::lost(reason.as_str()));
        }
        header.correlation = waiter.map_or(0, |waiter| outgoing.pending.insert(waiter));
        let was_empty = outgoing.buffer.is_empty();
        frame::encode(&mut outgoing.buffer, header, body);
        drop(outgoing);
        if was_empty {
            self.shared.written.notify_one();
        }
        Ok(header.correlation)
    }

    async fn room(&self) {
        loop {
            let drained = self.shared.drained.notified();
            {
                let outgoing = self.shared.lock();
                if outgoing.buffer.len() <= OUTGOING_BYTES_MAX || outgoing.ended.is_some() {
                    return;
                }
            }
            drained.await;
        }
    }

    fn reason(&self) -> String {
        self.shared.lock().ended.clone().unwrap_or_else(|| "the answer was dropped".to_owned())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end("closed on this side");
    }
}

/// Takes a waiter back when its future is dropped, so that a late answer finds nobody and the slot is used again.
struct Forget<'a> {
    shared: &'a Shared,
    correlation: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        drop(self.shared.lock().pending.take(self.correlation));
    }
}

async fn say_hello<R, W>(reader: &mut FrameReader<R>, write: &mut W, options: &Options) -> Result<ServerInfo, Error>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut bytes = Vec::new();
    let client = body::put(&mut bytes, options.client.as_bytes());
    let hello = Hello {
        features: feature::USAGE,
        client,
        bytes,
        version_min: limits::PROTOCOL_VERSION,
        version_max: limits::PROTOCOL_VERSION,
    };
    let mut out = FrameBuffer::new();
    frame::encode(&mut out, Header::request(Operation::Hello, HELLO_CORRELATION, None), &hello);
    write.write_all(&out).await.map_err(|error| Error::lost(error.to_string()))?;
    loop {
        if let Some(frame) = reader.buffered()? {
            if frame.header.code != Code::Ok.number() {
                return Err(Refusal::read(Code::from_number(frame.header.code), frame.body).into());
            }
            if !frame.header.is_response() || frame.header.operation != Operation::Hello.number() {
                return Err(Error::Protocol("the first frame was not a hello".to_owned()));
            }
            return server_info(body::access::<ArchivedHelloReply>(frame.body)?);
        }
        match reader.fill().await {
            Ok(0) => return Err(Error::lost("the peer closed the connection before its hello")),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Error::Protocol(error.to_string()));
            }
            Err(error) => return Err(Error::lost(error.to_string())),
        }
    }
}

fn server_info(reply: &ArchivedHelloReply) -> Result<ServerInfo, Error> {
    let info = ServerInfo {
        server: body::text(&reply.bytes, reply.server)?.to_owned(),
        node: [reply.node[0].to_native(), reply.node[1].to_native()],
        shard: reply.shard.to_native(),
        shard_ports: reply.shard_ports.iter().map(|port| port.to_native()).collect(),
        partition_shards: reply.partition_shards.iter().map(|shard| shard.to_native()).collect(),
        body_bytes_max: reply.body_bytes_max.to_native() as usize,
        payload_bytes_max: reply.payload_bytes_max.to_native() as usize,
        rows_max: reply.rows_max.to_native() as usize,
        credit_max: reply.credit_max.to_native(),
        features: reply.features.to_native(),
        server_time_us: reply.server_time_us.to_native(),
    };
    let shards = info.shard_ports.len();
    if info.partition_shards.is_empty() || info.partition_shards.len() > usize::from(limits::PARTITIONS_MAX) {
        return Err(Error::Protocol(format!("the hello names {} partitions", info.partition_shards.len())));
    }
    if shards == 0 || info.partition_shards.iter().chain([&info.shard]).any(|&shard| usize::from(shard) >= shards) {
        return Err(Error::Protocol("the hello names a shard without a port".to_owned()));
    }
    Ok(info)
}

async fn write_loop<W: AsyncWrite + Unpin>(mut stream: W, shared: Arc<Shared>, reader: AbortHandle) {
    let mut spare = FrameBuffer::new();
    loop {
        let ended = {
            let mut outgoing = shared.lock();
            std::mem::swap(&mut outgoing.buffer, &mut spare);
            outgoing.ended.is_some()
        };
        if spare.is_empty() {
            if ended {
                break;
            }
            shared.written.notified().await;
            continue;
        }
        shared.drained.notify_waiters();
        if let Err(error) = stream.write_all(&spare).await {
            shared.end(&format!("writing failed: {error}"));
            reader.abort();
            return;
        }
        if spare.capacity() > OUTGOING_BYTES_KEPT {
            spare = FrameBuffer::new();
        }
        spare.clear();
    }
    // The peer may be gone already; there is nobody left to tell.
    drop(stream.shutdown().await);
}

async fn read_loop<R: AsyncRead + Unpin>(mut reader: FrameReader<R>, shared: Arc<Shared>, push: mpsc::Sender<Message>) {
    let reason = loop {
        match deliver_buffered(&mut reader, &shared, &push).await {
            Ok(()) => {}
            Err(error) => break error.to_string(),
        }
        match reader.fill().await {
            Ok(0) => break "the peer closed it".to_owned(),
            Ok(_) => _ = shared.heard.fetch_add(1, Ordering::Relaxed),
            Err(error) => break format!("reading failed: {error}"),
        }
    };
    shared.end(&reason);
}

async fn deliver_buffered<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    shared: &Shared,
    push: &mpsc::Sender<Message>,
) -> Result<(), Error> {
    while let Some(frame) = reader.buffered()? {
        let header = frame.header;
        let waiter = if header.is_response() {
            match shared.lock().pending.take(header.correlation) {
                Some(waiter) => Some(waiter),
                // The waiter left.
                None => continue,
            }
        } else {
            None
        };
        let mut body = FrameBuffer::with_capacity(frame.body.len());
        body.extend_from_slice(frame.body);
        let message = Message { header, body };
        match waiter {
            Some(waiter) => waiter.deliver(message),
            // A client without interest in pushes has dropped the receiver.
            None => drop(push.send(message).await),
        }
    }
    Ok(())
}

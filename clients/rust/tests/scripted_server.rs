//! The client and worker against a server that does exactly what each test says, on loopback TCP: lost answers, resends,
//! batching, refusals, revocations, shard ports, strangers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskmaster_client::wire::{Connection, FrameReader, Options};
use taskmaster_client::{Client, ClientBuilder, Code, Error, Submitted, Task, TaskId, Worker};
use taskmaster_protocol::body::{
    self, ArchivedBatchReply, ArchivedComplete, ArchivedCredit, ArchivedFail, ArchivedLeases, ArchivedSubmit,
    ArchivedSubscribe, Assign, AssignRow, AssignSpec, BatchReply, Body, Empty, ExceptionRow, HelloReply, LeaseRow,
    Leases, Refusal, access, put,
};
use taskmaster_protocol::{FrameBuffer, Header, Operation, PartitionId, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const WAIT: Duration = Duration::from_secs(60);

/// A frame received, owned.
struct Received {
    header: Header,
    body: FrameBuffer,
}

/// The server's end of a connection.
struct Peer {
    reader: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { reader: FrameReader::new(read), write }
    }

    /// The next frame, or none at the end of the stream.
    async fn next_or_end(&mut self) -> Option<Received> {
        loop {
            if let Some(frame) = self.reader.buffered().expect("the client sends frames") {
                let mut body = FrameBuffer::new();
                body.extend_from_slice(frame.body);
                return Some(Received { header: frame.header, body });
            }
            let filled =
                tokio::time::timeout(WAIT, self.reader.fill()).await.expect("the client sends something in time");
            if filled.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn next(&mut self) -> Received {
        self.next_or_end().await.expect("the client keeps the connection")
    }

    /// The next frame of this operation, answering pings and skipping credit on the way.
    async fn expect(&mut self, operation: Operation) -> Received {
        loop {
            let received = self.next().await;
            match Operation::from_number(received.header.operation) {
                Some(found) if found == operation => return received,
                Some(Operation::Credit) => {}
                Some(Operation::Ping) => self.answer(&received, &Empty::default()).await,
                Some(Operation::ClusterMap) => self.refuse(&received, Code::UnknownOperation, 0).await,
                other => panic!("expected {operation:?}, found {other:?}"),
            }
        }
    }

    async fn send<B: Body>(&mut self, header: Header, body: &B) {
        let mut out = FrameBuffer::new();
        frame::encode(&mut out, header, body);
        self.write.write_all(&out).await.expect("the client is there");
    }

    async fn answer<B: Body>(&mut self, request: &Received, body: &B) {
        self.send(request.header.response(Code::Ok), body).await;
    }

    async fn accept_rows(&mut self, request: &Received, accepted: u32) {
        self.answer(request, &BatchReply { accepted, exceptions: Vec::new() }).await;
    }

    async fn refuse(&mut self, request: &Received, code: Code, retry_after_ms: u32) {
        self.send(request.header.response(code), &Refusal::new("by script", None, retry_after_ms)).await;
    }

    async fn subscribed(&mut self) -> u32 {
        let request = self.expect(Operation::Subscribe).await;
        let credit = access::<ArchivedSubscribe>(&request.body).expect("a subscription").credit.to_native();
        self.answer(&request, &Empty::default()).await;
        credit
    }

    async fn assign(&mut self, ids: &[TaskId]) {
        let mut bytes = Vec::new();
        let spec = AssignSpec {
            queue: put(&mut bytes, b"default"),
            kind: put(&mut bytes, b"work"),
            lease_ms: 30_000,
            attempts_max: 3,
            ..AssignSpec::default()
        };
        let row = |(&id, token): (&TaskId, u64)| AssignRow {
            id,
            token,
            payload: put(&mut bytes, id.to_string().as_bytes()),
            locator: 7,
            attempt: 1,
            ..AssignRow::default()
        };
        let rows = ids.iter().zip(100..).map(row).collect();
        let header = Header::request(Operation::Assign, 0, Some(ids[0].partition()));
        self.send(header, &Assign { specs: vec![spec], rows, bytes }).await;
    }
}

/// A listener per shard; partition p belongs to shard p % shards.
struct Script {
    listeners: Vec<TcpListener>,
    ports: Vec<u16>,
}

impl Script {
    async fn listen(shards: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..shards {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port"));
        }
        let ports = listeners.iter().map(|listener| listener.local_addr().expect("bound").port()).collect();
        Self { listeners, ports }
    }

    fn address(&self) -> SocketAddr {
        self.listeners[0].local_addr().expect("bound")
    }

    /// Takes the next connection of a shard and exchanges hellos.
    async fn accept(&self, shard: usize) -> Peer {
        let accepted = tokio::time::timeout(WAIT, self.listeners[shard].accept()).await;
        let (stream, _) = accepted.expect("the client connects in time").expect("accepting works");
        let mut peer = Peer::new(stream);
        let hello = peer.next().await;
        assert_eq!((hello.header.operation, hello.header.correlation), (Operation::Hello.number(), 1));
        let shards = u16::try_from(self.ports.len()).expect("few");
        let reply = HelloReply {
            body_bytes_max: 16 << 20,
            payload_bytes_max: 1 << 20,
            rows_max: 100_000,
            credit_max: 1 << 20,
            shard_ports: self.ports.clone(),
            partition_shards: (0..8).map(|partition| partition % shards).collect(),
            shard: u16::try_from(shard).expect("few"),
            version: 1,
            ..HelloReply::default()
        };
        peer.answer(&hello, &reply).await;
        peer
    }

    async fn client(&self) -> (Client, Peer) {
        self.client_of(Client::builder().backoff(Duration::from_millis(5), Duration::from_millis(50))).await
    }

    async fn client_of(&self, builder: ClientBuilder) -> (Client, Peer) {
        let greeting = async {
            let mut peer = self.accept(0).await;
            let request = peer.next().await;
            assert_eq!(request.header.operation, Operation::ClusterMap.number());
            peer.refuse(&request, Code::UnknownOperation, 0).await;
            peer
        };
        let (client, peer) = tokio::join!(builder.connect(self.address()), greeting);
        (client.expect("the script answers"), peer)
    }
}

fn id(n: u32) -> TaskId {
    TaskId::new(1_700_000_000_000, PartitionId(3), 5, n)
}

fn submitted_ids(request: &Received) -> Vec<TaskId> {
    let submit = access::<ArchivedSubmit>(&request.body).expect("a submission");
    submit.tasks.iter().map(|task| TaskId::from(&task.id)).collect()
}

fn completed(request: &Received) -> Vec<(TaskId, u64)> {
    let complete = access::<ArchivedComplete>(&request.body).expect("completions");
    complete.rows.iter().map(|row| (TaskId::from(&row.id), row.token.to_native())).collect()
}

/// Starts a worker of one shard whose handlers echo; the worker and the server's end of its connection.
async fn worker(script: &Script, client: &Client, concurrency: u32) -> (Worker, Peer) {
    let builder = Worker::builder(client)
        .concurrency(concurrency)
        .prefetch(0)
        .handler("work", |task| async move { Ok(task.payload().to_vec()) });
    let subscribing = async {
        let mut peer = script.accept(0).await;
        assert_eq!(peer.subscribed().await, concurrency);
        peer
    };
    let (worker, peer) = tokio::join!(builder.start(), subscribing);
    (worker.expect("the script takes the subscription"), peer)
}

/// Plays the server's part of a worker's shutdown.
async fn shut_down(worker: Worker, peer: &mut Peer) {
    let ending = async {
        let request = peer.expect(Operation::Subscribe).await;
        assert_eq!(access::<ArchivedSubscribe>(&request.body).expect("a subscription").credit.to_native(), 0);
        peer.answer(&request, &Empty::default()).await;
        while let Some(request) = peer.next_or_end().await {
            assert_ne!(request.header.operation, Operation::Complete.number(), "nothing is left to complete");
        }
    };
    let (ended, ()) = tokio::join!(worker.shutdown(), ending);
    ended.expect("a shutdown ends");
}

#[tokio::test]
async fn a_submission_whose_answer_was_lost_goes_again_with_its_ids_and_the_resend_flag() {
    let script = Script::listen(1).await;
    let (client, mut peer) = script.client().await;
    let submitting = tokio::spawn(async move { client.submit(Task::new("work")).await });
    let first = peer.expect(Operation::Submit).await;
    assert!(!first.header.is_resend());
    drop(peer);
    let mut peer = script.accept(0).await;
    let second = peer.expect(Operation::Submit).await;
    assert!(second.header.is_resend());
    assert_eq!(submitted_ids(&second), submitted_ids(&first));
    let exception = ExceptionRow {
        id: submitted_ids(&second)[0],
        code: Code::Duplicate.number(),
        state: 2,
        ..ExceptionRow::default()
    };
    peer.answer(&second, &BatchReply { accepted: 0, exceptions: vec![exception] }).await;
    let outcome = submitting.await.unwrap().unwrap();
    assert_eq!(outcome.result, Submitted::Accepted, "the duplicate is this very submission");
}

#[tokio::test]
async fn an_overloaded_answer_is_no_resend_and_waits_the_named_time() {
    let script = Script::listen(1).await;
    let (client, mut peer) = script.client().await;
    let submitting = tokio::spawn(async move { client.submit(Task::new("work")).await });
    let first = peer.expect(Operation::Submit).await;
    let refused = tokio::time::Instant::now();
    peer.refuse(&first, Code::Overloaded, 80).await;
    let second = peer.expect(Operation::Submit).await;
    assert!(refused.elapsed() >= Duration::from_millis(80));
    assert!(!second.header.is_resend());
    assert_ne!(second.header.correlation, first.header.correlation);
    peer.accept_rows(&second, 1).await;
    assert_eq!(submitting.await.unwrap().unwrap().result, Submitted::Accepted);
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let script = Script::listen(1).await;
    let (client, mut peer) = script.client().await;
    let mut submitting = Vec::new();
    for _ in 0..50 {
        let client = client.clone();
        submitting.push(tokio::spawn(async move { client.submit(Task::new("work")).await }));
    }
    let mut requests = Vec::new();
    for _ in 0..50 {
        requests.push(peer.expect(Operation::Submit).await);
    }
    for request in requests.iter().rev() {
        peer.accept_rows(request, 1).await;
    }
    for outcome in submitting {
        assert_eq!(outcome.await.unwrap().unwrap().result, Submitted::Accepted);
    }
}

#[tokio::test]
async fn frames_go_to_the_owner_of_their_partition() {
    let script = Script::listen(2).await;
    let (client, mut first) = script.client().await;
    let submitting = tokio::spawn(async move {
        for _ in 0..8 {
            client.submit(Task::new("work")).await.unwrap();
        }
    });
    let serve_second = async {
        let mut second = script.accept(1).await;
        for _ in 0..4 {
            let request = second.expect(Operation::Submit).await;
            assert_eq!(request.header.partition % 2, 1);
            assert_eq!(submitted_ids(&request)[0].partition().0, request.header.partition);
            second.accept_rows(&request, 1).await;
        }
    };
    let serve_first = async {
        for _ in 0..4 {
            let request = first.expect(Operation::Submit).await;
            assert_eq!(request.header.partition % 2, 0);
            first.accept_rows(&request, 1).await;
        }
    };
    tokio::join!(serve_first, serve_second);
    submitting.await.unwrap();
}

#[tokio::test]
async fn a_hidden_shard_port_is_served_through_another_shards_connection() {
    let mut script = Script::listen(2).await;
    let (client, mut first) = script.client().await;
    // The hello named this port; nobody listens there any more.
    let hidden = script.listeners.pop().unwrap();
    drop(hidden);
    let submitting = tokio::spawn(async move {
        for _ in 0..2 {
            client.submit(Task::new("work")).await.unwrap();
        }
    });
    for _ in 0..2 {
        let request = first.expect(Operation::Submit).await;
        first.accept_rows(&request, 1).await;
    }
    submitting.await.unwrap();
}

#[tokio::test]
async fn a_silent_node_is_given_up_after_the_answer_timeout() {
    let script = Script::listen(1).await;
    let timeout = Duration::from_millis(50);
    let builder = Client::builder().answer_timeout(timeout).call_timeout(timeout);
    let (client, mut peer) = script.client_of(builder).await;
    let error = client.submit(Task::new("work")).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    peer.expect(Operation::Submit).await;
    assert!(peer.next_or_end().await.is_none(), "the silent connection is closed");
}

#[tokio::test]
async fn who_gives_up_is_told_why_an_earlier_try_was_refused() {
    let script = Script::listen(1).await;
    let (client, mut peer) = script.client_of(Client::builder().call_timeout(Duration::from_secs(2))).await;
    let submitting = tokio::spawn(async move { client.submit(Task::new("work")).await.unwrap_err() });
    let first = peer.expect(Operation::Submit).await;
    peer.refuse(&first, Code::Overloaded, 1).await;
    peer.expect(Operation::Submit).await;
    let error = submitting.await.unwrap();
    let Error::Timeout { refusal: Some(refusal), .. } = &error else { panic!("{error}") };
    assert_eq!(refusal.code, Code::Overloaded);
    assert!(error.to_string().contains("by script"), "{error}");
}

#[tokio::test]
async fn a_stranger_at_the_port_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stranger = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u64().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        // Until the client has read it and gone.
        while stream.read_u8().await.is_ok() {}
    });
    let error = Client::connect(address).await.err().unwrap();
    assert!(error.to_string().contains("does not speak this protocol"), "{error}");
    stranger.await.unwrap();
    let error = Client::connect(address).await.err().unwrap();
    assert!(error.to_string().contains("cannot connect to 127.0.0.1"), "{error}");
}

#[tokio::test]
async fn completions_gather_while_one_is_in_flight() {
    let script = Script::listen(1).await;
    let (client, _peer) = script.client().await;
    let (worker, mut peer) = worker(&script, &client, 20).await;
    peer.assign(&[id(0)]).await;
    let first = peer.expect(Operation::Complete).await;
    assert_eq!(completed(&first), [(id(0), 100)]);
    assert_eq!(first.header.partition, 3);
    for n in 1..=10 {
        peer.assign(&[id(n)]).await;
    }
    // Credit for all ten shows that their handlers are done.
    let mut credit = 0;
    while credit < 11 {
        let frame = peer.next().await;
        assert_eq!(frame.header.operation, Operation::Credit.number(), "completions wait for the one in flight");
        credit += access::<ArchivedCredit>(&frame.body).unwrap().credit.to_native();
    }
    peer.accept_rows(&first, 1).await;
    let second = peer.expect(Operation::Complete).await;
    let mut gathered: Vec<TaskId> = completed(&second).into_iter().map(|(id, _)| id).collect();
    gathered.sort();
    assert_eq!(gathered, (1..=10).map(id).collect::<Vec<_>>());
    peer.accept_rows(&second, 10).await;
    shut_down(worker, &mut peer).await;
}

#[tokio::test]
async fn unanswered_completions_go_again_on_the_next_connection() {
    let script = Script::listen(1).await;
    let (client, _peer) = script.client().await;
    let (worker, mut peer) = worker(&script, &client, 4).await;
    peer.assign(&[id(0), id(1)]).await;
    let mut lost = completed(&peer.expect(Operation::Complete).await);
    drop(peer);
    let mut peer = script.accept(0).await;
    peer.subscribed().await;
    let mut again = Vec::new();
    while again.len() < 2 {
        let frame = peer.expect(Operation::Complete).await;
        let rows = completed(&frame);
        let is_repeated = rows.iter().any(|row| lost.contains(row));
        assert_eq!(frame.header.is_resend(), is_repeated);
        lost.retain(|row| !rows.contains(row));
        peer.accept_rows(&frame, u32::try_from(rows.len()).unwrap()).await;
        again.extend(rows);
    }
    assert!(lost.is_empty());
    again.sort();
    assert_eq!(again, [(id(0), 100), (id(1), 101)]);
    shut_down(worker, &mut peer).await;
}

#[tokio::test]
async fn leases_are_extended_at_once_on_a_new_connection() {
    let script = Script::listen(1).await;
    let (client, _peer) = script.client().await;
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let builder = Worker::builder(&client).concurrency(2).handler("work", move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Ok(())
        }
    });
    let subscribing = async {
        let mut peer = script.accept(0).await;
        peer.subscribed().await;
        peer
    };
    let (worker, mut peer) = tokio::join!(builder.start(), subscribing);
    peer.assign(&[id(0)]).await;
    tokio::task::yield_now().await;
    peer.refuse(
        &Received { header: Header::request(Operation::Ping, 99, None), body: FrameBuffer::new() },
        Code::Internal,
        0,
    )
    .await;
    // The ping above answers nothing; the assignment before it has arrived when the stream ends.
    drop(peer);
    let mut peer = script.accept(0).await;
    assert_eq!(peer.subscribed().await, 1, "the running task counts against the credit");
    let extend = peer.expect(Operation::Extend).await;
    let leases = access::<ArchivedLeases>(&extend.body).unwrap();
    assert_eq!((TaskId::from(&leases.rows[0].id), leases.rows[0].token.to_native()), (id(0), 100));
    peer.accept_rows(&extend, 1).await;
    go_on.notify_one();
    let complete = peer.expect(Operation::Complete).await;
    assert!(!complete.header.is_resend());
    peer.accept_rows(&complete, 1).await;
    shut_down(worker.unwrap(), &mut peer).await;
}

/// Assigns two tasks to a worker of one slot and revokes them, once the first has started or at once.
async fn revoke_two(waits_for_start: bool) -> usize {
    let script = Script::listen(1).await;
    let (client, _peer) = script.client().await;
    let (started, told) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (tell, count) = (Arc::clone(&started), Arc::clone(&told));
    let builder = Worker::builder(&client).concurrency(1).prefetch(1).handler("work", move |task| {
        let (tell, count) = (Arc::clone(&tell), Arc::clone(&count));
        async move {
            tell.notify_one();
            task.cancelled().await;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let subscribing = async {
        let mut peer = script.accept(0).await;
        assert_eq!(peer.subscribed().await, 2);
        peer
    };
    let (worker, mut peer) = tokio::join!(builder.start(), subscribing);
    let worker = worker.expect("the script takes the subscription");
    peer.assign(&[id(0), id(1)]).await;
    if waits_for_start {
        started.notified().await;
    }
    let rows = [(id(0), 100), (id(1), 101)].map(|(id, token)| LeaseRow { id, token, locator: 7, attempt: 1 });
    peer.send(Header::request(Operation::Revoke, 0, Some(PartitionId(3))), &Leases { rows: rows.to_vec() }).await;
    let mut credit = 0;
    while credit < 2 {
        let frame = peer.next().await;
        assert_eq!(frame.header.operation, Operation::Credit.number(), "a revoked task is not answered");
        credit += access::<ArchivedCredit>(&frame.body).expect("credit").credit.to_native();
    }
    shut_down(worker, &mut peer).await;
    told.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_revoked_task_is_told_and_not_completed() {
    assert_eq!(revoke_two(true).await, 1, "the first runs and is told, the second never starts");
}

#[tokio::test]
async fn tasks_revoked_before_they_start_give_their_credit_back() {
    assert!(revoke_two(false).await <= 1);
}

#[tokio::test]
async fn refused_completions_go_again_and_stale_ones_are_dropped() {
    let script = Script::listen(1).await;
    let (client, _peer) = script.client().await;
    let (worker, mut peer) = worker(&script, &client, 1).await;
    peer.assign(&[id(0)]).await;
    let first = peer.expect(Operation::Complete).await;
    peer.refuse(&first, Code::Overloaded, 30).await;
    let second = peer.expect(Operation::Complete).await;
    assert_eq!(completed(&second), completed(&first));
    let exception = ExceptionRow { id: id(0), code: Code::StaleLease.number(), ..ExceptionRow::default() };
    peer.answer(&second, &BatchReply { accepted: 0, exceptions: vec![exception] }).await;
    shut_down(worker, &mut peer).await;
}

#[tokio::test]
async fn failures_carry_their_code_and_sentence() {
    let script = Script::listen(1).await;
    let (client, _peer) = script.client().await;
    let builder = Worker::builder(&client).handler("work", |_| async move { Ok(std::fs::read("/nowhere/at/all")?) });
    let subscribing = async {
        let mut peer = script.accept(0).await;
        peer.subscribed().await;
        peer
    };
    let (worker, mut peer) = tokio::join!(builder.start(), subscribing);
    peer.assign(&[id(0)]).await;
    let request = peer.expect(Operation::Fail).await;
    let fail = access::<ArchivedFail>(&request.body).unwrap();
    assert_eq!(body::text(&fail.bytes, fail.rows[0].code).unwrap(), "error");
    assert!(body::text(&fail.bytes, fail.rows[0].message).unwrap().contains("No such file"));
    assert_eq!(fail.rows[0].locator.to_native(), 7);
    peer.accept_rows(&request, 1).await;
    shut_down(worker.unwrap(), &mut peer).await;
}

#[tokio::test]
async fn the_low_level_connection_carries_large_frames_and_hears_of_its_end() {
    let script = Script::listen(1).await;
    let address = script.address().to_string();
    let options = Options::default();
    let (opened, mut peer) = tokio::join!(Connection::connect(&address, &options), script.accept(0));
    let (connection, mut pushes) = opened.unwrap();
    let large =
        body::Submit { bytes: (0..3_000_000u32).map(|n| n.to_le_bytes()[0]).collect(), ..body::Submit::default() };
    let header = Header::request(Operation::Submit, 0, Some(PartitionId(0)));
    let echo = async {
        let request = peer.expect(Operation::Submit).await;
        let submit = access::<ArchivedSubmit>(&request.body).unwrap();
        let bytes = submit.bytes.to_vec();
        peer.send(Header::request(Operation::GoAway, 0, None), &Empty::default()).await;
        peer.answer(&request, &body::Submit { bytes, ..body::Submit::default() }).await;
        let request = peer.expect(Operation::Submit).await;
        peer.accept_rows(&request, 3).await;
    };
    let asking = async {
        let reply = connection.request(header, &large).await.unwrap();
        assert_eq!(reply.read::<ArchivedSubmit>().unwrap().bytes.as_slice(), large.bytes);
        let reply = connection.request(header, &body::Submit::default()).await.unwrap().accepted().unwrap();
        assert_eq!(reply.read::<ArchivedBatchReply>().unwrap().accepted.to_native(), 3);
    };
    tokio::join!(asking, echo);
    assert_eq!(pushes.recv().await.unwrap().header.operation, Operation::GoAway.number());
    let waiting = async { connection.request(header, &large).await };
    let ending = async {
        peer.expect(Operation::Submit).await;
        drop(peer);
    };
    let (lost, ()) = tokio::join!(waiting, ending);
    assert!(matches!(lost, Err(Error::Lost { .. })));
    assert!(pushes.recv().await.is_none());
    assert!(connection.is_ended());
}

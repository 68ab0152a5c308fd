//! The writer against a real server: a batch counts once, and only from the latest leader.

use std::sync::Arc;
use std::time::Duration;

use taskmaster_connect::postgres::{
    Answers, Batch, Contract, FinalTask, Found, Given, Listed, Place, Request, StateChunk, Status, Stored, write,
};
use tokio::sync::mpsc;

use crate::services::postgres::Postgres;

struct Heard(mpsc::UnboundedSender<(u16, u64, Stored)>);

impl Answers for Heard {
    fn stored(&self, by: usize, partition: u16, term: u64, stored: Stored) {
        assert_eq!(by, 3);
        self.0.send((partition, term, stored)).unwrap();
    }

    fn found(&self, _: usize, _: u64, _: Found) {
        unreachable!("nobody asks");
    }

    fn listed(&self, _: usize, _: u64, _: Listed) {
        unreachable!("nobody asks");
    }
}

/// A writer and who hears its answers.
struct Bench {
    queue: mpsc::Sender<Given>,
    answers: mpsc::UnboundedReceiver<(u16, u64, Stored)>,
}

const CLUSTER: u128 = 0xABCD;

impl Bench {
    fn new(postgres: &Postgres) -> Self {
        let (send, answers) = mpsc::unbounded_channel();
        let (queue, receive) = mpsc::channel(16);
        let settings = postgres.settings();
        std::thread::spawn(move || {
            let writing = write(settings, receive, Arc::new(Heard(send)), Arc::new(Status::default()));
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(writing);
        });
        Self { queue, answers }
    }

    async fn ask(&mut self, request: Request) -> Stored {
        let (partition, given) = (request.partition(), Given { by: 3, request });
        assert!(self.queue.send(given).await.is_ok());
        let heard = tokio::time::timeout(Duration::from_secs(20), self.answers.recv()).await.unwrap().unwrap();
        assert_eq!(heard.0, partition);
        heard.2
    }

    async fn open(&mut self, partition: u16, term: u64) -> Stored {
        self.ask(Request::Open { cluster: CLUSTER, partition, term }).await
    }
}

fn batch(partition: u16, term: u64, from: u64, to: u64) -> Request {
    let mut batch = Batch { cluster: CLUSTER, partition, term, from, to, ..Batch::default() };
    batch.contracts.push(Contract {
        canonical: b"canonical"[..].into(),
        namespace: "default".into(),
        queue: "q".into(),
        kind: "k".into(),
        priority: 2,
        attempts_max: 3,
        restartable: false,
    });
    for number in from + 1..=to {
        let at = u32::try_from(batch.bytes.len()).unwrap();
        batch.bytes.extend_from_slice(b"result");
        let none = Place::default();
        batch.tasks.push(FinalTask {
            id: (u128::from(partition) << 64) | u128::from(number),
            workflow: 0,
            number,
            started_us: 0,
            // Some on the next day.
            finished_us: 1_764_201_599_000_000 + number * 100_000,
            deadline_us: 0,
            contract: 0,
            attempts: 1,
            failures: 0,
            state: 4,
            succeeded: true,
            late: false,
            name: none,
            error_code: none,
            error: none,
            log_tail: none,
            blob: Place { at, len: 6 },
            saved: None,
            particulars: None,
        });
    }
    Request::Batch(batch)
}

#[tokio::test]
async fn a_batch_counts_once_and_only_from_the_latest_leader() {
    let postgres = Postgres::start().await;
    postgres.migrate().await;
    let mut old = Bench::new(&postgres);
    assert_eq!(old.open(7, 5).await, Stored::Upto(0));
    assert_eq!(old.ask(batch(7, 5, 0, 20)).await, Stored::Upto(20));
    // Its answer was lost: it comes again, alone or with more.
    assert_eq!(old.ask(batch(7, 5, 0, 20)).await, Stored::Upto(20));
    assert_eq!(old.ask(batch(7, 5, 10, 30)).await, Stored::Upto(20), "it must begin where the partition stands");
    assert_eq!(old.ask(batch(7, 5, 25, 30)).await, Stored::Upto(20));
    // Another leader of a later term, through a connection of its own.
    let mut new = Bench::new(&postgres);
    assert_eq!(new.open(7, 6).await, Stored::Upto(20));
    assert_eq!(old.ask(batch(7, 5, 20, 25)).await, Stored::Overtaken, "the late batch of a deposed leader");
    assert_eq!(old.open(7, 5).await, Stored::Overtaken);
    assert_eq!(new.ask(batch(7, 6, 20, 22)).await, Stored::Upto(22));
    // Other partitions are not concerned.
    assert_eq!(old.open(8, 1).await, Stored::Upto(0));
    assert_eq!(old.ask(batch(8, 1, 0, 3)).await, Stored::Upto(3));
    let client = postgres.client().await;
    let rows = client.query("SELECT partition, number FROM taskmaster.final_task ORDER BY 1, 2", &[]).await.unwrap();
    let rows: Vec<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected: Vec<(i32, i64)> = (1..=22).map(|n| (7, n)).chain((1..=3).map(|n| (8, n))).collect();
    assert_eq!(rows, expected);
    let leaves = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'taskmaster.final_task'::regclass";
    assert_eq!(client.query_one(leaves, &[]).await.unwrap().get::<_, i64>(0), 2, "a part for each day");
    // A part that was dropped meanwhile is made again.
    client.batch_execute("DROP TABLE taskmaster.final_task_20251126").await.unwrap();
    assert_eq!(new.ask(batch(7, 6, 22, 24)).await, Stored::Upto(24));
}

/// A batch that brings chunks for a day, with tasks or without.
fn with_chunks(request: Request, chunks: &[(u8, &[u8])], day: u32) -> Request {
    let Request::Batch(mut batch) = request else { unreachable!("only batches bring chunks") };
    for (digest, bytes) in chunks {
        let at = u32::try_from(batch.bytes.len()).unwrap();
        batch.bytes.extend_from_slice(bytes);
        let bytes = Place { at, len: u32::try_from(bytes.len()).unwrap() };
        batch.chunks.push(StateChunk { digest: [*digest; 32], bytes });
    }
    batch.chunks_day = day;
    Request::Batch(batch)
}

#[tokio::test]
async fn a_chunk_is_stored_once_however_often_it_is_told_and_kept_for_the_latest_day() {
    let postgres = Postgres::start().await;
    postgres.migrate().await;
    let client = postgres.client().await;
    let chunks = async || {
        let sql = "SELECT partition, get_byte(digest, 0), day - date '1970-01-01', bytes FROM taskmaster.state_chunk ORDER BY 1, 2";
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
            .collect::<Vec<(i32, i32, i32, Vec<u8>)>>()
    };
    let row = |partition, digest: u8, day, bytes: &[u8]| (partition, i32::from(digest), day, bytes.to_vec());
    let mut bench = Bench::new(&postgres);
    bench.open(7, 5).await;
    // Chunks ahead of their tasks move nothing, and come twice when the answer was lost.
    for _ in 0..2 {
        let ahead = with_chunks(batch(7, 5, 0, 0), &[(1, b"one"), (2, b"two")], 20_000);
        assert_eq!(bench.ask(ahead).await, Stored::Upto(0));
    }
    let known = [row(7, 1, 20_000, b"one"), row(7, 2, 20_000, b"two")];
    assert_eq!(chunks().await, known);
    // With tasks, of another day, or late.
    let next = with_chunks(batch(7, 5, 0, 3), &[(2, b"two"), (3, b"three")], 20_001);
    assert_eq!(bench.ask(next.clone()).await, Stored::Upto(3));
    assert_eq!(bench.ask(next).await, Stored::Upto(3));
    assert_eq!(bench.ask(with_chunks(batch(7, 5, 3, 4), &[(2, b"two")], 19_000)).await, Stored::Upto(4));
    let known = [row(7, 1, 20_000, b"one"), row(7, 2, 20_001, b"two"), row(7, 3, 20_001, b"three")];
    assert_eq!(chunks().await, known);
    // What does not count brings nothing: a batch from elsewhere, and a leader that was replaced.
    assert_eq!(bench.ask(with_chunks(batch(7, 5, 9, 9), &[(4, b"four")], 20_001)).await, Stored::Upto(4));
    let mut new = Bench::new(&postgres);
    new.open(7, 6).await;
    assert_eq!(bench.ask(with_chunks(batch(7, 5, 4, 4), &[(4, b"four")], 20_001)).await, Stored::Overtaken);
    assert_eq!(chunks().await, known);
    // Another partition has its own.
    bench.open(8, 1).await;
    assert_eq!(bench.ask(with_chunks(batch(8, 1, 0, 1), &[(1, b"one")], 20_000)).await, Stored::Upto(1));
    assert_eq!(chunks().await.last(), Some(&row(8, 1, 20_000, b"one")));
}

//! The writer against a real server: a batch counts once, and only from the latest leader.

use std::sync::Arc;
use std::time::Duration;

use taskmaster_connect::postgres::{
    Answers, Batch, Contract, FinalTask, Found, Given, Listed, Place, Request, Status, Stored, write,
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
            versions: Vec::new(),
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

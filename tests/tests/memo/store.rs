//! The connection by itself: what stays on this side is given up when the server says that it changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskmaster_connect::redis::{Answers, Of, Question, Request, Settings, Status, Value, serve};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::services::redis::{PASSWORD, Redis};

const KEY: [u8; 32] = [7; 32];

struct Heard(mpsc::UnboundedSender<Vec<Option<Value>>>);

impl Answers for Heard {
    fn found(&self, _: usize, _: u64, values: Vec<Option<Value>>) {
        self.0.send(values).unwrap();
    }
}

struct Asker {
    requests: mpsc::Sender<Request>,
    answers: mpsc::UnboundedReceiver<Vec<Option<Value>>>,
    status: Arc<Status>,
}

impl Asker {
    async fn ask(&mut self) -> Option<Value> {
        self.requests.send(Request::Find(Question { by: 0, number: 0, keys: vec![KEY] })).await.unwrap();
        self.answers.recv().await.unwrap().remove(0)
    }

    fn counter(&self, wanted: &str) -> u64 {
        self.status.counters().into_iter().find(|(name, _)| *name == wanted).unwrap().1
    }

    async fn reaches(&self, name: &str, value: u64) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.counter(name) < value {
            assert!(Instant::now() < until, "{name} stays below {value}: {}", self.status.last_error());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn start(tasks: &LocalSet, settings: Settings) -> Asker {
    let (requests, queue) = mpsc::channel(16);
    let (send, answers) = mpsc::unbounded_channel();
    let status = Arc::new(Status::default());
    tasks.spawn_local(serve(settings, queue, Box::new(Heard(send)), Arc::clone(&status)));
    Asker { requests, answers, status }
}

#[tokio::test]
async fn what_was_read_stays_here_until_the_server_says_that_it_changed() {
    let redis = Redis::start().await;
    let tasks = LocalSet::new();
    let body = async {
        let mut settings = Settings::new(&redis.url(), Some(PASSWORD)).unwrap();
        settings.local_max = 8;
        settings.timeout = Duration::from_secs(5);
        let (mut one, other) = (start(&tasks, settings.clone()), start(&tasks, settings));
        one.reaches("redis_connected", 1).await;
        other.reaches("redis_connected", 1).await;
        assert_eq!(one.ask().await, None);
        let value = |result: &[u8]| Value { of: 3, made_us: 4, result: result.to_vec() };
        for (round, result) in [b"first", b"other"].into_iter().enumerate() {
            assert!(other.status.may_keep(5, 1 << 20));
            other.requests.send(Request::Keep(Of::Memo, KEY, value(result))).await.unwrap();
            other.reaches("redis_stored", round as u64 + 1).await;
            // The word that it changed is on its way.
            let until = Instant::now() + Duration::from_secs(30);
            while one.ask().await != Some(value(result)) {
                assert!(Instant::now() < until, "the old value stays");
            }
            let (local, hits) = (one.counter("redis_local"), one.counter("redis_hits"));
            assert_eq!(one.ask().await, Some(value(result)));
            assert_eq!((one.counter("redis_local"), one.counter("redis_hits")), (local + 1, hits + 1));
        }
    };
    tasks.run_until(body).await;
}

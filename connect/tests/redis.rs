//! The store and servers that serve badly: each test scripts one, which greets as Redis does.

#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

#[path = "redis/server.rs"]
mod server;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use server::{Command, Server};
use taskmaster_connect::redis::{Answers, Of, Question, Request, Settings, Status, Value, serve, standing};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct Heard(mpsc::UnboundedSender<Vec<Option<Value>>>);

impl Answers for Heard {
    fn found(&self, _: usize, _: u64, values: Vec<Option<Value>>) {
        let _ = self.0.send(values);
    }
}

struct Asker {
    requests: mpsc::Sender<Request>,
    answers: mpsc::UnboundedReceiver<Vec<Option<Value>>>,
    status: Arc<Status>,
}

impl Asker {
    /// Within a `LocalSet`. The settings are of a server that is to be found useful.
    fn start(settings: Settings) -> Self {
        let (requests, queue) = mpsc::channel(64);
        let (send, answers) = mpsc::unbounded_channel();
        let status = Arc::new(Status::default());
        spawn_local(serve(settings, queue, Box::new(Heard(send)), Arc::clone(&status)));
        Self { requests, answers, status }
    }

    async fn ask(&mut self, keys: &[[u8; 32]]) -> Vec<Option<Value>> {
        self.requests.send(Request::Find(Question { by: 0, number: 0, keys: keys.to_vec() })).await.unwrap();
        self.answers.recv().await.unwrap()
    }

    /// Gives a result to be kept, if it may.
    async fn keep(&self, result: Vec<u8>) {
        if self.status.may_keep(result.len(), u64::MAX) {
            self.requests.send(Request::Keep(Of::Memo, [1; 32], Value { of: 1, made_us: 1, result })).await.unwrap();
        }
    }

    fn counter(&self, wanted: &str) -> u64 {
        self.status.counters().into_iter().find(|(name, _)| *name == wanted).unwrap().1
    }

    async fn reaches(&self, name: &str, value: u64) {
        let until = Instant::now() + LONG;
        while self.counter(name) < value {
            assert!(Instant::now() < until, "{name} stays below {value}: {}", self.status.last_error());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn settings(server: &Server) -> Settings {
    let mut settings = Settings::new(&server.url(), None).unwrap();
    settings.connect_timeout = LONG;
    settings
}

/// The answer to a GET.
fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// How long it takes until a server has had six connections, with somebody asking and giving results all the time. The shortest
/// pauses between six are 50, 100, 200, 400 and 800 ms.
async fn sixth_connection(answer: impl Fn(&Command) -> Vec<u8> + 'static) -> Duration {
    let body = async {
        let server = Server::start(answer).await;
        let begun = Instant::now();
        let mut asker = Asker::start(settings(&server));
        while server.connections() < 6 {
            assert!(begun.elapsed() < LONG, "it is not tried again");
            asker.ask(&[[1; 32]]).await;
            asker.keep(Vec::new()).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    };
    LocalSet::new().run_until(body).await
}

const FIVE_PAUSES: Duration = Duration::from_millis(50 + 100 + 200 + 400 + 800);

#[tokio::test]
async fn a_server_that_greets_and_never_answers_in_time_is_left_alone_for_longer_and_longer() {
    let took = sixth_connection(|_| Vec::new()).await;
    assert!(took >= FIVE_PAUSES, "{took:?}");
}

#[tokio::test]
async fn a_replica_that_answers_and_refuses_results_is_left_alone_for_longer_and_longer() {
    let answer = |command: &Command| match command.name() {
        "SET" => b"-READONLY You can't write against a read only replica.\r\n".to_vec(),
        _ => b"$-1\r\n".to_vec(),
    };
    let took = sixth_connection(answer).await;
    assert!(took >= FIVE_PAUSES, "{took:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_in_time_is_given_up_also_if_it_is_asked_less_often_than_greeted() {
    let body = async {
        let server = Server::start(|_| Vec::new()).await;
        let mut asker = Asker::start(settings(&server));
        asker.reaches("redis_connected", 1).await;
        for round in 1..=3 {
            asker.ask(&[[1; 32]]).await;
            let greeted = server.greetings();
            let until = Instant::now() + LONG;
            while round < 3 && server.greetings() < greeted + 2 {
                assert!(Instant::now() < until, "it is not greeted");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        asker.reaches("redis_outages", 1).await;
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn of_a_large_question_what_came_in_time_counts_and_the_server_is_not_late() {
    let body = async {
        let keys = [[1; 32], [2; 32]];
        let value = Value { of: 1, made_us: 2, result: b"result".to_vec() };
        let stored = keys.map(|key| bulk(&value.encode(&key)));
        // Every second one is answered with the next.
        let number = Cell::new(0);
        let answer = move |command: &Command| match number.replace(number.get() + 1) % 2 {
            0 => stored[usize::from(command.word(1).ends_with("02"))].clone(),
            _ => Vec::new(),
        };
        let server = Server::start(answer).await;
        let mut settings = settings(&server);
        // Shorter than the pause between greetings, with which the fake says what it owes.
        settings.timeout = Duration::from_millis(700);
        let mut asker = Asker::start(settings);
        asker.reaches("redis_connected", 1).await;
        for _ in 0..3 {
            let found = asker.ask(&keys).await;
            assert!(found.contains(&Some(value.clone())) && found.contains(&None), "{found:?}");
        }
        let [hits, outages] = ["redis_hits", "redis_outages"].map(|name| asker.counter(name));
        assert_eq!((hits, outages), (3, 0));
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn a_question_goes_before_results_that_fill_the_wire() {
    let body = async {
        let (sets, before) = (Cell::new(0), Rc::new(Cell::new(None)));
        let seen = Rc::clone(&before);
        // Results are taken once the question is there.
        let answer = move |command: &Command| match command.name() {
            "GET" => {
                seen.set(Some(sets.get()));
                b"$-1\r\n".to_vec()
            }
            _ if seen.get().is_none() => {
                sets.set(sets.get() + 1);
                Vec::new()
            }
            _ => b"+OK\r\n".to_vec(),
        };
        let server = Server::start(answer).await;
        let mut settings = settings(&server);
        settings.timeout = LONG;
        let mut asker = Asker::start(settings);
        asker.reaches("redis_connected", 1).await;
        for _ in 0..32 {
            asker.keep(vec![0; 256 << 10]).await;
        }
        assert_eq!(asker.ask(&[[1; 32]]).await, [None]);
        assert!(before.get().is_some_and(|sets| sets <= 4), "{:?} results of 256 KiB went before", before.get());
        asker.reaches("redis_stored", 32).await;
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn whatever_a_server_says_nothing_panics_and_every_question_has_an_answer() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(info);
    }));
    let deep = b"*1\r\n".repeat(1_000);
    let said: [&[u8]; 18] = [
        b":1\r\n",
        b":99999999999999999999\r\n",
        b"*0\r\n",
        b"*-9223372036854775808\r\n",
        b"*9223372036854775807\r\n:1\r\n",
        b"+\r\n",
        b"+\xff\r\n",
        b"-\r\n",
        b"-MOVED x\r\n",
        b"$9223372036854775807\r\nabc",
        b"$3\r\nabcdef\r\n",
        b"=-1\r\n",
        b"|9223372036854775807\r\n",
        b"|-1\r\n:1\r\n",
        b">0\r\n>1\r\n:1\r\n",
        b">2\r\n+invalidate\r\n*1\r\n:1\r\n$-1\r\n",
        b"*2\r\n:9223372036854775807\r\n$3\r\nabc\r\n",
        &deep,
    ];
    for said in said {
        for local_max in [0, 8] {
            let (body, text) = (said.to_vec(), said.escape_ascii());
            let asked = async {
                let server = Server::start(move |_| body.clone()).await;
                let mut settings = settings(&server);
                settings.local_max = local_max;
                let mut asker = Asker::start(settings);
                asker.reaches("redis_connected", 1).await;
                for _ in 0..2 {
                    assert_eq!(asker.ask(&[[1; 32], [2; 32]]).await, [None, None], "{text}");
                }
                asker.keep(b"result".to_vec()).await;
                assert_eq!(asker.ask(&[[1; 32]]).await, [None], "{text}");
            };
            LocalSet::new().run_until(asked).await;
            assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{}", said.escape_ascii());
        }
    }
}

#[tokio::test]
async fn a_server_that_lies_about_the_time_is_far_off_and_nothing_worse() {
    let most = u64::MAX.to_string();
    let answer = move |command: &Command| match command.name() {
        "TIME" => [b"*2\r\n".to_vec(), bulk(most.as_bytes()), bulk(most.as_bytes())].concat(),
        _ => b"$-1\r\n".to_vec(),
    };
    let body = async {
        let server = Server::start(answer).await;
        let told = standing(&settings(&server)).await.unwrap();
        assert!(told.clocks_apart > Duration::from_secs(u64::MAX / 2), "{:?}", told.clocks_apart);
    };
    LocalSet::new().run_until(body).await;
}

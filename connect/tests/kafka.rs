//! Streams against librdkafka's own brokers in memory, which do as they are told: what no real broker does on demand.

#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, OwnedHeaders, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use taskmaster_connect::kafka::{Engine, Mapping, Order, Refused, Settings, Source, Start, Status, consume, standing};
use tokio::task::{LocalSet, spawn_local};

const TOPIC: &str = "orders";
const LETTERS: &str = "letters";
/// Longest wait for what should come about.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What streams ask of a cluster, in memory.
#[derive(Default)]
struct Tasks {
    positions: RefCell<BTreeMap<Source, u64>>,
    orders: RefCell<Vec<(u32, Order)>>,
    /// Partitions of the topic whose positions nobody knows.
    unknown: RefCell<BTreeSet<u32>>,
    /// The next submission is a defect.
    is_broken: Cell<bool>,
}

impl Tasks {
    /// Payloads of the tasks that came of a partition, in their order.
    fn of(&self, number: u32) -> Vec<String> {
        let orders = self.orders.borrow();
        let payloads = orders.iter().filter(|(of, _)| *of == number).map(|(_, order)| order.payload.clone());
        payloads.map(|payload| String::from_utf8(payload).unwrap()).collect()
    }

    fn position(&self, number: u32) -> u64 {
        let positions = self.positions.borrow();
        positions.iter().find(|(source, _)| source.number == number).map_or(0, |(_, position)| *position)
    }
}

impl Engine for Tasks {
    async fn position(&self, source: &Source) -> Result<u64, Refused> {
        if self.unknown.borrow().contains(&source.number) {
            return Err(Refused::Later("there is no leader".to_owned(), None));
        }
        Ok(self.positions.borrow().get(source).copied().unwrap_or(0))
    }

    async fn submit(&self, source: &Source, (from, to): (u64, u64), orders: &[Order]) -> Result<u64, Refused> {
        assert!(!self.is_broken.take(), "this defect is meant");
        // Somewhere on the way, where whoever waits may be gone.
        tokio::task::yield_now().await;
        let mut positions = self.positions.borrow_mut();
        let position = positions.entry(source.clone()).or_default();
        if *position == from {
            *position = to;
            self.orders.borrow_mut().extend(orders.iter().map(|order| (source.number, order.clone())));
        }
        Ok(*position)
    }
}

/// Brokers with a topic and one for letters, and a stream that reads them once it is begun.
struct Stage {
    brokers: MockCluster<'static, DefaultProducerContext>,
    tasks: Rc<Tasks>,
    status: Arc<Status>,
}

impl Stage {
    fn new(partitions: i32) -> Self {
        let brokers = MockCluster::new(1).unwrap();
        brokers.create_topic(TOPIC, partitions, 1).unwrap();
        brokers.create_topic(LETTERS, 1, 1).unwrap();
        Self { brokers, tasks: Rc::default(), status: Arc::default() }
    }

    fn settings(&self, properties: &[(&str, &str)]) -> Settings {
        let from = |text: &str| Some(text.parse().unwrap());
        Settings {
            name: "shop".to_owned(),
            brokers: self.brokers.bootstrap_servers(),
            topics: vec![TOPIC.to_owned()],
            group: "shop".to_owned(),
            mapping: Mapping {
                payload: "value".parse().unwrap(),
                unique_key: None,
                concurrency_key: None,
                priority: from("header:urgency"),
                deadline: None,
                payload_bytes_max: 1 << 20,
            },
            dead_letter: Some(LETTERS.to_owned()),
            start: Start::Earliest,
            batch_messages: 3,
            batch_bytes: 1 << 20,
            properties: properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    /// Begins to read. Within a `LocalSet`.
    fn begin(&self, properties: &[(&str, &str)]) {
        // These brokers take nearly as long to let a member join that was there before.
        let soon = [("session.timeout.ms", "3000"), ("heartbeat.interval.ms", "200")];
        let settings = Rc::new(self.settings(&[&soon, properties].concat()));
        spawn_local(consume(settings, Rc::clone(&self.tasks), Arc::clone(&self.status), pending()));
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.bootstrap_servers()).set("message.max.bytes", "100000000");
        config
    }

    async fn send(&self, number: i32, value: &str, headers: OwnedHeaders) {
        let producer: FutureProducer = self.config().create().unwrap();
        let record = FutureRecord::to(TOPIC).partition(number).key("k").payload(value).headers(headers);
        producer.send(record, WAIT_MAX).await.unwrap();
    }

    /// The first dead letters.
    async fn letters(&self, count: usize) -> Vec<OwnedMessage> {
        let mut config = self.config();
        config
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("receive.message.max.bytes", "200000000");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut parts = TopicPartitionList::new();
        parts.add_partition_offset(LETTERS, 0, Offset::Beginning).unwrap();
        consumer.assign(&parts).unwrap();
        let (mut letters, until) = (Vec::new(), Instant::now() + WAIT_MAX);
        while letters.len() < count {
            assert!(Instant::now() < until, "{} letters of {count}: {:?}", letters.len(), self.status);
            match consumer.poll(Duration::ZERO) {
                Some(message) => letters.push(message.unwrap().detach()),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        letters
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let until = Instant::now() + WAIT_MAX;
        while !is_so() {
            assert!(Instant::now() < until, "{what} does not come about: {:?}", self.status);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
    runtime.shutdown_background();
}

fn urgent(headers: OwnedHeaders, urgency: &str) -> OwnedHeaders {
    headers.insert(Header { key: "urgency", value: Some(urgency) })
}

/// A header whose name is not UTF-8, as other clients can send it.
#[expect(unsafe_code, reason = "rdkafka takes names as texts only")]
fn misnamed() -> OwnedHeaders {
    let latin = b"caf\xE9".to_vec();
    // SAFETY: nobody reads it as a text: rdkafka has its bytes copied.
    let key = unsafe { std::str::from_utf8_unchecked(&latin) };
    OwnedHeaders::new().insert(Header { key, value: Some("1") })
}

/// A header that was put on a letter.
fn said(letter: &OwnedMessage, name: &str) -> Option<String> {
    let headers = letter.headers().unwrap();
    // What the message had comes first, and may have any name.
    let own = (0..headers.count()).rev().map(|at| headers.get(at));
    let found = own.take_while(|header| header.key.starts_with("taskmaster.")).find(|header| header.key == name);
    found.map(|header| String::from_utf8(header.value.unwrap().to_vec()).unwrap())
}

#[test]
fn a_header_with_a_name_that_is_no_text_is_a_header_like_any_other() {
    run(async {
        let stage = Stage::new(1);
        stage.send(0, "one", urgent(misnamed(), "high")).await;
        stage.send(0, "two", urgent(misnamed(), "soon")).await;
        stage.send(0, "three", misnamed()).await;
        stage.begin(&[]);
        stage.until("a position", || stage.tasks.position(0) == 3).await;
        let priorities: Vec<_> = stage.tasks.orders.borrow().iter().map(|(_, order)| order.priority).collect();
        assert_eq!((stage.tasks.of(0), priorities), (vec!["one".to_owned(), "three".to_owned()], vec![Some(1), None]));
        let letter = stage.letters(1).await.remove(0);
        assert_eq!((letter.payload(), letter.headers().unwrap().count()), (Some(&b"two"[..]), 7));
        assert!(said(&letter, "taskmaster.reason").unwrap().contains("its priority is \"soon\""));
    });
}

#[test]
fn a_dead_letter_may_be_of_any_length_and_loses_what_the_topic_finds_too_long() {
    run(async {
        let stage = Stage::new(1);
        // So that all of them are kept: a partition of these brokers holds 5 MiB.
        let long = "x".repeat(1_200_000);
        for _ in 0..3 {
            stage.send(0, &long, urgent(OwnedHeaders::new(), "low")).await;
        }
        stage.send(0, "last", OwnedHeaders::new()).await;
        let (fits, is_too_long) =
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
        // The first is too long without its value as well, the second only with it.
        stage.brokers.request_errors(RDKafkaApiKey::Produce, &[is_too_long, is_too_long, fits, is_too_long]);
        stage.begin(&[]);
        stage.until("a position", || stage.tasks.position(0) == 4).await;
        assert_eq!(stage.tasks.of(0), ["last"]);
        let letters = stage.letters(3).await;
        let lengths: Vec<_> = letters.iter().map(|letter| letter.payload().map(<[u8]>::len)).collect();
        assert_eq!(lengths, [Some(0), Some(0), Some(long.len())]);
        let keys: Vec<_> = letters.iter().map(|letter| letter.key().is_some()).collect();
        assert_eq!(keys, [false, true, true]);
        let bytes: Vec<_> = letters.iter().map(|letter| said(letter, "taskmaster.value_bytes")).collect();
        assert_eq!(bytes, [Some("1200000".to_owned()), Some("1200000".to_owned()), None]);
        for (letter, offset) in letters.iter().zip(["0", "1", "2"]) {
            assert_eq!(said(letter, "taskmaster.offset").as_deref(), Some(offset));
            assert!(said(letter, "taskmaster.reason").unwrap().contains("1200000 bytes"));
        }
        let counters: BTreeMap<_, _> = stage.status.counters().into_iter().collect();
        assert_eq!((counters["stream_dead_letters"], counters["stream_paused"]), (3, 0));
    });
}

#[test]
fn a_partition_whose_letters_are_not_taken_is_paused_and_says_so() {
    run(async {
        let stage = Stage::new(1);
        stage.send(0, "one", urgent(OwnedHeaders::new(), "soon")).await;
        let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        stage.brokers.request_errors(RDKafkaApiKey::Produce, &[denied, denied, denied]);
        stage.begin(&[]);
        let counter =
            |name: &str| stage.status.counters().into_iter().find(|(of, _)| of == name).map(|(_, count)| count);
        stage.until("a pause", || counter("stream_paused") == Some(1)).await;
        assert!(stage.status.last_errors()[0].1.contains("does not take a dead letter"), "{:?}", stage.status);
        stage.until("a position", || stage.tasks.position(0) == 1).await;
        assert_eq!((counter("stream_paused"), stage.letters(1).await.len()), (Some(0), 1));
    });
}

#[test]
fn a_defect_while_a_partition_is_read_is_told_and_the_stream_goes_on() {
    run(async {
        let stage = Stage::new(2);
        stage.send(0, "one", OwnedHeaders::new()).await;
        stage.send(1, "two", OwnedHeaders::new()).await;
        stage.tasks.is_broken.set(true);
        stage.begin(&[]);
        let is_told = || stage.status.last_errors().iter().any(|(_, error)| error.contains("this defect is meant"));
        stage.until("a sentence", is_told).await;
        stage.until("all positions", || (0..2).all(|number| stage.tasks.position(number) == 1)).await;
        assert_eq!((stage.tasks.of(0), stage.tasks.of(1)), (vec!["one".to_owned()], vec!["two".to_owned()]));
    });
}

/// Two partitions are read while nobody knows where the third stands, which comes later.
fn goes_on_without(strategy: &str) {
    run(async {
        let stage = Stage::new(3);
        let send = async |from: u64, to: u64| {
            for number in 0..3 {
                for at in from..to {
                    stage.send(number, &at.to_string(), OwnedHeaders::new()).await;
                }
            }
        };
        send(0, 5).await;
        stage.tasks.unknown.borrow_mut().insert(0);
        stage.begin(&[("partition.assignment.strategy", strategy)]);
        stage.until("what is known", || (1..3).all(|number| stage.tasks.position(number) == 5)).await;
        send(5, 10).await;
        stage.until("what comes", || (1..3).all(|number| stage.tasks.position(number) == 10)).await;
        assert_eq!(stage.tasks.position(0), 0);
        assert!(
            stage.status.last_errors()[0].1.contains("partition 0 waits: there is no leader"),
            "{:?}",
            stage.status
        );
        stage.tasks.unknown.borrow_mut().clear();
        stage.until("the rest", || stage.tasks.position(0) == 10).await;
        send(10, 15).await;
        stage.until("everything", || (0..3).all(|number| stage.tasks.position(number) == 15)).await;
        let expected: Vec<String> = (0..15).map(|at| at.to_string()).collect();
        for number in 0..3 {
            assert_eq!(stage.tasks.of(number), expected, "partition {number}");
        }
    });
}

#[test]
fn a_partition_whose_position_nobody_knows_holds_up_no_other() {
    goes_on_without("range");
}

#[test]
fn a_partition_whose_position_nobody_knows_holds_up_no_other_that_is_added_by_itself() {
    goes_on_without("cooperative-sticky");
}

#[test]
fn who_looks_before_is_told_that_a_topic_may_not_be_read() {
    let stage = Stage::new(1);
    run(stage.send(0, "one", OwnedHeaders::new()));
    let look = || standing(&stage.settings(&[]), WAIT_MAX).unwrap();
    let found = look();
    assert!(found.group_error.is_none() && found.topics.iter().all(|topic| topic.error.is_none()), "{found:?}");
    // Later versions have a place for errors of the whole request, and would have it there.
    stage.brokers.apiversion(RDKafkaApiKey::Fetch, Some(0), Some(6)).unwrap();
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    stage.brokers.request_errors(RDKafkaApiKey::Fetch, &[denied; 16]);
    let found = look();
    assert!(found.topics[0].error.as_ref().is_some_and(|error| error.contains("authorization failed")), "{found:?}");
}

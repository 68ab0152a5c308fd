//! The thread that sends: it takes what leaders give, group by group, and answers when brokers have it.
//!
//! Requests that were taken are kept until they are answered: after a failure they are tried again with a new producer, without end.
//! What comes meanwhile waits in the bounded queue, and whoever finds it full waits itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use rdkafka::error::{KafkaResult, RDKafkaErrorCode};

use super::super::said;
use super::exactly::Exactly;
use super::producer::Producer;
use super::{Answers, Delivery, Request, Sent, Settings, Status};
use crate::backoff::Backoff;

/// Requests and bytes of one group at most, beyond the first request.
const GROUP_MAX: usize = 1_024;
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Messages with results are not made shorter than this, in bytes.
const RESULT_BYTES_LEAST: usize = 256;
/// How often a thread that waits looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A request, and who gave it.
#[derive(Debug)]
pub struct Given {
    /// Whom to answer: the caller's number.
    pub by: usize,
    /// What is asked for.
    pub request: Request,
}

/// Where partitions stand.
pub(super) type Stands = BTreeMap<u16, Sent>;

/// What sends.
enum Sink {
    Exactly(Box<Exactly>),
    AtLeast(Producer),
}

impl Sink {
    fn new(settings: &Settings) -> KafkaResult<Self> {
        match settings.delivery {
            Delivery::ExactlyOnce => Exactly::new(settings).map(Box::new).map(Self::Exactly),
            Delivery::AtLeastOnce => Producer::plain(settings).map(Self::AtLeast),
        }
    }

    fn carry_out(&mut self, settings: &Settings, cluster: u128, requests: &[&Request]) -> KafkaResult<Stands> {
        let producer = match self {
            Self::Exactly(exactly) => return exactly.carry_out(cluster, requests),
            Self::AtLeast(producer) => producer,
        };
        let mut stands = Stands::new();
        for request in requests {
            let upto = match request {
                Request::Open { sent, .. } => *sent,
                Request::Batch(batch) => {
                    producer.enqueue(settings, batch)?;
                    batch.to
                }
            };
            stands.insert(request.partition(), Sent::Upto(upto));
        }
        producer.settle()?;
        Ok(stands)
    }
}

/// Sends until the other end of the queue is gone. Blocks.
pub fn produce(settings: &Settings, queue: &Receiver<Given>, answers: &dyn Answers, status: &Status) {
    let mut settings = settings.clone();
    let mut taken = Vec::new();
    let mut waits = Backoff::default();
    while !status.is_over() {
        let ended = Sink::new(&settings).and_then(|mut sink| {
            status.connected.store(true, Ordering::Relaxed);
            run(&mut sink, &settings, queue, &mut taken, answers, status, &mut waits)
        });
        status.connected.store(false, Ordering::Relaxed);
        let Err(error) = ended else { return };
        status.outages.fetch_add(1, Ordering::Relaxed);
        let is_too_long = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        if is_too_long && settings.message_bytes_max > RESULT_BYTES_LEAST {
            settings.message_bytes_max /= 2;
            let bytes = settings.message_bytes_max;
            tracing::warn!("brokers take no messages so long: events over {bytes} bytes go without their results");
            continue;
        }
        let sentence = said(&error);
        if status.failed(&sentence) {
            tracing::warn!("events wait: {sentence}");
        }
        let mut left = waits.wait();
        while !left.is_zero() && !status.is_over() {
            thread::sleep(left.min(LOOK_EVERY));
            left = left.saturating_sub(LOOK_EVERY);
        }
    }
}

fn run(
    sink: &mut Sink,
    settings: &Settings,
    queue: &Receiver<Given>,
    taken: &mut Vec<Given>,
    answers: &dyn Answers,
    status: &Status,
    waits: &mut Backoff,
) -> KafkaResult<()> {
    loop {
        if taken.is_empty() {
            let Ok(first) = queue.recv() else { return Ok(()) };
            taken.push(first);
        }
        let mut bytes: usize = taken.iter().map(|given| size(&given.request)).sum();
        while taken.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(given) = queue.try_recv() else { break };
            bytes += size(&given.request);
            taken.push(given);
        }
        // One partition at most comes twice: from a leader that was replaced here by itself. The later term counts.
        let cluster = taken[0].request.cluster();
        let mut latest: BTreeMap<u16, &Request> = BTreeMap::new();
        for request in taken.iter().map(|given| &given.request).filter(|request| request.cluster() == cluster) {
            let place = latest.entry(request.partition()).or_insert(request);
            if place.term() <= request.term() {
                *place = request;
            }
        }
        let requests: Vec<&Request> = latest.into_values().collect();
        let stands = sink.carry_out(settings, cluster, &requests)?;
        *waits = Backoff::default();
        for request in &requests {
            if let (Request::Batch(batch), Some(Sent::Upto(upto))) = (request, stands.get(&request.partition()))
                && *upto == batch.to
            {
                status.events.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
            }
        }
        status.groups.fetch_add(1, Ordering::Relaxed);
        let terms: BTreeMap<u16, u64> = requests.iter().map(|request| (request.partition(), request.term())).collect();
        taken.retain(|Given { by, request }| {
            if request.cluster() != cluster {
                return true;
            }
            let (partition, term) = (request.partition(), request.term());
            let stands = stands.get(&partition).filter(|_| terms[&partition] == term);
            answers.sent(*by, partition, term, stands.copied().unwrap_or(Sent::Overtaken));
            false
        });
    }
}

/// What a request weighs, in bytes.
fn size(request: &Request) -> usize {
    match request {
        Request::Open { .. } => size_of::<Request>(),
        Request::Batch(batch) => batch.bytes.len() + batch.events.len() * size_of::<super::Event>(),
    }
}

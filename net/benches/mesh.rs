//! A hop over the mesh: messages between two executors on threads of their own, the receiver on another core where there is one.
//!
//! `stream` is the time per message when a turn pushes one, 64 or 1,024 and then flushes; `round trip` is one message there
//! and its answer back, where both sides may have to be woken.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glommio::channels::shared_channel::ConnectedReceiver;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use taskmaster_net::mesh::{Ends, Mesh, rings};

/// What crosses in a message here, about as large as a shard's: a connection, a header, a buffer's place.
type Message = [u64; 8];
/// As large as a message that asks for an answer.
const ECHO: u64 = 1;

/// What the sending executor is asked to time: this many messages, so many per flush, or round trips when it is 0.
struct Order {
    messages: u64,
    per_flush: u64,
}

fn executor(core: usize) -> LocalExecutorBuilder {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    LocalExecutorBuilder::new(Placement::Fixed(core % cores)).io_memory(1 << 20)
}

/// Receives everything; answers what asks for it and the last message of an order.
fn receiver(ends: Ends<Message>) -> ExecutorJoinHandle<()> {
    let run = move || async move {
        let (mesh, mut rings) = ends.connect().await;
        let (_, ring) = rings.pop().expect("two shards");
        while let Some(batch) = ring.recv().await {
            for message in batch.iter().filter(|message| message[0] == ECHO) {
                mesh.push(0, *message);
            }
            mesh.flush();
        }
    };
    executor(1).spawn(run).expect("an executor starts")
}

fn sender(ends: Ends<Message>, orders: Receiver<Order>, times: Sender<Duration>) -> ExecutorJoinHandle<()> {
    let run = move || async move {
        let (mesh, mut rings) = ends.connect().await;
        let (_, ring) = rings.pop().expect("two shards");
        for Order { messages, per_flush } in orders {
            let start = Instant::now();
            if per_flush == 0 {
                for _ in 0..messages {
                    send(&mesh, &ring, 1).await;
                }
            } else {
                stream(&mesh, &ring, messages, per_flush).await;
            }
            times.send(start.elapsed()).expect("the bench waits for it");
        }
    };
    executor(0).spawn(run).expect("an executor starts")
}

/// Sends turns of messages, as fast as the ring takes them, and waits until the last one has arrived.
async fn stream(mesh: &Mesh<Message>, ring: &ConnectedReceiver<Vec<Message>>, messages: u64, per_flush: u64) {
    for _ in 0..messages.div_ceil(per_flush) {
        (0..per_flush).for_each(|number| mesh.push(1, [0, number, 0, 0, 0, 0, 0, 0]));
        while !mesh.flush() {
            glommio::executor().yield_task_queue_now().await;
        }
    }
    send(mesh, ring, 1).await;
}

/// One message there and its answer back.
async fn send(mesh: &Mesh<Message>, ring: &ConnectedReceiver<Vec<Message>>, number: u64) {
    mesh.push(1, [ECHO, number, 0, 0, 0, 0, 0, 0]);
    while !mesh.flush() {
        glommio::executor().yield_task_queue_now().await;
    }
    ring.recv().await.expect("the receiver lives as long");
}

fn mesh(c: &mut Criterion) {
    let (mut ends, (orders, to_do), (done, times)) = (rings(2), channel(), channel());
    let receiving = receiver(ends.pop().expect("two shards"));
    let sending = sender(ends.pop().expect("two shards"), to_do, done);
    let time = |messages, per_flush| {
        orders.send(Order { messages, per_flush }).expect("the sender runs");
        times.recv().expect("the sender answers")
    };
    let mut group = c.benchmark_group("mesh");
    group.sample_size(10).throughput(Throughput::Elements(1));
    for per_flush in [1, 64, 1_024] {
        group.bench_function(BenchmarkId::new("stream", per_flush), |b| {
            b.iter_custom(|messages| {
                let rounds = messages.div_ceil(per_flush);
                time(rounds * per_flush, per_flush).mul_f64(messages as f64 / (rounds * per_flush) as f64)
            });
        });
    }
    group.bench_function("round trip", |b| b.iter_custom(|messages| time(messages, 0)));
    group.finish();
    drop(orders);
    sending.join().expect("the sender ends");
    receiving.join().expect("the receiver ends");
}

criterion_group!(benches, mesh);
criterion_main!(benches);

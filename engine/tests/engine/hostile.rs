//! Bytes and numbers that no honest client sends: refused with a code, never a panic, and work goes on.

use taskmaster_engine::Shard;
use taskmaster_protocol::body::{
    self, Assign, AwaitTask, Cancel, Complete, ConfigureQueue, Credit, Expire, ExpireRow, Extra, Fail, GetTask,
    GetWorkflow, Leases, ListQueues, ListTasks, ListWorkflows, Progress, ProgressRow, Retry, Span, Spec, Submit,
    Subscribe,
};
use taskmaster_protocol::{Body, Code, FrameBuffer, Operation, TaskId};

use crate::job::{body_of, id, job, jobs, workflow_of};
use crate::random::Random;
use crate::world::{CLIENT, START_US, World, complete_body, config, fail_body, subscription};

const WORKER: u64 = 10;

fn bytes_of<B: Body>(body: &B) -> (Operation, FrameBuffer) {
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    (B::OPERATION, bytes)
}

/// A valid body of every operation, about things that exist.
fn valid_bodies(world: &mut World, random: &mut Random) -> Vec<(Operation, FrameBuffer)> {
    let number = 1_000 + random.below(1_000_000);
    let known = id(0, random.below(40));
    world.credit(WORKER, 5);
    let mut batch = jobs("mail", number, 3);
    batch[0] = batch[0].clone().unique("u", 5_000).delay_ms(10).deadline_in_ms(50_000);
    batch[1] = batch[1].clone().concurrency("c", 2).priority(0);
    batch[2].custom = "license=1".to_owned();
    let flow = workflow_of(id(0, number), "w", false, &[job("mail", number + 5), job("mail", number + 6).needs(&[0])]);
    let mut bodies = vec![
        bytes_of(&body_of(&batch)),
        bytes_of(&flow),
        bytes_of(&subscription(WORKER, &["mail", "news"], 20, "license=3", |body| body.cpu_milli = 9_000)),
        bytes_of(&Credit { credit: 3 }),
        bytes_of(&Cancel { ids: vec![known, id(0, 3)], workflows: random.below(2) }),
        bytes_of(&Retry { ids: vec![known, id(0, 7)] }),
        bytes_of(&ConfigureQueue { set: 127, rate_milli_per_s: 5_000, rate_burst: 4, concurrency: 9, ..queue() }),
        bytes_of(&GetTask { id: known }),
        (Operation::Why, bytes_of(&GetTask { id: known }).1),
        bytes_of(&AwaitTask { id: known, timeout_ms: 5_000, workflow: 0 }),
        bytes_of(&ListTasks { limit: 10, ..ListTasks::default() }),
        bytes_of(&ListQueues::default()),
        bytes_of(&GetWorkflow { id: id(0, 500), from: 0, limit: 5 }),
        bytes_of(&ListWorkflows { limit: 5 }),
    ];
    if let Some(lease) = world.leases().first() {
        let leases = bytes_of(&Leases { rows: vec![lease.row()] });
        let mut progress = Progress::default();
        let note = body::put(&mut progress.bytes, b"half");
        let (id, token, locator) = (lease.id, lease.token, lease.locator);
        progress.rows.push(ProgressRow { id, token, done_permille: 1, locator, note });
        bodies.push(bytes_of(&complete_body(&[(lease, b"r")])));
        bodies.push(bytes_of(&fail_body(lease, "code", "message", b"log", false)));
        bodies.push((Operation::Release, leases.1.clone()));
        bodies.push(leases);
        bodies.push(bytes_of(&progress));
    }
    bodies
}

fn queue() -> ConfigureQueue {
    let mut queue = ConfigureQueue { retention_ms: 10_000, depth_max: 100_000, ..ConfigureQueue::default() };
    queue.queue = body::put(&mut queue.bytes, b"mail");
    queue
}

fn mutate(random: &mut Random, body: &mut FrameBuffer) {
    match random.below(12) {
        0 => body.resize(random.index(body.len() + 1), 0),
        1 => {
            let junk: Vec<u8> = (0..random.below(64)).map(|_| random.next().to_le_bytes()[0]).collect();
            body.extend_from_slice(&junk);
        }
        2 => (0..body.len()).for_each(|at| body[at] = random.next().to_le_bytes()[0]),
        3 => {}
        4..=7 => {
            let at = random.index(body.len()) & !3;
            let extreme = *random.pick(&[0u32, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX, 1_000, 0xFFFF]);
            let end = (at + 4).min(body.len());
            body[at..end].copy_from_slice(&extreme.to_le_bytes()[..end - at]);
        }
        _ => {
            for _ in 0..=random.below(3) {
                let at = random.index(body.len());
                body[at] ^= 1 << random.below(8);
            }
        }
    }
}

/// Sends mutated frames for a while; the shard must still work, and recover to what it said.
fn session(seed: u64, frames: u32) {
    let random = &mut Random::new(seed);
    let mut world = World::with(config(2));
    world.worker(WORKER, &["mail"], 50);
    world.submit(&jobs("mail", 0, 40));
    world.workflow(id(0, 500), true, &[job("mail", 501), job("mail", 502).needs(&[0])]);
    for _ in 0..frames {
        let mut bodies = valid_bodies(&mut world, random);
        let which = random.index(bodies.len());
        let (operation, body) = &mut bodies[which];
        mutate(random, body);
        let number = if random.once_in(30) { random.below(70) } else { operation.number().into() };
        let partition = if random.once_in(20) { *random.pick(&[1, 2, 63, 4_095, 0xFFFF]) } else { 0 };
        let flags = u8::try_from(random.below(4)).unwrap();
        let conn = *random.pick(&[CLIENT, WORKER, 77]);
        world.send_bytes(u16::try_from(number).unwrap(), flags, conn, partition, body);
        if random.once_in(3) {
            world.settle();
        }
        if random.once_in(10) {
            world.advance_ms(u64::from(random.below(3_000)));
        }
        if random.once_in(200) {
            world.disconnect(conn);
            world.worker(WORKER, &["mail"], 50);
        }
        world.inbox.retain(|message| !message.header.is_response());
    }
    world.settle();
    world.worker(99, &["sane"], 10);
    let task = world.submit_one(job("sane", 900_000));
    let lease = world.leases().into_iter().find(|lease| lease.id == task).unwrap();
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
    let before = crate::recovery::durable_state(&mut world);
    world.restart(None);
    assert_eq!(crate::recovery::durable_state(&mut world), before, "seed {seed}");
}

#[test]
fn mutated_frames_are_refused_or_harmless_and_recovery_agrees() {
    for seed in 0..60 {
        session(seed, 400);
    }
}

#[test]
fn random_bytes_are_malformed_for_every_operation() {
    let random = &mut Random::new(5);
    let mut world = World::new();
    for operation in 0..70u16 {
        for length in [0, 1, 7, 16, 64, 1_000] {
            let mut body = FrameBuffer::new();
            (0..length).for_each(|_| body.push(random.next().to_le_bytes()[0]));
            let sent = world.send_bytes(operation, 0, CLIENT, 0, &body);
            world.settle();
            if let Some(reply) = world.reply(sent) {
                let takes_any_body = [
                    Operation::Ping,
                    Operation::ListQueues,
                    Operation::ListStreams,
                    Operation::ListWorkflows,
                    Operation::ClusterMap,
                ];
                let is_one = Operation::from_number(operation).is_some_and(|it| takes_any_body.contains(&it));
                assert!(reply.code() != Code::Ok || is_one, "operation {operation} of {length} bytes");
            }
        }
    }
    assert_eq!(world.shard.stats().tasks, 0);
}

#[test]
fn bodies_that_are_not_aligned_are_refused() {
    let mut world = World::new();
    let mut shifted = FrameBuffer::new();
    shifted.push(0);
    body_of(&jobs("mail", 0, 1)).append_to(&mut FrameBuffer::new());
    shifted.extend_from_slice(&bytes_of(&body_of(&jobs("mail", 0, 1))).1);
    let sent = world.send_bytes(Operation::Submit.number(), 0, CLIENT, 0, &shifted[1..]);
    assert_eq!(world.reply(sent).unwrap().code(), Code::Malformed);
}

#[test]
fn the_engine_s_own_records_are_refused_from_outside() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 5);
    let task = world.submit_one(job("mail", 0));
    let expire = Expire { rows: vec![ExpireRow { id: task, attempt: 1, what: 1 }] };
    assert_eq!(world.call(CLIENT, 0, &expire).code(), Code::UnknownOperation);
    assert_eq!(world.call(CLIENT, 0, &Assign::default()).code(), Code::UnknownOperation);
    for operation in [Operation::Hello, Operation::Revoke, Operation::GoAway, Operation::NodeStats] {
        let code = world.call_as(operation, 0, CLIENT, 0, &Leases::default()).code();
        assert_eq!(code, Code::UnknownOperation);
    }
    let lease = world.lease();
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
}

/// The code with which a submit body is refused.
fn refused(change: impl FnOnce(&mut Submit)) -> Code {
    let mut world = World::new();
    let mut body = body_of(&[job("mail", 0).delay_ms(5)]);
    change(&mut body);
    let reply = world.call(CLIENT, 0, &body);
    world.advance_ms(100_000);
    if reply.code() != Code::Ok {
        assert_eq!(world.shard.stats().tasks, 0, "nothing of a refused frame is kept");
    }
    reply.code()
}

#[test]
fn submissions_with_impossible_values_are_refused_with_their_code() {
    let spec = |change: fn(&mut Spec)| refused(|body| change(&mut body.specs[0]));
    let extra = |change: fn(&mut Extra)| refused(|body| change(&mut body.extras[0]));
    assert_eq!(refused(|_| {}), Code::Ok);
    assert_eq!(refused(|body| body.tasks.clear()), Code::Invalid);
    assert_eq!(refused(|body| body.tasks[0].id = TaskId::default()), Code::WrongPartition);
    assert_eq!(refused(|body| body.tasks[0].id.lo = 0), Code::WrongPartition);
    assert_eq!(refused(|body| body.tasks[0].id = id(1, 0)), Code::WrongPartition);
    assert_eq!(refused(|body| body.tasks[0].spec = 1), Code::Malformed);
    assert_eq!(refused(|body| body.tasks[0].spec = u32::MAX), Code::Malformed);
    assert_eq!(refused(|body| body.tasks[0].extra = 2), Code::Malformed);
    assert_eq!(refused(|body| body.tasks[0].extra = u32::MAX), Code::Malformed);
    assert_eq!(refused(|body| body.tasks[0].payload.at = u32::MAX), Code::Malformed);
    assert_eq!(refused(|body| body.tasks[0].payload.len = u32::MAX), Code::Malformed);
    assert_eq!(refused(|body| body.tasks = vec![body.tasks[0]; 100_001]), Code::TooLarge);
    assert_eq!(refused(|body| body.specs = vec![body.specs[0]; 4_097]), Code::TooLarge);
    assert_eq!(spec(|spec| spec.queue = Span::default()), Code::Invalid);
    assert_eq!(spec(|spec| spec.kind = Span::default()), Code::Invalid);
    assert_eq!(spec(|spec| spec.queue.len = 1 << 30), Code::Malformed);
    assert_eq!(spec(|spec| spec.priority = 4), Code::Invalid);
    assert_eq!(spec(|spec| spec.lease_ms = 0), Code::Invalid);
    assert_eq!(spec(|spec| spec.lease_ms = u32::MAX), Code::Invalid);
    assert_eq!(spec(|spec| spec.attempts_max = 0), Code::Invalid);
    assert_eq!(spec(|spec| spec.attempts_max = u16::MAX), Code::Invalid);
    assert_eq!(extra(|extra| extra.needs = Span { at: 0, len: 1 }), Code::Malformed);
    assert_eq!(extra(|extra| extra.needs = Span { at: u32::MAX, len: u32::MAX }), Code::Malformed);
    assert_eq!(extra(|extra| extra.unique_key = Span { at: 5, len: u32::MAX }), Code::Malformed);
    let name = |bytes: &'static [u8]| {
        refused(move |body| {
            let span = body::put(&mut body.bytes, bytes);
            body.specs[0].queue = span;
        })
    };
    assert_eq!(name(b"\xFF\xFE"), Code::Malformed);
    assert_eq!(name(b"a\nb"), Code::Invalid);
    assert_eq!(name(b"a,b"), Code::Invalid);
    assert_eq!(name(&[b'x'; 129]), Code::Invalid);
    assert_eq!(name(&[b'x'; 128]), Code::Ok);
    let custom = |text: &'static str| {
        refused(move |body| {
            let span = body::put(&mut body.bytes, text.as_bytes());
            body.specs[0].custom = span;
        })
    };
    for text in ["gpu", "a=1,a=1", "=1", "a=-1", "a=18446744073709551616"] {
        assert_eq!(custom(text), Code::Invalid, "{text}");
    }
    let key = |length: usize| {
        refused(move |body| {
            let span = body::put(&mut body.bytes, &vec![b'k'; length]);
            body.extras[0].unique_key = span;
        })
    };
    assert_eq!((key(512), key(513)), (Code::Ok, Code::TooLarge));
}

#[test]
fn the_largest_legal_numbers_overflow_nothing() {
    let mut world = World::new();
    let ten_years_ms = taskmaster_protocol::limits::HORIZON_MS_MAX;
    let mut extreme = job("mail", 0).with_spec(|spec| {
        (spec.memory_bytes, spec.cpu_milli, spec.gpu_milli) = (u64::MAX, u32::MAX, u32::MAX);
        (spec.backoff_ms, spec.backoff_max_ms, spec.backoff_factor_centi) = (u32::MAX, u32::MAX, u16::MAX);
        (spec.retention_ms, spec.lease_ms, spec.attempts_max) = (u32::MAX, 86_400_000, 10_000);
    });
    extreme.custom = "license=18446744073709551615".to_owned();
    let extreme = extreme.unique("u", u32::MAX).concurrency("c", u32::MAX);
    let mut timed = extreme.clone().delay_ms(ten_years_ms - 1).deadline_in_ms(ten_years_ms);
    (timed.id, timed.unique_key) = (id(0, 1), b"v".to_vec());
    let mut twin = extreme.clone();
    (twin.id, twin.unique_key) = (id(0, 2), b"w".to_vec());
    world.submit(&[extreme, timed, twin]);
    world.configure("mail", 127 & !3, |queue| {
        (queue.rate_milli_per_s, queue.rate_burst, queue.concurrency) = (1_000_000_000_000, u32::MAX, u32::MAX);
        (queue.retention_ms, queue.depth_max) = (u32::MAX, u64::MAX);
    });
    let all = |body: &mut Subscribe| {
        (body.cpu_milli, body.gpu_milli, body.memory_bytes) = (u32::MAX, u32::MAX, u64::MAX);
    };
    world.worker_with(WORKER, &["mail"], u32::MAX, "license=18446744073709551615", all);
    world.credit(WORKER, u32::MAX);
    let lease = world.lease();
    world.worker(11, &["mail"], u32::MAX);
    let other = world.lease();
    assert_eq!(world.fail(&lease, "x"), Code::Ok);
    assert_eq!(world.complete(&other, b"r"), Code::Ok);
    world.advance_ms(ten_years_ms);
    world.leases();
    for cursor in [[u64::MAX; 2], [u64::MAX >> 1; 2]] {
        world.call(CLIENT, 0, &ListTasks { cursor, limit: u32::MAX, states: u32::MAX, ..ListTasks::default() });
    }
    world.call(CLIENT, 0, &ListWorkflows { limit: u32::MAX });
    let waiting = world.await_task(id(0, 1), u32::MAX);
    world.advance_ms(3_600_000);
    let _ = world.reply(waiting);
    world.restart(None);
}

#[test]
fn subscriptions_with_impossible_values_are_refused() {
    let mut world = World::new();
    let mut code = |queues: &[&str], custom: &str, change: fn(&mut Subscribe)| {
        world.call(WORKER, 0, &subscription(WORKER, queues, 5, custom, change)).code()
    };
    assert_eq!(code(&[], "", |_| {}), Code::Invalid);
    assert_eq!(code(&["q"; 257], "", |_| {}), Code::Invalid);
    assert_eq!(code(&["a\0"], "", |_| {}), Code::Invalid);
    assert_eq!(code(&["a"], &"a=1,".repeat(100_000), |_| {}), Code::Invalid);
    assert_eq!(code(&["a"], "", |body| body.worker.len = u32::MAX), Code::Malformed);
    assert_eq!(code(&["a"], "", |body| body.queues[0].at = u32::MAX), Code::Malformed);
    assert_eq!(code(&["a"], "", |body| body.namespace = body::put(&mut body.bytes, &[b'n'; 200])), Code::Invalid);
    assert_eq!(code(&["a"], "", |body| body.worker = body::put(&mut body.bytes, &[b'n'; 20_000])), Code::Ok);
}

#[test]
fn queue_names_cannot_fill_the_memory() {
    let mut world = World::new();
    let mut refused = 0;
    for round in 0..400 {
        let names: Vec<String> = (0..256).map(|number| format!("queue-{round}-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let reply = world.call(WORKER, 0, &subscription(WORKER, &names, 0, "", |_| {}));
        refused += u32::from(reply.code() == Code::TooLarge);
    }
    assert!(refused > 100);
    let mut refused = 0;
    for round in 0..10 {
        let many: Vec<_> =
            (0..4_000).map(|number| job(&format!("q-{round}-{number}"), round * 4_000 + number)).collect();
        refused += u32::from(world.submit_frame(&many).code() == Code::TooLarge);
    }
    assert!(refused > 0);
    world.submit_one(job("q-0-0", 900_000));
}

#[test]
fn contracts_cannot_grow_without_bound() {
    let mut world = World::new();
    let mut refused = 0;
    for round in 0..10 {
        let many: Vec<_> = (0..4_000)
            .map(|number| {
                job("mail", round * 4_000 + number)
                    .with_spec(|spec| spec.memory_bytes = (round * 4_000 + number).into())
            })
            .collect();
        refused += u32::from(world.submit_frame(&many).code() == Code::TooLarge);
    }
    assert_eq!(refused, 2);
    world.worker(WORKER, &["mail"], 100_000);
    assert_eq!(world.leases().len(), 32_000);
}

#[test]
fn rows_that_share_bytes_cannot_multiply_them() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10_000);
    world.submit(&jobs("mail", 0, 5_000));
    let leases = world.leases();
    let mut complete = complete_body(&leases.iter().map(|lease| (lease, &b""[..])).collect::<Vec<_>>());
    let shared = body::put(&mut complete.bytes, &vec![1; 1 << 20]);
    complete.rows.iter_mut().for_each(|row| row.result = shared);
    complete.rows[0].token += 1;
    assert_eq!(world.call(WORKER, 0, &complete).code(), Code::TooLarge);
    let mut fail = fail_body(&leases[0], "c", "m", &vec![1; 60_000], false);
    fail.rows = vec![fail.rows[0]; 90_000];
    fail.rows[0].token += 1;
    assert_eq!(world.call(WORKER, 0, &fail).code(), Code::TooLarge);
    let mut many = Complete { rows: vec![complete.rows[1]; 100_001], bytes: Vec::new() };
    many.rows.iter_mut().for_each(|row| row.result = Span::default());
    assert_eq!(world.call(WORKER, 0, &many).code(), Code::TooLarge);
    assert_eq!(world.call(WORKER, 0, &Fail { rows: vec![], bytes: vec![] }).code(), Code::Ok);
    let mut submit = body_of(&jobs("mail", 10_000, 50_000));
    let shared = body::put(&mut submit.bytes, &vec![1; 1 << 20]);
    submit.tasks.iter_mut().for_each(|row| row.payload = shared);
    assert_eq!(world.call(CLIENT, 0, &submit).code(), Code::Overloaded);
    let rows: Vec<_> = (0..3_000).map(|number| job("mail", 200_000 + number).delay_ms(1)).collect();
    let mut flow = workflow_of(id(0, 1), "w", false, &rows);
    flow.needs = vec![0; 2_000];
    flow.extras.iter_mut().skip(1).for_each(|extra| extra.needs = Span { at: 0, len: 2_000 });
    assert_eq!(world.call(CLIENT, 0, &flow).code(), Code::TooLarge);
}

#[test]
fn broken_snapshots_are_refused_without_a_panic() {
    let mut world = World::new();
    world.workflow(id(0, 500), false, &[job("mail", 0), job("mail", 1).needs(&[0])]);
    world.submit(&[job("mail", 2).unique("u", 0).concurrency("c", 1)]);
    let (_, chunks) = world.snapshot(|_| {});
    let random = &mut Random::new(3);
    for round in 0..6_000 {
        let damaged = round % chunks.len();
        let (tag, mut chunk) = chunks[damaged].clone();
        let at = random.index(chunk.len());
        chunk.resize(chunk.len() - at % 2, 0);
        let at = at.min(chunk.len() - 1);
        chunk[at] ^= 1 << random.below(8);
        let mut shard = Shard::new(config(1), START_US);
        // Chunks are checksummed where they are stored; here only the layout is checked.
        let mut restored = chunks[..damaged].iter().try_for_each(|(tag, chunk)| shard.restore_chunk(*tag, chunk));
        restored = restored.and_then(|()| shard.restore_chunk(tag, &chunk));
        let _ = restored
            .and_then(|()| chunks[damaged + 1..].iter().try_for_each(|(tag, chunk)| shard.restore_chunk(*tag, chunk)));
    }
}

//! A program of small numbers, run against a shard: requests that are well-formed and mostly sensible, and events.

use taskmaster_engine::{ConnId, Input};
use taskmaster_protocol::body::{
    self, AwaitTask, Cancel, ChangeState, Complete, CompleteRow, ConfigureQueue, Credit, Empty, Extra, Fail, FailRow,
    ForkWorkflow, GetTask, GetWorkflow, LeaseRow, Leases, ListQueues, ListTasks, ListWorkflows, Progress, ProgressRow,
    ReadState, Retry, SaveRow, SaveState, Segment, Span, Spec, Submit, Subscribe, TaskRow, WorkflowRow,
};
use taskmaster_protocol::frame::{FLAG_RESEND, Header};
use taskmaster_protocol::state::{address_of, digest_of};
use taskmaster_protocol::{Body, FrameBuffer, Operation, PartitionId, TaskId};

use crate::world::{Lease, PARTITIONS, START_US, World};

/// Actions of one run at most.
const ACTIONS_MAX: usize = 400;
const QUEUES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
const LEASES_MS: [u32; 4] = [100, 1_000, 1_000, 60_000];
const TIMES_MS: [u64; 8] = [0, 0, 1, 10, 300, 2_500, 60_000, 10_000_000];

/// The fuzzer's bytes, read from the front; zeros behind the end.
struct Tape<'a>(&'a [u8]);

impl Tape<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    fn one_in(&mut self, chance: u8) -> bool {
        self.below(chance) == chance - 1
    }

    fn id(&mut self, partition: u16) -> TaskId {
        let number = u32::from(self.below(64)) + 1;
        TaskId::new(START_US / 1_000 + u64::from(number), PartitionId(partition), 7, number)
    }

    fn workflow_id(&mut self, partition: u16) -> TaskId {
        TaskId::new(START_US / 1_000, PartitionId(partition), 9, u32::from(self.below(6)) + 1)
    }

    fn partition(&mut self) -> u16 {
        u16::from(self.byte()) % PARTITIONS
    }

    fn conn(&mut self) -> u64 {
        u64::from(self.below(3))
    }

    fn time_ms(&mut self) -> u64 {
        self.pick(&TIMES_MS)
    }

    /// Up to 40 KiB of bytes.
    fn blob(&mut self, area: &mut Vec<u8>) -> Span {
        let size = usize::from(self.byte());
        let size = if size > 250 { (size - 250) << 13 } else { size };
        body::put(area, &vec![0x5A; size])
    }

    fn lease(&mut self, world: &mut World) -> Option<Lease> {
        let count = world.leases.len();
        let index = (count.checked_sub(1)?).saturating_sub(usize::from(self.below(16)));
        // A lease is mostly used once, sometimes again, sometimes with a wrong detail.
        let mut lease = if self.one_in(4) { world.leases[index] } else { world.leases.swap_remove(index) };
        match self.below(32) {
            0 => lease.token ^= 1,
            1 => lease.locator = u32::from(self.byte()),
            2 => lease.attempt += 1,
            _ => {}
        }
        Some(lease)
    }
}

/// Runs a program and checks that the state survives a restart.
pub fn run(program: &[u8]) {
    let mut tape = Tape(program);
    let small = tape.one_in(8);
    let mut world = World::new(if small { 1 << 20 } else { 256 << 20 });
    for _ in 0..ACTIONS_MAX {
        if tape.0.is_empty() {
            break;
        }
        act(&mut tape, &mut world);
    }
    world.check_recovery();
}

fn act(tape: &mut Tape<'_>, world: &mut World) {
    match tape.below(28) {
        0..=2 => submit(tape, world, false),
        3 => submit(tape, world, true),
        4 => subscribe(tape, world),
        5 => send(world, tape.conn(), 0, &Credit { credit: u32::from(tape.byte()) }),
        6 | 7 => complete(tape, world),
        8 => fail(tape, world),
        9 => lease_rows(tape, world),
        10 => progress(tape, world),
        11 => cancel_or_retry(tape, world),
        12 => configure(tape, world),
        13 => query(tape, world),
        14 => world.make_durable(usize::from(tape.below(4))),
        15 | 16 => world.settle(),
        17 | 18 => {
            let ms = tape.time_ms() + u64::from(tape.byte());
            world.advance_ms(ms, 50);
        }
        19 => world.handle(Input::Disconnected { conn: ConnId(tape.conn()) }),
        20 => world.handle(Input::DiskFull(tape.one_in(4))),
        21 | 22 => world.snapshot_step(),
        23 | 24 => save_state(tape, world),
        25 => change_state(tape, world),
        26 => states(tape, world),
        _ => match tape.below(8) {
            0 => world.handle(Input::Drain),
            1 | 2 => world.crash(true),
            3 => world.crash(false),
            _ => world.settle(),
        },
    }
}

fn send<B: Body>(world: &mut World, conn: u64, partition: u16, body: &B) {
    send_as(world, B::OPERATION, 0, conn, partition, body);
}

fn send_as<B: Body>(world: &mut World, operation: Operation, flags: u8, conn: u64, partition: u16, body: &B) {
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    let header = Header { flags, ..Header::request(operation, 1, Some(PartitionId(partition))) };
    world.frame(conn, header, &bytes);
}

fn spec(tape: &mut Tape<'_>, bytes: &mut Vec<u8>) -> Spec {
    let custom: &[u8] = tape.pick(&[b"" as &[u8], b"", b"", b"disk=1", b"disk=3,net=2"]);
    Spec {
        queue: body::put(bytes, QUEUES[usize::from(tape.below(4))]),
        kind: body::put(bytes, b"k"),
        custom: body::put(bytes, custom),
        non_retryable: body::put(bytes, b"bad,worse"),
        cpu_milli: u32::from(tape.pick(&[0u8, 0, 1, 200])),
        memory_bytes: u64::from(tape.pick(&[0u8, 0, 1, 200])),
        lease_ms: tape.pick(&LEASES_MS),
        backoff_ms: u32::from(tape.byte()),
        backoff_max_ms: u32::from(tape.byte()) * 8,
        retention_ms: tape.pick(&[0, 1, 100, 5_000]),
        backoff_factor_centi: u16::from(tape.byte()) * 2,
        attempts_max: u16::from(tape.below(4)) + 1,
        priority: tape.below(4),
        ..Spec::default()
    }
}

fn extra(tape: &mut Tape<'_>, bytes: &mut Vec<u8>, now_us: u64, plain: bool) -> Extra {
    let which = tape.byte();
    let mut extra = Extra::default();
    if which & 1 != 0 {
        extra.delay_ms = tape.time_ms();
    }
    if which & 2 != 0 {
        extra.deadline_in_ms = tape.time_ms();
    }
    if which & 4 != 0 {
        extra.deadline_ms = now_us / 1_000 + tape.time_ms();
    }
    if which & 8 != 0 && plain {
        extra.unique_key = body::put(bytes, &[tape.below(3)]);
        extra.unique_window_ms = u32::from(tape.pick(&[0u8, 0, 10, 200]));
    }
    if which & 16 != 0 && plain {
        extra.concurrency_key = body::put(bytes, &[tape.below(3)]);
        extra.concurrency_limit = u32::from(tape.below(3));
    }
    if which & 32 != 0 {
        extra.not_before_ms = now_us / 1_000 + tape.time_ms();
    }
    if which & 64 != 0 {
        extra.name = body::put(bytes, b"step");
    }
    extra
}

fn submit(tape: &mut Tape<'_>, world: &mut World, as_workflow: bool) {
    let partition = tape.partition();
    let mut body = Submit::default();
    for _ in 0..=tape.below(2) {
        let spec = spec(tape, &mut body.bytes);
        body.specs.push(spec);
    }
    let specs = u8::try_from(body.specs.len()).unwrap_or(1);
    for row in 0..=u32::from(tape.below(6)) {
        let payload = tape.blob(&mut body.bytes);
        let mut task = TaskRow { id: tape.id(partition), spec: tape.below(specs).into(), extra: 0, payload };
        if tape.one_in(2) || as_workflow {
            let mut extra = extra(tape, &mut body.bytes, world.now_us, !as_workflow);
            let at = u32::try_from(body.needs.len()).unwrap_or(0);
            let len = if as_workflow && row > 0 { u32::from(tape.below(3)) } else { 0 };
            body.needs.extend((0..len).map(|_| u32::from(tape.byte()) % row.max(1)));
            extra.needs = Span { at, len };
            body.extras.push(extra);
            task.extra = u32::try_from(body.extras.len()).unwrap_or(0);
        }
        body.tasks.push(task);
    }
    if as_workflow {
        let name = body::put(&mut body.bytes, b"flow");
        let on_failure = tape.below(2).into();
        body.workflow.push(WorkflowRow { id: tape.workflow_id(partition), name, on_failure, reserved: 0 });
    }
    let flags = if tape.one_in(8) { FLAG_RESEND } else { 0 };
    send_as(world, Operation::Submit, flags, 0, partition, &body);
}

fn subscribe(tape: &mut Tape<'_>, world: &mut World) {
    let mut body = Subscribe { credit: tape.below(20).into(), ..Subscribe::default() };
    let which = tape.byte();
    for (index, queue) in QUEUES.iter().enumerate().filter(|(index, _)| which & (1 << index) != 0) {
        let span = body::put(&mut body.bytes, queue);
        body.queues.insert(if index % 2 == 0 { 0 } else { body.queues.len() }, span);
    }
    if which & 16 != 0 {
        body.cpu_milli = 250;
        body.memory_bytes = 250;
        body.custom = body::put(&mut body.bytes, b"disk=4,net=2");
    }
    body.worker = body::put(&mut body.bytes, b"w");
    send(world, tape.conn(), 0, &body);
}

fn complete(tape: &mut Tape<'_>, world: &mut World) {
    let mut body = Complete::default();
    let mut partition = None;
    for _ in 0..=tape.below(4) {
        let Some(lease) = tape.lease(world) else { break };
        if *partition.get_or_insert(lease.id.partition().0) == lease.id.partition().0 || tape.one_in(16) {
            let Lease { id, token, locator, attempt, .. } = lease;
            let result = tape.blob(&mut body.bytes);
            body.rows.push(CompleteRow { id, token, locator, attempt, result });
        }
    }
    send(world, tape.conn(), partition.unwrap_or(0), &body);
}

fn fail(tape: &mut Tape<'_>, world: &mut World) {
    let mut body = Fail::default();
    let mut partition = None;
    for _ in 0..=tape.below(3) {
        let Some(Lease { id, token, locator, attempt, .. }) = tape.lease(world) else { break };
        if *partition.get_or_insert(id.partition().0) == id.partition().0 {
            let code: &[u8] = tape.pick(&[b"odd" as &[u8], b"bad", b""]);
            let (code, message) = (body::put(&mut body.bytes, code), body::put(&mut body.bytes, b"it broke"));
            let (log_tail, is_final) = (tape.blob(&mut body.bytes), tape.one_in(4).into());
            body.rows.push(FailRow { id, token, locator, attempt, code, message, log_tail, is_final, reserved: 0 });
        }
    }
    send(world, tape.conn(), partition.unwrap_or(0), &body);
}

fn lease_rows(tape: &mut Tape<'_>, world: &mut World) {
    let operation = tape.pick(&[Operation::Extend, Operation::Extend, Operation::Release]);
    let Some(Lease { conn, id, token, locator, attempt }) = tape.lease(world) else { return };
    if operation == Operation::Extend {
        world.leases.push(Lease { conn, id, token, locator, attempt });
    }
    let body = Leases { rows: vec![LeaseRow { id, token, locator, attempt }; usize::from(tape.below(3))] };
    let conn = if tape.one_in(8) { tape.conn() } else { conn };
    send_as(world, operation, 0, conn, id.partition().0, &body);
}

fn progress(tape: &mut Tape<'_>, world: &mut World) {
    let Some(lease) = tape.lease(world) else { return };
    world.leases.push(lease);
    let Lease { conn, id, token, locator, .. } = lease;
    let mut body = Progress::default();
    let note = tape.blob(&mut body.bytes);
    body.rows.push(ProgressRow { id, token, done_permille: u32::from(tape.byte()) * 5, locator, note });
    send(world, conn, id.partition().0, &body);
}

fn cancel_or_retry(tape: &mut Tape<'_>, world: &mut World) {
    let partition = tape.partition();
    let kind = tape.below(3);
    let mut ids = Vec::new();
    for _ in 0..=tape.below(4) {
        ids.push(if kind == 0 { tape.workflow_id(partition) } else { tape.id(partition) });
    }
    if kind < 2 {
        send(world, 0, partition, &Cancel { ids, workflows: u32::from(kind == 0) });
    } else {
        send(world, 0, partition, &Retry { ids });
    }
}

fn configure(tape: &mut Tape<'_>, world: &mut World) {
    let mut body = ConfigureQueue {
        set: u32::from(tape.byte()) | u32::from(tape.one_in(4)) * body::queue_field::WEIGHT,
        rate_milli_per_s: u64::from(tape.byte()) * 500,
        rate_burst: tape.below(4).into(),
        concurrency: tape.below(4).into(),
        retention_ms: u32::from(tape.byte()) * 10,
        depth_max: tape.below(40).into(),
        paused: tape.one_in(3).into(),
        draining: tape.one_in(8).into(),
        deadline_action: tape.below(2).into(),
        policy: tape.below(4).into(),
        weight: tape.below(8).into(),
        ..ConfigureQueue::default()
    };
    body.queue = body::put(&mut body.bytes, QUEUES[usize::from(tape.below(4))]);
    for partition in 0..PARTITIONS {
        send(world, 0, partition, &body);
    }
}

/// A state of a few chunks, some of them runs of its parent's.
fn save_state(tape: &mut Tape<'_>, world: &mut World) {
    let Some(lease) = tape.lease(world) else { return };
    world.leases.push(lease);
    let Lease { conn, id, token, locator, attempt } = lease;
    let mut body = SaveState::default();
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    for _ in 0..tape.below(5) {
        if tape.one_in(3) {
            let count = u32::from(tape.below(3));
            body.segments.push(Segment { from: tape.below(4).into(), count, data: Span::default() });
        } else {
            chunks.push(vec![tape.below(6); usize::from(tape.byte()) * 40 + 1]);
            let data = body::put(&mut body.bytes, &chunks[chunks.len() - 1]);
            body.segments.push(Segment { data, ..Segment::default() });
        }
    }
    // Right for whole states; with runs it mostly is not.
    let digest = digest_of(&chunks.iter().map(|chunk| address_of(chunk)).collect::<Vec<_>>());
    let segments = Span { at: u32::from(tape.one_in(16)), len: u32::try_from(body.segments.len()).unwrap_or(0) };
    let (label, parent) = (tape.blob(&mut body.bytes), tape.below(6).into());
    body.rows.push(SaveRow { id, token, locator, attempt, parent, reserved: 0, digest, label, segments });
    send(world, conn, id.partition().0, &body);
}

fn change_state(tape: &mut Tape<'_>, world: &mut World) {
    let partition = tape.partition();
    let mut body = ChangeState {
        id: tape.id(partition),
        to: tape.id(partition),
        verb: tape.below(11).into(),
        version: tape.below(6).into(),
        keep: tape.below(3).into(),
        ..ChangeState::default()
    };
    let name: &[u8] = tape.pick(&[b"main" as &[u8], b"a", b"b", b""]);
    body.name = body::put(&mut body.bytes, name);
    let flags = if tape.one_in(8) { FLAG_RESEND } else { 0 };
    send_as(world, Operation::ChangeState, flags, 0, partition, &body);
}

fn states(tape: &mut Tape<'_>, world: &mut World) {
    let partition = tape.partition();
    let (id, version, from) = (tape.id(partition), tape.below(6).into(), tape.below(4).into());
    match tape.below(3) {
        0 => send_as(world, Operation::StateLog, 0, 0, partition, &GetTask { id }),
        1 => send(world, 0, partition, &ReadState { id, version, from }),
        _ => {
            let tasks = (0..tape.below(7)).map(|_| tape.id(partition)).collect();
            let (id, to) = (tape.workflow_id(partition), tape.workflow_id(partition));
            send(world, 0, partition, &ForkWorkflow { id, to, tasks, at: from, reserved: 0 });
        }
    }
}

fn query(tape: &mut Tape<'_>, world: &mut World) {
    let (conn, partition) = (tape.conn(), tape.partition());
    let (id, flow) = (tape.id(partition), tape.workflow_id(partition));
    let limit = u32::from(tape.byte());
    match tape.below(10) {
        0 => send(world, conn, partition, &GetTask { id }),
        1 => send_as(world, Operation::Why, 0, conn, partition, &GetTask { id }),
        2 => send(world, conn, partition, &AwaitTask { id, timeout_ms: limit * 8, workflow: 0 }),
        3 => send(world, conn, partition, &AwaitTask { id: flow, timeout_ms: limit * 8, workflow: 1 }),
        4 => {
            let cursor = [if limit > 128 { u64::MAX } else { limit.into() }, limit.into()];
            let states = tape.byte().into();
            send(world, conn, partition, &ListTasks { states, cursor, limit, ..ListTasks::default() });
        }
        5 => send(world, conn, partition, &ListQueues::default()),
        6 => send(world, conn, partition, &GetWorkflow { id: flow, from: limit, limit: tape.byte().into() }),
        7 => send(world, conn, partition, &ListWorkflows { limit }),
        8 => send(world, conn, partition, &Empty::default()),
        _ => send(world, conn, 9, &GetTask { id }),
    }
}

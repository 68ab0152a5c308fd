//! Recovery: what replay of the log, or of a snapshot and the log after it, brings back.

use taskmaster_engine::{Effects, Input, Shard, State};
use taskmaster_protocol::body::{ListWorkflows, WorkflowPage};
use taskmaster_protocol::{Code, FrameBuffer};

use crate::job::{Job, id, job, jobs};
use crate::world::{CLIENT, Lease, Record, START_US, TaskView, World, config, single};

const WORKER: u64 = 10;

/// Everything that queries tell of what is durable. Leases are volatile: a leased task reads as ready.
pub(crate) fn durable_state(world: &mut World) -> Vec<String> {
    let mut told = Vec::new();
    for partition in 0..world.config.partitions {
        let mut tasks = world.list(partition, 0);
        tasks.sort_by_key(|task| task.id);
        for task in tasks {
            let whole = world.task(task.id);
            told.push(format!("{:?}", durable_view(whole)));
        }
        let mut queues = world.queues(partition);
        queues.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, mut queue) in queues {
            queue.counts[2] += queue.counts[3] + queue.counts[1];
            (queue.counts[1], queue.counts[3]) = (0, 0);
            (queue.namespace, queue.queue) = Default::default();
            told.push(format!("{name}: {queue:?}"));
        }
        let page: WorkflowPage = world.call(CLIENT, partition, &ListWorkflows { limit: 10_000 }).read();
        for workflow in page.workflows {
            let page = world.get_workflow(workflow.id);
            let rows: Vec<_> = page.rows.iter().map(|row| (row.id, row.finished_us)).collect();
            let info = page.workflows[0];
            told.push(format!("{:?} {} {} {rows:?}", info.id, info.submitted_us, info.finished_us));
        }
    }
    told
}

fn durable_view(mut task: TaskView) -> TaskView {
    if matches!(task.state, State::Leased | State::Delayed) {
        // Whether a delay is over is the clock's business, not the log's.
        task.attempt -= u32::from(task.state == State::Leased);
        task.state = State::Ready;
    }
    if task.state == State::Ready {
        task.at_us = 0;
    }
    (task.worker, task.note, task.done_permille) = Default::default();
    task
}

/// A world in which everything has happened once.
fn eventful() -> (World, Vec<Lease>) {
    let mut world = World::with(config(3));
    world.worker(WORKER, &["mail", "slow"], 40);
    world.configure("mail", taskmaster_protocol::body::queue_field::CONCURRENCY, |queue| queue.concurrency = 30);
    for partition in 0..3u16 {
        let mut batch: Vec<Job> = jobs("mail", 0, 30).into_iter().map(|job| job.in_partition(partition)).collect();
        batch[3] = batch[3].clone().delay_ms(50_000);
        batch[4] = batch[4].clone().deadline_in_ms(60_000).retention_ms(777_000);
        batch[5] = batch[5].clone().unique("once", 0);
        batch[6] = batch[6].clone().concurrency("user", 1);
        batch[7] = batch[7].clone().concurrency("user", 1);
        batch[8] = batch[8].clone().backoff_ms(20_000, 20_000);
        batch[9] = batch[9].clone().attempts(1);
        world.submit(&batch);
        let flow: Vec<Job> = (0u32..8)
            .map(|number| {
                let mut step = job("slow", 100 + number).attempts(1).in_partition(partition);
                step.name = format!("s{number}");
                if number == 0 { step } else { step.needs(&[number / 2, (number - 1) / 2]) }
            })
            .collect();
        world.workflow(id(partition, 500), partition == 1, &flow);
    }
    let leases = world.leases();
    let mut open = Vec::new();
    for (number, lease) in leases.into_iter().enumerate() {
        world.advance_ms(7);
        match number % 5 {
            0 | 3 => assert_eq!(world.complete(&lease, format!("result {number}").as_bytes()), Code::Ok),
            1 => assert_eq!(world.fail(&lease, "oops"), Code::Ok),
            2 => open.push(lease),
            _ => assert_eq!(single(&world.cancel(&[lease.id])), Code::Ok),
        }
        world.credit(WORKER, 1);
    }
    open.extend(world.leases());
    (world, open)
}

#[test]
fn replay_brings_back_every_durable_fact() {
    let (mut world, open) = eventful();
    let before = durable_state(&mut world);
    world.crash();
    assert_eq!(durable_state(&mut world), before);
    assert_eq!(world.shard.leased(), 0);
    for lease in &open {
        let code = world.complete(lease, b"from before the crash");
        assert!(matches!(code, Code::StaleLease | Code::AlreadyFinal), "{code}");
    }
    let highest = open.iter().map(|lease| lease.token).max().unwrap();
    world.worker(WORKER, &["mail", "slow"], 1_000);
    let again = world.leases();
    assert!(!again.is_empty() && again.iter().all(|lease| lease.token > highest));
}

#[test]
fn what_was_not_durable_is_gone_and_may_be_sent_again() {
    let mut world = World::new();
    world.submit(&jobs("mail", 0, 2));
    world.send(CLIENT, 0, &crate::job::body_of(&jobs("mail", 2, 2)));
    world.crash();
    assert_eq!(world.shard.stats().tasks, 2);
    let reply = world.resubmit(&jobs("mail", 0, 4));
    assert_eq!((reply.accepted, reply.exceptions.len()), (2, 2));
}

#[test]
fn a_snapshot_restores_what_replay_does() {
    let (mut world, _) = eventful();
    let before = durable_state(&mut world);
    let (sequence, chunks) = world.snapshot(|_| {});
    assert_eq!(sequence, world.log.len() as u64);
    world.restart(Some((sequence, &chunks)));
    assert_eq!(durable_state(&mut world), before);
}

/// Goes on in some way that depends on `step`: every kind of change.
fn go_on(world: &mut World, open: &mut Vec<Lease>, step: u32) {
    let partition = u16::try_from(step % 3).unwrap();
    world.submit(&[
        job("mail", 2_000 + step).in_partition(partition),
        job("late", 6_000 + step).in_partition(partition),
    ]);
    world.cancel(&[id(partition, step % 30)]);
    world.retry(&[id(partition, (step + 7) % 30)]);
    if step.is_multiple_of(4) {
        world.cancel_workflow(id(partition, 500));
    }
    if step.is_multiple_of(5) {
        world.retry(&[id(partition, 100), id(partition, 101)]);
    }
    let _ = world.try_submit(&[job("mail", 4_000 + step).in_partition(partition).unique("once", 0)]);
    open.extend(world.leases());
    for _ in 0..3.min(open.len()) {
        let lease = open.remove(0);
        if step.is_multiple_of(2) {
            world.complete(&lease, b"later")
        } else {
            world.fail(&lease, "later")
        };
    }
    world.credit(WORKER, 3);
    world.advance_ms(u64::from(step % 9) * 500);
    world.configure("late", taskmaster_protocol::body::queue_field::PAUSED, |queue| queue.paused = step % 2);
}

#[test]
fn a_snapshot_taken_in_slices_while_work_goes_on_stands_for_the_moment_of_its_begin() {
    let mut world = World::with(taskmaster_engine::Config { kept_max: 60, ..config(3) });
    world.worker(WORKER, &["mail", "slow", "late", "bulk"], 40);
    let mut open = Vec::new();
    for step in 0..20 {
        go_on(&mut world, &mut open, step);
    }
    for partition in 0..3 {
        let bulk: Vec<Job> = jobs("bulk", 10_000, 5_000).into_iter().map(|job| job.in_partition(partition)).collect();
        world.submit(&bulk);
    }
    let mut step = 20;
    let (sequence, chunks) = world.snapshot(|world| {
        for _ in 0..4 {
            go_on(world, &mut open, step);
            step += 1;
        }
    });
    assert!(chunks.len() >= 9 && sequence + 50 < world.log.len() as u64);
    for _ in 0..10 {
        go_on(&mut world, &mut open, step);
        step += 1;
    }
    let live = durable_state(&mut world);
    world.restart(None);
    let replayed = durable_state(&mut world);
    assert_eq!(replayed, live);
    world.restart(Some((sequence, &chunks)));
    assert_eq!(durable_state(&mut world), replayed);
    let tail = world.log.split_off(usize::try_from(sequence).unwrap());
    let mut sparse = World::with(world.config.clone());
    sparse.now_us = world.now_us;
    sparse.shard = Shard::new(world.config.clone(), world.now_us);
    for (tag, chunk) in &chunks {
        sparse.shard.restore_chunk(*tag, chunk).unwrap();
    }
    for (number, record) in (sequence + 1..).zip(&tail) {
        sparse.shard.replay(number, record.kind, &record.bytes).unwrap();
    }
    let covered = || Record { kind: 0, bytes: FrameBuffer::new() };
    sparse.log = (0..sequence).map(|_| covered()).chain(tail).collect();
    sparse.durable = sparse.log.len();
    sparse.come_back();
    assert_eq!(durable_state(&mut sparse), replayed, "the log before the snapshot is not needed");
}

#[test]
fn snapshots_follow_one_another() {
    let (mut world, mut open) = eventful();
    for round in 0..4 {
        let mut step = 100 * round;
        let (sequence, chunks) = world.snapshot(|world| {
            go_on(world, &mut open, step);
            step += 1;
        });
        go_on(&mut world, &mut open, step);
        let before = durable_state(&mut world);
        world.restart(Some((sequence, &chunks)));
        assert_eq!(durable_state(&mut world), before, "round {round}");
        world.worker(WORKER, &["mail", "slow", "late"], 40);
        open = world.leases();
    }
}

#[test]
fn delays_deadlines_and_retention_go_on_after_recovery() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 100);
    world.submit(&[
        job("mail", 0).delay_ms(5_000),
        job("late", 1).deadline_in_ms(8_000),
        job("mail", 2).retention_ms(9_000),
    ]);
    let lease = world.lease();
    world.complete(&lease, b"r");
    for snapshot in [false, true] {
        let taken = snapshot.then(|| world.snapshot(|_| {}));
        world.restart(taken.as_ref().map(|(sequence, chunks)| (*sequence, chunks.as_slice())));
        assert_eq!(world.state(id(0, 0)), State::Delayed);
    }
    world.advance_ms(8_500);
    assert_eq!(world.state(id(0, 0)), State::Ready);
    assert_eq!(world.state(id(0, 1)), State::Expired);
    world.advance_ms(5_000);
    assert!(world.find(id(0, 2)).is_none());
}

#[test]
fn retention_is_the_one_in_force_when_the_task_ended_also_after_a_snapshot() {
    let mut world = World::new();
    let ended = world.submit_one(job("mail", 0));
    world.cancel(&[ended]);
    world.configure("mail", taskmaster_protocol::body::queue_field::RETENTION, |queue| queue.retention_ms = 1);
    let (sequence, chunks) = world.snapshot(|_| {});
    world.advance_ms(1_000);
    // The id is still known, so it is refused; every later recovery must decide the same.
    assert_eq!(world.try_submit(&[job("mail", 0)]).accepted, 0);
    world.restart(Some((sequence, &chunks)));
    world.advance_ms(1_000);
    assert_eq!(world.try_submit(&[job("mail", 0)]).accepted, 0);
}

#[test]
fn a_leased_task_s_ready_time_is_not_in_the_future_after_recovery() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1);
    world.submit(&jobs("mail", 0, 2));
    world.lease();
    let (sequence, chunks) = world.snapshot(|_| {});
    world.restart(Some((sequence, &chunks)));
    world.worker(WORKER, &["mail"], 10);
    let leases = world.leases();
    assert_eq!(leases.iter().map(|lease| lease.ready_us).max(), Some(START_US));
    assert_eq!(leases[0].id, id(0, 0));
}

#[test]
fn records_out_of_order_or_broken_stop_recovery_with_a_sentence() {
    let mut world = World::new();
    let begun = world.log.len();
    for number in 0..3 {
        world.submit_one(job("mail", number));
    }
    assert_eq!(world.logged(), 3, "one record for each");
    let replay = |shard: &mut Shard, range: core::ops::Range<usize>| {
        let records = world.log[range.clone()].iter().zip(range.start as u64 + 1..);
        records.map(|(record, sequence)| shard.replay(sequence, record.kind, &record.bytes)).find(Result::is_err)
    };
    let fresh = || {
        let mut shard = Shard::new(config(1), START_US);
        assert_eq!(replay(&mut shard, 0..begun), None);
        shard
    };
    let mut shard = fresh();
    assert_eq!(replay(&mut shard, begun..begun + 1), None);
    let error = replay(&mut shard, begun + 2..begun + 3).unwrap().unwrap_err().to_string();
    assert!(error.contains(&format!("record {} of the log is missing", begun + 2)), "{error}");
    assert_eq!(replay(&mut shard, begun..begun + 2), None);
    shard.start(START_US);
    let mut effects = Effects::default();
    shard.end_turn(START_US, &mut effects, |_, _, _| {});
    shard.handle(Input::Durable { sequence: shard.last_sequence() }, START_US, &mut effects);
    shard.end_turn(START_US, &mut effects, |_, _, _| {});
    assert_eq!(shard.stats().tasks, 2);
    let entry = &world.log[begun];
    let sequence = begun as u64 + 1;
    for cut in 0..entry.bytes.len() {
        assert!(fresh().replay(sequence, entry.kind, &entry.bytes[..cut]).is_err(), "cut at {cut}");
    }
    // The group's own order is looked at too, whatever the numbers of the records are.
    let last = &world.log[begun + 2];
    let error = fresh().replay(sequence, last.kind, &last.bytes).unwrap_err().to_string();
    assert!(error.contains("of group 0 is there, and entry"), "{error}");
}

/// Which partitions a shard has is written in its own log; what is in it of others stops recovery.
#[test]
fn records_of_partitions_that_do_not_exist_stop_recovery_with_a_sentence() {
    let mut world = World::with(config(2));
    world.submit_one(job("mail", 0).in_partition(1));
    let mut elsewhere = Shard::new(config(1), START_US);
    let records = (1..).zip(&world.log);
    let error = records.map(|(sequence, record)| elsewhere.replay(sequence, record.kind, &record.bytes));
    let error = error.filter_map(Result::err).next().unwrap().to_string();
    assert!(error.contains("partition 1 is not of this node"), "{error}");
}

#[test]
fn a_snapshot_knows_who_held_a_unique_key_when_it_began() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1);
    world.submit_one(job("mail", 0).unique("k", 5_000));
    let lease = world.lease();
    world.complete(&lease, b"");
    let mut step = 0;
    let (sequence, chunks) = world.snapshot(|world| {
        step += 1;
        if step == 1 {
            // Its key is held, then free, then another's: before the holder was copied.
            world.try_submit(&[job("mail", 1), job("mail", 2).unique("k", 5_000)]);
            world.advance_ms(6_000);
            world.submit_one(job("mail", 3).unique("k", 5_000));
        }
    });
    let live = [0, 1, 2, 3].map(|number| world.find(id(0, number)).is_some());
    assert_eq!(live, [true, true, false, true]);
    world.restart(Some((sequence, &chunks)));
    assert_eq!([0, 1, 2, 3].map(|number| world.find(id(0, number)).is_some()), live);
}

#[test]
fn a_state_of_an_earlier_format_is_refused_with_the_version_to_use() {
    let mut world = World::new();
    world.submit(&jobs("mail", 0, 3));
    let (_, chunks) = world.snapshot(|_| {});
    let mut shard = Shard::new(config(1), START_US);
    let (state, earlier) = (6, 1);
    let refusal = chunks.iter().find_map(|(tag, chunk)| {
        let tag = if *tag == state { earlier } else { *tag };
        shard.restore_chunk(tag, chunk).err()
    });
    let sentence = refusal.expect("one chunk is a state").to_string();
    assert!(sentence.contains("use the version that wrote it"), "{sentence}");
}

//! Versioned state: saving under a lease, resuming, branches and forks, and what survives.

use taskmaster_engine::State;
use taskmaster_protocol::body::{
    self, BatchReply, ChangeState, ForkWorkflow, GetTask, ReadState, SaveRow, SaveState, Segment, Span, StateHistory,
    StatePage, StateReply, state_verb,
};
use taskmaster_protocol::state::{address_of, digest_of};
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId};

use crate::job::{id, job};
use crate::recovery::durable_state;
use crate::world::{CLIENT, Lease, Message, World, config, text};

const WORKER: u64 = 10;

/// A piece of a state under construction.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    New(&'a [u8]),
    /// Chunks of the parent: from, and the chunks themselves.
    Old(u32, &'a [&'a [u8]]),
}

use Part::{New, Old};

/// A save body of one row.
pub(crate) fn save_body(lease: &Lease, parent: u32, label: &str, parts: &[Part<'_>]) -> SaveState {
    let mut body = SaveState::default();
    let mut addresses = Vec::new();
    for part in parts {
        let segment = match part {
            New(bytes) => {
                addresses.push(address_of(bytes));
                Segment { data: body::put(&mut body.bytes, bytes), ..Segment::default() }
            }
            Old(from, chunks) => {
                addresses.extend(chunks.iter().map(|chunk| address_of(chunk)));
                Segment { from: *from, count: u32::try_from(chunks.len()).unwrap(), ..Segment::default() }
            }
        };
        body.segments.push(segment);
    }
    body.rows.push(SaveRow {
        id: lease.id,
        token: lease.token,
        locator: lease.locator,
        attempt: lease.attempt,
        parent,
        reserved: 0,
        digest: digest_of(&addresses),
        label: body::put(&mut body.bytes, label.as_bytes()),
        segments: Span { at: 0, len: u32::try_from(parts.len()).unwrap() },
    });
    body
}

/// The version, or the code of the only exception.
fn outcome(message: &Message) -> Result<u32, Code> {
    let reply: StateReply = message.read();
    match reply.exceptions.as_slice() {
        [] => Ok(reply.versions[0]),
        [exception] => {
            assert_eq!(reply.versions, [0]);
            Err(Code::from_number(exception.code))
        }
        _ => panic!("{reply:?}"),
    }
}

impl World {
    pub(crate) fn save(&mut self, lease: &Lease, parent: u32, parts: &[Part<'_>]) -> Result<u32, Code> {
        outcome(&self.call(lease.conn, lease.id.partition().0, &save_body(lease, parent, "", parts)))
    }

    pub(crate) fn change(&mut self, id: TaskId, verb: u32, version: u32, name: &str) -> Message {
        let mut body = ChangeState { id, verb, version, ..ChangeState::default() };
        body.name = body::put(&mut body.bytes, name.as_bytes());
        self.call(CLIENT, id.partition().0, &body)
    }

    pub(crate) fn history(&mut self, id: TaskId) -> StateHistory {
        self.call_as(Operation::StateLog, 0, CLIENT, id.partition().0, &GetTask { id }).read()
    }

    /// As [`Self::history`], while entries stay on their way to the disk.
    fn history_without_settling(&mut self, id: TaskId) -> StateHistory {
        let sent = self.send_as(Operation::StateLog, 0, CLIENT, id.partition().0, &GetTask { id });
        self.reply(sent).unwrap().read()
    }

    fn page(&mut self, id: TaskId, version: u32) -> StatePage {
        self.call(CLIENT, id.partition().0, &ReadState { id, version, from: 0 }).read()
    }

    pub(crate) fn bytes_of(&mut self, id: TaskId, version: u32) -> Vec<u8> {
        self.page(id, version).bytes
    }

    /// All versions with their bytes, as text.
    pub(crate) fn told(&mut self, id: TaskId) -> String {
        let history = self.history(id);
        let states: Vec<Vec<u8>> = history.versions.iter().map(|row| self.bytes_of(id, row.number)).collect();
        format!("{history:?} {states:?}")
    }

    pub(crate) fn digest(&self) -> u64 {
        self.shard.digest(PartitionId(0)).unwrap().1
    }
}

/// A world with one leased task.
fn begun() -> (World, TaskId, Lease) {
    let mut world = World::new();
    let id = world.submit_one(job("mail", 1));
    world.worker(WORKER, &["mail"], 10);
    let lease = world.lease();
    (world, id, lease)
}

#[test]
fn a_saved_state_is_numbered_kept_and_read() {
    let (mut world, id, lease) = begun();
    assert_eq!(lease.version, 0);
    assert_eq!(world.history(id).versions.len(), 0);
    assert_eq!(world.save(&lease, 0, &[New(b"aaaa"), New(b"bbbb")]), Ok(1));
    assert_eq!(world.save(&lease, 1, &[Old(0, &[b"aaaa"]), New(b"cc"), Old(1, &[b"bbbb"])]), Ok(2));
    let history = world.history(id);
    let told: Vec<_> =
        history.versions.iter().map(|row| (row.number, row.parent, row.size, row.new_bytes, row.chunks)).collect();
    assert_eq!(told, [(1, 0, 8, 8, 2), (2, 1, 10, 2, 3)]);
    assert_eq!((history.head, history.made, text(&history.bytes, history.current)), (2, 2, "main".to_owned()));
    assert_eq!(world.bytes_of(id, 1), b"aaaabbbb");
    assert_eq!(world.bytes_of(id, 0), b"aaaaccbbbb");
    let page = world.page(id, 2);
    assert_eq!(
        (page.lengths, page.version.digest),
        (vec![4, 2, 4], digest_of(&[address_of(b"aaaa"), address_of(b"cc"), address_of(b"bbbb")]))
    );
}

#[test]
fn a_save_is_answered_when_it_is_durable() {
    let (mut world, id, lease) = begun();
    let sent = world.send(WORKER, 0, &save_body(&lease, 0, "half", &[New(b"state")]));
    assert!(world.reply(sent).is_none());
    assert_eq!(world.history_without_settling(id).versions.len(), 0);
    world.settle();
    assert_eq!(outcome(&world.reply(sent).unwrap()), Ok(1));
    let history = world.history(id);
    assert_eq!(text(&history.bytes, history.versions[0].label), "half");
}

#[test]
fn the_next_attempt_resumes_from_the_head() {
    let (mut world, id, lease) = begun();
    world.save(&lease, 0, &[New(b"one")]).unwrap();
    world.save(&lease, 1, &[New(b"two")]).unwrap();
    world.fail(&lease, "broken");
    let next = world.lease();
    assert_eq!((next.attempt, next.version), (2, 2));
    assert_eq!(world.bytes_of(id, next.version), b"two");
    assert_eq!(world.save(&next, 2, &[New(b"three")]), Ok(3));
    assert_eq!(world.history(id).versions[2].attempt, 2);
}

#[test]
fn a_lease_that_is_over_saves_nothing() {
    let (mut world, id, lease) = begun();
    world.fail(&lease, "broken");
    let next = world.lease();
    assert_eq!(world.save(&lease, 0, &[New(b"late")]), Err(Code::StaleLease));
    assert_eq!(
        world.save(&Lease { token: next.token + 1, ..next.clone() }, 0, &[New(b"forged")]),
        Err(Code::StaleLease)
    );
    world.complete(&next, b"done");
    assert_eq!(world.save(&next, 0, &[New(b"too late")]), Err(Code::AlreadyFinal));
    assert_eq!(world.save(&Lease { id: crate::job::id(0, 99), ..next }, 0, &[New(b"?")]), Err(Code::UnknownTask));
    assert_eq!(world.history(id).versions.len(), 0);
    // One that was admitted before its attempt ended is too late all the same.
    let second = world.submit_one(job("mail", 2));
    let lease = world.lease();
    let fail = crate::world::fail_body(&lease, "broken", "", b"", false);
    let (_, saved) = (world.send(WORKER, 0, &fail), world.send(WORKER, 0, &save_body(&lease, 0, "", &[New(b"x")])));
    world.settle();
    assert_eq!(outcome(&world.reply(saved).unwrap()), Err(Code::StaleLease));
    assert_eq!(world.history(second).versions.len(), 0);
}

#[test]
fn a_save_that_is_sent_again_is_found_again_also_without_its_lease() {
    let (mut world, id, lease) = begun();
    let body = save_body(&lease, 0, "", &[New(b"once")]);
    for _ in 0..2 {
        assert_eq!(outcome(&world.call(WORKER, 0, &body)), Ok(1));
    }
    world.crash();
    assert_eq!(outcome(&world.call_as(Operation::SaveState, 2, WORKER, 0, &body)), Ok(1));
    assert_eq!(world.history(id).made, 1);
    assert_eq!(world.save(&lease, 1, &[New(b"another")]), Err(Code::StaleLease));
}

#[test]
fn rows_of_one_frame_are_answered_each_for_itself() {
    let mut world = World::new();
    world.submit(&[job("mail", 1), job("mail", 2), job("mail", 3)]);
    world.worker(WORKER, &["mail"], 10);
    let leases = world.leases();
    world.complete(&leases[1], b"");
    let mut body = SaveState::default();
    for lease in &leases {
        let one = save_body(lease, 0, "", &[New(&lease.payload)]);
        let mut row = one.rows[0];
        row.segments.at = u32::try_from(body.segments.len()).unwrap();
        body.segments.push(Segment { data: body::put(&mut body.bytes, &lease.payload), ..Segment::default() });
        row.label = Span::default();
        body.rows.push(row);
    }
    body.rows[2].digest = [0; 32];
    let reply: StateReply = world.call(WORKER, 0, &body).read();
    assert_eq!(reply.versions, [1, 0, 0]);
    let told: Vec<_> = reply.exceptions.iter().map(|row| (row.index, Code::from_number(row.code))).collect();
    assert_eq!(told, [(1, Code::AlreadyFinal), (2, Code::DigestMismatch)]);
    assert_eq!(world.bytes_of(leases[0].id, 1), leases[0].payload);
}

#[test]
fn a_wrong_digest_or_parent_saves_nothing() {
    let (mut world, id, lease) = begun();
    world.save(&lease, 0, &[New(b"good")]).unwrap();
    let before = world.told(id);
    let mut wrong = save_body(&lease, 1, "", &[New(b"better")]);
    wrong.rows[0].digest[0] ^= 1;
    assert_eq!(outcome(&world.call(WORKER, 0, &wrong)), Err(Code::DigestMismatch));
    assert_eq!(world.save(&lease, 2, &[New(b"of nobody")]), Err(Code::UnknownVersion));
    assert_eq!(world.save(&lease, 1, &[Old(0, &[b"good", b"more"])]), Err(Code::UnknownVersion));
    assert_eq!(world.told(id), before);
    assert_eq!(world.shard.stats().blob_bytes, 4 + "payload 1".len() as u64);
}

#[test]
fn malformed_saves_are_refused_before_the_log() {
    let (mut world, _, lease) = begun();
    let logged = world.logged();
    let large = vec![7; taskmaster_protocol::limits::STATE_CHUNK_BYTES_MAX + 1];
    let mut outside = save_body(&lease, 0, "", &[New(b"x")]);
    outside.rows[0].segments = Span { at: 1, len: 1 };
    let mut nothing = save_body(&lease, 0, "", &[New(b"x")]);
    nothing.segments[0] = Segment::default();
    let mut endless = save_body(&lease, 0, "", &[New(b"x")]);
    endless.segments[0] = Segment { from: 0, count: u32::MAX, data: Span::default() };
    let cases = [
        (save_body(&lease, 0, "", &[New(&large)]), Code::TooLarge),
        (save_body(&lease, 0, &"l".repeat(257), &[New(b"x")]), Code::TooLarge),
        (outside, Code::Malformed),
        (nothing, Code::Malformed),
        (endless, Code::TooLarge),
    ];
    for (body, code) in cases {
        assert_eq!(world.call(WORKER, 0, &body).code(), code);
    }
    assert_eq!(world.logged(), logged);
}

#[test]
fn a_rollback_is_where_the_next_attempt_resumes_and_the_old_line_stays() {
    let (mut world, id, lease) = begun();
    for version in 0..3 {
        world.save(&lease, version, &[New(&[u8::try_from(version).unwrap()])]).unwrap();
    }
    assert_eq!(outcome(&world.change(id, state_verb::ROLLBACK, 1, "")), Ok(1));
    // The attempt that runs goes on where it was, on a line of its own.
    assert_eq!(world.save(&lease, 3, &[New(b"on")]), Ok(4));
    assert_eq!(world.history(id).head, 1);
    world.fail(&lease, "broken");
    let next = world.lease();
    assert_eq!(next.version, 1);
    assert_eq!(world.save(&next, 1, &[New(b"anew")]), Ok(5));
    let history = world.history(id);
    assert_eq!((history.head, history.versions[4].parent), (5, 1));
    assert_eq!(world.bytes_of(id, 4), b"on");
}

#[test]
fn branches_and_tags_keep_versions_and_pruning_takes_the_others() {
    let (mut world, id, lease) = begun();
    for version in 0..6 {
        world.save(&lease, version, &[New(format!("state {version}").as_bytes())]).unwrap();
    }
    assert_eq!(outcome(&world.change(id, state_verb::TAG, 2, "good")), Ok(2));
    assert_eq!(outcome(&world.change(id, state_verb::BRANCH, 4, "other")), Ok(4));
    assert_eq!(outcome(&world.change(id, state_verb::SWITCH, 0, "other")), Ok(4));
    assert_eq!(world.save(&lease, 4, &[New(b"elsewhere")]), Ok(7));
    let mut prune = ChangeState { id, verb: state_verb::PRUNE, keep: 1, ..ChangeState::default() };
    assert_eq!(outcome(&world.call(CLIENT, 0, &prune)), Ok(4), "1, 3, 4 and 5 go");
    let kept: Vec<u32> = world.history(id).versions.iter().map(|row| row.number).collect();
    assert_eq!(kept, [2, 6, 7]);
    assert_eq!(outcome(&world.change(id, state_verb::SWITCH, 0, "main")), Ok(6));
    assert_eq!(outcome(&world.change(id, state_verb::DELETE_BRANCH, 0, "other")), Ok(6));
    assert_eq!(outcome(&world.change(id, state_verb::UNTAG, 0, "good")), Ok(6));
    prune.keep = 0;
    assert_eq!(outcome(&world.call(CLIENT, 0, &prune)), Ok(2));
    let stats = world.shard.stats();
    assert_eq!(stats.blob_bytes, ("state 5".len() + "payload 1".len()) as u64, "chunks nobody names are gone");
}

#[test]
fn changes_that_cannot_be_made_say_what_is_there() {
    let (mut world, id, lease) = begun();
    let refused = |message: &Message, code: Code, part: &str| {
        assert_eq!(message.code(), code);
        assert!(message.sentence().contains(part), "{}", message.sentence());
    };
    refused(&world.change(id, state_verb::ROLLBACK, 1, ""), Code::UnknownVersion, "has saved no state");
    world.save(&lease, 0, &[New(b"x")]).unwrap();
    world.save(&lease, 1, &[New(b"y")]).unwrap();
    refused(&world.change(id, state_verb::ROLLBACK, 9, ""), Code::UnknownVersion, "2 are kept, the latest: 2, 1");
    refused(&world.change(id, state_verb::SWITCH, 0, "x"), Code::UnknownVersion, "branches: \"main\"");
    refused(&world.change(id, state_verb::UNTAG, 0, "x"), Code::UnknownVersion, "tags: none");
    refused(&world.change(id, state_verb::DELETE_BRANCH, 0, "main"), Code::IllegalState, "switch");
    refused(&world.change(id, state_verb::BRANCH, 1, "main"), Code::Duplicate, "at version 2");
    refused(&world.change(id, state_verb::TAG, 1, ""), Code::Invalid, "missing");
    refused(&world.change(id, 77, 1, ""), Code::Invalid, "77");
    refused(&world.change(crate::job::id(0, 50), state_verb::TAG, 1, "a"), Code::UnknownTask, "no task");
    world.complete(&lease, b"done");
    refused(&world.change(id, state_verb::RESUME, 1, ""), Code::IllegalState, "fork");
    let unread = world.call(CLIENT, 0, &ReadState { id, version: 5, from: 0 });
    refused(&unread, Code::UnknownVersion, "the latest: 2, 1");
}

#[test]
fn a_failed_task_resumes_from_a_named_version() {
    let (mut world, id, lease) = begun();
    for version in 0..3 {
        world.save(&lease, version, &[New(&[u8::try_from(version).unwrap()])]).unwrap();
    }
    world.fail_with(&lease, "broken", "", b"", true);
    assert_eq!(world.state(id), State::Failed);
    assert_eq!(outcome(&world.change(id, state_verb::RESUME, 2, "")), Ok(2));
    let next = world.lease();
    assert_eq!((next.id, next.attempt, next.version), (id, 2, 2));
}

#[test]
fn a_fork_is_a_new_task_that_begins_with_the_version() {
    let (mut world, source, lease) = begun();
    world.save(&lease, 0, &[New(b"shared")]).unwrap();
    world.save(&lease, 1, &[New(b"later")]).unwrap();
    world.complete(&lease, b"result");
    let body = ChangeState { id: source, to: id(0, 77), verb: state_verb::FORK, version: 1, ..ChangeState::default() };
    let before = world.shard.stats().blob_bytes;
    assert_eq!(outcome(&world.call(CLIENT, 0, &body)), Ok(1));
    assert_eq!(world.shard.stats().blob_bytes - before, "payload 1".len() as u64, "chunks are shared");
    let fork = world.lease();
    assert_eq!((fork.id, &fork.payload[..], fork.version, fork.attempt), (id(0, 77), &b"payload 1"[..], 1, 1));
    assert_eq!(world.bytes_of(fork.id, 1), b"shared");
    assert_eq!(world.save(&fork, 1, &[Old(0, &[b"shared"]), New(b"+")]), Ok(2));
    assert_eq!(world.history(source).versions.len(), 2, "the source is as it was");
    assert_eq!(outcome(&world.call_as(Operation::ChangeState, 2, CLIENT, 0, &body)), Err(Code::Duplicate));
}

#[test]
fn a_workflow_is_forked_at_a_step_and_results_before_it_are_reused() {
    let mut world = World::new();
    let flow = id(0, 900);
    let steps: Vec<_> = [vec![], vec![0], vec![0], vec![1, 2]]
        .iter()
        .zip(0u32..)
        .map(|(needs, number)| {
            let mut step = job("mail", number);
            step.name = format!("s{number}");
            if needs.is_empty() { step } else { step.needs(needs) }
        })
        .collect();
    world.workflow(flow, false, &steps);
    world.worker(WORKER, &["mail"], 10);
    for _ in 0..3 {
        for lease in world.leases() {
            let result = format!("result of {}", String::from_utf8_lossy(&lease.payload));
            world.complete(&lease, result.as_bytes());
        }
    }
    assert_ne!(world.get_workflow(flow).workflows[0].finished_us, 0);
    let ids: Vec<TaskId> = (0..4).map(|row| id(0, 950 + row)).collect();
    let body = ForkWorkflow { id: flow, to: id(0, 901), tasks: ids.clone(), at: 1, reserved: 0 };
    let reply: BatchReply = world.call(CLIENT, 0, &body).read();
    assert_eq!((reply.accepted, reply.exceptions.len()), (4, 0));
    let states: Vec<State> = ids.iter().map(|&id| world.state(id)).collect();
    assert_eq!(states, [State::Succeeded, State::Leased, State::Succeeded, State::Waiting]);
    assert_eq!(world.task(ids[2]).result, b"result of payload 2");
    let again = world.lease();
    assert_eq!((again.id, &again.payload[..]), (ids[1], &b"payload 1"[..]));
    world.crash();
    world.worker(WORKER, &["mail"], 10);
    for expected in [ids[1], ids[3]] {
        let lease = world.lease();
        assert_eq!(lease.id, expected);
        world.complete(&lease, b"second run");
    }
    assert_ne!(world.get_workflow(id(0, 901)).workflows[0].finished_us, 0);
    let again: BatchReply = world.call_as(Operation::ForkWorkflow, 2, CLIENT, 0, &body).read();
    assert!(again.exceptions.iter().all(|row| row.code == Code::Duplicate.number()) && again.exceptions.len() == 4);
}

/// Two tasks with histories that share chunks, one of them final, one with branches; leases of the open ones.
fn eventful() -> (World, Vec<TaskId>, Lease) {
    let mut world = World::with(config(1));
    let ids = world.submit(&[job("mail", 1), job("mail", 2), job("mail", 3)]);
    world.worker(WORKER, &["mail"], 10);
    let leases = world.leases();
    let large: Vec<Vec<u8>> = (0u32..300).map(|number| number.to_le_bytes().repeat(1_000)).collect();
    let parts: Vec<Part<'_>> = large.iter().map(|chunk| New(chunk)).collect();
    for lease in &leases {
        world.save(lease, 0, &parts).unwrap();
        world.save(lease, 1, &[New(b"small"), New(&lease.payload)]).unwrap();
    }
    world.change(ids[0], state_verb::BRANCH, 1, "other");
    world.change(ids[0], state_verb::TAG, 2, "good");
    world.change(ids[0], state_verb::SWITCH, 0, "other");
    world.complete(&leases[1], b"done");
    (world, ids, leases[2].clone())
}

#[test]
fn a_snapshot_brings_the_same_histories_and_chunks_back() {
    let (mut world, ids, _) = eventful();
    let told: Vec<String> = ids.iter().map(|&id| world.told(id)).collect();
    let (state, digest, blobs) = (durable_state(&mut world), world.digest(), world.shard.stats().blob_bytes);
    let (sequence, chunks) = world.snapshot(|_| {});
    let bytes: usize = chunks.iter().map(|(_, chunk)| chunk.len()).sum();
    assert!(bytes < 1_500_000, "chunks that tasks share are written once: {bytes}");
    world.restart(Some((sequence, &chunks)));
    assert_eq!(ids.iter().map(|&id| world.told(id)).collect::<Vec<_>>(), told);
    assert_eq!((durable_state(&mut world), world.shard.stats().blob_bytes), (state, blobs));
    assert_eq!(world.digest(), digest);
    // A fork of what had succeeded still knows its payload.
    let body = ChangeState { id: ids[1], to: id(0, 77), verb: state_verb::FORK, version: 1, ..ChangeState::default() };
    assert_eq!(outcome(&world.call(CLIENT, 0, &body)), Ok(1));
    assert_eq!(world.task(id(0, 77)).payload, b"payload 2");
}

#[test]
fn a_snapshot_holds_what_was_when_it_began_whatever_is_saved_pruned_and_forgotten_meanwhile() {
    let (mut world, ids, lease) = eventful();
    let mut step = 0;
    let (sequence, chunks) = world.snapshot(|world| {
        step += 1;
        match step {
            1 => drop(world.save(&lease, 2, &[New(b"meanwhile"), Old(0, &[b"small"])]).unwrap()),
            2 => {
                let prune = ChangeState { id: lease.id, verb: state_verb::PRUNE, keep: 1, ..ChangeState::default() };
                assert_eq!(outcome(&world.call(CLIENT, 0, &prune)), Ok(2));
            }
            3 => drop(outcome(&world.change(ids[0], state_verb::ROLLBACK, 2, ""))),
            4 => assert_eq!(world.complete(&lease, b"done"), Code::Ok),
            _ => {}
        }
    });
    assert!(step > 4, "{step} slices");
    let told: Vec<String> = ids.iter().map(|&id| world.told(id)).collect();
    let (digest, blobs) = (world.digest(), world.shard.stats().blob_bytes);
    world.restart(Some((sequence, &chunks)));
    assert_eq!(ids.iter().map(|&id| world.told(id)).collect::<Vec<_>>(), told);
    assert_eq!((world.digest(), world.shard.stats().blob_bytes), (digest, blobs));
    world.restart(None);
    assert_eq!((world.digest(), world.shard.stats().blob_bytes), (digest, blobs), "the log alone brings the same");
}

#[test]
fn an_abandoned_snapshot_leaves_nothing_pinned_and_forgotten_tasks_leave_nothing() {
    let (mut world, ids, lease) = eventful();
    world.shard.snapshot_begin();
    let mut chunk = taskmaster_protocol::FrameBuffer::new();
    for _ in 0..3 {
        world.shard.snapshot_next(&mut chunk);
    }
    world.shard.snapshot_abandon();
    world.complete(&lease, b"");
    let open = world.task(ids[0]);
    assert_eq!(open.state, State::Leased);
    world.cancel(&[ids[0]]);
    world.advance_ms(u64::from(u32::MAX));
    assert!(ids.iter().all(|&id| world.find(id).is_none()));
    assert_eq!(world.shard.stats().blob_bytes, 0);
}

#[test]
fn saves_are_refused_when_memory_or_disk_is_full_and_completions_are_not() {
    let mut world = World::with(taskmaster_engine::Config { memory_bytes_max: 8 << 20, ..config(1) });
    world.submit_one(job("mail", 1));
    world.worker(WORKER, &["mail"], 10);
    let lease = world.lease();
    let mut version = 0;
    let refused = (0u32..4_000).find_map(|number| {
        let chunk = number.to_le_bytes().repeat(2_000);
        let message = world.call(WORKER, 0, &save_body(&lease, version, "", &[New(&chunk)]));
        if message.code() == Code::Ok {
            version = outcome(&message).unwrap();
            return None;
        }
        Some(message)
    });
    let refused = refused.expect("8 MiB are full at some point");
    assert_eq!((refused.code(), refused.refusal().retry_after_ms > 0), (Code::Overloaded, true));
    world.handle(taskmaster_engine::Input::DiskFull(true));
    let message = world.call(WORKER, 0, &save_body(&lease, version, "", &[New(b"x")]));
    assert_eq!(message.code(), Code::DiskFull);
    assert_eq!(world.complete(&lease, b""), Code::Ok);
}

//! Producers and operators: submissions of every shape, cancellations, retries, pauses, waits; repeated until answered.

use taskmaster_protocol::body::{
    self, AwaitTask, Cancel, ConfigureQueue, Extra, GetTask, Retry, Span, Spec, Submit, TaskRow, WorkflowRow,
    queue_field,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId};

use super::Options;
use super::actor::{Actor, Cx, Target};
use super::client::Client;
use super::oracle::Contract;
use super::world::START_US;

/// Queues of the simulation; `q1` has a concurrency limit.
pub(crate) const QUEUES: u32 = 3;
/// The limited queue and its limit.
pub(crate) const LIMITED: (u32, u32) = (1, 3);
/// Policies of queues, and that of those without a limit until another one is set.
const POLICIES: u16 = 4;
const DEADLINE: u16 = 3;
/// Retention that no run outlasts.
const LONG_MS: u32 = 86_400_000;
/// Time between checks whether all is done, once faults are over.
const CALM_PAUSE_US: u64 = 2_000_000;

/// Submits, and operates queues if it is the first one.
pub(crate) struct Producer {
    number: u64,
    client: Client,
    partitions: u16,
    /// Longest pause between two submissions.
    pause_us_max: u64,
    /// Some tasks are memoised.
    is_memo: bool,
    /// Some are restartable.
    is_restarting: bool,
    is_over: bool,
    next_us: u64,
    sequence: u32,
    resumed_us: u64,
    /// The policy that queues were given last.
    policy: u16,
}

impl Producer {
    pub(crate) fn new(number: u64, partitions: u16, pause_us_max: u64, options: &Options, client: Client) -> Self {
        Self {
            number,
            client,
            partitions,
            pause_us_max,
            is_memo: options.memo,
            is_restarting: options.restarts,
            is_over: false,
            next_us: 0,
            sequence: 0,
            resumed_us: 0,
            policy: DEADLINE,
        }
    }

    fn pick_partition(&self, cx: &mut Cx<'_>) -> PartitionId {
        PartitionId(u16::try_from(cx.dice.below(self.partitions.into())).expect("few"))
    }

    fn id(&mut self, partition: PartitionId, cx: &Cx<'_>) -> TaskId {
        self.sequence += 1;
        TaskId::new((START_US + cx.now_us) / 1_000, partition, self.number + 1, self.sequence)
    }

    fn spec(&self, area: &mut Vec<u8>, queue: u32, cx: &mut Cx<'_>) -> Spec {
        let leases_ms = [100, 150, 300, 1_000, 5_000];
        // Without chance: some need nothing, some a quarter of a worker that counts its processors, some all of it.
        let cpus_milli = [0, 1_000, 1_000, 0, 4_000];
        Spec {
            queue: body::put(area, format!("q{queue}").as_bytes()),
            kind: body::put(area, b"work"),
            lease_ms: leases_ms[cx.dice.index(leases_ms.len())],
            backoff_ms: cx.dice.small(0, 1) * cx.dice.small(1, 200),
            backoff_max_ms: 1_000,
            backoff_factor_centi: 200,
            attempts_max: u16::try_from(cx.dice.range(1, 5)).expect("few"),
            priority: u8::try_from(cx.dice.below(4)).expect("four"),
            retention_ms: if cx.dice.chance(15) { cx.dice.small(50, 3_000) } else { LONG_MS },
            restartable: (self.is_restarting && cx.dice.chance(70)).into(),
            cpu_milli: cpus_milli[self.sequence as usize % cpus_milli.len()],
            ..Spec::default()
        }
    }

    fn contract(spec: &Spec, queue: u32) -> Contract {
        Contract {
            queue,
            attempts_max: spec.attempts_max.into(),
            lease_us: u64::from(spec.lease_ms) * 1_000,
            may_be_forgotten: spec.retention_ms < LONG_MS,
            is_restartable: spec.restartable == 1,
            ..Contract::default()
        }
    }

    fn submit_batch(&mut self, cx: &mut Cx<'_>) {
        let partition = self.pick_partition(cx);
        let mut submit = Submit::default();
        let queues: Vec<u32> = (0..cx.dice.range(1, 3)).map(|_| cx.dice.small(0, QUEUES - 1)).collect();
        for &queue in &queues {
            let mut spec = self.spec(&mut submit.bytes, queue, cx);
            spec.memo = (self.is_memo && cx.dice.chance(50)).into();
            submit.specs.push(spec);
        }
        let count = if cx.dice.chance(20) { cx.dice.range(10, 40) } else { cx.dice.range(1, 6) };
        for _ in 0..count {
            let index = cx.dice.index(queues.len());
            let (queue, spec) = (queues[index], submit.specs[index]);
            let mut contract = Self::contract(&spec, queue);
            let extra = match spec.memo {
                0 => Self::extra(&mut submit.bytes, partition, &mut contract, cx),
                _ => Some(Self::memo_extra(&mut submit.bytes, partition, &mut contract, cx)),
            };
            let extra = extra.map_or(0, |extra| {
                submit.extras.push(extra);
                u32::try_from(submit.extras.len()).expect("few")
            });
            let id = self.id(partition, cx);
            let payload = match contract.memo {
                Some(memo) => body::put(&mut submit.bytes, &memo.to_le_bytes()),
                None => Self::payload(&mut submit.bytes, id, cx),
            };
            submit.tasks.push(TaskRow { id, spec: u32::try_from(index).expect("few"), extra, payload });
            cx.oracle.register(id, contract);
        }
        self.client.push(Operation::Submit, partition, &submit);
    }

    fn payload(area: &mut Vec<u8>, id: TaskId, cx: &mut Cx<'_>) -> Span {
        let len = match cx.dice.below(20) {
            0 => 0,
            1 => 3_000,
            2 if area.len() < 8_000 => 9_000,
            _ => cx.dice.range(1, 120),
        };
        let byte = id.lo.to_le_bytes()[0];
        body::put(area, &vec![byte; usize::try_from(len).expect("small")])
    }

    /// Keys are named so that equal ones meet in one partition and queue.
    fn extra(area: &mut Vec<u8>, partition: PartitionId, contract: &mut Contract, cx: &mut Cx<'_>) -> Option<Extra> {
        let mut extra = Extra::default();
        let mut needed = false;
        let scope = u32::from(partition.0) * 100 + contract.queue * 10;
        if cx.dice.chance(20) {
            let key = scope + cx.dice.small(0, 3);
            contract.unique = Some(key);
            extra.unique_key = body::put(area, format!("u{key}").as_bytes());
            if cx.dice.chance(30) {
                extra.unique_window_ms = cx.dice.small(50, 3_000);
                contract.unique_window_us = u64::from(extra.unique_window_ms) * 1_000;
            }
            needed = true;
        }
        let odd = contract.unique.map_or_else(|| cx.dice.chance(20), |key| key % 2 == 1);
        if odd {
            let key = contract.unique.unwrap_or_else(|| scope + 1 + 2 * cx.dice.small(0, 1));
            contract.key = Some(key);
            contract.key_limit = 1 + key % 3;
            extra.concurrency_key = body::put(area, format!("c{key}").as_bytes());
            extra.concurrency_limit = contract.key_limit;
            needed = true;
        }
        if cx.dice.chance(15) {
            extra.delay_ms = cx.dice.range(1, 1_500);
            contract.delay_us = extra.delay_ms * 1_000;
            needed = true;
        }
        if cx.dice.chance(10) {
            extra.deadline_in_ms = extra.delay_ms + cx.dice.range(20, 3_000);
            contract.has_deadline = true;
            needed = true;
        }
        needed.then_some(extra)
    }

    /// One of a few equal tasks of the partition: at most one of each runs at once, as under a key of limit 1.
    fn memo_extra(area: &mut Vec<u8>, partition: PartitionId, contract: &mut Contract, cx: &mut Cx<'_>) -> Extra {
        let memo = u32::from(partition.0) * 10 + cx.dice.small(0, 2);
        (contract.memo, contract.key, contract.key_limit) = (Some(memo), Some(1_000_000 + memo), 1);
        let mut extra = Extra { unique_key: body::put(area, b"1"), ..Extra::default() };
        if cx.dice.chance(50) {
            extra.unique_window_ms = cx.dice.small(50, 1_000);
        }
        if cx.dice.chance(15) {
            extra.deadline_in_ms = cx.dice.range(20, 3_000);
            contract.has_deadline = true;
        }
        extra
    }

    fn submit_workflow(&mut self, cx: &mut Cx<'_>) {
        let partition = self.pick_partition(cx);
        let mut submit = Submit::default();
        let queue = cx.dice.small(0, QUEUES - 1);
        let spec = self.spec(&mut submit.bytes, queue, cx);
        submit.specs.push(spec);
        let workflow = self.id(partition, cx);
        let continues = cx.dice.chance(40);
        let rows = cx.dice.small(2, 14);
        let mut ids = Vec::new();
        for row in 0..rows {
            let id = self.id(partition, cx);
            let mut contract = Self::contract(&spec, queue);
            (contract.workflow, contract.continues) = (Some(workflow), continues);
            let at = u32::try_from(submit.needs.len()).expect("few");
            for _ in 0..cx.dice.below(u64::from(row.min(3)) + 1) {
                let need = cx.dice.small(0, row - 1);
                submit.needs.push(need);
                contract.needs.push(ids[need as usize]);
            }
            let len = u32::try_from(submit.needs.len()).expect("few") - at;
            let name = body::put(&mut submit.bytes, format!("step {row}").as_bytes());
            let mut extra = Extra { needs: Span { at, len }, name, ..Extra::default() };
            if cx.dice.chance(5) {
                extra.delay_ms = cx.dice.range(1, 300);
                contract.delay_us = extra.delay_ms * 1_000;
            }
            submit.extras.push(extra);
            let payload = Self::payload(&mut submit.bytes, id, cx);
            submit.tasks.push(TaskRow { id, spec: 0, extra: row + 1, payload });
            ids.push(id);
            cx.oracle.register(id, contract);
        }
        let name = body::put(&mut submit.bytes, b"flow");
        submit.workflow.push(WorkflowRow { id: workflow, name, on_failure: continues.into(), reserved: 0 });
        self.client.push(Operation::Submit, partition, &submit);
    }

    fn configure(&mut self, queue: u32, set: u32, paused: bool) {
        for partition in (0..self.partitions).map(PartitionId) {
            let mut configure = ConfigureQueue { set, paused: paused.into(), ..ConfigureQueue::default() };
            configure.queue = body::put(&mut configure.bytes, format!("q{queue}").as_bytes());
            configure.concurrency = if queue == LIMITED.0 { LIMITED.1 } else { 0 };
            (configure.policy, configure.weight) = (self.policy, self.policy + 1);
            self.client.push(Operation::ConfigureQueue, partition, &configure);
        }
    }

    fn operate(&mut self, cx: &mut Cx<'_>) {
        let pick = cx.dice.roll();
        let Some(id) = cx.oracle.id_at(pick) else { return };
        let partition = id.partition();
        match cx.dice.below(10) {
            0 | 1 => {
                self.client.push(Operation::Cancel, partition, &Cancel { ids: vec![id], workflows: 0 });
            }
            2 => {
                if let Some(workflow) = cx.oracle.workflow_of(id) {
                    let body = Cancel { ids: vec![workflow], workflows: 1 };
                    self.client.push(Operation::Cancel, partition, &body);
                }
            }
            3..=5 => {
                self.client.push(Operation::Retry, partition, &Retry { ids: vec![id] });
            }
            6 if self.number == 0 => {
                let queue = cx.dice.small(0, QUEUES - 1);
                self.policy = (self.policy + 1) % POLICIES;
                self.configure(queue, queue_field::PAUSED | queue_field::POLICY | queue_field::WEIGHT, true);
            }
            7 if self.number == 0 => {
                let queue = cx.dice.small(0, QUEUES - 1);
                self.configure(queue, queue_field::PAUSED, false);
            }
            8 => {
                self.client.push(Operation::GetTask, partition, &GetTask { id });
            }
            _ => {
                let body = AwaitTask { id, timeout_ms: cx.dice.small(1, 2_000), workflow: 0 };
                self.client.push(Operation::AwaitTask, partition, &body);
            }
        }
    }

    fn produce(&mut self, cx: &mut Cx<'_>) {
        if self.number == 0 && self.sequence == 0 {
            for queue in (0..QUEUES).filter(|&queue| queue != LIMITED.0) {
                self.configure(queue, queue_field::POLICY, false);
            }
            self.configure(LIMITED.0, queue_field::CONCURRENCY, false);
        }
        if self.client.len() < 12 {
            if cx.dice.chance(25) {
                self.submit_workflow(cx);
            } else {
                self.submit_batch(cx);
            }
            for _ in 0..cx.dice.below(3) {
                self.operate(cx);
            }
        }
        let pause_us = if cx.dice.chance(30) { 500 } else { cx.dice.range(1_000, self.pause_us_max) };
        self.next_us = cx.now_us + pause_us;
    }

    /// Resumes all queues: a pause of a lost connection may have come after the latest resume.
    fn resume(&mut self, cx: &mut Cx<'_>) {
        if self.number == 0 && self.client.len() == 0 && cx.now_us >= self.resumed_us {
            self.resumed_us = cx.now_us + CALM_PAUSE_US;
            for queue in 0..QUEUES {
                self.configure(queue, queue_field::PAUSED, false);
            }
        }
        self.next_us = cx.now_us + CALM_PAUSE_US;
    }
}

impl Actor for Producer {
    fn opened(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.client.opened(target, cx);
    }

    fn frame(&mut self, _target: Target, header: Header, body: &[u8], cx: &mut Cx<'_>) {
        let Some(number) = self.client.answered(&header, body, cx) else { return };
        match Code::from_number(header.code) {
            Code::Overloaded | Code::DiskFull | Code::ShuttingDown => {
                let until_us = cx.now_us + cx.dice.range(50_000, 1_000_000);
                self.client.postpone(number, until_us);
            }
            _ => self.client.done(number),
        }
    }

    fn lost(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.client.lost(target, cx);
    }

    fn wake(&mut self, cx: &mut Cx<'_>) {
        self.is_over = cx.calm;
        if cx.calm {
            self.resume(cx);
        } else if cx.now_us >= self.next_us {
            self.produce(cx);
        }
        self.client.pump(cx);
    }

    fn next_wake_us(&self) -> u64 {
        self.next_us.min(self.client.next_us())
    }

    fn is_done(&self) -> bool {
        self.is_over && self.client.len() == 0
    }
}

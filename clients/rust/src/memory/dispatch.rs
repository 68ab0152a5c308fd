//! The in-memory server's assignments, and the answers to those who wait for a final state.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{ALTERNATIVE, Assign, AssignRow, AssignSpec, put};
use taskmaster_protocol::{Code, Header, Operation, PartitionId, TaskId};

use super::engine::{Engine, Entry, QueueKey, Timer};
use super::send;
use crate::task::State;
use crate::worker::room::{Need, pairs};

impl Entry {
    /// What it may run with, in the order in which it is tried.
    fn sets(&self) -> Vec<Need> {
        let first = Need {
            cpu_milli: self.cpu_milli,
            gpu_milli: self.gpu_milli,
            memory_bytes: self.memory_bytes,
            custom: pairs(&self.custom),
        };
        let mut others = BTreeMap::<&str, Need>::new();
        for pair in self.custom.split(',').filter_map(|pair| pair.strip_prefix(ALTERNATIVE)) {
            let Some((number, (name, units))) =
                pair.split_once('/').and_then(|(n, pair)| Some((n, pair.split_once('=')?)))
            else {
                continue;
            };
            let (set, units) = (others.entry(number).or_default(), units.parse::<u64>().unwrap_or(u64::MAX));
            let narrow = u32::try_from(units).unwrap_or(u32::MAX);
            match name {
                "cpu_milli" => set.cpu_milli = narrow,
                "gpu_milli" => set.gpu_milli = narrow,
                "memory_bytes" => set.memory_bytes = units,
                _ => set.custom.push((name.to_owned(), units)),
            }
        }
        std::iter::once(first).chain(others.into_values()).collect()
    }
}

impl Engine {
    /// Assigns ready tasks to connections with credit, in the order of priority and arrival, round robin.
    pub(super) fn dispatch(&mut self) {
        let mut assigned: BTreeMap<(u64, PartitionId), Vec<TaskId>> = BTreeMap::new();
        let queues: Vec<QueueKey> = self.ready.keys().filter(|queue| !self.paused.contains(*queue)).cloned().collect();
        for queue in queues {
            let ready: Vec<TaskId> = self.ready[&queue].iter().map(|&(_, _, id)| id).collect();
            for id in ready {
                if !self.subscriptions.values().any(|subscription| subscription.credit > 0) {
                    break;
                }
                if self.is_crowded(id) {
                    continue;
                }
                let Some((connection, set)) = self.taker(&queue, id) else { continue };
                self.lease(id, connection);
                self.task(id).set = set;
                assigned.entry((connection, id.partition())).or_default().push(id);
            }
        }
        for ((connection, partition), ids) in assigned {
            self.push_assignment(connection, partition, &ids);
        }
    }

    /// Whether the task's concurrency key has as many leases as it allows.
    fn is_crowded(&self, id: TaskId) -> bool {
        let task = &self.tasks[&id];
        let key = (task.queue.clone(), task.concurrency_key.clone());
        !task.concurrency_key.is_empty() && self.busy.get(&key).is_some_and(|&busy| busy >= task.concurrency_limit)
    }

    /// The subscribed connection with the most credit of those that offer one of the task's sets of resources, and which set.
    fn taker(&self, queue: &QueueKey, id: TaskId) -> Option<(u64, usize)> {
        let shard = id.partition().0 % self.shards;
        let task = &self.tasks[&id];
        let subscribed = |need: &Need| {
            self.subscriptions
                .iter()
                .filter(|(connection, subscription)| {
                    subscription.credit > 0
                        && subscription.namespace.split(',').any(|namespace| namespace == queue.0)
                        && subscription.queues.contains(&queue.1)
                        && need.fits(subscription.room.as_ref())
                        && self.peers.get(connection).is_some_and(|peer| peer.shard == shard)
                })
                .max_by_key(|(_, subscription)| subscription.credit)
        };
        let mut sets = task.sets().into_iter().enumerate();
        sets.find_map(|(set, need)| subscribed(&need).map(|(&connection, _)| (connection, set)))
    }

    fn lease(&mut self, id: TaskId, connection: u64) {
        self.detach(id);
        self.sequence += 1;
        let (token, now_us) = (self.sequence, self.now_us());
        let subscription = self.subscriptions.get_mut(&connection).expect("it was just chosen");
        subscription.credit -= 1;
        let worker = subscription.worker.clone();
        let task = self.task(id);
        task.state = State::Leased;
        task.attempt += 1;
        task.budget_used += 1;
        task.token = token;
        task.holder = connection;
        task.worker = worker;
        task.at_us = now_us;
        task.started_us = now_us;
        task.lease_until_ms = now_us / 1000 + u64::from(task.lease_ms);
        let (until_ms, queue, key) = (task.lease_until_ms, task.queue.clone(), task.concurrency_key.clone());
        if !key.is_empty() {
            *self.busy.entry((queue, key)).or_default() += 1;
        }
        self.set_timer(until_ms, Timer::Lease(id, token));
    }

    fn push_assignment(&self, connection: u64, partition: PartitionId, ids: &[TaskId]) {
        let Some(peer) = self.peers.get(&connection) else { return };
        let mut assign = Assign::default();
        for (id, spec) in ids.iter().zip(0u32..) {
            let task = &self.tasks[id];
            let area = &mut assign.bytes;
            let need = task.sets().swap_remove(task.set);
            let custom: Vec<String> = need.custom.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
            assign.specs.push(AssignSpec {
                memory_bytes: need.memory_bytes,
                cpu_milli: need.cpu_milli,
                gpu_milli: need.gpu_milli,
                queue: put(area, task.queue.1.as_bytes()),
                kind: put(area, task.kind.as_bytes()),
                custom: put(area, custom.join(",").as_bytes()),
                lease_ms: task.lease_ms,
                attempts_max: task.attempts_max,
            });
            assign.rows.push(AssignRow {
                id: *id,
                token: task.token,
                ready_us: task.ready_us,
                payload: put(area, &task.payload),
                locator: 0,
                spec,
                attempt: task.attempt,
                version: self.head_of(*id),
            });
        }
        send(&peer.out, Header::request(Operation::Assign, 0, Some(partition)), &assign);
    }

    /// Answers everybody who waited for this task or workflow.
    pub(super) fn answer_waits(&mut self, id: TaskId) {
        for wait in self.waits.extract_if(.., |wait| wait.id == id).collect::<Vec<_>>() {
            let Some(peer) = self.peers.get(&wait.connection) else { continue };
            let header = wait.header.response(Code::Ok);
            if wait.is_workflow {
                send(&peer.out, header, &self.flow_page(&[id], None));
            } else {
                send(&peer.out, header, &self.task_page(&[id], true, 0));
            }
        }
    }

    pub(super) fn answer_late_waits(&mut self, now_ms: u64) {
        for wait in self.waits.extract_if(.., |wait| wait.until_ms <= now_ms).collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get(&wait.connection) {
                let refusal = taskmaster_protocol::body::Refusal::new("not final yet: wait again", None, 0);
                send(&peer.out, wait.header.response(Code::TimedOut), &refusal);
            }
        }
    }
}

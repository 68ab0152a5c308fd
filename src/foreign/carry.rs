//! What a port carries, as the engine and the connection each have it: neither knows the other.

use taskmaster_connect::postgres::{self, Place};
use taskmaster_engine::State;
use taskmaster_engine::checkpoint;
use taskmaster_protocol::body::Span;

const fn place(span: Span) -> Place {
    Place { at: span.at, len: span.len }
}

const fn span(place: Place) -> Span {
    Span { at: place.at, len: place.len }
}

fn chunk(chunk: checkpoint::BatchChunk) -> postgres::StateChunk {
    postgres::StateChunk { digest: chunk.digest, bytes: place(chunk.bytes) }
}

fn version(version: checkpoint::SavedVersion) -> postgres::SavedVersion {
    postgres::SavedVersion {
        number: version.number,
        parent: version.parent,
        attempt: version.attempt,
        time_us: version.time_us,
        bytes: version.bytes,
        new_bytes: version.new_bytes,
        digest: version.digest,
        label: version.label,
        branches: version.branches,
        tags: version.tags,
        pieces: version.pieces,
    }
}

fn saved(saved: checkpoint::SavedState) -> postgres::SavedState {
    let checkpoint::SavedHistory { current, made, versions } = saved.history;
    let history = postgres::SavedHistory { current, made, versions: versions.into_iter().map(version).collect() };
    postgres::SavedState { input: place(saved.input), chunks: saved.chunks, history }
}

fn queue(queue: checkpoint::BatchQueue) -> postgres::QueueSetting {
    postgres::QueueSetting {
        namespace: queue.namespace,
        queue: queue.queue,
        paused: queue.paused,
        draining: queue.draining,
        rate_milli_per_s: queue.rate_milli_per_s,
        rate_burst: queue.rate_burst,
        concurrency: queue.concurrency,
        depth_max: queue.depth_max,
        retention_ms: queue.retention_ms,
        flags_deadlines: queue.flags_deadlines,
        policy: queue.policy,
    }
}

/// A batch on its way to the database.
pub(super) fn batch(batch: checkpoint::Batch) -> postgres::Batch {
    let task = |task: checkpoint::FinalTask| {
        let [error_code, error, log_tail] = task.error.map(place);
        postgres::FinalTask {
            id: task.id.as_u128(),
            workflow: task.workflow.as_u128(),
            number: task.number,
            started_us: task.started_us,
            finished_us: task.finished_us,
            deadline_us: task.deadline_us,
            contract: task.contract,
            attempts: task.attempts,
            failures: task.failures,
            state: task.state.number(),
            succeeded: task.state == State::Succeeded,
            late: task.is_late,
            name: place(task.name),
            error_code,
            error,
            log_tail,
            blob: place(task.blob),
            saved: task.saved.map(|state| Box::new(saved(*state))),
        }
    };
    let contract = |contract: checkpoint::BatchContract| postgres::Contract {
        canonical: contract.canonical,
        namespace: contract.namespace,
        queue: contract.queue,
        kind: contract.kind,
        priority: contract.priority,
        attempts_max: contract.attempts_max,
    };
    postgres::Batch {
        cluster: batch.cluster,
        partition: batch.partition,
        term: batch.term,
        from: batch.from,
        to: batch.to,
        tasks: batch.tasks.into_iter().map(task).collect(),
        contracts: batch.contracts.into_iter().map(contract).collect(),
        queues: batch.queues.into_iter().map(queue).collect(),
        chunks: batch.chunks.into_iter().map(chunk).collect(),
        chunks_day: batch.chunks_day,
        bytes: batch.bytes,
    }
}

fn returning_chunk(chunk: postgres::StateChunk) -> checkpoint::BatchChunk {
    checkpoint::BatchChunk { digest: chunk.digest, bytes: span(chunk.bytes) }
}

fn returning_version(version: postgres::SavedVersion) -> checkpoint::SavedVersion {
    checkpoint::SavedVersion {
        number: version.number,
        parent: version.parent,
        attempt: version.attempt,
        time_us: version.time_us,
        bytes: version.bytes,
        new_bytes: version.new_bytes,
        digest: version.digest,
        label: version.label,
        branches: version.branches,
        tags: version.tags,
        pieces: version.pieces,
    }
}

fn returning_history(history: postgres::SavedHistory) -> checkpoint::SavedHistory {
    let postgres::SavedHistory { current, made, versions } = history;
    checkpoint::SavedHistory { current, made, versions: versions.into_iter().map(returning_version).collect() }
}

/// Versions of states on their way back.
pub(super) fn returning_states(states: postgres::States) -> checkpoint::States {
    let history = |(id, history): (u128, postgres::SavedHistory)| (id.into(), returning_history(history));
    checkpoint::States {
        partition: states.partition,
        histories: states.histories.into_iter().map(history).collect(),
        chunks: states.chunks.into_iter().map(returning_chunk).collect(),
        bytes: states.bytes,
    }
}

/// A queue on its way back.
pub(super) fn returning_queue(queue: postgres::QueueSetting) -> checkpoint::BatchQueue {
    checkpoint::BatchQueue {
        namespace: queue.namespace,
        queue: queue.queue,
        paused: queue.paused,
        draining: queue.draining,
        rate_milli_per_s: queue.rate_milli_per_s,
        rate_burst: queue.rate_burst,
        concurrency: queue.concurrency,
        depth_max: queue.depth_max,
        retention_ms: queue.retention_ms,
        flags_deadlines: queue.flags_deadlines,
        policy: queue.policy,
    }
}

/// Final tasks on their way back; their states follow by themselves.
pub(super) fn returning(batch: postgres::Batch) -> checkpoint::Batch {
    let task = |task: postgres::FinalTask| checkpoint::FinalTask {
        id: task.id.into(),
        workflow: task.workflow.into(),
        number: task.number,
        started_us: task.started_us,
        finished_us: task.finished_us,
        deadline_us: task.deadline_us,
        contract: task.contract,
        attempts: task.attempts,
        failures: task.failures,
        state: State::from_number(task.state).unwrap_or(State::Cancelled),
        is_late: task.late,
        name: span(task.name),
        error: [task.error_code, task.error, task.log_tail].map(span),
        blob: span(task.blob),
        saved: task.saved.map(|saved| {
            Box::new(checkpoint::SavedState { input: span(saved.input), ..checkpoint::SavedState::default() })
        }),
    };
    let contract = |contract: postgres::Contract| checkpoint::BatchContract {
        canonical: contract.canonical,
        namespace: contract.namespace,
        queue: contract.queue,
        kind: contract.kind,
        priority: contract.priority,
        attempts_max: contract.attempts_max,
    };
    checkpoint::Batch {
        cluster: batch.cluster,
        partition: batch.partition,
        term: batch.term,
        from: batch.from,
        to: batch.to,
        tasks: batch.tasks.into_iter().map(task).collect(),
        contracts: batch.contracts.into_iter().map(contract).collect(),
        bytes: batch.bytes,
        ..checkpoint::Batch::default()
    }
}

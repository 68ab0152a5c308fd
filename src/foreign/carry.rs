//! What a port carries, as the engine and the connection each have it: neither knows the other.

use taskmaster_connect::postgres::{self, Place};
use taskmaster_engine::State;
use taskmaster_engine::checkpoint;
use taskmaster_protocol::body::Span;

/// Where a text or blob is in the bytes that it comes with.
pub(crate) const fn place(span: Span) -> Place {
    Place { at: span.at, len: span.len }
}

const fn span(place: Place) -> Span {
    Span { at: place.at, len: place.len }
}

/// A record that both have field for field: the way out, and the way back.
macro_rules! alike {
    ($out:ident, $back:ident, $engine:ident, $connect:ident { $($field:ident),+ $(,)? }) => {
        fn $out(record: checkpoint::$engine) -> postgres::$connect {
            postgres::$connect { $($field: record.$field),+ }
        }

        pub(super) fn $back(record: postgres::$connect) -> checkpoint::$engine {
            checkpoint::$engine { $($field: record.$field),+ }
        }
    };
}

alike!(
    contract,
    returning_contract,
    BatchContract,
    Contract { canonical, namespace, queue, kind, priority, attempts_max, restartable }
);
alike!(
    queue,
    returning_queue,
    BatchQueue,
    QueueSetting {
        namespace,
        queue,
        paused,
        draining,
        rate_milli_per_s,
        rate_burst,
        concurrency,
        depth_max,
        retention_ms,
        flags_deadlines,
        policy,
        refuse_permille,
        restarts_off,
        weight
    }
);
alike!(
    version,
    returning_version,
    SavedVersion,
    SavedVersion { number, parent, attempt, time_us, bytes, new_bytes, digest, label, branches, tags, pieces }
);

fn chunk(chunk: checkpoint::BatchChunk) -> postgres::StateChunk {
    postgres::StateChunk { digest: chunk.digest, bytes: place(chunk.bytes) }
}

fn saved(saved: checkpoint::SavedState) -> postgres::SavedState {
    let checkpoint::SavedHistory { current, made, versions } = saved.history;
    let history = postgres::SavedHistory { current, made, versions: versions.into_iter().map(version).collect() };
    postgres::SavedState { input: place(saved.input), chunks: saved.chunks, history }
}

fn particulars(found: &checkpoint::Particulars) -> postgres::Particulars {
    postgres::Particulars {
        memo_of: found.memo_of.as_u128(),
        memo_us: found.memo_us,
        memo_key: found.memo_key,
        unique: place(found.unique),
        unique_until_us: found.unique_until_us,
        holds_key: found.holds_key,
        key: place(found.key),
        key_limit: found.key_limit,
        forgiven: found.forgiven,
        note: place(found.note),
        done_permille: found.done_permille,
    }
}

fn returning_particulars(found: &postgres::Particulars) -> checkpoint::Particulars {
    checkpoint::Particulars {
        memo_of: found.memo_of.into(),
        memo_us: found.memo_us,
        memo_key: found.memo_key,
        unique: span(found.unique),
        unique_until_us: found.unique_until_us,
        holds_key: found.holds_key,
        key: span(found.key),
        key_limit: found.key_limit,
        forgiven: found.forgiven,
        note: span(found.note),
        done_permille: found.done_permille,
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
            particulars: task.particulars.map(|found| Box::new(particulars(&found))),
        }
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
        particulars: task.particulars.map(|found| Box::new(returning_particulars(&found))),
    };
    checkpoint::Batch {
        cluster: batch.cluster,
        partition: batch.partition,
        term: batch.term,
        from: batch.from,
        to: batch.to,
        tasks: batch.tasks.into_iter().map(task).collect(),
        contracts: batch.contracts.into_iter().map(returning_contract).collect(),
        bytes: batch.bytes,
        ..checkpoint::Batch::default()
    }
}

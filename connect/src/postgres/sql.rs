//! Parts that several statements have in common.

/// What is told of every ended task: columns of `task` and its `contract`.
macro_rules! told {
    () => {
        "uuid_send(task.id), uuid_send(task.workflow), task.state, contract.namespace, contract.queue, contract.kind, task.name,
        contract.priority, task.attempts, contract.attempts_max, task.late, task.started_at, task.finished_at, task.deadline_at,
        task.error_code, task.error, contract.restartable, task.particulars::text"
    };
}

/// How many columns those are.
pub(super) const TOLD: usize = 18;

/// `chain`: the cluster with the number `$1`, and those that it goes on from.
macro_rules! chain {
    () => {
        "WITH RECURSIVE chain AS (
        SELECT cluster, restored_from FROM taskmaster.cluster WHERE cluster = $1
        UNION ALL SELECT older.cluster, older.restored_from
        FROM taskmaster.cluster AS older JOIN chain ON older.cluster = chain.restored_from)"
    };
}

/// Whether the server is on this machine.
macro_rules! is_local {
    () => {
        "coalesce(inet_client_addr() = inet_server_addr(), true)"
    };
}

//! The operations of the protocol. A response carries the operation it answers and the response flag.

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a frame asks for or brings. Unknown numbers are answered with `unknown_operation`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Operation { $($(#[$doc])* $name = $value,)* }

        impl Operation {
            /// All operations, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The operation with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($value => Some(Self::$name),)* _ => None }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $value,)* }
            }
        }
    };
}

operations! {
    /// First frame of a connection: versions, limits, features; answered with the shard map.
    Hello = 1,
    /// Liveness; answered with an empty body.
    Ping = 2,
    /// A batch of tasks, or one whole workflow. Answered when durable.
    Submit = 10,
    /// A worker's offer: queues, capacity and first credit.
    Subscribe = 11,
    /// More credit for a subscription. Not answered.
    Credit = 12,
    /// Successful completions under leases. Answered when durable.
    Complete = 13,
    /// Failed attempts under leases. Answered when durable.
    Fail = 14,
    /// Heartbeats: longer leases.
    Extend = 15,
    /// Progress notes of running tasks. Not answered.
    Progress = 16,
    /// Leases given back without an attempt being counted.
    Release = 17,
    /// Versions of running tasks' state, under leases. Answered when durable.
    SaveState = 18,
    /// What ended attempts used, and what the worker runs. Not answered.
    Usage = 19,
    /// Cancels tasks or a workflow.
    Cancel = 20,
    /// Makes failed, expired or cancelled tasks ready again.
    Retry = 21,
    /// Creates or changes a queue, pauses, resumes, drains.
    ConfigureQueue = 22,
    /// The engine's own record that attempts or deadlines ran out. Refused from outside.
    Expire = 23,
    /// Branches, tags, rollback, pruning and forks of a task's state.
    ChangeState = 24,
    /// A new workflow from an old one: what need not run again is taken over.
    ForkWorkflow = 25,
    /// A batch of tasks and the new position of the stream that they come from. Answered when durable.
    SubmitStream = 26,
    /// One task's state.
    GetTask = 30,
    /// One task's outcome, as soon as it is final.
    AwaitTask = 31,
    /// A page of a partition's tasks.
    ListTasks = 32,
    /// Why a task waits, or where it ran.
    Why = 33,
    /// A partition's queues with their counts.
    ListQueues = 34,
    /// A page of a workflow's tasks.
    GetWorkflow = 35,
    /// A partition's workflows.
    ListWorkflows = 36,
    /// Counters of the node.
    NodeStats = 37,
    /// Nodes, partitions and who leads them.
    ClusterMap = 38,
    /// An operator's request about nodes and replicas.
    ClusterAdmin = 39,
    /// The versions of a task's state, with branches and tags.
    StateLog = 40,
    /// A piece of one version of a task's state.
    ReadState = 41,
    /// The positions of a partition's streams.
    ListStreams = 42,
    /// How likely a task meets its deadline.
    Chance = 43,
    /// What another policy would do to a queue.
    Shadow = 44,
    /// Server to worker: leased tasks.
    Assign = 50,
    /// Server to worker: a lease is revoked (the task was cancelled or expired).
    Revoke = 51,
    /// Server to client: the node is shutting down; finish and reconnect elsewhere.
    GoAway = 52,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_operations_map_both_ways() {
        for &operation in Operation::ALL {
            assert_eq!(Operation::from_number(operation.number()), Some(operation));
        }
        assert_eq!(Operation::from_number(0), None);
    }
}

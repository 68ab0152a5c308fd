//! Stable codes of refusals and per-row outcomes. A code never changes its meaning; texts may.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why a request, or a row of one, was not carried out as asked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Code { $($(#[$doc])* $name = $value,)* }

        impl Code {
            /// All codes, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code with this number; unknown numbers (from a newer peer) read as [`Code::Internal`].
            #[must_use]
            pub const fn from_number(number: u16) -> Self {
                match number { $($value => Self::$name,)* _ => Self::Internal }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $value,)* }
            }

            /// The stable snake_case name used in JSON output and documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl core::fmt::Display for Code {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

codes! {
    /// Carried out.
    Ok = 0, "ok";
    /// The body does not have the layout of its operation.
    Malformed = 1, "malformed";
    /// The protocol version is not spoken here.
    UnsupportedVersion = 2, "unsupported_version";
    /// No such operation, or one that clients may not send.
    UnknownOperation = 3, "unknown_operation";
    /// The frame, payload, result, name or batch is larger than its limit.
    TooLarge = 4, "too_large";
    /// A value is outside its range; the sentence names it.
    Invalid = 5, "invalid";
    /// The first frame must be a hello.
    HelloRequired = 6, "hello_required";
    /// The partition does not exist or is not here.
    WrongPartition = 7, "wrong_partition";
    /// The node is full or behind: retry after the given time. What was accepted is safe.
    Overloaded = 8, "overloaded";
    /// The disk has no room for new work; completions are still taken.
    DiskFull = 9, "disk_full";
    /// The node is draining.
    ShuttingDown = 10, "shutting_down";
    /// This node does not lead the partition: look at the map, then send again with the resend flag.
    NotLeader = 12, "not_leader";
    /// No such task.
    UnknownTask = 20, "unknown_task";
    /// No such queue, and queues are not created on first use here.
    UnknownQueue = 21, "unknown_queue";
    /// No such workflow.
    UnknownWorkflow = 22, "unknown_workflow";
    /// The id was submitted before; the first submission stands.
    Duplicate = 23, "duplicate";
    /// The unique key is held by another task.
    UniqueConflict = 24, "unique_conflict";
    /// The lease is not held under this token any more.
    StaleLease = 25, "stale_lease";
    /// The task is already final.
    AlreadyFinal = 26, "already_final";
    /// The task's state does not allow this.
    IllegalState = 27, "illegal_state";
    /// The deadline is already past.
    DeadlinePast = 28, "deadline_past";
    /// The queue is draining and takes no new tasks.
    QueueDraining = 29, "queue_draining";
    /// A dependency names no earlier task of the workflow, or closes a cycle.
    BadDependency = 30, "bad_dependency";
    /// A resend of an id so old that its first outcome is not kept any more.
    OutcomeForgotten = 31, "outcome_forgotten";
    /// The wait ended before the task was final.
    TimedOut = 32, "timed_out";
    /// No such version, branch or tag of the task's state (any more).
    UnknownVersion = 33, "unknown_version";
    /// The pieces of a state do not make what its digest says.
    DigestMismatch = 34, "digest_mismatch";
    /// The queue refuses deadlines that are so unlikely to be met.
    HopelessDeadline = 35, "hopeless_deadline";
    /// A defect of the server; the sentence says what to report.
    Internal = 99, "internal";
}

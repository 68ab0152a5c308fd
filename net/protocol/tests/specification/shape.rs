//! Every body and row as data: its fields, its content as JSON, values at random.
//!
//! The list of fields cannot lag behind the types: each record is taken apart without a rest, and each field's type is
//! checked by the compiler.

use rkyv::rend::{u16_le, u32_le, u64_le};
use rkyv::{Archive, Archived};
use serde_json::{Map, Value, json};
use taskmaster_protocol::body::*;
use taskmaster_protocol::{Code, FrameBuffer, Operation, TaskId};

/// A source of arbitrary numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// 64 mixed bits.
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A type that occurs in bodies.
pub(crate) trait Wire: Archive + Sized {
    /// Its name in the specification.
    fn type_name() -> String;
    /// Its content.
    fn describe(archived: &Archived<Self>) -> Value;
    /// The value with this content; `null` is the default.
    fn build(value: &Value) -> Self;
    /// Any value.
    fn random(dice: &mut Dice) -> Self;
    /// Calls back with every span inside.
    fn spans(_: &Archived<Self>, _: &mut dyn FnMut(&ArchivedSpan)) {}

    /// The content of a vector of these.
    fn describe_all(archived: &[Archived<Self>]) -> Value {
        Value::Array(archived.iter().map(Self::describe).collect())
    }
    /// The vector with this content.
    fn build_all(value: &Value) -> Vec<Self> {
        value.as_array().map(|values| values.iter().map(Self::build).collect()).unwrap_or_default()
    }
    /// Most elements of a vector at random.
    const RANDOM_MAX: u64 = 4;
}

macro_rules! number {
    ($type:ident, $archived:ident) => {
        impl Wire for $type {
            fn type_name() -> String {
                stringify!($type).to_owned()
            }
            fn describe(archived: &$archived) -> Value {
                json!(archived.to_native())
            }
            fn build(value: &Value) -> Self {
                Self::try_from(value.as_u64().unwrap_or(0)).expect("the number fits its field")
            }
            fn random(dice: &mut Dice) -> Self {
                let bytes = dice.roll().to_le_bytes();
                Self::from_le_bytes(*bytes.first_chunk().expect("at most eight bytes"))
            }
        }
    };
}

number!(u16, u16_le);
number!(u32, u32_le);
number!(u64, u64_le);

impl Wire for u8 {
    fn type_name() -> String {
        "u8".to_owned()
    }
    fn describe(archived: &u8) -> Value {
        json!(archived)
    }
    fn build(value: &Value) -> Self {
        Self::try_from(value.as_u64().unwrap_or(0)).expect("the number fits its field")
    }
    fn random(dice: &mut Dice) -> Self {
        dice.roll().to_le_bytes()[0]
    }
    fn describe_all(archived: &[u8]) -> Value {
        let printable = archived.iter().all(|byte| (0x20..0x7F).contains(byte));
        match core::str::from_utf8(archived).ok().filter(|_| printable) {
            Some(text) => json!(format!("text:{text}")),
            None => json!(format!("hex:{}", hex(archived))),
        }
    }
    fn build_all(value: &Value) -> Vec<Self> {
        let text = value.as_str().unwrap_or("text:");
        match text.split_once(':') {
            Some(("text", text)) => text.as_bytes().to_vec(),
            Some(("hex", digits)) => unhex(digits),
            _ => panic!("bytes are \"text:...\" or \"hex:...\", not {text:?}"),
        }
    }
    const RANDOM_MAX: u64 = 100;
}

impl Wire for TaskId {
    fn type_name() -> String {
        "id".to_owned()
    }
    fn describe(archived: &Archived<Self>) -> Value {
        json!(Self::from(archived).to_string())
    }
    fn build(value: &Value) -> Self {
        value.as_str().map(|text| text.parse().expect("an id")).unwrap_or_default()
    }
    fn random(dice: &mut Dice) -> Self {
        Self { hi: dice.roll(), lo: dice.roll() }
    }
}

impl Wire for Span {
    fn type_name() -> String {
        "span".to_owned()
    }
    fn describe(archived: &ArchivedSpan) -> Value {
        json!(format!("{}+{}", archived.at.to_native(), archived.len.to_native()))
    }
    fn build(value: &Value) -> Self {
        let (at, len) = value.as_str().unwrap_or("0+0").split_once('+').expect("a span is \"at+len\"");
        let number = |digits: &str| digits.parse().expect("a span has two numbers");
        Self { at: number(at), len: number(len) }
    }
    fn random(dice: &mut Dice) -> Self {
        Self { at: u32::random(dice) % 50, len: u32::random(dice) % 50 }
    }
    fn spans(archived: &ArchivedSpan, each: &mut dyn FnMut(&ArchivedSpan)) {
        each(archived);
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    fn type_name() -> String {
        format!("{}[{N}]", T::type_name())
    }
    fn describe(archived: &Archived<Self>) -> Value {
        Value::Array(archived.iter().map(T::describe).collect())
    }
    fn build(value: &Value) -> Self {
        core::array::from_fn(|index| T::build(value.get(index).unwrap_or(&Value::Null)))
    }
    fn random(dice: &mut Dice) -> Self {
        core::array::from_fn(|_| T::random(dice))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn type_name() -> String {
        format!("vec of {}", T::type_name())
    }
    fn describe(archived: &Archived<Self>) -> Value {
        T::describe_all(archived)
    }
    fn build(value: &Value) -> Self {
        T::build_all(value)
    }
    fn random(dice: &mut Dice) -> Self {
        let count = dice.roll() % (T::RANDOM_MAX + 1);
        (0..count).map(|_| T::random(dice)).collect()
    }
    fn spans(archived: &Archived<Self>, each: &mut dyn FnMut(&ArchivedSpan)) {
        archived.iter().for_each(|element| T::spans(element, each));
    }
}

/// One field of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Offset in bytes.
    pub(crate) at: usize,
    /// Size in bytes.
    pub(crate) bytes: usize,
    /// Name.
    pub(crate) name: String,
    /// Type, as the specification names it.
    pub(crate) type_name: String,
}

/// The layout of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Its name.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) bytes: usize,
    /// Its alignment in bytes.
    pub(crate) alignment: usize,
    /// Its fields, in order.
    pub(crate) fields: Vec<Field>,
}

const fn field_bytes<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! records {
    ($($name:ident { $($field:ident: $type:ty),* })*) => {
        $(impl Wire for $name {
            fn type_name() -> String {
                stringify!($name).to_owned()
            }
            fn describe(archived: &Archived<Self>) -> Value {
                let mut fields = Map::new();
                $(fields.insert(stringify!($field).to_owned(), <$type as Wire>::describe(&archived.$field));)*
                Value::Object(fields)
            }
            fn build(value: &Value) -> Self {
                for name in value.as_object().into_iter().flat_map(|fields| fields.keys()) {
                    assert!([$(stringify!($field)),*].contains(&name.as_str()), "{} has no field {name}", stringify!($name));
                }
                Self { $($field: <$type as Wire>::build(value.get(stringify!($field)).unwrap_or(&Value::Null)),)* }
            }
            fn random(dice: &mut Dice) -> Self {
                Self { $($field: <$type as Wire>::random(dice),)* }
            }
            fn spans(archived: &Archived<Self>, each: &mut dyn FnMut(&ArchivedSpan)) {
                $(<$type as Wire>::spans(&archived.$field, each);)*
                let _ = each;
            }
        })*

        /// The layout of every body and row, in the specification's order.
        pub(crate) fn layouts() -> Vec<Layout> {
            vec![$({
                // Fails to compile when a field is missing here.
                let _ = |record: $name| { let $name { $($field: _),* } = record; };
                Layout {
                    name: stringify!($name).to_owned(),
                    bytes: size_of::<Archived<$name>>(),
                    alignment: align_of::<Archived<$name>>(),
                    fields: vec![$(Field {
                        at: core::mem::offset_of!(Archived<$name>, $field),
                        bytes: field_bytes(|record: &Archived<$name>| &record.$field),
                        name: stringify!($field).to_owned(),
                        type_name: <$type as Wire>::type_name(),
                    }),*],
                }
            }),*]
        }
    };
}

records! {
    Hello { features: u64, client: Span, bytes: Vec<u8>, version_min: u8, version_max: u8 }
    HelloReply {
        features: u64, server_time_us: u64, node: [u64; 2], body_bytes_max: u32, payload_bytes_max: u32,
        rows_max: u32, credit_max: u32, shard_ports: Vec<u16>, partition_shards: Vec<u16>, server: Span,
        bytes: Vec<u8>, shard: u16, version: u8
    }
    Empty { reserved: u32 }
    Refusal { retry_after_ms: u32, row: u32, message: Span, bytes: Vec<u8> }
    Submit {
        specs: Vec<Spec>, tasks: Vec<TaskRow>, extras: Vec<Extra>, needs: Vec<u32>, workflow: Vec<WorkflowRow>,
        bytes: Vec<u8>
    }
    SubmitStream { piece: StreamRow, batch: Submit }
    StreamRow { from: u64, to: u64, stream: Span, topic: Span, number: u32, reserved: u32 }
    StreamReply { position: u64, accepted: u32, reserved: u32, exceptions: Vec<ExceptionRow> }
    ListStreams { reserved: u32 }
    StreamPage { rows: Vec<StreamInfo>, bytes: Vec<u8> }
    StreamInfo { position: u64, stream: Span, topic: Span, number: u32, reserved: u32 }
    TaskRow { id: TaskId, spec: u32, extra: u32, payload: Span }
    Spec {
        memory_bytes: u64, cpu_milli: u32, gpu_milli: u32, custom: Span, namespace: Span, queue: Span, kind: Span,
        non_retryable: Span, lease_ms: u32, backoff_ms: u32, backoff_max_ms: u32, retention_ms: u32,
        backoff_factor_centi: u16, attempts_max: u16, priority: u8, memo: u8, restartable: u8, reserved: u8
    }
    Extra {
        not_before_ms: u64, delay_ms: u64, deadline_ms: u64, deadline_in_ms: u64, unique_key: Span,
        concurrency_key: Span, needs: Span, name: Span, unique_window_ms: u32, concurrency_limit: u32
    }
    WorkflowRow { id: TaskId, name: Span, on_failure: u32, reserved: u32 }
    BatchReply { accepted: u32, exceptions: Vec<ExceptionRow> }
    ExceptionRow { id: TaskId, index: u32, code: u16, state: u8, reserved: u8 }
    Subscribe {
        memory_bytes: u64, queues: Vec<Span>, cpu_milli: u32, gpu_milli: u32, custom: Span, namespace: Span,
        worker: Span, credit: u32, reserved: u32, bytes: Vec<u8>
    }
    Credit { credit: u32 }
    Assign { specs: Vec<AssignSpec>, rows: Vec<AssignRow>, bytes: Vec<u8> }
    AssignSpec {
        memory_bytes: u64, cpu_milli: u32, gpu_milli: u32, queue: Span, kind: Span, custom: Span, lease_ms: u32,
        attempts_max: u32
    }
    AssignRow {
        id: TaskId, token: u64, ready_us: u64, payload: Span, locator: u32, spec: u32, attempt: u32, version: u32
    }
    Complete { rows: Vec<CompleteRow>, bytes: Vec<u8> }
    CompleteRow { id: TaskId, token: u64, locator: u32, attempt: u32, result: Span }
    Fail { rows: Vec<FailRow>, bytes: Vec<u8> }
    FailRow {
        id: TaskId, token: u64, locator: u32, attempt: u32, code: Span, message: Span, log_tail: Span, is_final: u32,
        reserved: u32
    }
    Leases { rows: Vec<LeaseRow> }
    LeaseRow { id: TaskId, token: u64, locator: u32, attempt: u32 }
    Progress { rows: Vec<ProgressRow>, bytes: Vec<u8> }
    ProgressRow { id: TaskId, token: u64, done_permille: u32, locator: u32, note: Span }
    Usage {
        memory_bytes: u64, cpu_milli: u32, seen: u32, kinds: Vec<UsageKind>, rows: Vec<UsageRow>,
        beside: Vec<UsageBeside>, bytes: Vec<u8>
    }
    UsageKind { queue: Span, kind: Span, running: u32, reserved: u32 }
    UsageRow {
        id: TaskId, token: u64, run_us: u64, cpu_us: u64, memory_peak_bytes: u64, io_bytes: u64, cpu_stalled_us: u64,
        memory_stalled_us: u64, io_stalled_us: u64, locator: u32, known: u32, is_whole: u32, reserved: u32
    }
    UsageBeside { row: u32, kind: u32, permille: u32 }
    Cancel { ids: Vec<TaskId>, workflows: u32 }
    Retry { ids: Vec<TaskId> }
    ConfigureQueue {
        rate_milli_per_s: u64, depth_max: u64, namespace: Span, queue: Span, set: u32, rate_burst: u32,
        concurrency: u32, retention_ms: u32, paused: u32, draining: u32, deadline_action: u8, restarts_off: u8,
        refuse_permille: u16, policy: u16, weight: u16, bytes: Vec<u8>
    }
    SaveState { rows: Vec<SaveRow>, segments: Vec<Segment>, bytes: Vec<u8> }
    SaveRow {
        id: TaskId, token: u64, locator: u32, attempt: u32, parent: u32, reserved: u32, digest: [u8; 32], label: Span,
        segments: Span
    }
    Segment { from: u32, count: u32, data: Span }
    StateReply { versions: Vec<u32>, exceptions: Vec<ExceptionRow> }
    ChangeState {
        id: TaskId, to: TaskId, verb: u32, version: u32, keep: u32, reserved: u32, name: Span, bytes: Vec<u8>
    }
    ForkWorkflow { id: TaskId, to: TaskId, tasks: Vec<TaskId>, at: u32, reserved: u32 }
    StateHistory {
        versions: Vec<VersionRow>, names: Vec<VersionName>, current: Span, head: u32, made: u32, bytes: Vec<u8>
    }
    VersionRow {
        digest: [u8; 32], time_us: u64, size: u64, new_bytes: u64, number: u32, parent: u32, attempt: u32, chunks: u32,
        label: Span
    }
    VersionName { name: Span, version: u32, kind: u32 }
    ReadState { id: TaskId, version: u32, from: u32 }
    StatePage { version: VersionRow, from: u32, reserved: u32, lengths: Vec<u32>, bytes: Vec<u8> }
    GetTask { id: TaskId }
    AwaitTask { id: TaskId, timeout_ms: u32, workflow: u32 }
    ListTasks {
        namespace: Span, queue: Span, kind: Span, states: u32, limit: u32, cursor: [u64; 2], bytes: Vec<u8>
    }
    TaskPage { rows: Vec<TaskInfo>, cursor: [u64; 2], bytes: Vec<u8> }
    TaskInfo {
        id: TaskId, workflow: TaskId, at_us: u64, started_us: u64, deadline_ms: u64, namespace: Span, queue: Span,
        kind: Span, name: Span, payload: Span, result: Span, error_code: Span, error: Span, log_tail: Span,
        worker: Span, note: Span, done_permille: u32, attempt: u32, attempts_max: u32, state: u8, priority: u8,
        late: u8, memo: u8
    }
    Chance {
        deadline_ms: u64, wait_ms: u64, run_ms: u64, run_most_ms: u64, ahead: u64, places: u32, samples: u32,
        permille: u32, basis: u32
    }
    Shadow { namespace: Span, queue: Span, policy: u32, bytes: Vec<u8> }
    PolicyWaits {
        wait_us: u64, wait_median_us: u64, wait_most_us: u64, slowdown_milli: u64, late: u32, policy: u32
    }
    ShadowReport {
        present: PolicyWaits, shadow: PolicyWaits, measured_us: u64, gain_milli: u64, gain_least_milli: u64,
        samples: u32, samples_min: u32, with_deadline: u32, blocks: u32
    }
    Explanation { facts: Vec<Span>, bytes: Vec<u8> }
    ListQueues { reserved: u32 }
    QueuePage { rows: Vec<QueueInfo>, bytes: Vec<u8> }
    QueueInfo {
        counts: [u64; 8], rate_milli_per_s: u64, depth_max: u64, namespace: Span, queue: Span, rate_burst: u32,
        concurrency: u32, retention_ms: u32, paused: u32, draining: u32, deadline_action: u32, policy: u16, weight: u16,
        refuse_permille: u16, restarts_off: u16
    }
    GetWorkflow { id: TaskId, from: u32, limit: u32 }
    ListWorkflows { limit: u32 }
    WorkflowPage { workflows: Vec<WorkflowInfo>, rows: Vec<WorkflowTask>, bytes: Vec<u8> }
    WorkflowInfo { id: TaskId, counts: [u32; 8], submitted_us: u64, finished_us: u64, name: Span }
    WorkflowTask { id: TaskId, ready_us: u64, started_us: u64, finished_us: u64, name: Span, attempt: u32, state: u32 }
    NodeStats { names: Vec<Span>, values: Vec<u64>, bytes: Vec<u8> }
    ClusterMapReply {
        version: u64, cluster: [u64; 2], node: u64, meta: PartitionRow, nodes: Vec<NodeRow>,
        partitions: Vec<PartitionRow>, ids: Vec<u64>, ports: Vec<u16>, warnings: Vec<Span>, bytes: Vec<u8>,
        replication: u32, reserved: u32
    }
    NodeRow {
        id: u64, seen_ms: u64, disk_bytes: u64, disk_bytes_free: u64, name: Span, zone: Span, host: Span, ports: Span,
        status: u32, alive: u32, version: u32, leaders: u32, replicas: u32, peer_port: u32
    }
    PartitionRow {
        leader: u64, term: u64, applied: u64, committed: u64, replicas: Span, voters: Span, learners: Span, lag: u32,
        settled: u32
    }
    ClusterAdmin { node: u64, to: u64, value: u64, text: Span, bytes: Vec<u8>, verb: u32, partition: u32 }
    Expire { rows: Vec<ExpireRow> }
    ExpireRow { id: TaskId, attempt: u32, what: u32 }
}

/// Checks a body's layout and calls back with every span in it.
pub(crate) type SpansOf = fn(&[u8], &mut dyn FnMut(&ArchivedSpan)) -> Result<(), Malformed>;

/// What a JSON description or a frame says about a body, without naming its type.
pub(crate) struct Shape {
    /// The body's name.
    pub(crate) name: &'static str,
    /// Bytes to content; the layout is checked.
    pub(crate) describe: fn(&[u8]) -> Result<Value, Malformed>,
    /// Content to bytes, appended.
    pub(crate) encode: fn(&Value, &mut FrameBuffer),
    /// Any value, appended.
    pub(crate) random: fn(&mut Dice, &mut FrameBuffer),
    /// Checks the layout and calls back with every span.
    pub(crate) spans: SpansOf,
}

macro_rules! shapes {
    ($($name:ident)*) => {
        /// Every body.
        pub(crate) const SHAPES: &[Shape] = &[$(Shape {
            name: stringify!($name),
            describe: |bytes| access::<Archived<$name>>(bytes).map(|archived| $name::describe(archived)),
            encode: |value, out| $name::build(value).append_to(out),
            random: |dice, out| $name::random(dice).append_to(out),
            spans: |bytes, each| access::<Archived<$name>>(bytes).map(|archived| $name::spans(archived, each)),
        }),*];
    };
}

shapes! {
    Hello HelloReply Empty Refusal Submit BatchReply Subscribe Credit Assign Complete Fail Leases Progress Usage Cancel
    Retry ConfigureQueue Expire GetTask AwaitTask ListTasks TaskPage Explanation Chance Shadow ShadowReport ListQueues
    QueuePage GetWorkflow WorkflowPage ListWorkflows NodeStats ClusterMapReply ClusterAdmin SaveState StateReply
    ChangeState ForkWorkflow StateHistory ReadState StatePage SubmitStream StreamReply ListStreams StreamPage
}

/// The body with this name.
pub(crate) fn shape(name: &str) -> &'static Shape {
    SHAPES.iter().find(|shape| shape.name == name).unwrap_or_else(|| panic!("no body is named {name}"))
}

/// The bodies of an operation: as request or push, and in responses that are `ok` (several for `AwaitTask`).
pub(crate) const fn bodies(operation: Operation) -> (&'static str, &'static [&'static str]) {
    match operation {
        Operation::Hello => ("Hello", &["HelloReply"]),
        Operation::Ping => ("Empty", &["Empty"]),
        Operation::Submit => ("Submit", &["BatchReply"]),
        Operation::Subscribe => ("Subscribe", &["Empty"]),
        Operation::Credit => ("Credit", &[]),
        Operation::Complete => ("Complete", &["BatchReply"]),
        Operation::Fail => ("Fail", &["BatchReply"]),
        Operation::Extend | Operation::Release => ("Leases", &["BatchReply"]),
        Operation::Progress => ("Progress", &[]),
        Operation::Usage => ("Usage", &[]),
        Operation::Cancel => ("Cancel", &["BatchReply"]),
        Operation::Retry => ("Retry", &["BatchReply"]),
        Operation::ConfigureQueue => ("ConfigureQueue", &["Empty"]),
        Operation::Expire => ("Expire", &[]),
        Operation::GetTask => ("GetTask", &["TaskPage"]),
        Operation::AwaitTask => ("AwaitTask", &["TaskPage", "WorkflowPage"]),
        Operation::ListTasks => ("ListTasks", &["TaskPage"]),
        Operation::Why => ("GetTask", &["Explanation"]),
        Operation::Chance => ("GetTask", &["Chance"]),
        Operation::Shadow => ("Shadow", &["ShadowReport"]),
        Operation::ListQueues => ("ListQueues", &["QueuePage"]),
        Operation::GetWorkflow => ("GetWorkflow", &["WorkflowPage"]),
        Operation::ListWorkflows => ("ListWorkflows", &["WorkflowPage"]),
        Operation::NodeStats => ("Empty", &["NodeStats"]),
        Operation::ClusterMap => ("Empty", &["ClusterMapReply"]),
        Operation::ClusterAdmin => ("ClusterAdmin", &["Empty"]),
        Operation::SaveState => ("SaveState", &["StateReply"]),
        Operation::ChangeState => ("ChangeState", &["StateReply"]),
        Operation::ForkWorkflow => ("ForkWorkflow", &["BatchReply"]),
        Operation::SubmitStream => ("SubmitStream", &["StreamReply"]),
        Operation::ListStreams => ("ListStreams", &["StreamPage"]),
        Operation::StateLog => ("GetTask", &["StateHistory"]),
        Operation::ReadState => ("ReadState", &["StatePage"]),
        Operation::Assign => ("Assign", &[]),
        Operation::Revoke => ("Leases", &[]),
        Operation::GoAway => ("Empty", &[]),
    }
}

/// The bodies that a frame with these header fields may have.
pub(crate) fn bodies_of(operation: Operation, is_response: bool, code: u16) -> Vec<&'static str> {
    if !is_response {
        vec![bodies(operation).0]
    } else if code == Code::Ok.number() {
        bodies(operation).1.to_vec()
    } else {
        vec!["Refusal"]
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits as bytes.
pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    assert!(digits.len().is_multiple_of(2), "two digits for each byte");
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("hex digits")).collect()
}

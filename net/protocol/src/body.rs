//! The bodies of frames: plain fixed-size records plus one byte area each.
//!
//! Every body is a struct whose fields are integers and vectors of fixed-size records. In rkyv's archived form the root
//! struct is the last bytes of the body and a vector is `{offset: i32 relative to this field, length: u32}`, so a struct
//! parser in any language can read it. All text and bytes lie in the vector named `bytes` and are referred to by
//! [`Span`]s, which are checked when they are resolved ([`text`], [`slice()`]).

use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::vec::ArchivedVec;
use rkyv::{Archive, Deserialize, Portable, Serialize};

use crate::{FrameBuffer, Operation};

mod admin;
mod cluster;
mod hello;
mod read;
mod state;
mod stream;
mod submit;
mod usage;
mod work;

pub use admin::*;
pub use cluster::*;
pub use hello::*;
pub use read::*;
pub use state::*;
pub use stream::*;
pub use submit::*;
pub use usage::*;
pub use work::*;

/// A piece of the body's byte area. `len` 0 means absent or empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, Debug))]
pub struct Span {
    /// Offset in the byte area, in bytes.
    pub at: u32,
    /// Length in bytes.
    pub len: u32,
}

/// The body does not have the layout of its operation, or a span points outside its byte area.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed body: {0}")]
pub struct Malformed(pub String);

/// A body that can be archived at the end of a frame buffer.
pub trait Body {
    /// The operation this body belongs to, as request, push or response.
    const OPERATION: Operation;

    /// Appends the archived form.
    fn append_to(&self, out: &mut FrameBuffer);
}

macro_rules! bodies {
    ($($name:ident: $operation:ident,)*) => {
        $(impl Body for $name {
            const OPERATION: Operation = Operation::$operation;

            fn append_to(&self, out: &mut FrameBuffer) {
                rkyv::api::high::to_bytes_in::<_, Error>(self, out)
                    .expect("archiving plain records into memory cannot fail");
            }
        })*
    };
}

bodies! {
    Hello: Hello, HelloReply: Hello, Empty: Ping, Refusal: Ping,
    Submit: Submit, BatchReply: Submit,
    Subscribe: Subscribe, Credit: Credit, Assign: Assign, Complete: Complete, Fail: Fail,
    Leases: Extend, Progress: Progress, Usage: Usage,
    Cancel: Cancel, Retry: Retry, ConfigureQueue: ConfigureQueue, Expire: Expire,
    SaveState: SaveState, StateReply: SaveState, ChangeState: ChangeState, ForkWorkflow: ForkWorkflow,
    SubmitStream: SubmitStream, StreamReply: SubmitStream, ListStreams: ListStreams, StreamPage: ListStreams,
    StateHistory: StateLog, ReadState: ReadState, StatePage: ReadState,
    GetTask: GetTask, AwaitTask: AwaitTask, ListTasks: ListTasks, TaskPage: ListTasks,
    Explanation: Why, Chance: Chance, Shadow: Shadow, ShadowReport: Shadow, ListQueues: ListQueues, QueuePage: ListQueues,
    GetWorkflow: GetWorkflow, WorkflowPage: GetWorkflow, ListWorkflows: ListWorkflows,
    NodeStats: NodeStats, ClusterMapReply: ClusterMap, ClusterAdmin: ClusterAdmin,
}

/// Reads a body in place after validating its layout.
///
/// # Errors
/// [`Malformed`] when the bytes are not the archived form of `A`, or are not aligned.
pub fn access<A>(body: &[u8]) -> Result<&A, Malformed>
where
    A: Portable + for<'a> CheckBytes<HighValidator<'a, Error>>,
{
    rkyv::access::<A, Error>(body).map_err(|error| Malformed(error.to_string().lines().next().unwrap_or("").to_owned()))
}

/// Resolves a span of a byte area.
///
/// # Errors
/// [`Malformed`] when the span reaches outside the area.
pub fn slice(area: &ArchivedVec<u8>, span: ArchivedSpan) -> Result<&[u8], Malformed> {
    let (at, len) = (span.at.to_native() as usize, span.len.to_native() as usize);
    area.as_slice()
        .get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| Malformed(format!("span {at}+{len} lies outside the byte area of {} bytes", area.len())))
}

/// Resolves a span of a byte area as UTF-8 text.
///
/// # Errors
/// [`Malformed`] when the span reaches outside the area or is not UTF-8.
pub fn text(area: &ArchivedVec<u8>, span: ArchivedSpan) -> Result<&str, Malformed> {
    core::str::from_utf8(slice(area, span)?).map_err(|error| Malformed(format!("text is not UTF-8: {error}")))
}

/// Appends bytes to a byte area under construction.
///
/// # Panics
/// If the area would exceed 4 GiB; frames are bounded far below.
pub fn put(area: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let at = u32::try_from(area.len()).expect("frames are bounded far below 4 GiB");
    area.extend_from_slice(bytes);
    Span { at, len: u32::try_from(bytes.len()).expect("frames are bounded far below 4 GiB") }
}

/// A body without content.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Empty {
    /// Zero.
    pub reserved: u32,
}

/// The body of every response whose header code is not `ok`.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Refusal {
    /// When to try again, in milliseconds; 0 means trying again changes nothing.
    pub retry_after_ms: u32,
    /// Row of the request that is at fault, or `u32::MAX`.
    pub row: u32,
    /// A sentence that says what is wrong and what would be right (UTF-8).
    pub message: Span,
    /// Byte area.
    pub bytes: Vec<u8>,
}

impl Refusal {
    /// A refusal with a sentence.
    #[must_use]
    pub fn new(message: &str, row: Option<u32>, retry_after_ms: u32) -> Self {
        let mut bytes = Vec::new();
        let message = put(&mut bytes, message.as_bytes());
        Self { retry_after_ms, row: row.unwrap_or(u32::MAX), message, bytes }
    }
}

//! The Taskmaster binary protocol as pure code: frames, operations, bodies, codes and limits.
//!
//! Everything that crosses a client connection is defined here and specified byte by byte in
//! `docs/formats/protocol.md`. The crate performs no I/O and reads no clock.
//!
//! Invariants:
//! - Bytes from outside are validated once, by [`frame::parse`] (header, length, checksum) and [`body::access`] (layout);
//!   after that they are read in place.
//! - A frame starts at a multiple of 16 bytes in its stream, so a body can be used without copying it.
//! - No decoding step allocates more than a small constant; hostile lengths are refused before any buffer grows.

pub mod body;
pub mod code;
pub mod frame;
pub mod id;
pub mod limits;
pub mod memo;
pub mod operation;
pub mod peer;
pub mod state;
pub mod stream;

pub use body::{Body, access};
pub use code::Code;
pub use frame::{Frame, FrameError, Header};
pub use id::{NodeId, PartitionId, TaskId};
pub use operation::Operation;
pub use rkyv::util::AlignedVec;

/// A growable byte buffer whose start is 16-byte aligned, as frames require.
pub type FrameBuffer = AlignedVec<16>;

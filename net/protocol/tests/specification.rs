//! The written specification, the golden frames and the code agree.
//!
//! `docs/formats/protocol.md` is read here: every table in it is compared with the types, and every frame in `vectors/` is
//! encoded from its description, byte for byte. To add a frame, write its description without `frame` and run
//! `TASKMASTER_WRITE_VECTORS=1 cargo test -p taskmaster-protocol --test specification golden`. Frames that exist are never
//! changed within a protocol version.

#[path = "specification/document.rs"]
mod document;
#[path = "specification/properties.rs"]
mod properties;
#[path = "specification/shape.rs"]
mod shape;
#[path = "specification/vectors.rs"]
mod vectors;

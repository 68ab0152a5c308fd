//! One connection at the level of frames: for those who want raw requests, and the ground the typed client stands on.
//!
//! - [`Connection`] writes: frames of all callers are encoded into one buffer and leave in one write.
//! - A reader task parses frames in place in a 256 KiB aligned buffer and hands replies to whoever waits.
//! - Frames that answer nothing (assignments, revocations) arrive on the [`Pushes`] channel.
//!
//! It does not reconnect, retry or choose partitions; [`crate::Client`] does.

mod connection;
mod pending;
mod reader;

pub use connection::{Connection, Options, Pushes, ServerInfo};
pub use pending::Mailbox;
pub use reader::FrameReader;

use rkyv::Portable;
use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use taskmaster_protocol::{Code, FrameBuffer, Header, body};

use crate::error::{Error, Refusal};

/// A frame received, owned and aligned.
#[derive(Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The body without padding; see [`Message::read`].
    pub body: FrameBuffer,
}

impl Message {
    /// The outcome of a response.
    #[must_use]
    pub fn code(&self) -> Code {
        Code::from_number(self.header.code)
    }

    /// Turns a response whose code is not `ok` into its refusal.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn accepted(self) -> Result<Self, Error> {
        if self.header.code == Code::Ok.number() {
            return Ok(self);
        }
        Err(Error::Refused(Refusal::read(self.code(), &self.body)))
    }

    /// Validates the body as the archived form `A` and reads it in place.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the body has another layout.
    pub fn read<A>(&self) -> Result<&A, Error>
    where
        A: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
    {
        Ok(body::access::<A>(&self.body)?)
    }
}

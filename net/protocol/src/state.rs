//! The content addresses of a task's state.
//!
//! A state is cut into chunks by content at the client. A chunk's address is the BLAKE3 hash of its bytes, and a version's digest
//! the BLAKE3 hash of its chunks' addresses one behind the other: so both sides can say which state they mean without
//! its bytes.

/// The address of a chunk, or the digest of a version.
pub type Address = [u8; 32];

/// The address of a chunk with these bytes.
#[must_use]
pub fn address_of(chunk: &[u8]) -> Address {
    *blake3::hash(chunk).as_bytes()
}

/// The digest of a state with these chunks.
#[must_use]
pub fn digest_of<'a>(chunks: impl IntoIterator<Item = &'a Address>) -> Address {
    let mut hasher = blake3::Hasher::new();
    for address in chunks {
        hasher.update(address);
    }
    *hasher.finalize().as_bytes()
}

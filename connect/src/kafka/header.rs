//! The last header of a name, whatever the others are called.
//!
//! rdkafka's own iterator over headers panics where the name of any of them is not UTF-8. A panic ends the process, which after its
//! restart would come to the same message: one message would end node after node. librdkafka itself compares bytes.

use std::ffi::CString;
use std::ptr;
use std::slice;

use rdkafka::bindings::{rd_kafka_header_get_last, rd_kafka_message_headers};
use rdkafka::error::IsError;
use rdkafka::message::BorrowedMessage;

/// A message, of which headers are looked up by name.
pub(super) trait LastHeader {
    /// The value of the last header of a name; nothing if there is none, or if it has no value.
    fn last_header(&self, name: &str) -> Option<&[u8]>;
}

impl LastHeader for BorrowedMessage<'_> {
    #[expect(unsafe_code, reason = "rdkafka has no way to a header that does not take all names for UTF-8")]
    fn last_header(&self, name: &str) -> Option<&[u8]> {
        // No header's name has a zero byte.
        let name = CString::new(name).ok()?;
        let mut headers = ptr::null_mut();
        // SAFETY: the pointer is that of a message of librdkafka, which lives as long as `self`.
        let known = unsafe { rd_kafka_message_headers(self.ptr(), &raw mut headers) };
        if known.is_error() {
            return None;
        }
        let (mut value, mut length) = (ptr::null(), 0);
        // SAFETY: the headers belong to the message and live as long; the name ends with a zero byte.
        let found = unsafe { rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut length) };
        if found.is_error() || value.is_null() {
            return None;
        }
        // SAFETY: so many bytes are there, as part of the message, and nobody changes them while it is borrowed.
        Some(unsafe { slice::from_raw_parts(value.cast(), length) })
    }
}

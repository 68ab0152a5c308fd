//! Checks of bodies by operation.

use taskmaster_protocol::Operation;
use taskmaster_protocol::body::Malformed;
use taskmaster_protocol::frame::Header;

#[path = "../../net/protocol/tests/specification/shape.rs"]
#[allow(dead_code, reason = "shared with the tests of the specification")]
mod shape;

/// Checks that a body has the layout of its header's operation and looks at everything in it. Spans may point anywhere.
///
/// # Errors
/// When no body of the operation has that layout.
pub fn check(header: &Header, bytes: &[u8]) -> Result<(), Malformed> {
    let Some(operation) = Operation::from_number(header.operation) else { return Ok(()) };
    let mut outcome = Err(Malformed("the operation has no such body".to_owned()));
    for name in shape::bodies_of(operation, header.is_response(), header.code) {
        let shape = shape::shape(name);
        let checked = (shape.spans)(bytes, &mut |_| {}).and_then(|()| (shape.describe)(bytes));
        if checked.is_ok() || outcome.is_err() {
            outcome = checked.map(|_| ());
        }
    }
    outcome
}

//! A submission with results that a store outside remembered, as one command: the wire body as it came, then the results.
//!
//! ```text
//! offset size field
//!      0    4 submit_len  bytes of the body of Submit
//!      4    4 rows        results
//!      8    8 zero
//!     16      the body of Submit, padded to 16
//! then per result, in order of rows:
//!      0   16 of          the task that ran
//!     16    8 made_us     when it succeeded, microseconds since 1970
//!     24    4 row         of the submission
//!     28    4 len         bytes of the result
//! then      the results, one behind the other
//! ```

use taskmaster_protocol::{FrameBuffer, TaskId};

const HEAD_BYTES: usize = 16;
const ROW_BYTES: usize = 32;

/// What a store outside remembered for a row of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The row.
    pub row: u32,
    /// The task that ran.
    pub of: TaskId,
    /// When it succeeded, in microseconds since 1970.
    pub made_us: u64,
    /// Its result.
    pub result: Vec<u8>,
}

/// A result within a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownRow<'a> {
    pub(crate) row: u32,
    pub(crate) of: TaskId,
    pub(crate) made_us: u64,
    pub(crate) result: &'a [u8],
}

/// Bytes of the command's body with a submission of so many bytes, before results.
pub(crate) fn bytes_before_results(submit: usize) -> usize {
    HEAD_BYTES + submit.next_multiple_of(16)
}

impl Known {
    /// Bytes that it adds to the command's body.
    pub(crate) fn bytes(&self) -> usize {
        ROW_BYTES + self.result.len()
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("bounded at admission").to_le_bytes()
}

/// Writes the body of the command; results in order of rows.
pub(crate) fn write(submit: &[u8], known: &[Known], out: &mut FrameBuffer) {
    out.extend_from_slice(&length(submit.len()));
    out.extend_from_slice(&length(known.len()));
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(submit);
    let padding = submit.len().next_multiple_of(16) - submit.len();
    out.extend_from_slice(&[0; 16][..padding]);
    for known in known {
        out.extend_from_slice(&known.of.hi.to_le_bytes());
        out.extend_from_slice(&known.of.lo.to_le_bytes());
        out.extend_from_slice(&known.made_us.to_le_bytes());
        out.extend_from_slice(&known.row.to_le_bytes());
        out.extend_from_slice(&length(known.result.len()));
    }
    for known in known {
        out.extend_from_slice(&known.result);
    }
}

/// Reads it: the body of Submit where it lies, and the results. `None` if it is none.
pub(crate) fn read(bytes: &[u8]) -> Option<(&[u8], Vec<KnownRow<'_>>)> {
    let number = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (submit_len, count) = (number(bytes, 0)? as usize, number(bytes, 4)? as usize);
    let behind = bytes.get(HEAD_BYTES..)?;
    let submit = behind.get(..submit_len)?;
    let behind = behind.get(submit_len.next_multiple_of(16)..)?;
    let (rows, mut results) = behind.split_at_checked(count.checked_mul(ROW_BYTES)?)?;
    let mut known = Vec::with_capacity(count);
    for row in rows.chunks_exact(ROW_BYTES) {
        let (result, rest) = results.split_at_checked(number(row, 28)? as usize)?;
        results = rest;
        let of = TaskId { hi: long(row, 0)?, lo: long(row, 8)? };
        known.push(KnownRow { row: number(row, 24)?, of, made_us: long(row, 16)?, result });
    }
    Some((submit, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_it_was_written_and_no_prefix_of_it_does() {
        let of = TaskId { hi: 7, lo: 9 };
        let known = [
            Known { row: 1, of, made_us: 5, result: b"one".to_vec() },
            Known { row: 3, of, made_us: 6, result: b"three".to_vec() },
        ];
        let mut out = FrameBuffer::new();
        write(b"the body of Submit", &known, &mut out);
        let (submit, rows) = read(&out).unwrap();
        assert_eq!(submit, b"the body of Submit");
        let rows: Vec<_> = rows.iter().map(|row| (row.row, row.of, row.made_us, row.result)).collect();
        assert_eq!(out.len(), bytes_before_results(18) + known.iter().map(Known::bytes).sum::<usize>());
        assert_eq!(rows, [(1, of, 5, &b"one"[..]), (3, of, 6, &b"three"[..])]);
        for cut in 0..out.len() {
            assert_eq!(read(&out[..cut]), None, "{cut}");
        }
    }
}

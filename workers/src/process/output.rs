//! What a process writes, kept within bounds.

/// Standard output: kept from the beginning, up to a limit.
#[derive(Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl Head {
    pub(super) const fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, overflowed: false }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(self.limit - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.overflowed |= kept < bytes.len();
    }

    /// Whether more came than is kept.
    pub(super) const fn overflowed(&self) -> bool {
        self.overflowed
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Standard error: the last bytes.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
}

impl Tail {
    pub(super) const fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Holds at most twice the limit between pushes, so that a byte is moved once on average.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        if self.bytes.len() + bytes.len() > self.limit * 2 {
            let keep = self.limit - bytes.len();
            self.bytes.drain(..self.bytes.len() - keep.min(self.bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.drain(..self.bytes.len().saturating_sub(self.limit));
        self.bytes
    }
}

/// The last line which says something, cut to a readable length.
pub(super) fn last_line(log: &[u8]) -> Option<String> {
    const CHARS_MAX: usize = 200;
    let text = String::from_utf8_lossy(log);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    let cut: String = line.chars().take(CHARS_MAX).collect();
    Some(if cut.len() < line.len() { format!("{cut}...") } else { cut })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_tail_is_the_end_of_everything_written(
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
            limit in 1_usize..50,
        ) {
            let mut tail = Tail::new(limit);
            for bytes in &writes {
                tail.push(bytes);
                prop_assert!(tail.bytes.len() <= limit * 2);
            }
            let all = writes.concat();
            prop_assert_eq!(tail.into_bytes(), &all[all.len().saturating_sub(limit)..]);
        }

        #[test]
        fn the_head_is_the_beginning_of_everything_written(
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
            limit in 0_usize..50,
        ) {
            let mut head = Head::new(limit);
            for bytes in &writes {
                head.push(bytes);
            }
            let all = writes.concat();
            prop_assert_eq!(head.overflowed(), all.len() > limit);
            prop_assert_eq!(head.into_bytes(), &all[..all.len().min(limit)]);
        }
    }

    #[test]
    fn the_last_line_skips_empty_ones_and_is_cut() {
        assert_eq!(last_line(b"one\ntwo  \n\n \n").as_deref(), Some("two"));
        assert_eq!(last_line(b"\n"), None);
        assert_eq!(last_line("é".repeat(300).as_bytes()).map(|line| line.chars().count()), Some(203));
    }
}

//! The account of every task: acknowledged, completed, and what does not add up.

/// Which tasks were acknowledged and which completions were accepted, by sequence number.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Whether single tasks are kept account of; otherwise only totals.
    exact: bool,
    submitted: Bits,
    completed: Bits,
    /// Found to be completed, without knowing by which attempt.
    settled: Bits,
    /// Submissions acknowledged.
    pub(crate) acknowledged: u64,
    /// Completions accepted, each task once if exact.
    pub(crate) done: u64,
    /// Completions accepted for tasks that were done.
    pub(crate) duplicated: u64,
}

impl Ledger {
    pub(crate) fn new(exact: bool) -> Self {
        Self { exact, ..Self::default() }
    }

    /// The submission of `count` tasks from sequence number `first` was acknowledged.
    pub(crate) fn acknowledge(&mut self, first: u64, count: u64) {
        self.acknowledged += count;
        if self.exact {
            for sequence in first..first + count {
                self.submitted.set(sequence);
            }
        }
    }

    /// The completion of a task was accepted.
    pub(crate) fn complete(&mut self, sequence: u64) {
        if self.exact && self.completed.set(sequence) {
            self.duplicated += 1;
        } else if !self.settled.get(sequence) {
            self.done += 1;
        }
    }

    /// The server calls a task final when its completion comes again: an earlier copy was accepted, or that of another attempt
    /// whose acknowledgement may be still on its way. So this and one acceptance are one completion.
    pub(crate) fn settle(&mut self, sequence: u64) {
        if !self.completed.get(sequence) && !self.settled.set(sequence) {
            self.done += 1;
        }
    }

    /// Tasks acknowledged and not completed.
    pub(crate) fn missing(&self) -> u64 {
        if !self.exact {
            return self.acknowledged.saturating_sub(self.done);
        }
        let words = self.submitted.words.iter().enumerate();
        words.map(|(at, word)| u64::from((word & !self.completed.word(at) & !self.settled.word(at)).count_ones())).sum()
    }
}

#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    fn get(&self, index: u64) -> bool {
        usize::try_from(index / 64).is_ok_and(|at| self.word(at) & (1 << (index % 64)) != 0)
    }

    /// Sets a bit; whether it was set before.
    fn set(&mut self, index: u64) -> bool {
        let at = usize::try_from(index / 64).expect("64-bit machine");
        if at >= self.words.len() {
            self.words.resize((at + 1).next_multiple_of(4096), 0);
        }
        let mask = 1 << (index % 64);
        let before = self.words[at] & mask != 0;
        self.words[at] |= mask;
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn totals_agree_with_a_map_of_counters(
            acknowledged in 0u64..300,
            completions in proptest::collection::vec(0u64..300, 0..600),
        ) {
            let mut ledger = Ledger::new(true);
            let mut model = BTreeMap::<u64, u64>::new();
            ledger.acknowledge(0, acknowledged);
            for sequence in completions {
                ledger.complete(sequence);
                *model.entry(sequence).or_default() += 1;
            }
            prop_assert_eq!(ledger.done, model.len() as u64);
            prop_assert_eq!(ledger.duplicated, model.values().map(|n| n - 1).sum::<u64>());
            let missing = (0..acknowledged).filter(|n| !model.contains_key(n)).count();
            prop_assert_eq!(ledger.missing(), missing as u64);
        }
    }

    #[test]
    fn completions_may_overtake_acknowledgements() {
        let mut ledger = Ledger::new(true);
        ledger.complete(5);
        ledger.acknowledge(0, 10);
        assert_eq!((ledger.missing(), ledger.done, ledger.duplicated), (9, 1, 0));
    }

    #[test]
    fn settling_and_one_acceptance_are_one_completion_in_either_order() {
        let mut ledger = Ledger::new(true);
        ledger.acknowledge(0, 3);
        ledger.settle(0);
        ledger.complete(0);
        ledger.complete(1);
        ledger.settle(1);
        ledger.settle(2);
        ledger.settle(2);
        assert_eq!((ledger.missing(), ledger.done, ledger.duplicated), (0, 3, 0));
        ledger.complete(0);
        assert_eq!((ledger.done, ledger.duplicated), (3, 1));
    }
}

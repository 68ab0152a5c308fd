//! Whether `auto` leaves the order of readiness: what was served lately is played again, or where tasks start too seldom for that what waits
//! is played, in both orders and by run times that were measured, and the guard ([`taskmaster_scheduler::guard`]) says if there is a gain.

use taskmaster_scheduler::guard::Verdict;
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::shadow::{self, Ran, Restartable, Stage};

use super::{FLOOR_MS, Learned, Order, WASTE_MAX, millis};

/// Where no stretch of what was served was judged for so long, `auto` looks at what waits, if that is so many tasks.
const LINE_PAUSE_US: u64 = 60_000_000;
const LINE_MIN: usize = 32;
/// A stretch says nothing of an order on more places than one for so many of its tasks.
const TASKS_PER_PLACE: usize = 4;
/// Of what was served one of so many must be of a class of which some have ended.
const KNOWN_PART: usize = 2;
/// Tasks of a sample of what waits.
pub(crate) const LINE_MAX: usize = 256;

impl Order {
    /// Replays what was served on so many places and in both orders; `waiting` tasks are in line, of these classes. Of one class alone
    /// all orders are one.
    pub(crate) fn judge(
        &mut self,
        learned: &Learned,
        (places, waiting): (usize, usize),
        mut classes: impl Iterator<Item = u32>,
        now_us: u64,
    ) {
        let served = self.recent.latest();
        let Some(first) = served.first().map(|began| began.class) else { return };
        if served.len() < places.saturating_mul(TASKS_PER_PLACE) {
            return;
        }
        self.judged_us = now_us;
        if !self.is_of_several(learned, served.iter().map(|began| began.class)) {
            self.is_better &= classes.any(|class| class != first);
            return;
        }
        let first_us = served.iter().map(|began| began.ready_us).min().unwrap_or(0);
        let again = served
            .iter()
            .enumerate()
            .map(|(number, began)| played(learned, began.class, millis(began.ready_us - first_us), number));
        // Of some classes none may have ended yet.
        let tasks: Vec<Ran> = again.flatten().collect();
        if tasks.len() >= served.len() / KNOWN_PART {
            self.weigh(learned, tasks, waiting, (places, 0.0, 0.0));
        }
    }

    /// Whether `auto` is to look at what waits, as tasks start too seldom to be judged by those that were served.
    pub(crate) fn is_line_due(&self, now_us: u64) -> bool {
        self.policy == Policy::Auto && now_us.saturating_sub(self.judged_us) >= LINE_PAUSE_US
    }

    /// Plays what waits, of which `line` is a sample (classes, and since when each is ready), on so many places and in both orders.
    pub(crate) fn judge_line(
        &mut self,
        learned: &Learned,
        (places, waiting): (usize, usize),
        line: &[(u32, u64)],
        now_us: u64,
    ) {
        self.judged_us = now_us;
        let first_us = line.iter().map(|(_, ready_us)| *ready_us).min().unwrap_or(now_us);
        // Each time other ones of the run times that are remembered.
        let other = usize::try_from(now_us % 1_000_003).unwrap_or(0);
        let known = line.iter().enumerate().filter_map(|(number, &(class, ready_us))| {
            played(
                learned,
                class,
                millis(ready_us.saturating_sub(first_us)),
                number.wrapping_mul(7).wrapping_add(other),
            )
        });
        let tasks: Vec<Ran> = known.collect();
        if tasks.len() >= LINE_MIN && self.is_of_several(learned, tasks.iter().map(|task| task.group)) {
            // As many places as the sample is of the line, of which one after the other is free as tasks end.
            let places = (places * tasks.len()).div_ceil(waiting.max(tasks.len()));
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            let every = millis(self.mean_us) / places.max(1) as f64;
            self.weigh(learned, tasks, waiting, (places, millis(now_us.saturating_sub(first_us)), every));
        }
    }

    /// Whether some of these classes' tasks would be given up.
    fn may_give_up(&self, learned: &Learned, mut classes: impl Iterator<Item = u32>) -> bool {
        !self.keeps_all && classes.any(|class| learned.attempt(class, 0).is_some())
    }

    /// Whether orders of tasks of these classes differ at all.
    fn is_of_several(&self, learned: &Learned, mut classes: impl Iterator<Item = u32> + Clone) -> bool {
        let all = classes.clone();
        let first = classes.next();
        classes.any(|class| Some(class) != first) || self.may_give_up(learned, all)
    }

    /// Plays tasks in both orders on so many places, of which the first is free then and each further one so much later; `waiting` are in line.
    fn weigh(
        &mut self,
        learned: &Learned,
        mut tasks: Vec<Ran>,
        waiting: usize,
        (places, from, every): (usize, f64, f64),
    ) {
        tasks.sort_by(|a, b| a.ready.total_cmp(&b.ready));
        let gives_up = self.may_give_up(learned, tasks.iter().map(|task| task.group));
        #[expect(clippy::cast_precision_loss, reason = "a threshold")]
        let stage = Stage { places, from, every, cap: f64::INFINITY, floor: FLOOR_MS as f64 };
        let plain = shadow::play(&tasks, Policy::Fifo, &stage);
        let candidate = match gives_up {
            true => shadow::play_giving_up(&tasks, &stage, learned, WASTE_MAX),
            false => shadow::play(&tasks, Policy::Shortest, &stage),
        };
        let longest = if self.is_better { plain.longest } else { plain.longest.max(waiting) };
        self.guard.block(plain.slowdown(), candidate.slowdown(), longest);
        self.is_better = self.guard.verdict(waiting) == Verdict::Candidate;
    }
}

/// A task of a class that became ready then, with one of the class's last run times; `None` if it has none yet.
fn played(learned: &Learned, class: u32, ready: f64, pick: usize) -> Option<Ran> {
    let (expected, width) = learned.expected_of(class);
    let (run, rank) = (f64::from(learned.run(class, pick)?), expected.rank(width));
    Some(Ran { ready, began: ready, run, rank, quantiles: [run; 2], deadline: None, group: class })
}

#[cfg(test)]
mod tests {
    use taskmaster_protocol::PartitionId;

    use super::*;
    use crate::order::{Alike, By, LEARN_US};
    use crate::resources::Resources;

    /// Two kinds, 1 ms and 400 ms, that come at once and wait: `auto` finds that the short ones should go first.
    fn taught(slow_ms: u64) -> (Learned, Order, [u32; 2]) {
        let mut learned = Learned::default();
        let resources = Resources::default();
        let classes = ["short", "long"].map(|kind| {
            let alike = Alike { kind, resources: &resources, restartable: false, size: 0 };
            learned.class((0, "q"), "default", &alike)
        });
        let mut now_us = 1;
        for _ in 0..20 {
            for (class, run_ms) in [(classes[0], 1), (classes[1], slow_ms)] {
                now_us += LEARN_US;
                learned.learn(class, run_ms * 1_000, false, now_us);
            }
        }
        (learned, Order::default(), classes)
    }

    /// Tasks of one replay.
    const BLOCK: usize = 256;

    fn block(learned: &Learned, order: &mut Order, classes: [u32; 2], now_us: u64, waiting: usize) {
        for number in 0..BLOCK {
            order.note((PartitionId(0), now_us + number as u64), [now_us, now_us, 0], classes[number % 2], 4);
        }
        assert!(order.is_full());
        order.judge(learned, (4, waiting), classes.into_iter(), now_us);
    }

    fn blocks(learned: &Learned, order: &mut Order, classes: [u32; 2], count: u64) {
        let from = 1 + order.recent.noted() / BLOCK as u64;
        (from..from + count).for_each(|number| block(learned, order, classes, number * 1_000_000, BLOCK));
    }

    #[test]
    fn auto_takes_the_shortest_first_once_replays_show_a_gain() {
        let (mut learned, mut order, classes) = taught(400);
        assert!(learned.rank(classes[0], 1, false) < learned.rank(classes[1], 1, false));
        blocks(&learned, &mut order, classes, 3);
        assert!(!(order.by() == By::Rank), "three blocks are too few");
        blocks(&learned, &mut order, classes, 10);
        assert!((order.by() == By::Rank), "{}", order.in_words());
    }

    #[test]
    fn auto_keeps_the_order_of_readiness_where_there_is_nothing_to_gain() {
        let (learned, mut order, classes) = taught(1);
        blocks(&learned, &mut order, classes, 40);
        assert!(!(order.by() == By::Rank), "{}", order.in_words());
        let (learned, mut order, [short, _]) = taught(400);
        blocks(&learned, &mut order, [short, short], 40);
        assert!(!(order.by() == By::Rank), "one class has no order");
    }

    #[test]
    fn a_stretch_of_one_kind_ends_the_learned_order_only_where_no_other_waits() {
        let (learned, mut order, classes) = taught(400);
        blocks(&learned, &mut order, classes, 13);
        assert!(order.by() == By::Rank, "{}", order.in_words());
        let mut stretch = |now_us: u64, waiting: [u32; 2]| {
            for number in 0..BLOCK {
                order.note((PartitionId(0), now_us + number as u64), [now_us, now_us, 0], classes[0], 4);
            }
            assert!(order.is_full());
            order.judge(&learned, (4, BLOCK), waiting.into_iter(), now_us);
            order.by() == By::Rank
        };
        assert!(stretch(20_000_000, classes), "the long ones wait");
        assert!(!stretch(21_000_000, [classes[0]; 2]));
    }

    #[test]
    fn auto_falls_back_when_the_line_grows_beyond_what_it_was() {
        let (learned, mut order, classes) = taught(400);
        blocks(&learned, &mut order, classes, 10);
        block(&learned, &mut order, classes, 20_000_000, 100 * BLOCK);
        assert!(!(order.by() == By::Rank));
    }

    /// A line of tasks that take a minute and an hour, which start a few an hour.
    fn looks(learned: &Learned, order: &mut Order, line: &[(u32, u64)], count: u64) {
        for _ in 0..count {
            let now_us = order.judged_us.max(line[0].1) + LINE_PAUSE_US;
            assert!(order.is_line_due(now_us));
            order.judge_line(learned, (4, line.len()), line, now_us);
            assert!(!order.is_line_due(now_us + LINE_PAUSE_US - 1));
        }
    }

    #[test]
    fn where_tasks_take_hours_auto_looks_at_those_that_wait() {
        let (learned, mut order, classes) = taught(60_000);
        let line: Vec<(u32, u64)> = (0..100).map(|number| (classes[number % 2], LINE_PAUSE_US)).collect();
        looks(&learned, &mut order, &line, 3);
        assert!(order.by() == By::Turns, "three looks are too few");
        looks(&learned, &mut order, &line, 10);
        assert!(order.by() == By::Rank, "{}", order.in_words());
        // Where half of the run times are not what was predicted, the order is given up at once.
        for number in 0..400 {
            order.ended(number % 2 == 0);
        }
        assert!(order.by() == By::Turns);
    }

    #[test]
    fn a_line_without_an_order_to_be_found_changes_nothing() {
        let (learned, mut order, classes) = taught(60_000);
        let of_one: Vec<(u32, u64)> = (0..100).map(|_| (classes[1], LINE_PAUSE_US)).collect();
        looks(&learned, &mut order, &of_one, 20);
        let short: Vec<(u32, u64)> = (0..LINE_MIN - 1).map(|number| (classes[number % 2], LINE_PAUSE_US)).collect();
        looks(&learned, &mut order, &short, 20);
        let (learned, mut order, classes) = taught(1);
        let alike: Vec<(u32, u64)> = (0..100).map(|number| (classes[number % 2], LINE_PAUSE_US)).collect();
        looks(&learned, &mut order, &alike, 20);
        assert!(order.by() == By::Turns, "{}", order.in_words());
    }
}

//! How long tasks waited although they could have run: from the moment when a task was ready and a slot and the cores it
//! reserves were free, to its start. Waiting for capacity is the machine's size; this is the engine's part.
//!
//! Computed by a sweep over observed starts and ends. Capacity is taken to be used from an attempt's start to its end.

use super::Observation;

/// A task as the sweep sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    pub(super) seen: Observation,
    /// Cores it reserves, in thousandths.
    pub(super) cpu_milli: u32,
}

/// Capacity between two moments.
#[derive(Clone, Copy, Debug)]
struct Free {
    from_us: u64,
    slots: i64,
    cpu_milli: i64,
}

/// The wait of each task that ran, in microseconds, in the order of their starts. `cpu_milli`: `None` if cores were not
/// counted.
pub(super) fn waits_us(tasks: &[Ran], slots: u32, cpu_milli: Option<u32>) -> Vec<u64> {
    let mut events: Vec<(u64, bool, &Ran)> = Vec::with_capacity(2 * tasks.len());
    for task in tasks.iter().filter(|task| task.seen.start_us > 0) {
        events.push((task.seen.start_us, true, task));
        events.push((task.seen.end_us.max(task.seen.start_us), false, task));
    }
    // Ends before starts at the same moment: a slot is free before it is taken.
    events.sort_by_key(|&(at_us, is_start, task)| (at_us, is_start, task.seen.ready_us));
    let all_cores = cpu_milli.map_or(i64::MAX / 2, i64::from);
    let mut history = vec![Free { from_us: 0, slots: slots.into(), cpu_milli: all_cores }];
    let mut waits = Vec::with_capacity(tasks.len());
    for (at_us, is_start, task) in events {
        if is_start && task.seen.ready_us > 0 {
            let able_us = able_since(&history, task, at_us);
            waits.push(at_us.saturating_sub(able_us));
        }
        let before = *history.last().expect("never empty");
        let sign = if is_start { -1 } else { 1 };
        let cpu_milli = before.cpu_milli + sign * i64::from(task.cpu_milli);
        history.push(Free { from_us: at_us, slots: before.slots + sign, cpu_milli });
    }
    waits
}

/// Since when, up to its start, the task was ready and fitted.
fn able_since(history: &[Free], task: &Ran, start_us: u64) -> u64 {
    let mut since_us = start_us;
    for free in history.iter().rev() {
        if free.slots < 1 || free.cpu_milli < i64::from(task.cpu_milli) {
            break;
        }
        since_us = free.from_us;
        if since_us <= task.seen.ready_us {
            break;
        }
    }
    since_us.max(task.seen.ready_us).min(start_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmaster_client::State;

    fn ran(ready_us: u64, start_us: u64, end_us: u64, cpu_milli: u32) -> Ran {
        let seen =
            Observation { state: State::Succeeded, attempts: 1, ready_us, first_start_us: start_us, start_us, end_us };
        Ran { seen, cpu_milli }
    }

    #[test]
    fn waiting_for_a_slot_does_not_count_and_waiting_beside_a_free_one_does() {
        let tasks = [ran(100, 110, 500, 0), ran(100, 505, 900, 0), ran(1_000, 1_030, 1_100, 0)];
        assert_eq!(waits_us(&tasks, 1, None), [10, 5, 30]);
        assert_eq!(waits_us(&tasks, 2, None), [10, 405, 30]);
    }

    #[test]
    fn waiting_for_cores_does_not_count() {
        let tasks = [ran(100, 110, 500, 1_000), ran(100, 507, 900, 1_000), ran(100, 120, 200, 0)];
        assert_eq!(waits_us(&tasks, 4, Some(1_000)), [10, 20, 7]);
    }

    #[test]
    fn tasks_that_never_ran_have_no_wait() {
        assert!(waits_us(&[ran(100, 0, 0, 0)], 1, None).is_empty());
    }
}

//! How likely a task meets its deadline.

use taskmaster_protocol::body::{Chance, chance_basis};

use crate::order::deadline::{deadline_us, quantiles_us};
use crate::outlook::{Asking, Outlook, Unknown, View};
use crate::partition::Partition;
use crate::state::State;
use crate::task::{Slot, flag};

/// The outlook of a task, if it has a deadline and runs or waits in line.
pub(crate) fn outlook(view: &View<'_>, partition: &Partition, slot: Slot) -> Option<Outlook> {
    let task = &partition.tasks[slot];
    let contract = &partition.contracts[task.contract];
    let deadline_us = deadline_us(task.extra, &partition.extras)?;
    if task.state == State::Leased {
        let since_us = partition.started_us(slot).unwrap_or(view.now_us);
        return Some(view.of_running(partition.class(slot), since_us, deadline_us));
    }
    // One that waits for others of its key is in no line.
    if !matches!(task.state, State::Ready | State::Delayed) || task.has(flag::BLOCKED) {
        return None;
    }
    let queue = &partition.queues[contract.queue as usize];
    let asking = asking(partition, slot);
    // A delayed one is seen as it will be when it is due.
    let mut outlook = View { now_us: view.now_us.max(task.at_us), ..*view }.of(queue.dispatch, &asking);
    if queue.settings.paused {
        outlook.in_time = outlook.in_time.and(Err(Unknown::Served));
    }
    Some(outlook)
}

/// A task that waits in line, or will.
pub(crate) fn asking(partition: &Partition, slot: Slot) -> Asking<'_> {
    let task = &partition.tasks[slot];
    let contract = &partition.contracts[task.contract];
    let is_listed = task.state == State::Ready && !task.has(flag::BLOCKED);
    let list = is_listed.then(|| &partition.lanes[contract.lane as usize].lists[partition.list(slot) as usize]);
    Asking {
        class: list.map_or(contract.class, |list| list.class),
        priority: contract.priority,
        asked: contract.asked(),
        deadline_us: deadline_us(task.extra, &partition.extras),
        ready: (task.at_us, task.token),
        own: Some((partition.id.0, slot)),
        before: 0,
    }
}

/// The answer to who asks.
pub(crate) fn of(view: &View<'_>, partition: &Partition, slot: Slot) -> Chance {
    let task = &partition.tasks[slot];
    let Some(deadline_us) = deadline_us(task.extra, &partition.extras) else {
        return Chance { basis: chance_basis::NO_DEADLINE, ..Chance::default() };
    };
    let deadline_ms = deadline_us / 1_000;
    let Some(outlook) = outlook(view, partition, slot) else {
        return Chance { deadline_ms, basis: chance_basis::NOT_IN_LINE, ..Chance::default() };
    };
    let [run_us, run_most_us] = quantiles_us(&outlook.expected);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
    let wait_ms = outlook.wait_ms as u64;
    Chance {
        deadline_ms,
        wait_ms,
        run_ms: run_us / 1_000,
        run_most_ms: run_most_us / 1_000,
        ahead: outlook.ahead,
        places: u32::try_from(outlook.places).unwrap_or(u32::MAX),
        samples: outlook.samples,
        permille: outlook.permille().unwrap_or(0),
        basis: match outlook.in_time {
            Ok(_) => chance_basis::KNOWN,
            Err(Unknown::Samples) => chance_basis::TOO_FEW_SAMPLES,
            Err(Unknown::Served) => chance_basis::NOT_SERVED,
        },
    }
}

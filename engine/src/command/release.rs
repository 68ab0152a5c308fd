//! Release: leases given back before they were worked on. No attempt is counted, and the tasks are the first of their line again, in the
//! order of the rows, and have been ready for as long as before. Volatile.

use taskmaster_protocol::body::{ArchivedLeases, BatchReply};
use taskmaster_protocol::{Code, TaskId};

use super::{except, leased_twice};
use crate::partition::{Cx, Over, Partition};
use crate::task::flag;

/// Makes each named task ready again.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedLeases, cx: &mut Cx<'_>) -> BatchReply {
    let mut reply = BatchReply::default();
    for (index, row) in body.rows.iter().enumerate().rev() {
        let id = TaskId::from(&row.id);
        match leased_twice(partition, id, row.token.to_native(), row.locator.to_native(), row.attempt.to_native()) {
            Ok((slot, _)) if partition.tasks[slot].has(flag::SETTLING) => {
                except(&mut reply, index, id, Code::StaleLease, Some(partition.tasks[slot].state));
            }
            Ok((slot, is_second)) if partition.second(slot).is_some() => {
                // The other attempt goes on.
                if is_second {
                    partition.second_came_to_nothing(slot, Over::Ended, cx);
                } else {
                    partition.promote_second(slot, Over::Ended, cx);
                }
                reply.accepted += 1;
            }
            Ok((slot, _)) => {
                partition.give_back(slot, cx);
                reply.accepted += 1;
            }
            Err((code, state)) => except(&mut reply, index, id, code, state),
        }
    }
    reply.exceptions.reverse();
    reply
}

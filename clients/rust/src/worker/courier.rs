//! Brings what a session cannot send itself to the leader of its partition: after a lost node, or when the lead moved.
//!
//! The leader that gave a lease may be gone with all it knew of it. Its successor then answers `stale_lease`, or
//! `already_final` when the answer had arrived before; both are the end of the matter.

use taskmaster_protocol::body::Leases;
use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::{Body, Header, Operation, PartitionId};

use super::outbox::Sent;
use crate::cluster::{Cluster, Target};
use crate::error::Error;
use crate::wire::Message;

/// How it went.
pub(super) struct Delivered {
    pub(super) frame: Sent,
    /// Whether an earlier copy may have arrived.
    pub(super) is_resend: bool,
    pub(super) result: Result<Message, Error>,
}

/// Sends an answer or a heartbeat to whoever leads its partition, for as long as calls are tried.
pub(super) async fn deliver(cluster: &Cluster, frame: Sent, is_resend: bool) -> Delivered {
    let mut is_resend = is_resend;
    let result = match &frame {
        Sent::Complete(partition, body) => call(cluster, Operation::Complete, *partition, body, &mut is_resend).await,
        Sent::Fail(partition, body) => call(cluster, Operation::Fail, *partition, body, &mut is_resend).await,
        Sent::Extend(leases) => match leases.first().map(|lease| lease.id.partition()) {
            Some(partition) => {
                let body = Leases { rows: leases.iter().map(|lease| lease.row()).collect() };
                call(cluster, Operation::Extend, partition, &body, &mut is_resend).await
            }
            None => Err(Error::lost("there is nothing to extend")),
        },
        Sent::Release(_) | Sent::Withdraw | Sent::Ping => Err(Error::lost("it concerns the connection it was sent on")),
    };
    Delivered { frame, is_resend, result }
}

async fn call<B: Body + Sync>(
    cluster: &Cluster,
    operation: Operation,
    partition: PartitionId,
    body: &B,
    is_resend: &mut bool,
) -> Result<Message, Error> {
    let mut header = Header::request(operation, 0, Some(partition));
    header.flags |= if *is_resend { FLAG_RESEND } else { 0 };
    let held = std::time::Duration::ZERO;
    let result = cluster.call_with(&mut header, Target::Partition(partition), body, held).await;
    *is_resend = header.is_resend();
    result
}

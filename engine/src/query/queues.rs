//! A partition's queues.

use taskmaster_protocol::body::{self, QueueInfo, QueuePage};

use crate::partition::Partition;
use crate::queue::{policy_number, weight_number};

/// Describes every queue.
pub(crate) fn list(partition: &Partition) -> QueuePage {
    let mut page = QueuePage::default();
    for queue in &partition.queues {
        let settings = &queue.settings;
        page.rows.push(QueueInfo {
            counts: queue.counts,
            rate_milli_per_s: settings.rate_milli_per_s,
            depth_max: settings.depth_max,
            namespace: body::put(&mut page.bytes, queue.namespace.as_bytes()),
            queue: body::put(&mut page.bytes, queue.name.as_bytes()),
            rate_burst: settings.rate_burst,
            concurrency: settings.concurrency,
            retention_ms: settings.retention_ms,
            paused: settings.paused.into(),
            draining: settings.draining.into(),
            deadline_action: settings.flag_late.into(),
            policy: policy_number(settings.policy),
            weight: weight_number(settings.weight),
            refuse_permille: settings.refuse_permille,
            restarts_off: settings.restarts_off.into(),
        });
    }
    page
}

//! Configure a queue: create it, change settings, pause, resume, drain.

use taskmaster_protocol::Code;
use taskmaster_protocol::body::{self, ArchivedConfigureQueue, queue_field};
use taskmaster_protocol::limits::WEIGHT_MAX;

use super::submit::{QUEUES_MAX, check_name};
use crate::contract::DEFAULT_NAMESPACE;
use crate::partition::{Cx, Partition};
use crate::queue::policy_of;
use crate::refused::Refused;

/// Checks names and ranges.
pub(crate) fn admit(partition: &Partition, body: &ArchivedConfigureQueue) -> Result<(), Refused> {
    let invalid = |sentence| Refused::new(Code::Invalid, sentence);
    check_name("queue", body::text(&body.bytes, body.queue)?).map_err(invalid)?;
    let namespace = body::text(&body.bytes, body.namespace)?;
    if !namespace.is_empty() {
        check_name("namespace", namespace).map_err(invalid)?;
    }
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    if partition.queues.len() >= QUEUES_MAX
        && partition.find_queue(namespace, body::text(&body.bytes, body.queue)?).is_none()
    {
        return Err(Refused::new(Code::TooLarge, format!("the partition has {QUEUES_MAX} queues, as many as it can")));
    }
    let known = queue_field::WEIGHT * 2 - 1;
    if body.set.to_native() & !known != 0 {
        return Err(Refused::new(Code::Invalid, "the request sets fields that this version does not know"));
    }
    if body.set.to_native() & queue_field::POLICY != 0 && policy_of(body.policy.to_native().into()).is_none() {
        return Err(Refused::new(Code::Invalid, "the policy must be auto (0), fifo (1), shortest (2) or deadline (3)"));
    }
    if body.set.to_native() & queue_field::REFUSAL != 0 && body.refuse_permille.to_native() > 1_000 {
        return Err(Refused::new(
            Code::Invalid,
            "the chance under which the queue refuses has at most 1000 parts per thousand",
        ));
    }
    let has_weight = body.set.to_native() & queue_field::WEIGHT != 0;
    if has_weight && !(1..=WEIGHT_MAX).contains(&body.weight.to_native()) {
        return Err(Refused::new(Code::Invalid, format!("the weight of a queue must be 1 to {WEIGHT_MAX}")));
    }
    if body.rate_milli_per_s.to_native() > 1_000_000_000_000 {
        return Err(Refused::new(
            Code::Invalid,
            "rates reach at most a thousand million tasks per second; 0 removes the limit",
        ));
    }
    Ok(())
}

/// Carries a logged change out.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedConfigureQueue, cx: &mut Cx<'_>) {
    let namespace = body::text(&body.bytes, body.namespace).unwrap_or_default();
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    let name = body::text(&body.bytes, body.queue).unwrap_or_default();
    let queue = partition.queue(namespace, name, cx.dispatch);
    let settings = &mut partition.queues[queue as usize].settings;
    let set = body.set.to_native();
    let was_paused = settings.paused;
    if set & queue_field::PAUSED != 0 {
        settings.paused = body.paused.to_native() != 0;
    }
    if set & queue_field::DRAINING != 0 {
        settings.draining = body.draining.to_native() != 0;
    }
    if set & queue_field::RATE != 0 {
        settings.rate_milli_per_s = body.rate_milli_per_s.to_native();
        settings.rate_burst = body.rate_burst.to_native();
    }
    if set & queue_field::CONCURRENCY != 0 {
        settings.concurrency = body.concurrency.to_native();
    }
    if set & queue_field::DEADLINE_ACTION != 0 {
        settings.flag_late = body.deadline_action == 1;
    }
    if set & queue_field::RETENTION != 0 {
        settings.retention_ms = body.retention_ms.to_native().max(1);
    }
    if set & queue_field::DEPTH != 0 {
        settings.depth_max = body.depth_max.to_native();
    }
    if set & queue_field::POLICY != 0 {
        settings.policy = policy_of(body.policy.to_native().into()).unwrap_or_default();
        partition.order_lanes(queue);
    }
    if set & queue_field::REFUSAL != 0 {
        partition.queues[queue as usize].settings.refuse_permille = body.refuse_permille.to_native();
    }
    if set & queue_field::RESTARTS != 0 {
        partition.queues[queue as usize].settings.change_restarts(body.restarts_off);
    }
    if set & queue_field::WEIGHT != 0 {
        partition.queues[queue as usize].settings.weight = body.weight.to_native();
    }
    partition.tell_settings(queue);
    let settings = &partition.queues[queue as usize].settings;
    let (resumed, settings) = (was_paused && !settings.paused, settings.clone());
    let target = partition.queues[queue as usize].dispatch;
    cx.dispatch.set_limits(target, &settings, cx.time_us);
    if resumed {
        partition.ring_lanes(queue, cx.dispatch);
    }
    cx.dispatch.mark(target);
}

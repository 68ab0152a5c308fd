//! What another policy would have made of what a queue ran lately.

use taskmaster_protocol::Code;
use taskmaster_protocol::body::{self, ArchivedShadow, PolicyWaits, ShadowReport};
use taskmaster_scheduler::shadow::{SAMPLES_MIN, Waits};

use crate::contract::DEFAULT_NAMESPACE;
use crate::outlook::View;
use crate::queue::{Policy, policy_number, policy_of};
use crate::refused::Refused;

/// Plays the present policy of a queue and the one that is asked about.
pub(crate) fn of(view: &View<'_>, body: &ArchivedShadow) -> Result<ShadowReport, Refused> {
    let (namespace, name) = (body::text(&body.bytes, body.namespace)?, body::text(&body.bytes, body.queue)?);
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    let policy = policy_of(body.policy.to_native()).ok_or_else(|| {
        Refused::new(Code::Invalid, "the policy must be auto (0), fifo (1), shortest (2) or deadline (3)")
    })?;
    let queue = view.dispatch.find_queue(namespace, name);
    let queue = queue.ok_or_else(|| Refused::new(Code::UnknownQueue, format!("queue \"{name}\" does not exist")))?;
    let order = &view.dispatch.queues[queue as usize].order;
    let (compared, count) = order.compare(&view.dispatch.learned, policy, view.now_us);
    let mut report =
        ShadowReport { samples: number(count), samples_min: number(SAMPLES_MIN), ..ShadowReport::default() };
    (report.present.policy, report.shadow.policy) = (policy_number(order.policy).into(), policy_number(policy).into());
    if let Some(compared) = compared {
        report.present = waits(&compared.present, order.policy);
        report.shadow = waits(&compared.shadow, policy);
        report.measured_us = thousandths(compared.measured);
        (report.gain_milli, report.gain_least_milli) = (thousandths(compared.gain), thousandths(compared.gain_least));
        (report.with_deadline, report.blocks) = (number(compared.with_deadline), number(compared.blocks));
    }
    Ok(report)
}

fn waits(waits: &Waits, policy: Policy) -> PolicyWaits {
    PolicyWaits {
        wait_us: thousandths(waits.mean),
        wait_median_us: thousandths(waits.median),
        wait_most_us: thousandths(waits.most),
        slowdown_milli: thousandths(waits.slowdown),
        late: number(waits.late),
        policy: policy_number(policy).into(),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn thousandths(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is negative or no number is 0")]
    let thousandths = (value * 1_000.0).round() as u64;
    thousandths
}

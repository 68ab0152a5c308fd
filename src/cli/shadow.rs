//! `taskmaster queue policy`: the policy of a queue, or another one in shadow of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskmaster_client::{Client, Policy, PolicyWaits, Shadow};

use super::{Exit, Failure};
use crate::output::{Output, Side, Table, human_count, human_us};

/// Between two looks while there are too few tasks.
const PAUSE: Duration = Duration::from_millis(500);

/// Plays a policy in shadow of a queue and tells what it would have done; waits so long for enough tasks.
pub(super) async fn report(
    client: &Client,
    name: &str,
    policy: Policy,
    longest: Duration,
    output: Output,
) -> Result<Exit, Failure> {
    let until = Instant::now() + longest;
    let mut shadow = client.shadow(name, policy).await?;
    while shadow.shards == 0 && Instant::now() < until {
        tokio::time::sleep(PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
        shadow = client.shadow(name, policy).await?;
    }
    if output.is_json() {
        output.json(&shadow_json(name, &shadow))?;
    } else {
        output.text(&in_words(name, &shadow))?;
    }
    Ok(Exit::Success)
}

fn is_enough(shadow: &Shadow) -> bool {
    shadow.shards > 0
}

fn shadow_json(name: &str, shadow: &Shadow) -> Value {
    let of = |waits: &PolicyWaits| {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        json!({
            "policy": waits.policy.name(),
            "wait_ms": ms(waits.wait),
            "wait_p50_ms": ms(waits.wait_median),
            "wait_p99_ms": ms(waits.wait_most),
            "slowdown": waits.slowdown,
            "late": waits.late,
        })
    };
    let known = is_enough(shadow);
    json!({
        "queue": name,
        "samples": shadow.samples + shadow.samples_waiting,
        "samples_min": shadow.samples_min,
        "enough": known,
        "present": if known { of(&shadow.present) } else { json!({ "policy": shadow.present.policy.name() }) },
        "shadow": if known { of(&shadow.shadow) } else { json!({ "policy": shadow.shadow.policy.name() }) },
        "gain": known.then_some(shadow.gain),
        "gain_least": known.then_some(shadow.gain_least),
        "measured_wait_ms": known.then_some(shadow.measured.as_secs_f64() * 1e3),
        "with_deadline": shadow.with_deadline,
        "shards": shadow.shards,
        "shards_waiting": shadow.shards_waiting,
    })
}

fn in_words(name: &str, shadow: &Shadow) -> String {
    let (present, candidate) = (shadow.present.policy.name(), shadow.shadow.policy.name());
    if !is_enough(shadow) {
        let (samples, least) = (human_count(shadow.samples_waiting), shadow.samples_min);
        return format!(
            "queue \"{name}\": {samples} tasks have begun since its leaders know of it, and it takes {least} on a shard \
             to say what {candidate} would have done. Ask again later, or wait for them with --for TIME.\n"
        );
    }
    let columns = ["policy", "mean wait", "p50", "p99", "slowdown", "late"]
        .map(|name| (name, if name == "policy" { Side::Left } else { Side::Right }));
    let mut table = Table::new(&columns);
    for (waits, role) in [(&shadow.present, "present"), (&shadow.shadow, "shadow")] {
        let time = |time: Duration| human_us(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        let late = if shadow.with_deadline == 0 { String::new() } else { human_count(waits.late) };
        table.row(vec![
            format!("{} ({role})", waits.policy.name()),
            time(waits.wait),
            time(waits.wait_median),
            time(waits.wait_most),
            format!("{:.2}", waits.slowdown),
            late,
        ]);
    }
    let verdict = if shadow.gain_least > 1.0 {
        format!("{candidate} is better: `taskmaster queue set {name} --policy {candidate}` promotes it")
    } else if shadow.gain < 1.0 {
        format!("{candidate} is not better than {present}")
    } else {
        format!("it is not certain that {candidate} is better than {present}")
    };
    format!(
        "{}{} tasks played; {present} over {candidate} in mean slowdown: {:.2}, at least {:.2} with 95 % confidence.\n{verdict}.\n",
        table.render(),
        human_count(shadow.samples),
        shadow.gain,
        shadow.gain_least,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadow(gain: f64, gain_least: f64) -> Shadow {
        let present = PolicyWaits { policy: Policy::Fifo, slowdown: 8.0, ..PolicyWaits::default() };
        let shadow = PolicyWaits { policy: Policy::Shortest, slowdown: 2.0, ..PolicyWaits::default() };
        Shadow { present, shadow, gain, gain_least, samples: 512, samples_min: 256, shards: 1, ..Shadow::default() }
    }

    #[test]
    fn the_verdict_follows_the_bound() {
        assert!(in_words("q", &shadow(4.0, 3.0)).contains("shortest is better"));
        assert!(in_words("q", &shadow(4.0, 0.9)).contains("not certain"));
        assert!(in_words("q", &shadow(0.5, 0.2)).contains("not better"));
    }

    #[test]
    fn too_few_tasks_are_told_and_nothing_else() {
        let few = Shadow { samples_waiting: 17, samples_min: 256, shards_waiting: 2, ..Shadow::default() };
        assert!(in_words("q", &few).contains("17 tasks have begun"), "{}", in_words("q", &few));
        let json = shadow_json("q", &few);
        assert_eq!(
            (json["enough"].as_bool(), json["gain"].as_f64(), json["samples"].as_u64()),
            (Some(false), None, Some(17))
        );
    }
}

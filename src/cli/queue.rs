//! `taskmaster queue list|pause|resume|drain|set|policy`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use taskmaster_client::{Client, Policy, QueueSettings, QueueView, State};

use super::arguments::Milli;
use super::connect::{block_on, connect};
use super::outcome::queue_json;
use super::{Exit, Failure, Global, log, shadow};
use crate::config::{Interval, did_you_mean};
use crate::output::{Output, Side, Table, Tint, human_count};

/// What to do with queues.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List queues with their counts
    List,
    /// Assign nothing of a queue until it is resumed
    Pause {
        /// Queue
        name: String,
    },
    /// Assign again, and take new tasks again
    Resume {
        /// Queue
        name: String,
    },
    /// Refuse new tasks; accepted ones run
    Drain {
        /// Queue
        name: String,
    },
    /// Create a queue, or change its settings
    Set(SetArguments),
    /// Tell the policy of a queue, or what another one would have made of what it ran lately
    Policy {
        /// Queue
        name: String,
        /// Play this policy in shadow, over the tasks that the queue ran lately
        #[arg(long, value_enum, value_name = "POLICY")]
        shadow: Option<PolicyName>,
        /// Wait so long for enough tasks
        #[arg(long = "for", value_name = "TIME", requires = "shadow")]
        longest: Option<Interval>,
    },
}

/// Settings of a queue; what is not named stays as it is.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct SetArguments {
    /// Queue
    name: String,
    /// Most starts per second (100, 0.5); 0 for no limit
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<Milli>,
    /// Most starts at once after idleness [default: one second's worth, at least 1]
    #[arg(long, value_name = "N", requires = "rate")]
    burst: Option<u32>,
    /// Most tasks running at once; 0 for no limit
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// Most unfinished tasks; 0 for no limit of its own
    #[arg(long, value_name = "N")]
    depth: Option<u64>,
    /// How long finished tasks are kept unless they say otherwise
    #[arg(long, value_name = "TIME")]
    retention: Option<Interval>,
    /// What happens at a task's deadline
    #[arg(long, value_enum, value_name = "ACTION")]
    deadline_action: Option<DeadlineAction>,
    /// In which order tasks of one priority start
    #[arg(long, value_enum, value_name = "POLICY")]
    policy: Option<PolicyName>,
    /// Its part of the workers that it shares with other queues, against theirs: with 3 it gets three times as much as a queue with 1. A
    /// namespace gets as much as its heaviest queue says [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    weight: Option<u16>,
    /// Refuse tasks whose deadline is met with a lower probability than this, in parts per thousand; 0 refuses none
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u16).range(0..=1_000))]
    refuse_hopeless: Option<u16>,
    /// Whether a second attempt of a restartable task begins beside one that is late, where a place idles [default: on]
    #[arg(long, value_enum, value_name = "SWITCH")]
    speculation: Option<Switch>,
    /// Whether attempts of restartable tasks are ended for tasks of a higher priority that find no place [default: on]
    #[arg(long, value_enum, value_name = "SWITCH")]
    preemption: Option<Switch>,
    /// Whether an attempt of a restartable task that outlived most of its kind is ended for a task that is expected to take much less,
    /// while the order is a learned one [default: on]
    #[arg(long, value_enum, value_name = "SWITCH")]
    giving_up: Option<Switch>,
    /// Whether tasks that were measured to slow each other down are kept apart [default: on]
    #[arg(long, value_enum, value_name = "SWITCH")]
    contention: Option<Switch>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// It is done
    On,
    /// It is not done
    Off,
}

/// At a task's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeadlineAction {
    /// It expires
    Expire,
    /// It is only flagged as late
    Flag,
}

/// In which order tasks of one priority start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PolicyName {
    /// The shortest first while replays of what was served show that it is better, else as they became ready
    Auto,
    /// As they became ready
    Fifo,
    /// The shortest first, by what was learned of their kinds
    Shortest,
    /// The earliest deadline that can be met first, the hopeless last
    Deadline,
}

impl PolicyName {
    /// The client's name for it.
    pub(super) const fn policy(self) -> Policy {
        match self {
            Self::Auto => Policy::Auto,
            Self::Fifo => Policy::Fifo,
            Self::Shortest => Policy::Shortest,
            Self::Deadline => Policy::Deadline,
        }
    }
}

impl SetArguments {
    fn settings(&self) -> QueueSettings {
        let mut settings = QueueSettings::new();
        if let Some(Milli(rate)) = self.rate {
            let burst = self.burst.unwrap_or_else(|| rate.div_ceil(1_000).max(1));
            settings = settings.rate(rate.into(), burst);
        }
        if let Some(concurrency) = self.concurrency {
            settings = settings.concurrency(concurrency);
        }
        if let Some(depth) = self.depth {
            settings = settings.depth_max(depth);
        }
        if let Some(Interval(retention)) = self.retention {
            settings = settings.retention(retention);
        }
        if let Some(action) = self.deadline_action {
            settings = settings.flag_deadlines(action == DeadlineAction::Flag);
        }
        if let Some(policy) = self.policy {
            settings = settings.policy(policy.policy());
        }
        if let Some(weight) = self.weight {
            settings = settings.weight(weight);
        }
        if let Some(permille) = self.refuse_hopeless {
            settings = settings.refuse_hopeless(permille);
        }
        if let Some(switch) = self.speculation {
            settings = settings.speculation(switch == Switch::On);
        }
        if let Some(switch) = self.preemption {
            settings = settings.preemption(switch == Switch::On);
        }
        if let Some(switch) = self.giving_up {
            settings = settings.giving_up(switch == Switch::On);
        }
        if let Some(switch) = self.contention {
            settings = settings.contention(switch == Switch::On);
        }
        settings
    }
}

/// Carries a queue command out.
pub(crate) fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let output = global.output();
    block_on(async {
        let client = connect(global).await?;
        match command {
            Command::List => list(&client, global.namespace.as_deref(), output).await,
            Command::Pause { name } => change(&client, &name, QueueSettings::new().paused(true), output).await,
            Command::Resume { name } => {
                change(&client, &name, QueueSettings::new().paused(false).draining(false), output).await
            }
            Command::Drain { name } => change(&client, &name, QueueSettings::new().draining(true), output).await,
            Command::Policy { name, shadow: None, .. } => tell_policy(&client, &name, output).await,
            Command::Policy { name, shadow: Some(policy), longest } => {
                existing(&client, &name).await?;
                let longest = longest.map_or(Duration::ZERO, |longest| longest.0);
                shadow::report(&client, &name, policy.policy(), longest, output).await
            }
            Command::Set(arguments) => configure(&client, &arguments.name, arguments.settings(), output).await,
        }
    })
}

/// Changes a queue that must exist: a misspelt name is an error and not a new queue.
async fn change(client: &Client, name: &str, settings: QueueSettings, output: Output) -> Result<Exit, Failure> {
    existing(client, name).await?;
    configure(client, name, settings, output).await
}

/// Tells by which policy a queue goes.
async fn tell_policy(client: &Client, name: &str, output: Output) -> Result<Exit, Failure> {
    let queue = existing(client, name).await?;
    if output.is_json() {
        output.json(&json!({ "queue": name, "policy": queue.policy.name() }))?;
    } else {
        output.text(&format!("{}\n", queue.policy.name()))?;
    }
    Ok(Exit::Success)
}

/// A queue that must exist: a misspelt name is an error.
async fn existing(client: &Client, name: &str) -> Result<QueueView, Failure> {
    let namespace = namespace_of(client);
    let mut queues = client.queues().await?;
    queues.retain(|queue| queue.namespace == namespace);
    let names: Vec<&str> = queues.iter().map(|queue| queue.queue.as_str()).collect();
    let found = queues.iter().find(|queue| queue.queue == name).cloned();
    found.ok_or_else(|| Failure::new(Exit::NotFound, unknown(name, &names)))
}

/// What to say of a queue that does not exist.
fn unknown(name: &str, names: &[&str]) -> String {
    let guess = did_you_mean(name, names.iter().copied());
    format!(
        "queue \"{name}\" does not exist{guess}; `taskmaster queue set {name}` with a setting creates it [unknown_queue]"
    )
}

fn namespace_of(client: &Client) -> &str {
    if client.namespace().is_empty() { "default" } else { client.namespace() }
}

/// Changes a queue and prints it as it is afterwards.
async fn configure(client: &Client, name: &str, settings: QueueSettings, output: Output) -> Result<Exit, Failure> {
    client.configure_queue(name, settings).await?;
    let namespace = namespace_of(client);
    let mut queues = client.queues().await?;
    queues.retain(|queue| queue.queue == name && queue.namespace == namespace);
    if output.is_json() {
        output.json(&queues.first().map_or_else(|| json!({"queue": name}), queue_json))?;
    } else {
        output.text(&table(&queues, output))?;
    }
    Ok(Exit::Success)
}

async fn list(client: &Client, namespace: Option<&str>, output: Output) -> Result<Exit, Failure> {
    let mut queues = client.queues().await?;
    queues.retain(|queue| namespace.is_none_or(|namespace| namespace == queue.namespace));
    if output.is_json() {
        let queues: Vec<Value> = queues.iter().map(queue_json).collect();
        output.json(&json!({ "queues": queues }))?;
    } else if queues.is_empty() {
        output.text("no queues yet: a queue comes into being with its first task\n")?;
    } else {
        output.text(&table(&queues, output))?;
    }
    Ok(Exit::Success)
}

fn table(queues: &[QueueView], output: Output) -> String {
    const SHOWN: [State; 7] =
        [State::Ready, State::Leased, State::Delayed, State::Waiting, State::Succeeded, State::Failed, State::Expired];
    let mut columns = vec![("namespace", Side::Left), ("queue", Side::Left)];
    columns.extend(SHOWN.map(|state| (state.name(), Side::Right)));
    columns.extend([("status", Side::Left), ("limits", Side::Left)]);
    let mut table = Table::new(&columns);
    for queue in queues {
        let mut row = vec![queue.namespace.clone(), queue.queue.clone()];
        row.extend(SHOWN.map(|state| human_count(queue.counts.of(state))));
        row.push(match (queue.is_paused, queue.is_draining) {
            (true, true) => output.tint(Tint::Caution, "paused, draining"),
            (true, false) => output.tint(Tint::Caution, "paused"),
            (false, true) => output.tint(Tint::Caution, "draining"),
            (false, false) => output.tint(Tint::Good, "running"),
        });
        row.push(limits(queue));
        table.row(row);
    }
    table.render()
}

/// Limits of a queue in a few words.
fn limits(queue: &QueueView) -> String {
    let mut parts = Vec::new();
    if queue.rate_milli_per_s > 0 {
        let (whole, rest) = (queue.rate_milli_per_s / 1_000, queue.rate_milli_per_s % 1_000);
        let rate = if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}") };
        parts.push(format!("{rate}/s burst {}", queue.rate_burst));
    }
    if queue.concurrency > 0 {
        parts.push(format!("{} at once", queue.concurrency));
    }
    if queue.depth_max > 0 {
        parts.push(format!("depth {}", human_count(queue.depth_max)));
    }
    if queue.flags_deadlines {
        parts.push("flags deadlines".to_owned());
    }
    if queue.policy != Policy::Auto {
        parts.push(format!("{} order", queue.policy.name()));
    }
    if queue.weight > 1 {
        parts.push(format!("weight {}", queue.weight));
    }
    if queue.refuse_permille > 0 {
        parts.push(format!("refuses deadlines under {}.{} %", queue.refuse_permille / 10, queue.refuse_permille % 10));
    }
    if queue.is_without_speculation {
        parts.push("no speculation".to_owned());
    }
    if queue.is_without_preemption {
        parts.push("no preemption".to_owned());
    }
    if queue.is_without_giving_up {
        parts.push("no giving up".to_owned());
    }
    if queue.is_without_contention {
        parts.push("contention ignored".to_owned());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Shape;

    #[test]
    fn a_queue_that_does_not_exist_is_refused_with_the_nearest_name() {
        let sentence = unknown("email", &["emails", "reports"]);
        assert!(sentence.contains("\"email\" does not exist; did you mean 'emails'?"), "{sentence}");
    }

    #[test]
    fn limits_are_told_in_words() {
        let queue = QueueView { rate_milli_per_s: 1_500, rate_burst: 2, concurrency: 8, ..QueueView::default() };
        assert_eq!(limits(&queue), "1.500/s burst 2, 8 at once");
        assert_eq!(limits(&QueueView::default()), "");
    }

    #[test]
    fn the_table_has_a_row_per_queue() {
        let queue =
            QueueView { namespace: "default".into(), queue: "emails".into(), is_paused: true, ..QueueView::default() };
        let text = table(&[queue], Output::new(Shape::Json));
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("emails") && line.contains("paused")), "{text}");
    }
}

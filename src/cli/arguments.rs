//! What a task is told by flags or by a line of a file: the same fields, the same units, the same names.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use taskmaster_client::{Resources, Retries, Task};
use taskmaster_workflow::units;

use crate::config::{ByteSize, Interval};

/// Priority classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    /// Before everything else
    Critical,
    /// Before normal
    High,
    /// The default
    Normal,
    /// After everything else
    Low,
}

impl From<Priority> for taskmaster_client::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Critical => Self::Critical,
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Low => Self::Low,
        }
    }
}

/// Processor or GPU share, written as `2`, `0.5` or `500m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Milli(pub(crate) u32);

impl FromStr for Milli {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        units::milli(text).map(Self)
    }
}

/// A resource of one's own, written as `name=amount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Its name.
    pub(crate) name: String,
    /// How much of it.
    pub(crate) amount: u64,
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("'{text}' is no resource; write name=amount, for example licence=1");
        let (name, amount) = text.split_once('=').ok_or_else(refuse)?;
        if name.is_empty() || name.contains(|c: char| c == ',' || c.is_whitespace()) {
            return Err(refuse());
        }
        Ok(Self { name: name.to_owned(), amount: amount.parse().map_err(|_| refuse())? })
    }
}

/// A label of a worker, written as `name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Its name.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_word = |word: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            (1..=63).contains(&word.len()) && word.chars().all(fits)
        };
        match text.split_once('=') {
            Some((name, value)) if is_word(name) && is_word(value) => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!(
                "'{text}' is no label; write name=value, for example zone=north: letters, digits, '_', '-' and '.', at most 63 each"
            )),
        }
    }
}

/// Reads a field of a file as the flag's text would be read.
fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn amounts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Amount>, D::Error> {
    let amounts = std::collections::BTreeMap::<String, u64>::deserialize(deserializer)?;
    Ok(amounts.into_iter().map(|(name, amount)| Amount { name, amount }).collect())
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Label>, D::Error> {
    let labels = std::collections::BTreeMap::<String, String>::deserialize(deserializer)?;
    labels.iter().map(|(name, value)| format!("{name}={value}").parse().map_err(de::Error::custom)).collect()
}

/// A task's kind and contract. Every field is optional: what a line does not say, the flags say, and else the default.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Description {
    /// Kind: the handler's name
    #[arg(long, value_name = "NAME")]
    pub(crate) kind: Option<String>,
    /// Queue [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// Priority class [default: normal]
    #[arg(long, value_enum, value_name = "CLASS")]
    pub(crate) priority: Option<Priority>,
    /// Not to start before this long after acceptance (5s, 1m30s)
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) delay: Option<Interval>,
    /// To be finished within this long after acceptance; what happens then is the queue's setting
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) deadline: Option<Interval>,
    /// At most one unfinished task of the queue has this key
    #[arg(long, value_name = "KEY")]
    pub(crate) unique_key: Option<String>,
    /// The key stays taken this long after acceptance, finished or not [with --from: 1d]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) unique_window: Option<Interval>,
    /// The task may have the result of another with the same kind, payload and this version of the kind, instead of running
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["unique_key", "concurrency_key"])]
    pub(crate) memo: Option<String>,
    /// A remembered result will do only when it is no older than this
    #[arg(long, value_name = "TIME", requires = "memo")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) memo_age: Option<Interval>,
    /// The handler has the same effect however often it runs: an attempt may be ended and made again for a task of a higher priority, or
    /// made twice at once when it takes much longer than others of its kind
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) restartable: Option<bool>,
    /// Tasks of the queue with this key share a limit of how many run at once
    #[arg(long, value_name = "KEY", requires = "concurrency_limit")]
    pub(crate) concurrency_key: Option<String>,
    /// Limit for the concurrency key
    #[arg(long, value_name = "N")]
    pub(crate) concurrency_limit: Option<u32>,
    /// Attempts in all [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) attempts: Option<u16>,
    /// Wait before the second attempt; it doubles after each one [default: 1s]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) backoff: Option<Interval>,
    /// Longest wait between attempts [default: 1m]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) backoff_max: Option<Interval>,
    /// Error code after which there is no further attempt (repeatable)
    #[arg(long, value_name = "CODE")]
    pub(crate) non_retryable: Vec<String>,
    /// How long a worker may be silent before the task goes to another [default: 30s]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) lease: Option<Interval>,
    /// How long the finished task and its result are kept [default: the queue's setting]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) retention: Option<Interval>,
    /// Cores needed (2, 0.5, 500m)
    #[arg(long, value_name = "CORES")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) cpu: Option<Milli>,
    /// GPUs needed (1, 0.5, 500m)
    #[arg(long, value_name = "DEVICES")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) gpu: Option<Milli>,
    /// Memory needed (256MiB)
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "from_text")]
    pub(crate) memory: Option<ByteSize>,
    /// Another resource needed (repeatable); in files an object of names and amounts
    #[arg(long = "resource", value_name = "NAME=AMOUNT")]
    #[serde(rename = "resources", deserialize_with = "amounts")]
    pub(crate) resource: Vec<Amount>,
    /// Only on workers with this label (repeatable: with all of them); in files an object of names and values
    #[arg(long, value_name = "NAME=VALUE")]
    #[serde(deserialize_with = "labels")]
    pub(crate) on: Vec<Label>,
    /// Rather on workers with this label, if one has room (repeatable: where most of them are); in files an object of names and values
    #[arg(long, value_name = "NAME=VALUE")]
    #[serde(deserialize_with = "labels")]
    pub(crate) prefer: Vec<Label>,
    /// With these resources where there is no room for the others (cpu=8,memory=4GiB,licence=1,on:zone=north; repeatable: tried in this
    /// order); in files a list of such texts
    #[arg(long = "or", value_name = "RESOURCES")]
    #[serde(deserialize_with = "alternatives")]
    pub(crate) or: Vec<Alternative>,
}

/// Resources in one text: `cpu=8,memory=4GiB,licence=1,on:zone=north`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alternative(Resources);

impl FromStr for Alternative {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut resources = Resources::new();
        for pair in text.split(',') {
            let (name, amount) = pair.split_once('=').ok_or_else(|| {
                format!("'{pair}' is no resource; write name=amount, for example cpu=8,memory=4GiB,on:zone=north")
            })?;
            resources = match name {
                "cpu" => resources.cpu_milli(amount.parse::<Milli>().map_err(|error| error.to_string())?.0),
                "gpu" => resources.gpu_milli(amount.parse::<Milli>().map_err(|error| error.to_string())?.0),
                "memory" => resources.memory_bytes(amount.parse::<ByteSize>().map_err(|error| error.to_string())?.0),
                _ => match pair.strip_prefix("on:") {
                    Some(label) => {
                        let Label { name, value } = label.parse()?;
                        resources.on(&name, &value)
                    }
                    None => {
                        let Amount { name, amount } = pair.parse()?;
                        resources.custom(&name, amount)
                    }
                },
            };
        }
        Ok(Self(resources))
    }
}

fn alternatives<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Alternative>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

/// What a line lists, or else what the flags do.
fn own_or<T: Clone>(own: Vec<T>, flags: &[T]) -> Vec<T> {
    if own.is_empty() { flags.to_vec() } else { own }
}

impl Description {
    /// What a line says, completed by the flags.
    pub(crate) fn or(self, flags: &Self) -> Self {
        Self {
            kind: self.kind.or_else(|| flags.kind.clone()),
            queue: self.queue.or_else(|| flags.queue.clone()),
            priority: self.priority.or(flags.priority),
            delay: self.delay.or(flags.delay),
            deadline: self.deadline.or(flags.deadline),
            unique_key: self.unique_key.or_else(|| flags.unique_key.clone()),
            unique_window: self.unique_window.or(flags.unique_window),
            memo: self.memo.or_else(|| flags.memo.clone()),
            memo_age: self.memo_age.or(flags.memo_age),
            restartable: self.restartable.or(flags.restartable),
            concurrency_key: self.concurrency_key.or_else(|| flags.concurrency_key.clone()),
            concurrency_limit: self.concurrency_limit.or(flags.concurrency_limit),
            attempts: self.attempts.or(flags.attempts),
            backoff: self.backoff.or(flags.backoff),
            backoff_max: self.backoff_max.or(flags.backoff_max),
            non_retryable: own_or(self.non_retryable, &flags.non_retryable),
            lease: self.lease.or(flags.lease),
            retention: self.retention.or(flags.retention),
            cpu: self.cpu.or(flags.cpu),
            gpu: self.gpu.or(flags.gpu),
            memory: self.memory.or(flags.memory),
            resource: own_or(self.resource, &flags.resource),
            on: own_or(self.on, &flags.on),
            prefer: own_or(self.prefer, &flags.prefer),
            or: own_or(self.or, &flags.or),
        }
    }

    /// The task without its payload; `None` when no kind is known.
    pub(crate) fn task(&self) -> Option<Task> {
        let mut task = Task::new(self.kind.clone()?).retries(self.retries());
        if let Some(queue) = &self.queue {
            task = task.queue(queue.clone());
        }
        if let Some(priority) = self.priority {
            task = task.priority(priority.into());
        }
        if let Some(Interval(delay)) = self.delay {
            task = task.delay(delay);
        }
        if let Some(Interval(deadline)) = self.deadline {
            task = task.deadline_in(deadline);
        }
        if let Some(key) = &self.unique_key {
            task = task.unique_key(key).unique_window(self.unique_window.map_or(Duration::ZERO, |window| window.0));
        }
        if let Some(version) = &self.memo {
            task = task.memoised(version);
        }
        if let Some(Interval(age)) = self.memo_age {
            task = task.memo_age(age);
        }
        if let Some(restartable) = self.restartable {
            task = task.restartable(restartable);
        }
        if let Some(key) = &self.concurrency_key {
            task = task.concurrency_key(key, self.concurrency_limit.unwrap_or(1));
        }
        if let Some(Interval(lease)) = self.lease {
            task = task.lease(lease);
        }
        if let Some(Interval(retention)) = self.retention {
            task = task.retention(retention);
        }
        Some(task.resources(self.resources()))
    }

    fn retries(&self) -> Retries {
        let mut retries = self.attempts.map_or_else(Retries::default, Retries::attempts);
        if let Some(Interval(backoff)) = self.backoff {
            retries = retries.backoff(backoff);
        }
        if let Some(Interval(longest)) = self.backoff_max {
            retries = retries.backoff_max(longest);
        }
        self.non_retryable.iter().fold(retries, |retries, code| retries.non_retryable(code))
    }

    fn resources(&self) -> Resources {
        let mut resources = Resources::new();
        if let Some(Milli(cpu)) = self.cpu {
            resources = resources.cpu_milli(cpu);
        }
        if let Some(Milli(gpu)) = self.gpu {
            resources = resources.gpu_milli(gpu);
        }
        if let Some(ByteSize(memory)) = self.memory {
            resources = resources.memory_bytes(memory);
        }
        let custom = |resources: Resources, Amount { name, amount }: &Amount| resources.custom(name, *amount);
        let resources = self.resource.iter().fold(resources, custom);
        let resources = self.on.iter().fold(resources, |resources, Label { name, value }| resources.on(name, value));
        let prefer = |resources: Resources, Label { name, value }: &Label| resources.prefer(name, value);
        let resources = self.prefer.iter().fold(resources, prefer);
        self.or.iter().fold(resources, |resources, Alternative(other)| resources.or(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_flags_say_with_the_same_units() {
        let line = r#"{"kind": "send", "queue": "emails", "priority": "high", "delay": "5s", "memory": "1MiB",
            "cpu": "500m", "resources": {"licence": 2}, "on": {"zone": "north"}, "non_retryable": ["bad"],
            "prefer": {"disk": "fast"}, "or": ["gpu=0.5,memory=2MiB,licence=3,on:zone=south"]}"#;
        let read: Description = serde_json::from_str(line).unwrap();
        assert_eq!(read.delay, Some(Interval::ms(5_000)));
        assert_eq!(read.memory, Some(ByteSize::mib(1)));
        assert_eq!(read.cpu, Some(Milli(500)));
        assert_eq!(read.resource, ["licence=2".parse().unwrap()]);
        assert_eq!(read.on, ["zone=north".parse().unwrap()]);
        assert_eq!(read.prefer, ["disk=fast".parse().unwrap()]);
        let other = Resources::new().gpu_milli(500).memory_bytes(2 << 20).custom("licence", 3).on("zone", "south");
        assert_eq!(read.or, [Alternative(other.clone())]);
        let asked = Resources::new().cpu_milli(500).memory_bytes(1 << 20).custom("licence", 2).on("zone", "north");
        assert_eq!(read.resources(), asked.prefer("disk", "fast").or(&other));
        assert!(read.task().is_some());
    }

    #[test]
    fn lines_with_unknown_fields_or_units_are_refused() {
        let refusal = |line| serde_json::from_str::<Description>(line).unwrap_err().to_string();
        assert!(refusal(r#"{"knd": "send"}"#).contains("unknown field `knd`"));
        assert!(refusal(r#"{"delay": "5"}"#).contains("has no unit"));
        assert!(refusal(r#"{"on": {"zone": ""}}"#).contains("name=value"));
        assert!(refusal(r#"{"priority": "urgent"}"#).contains("critical"));
    }

    #[test]
    fn flags_complete_what_a_line_leaves_out() {
        let flags = Description { kind: Some("a".into()), queue: Some("q".into()), ..Description::default() };
        let line = Description { kind: Some("b".into()), ..Description::default() };
        let both = line.or(&flags);
        assert_eq!((both.kind.as_deref(), both.queue.as_deref()), (Some("b"), Some("q")));
        assert!(Description::default().task().is_none());
    }
}

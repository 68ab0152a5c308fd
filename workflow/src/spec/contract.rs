//! The terms of a task: queue, priority, resources, retries, times.

use super::Text;
use super::fields::{Fields, Reader};
use crate::limits;
use crate::plan::{Contract, Priority, Resources, Retry};
use crate::problem::Code;
use crate::units;
use crate::yaml::{Node, Value};

/// Keys of a task and of `defaults` that this file reads.
pub(super) const KEYS: [&str; 7] = ["queue", "priority", "resources", "retries", "timeout", "deadline", "restartable"];

/// `base` with what the fields say instead.
pub(super) fn decode(reader: &mut Reader<'_>, fields: Fields<'_>, base: &Contract) -> Contract {
    let mut contract = base.clone();
    if let Some(node) = fields.get("queue") {
        contract.queue = reader.name(node, "'queue'");
    }
    if let Some(priority) = fields.get("priority").and_then(|node| reader.one_of(node, "'priority'", &Priority::NAMES))
    {
        contract.priority = priority;
    }
    if let Some(node) = fields.get("resources") {
        resources(reader, node, &mut contract.resources);
    }
    if let Some(node) = fields.get("retries") {
        retries(reader, node, &mut contract.retry);
    }
    if let Some(node) = fields.get("timeout") {
        contract.timeout_ms = positive_ms(reader, node, "'timeout'");
    }
    if let Some(node) = fields.get("deadline") {
        contract.deadline_ms = positive_ms(reader, node, "'deadline'");
    }
    if let Some(node) = fields.get("restartable")
        && let Some(restartable) = reader.flag(node, "'restartable'")
    {
        contract.restartable = restartable;
    }
    contract
}

fn positive_ms(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<u64> {
    reader.parsed(node, what, |text| match units::duration_ms(text) {
        Ok(0) => Err("must be longer than nothing".into()),
        other => other,
    })
}

/// `resources: {cpu: 500m, memory: 256MiB, gpu: 1, licence: 2}`; keys that are not built in are custom ones.
fn resources(reader: &mut Reader<'_>, node: &Node, resources: &mut Resources) {
    for entry in reader.entries(node, "'resources'") {
        if matches!(entry.value.value, Value::Null) {
            continue;
        }
        let what = format!("the resource '{}'", entry.key);
        match &*entry.key {
            "cpu" => {
                if let Some(milli) = reader.parsed(&entry.value, &what, units::milli) {
                    possible(reader, &entry.value, &what, u64::from(milli), u64::from(limits::CPU_MILLI_MAX), "m");
                    resources.cpu_milli = milli;
                }
            }
            "memory" => {
                if let Some(bytes) = reader.parsed(&entry.value, &what, units::bytes) {
                    possible(reader, &entry.value, &what, bytes, limits::MEMORY_BYTES_MAX, " bytes");
                    resources.memory_bytes = bytes;
                }
            }
            "gpu" => {
                if let Some(milli) = reader.parsed(&entry.value, &what, units::milli) {
                    possible(reader, &entry.value, &what, u64::from(milli), u64::from(limits::GPU_MILLI_MAX), "m");
                    resources.gpu_milli = milli;
                }
            }
            _ => custom(reader, entry, &what, resources),
        }
    }
}

fn custom(reader: &mut Reader<'_>, entry: &crate::yaml::Entry, what: &str, resources: &mut Resources) {
    let Some(name) = reader.checked_name(&entry.key, entry.key_at, "a resource's name") else { return };
    if let Some(near) = crate::nearest::nearest(&name, ["cpu", "memory", "gpu"]) {
        let sentence = format!("there is no resource '{name}' (did you mean '{near}'?)");
        reader.problem(Code::UnknownKey, entry.key_at, sentence);
        return;
    }
    let is_memory = name.starts_with("or/") && name.ends_with("/memory_bytes");
    let most = if is_memory { limits::MEMORY_BYTES_MAX } else { limits::RESOURCE_UNITS_MAX };
    let Some(units) = units_of(reader, &entry.value, what, most) else { return };
    if resources.custom.len() >= limits::CUSTOM_RESOURCES_MAX {
        let sentence = format!("{what} is one too many; a task may ask for {}", limits::CUSTOM_RESOURCES_MAX);
        reader.problem(Code::BadValue, entry.key_at, sentence);
        return;
    }
    resources.custom.retain(|(other, _)| *other != name);
    let place = resources.custom.partition_point(|(other, _)| *other < name);
    resources.custom.insert(place, (name, units));
}

fn units_of(reader: &mut Reader<'_>, node: &Node, what: &str, most: u64) -> Option<u64> {
    let units = reader.whole(node, what, 0, u64::MAX)?;
    possible(reader, node, what, units, most, "");
    Some(units)
}

fn possible(reader: &mut Reader<'_>, node: &Node, what: &str, wanted: u64, most: u64, unit: &str) {
    if wanted > most {
        let sentence = format!("{what} asks for {wanted}{unit}; no worker has more than {most}{unit}");
        reader.problem(Code::ImpossibleResources, node.at, sentence);
    }
}

const RETRY_KEYS: [&str; 3] = ["max_attempts", "backoff", "non_retryable"];
const BACKOFF_KEYS: [&str; 3] = ["initial", "max", "factor"];
const NON_RETRYABLE_KEYS: [&str; 2] = ["exit_codes", "errors"];

/// `retries: 2` is two more attempts after the first; the mapping counts attempts.
fn retries(reader: &mut Reader<'_>, node: &Node, retry: &mut Retry) {
    let attempts_max = u64::from(limits::ATTEMPTS_MAX);
    if matches!(node.value, Value::Text(_)) {
        if let Some(retries) = reader.whole(node, "'retries'", 0, attempts_max - 1) {
            retry.max_attempts = u16::try_from(retries + 1).expect("at most ATTEMPTS_MAX");
        }
        return;
    }
    let Some(fields) = reader.fields(node, "'retries'", &RETRY_KEYS) else { return };
    if let Some(node) = fields.get("max_attempts")
        && let Some(attempts) = reader.whole(node, "'max_attempts'", 1, attempts_max)
    {
        retry.max_attempts = u16::try_from(attempts).expect("at most ATTEMPTS_MAX");
    }
    if let Some(node) = fields.get("backoff") {
        backoff(reader, node, retry);
    }
    if let Some(node) = fields.get("non_retryable")
        && let Some(fields) = reader.fields(node, "'non_retryable'", &NON_RETRYABLE_KEYS)
    {
        if let Some(node) = fields.get("exit_codes") {
            retry.non_retryable_exit_codes = exit_codes(reader, node);
        }
        if let Some(errors) = fields.get("errors").and_then(|node| reader.texts(node, "'errors'")) {
            if errors.len() > limits::NON_RETRYABLE_ERRORS_MAX {
                let sentence = format!("'errors' may have {} names", limits::NON_RETRYABLE_ERRORS_MAX);
                reader.problem(Code::BadValue, node.at, sentence);
                return;
            }
            let named = |error: &Text| reader.checked_name(&error.text, error.at, "an error's name");
            retry.non_retryable_errors = errors.iter().filter_map(named).collect();
        }
    }
}

fn wait_ms(text: &str) -> Result<u32, String> {
    let ms = units::duration_ms(text)?;
    u32::try_from(ms)
        .ok()
        .filter(|ms| *ms <= limits::BACKOFF_MS_MAX)
        .ok_or_else(|| format!("'{text}' between two attempts is over thirty days"))
}

fn backoff(reader: &mut Reader<'_>, node: &Node, retry: &mut Retry) {
    let Some(fields) = reader.fields(node, "'backoff'", &BACKOFF_KEYS) else { return };
    if let Some(ms) = fields.get("initial").and_then(|node| reader.parsed(node, "'initial'", wait_ms)) {
        retry.backoff_initial_ms = ms;
        retry.backoff_max_ms = retry.backoff_max_ms.max(ms);
    }
    if let Some(ms) = fields.get("max").and_then(|node| reader.parsed(node, "'max'", wait_ms)) {
        retry.backoff_max_ms = ms;
        if fields.get("initial").is_none() {
            retry.backoff_initial_ms = retry.backoff_initial_ms.min(ms);
        }
        if ms < retry.backoff_initial_ms {
            let sentence = format!("'max' ({ms} ms) is shorter than 'initial' ({} ms)", retry.backoff_initial_ms);
            reader.problem(Code::BadValue, fields.at, sentence);
        }
    }
    if let Some(centi) = fields.get("factor").and_then(|node| reader.parsed(node, "'factor'", factor_centi)) {
        retry.backoff_factor_centi = centi;
    }
}

/// Hundredths of a factor from 1 to 100.
fn factor_centi(text: &str) -> Result<u16, String> {
    units::scaled(text, 100)
        .filter(|centi| (100..=10_000).contains(centi))
        .and_then(|centi| u16::try_from(centi).ok())
        .ok_or_else(|| format!("'{text}' is no number from 1 to 100, such as 2 or 1.5"))
}

fn exit_codes(reader: &mut Reader<'_>, node: &Node) -> Vec<u8> {
    let Value::List(items) = &node.value else {
        reader.problem(Code::WrongType, node.at, "'exit_codes' must be a list of numbers, for example [2, 64]");
        return Vec::new();
    };
    let mut codes: Vec<u8> = items
        .iter()
        .filter_map(|item| reader.whole(item, "'exit_codes'", 1, 255))
        .map(|code| u8::try_from(code).expect("at most 255"))
        .collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

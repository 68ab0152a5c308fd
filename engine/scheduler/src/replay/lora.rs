//! Image-generation requests of Alibaba's GenAI trace (v2026), as tasks that need one GPU.

use crate::Millis;
use crate::replay::{Job, ReadError, Trace};

/// Columns that are read, by name.
const COLUMNS: [&str; 10] = [
    "gmt_create",
    "predict_type",
    "exec_time_seconds",
    "groupId",
    "prompt_length",
    "num_images_per_prompt",
    "num_inference_steps",
    "checkpoint_model_version_id",
    "num_lora",
    "predict_status",
];

/// Days since 1970-01-01 of a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Milliseconds of a time like `2024-11-15 16:57:50`.
fn time(text: &str) -> Option<Millis> {
    let (date, clock) = text.split_once(' ')?;
    let number = |text: &str| text.parse::<i64>().ok();
    let mut date = date.splitn(3, '-').map(number);
    let mut clock = clock.splitn(3, ':').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    valid.then(|| (days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1000)
}

/// A label as a number: FNV-1a.
fn label(text: &str) -> u32 {
    text.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A quantity, rounded to a label of few values: eighths of powers of two.
fn quantity(text: &str) -> u32 {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite()).unwrap_or(0.0).clamp(0.0, 1e9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let steps = ((value + 1.0).log2() * 8.0).round() as u32;
    steps
}

/// Reads the requests; `file` is the name in errors. Requests that never ran are left out and counted.
///
/// # Errors
/// With file and line, when a row is broken.
pub fn read(file: &str, text: &str) -> Result<Trace, ReadError> {
    let mut lines = (1..).zip(text.lines());
    let header: Vec<&str> = lines.next().map(|(_, line)| line.trim_end().split(',').collect()).unwrap_or_default();
    let mut places = [0; COLUMNS.len()];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        let found = header.iter().position(|column| *column == name);
        *place = found.ok_or_else(|| ReadError::new(file, 1, format!("no column {name:?}")))?;
    }
    let mut jobs = Vec::new();
    let mut tenants = std::collections::BTreeMap::new();
    let mut skipped = 0;
    for (line, row) in lines {
        let cells: Vec<&str> = row.trim_end().split(',').collect();
        if cells.len() != header.len() {
            return Err(ReadError::new(file, line, format!("{} cells, the header has {}", cells.len(), header.len())));
        }
        let [created, what, run, group, prompt, images, steps, checkpoint, loras, _] = places.map(|place| cells[place]);
        let submit = time(created).ok_or_else(|| ReadError::new(file, line, format!("{created:?} is no time")))?;
        if run.is_empty() {
            skipped += 1;
            continue;
        }
        let seconds = run.parse::<f64>().ok().filter(|seconds| (0.0..=1e7).contains(seconds));
        let seconds = seconds.ok_or_else(|| ReadError::new(file, line, format!("{run:?} is no execution time")))?;
        #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
        let run = (seconds * 1000.0).round() as Millis;
        let next = u32::try_from(tenants.len()).unwrap_or(u32::MAX);
        let user = *tenants.entry(group.to_owned()).or_insert(next);
        let kind = label(what) ^ label(checkpoint).rotate_left(7);
        let amount = |text: &str| text.parse::<f64>().ok().filter(|value| (1.0..1e6).contains(value)).unwrap_or(1.0);
        let size = quantity(&(amount(images) * amount(steps)).to_string());
        let keys = [quantity(prompt), kind, quantity(loras), 0];
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        let id = u64::from(line);
        let limit = run;
        jobs.push(Job { id, line, submit, run, limit, has_limit: false, deadline: None, width: 1, user, size, keys });
    }
    jobs.sort_by_key(|job| job.submit);
    Ok(Trace { name: file.to_owned(), width: 1, jobs, skipped })
}

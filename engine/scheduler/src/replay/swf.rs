//! Traces in the Standard Workload Format (Parallel Workloads Archive), and the variant of the ALCF's public logs.
//!
//! Every refusal names the line. Records that say nothing (no processors, no run time) are left out and counted, as the
//! archive advises; what contradicts itself (negative times, numbers that are none) is refused.

use crate::Millis;
use crate::replay::{Job, ReadError, Trace};

/// Fields of a record.
const FIELDS: usize = 18;
/// The longest time that is taken for one: 100 years.
const SECONDS_MAX: f64 = 3.2e9;

#[derive(Clone, Copy)]
struct Record {
    line: usize,
    fields: [f64; FIELDS],
}

impl Record {
    fn parse(file: &str, line: usize, text: &str) -> Result<Self, ReadError> {
        let mut fields = [0.0; FIELDS];
        let mut words = text.split_ascii_whitespace();
        for (index, field) in fields.iter_mut().enumerate() {
            let Some(word) = words.next() else {
                return Err(ReadError::new(file, line, format!("{index} fields, a record has {FIELDS}")));
            };
            *field = match word.parse::<f64>() {
                Ok(value) if value.is_finite() => value,
                _ => return Err(ReadError::new(file, line, format!("field {}: {word:?} is no number", index + 1))),
            };
        }
        Ok(Self { line, fields })
    }

    fn time(&self, file: &str, field: usize, name: &str) -> Result<Millis, ReadError> {
        let seconds = self.fields[field];
        if !(0.0..=SECONDS_MAX).contains(&seconds) {
            return Err(ReadError::new(file, self.line, format!("{name} of {seconds} s")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
        Ok((seconds * 1000.0).round() as Millis)
    }

    fn label(&self, field: usize) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a label: any value will do")]
        let label = self.fields[field].max(0.0) as u32;
        label
    }
}

/// The ALCF's logs have the walltime where others have the CPU time, and nothing in the request's fields.
fn is_alcf(records: &[Record]) -> bool {
    let silent = records.iter().all(|record| record.fields[7] <= 0.0 && record.fields[8] <= 0.0);
    let limited = records.iter().filter(|record| record.fields[5] > 0.0).count();
    silent && limited * 10 >= records.len() * 9 && !records.is_empty()
}

/// Reads a trace; `file` is its name in errors.
///
/// # Errors
/// With file and line, when a record is broken or no machine width is known.
pub fn read(file: &str, text: &str) -> Result<Trace, ReadError> {
    let mut records = Vec::new();
    let mut width = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix(';') {
            for name in ["MaxNodes:", "MaxProcs:"] {
                if let Some(value) = comment.trim().strip_prefix(name) {
                    width = value.trim().parse::<u32>().ok().filter(|value| *value > 0).or(width);
                }
            }
        } else if !line.is_empty() {
            records.push(Record::parse(file, number, line)?);
        }
    }
    let alcf = is_alcf(&records);
    let mut jobs = Vec::with_capacity(records.len());
    let mut skipped = 0;
    for record in &records {
        match job(file, record, alcf)? {
            Some(job) => jobs.push(job),
            None => skipped += 1,
        }
    }
    jobs.sort_by_key(|job| job.submit);
    let width = width.or_else(|| jobs.iter().map(|job| job.width).max()).unwrap_or(0);
    if let Some(wide) = jobs.iter().find(|job| job.width > width) {
        let what = format!("job {} needs {} slots of {width}", wide.id, wide.width);
        return Err(ReadError::new(file, wide.line as usize, what));
    }
    if width == 0 {
        return Err(ReadError::new(file, 1, "no jobs, and no MaxProcs".to_owned()));
    }
    Ok(Trace { name: file.to_owned(), width, jobs, skipped })
}

fn job(file: &str, record: &Record, alcf: bool) -> Result<Option<Job>, ReadError> {
    let fields = &record.fields;
    let submit = record.time(file, 1, "a submit time")?;
    // -1 says "not known" throughout the format: such a job is left out.
    #[expect(clippy::float_cmp, reason = "the format's own word for nothing")]
    let unknown = fields[3] == -1.0;
    let slots = if fields[7] > 0.0 { fields[7] } else { fields[4] };
    if unknown || slots <= 0.0 {
        return Ok(None);
    }
    let run = record.time(file, 3, "a run time")?;
    if slots > 1e8 {
        return Err(ReadError::new(file, record.line, format!("{slots} slots")));
    }
    let declared = if alcf { 5 } else { 8 };
    let limit = if fields[declared] > 0.0 { record.time(file, declared, "a limit")? } else { run };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
    let width = slots as u32;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a label: any value will do")]
    let id = fields[0].max(0.0) as u64;
    let line = u32::try_from(record.line).unwrap_or(u32::MAX);
    let user = record.label(11);
    let keys = [record.label(12), record.label(13), record.label(14), record.label(15)];
    let has_limit = fields[declared] > 0.0;
    Ok(Some(Job { id, line, submit, run, limit, has_limit, deadline: None, width, user, size: 0, keys }))
}

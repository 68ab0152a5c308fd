//! What differs between two versions of a state: byte ranges by chunks, and lines where both are text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};
use taskmaster_client::{Client, StateBytes, TaskId};

use super::{resolve, version_json};
use crate::cli::{Exit, Failure};
use crate::output::{Output, Tint, human_bytes};

/// Texts up to this length, and of so many lines that differ, are compared line by line.
const TEXT_BYTES_MAX: usize = 256 << 10;
const LINES_MAX: usize = 2_000;
/// Lines shown around those that differ.
const CONTEXT: usize = 2;

/// Bytes of one version that the other has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    at: u64,
    len: u64,
}

/// Chunks of `one` that `other` has not, neighbours put together.
fn only_in(one: &StateBytes, other: &StateBytes) -> Vec<Range> {
    let known: BTreeSet<[u8; 32]> = other.chunks().map(|(_, address)| address).collect();
    let mut ranges: Vec<Range> = Vec::new();
    let mut at = 0;
    for (chunk, address) in one.chunks() {
        let len = chunk.len() as u64;
        if !known.contains(&address) {
            match ranges.last_mut().filter(|last| last.at + last.len == at) {
                Some(last) => last.len += len,
                None => ranges.push(Range { at, len }),
            }
        }
        at += len;
    }
    ranges
}

fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.len).sum()
}

fn ranges_json(ranges: &[Range]) -> Value {
    ranges.iter().map(|range| json!({"at": range.at, "bytes": range.len})).collect()
}

fn ranges_text(title: &str, ranges: &[Range]) -> String {
    let mut text = format!("{title}: {} in {} places\n", human_bytes(total(ranges)), ranges.len());
    for range in ranges.iter().take(20) {
        writeln!(text, "  bytes {} to {}", range.at, range.at + range.len).expect("a string takes everything");
    }
    if ranges.len() > 20 {
        writeln!(text, "  … and {} more", ranges.len() - 20).expect("a string takes everything");
    }
    text
}

/// Compares two versions.
pub(super) async fn run(
    client: &Client,
    id: TaskId,
    from: &str,
    to: Option<&str>,
    output: Output,
) -> Result<Exit, Failure> {
    let from = client.read_state(id, Some(resolve(client, id, Some(from)).await?)).await?;
    let to = client.read_state(id, Some(resolve(client, id, to).await?)).await?;
    let (removed, added) = (only_in(&from, &to), only_in(&to, &from));
    let lines = text_of(&from.bytes).zip(text_of(&to.bytes)).and_then(|(old, new)| compare(&old, &new));
    if output.is_json() {
        output.json(&json!({
            "id": id.to_string(),
            "from": version_json(&from.version),
            "to": version_json(&to.version),
            "equal": from.bytes == to.bytes,
            "removed": ranges_json(&removed),
            "added": ranges_json(&added),
            "removed_bytes": total(&removed),
            "added_bytes": total(&added),
            "lines": lines.map(|lines| lines.iter().map(|(mark, line)| format!("{mark}{line}")).collect::<Vec<_>>()),
        }))?;
        return Ok(Exit::Success);
    }
    if from.bytes == to.bytes {
        output.text("the states are equal\n")?;
        return Ok(Exit::Success);
    }
    let mut text = format!(
        "version {} ({}) to {} ({})\n",
        from.version.number,
        human_bytes(from.version.size),
        to.version.number,
        human_bytes(to.version.size)
    );
    text += &ranges_text("gone", &removed);
    text += &ranges_text("new", &added);
    for (mark, line) in lines.unwrap_or_default() {
        let line = format!("{mark}{line}");
        let line = match mark {
            '+' => output.tint(Tint::Good, &line),
            '-' => output.tint(Tint::Bad, &line),
            _ => line,
        };
        text += &line;
        text.push('\n');
    }
    output.text(&text)?;
    Ok(Exit::Success)
}

/// Bytes as text, JSON in its long form.
fn text_of(bytes: &[u8]) -> Option<String> {
    if bytes.len() > TEXT_BYTES_MAX {
        return None;
    }
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        return serde_json::to_string_pretty(&value).ok();
    }
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then(|| text.to_owned())
}

/// Lines with `-` (only in the old), `+` (only in the new) or a blank, those that differ with a few around them; `None` when
/// too many differ.
fn compare(old: &str, new: &str) -> Option<Vec<(char, String)>> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let begin = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let both = old.len().min(new.len()) - begin;
    let end = old.iter().rev().zip(new.iter().rev()).take(both).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[begin..old.len() - end], &new[begin..new.len() - end]);
    if a.len().max(b.len()) > LINES_MAX {
        return None;
    }
    let mut lines: Vec<(char, String)> = Vec::new();
    let push = |lines: &mut Vec<(char, String)>, mark: char, line: &str| lines.push((mark, line.to_owned()));
    old[begin.saturating_sub(CONTEXT)..begin].iter().for_each(|line| push(&mut lines, ' ', line));
    // Lengths of the longest common subsequences of what is left from each pair of lines on.
    let width = b.len() + 1;
    let mut common = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i * width + j] = if a[i] == b[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            push(&mut lines, ' ', a[i]);
            (i, j) = (i + 1, j + 1);
        } else if j >= b.len() || (i < a.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            push(&mut lines, '-', a[i]);
            i += 1;
        } else {
            push(&mut lines, '+', b[j]);
            j += 1;
        }
    }
    let tail = old.len() - end;
    old[tail..].iter().take(CONTEXT).for_each(|line| push(&mut lines, ' ', line));
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(old: &str, new: &str) -> Vec<String> {
        compare(old, new).unwrap().into_iter().map(|(mark, line)| format!("{mark}{line}")).collect()
    }

    #[test]
    fn lines_that_differ_are_marked_with_their_neighbours() {
        assert_eq!(marked("a\nb\nc\nd\ne\nf", "a\nb\nc\nX\nd\ne\nf"), [" b", " c", "+X", " d", " e"]);
        assert_eq!(marked("a\nb\nc", "a\nc"), [" a", "-b", " c"]);
        assert_eq!(marked("a\nb\nc\nd", "x\nb\ny\nd"), ["-a", "+x", " b", "-c", "+y", " d"]);
        assert_eq!(marked("", "a"), ["+a"]);
        let many = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(compare(&many, "y"), None);
    }

    #[test]
    fn json_is_compared_in_its_long_form_and_binary_is_not() {
        assert_eq!(text_of(b"{\"a\":1}").unwrap(), "{\n  \"a\": 1\n}");
        assert_eq!(text_of(b"plain").unwrap(), "plain");
        assert_eq!(text_of(&[0xFF, 0xFE]), None);
        assert_eq!(text_of(b"a\0b"), None);
    }
}

//! What the column `versions` holds: an array with an object for each version, as the view `state_versions` takes it apart; and
//! `chunks`, the digests that the versions' pieces are places of.
//!
//! Pieces are runs of places, since a version is mostly what the one before it was. The version from which attempts resume bears what is of
//! the whole history: the name of the current branch, and how many versions were made.

use bytes::BufMut;
use serde_json::{Map, Value, json};

use super::batch::{SavedHistory, SavedVersion};

/// The version of binary `jsonb`: the text of the document follows.
pub(super) const JSONB: u8 = 1;
/// PostgreSQL's number of the type `bytea`.
const BYTEA: u32 = 17;

/// The field of a task's versions. PostgreSQL's text has no zero bytes: each becomes U+FFFD.
pub(super) fn field(history: &SavedHistory) -> Vec<u8> {
    let text = |text: &String| text.replace('\0', "\u{FFFD}");
    let texts = |texts: &[String]| texts.iter().map(text).collect::<Vec<_>>();
    let version = |version: &SavedVersion| {
        let mut document = json!({
            "number": version.number,
            "parent": version.parent,
            "time_us": version.time_us,
            "attempt": version.attempt,
            "bytes": version.bytes,
            "new_bytes": version.new_bytes,
            "digest": hex(&version.digest),
            "label": text(&version.label),
            "branches": texts(&version.branches),
            "tags": texts(&version.tags),
            "pieces": runs(&version.pieces),
        });
        if version.branches.contains(&history.current) {
            document["current"] = json!(text(&history.current));
            document["made"] = json!(history.made);
        }
        document
    };
    let document = Value::Array(history.versions.iter().map(version).collect());
    let mut field = vec![JSONB];
    field.extend_from_slice(document.to_string().as_bytes());
    field
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn runs(pieces: &[u32]) -> Vec<[u32; 2]> {
    let mut runs: Vec<[u32; 2]> = Vec::new();
    for &piece in pieces {
        match runs.last_mut() {
            Some([from, count]) if *from + *count == piece => *count += 1,
            _ => runs.push([piece, 1]),
        }
    }
    runs
}

/// The field of digests: a binary `bytea[]`.
pub(super) fn digests(digests: &[[u8; 32]]) -> Vec<u8> {
    let mut field = Vec::with_capacity(20 + digests.len() * 36);
    // Dimensions, no NULLs, type; and of the dimension its length and first place.
    field.put_u32(u32::from(!digests.is_empty()));
    field.put_u32(0);
    field.put_u32(BYTEA);
    if !digests.is_empty() {
        field.put_u32(u32::try_from(digests.len()).expect("references to chunks are bounded"));
        field.put_u32(1);
    }
    for digest in digests {
        field.put_u32(32);
        field.extend_from_slice(digest);
    }
    field
}

/// The versions of a document that can be brought back out of so many chunks, ascending, and how many there are in all. Those of an
/// earlier schema have no pieces.
pub(super) fn read(document: &str, chunks: usize) -> (SavedHistory, usize) {
    let Ok(Value::Array(documents)) = serde_json::from_str(document) else { return Default::default() };
    let mut history = SavedHistory::default();
    for document in documents.iter().filter_map(Value::as_object) {
        if let Some(current) = document.get("current").and_then(Value::as_str) {
            current.clone_into(&mut history.current);
            history.made = number(document, "made").unwrap_or_default();
        }
        history.versions.extend(version(document, chunks));
    }
    history.versions.sort_by_key(|version| version.number);
    (history, documents.len())
}

/// No node stores a version of a higher number, or of more chunks.
const NUMBER_MAX: u32 = 1 << 31;
const PIECES_MAX: u64 = 16 << 10;

pub(super) fn number<T: TryFrom<u64>>(document: &Map<String, Value>, key: &str) -> Option<T> {
    T::try_from(document.get(key)?.as_u64()?).ok()
}

fn version(document: &Map<String, Value>, chunks: usize) -> Option<SavedVersion> {
    let texts = |key: &str| {
        let texts = document.get(key).and_then(Value::as_array).into_iter().flatten();
        texts.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut pieces = Vec::new();
    for run in document.get("pieces")?.as_array()? {
        let (from, count) = (run.get(0)?.as_u64()?, run.get(1)?.as_u64()?);
        let until = from.checked_add(count).filter(|until| *until <= chunks as u64)?;
        if pieces.len() as u64 + count > PIECES_MAX {
            return None;
        }
        pieces.extend(u32::try_from(from).ok()?..u32::try_from(until).ok()?);
    }
    let (own, parent): (u32, u32) = (number(document, "number")?, number(document, "parent")?);
    if own == 0 || own > NUMBER_MAX || parent >= own {
        return None;
    }
    Some(SavedVersion {
        number: own,
        parent,
        attempt: number(document, "attempt")?,
        time_us: number(document, "time_us")?,
        bytes: number(document, "bytes")?,
        new_bytes: number(document, "new_bytes")?,
        digest: digest(document.get("digest")?.as_str()?)?,
        label: document.get("label").and_then(Value::as_str).unwrap_or_default().to_owned(),
        branches: texts("branches"),
        tags: texts("tags"),
        pieces,
    })
}

pub(super) fn digest(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    for (place, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_reads_as_it_was_written() {
        let version = |number: u32, pieces: &[u32], branches: &[&str]| SavedVersion {
            number,
            parent: number - 1,
            attempt: 2,
            time_us: 1_700_000_000_000_001,
            bytes: 1 << 40,
            new_bytes: 7,
            digest: core::array::from_fn(|place| u8::try_from(place).unwrap() * 8),
            label: "half \"way\"".to_owned(),
            branches: branches.iter().map(ToString::to_string).collect(),
            tags: vec!["good".to_owned()],
            pieces: pieces.to_vec(),
        };
        let history = SavedHistory {
            current: "other".to_owned(),
            made: 9,
            versions: vec![
                version(3, &[0, 1, 2, 3, 3, 3, 1], &["main"]),
                version(4, &[], &[]),
                version(8, &[9, 0], &["other", "third"]),
            ],
        };
        let field = field(&history);
        let text = core::str::from_utf8(&field[1..]).unwrap();
        assert!(text.contains("[[0,4],[3,1],[3,1],[1,1]]"), "{text}");
        assert_eq!(read(text, 10), (history.clone(), 3));
        let (fewer, all) = read(text, 9);
        assert_eq!((fewer.versions, all), (history.versions[..2].to_vec(), 3), "one has a place outside");
        assert_eq!(read("[{\"number\": 1}, 5]", 1), (SavedHistory::default(), 2));
        assert_eq!(read("{}", 1), Default::default());
    }
}

//! What the column `particulars` holds: an object with what few tasks have, and nothing else. `docs/formats/postgres.md` lists its members.

use serde_json::{Map, Value, json};

use super::batch::{Batch, Particulars, Place};
use super::saved::{JSONB, digest, hex, number};

/// What is told of a task.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) memo_of: u128,
    pub(super) note: String,
    pub(super) done_permille: u32,
}

/// The field of a task. PostgreSQL's text has no zero bytes: each becomes U+FFFD.
pub(super) fn field(found: &Particulars, batch: &Batch) -> Vec<u8> {
    let text = |place: Place| String::from_utf8_lossy(batch.slice(place)).replace('\0', "\u{FFFD}");
    let mut object = Map::new();
    let mut put = |name: &str, is_there: bool, value: Value| {
        if is_there {
            object.insert(name.to_owned(), value);
        }
    };
    let exact = |place: Place| (text(place).as_bytes() != batch.slice(place), json!(hex(batch.slice(place))));
    put("memo_of", found.memo_of != 0, json!(format!("{:032x}", found.memo_of)));
    put("memo_us", found.memo_us != 0, json!(found.memo_us));
    put("memo_key", found.memo_key.is_some(), json!(hex(&found.memo_key.unwrap_or_default())));
    put("unique_key", found.unique.len > 0, json!(text(found.unique)));
    let (is_needed, bytes) = exact(found.unique);
    put("unique_key_bytes", is_needed, bytes);
    put("unique_until_us", found.unique_until_us != 0, json!(found.unique_until_us));
    put("holds_key", found.holds_key, json!(true));
    put("concurrency_key", found.key.len > 0, json!(text(found.key)));
    let (is_needed, bytes) = exact(found.key);
    put("concurrency_key_bytes", is_needed, bytes);
    put("concurrency_limit", found.key.len > 0, json!(found.key_limit));
    put("forgiven", found.forgiven != 0, json!(found.forgiven));
    put("note", found.note.len > 0, json!(text(found.note)));
    put("done_permille", found.done_permille != 0, json!(found.done_permille));
    let mut field = vec![JSONB];
    field.extend_from_slice(Value::Object(object).to_string().as_bytes());
    field
}

fn object(document: &str) -> Map<String, Value> {
    serde_json::from_str(document).unwrap_or_default()
}

fn id(object: &Map<String, Value>, name: &str) -> u128 {
    let digits = object.get(name).and_then(Value::as_str).unwrap_or_default();
    u128::from_str_radix(digits, 16).unwrap_or_default()
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The bytes that are written in hexadecimal.
fn bytes(hex: &str) -> Option<Vec<u8>> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}

/// What is told of the task of a document.
pub(super) fn read(document: Option<&str>) -> Told {
    let object = document.map(object).unwrap_or_default();
    Told {
        memo_of: id(&object, "memo_of"),
        note: text(&object, "note").to_owned(),
        done_permille: number(&object, "done_permille").unwrap_or_default(),
    }
}

/// All that is in a document; texts are where `put` puts them.
pub(super) fn returning(document: &str, mut put: impl FnMut(Option<Vec<u8>>) -> Place) -> Particulars {
    let object = object(document);
    let exact = |name: &str| bytes(text(&object, &format!("{name}_bytes"))).filter(|bytes| !bytes.is_empty());
    let mut put = |name: &str| put(exact(name).or_else(|| Some(text(&object, name).as_bytes().to_vec())));
    Particulars {
        memo_of: id(&object, "memo_of"),
        memo_us: number(&object, "memo_us").unwrap_or_default(),
        memo_key: object.get("memo_key").and_then(Value::as_str).and_then(digest),
        unique: put("unique_key"),
        unique_until_us: number(&object, "unique_until_us").unwrap_or_default(),
        holds_key: object.get("holds_key").and_then(Value::as_bool).unwrap_or_default(),
        key: put("concurrency_key"),
        key_limit: number(&object, "concurrency_limit").unwrap_or_default(),
        forgiven: number(&object, "forgiven").unwrap_or_default(),
        note: put("note"),
        done_permille: number(&object, "done_permille").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_as_it_was() {
        let batch = Batch { bytes: b"order-7customer\0half".to_vec(), ..Batch::default() };
        let found = Particulars {
            memo_of: 7 << 100,
            memo_us: 5,
            memo_key: Some([9; 32]),
            unique: Place { at: 0, len: 7 },
            unique_until_us: 1_764_201_599_000_000,
            holds_key: true,
            key: Place { at: 7, len: 9 },
            key_limit: 3,
            forgiven: 2,
            note: Place { at: 16, len: 4 },
            done_permille: 500,
        };
        let field = field(&found, &batch);
        let document = core::str::from_utf8(&field[1..]).unwrap();
        let mut area = Vec::new();
        let back = returning(document, |bytes| {
            let bytes = bytes.unwrap();
            let at = u32::try_from(area.len()).unwrap();
            area.extend_from_slice(&bytes);
            Place { at, len: u32::try_from(bytes.len()).unwrap() }
        });
        let slice = |place: Place| &area[place.at as usize..][..place.len as usize];
        assert_eq!([back.unique, back.key, back.note].map(slice), [&b"order-7"[..], b"customer\0", b"half"]);
        assert!(!document.contains("u0000"), "PostgreSQL has no such text: {document}");
        let places = |of: Particulars| Particulars { unique: found.unique, key: found.key, note: found.note, ..of };
        assert_eq!(places(back), found);
        let told = Told { memo_of: found.memo_of, note: "half".to_owned(), done_permille: 500 };
        assert_eq!(read(Some(document)), told);
    }

    #[test]
    fn what_is_not_there_is_not_written() {
        let field = field(&Particulars { done_permille: 1, ..Particulars::default() }, &Batch::default());
        assert_eq!(field, b"\x01{\"done_permille\":1}");
        assert_eq!(read(None), Told::default());
    }
}

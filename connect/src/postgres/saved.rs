//! What the column `versions` holds: an array with an object for each version, as the view `state_versions` takes it apart.

use serde_json::{Value, json};

use super::batch::SavedVersion;

/// The version of binary `jsonb`: the text of the document follows.
const JSONB: u8 = 1;

/// The field of a task's versions. PostgreSQL's text has no zero bytes: each becomes U+FFFD.
pub(super) fn field(versions: &[SavedVersion]) -> Vec<u8> {
    let text = |text: &String| text.replace('\0', "\u{FFFD}");
    let texts = |texts: &[String]| texts.iter().map(text).collect::<Vec<_>>();
    let version = |version: &SavedVersion| {
        json!({
            "number": version.number,
            "parent": version.parent,
            "time_us": version.time_us,
            "attempt": version.attempt,
            "bytes": version.bytes,
            "new_bytes": version.new_bytes,
            "digest": version.digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "label": text(&version.label),
            "branches": texts(&version.branches),
            "tags": texts(&version.tags),
        })
    };
    let document = Value::Array(versions.iter().map(version).collect());
    let mut field = vec![JSONB];
    field.extend_from_slice(document.to_string().as_bytes());
    field
}

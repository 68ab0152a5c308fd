//! An event as a message: JSON as docs/formats/events.md has it, and its key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Batch, Change, Details, Event, KeyOf, Place};

/// Version of the schema: counts up when a consumer of the one before could misread a message.
const SCHEMA: u32 = 1;
/// Longest message at first; a result that makes it longer is left out. Brokers take 1 MiB by default, with headers and framing.
pub const MESSAGE_BYTES_MAX: usize = 900_000;

impl Batch {
    fn text(&self, place: Place) -> String {
        String::from_utf8_lossy(self.bytes(place)).into_owned()
    }

    fn bytes(&self, place: Place) -> &[u8] {
        self.bytes.get(place.at as usize..).and_then(|rest| rest.get(..place.len as usize)).unwrap_or_default()
    }
}

/// The message's key: consumers have the events of one key in order.
pub(super) fn key_of(batch: &Batch, event: &Event, by: KeyOf) -> String {
    let concurrency = event.details.as_ref().map(|details| batch.text(details.key)).unwrap_or_default();
    if by == KeyOf::ConcurrencyKey && !concurrency.is_empty() { concurrency } else { event.task.clone() }
}

/// The message, with the result as far as it takes no more than `bytes_max` in all.
pub(super) fn message_of(batch: &Batch, event: &Event, bytes_max: usize) -> Vec<u8> {
    let mut message = Map::new();
    let mut put = |name: &str, value: Value| drop(message.insert(name.to_owned(), value));
    put("schema", json!(SCHEMA));
    put("cluster", json!(format!("{:032x}", batch.cluster)));
    put("partition", json!(batch.partition));
    put("sequence", json!(event.number));
    put("event", json!(event.change.name()));
    put("time_us", json!(event.at_us));
    put("task", json!(event.task));
    put("attempt", json!(event.attempt));
    let Some(details) = &event.details else { return Value::Object(message).to_string().into_bytes() };
    if let Some(labels) = batch.labels.get(details.labels as usize) {
        put("namespace", json!(labels.namespace));
        put("queue", json!(labels.queue));
        put("kind", json!(labels.kind));
    }
    for (name, text) in
        [("workflow", details.workflow.clone()), ("step", batch.text(details.step)), ("key", batch.text(details.key))]
    {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    if matches!(event.change, Change::AttemptFailed | Change::Failed) && details.error_code.len + details.error.len > 0
    {
        put("error", json!({"code": batch.text(details.error_code), "message": batch.text(details.error)}));
    }
    with_result(message, batch, details, bytes_max)
}

/// The whole message, with the result if there is one and there is room.
fn with_result(mut message: Map<String, Value>, batch: &Batch, details: &Details, bytes_max: usize) -> Vec<u8> {
    let Some(place) = details.result else { return Value::Object(message).to_string().into_bytes() };
    let result = batch.bytes(place);
    message.insert("result_bytes".to_owned(), json!(result.len()));
    if result.len() <= bytes_max {
        let mut whole = message.clone();
        match std::str::from_utf8(result) {
            Ok(text) => whole.insert("result".to_owned(), json!(text)),
            Err(_) => whole.insert("result_base64".to_owned(), json!(STANDARD.encode(result))),
        };
        let whole = Value::Object(whole).to_string().into_bytes();
        if whole.len() <= bytes_max {
            return whole;
        }
    }
    Value::Object(message).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::Labels;
    use super::*;

    fn batch(result: &[u8]) -> Batch {
        let labels = vec![Labels { namespace: "default".into(), queue: "mail".into(), kind: "send".into() }];
        let mut bytes = b"blueE7lost".to_vec();
        bytes.extend_from_slice(result);
        let len = u32::try_from(result.len()).unwrap();
        let details = Details {
            key: Place { at: 0, len: 4 },
            error_code: Place { at: 4, len: 2 },
            error: Place { at: 6, len: 4 },
            result: Some(Place { at: 10, len }),
            ..Details::default()
        };
        let event = |number, change| Event {
            number,
            task: "01kdvdna01001h28hk8hag0001".into(),
            change,
            at_us: 1_700_000_000_000_001,
            attempt: 2,
            details: Some(details.clone()),
        };
        let mut failed = event(8, Change::Failed);
        failed.details.as_mut().unwrap().result = None;
        let mut forgotten = event(9, Change::Completed);
        forgotten.details = None;
        let events = vec![event(7, Change::Completed), failed, forgotten];
        Batch { cluster: 0xAB, partition: 3, events, labels, bytes, ..Batch::default() }
    }

    fn read(batch: &Batch, event: usize) -> Value {
        serde_json::from_slice(&message_of(batch, &batch.events[event], MESSAGE_BYTES_MAX)).unwrap()
    }

    #[test]
    fn a_message_says_what_happened_to_which_task_and_where_in_the_order() {
        let batch = batch(b"{\"sent\":true}");
        let expected = json!({
            "schema": 1, "cluster": "000000000000000000000000000000ab", "partition": 3, "sequence": 7, "event": "completed",
            "time_us": 1_700_000_000_000_001u64, "task": "01kdvdna01001h28hk8hag0001", "attempt": 2, "namespace": "default",
            "queue": "mail", "kind": "send", "key": "blue", "result": "{\"sent\":true}", "result_bytes": 13
        });
        assert_eq!(read(&batch, 0), expected);
        assert_eq!(read(&batch, 1)["error"], json!({"code": "E7", "message": "lost"}));
        assert_eq!((read(&batch, 2)["event"].as_str(), read(&batch, 2).get("queue")), (Some("completed"), None));
        assert_eq!(key_of(&batch, &batch.events[0], KeyOf::Task), "01kdvdna01001h28hk8hag0001");
        assert_eq!(key_of(&batch, &batch.events[0], KeyOf::ConcurrencyKey), "blue");
        assert_eq!(key_of(&batch, &batch.events[2], KeyOf::ConcurrencyKey), "01kdvdna01001h28hk8hag0001");
    }

    #[test]
    fn results_that_are_no_text_come_in_base64_and_those_without_room_only_by_size() {
        assert_eq!(read(&batch(&[0xFF, 0]), 0)["result_base64"], json!("/wA="));
        for size in [1_000_000, 300_000] {
            // Control characters take six bytes each.
            let long = read(&batch(&vec![1; size]), 0);
            assert_eq!((long.get("result"), &long["result_bytes"]), (None, &json!(size)));
        }
    }

    #[test]
    fn the_published_schema_knows_every_member_and_every_event() {
        let schema: Value = serde_json::from_str(include_str!("../../../../docs/formats/events.schema.json")).unwrap();
        let (text, bytes) = (batch(b"text"), batch(&[0xFF]));
        for message in [read(&text, 0), read(&text, 1), read(&text, 2), read(&bytes, 0)] {
            for (name, _) in message.as_object().unwrap() {
                assert!(schema["properties"].get(name).is_some(), "{name} is not in the schema");
            }
            for name in schema["required"].as_array().unwrap() {
                assert!(message.get(name.as_str().unwrap()).is_some(), "{name} is missing");
            }
        }
        let names = [
            Change::Submitted,
            Change::AttemptFailed,
            Change::Retried,
            Change::Completed,
            Change::Failed,
            Change::Cancelled,
            Change::Expired,
            Change::Started,
        ];
        assert_eq!(schema["properties"]["event"]["enum"], json!(names.map(Change::name)));
    }
}

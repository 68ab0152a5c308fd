//! What of a message becomes which property of a task.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rdkafka::Message;
use serde_json::value::RawValue;

use super::header::LastHeader;

/// What a property is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The message's value.
    Value,
    /// The message's key.
    Key,
    /// A header; the last of that name.
    Header(String),
    /// A field of the value, which is JSON; the names on the way there.
    Json(Vec<String>),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "value" => Ok(Self::Value),
            None if text == "key" => Ok(Self::Key),
            Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_owned())),
            Some(("json", path)) if path.split('.').all(|name| !name.is_empty()) => {
                Ok(Self::Json(path.split('.').map(str::to_owned).collect()))
            }
            _ => Err(format!("is \"{text}\", but must be \"value\", \"key\", \"header:NAME\" or \"json:FIELD.FIELD\"")),
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value => f.write_str("value"),
            Self::Key => f.write_str("key"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(path) => write!(f, "json:{}", path.join(".")),
        }
    }
}

/// How messages become tasks.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The payload. A JSON field that is a text gives its characters, any other its JSON as it stands there.
    pub payload: From,
    /// The unique key; a message without has none.
    pub unique_key: Option<From>,
    /// The concurrency key; a message without has none.
    pub concurrency_key: Option<From>,
    /// The priority, by name or number.
    pub priority: Option<From>,
    /// The deadline, in milliseconds since 1970.
    pub deadline: Option<From>,
    /// Largest payload, in bytes.
    pub payload_bytes_max: usize,
}

/// What a message asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The payload.
    pub payload: Vec<u8>,
    /// The unique key; empty for none.
    pub unique_key: Vec<u8>,
    /// The concurrency key; empty for none.
    pub concurrency_key: Vec<u8>,
    /// 0 critical to 3 low.
    pub priority: Option<u8>,
    /// The deadline, in milliseconds since 1970.
    pub deadline_ms: Option<u64>,
}

/// Fields of a JSON object, each as it stands there: a number that is read and written again may become another, and two keys one.
type Fields<'a> = BTreeMap<String, &'a RawValue>;

/// A message, and the fields of its value once somebody needs them.
struct Read<'a, M> {
    message: &'a M,
    fields: Option<Fields<'a>>,
}

impl Mapping {
    /// The task that a message asks for.
    ///
    /// # Errors
    /// Why there is none, as a sentence.
    pub(super) fn order(&self, message: &(impl Message + LastHeader)) -> Result<Order, String> {
        let mut read = Read { message, fields: None };
        let payload = match self.payload {
            // A message without a value asks for a task without a payload.
            From::Value | From::Key => read.take(&self.payload)?.unwrap_or_default().into_owned(),
            From::Header(_) | From::Json(_) => {
                read.take(&self.payload)?.ok_or_else(|| format!("it has no {}", self.payload))?.into_owned()
            }
        };
        if payload.len() > self.payload_bytes_max {
            return Err(format!(
                "its payload has {} bytes, at most {} are taken",
                payload.len(),
                self.payload_bytes_max
            ));
        }
        let mut key = |from: &Option<From>| match from {
            Some(from) => Ok::<_, String>(read.take(from)?.unwrap_or_default().into_owned()),
            None => Ok(Vec::new()),
        };
        let (unique_key, concurrency_key) = (key(&self.unique_key)?, key(&self.concurrency_key)?);
        let priority = read.text(self.priority.as_ref())?.map(|text| priority(&text)).transpose()?;
        let deadline_ms = read.text(self.deadline.as_ref())?.map(|text| deadline(&text)).transpose()?;
        Ok(Order { payload, unique_key, concurrency_key, priority, deadline_ms })
    }
}

impl<'a, M: Message + LastHeader> Read<'a, M> {
    fn take(&mut self, from: &From) -> Result<Option<Cow<'a, [u8]>>, String> {
        match from {
            From::Value => Ok(self.message.payload().map(Cow::Borrowed)),
            From::Key => Ok(self.message.key().map(Cow::Borrowed)),
            From::Header(name) => Ok(self.message.last_header(name).map(Cow::Borrowed)),
            From::Json(path) => self.field(path),
        }
    }

    fn text(&mut self, from: Option<&From>) -> Result<Option<String>, String> {
        let Some(from) = from else { return Ok(None) };
        let bytes = self.take(from)?.map(Cow::into_owned);
        let text = bytes.map(String::from_utf8).transpose().map_err(|_| format!("its {from} is not UTF-8"))?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    fn field(&mut self, path: &[String]) -> Result<Option<Cow<'a, [u8]>>, String> {
        let Some((first, inner)) = path.split_first() else { return Ok(None) };
        let mut found = self.fields()?.get(first).copied();
        for name in inner {
            let Some(value) = found else { break };
            found = fields(value.get().as_bytes())?.get(name).copied();
        }
        Ok(match found.map(RawValue::get) {
            None | Some("null") => None,
            Some(text) if text.starts_with('"') => {
                let text: String = serde_json::from_str(text).map_err(|error| no_json(&error))?;
                Some(Cow::Owned(text.into_bytes()))
            }
            Some(other) => Some(Cow::Borrowed(other.as_bytes())),
        })
    }

    fn fields(&mut self) -> Result<&Fields<'a>, String> {
        let fields = match self.fields.take() {
            Some(fields) => fields,
            None => fields(self.message.payload().unwrap_or_default())?,
        };
        Ok(self.fields.insert(fields))
    }
}

/// The fields of what is JSON; other than an object has none.
fn fields(json: &[u8]) -> Result<Fields<'_>, String> {
    let fields = if json.trim_ascii_start().starts_with(b"{") {
        serde_json::from_slice(json)
    } else {
        serde_json::from_slice(json).map(|_: &RawValue| Fields::new())
    };
    fields.map_err(|error| no_json(&error))
}

fn no_json(error: &serde_json::Error) -> String {
    format!("its value is not JSON: {error}")
}

fn priority(text: &str) -> Result<u8, String> {
    match text {
        "critical" | "0" => Ok(0),
        "high" | "1" => Ok(1),
        "normal" | "2" => Ok(2),
        "low" | "3" => Ok(3),
        other => Err(format!("its priority is {other:?}, not critical, high, normal, low or 0 to 3")),
    }
}

fn deadline(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("its deadline is {text:?}, not milliseconds since 1970"))
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, Headers, OwnedHeaders, OwnedMessage};

    use super::*;

    /// Messages of tests have names of text only; for others see `tests/kafka.rs`.
    impl LastHeader for OwnedMessage {
        fn last_header(&self, name: &str) -> Option<&[u8]> {
            self.headers()?.iter().filter(|header| header.key == name).last()?.value
        }
    }

    fn message(value: &str, key: &str, headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        OwnedMessage::new(bytes(value), bytes(key), "t".to_owned(), Timestamp::NotAvailable, 0, 7, Some(headers))
    }

    fn mapping(payload: &str) -> Mapping {
        let from = |text: &str| Some(text.parse().unwrap());
        Mapping {
            payload: payload.parse().unwrap(),
            unique_key: from("key"),
            concurrency_key: from("json:customer.id"),
            priority: from("header:urgency"),
            deadline: from("json:until"),
            payload_bytes_max: 100,
        }
    }

    #[test]
    fn properties_come_from_value_key_headers_and_fields() {
        let value = r#"{"customer":{"id":17},"until":123456,"order":{"n":[1,2]}}"#;
        let order = mapping("value").order(&message(value, "k", &[("urgency", "low"), ("urgency", "high")])).unwrap();
        let expected = Order {
            payload: value.as_bytes().to_vec(),
            unique_key: b"k".to_vec(),
            concurrency_key: b"17".to_vec(),
            priority: Some(1),
            deadline_ms: Some(123_456),
        };
        assert_eq!(order, expected);
        let order = mapping("json:order.n").order(&message(value, "", &[])).unwrap();
        assert_eq!((order.payload, order.priority), (b"[1,2]".to_vec(), None));
        let order = mapping("json:a").order(&message(r#"{"a":"text","customer":null}"#, "", &[])).unwrap();
        assert_eq!((order.payload, order.concurrency_key), (b"text".to_vec(), Vec::new()));
    }

    #[test]
    fn fields_are_taken_as_they_stand_so_that_no_two_numbers_become_one_key() {
        let key = |id: &str| {
            let value = format!("{{\"customer\": {{\"id\": {id} }}}}");
            String::from_utf8(mapping("value").order(&message(&value, "", &[])).unwrap().concurrency_key).unwrap()
        };
        // More than 64 bits, more digits than a float has, and more than a float may be.
        for id in ["18446744073709551616", "18446744073709551617", "0.10000000000000000001", "1e999", "-0", "[1, 2]"] {
            assert_eq!(key(id), id);
        }
        assert_eq!((key("\"17\\u0041\"").as_str(), key("null").as_str()), ("17A", ""));
        for value in ["[1]", "17", " \"text\" "] {
            let order = mapping("value").order(&message(value, "", &[])).unwrap();
            assert_eq!(order.concurrency_key, b"", "{value} has no fields");
        }
    }

    #[test]
    fn what_does_not_map_is_said_in_a_sentence() {
        let said =
            |value: &str, headers: &[(&str, &str)]| mapping("value").order(&message(value, "", headers)).unwrap_err();
        for value in ["no json", "{\"until\": 1", "{} {}", "", "{\"until\": \"\\ud800\"}"] {
            assert!(said(value, &[]).contains("not JSON"), "{value}");
        }
        assert!(said("{}", &[("urgency", "soon")]).contains("its priority is \"soon\""));
        assert!(said(r#"{"until":"tomorrow"}"#, &[]).contains("its deadline is \"tomorrow\""));
        assert!(said(&format!("[{}]", "1,".repeat(60)), &[]).contains("122 bytes, at most 100"));
        assert!(mapping("json:a").order(&message("{}", "", &[])).unwrap_err().contains("no json:a"));
        assert!(mapping("header:a").order(&message("{}", "", &[])).unwrap_err().contains("no header:a"));
        for text in ["", "values", "header:", "json:", "json:a..b", "jsom:a"] {
            assert!(text.parse::<From>().is_err(), "{text}");
        }
        for text in ["value", "key", "header:a:b", "json:a.b"] {
            assert_eq!(text.parse::<From>().unwrap().to_string(), text);
        }
    }
}

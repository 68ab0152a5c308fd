//! What of a message becomes which property of a task.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use rdkafka::Message;
use rdkafka::message::Headers;
use serde_json::Value;

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
    /// The payload. A JSON field that is a text gives its characters, any other its JSON.
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

/// A message, and its value as JSON once somebody needs that.
struct Read<'a, M> {
    message: &'a M,
    json: Option<Value>,
}

impl Mapping {
    /// The task that a message asks for.
    ///
    /// # Errors
    /// Why there is none, as a sentence.
    pub fn order(&self, message: &impl Message) -> Result<Order, String> {
        let mut read = Read { message, json: None };
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

impl<M: Message> Read<'_, M> {
    fn take(&mut self, from: &From) -> Result<Option<Cow<'_, [u8]>>, String> {
        match from {
            From::Value => Ok(self.message.payload().map(Cow::Borrowed)),
            From::Key => Ok(self.message.key().map(Cow::Borrowed)),
            From::Header(name) => {
                let headers = self.message.headers();
                let last = headers.and_then(|headers| headers.iter().filter(|header| header.key == name).last());
                Ok(last.and_then(|header| header.value).map(Cow::Borrowed))
            }
            From::Json(path) => {
                let field = path.iter().try_fold(self.json()?, |value, name| value.get(name));
                Ok(match field {
                    None | Some(Value::Null) => None,
                    Some(Value::String(text)) => Some(Cow::Borrowed(text.as_bytes())),
                    Some(other) => Some(Cow::Owned(other.to_string().into_bytes())),
                })
            }
        }
    }

    fn text(&mut self, from: Option<&From>) -> Result<Option<String>, String> {
        let Some(from) = from else { return Ok(None) };
        let bytes = self.take(from)?.map(Cow::into_owned);
        let text = bytes.map(String::from_utf8).transpose().map_err(|_| format!("its {from} is not UTF-8"))?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    fn json(&mut self) -> Result<&Value, String> {
        if self.json.is_none() {
            let bytes = self.message.payload().unwrap_or_default();
            self.json = Some(serde_json::from_slice(bytes).map_err(|error| format!("its value is not JSON: {error}"))?);
        }
        Ok(self.json.as_ref().unwrap_or(&Value::Null))
    }
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
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

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
    fn what_does_not_map_is_said_in_a_sentence() {
        let said =
            |value: &str, headers: &[(&str, &str)]| mapping("value").order(&message(value, "", headers)).unwrap_err();
        assert!(said("no json", &[]).contains("not JSON"));
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

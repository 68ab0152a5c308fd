//! What a value of the configuration can be read from and shown as.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

/// A value before its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Raw {
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array of strings.
    List(Vec<String>),
    /// The text of an environment variable, which stands for any of these.
    Variable(String),
}

impl Raw {
    /// Its text, when it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Variable(text) => Some(text),
            Self::Integer(_) | Self::Boolean(_) | Self::List(_) => None,
        }
    }
}

/// A type that settings have.
pub(crate) trait Setting: Sized {
    /// Reads a value; the error continues the sentence that begins with the key's name.
    ///
    /// # Errors
    /// What is wrong and what would be right.
    fn read(raw: &Raw) -> Result<Self, String>;

    /// As TOML.
    fn show(&self) -> String;

    /// As JSON.
    fn json(&self) -> Value;
}

impl Setting for bool {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Variable(text) if text == "true" || text == "1" => Ok(true),
            Raw::Variable(text) if text == "false" || text == "0" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

fn number(raw: &Raw) -> Result<u64, String> {
    let refuse = || "must be a whole number, without quotes or unit".to_owned();
    match raw {
        Raw::Integer(value) => u64::try_from(*value).map_err(|_| format!("is {value}, but must not be negative")),
        Raw::Variable(text) => text.trim().replace('_', "").parse().map_err(|_| refuse()),
        Raw::Text(_) | Raw::Boolean(_) | Raw::List(_) => Err(refuse()),
    }
}

impl Setting for u64 {
    fn read(raw: &Raw) -> Result<Self, String> {
        number(raw)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

impl Setting for u32 {
    fn read(raw: &Raw) -> Result<Self, String> {
        let value = number(raw)?;
        Self::try_from(value).map_err(|_| format!("is {value}, but must be at most {}", Self::MAX))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

impl Setting for u16 {
    fn read(raw: &Raw) -> Result<Self, String> {
        let value = number(raw)?;
        Self::try_from(value).map_err(|_| format!("is {value}, but must be at most {}", Self::MAX))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

impl Setting for String {
    fn read(raw: &Raw) -> Result<Self, String> {
        raw.text().map(str::to_owned).ok_or_else(|| "must be a text in quotes".to_owned())
    }

    fn show(&self) -> String {
        quoted(self)
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

impl Setting for PathBuf {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw.text() {
            Some("") => Err("is empty, but must be a path".to_owned()),
            Some(text) => Ok(Self::from(text)),
            None => Err("must be a path in quotes".to_owned()),
        }
    }

    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }

    fn json(&self) -> Value {
        json!(self.to_string_lossy())
    }
}

impl Setting for Option<PathBuf> {
    fn read(raw: &Raw) -> Result<Self, String> {
        if raw.text() == Some("") { Ok(None) } else { PathBuf::read(raw).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), Setting::show)
    }

    fn json(&self) -> Value {
        self.as_ref().map_or(Value::Null, Setting::json)
    }
}

impl Setting for SocketAddr {
    fn read(raw: &Raw) -> Result<Self, String> {
        const ADVICE: &str =
            "must be an address and port such as \"127.0.0.1:7700\", \"0.0.0.0:7700\" or \"[::1]:7700\"";
        let text = raw.text().ok_or(ADVICE)?;
        text.parse().map_err(|_| format!("is \"{text}\", but {ADVICE}"))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }

    fn json(&self) -> Value {
        json!(self.to_string())
    }
}

impl Setting for Vec<String> {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::List(items) => Ok(items.clone()),
            Raw::Variable(text) => {
                Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
            }
            _ => Err("must be a list of texts such as [\"a\", \"b\"]".to_owned()),
        }
    }

    fn show(&self) -> String {
        json!(self).to_string().replace("\",\"", "\", \"")
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

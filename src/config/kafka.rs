//! Properties of librdkafka in a table: `kafka` for those that may be shown, `secrets` for where the others are, a file or a variable.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use super::setting::{Raw, Setting};
use super::{Config, raw};

/// Names of the tables.
pub(super) const TABLES: [&str; 2] = ["kafka", "secrets"];

/// Properties as they are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties {
    /// Those that are no secrets.
    kafka: BTreeMap<String, String>,
    /// Those that are: `file:PATH` or `env:NAME`.
    secrets: BTreeMap<String, String>,
}

impl Properties {
    /// Takes one of the two tables over, if `value` is one: whether it was. `section` is for sentences.
    pub(super) fn take(
        &mut self,
        section: &str,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        may_set: fn(&str) -> bool,
    ) -> Result<bool, String> {
        let Some(table) = value.get_ref().as_table().filter(|_| TABLES.contains(&key)) else { return Ok(false) };
        for (property, value) in table {
            let property: &str = property.get_ref();
            let text = match raw(value) {
                Ok(Raw::Text(text)) => text,
                Ok(Raw::Integer(number)) => number.to_string(),
                Ok(Raw::Boolean(flag)) => flag.to_string(),
                _ => return Err(format!("{section}.{key} '{property}' must be a text, a number, true or false")),
            };
            if !may_set(property) {
                return Err(format!("{section}.{key} '{property}' follows from other keys"));
            }
            if key == "kafka" {
                if is_secret(property) {
                    return Err(format!(
                        "{section}.kafka '{property}' does not belong into this file: write \
                         secrets = {{ \"{property}\" = \"file:PATH\" }}, or \"env:NAME\""
                    ));
                }
                self.kafka.insert(property.to_owned(), text);
            } else {
                if !text.starts_with("file:") && !text.starts_with("env:") {
                    return Err(format!(
                        "{section}.secrets '{property}' must say where it is: \"file:PATH\" or \"env:NAME\""
                    ));
                }
                self.secrets.insert(property.to_owned(), text);
            }
        }
        Ok(true)
    }

    /// All of them, with the secrets read. `owner` is for sentences.
    ///
    /// # Errors
    /// What is wrong, without secrets.
    pub(super) fn read(&self, owner: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let mut properties = self.kafka.clone();
        for (property, place) in &self.secrets {
            let secret = match place.split_once(':') {
                Some(("env", name)) => {
                    std::env::var(name).with_context(|| format!("{owner}: variable {name} for {property}"))?
                }
                _ => {
                    let file = Path::new(place.trim_start_matches("file:"));
                    std::fs::read_to_string(file)
                        .with_context(|| format!("{owner}: {} cannot be read", file.display()))?
                        .trim_end_matches(['\r', '\n'])
                        .to_owned()
                }
            };
            properties.insert(property.clone(), secret);
        }
        Ok(properties)
    }

    /// Variables of the environment that hold secrets.
    pub(super) fn secret_variables(&self) -> impl Iterator<Item = &str> {
        self.secrets.values().filter_map(|place| place.strip_prefix("env:"))
    }

    /// As TOML.
    pub(super) fn to_toml(&self) -> String {
        let mut text = String::new();
        for (key, table) in TABLES.into_iter().zip([&self.kafka, &self.secrets]) {
            let pairs: Vec<String> =
                table.iter().map(|(name, value)| format!("{} = {}", name.show(), value.show())).collect();
            if !pairs.is_empty() {
                text.push_str(&format!("{key} = {{ {} }}\n", pairs.join(", ")));
            }
        }
        text
    }

    /// As JSON.
    pub(super) fn json(&self) -> Value {
        json!({"kafka": self.kafka, "secrets": self.secrets})
    }
}

impl Config {
    /// Variables of the environment, named in the configuration, that hold secrets.
    pub(crate) fn secret_variables(&self) -> Vec<String> {
        let streams = self.streams.iter().map(|stream| &stream.properties);
        let properties = streams.chain(self.events.iter().map(|events| &events.properties));
        properties.flat_map(Properties::secret_variables).map(str::to_owned).collect()
    }
}

/// Whether a property of librdkafka is one that nobody should read.
fn is_secret(property: &str) -> bool {
    ["password", "secret", "ssl.key.pem", "sasl.oauthbearer.config"].iter().any(|part| property.contains(part))
}

/// What the tables that have properties beside keys of their own share: how they are read and shown. The module has `SECTION`, `Settings`
/// and the table's `check`.
macro_rules! table {
    ($table:ident, $header:literal: $($key:ident),*) => {
        impl $table {
            /// Its keys.
            pub(super) const KEYS: &'static [&'static str] = &[$(stringify!($key),)* "kafka", "secrets"];

            /// Reads one table, which begins in `line`.
            fn of(keys: &DeTable<'_>, line: usize, text: &str, problems: &mut Vec<Problem>) -> Self {
                let mut table = Self::default();
                let before = problems.len();
                for (key, value) in keys {
                    let line = line_of(text, key.span().start);
                    if let Err(message) = table.take(key.get_ref(), value) {
                        problems.push(Problem::at(line, message));
                    }
                }
                if problems.len() == before
                    && let Err(message) = table.check()
                {
                    problems.push(Problem::at(line, format!("{SECTION} {message}")));
                }
                table
            }

            fn take(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<(), String> {
                if !Self::KEYS.contains(&key) {
                    let meant = did_you_mean(key, Self::KEYS.iter().copied());
                    return Err(format!("unknown key '{key}' in {}{meant}", $header));
                }
                if self.properties.take(SECTION, key, value, Settings::may_set)? {
                    return Ok(());
                }
                raw(value).and_then(|raw| self.set(key, &raw)).map_err(|message| format!("{SECTION}.{key} {message}"))
            }

            fn set(&mut self, key: &str, raw: &Raw) -> Result<(), String> {
                match key {
                    $(stringify!($key) => self.$key = Setting::read(raw)?,)*
                    _ => return Err("must be a table, such as { \"client.rack\" = \"a\" }".to_owned()),
                }
                Ok(())
            }

            fn shown(&self) -> Vec<(&'static str, String, Value)> {
                vec![$((stringify!($key), self.$key.show(), self.$key.json())),*]
            }

            /// As TOML.
            pub(super) fn to_toml(&self) -> String {
                let mut text = concat!($header, "\n").to_owned();
                for (key, value, _) in self.shown() {
                    text.push_str(&format!("{key} = {value}\n"));
                }
                text + &self.properties.to_toml()
            }

            /// As JSON.
            pub(super) fn json(&self) -> Value {
                let mut value = self.properties.json();
                if let Value::Object(map) = &mut value {
                    map.extend(self.shown().into_iter().map(|(key, _, json)| (key.to_owned(), json)));
                }
                value
            }
        }
    };
}
pub(super) use table;

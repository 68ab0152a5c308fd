//! Properties of librdkafka in a table: `kafka` for those that may be shown, `secrets` for where the others are, a file or a variable.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use super::raw;
use super::setting::{Raw, Setting};

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

/// Whether a property of librdkafka is one that nobody should read.
fn is_secret(property: &str) -> bool {
    ["password", "secret", "ssl.key.pem", "sasl.oauthbearer.config"].iter().any(|part| property.contains(part))
}

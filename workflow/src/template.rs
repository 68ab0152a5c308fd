//! `{{name}}` in texts.
//!
//! A placeholder is two braces, a name of letters, digits, `_`, `-` and `.` (blanks around it allowed), two braces.
//! Anything else between braces is left as it stands, so awk and shell need no quoting; `\{{` writes two braces.

use std::collections::BTreeMap;

use crate::nearest;

/// Values by name. Borrowed names in front of an owned table: what an array's element adds for itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables {
    values: BTreeMap<String, String>,
}

/// Why a text could not be made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No variable has this name; the sentence says so and may suggest another.
    Unknown(String),
    /// The result is over the limit.
    TooLarge,
}

impl Variables {
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), value.into());
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Replaces every placeholder by a value of `local`, else of the table. The result has at most `bytes_max` bytes.
    pub(crate) fn render(&self, text: &str, local: &[(&str, &str)], bytes_max: usize) -> Result<String, Fault> {
        let mut made = String::with_capacity(text.len().min(bytes_max));
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            let (before, from) = rest.split_at(start);
            if let Some(before) = before.strip_suffix('\\') {
                made.push_str(before);
                made.push_str("{{");
                rest = &from[2..];
            } else if let Some((name, after)) = placeholder(from) {
                made.push_str(before);
                made.push_str(self.value(name, local)?);
                rest = after;
            } else {
                made.push_str(before);
                made.push('{');
                rest = &from[1..];
            }
            if made.len() > bytes_max {
                return Err(Fault::TooLarge);
            }
        }
        made.push_str(rest);
        if made.len() > bytes_max { Err(Fault::TooLarge) } else { Ok(made) }
    }

    fn value<'a>(&'a self, name: &str, local: &'a [(&str, &str)]) -> Result<&'a str, Fault> {
        if let Some((_, value)) = local.iter().find(|(other, _)| *other == name) {
            return Ok(value);
        }
        self.values.get(name).map(String::as_str).ok_or_else(|| Fault::Unknown(self.unknown(name, local)))
    }

    fn unknown(&self, name: &str, local: &[(&str, &str)]) -> String {
        if ELEMENT_NAMES.contains(&name) {
            return format!("'{{{{{name}}}}}' has a value only in a task with 'array'");
        }
        let known = self.names().chain(local.iter().map(|(name, _)| *name));
        let advice = nearest::did_you_mean(name, known);
        format!("there is no variable '{name}'{advice}; declare it under 'vars', or write \\{{{{ for plain braces")
    }
}

/// What an array's elements know about themselves.
pub(crate) const ELEMENT_NAMES: [&str; 3] = ["index", "item", "count"];

/// The name in a placeholder at the start of `text`, and what follows it.
fn placeholder(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix("{{")?.trim_start_matches(' ');
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let (name, after) = inside.split_at(inside.find(|c| !is_name(c)).unwrap_or(inside.len()));
    let after = after.trim_start_matches(' ').strip_prefix("}}")?;
    (!name.is_empty()).then_some((name, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> Result<String, Fault> {
        let mut variables = Variables::default();
        variables.set("who", "world");
        variables.render(text, &[("index", "7")], 100)
    }

    #[test]
    fn placeholders_are_replaced_and_other_braces_stay() {
        assert_eq!(render("hello {{who}} {{ index }}"), Ok("hello world 7".into()));
        assert_eq!(render("awk '{{print $1}}' ${x} {{}} {{{who}}}"), Ok("awk '{{print $1}}' ${x} {{}} {world}".into()));
        assert_eq!(render(r"\{{who}} é{{who}}é {{"), Ok("{{who}} éworldé {{".into()));
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        let Err(Fault::Unknown(sentence)) = render("{{hwo}}") else { panic!("refused") };
        assert!(sentence.contains("did you mean 'who'"), "{sentence}");
        let Err(Fault::Unknown(sentence)) = render("{{item}}") else { panic!("refused") };
        assert!(sentence.contains("'array'"), "{sentence}");
    }

    #[test]
    fn results_are_bounded() {
        let mut variables = Variables::default();
        variables.set("big", "x".repeat(60));
        assert_eq!(variables.render("{{big}}{{big}}", &[], 100), Err(Fault::TooLarge));
    }
}

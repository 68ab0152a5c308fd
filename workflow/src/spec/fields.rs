//! Reading nodes with problems on the side: every method pushes what is wrong and returns what is left.

use std::rc::Rc;

use super::{NAME_RULE, Text, is_name};
use crate::limits;
use crate::nearest::did_you_mean;
use crate::plan::Contracts;
use crate::problem::{Code, Position, Problem};
use crate::template::{Fault, Variables};
use crate::yaml::{Entry, Node, Value};

/// Where problems go, and the variables that texts may use.
pub(super) struct Reader<'a> {
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) variables: Variables,
    pub(super) contracts: Contracts,
    /// Becomes false when a task's name or array could not be read.
    pub(super) nothing_lost: bool,
}

/// The entries of a mapping whose keys are all known.
#[derive(Clone, Copy)]
pub(super) struct Fields<'n> {
    entries: &'n [Entry],
    pub(super) at: Position,
}

impl<'n> Fields<'n> {
    /// The value of a key; a key without a value counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        let entry = self.entries.iter().find(|entry| &*entry.key == key)?;
        (!matches!(entry.value.value, Value::Null)).then_some(&entry.value)
    }
}

impl Reader<'_> {
    pub(super) fn problem(&mut self, code: Code, at: impl Into<Option<Position>>, sentence: impl Into<String>) {
        self.problems.push(Problem::new(code, at, sentence));
    }

    fn wrong_type<T>(&mut self, node: &Node, what: &str, wanted: &str) -> Option<T> {
        self.problem(Code::WrongType, node.at, format!("{what} must be {wanted}, not {}", node.value.shape()));
        None
    }

    /// The entries of a mapping, whatever their keys.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> &'n [Entry] {
        if let Value::Map(entries) = &node.value {
            return entries;
        }
        self.wrong_type::<()>(node, what, "a mapping of names to values");
        &[]
    }

    /// A mapping whose keys are among `known`; the others are reported, except those that start with `x-`.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            return self.wrong_type(node, what, &format!("a mapping with keys such as '{}'", known[0]));
        };
        for entry in entries {
            let key = &*entry.key;
            if !known.contains(&key) && !key.starts_with("x-") {
                let advice = did_you_mean(key, known.iter().copied());
                let advice = if advice.is_empty() { format!("; it has {}", known.join(", ")) } else { advice };
                self.problem(Code::UnknownKey, entry.key_at, format!("{what} has no key '{key}'{advice}"));
            }
        }
        Some(Fields { entries, at: node.at })
    }

    /// A text as it is written, placeholders included.
    pub(super) fn text(&mut self, node: &Node, what: &str) -> Option<Text> {
        match &node.value {
            Value::Text(text) => Some(Text { text: Rc::clone(text), at: node.at }),
            _ => self.wrong_type(node, what, "a text"),
        }
    }

    /// A text that an argument or an item may be: empty counts.
    fn item(&mut self, node: &Node, what: &str) -> Option<Text> {
        match &node.value {
            Value::Null => {
                let sentence = format!("{what} has an empty place; write \"\" for an empty text");
                self.problem(Code::WrongType, node.at, sentence);
                None
            }
            _ => self.text(node, what),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, node: &Node, what: &str) -> Option<Vec<Text>> {
        match &node.value {
            Value::List(items) => items.iter().map(|item| self.item(item, what)).collect(),
            _ => self.wrong_type(node, what, "a list of texts"),
        }
    }

    /// A text with the file's variables put in.
    pub(super) fn scalar(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.text(node, what)?;
        match self.variables.render(&text.text, &[], limits::COMMAND_BYTES_MAX) {
            Ok(text) => Some(text),
            Err(Fault::Unknown(sentence)) => {
                self.problem(Code::UnknownVariable, text.at, sentence);
                None
            }
            Err(Fault::TooLarge) => {
                let sentence = format!("{what} is over {} bytes", limits::COMMAND_BYTES_MAX);
                self.problem(Code::CommandTooLarge, text.at, sentence);
                None
            }
        }
    }

    /// A scalar read by one of the parsers of [`crate::units`], whose sentence becomes the problem.
    pub(super) fn parsed<T>(
        &mut self,
        node: &Node,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.scalar(node, what)?;
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(sentence) => {
                self.problem(Code::BadValue, node.at, format!("{what}: {sentence}"));
                None
            }
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn whole(&mut self, node: &Node, what: &str, least: u64, most: u64) -> Option<u64> {
        self.parsed(node, what, |text| match text.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(format!("'{}' is no whole number from {least} to {most}", shortened(text))),
        })
    }

    /// One of some words.
    pub(super) fn one_of<T: Copy>(&mut self, node: &Node, what: &str, words: &[(&str, T)]) -> Option<T> {
        self.parsed(node, what, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let advice = did_you_mean(text, names.iter().copied());
                format!("'{}' is none of {}{advice}", shortened(text), names.join(", "))
            })
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, node: &Node, what: &str) -> Option<bool> {
        self.one_of(node, what, &[("true", true), ("false", false)])
    }

    pub(super) fn name(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.scalar(node, what)?;
        self.checked_name(&text, node.at, what)
    }

    pub(super) fn checked_name(&mut self, text: &str, at: Position, what: &str) -> Option<String> {
        if is_name(text) {
            return Some(text.to_owned());
        }
        self.problem(Code::BadName, at, format!("{what} cannot be '{}': it {NAME_RULE}", shortened(text)));
        None
    }
}

/// The start of a text, for sentences.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

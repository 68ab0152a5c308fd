//! YAML text to a tree whose every node knows its line and column.
//!
//! The parser gives events; this file keeps scalars as they are written (so `1.0` stays `1.0` and `no` stays `no`: the
//! reader of a key decides what its text means), resolves aliases and merge keys within the limits, and refuses
//! duplicate keys, keys that are no text, custom tags and second documents.
//!
//! Invariant: the tree has at most [`limits::YAML_NODES_MAX`] nodes and depth [`limits::YAML_DEPTH_MAX`], aliases
//! expanded, so recursion over it is bounded; texts are shared, so aliases do not copy them.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{Event, Marker, Parser, ScalarStyle};

use crate::limits;
use crate::problem::{Code, Position, Problem};

/// A value and where it starts.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Position,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`, unquoted.
    Null,
    Text(Rc<str>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Rc<str>,
    pub(crate) key_at: Position,
    pub(crate) value: Node,
}

impl Value {
    /// The shape's name in sentences.
    pub(crate) fn shape(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }

    /// Nodes directly below.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Null | Self::Text(_) => 0,
            Self::List(items) => items.len(),
            Self::Map(entries) => entries.len(),
        }
    }

    /// Nodes and levels, this one included.
    fn size(&self) -> (usize, usize) {
        let add = |(nodes, levels): (usize, usize), node: &Node| {
            let (below, height) = node.value.size();
            (nodes + below, levels.max(height))
        };
        let (nodes, levels) = match self {
            Self::Null | Self::Text(_) => (0, 0),
            Self::List(items) => items.iter().fold((0, 0), add),
            Self::Map(entries) => entries.iter().map(|entry| &entry.value).fold((0, 0), add),
        };
        (nodes + 1, levels + 1)
    }
}

/// Reads one document; `None` when a problem was pushed.
pub(crate) fn parse(text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    if text.len() > limits::YAML_BYTES_MAX {
        let sentence =
            format!("the file has {} bytes; a workflow file has at most {}", text.len(), limits::YAML_BYTES_MAX);
        problems.push(Problem::new(Code::FileTooLarge, None, sentence));
        return None;
    }
    match Tree::default().build(text) {
        Ok(root) => Some(root),
        Err(problem) => {
            problems.push(*problem);
            None
        }
    }
}

fn position(marker: Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

type Step = Result<(), Box<Problem>>;

fn refuse<T>(code: Code, at: Position, sentence: impl Into<String>) -> Result<T, Box<Problem>> {
    Err(Box::new(Problem::new(code, at, sentence)))
}

/// A collection whose end has not come yet.
struct Open {
    anchor: usize,
    at: Position,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, keys: HashSet<Rc<str>>, merged: Vec<Node>, key: Option<(Rc<str>, Position)> },
}

#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Tree {
    fn build(mut self, text: &str) -> Result<Node, Box<Problem>> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                Box::new(Problem::new(
                    Code::YamlSyntax,
                    position(*error.marker()),
                    format!("not YAML: {}", error.info()),
                ))
            })?;
            self.event(event, position(span.start))?;
        }
        let start = Position { line: 1, column: 1 };
        Ok(self.root.unwrap_or(Node { value: Value::Null, at: start }))
    }

    fn event(&mut self, event: Event<'_>, at: Position) -> Step {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.check_tag(tag.as_deref(), at)?;
                let null = style == ScalarStyle::Plain
                    && tag.is_none()
                    && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Text(Rc::from(&*text)) };
                self.node(Node { value, at }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), at)?;
                self.enter(Open { anchor, at, kind: OpenKind::List(Vec::new()) })
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), at)?;
                let kind = OpenKind::Map { entries: Vec::new(), keys: HashSet::new(), merged: Vec::new(), key: None };
                self.enter(Open { anchor, at, kind })
            }
            Event::SequenceEnd | Event::MappingEnd => self.leave(),
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::DocumentStart(..) if self.root.is_some() => {
                refuse(Code::YamlSyntax, at, "a second document starts here; a file holds one workflow")
            }
            _ => Ok(()),
        }
    }

    fn check_tag(&self, tag: Option<&granit_parser::Tag>, at: Position) -> Step {
        match tag {
            Some(tag) if !tag.is_yaml_core_schema() => {
                refuse(Code::YamlSyntax, at, format!("the tag '{}' has no meaning here; remove it", tag.original()))
            }
            _ => Ok(()),
        }
    }

    fn enter(&mut self, open: Open) -> Step {
        let Some(OpenKind::Map { key: None, .. }) = self.open.last().map(|above| &above.kind) else {
            if self.open.len() >= limits::YAML_DEPTH_MAX {
                let sentence = format!("nested deeper than {} levels", limits::YAML_DEPTH_MAX);
                return refuse(Code::FileTooLarge, open.at, sentence);
            }
            self.open.push(open);
            return Ok(());
        };
        let sentence = "a key must be a text; a value that starts with {{ must be in quotes: \"{{name}}\"";
        refuse(Code::WrongType, open.at, sentence)
    }

    fn leave(&mut self) -> Step {
        let open = self.open.pop().expect("the parser ends only what it started");
        let value = match open.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { mut entries, mut keys, merged, .. } => {
                for node in merged {
                    self.merge(node, &mut entries, &mut keys)?;
                }
                Value::Map(entries)
            }
        };
        self.node(Node { value, at: open.at }, open.anchor)
    }

    /// `<<: *base` or `<<: [*one, *two]`: keys of the mapping itself win, then those of earlier bases.
    fn merge(&self, node: Node, entries: &mut Vec<Entry>, keys: &mut HashSet<Rc<str>>) -> Step {
        match node.value {
            Value::Map(inherited) => {
                for entry in inherited {
                    if keys.insert(Rc::clone(&entry.key)) {
                        entries.push(entry);
                    }
                }
                Ok(())
            }
            Value::List(nodes) if nodes.iter().all(|node| matches!(node.value, Value::Map(_))) => {
                nodes.into_iter().try_for_each(|node| self.merge(node, entries, keys))
            }
            _ => refuse(Code::WrongType, node.at, "'<<' takes a mapping or a list of mappings, for example <<: *base"),
        }
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Step {
        let Some(node) = self.anchors.get(&anchor) else {
            return refuse(Code::YamlSyntax, at, "an alias inside the very value it names would never end");
        };
        let (nodes, levels) = node.value.size();
        if self.open.len() + levels > limits::YAML_DEPTH_MAX {
            return refuse(
                Code::FileTooLarge,
                at,
                format!("aliases nest deeper than {} levels", limits::YAML_DEPTH_MAX),
            );
        }
        self.nodes += nodes - 1;
        self.check_nodes(at)?;
        let node = Node { value: node.value.clone(), at };
        self.node(node, 0)
    }

    fn check_nodes(&self, at: Position) -> Step {
        if self.nodes <= limits::YAML_NODES_MAX {
            return Ok(());
        }
        let sentence = format!("the file has more than {} values once aliases are expanded", limits::YAML_NODES_MAX);
        refuse(Code::FileTooLarge, at, sentence)
    }

    /// Puts a whole node where it belongs: as the root, a list's item, a key or a value.
    fn node(&mut self, node: Node, anchor: usize) -> Step {
        self.nodes += 1;
        self.check_nodes(node.at)?;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, keys, merged, key }) => match key.take() {
                None => *key = Some(text_key(node, keys)?),
                Some((name, _)) if &*name == "<<" => merged.push(node),
                Some((name, key_at)) => entries.push(Entry { key: name, key_at, value: node }),
            },
        }
        Ok(())
    }
}

fn text_key(node: Node, keys: &mut HashSet<Rc<str>>) -> Result<(Rc<str>, Position), Box<Problem>> {
    let Value::Text(key) = node.value else {
        return refuse(Code::WrongType, node.at, format!("a key must be a text, not {}", node.value.shape()));
    };
    if !keys.insert(Rc::clone(&key)) {
        return refuse(Code::DuplicateKey, node.at, format!("the key '{key}' stands twice in this mapping; keep one"));
    }
    Ok((key, node.at))
}

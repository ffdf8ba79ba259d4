//! Where the values of a TOML file stand in it, and what no text in it may be, whatever it is read as.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// Keys whose text is a path.
const PATHS: [&str; 9] =
    ["kernel", "initrd", "path", "overlay", "backing", "socket", "pcap", "local", "remote"];

/// A value, as far as its place matters.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    List(Vec<Spanned<Node>>),
    Table(BTreeMap<String, Spanned<Node>>),
    Other,
}

impl Node {
    /// Where the devices of the kind `key` stand: each of a list, or the one that stands alone.
    pub(super) fn devices(&self, key: &str) -> Vec<usize> {
        let Node::Table(keys) = self else { return Vec::new() };
        match keys.get(key).map(|value| (value.get_ref(), value.span().start)) {
            Some((Node::List(devices), _)) => devices.iter().map(|device| device.span().start).collect(),
            Some((_, start)) => vec![start],
            None => Vec::new(),
        }
    }

    /// The first text that nothing can be made of: where it stands, and what is wrong with it.
    pub(super) fn mistake(&self) -> Option<(usize, String)> {
        self.mistake_of("")
    }

    fn mistake_of(&self, key: &str) -> Option<(usize, String)> {
        let of = |key: &str, value: &Spanned<Node>| {
            let wrong = match value.get_ref() {
                Node::Text(text) if text.contains('\0') => {
                    format!(
                        "the text of `{key}` has a NUL character (\\u0000) in it, which no path or name can have"
                    )
                }
                Node::Text(text) if text.is_empty() && PATHS.contains(&key) => {
                    format!("`{key}` is empty, where a path should be; name one, or leave the key out")
                }
                node => return node.mistake_of(key),
            };
            Some((value.span().start, wrong))
        };
        match self {
            Node::Text(_) | Node::Other => None,
            Node::List(values) => values.iter().find_map(|value| of(key, value)),
            Node::Table(keys) => keys.iter().find_map(|(key, value)| of(key, value)),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Node::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut keys = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            // A date is a table with one key of the parser's own, which has no place.
            if key.starts_with("$__") {
                map.next_value::<IgnoredAny>()?;
                return Ok(Node::Other);
            }
            keys.insert(key, map.next_value()?);
        }
        Ok(Node::Table(keys))
    }
}

/// The key of the value that stands at `at`, if it is written in front of it on the same line.
pub(super) fn key_before(text: &str, at: usize) -> Option<&str> {
    let line = text.get(..at)?.rsplit('\n').next()?;
    let key = line.trim_end().strip_suffix('=')?.trim_end();
    let is_key = |sign: char| sign.is_ascii_alphanumeric() || "-_.".contains(sign);
    let start = key.rfind(|sign| !is_key(sign)).map_or(0, |at| at + 1);
    key.get(start..).filter(|key| !key.is_empty())
}

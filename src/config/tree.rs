//! YAML as a tree in which every key and value knows its place in the text.
//!
//! Parsing is bounded: nesting, aliases and their expansion are limited, and the text itself is
//! limited by whoever reads the file. Doubled keys are kept apart and reported with both places.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use super::problem::Problem;

/// Where something stands, in bytes of the text.
pub(super) type Place = Range<usize>;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) place: Place,
    /// Where its text is written: elsewhere than its place only for an alias.
    pub(super) home: Place,
    pub(super) origin: Origin,
}

/// Where a value's text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// As written.
    Written,
    /// At least partly from the environment.
    Environment,
    /// It should have come from the environment, which does not have it.
    Missing,
    /// Nobody wrote it: it stands where something needed was taken out or is missing, so that the rest
    /// can still be looked at.
    StandIn,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` of a map.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) value: Node,
}

impl Node {
    /// Reads a text. The error is the first place where it is not YAML.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_depth: 32, max_documents: 1, max_events: 200_000, max_nodes: 100_000 },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 50_000, max_replay_stack_depth: 16 },
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            strict_booleans: true,
        };
        let node: Result<Located, _> = serde_saphyr::from_str_with_options(text, options);
        node.map(|located| located.0).map_err(|error| {
            let place = error.location().map_or(0..0, |at| place(&at).unwrap_or_else(|| by_line(&at, text)));
            Problem::at(not_yaml(&error), clamp(place, text))
                .fix("check the indentation, the quotes and the brackets around this place")
        })
    }

    /// The entries, if this is a map.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Map(entries) => entries,
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) => &[],
        }
    }

    /// The value under a key, if this is a map that has it.
    pub(super) fn child(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// The place of what stands at a path, or of its nearest ancestor. A scalar's place is its own,
    /// that of a map or list is its key. `None`: the text says nothing about it.
    pub(super) fn place_of(&self, path: &[&str]) -> Option<Place> {
        let mut node = self;
        let mut found = None;
        for segment in path {
            let (key_place, next) = match &node.kind {
                Kind::Map(entries) => match entries.iter().find(|e| e.key == *segment) {
                    Some(entry) => (Some(entry.key_place.clone()), &entry.value),
                    None => break,
                },
                Kind::List(items) => match segment.parse::<usize>().ok().and_then(|i| items.get(i)) {
                    Some(item) => (None, item),
                    None => break,
                },
                Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => break,
            };
            found = match (&next.kind, key_place) {
                (Kind::Map(_) | Kind::List(_) | Kind::Null, Some(place)) => Some(place),
                (Kind::Map(entries), None) => {
                    Some(entries.first().map_or_else(|| next.place.clone(), |e| e.key_place.clone()))
                }
                (Kind::List(_) | Kind::Null, None) | (Kind::Bool(_) | Kind::Number(_) | Kind::Text(_), _) => {
                    Some(next.place.clone())
                }
            };
            node = next;
        }
        found
    }

    /// Whether what stands at a path, or what it would stand in, is only a stand-in.
    pub(super) fn is_stand_in(&self, path: &[&str]) -> bool {
        let mut node = self;
        for segment in path {
            let next = match &node.kind {
                Kind::Map(_) => node.child(segment),
                Kind::List(items) => segment.parse::<usize>().ok().and_then(|i| items.get(i)),
                Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => None,
            };
            let Some(next) = next else { return false };
            if next.origin == Origin::StandIn {
                return true;
            }
            node = next;
        }
        false
    }

    /// The part of the text from its first to its last byte.
    pub(super) fn extent(&self) -> Place {
        let join = |a: Place, b: Place| a.start.min(b.start)..a.end.max(b.end);
        let below: Vec<Place> = match &self.kind {
            Kind::Map(entries) => {
                entries.iter().map(|e| join(e.key_place.clone(), e.value.extent())).collect()
            }
            Kind::List(items) => items.iter().map(Self::extent).collect(),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => Vec::new(),
        };
        below.into_iter().fold(self.place.clone(), join)
    }

    /// The same tree with another value at a path of keys; `None` if there is no such path.
    pub(super) fn with(&self, path: &[String], value: &Self) -> Option<Self> {
        let Some((first, rest)) = path.split_first() else { return Some(value.clone()) };
        let mut tree = self.clone();
        let next = match &mut tree.kind {
            Kind::Map(entries) => entries.iter_mut().find(|e| e.key == *first).map(|e| &mut e.value),
            Kind::List(items) => first.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => None,
        }?;
        *next = next.with(rest, value)?;
        Some(tree)
    }

    /// Removes every key that stands twice in its map but the first, reports it, and gives it back
    /// with the path at which the first stands.
    pub(super) fn single_keys(&mut self, problems: &mut Vec<Problem>) -> Vec<(Vec<String>, Entry)> {
        let mut removed = Vec::new();
        let below = |key: &str, node: &mut Self, problems: &mut Vec<Problem>| {
            let found = node.single_keys(problems).into_iter();
            found.map(|(path, entry)| ([vec![key.to_owned()], path].concat(), entry)).collect::<Vec<_>>()
        };
        match &mut self.kind {
            Kind::Map(entries) => {
                let mut first: HashMap<String, Place> = HashMap::new();
                for mut entry in std::mem::take(entries) {
                    let Some(place) = first.get(&entry.key) else {
                        removed.append(&mut below(&entry.key, &mut entry.value, problems));
                        first.insert(entry.key.clone(), entry.key_place.clone());
                        entries.push(entry);
                        continue;
                    };
                    let message = format!("the key `{}` stands here twice", entry.key);
                    let problem =
                        Problem::at(message, entry.key_place.clone()).also(place.clone(), "first here");
                    problems.push(problem.fix("keep one of the two, or give one another name"));
                    removed.push((vec![entry.key.clone()], entry));
                }
            }
            Kind::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    removed.append(&mut below(&index.to_string(), item, problems));
                }
            }
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => {}
        }
        removed
    }

    /// The same as JSON, keys in the order they were written.
    pub(super) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Number(n) => Value::Number(n.clone()),
            Kind::Text(text) => Value::String(text.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Map(entries) => Value::Object(
                entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }
}

/// A place that certainly lies inside the text, on character boundaries.
fn clamp(place: Place, text: &str) -> Place {
    let back = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (start, end) = (back(place.start), back(place.end));
    start..end.max(start)
}

/// The place of a line and column.
fn by_line(at: &Location, text: &str) -> Place {
    let nth = |n: u64| usize::try_from(n.saturating_sub(1)).unwrap_or(0);
    let start: usize = text.split_inclusive('\n').take(nth(at.line())).map(str::len).sum();
    let line = text.get(start..).unwrap_or_default().lines().next().unwrap_or_default();
    let column = line.char_indices().nth(nth(at.column())).map_or(line.len(), |(i, _)| i);
    start + column..start + column + 1
}

/// What the parser says, without its own excerpt and place.
fn not_yaml(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    if first.contains("budget") || first.contains("replay") || first.contains("limit") {
        return "this is more than one configuration: several documents, too deep, or too much by aliases"
            .into();
    }
    let said = first.split(" at line ").next().unwrap_or(first).trim_end_matches([':', ' ']);
    format!("this is not YAML: {said}")
}

fn place(at: &Location) -> Option<Place> {
    let start = usize::try_from(at.span().byte_offset()?).ok()?;
    let len = usize::try_from(at.span().byte_len().unwrap_or(0)).ok()?;
    Some(start..start + len)
}

/// What serde-saphyr builds: a node with its place.
struct Located(Node);

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Bare>::deserialize(d)?;
        let place = place(&spanned.referenced).unwrap_or(0..0);
        let home = self::place(&spanned.defined).unwrap_or_else(|| place.clone());
        Ok(Self(Node { kind: spanned.value.0, place, home, origin: Origin::Written }))
    }
}

struct Bare(Kind);

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(BareVisitor).map(Self)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Kind, E> {
        Ok(Kind::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Kind, E> {
        Ok(Kind::Number(v.into()))
    }
    fn visit_i128<E: de::Error>(self, v: i128) -> Result<Kind, E> {
        Number::from_i128(v).map(Kind::Number).ok_or_else(|| E::custom("a number beyond 64 bits"))
    }
    fn visit_u128<E: de::Error>(self, v: u128) -> Result<Kind, E> {
        Number::from_u128(v).map(Kind::Number).ok_or_else(|| E::custom("a number beyond 64 bits"))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Kind, E> {
        Number::from_f64(v).map(Kind::Number).ok_or_else(|| E::custom("a number that JSON cannot write"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Kind, E> {
        Ok(Kind::Text(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Kind, E> {
        Ok(Kind::Text(v))
    }
    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }
    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Kind, D::Error> {
        Bare::deserialize(d).map(|bare| bare.0)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(Located(node)) = seq.next_element()? {
            items.push(node);
        }
        Ok(Kind::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let Located(value) = map.next_value()?;
            let key_place = place(&key.referenced).unwrap_or(0..0);
            entries.push(Entry { key: key.value, key_place, value });
        }
        Ok(Kind::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Node {
        Node::parse(text).expect("YAML")
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let text = "a: 1\nb: { c: [x, \"ÿ z\"] }\n";
        let node = parsed(text);
        assert_eq!(&text[node.place_of(&["a"]).unwrap()], "1");
        assert_eq!(&text[node.place_of(&["b"]).unwrap()], "b");
        assert_eq!(&text[node.place_of(&["b", "c", "1"]).unwrap()], "\"ÿ z\"");
        assert_eq!(&text[node.place_of(&["b", "c", "9", "deep"]).unwrap()], "c", "nearest ancestor");
        assert_eq!(node.place_of(&["nowhere"]), None);
    }

    #[test]
    fn values_keep_their_meaning_and_order() {
        let text = "z: 1.5\ny: 9007199254740993\nx: yes\nw: 'true'\nv: true\nu: ~\n12: k\ns: 0x1F\n";
        assert_eq!(
            serde_json::to_string(&parsed(text).to_json()).unwrap(),
            r#"{"z":1.5,"y":9007199254740993,"x":"yes","w":"true","v":true,"u":null,"12":"k","s":31}"#
        );
    }

    #[test]
    fn json_is_read_as_well() {
        let text = r#"{"a": {"b": [1, true, null, "\u00e4"]}}"#;
        assert_eq!(parsed(text).to_json().to_string(), r#"{"a":{"b":[1,true,null,"ä"]}}"#);
    }

    #[test]
    fn doubled_keys_are_all_found_and_the_first_stays() {
        let mut node = parsed("a: 1\nb: {c: 1, c: 2}\na: 3\na: 4\n");
        let mut problems = Vec::new();
        node.single_keys(&mut problems);
        assert_eq!(problems.len(), 3);
        assert_eq!(node.to_json().to_string(), r#"{"a":1,"b":{"c":1}}"#);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let all = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{all}]\n"));
        }
        assert!(Node::parse(&text).is_err());
    }

    #[test]
    fn nesting_is_bounded() {
        for (open, close) in [("[", "]"), ("{ x: ", "}")] {
            let nested = |n: usize| format!("a: {}{}", open.repeat(n), close.repeat(n));
            assert!(Node::parse(&nested(28)).is_ok());
            assert!(Node::parse(&nested(40)).is_err());
            assert!(Node::parse(&nested(20_000)).is_err());
        }
    }

    #[test]
    fn merge_keys_and_aliases_are_understood() {
        let node = parsed("base: &b { x: 1 }\none: { <<: *b, y: 2 }\ntwo: *b\n");
        let json = node.to_json();
        assert_eq!(json["one"]["x"], 1);
        assert_eq!(json["two"]["x"], 1);
    }
}

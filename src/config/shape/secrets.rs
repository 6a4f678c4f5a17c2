//! Which values may be secrets, also where the file is wrong: reports show the lines around a
//! mistake, and a misspelled `api_key` is still a key.

use crate::config::expand::sounds_secret;
use crate::config::tree::{Entry, Kind, Node, Place};

/// The places of what may be a secret's text: all but the names under `env` and `file`.
pub(super) fn texts_of_secret(node: &Node, places: &mut Vec<Place>) {
    match &node.kind {
        Kind::Map(entries) => entries
            .iter()
            .filter(|e| !matches!(e.key.as_str(), "env" | "file"))
            .for_each(|e| texts_of_secret(&e.value, places)),
        Kind::List(items) => items.iter().for_each(|item| texts_of_secret(item, places)),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => {
            places.push(node.place.clone());
            places.push(node.home.clone());
        }
    }
}

/// The places of every scalar.
pub(in crate::config) fn texts(node: &Node) -> Vec<Place> {
    match &node.kind {
        Kind::Map(entries) => entries.iter().flat_map(|e| texts(&e.value)).collect(),
        Kind::List(items) => items.iter().flat_map(texts).collect(),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => {
            vec![node.place.clone(), node.home.clone()]
        }
    }
}

/// Whether what stands under a key may be secret, going by its name and by the names below it.
pub(super) fn may_hold_secret(entry: &Entry, meant: Option<&str>) -> bool {
    let may = |key: &str| sounds_secret(key) || matches!(key, "headers" | "env");
    may(&entry.key) || meant.is_some_and(may) || below(&entry.value)
}

fn below(node: &Node) -> bool {
    match &node.kind {
        Kind::Map(entries) => entries.iter().any(|e| may_hold_secret(e, None)),
        Kind::List(items) => items.iter().any(below),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => false,
    }
}

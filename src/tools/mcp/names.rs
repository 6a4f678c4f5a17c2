//! What a server's tools are called, which of them are offered, and what a call of one does to the world.
//!
//! Pure. The model sees `PREFIXname`. A name that providers do not take (other characters than letters, digits, `_`
//! and `-`, or more than 64 of them) gets `_` for each of those, is cut, and ends in `_` and eight digits of the
//! SHA-256 of what it should have been, so two different names stay different. The tool keeps its own name for the
//! server, so nothing has to be undone.

use rmcp::model::ToolAnnotations;
use sha2::{Digest as _, Sha256};

use crate::tools::{MAX_NAME, legal};
use crate::wire::tool::Effect;

/// Digits of the hash.
const DIGITS: usize = 8;

/// The name the model sees.
pub(in crate::tools) fn public(prefix: &str, name: &str) -> String {
    let meant = format!("{prefix}{name}");
    if legal(&meant) {
        return meant;
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let kept: String =
        meant.chars().map(|c| if fits(c) { c } else { '_' }).take(MAX_NAME - DIGITS - 1).collect();
    let hash = Sha256::digest(meant.as_bytes());
    let digits: String = hash.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    format!("{kept}_{digits}")
}

/// Whether a tool is offered: it is in `only`, when there is one, and not in `except`.
pub(in crate::tools) fn offered(name: &str, only: Option<&[String]>, except: &[String]) -> bool {
    only.is_none_or(|patterns| patterns.iter().any(|pattern| fits(pattern, name)))
        && !except.iter().any(|pattern| fits(pattern, name))
}

/// Whether a name fits a pattern, in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(head) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        match left.find(part) {
            Some(at) => left = left.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    left.ends_with(last)
}

/// What a call does: what the settings say, made worse by what the server says of itself, and made better only where
/// the operator trusts that.
pub(in crate::tools) fn effect(configured: Effect, said: Option<&ToolAnnotations>, trusted: bool) -> Effect {
    match said.and_then(hinted) {
        Some(hinted) if trusted => hinted,
        Some(hinted) => configured.max(hinted),
        None => configured,
    }
}

/// What a server says outright. A hint it leaves out says nothing.
fn hinted(said: &ToolAnnotations) -> Option<Effect> {
    match (said.read_only_hint, said.idempotent_hint, said.destructive_hint) {
        (Some(true), _, _) => Some(Effect::Read),
        (_, Some(true), _) => Some(Effect::Idempotent),
        (Some(false), _, _) | (_, _, Some(true)) => Some(Effect::Write),
        (None, _, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legal_name_only_gets_its_prefix() {
        assert_eq!(public("clock__", "get_time"), "clock__get_time");
        assert_eq!(public("", "get-time"), "get-time");
        assert_eq!(public("x", &"a".repeat(63)), format!("x{}", "a".repeat(63)));
    }

    #[test]
    fn any_other_name_becomes_legal_and_stays_different_from_all_others() {
        let long = "a".repeat(200);
        let names = ["a.b", "a/b", "a b", "a_b", "ž", "日本", "", &long, &format!("{long}b"), "a.b "];
        let mapped: std::collections::BTreeSet<String> =
            names.iter().map(|name| public("s__", name)).collect();
        assert_eq!(mapped.len(), names.len());
        assert!(mapped.iter().all(|name| legal(name)), "{mapped:?}");
        assert!(legal(&public("", "")));
        assert_eq!(public("s__", "a.b"), public("s__", "a.b"));
        assert!(public("s__", "a.b").starts_with("s__a_b_"));
    }

    #[test]
    fn only_and_except_choose() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (some, none) = (list(&["get_*", "search"]), list(&[]));
        for (name, only, except, wanted) in [
            ("x", None, &none, true),
            ("get_a", Some(&some), &none, true),
            ("search", Some(&some), &none, true),
            ("search2", Some(&some), &none, false),
            ("get_a", None, &some, false),
            ("get_a", Some(&some), &list(&["*_a"]), false),
            ("get_b", Some(&some), &list(&["*_a"]), true),
            ("x", Some(&none), &none, false),
        ] {
            assert_eq!(offered(name, only.map(Vec::as_slice), except), wanted, "{name} {only:?} {except:?}");
        }
        for (pattern, name, wanted) in [
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b", "ab", true),
            ("ab*b", "ab", false),
            ("a*", "b", false),
        ] {
            assert_eq!(fits(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn annotations_raise_an_effect_and_lower_it_only_when_trusted() {
        use Effect::{Idempotent, Read, Write};
        let said = |read, destructive, idempotent| {
            ToolAnnotations::from_raw(None, read, destructive, idempotent, None)
        };
        let (looks, breaks, twice, silent, not_read) = (
            said(Some(true), None, None),
            said(None, Some(true), None),
            said(Some(false), Some(false), Some(true)),
            said(None, None, None),
            said(Some(false), None, None),
        );
        for (configured, said, untrusted, trusted) in [
            (Read, &looks, Read, Read),
            (Write, &looks, Write, Read),
            (Read, &breaks, Write, Write),
            (Read, &not_read, Write, Write),
            (Read, &twice, Idempotent, Idempotent),
            (Write, &twice, Write, Idempotent),
            (Idempotent, &silent, Idempotent, Idempotent),
        ] {
            assert_eq!(effect(configured, Some(said), false), untrusted, "{configured:?} {said:?}");
            assert_eq!(effect(configured, Some(said), true), trusted, "{configured:?} {said:?}");
        }
        assert_eq!(effect(Read, None, true), Read);
    }
}

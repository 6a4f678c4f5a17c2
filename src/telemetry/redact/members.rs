//! Finds members of JSON by their names, in a text that need not be JSON as a whole.
//!
//! What is said in a turn is JSON inside of JSON: arguments are a string of the body that goes upstream, and
//! what a tool says may quote a document of its own. A quote at the depth `d` of that has 2^d - 1 backslashes
//! before it, so a member is followed with the number of backslashes its first quote has. A text that was cut
//! in the middle of a value is masked to its end.

use std::borrow::Cow;

use memchr::memchr;
use regex::Regex;
use serde_json::{Map, Value};

use crate::units::DOTS;

/// The longest name that is looked at, in bytes.
const LONGEST: usize = 128;
/// What the value of a member that is described by a JSON Schema may have: such a value is no secret.
const KEYWORDS: [&str; 20] = [
    "type",
    "title",
    "description",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "items",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
];
const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "object", "array", "null"];

/// The text with dots in place of each value whose name fits.
pub(super) fn masked<'a>(text: &'a str, names: &Regex) -> Cow<'a, str> {
    let bytes = text.as_bytes();
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(quote) = memchr(b'"', &bytes[at..]).map(|i| at + i) {
        at = quote + 1;
        let Some((name, value)) = member(text, quote) else { continue };
        let depth = backslashes(bytes, 0, quote);
        if !names.is_match(name) {
            continue;
        }
        let Some(end) = secret(text, value, depth) else { continue };
        let quote = format!("{}\"", "\\".repeat(depth));
        out.extend([&text[copied..value], &quote, DOTS, &quote]);
        (copied, at) = (end, end);
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// The name that begins after a quote, and where its value begins.
fn member(text: &str, quote: usize) -> Option<(&str, usize)> {
    let bytes = text.as_bytes();
    let start = quote + 1;
    let end = start + memchr(b'"', &bytes[start..bytes.len().min(start + LONGEST * 2)])?;
    let depth = backslashes(bytes, 0, quote);
    if backslashes(bytes, start, end) != depth {
        return None;
    }
    let colon = after_space(bytes, end + 1);
    let value = (bytes.get(colon) == Some(&b':')).then(|| after_space(bytes, colon + 1))?;
    Some((&text[start..end - depth], value))
}

/// Skips space, also where it is written with backslashes.
fn after_space(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            Some(b' ' | b'\t' | b'\r' | b'\n') => at += 1,
            Some(b'\\') => {
                let run = bytes[at..].iter().take_while(|b| **b == b'\\').count();
                match bytes.get(at + run) {
                    Some(b'n' | b'r' | b't') => at += run + 1,
                    Some(_) | None => return at,
                }
            }
            Some(_) | None => return at,
        }
    }
}

/// Where a value ends that is a secret.
fn secret(text: &str, value: usize, depth: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let run = bytes[value..].iter().take_while(|b| **b == b'\\').count();
    match bytes.get(value + run)? {
        b'"' if run == depth => Some(string_end(bytes, value + run + 1, depth).unwrap_or(bytes.len())),
        b'{' | b'[' if run == 0 => {
            let end = brackets_end(bytes, value, depth).unwrap_or(bytes.len());
            (!is_schema(&text[value..end])).then_some(end)
        }
        b'0'..=b'9' | b'-' if run == 0 => {
            let length =
                bytes[value..].iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b));
            Some(value + length.count())
        }
        _ => None,
    }
}

/// The end of the string that begins at `from`, after its quote. A quote of less depth ends it as well.
fn string_end(bytes: &[u8], from: usize, depth: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let quote = at + memchr(b'"', &bytes[at..])?;
        // Each backslash of the text itself is written as twice as many as a quote here has, and two more.
        let over = backslashes(bytes, from, quote) % (2 * (depth + 1));
        if over == depth {
            return Some(quote + 1);
        }
        if over < depth {
            return Some(quote - over);
        }
        at = quote + 1;
    }
}

/// The end of the object or list that begins at `from`.
fn brackets_end(bytes: &[u8], from: usize, depth: usize) -> Option<usize> {
    let (mut open, mut at) = (0_usize, from);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => open += 1,
            b'}' | b']' => open = open.saturating_sub(1),
            b'"' => {
                let run = backslashes(bytes, from, at);
                if run < depth {
                    return Some(at - run);
                }
                at = string_end(bytes, at + 1, depth)?;
                continue;
            }
            _ => {}
        }
        at += 1;
        if open == 0 {
            return Some(at);
        }
    }
    None
}

/// Whether this describes a value, as the parameters of tools do, rather than being one.
fn is_schema(text: &str) -> bool {
    let Ok(members) = serde_json::from_str::<Map<String, Value>>(text) else { return false };
    let describes = match members.get("type") {
        Some(Value::String(name)) => TYPES.contains(&name.as_str()),
        Some(Value::Array(names)) => {
            names.iter().all(|name| name.as_str().is_some_and(|n| TYPES.contains(&n)))
        }
        Some(_) => false,
        None => ["$ref", "anyOf", "oneOf", "allOf"].iter().any(|name| members.contains_key(*name)),
    };
    describes && members.keys().all(|name| KEYWORDS.contains(&name.as_str()))
}

/// How many backslashes stand before a place, none of them before `from`.
fn backslashes(bytes: &[u8], from: usize, at: usize) -> usize {
    bytes[from..at].iter().rev().take_while(|b| **b == b'\\').count()
}

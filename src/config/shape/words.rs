//! What a schema asks for and what was found instead, in few words.

use serde_json::Value;

use crate::config::tree::{Kind, Node};
use crate::units::{SIZE_PATTERN, SPAN_PATTERN, Size, Span};

/// The one type of a schema beside null.
pub(super) fn type_of(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::String(name) => Some(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// The largest integer of a schema's format.
pub(super) fn largest(schema: &Value) -> i128 {
    match schema["format"].as_str() {
        Some("uint8") => u8::MAX.into(),
        Some("uint16") => u16::MAX.into(),
        Some("uint32") => u32::MAX.into(),
        Some("int32") => i32::MAX.into(),
        Some(_) | None => u64::MAX.into(),
    }
}

/// What a schema asks for, in few words.
pub(super) fn in_short(schema: &Value) -> String {
    match (type_of(schema), schema["pattern"].as_str()) {
        (Some("string"), Some(_)) => {
            let about =
                schema["description"].as_str().unwrap_or("text of another form").trim_end_matches('.');
            let mut chars = about.chars();
            chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
        }
        (Some("string"), None) => {
            let values = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let values: Vec<_> = values.map(|value| format!("`{value}`")).collect();
            if values.is_empty() { "text".into() } else { values.join(" or ") }
        }
        (Some("integer"), _) => "a whole number".into(),
        (Some("number"), _) => "a number".into(),
        (Some("boolean"), _) => "true or false".into(),
        (Some("array"), _) => "a list".into(),
        (Some("object"), _) => {
            let mut names = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name);
            match (names.next(), names.next()) {
                (Some(only), None) => format!("`{{ {only}: … }}`"),
                _ => "a map of keys and values".into(),
            }
        }
        _ => "something else".into(),
    }
}

pub(super) fn found(node: &Node) -> String {
    match &node.kind {
        Kind::Text(text) if text.chars().count() <= 60 => format!("`{text}`"),
        Kind::Number(number) => format!("the number {number}"),
        Kind::Bool(value) => value.to_string(),
        Kind::Text(_) | Kind::Null | Kind::List(_) | Kind::Map(_) => found_kind(node).to_owned(),
    }
}

pub(super) fn found_kind(node: &Node) -> &'static str {
    match &node.kind {
        Kind::Null => "empty",
        Kind::Bool(_) => "true or false",
        Kind::Number(_) => "a number",
        Kind::Text(_) => "this text",
        Kind::List(_) => "a list",
        Kind::Map(_) => "a map",
    }
}

/// The spelling that was probably meant: `10 sec` is `10s`, `64k` is `64KiB`.
pub(super) fn with_unit(text: &str, pattern: &str) -> Option<String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = match (pattern, unit.as_str()) {
        (SPAN_PATTERN, "" | "s" | "sec" | "secs" | "second" | "seconds") => "s",
        (SPAN_PATTERN, "ms" | "msec" | "millis" | "milliseconds" | "millisecond") => "ms",
        (SPAN_PATTERN, "m" | "min" | "mins" | "minute" | "minutes") => "m",
        (SPAN_PATTERN, "h" | "hr" | "hour" | "hours") => "h",
        (SPAN_PATTERN, "d" | "day" | "days") => "d",
        (SIZE_PATTERN, "" | "b" | "byte" | "bytes") => "B",
        (SIZE_PATTERN, "k" | "ki" | "kb" | "kib") => "KiB",
        (SIZE_PATTERN, "m" | "mi" | "mb" | "mib") => "MiB",
        (SIZE_PATTERN, "g" | "gi" | "gb" | "gib") => "GiB",
        _ => return None,
    };
    let meant = format!("{number}{unit}");
    let reads = match pattern {
        SPAN_PATTERN => Span::parse(&meant).is_ok(),
        _ => Size::parse(&meant).is_ok(),
    };
    reads.then(|| format!("write `{meant}`"))
}

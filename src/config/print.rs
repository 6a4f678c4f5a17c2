//! Prints a configuration as it takes effect, secrets as dots; and the example for a new one.

use serde_json::Value;

use super::file::File;
use super::{Loaded, Problem};
use crate::units::{DOTS, without_secrets_in_urls};
use crate::wire::tool::{Effect, OnDisconnect};

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What the file says, with its variables filled in.
    Written,
    /// Every key, also those that have their default.
    Everything,
}

/// The example `fanfold config init` writes.
pub const EXAMPLE: &str = include_str!("example.yaml");

impl Loaded {
    /// The configuration as YAML.
    pub fn print(&self, detail: Detail) -> Result<String, Problem> {
        let mut value = all_of(&self.file)?;
        if detail == Detail::Written {
            value = only(&value, &self.written);
        }
        hide(&mut value, &self.hidden);
        yaml(value)
    }
}

/// Every default as YAML, without any file.
pub fn defaults() -> Result<String, Problem> {
    let file: File = serde_json::from_value(serde_json::json!({
        "upstreams": { "main": { "base_url": "https://api.openai.com/v1" } }
    }))
    .map_err(|why| Problem::new(why.to_string()))?;
    yaml(all_of(&file)?)
}

/// The file with what its defaults are taken from elsewhere filled in.
pub(super) fn all_of(file: &File) -> Result<Value, Problem> {
    let mut file = file.clone();
    for tool in file.tools.values_mut() {
        tool.timeout.get_or_insert(file.limits.call_timeout);
        tool.result.get_or_insert(file.limits.tool_result);
        if tool.openapi.is_some() {
            // Each operation's method says what it does.
            continue;
        }
        let effect = *tool.effect.get_or_insert_with(Effect::default);
        tool.on_disconnect.get_or_insert(match effect {
            Effect::Read => OnDisconnect::Stop,
            Effect::Idempotent | Effect::Write => OnDisconnect::Finish,
        });
    }
    serde_json::to_value(&file).map_err(|why| Problem::new(why.to_string()))
}

/// Of `all`, what `written` has too, in its order.
fn only(all: &Value, written: &Value) -> Value {
    match (all, written) {
        (Value::Object(all), Value::Object(written)) => Value::Object(
            written.iter().filter_map(|(key, w)| all.get(key).map(|a| (key.clone(), only(a, w)))).collect(),
        ),
        (Value::Array(all), Value::Array(written)) if all.len() == written.len() => {
            Value::Array(all.iter().zip(written).map(|(a, w)| only(a, w)).collect())
        }
        _ => all.clone(),
    }
}

/// Puts dots wherever the value of a secret variable was filled in, and where URLs may hold secrets.
pub(super) fn hide(value: &mut Value, secrets: &[String]) {
    match value {
        Value::String(text) => *text = without_secrets_in_urls(&hidden(text, secrets)).into_owned(),
        Value::Array(list) => list.iter_mut().for_each(|v| hide(v, secrets)),
        // A pattern that looks for a URL is none.
        Value::Object(map) => {
            map.iter_mut().filter(|(key, _)| *key != "patterns").for_each(|(_, v)| hide(v, secrets));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text with dots in place of these.
pub(super) fn hidden(text: &str, secrets: &[String]) -> String {
    secrets
        .iter()
        .filter(|s| !s.is_empty())
        .fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), DOTS))
}

/// Writes every `${` as `$${`, so that what reads the text again fills nothing in there. Keys stay: nothing
/// is filled into them.
fn plain(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("${") => *text = text.replace("${", "$${"),
        Value::Array(list) => list.iter_mut().for_each(plain),
        Value::Object(map) => map.values_mut().for_each(plain),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A part of a configuration as YAML that means it again when it is read.
pub(crate) fn yaml(mut value: Value) -> Result<String, Problem> {
    plain(&mut value);
    serde_saphyr::to_string(&value)
        .map_err(|why| Problem::new(format!("this cannot be written as YAML: {why}")))
}

#[cfg(test)]
mod tests;

//! Every setting as it takes effect, and where its value comes from.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::print::{all_of, hide};
use super::tree::{Kind, Node, Origin};
use super::{Loaded, Problem};

/// One setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Where it stands: `limits.rounds`, `routes.0.model`.
    pub path: String,
    /// Its value as text, secrets as dots.
    pub value: String,
    /// Who said so.
    pub from: From,
    /// The line of the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// Nobody said otherwise.
    Default,
    /// The file.
    File,
    /// A variable that the file names, or the environment in place of a file.
    Environment,
    /// The command line.
    Flag,
}

/// What was written at a path: its line, and whether a variable was filled in.
#[derive(Debug, Clone, Default)]
pub(super) struct Written(BTreeMap<String, (usize, bool)>);

impl Written {
    pub(super) fn of(tree: &Node, text: &str) -> Self {
        let mut written = Self::default();
        written.walk(tree, String::new(), text);
        written
    }

    fn walk(&mut self, node: &Node, path: String, text: &str) {
        let line = text.get(..node.home.start).map_or(1, |before| before.matches('\n').count() + 1);
        match &node.kind {
            Kind::Map(entries) => {
                entries.iter().for_each(|entry| self.walk(&entry.value, below(&path, &entry.key), text));
            }
            Kind::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.walk(item, below(&path, &i.to_string()), text);
                }
            }
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => {}
        }
        if !path.is_empty() {
            let filled = node.origin == Origin::Environment || self.any_below(&path);
            self.0.insert(path, (line, filled));
        }
    }

    fn any_below(&self, path: &str) -> bool {
        let before = format!("{path}.");
        self.0
            .range(before.clone()..)
            .take_while(|(p, _)| p.starts_with(&before))
            .any(|(_, (_, filled))| *filled)
    }
}

impl Loaded {
    /// Every setting, those with their default included.
    pub fn effective(&self) -> Result<Vec<Setting>, Problem> {
        let mut value = all_of(&self.file)?;
        hide(&mut value, &self.hidden);
        let mut settings = Vec::new();
        self.flatten(&value, String::new(), &mut settings);
        Ok(settings)
    }

    fn flatten(&self, value: &Value, path: String, settings: &mut Vec<Setting>) {
        // A schema is one value; so is a list of words.
        let is_schema = path.starts_with("tools.") && path.ends_with(".parameters");
        match value {
            Value::Object(map) if !map.is_empty() && !is_schema => {
                map.iter().for_each(|(key, value)| self.flatten(value, below(&path, key), settings));
            }
            Value::Array(list) if list.iter().any(|item| item.is_object() || item.is_array()) => {
                for (i, item) in list.iter().enumerate() {
                    self.flatten(item, below(&path, &i.to_string()), settings);
                }
            }
            Value::String(text) => self.push(path, text.clone(), settings),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                self.push(path, value.to_string(), settings);
            }
        }
    }

    fn push(&self, path: String, value: String, settings: &mut Vec<Setting>) {
        let (from, line) = match self.places.0.get(&path) {
            _ if self.flags.contains(&path) => (From::Flag, None),
            Some(_) if self.source.path.is_none() && !self.named => (From::Environment, None),
            Some((line, true)) => (From::Environment, Some(*line)),
            Some((line, false)) => (From::File, Some(*line)),
            None if self.is_of_a_flag(&path) => (From::Flag, None),
            None => (From::Default, None),
        };
        settings.push(Setting { path, value, from, line });
    }

    /// A tool that is not in the file was named on the command line.
    fn is_of_a_flag(&self, path: &str) -> bool {
        let mut parts = path.splitn(3, '.');
        let (Some("tools"), Some(name)) = (parts.next(), parts.next()) else { return false };
        !self.places.0.contains_key(&below("tools", name))
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

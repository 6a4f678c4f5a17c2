//! Holds a tree against the JSON Schema of the file and says in plain sentences what does not fit.
//!
//! The schema is the one `fanfold config schema` prints, so there is one truth about the keys. Of
//! JSON Schema this knows what that schema uses; a test fails when the schema begins to use more.
//!
//! Each thing that does not fit is reported once and taken out of the tree, so that what is left
//! can be decoded and looked at further: all mistakes appear in one report. Where something needed
//! is missing then, a stand-in takes its place. [`Shape::damaged`] tells later checks where something
//! was taken out.

mod secrets;
mod words;

use serde_json::Value;

pub(super) use self::secrets::texts;
use self::secrets::{may_hold_secret, texts_of_secret};
use self::words::{found, found_kind, in_short, largest, type_of, with_unit};
use super::expand::sounds_secret;
use super::problem::Problem;
use super::suggest::{closest, did_you_mean, listed};
use super::tree::{Entry, Kind, Node, Origin, Place};
use crate::units::{SIZE_PATTERN, SPAN_PATTERN, Size, Span};

/// Durations that may be zero.
const MAY_BE_ZERO: [&str; 3] = ["drain", "drain_accept", "body_rate"];

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) problems: Vec<Problem>,
    /// Paths of maps and values something was taken out of.
    damaged: Vec<Vec<String>>,
    /// Where secrets are written into the file as text.
    pub(super) secrets: Vec<Place>,
    /// The paths of everything that is a secret by its key.
    pub(super) secret_paths: Vec<Vec<String>>,
}

impl Shape {
    /// Whether something at this path or below it was taken out.
    pub(super) fn damaged(&self, path: &[&str]) -> bool {
        self.damaged.iter().any(|d| d.len() >= path.len() && d.iter().zip(path).all(|(a, b)| a == b))
    }

    /// Whether a mistake at this path may only be there because something was taken out: at the path, above
    /// it, or below it.
    pub(super) fn explains(&self, path: &[&str]) -> bool {
        self.damaged.iter().any(|d| d.iter().zip(path).all(|(a, b)| a == b))
    }
}

/// Whether a node may stay where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Good,
    Bad,
}

/// Walks the tree; what does not fit is reported and taken out.
pub(super) fn fit(root: &mut Node, schema: &Value) -> Shape {
    let mut walk = Walk { schema, at: Vec::new(), outer: Vec::new(), shape: Shape::default() };
    walk.node(root, schema, None);
    walk.shape
}

struct Walk<'s> {
    /// The whole schema, for its `$defs`.
    schema: &'s Value,
    at: Vec<String>,
    /// The object schemas around the present one, with the keys that lead there.
    outer: Vec<&'s Value>,
    shape: Shape,
}

impl<'s> Walk<'s> {
    fn node(&mut self, node: &mut Node, schema: &'s Value, key: Option<&Place>) -> Fit {
        let schema = self.resolved(schema);
        if self.is_secret(schema) {
            self.shape.secret_paths.push(self.at.clone());
            texts_of_secret(node, &mut self.shape.secrets);
        }
        if node.origin == Origin::Missing {
            self.shape.damaged.push(self.at.clone());
            return Fit::Bad;
        }
        if let Some(values) = self.values(schema) {
            return self.one_of(node, &values, key);
        }
        match self.branch(node, schema) {
            Ok(branch) => {
                self.excluded(node, schema, branch);
                self.typed(node, branch, key)
            }
            Err(wanted) => self.wrong(node, &wanted, key, None),
        }
    }

    /// Follows `$ref`.
    fn resolved(&self, schema: &'s Value) -> &'s Value {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        target.and_then(|pointer| self.schema.pointer(pointer)).unwrap_or(schema)
    }

    fn is_secret(&self, schema: &Value) -> bool {
        self.schema.pointer("/$defs/Secret").is_some_and(|secret| {
            std::ptr::eq(secret, schema) || self.alternatives(schema).any(|s| std::ptr::eq(secret, s))
        })
    }

    fn alternatives<'a>(&self, schema: &'a Value) -> impl Iterator<Item = &'a Value>
    where
        's: 'a,
    {
        let list = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array);
        list.into_iter().flatten().map(|s| self.resolved_in(s)).filter(|s| s["type"] != "null")
    }

    fn resolved_in<'a>(&self, schema: &'a Value) -> &'a Value
    where
        's: 'a,
    {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        target.and_then(|pointer| self.schema.pointer(pointer)).unwrap_or(schema)
    }

    /// The values of a closed set, if the schema is one.
    fn values(&self, schema: &Value) -> Option<Vec<String>> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        if let Some(value) = schema.get("const") {
            return text(value).map(|v| vec![v]);
        }
        if let Some(list) = schema.get("enum").and_then(Value::as_array) {
            return Some(list.iter().filter_map(text).collect());
        }
        let mut all = Vec::new();
        for alternative in self.alternatives(schema) {
            all.extend(self.values(alternative)?);
        }
        (!all.is_empty()).then_some(all)
    }

    /// The alternative this node is meant to be, or the words for what it should have been.
    fn branch(&self, node: &Node, schema: &'s Value) -> Result<&'s Value, String> {
        let all: Vec<&'s Value> = self.alternatives(schema).collect();
        let Some(first) = all.first() else { return Ok(schema) };
        if all.len() == 1 {
            return self.branch(node, first);
        }
        let of_type = |name: &str| all.iter().copied().filter(|s| s["type"] == name).collect::<Vec<_>>();
        let found = match &node.kind {
            Kind::Map(entries) => of_type("object").into_iter().min_by_key(|s| strange_keys(entries, s)),
            Kind::Text(_) => of_type("string").first().copied(),
            Kind::List(_) => of_type("array").first().copied(),
            Kind::Bool(_) => of_type("boolean").first().copied(),
            Kind::Number(_) => of_type("integer").into_iter().chain(of_type("number")).next(),
            Kind::Null => None,
        };
        found.ok_or_else(|| {
            let words: Vec<String> = all.iter().map(|s| in_short(s)).collect();
            words
                .split_last()
                .map_or_else(String::new, |(last, rest)| format!("{} or {last}", rest.join(", ")))
        })
    }

    /// Reports and takes out keys of another alternative than the one this map is.
    fn excluded(&mut self, node: &mut Node, schema: &'s Value, branch: &'s Value) {
        let only = self.alternatives(schema).next();
        let all: Vec<&Value> = self.alternatives(only.unwrap_or(schema)).collect();
        let knows = |s: &Value, key: &str| s["properties"].get(key).is_some();
        let Kind::Map(entries) = &mut node.kind else { return };
        let first = entries.iter().find(|e| knows(branch, &e.key)).map(|e| e.key.clone());
        let Some(first) = first.filter(|_| all.len() > 1) else { return };
        let mut problems = Vec::new();
        entries.retain(|e| {
            let other = !knows(branch, &e.key) && all.iter().any(|s| knows(s, &e.key));
            if other {
                let message = format!("`{}` and `{first}` exclude each other", e.key);
                problems.push(Problem::at(message, e.key_place.clone()).fix("keep one of the two"));
            }
            !other
        });
        problems.into_iter().for_each(|problem| {
            self.report(problem);
        });
    }

    fn typed(&mut self, node: &mut Node, schema: &'s Value, key: Option<&Place>) -> Fit {
        let Some(wanted) = type_of(schema) else { return Fit::Good };
        if node.origin == Origin::Environment && matches!(wanted, "integer" | "number" | "boolean") {
            read_again(node);
        }
        match (wanted, &mut node.kind) {
            ("object", Kind::Map(_)) => self.map(node, schema, key),
            ("array", Kind::List(_)) => self.list(node, schema, key),
            ("string", Kind::Text(_)) => self.text(node, schema, key),
            ("integer", Kind::Number(n)) if n.is_i64() || n.is_u64() => self.integer(node, schema, key),
            ("number", Kind::Number(_)) | ("boolean", Kind::Bool(_)) => Fit::Good,
            _ => {
                let fix = self.type_fix(node, wanted, schema);
                self.wrong(node, &in_short(schema), key, fix)
            }
        }
    }

    fn map(&mut self, node: &mut Node, schema: &'s Value, key: Option<&Place>) -> Fit {
        let Kind::Map(entries) = &mut node.kind else { return Fit::Good };
        let known = schema.get("properties").and_then(Value::as_object);
        let any = schema.get("additionalProperties").filter(|s| s.is_object());
        if entries.is_empty() && schema["minProperties"].as_u64().is_some_and(|least| least > 0) {
            let place = key.cloned().unwrap_or_else(|| node.place.clone());
            return self.report(
                Problem::at(format!("{} has no entry", self.called()), place).fix("add at least one"),
            );
        }
        if known.is_none() && any.is_none() {
            return Fit::Good;
        }
        let mut guessed = Vec::new();
        let mut spoiled = Vec::new();
        self.outer.push(schema);
        let mut kept = Vec::with_capacity(entries.len());
        for mut entry in std::mem::take(entries) {
            let property = known.and_then(|k| k.get(&entry.key));
            match (property, any) {
                (Some(value), _) | (None, Some(value)) => {
                    // What people name themselves, such as a team, is not absent for want of a value.
                    let nothing = matches!(entry.value.kind, Kind::Null) && property.is_some();
                    if nothing && self.may_be_empty(value) {
                        continue;
                    }
                    self.at.push(entry.key.clone());
                    let fit = self.node(&mut entry.value, value, Some(&entry.key_place));
                    self.at.pop();
                    match fit {
                        Fit::Good => kept.push(entry),
                        Fit::Bad => spoiled.push(entry.key),
                    }
                }
                (None, None) => guessed.extend(self.unknown(&entry, schema)),
            }
        }
        self.outer.pop();
        let Kind::Map(entries) = &mut node.kind else { return Fit::Good };
        *entries = kept;
        self.required(node, schema, &spoiled, &guessed, key)
    }

    /// Puts something in place of a key that is needed, so that what is beside it can be decoded.
    fn stand_in(&self, name: &str, schema: &'s Value) -> Option<Entry> {
        let schema = self.resolved(schema);
        let text = |text: &str| Some(Kind::Text(text.to_owned()));
        let kind = match self.values(schema) {
            Some(values) => text(values.first()?),
            None => match (type_of(schema), schema["pattern"].as_str()) {
                (Some("string"), Some(SPAN_PATTERN)) => text("1s"),
                (Some("string"), Some(SIZE_PATTERN)) => text("1B"),
                (Some("string"), _) if name.ends_with("url") => text("https://stand-in.invalid/v1"),
                (Some("string"), _) => text("stand-in"),
                (Some("array"), _) if type_of(self.resolved(&schema["items"])) == Some("string") => {
                    let item = Kind::Text("/stand-in".into());
                    Some(Kind::List(vec![Node {
                        kind: item,
                        place: 0..0,
                        home: 0..0,
                        origin: Origin::StandIn,
                    }]))
                }
                _ => None,
            },
        }?;
        let value = Node { kind, place: 0..0, home: 0..0, origin: Origin::StandIn };
        Some(Entry { key: name.to_owned(), key_place: 0..0, value })
    }

    /// Whether a key without a value is as good as no key: for lists, maps and what has no default.
    fn may_be_empty(&self, schema: &'s Value) -> bool {
        let nullable = |s: &Value| {
            s["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "null"))
                || s["anyOf"].as_array().is_some_and(|all| all.iter().any(|a| a["type"] == "null"))
        };
        nullable(schema) || matches!(type_of(self.resolved(schema)), Some("object" | "array"))
    }

    /// Reports a key the schema does not know. Gives the key that was probably meant.
    fn unknown(&mut self, entry: &Entry, schema: &'s Value) -> Option<String> {
        let known: Vec<&str> =
            schema["properties"].as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
        let meant = closest(&entry.key, known.iter().copied());
        if may_hold_secret(entry, meant) {
            self.shape.secrets.extend(texts(&entry.value));
        }
        let mut problem = Problem::at(format!("unknown key `{}`", entry.key), entry.key_place.clone());
        if let Some(meant) = meant {
            problem = problem.label(format!("did you mean `{meant}`?"));
        } else if let Some(home) = self.belongs_elsewhere(&entry.key, schema) {
            problem = problem.fix(home);
        } else {
            problem = problem.fix(format!("the keys here are {}", listed(&known, "and")));
        }
        self.at.push(meant.unwrap_or(&entry.key).to_owned());
        self.report(problem);
        self.at.pop();
        meant.map(str::to_owned)
    }

    /// A key that would be right one level higher or lower.
    fn belongs_elsewhere(&self, key: &str, schema: &'s Value) -> Option<String> {
        let has = |s: &Value| s["properties"].get(key).is_some();
        let below = schema["properties"].as_object()?.iter().find(|(_, value)| {
            let value = self.resolved_in(value);
            has(value) || self.alternatives(value).any(has)
        });
        if let Some((name, _)) = below {
            return Some(format!("`{key}` belongs under `{name}`"));
        }
        let higher = self.outer.iter().rev().skip(1).any(|outer| has(outer));
        if higher {
            return Some(format!("`{key}` belongs further out: indent it less"));
        }
        let top = self.schema["properties"].as_object()?;
        let (beside, _) = top.iter().find(|(_, value)| has(self.resolved_in(value)))?;
        Some(format!("`{key}` belongs under `{beside}`, at the top level"))
    }

    fn required(
        &mut self,
        node: &mut Node,
        schema: &'s Value,
        spoiled: &[String],
        guessed: &[String],
        key: Option<&Place>,
    ) -> Fit {
        let mut fit = Fit::Good;
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if node.child(name).is_some() {
                continue;
            }
            let stand_in = self.stand_in(name, &schema["properties"][name]);
            let told = spoiled.iter().chain(guessed).any(|n| n == name);
            if !told {
                self.missing(node, schema, name, key);
            }
            match (stand_in, &mut node.kind) {
                (Some(entry), Kind::Map(entries)) => entries.push(entry),
                _ => fit = Fit::Bad,
            }
        }
        fit
    }

    /// Reports that a key is missing.
    fn missing(&mut self, node: &Node, schema: &'s Value, name: &str, key: Option<&Place>) {
        let place = key.cloned().or_else(|| node.entries().first().map(|e| e.key_place.clone()));
        let place = place.or_else(|| (!self.at.is_empty()).then(|| node.place.clone()));
        let about = schema["properties"][name]["description"].as_str().unwrap_or_default();
        let about = about.lines().next().unwrap_or_default();
        let message = format!("{} has no `{name}`", self.called());
        let problem =
            Problem::maybe_at(message, place).fix(format!("add `{name}:` {about}").trim().to_owned());
        self.at.push(name.to_owned());
        self.report(problem);
        self.at.pop();
    }

    fn list(&mut self, node: &mut Node, schema: &'s Value, key: Option<&Place>) -> Fit {
        let Kind::List(items) = &mut node.kind else { return Fit::Good };
        if (items.len() as u64) < schema["minItems"].as_u64().unwrap_or(0) {
            let place = key.cloned().unwrap_or_else(|| node.place.clone());
            return self.report(
                Problem::at(format!("{} is an empty list", self.called()), place).fix("add an entry"),
            );
        }
        let Some(item_schema) = schema.get("items") else { return Fit::Good };
        let mut index = 0;
        let mut kept = Vec::with_capacity(items.len());
        for mut item in std::mem::take(items) {
            self.at.push(index.to_string());
            let fit = self.node(&mut item, item_schema, None);
            self.at.pop();
            if fit == Fit::Good {
                kept.push(item);
                index += 1;
            }
        }
        let enough = kept.len() as u64 >= schema["minItems"].as_u64().unwrap_or(0);
        node.kind = Kind::List(kept);
        if enough { Fit::Good } else { Fit::Bad }
    }

    fn text(&mut self, node: &Node, schema: &'s Value, key: Option<&Place>) -> Fit {
        if let Some(values) = self.values(schema) {
            return self.one_of(node, &values, key);
        }
        let Kind::Text(text) = &node.kind else { return Fit::Good };
        if schema["minLength"].as_u64().is_some_and(|least| (text.chars().count() as u64) < least) {
            return self.report(Problem::at(format!("{} is empty", self.called()), node.place.clone()));
        }
        let Some(pattern) = schema["pattern"].as_str() else { return Fit::Good };
        let (fits, zero) = match pattern {
            SPAN_PATTERN => (Span::parse(text).is_ok(), Span::parse(text).is_ok_and(|s| s.0.is_zero())),
            SIZE_PATTERN => (Size::parse(text).is_ok(), Size::parse(text).is_ok_and(|s| s.0 == 0)),
            _ => {
                let own = serde_json::json!({ "type": "string", "pattern": pattern });
                (jsonschema::is_valid(&own, &Value::String(text.clone())), false)
            }
        };
        if !fits {
            let fix = with_unit(text, pattern);
            if self.at.last().is_some_and(|key| key == "sha256") {
                // Somebody may have put the key itself here.
                self.shape.secrets.push(node.place.clone());
                self.shape.secret_paths.push(self.at.clone());
            }
            return self.wrong(node, &in_short(schema), key, fix);
        }
        if zero && !MAY_BE_ZERO.contains(&self.at.last().map_or("", String::as_str)) {
            let message = format!("{} cannot be zero", self.called());
            let fix = "write more than zero, or leave the key out for its default";
            return self.report(Problem::at(message, node.place.clone()).fix(fix));
        }
        Fit::Good
    }

    fn integer(&mut self, node: &Node, schema: &'s Value, key: Option<&Place>) -> Fit {
        let Kind::Number(number) = &node.kind else { return Fit::Good };
        let value = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)).unwrap_or(i128::MAX);
        let least = schema["minimum"].as_i64().map_or(i128::from(i64::MIN), i128::from);
        let most = schema["maximum"].as_i64().map_or_else(|| largest(schema), i128::from);
        if value >= least && value <= most {
            return Fit::Good;
        }
        let place = key.filter(|_| node.place.is_empty()).cloned().unwrap_or_else(|| node.place.clone());
        let message = match value < least {
            true => format!("{} must be at least {least}, not {value}", self.called()),
            false => format!("{} must be at most {most}, not {value}", self.called()),
        };
        self.report(Problem::at(message, place))
    }

    fn one_of(&mut self, node: &Node, values: &[String], key: Option<&Place>) -> Fit {
        let Kind::Text(text) = &node.kind else {
            return self.wrong(node, &format!("one of {}", listed(values, "or")), key, None);
        };
        if values.contains(text) {
            return Fit::Good;
        }
        let message = format!("{} must be {}, not `{text}`", self.called(), listed(values, "or"));
        let mut problem = Problem::at(message, node.place.clone());
        if let Some(question) = did_you_mean(text, values.iter().map(String::as_str)) {
            problem = problem.label(question);
        }
        self.report(problem)
    }

    /// Reports a value of the wrong kind.
    fn wrong(&mut self, node: &Node, wanted: &str, key: Option<&Place>, fix: Option<String>) -> Fit {
        let secret = self.in_secret();
        if secret {
            self.shape.secrets.extend(texts(node));
        }
        let found = if secret { found_kind(node).to_owned() } else { found(node) };
        let place = match (&node.kind, key) {
            (Kind::Map(_) | Kind::List(_) | Kind::Null, Some(key)) => key.clone(),
            _ => node.place.clone(),
        };
        let mut problem = Problem::at(format!("{} must be {wanted}, not {found}", self.called()), place);
        if let Some(fix) = fix {
            problem = problem.fix(fix);
        }
        self.report(problem)
    }

    fn type_fix(&self, node: &Node, wanted: &str, schema: &Value) -> Option<String> {
        let secret = self.in_secret();
        match (wanted, &node.kind) {
            ("string", Kind::Number(n)) if !secret => match schema["pattern"].as_str() {
                Some(SPAN_PATTERN) => Some(format!("write `{n}s` if you mean seconds")),
                Some(SIZE_PATTERN) => Some(format!("write `{n}B` if you mean bytes")),
                _ => Some(format!("put it in quotes: \"{n}\"")),
            },
            ("string", Kind::Number(_) | Kind::Bool(_)) => Some("put it in quotes".into()),
            ("array", Kind::Text(text)) if !secret => Some(format!("write a list: `[{text}]`")),
            ("integer" | "number", Kind::Text(text)) if text.parse::<f64>().is_ok() => {
                Some("write it without quotes".into())
            }
            ("boolean", Kind::Text(text)) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" => Some("write `true`".into()),
                "no" | "off" => Some("write `false`".into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the present value is a secret, or stands where secrets are written.
    fn in_secret(&self) -> bool {
        self.shape.secret_paths.last() == Some(&self.at)
            || self.at.iter().any(|key| sounds_secret(key) || matches!(key.as_str(), "headers" | "env"))
    }

    /// What a person calls the present place.
    fn called(&self) -> String {
        match self.at.as_slice() {
            [] => "this file".into(),
            [.., list, last] if last.bytes().all(|b| b.is_ascii_digit()) => format!("an entry of `{list}`"),
            [.., last] => format!("`{last}`"),
        }
    }

    fn report(&mut self, problem: Problem) -> Fit {
        self.shape.problems.push(problem);
        self.shape.damaged.push(self.at.clone());
        Fit::Bad
    }
}

fn strange_keys(entries: &[Entry], schema: &Value) -> usize {
    let known: Vec<&str> =
        schema["properties"].as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
    let strange = |e: &&Entry| !known.contains(&e.key.as_str());
    let distance =
        |e: &Entry| known.iter().map(|k| strsim::damerau_levenshtein(k, &e.key)).min().unwrap_or(9).min(9);
    entries.iter().filter(strange).map(distance).sum()
}

/// A text that came from a variable, read as the number or truth value it looks like.
fn read_again(node: &mut Node) {
    if let Kind::Text(text) = &node.kind {
        node.kind = match (text.trim().parse::<i64>(), text.trim()) {
            (Ok(number), _) => Kind::Number(number.into()),
            (Err(_), "true") => Kind::Bool(true),
            (Err(_), "false") => Kind::Bool(false),
            (Err(_), other) => match other.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                Some(number) => Kind::Number(number),
                None => return,
            },
        };
    }
}

//! The arguments of a call, and the schema they must fit.
//!
//! Pure. A schema is compiled once, without ever fetching anything; its patterns run in linear time.
//! Arguments keep their order and the text of their numbers.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use jsonschema::{PatternOptions, Validator};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::text::tame;
use crate::wire::raw::structure;

/// The most bytes of arguments one call may have.
pub const MAX_ARGUMENTS: usize = 1024 * 1024;
/// The most violations one message names.
const MAX_NAMED: usize = 5;
/// The most bytes one violation takes in a message.
const MAX_VIOLATION: usize = 300;

/// Arguments that are a JSON object without equal keys.
#[derive(Debug)]
pub(super) struct Arguments<'a> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Arguments<'a> {
    /// Reads the text of a call's arguments; nothing but white space means `{}`. The error is for the model.
    pub(super) fn parse(text: &'a str) -> Result<(Self, Value), String> {
        if text.len() > MAX_ARGUMENTS {
            return Err(format!("arguments are {} bytes long, more than {MAX_ARGUMENTS}", text.len()));
        }
        let text = if text.trim().is_empty() { "{}" } else { text };
        let wrong = |error: serde_json::Error| {
            format!("arguments are not valid JSON: {}", tame(&error.to_string(), 300))
        };
        // This pass refuses equal keys; reading a `Value` would keep the last of them in silence. Where no key is
        // escaped, they are equal if their texts are.
        if text.contains('\\') || structure(text.as_bytes()).is_err() {
            let Unique = serde_json::from_str(text).map_err(wrong)?;
        }
        let value: Value = serde_json::from_str(text).map_err(wrong)?;
        if !value.is_object() {
            return Err(format!("arguments must be a JSON object, not {}", kind(&value)));
        }
        let Members(members) = serde_json::from_str(text).map_err(wrong)?;
        Ok((Self { members }, value))
    }

    /// Every argument in the order it was given, as JSON text.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members.iter().map(|(name, value)| (&**name, value.get()))
    }

    /// An argument's JSON text. `None` also for an explicit `null`: a strict schema has no other way to leave
    /// one out.
    pub(super) fn json(&self, name: &str) -> Option<&str> {
        self.iter().find(|(given, json)| *given == name && *json != "null").map(|(_, json)| json)
    }

    /// An argument as text: a string's content, anything else as its JSON text.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.json(name).map(plain)
    }
}

/// The content of a JSON string; anything else stays JSON text.
pub(super) fn plain(json: &str) -> Cow<'_, str> {
    if !begins_with(json, b'"') {
        return Cow::Borrowed(json);
    }
    match serde_json::from_str::<String>(json) {
        Ok(text) => Cow::Owned(text),
        Err(_) => Cow::Borrowed(json),
    }
}

/// The members of a JSON object, in order.
pub(super) fn members(json: &str) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    if !begins_with(json, b'{') {
        return None;
    }
    serde_json::from_str::<Members<'_>>(json).ok().map(|Members(members)| members)
}

/// Whether this is the first byte of a value. Reading one of another kind ends in an error that is costly to write.
pub(super) fn begins_with(json: &str, byte: u8) -> bool {
    json.trim_ascii_start().as_bytes().first() == Some(&byte)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Members in order, their values unread.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        d.deserialize_map(Collect)
    }
}

/// Any JSON in which no object has two equal keys.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Unique;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
                Ok(Unique)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unique, A::Error> {
                while seq.next_element::<Unique>()?.is_some() {}
                Ok(Unique)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if seen.contains(&key) {
                        return Err(de::Error::custom(format_args!("the key \"{key}\" appears twice")));
                    }
                    seen.insert(key);
                    map.next_value::<Unique>()?;
                }
                Ok(Unique)
            }
        }
        d.deserialize_any(Walk)
    }
}

/// A tool's compiled schema.
#[derive(Debug)]
pub(super) struct Schema {
    validator: Validator,
    properties: HashSet<String>,
    names_all: bool,
}

/// What is wrong with a schema, and where in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) path: Vec<String>,
    pub(super) message: String,
}

impl Schema {
    /// Compiles a schema; it must be one of an object.
    pub(super) fn compile(schema: &Value) -> Result<Self, Broken> {
        let top = |message: &str| Broken { path: Vec::new(), message: message.into() };
        let members = schema.as_object().ok_or_else(|| top("the schema must be an object"))?;
        if members.get("type") != Some(&Value::from("object")) {
            return Err(top("the schema must be that of an object: \"type\": \"object\""));
        }
        let validator = jsonschema::options()
            .with_pattern_options(PatternOptions::regex())
            .build(schema)
            .map_err(|error| {
                let path = error.instance_path().as_str().split('/').skip(1).map(unescape).collect();
                Broken { path, message: tame(&error.to_string(), MAX_VIOLATION) }
            })?;
        Ok(Self { validator, properties: property_names(members), names_all: names_all(members) })
    }

    /// What can be said of a schema that is broken: which names it seems to have. Good for finding more
    /// mistakes of a tool, and for nothing else.
    pub(super) fn guessed(schema: &Value) -> Option<Self> {
        let members = schema.as_object()?;
        let validator = jsonschema::validator_for(&Value::Bool(true)).ok()?;
        Some(Self { validator, properties: property_names(members), names_all: names_all(members) })
    }

    /// Whether the schema's `properties` has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.properties.contains(name)
    }

    /// The names in the schema's `properties`.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.properties.iter().map(String::as_str)
    }

    /// The name of an argument that the schema lets pass although it names it nowhere.
    ///
    /// A schema that says nothing of further properties allows all of them. Where a name becomes part of a
    /// request, that silence is not taken for permission.
    pub(super) fn unnamed<'a>(&self, arguments: &'a Arguments<'_>) -> Option<&'a str> {
        arguments.iter().map(|(name, _)| name).find(|name| self.names_all && !self.has(name))
    }

    /// Whether the arguments fit. The error is for the model: it names the places that do not.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        let mut errors = self.validator.iter_errors(value);
        let mut named: Vec<String> = Vec::new();
        for error in errors.by_ref().take(MAX_NAMED) {
            let place = match error.instance_path().as_str() {
                "" => "at the top".to_owned(),
                path => format!("at {}", tame(path, 100)),
            };
            named.push(format!("{place}: {}", tame(&error.to_string(), MAX_VIOLATION)));
        }
        if named.is_empty() {
            return Ok(());
        }
        let more = if errors.next().is_some() { "; and more" } else { "" };
        Err(format!("arguments break the schema {}{more}", named.join("; ")))
    }
}

fn property_names(members: &Map<String, Value>) -> HashSet<String> {
    match members.get("properties") {
        Some(Value::Object(properties)) => properties.keys().cloned().collect(),
        Some(_) | None => HashSet::new(),
    }
}

/// Whether `properties` is the schema's only word about names.
fn names_all(members: &Map<String, Value>) -> bool {
    const OTHERS: [&str; 11] = [
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "unevaluatedProperties",
        "dependentSchemas",
        "allOf",
        "anyOf",
        "oneOf",
        "if",
        "$ref",
        "$dynamicRef",
    ];
    OTHERS.iter().all(|key| !members.contains_key(*key))
}

/// One step of a JSON pointer as it was before it was put into one.
fn unescape(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
        Arguments::parse(text)
            .map(|(arguments, _)| arguments.iter().map(|(name, json)| (name.into(), json.into())).collect())
    }

    #[test]
    fn nothing_means_an_empty_object() {
        for text in ["", "  ", "\n\t", "{}", " { } "] {
            assert_eq!(parse(text), Ok(vec![]), "{text:?}");
        }
    }

    #[test]
    fn anything_unreadable_is_refused_and_never_taken_for_empty() {
        for text in [
            "{",
            "}",
            "nonsense",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1}{}",
            "{\"a\":1} x",
            "{'a':1}",
            "{\"a\":NaN}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":1e999}",
            "{\"a\":01}",
            "{a:1}",
            "\u{feff}{}",
        ] {
            assert!(parse(text).unwrap_err().starts_with("arguments are not valid JSON: "), "{text:?}");
        }
        for (text, kind) in [
            ("[]", "an array"),
            ("null", "null"),
            ("1", "a number"),
            ("\"{}\"", "a string"),
            ("true", "a boolean"),
        ] {
            assert_eq!(parse(text).unwrap_err(), format!("arguments must be a JSON object, not {kind}"));
        }
    }

    #[test]
    fn equal_keys_are_refused_at_every_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"a":1,"a":2}}"#,
            r#"{"x":[[{"a":1,"a":2}]]}"#,
        ] {
            assert!(parse(text).unwrap_err().contains("the key \"a\" appears twice"), "{text}");
        }
        assert!(parse(r#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep).is_err());
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_ARGUMENTS));
        assert!(parse(&long).unwrap_err().contains("bytes long"));
    }

    #[test]
    fn order_and_the_text_of_numbers_are_kept() {
        let text = r#"{"z":123456789012345678901234567890,"a":1.10,"s":"\u00e9","n":null,"l":[1, 2]}"#;
        let (arguments, _) = Arguments::parse(text).unwrap();
        assert_eq!(arguments.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["z", "a", "s", "n", "l"]);
        assert_eq!(arguments.text("z").unwrap(), "123456789012345678901234567890");
        assert_eq!(arguments.text("a").unwrap(), "1.10");
        assert_eq!(arguments.text("s").unwrap(), "é");
        assert_eq!(arguments.text("l").unwrap(), "[1, 2]");
        assert_eq!(arguments.text("n"), None);
        assert_eq!(arguments.text("no"), None);
    }

    #[test]
    fn violations_are_named_with_their_place_and_bounded() {
        let schema = Schema::compile(&json!({
            "type": "object",
            "properties": { "city": { "type": "string" }, "days": { "type": "array", "items": { "type": "integer" } } },
            "required": ["city"],
            "additionalProperties": false
        }))
        .unwrap();
        assert_eq!(schema.check(&json!({ "city": "Brno" })), Ok(()));
        let says = schema.check(&json!({ "city": 1 })).unwrap_err();
        assert!(says.starts_with("arguments break the schema at /city: "), "{says}");
        let says = schema.check(&json!({ "days": ["x"] })).unwrap_err();
        assert!(says.contains("/days/0") && says.contains("\"city\" is a required property"), "{says}");
        let many = schema.check(&json!({ "city": "a", "days": vec!["x".repeat(10_000); 100] })).unwrap_err();
        assert!(many.len() < 2500 && many.ends_with("; and more"), "{}", many.len());
    }

    #[test]
    fn a_broken_schema_says_where() {
        for (schema, path) in [
            (
                json!({ "type": "object", "properties": { "x": { "type": "strnig" } } }),
                vec!["properties", "x", "type"],
            ),
            (json!({ "type": "object", "required": "x" }), vec!["required"]),
            (json!({ "type": "array" }), vec![]),
            (json!([]), vec![]),
        ] {
            assert_eq!(Schema::compile(&schema).unwrap_err().path, path, "{schema}");
        }
    }

    #[test]
    fn a_schema_never_fetches_anything_and_its_patterns_are_linear() {
        let remote =
            json!({ "type": "object", "properties": { "x": { "$ref": "http://127.0.0.1:9/s.json" } } });
        assert!(Schema::compile(&remote).is_err());
        let local = json!({ "type": "object", "properties": { "x": { "$ref": "file:///etc/passwd" } } });
        assert!(Schema::compile(&local).is_err());
        let back =
            json!({ "type": "object", "properties": { "x": { "type": "string", "pattern": "(a)\\1" } } });
        assert!(Schema::compile(&back).is_err());
        let bomb =
            json!({ "type": "object", "properties": { "x": { "type": "string", "pattern": "^(a+)+$" } } });
        let schema = Schema::compile(&bomb).unwrap();
        assert!(schema.check(&json!({ "x": format!("{}!", "a".repeat(100_000)) })).is_err());
    }

    #[test]
    fn silence_about_further_names_is_no_permission() {
        let (arguments, _) = Arguments::parse(r#"{"x":1,"y":2}"#).unwrap();
        let silent = json!({ "type": "object", "properties": { "x": {} } });
        assert_eq!(Schema::compile(&silent).unwrap().unnamed(&arguments), Some("y"));
        let open = json!({ "type": "object", "properties": { "x": {} }, "additionalProperties": true });
        assert_eq!(Schema::compile(&open).unwrap().unnamed(&arguments), None);
    }
}

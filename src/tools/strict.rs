//! Whether a schema fits the subset that providers take with `strict: true`.
//!
//! Pure. All mistakes are reported at once, each with its place in the schema.

use serde_json::{Map, Value};

/// The most object levels, one inside the other.
const MAX_LEVELS: usize = 10;
/// The most properties in a whole schema.
const MAX_PROPERTIES: usize = 5000;
/// The most enum values in a whole schema.
const MAX_ENUM: usize = 1000;
/// The deepest this check itself descends; a schema beyond it has been refused long before.
const MAX_DEPTH: usize = 64;

/// Keywords the subset does not know.
const REFUSED: [&str; 23] = [
    "allOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "prefixItems",
    "additionalItems",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "$dynamicRef",
    "default",
];

/// One thing in a schema that the strict subset does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where in the schema, from its root: `["properties", "x"]`.
    pub path: Vec<String>,
    /// The sentence, with its place: ``in properties.x: `additionalProperties` must be false``.
    pub message: String,
}

/// Everything in the schema that the strict subset does not take; empty when it fits.
#[must_use]
pub fn check(schema: &Value) -> Vec<Fault> {
    let mut look = Look { path: Vec::new(), properties: 0, enums: 0, faults: Vec::new() };
    if schema.get("type") != Some(&Value::from("object")) {
        look.fault("the schema itself must have \"type\": \"object\"");
    }
    if schema.get("anyOf").is_some() {
        look.fault("\"anyOf\" may not stand at the top of the schema");
    }
    look.schema(schema, 0);
    if look.properties > MAX_PROPERTIES {
        look.fault(&format!("{} properties in all; at most {MAX_PROPERTIES} are taken", look.properties));
    }
    if look.enums > MAX_ENUM {
        look.fault(&format!("{} enum values in all; at most {MAX_ENUM} are taken", look.enums));
    }
    look.faults
}

struct Look {
    path: Vec<String>,
    properties: usize,
    enums: usize,
    faults: Vec<Fault>,
}

impl Look {
    fn fault(&mut self, what: &str) {
        let message = match self.path.is_empty() {
            true => what.to_owned(),
            false => format!("in {}: {what}", self.path.join(".")),
        };
        self.faults.push(Fault { path: self.path.clone(), message });
    }

    fn fault_at(&mut self, key: &str, what: &str) {
        self.fault(what);
        if let Some(fault) = self.faults.last_mut() {
            fault.path.push(key.into());
        }
    }

    /// `levels`: how many objects are around this schema.
    fn schema(&mut self, schema: &Value, levels: usize) {
        let Value::Object(members) = schema else {
            return self.fault("a schema must be an object");
        };
        if self.path.len() > MAX_DEPTH {
            return self.fault("the schema is nested too deeply");
        }
        for key in members.keys().filter(|key| REFUSED.contains(&key.as_str())) {
            self.fault_at(key, &format!("\"{key}\" is not taken with strict"));
        }
        if !["type", "anyOf", "$ref", "enum", "const"].iter().any(|key| members.contains_key(*key)) {
            self.fault("\"type\" is missing");
        }
        if let Some(Value::String(target)) = members.get("$ref")
            && !target.starts_with('#')
        {
            self.fault_at("$ref", "\"$ref\" must point into this schema, such as \"#/$defs/name\"");
        }
        self.enums += members.get("enum").and_then(Value::as_array).map_or(0, Vec::len);
        let object = has_type(members, "object") || members.contains_key("properties");
        if object {
            self.object(members, levels + 1);
        }
        if has_type(members, "array") && !members.contains_key("items") {
            self.fault("\"items\" is missing");
        }
        self.inner(members, levels + usize::from(object));
    }

    fn object(&mut self, members: &Map<String, Value>, levels: usize) {
        if levels > MAX_LEVELS {
            self.fault(&format!("objects are nested more than {MAX_LEVELS} levels deep"));
        }
        if members.get("additionalProperties") != Some(&Value::Bool(false)) {
            self.fault("\"additionalProperties\" must be false");
        }
        let none = Map::new();
        let properties = members.get("properties").and_then(Value::as_object).unwrap_or(&none);
        self.properties += properties.len();
        let required: Vec<&str> = match members.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            Some(_) | None => Vec::new(),
        };
        let missing: Vec<&str> =
            properties.keys().map(String::as_str).filter(|name| !required.contains(name)).collect();
        if !missing.is_empty() {
            let names =
                missing.iter().take(5).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
            self.fault(&format!(
                "\"required\" must list every property; missing: {names} (an optional one has the type [\"string\", \"null\"])"
            ));
        }
        if let Some(extra) = required.iter().find(|name| !properties.contains_key(**name)) {
            self.fault_at("required", &format!("\"required\" lists \"{extra}\", which is no property"));
        }
    }

    /// The schemas inside a schema.
    fn inner(&mut self, members: &Map<String, Value>, levels: usize) {
        for key in ["properties", "$defs", "definitions"] {
            if let Some(Value::Object(named)) = members.get(key) {
                // A definition is counted from where it stands; what refers to it may add levels.
                let levels = if key == "properties" { levels } else { 0 };
                for (name, schema) in named {
                    self.within(&[key, name], schema, levels);
                }
            }
        }
        if let Some(Value::Array(choices)) = members.get("anyOf") {
            for (at, schema) in choices.iter().enumerate() {
                self.within(&["anyOf", &at.to_string()], schema, levels);
            }
        }
        if let Some(items) = members.get("items") {
            self.within(&["items"], items, levels);
        }
    }

    fn within(&mut self, steps: &[&str], schema: &Value, levels: usize) {
        let depth = self.path.len();
        self.path.extend(steps.iter().map(|step| (*step).to_owned()));
        self.schema(schema, levels);
        self.path.truncate(depth);
    }
}

fn has_type(members: &Map<String, Value>, name: &str) -> bool {
    match members.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(properties: Value, required: Value) -> Value {
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    }

    fn with_x(x: Value) -> Value {
        object(json!({ "x": x }), json!(["x"]))
    }

    #[test]
    fn schemas_of_the_subset_pass() {
        let fine = [
            object(json!({}), json!([])),
            json!({ "type": "object", "properties": {}, "additionalProperties": false }),
            with_x(json!({ "type": "string", "description": "d", "pattern": "^a", "format": "date" })),
            with_x(json!({ "type": ["string", "null"] })),
            with_x(json!({ "enum": ["a", "b"] })),
            with_x(json!({ "const": 1 })),
            with_x(json!({ "type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 3 })),
            with_x(json!({ "type": "array", "items": { "type": "number" }, "minItems": 1, "maxItems": 3 })),
            with_x(json!({ "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/a" }] })),
            with_x(object(json!({ "default": { "type": "string" } }), json!(["default"]))),
        ];
        for schema in fine {
            assert_eq!(check(&schema), [], "{schema}");
        }
    }

    #[test]
    fn each_thing_outside_the_subset_is_named_with_its_place() {
        let string = json!({ "type": "string" });
        let mut table = vec![
            (json!(true), "must be an object"),
            (json!({}), "\"type\" is missing"),
            (json!({ "type": "string" }), "the schema itself must have"),
            (json!({ "type": "object", "properties": {} }), "\"additionalProperties\" must be false"),
            (object(json!({ "a": string }), json!([])), "missing: \"a\""),
            (object(json!({ "a": string }), json!(["a", "b"])), "lists \"b\""),
            (with_x(json!({})), "in properties.x: \"type\" is missing"),
            (with_x(json!(true)), "in properties.x: a schema must be an object"),
            (
                with_x(json!({ "type": "object", "properties": {} })),
                "in properties.x: \"additionalProperties\" must be false",
            ),
            (
                with_x(json!({ "type": ["object", "null"], "additionalProperties": true })),
                "in properties.x: \"additionalProperties\" must be false",
            ),
            (with_x(json!({ "type": "array" })), "in properties.x: \"items\" is missing"),
            (
                with_x(json!({ "type": "array", "items": { "type": "object" } })),
                "in properties.x.items: \"addit",
            ),
            (with_x(json!({ "anyOf": [string, { "oneOf": [] }] })), "in properties.x.anyOf.1: \"oneOf\""),
            (with_x(json!({ "$ref": "https://example.com/a.json" })), "\"$ref\" must point into"),
        ];
        for key in REFUSED {
            table.push((with_x(json!({ "type": "string", key: {} })), "is not taken with strict"));
        }
        for (schema, says) in table {
            let faults = check(&schema);
            assert!(faults.iter().any(|fault| fault.message.contains(says)), "{schema}: {faults:?}");
        }
    }

    #[test]
    fn a_fault_carries_the_path_of_its_place() {
        let faults = check(&with_x(json!({ "type": "string", "not": {} })));
        assert_eq!(faults.first().unwrap().path, ["properties", "x", "not"]);
        let faults = check(&object(
            json!({ "a": object(json!({ "b": { "type": "string" } }), json!([])) }),
            json!(["a"]),
        ));
        assert_eq!(faults.first().unwrap().path, ["properties", "a"]);
    }

    #[test]
    fn definitions_are_checked_too() {
        let mut schema = with_x(json!({ "$ref": "#/$defs/a" }));
        schema["$defs"] = json!({ "a": { "type": "object", "properties": {} } });
        assert_eq!(check(&schema).first().unwrap().path, ["$defs", "a"]);
    }

    #[test]
    fn ten_levels_pass_and_eleven_do_not() {
        let nested = |levels: usize| (1..levels).fold(object(json!({}), json!([])), |inner, _| with_x(inner));
        assert_eq!(check(&nested(10)), []);
        assert!(check(&nested(11)).iter().any(|fault| fault.message.contains("10 levels")));
        assert!(!check(&nested(200)).is_empty());
    }

    #[test]
    fn counts_are_bounded() {
        let names: Vec<String> = (0..5001).map(|n| format!("p{n}")).collect();
        let many = |count: usize| {
            let names = names.get(..count).unwrap();
            let properties: Map<String, Value> =
                names.iter().map(|name| (name.clone(), json!({ "type": "string" }))).collect();
            object(Value::Object(properties), json!(names))
        };
        assert_eq!(check(&many(5000)), []);
        assert!(check(&many(5001)).iter().any(|fault| fault.message.contains("5001 properties")));
        let values: Vec<usize> = (0..1001).collect();
        assert!(
            check(&with_x(json!({ "enum": values }))).iter().any(|fault| fault.message.contains("1001 enum"))
        );
    }
}

//! The schemas of a document, as one JSON Schema that stands by itself.
//!
//! References are replaced by what they refer to. Where a schema refers to itself, or the whole would
//! become too large, the reference stays and its target goes into `$defs`. What OpenAPI 3.0 writes in
//! its own way (`nullable`, boolean `exclusiveMinimum`) is written in JSON Schema's.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The largest schema of one operation, in members.
const LARGEST: usize = 4_000;
/// The deepest nesting that is followed.
const DEEPEST: usize = 40;

/// The version of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// 3.0: a dialect of its own.
    Old,
    /// 3.1: JSON Schema.
    New,
}

impl Dialect {
    pub(super) fn of(document: &Value) -> Result<Self, String> {
        match document.get("openapi").and_then(Value::as_str) {
            Some(version) if version.starts_with("3.0") => Ok(Self::Old),
            Some(version) if version.starts_with("3.1") || version.starts_with("3.2") => Ok(Self::New),
            Some(version) => Err(format!("OpenAPI {version} is not known; 3.0 and 3.1 are")),
            None if document.get("swagger").is_some() => {
                Err("this is a Swagger 2.0 document: convert it to OpenAPI 3 first".into())
            }
            None => Err("this is not an OpenAPI document: `openapi: 3.x` is missing".into()),
        }
    }
}

/// What a `$ref` into the same document refers to, references to references included.
pub(super) fn referenced<'a>(document: &'a Value, value: &'a Value) -> Option<&'a Value> {
    let mut value = value;
    for _ in 0..DEEPEST {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return Some(value) };
        value = document.pointer(reference.strip_prefix('#')?)?;
    }
    None
}

/// Reads schemas of one operation.
pub(super) struct Schemas<'a> {
    document: &'a Value,
    dialect: Dialect,
    /// The references on the way to the schema that is being read.
    way: Vec<String>,
    defs: BTreeMap<String, Value>,
    size: usize,
    for_request: bool,
}

impl<'a> Schemas<'a> {
    pub(super) const fn new(document: &'a Value, dialect: Dialect) -> Self {
        Self { document, dialect, way: Vec::new(), defs: BTreeMap::new(), size: 0, for_request: false }
    }

    /// A schema, standing by itself but for what is in `$defs`.
    pub(super) fn read(&mut self, schema: &Value) -> Result<Value, String> {
        self.schema(schema, 0)
    }

    /// The same for the body of a request: an object whose parts in `allOf` are put together, without
    /// the members only replies have.
    pub(super) fn read_for_request(&mut self, schema: &Value) -> Result<Value, String> {
        self.for_request = true;
        let read = self.schema(schema, 0);
        self.for_request = false;
        read.map(flattened)
    }

    /// What references that had to stay refer to.
    pub(super) fn into_defs(self) -> Option<Value> {
        (!self.defs.is_empty()).then(|| Value::Object(self.defs.into_iter().collect()))
    }

    fn schema(&mut self, schema: &Value, depth: usize) -> Result<Value, String> {
        self.size += 1;
        if self.size > LARGEST {
            return Err(format!("its schema has more than {LARGEST} parts"));
        }
        if depth > DEEPEST {
            return Err("its schema is nested too deeply".into());
        }
        let Value::Object(map) = schema else {
            return Ok(if schema.is_boolean() { schema.clone() } else { json!({}) });
        };
        match map.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.reference(reference, depth),
            None => self.object(map, depth),
        }
    }

    fn reference(&mut self, reference: &str, depth: usize) -> Result<Value, String> {
        let pointer =
            reference.strip_prefix('#').ok_or_else(|| format!("`{reference}` is in another document"))?;
        let name: String =
            pointer.rsplit('/').next().unwrap_or_default().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let target =
            self.document.pointer(pointer).ok_or_else(|| format!("`{reference}` refers to nothing"))?;
        if self.way.iter().any(|known| known == pointer) {
            // It refers to itself: the reference stays.
            if !self.defs.contains_key(&name) {
                self.defs.insert(name.clone(), Value::Null);
                let read = self.own_definition(target)?;
                self.defs.insert(name.clone(), read);
            }
            return Ok(json!({ "$ref": format!("#/$defs/{name}") }));
        }
        self.way.push(pointer.to_owned());
        let read = self.schema(target, depth + 1);
        self.way.pop();
        read
    }

    /// A schema that refers to itself, read with every way to it being a reference.
    fn own_definition(&mut self, target: &'a Value) -> Result<Value, String> {
        self.schema(target, 1)
    }

    fn object(&mut self, map: &Map<String, Value>, depth: usize) -> Result<Value, String> {
        let mut out = Map::new();
        for (name, value) in map {
            let read = match name.as_str() {
                "example" | "examples" | "xml" | "externalDocs" | "discriminator" | "deprecated"
                | "readOnly" | "writeOnly" => continue,
                name if name.starts_with("x-") => continue,
                "properties" | "patternProperties" | "$defs" | "definitions" => {
                    self.each_member(value, depth)?
                }
                "items"
                | "additionalProperties"
                | "not"
                | "contains"
                | "propertyNames"
                | "if"
                | "then"
                | "else"
                    if value.is_object() =>
                {
                    self.schema(value, depth + 1)?
                }
                "allOf" | "anyOf" | "oneOf" | "prefixItems" => self.each_element(value, depth)?,
                _ => value.clone(),
            };
            out.insert(name.clone(), read);
        }
        if self.for_request {
            self.drop_read_only(map, &mut out);
        }
        if self.dialect == Dialect::Old {
            modern(map, &mut out);
        }
        Ok(Value::Object(out))
    }

    fn each_member(&mut self, value: &Value, depth: usize) -> Result<Value, String> {
        let mut out = Map::new();
        for (name, schema) in value.as_object().into_iter().flatten() {
            out.insert(name.clone(), self.schema(schema, depth + 1)?);
        }
        Ok(Value::Object(out))
    }

    fn each_element(&mut self, value: &Value, depth: usize) -> Result<Value, String> {
        let list = value.as_array().into_iter().flatten();
        list.map(|schema| self.schema(schema, depth + 1)).collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    fn drop_read_only(&self, map: &Map<String, Value>, out: &mut Map<String, Value>) {
        let members = map.get("properties").and_then(Value::as_object).into_iter().flatten();
        for (name, schema) in members {
            let schema = referenced(self.document, schema).unwrap_or(schema);
            if schema.get("readOnly") != Some(&Value::Bool(true)) {
                continue;
            }
            if let Some(Value::Object(properties)) = out.get_mut("properties") {
                properties.shift_remove(name);
            }
            if let Some(Value::Array(required)) = out.get_mut("required") {
                required.retain(|known| known != name.as_str());
            }
        }
    }
}

/// What 3.0 writes in its own way.
fn modern(map: &Map<String, Value>, out: &mut Map<String, Value>) {
    if out.shift_remove("nullable") == Some(Value::Bool(true)) {
        if let Some(kind) = out.get_mut("type") {
            *kind = json!([kind.take(), "null"]);
        }
        if let Some(Value::Array(values)) = out.get_mut("enum")
            && !values.contains(&Value::Null)
        {
            values.push(Value::Null);
        }
    }
    for (flag, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        match map.get(flag) {
            Some(Value::Bool(true)) => {
                if let Some(value) = out.shift_remove(bound) {
                    out.insert(flag.into(), value);
                }
            }
            Some(Value::Bool(false)) => {
                out.shift_remove(flag);
            }
            Some(_) | None => {}
        }
    }
}

/// An object whose parts in `allOf` are put together, as far as they are plain objects.
fn flattened(schema: Value) -> Value {
    let Value::Object(mut map) = schema else { return schema };
    let Some(Value::Array(parts)) = map.shift_remove("allOf") else { return Value::Object(map) };
    let (mut properties, mut required): (Map<String, Value>, Vec<Value>) = (Map::new(), Vec::new());
    let own = Value::Object(map.clone());
    for part in parts.into_iter().map(flattened).chain([own]) {
        if let Some(Value::Object(more)) = part.get("properties") {
            properties.extend(more.clone());
        }
        if let Some(Value::Array(more)) = part.get("required") {
            let new: Vec<Value> = more.iter().filter(|name| !required.contains(name)).cloned().collect();
            required.extend(new);
        }
    }
    map.insert("type".into(), "object".into());
    map.insert("properties".into(), properties.into());
    map.insert("required".into(), required.into());
    Value::Object(map)
}

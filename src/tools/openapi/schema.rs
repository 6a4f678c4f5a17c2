//! The schemas of a document, as one JSON Schema that stands by itself.
//!
//! References are replaced by what they refer to. Where a schema refers to itself, or the whole would
//! become too large, references stay and their targets go into `$defs`. What OpenAPI 3.0 writes in
//! its own way (`nullable`, boolean `exclusiveMinimum`) is written in JSON Schema's.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

/// The largest schema of one operation, in parts.
const LARGEST: usize = 4_000;
/// A schema with more parts than this keeps its references.
const LARGEST_INLINE: usize = 400;
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
        value = document.pointer(&pointer(reference)?)?;
    }
    None
}

/// Why a value that still refers to something cannot be read.
pub(super) fn lost(value: &Value) -> Option<String> {
    let reference = value.get("$ref")?.as_str().unwrap_or_default();
    Some(match reference.strip_prefix('#') {
        Some(_) => format!("`{reference}` is not in the document"),
        None => format!("`{reference}` is in another document"),
    })
}

/// The JSON pointer of a reference into the same document.
fn pointer(reference: &str) -> Option<String> {
    let fragment = reference.strip_prefix('#')?;
    Some(percent_decode_str(fragment).decode_utf8().ok()?.into_owned())
}

/// Reads schemas of one operation.
pub(super) struct Schemas<'a> {
    document: &'a Value,
    dialect: Dialect,
    /// The pointers on the way to the schema that is being read.
    way: Vec<String>,
    /// Names in `$defs`, by pointer.
    names: BTreeMap<String, String>,
    defs: BTreeMap<String, Value>,
    size: usize,
    for_request: bool,
    keep_references: bool,
}

impl<'a> Schemas<'a> {
    /// `keep_references`: the whole would become too large without them.
    pub(super) const fn new(document: &'a Value, dialect: Dialect, keep_references: bool) -> Self {
        Self {
            document,
            dialect,
            way: Vec::new(),
            names: BTreeMap::new(),
            defs: BTreeMap::new(),
            size: 0,
            for_request: false,
            keep_references,
        }
    }

    /// Whether it should be read anew with references kept.
    pub(super) const fn too_large(&self) -> bool {
        !self.keep_references && self.size > LARGEST_INLINE
    }

    /// How many parts were read.
    pub(super) const fn size(&self) -> usize {
        self.size
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
        let Some(reference) = map.get("$ref").and_then(Value::as_str) else { return self.object(map, depth) };
        let target = self.reference(reference, depth)?;
        // 3.0 takes nothing beside a reference; 3.1 takes both.
        if self.dialect == Dialect::Old || map.len() == 1 {
            return Ok(target);
        }
        let mut beside = map.clone();
        beside.shift_remove("$ref");
        let Value::Object(mut beside) = self.object(&beside, depth)? else { return Ok(target) };
        let only_words = |name: &String| matches!(name.as_str(), "description" | "title" | "default");
        if let Value::Object(target) = &target
            && beside.keys().all(only_words)
            && !target.contains_key("$ref")
        {
            let mut target = target.clone();
            target.append(&mut beside);
            return Ok(Value::Object(target));
        }
        beside.insert("allOf".into(), json!([target]));
        Ok(Value::Object(beside))
    }

    fn reference(&mut self, reference: &str, depth: usize) -> Result<Value, String> {
        let pointer = pointer(reference).ok_or_else(|| format!("`{reference}` is in another document"))?;
        let target =
            self.document.pointer(&pointer).ok_or_else(|| format!("`{reference}` refers to nothing"))?;
        // The first step is always taken, so that a body can be seen as an object.
        if self.way.contains(&pointer) || (self.keep_references && depth > 0) {
            return self.definition(pointer, target);
        }
        self.way.push(pointer);
        // A reference is no nesting; a circle of them is met above.
        let read = self.schema(target, depth);
        self.way.pop();
        read
    }

    /// A reference that stays.
    fn definition(&mut self, pointer: String, target: &Value) -> Result<Value, String> {
        let name = match self.names.get(&pointer) {
            Some(name) => name.clone(),
            None => {
                let last = pointer.rsplit('/').next().unwrap_or_default();
                let short = last.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                let taken = |name: &String| self.names.values().any(|known| known == name);
                let numbered = (2..).map(|n| format!("{short}_{n}"));
                let free = std::iter::once(short.clone()).chain(numbered).find(|name| !taken(name));
                let name = free.unwrap_or(short);
                self.names.insert(pointer.clone(), name.clone());
                let before = std::mem::replace(&mut self.way, vec![pointer]);
                let read = self.schema(target, 1);
                self.way = before;
                self.defs.insert(name.clone(), read?);
                name
            }
        };
        Ok(json!({ "$ref": format!("#/$defs/{name}") }))
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

/// An object whose parts in `allOf` are put together, if they are plain objects.
fn flattened(schema: Value) -> Value {
    let Some(Value::Array(parts)) = schema.get("allOf") else { return schema };
    let parts: Vec<Value> = parts.iter().cloned().map(flattened).collect();
    let Value::Object(mut own) = schema.clone() else { return schema };
    own.shift_remove("allOf");
    let own = Value::Object(own);
    if !parts.iter().chain([&own]).all(plain) {
        return schema;
    }
    let Value::Object(mut whole) = own.clone() else { return schema };
    let (mut properties, mut required): (Map<String, Value>, Vec<Value>) = (Map::new(), Vec::new());
    for part in parts.iter().chain([&own]) {
        for (name, more) in part.get("properties").and_then(Value::as_object).into_iter().flatten() {
            // What two parts say of one member holds both.
            let both = match properties.shift_remove(name) {
                Some(known) if known != *more => json!({ "allOf": [known, more] }),
                Some(_) | None => more.clone(),
            };
            properties.insert(name.clone(), both);
        }
        for name in part.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !required.contains(name) {
                required.push(name.clone());
            }
        }
    }
    whole.insert("type".into(), "object".into());
    whole.insert("properties".into(), properties.into());
    whole.insert("required".into(), required.into());
    Value::Object(whole)
}

/// Whether a schema says nothing but which members an object has.
fn plain(schema: &Value) -> bool {
    const PLAIN: [&str; 6] = ["type", "properties", "required", "title", "description", "default"];
    schema.as_object().is_some_and(|map| map.keys().all(|key| PLAIN.contains(&key.as_str())))
        && schema.get("type").is_none_or(|kind| kind == "object")
}

/// Whether a schema is that of an object all of whose members are named.
pub(super) fn names_members(schema: &Value) -> bool {
    let closed = schema.get("additionalProperties").is_none_or(|more| *more == Value::Bool(false));
    let mut open = schema.clone();
    if let Value::Object(map) = &mut open {
        map.shift_remove("additionalProperties");
    }
    closed && plain(&open) && schema.get("properties").is_some_and(Value::is_object)
}

//! An OpenAPI document, read as tools: one per operation.
//!
//! Pure. An operation becomes the settings of an HTTP tool, so its arguments are rendered by the same
//! encoders and held to the same bounds as those a person wrote. Path, query and header parameters
//! and the members of a JSON body become the members of one schema. What cannot be told in that way
//! is listed with its reason and never dropped in silence.

mod schema;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use self::schema::{Dialect, Schemas};
use super::settings::{Http, Method, Settings};
use crate::units::Secret;
use crate::wire::tool::Effect;

/// The most operations one document may have.
const MOST_OPERATIONS: usize = 5_000;
/// The longest description a tool gets, in characters.
const LONGEST_DESCRIPTION: usize = 1_024;
/// Headers that an operation may describe but that are not its arguments.
const NOT_ARGUMENTS: [&str; 3] = ["accept", "content-type", "authorization"];

/// The operations of a document.
#[derive(Debug, Default)]
pub struct Operations {
    /// Those that became tools, by operation name.
    pub mapped: BTreeMap<String, Settings>,
    /// Those that did not, or not whole.
    pub unmapped: Vec<Unmapped>,
}

/// What could not be told as a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// The operation: its `operationId`, or method and path.
    pub operation: String,
    /// Why.
    pub why: String,
    /// The tool exists all the same, without this part.
    pub partly: bool,
}

/// Reads a document. `base` has what is the same for every operation: `url` is the base URL, then
/// headers, networks and authorities. The error is about the document as a whole.
pub fn operations(document: &Value, base: &Http) -> Result<Operations, String> {
    let dialect = Dialect::of(document)?;
    let paths = document.get("paths").and_then(Value::as_object).ok_or("the document has no `paths`")?;
    let mut found = Operations::default();
    for (path, item) in paths {
        let item = schema::referenced(document, item).unwrap_or(item);
        for (word, method) in METHODS {
            let Some(operation) = item.get(word) else { continue };
            if found.mapped.len() + found.unmapped.len() >= MOST_OPERATIONS {
                return Err(format!("the document has more than {MOST_OPERATIONS} operations"));
            }
            let reader = Reader { document, dialect, path, item, operation, method };
            reader.read(word, base, &mut found);
        }
        for word in ["options", "trace"].iter().filter(|word| item.get(**word).is_some()) {
            let operation = format!("{} {path}", word.to_uppercase());
            found.unmapped.push(Unmapped {
                operation,
                why: "tools do not use this method".into(),
                partly: false,
            });
        }
    }
    Ok(found)
}

const METHODS: [(&str, Method); 6] = [
    ("get", Method::Get),
    ("head", Method::Head),
    ("post", Method::Post),
    ("put", Method::Put),
    ("patch", Method::Patch),
    ("delete", Method::Delete),
];

/// What a method does to the world, unless the configuration says otherwise.
const fn effect(method: Method) -> Effect {
    match method {
        Method::Get | Method::Head => Effect::Read,
        Method::Put | Method::Delete => Effect::Idempotent,
        Method::Post | Method::Patch => Effect::Write,
    }
}

struct Reader<'a> {
    document: &'a Value,
    dialect: Dialect,
    path: &'a str,
    item: &'a Value,
    operation: &'a Value,
    method: Method,
}

/// The arguments of an operation, as they are collected.
#[derive(Default)]
struct Arguments {
    properties: Map<String, Value>,
    required: Vec<Value>,
    query: Vec<String>,
    headers: Vec<String>,
    left_out: Vec<String>,
}

impl Reader<'_> {
    fn read(&self, word: &str, base: &Http, found: &mut Operations) {
        let id = self.operation.get("operationId").and_then(Value::as_str);
        let name = id.map_or_else(|| format!("{word}_{}", self.path), str::to_owned);
        let shown = id.map_or_else(|| format!("{} {}", word.to_uppercase(), self.path), str::to_owned);
        let name = tool_name(&name);
        match self.settings(base) {
            Ok(_) if found.mapped.contains_key(&name) => found.unmapped.push(Unmapped {
                operation: shown,
                why: format!("another operation has the name `{name}` already"),
                partly: false,
            }),
            Ok((settings, left_out)) => {
                found.mapped.insert(name, settings);
                let part = |why: String| Unmapped { operation: shown.clone(), why, partly: true };
                found.unmapped.extend(left_out.into_iter().map(part));
            }
            Err(why) => found.unmapped.push(Unmapped { operation: shown, why, partly: false }),
        }
    }

    fn settings(&self, base: &Http) -> Result<(Settings, Vec<String>), String> {
        let mut schemas = Schemas::new(self.document, self.dialect);
        let mut arguments = Arguments::default();
        for parameter in self.parameters() {
            self.parameter(parameter, &mut schemas, &mut arguments)?;
        }
        self.body(&mut schemas, &mut arguments)?;
        self.every_place_is_described(&arguments)?;
        let mut parameters = json!({
            "type": "object",
            "properties": arguments.properties,
            "required": arguments.required,
            "additionalProperties": false,
        });
        if let (Some(defs), Value::Object(map)) = (schemas.into_defs(), &mut parameters) {
            map.insert("$defs".into(), defs);
        }
        let settings = Settings {
            description: self.description(),
            parameters: Some(parameters),
            effect: Some(effect(self.method)),
            http: Some(self.http(base, &arguments)),
            ..Settings::default()
        };
        Ok((settings, arguments.left_out))
    }

    fn description(&self) -> Option<String> {
        let text = |name: &str| {
            self.operation.get(name).and_then(Value::as_str).map(str::trim).filter(|t| !t.is_empty())
        };
        let both = match (text("summary"), text("description")) {
            (Some(summary), Some(more)) if !more.starts_with(summary) => format!("{summary}\n\n{more}"),
            (_, Some(text)) | (Some(text), None) => text.to_owned(),
            (None, None) => return None,
        };
        Some(both.chars().take(LONGEST_DESCRIPTION).collect())
    }

    /// The parameters of the path and, over them, those of the operation.
    fn parameters(&self) -> Vec<&Value> {
        let mut all: Vec<&Value> = Vec::new();
        for of in [self.operation, self.item] {
            for parameter in of.get("parameters").and_then(Value::as_array).into_iter().flatten() {
                let parameter = schema::referenced(self.document, parameter).unwrap_or(parameter);
                let key = |p: &Value| (p.get("name").cloned(), p.get("in").cloned());
                if !all.iter().any(|known| key(known) == key(parameter)) {
                    all.push(parameter);
                }
            }
        }
        all
    }

    fn parameter(
        &self,
        parameter: &Value,
        schemas: &mut Schemas<'_>,
        arguments: &mut Arguments,
    ) -> Result<(), String> {
        let name = parameter.get("name").and_then(Value::as_str).ok_or("a parameter has no name")?;
        let place = parameter.get("in").and_then(Value::as_str).unwrap_or_default();
        let required = place == "path" || parameter.get("required") == Some(&Value::Bool(true));
        if place == "header" && NOT_ARGUMENTS.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Ok(());
        }
        if let Some(why) = self.untellable(parameter, name, place) {
            if required {
                return Err(why);
            }
            arguments.left_out.push(why);
            return Ok(());
        }
        let empty = json!({});
        let mut schema = schemas.read(parameter.get("schema").unwrap_or(&empty))?;
        if let (Some(about), Value::Object(map)) = (parameter.get("description"), &mut schema) {
            map.entry("description").or_insert_with(|| about.clone());
        }
        if arguments.properties.insert(name.into(), schema).is_some() {
            return Err(format!("two parameters have the name `{name}`"));
        }
        if required {
            arguments.required.push(name.into());
        }
        match place {
            "query" => arguments.query.push(name.into()),
            "header" => arguments.headers.push(name.into()),
            _ => {}
        }
        Ok(())
    }

    /// Why a parameter cannot be told, if it cannot.
    fn untellable(&self, parameter: &Value, name: &str, place: &str) -> Option<String> {
        let style = parameter.get("style").and_then(Value::as_str);
        let usual = match place {
            "query" => "form",
            "path" | "header" => "simple",
            "cookie" => return Some(format!("`{name}` is a cookie")),
            other => return Some(format!("`{name}` is in `{other}`, which is not known")),
        };
        if name.contains(['{', '}', '&', '=', '#', '?', '%', '+']) || name.contains(char::is_whitespace) {
            return Some(format!("`{name}` is not a name that can stand in a URL"));
        }
        if parameter.get("content").is_some() {
            return Some(format!("`{name}` is written as a document of its own (`content`)"));
        }
        if style.is_some_and(|style| style != usual) {
            return Some(format!("`{name}` has the style `{}`", style.unwrap_or_default()));
        }
        let kind = parameter.get("schema").map(|s| schema::referenced(self.document, s).unwrap_or(s));
        let kind = kind.and_then(|s| s.get("type")).and_then(Value::as_str).unwrap_or_default();
        let exploded = parameter.get("explode") != Some(&Value::Bool(false));
        match kind {
            "object" => Some(format!("`{name}` is an object in the {place}")),
            "array" if place != "query" || !exploded => {
                Some(format!("`{name}` is a list in one value of the {place}"))
            }
            _ => None,
        }
    }

    fn body(&self, schemas: &mut Schemas<'_>, arguments: &mut Arguments) -> Result<(), String> {
        let Some(body) = self.operation.get("requestBody") else { return Ok(()) };
        let body = schema::referenced(self.document, body).unwrap_or(body);
        let required = body.get("required") == Some(&Value::Bool(true));
        let refuse = |arguments: &mut Arguments, why: String| {
            if required {
                return Err(why);
            }
            arguments.left_out.push(why);
            Ok(())
        };
        if matches!(self.method, Method::Get | Method::Head) {
            return refuse(arguments, "a GET or HEAD with a body".into());
        }
        let content = body.get("content").and_then(Value::as_object);
        let json = content.and_then(|c| c.iter().find(|(kind, _)| is_json(kind)));
        let Some((_, media)) = json else {
            let kinds: Vec<&str> = content.into_iter().flatten().map(|(kind, _)| kind.as_str()).collect();
            return refuse(arguments, format!("the body is {}, not JSON", kinds.join(" or ")));
        };
        let empty = json!({});
        let whole = schemas.read_for_request(media.get("schema").unwrap_or(&empty))?;
        let Some(members) = whole.get("properties").and_then(Value::as_object) else {
            return refuse(arguments, "the body is not an object with named members".into());
        };
        for (name, schema) in members {
            if arguments.properties.contains_key(name) {
                return Err(format!("`{name}` is a parameter and a member of the body"));
            }
            arguments.properties.insert(name.clone(), schema.clone());
        }
        if required {
            arguments
                .required
                .extend(whole.get("required").and_then(Value::as_array).into_iter().flatten().cloned());
        }
        Ok(())
    }

    /// Every `{place}` of the path has its parameter.
    fn every_place_is_described(&self, arguments: &Arguments) -> Result<(), String> {
        let mut rest = self.path;
        while let Some((_, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("the path has a `{` without its `}`")?;
            if !arguments.properties.contains_key(name) {
                return Err(format!("the path has a place `{{{name}}}` that no parameter describes"));
            }
            rest = after;
        }
        Ok(())
    }

    fn http(&self, base: &Http, arguments: &Arguments) -> Http {
        let mut url = format!("{}{}", base.url.trim_end_matches('/'), self.path);
        // What a GET has no place for goes into its query anyhow, lists repeated.
        if !matches!(self.method, Method::Get | Method::Head) {
            let pairs: Vec<String> =
                arguments.query.iter().map(|name| format!("{name}={{{name}}}")).collect();
            if !pairs.is_empty() {
                url = format!("{url}?{}", pairs.join("&"));
            }
        }
        let mut headers = base.headers.clone();
        for name in &arguments.headers {
            headers.entry(name.clone()).or_insert_with(|| Secret::Text(format!("{{{name}}}")));
        }
        Http { method: self.method, url, headers, ..base.clone() }
    }
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind == "application/json"
        || (kind.starts_with("application/") && kind.ends_with("+json"))
        || kind == "*/*"
}

/// A name with only the characters a tool's name may have.
fn tool_name(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    let name: String = name.chars().map(legal).collect();
    let mut short = String::with_capacity(name.len());
    for c in name.chars() {
        if !(c == '_' && short.ends_with('_')) {
            short.push(c);
        }
    }
    short.trim_matches('_').to_owned()
}

#[cfg(test)]
mod tests;

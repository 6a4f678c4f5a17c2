//! An OpenAPI document, read as tools: one per operation.
//!
//! Pure, but for [`mod@file`]. An operation becomes the settings of an HTTP tool, so its arguments are rendered by
//! the same encoders and held to the same bounds as those a person wrote. Path, query, header and cookie
//! parameters and the members of a body become the members of one schema; a body that is no object of
//! named members becomes one argument, and a file an object of its text or its bytes. What cannot be told in that way
//! is listed with its reason and never dropped in silence. `load` makes tools of a document that the configuration
//! names.

mod body;
pub mod file;
pub(super) mod load;
mod schema;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use self::schema::{Dialect, Schemas};
use super::http::form::RESERVED;
use super::settings::{Body, Http, Method, Settings, Style};
use crate::units::Secret;
use crate::wire::tool::Effect;

/// The most operations one document may have.
const MOST_OPERATIONS: usize = 5_000;
/// The longest description a tool gets, in characters.
const LONGEST_DESCRIPTION: usize = 1_024;
/// The longest sentence about what could not be told, in bytes.
const LONGEST_REMARK: usize = 500;
/// The most parts all schemas of one document may have together.
const MOST_PARTS: usize = 400_000;
/// Headers that an operation may describe but that OpenAPI does not take for its arguments.
const NOT_ARGUMENTS: [&str; 3] = ["accept", "content-type", "authorization"];
/// Headers that fanfold sends with every call.
const OURS: [&str; 4] = ["idempotency-key", "x-request-id", "traceparent", "tracestate"];
/// What the body is called when it is one argument.
const BODY: &str = "body";

/// The operations of a document.
#[derive(Debug, Default)]
pub struct Operations {
    /// Those that became tools, by `operationId`, or method and path in one word.
    pub mapped: BTreeMap<String, Settings>,
    /// Those that did not, or not whole.
    pub unmapped: Vec<Unmapped>,
    /// All there are, chosen or not.
    pub(in crate::tools) known: Vec<String>,
    parts: usize,
}

/// What could not be told as a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// The operation: its `operationId`, or method and path.
    pub operation: String,
    /// Where it is in the document, as a JSON pointer.
    pub at: String,
    /// Why.
    pub why: String,
    /// The tool exists all the same, without this part.
    pub partly: bool,
}

impl std::fmt::Display for Unmapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.partly { "without a part" } else { "not a tool" };
        let line = format!("{} (#{}): {what}: {}", self.operation, self.at, self.why);
        f.write_str(&super::text::tame(&line, LONGEST_REMARK))
    }
}

/// What is wrong with a document as a whole, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// A JSON pointer; empty for the whole document.
    pub at: &'static str,
    /// What is wrong.
    pub why: String,
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            "" => f.write_str(&self.why),
            at => write!(f, "#{at}: {}", self.why),
        }
    }
}

/// Reads the operations of a document that `chosen` wants, by the name they have in [`Operations::mapped`]. `base`
/// has what is the same for every operation: `url` is the base URL, then headers, credentials, networks and
/// authorities. The error is about the document as a whole.
pub fn operations(document: &Value, base: &Http, chosen: impl Fn(&str) -> bool) -> Result<Operations, Unfit> {
    let dialect = Dialect::of(document).map_err(|why| Unfit { at: "/openapi", why })?;
    let paths = document.get("paths").and_then(Value::as_object);
    let paths = paths.ok_or_else(|| Unfit { at: "/paths", why: "the document has no `paths`".into() })?;
    let mut found = Operations::default();
    for (path, item) in paths.iter().filter(|(path, _)| path.starts_with('/')) {
        let item = schema::referenced(document, item).unwrap_or(item);
        if let Some(why) = schema::lost(item) {
            let at = place(path, "$ref");
            found.unmapped.push(Unmapped { operation: path.clone(), at, why, partly: false });
        }
        for (word, method) in METHODS {
            let Some(operation) = item.get(word) else { continue };
            let reader = Reader { document, dialect, path, item, operation, word, method };
            if chosen(&reader.id()) {
                reader.read(base, &mut found);
            }
            found.known.push(reader.id());
            if found.known.len() > MOST_OPERATIONS || found.parts > MOST_PARTS {
                let why = format!(
                    "there are more than {MOST_OPERATIONS} operations, or their schemas have more than {MOST_PARTS} parts"
                );
                return Err(Unfit { at: "/paths", why });
            }
        }
        for word in ["options", "trace"].into_iter().filter(|word| item.get(*word).is_some()) {
            if chosen(&words(word, path)) {
                found.unmapped.push(Unmapped {
                    operation: format!("{} {path}", word.to_uppercase()),
                    at: place(path, word),
                    why: "tools do not use this method".into(),
                    partly: false,
                });
            }
        }
    }
    Ok(found)
}

/// Whether this is a document that can be read at all.
pub(in crate::tools) fn fits(document: &Value) -> Result<(), Unfit> {
    Dialect::of(document).map(|_| ()).map_err(|why| Unfit { at: "/openapi", why })
}

/// The address of the document's first server, with its variables at their defaults, if it is a whole one.
#[must_use]
pub fn first_server(document: &Value) -> Option<String> {
    let server = document.pointer("/servers/0")?;
    let mut url = server.get("url")?.as_str()?.to_owned();
    for (name, variable) in server.get("variables").and_then(Value::as_object).into_iter().flatten() {
        let default = variable.get("default").and_then(Value::as_str)?;
        url = url.replace(&format!("{{{name}}}"), default);
    }
    let whole = url.starts_with("https://") || url.starts_with("http://");
    (whole && !url.contains(['{', '}'])).then_some(url)
}

/// The JSON pointer of an operation.
fn place(path: &str, word: &str) -> String {
    format!("/paths/{}/{word}", path.replace('~', "~0").replace('/', "~1"))
}

/// The name of an operation without an id.
fn words(word: &str, path: &str) -> String {
    tool_name(&format!("{word}_{path}"))
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
    word: &'static str,
    method: Method,
}

/// The arguments of an operation, as they are collected.
#[derive(Default)]
struct Arguments {
    properties: Map<String, Value>,
    required: Vec<Value>,
    query: Vec<String>,
    headers: Vec<String>,
    cookies: Vec<String>,
    styles: BTreeMap<String, Style>,
    body: Body,
    body_argument: Option<String>,
    files: BTreeMap<String, String>,
    content_type: Option<String>,
    left_out: Vec<String>,
}

impl Reader<'_> {
    fn id(&self) -> String {
        let id = self.operation.get("operationId").and_then(Value::as_str).filter(|id| !id.is_empty());
        id.map_or_else(|| words(self.word, self.path), str::to_owned)
    }

    fn read(&self, base: &Http, found: &mut Operations) {
        let id = self.id();
        let named = self.operation.get("operationId").is_some();
        let operation =
            if named { id.clone() } else { format!("{} {}", self.word.to_uppercase(), self.path) };
        let unmapped = |why: String, partly| Unmapped {
            operation: operation.clone(),
            at: place(self.path, self.word),
            why,
            partly,
        };
        if found.mapped.contains_key(&id) {
            let why = format!("another operation has the name `{id}` already");
            return found.unmapped.push(unmapped(why, false));
        }
        match self.settings(base, &mut found.parts) {
            Ok((settings, left_out)) => {
                found.mapped.insert(id, settings);
                found.unmapped.extend(left_out.into_iter().map(|why| unmapped(why, true)));
            }
            Err(why) => found.unmapped.push(unmapped(why, false)),
        }
    }

    fn settings(&self, base: &Http, parts: &mut usize) -> Result<(Settings, Vec<String>), String> {
        self.no_other_server(base)?;
        let mut schemas = Schemas::new(self.document, self.dialect, false);
        let mut read = self.arguments(&mut schemas, base);
        *parts += schemas.size();
        if schemas.too_large() {
            schemas = Schemas::new(self.document, self.dialect, true);
            read = self.arguments(&mut schemas, base);
            *parts += schemas.size();
        }
        let arguments = read?;
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

    /// An operation that is somewhere else must not be sent here.
    fn no_other_server(&self, base: &Http) -> Result<(), String> {
        let own = |of: &Value| of.get("servers").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        let of = [self.operation, self.item].into_iter().find(|of| own(of));
        match of.and_then(first_server) {
            Some(url) if url.trim_end_matches('/') == base.url.trim_end_matches('/') => Ok(()),
            _ if of.is_none() => Ok(()),
            _ => Err("it is on a server of its own (`servers`)".into()),
        }
    }

    fn arguments(&self, schemas: &mut Schemas<'_>, base: &Http) -> Result<Arguments, String> {
        let mut arguments = Arguments::default();
        for parameter in self.parameters() {
            self.parameter(parameter, schemas, base, &mut arguments)?;
        }
        self.body(schemas, &mut arguments)?;
        self.every_place_is_described(&arguments)?;
        Ok(arguments)
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
        base: &Http,
        arguments: &mut Arguments,
    ) -> Result<(), String> {
        if let Some(why) = schema::lost(parameter) {
            return Err(format!("its parameter {why}"));
        }
        let name = parameter.get("name").and_then(Value::as_str).ok_or("a parameter has no name")?;
        let place = parameter.get("in").and_then(Value::as_str).unwrap_or_default();
        let required = place == "path" || parameter.get("required") == Some(&Value::Bool(true));
        if is_set_already(name, place, base) {
            return Ok(());
        }
        let style = match self.style(parameter, name, place) {
            Ok(style) => style,
            Err(why) if required => return Err(why),
            Err(why) => {
                arguments.left_out.push(why);
                return Ok(());
            }
        };
        let empty = json!({});
        let mut schema = schemas.read(parameter.get("schema").unwrap_or(&empty))?;
        if let (Some(about), Value::Object(map)) = (parameter.get("description"), &mut schema) {
            map.entry("description").or_insert_with(|| about.clone());
        }
        if arguments.properties.insert(name.into(), schema).is_some() {
            return Err(format!("two parameters have the name `{name}`"));
        }
        if let Some(style) = style {
            arguments.styles.insert(name.into(), style);
        }
        if required {
            arguments.required.push(name.into());
        }
        match place {
            "query" => arguments.query.push(name.into()),
            "header" => arguments.headers.push(name.into()),
            "cookie" => arguments.cookies.push(name.into()),
            _ => {}
        }
        Ok(())
    }

    /// How a parameter is written, or why it cannot be.
    fn style(&self, parameter: &Value, name: &str, place: &str) -> Result<Option<Style>, String> {
        let usual = match place {
            "query" | "cookie" => "form",
            "path" | "header" => "simple",
            other => return Err(format!("`{name}` is in `{other}`, which is not known")),
        };
        if name.contains(['{', '}', '&', '=', '#', '?', '%', '+']) || name.contains(char::is_whitespace) {
            return Err(format!("`{name}` is not a name that can stand in a URL"));
        }
        if place == "header" && (RESERVED.contains(&&*name.to_ascii_lowercase()) || !name.is_ascii()) {
            return Err(format!("`{name}` is a header that belongs to the connection"));
        }
        if place == "cookie" && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(format!("`{name}` is not a name that a cookie can have"));
        }
        if parameter.get("content").is_some() {
            return Err(format!("`{name}` is written as a document of its own (`content`)"));
        }
        let style = parameter.get("style").and_then(Value::as_str).unwrap_or(usual);
        self.written(parameter.get("schema"), style, parameter.get("explode"), place)
            .ok_or_else(|| format!("`{name}` has the style `{style}`, which is not known in the {place}"))
    }

    /// The style a value of this schema is written in. `None`: it is not known.
    fn written(
        &self,
        schema: Option<&Value>,
        style: &str,
        explode: Option<&Value>,
        place: &str,
    ) -> Option<Option<Style>> {
        let explode = explode.and_then(Value::as_bool).unwrap_or(matches!(style, "form" | "deepObject"));
        let schema = schema.map(|schema| schema::referenced(self.document, schema).unwrap_or(schema));
        let is = |kind: &str| match schema.and_then(|schema| schema.get("type")) {
            Some(Value::Array(kinds)) => kinds.iter().any(|known| known == kind),
            Some(known) => known == kind,
            None => kind == "object" && schema.is_some_and(|schema| schema.get("properties").is_some()),
        };
        let (list, object) = (is("array"), is("object"));
        match (place, style) {
            _ if !list && !object && matches!(style, "form" | "simple") => Some(None),
            ("query", "form") if explode && list => Some(None),
            ("query", "form") if explode => Some(Some(Style::Spread)),
            ("query", "form") => Some(Some(Style::Commas)),
            // A cookie has one value; nobody agrees on what several of one name mean.
            ("cookie", "form") if !explode => Some(Some(Style::Commas)),
            ("query", "spaceDelimited") => Some((!explode).then_some(Style::Spaces)),
            ("query", "pipeDelimited") => Some((!explode).then_some(Style::Pipes)),
            ("query", "deepObject") => Some(Some(Style::Brackets)),
            ("path" | "header", "simple") => Some(Some(if explode { Style::Equals } else { Style::Commas })),
            _ => None,
        }
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
        let in_query = matches!(self.method, Method::Get | Method::Head);
        if !in_query {
            let pairs: Vec<String> =
                arguments.query.iter().map(|name| format!("{name}={{{name}}}")).collect();
            if !pairs.is_empty() {
                url = format!("{url}?{}", pairs.join("&"));
            }
        }
        let mut headers = base.headers.clone();
        for name in &arguments.headers {
            headers.insert(name.clone(), Secret::Text(format!("{{{name}}}")));
        }
        if !arguments.cookies.is_empty() {
            let cookies: Vec<String> =
                arguments.cookies.iter().map(|name| format!("{name}={{{name}}}")).collect();
            headers.insert("cookie".into(), Secret::Text(cookies.join("; ")));
        }
        if let Some(kind) = arguments.content_type.clone().filter(|_| !has_header(&headers, "content-type")) {
            headers.insert("content-type".into(), Secret::Text(kind));
        }
        Http {
            method: self.method,
            url,
            headers,
            styles: arguments.styles.clone(),
            body: if in_query { Body::Json } else { arguments.body },
            body_argument: arguments.body_argument.clone(),
            files: arguments.files.clone(),
            ..base.clone()
        }
    }
}

fn has_header(headers: &BTreeMap<String, Secret>, name: &str) -> bool {
    headers.keys().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a parameter is none of the model's business: the configuration or fanfold gives it.
fn is_set_already(name: &str, place: &str, base: &Http) -> bool {
    let auth = base.auth.as_ref();
    match place {
        "header" => {
            let same = |known: &str| name.eq_ignore_ascii_case(known);
            let key = auth.and_then(|auth| auth.header.as_ref());
            NOT_ARGUMENTS.into_iter().chain(OURS).any(same)
                || base.headers.keys().any(|known| same(known))
                || key.is_some_and(|key| same(&key.name))
        }
        "query" => auth.and_then(|auth| auth.query.as_ref()).is_some_and(|key| key.name == name),
        // Whoever writes the header writes all of it.
        "cookie" => {
            has_header(&base.headers, "cookie")
                || auth
                    .and_then(|auth| auth.header.as_ref())
                    .is_some_and(|key| key.name.eq_ignore_ascii_case("cookie"))
        }
        _ => false,
    }
}

/// A name with only the characters a tool's name may have.
#[must_use]
pub fn tool_name(name: &str) -> String {
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
mod load_tests;
#[cfg(test)]
mod tests;

//! The body of an operation, as arguments.
//!
//! ```text
//!  JSON, a form, parts, a text, bytes: the first of these that the document takes
//!    └─ an object of named members ─▶ each member an argument
//!    └─ anything else ─▶ the argument `body`; bytes as a file, which is told by its text or its base64
//! ```

use serde_json::{Map, Value, json};

use super::schema::{self, Schemas};
use super::{Arguments, BODY, Reader};
use crate::tools::settings::{Body, Method};

/// The type of bytes of which nothing more is said.
const BYTES: &str = "application/octet-stream";

impl Reader<'_> {
    pub(super) fn body(&self, schemas: &mut Schemas<'_>, arguments: &mut Arguments) -> Result<(), String> {
        let Some(body) = self.operation.get("requestBody") else {
            arguments.body = Body::None;
            return Ok(());
        };
        let body = schema::referenced(self.document, body).unwrap_or(body);
        if let Some(why) = schema::lost(body) {
            return Err(format!("its body {why}"));
        }
        let required = body.get("required") == Some(&Value::Bool(true));
        match self.body_of(body, required, schemas, arguments) {
            Err(why) if !required => {
                arguments.body = Body::None;
                arguments.left_out.push(why);
                Ok(())
            }
            told => told,
        }
    }

    fn body_of(
        &self,
        body: &Value,
        required: bool,
        schemas: &mut Schemas<'_>,
        arguments: &mut Arguments,
    ) -> Result<(), String> {
        if matches!(self.method, Method::Get | Method::Head) {
            return Err("a GET or HEAD with a body".into());
        }
        let content = body.get("content").and_then(Value::as_object);
        let of = |fits: fn(&str) -> bool| content.and_then(|all| all.iter().find(|(kind, _)| fits(kind)));
        let forms = [
            ((|kind| bare(kind) == JSON) as fn(&str) -> bool, Body::Json),
            (is_json, Body::Json),
            (is_form, Body::Form),
            (is_multipart, Body::Multipart),
        ];
        if let Some(((said, media), kind)) =
            forms.into_iter().find_map(|(fits, kind)| Some((of(fits)?, kind)))
        {
            self.members(media, kind, required, schemas, arguments)?;
            // What is JSON by a name of its own is called by it.
            arguments.content_type =
                Some(said.clone()).filter(|said| kind == Body::Json && !["*/*", JSON].contains(&bare(said)));
            return Ok(());
        }
        let (kind, schema) = match (of(is_text), of(is_bytes)) {
            (Some((kind, media)), _) => {
                let text = json!({ "type": "string" });
                (kind, schemas.read_for_request(media.get("schema").unwrap_or(&text))?)
            }
            (None, Some((kind, _))) => {
                arguments.files.insert(BODY.into(), kind.clone());
                (kind, file("The whole body", false))
            }
            (None, None) => {
                let kinds: Vec<&str> = content.into_iter().flatten().map(|(kind, _)| kind.as_str()).collect();
                return Err(format!("the body is {}: no type that can be sent", kinds.join(" or ")));
            }
        };
        self.whole(schema, Body::Raw, required, arguments)?;
        arguments.content_type = Some(kind.clone());
        Ok(())
    }

    /// A body of members.
    fn members(
        &self,
        media: &Value,
        kind: Body,
        required: bool,
        schemas: &mut Schemas<'_>,
        arguments: &mut Arguments,
    ) -> Result<(), String> {
        let empty = json!({});
        let whole = schemas.read_for_request(media.get("schema").unwrap_or(&empty))?;
        let members = whole.get("properties").and_then(Value::as_object);
        let needs = whole.get("required").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        // An optional body with required members is there or not there as a whole.
        let flat = schema::names_members(&whole) && (required || !needs);
        let clash = members.into_iter().flatten().any(|(name, _)| arguments.properties.contains_key(name));
        let Some(members) = members.filter(|_| flat && !clash) else {
            return match kind {
                Body::Json => self.whole(whole, kind, required, arguments),
                Body::Form | Body::Multipart | Body::Raw | Body::None => {
                    Err("the body is a form without named members of its own".into())
                }
            };
        };
        let mut members = members.clone();
        match kind {
            Body::Form => self.form_styles(media, &members, arguments)?,
            Body::Multipart => files(media, &mut members, arguments)?,
            Body::Json | Body::Raw | Body::None => {}
        }
        arguments.properties.extend(members);
        let more = whole.get("required").and_then(Value::as_array);
        arguments.required.extend(more.into_iter().flatten().cloned());
        arguments.body = kind;
        Ok(())
    }

    /// A body that is one argument.
    fn whole(
        &self,
        schema: Value,
        kind: Body,
        required: bool,
        arguments: &mut Arguments,
    ) -> Result<(), String> {
        if arguments.properties.contains_key(BODY) {
            return Err(format!("`{BODY}` is a parameter, and the body is not an object of named members"));
        }
        arguments.properties.insert(BODY.into(), schema);
        if required {
            arguments.required.push(BODY.into());
        }
        arguments.body = kind;
        arguments.body_argument = Some(BODY.into());
        Ok(())
    }

    /// How the members of a form are written; `encoding` may say so for each.
    fn form_styles(
        &self,
        media: &Value,
        members: &Map<String, Value>,
        arguments: &mut Arguments,
    ) -> Result<(), String> {
        for name in members.keys() {
            let Some(encoding) = media.get("encoding").and_then(|all| all.get(name)) else { continue };
            let Some(style) = encoding.get("style").and_then(Value::as_str) else { continue };
            let written = self.written(members.get(name), style, encoding.get("explode"), "query");
            match written
                .ok_or_else(|| format!("`{name}` has the style `{style}`, which is not known in a form"))?
            {
                Some(style) => arguments.styles.insert(name.clone(), style),
                None => None,
            };
        }
        Ok(())
    }
}

/// Which members of a body in parts are files.
fn files(media: &Value, members: &mut Map<String, Value>, arguments: &mut Arguments) -> Result<(), String> {
    for (name, member) in members {
        let encoding = media.get("encoding").and_then(|all| all.get(name));
        let said = encoding.and_then(|encoding| encoding.get("contentType")).and_then(Value::as_str);
        if encoding.is_some_and(|encoding| encoding.get("style").is_some()) {
            return Err(format!("`{name}` has a `style`, which is not known in {MULTIPART}"));
        }
        let list = member.get("type").is_some_and(|kind| kind == "array");
        let one = if list { member.get("items").unwrap_or(&Value::Null) } else { &*member };
        let is_text = one.get("type").is_none_or(|kind| kind == "string");
        // Of several types, or of a whole family, nobody can say which it is.
        let single = said.filter(|kind| !kind.contains([',', '*'])).map(str::trim);
        let of_schema = one.get("contentMediaType").and_then(Value::as_str);
        let is_plain = |kind: &str| is_json(kind) || kind.starts_with("text/plain");
        let binary = one.get("format").is_some_and(|format| format == "binary")
            || (of_schema.is_some() && one.get("contentEncoding").is_none())
            || said.is_some_and(|kind| is_text && !is_plain(kind));
        if binary {
            let about = one.get("description").or(member.get("description")).and_then(Value::as_str);
            let file = file(about.unwrap_or("A file"), true);
            let kind = single.or(of_schema).unwrap_or(BYTES);
            arguments.files.insert(name.clone(), kind.to_owned());
            *member = if list { json!({ "type": "array", "items": file }) } else { file };
        }
    }
    Ok(())
}

/// The schema of a file.
fn file(about: &str, named: bool) -> Value {
    let mut properties = json!({
        "text": { "type": "string", "description": "What is in it, if that is text" },
        "base64": { "type": "string", "description": "What is in it in base64, if it is no text" },
    });
    if let Value::Object(map) = &mut properties
        && named
    {
        map.insert("filename".into(), json!({ "type": "string" }));
    }
    json!({
        "type": "object",
        "description": format!("{about}: either its `text` or its `base64`"),
        "properties": properties,
        "additionalProperties": false,
    })
}

const JSON: &str = "application/json";
const MULTIPART: &str = "multipart/form-data";

/// A media type without its parameters.
fn bare(kind: &str) -> &str {
    kind.split(';').next().unwrap_or_default().trim()
}

fn is_json(kind: &str) -> bool {
    let kind = bare(kind);
    kind == JSON || (kind.starts_with("application/") && kind.ends_with("+json")) || kind == "*/*"
}

fn is_form(kind: &str) -> bool {
    bare(kind) == "application/x-www-form-urlencoded"
}

fn is_multipart(kind: &str) -> bool {
    bare(kind) == MULTIPART
}

fn is_text(kind: &str) -> bool {
    let kind = bare(kind);
    !kind.contains('*') && (kind.starts_with("text/") || kind == "application/xml" || kind.ends_with("+xml"))
}

/// Any other single type. Other bodies in parts have no names for them.
fn is_bytes(kind: &str) -> bool {
    let kind = bare(kind);
    kind.contains('/') && !kind.contains('*') && !kind.starts_with("multipart/") && !is_text(kind)
}

//! The form of an HTTP tool's request: what the operator wrote, with places for arguments.
//!
//! Pure. Scheme, host, port, header names and the number of path segments are fixed when the form is made; an
//! argument fills a path segment, a query value or a header value, and can never become more than that.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::ExposeSecret as _;

use super::origin::{self, Origin};
use crate::tools::arguments::{Arguments, Schema, plain};
use crate::tools::load::Mistakes;
use crate::tools::place::{Piece, Template};
use crate::tools::secret;
use crate::tools::settings;
use crate::units::Secret;

/// Everything but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// How often a path argument is decoded in search of what it may not be.
const MAX_DECODINGS: usize = 8;

/// Headers that belong to the connection, to the framing, or to fanfold.
const RESERVED: [&str; 15] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "accept-encoding",
    "idempotency-key",
    "x-request-id",
    "traceparent",
    "tracestate",
];

/// A request with places.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) method: Method,
    pub(super) origin: Origin,
    segments: Vec<Template>,
    query: Vec<Pair>,
    headers: Vec<(HeaderName, Head)>,
    /// Names of arguments that have a place.
    placed: HashSet<String>,
    /// Names of query members the operator wrote, decoded.
    taken: HashSet<String>,
}

#[derive(Debug)]
enum Pair {
    Fixed(String),
    Placed { name: String, value: Template },
}

enum Head {
    Fixed(HeaderValue),
    Placed(Template),
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Either may hold a secret.
        f.write_str("••••")
    }
}

/// A request without places.
#[derive(Debug, Clone)]
pub(super) struct Filled {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
}

impl Form {
    /// Reads what the operator wrote.
    pub(super) fn load(settings: &settings::Http, schema: &Schema, mistakes: &mut Mistakes) -> Option<Self> {
        let Some((origin, target)) = origin::split("http", &settings.url, mistakes) else {
            // The other mistakes are told all the same.
            mistakes.template(&["http", "url"], &settings.url, |name| schema.has(name));
            let mut form = Self::empty(settings.method, Origin::nowhere());
            form.add_headers(settings, schema, mistakes);
            return None;
        };
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let mut form = Self::empty(settings.method, origin);
        form.segments = segments(path, schema, mistakes);
        for part in query.into_iter().flat_map(|query| query.split('&')).filter(|part| !part.is_empty()) {
            form.add_query(part, schema, mistakes);
        }
        form.add_headers(settings, schema, mistakes);
        let placed = form.segments.iter().flat_map(Template::places).map(str::to_owned);
        form.placed.extend(placed.collect::<Vec<_>>());
        Some(form)
    }

    fn empty(method: settings::Method, origin: Origin) -> Self {
        Self {
            method: self::method(method),
            origin,
            segments: Vec::new(),
            query: Vec::new(),
            headers: Vec::new(),
            placed: HashSet::new(),
            taken: HashSet::new(),
        }
    }

    fn add_headers(&mut self, settings: &settings::Http, schema: &Schema, mistakes: &mut Mistakes) {
        for (name, value) in &settings.headers {
            self.add_header(name, value, schema, mistakes);
        }
    }

    fn add_query(&mut self, part: &str, schema: &Schema, mistakes: &mut Mistakes) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if name.contains(['{', '}']) {
            mistakes.add(&["http", "url"], "a place may stand for a query value, not for the name of one");
            return;
        }
        self.taken.insert(percent_decode_str(name).decode_utf8_lossy().into_owned());
        let Some(value) = mistakes.template(&["http", "url"], value, |name| schema.has(name)) else { return };
        let mut places = value.places().peekable();
        if places.peek().is_none() {
            drop(places);
            self.query.push(Pair::Fixed(part.into()));
            return;
        }
        self.placed.extend(places.map(str::to_owned));
        self.query.push(Pair::Placed { name: name.into(), value });
    }

    fn add_header(&mut self, name: &str, value: &Secret, schema: &Schema, mistakes: &mut Mistakes) {
        let at = ["http", "headers", name];
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            return mistakes.add(&at, "this is not a header name");
        };
        if RESERVED.contains(&header.as_str()) {
            return mistakes.add(&at, format!("`{header}` is set by fanfold and cannot be configured"));
        }
        let head = match value {
            Secret::Text(text) if text.contains(['{', '}']) => {
                let Some(template) = header_template(text, &at, schema, mistakes) else { return };
                self.placed.extend(template.places().map(str::to_owned));
                Head::Placed(template)
            }
            // What comes from a variable or a file is taken as it is: braces in it are not places.
            Secret::Text(_) | Secret::Env { .. } | Secret::File { .. } => match fixed(value) {
                Ok(value) => Head::Fixed(value),
                Err(message) => return mistakes.add(&at, message),
            },
        };
        self.headers.push((header, head));
    }

    /// The request for these arguments. The error is for the model.
    pub(super) fn fill(&self, arguments: &Arguments, schema: &Schema) -> Result<Filled, String> {
        if let Some(name) = schema.unnamed(arguments) {
            return Err(format!("{name:?} is not an argument of this tool"));
        }
        let mut target = String::new();
        for segment in &self.segments {
            target.push('/');
            target.push_str(&fill_segment(segment, arguments)?);
        }
        let mut pairs: Vec<String> = self.query.iter().flat_map(|pair| fill_pair(pair, arguments)).collect();
        let in_query = self.method == Method::GET || self.method == Method::HEAD;
        if in_query {
            for (name, json) in self.unplaced(arguments).filter(|(_, json)| *json != "null") {
                if self.taken.contains(name) {
                    return Err(format!("{name:?} is fixed by this tool and cannot be given"));
                }
                pairs.extend(repeated(&encode(name), json));
            }
        }
        if !pairs.is_empty() {
            target.push('?');
            target.push_str(&pairs.join("&"));
        }
        let scheme = if self.origin.secure { "https" } else { "http" };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(self.origin.authority.clone())
            .path_and_query(target)
            .build()
            .map_err(|_| "arguments are too long for a URL".to_owned())?;
        let body = if in_query { None } else { self.body(arguments) };
        Ok(Filled { uri, headers: self.fill_headers(arguments)?, body })
    }

    /// Arguments that have no place of their own.
    fn unplaced<'a>(&'a self, arguments: &'a Arguments) -> impl Iterator<Item = (&'a str, &'a str)> {
        arguments.iter().filter(|(name, _)| !self.placed.contains(*name))
    }

    /// An object of the arguments without a place, their text unchanged. DELETE without any has no body.
    fn body(&self, arguments: &Arguments) -> Option<Bytes> {
        let members: Vec<String> = self
            .unplaced(arguments)
            .map(|(name, json)| format!("{}:{json}", serde_json::Value::from(name)))
            .collect();
        if members.is_empty() && self.method == Method::DELETE {
            return None;
        }
        Some(format!("{{{}}}", members.join(",")).into())
    }

    fn fill_headers(&self, arguments: &Arguments) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, head) in &self.headers {
            let value = match head {
                Head::Fixed(value) => value.clone(),
                Head::Placed(template) => {
                    // A header whose argument was not given is not sent.
                    let Some(text) = fill_text(template, arguments) else { continue };
                    sensitive(&text).ok_or_else(|| {
                        format!("the value for the header {name} may have visible ASCII characters only")
                    })?
                }
            };
            headers.insert(name.clone(), value);
        }
        Ok(headers)
    }
}

fn method(method: settings::Method) -> Method {
    match method {
        settings::Method::Get => Method::GET,
        settings::Method::Head => Method::HEAD,
        settings::Method::Post => Method::POST,
        settings::Method::Put => Method::PUT,
        settings::Method::Patch => Method::PATCH,
        settings::Method::Delete => Method::DELETE,
    }
}

fn segments(path: &str, schema: &Schema, mistakes: &mut Mistakes) -> Vec<Template> {
    path.strip_prefix('/')
        .unwrap_or(path)
        .split('/')
        .filter_map(|segment| mistakes.template(&["http", "url"], segment, |name| schema.has(name)))
        .collect()
}

/// A header value with places. Its mistakes are told without its text: part of that may be a secret.
fn header_template(text: &str, at: &[&str], schema: &Schema, mistakes: &mut Mistakes) -> Option<Template> {
    const FIX: &str = "write a secret as { env: NAME } or { file: PATH }: there a brace is no place";
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(why) => {
            mistakes.add_with_fix(at, why.message(), FIX);
            return None;
        }
    };
    if template.places().any(|name| !schema.has(name)) {
        mistakes.add_with_fix(at, "a place in this value is not an argument of this tool", FIX);
        return None;
    }
    let literal = |piece: &Piece| match piece {
        Piece::Text(text) => visible(text),
        Piece::Place(_) => true,
    };
    if !template.pieces().iter().all(literal) {
        mistakes.add(at, "a header value consists of visible ASCII characters");
        return None;
    }
    Some(template)
}

/// A fixed header value.
fn fixed(value: &Secret) -> Result<HeaderValue, String> {
    let text = secret::open(value)?;
    sensitive(text.expose_secret())
        .ok_or_else(|| "a header value consists of visible ASCII characters".into())
}

/// A header value that debug output never shows.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok().filter(|_| visible(text))?;
    value.set_sensitive(true);
    Some(value)
}

fn visible(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// One path segment, encoded.
fn fill_segment(segment: &Template, arguments: &Arguments) -> Result<String, String> {
    let mut out = String::new();
    let mut places = false;
    for piece in segment.pieces() {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Place(name) => {
                places = true;
                let value = arguments.text(name).ok_or_else(|| {
                    format!("the argument {name:?} is missing; it is a part of the URL's path")
                })?;
                if let Some(why) = unfit_for_path(&value) {
                    return Err(format!("the argument {name:?} {why}; it is a part of the URL's path"));
                }
                out.push_str(&encode(&value));
            }
        }
    }
    if places && let Some(why) = unfit_for_path(&out) {
        return Err(format!("a part of the URL's path {why}"));
    }
    Ok(out)
}

/// Why a text may not be a segment of a path, in whatever form a server might decode it to.
fn unfit_for_path(text: &str) -> Option<&'static str> {
    let mut text = text.to_owned();
    for _ in 0..MAX_DECODINGS {
        match text.as_str() {
            "" => return Some("is empty"),
            "." | ".." => return Some("may not be \".\" or \"..\""),
            other if other.contains(['/', '\\']) => return Some("may not have a slash or backslash"),
            other if other.contains(char::is_control) => return Some("may not have control characters"),
            _ => {}
        }
        match percent_decode_str(&text).decode_utf8() {
            Ok(decoded) if decoded == text => return None,
            Ok(decoded) => text = decoded.into_owned(),
            Err(_) => return Some("is percent-encoded, and not as UTF-8"),
        }
    }
    Some("is percent-encoded too often")
}

/// A query member; none when one of its arguments was not given, several for a list.
fn fill_pair(pair: &Pair, arguments: &Arguments) -> Vec<String> {
    match pair {
        Pair::Fixed(text) => vec![text.clone()],
        Pair::Placed { name, value } => match value.sole_place() {
            Some(place) => arguments.json(place).map_or_else(Vec::new, |json| repeated(name, json)),
            None => {
                fill_encoded(value, arguments).map(|value| format!("{name}={value}")).into_iter().collect()
            }
        },
    }
}

/// `name=value`, once for each element of a list.
fn repeated(name: &str, json: &str) -> Vec<String> {
    let one = |json: &str| format!("{name}={}", encode(&plain(json)));
    match serde_json::from_str::<Vec<&serde_json::value::RawValue>>(json) {
        Ok(elements) => elements.into_iter().map(|element| one(element.get())).collect(),
        Err(_) => vec![one(json)],
    }
}

/// The operator's text as it is, arguments percent-encoded.
fn fill_encoded(template: &Template, arguments: &Arguments) -> Option<String> {
    fill_with(template, arguments, encode)
}

fn fill_text(template: &Template, arguments: &Arguments) -> Option<String> {
    fill_with(template, arguments, str::to_owned)
}

fn fill_with(template: &Template, arguments: &Arguments, put: impl Fn(&str) -> String) -> Option<String> {
    let mut out = String::new();
    for piece in template.pieces() {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Place(name) => out.push_str(&put(&arguments.text(name)?)),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;

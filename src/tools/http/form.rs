//! The form of an HTTP tool's request: what the operator wrote, with places for arguments.
//!
//! Pure. Scheme, host, port, header names and the number of path segments are fixed when the form is made; an
//! argument fills a path segment, a query value or a header value, and can never become more than that.

mod body;
mod cookie;
mod parts;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use hashbrown::HashSet;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};

use self::body::Body;
use self::cookie::Cookie;
use super::auth;
use super::origin::{self, Origin};
use super::written::{Pairs, encode, joined};
use crate::tools::arguments::{Arguments, Schema, plain};
use crate::tools::load::Mistakes;
use crate::tools::place::{Piece, Template};
use crate::tools::secret;
use crate::tools::settings::{self, Style};
use crate::units::Secret;

/// How often a path argument is decoded in search of what it may not be.
const MAX_DECODINGS: usize = 8;

/// Most targets fit into so many bytes.
const TARGET: usize = 128;

/// Headers that belong to the connection, to the framing, or to fanfold.
pub(in crate::tools) const RESERVED: [&str; 15] = [
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
    styles: BTreeMap<String, Style>,
    body: Body,
}

#[derive(Debug)]
enum Pair {
    Fixed(String),
    Hidden(SecretString),
    Placed { name: String, value: Template },
}

enum Head {
    Fixed(HeaderValue),
    Placed(Template),
    Cookies(Vec<Cookie>),
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
        if let Some(auth) = &settings.auth {
            form.add_auth(auth, mistakes);
        }
        let placed = form.segments.iter().flat_map(Template::places).map(str::to_owned);
        form.placed.extend(placed.collect::<Vec<_>>());
        form.body = form.read_body(settings, schema, mistakes);
        for name in settings.styles.keys().filter(|name| !schema.has(name)) {
            mistakes.add(&["http", "styles", name], format!("`{name}` is not an argument of this tool"));
        }
        form.styles.clone_from(&settings.styles);
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
            styles: BTreeMap::new(),
            body: Body::Json,
        }
    }

    fn add_auth(&mut self, settings: &settings::Auth, mistakes: &mut Mistakes) {
        match auth::open(settings, mistakes) {
            None => {}
            Some(auth::Auth::Header(name, value)) => {
                if RESERVED.contains(&name.as_str()) || self.headers.iter().any(|(known, _)| *known == name) {
                    let message = format!("`{name}` is set already, by fanfold or under `headers`");
                    return mistakes.add(&["http", "auth"], message);
                }
                self.headers.push((name, Head::Fixed(value)));
            }
            Some(auth::Auth::Query(name, pair)) => {
                if !self.taken.insert(name.clone()) {
                    return mistakes.add(&["http", "auth"], format!("`{name}` is in the URL already"));
                }
                self.query.push(Pair::Hidden(pair));
            }
        }
    }

    fn in_query(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
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
            Secret::Text(text) if header == header::COOKIE && text.contains(['{', '}']) => {
                let Some(cookies) = cookie::read(text, &at, schema, mistakes) else { return };
                self.placed.extend(cookie::places(&cookies).map(str::to_owned));
                Head::Cookies(cookies)
            }
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
    pub(super) fn fill(&self, arguments: &Arguments<'_>, schema: &Schema) -> Result<Filled, String> {
        if let Some(name) = schema.unnamed(arguments) {
            return Err(format!("{name:?} is not an argument of this tool"));
        }
        let mut target = String::with_capacity(TARGET);
        for segment in &self.segments {
            target.push('/');
            target.push_str(&self.fill_segment(segment, arguments)?);
        }
        let query = self.fill_query(arguments)?;
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query.into_text());
        }
        let target = PathAndQuery::from_maybe_shared(Bytes::from(target));
        let uri = self.origin.with(target.map_err(|_| "arguments are too long for a URL".to_owned())?);
        let mut headers = self.fill_headers(arguments)?;
        let body = self.fill_body(arguments, &mut headers)?;
        Ok(Filled { uri, headers, body })
    }

    fn fill_query(&self, arguments: &Arguments<'_>) -> Result<Pairs, String> {
        let mut pairs = Pairs::default();
        for pair in &self.query {
            self.fill_pair(pair, arguments, &mut pairs)?;
        }
        if self.in_query() {
            for (name, json) in self.unplaced(arguments).filter(|(_, json)| *json != "null") {
                if self.taken.contains(name) {
                    return Err(format!("{name:?} is fixed by this tool and cannot be given"));
                }
                pairs.argument(&encode(name), json, self.style(name), |name| self.is_taken(name))?;
            }
        }
        Ok(pairs)
    }

    fn style(&self, name: &str) -> Option<Style> {
        self.styles.get(name).copied()
    }

    /// Whether a member of an object may not become a member of the query or the form.
    fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name) || self.placed.contains(name)
    }

    /// A query member; none when one of its arguments was not given, several for a list.
    fn fill_pair(&self, pair: &Pair, arguments: &Arguments<'_>, pairs: &mut Pairs) -> Result<(), String> {
        match pair {
            Pair::Fixed(text) => pairs.add(text),
            Pair::Hidden(text) => pairs.add(text.expose_secret()),
            Pair::Placed { name, value } => match value.sole_place() {
                Some(place) => arguments.json(place).map_or(Ok(()), |json| {
                    pairs.argument(name, json, self.style(place), |name| self.is_taken(name))
                }),
                None => match fill_encoded(value, arguments) {
                    Some(value) => pairs.add(&format!("{name}={value}")),
                    None => Ok(()),
                },
            },
        }
    }

    /// Arguments that have no place of their own.
    fn unplaced<'a>(&'a self, arguments: &'a Arguments<'_>) -> impl Iterator<Item = (&'a str, &'a str)> {
        arguments.iter().filter(|(name, _)| !self.placed.contains(*name))
    }

    fn fill_headers(&self, arguments: &Arguments<'_>) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, head) in &self.headers {
            // A header whose argument was not given is not sent.
            let text = match head {
                Head::Fixed(value) => {
                    headers.insert(name.clone(), value.clone());
                    continue;
                }
                Head::Placed(template) => self.fill_header(template, arguments)?,
                Head::Cookies(cookies) => self.fill_cookies(cookies, arguments)?,
            };
            let Some(text) = text else { continue };
            let value = sensitive(&text).ok_or_else(|| {
                format!("the value for the header {name} may have visible ASCII characters only")
            })?;
            headers.insert(name.clone(), value);
        }
        Ok(headers)
    }

    fn fill_header(&self, template: &Template, arguments: &Arguments<'_>) -> Result<Option<String>, String> {
        let Some((place, style)) = template.sole_place().and_then(|p| Some((p, self.style(p)?))) else {
            return Ok(fill_with(template, arguments, str::to_owned));
        };
        let put = |value: &str| match value.contains(',') {
            true => {
                Err(format!("a part of the argument {place:?} has a comma, which stands between its parts"))
            }
            false => Ok(value.to_owned()),
        };
        arguments.json(place).map_or(Ok(None), |json| joined(json, style, put))
    }

    /// One path segment, encoded.
    fn fill_segment(&self, segment: &Template, arguments: &Arguments<'_>) -> Result<String, String> {
        let mut out = String::new();
        let mut places = false;
        for piece in segment.pieces() {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Place(name) => {
                    places = true;
                    out.push_str(&self.path_value(name, arguments)?);
                }
            }
        }
        if places && let Some(why) = unfit_for_path(&out) {
            return Err(format!("a part of the URL's path {why}"));
        }
        Ok(out)
    }

    fn path_value(&self, name: &str, arguments: &Arguments<'_>) -> Result<String, String> {
        let missing = || format!("the argument {name:?} is missing; it is a part of the URL's path");
        let put = |value: &str| match unfit_for_path(value) {
            Some(why) => Err(format!("the argument {name:?} {why}; it is a part of the URL's path")),
            None => Ok(encode(value)),
        };
        let json = arguments.json(name).ok_or_else(missing)?;
        match self.style(name) {
            None => put(&plain(json)),
            Some(style) => joined(json, style, put)?.ok_or_else(missing),
        }
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
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok().filter(|_| visible(text))?;
    value.set_sensitive(true);
    Some(value)
}

pub(super) fn visible(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
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

/// The operator's text as it is, arguments percent-encoded.
fn fill_encoded(template: &Template, arguments: &Arguments<'_>) -> Option<String> {
    fill_with(template, arguments, encode)
}

fn fill_with(template: &Template, arguments: &Arguments<'_>, put: impl Fn(&str) -> String) -> Option<String> {
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

//! What the body of a request is made of.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use super::super::written::{Pairs, encode};
use super::Form;
use super::parts::{File, Parts};
use crate::tools::arguments::{Arguments, Schema};
use crate::tools::load::Mistakes;
use crate::tools::settings;

/// The type of a form.
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
/// The type of a text.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What the body is made of.
#[derive(Debug)]
pub(super) enum Body {
    None,
    /// The arguments without a place, as a JSON object.
    Json,
    /// The arguments without a place, as a form.
    Form,
    /// The arguments without a place, in parts; the media types of those that are files.
    Parts(BTreeMap<String, HeaderValue>),
    /// The JSON of one argument.
    Whole(String),
    /// The text of one argument.
    Text(String),
    /// The file that one argument is, and its media type.
    File(String, HeaderValue),
}

impl Form {
    pub(super) fn read_body(
        &self,
        settings: &settings::Http,
        schema: &Schema,
        mistakes: &mut Mistakes,
    ) -> Body {
        let whole = settings.body_argument.as_ref();
        if self.in_query() {
            let given = [
                ("body", settings.body != settings::Body::Json),
                ("body_argument", whole.is_some()),
                ("files", !settings.files.is_empty()),
            ];
            for (key, _) in given.iter().filter(|(_, given)| *given) {
                mistakes.add(&["http", key], "a GET or HEAD has no body");
            }
            return Body::None;
        }
        let files = self.read_files(settings, schema, mistakes);
        let takes_files = matches!(settings.body, settings::Body::Multipart | settings::Body::Raw);
        if !takes_files && !settings.files.is_empty() {
            let message = "only a body that is `multipart` or `raw` has files";
            mistakes.add(&["http", "files"], message);
        }
        match (settings.body, whole) {
            (settings::Body::Json, None) => Body::Json,
            (settings::Body::Form, None) => Body::Form,
            (settings::Body::Multipart, None) => Body::Parts(files),
            (settings::Body::None, None) => {
                if let Some(message) = self.nowhere(None, schema) {
                    mistakes.add(&["http", "body"], message);
                }
                Body::None
            }
            (settings::Body::Raw, None) => {
                let fix = "add `body_argument: NAME`";
                mistakes.add_with_fix(&["http", "body"], "nothing says which argument the body is", fix);
                Body::None
            }
            (settings::Body::Json | settings::Body::Raw, Some(whole)) => {
                if !schema.has(whole) || self.placed.contains(whole) {
                    let message = format!("`{whole}` is not an argument of this tool without another place");
                    mistakes.add(&["http", "body_argument"], message);
                } else if let Some(message) = self.nowhere(Some(whole), schema) {
                    mistakes.add(&["http", "body_argument"], message);
                }
                match (settings.body, files.get(whole)) {
                    (settings::Body::Raw, Some(kind)) => Body::File(whole.clone(), kind.clone()),
                    (settings::Body::Raw, None) => Body::Text(whole.clone()),
                    _ => Body::Whole(whole.clone()),
                }
            }
            (settings::Body::Form | settings::Body::Multipart | settings::Body::None, Some(_)) => {
                let message = "only a body that is `json` or `raw` is the value of one argument";
                mistakes.add(&["http", "body_argument"], message);
                Body::None
            }
        }
    }

    /// An argument that would be lost.
    fn nowhere(&self, but: Option<&str>, schema: &Schema) -> Option<String> {
        let mut names: Vec<&str> =
            schema.names().filter(|name| !self.placed.contains(*name) && Some(*name) != but).collect();
        names.sort_unstable();
        names.first().map(|name| format!("the argument `{name}` goes nowhere: give it a place"))
    }

    fn read_files(
        &self,
        settings: &settings::Http,
        schema: &Schema,
        mistakes: &mut Mistakes,
    ) -> BTreeMap<String, HeaderValue> {
        let mut files = BTreeMap::new();
        for (name, kind) in &settings.files {
            if !schema.has(name) || self.placed.contains(name) {
                let message = format!("`{name}` is not an argument of this tool without another place");
                mistakes.add(&["http", "files", name], message);
            }
            match HeaderValue::from_str(kind).ok().filter(|_| kind.contains('/')) {
                Some(kind) => drop(files.insert(name.clone(), kind)),
                None => mistakes.add(&["http", "files", name], format!("`{kind}` is not a media type")),
            }
        }
        files
    }

    /// The body for these arguments; its type goes into the headers.
    pub(super) fn fill_body(
        &self,
        arguments: &Arguments<'_>,
        headers: &mut HeaderMap,
    ) -> Result<Option<Bytes>, String> {
        let mut usually = |kind: &HeaderValue| {
            headers.entry(header::CONTENT_TYPE).or_insert_with(|| kind.clone());
        };
        match &self.body {
            Body::None => Ok(None),
            Body::Json => Ok(self.json_body(arguments)),
            Body::Whole(name) => Ok(arguments.json(name).map(|json| json.to_owned().into())),
            Body::Form => {
                let mut pairs = Pairs::default();
                for (name, json) in self.unplaced(arguments).filter(|(_, json)| *json != "null") {
                    pairs.argument(&encode(name), json, self.style(name), |name| self.is_taken(name))?;
                }
                usually(&FORM);
                Ok(Some(pairs.into_text().into()))
            }
            Body::Parts(files) => {
                let mut parts = Parts::default();
                for (name, json) in self.unplaced(arguments).filter(|(_, json)| *json != "null") {
                    match files.get(name) {
                        Some(kind) => parts.files(name, json, kind.to_str().unwrap_or_default())?,
                        None => parts.value(name, json),
                    }
                }
                let (kind, body) = parts.into_body();
                // Without its mark nobody could read the body, so this one is not the operator's to say.
                if let Ok(kind) = HeaderValue::from_str(&kind) {
                    headers.insert(header::CONTENT_TYPE, kind);
                }
                Ok(Some(body.into()))
            }
            Body::Text(name) => Ok(arguments.text(name).map(|text| {
                usually(&TEXT);
                text.into_owned().into()
            })),
            Body::File(name, kind) => match arguments.json(name) {
                Some(json) => {
                    let file = File::read(name, json)?;
                    usually(kind);
                    Ok(Some(file.bytes.into()))
                }
                None => Ok(None),
            },
        }
    }

    /// An object of the arguments without a place, their text unchanged. DELETE without any has no body.
    fn json_body(&self, arguments: &Arguments<'_>) -> Option<Bytes> {
        let members: Vec<String> = self
            .unplaced(arguments)
            .map(|(name, json)| format!("{}:{json}", serde_json::Value::from(name)))
            .collect();
        if members.is_empty() && self.method == Method::DELETE {
            return None;
        }
        Some(format!("{{{}}}", members.join(",")).into())
    }
}

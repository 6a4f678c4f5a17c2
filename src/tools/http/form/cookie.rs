//! The `cookie` header: several members in one value, each there only if its arguments are.
//!
//! Pure. What fills a place is percent-encoded, so it can never become another cookie or a part of one.

use super::super::written::{encode, joined};
use super::{Form, fill_encoded, header_template};
use crate::tools::arguments::{Arguments, Schema};
use crate::tools::load::Mistakes;
use crate::tools::place::Template;

/// One cookie, with places in its value.
pub(super) struct Cookie {
    name: String,
    value: Template,
}

/// Reads `name=value; name={argument}`.
pub(super) fn read(text: &str, at: &[&str], schema: &Schema, mistakes: &mut Mistakes) -> Option<Vec<Cookie>> {
    let mut cookies = Vec::new();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if name.contains(['{', '}']) {
            mistakes.add(at, "a place may stand for the value of a cookie, not for the name of one");
            return None;
        }
        cookies.push(Cookie { name: name.into(), value: header_template(value, at, schema, mistakes)? });
    }
    Some(cookies)
}

/// The names of the arguments in them.
pub(super) fn places(cookies: &[Cookie]) -> impl Iterator<Item = &str> {
    cookies.iter().flat_map(|cookie| cookie.value.places())
}

impl Form {
    /// The header's value. `None`: none of them is given.
    pub(super) fn fill_cookies(
        &self,
        cookies: &[Cookie],
        arguments: &Arguments<'_>,
    ) -> Result<Option<String>, String> {
        let mut given = Vec::new();
        for cookie in cookies {
            let styled = cookie.value.sole_place().and_then(|place| Some((place, self.style(place)?)));
            let value = match styled {
                Some((place, style)) => match arguments.json(place) {
                    Some(json) => joined(json, style, |value| Ok(encode(value)))?,
                    None => None,
                },
                None => fill_encoded(&cookie.value, arguments),
            };
            given.extend(value.map(|value| format!("{}={value}", cookie.name)));
        }
        Ok((!given.is_empty()).then(|| given.join("; ")))
    }
}

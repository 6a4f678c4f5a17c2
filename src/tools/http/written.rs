//! How a value is written where there is no JSON: in a query, a form, a path segment, a header.
//!
//! Pure. Names and values are percent-encoded one by one, so what a value holds can never be read as another
//! member. What is written is bounded while it is being written, because nested names repeat.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::value::RawValue;

use crate::tools::arguments::{begins_with, members, plain};
use crate::tools::settings::Style;

/// Everything but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The most bytes of a query or a form.
const MAX_WRITTEN: usize = 4 * 1024 * 1024;

/// A text as a part of a URL.
pub(super) fn encode(text: &str) -> String {
    Cow::from(utf8_percent_encode(text, ENCODED)).into_owned()
}

/// The members of a query or a form, as they are written one after the other.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    text: String,
}

impl Pairs {
    /// Adds something that is encoded already.
    pub(super) fn add(&mut self, pair: &str) -> Result<(), String> {
        self.make_room(pair.len())?;
        self.text.push_str(pair);
        Ok(())
    }

    /// Ends what was written before. The error is for the model.
    fn make_room(&mut self, more: usize) -> Result<(), String> {
        if self.text.len() + more > MAX_WRITTEN {
            return Err(too_long());
        }
        if !self.text.is_empty() {
            self.text.push('&');
        }
        self.text.reserve(more);
        Ok(())
    }

    /// Adds an argument. `name` is what it is called here, encoded; `taken` tells which names an object's members
    /// may not have.
    pub(super) fn argument(
        &mut self,
        name: &str,
        json: &str,
        style: Option<Style>,
        taken: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        match style {
            None => match elements(json) {
                Some(elements) => elements.iter().try_for_each(|element| self.pair(name, element.get())),
                None => self.pair(name, json),
            },
            Some(Style::Brackets) => self.nested(name, json),
            Some(Style::Spread) => self.spread(name, json, taken),
            Some(style @ (Style::Commas | Style::Spaces | Style::Pipes | Style::Equals)) => {
                match joined(json, style, |value| Ok(encode(value)))? {
                    // An empty list has no form in which it could be told from a list of one empty text.
                    Some(value) => self.add(&format!("{name}={value}")),
                    None => Ok(()),
                }
            }
        }
    }

    fn pair(&mut self, name: &str, json: &str) -> Result<(), String> {
        let value = plain(json);
        self.make_room(name.len() + "=".len() + value.len())?;
        self.text.push_str(name);
        self.text.push('=');
        self.text.extend(utf8_percent_encode(&value, ENCODED));
        // Three bytes may stand for one.
        if self.text.len() > MAX_WRITTEN { Err(too_long()) } else { Ok(()) }
    }

    fn spread(&mut self, name: &str, json: &str, taken: impl Fn(&str) -> bool) -> Result<(), String> {
        let Some(members) = members(json) else { return self.pair(name, json) };
        for (name, value) in members {
            if taken(&name) {
                return Err(format!(
                    "{name:?} is a member of its own in this tool and cannot be given in an object"
                ));
            }
            if value.get() != "null" {
                self.pair(&encode(&name), value.get())?;
            }
        }
        Ok(())
    }

    fn nested(&mut self, name: &str, json: &str) -> Result<(), String> {
        if let Some(members) = members(json) {
            let mut given = members.iter().filter(|(_, value)| value.get() != "null");
            return given
                .try_for_each(|(inner, value)| self.nested(&longer(name, &encode(inner))?, value.get()));
        }
        match elements(json) {
            Some(elements) => {
                let mut numbered = elements.iter().enumerate();
                numbered
                    .try_for_each(|(at, element)| self.nested(&longer(name, &at.to_string())?, element.get()))
            }
            None => self.pair(name, json),
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// All of them.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

fn too_long() -> String {
    format!("arguments become longer than {} MiB when written out", MAX_WRITTEN >> 20)
}

/// `name[inner]`, the brackets encoded.
fn longer(name: &str, inner: &str) -> Result<String, String> {
    if name.len() + inner.len() > MAX_WRITTEN {
        return Err("the names in an argument are too long".into());
    }
    Ok(format!("{name}%5B{inner}%5D"))
}

/// A value in one piece: the elements of a list or the members of an object, each put as `put` puts it, with the
/// style's mark between them. `None` when there is none.
pub(super) fn joined(
    json: &str,
    style: Style,
    put: impl Fn(&str) -> Result<String, String>,
) -> Result<Option<String>, String> {
    let mark = match style {
        Style::Spaces => "%20",
        Style::Pipes => "%7C",
        Style::Commas | Style::Equals | Style::Spread | Style::Brackets => ",",
    };
    let mut parts = Vec::new();
    if let Some(members) = members(json) {
        for (name, value) in members.iter().filter(|(_, value)| value.get() != "null") {
            let (name, value) = (put(name)?, put(&plain(value.get()))?);
            parts.push(if style == Style::Equals {
                format!("{name}={value}")
            } else {
                format!("{name}{mark}{value}")
            });
        }
    } else if let Some(elements) = elements(json) {
        for element in elements {
            parts.push(put(&plain(element.get()))?);
        }
    } else {
        parts.push(put(&plain(json))?);
    }
    Ok((!parts.is_empty()).then(|| parts.join(mark)))
}

fn elements(json: &str) -> Option<Vec<&RawValue>> {
    if !begins_with(json, b'[') {
        return None;
    }
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str, style: Option<Style>) -> String {
        let mut pairs = Pairs::default();
        pairs.argument("a", json, style, |name| name == "key").unwrap();
        pairs.into_text()
    }

    #[test]
    fn each_style_is_written_as_openapi_has_it() {
        let (list, object) = (r#"["x,y",1.10,"é"]"#, r#"{"r":1,"g":"&","n":null}"#);
        for (style, of_list, of_object) in [
            (None, "a=x%2Cy&a=1.10&a=%C3%A9", "a=%7B%22r%22%3A1%2C%22g%22%3A%22%26%22%2C%22n%22%3Anull%7D"),
            (Some(Style::Commas), "a=x%2Cy,1.10,%C3%A9", "a=r,1,g,%26"),
            (Some(Style::Spaces), "a=x%2Cy%201.10%20%C3%A9", "a=r%201%20g%20%26"),
            (Some(Style::Pipes), "a=x%2Cy%7C1.10%7C%C3%A9", "a=r%7C1%7Cg%7C%26"),
            (Some(Style::Equals), "a=x%2Cy,1.10,%C3%A9", "a=r=1,g=%26"),
            (Some(Style::Spread), "a=%5B%22x%2Cy%22%2C1.10%2C%22%C3%A9%22%5D", "r=1&g=%26"),
            (
                Some(Style::Brackets),
                "a%5B0%5D=x%2Cy&a%5B1%5D=1.10&a%5B2%5D=%C3%A9",
                "a%5Br%5D=1&a%5Bg%5D=%26",
            ),
        ] {
            assert_eq!(written(list, style), of_list, "{style:?}");
            assert_eq!(written(object, style), of_object, "{style:?}");
            assert_eq!(written("\"x y\"", style), "a=x%20y", "{style:?}");
        }
        assert_eq!(written("[]", Some(Style::Commas)), "");
        assert_eq!(
            written(r#"{"b":{"c":[1,{"d":2}]}}"#, Some(Style::Brackets)),
            "a%5Bb%5D%5Bc%5D%5B0%5D=1&a%5Bb%5D%5Bc%5D%5B1%5D%5Bd%5D=2"
        );
    }

    #[test]
    fn no_name_in_an_object_becomes_a_member_it_may_not_be() {
        let hostile = r#"{"x]=1&key":"1"}"#;
        assert_eq!(written(hostile, Some(Style::Brackets)), "a%5Bx%5D%3D1%26key%5D=1");
        assert_eq!(written(hostile, Some(Style::Spread)), "x%5D%3D1%26key=1");
        let mut pairs = Pairs::default();
        let refused = pairs.argument("a", r#"{"key":"1"}"#, Some(Style::Spread), |name| name == "key");
        assert!(refused.unwrap_err().contains("\"key\""));
    }

    #[test]
    fn what_grows_while_it_is_written_is_bounded() {
        let name = "n".repeat(400_000);
        let many = vec!["1"; 20].join(",");
        let nested = format!(r#"{{"{name}":[{many}]}}"#);
        let mut pairs = Pairs::default();
        let refused = pairs.argument("a", &nested, Some(Style::Brackets), |_| false).unwrap_err();
        assert!(refused.contains("4 MiB"), "{refused}");
        let mut pairs = Pairs::default();
        pairs.add(&"x".repeat(MAX_WRITTEN)).unwrap();
        assert!(pairs.add("x").is_err());
        assert!(Pairs::default().add(&"x".repeat(MAX_WRITTEN + 1)).is_err());
    }

    #[test]
    fn a_name_grows_to_the_bound_and_no_further() {
        let name = "n".repeat(MAX_WRITTEN - 2);
        assert_eq!(longer(&name, "ab"), Ok(format!("{name}%5Bab%5D")));
        for too_long in ["abc", "abcd"] {
            assert!(longer(&name, too_long).is_err());
        }
    }
}

//! Reads JSON with serde_json, which says what is wrong and where, and takes any depth.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::raw::ReadError;

/// As [`raw::each_member`](super::raw::each_member).
pub(super) fn each_member<'a>(
    text: &'a str,
    visit: impl FnMut(&'a str, &'a str) -> bool,
) -> Result<(), ReadError> {
    struct Each<F>(F);
    impl<'de, F: FnMut(&'de str, &'de str) -> bool> Visitor<'de> for Each<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            let mut wanted = true;
            while let Some(name) = map.next_key::<&RawValue>()? {
                if wanted {
                    wanted = (self.0)(name.get(), map.next_value::<&RawValue>()?.get());
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    reader.deserialize_map(Each(visit)).and_then(|()| reader.end()).map_err(ReadError::json)
}

/// As [`raw::each_element`](super::raw::each_element).
pub(super) fn each_element<'a>(text: &'a str, visit: impl FnMut(&'a str) -> bool) -> Result<(), ReadError> {
    struct Each<F>(F);
    impl<'de, F: FnMut(&'de str) -> bool> Visitor<'de> for Each<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            let mut wanted = true;
            while let Some(element) = seq.next_element::<&RawValue>()? {
                wanted = wanted && (self.0)(element.get());
            }
            Ok(())
        }
    }
    impl<'de, F: FnMut(&'de str) -> bool> DeserializeSeed<'de> for Each<F> {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
            d.deserialize_seq(self)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    Each(visit).deserialize(&mut reader).and_then(|()| reader.end()).map_err(ReadError::json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::raw;

    type Seen = (Vec<(String, String)>, Result<(), ReadError>);

    fn members(text: &str, most: usize, careful: bool) -> Seen {
        let mut seen = Vec::new();
        let visit = |name: &str, value: &str| {
            seen.push((name.to_owned(), value.to_owned()));
            seen.len() < most
        };
        let read = if careful { each_member(text, visit) } else { raw::each_member(text.as_bytes(), visit) };
        (seen, read)
    }

    fn elements(text: &str, most: usize, careful: bool) -> Seen {
        let mut seen = Vec::new();
        let visit = |value: &str| {
            seen.push((String::new(), value.to_owned()));
            seen.len() < most
        };
        let read =
            if careful { each_element(text, visit) } else { raw::each_element(text.as_bytes(), visit) };
        (seen, read)
    }

    #[test]
    fn who_reads_fast_sees_the_same_and_refuses_the_same() {
        let deep = format!("{}1{}", "[".repeat(90), "]".repeat(90));
        let objects = [
            r#" {"a":1,"b" : [1, {"c":"\u00e9"}],"a":null,"\u0061":"x"} "#.to_owned(),
            format!(r#"{{"a":1,"deep":{deep},"b":[{deep}],"c":2}}"#),
            r#"{"a":01,"b":2}"#.to_owned(),
        ];
        for text in &objects {
            for cut in 0..=text.len() {
                for most in 1..4 {
                    assert_eq!(
                        members(&text[..cut], most, false),
                        members(&text[..cut], most, true),
                        "{text} {cut}"
                    );
                    let list = text[..cut].replace(['{', '}'], "").replace("\":", "\",");
                    let list = format!("[{list}]");
                    assert_eq!(elements(&list, most, false), elements(&list, most, true), "{list}");
                }
            }
        }
    }
}

//! A body in parts (`multipart/form-data`), and files in it or as the whole body.
//!
//! Pure. The mark between the parts is a digest of all of them, so no part can hold it. A file is told as JSON tells
//! things: its text, or its bytes in base64.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::unfit_for_path;
use crate::tools::arguments::{members, plain};

/// The longest name of a file.
const MAX_NAME: usize = 255;
/// With or without padding: models write both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A file, as an argument tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: Option<String>,
    pub(super) bytes: Vec<u8>,
}

impl File {
    /// Reads `{text}`, `{base64}`, either with a `filename`, or a mere text. The error is for the model.
    pub(super) fn read(argument: &str, json: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Told {
            text: Option<String>,
            base64: Option<String>,
            filename: Option<String>,
        }
        if let Ok(text) = serde_json::from_str::<String>(json) {
            return Ok(Self { name: None, bytes: text.into_bytes() });
        }
        let told: Told = serde_json::from_str(json)
            .map_err(|_| format!("the argument {argument:?} is a file: give its `text` or its `base64`"))?;
        if let Some(why) = told.filename.as_deref().and_then(unfit_name) {
            return Err(format!("the `filename` of the argument {argument:?} {why}"));
        }
        let bytes = match (told.text, told.base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => BASE64
                .decode(text.trim())
                .map_err(|_| format!("the `base64` of the argument {argument:?} is none"))?,
            (Some(_), Some(_)) | (None, None) => {
                return Err(format!("the argument {argument:?} is a file: give its `text` or its `base64`"));
            }
        };
        Ok(Self { name: told.filename, bytes })
    }
}

/// A server may take the name for that of a file of its own.
fn unfit_name(name: &str) -> Option<&'static str> {
    if name.len() > MAX_NAME { Some("is too long") } else { unfit_for_path(name) }
}

/// Parts, as they are collected.
#[derive(Debug, Default)]
pub(super) struct Parts {
    parts: Vec<(String, Vec<u8>)>,
}

impl Parts {
    /// Adds an argument that is no file: a list is repeated, an object is JSON.
    pub(super) fn value(&mut self, name: &str, json: &str) {
        if let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(json) {
            return elements.into_iter().for_each(|element| self.one(name, element.get()));
        }
        self.one(name, json);
    }

    fn one(&mut self, name: &str, json: &str) {
        let structured = members(json).is_some() || json.starts_with('[');
        let kind = if structured { "content-type: application/json\r\n" } else { "" };
        self.add(name, "", kind, plain(json).into_owned().into_bytes());
    }

    /// Adds a file, or a list of them.
    pub(super) fn files(&mut self, name: &str, json: &str, kind: &str) -> Result<(), String> {
        let files = match serde_json::from_str::<Vec<&RawValue>>(json) {
            Ok(elements) => elements.into_iter().map(|element| File::read(name, element.get())).collect(),
            Err(_) => File::read(name, json).map(|file| vec![file]),
        };
        for file in files? {
            let called = format!("; filename=\"{}\"", quoted(file.name.as_deref().unwrap_or(name)));
            self.add(name, &called, &format!("content-type: {kind}\r\n"), file.bytes);
        }
        Ok(())
    }

    fn add(&mut self, name: &str, more: &str, kind: &str, bytes: Vec<u8>) {
        let head = format!("content-disposition: form-data; name=\"{}\"{more}\r\n{kind}", quoted(name));
        self.parts.push((head, bytes));
    }

    /// The body, and its type.
    pub(super) fn into_body(self) -> (String, Vec<u8>) {
        let mut digest = Sha256::new();
        for (head, bytes) in &self.parts {
            digest.update(head.as_bytes());
            digest.update((bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        }
        let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let mark = format!("fanfold-{digest}");
        let mut body = Vec::new();
        for (head, bytes) in &self.parts {
            body.extend_from_slice(format!("--{mark}\r\n{head}\r\n").as_bytes());
            body.extend_from_slice(bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{mark}--\r\n").as_bytes());
        (format!("multipart/form-data; boundary={mark}"), body)
    }
}

/// A name within quotation marks, as browsers write it.
fn quoted(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '"' => out.push_str("%22"),
            '\r' => out.push_str("%0D"),
            '\n' => out.push_str("%0A"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_text_or_its_bytes_and_has_a_harmless_name() {
        let file = |json: &str| File::read("f", json);
        let of =
            |name: Option<&str>, bytes: &[u8]| Ok(File { name: name.map(Into::into), bytes: bytes.into() });
        assert_eq!(file(r#""hi""#), of(None, b"hi"));
        assert_eq!(file(r#"{"text":"hi","filename":"a b.txt"}"#), of(Some("a b.txt"), b"hi"));
        assert_eq!(file(r#"{"base64":"AP8="}"#), of(None, &[0, 255]));
        assert_eq!(file(r#"{"base64":"AP8"}"#), of(None, &[0, 255]));
        for broken in [
            "7",
            "{}",
            "[]",
            r#"{"text":"a","base64":"AP8="}"#,
            r#"{"base64":"a b"}"#,
            r#"{"base64":"-_8="}"#,
            r#"{"text":"a","type":"x"}"#,
            r#"{"text":"a","filename":"../x"}"#,
            r#"{"text":"a","filename":"..%2fx"}"#,
            r#"{"text":"a","filename":""}"#,
            r#"{"text":"a","filename":"a\r\nx: y"}"#,
        ] {
            assert!(file(broken).is_err(), "{broken}");
        }
        let named = |length| file(&format!(r#"{{"text":"a","filename":"{}"}}"#, "n".repeat(length)));
        assert!(named(255).is_ok() && named(256).is_err() && named(257).is_err());
    }

    #[test]
    fn a_name_cannot_end_its_line_or_its_quotation_marks() {
        assert_eq!(quoted("a\"b\r\nc%"), "a%22b%0D%0Ac%");
    }

    #[test]
    fn a_list_of_files_is_one_part_for_each_and_one_that_is_none_is_refused() {
        let mut parts = Parts::default();
        parts.files("f", r#"["one",{"text":"two","filename":"n"}]"#, "a/b").unwrap();
        assert!(parts.files("f", r#"["one",7]"#, "a/b").is_err());
        let (_, body) = parts.into_body();
        let body = String::from_utf8(body).unwrap();
        for once in ["\r\none\r\n", "\r\ntwo\r\n", "filename=\"f\"", "filename=\"n\""] {
            assert_eq!(body.matches(once).count(), 1, "{once}: {body}");
        }
    }

    #[test]
    fn parts_are_written_as_browsers_do_and_none_can_hold_the_mark() {
        let mut parts = Parts::default();
        parts.value("a\"b", "1.10");
        parts.value("list", r#"["x","y"]"#);
        parts.value("object", r#"{"n":1.10}"#);
        parts.files("f", r#"{"text":"t","filename":"a\"b"}"#, "text/csv").unwrap();
        let (kind, body) = parts.into_body();
        let mark = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
        let body = String::from_utf8(body).unwrap().replace(mark, "M").replace("\r\n", "\n");
        assert_eq!(
            body,
            "--M\ncontent-disposition: form-data; name=\"a%22b\"\n\n1.10\n\
             --M\ncontent-disposition: form-data; name=\"list\"\n\nx\n\
             --M\ncontent-disposition: form-data; name=\"list\"\n\ny\n\
             --M\ncontent-disposition: form-data; name=\"object\"\ncontent-type: application/json\n\n{\"n\":1.10}\n\
             --M\ncontent-disposition: form-data; name=\"f\"; filename=\"a%22b\"\ncontent-type: text/csv\n\nt\n--M--\n"
        );
        // Who knows the mark of one body and writes it into another gets another mark.
        let mut other = Parts::default();
        other.value("x", &serde_json::Value::from(format!("\r\n--{mark}--\r\n")).to_string());
        let (kind, body) = other.into_body();
        let new = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
        assert_ne!(new, mark);
        assert_eq!(String::from_utf8(body).unwrap().matches(new).count(), 2);
    }
}

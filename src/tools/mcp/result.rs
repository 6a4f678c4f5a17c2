//! What the model reads of a server's result: one text.
//!
//! Pure. The parts follow each other, one line apart:
//!
//! | part | becomes |
//! |---|---|
//! | text | itself |
//! | image, audio | `[image, image/png, 1234 bytes]`: the bytes are never pasted |
//! | resource link | `[resource NAME: URI]`, with its description |
//! | embedded resource | its text under `[resource URI]`, or for bytes a description as of an image |
//! | structured content | its JSON, unless a text part already is that JSON |
//!
//! Nothing at all is `(empty)`. What is too long is cut, with a mark that tells the whole length. A result that calls
//! itself an error is one.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value;

use crate::tools::text::{Full, cut, tame};
use crate::wire::tool::{Outcome, OutcomeKind};

/// Room for the word that marks an error.
const ERROR: &str = "error: ";
/// The most bytes of a name, an address or a type inside of brackets.
const SHORT: usize = 300;

/// The outcome of a call that was answered.
pub(super) fn outcome(result: &CallToolResult, limit: usize) -> Outcome {
    let text = text(result);
    let full = Full::Exactly(text.len() as u64);
    if result.is_error == Some(true) {
        return Outcome::failed(OutcomeKind::Error, &cut(text, limit.saturating_sub(ERROR.len()), full));
    }
    Outcome::ok(cut(text, limit, full))
}

fn text(result: &CallToolResult) -> String {
    let mut parts: Vec<String> = result.content.iter().map(part).filter(|part| !part.is_empty()).collect();
    if let Some(structured) = result.structured_content.as_ref().filter(|value| !said(&result.content, value))
    {
        parts.push(structured.to_string());
    }
    if parts.is_empty() { "(empty)".into() } else { parts.join("\n") }
}

/// Whether a text part is this very JSON.
fn said(content: &[ContentBlock], structured: &Value) -> bool {
    content.iter().any(|block| {
        matches!(block, ContentBlock::Text(text)
            if serde_json::from_str::<Value>(&text.text).is_ok_and(|value| value == *structured))
    })
}

fn part(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => bytes("image", Some(&image.mime_type), &image.data, None),
        ContentBlock::Audio(audio) => bytes("audio", Some(&audio.mime_type), &audio.data, None),
        ContentBlock::ResourceLink(link) => {
            let about = link.description.as_ref().map(|text| format!(" ({})", tame(text, SHORT)));
            format!(
                "[resource {}: {}{}]",
                tame(&link.name, SHORT),
                tame(&link.uri, SHORT),
                about.unwrap_or_default()
            )
        }
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => {
                format!("[resource {}]\n{text}", tame(uri, SHORT))
            }
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                bytes("resource", mime_type.as_deref(), blob, Some(uri))
            }
            _ => "[a resource of an unknown kind]".into(),
        },
        _ => "[a part of an unknown kind]".into(),
    }
}

/// What stands for base64 text.
fn bytes(what: &str, kind: Option<&str>, base64: &str, uri: Option<&str>) -> String {
    let padding = base64.bytes().rev().take_while(|byte| *byte == b'=').count();
    let length = (base64.len() / 4 * 3).saturating_sub(padding);
    let kind = tame(kind.unwrap_or("binary data"), 80);
    let uri = uri.map(|uri| format!(" {}", tame(uri, SHORT))).unwrap_or_default();
    format!("[{what}{uri}, {kind}, {length} bytes]")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(result: Value, limit: usize) -> Outcome {
        outcome(&serde_json::from_value(result).unwrap(), limit)
    }

    #[test]
    fn every_kind_of_part_becomes_text_and_bytes_are_never_pasted() {
        let got = read(
            json!({ "content": [
                { "type": "text", "text": "žluť" },
                { "type": "image", "data": "AAECAw==", "mimeType": "image/png" },
                { "type": "audio", "data": "AAEC", "mimeType": "audio/wav" },
                { "type": "resource_link", "uri": "file:///a", "name": "a", "description": "the\nfirst" },
                { "type": "resource", "resource": { "uri": "file:///b", "text": "inside" } },
                { "type": "resource", "resource": { "uri": "file:///c", "blob": "AAEC", "mimeType": "x/y" } },
            ] }),
            4096,
        );
        let wanted = "žluť\n[image, image/png, 4 bytes]\n[audio, audio/wav, 3 bytes]\n\
            [resource a: file:///a (the first)]\n[resource file:///b]\ninside\n[resource file:///c, x/y, 3 bytes]";
        assert_eq!(got, Outcome::ok(wanted));
    }

    #[test]
    fn structured_content_is_said_once() {
        let twice = json!({ "content": [{ "type": "text", "text": "{\"b\": 1, \"a\": 2}" }], "structuredContent": { "b": 1, "a": 2 } });
        assert_eq!(read(twice, 4096), Outcome::ok("{\"b\": 1, \"a\": 2}"));
        let beside = json!({ "content": [{ "type": "text", "text": "two" }], "structuredContent": { "b": 1, "a": 2 } });
        assert_eq!(read(beside, 4096), Outcome::ok("two\n{\"b\":1,\"a\":2}"));
        assert_eq!(read(json!({ "structuredContent": [1] }), 4096), Outcome::ok("[1]"));
        assert_eq!(read(json!({ "content": [] }), 4096), Outcome::ok("(empty)"));
    }

    #[test]
    fn an_error_is_one_and_what_is_too_long_is_cut() {
        let failed = json!({ "content": [{ "type": "text", "text": "no such file" }], "isError": true });
        assert_eq!(read(failed, 4096), Outcome::failed(OutcomeKind::Error, "no such file"));
        for error in [true, false] {
            let long = json!({ "content": [{ "type": "text", "text": "ž".repeat(5000) }], "isError": error });
            let got = read(long, 1000).content;
            assert!(got.len() <= 1000 && got.contains("of 10000 bytes]"), "{} {got}", got.len());
        }
    }
}

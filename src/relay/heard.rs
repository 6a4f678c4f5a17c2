//! What is kept of a reply that went through: its end, without secrets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::runs::Text;
use crate::telemetry::redact::Redact;

/// At most `most` bytes of the end of what the upstream said.
///
/// It is kept as it came. Only where a secret came in pieces, what the pieces say together is kept instead.
pub(super) fn kept(said: &[u8], most: usize, redact: &Redact) -> Text {
    let from = said.len().saturating_sub(Redact::gathered(most));
    let came = String::from_utf8_lossy(&said[from..]);
    let joined = joined(&came);
    let in_pieces = matches!(redact.text(&joined), Cow::Owned(_));
    let (text, bytes) = redact.end(if in_pieces { &joined } else { &came }, most, from);
    Text { text, bytes }
}

/// What the chunks of a stream say, each member of each choice for itself; empty if it is no stream.
fn joined(came: &str) -> String {
    let mut all = BTreeMap::new();
    for data in came.lines().filter_map(|line| line.strip_prefix("data:")) {
        let Ok(chunk) = serde_json::from_str::<Value>(data) else { continue };
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            collect(&choice["delta"], &choice["index"].to_string(), &mut all);
        }
    }
    let said: Vec<String> = all.into_values().collect();
    said.join("\n")
}

fn collect(value: &Value, path: &str, all: &mut BTreeMap<String, String>) {
    match value {
        Value::String(text) => all.entry(path.to_owned()).or_default().push_str(text),
        Value::Array(list) => {
            list.iter().for_each(|one| collect(one, &format!("{path}.{}", one["index"]), all))
        }
        Value::Object(members) => {
            let told = members.iter().filter(|(name, _)| !matches!(name.as_str(), "role" | "id" | "type"));
            told.for_each(|(name, one)| collect(one, &format!("{path}.{name}"), all));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stream(deltas: &[Value]) -> String {
        let chunk =
            |delta: &Value| format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": delta }] }));
        deltas.iter().map(chunk).chain(["data: [DONE]\n\n".to_owned()]).collect()
    }

    fn of(said: &str, most: usize) -> String {
        kept(said.as_bytes(), most, &Redact::new(&Default::default()).unwrap()).text
    }

    #[test]
    fn a_reply_without_secrets_is_kept_as_it_came() {
        let said = stream(&[json!({ "role": "assistant", "content": "he" }), json!({ "content": "llo" })]);
        assert_eq!(of(&said, 10_000), said);
        assert_eq!(of(&said, 8), "[DONE]\n\n");
        let whole = r#"{"choices":[{"message":{"content":"sk-0123456789abcdef0"}}]}"#;
        assert_eq!(of(whole, 10_000), whole.replace("sk-0123456789abcdef0", "••••"));
    }

    #[test]
    fn a_secret_that_came_in_pieces_is_not_kept() {
        let call = |arguments: &str| json!({ "tool_calls": [{ "index": 1, "function": { "arguments": arguments } }] });
        let said = stream(&[
            json!({ "role": "assistant", "content": "it is sk-01234567" }),
            call("{\"pass"),
            json!({ "content": "89abcdef0" }),
            call("word\":\"hunt"),
            call("er2\"}"),
        ]);
        assert_eq!(of(&said, 10_000), "it is ••••\n{\"password\":\"••••\"}");
    }
}

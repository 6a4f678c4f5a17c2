//! A conversation in the form a certain server takes.
//!
//! Histories that OpenAI takes are refused elsewhere. What goes out is written anew where a server
//! is known to refuse it, and only there; the conversation itself, as client and engine keep it, stays
//! as it is. So a question can go to another server with other habits at any time.

use std::collections::HashMap;

use bytes::Bytes;
use indexmap::IndexSet;
use serde::de::IgnoredAny;

use super::raw::{Kind, Members, Raw};

/// What a server asks of a history beyond what OpenAI asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Arguments are JSON.
    pub json_arguments: bool,
    /// Call ids are nine letters and digits.
    pub short_ids: bool,
    /// Results have the `name` of their tool.
    pub names_on_results: bool,
    /// No user or system message stands right after results.
    pub answer_after_results: bool,
    /// A history with calls comes with `tools`.
    pub needs_tools: bool,
}

/// What stands between results and a user's message for servers that want an answer there.
const ANSWER: &str = r#"{"role":"assistant","content":"OK."}"#;

impl Shape {
    /// Whether messages have to be looked at.
    #[must_use]
    pub const fn changes_messages(&self) -> bool {
        self.json_arguments || self.short_ids || self.names_on_results || self.answer_after_results
    }

    /// The messages in this shape. A message that is fine, or that is no message, stays as it came.
    #[must_use]
    pub fn of_messages(&self, messages: &Raw, appended: &[Raw]) -> Vec<Raw> {
        let mut out: Vec<Raw> = Vec::new();
        let mut names: HashMap<String, Raw> = HashMap::new();
        let mut after_result = false;
        for message in each(messages).iter().chain(appended) {
            let members = message.members().unwrap_or_default();
            let role = members.find("role").and_then(Raw::as_string).unwrap_or_default().into_owned();
            if self.answer_after_results && after_result && matches!(&*role, "user" | "system" | "developer")
            {
                out.push(Raw::trusted(Bytes::from_static(ANSWER.as_bytes())));
            }
            after_result = role == "tool";
            let changed = match &*role {
                "assistant" => self.of_assistant(members, &mut names),
                "tool" => self.of_result(members, &names),
                _ => None,
            };
            out.push(changed.unwrap_or_else(|| message.clone()));
        }
        out
    }

    fn of_assistant(&self, mut members: Members, names: &mut HashMap<String, Raw>) -> Option<Raw> {
        let calls = each(members.present("tool_calls")?);
        let mut changed = false;
        let calls: Vec<Raw> = calls
            .into_iter()
            .map(|call| match self.of_call(&call, names) {
                Some(other) => {
                    changed = true;
                    other
                }
                None => call,
            })
            .collect();
        if !changed {
            return None;
        }
        members.set("tool_calls", list(&calls));
        Some(members.to_raw())
    }

    fn of_call(&self, call: &Raw, names: &mut HashMap<String, Raw>) -> Option<Raw> {
        let mut members = call.members().ok()?;
        let id = members.find("id").and_then(Raw::as_string).unwrap_or_default().into_owned();
        let mut function = members.find("function").and_then(|f| f.members().ok()).unwrap_or_default();
        if let Some(name) = function.find("name") {
            names.insert(id.clone(), name.clone());
        }
        let mut changed = false;
        if self.short_ids && !is_short(&id) {
            members.set("id", Raw::string(&short(&id)));
            changed = true;
        }
        let written = function.present("arguments").and_then(Raw::as_string);
        let is_json = written.is_some_and(|text| serde_json::from_str::<IgnoredAny>(&text).is_ok());
        if self.json_arguments && !function.is_empty() && !is_json {
            function.set("arguments", Raw::string("{}"));
            members.set("function", function.to_raw());
            changed = true;
        }
        changed.then(|| members.to_raw())
    }

    fn of_result(&self, mut members: Members, names: &HashMap<String, Raw>) -> Option<Raw> {
        let id = members.find("tool_call_id").and_then(Raw::as_string)?.into_owned();
        let mut changed = false;
        if self.names_on_results
            && members.present("name").is_none()
            && let Some(name) = names.get(&id)
        {
            members.set("name", name.clone());
            changed = true;
        }
        if self.short_ids && !is_short(&id) {
            members.set("tool_call_id", Raw::string(&short(&id)));
            changed = true;
        }
        changed.then(|| members.to_raw())
    }
}

/// Definitions for the tools that were called in a history, separated by commas, for servers that want some beside it.
#[must_use]
pub fn called_tools(messages: &Raw, appended: &[Raw]) -> String {
    let mut names: IndexSet<String> = IndexSet::new();
    for message in each(messages).iter().chain(appended) {
        let members = message.members().unwrap_or_default();
        for call in members.present("tool_calls").map(each).unwrap_or_default() {
            let function = call.members().ok().and_then(|c| c.find("function")?.members().ok());
            let name = function.and_then(|f| Some(f.find("name")?.as_string()?.into_owned()));
            names.extend(name);
        }
    }
    names.iter().map(|name| definition(name)).collect::<Vec<_>>().join(",")
}

fn definition(name: &str) -> String {
    format!(
        r#"{{"type":"function","function":{{"name":{},"parameters":{{"type":"object","properties":{{}}}}}}}}"#,
        Raw::string(name).text()
    )
}

/// As many elements as the body holds; how large that may be was decided when it was read.
fn each(array: &Raw) -> Vec<Raw> {
    if array.kind() != Kind::Array {
        return Vec::new();
    }
    array.elements(usize::MAX).unwrap_or_default()
}

/// The array of these elements.
#[must_use]
pub fn list(elements: &[Raw]) -> Raw {
    let size = elements.iter().map(|e| e.bytes().len() + 1).sum::<usize>();
    let mut out = Vec::with_capacity(size + 2);
    out.push(b'[');
    for (i, element) in elements.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(element.bytes());
    }
    out.push(b']');
    Raw::trusted(out.into())
}

fn is_short(id: &str) -> bool {
    id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Nine letters and digits in place of an id: the same for the same id, in every round and on every
/// server (FNV-1a).
fn short(id: &str) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut rest = id.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let mut letter = || {
        let at = usize::try_from(rest % 62).unwrap_or(0);
        rest /= 62;
        char::from(LETTERS[at])
    };
    (0..9).map(|_| letter()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(shape: Shape, messages: &str) -> String {
        let messages = Raw::parse(messages.to_owned()).unwrap();
        list(&shape.of_messages(&messages, &[])).text().to_owned()
    }

    const CALLED: &str = r#"{"role":"assistant","content":null,"n":1.10,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"x\""},"extra_content":1.0}]}"#;

    #[test]
    fn a_history_without_special_wishes_stays_as_it_came() {
        let text = format!(r#"[ {{"role":"user"}},{CALLED},{{"role":"tool","tool_call_id":"call_1"}},7]"#);
        let kept = shaped(Shape { needs_tools: true, ..Shape::default() }, &text);
        assert_eq!(kept, text.replace("[ ", "["));
    }

    #[test]
    fn arguments_that_are_no_json_become_an_empty_object() {
        let shape = Shape { json_arguments: true, ..Shape::default() };
        let wanted = CALLED.replace(r#"{\"x\""#, "{}");
        assert_eq!(shaped(shape, &format!("[{CALLED}]")), format!("[{wanted}]"));
        let missing = r#"[{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f"}}]}]"#;
        assert!(shaped(shape, missing).contains(r#""arguments":"{}""#));
        let fine = missing.replace(r#""f""#, r#""f","arguments":"{\"a\":1.10}""#);
        assert_eq!(shaped(shape, &fine), fine);
    }

    #[test]
    fn ids_become_nine_letters_and_digits_and_still_belong_together() {
        let shape = Shape { short_ids: true, ..Shape::default() };
        let text = format!(
            r#"[{CALLED},{{"role":"tool","tool_call_id":"call_1","content":"x"}},{{"role":"tool","tool_call_id":"abcdefgh1"}}]"#
        );
        let id = short("call_1");
        assert!(is_short(&id) && id != short("call_2"));
        assert_eq!(shaped(shape, &text), text.replace("call_1", &id));
    }

    #[test]
    fn results_get_the_name_of_their_tool() {
        let shape = Shape { names_on_results: true, short_ids: true, ..Shape::default() };
        let text = format!(
            r#"[{CALLED},{{"role":"tool","tool_call_id":"call_1"}},{{"role":"tool","tool_call_id":"call_1","name":"own"}},{{"role":"tool","tool_call_id":"unknown_1"}}]"#
        );
        let told = shaped(shape, &text);
        assert_eq!(told.matches(r#""name":"f"}"#).count(), 1, "{told}");
        assert_eq!(told.matches(r#""name":"own""#).count(), 1, "{told}");
    }

    #[test]
    fn an_answer_stands_between_results_and_the_user() {
        let shape = Shape { answer_after_results: true, ..Shape::default() };
        let tool = r#"{"role":"tool","tool_call_id":"a"}"#;
        let user = r#"{"role":"user","content":"and?"}"#;
        assert_eq!(
            shaped(shape, &format!("[{tool},{tool},{user},{user}]")),
            format!("[{tool},{tool},{ANSWER},{user},{user}]")
        );
        let answered = format!(r#"[{tool},{{"role":"assistant","content":"x"}},{user}]"#);
        assert_eq!(shaped(shape, &answered), answered);
    }

    #[test]
    fn tools_that_were_called_are_each_declared_once() {
        let messages = Raw::parse(format!("[{CALLED},{CALLED}]")).unwrap();
        let appended = [Raw::parse(CALLED.replace("\"f\"", "\"g\"")).unwrap()];
        let tools = Raw::parse(format!("[{}]", called_tools(&messages, &appended))).unwrap();
        let tools = tools.elements(usize::MAX).unwrap();
        let names = [r#""name":"f""#, r#""name":"g""#];
        assert_eq!(tools.iter().zip(names).filter(|(tool, name)| tool.text().contains(name)).count(), 2);
        assert_eq!(tools.len(), 2);
        assert!(called_tools(&Raw::parse(r#"[{"role":"user"}]"#).unwrap(), &[]).is_empty());
    }
}

//! What OpenAI's servers refuse with 400, in their words. Pure.

use std::collections::HashSet;

use serde_json::{Value, json};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// What is wrong.
    pub message: String,
    /// The member of the request that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

impl Refusal {
    fn invalid(message: impl Into<String>, param: impl Into<String>) -> Self {
        Self { status: 400, message: message.into(), param: Some(param.into()), code: None }
    }

    /// A 404 for a model that is not there.
    #[must_use]
    pub fn no_such_model(model: &str) -> Self {
        Self {
            status: 404,
            message: format!("The model `{model}` does not exist or you do not have access to it."),
            param: None,
            code: Some("model_not_found"),
        }
    }

    /// The error object of the reply.
    #[must_use]
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code,
        } })
    }
}

/// Everything that is refused, in the order in which it is looked at.
pub fn check(request: &Value) -> Result<(), Refusal> {
    let model = request["model"]
        .as_str()
        .ok_or_else(|| Refusal::invalid("you must provide a model parameter", "model"))?;
    let messages = request["messages"].as_array().filter(|m| !m.is_empty()).ok_or_else(|| {
        Refusal::invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "messages",
        )
    })?;
    parameters(request, model)?;
    tools(request)?;
    tool_messages(messages)
}

fn parameters(request: &Value, model: &str) -> Result<(), Refusal> {
    let parallel = request.get("parallel_tool_calls").is_some_and(|value| !value.is_null());
    let choice = request.get("tool_choice").is_some_and(|value| !value.is_null());
    let tools = request["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    if parallel && refuses_parallel_tool_calls(model) {
        return Err(Refusal {
            code: Some("unsupported_parameter"),
            ..Refusal::invalid(
                "Unsupported parameter: 'parallel_tool_calls' is not supported with this model.",
                "parallel_tool_calls",
            )
        });
    }
    if parallel && !tools {
        return Err(Refusal::invalid(
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are specified.",
            "parallel_tool_calls",
        ));
    }
    if choice && !tools {
        return Err(Refusal::invalid(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            "tool_choice",
        ));
    }
    Ok(())
}

/// Whether a model refuses `parallel_tool_calls`, whatever its value: o1, o3, o3-mini, o4-mini and
/// their dated versions.
#[must_use]
pub fn refuses_parallel_tool_calls(model: &str) -> bool {
    ["o1", "o3", "o3-mini", "o4-mini"].iter().any(|family| {
        model.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with("-20"))
    })
}

fn tools(request: &Value) -> Result<(), Refusal> {
    let Some(tools) = request["tools"].as_array() else { return Ok(()) };
    if tools.is_empty() {
        return Err(Refusal::invalid(
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "tools",
        ));
    }
    if tools.len() > 128 {
        let message = format!(
            "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length {} instead.",
            tools.len()
        );
        return Err(Refusal { code: Some("array_above_max_length"), ..Refusal::invalid(message, "tools") });
    }
    for (index, tool) in tools.iter().enumerate() {
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
            return Err(Refusal::invalid(
                format!(
                    "Invalid 'tools[{index}].function.name': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."
                ),
                format!("tools[{index}].function.name"),
            ));
        }
        if tool["function"]["strict"] == true {
            strict(name, &tool["function"]["parameters"], &mut Vec::new()).map_err(|message| Refusal {
                code: Some("invalid_function_parameters"),
                ..Refusal::invalid(message, format!("tools[{index}].function.parameters"))
            })?;
        }
    }
    Ok(())
}

/// Every object of a strict schema closes itself and requires all it has.
fn strict(name: &str, schema: &Value, context: &mut Vec<String>) -> Result<(), String> {
    let Some(object) = schema.as_object() else { return Ok(()) };
    let place = |context: &[String]| match context {
        [one] => format!("('{one}',)"),
        many => format!("({})", many.iter().map(|c| format!("'{c}'")).collect::<Vec<_>>().join(", ")),
    };
    if let Some(properties) = object.get("properties").and_then(Value::as_object) {
        if object.get("additionalProperties") != Some(&Value::Bool(false)) {
            return Err(format!(
                "Invalid schema for function '{name}': In context={}, 'additionalProperties' is required to be supplied and to be false.",
                place(context)
            ));
        }
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(missing) = properties.keys().find(|key| !required.contains(&key.as_str())) {
            return Err(format!(
                "Invalid schema for function '{name}': In context={}, 'required' is required to be supplied and to be an array including every key in properties. Missing '{missing}'.",
                place(context)
            ));
        }
        for (key, inner) in properties {
            context.extend(["properties".to_owned(), key.clone()]);
            strict(name, inner, context)?;
            context.truncate(context.len() - 2);
        }
    }
    if let Some(items) = object.get("items") {
        context.push("items".to_owned());
        strict(name, items, context)?;
        context.pop();
    }
    Ok(())
}

/// Each call of an assistant message is answered by exactly one of the tool messages right after it.
fn tool_messages(messages: &[Value]) -> Result<(), Refusal> {
    let mut open: Vec<&str> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message["role"] == "tool" {
            let id = message["tool_call_id"].as_str().unwrap_or_default();
            let Some(at) = open.iter().position(|known| *known == id) else {
                return Err(Refusal::invalid(
                    "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
                    format!("messages.[{index}].role"),
                ));
            };
            open.remove(at);
            continue;
        }
        unanswered(&open, index)?;
        open = calls(message).filter_map(|call| call["id"].as_str()).collect();
        let distinct: HashSet<&str> = open.iter().copied().collect();
        if open.len() != calls(message).count() || distinct.len() != open.len() {
            return Err(Refusal::invalid(
                "Invalid 'tool_calls': every call needs an id of its own.",
                format!("messages.[{index}].tool_calls"),
            ));
        }
    }
    unanswered(&open, messages.len())
}

fn unanswered(open: &[&str], index: usize) -> Result<(), Refusal> {
    if open.is_empty() {
        return Ok(());
    }
    Err(Refusal::invalid(
        format!(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: {}",
            open.join(", ")
        ),
        format!("messages.[{index}].role"),
    ))
}

fn calls(message: &Value) -> impl Iterator<Item = &Value> {
    message["tool_calls"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: Value) -> String {
        check(&request).expect_err("must be refused").message
    }

    fn with(members: Value) -> Value {
        let mut request = json!({ "model": "demo", "messages": [{ "role": "user", "content": "hi" }] });
        for (key, value) in members.as_object().unwrap() {
            request[key] = value.clone();
        }
        request
    }

    fn tool(strict: bool, parameters: Value) -> Value {
        json!([{ "type": "function", "function": { "name": "f", "strict": strict, "parameters": parameters } }])
    }

    #[test]
    fn tool_parameters_without_tools_are_refused() {
        assert!(refused(with(json!({ "parallel_tool_calls": false }))).starts_with(
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are specified."
        ));
        assert!(refused(with(json!({ "tool_choice": "none" }))).starts_with(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        ));
    }

    #[test]
    fn reasoning_models_refuse_the_parameter_in_either_value() {
        for value in [true, false] {
            let request = with(
                json!({ "model": "o3-mini", "tools": tool(false, json!({})), "parallel_tool_calls": value }),
            );
            let refusal = check(&request).unwrap_err();
            assert_eq!(refusal.code, Some("unsupported_parameter"));
            assert_eq!(
                refusal.message,
                "Unsupported parameter: 'parallel_tool_calls' is not supported with this model."
            );
        }
        assert!(refuses_parallel_tool_calls("o3-2025-04-16"));
        assert!(!refuses_parallel_tool_calls("o3-pro") && !refuses_parallel_tool_calls("gpt-4o"));
    }

    #[test]
    fn a_strict_schema_that_does_not_close_an_object_is_refused_with_its_place() {
        let open = json!({ "type": "object", "additionalProperties": false, "required": ["x"],
            "properties": { "x": { "type": "object", "properties": {} } } });
        assert_eq!(
            refused(with(json!({ "tools": tool(true, open.clone()) }))),
            "Invalid schema for function 'f': In context=('properties', 'x'), 'additionalProperties' is required to be supplied and to be false."
        );
        assert_eq!(check(&with(json!({ "tools": tool(false, open) }))), Ok(()));
    }

    #[test]
    fn every_call_wants_exactly_one_tool_message_right_after_it() {
        let history = |ids: &[&str]| {
            let mut messages = vec![
                json!({ "role": "user", "content": "hi" }),
                json!({ "role": "assistant", "content": null, "tool_calls": [
                    { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } },
                    { "id": "b", "type": "function", "function": { "name": "f", "arguments": "{}" } },
                ] }),
            ];
            messages
                .extend(ids.iter().map(|id| json!({ "role": "tool", "tool_call_id": id, "content": "ok" })));
            with(json!({ "messages": messages }))
        };
        assert_eq!(check(&history(&["b", "a"])), Ok(()));
        assert!(refused(history(&["a"])).starts_with(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: b"
        ));
        for wrong in [&["a", "b", "b"][..], &["a", "b", "c"]] {
            assert!(refused(history(wrong)).starts_with(
                "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
            ));
        }
    }
}

//! What the scripted model promises, on plain requests.

use serde_json::{Value, json};

use super::*;

fn tool(name: &str, properties: &[&str]) -> Value {
    let properties: serde_json::Map<String, Value> =
        properties.iter().map(|p| ((*p).to_owned(), json!({ "type": "string" }))).collect();
    let required: Vec<&String> = properties.keys().collect();
    json!({ "type": "function", "function": { "name": name, "parameters":
        { "type": "object", "properties": properties, "required": required } } })
}

fn asking(question: &str) -> Value {
    json!({ "model": "demo", "messages": [{ "role": "user", "content": question }],
        "tools": [tool("get_weather", &["city"]), tool("clock", &["city"])] })
}

fn said(request: &Value) -> Reply {
    answer(request).expect("must be answered")
}

fn called(reply: &Reply) -> Vec<(&str, &str)> {
    reply.calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect()
}

/// The request after each call of `reply` was answered with `results`.
fn next(request: &Value, reply: &Reply, results: &[&str]) -> Value {
    let mut request = request.clone();
    let messages = request["messages"].as_array_mut().unwrap();
    messages.push(reply.whole()["choices"][0]["message"].clone());
    for (call, result) in reply.calls.iter().zip(results) {
        messages.push(json!({ "role": "tool", "tool_call_id": call.id, "content": result }));
    }
    request
}

#[test]
fn one_parallel_call_per_city_then_the_results_in_the_order_of_the_calls() {
    let request = asking("What is the weather in Paris, Tokyo and Lima?");
    let first = said(&request);
    assert_eq!(
        called(&first),
        [
            ("get_weather", r#"{"city":"Paris"}"#),
            ("get_weather", r#"{"city":"Tokyo"}"#),
            ("get_weather", r#"{"city":"Lima"}"#)
        ]
    );
    assert_eq!((first.finish.as_str(), &first.text), ("tool_calls", &None));
    let last = said(&next(&request, &first, &[r#"{"summary":"P is wet"}"#, "dry", "error: timed out"]));
    assert_eq!(
        last.text.as_deref(),
        Some(
            "Here is what I found:\n- P is wet\n- get_weather: dry\n\
             - get_weather did not work (error: timed out)"
        )
    );
    assert_eq!((last.finish.as_str(), last.calls.len()), ("stop", 0));
}

#[test]
fn without_parallel_calls_it_asks_one_by_one_with_fresh_ids() {
    let mut request = asking("weather in Paris and Lima");
    request["parallel_tool_calls"] = json!(false);
    let first = said(&request);
    assert_eq!(called(&first), [("get_weather", r#"{"city":"Paris"}"#)]);
    let request = next(&request, &first, &["wet"]);
    let second = said(&request);
    assert_eq!(called(&second), [("get_weather", r#"{"city":"Lima"}"#)]);
    assert_ne!(first.calls[0].id, second.calls[0].id);
    let last = said(&next(&request, &second, &["dry"]));
    assert!(last.text.unwrap().ends_with("- get_weather: wet\n- get_weather: dry"));
}

#[test]
fn the_clock_is_asked_for_the_time_and_nothing_for_small_talk() {
    assert_eq!(called(&said(&asking("What time is it?"))), [("clock", r#"{"city":"UTC"}"#)]);
    let talk = said(&asking("Good morning"));
    assert!(talk.calls.is_empty());
    assert!(talk.text.unwrap().contains("Good morning"));
}

#[test]
fn a_client_tool_named_in_the_question_is_called_beside_the_others() {
    let mut request = asking("What is the weather in Paris, and at my location?");
    request["tools"].as_array_mut().unwrap().push(tool("get_location", &[]));
    let first = said(&request);
    assert_eq!(called(&first), [("get_weather", r#"{"city":"Paris"}"#), ("get_location", "{}")]);
    let second = said(&next(&request, &first, &["wet", "You are in Oslo"]));
    assert_eq!(called(&second), [("get_weather", r#"{"city":"Oslo"}"#)]);
}

#[test]
fn tool_choice_is_honoured() {
    let weather = || asking("weather in Paris");
    let with = |mut request: Value, choice: Value| {
        request["tool_choice"] = choice;
        request
    };
    assert!(said(&with(weather(), json!("none"))).calls.is_empty());
    let forced = said(&with(asking("Good morning"), json!("required")));
    assert_eq!(called(&forced), [("get_weather", r#"{"city":"Paris"}"#)]);
    let request = with(weather(), json!("required"));
    let first = said(&request);
    let again = said(&next(&request, &first, &["wet"]));
    assert_eq!(called(&again), called(&first), "a forced choice goes on for ever");
    let named = said(&with(weather(), json!({ "type": "function", "function": { "name": "clock" } })));
    assert_eq!((called(&named), named.finish.as_str()), (vec![("clock", r#"{"city":"Paris"}"#)], "stop"));
    let allowed = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto",
        "tools": [{ "type": "function", "function": { "name": "clock" } }] } });
    assert!(said(&with(weather(), allowed)).calls.is_empty());
}

#[test]
fn only_the_last_user_message_counts() {
    let request = asking("weather in Paris");
    let first = said(&request);
    let mut later = next(&request, &first, &["wet"]);
    later["messages"].as_array_mut().unwrap().push(json!({ "role": "user",
        "content": [{ "type": "text", "text": "And the weather in Lima?" }] }));
    assert_eq!(called(&said(&later)), [("get_weather", r#"{"city":"Lima"}"#)]);
}

#[test]
fn a_model_that_is_not_there_is_a_404() {
    let mut request = asking("hi");
    request["model"] = json!("gpt-unknown");
    let refusal = answer(&request).unwrap_err();
    assert_eq!((refusal.status, refusal.code), (404, Some("model_not_found")));
}

#[test]
fn the_same_request_gets_the_same_reply() {
    let request = asking("weather in Rome and Seoul, and the time");
    assert_eq!(said(&request), said(&request));
}

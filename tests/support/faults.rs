//! Faults of an upstream, as scripts for the lab.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::client::{self, Got};
use super::fold::{self, Folded};
use super::gateway::{Gateway, SOON};
use super::lab::Lab;
use super::proxy::with;

/// A proxy for many failures in front of a lab: so many of them would open a breaker. Models that begin with
/// `script:late` belong to an upstream that is given up soon.
pub fn config(lab: &Lab) -> Value {
    json!({
        "upstreams": {
            "main": patient(&lab.base_url()),
            "late": with(patient(&lab.base_url()), json!({ "head_timeout": "1500ms", "stall_timeout": "1500ms" })),
        },
        "routes": [
            { "model": "script:late*", "upstreams": ["late"] },
            { "model": "*", "upstreams": ["main"] },
        ],
        "limits": { "event": "64KiB", "reply": "256KiB" },
    })
}

/// An upstream whose breaker stays closed.
pub fn patient(base_url: &str) -> Value {
    json!({ "base_url": base_url, "breaker": { "requests": 1_000_000, "connects": 1_000_000 },
        "retries": { "per_second": 10_000 } })
}

/// A configuration as text to which others can be added.
pub fn yaml(config: &Value) -> String {
    let members = config.as_object().expect("an object").iter();
    members.map(|(name, value)| format!("{name}: {value}\n")).collect()
}

/// An answer with this status and a body that says `told`.
pub fn status(status: u16, headers: Value) -> Value {
    let body = json!({ "error": { "message": "as told", "type": "t", "param": null, "code": "told" } });
    json!([{ "answer": { "status": status, "headers": headers, "body": body } }])
}

/// A chunk of a stream.
pub fn chunk(delta: Value, finish: Value) -> Value {
    json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "m",
        "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }] })
}

/// A chunk with text.
pub fn text(content: &str) -> Value {
    chunk(json!({ "role": "assistant", "content": content }), Value::Null)
}

/// Four seconds of comments.
pub fn comments() -> Vec<Value> {
    (0..40).flat_map(|_| [json!({ "send": ": wait\n\n" }), json!({ "wait_ms": 100 })]).collect()
}

/// Plays cases, some at once. Those whose upstream or tool is given up soon come last and by
/// themselves, so that nothing is late because of the others.
pub async fn each<C>(cases: impl IntoIterator<Item = C>, name: impl Fn(&C) -> String, play: impl AsyncFn(C)) {
    let (late, others): (Vec<C>, Vec<C>) = cases.into_iter().partition(|case| name(case).starts_with("late"));
    stream::iter(others).map(|case| play(case)).buffer_unordered(12).collect::<Vec<()>>().await;
    stream::iter(late).map(|case| play(case)).buffer_unordered(24).collect::<Vec<()>>().await;
}

/// A chat that plays a script.
pub fn chat(script: &str, stream: bool) -> Value {
    json!({ "model": format!("script:{script}"), "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }] })
}

/// Asks for a script. What every answer has to have, it has.
pub async fn ask(gateway: &Gateway, script: &str, stream: bool, headers: &[(&str, &str)]) -> Got {
    ask_with(&gateway.base_url(), script, &chat(script, stream), headers).await
}

/// The same of any proxy, with any body.
pub async fn ask_with(base_url: &str, script: &str, body: &Value, headers: &[(&str, &str)]) -> Got {
    let url = format!("{base_url}/chat/completions");
    let asked = client::send(http::Method::POST, &url, headers, Some(body));
    let got = tokio::time::timeout(SOON, asked).await.unwrap_or_else(|_| panic!("{script}: no answer"));
    let got = got.unwrap_or_else(|error| panic!("{script}: the answer broke off: {error}"));
    assert!(!got.header("x-request-id").is_empty(), "{script}");
    assert!(!got.header("x-fanfold-parallel").is_empty(), "{script}");
    got
}

/// The code of an answer that has to be an error in its whole or at its end.
pub fn code(name: &str, got: &Got) -> String {
    assert!(!got.body.contains("[DONE]"), "{name}: {}", got.body);
    match fold::answer(got) {
        Ok(Folded::Error(Some(code))) => code,
        other => panic!("{name}: {other:?}\n{}", got.body),
    }
}

/// A script whose rounds are these steps, one for each request.
pub fn script(rounds: &[Value]) -> Value {
    let rounds: Vec<Value> = rounds.iter().map(|steps| json!({ "steps": steps })).collect();
    json!({ "rounds": rounds, "advance": "requests", "repeat": true, "lenient": true })
}

/// A name for a script that keeps its first word, which chooses the upstream.
pub fn named(name: &str, column: &str) -> String {
    format!("{name} {column}")
}

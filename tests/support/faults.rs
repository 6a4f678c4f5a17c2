//! Faults of an upstream, as scripts for the lab.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::client::{self, Got};
use super::fold::{self, Folded};
use super::gateway::{Gateway, SOON};

/// A proxy for many failures: so many of them would open a breaker. Models that begin with
/// `script:late` belong to an upstream that is given up soon.
pub const CONFIG: &str = "
upstreams:
  main: { base_url: LAB/v1, breaker: { requests: 1000000 }, retries: { per_second: 10000 } }
  late: { base_url: LAB/v1, head_timeout: 1500ms, stall_timeout: 1500ms, breaker: { requests: 1000000 } }
routes:
  - { model: 'script:late*', upstreams: [late] }
  - { model: '*', upstreams: [main] }
limits: { event: 64KiB, reply: 256KiB }
";

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

/// Asks for a script. What every answer has to have, it has.
pub async fn ask(gateway: &Gateway, script: &str, stream: bool, headers: &[(&str, &str)]) -> Got {
    let body = json!({ "model": format!("script:{script}"), "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }] });
    let url = format!("{}/chat/completions", gateway.base_url());
    let asked = client::send(http::Method::POST, &url, headers, Some(&body));
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

//! What is special about families of model servers: each gets requests in the form it takes, and the
//! client sees nothing of it.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use serde_json::{Value, json};
use support::client::{self, Got};
use support::fold::{self, Folded};
use support::gateway::{Gateway, soon};
use support::lab::Lab;

const TOOL: &str = "tools: { look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read } }\n";

async fn upstream(lab: &Lab, habits: &str) -> Gateway {
    Gateway::start(lab, &format!("upstreams: {{ main: {{ base_url: LAB/v1, {habits} }} }}\n{TOOL}")).await
}

fn play(lab: &Lab, name: &str, rounds: Value) {
    lab.script(name, json!({ "rounds": rounds, "advance": "requests", "repeat": true, "lenient": true }));
}

async fn ask(gateway: &Gateway, body: &Value, headers: &[(&str, &str)]) -> Got {
    let url = format!("{}/chat/completions", gateway.base_url());
    soon(client::send(http::Method::POST, &url, headers, Some(body))).await.unwrap()
}

/// A chat of this script with more members.
fn chat(script: &str, stream: bool, more: Value) -> Value {
    let mut body = json!({ "model": format!("script:{script}"), "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn answer(got: &Got) -> String {
    match fold::answer(got) {
        Ok(Folded::Reply(reply)) => reply.text,
        other => panic!("{other:?} {}", got.body),
    }
}

fn bodies(lab: &Lab, script: &str) -> Vec<Value> {
    lab.journal().of_script(script).map(|(_, request)| request.body.clone()).collect()
}

fn format() -> Value {
    json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": {} } } })
}

const THEIRS: &str = r#"{"type":"function","function":{"name":"theirs","parameters":{"type":"object"}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_format_that_goes_not_with_tools_is_asked_for_in_a_last_round() {
    let lab = Lab::start().await;
    for (n, habits) in
        ["kind: gemini", "kind: groq", "response_format_with_tools: false"].into_iter().enumerate()
    {
        let gateway = upstream(&lab, habits).await;
        for stream in [false, true] {
            let name = format!("format {n} {stream}");
            play(
                &lab,
                &name,
                json!([
                    { "reply": { "text": "let me see", "calls": [{ "name": "look", "arguments": {} }] } },
                    { "reply": { "text": "It is so." } },
                    { "reply": { "text": "{\"so\":true}" } },
                ]),
            );
            let got = ask(&gateway, &chat(&name, stream, format()), &[]).await;
            assert_eq!(answer(&got), "{\"so\":true}", "nothing else is shown: {}", got.body);
            let sent = bodies(&lab, &name);
            assert_eq!(sent.len(), 3, "{name}");
            for round in &sent[..2] {
                assert!(round["tools"].is_array() && round["response_format"].is_null(), "{round}");
            }
            assert!(sent[2]["tools"].is_null() && sent[2]["tool_choice"].is_null(), "{}", sent[2]);
            assert_eq!(sent[2]["response_format"]["type"], "json_schema");
            assert_eq!(
                sent[2]["messages"], sent[1]["messages"],
                "the unformatted answer is not in the history"
            );
        }
        gateway.ends_at_baseline(&lab).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_format_goes_out_at_once_where_nothing_speaks_against_it() {
    let lab = Lab::start().await;
    let gateway = upstream(&lab, "kind: gemini").await;
    let plain = json!({ "response_format": { "type": "text" } });
    for (name, more, headers) in
        [("no tools", format(), [("x-fanfold-tools", "none")]), ("plain text", plain, [("x-other", "1")])]
    {
        play(&lab, name, json!([{ "reply": { "text": "fine" } }]));
        assert_eq!(answer(&ask(&gateway, &chat(name, true, more), &headers).await), "fine");
        let sent = bodies(&lab, name);
        assert!(sent.len() == 1 && sent[0]["response_format"].is_object(), "{name}: {sent:?}");
    }
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_call_ends_the_turn_although_a_format_is_wished() {
    let lab = Lab::start().await;
    let gateway = upstream(&lab, "kind: gemini").await;
    play(&lab, "own", json!([{ "reply": { "calls": [{ "name": "theirs", "arguments": {} }] } }]));
    let mut more = format();
    more["tools"] = json!([serde_json::from_str::<Value>(THEIRS).unwrap()]);
    for headers in [&[][..], &[("x-fanfold-tools", "none")]] {
        let got = ask(&gateway, &chat("own", true, more.clone()), headers).await;
        assert!(
            matches!(fold::answer(&got), Ok(Folded::Reply(reply)) if reply.calls.len() == 1),
            "{}",
            got.body
        );
    }
    let sent = bodies(&lab, "own");
    assert!(sent.len() == 2 && sent.iter().all(|body| body["response_format"].is_null()), "{sent:?}");
    gateway.ends_at_baseline(&lab).await;
}

fn refuses_effort() -> Value {
    let message =
        "Function tools with reasoning_effort are not supported for gpt-5.6 in /v1/chat/completions.";
    json!({ "steps": [{ "answer": { "status": 400, "headers": {}, "body": { "error": { "message": message } } } }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_takes_no_tools_beside_an_effort_is_asked_without_one_from_then_on() {
    let lab = Lab::start().await;
    let gateway = upstream(&lab, "kind: openai").await;
    let rounds = json!([refuses_effort(), { "reply": { "text": "fine" } }]);
    let own_tool =
        json!({ "tools": [serde_json::from_str::<Value>(THEIRS).unwrap()], "reasoning_effort": "high" });
    for (name, headers) in [("turn", &[][..]), ("relay", &[("x-fanfold-tools", "none")])] {
        play(&lab, name, rounds.clone());
        for more in [own_tool.clone(), own_tool.clone()] {
            assert_eq!(answer(&ask(&gateway, &chat(name, true, more), headers).await), "fine", "{name}");
        }
        let efforts: Vec<Value> =
            bodies(&lab, name).iter().map(|body| body["reasoning_effort"].clone()).collect();
        assert_eq!(efforts, [json!("high"), json!("none"), json!("none")], "{name}");
    }
    assert_eq!(gateway.metric("fanfold_effort_refused_total{upstream=\"main\"}").to_string(), "2");
    gateway.ends_at_baseline(&lab).await;
    let gateway = upstream(&lab, "reasoning_effort_with_tools: false").await;
    play(&lab, "said", json!([{ "reply": { "text": "fine" } }]));
    ask(&gateway, &chat("said", false, json!({})), &[]).await;
    ask(&gateway, &chat("said", false, json!({ "reasoning_effort": "low" })), &[("x-fanfold-tools", "none")])
        .await;
    let sent = bodies(&lab, "said");
    assert_eq!((&sent[0]["reasoning_effort"], &sent[1]["reasoning_effort"]), (&json!("none"), &json!("low")));
    gateway.ends_at_baseline(&lab).await;
}

/// A history with a call of the client's whose arguments are no JSON and whose result has no name.
fn history() -> Value {
    json!({ "messages": [
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"x\"" } }] },
        { "role": "tool", "tool_call_id": "call_1", "content": "1" },
        { "role": "user", "content": "and?" },
    ] })
}

/// What an upstream with these habits gets of [`history`], through a turn and relayed.
async fn sent(lab: &Lab, habits: &str, more: &Value) -> Vec<Value> {
    let gateway = upstream(lab, habits).await;
    let name = format!("sent {habits}").replace([' ', ':'], "_");
    play(lab, &name, json!([{ "reply": { "text": "fine" } }]));
    let mut body = chat(&name, false, history());
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    for headers in [&[][..], &[("x-fanfold-tools", "none")]] {
        assert_eq!(answer(&ask(&gateway, &body, headers).await), "fine", "{habits}");
    }
    gateway.ends_at_baseline(lab).await;
    bodies(lab, &name)
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_go_out_in_the_form_each_server_takes() {
    let lab = Lab::start().await;
    for body in sent(&lab, "kind: openai", &json!({})).await {
        assert_eq!(body["messages"], history()["messages"]);
    }
    for habits in ["kind: ollama", "json_arguments: true"] {
        for body in sent(&lab, habits, &json!({})).await {
            assert_eq!(body["messages"][1]["tool_calls"][0]["function"]["arguments"], "{}", "{habits}");
        }
    }
    for habits in ["kind: gemini", "names_on_results: true"] {
        for body in sent(&lab, habits, &json!({})).await {
            assert_eq!(body["messages"][2]["name"], "f", "{habits}");
        }
    }
    for body in sent(&lab, "short_call_ids: true", &json!({})).await {
        assert_eq!(body["messages"][2]["tool_call_id"].as_str().unwrap().len(), 9);
    }
    for body in sent(&lab, "user_after_results: false", &json!({})).await {
        assert_eq!(body["messages"][3], json!({ "role": "assistant", "content": "OK." }));
    }
    for body in sent(&lab, "kind: mistral, user_after_results: true, short_call_ids: false", &json!({})).await
    {
        assert_eq!(body["messages"], history()["messages"], "each habit is a setting, too");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_with_calls_has_tools_where_that_is_needed() {
    let lab = Lab::start().await;
    for habits in ["kind: anthropic", "history_needs_tools: true"] {
        let sent = sent(&lab, habits, &json!({})).await;
        assert_eq!(sent[0]["tools"][0]["function"]["name"], "look", "fanfold's own are enough");
        assert_eq!(sent[1]["tools"][0]["function"]["name"], "f", "{habits}");
        assert_eq!(sent[1]["tool_choice"], "none");
    }
    let plain = sent(&lab, "kind: vllm", &json!({})).await;
    assert!(plain[1]["tools"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_the_server_could_not_read_is_asked_for_once_more() {
    let lab = Lab::start().await;
    let gateway = upstream(&lab, "kind: groq").await;
    let failed = json!({ "error": { "message": "m", "code": "tool_use_failed", "failed_generation": "x" } });
    let no = json!({ "steps": [{ "answer": { "status": 400, "headers": {}, "body": failed } }] });
    play(&lab, "once", json!([no, { "reply": { "text": "fine" } }]));
    play(&lab, "always", json!([no]));
    for headers in [&[][..], &[("x-fanfold-tools", "none")]] {
        play(&lab, "once", json!([no, { "reply": { "text": "fine" } }]));
        assert_eq!(answer(&ask(&gateway, &chat("once", false, json!({})), headers).await), "fine");
        let got = ask(&gateway, &chat("always", false, json!({})), headers).await;
        assert_eq!(
            (got.status.as_u16(), got.json()["error"]["code"].as_str()),
            (400, Some("tool_use_failed"))
        );
    }
    assert_eq!((bodies(&lab, "once").len(), bodies(&lab, "always").len()), (4, 4));
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_has_its_paths_its_version_and_its_key_header() {
    let lab = Lab::start().await;
    let config = format!(
        "upstreams:
  old: {{ base_url: LAB/at/azure, kind: azure, api_version: 2024-10-21, api_key: k }}
  new: {{ base_url: LAB/at/azure/openai/v1, kind: azure, api_key: k }}
routes:
  - {{ model: gpt-new, upstreams: [new] }}
  - {{ model: '*', upstreams: [old] }}
{TOOL}"
    );
    let gateway = Gateway::start(&lab, &config).await;
    play(&lab, "azure", json!([{ "reply": { "text": "fine" } }]));
    for (path, model, headers) in [
        ("/chat/completions", "gpt-4.1", &[][..]),
        ("/chat/completions", "gpt 4", &[("x-fanfold-tools", "none")]),
        ("/embeddings", "embed", &[]),
        ("/responses", "gpt-4.1", &[]),
        ("/chat/completions", "gpt-new", &[]),
    ] {
        let url = format!("{}{path}", gateway.base_url());
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
        let got = soon(client::send(http::Method::POST, &url, headers, Some(&body))).await.unwrap();
        assert_eq!(got.status, 200, "{path}: {}", got.body);
    }
    let seen = lab.journal();
    let paths: Vec<&str> =
        seen.requests().map(|(_, request)| request.path.trim_start_matches("/at/azure")).collect();
    let version = "?api-version=2024-10-21";
    let wanted = [
        format!("/openai/deployments/gpt-4.1/chat/completions{version}"),
        format!("/openai/deployments/gpt%204/chat/completions{version}"),
        format!("/openai/deployments/embed/embeddings{version}"),
        format!("/openai/responses{version}"),
        "/openai/v1/chat/completions".to_owned(),
    ];
    assert_eq!(paths, wanted);
    for (_, request) in seen.requests() {
        assert_eq!((request.headers["api-key"].as_str(), request.headers.get("authorization")), ("k", None));
    }
    gateway.ends_at_baseline(&lab).await;
}

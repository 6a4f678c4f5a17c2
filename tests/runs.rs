//! The record of runs behind the real proxy: what is told of a turn and of a relayed chat, and what is not kept.

mod support;

use http::Method;
use serde_json::{Value, json};
use support::client;
use support::gateway::soon;
use support::lab::Lab;
use support::proxy::{Proxy, chat, key, tool, with};

async fn admin(proxy: &Proxy, path: &str) -> Value {
    let url = format!("http://{}{path}", proxy.app.admin_address);
    let got = client::send(Method::GET, &url, &[], None).await.expect("an answer");
    serde_json::from_str(&got.body).unwrap_or_else(|_| panic!("{path}: {}", got.body))
}

/// The run of the last request.
async fn last(proxy: &Proxy) -> Value {
    let list = admin(proxy, "/api/runs").await;
    admin(proxy, &format!("/api/runs/{}", list["runs"][0]["id"].as_str().expect("a run"))).await
}

/// A model that is busy once, calls twice and answers.
fn script(lab: &Lab) {
    let calls = json!([
        { "name": "f", "arguments": { "city": "said in arguments" } },
        { "name": "f", "arguments": { "city": "b" } },
    ]);
    let busy = json!({ "steps": [{ "answer": { "status": 503, "headers": {}, "body": {} } }] });
    let rounds =
        json!([busy, { "reply": { "calls": calls } }, { "reply": { "text": "said in the answer" } }]);
    lab.script("s", json!({ "rounds": rounds, "advance": "requests" }));
}

async fn proxy(lab: &Lab, runs: Value) -> Proxy {
    Proxy::before(lab, json!({ "tools": { "f": tool(lab, "echo", "f") }, "runs": runs })).await
}

#[tokio::test]
async fn a_turn_is_told_with_its_rounds_calls_and_tries() {
    let lab = Lab::start().await;
    let proxy = proxy(&lab, json!({ "content": true, "text": "1KiB" })).await;
    script(&lab);
    assert_eq!(proxy.reply(&chat("s")).await.text, "said in the answer");
    let found = last(&proxy).await;
    let (run, content) = (&found["run"], &found["content"]);
    assert_eq!(
        (&run["kind"], &run["end"]["outcome"], &run["end"]["status"]),
        (&json!("turn"), &json!("ok"), &json!(200))
    );
    assert_eq!(run["rounds"].as_array().unwrap().len(), 2);
    assert_eq!(run["rounds"][0]["again"][0]["why"], "busy");
    let calls = run["calls"].as_array().unwrap();
    assert!(calls.iter().all(|call| call["outcome"] == "ok" && call["effect"] == "read"), "{calls:?}");
    assert!(
        calls[0]["queued"].as_f64() <= calls[0]["started"].as_f64()
            && calls[0]["started"].as_f64() <= calls[0]["ended"].as_f64()
    );
    assert_eq!((&run["batches"][0]["calls"], &run["batches"][0]["round"]), (&json!(2), &json!(1)));
    assert!(run["because"].as_str().unwrap().ends_with('.') && run["parallel"] == "on; reason=default");
    let asked: Vec<(u64, u64)> = content["asked"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["round"].as_u64().unwrap(), a["attempt"].as_u64().unwrap()))
        .collect();
    assert_eq!(asked, [(1, 0), (1, 1), (2, 0)]);
    assert!(content["asked"][2]["body"]["text"].as_str().unwrap().len() <= 1024);
    assert_eq!(content["answer"]["text"], "said in the answer");
    assert_eq!(content["calls"][0]["arguments"]["text"], r#"{"city":"said in arguments"}"#);
    let request: Value = serde_json::from_str(content["request"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(request, chat("s"), "as the client sent it");
    let tools = admin(&proxy, "/api/tools").await;
    assert_eq!(
        (&tools["tools"][0]["name"], &tools["tools"][0]["figures"]["calls"]),
        (&json!("f"), &json!(2))
    );
}

#[tokio::test]
async fn nothing_that_was_said_is_kept_unless_the_operator_wants_it() {
    let lab = Lab::start().await;
    let proxy = proxy(&lab, json!({})).await;
    script(&lab);
    let transcript = with(chat("s"), json!({ "fanfold": { "include": ["transcript"] } }));
    assert!(
        proxy.chat(&transcript).await.body.contains("said in arguments"),
        "the client gets its transcript"
    );
    let found = last(&proxy).await;
    assert_eq!((&found["content"], found["run"]["calls"].as_array().unwrap().len()), (&Value::Null, 2));
    assert!(!found.to_string().contains("said in"), "{found}");
}

#[tokio::test]
async fn a_relayed_chat_is_a_run_of_one_round() {
    let lab = Lab::start().await;
    let proxy = Proxy::before(&lab, json!({ "runs": { "content": true } })).await;
    lab.script("s", json!({ "rounds": [{ "reply": { "text": "hello" } }] }));
    assert_eq!(proxy.reply(&chat("s")).await.text, "hello");
    let found = last(&proxy).await;
    assert_eq!((&found["run"]["kind"], &found["run"]["end"]["outcome"]), (&json!("relay"), &json!("ok")));
    assert!(found["run"]["end"]["tokens"][0].as_u64() > Some(0));
    assert!(found["content"]["answer"]["text"].as_str().unwrap().contains("hello"));
    proxy.chat(&chat("absent")).await;
    let found = last(&proxy).await;
    assert_eq!(found["run"]["end"]["outcome"], "refused", "{found}");
}

#[tokio::test]
async fn a_failure_is_told_with_its_code_and_its_team() {
    let lab = Lab::start().await;
    let teams = json!({ "blue": { "keys": [key("k")] } });
    let more = json!({ "tools": { "f": tool(&lab, "echo", "f") }, "teams": teams });
    let proxy = Proxy::before(&lab, more).await;
    let broken = json!({ "steps": [{ "answer": { "status": 401, "headers": {}, "body": {} } }] });
    lab.script("s", json!({ "rounds": [broken] }));
    let got =
        proxy.text(&[("authorization", "Bearer k"), ("x-request-id", "mine-1")], chat("s").to_string()).await;
    assert_eq!(got.status, 502);
    let run = admin(&proxy, "/api/runs/mine-1").await["run"].clone();
    assert_eq!(
        (&run["team"], &run["end"]["error"], &run["end"]["status"]),
        (&json!("blue"), &json!("upstream_auth_error"), &json!(502))
    );
}

#[tokio::test]
async fn a_turn_that_finishes_a_call_without_its_client_says_so() {
    let lab = Lab::start().await;
    let held = json!([{ "steps": ["stall", { "json": { "saved": true } }] }]);
    lab.script("held", json!({ "rounds": held, "lenient": true }));
    lab.script("s", json!({ "rounds": [{ "reply": { "calls": [{ "name": "save", "arguments": {} }] } }] }));
    let save =
        json!({ "effect": "write", "http": { "method": "POST", "url": format!("{}/at/held", lab.url()) } });
    let proxy = Proxy::before(&lab, json!({ "tools": { "save": save } })).await;
    tokio::select! {
        got = proxy.text(&[("x-request-id", "mine-1")], chat("s").to_string()) => panic!("{got:?}"),
        _ = soon(lab.wait_until(|seen| seen.of_script("held").count() == 1)) => {}
    }
    let known = async { while admin(&proxy, "/api/runs/mine-1").await["run"]["client_gone"] != true {} };
    soon(known).await;
    let running = admin(&proxy, "/api/runs/mine-1").await["run"].clone();
    assert!(running["end"].is_null(), "{running}");
    lab.release("held");
    let ended = async { while admin(&proxy, "/api/runs/mine-1").await["run"]["end"].is_null() {} };
    soon(ended).await;
    assert_eq!(last(&proxy).await["run"]["end"]["outcome"], "client_gone");
}

#[tokio::test]
async fn nothing_is_remembered_where_nothing_is_to_be() {
    let lab = Lab::start().await;
    let proxy = proxy(&lab, json!({ "keep": 0 })).await;
    script(&lab);
    assert_eq!(proxy.reply(&chat("s")).await.text, "said in the answer");
    let list = admin(&proxy, "/api/runs").await;
    assert_eq!((&list["remembers"], &list["runs"]), (&json!(false), &json!([])));
}

#[tokio::test]
async fn a_run_of_a_model_with_a_price_tells_what_it_cost() {
    let lab = Lab::start().await;
    // 10 tokens of input and 5 of output a round: 10 · 2.50 + 5 · 10.00 = 75 millionths.
    let usage = json!([10, 5]);
    let calls = json!({ "reply": { "calls": [{ "name": "f", "arguments": {} }], "usage": usage } });
    let answer = json!({ "reply": { "text": "done", "usage": usage } });
    lab.script("turn", json!({ "rounds": [calls, answer] }));
    lab.script("relay", json!({ "rounds": [answer] }));
    lab.script("free", json!({ "rounds": [answer] }));
    let price = json!({ "input": 2.50, "output": 10.00 });
    let more = json!({
        "tools": { "f": tool(&lab, "echo", "f") },
        "prices": { "script:turn": price, "script:relay": price },
        "currency": "EUR",
    });
    let proxy = Proxy::before(&lab, more).await;
    let mut told = Vec::new();
    for (script, tools) in [("turn", "f"), ("relay", "none"), ("free", "f")] {
        assert_eq!(proxy.chat_with(&[("x-fanfold-tools", tools)], &chat(script)).await.status, 200);
        let run = last(&proxy).await["run"].clone();
        let listed = admin(&proxy, "/api/runs").await["runs"][0].clone();
        assert_eq!(listed["cost"], run["end"]["cost"], "the list says the same");
        told.push((run["kind"].clone(), run["end"]["cost"].clone()));
    }
    let expected = [("turn", json!("0.00015 EUR")), ("relay", json!("0.000075 EUR")), ("turn", Value::Null)];
    assert_eq!(told, expected.map(|(kind, cost)| (json!(kind), cost)));
}

#[tokio::test]
async fn what_is_to_be_redacted_is_in_no_record() {
    let lab = Lab::start().await;
    let calls = json!([{ "name": "f", "arguments": { "city": "Oslo", "password": "pw-in-arguments", "note": "order SKU-77" } }]);
    let rounds = json!([
        { "reply": { "calls": calls } },
        { "reply": { "text": "Bearer in-the-answer-1234 and SKU-88" } },
    ]);
    lab.script("s", json!({ "rounds": rounds, "advance": "requests" }));
    let mut echo = tool(&lab, "echo", "f");
    for name in ["password", "note"] {
        echo["parameters"]["properties"][name] = json!({ "type": "string" });
    }
    let more = json!({
        "tools": { "f": echo },
        "runs": { "content": true },
        "redact": { "members": ["hint"], "patterns": ["SKU-[0-9]+"] },
    });
    let proxy = Proxy::before(&lab, more).await;
    let mut body = chat("s");
    body["metadata"] = json!({ "hint": "in-the-request", "kind": "stays" });
    let got = proxy.reply(&body).await.text;
    assert_eq!(got, "Bearer in-the-answer-1234 and SKU-88", "the client gets all of it");
    let sent = lab.journal().bodies("s").last().map(Value::to_string).unwrap_or_default();
    assert!(sent.contains("pw-in-arguments"), "and so does the model: {sent}");
    let found = last(&proxy).await;
    let content = &found["content"];
    assert_eq!(
        content["calls"][0]["arguments"]["text"],
        r#"{"city":"Oslo","password":"••••","note":"order ••••"}"#
    );
    let result = content["calls"][0]["result"]["text"].as_str().unwrap();
    assert!(result.contains("Oslo") && result.contains("••••"), "what the tool says repeats it: {result}");
    assert_eq!(content["answer"]["text"], "Bearer •••• and ••••");
    let request = content["request"]["text"].as_str().unwrap();
    assert!(request.contains(r#""hint":"••••""#) && request.contains("stays"), "{request}");
    assert_eq!(content["asked"].as_array().unwrap().len(), 2);
    for said in ["pw-in-arguments", "in-the-answer", "in-the-request", "SKU-"] {
        assert!(!found.to_string().contains(said), "{said}: {found}");
    }
}

#[tokio::test]
async fn what_is_to_be_redacted_is_in_no_record_of_a_relayed_chat_either() {
    let lab = Lab::start().await;
    lab.script(
        "s",
        json!({ "rounds": [{ "reply": { "text": "the key is sk-0123456789abcdef0123456789" } }] }),
    );
    let proxy = Proxy::before(&lab, json!({ "runs": { "content": true } })).await;
    for stream in [false, true] {
        let body = with(chat("s"), json!({ "stream": stream, "metadata": { "password": "in-the-request" } }));
        assert!(proxy.reply(&body).await.text.contains("sk-0123456789"), "the client gets all of it");
        let found = last(&proxy).await;
        assert_eq!(found["run"]["kind"], "relay");
        let answer = found["content"]["answer"]["text"].as_str().unwrap();
        assert!(answer.contains("the key is ••••"), "{answer}");
        assert!(!found.to_string().contains("in-the-request"), "{found}");
    }
}

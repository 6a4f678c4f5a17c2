//! Teams through the real proxy: who gets in, what a team may do and until when, and who waits for whom.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fanfold::config::{Flags, read_text};
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::lab::Lab;
use support::lab::journal::Snapshot;
use support::proxy::{self, Proxy, chat, code, config, key, tool, with, within};

const BLUE: (&str, &str) = ("authorization", "Bearer fk-blue");
const RED: (&str, &str) = ("authorization", "Bearer fk-red");

/// Two teams with a key each; `blue` and `red` are laid over them.
fn teams(blue: Value, red: Value) -> Value {
    json!({
        "blue": with(json!({ "keys": [key("fk-blue")] }), blue),
        "red": with(json!({ "keys": [key("fk-red")] }), red),
    })
}

/// Reads another configuration in.
fn reload(proxy: &Proxy, config: &Value) {
    let reading = read_text("test", &config.to_string(), &|_| None, &Flags::default());
    let (loaded, catalog) = reading.finish_with_tools().unwrap_or_else(|problems| panic!("{problems}"));
    proxy.app.reload(&loaded, catalog).expect("a good configuration");
}

/// The error of an answer, without what names this one request.
fn refusal(got: &Got) -> (u16, String) {
    (got.status.as_u16(), got.body.clone())
}

// ---- keys

/// Ten thousand wrong keys: near misses, long ones, binary ones, and tricks with headers.
fn hostile(n: u32, random: &mut fastrand::Rng) -> Vec<(&'static str, HeaderValue)> {
    let mut right = b"Bearer fk-blue".to_vec();
    let value = |bytes: Vec<u8>| HeaderValue::from_bytes(&bytes).expect("bytes a header may have");
    let any = |random: &mut fastrand::Rng, length: usize| -> Vec<u8> {
        (0..length).map(|_| random.u8(0x21..=0xff)).map(|b| if b == 0x7f { b'x' } else { b }).collect()
    };
    match n % 10 {
        0 => {
            let at = random.usize(7..right.len());
            right[at] ^= 1 << random.u8(..2);
            vec![("authorization", value(right))]
        }
        1 => {
            right.truncate(random.usize(..right.len()));
            vec![("authorization", value(right))]
        }
        2 => {
            right.extend(any(random, 1 + n as usize % 4000));
            vec![("authorization", value(right))]
        }
        3 => {
            vec![("authorization", value([b"Bearer ".to_vec(), any(random, 1 + n as usize % 600)].concat()))]
        }
        4 => {
            // The digest in place of the key.
            let digest = key("fk-blue")["sha256"].as_str().unwrap_or_default().to_owned();
            vec![("authorization", value(format!("Bearer {digest}").into_bytes()))]
        }
        5 => vec![("authorization", value(right)), ("authorization", value(any(random, 9)))],
        6 => vec![("authorization", value(right.clone())), ("authorization", value(right))],
        7 => vec![("authorization", value(right)), ("api-key", value(any(random, 7)))],
        8 => vec![("api-key", value(any(random, 9))), ("api-key", value(b"fk-blue".to_vec()))],
        _ => {
            let scheme =
                ["Basic", "Token", "Bearer\t", "bearer:", "Bearer,", "\"Bearer\"", "fk-blue"][n as usize % 7];
            vec![("authorization", value(format!("{scheme} fk-blue").into_bytes()))]
        }
    }
}

#[tokio::test]
async fn ten_thousand_wrong_keys_get_one_and_the_same_answer() {
    let lab = Lab::start().await;
    let proxy = Proxy::before(&lab, json!({ "teams": teams(json!({}), json!({})) })).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut bodies = BTreeSet::new();
    for n in 0..10_000 {
        let mut request = Request::builder().uri(format!("http://{}/v1/models", proxy.app.proxy_address));
        let headers = hostile(n, &mut random);
        for (name, value) in &headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::default()).expect("a request");
        let (parts, body) = within(client.request(request)).await.expect("an answer").into_parts();
        assert_eq!(parts.status, 401, "{headers:?}");
        bodies.insert(within(body.collect()).await.expect("a body").to_bytes());
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let url = format!("http://{}/v1/models", proxy.app.proxy_address);
    let got = client::send(Method::GET, &url, &[BLUE], None);
    assert_eq!(within(got).await.expect("an answer").status, 200);
    assert_eq!(lab.journal().requests().count(), 1, "only the last one's question for models");
}

#[tokio::test]
async fn every_route_refuses_no_key_a_revoked_one_and_an_expired_one() {
    let lab = Lab::start().await;
    let with_keys = |keys: Value| with(config(&lab), json!({ "teams": { "blue": { "keys": keys } } }));
    let old = with(key("fk-old"), json!({ "expires": "2020-01-01" }));
    let next = with(key("fk-next"), json!({ "expires": "2100-01-01" }));
    let proxy = Proxy::start(&with_keys(json!([key("fk-gone"), old, next]))).await;
    let base = format!("http://{}", proxy.app.proxy_address);
    let routes = [
        (Method::POST, "/v1/chat/completions"),
        (Method::GET, "/v1/chat/completions"),
        (Method::DELETE, "/v1/chat/completions"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/models/x"),
        (Method::POST, "/v1/models"),
        (Method::POST, "/v1/responses"),
        (Method::POST, "/v1/embeddings"),
        (Method::GET, "/v1/files"),
        (Method::GET, "/v1/anything/else"),
    ];
    let ask = async |method: &Method, path: &str, bearer: Option<&str>| {
        let headers: Vec<(&str, &str)> = bearer.map(|bearer| ("authorization", bearer)).into_iter().collect();
        within(client::send(
            method.clone(),
            &format!("{base}{path}"),
            &headers,
            Some(&json!({ "model": "x" })),
        ))
        .await
        .expect("an answer")
    };
    assert_ne!(ask(&Method::GET, "/v1/models", Some("Bearer fk-gone")).await.status, 401);
    reload(&proxy, &with_keys(json!([old, next])));
    let expected = refusal(&ask(&Method::GET, "/v1/models", None).await);
    assert_eq!(expected.0, 401);
    for (method, path) in &routes {
        for bearer in [None, Some("Bearer fk-gone"), Some("Bearer fk-old"), Some("Bearer fk-nobody")] {
            assert_eq!(refusal(&ask(method, path, bearer).await), expected, "{method} {path} {bearer:?}");
        }
        assert_ne!(ask(method, path, Some("Bearer fk-next")).await.status, 401, "{method} {path}");
    }
}

#[tokio::test]
async fn another_teams_key_opens_neither_the_models_nor_the_tools_of_a_team() {
    let lab = Lab::start().await;
    let teams = teams(
        json!({ "models": ["script:*"], "tools": ["look*"] }),
        json!({ "models": ["gpt-*"], "tools": [] }),
    );
    let tools = json!({ "lookup": tool(&lab, "echo", "lookup") });
    let proxy = Proxy::before(&lab, json!({ "teams": teams, "tools": tools })).await;
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "hi" } }] }));
    let narrowed = ("x-fanfold-tools", "lookup");
    assert_eq!(proxy.chat_with(&[BLUE, narrowed], &chat("x")).await.status, 200);
    assert_eq!(code(&proxy.chat_with(&[RED], &chat("x")).await), "model_not_found");
    let red = with(chat("x"), json!({ "model": "gpt-4" }));
    assert_eq!(code(&proxy.chat_with(&[RED, narrowed], &red).await), "tool_not_allowed");
    let before = lab.journal().requests().count();
    for (method, path) in [
        (Method::POST, "/v1/chat/completions"),
        (Method::POST, "/v1/completions"),
        (Method::POST, "/v1/responses"),
        (Method::POST, "/v1/embeddings"),
        (Method::POST, "/v1/moderations"),
        (Method::POST, "/v1/anything/else"),
        (Method::GET, "/v1/models/script:x"),
        (Method::DELETE, "/v1/models/script:x"),
    ] {
        let url = format!("http://{}{path}", proxy.app.proxy_address);
        let got =
            within(client::send(method.clone(), &url, &[RED], Some(&chat("x")))).await.expect("an answer");
        assert_eq!((got.status.as_u16(), code(&got).as_str()), (404, "model_not_found"), "{method} {path}");
    }
    assert_eq!(lab.journal().requests().count(), before, "none of them reached the upstream");
    let list = format!("http://{}/v1/models", proxy.app.proxy_address);
    let listed = within(client::send(Method::GET, &list, &[RED], None)).await.expect("an answer");
    assert!(!listed.body.contains("script"), "nor are they listed: {}", listed.body);
}

#[tokio::test]
async fn a_body_that_hides_its_model_is_refused_to_a_team_with_a_list() {
    let lab = Lab::start().await;
    let teams = json!({ "blue": { "keys": [key("fk-blue")], "models": ["cheap-*"] } });
    let proxy = Proxy::before(&lab, json!({ "teams": teams })).await;
    let address = proxy.app.proxy_address;
    let ask = async |path: &str, kind: &str, body: &str| {
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer fk-blue\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        within(support::raw::exchange(address, text.as_bytes())).await.status
    };
    const JSON: &str = "application/json";
    for (kind, body, status) in [
        (JSON, r#"{"model":"dear"}"#, 404),
        (JSON, r#"{"model":"cheap-1","model":"dear"}"#, 400),
        (JSON, r#"{"model":"cheap-1","\u006dodel":"dear"}"#, 400),
        (JSON, "\u{feff}{\"model\":\"dear\"}", 400),
        (JSON, r#"{"model":"dear"} ;"#, 400),
        ("application/octet-stream", r#"{"model":"dear"}"#, 404),
        ("multipart/form-data", r#"{"model":"dear"}"#, 404),
        ("multipart/form-data; boundary=x", "--x--", 400),
    ] {
        assert_eq!(ask("/v1/responses", kind, body).await, status, "{kind} {body}");
        assert_eq!(ask("/v1/embeddings", kind, body).await, status, "{kind} {body}");
    }
    assert_eq!(lab.journal().requests().count(), 0, "none of them reached the upstream");
    assert!(
        ![400, 404]
            .contains(&ask("/v1/audio/transcriptions", "multipart/form-data; boundary=x", "--x--").await)
    );
}

#[tokio::test]
async fn a_tool_that_is_taken_away_in_the_middle_of_a_turn_is_not_called_any_more() {
    let lab = Lab::start().await;
    let tools = json!({ "first": tool(&lab, "echo", "first"), "second": tool(&lab, "echo", "second") });
    let with_tools = |names: Value| {
        let teams = json!({ "blue": { "keys": [key("fk-blue")], "tools": names } });
        with(config(&lab), json!({ "tools": tools, "teams": teams }))
    };
    let proxy = Proxy::start(&with_tools(json!(["first", "second"]))).await;
    let call = |name: &str| json!({ "reply": { "calls": [{ "name": name, "arguments": {} }] } });
    let stalls = json!({ "steps": [{ "head": {} }, "stall", { "events": [
        { "id": "c", "object": "chat.completion.chunk", "choices": [{ "index": 0, "delta": { "role": "assistant", "tool_calls": [
            { "index": 0, "id": "call_2", "type": "function", "function": { "name": "second", "arguments": "{}" } }] }, "finish_reason": null }] },
        { "id": "c", "object": "chat.completion.chunk", "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] },
        "[DONE]"] }] });
    lab.script("taken", json!({ "rounds": [call("first"), stalls, { "reply": { "text": "done" } }] }));
    let chat = chat("taken");
    let turn = proxy.chat_with(&[BLUE], &chat);
    let meanwhile = async {
        within(lab.wait_until(|seen| seen.of_script("taken").count() == 2)).await;
        reload(&proxy, &with_tools(json!(["first"])));
        lab.release("taken");
    };
    let (got, ()) = tokio::join!(turn, meanwhile);
    assert_eq!(proxy::reply(&got).text, "done");
    let seen = lab.journal();
    let calls = |name: &str| seen.requests().filter(|(_, r)| r.tool.as_deref() == Some(name)).count();
    assert_eq!((calls("first"), calls("second")), (1, 0));
    let last = seen.bodies("taken").pop().expect("a third question");
    let told = last["messages"].as_array().and_then(|all| all.last()).expect("messages");
    assert!(told["content"].as_str().is_some_and(|text| text.contains("may not be used any more")), "{told}");
    assert_eq!(
        proxy.metric("gen_ai_execute_tool_duration_seconds_count{tool=\"second\",outcome=\"denied\"}"),
        Some(1.0)
    );
}

// ---- places

/// One place for all, and a script that holds it until it is released.
async fn one_place(lab: &Lab, limits: Value) -> Proxy {
    lab.script("held", json!({ "rounds": [{ "steps": ["stall", { "json": { "object": "chat.completion",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": "x" }, "finish_reason": "stop" }] } }] }] }));
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }] }));
    let limits = with(json!({ "turns_at_once": 1 }), limits);
    Proxy::before(lab, json!({ "teams": teams(json!({}), json!({})), "limits": limits })).await
}

/// The order in which requests reached the model server, by what their user said.
fn order(seen: &Snapshot) -> Vec<String> {
    seen.bodies("x")
        .iter()
        .map(|body| body["messages"][0]["content"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn saying(text: &str) -> Value {
    with(chat("x"), json!({ "messages": [{ "role": "user", "content": text }] }))
}

#[tokio::test]
async fn a_team_that_floods_the_gateway_does_not_keep_another_waiting_behind_it() {
    let lab = Lab::start().await;
    let proxy = one_place(&lab, json!({ "turn_wait": "60s" })).await;
    let held = chat("held");
    let holds = proxy.chat_with(&[BLUE], &held);
    let others = async {
        within(lab.wait_until(|seen| seen.of_script("held").count() == 1)).await;
        let flood = async {
            let bodies: Vec<Value> = (0..100).map(|n| saying(&format!("blue {n}"))).collect();
            let all = bodies.iter().map(|body| proxy.chat_with(&[BLUE], body));
            futures_util::future::join_all(all).await
        };
        let quiet = async {
            waiting(&proxy, "blue", 100).await;
            let body = saying("red");
            let got = proxy.chat_with(&[RED], &body);
            let release = async {
                waiting(&proxy, "red", 1).await;
                lab.release("held");
            };
            tokio::join!(got, release).0
        };
        tokio::join!(flood, quiet)
    };
    let (held, (flood, quiet)) = tokio::join!(holds, others);
    assert!(held.status == 200 && quiet.status == 200 && flood.iter().all(|got| got.status == 200));
    let order = order(&lab.journal());
    let place = order.iter().position(|said| said == "red").expect("it was served");
    assert!(place <= 1, "at most one of the hundred goes before it: {order:?}");
    assert_eq!(proxy.metric("fanfold_turn_wait_seconds_count{team=\"red\"}"), Some(1.0));
}

/// Waits until so many requests of a team wait for a place.
async fn waiting(proxy: &Proxy, team: &str, count: u32) {
    let name = format!("fanfold_turns_waiting{{team=\"{team}\"}}");
    within(async {
        while proxy.metric(&name) != Some(f64::from(count)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn overload_is_told_before_the_body_is_read() {
    let lab = Lab::start().await;
    for (limits, hit) in [
        (json!({ "turns_waiting_per_team": 0 }), "turns_waiting_per_team"),
        (json!({ "turn_wait": "50ms" }), "turn_wait"),
    ] {
        lab.clear();
        let proxy = one_place(&lab, limits).await;
        let held = chat("held");
        let holds = proxy.chat_with(&[BLUE], &held);
        let refused = async {
            within(lab.wait_until(|seen| seen.of_script("held").count() == 1)).await;
            // No JSON: whoever read it would say so.
            let got = proxy.text(&[RED], "{".into()).await;
            lab.release("held");
            got
        };
        let (held, got) = tokio::join!(holds, refused);
        assert_eq!(held.status, 200);
        assert_eq!((got.status.as_u16(), code(&got).as_str()), (503, "overloaded"));
        assert_eq!(got.header("retry-after"), "1");
        assert_eq!(proxy.metric(&format!("fanfold_limit_hits_total{{limit=\"{hit}\"}}")), Some(1.0));
    }
}

#[tokio::test]
async fn a_client_that_leaves_gives_up_its_place_in_the_queue() {
    let lab = Lab::start().await;
    let proxy = one_place(&lab, json!({ "turn_wait": "60s" })).await;
    let held = chat("held");
    let holds = proxy.chat_with(&[BLUE], &held);
    let leaves = async {
        within(lab.wait_until(|seen| seen.of_script("held").count() == 1)).await;
        let body = saying("gone");
        {
            let gone = proxy.chat_with(&[RED], &body);
            tokio::select! {
                got = gone => panic!("{got:?}"),
                () = waiting(&proxy, "red", 1) => {}
            }
        }
        waiting(&proxy, "red", 0).await;
        lab.release("held");
        let body = saying("next");
        proxy.chat_with(&[RED], &body).await
    };
    let (held, next) = tokio::join!(holds, leaves);
    assert!(held.status == 200 && next.status == 200);
    assert_eq!(order(&lab.journal()), ["next"]);
}

#[tokio::test]
async fn a_reload_leaves_places_taken_and_makes_room_for_those_that_wait() {
    let lab = Lab::start().await;
    let proxy = one_place(&lab, json!({ "turn_wait": "60s" })).await;
    let with_places = |places: u32| {
        let limits = json!({ "turns_at_once": places, "turns_waiting_per_team": 0 });
        with(config(&lab), json!({ "teams": teams(json!({}), json!({})), "limits": limits }))
    };
    let held = chat("held");
    let holds = proxy.chat_with(&[BLUE], &held);
    let meanwhile = async {
        within(lab.wait_until(|seen| seen.of_script("held").count() == 1)).await;
        let body = saying("waits");
        let waits = proxy.chat_with(&[RED], &body);
        let reloads = async {
            waiting(&proxy, "red", 1).await;
            reload(&proxy, &with_places(2));
        };
        let (waited, ()) = tokio::join!(waits, reloads);
        reload(&proxy, &with_places(1));
        let refused = proxy.chat_with(&[RED], &body).await;
        lab.release("held");
        (waited, refused)
    };
    let (held, (waited, refused)) = tokio::join!(holds, meanwhile);
    assert!(held.status == 200 && waited.status == 200);
    assert_eq!(code(&refused), "overloaded", "the place that was taken before is still taken");
}

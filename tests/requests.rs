//! Requests that are wrong: every one gets an error in OpenAI's shape that says what to do, none
//! fails the proxy, and none makes it hold many times its size.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::client::{self, Got};
use support::gateway::{Gateway, soon};
use support::lab::Lab;
use support::process::Process;
use support::raw;

const TOOL: &str = "
tools:
  look:
    parameters: { type: object, properties: { x: { type: string } }, additionalProperties: false }
    http: { method: GET, url: 'LAB/tool/echo/look?x={x}' }
    effect: read
";

const UPSTREAM: &str = "upstreams: { main: { base_url: LAB/v1 } }\n";

async fn open(lab: &Lab) -> Gateway {
    lab.script("t", json!({ "rounds": [{ "reply": { "text": "fine" } }], "repeat": true }));
    Gateway::start(lab, &format!("{UPSTREAM}{TOOL}")).await
}

/// A request that is fine and has every member fanfold reads.
fn full() -> Value {
    json!({
        "model": "script:t",
        "messages": [{ "role": "user", "content": "How are you — ça va?" }],
        "stream": false,
        "stream_options": null,
        "parallel_tool_calls": true,
        "tool_choice": "auto",
        "tools": [{ "type": "function", "function": { "name": "mine", "strict": false, "parameters": { "type": "object", "properties": {} } } }],
        "n": 1,
        "temperature": 0.5,
        "fanfold": { "tools": ["look"], "include": [] },
    })
}

async fn post(gateway: &Gateway, body: &[u8]) -> raw::Answer {
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    soon(raw::exchange(gateway.app.proxy_address, &request)).await
}

/// Checks that an answer is an error as OpenAI's SDKs read it, with our headers, and gives it.
fn error_of(what: &str, answer: &raw::Answer) -> Value {
    let body: Value = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|e| panic!("{what}: {e}: {}", String::from_utf8_lossy(&answer.body)));
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|m| m.len() > 10), "{what}: {body}");
    assert!(error["type"].is_string() && error.get("param").is_some(), "{what}: {body}");
    assert!(error.get("code").is_some(), "{what}: {body}");
    for name in ["x-request-id", "x-fanfold-parallel"] {
        assert!(!answer.header(name).is_empty(), "{what}: no {name}");
    }
    assert_eq!(answer.header("content-type"), "application/json", "{what}");
    error.clone()
}

/// Mutations of a request's bytes, each from a random source of its own.
fn mutated(random: &mut fastrand::Rng) -> (String, Vec<u8>) {
    let good = full().to_string().into_bytes();
    let at = random.usize(..good.len());
    let mut bytes = good.clone();
    let what = match random.u8(..9) {
        0 => {
            bytes[at] ^= 1 << random.u8(..8);
            format!("bit flipped at {at}")
        }
        1 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        2 => {
            let to = (at + random.usize(..20)).min(bytes.len());
            bytes.drain(at..to);
            format!("{at}..{to} removed")
        }
        3 => {
            bytes.insert(at, random.u8(..));
            format!("a byte more at {at}")
        }
        4 => {
            bytes.extend_from_slice(&[b'}', b' ', b'x', 0, b'{', b'\n'][random.usize(..6)..]);
            "bytes after the end".into()
        }
        5 => {
            let name = random_name(random);
            let doubled = format!("{{\"{name}\":{},", wrong_value(random));
            bytes.splice(0..1, doubled.into_bytes());
            format!("{name} twice")
        }
        6 => {
            let depth = random.usize(100..100_000);
            let deep = format!("{{\"deep\":{}1{},", "[".repeat(depth), "]".repeat(depth));
            bytes.splice(0..1, deep.into_bytes());
            format!("{depth} deep")
        }
        _ => {
            let name = random_name(random);
            let value = wrong_value(random);
            bytes = with_member(&full(), &name, &value);
            format!("{name} is {}", value.chars().take(60).collect::<String>())
        }
    };
    (what, bytes)
}

fn random_name(random: &mut fastrand::Rng) -> String {
    let names: Vec<String> = full().as_object().unwrap().keys().cloned().collect();
    names[random.usize(..names.len())].clone()
}

fn wrong_value(random: &mut fastrand::Rng) -> String {
    let values = [
        "null",
        "true",
        "7",
        "-1",
        "1.5",
        "1e400",
        "\"\"",
        "\"x\"",
        "[]",
        "[7]",
        "[[]]",
        "[null]",
        "{}",
        "{\"a\":1}",
        "[{\"function\":7}]",
        "[{\"type\":\"function\",\"function\":{}}]",
        "{\"include_usage\":1}",
        "{\"tools\":7}",
        "{\"tools\":[\"nothing\"]}",
        "{\"type\":\"function\"}",
        "{\"type\":\"allowed_tools\"}",
        "{\"type\":\"function\",\"function\":{\"name\":7}}",
        "\"\\ud800\"",
        "123456789012345678901234567890",
    ];
    match random.u8(..8) {
        0 => "9".repeat(random.usize(1..5000)),
        1 => format!("\"{}\"", "x".repeat(random.usize(..100_000))),
        _ => values[random.usize(..values.len())].into(),
    }
}

fn with_member(request: &Value, name: &str, value: &str) -> Vec<u8> {
    let mut text = String::from("{");
    for (known, old) in request.as_object().unwrap() {
        let old = old.to_string();
        let comma = if text.len() > 1 { "," } else { "" };
        let _ = write!(text, "{comma}\"{known}\":{}", if known == name { value } else { &old });
    }
    text.push('}');
    text.into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_mutated_requests_are_answered_or_refused_and_never_fail_the_proxy() {
    let given = std::env::var("FANFOLD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| fastrand::u64(..));
    println!("FANFOLD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = Lab::start().await;
    let gateway = open(&lab).await;
    let (mut fine, mut refused) = (0, 0);
    for n in 0..1000 {
        let (what, body) = mutated(&mut random);
        let answer = post(&gateway, &body).await;
        let what = format!("seed {seed}, {n}: {what}: {}", String::from_utf8_lossy(&answer.body));
        match answer.status {
            200 => fine += 1,
            400..=499 => {
                refused += 1;
                error_of(&what, &answer);
            }
            status => panic!("{status}: {what}"),
        }
    }
    println!("{fine} were still valid, {refused} were refused");
    assert!(refused > 500);
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_member_is_named() {
    let lab = Lab::start().await;
    let gateway = open(&lab).await;
    for (name, value, param) in [
        ("model", "7", "model"),
        ("messages", "{}", "messages"),
        ("stream", "\"yes\"", "stream"),
        ("stream_options", "7", "stream_options"),
        ("stream_options", "{\"include_usage\":7}", "stream_options.include_usage"),
        ("parallel_tool_calls", "\"no\"", "parallel_tool_calls"),
        ("tool_choice", "7", "tool_choice"),
        ("tool_choice", "{\"type\":\"function\"}", "tool_choice.function"),
        ("tools", "{}", "tools"),
        ("tools", "[7]", "tools[0]"),
        ("tools", "[{\"type\":\"function\",\"function\":{\"name\":7}}]", "tools[0].function.name"),
        ("n", "1.5", "n"),
        ("n", "-1", "n"),
        ("n", "2", "n"),
        ("fanfold", "7", "fanfold"),
        ("fanfold", "{\"toolz\":[]}", "fanfold.toolz"),
        ("fanfold", "{\"include\":[\"x\"]}", "fanfold.include"),
    ] {
        let answer = post(&gateway, &with_member(&full(), name, value)).await;
        let error = error_of(name, &answer);
        assert_eq!(
            (answer.status, &error["code"], &error["param"]),
            (400, &json!("invalid_value"), &json!(param)),
            "{name}: {value}"
        );
    }
    for (what, body) in [
        ("nothing", &b""[..]),
        ("an array", b"[]"),
        ("a member twice", b"{\"model\":\"a\",\"model\":\"b\",\"messages\":[]}"),
        ("not UTF-8", b"{\"model\":\"\xff\",\"messages\":[]}"),
        ("bytes after the end", b"{\"model\":\"a\",\"messages\":[]}}"),
    ] {
        let answer = post(&gateway, body).await;
        assert_eq!(
            (answer.status, &error_of(what, &answer)["code"]),
            (400, &json!("invalid_json")),
            "{what}"
        );
    }
    assert_eq!(lab.journal().requests().count(), 0, "nothing of this reaches the upstream");
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_head_is_refused_with_what_to_do() {
    let lab = Lab::start().await;
    let gateway = open(&lab).await;
    let chat = "/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";
    for (request, status, code, says) in [
        ("GET /chat/completions HTTP/1.1\r\nhost: localhost\r\n".to_owned(), 404, "unknown_url", "/v1"),
        ("POST /v1/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n".into(), 404, "unknown_url", "twice"),
        ("POST /v1//chat/completions HTTP/1.1\r\nhost: localhost\r\n".into(), 404, "unknown_url", "slash"),
        (format!("PUT {chat}"), 405, "method_not_allowed", "POST"),
        (format!("DELETE {chat}"), 405, "method_not_allowed", "POST"),
        ("POST /v1/models HTTP/1.1\r\nhost: localhost\r\n".into(), 405, "method_not_allowed", "GET"),
        (
            format!("POST {chat}content-type: text/plain\r\ncontent-length: 2\r\n"),
            415,
            "unsupported_media_type",
            "application/json",
        ),
        ("POST /v1/chat/completions HTTP/1.1\r\n".into(), 400, "invalid_host", "Host"),
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n".into(),
            400,
            "invalid_host",
            "Host",
        ),
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: local host\r\n".into(), 400, "invalid_host", "Host"),
        (
            "CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443\r\n".into(),
            405,
            "method_not_allowed",
            "CONNECT",
        ),
        ("TRACE /v1/models HTTP/1.1\r\nhost: localhost\r\n".into(), 405, "method_not_allowed", "TRACE"),
        (
            format!("POST {chat}content-length: 99999999\r\nexpect: 100-continue\r\n"),
            413,
            "request_too_large",
            "16",
        ),
    ] {
        let text = format!("{request}connection: close\r\nx-request-id: mine\r\n\r\n{{}}");
        let answer = soon(raw::exchange(gateway.app.proxy_address, text.as_bytes())).await;
        let error = error_of(&request, &answer);
        assert_eq!(answer.status, status, "{request}");
        assert!(code.is_empty() || error["code"] == code, "{request}: {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{request}: {error}");
        assert_eq!(answer.header("x-request-id"), "mine", "{request}");
        assert_eq!(status == 405, !answer.header("allow").is_empty(), "{request}");
    }
    // What is no HTTP at all has no id to repeat, but gets one.
    for (request, status, code) in [
        ("GARBAGE\r\n\r\n".to_owned(), 400, "invalid_http"),
        ("POST /v1/chat/completions HTTP/9.1\r\nhost: a\r\n\r\n".into(), 400, "invalid_http"),
        (format!("POST {chat}no colon here\r\n\r\n"), 400, "invalid_http"),
        (format!("POST {chat}content-length: 1\r\ncontent-length: 2\r\n\r\n{{}}"), 400, "invalid_http"),
        (format!("POST {chat}content-length: -1\r\n\r\n"), 400, "invalid_http"),
        (format!("POST {chat}transfer-encoding: gzip\r\n\r\n"), 400, "invalid_http"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into(), 400, "invalid_http"),
        (
            format!("POST {chat}authorization: Bearer {}\r\n\r\n", "k".repeat(1 << 20)),
            431,
            "headers_too_large",
        ),
        (
            format!("GET /v1/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(70_000)),
            431,
            "headers_too_large",
        ),
    ] {
        let answer = soon(raw::exchange(gateway.app.proxy_address, request.as_bytes())).await;
        let name: String = request.chars().take(80).collect();
        let error = error_of(&name, &answer);
        assert_eq!((answer.status, &error["code"]), (status, &json!(code)), "{name}: {error}");
        assert_eq!(answer.header("x-fanfold-parallel"), "off; reason=no_tools", "{name}");
    }
    // These are looked at after the body.
    let body = full().to_string();
    for (line, param) in [
        ("x-fanfold-dry-run: maybe", "x-fanfold-dry-run"),
        ("x-fanfold-tools: n\u{e9}", "x-fanfold-tools"),
        ("x-fanfold-include: x", "fanfold.include"),
    ] {
        let text =
            format!("POST {chat}{line}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let answer = soon(raw::exchange(gateway.app.proxy_address, text.as_bytes())).await;
        let error = error_of(line, &answer);
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{line}: {error}");
    }
    gateway.ends_at_baseline(&lab).await;
}

fn digest(key: &str) -> String {
    Sha256::digest(key).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_key_gets_the_same_answer() {
    let lab = Lab::start().await;
    lab.script("t", json!({ "rounds": [{ "reply": { "text": "fine" } }], "repeat": true }));
    let teams = |key: &str| {
        format!("teams: {{ blue: {{ keys: [{{ sha256: {} }}], models: ['script:*'] }} }}\n", digest(key))
    };
    let config = |key: &str| format!("{UPSTREAM}{TOOL}{}", teams(key));
    let gateway = Gateway::start(&lab, &config("fk-good")).await;
    let body = json!({ "model": "script:t", "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    let ask = async |header: &[u8]| {
        let mut text = b"POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\nx-request-id: a\r\n".to_vec();
        text.extend_from_slice(header);
        text.extend_from_slice(format!("content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        soon(raw::exchange(gateway.app.proxy_address, &text)).await
    };
    let long = format!("authorization: Bearer {}\r\n", "x".repeat(40_000));
    let of_team = format!("authorization: Bearer {}\r\n", digest("fk-good"));
    let mut answers = Vec::new();
    for header in [
        &b""[..],
        b"authorization: \r\n",
        b"authorization: Bearer\r\n",
        b"authorization: Bearer \r\n",
        b"authorization: Basic Zms=\r\n",
        b"authorization: fk-good\r\n",
        b"authorization: Bearer fk-unknown\r\n",
        b"authorization: Bearer fk-goo\r\n",
        b"authorization: Bearer fk-good extra\r\n",
        b"authorization: Bearer \xff\xfe\x80\r\n",
        b"api-key: fk-unknown\r\n",
        long.as_bytes(),
        of_team.as_bytes(),
    ] {
        let answer = ask(header).await;
        assert_eq!(answer.status, 401, "{}", String::from_utf8_lossy(header));
        assert_eq!(error_of("key", &answer)["code"], "invalid_api_key");
        answers.push(answer.body);
    }
    assert!(answers.iter().all(|body| *body == answers[0]), "they differ");
    for good in [
        &b"authorization: Bearer fk-good\r\n"[..],
        b"authorization: bearer fk-good\r\n",
        b"api-key: fk-good\r\n",
    ] {
        assert_eq!(ask(good).await.status, 200, "a foreign host name is fine with a key");
    }
    // Revoked: another configuration without it.
    let yaml = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: 127.0.0.1:0 }}\n{}",
        config("fk-new").replace("LAB", &lab.url())
    );
    let reading = fanfold::config::read_text("t", &yaml, &|_| None, &fanfold::config::Flags::default());
    let (loaded, catalog) = reading.finish_with_tools().unwrap_or_else(|problems| panic!("{problems}"));
    gateway.app.reload(&loaded, catalog).unwrap();
    assert_eq!(ask(b"authorization: Bearer fk-good\r\n").await.body, answers[0], "revoked");
    assert_eq!(ask(b"authorization: Bearer fk-new\r\n").await.status, 200);
    gateway.ends_at_baseline(&lab).await;
}

async fn chat(gateway: &Gateway, body: &Value, headers: &[(&str, &str)]) -> Got {
    let url = format!("{}/chat/completions", gateway.base_url());
    soon(client::send(http::Method::POST, &url, headers, Some(body))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_may_not_use_is_told_in_openais_words() {
    let lab = Lab::start().await;
    let mut config = format!(
        "{UPSTREAM}limits: {{ tools_per_request: 4 }}\nroutes: [{{ model: 'script:*', upstreams: [main] }}]\n{TOOL}"
    );
    config.push_str("  other: { http: { method: GET, url: 'LAB/tool/echo/other' }, effect: read }\n");
    let _ = writeln!(
        config,
        "teams: {{ blue: {{ keys: [{{ sha256: {} }}], models: ['script:t'], tools: [look] }} }}",
        digest("k")
    );
    let gateway = Gateway::start(&lab, &config).await;
    lab.script("t", json!({ "rounds": [{ "reply": { "text": "fine" } }], "repeat": true }));
    let key = ("authorization", "Bearer k");
    let request = |model: &str, tools: &[&str]| {
        let tool = |name: &&str| json!({ "type": "function", "function": { "name": name } });
        json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }], "tools": tools.iter().map(tool).collect::<Vec<_>>() })
    };
    for (body, headers, status, code, param) in [
        (request("script:u", &["a"]), vec![key], 404, "model_not_found", "model"),
        (request("gpt-4", &["a"]), vec![key], 404, "model_not_found", "model"),
        (
            request("script:t", &["a"]),
            vec![key, ("x-fanfold-tools", "look, nothing")],
            403,
            "tool_not_allowed",
            "x-fanfold-tools",
        ),
        (
            request("script:t", &["a"]),
            vec![key, ("x-fanfold-tools", "other")],
            403,
            "tool_not_allowed",
            "x-fanfold-tools",
        ),
        (request("script:t", &["look"]), vec![key], 400, "tool_name_conflict", "tools"),
        (request("script:t", &["a", "b", "c", "d"]), vec![key], 400, "too_many_tools", "tools"),
    ] {
        let got = chat(&gateway, &body, &headers).await;
        let error = &got.json()["error"];
        assert_eq!(
            (got.status.as_u16(), &error["code"], &error["param"]),
            (status, &json!(code), &json!(param)),
            "{headers:?}: {error}"
        );
    }
    let refused = async |name: &str| {
        let got = chat(&gateway, &request("script:t", &["a"]), &[key, ("x-fanfold-tools", name)]).await;
        got.body.replace(name, "NAME")
    };
    assert_eq!(refused("other").await, refused("no_such").await, "another team's tool looks like none");
    let twice = [key, ("x-fanfold-tools", "look"), ("x-fanfold-tools", "nothing")];
    assert_eq!(chat(&gateway, &request("script:t", &["a"]), &twice).await.status, 403, "every line counts");
    for (tools, headers) in [(vec!["look"], "none"), (vec!["a", "b", "c", "d"], "none"), (vec!["a"], "look")]
    {
        let got = chat(&gateway, &request("script:t", &tools), &[key, ("x-fanfold-tools", headers)]).await;
        assert_eq!(got.status, 200, "{}", got.body);
    }
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_tool_with_parallel_calls_is_refused_where_the_operator_wants_that() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, &format!("{UPSTREAM}policy: {{ strict_parallel: reject }}\n")).await;
    let mut body = full();
    body.as_object_mut().unwrap().remove("fanfold");
    body["tools"][0]["function"]["strict"] = json!(true);
    let got = chat(&gateway, &body, &[]).await;
    let error = &got.json()["error"];
    assert_eq!(
        (got.status.as_u16(), error["code"].as_str()),
        (400, Some("strict_parallel_conflict")),
        "{error}"
    );
    assert_eq!(error["param"], "parallel_tool_calls");
    assert!(error["message"].as_str().unwrap().contains("mine"), "{error}");
    assert_eq!(got.header("x-fanfold-parallel"), "off; reason=strict_tool");
    assert_eq!(lab.journal().entries.len(), 0, "nothing was asked");
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_other_sites_cannot_use_the_proxy_through_a_browser() {
    let lab = Lab::start().await;
    let gateway = open(&lab).await;
    let ask = async |lines: &str| {
        let body = "{\"model\":\"script:t\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
        let text = format!(
            "POST /v1/chat/completions HTTP/1.1\r\n{lines}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        soon(raw::exchange(gateway.app.proxy_address, text.as_bytes())).await
    };
    for fine in [
        "host: localhost\r\n",
        "host: 127.0.0.1:4100\r\n",
        "host: localhost\r\norigin: http://localhost:5173\r\n",
    ] {
        assert_eq!(ask(fine).await.status, 200, "{fine}");
    }
    for foreign in [
        "host: evil.example\r\n",
        "host: localhost\r\norigin: https://evil.example\r\n",
        "host: localhost\r\norigin: null\r\n",
    ] {
        let answer = ask(foreign).await;
        assert_eq!(
            (answer.status, &error_of(foreign, &answer)["code"]),
            (403, &json!("foreign_visitor")),
            "{foreign}"
        );
    }
    let admin = |lines: &str| format!("GET /metrics HTTP/1.1\r\n{lines}connection: close\r\n\r\n");
    for (lines, status) in [
        ("host: localhost\r\n", 200),
        ("host: evil.example\r\n", 403),
        ("host: localhost\r\norigin: https://evil.example\r\n", 403),
        ("host: localhost\r\norigin: http://localhost:3000\r\n", 403),
    ] {
        let answer = soon(raw::exchange(gateway.app.admin_address, admin(lines).as_bytes())).await;
        assert_eq!(answer.status, status, "{lines}");
    }
    gateway.ends_at_baseline(&lab).await;
}

/// Large bodies, made of the smallest things there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_of_tiny_things_costs_less_than_ten_times_its_size() {
    const SIZE: usize = 3 * 1024 * 1024;
    let lab = Lab::start().await;
    lab.script(
        "mixed",
        json!({ "rounds": [{ "reply": { "calls": [
        { "name": "look", "arguments": {} }, { "name": "mine", "arguments": {} }] } }] }),
    );
    let config = format!("{UPSTREAM}{TOOL}").replace("LAB", &lab.url());
    let fill = |start: &str, tiny: &str, end: &str| {
        let mut body = start.to_owned();
        while body.len() + tiny.len() + end.len() < SIZE {
            body.push_str(tiny);
        }
        body.truncate(body.trim_end_matches(',').len());
        body + end
    };
    let members = || {
        let mut body = String::from("{\"model\":\"none\",\"messages\":[]");
        for n in 0u32.. {
            let _ = write!(body, ",\"{n}\":0");
            if body.len() > SIZE - 30 {
                return body + "}";
            }
        }
        body
    };
    let cases = [
        ("messages", fill("{\"model\":\"none\",\"messages\":[", "{},", "]}")),
        (
            "messages with calls",
            fill("{\"model\":\"none\",\"messages\":[", "{\"tool_calls\":[{\"id\":\"a\"}]},", "]}"),
        ),
        ("numbers", fill("{\"model\":\"none\",\"x\":[", "0,", "],\"messages\":[]}")),
        ("members", members()),
        ("tools", fill("{\"model\":\"none\",\"messages\":[],\"tools\":[", "{},", "]}")),
        ("own tools", fill("{\"model\":\"none\",\"messages\":[],\"fanfold\":{\"tools\":[", "\"\",", "]}}")),
        (
            "allowed tools",
            fill(
                "{\"model\":\"none\",\"messages\":[],\"tool_choice\":{\"type\":\"allowed_tools\",\"tools\":[",
                "{},",
                "]}}",
            ),
        ),
    ];
    let one = async |(what, body): (&str, String)| {
        let process = Process::start(&config).await;
        // With parked results, the messages are looked through.
        let tools = json!([{ "type": "function", "function": { "name": "mine" } }]);
        let mixed = json!({ "model": "script:mixed", "messages": [{ "role": "user", "content": "hi" }], "tools": tools });
        let got = soon(client::chat(&process.base_url(), &mixed)).await.unwrap();
        assert_eq!(got.json()["choices"][0]["finish_reason"], "tool_calls", "{}", got.body);
        let before = process.peak_memory();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = soon(raw::exchange(process.proxy, (head + &body).as_bytes())).await;
        let grown = process.peak_memory() - before;
        #[expect(clippy::cast_precision_loss, reason = "to be read")]
        let times = grown as f64 / body.len() as f64;
        println!("{what}: {times:.1} times its size, status {}", answer.status);
        assert!(answer.status < 500, "{what}: {}", answer.status);
        assert!(times < 10.0, "{what}: {times:.1} times its size");
    };
    futures_util::future::join_all(cases.map(one)).await;
}

//! What a client gets when its upstream fails: whole, before the stream began, in the middle of it,
//! and after a tool with effects ran.
//!
//! Every case asks a script of its own, so many of them run at once before one proxy.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use support::client::{self, Got};
use support::fold::{self, Folded};
use support::gateway::{Gateway, closed_port, soon};
use support::lab::Lab;

/// The proxy of every case. So many failures would open its breaker. Models that begin with `script:late` belong to an upstream that is
/// given up soon.
const CONFIG: &str = "
upstreams:
  main: { base_url: LAB/v1, breaker: { requests: 1000000 }, retries: { per_second: 10000 } }
  late: { base_url: LAB/v1, head_timeout: 1500ms, stall_timeout: 1500ms, breaker: { requests: 1000000 } }
routes:
  - { model: 'script:late*', upstreams: [late] }
  - { model: '*', upstreams: [main] }
limits: { event: 64KiB, reply: 256KiB }
tools:
  save:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: POST, url: 'LAB/tool/count/{label}' }
    effect: write
";

/// A failure before anything of the reply could be shown.
struct Before {
    name: &'static str,
    /// What each request gets; the last one again and again.
    answers: Vec<Value>,
    /// Requests the upstream sees.
    asked: usize,
    status: u16,
    code: &'static str,
    retry_after: &'static str,
}

fn before(name: &'static str, steps: Value, asked: usize, status: u16, code: &'static str) -> Before {
    Before { name, answers: vec![steps], asked, status, code, retry_after: "" }
}

fn status(status: u16, headers: Value) -> Value {
    let body = json!({ "error": { "message": "as told", "type": "t", "param": null, "code": "told" } });
    json!([{ "answer": { "status": status, "headers": headers, "body": body } }])
}

fn chunk(delta: Value, finish: Value) -> Value {
    json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "m",
        "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }] })
}

fn text(content: &str) -> Value {
    chunk(json!({ "role": "assistant", "content": content }), Value::Null)
}

fn comments() -> Vec<Value> {
    (0..40).flat_map(|_| [json!({ "send": ": wait\n\n" }), json!({ "wait_ms": 100 })]).collect()
}

fn faults_before_anything_is_shown() -> Vec<Before> {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\nx-long: {}\r\n\r\n", "x".repeat(length));
    let raw = |text: &str| json!([{ "raw": text }]);
    let error = |code: Value| json!([{ "events": [{ "error": { "message": "inside", "code": code } }] }]);
    let mut rows = vec![
        before("reset before the head", json!(["reset"]), 2, 502, "upstream_reset"),
        before("closed before the head", json!(["close"]), 2, 502, "upstream_reset"),
        before(
            "reset inside the head",
            json!([{ "raw": "HTTP/1.1 200 OK\r\ncont" }, { "wait_ms": 50 }, "reset"]),
            2,
            502,
            "upstream_reset",
        ),
        before(
            "closed inside the head",
            json!([{ "raw": "HTTP/1.1 200 OK\r\ncont" }, "close"]),
            2,
            502,
            "upstream_reset",
        ),
        before("garbage head", raw("nonsense\r\n\r\n"), 1, 502, "upstream_protocol_error"),
        before(
            "two content-lengths",
            raw("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc"),
            1,
            502,
            "upstream_protocol_error",
        ),
        before(
            "101",
            raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            1,
            502,
            "upstream_protocol_error",
        ),
        before("204", raw("HTTP/1.1 204 No Content\r\n\r\n"), 1, 502, "upstream_protocol_error"),
        before(
            "redirect",
            json!([{ "answer": { "status": 302, "headers": { "location": "/x" } } }]),
            1,
            502,
            "upstream_protocol_error",
        ),
        before("huge headers", raw(&head(200_000)), 1, 502, "upstream_protocol_error"),
        before("late: no head in time", json!(["stall"]), 2, 504, "upstream_timeout"),
        before("late: stall in the body", json!([{ "head": {} }, "stall"]), 2, 504, "upstream_timeout"),
        before("late: comments for ever", json!(comments()), 2, 504, "upstream_timeout"),
        before(
            "late: one byte now and then",
            json!([{ "head": {} }, { "send": "d" }, { "wait_ms": 400 }, { "send": "a" }, { "wait_ms": 400 }, { "send": "t" }, { "wait_ms": 400 }, "stall"]),
            2,
            504,
            "upstream_timeout",
        ),
        before("cut", json!([{ "head": {} }, "close"]), 2, 502, "upstream_truncated"),
        before(
            "reset in the body",
            json!([{ "head": {} }, { "wait_ms": 50 }, "reset"]),
            2,
            502,
            "upstream_truncated",
        ),
        before(
            "short body",
            json!([{ "head": { "framing": "length", "length": 100 } }, { "send": "data: " }, "close"]),
            2,
            502,
            "upstream_truncated",
        ),
        before("half an event", json!([{ "send": "data: {\"id\":\"ch" }]), 2, 502, "upstream_truncated"),
        before(
            "half an event, then a cut",
            json!([{ "send": "data: {\"id\":\"ch" }, "close"]),
            2,
            502,
            "upstream_truncated",
        ),
        before("not JSON", json!([{ "send": "data: nonsense\n\n" }]), 2, 502, "upstream_invalid_reply"),
        before(
            "not UTF-8",
            json!([{ "hex": "64 61 74 61 3a 20 7b 22 61 22 3a 22 ff 22 7d 0a 0a" }]),
            2,
            502,
            "upstream_invalid_reply",
        ),
        before("200 with nothing", json!([{ "head": {} }]), 2, 502, "upstream_invalid_reply"),
        before(
            "200 with HTML",
            json!([{ "answer": { "headers": { "content-type": "text/html" }, "body": "<html></html>" } }]),
            2,
            502,
            "upstream_invalid_reply",
        ),
        before(
            "200 with an error body",
            json!([{ "json": { "error": { "message": "inside" } } }]),
            2,
            502,
            "upstream_error",
        ),
        before("200 with other JSON", json!([{ "json": { "hello": 1 } }]), 2, 502, "upstream_invalid_reply"),
        before("only the end mark", json!([{ "events": ["[DONE]"] }]), 2, 502, "upstream_invalid_reply"),
        before("error inside the stream", error(json!("server_error")), 2, 502, "upstream_error"),
        before("error inside the stream with a number", error(json!(422)), 1, 422, "422"),
        Before {
            retry_after: "1",
            ..before(
                "quota inside the stream",
                error(json!("rate_limit_exceeded")),
                3,
                429,
                "rate_limit_exceeded",
            )
        },
        before(
            "event over the limit",
            json!([{ "events": [text(&"x".repeat(70_000))] }]),
            1,
            502,
            "upstream_reply_too_large",
        ),
        before(
            "whole reply over the limit",
            json!([{ "json": text(&"x".repeat(300_000)) }]),
            1,
            502,
            "upstream_reply_too_large",
        ),
        before("500", status(500, json!({})), 2, 502, "upstream_error"),
        before("502", status(502, json!({})), 2, 502, "upstream_error"),
        before("504", status(504, json!({})), 2, 502, "upstream_error"),
        before("401", status(401, json!({})), 1, 502, "upstream_auth_error"),
        before("403", status(403, json!({})), 1, 502, "upstream_auth_error"),
    ];
    for (name, refused) in [("400", 400), ("404", 404), ("409", 409), ("413", 413), ("422", 422)] {
        rows.push(before(name, status(refused, json!({})), 1, refused, "told"));
    }
    for (name, told, header, wait, asked, retry_after) in [
        ("429, soon", 429, "retry-after", "0.1", 3, "1"),
        ("429, later", 429, "retry-after", "30", 1, "30"),
        ("429, much later", 429, "retry-after", "3600", 1, "60"),
        ("503, soon", 503, "retry-after-ms", "100", 3, "1"),
        ("503, later", 503, "retry-after", "7", 1, "7"),
        ("529, later", 529, "retry-after", "7", 1, "7"),
    ] {
        let answers = vec![status(told, json!({ (header): wait }))];
        rows.push(Before { name, answers, asked, status: told, code: "told", retry_after });
    }
    rows
}

/// A failure after text was shown, with the code of the event that tells it.
fn faults_in_the_middle() -> Vec<(&'static str, Vec<Value>, &'static str)> {
    let event = |value: Value| json!({ "events": [value] });
    let call = |i: usize| json!({ "index": i, "id": format!("c{i}"), "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let calls = (0..400).map(|i| chunk(json!({ "tool_calls": [call(i)] }), Value::Null)).collect();
    vec![
        ("too many calls", vec![json!({ "events": Value::Array(calls) })], "upstream_reply_too_large"),
        ("reset", vec![json!({ "wait_ms": 50 }), json!("reset")], "upstream_truncated"),
        ("closed", vec![json!("close")], "upstream_truncated"),
        ("ended without a finish", vec![], "upstream_truncated"),
        ("half an event", vec![json!({ "send": "data: {\"id\":" })], "upstream_truncated"),
        (
            "half an event, closed",
            vec![json!({ "send": "data: {\"id\":" }), json!("close")],
            "upstream_truncated",
        ),
        ("late: stall", vec![json!("stall")], "upstream_timeout"),
        ("late: comments", comments(), "upstream_timeout"),
        ("not JSON", vec![event(json!("nonsense"))], "upstream_invalid_reply"),
        ("event too large", vec![event(text(&"x".repeat(70_000)))], "upstream_reply_too_large"),
        (
            "reply too large",
            (0..6).map(|_| event(text(&"x".repeat(60_000)))).collect(),
            "upstream_reply_too_large",
        ),
        (
            "error",
            vec![event(json!({ "error": { "message": "inside", "code": "server_error" } }))],
            "upstream_error",
        ),
        ("busy", vec![event(json!({ "error": { "message": "inside", "code": 429 } }))], "429"),
        (
            "named error",
            vec![json!({ "send": "event: error\ndata: {\"error\":{\"message\":\"inside\"}}\n\n" })],
            "upstream_error",
        ),
        ("flat error", vec![json!({ "send": "event: error\ndata: overloaded\n\n" })], "upstream_error"),
    ]
}

/// Plays cases, some at once. Those whose upstream is given up soon come last and by themselves, so
/// that it is never late because of the others.
async fn each<C>(cases: impl IntoIterator<Item = C>, name: impl Fn(&C) -> String, play: impl AsyncFn(C)) {
    let (late, others): (Vec<C>, Vec<C>) = cases.into_iter().partition(|case| name(case).starts_with("late"));
    stream::iter(others).map(|case| play(case)).buffer_unordered(12).collect::<Vec<()>>().await;
    join_all(late.into_iter().map(|case| play(case))).await;
}

async fn ask(gateway: &Gateway, script: &str, stream: bool, headers: &[(&str, &str)]) -> Got {
    let body = json!({ "model": format!("script:{script}"), "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }] });
    let url = format!("{}/chat/completions", gateway.base_url());
    let got = soon(client::send(http::Method::POST, &url, headers, Some(&body))).await;
    let got = got.unwrap_or_else(|error| panic!("{script}: the answer broke off: {error}"));
    assert!(!got.header("x-request-id").is_empty(), "{script}");
    assert!(!got.header("x-fanfold-parallel").is_empty(), "{script}");
    got
}

/// The code of an answer that has to be an error in its whole or at its end.
fn code(name: &str, got: &Got) -> String {
    assert!(!got.body.contains("[DONE]"), "{name}: {}", got.body);
    match fold::answer(got) {
        Ok(Folded::Error(Some(code))) => code,
        other => panic!("{name}: {other:?}\n{}", got.body),
    }
}

fn script(rounds: &[Value]) -> Value {
    let rounds: Vec<Value> = rounds.iter().map(|steps| json!({ "steps": steps })).collect();
    json!({ "rounds": rounds, "advance": "requests", "repeat": true, "lenient": true })
}

/// A name for a script that keeps its first word, which chooses the upstream.
fn named(name: &str, column: &str) -> String {
    format!("{name} {column}")
}

fn check_status(row: &Before, name: &str, got: &Got) {
    assert_eq!(
        (got.status.as_u16(), code(name, got).as_str(), got.header("retry-after")),
        (row.status, row.code, row.retry_after),
        "{name}: {}",
        got.body
    );
    assert_eq!(got.header("x-should-retry"), "", "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_before_anything_was_shown_has_its_status_whole_and_streamed() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let rows = faults_before_anything_is_shown();
    let cases = rows.iter().flat_map(|row| [(row, false), (row, true)]);
    each(
        cases,
        |(row, _)| row.name.to_owned(),
        async |(row, stream)| {
            let name = named(row.name, if stream { "streamed" } else { "whole" });
            lab.script(&name, script(&row.answers));
            let got = ask(&gateway, &name, stream, &[]).await;
            check_status(row, &name, &got);
            assert_eq!(lab.journal().of_script(&name).count(), row.asked, "{name}");
        },
    )
    .await;
    assert!(gateway.metric("fanfold_upstream_credentials_refused_total{upstream=\"main\"}") >= 4.0);
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_in_the_middle_ends_the_stream_with_an_error_event_and_is_not_asked_again() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let rows = faults_in_the_middle();
    each(
        rows.iter(),
        |(name, ..)| (*name).to_owned(),
        async |(name, tail, wanted)| {
            let name = named(name, "in the middle");
            let mut steps = vec![json!({ "events": [text("Hel")] })];
            steps.extend(tail.iter().cloned());
            lab.script(&name, script(&[json!(steps)]));
            let got = ask(&gateway, &name, true, &[]).await;
            assert_eq!(got.status, 200, "{name}: {}", got.body);
            assert!(got.body.contains("\"content\":\"Hel\""), "{name}: {}", got.body);
            assert_eq!(code(&name, &got), *wanted, "{name}: {}", got.body);
            assert_eq!(lab.journal().of_script(&name).count(), 1, "{name}");
        },
    )
    .await;
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_tool_with_effects_no_failure_invites_a_repetition() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let before = faults_before_anything_is_shown();
    let middle = faults_in_the_middle().into_iter().map(|(name, tail, _)| {
        let mut steps = vec![json!({ "events": [text("Hel")] })];
        steps.extend(tail);
        (named(name, "after text"), vec![json!(steps)], None)
    });
    let rows: Vec<(String, Vec<Value>, Option<usize>)> = before
        .into_iter()
        .map(|row| (row.name.to_owned(), row.answers, Some(row.asked)))
        .chain(middle)
        .collect();
    let cases = rows.iter().flat_map(|row| [(row, false), (row, true)]);
    each(
        cases,
        |((name, ..), _)| name.clone(),
        async |((name, answers, asked), stream)| {
            let name = named(name, if stream { "after save, streamed" } else { "after save" });
            let label = name.replace([' ', ':', ',', '[', ']'], "_");
            let call = json!([{ "name": "save", "arguments": { "label": label } }]);
            let mut rounds = vec![json!({ "reply": { "calls": call } })];
            rounds.extend(answers.iter().map(|steps| json!({ "steps": steps })));
            lab.script(
                &name,
                json!({ "rounds": rounds, "advance": "conversation", "repeat": true, "lenient": true }),
            );
            let got = ask(&gateway, &name, stream, &[]).await;
            assert_eq!(code(&name, &got), "turn_failed_after_tools", "{name}: {}", got.body);
            assert!(got.body.contains("save"), "{name}: it names the tool: {}", got.body);
            if stream {
                assert_eq!(got.status, 200, "{name}");
            } else {
                assert_eq!((got.status.as_u16(), got.header("x-should-retry")), (424, "false"), "{name}");
                assert_eq!(got.header("retry-after"), "", "{name}");
            }
            let seen = lab.journal();
            let runs = seen.tools.get(label.as_str()).map_or(0, |runs| runs.started);
            assert_eq!(runs, 1, "{name}: the tool runs once");
            if let Some(asked) = asked {
                let after = seen.of_script(&name).filter(|(_, request)| request.round == Some(1));
                assert_eq!(after.count(), *asked, "{name}");
            }
        },
    )
    .await;
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_heals_by_asking_again_is_not_seen_by_the_client() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let good = json!({ "reply": { "text": "fine" } });
    let busy = json!({ "steps": status(429, json!({ "retry-after": "0.05" })) });
    let role = json!({ "events": [chunk(json!({ "role": "assistant", "content": "" }), Value::Null)] });
    let cases: [(&str, Vec<Value>, usize); 7] = [
        (
            "closed on a connection of the pool",
            vec![good.clone(), json!({ "steps": ["close"] }), good.clone()],
            3,
        ),
        ("reset once", vec![json!({ "steps": ["reset"] }), good.clone()], 2),
        ("busy twice", vec![busy.clone(), busy, good.clone()], 3),
        ("500 once", vec![json!({ "steps": status(500, json!({})) }), good.clone()], 2),
        ("cut after the role", vec![json!({ "steps": [role, "close"] }), good.clone()], 2),
        ("late: stall once", vec![json!({ "steps": ["stall"] }), good.clone()], 2),
        (
            "no end mark",
            vec![json!({ "steps": [{ "events": [text("fine"), chunk(json!({}), json!("stop"))] }] })],
            1,
        ),
    ];
    let both = cases.iter().flat_map(|case| [(case, false), (case, true)]);
    each(
        both,
        |((name, ..), _)| (*name).to_owned(),
        async |((name, rounds, asked), stream)| {
            let name = named(name, if stream { "healed, streamed" } else { "healed" });
            lab.script(&name, json!({ "rounds": rounds, "advance": "requests" }));
            let times = if name.starts_with("closed on") { 2 } else { 1 };
            for _ in 0..times {
                let got = ask(&gateway, &name, stream, &[]).await;
                match fold::answer(&got) {
                    Ok(Folded::Reply(reply)) => {
                        assert_eq!((reply.text.as_str(), reply.finish.as_str()), ("fine", "stop"), "{name}")
                    }
                    other => panic!("{name}: {other:?} {}", got.body),
                }
            }
            assert_eq!(lab.journal().of_script(&name).count(), *asked, "{name}");
        },
    )
    .await;
    assert!(gateway.metric("fanfold_upstream_retries_total{reason=\"busy\"}") >= 4.0);
    gateway.ends_at_baseline(&lab).await;
}

/// A configuration whose only upstream is somewhere else.
fn elsewhere(base_url: &str, more: &str) -> String {
    format!(
        "upstreams: {{ main: {{ base_url: '{base_url}', connect_timeout: 300ms, breaker: {{ connects: 1000 }}{more} }} }}\n"
    )
}

async fn without_an_upstream(config: &str) -> (Vec<Got>, f64, Gateway) {
    let lab = Lab::start().await;
    let tool = "tools: { look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read } }\n";
    let gateway = Gateway::start(&lab, &format!("{config}{tool}")).await;
    let mut answers = Vec::new();
    for (stream, headers) in [
        (false, vec![]),
        (true, vec![]),
        (false, vec![("x-fanfold-tools", "none")]),
        (true, vec![("x-fanfold-tools", "none")]),
    ] {
        answers.push(ask(&gateway, "x", stream, &headers).await);
    }
    let retries = |reason: &str| format!("fanfold_upstream_retries_total{{reason=\"{reason}\"}}");
    let again = ["unreachable", "unresolved", "connect_timeout", "tls"]
        .map(|reason| gateway.metric(&retries(reason)));
    (answers, again.iter().sum(), gateway)
}

async fn unreachable(config: String, status: u16, wanted: &str, again: f64) {
    let (answers, retried, gateway) = without_an_upstream(&config).await;
    for got in &answers {
        assert_eq!(
            (got.status.as_u16(), code(&config, got).as_str()),
            (status, wanted),
            "{config}: {}",
            got.body
        );
        let message = got.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(!message.contains("127.0.0.1") && !message.contains("os error"), "internals: {message}");
    }
    assert!((retried - again * 4.0).abs() < 0.1, "{config}: asked again {retried} times in 4 requests");
    soon(gateway.app.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_is_asked_again_and_then_told() {
    let (closed, _held) = closed_port();
    let full = full_house();
    let hole = full.0;
    tokio::join!(
        unreachable(elsewhere(&format!("http://{closed}/v1"), ""), 502, "upstream_unreachable", 2.0).boxed(),
        unreachable(
            elsewhere(&format!("http://{}/v1", "x".repeat(64)), ""),
            502,
            "upstream_unreachable",
            2.0
        )
        .boxed(),
        unreachable(elsewhere(&format!("http://{hole}/v1"), ""), 504, "upstream_timeout", 1.0).boxed(),
    );
}

/// A listener whose queue is full, so that connecting to it takes for ever.
fn full_house() -> (std::net::SocketAddr, Vec<std::net::TcpStream>, socket2::Socket) {
    let (address, socket) = closed_port();
    socket.listen(0).expect("a listener");
    let patience = std::time::Duration::from_millis(200);
    let connect = || std::net::TcpStream::connect_timeout(&address, patience).ok();
    let taken = std::iter::from_fn(connect).take(64).collect();
    (address, taken, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_trusted_is_not_asked_again() {
    let plain = Lab::start().await;
    let (untrusted, folder) = tls_server(None).await;
    let (expired, folder_of_expired) = tls_server(Some((2020, 1, 1))).await;
    let ca = |folder: &tempfile::TempDir| format!(", ca: '{}'", folder.path().join("cert.pem").display());
    let other = tls_server(None).await;
    let url = |at: &std::net::SocketAddr| format!("https://localhost:{}/v1", at.port());
    let garbage = plain.url().replace("http:", "https:");
    tokio::join!(
        unreachable(elsewhere(&format!("{garbage}/v1"), ""), 502, "upstream_tls_error", 0.0).boxed(),
        unreachable(elsewhere(&url(&untrusted), &ca(&other.1)), 502, "upstream_tls_error", 0.0).boxed(),
        unreachable(elsewhere(&url(&expired), &ca(&folder_of_expired)), 502, "upstream_tls_error", 0.0)
            .boxed(),
        unreachable(
            elsewhere(&format!("https://127.0.0.1:{}/v1", untrusted.port()), &ca(&folder)),
            502,
            "upstream_tls_error",
            0.0
        )
        .boxed(),
    );
}

/// A server that shakes hands as `localhost` and then says nothing. Its certificate is in the folder.
async fn tls_server(ends: Option<(i32, u8, u8)>) -> (std::net::SocketAddr, tempfile::TempDir) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if let Some((year, month, day)) = ends {
        parameters.not_after = rcgen::date_time_ymd(year, month, day);
    }
    let certificate = parameters.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _refused = acceptor.accept(stream).await;
        }
    });
    (address, folder)
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_read_counts() {
    let lab = Lab::start().await;
    lab.script(
        "early",
        json!({ "early": true, "rounds": [{ "steps": status(413, json!({})) }], "repeat": true }),
    );
    let config = "upstreams: { main: { base_url: LAB/at/early/v1 } }\ntools: { look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read } }\n";
    let gateway = Gateway::start(&lab, config).await;
    for headers in [vec![], vec![("x-fanfold-tools", "none")]] {
        let body =
            json!({ "model": "m", "messages": [{ "role": "user", "content": "x".repeat(4_000_000) }] });
        let url = format!("{}/chat/completions", gateway.base_url());
        let got = soon(client::send(http::Method::POST, &url, &headers, Some(&body))).await.unwrap();
        assert_eq!((got.status.as_u16(), code("early", &got).as_str()), (413, "told"));
    }
    gateway.ends_at_baseline(&lab).await;
}

/// A chat without owned tools goes through as bytes. What a whole one gets, and how often it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_chat_that_fails_has_a_status_and_an_error_too() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let told = |status| (status, "told");
    let cases = [
        ("401", status(401, json!({})), (502, "upstream_auth_error"), "", 1),
        ("403", status(403, json!({})), (502, "upstream_auth_error"), "", 1),
        ("400", status(400, json!({})), told(400), "", 1),
        ("429", status(429, json!({ "retry-after": "7" })), told(429), "7", 1),
        ("503", status(503, json!({ "retry-after": "7" })), told(503), "7", 1),
        ("500", status(500, json!({})), (502, "upstream_error"), "", 2),
        ("busy", status(503, json!({ "retry-after": "0" })), told(503), "1", 3),
        ("closed", json!(["close"]), (502, "upstream_reset"), "", 2),
        ("garbage", json!([{ "raw": "nonsense\r\n\r\n" }]), (502, "upstream_protocol_error"), "", 1),
        ("late: no head", json!(["stall"]), (504, "upstream_timeout"), "", 2),
        (
            "a page",
            json!([{ "answer": { "status": 200, "headers": { "content-type": "text/html" }, "body": "<p>hi" } }]),
            (502, "upstream_invalid_reply"),
            "",
            2,
        ),
    ];
    let both = cases.iter().flat_map(|case| [(case, false), (case, true)]);
    each(
        both,
        |((name, ..), _)| (*name).to_owned(),
        async |((name, steps, wanted, retry_after, asked), stream)| {
            let name = named(name, if stream { "relayed, streamed" } else { "relayed" });
            lab.script(&name, script(std::slice::from_ref(steps)));
            let got = ask(&gateway, &name, stream, &[("x-fanfold-tools", "none")]).await;
            let code = code(&name, &got);
            assert_eq!((got.status.as_u16(), code.as_str()), *wanted, "{name}: {}", got.body);
            assert_eq!(got.header("retry-after"), *retry_after, "{name}");
            assert_eq!(lab.journal().of_script(&name).count(), *asked, "{name}");
        },
    )
    .await;
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_stream_that_breaks_off_ends_with_an_error_event() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let cases = [
        ("reset", vec![json!({ "wait_ms": 50 }), json!("reset")], Some("upstream_truncated")),
        ("closed", vec![json!("close")], Some("upstream_truncated")),
        ("ended without a finish", vec![], Some("upstream_truncated")),
        ("late: stall", vec![json!("stall")], Some("upstream_timeout")),
        ("finished", vec![json!({ "events": [chunk(json!({}), json!("stop")), "[DONE]"] })], None),
        ("finished without the end mark", vec![json!({ "events": [chunk(json!({}), json!("stop"))] })], None),
        ("ended with the mark only", vec![json!({ "events": ["[DONE]"] })], None),
    ];
    each(
        cases.iter(),
        |(name, ..)| (*name).to_owned(),
        async |(name, tail, wanted)| {
            let name = named(name, "relayed in the middle");
            let mut steps = vec![json!({ "events": [text("Hel")] })];
            steps.extend(tail.iter().cloned());
            lab.script(&name, script(&[json!(steps)]));
            let got = ask(&gateway, &name, true, &[("x-fanfold-tools", "none")]).await;
            assert_eq!(got.status, 200, "{name}: {}", got.body);
            let first = format!("data: {}\n\n", text("Hel"));
            assert!(got.body.starts_with(&first), "{name}: bytes go through as they came: {}", got.body);
            match wanted {
                Some(wanted) => assert_eq!(code(&name, &got), *wanted, "{name}: {}", got.body),
                None => assert!(!got.body.contains("\"error\""), "{name}: {}", got.body),
            }
            assert_eq!(lab.journal().of_script(&name).count(), 1, "{name}");
        },
    )
    .await;
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_whole_answer_that_breaks_off_never_looks_complete() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, CONFIG).await;
    let head = |framing: &str| json!({ "head": { "headers": { "content-type": "application/json" }, "framing": framing, "length": 100 } });
    for (name, steps) in [
        ("cut chunks", json!([head("chunked"), { "send": "{\"id\":1" }, "close"])),
        ("short body", json!([head("length"), { "send": "{\"id\":1" }, "close"])),
        ("late: stalls", json!([head("chunked"), { "send": "{\"id\":1" }, "stall"])),
    ] {
        lab.script(name, script(&[steps]));
        let body =
            json!({ "model": format!("script:{name}"), "messages": [{ "role": "user", "content": "hi" }] });
        let url = format!("{}/chat/completions", gateway.base_url());
        let got =
            soon(client::send(http::Method::POST, &url, &[("x-fanfold-tools", "none")], Some(&body))).await;
        assert!(got.is_err(), "{name}: {got:?}");
    }
    gateway.ends_at_baseline(&lab).await;
}

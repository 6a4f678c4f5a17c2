//! Traces of the real proxy: the tree of a turn, what others are told of it, and what becomes of spans that
//! cannot be sent.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::collector::{Answer, Collector, Span};
use support::gateway::{Gateway, closed_port, soon};
use support::lab::Lab;
use support::process::Process;
use support::proxy::{Proxy, chat, key, tool, with, within};
use support::tls::Certificate;
use tokio::net::TcpListener;
use tokio::time::Instant;

const ROGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

fn sampled() -> String {
    format!("00-{TRACE}-{CLIENT}-01")
}

/// A turn of two rounds, with these calls in the first.
fn script(lab: &Lab, name: &str, calls: Value) {
    let usage = json!([10, 5]);
    let rounds = json!([{ "reply": { "calls": calls, "usage": usage } }, { "reply": { "text": "said in the answer", "usage": usage } }]);
    lab.script(name, json!({ "rounds": rounds, "advance": "requests" }));
}

async fn proxy(lab: &Lab, traces: Value) -> Proxy {
    let tools = json!({ "f": tool(lab, "echo", "f"), "fails": tool(lab, "fail?status=422", "fails") });
    Proxy::before(lab, json!({ "tools": tools, "traces": traces })).await
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let named: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(named.len(), 1, "{name} in {spans:#?}");
    named[0]
}

/// The id of the span that a request was told to belong to.
fn told(traceparent: &str) -> &str {
    assert!(
        traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-01"),
        "{traceparent}"
    );
    &traceparent[36..52]
}

#[tokio::test]
async fn a_turn_with_eight_parallel_calls_is_a_tree_over_both_protocols() {
    for grpc in [false, true] {
        let lab = Lab::start().await;
        let collector = Collector::start(grpc).await;
        let folder = tempfile::tempdir().expect("a folder");
        let mut calls = vec![json!({ "name": "s__echo", "arguments": { "z": 1 } })];
        calls.extend((0..7).map(|n| json!({ "name": "slow", "arguments": { "n": n } })));
        script(&lab, "eight", json!(calls));
        let more = json!({
            "tools": {
                "slow": tool(&lab, "sleep?ms=120", "slow"),
                "s": { "mcp": { "command": ["python3", ROGUE], "env": { "ROGUE_LOG": folder.path().join("log") }, "start_timeout": "15s" }, "only": ["echo"] },
            },
            "prices": { "script:eight": { "input": 2.50, "output": 10.00 } },
            "traces": with(collector.settings(grpc), json!({ "headers": { "x-token": "t" }, "service": "mine" })),
        });
        let proxy = Proxy::before(&lab, more).await;
        soon(async {
            while !proxy.app.tools().iter().any(|tool| &*tool.spec().name == "s__echo") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let headers = [
            ("traceparent", sampled()),
            ("tracestate", "vendor=1".to_owned()),
            ("x-request-id", "mine-1".to_owned()),
        ];
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(proxy.chat_with(&headers, &chat("eight")).await.status, 200);
        let spans = collector.wait(11).await;
        assert_eq!(spans.len(), 11, "one turn, two rounds, eight calls: {spans:#?}");
        assert!(spans.iter().all(|span| span.trace == TRACE && span.state == "vendor=1" && !span.failed));
        let ids: HashSet<&String> = spans.iter().map(|span| &span.id).collect();
        assert_eq!(ids.len(), 11);

        let whole = one(&spans, "invoke_agent default");
        assert_eq!((whole.parent.as_str(), whole.kind), (CLIENT, 2), "a server's, below the client's");
        let is = |span: &Span, name: &str, value: Value| {
            assert_eq!(span.attributes[name], value, "{name} of {span:#?}")
        };
        is(whole, "gen_ai.operation.name", json!("invoke_agent"));
        is(whole, "gen_ai.provider.name", json!("openai"));
        is(whole, "gen_ai.request.model", json!("script:eight"));
        is(whole, "gen_ai.usage.input_tokens", json!(20));
        is(whole, "gen_ai.usage.output_tokens", json!(10));
        is(whole, "fanfold.request_id", json!("mine-1"));
        is(whole, "fanfold.tool_calls", json!(8));
        is(whole, "fanfold.cost", json!("0.00015 USD"));
        is(whole, "http.response.status_code", json!(200));

        let rounds: Vec<&Span> = spans.iter().filter(|span| span.name == "chat script:eight").collect();
        assert_eq!(rounds.len(), 2);
        for (i, round) in rounds.iter().enumerate() {
            assert_eq!((&round.parent, round.kind), (&whole.id, 3));
            is(round, "fanfold.round", json!(i + 1));
            is(round, "gen_ai.usage.input_tokens", json!(10));
            is(round, "server.address", json!("127.0.0.1"));
            assert!(whole.start <= round.start && round.end <= whole.end, "{round:#?}");
        }
        let calls: Vec<&Span> = spans.iter().filter(|span| span.name.starts_with("execute_tool ")).collect();
        assert!(calls.iter().all(|call| call.parent == rounds[0].id && call.kind == 1), "{calls:#?}");
        let slow: Vec<&&Span> = calls.iter().filter(|call| call.name == "execute_tool slow").collect();
        assert_eq!(slow.len(), 7);
        let (first, last) = (slow.iter().map(|s| s.end).min(), slow.iter().map(|s| s.start).max());
        assert!(last < first, "they ran side by side: {slow:#?}");
        for call in &slow {
            assert!(call.end - call.start >= 120_000_000 && call.end <= rounds[1].start, "{call:#?}");
            is(call, "gen_ai.tool.name", json!("slow"));
            is(call, "gen_ai.tool.type", json!("function"));
            is(call, "fanfold.effect", json!("read"));
        }
        assert!(spans.iter().all(|span| !span.attributes.to_string().contains("said in")), "no content");

        // Everybody who was asked was told the span that the question belongs to.
        let journal = lab.journal();
        let asked: Vec<&str> =
            journal.of_script("eight").map(|(_, r)| told(&r.headers["traceparent"])).collect();
        assert_eq!(asked, rounds.iter().map(|round| round.id.as_str()).collect::<Vec<_>>());
        let ran: HashSet<&str> = journal
            .requests()
            .filter(|(_, r)| r.tool.is_some())
            .map(|(_, r)| told(&r.headers["traceparent"]))
            .collect();
        assert_eq!(ran, slow.iter().map(|call| call.id.as_str()).collect());
        assert!(journal.requests().all(|(_, r)| r.headers["tracestate"] == "vendor=1"));
        let results = lab.journal().bodies("eight")[1]["messages"].to_string();
        let echo = one(&spans, "execute_tool s__echo");
        assert!(results.contains(&format!("00-{TRACE}-{}-01", echo.id)), "{results}");

        let (head, path) = collector.requests().remove(0);
        assert_eq!(head["x-token"], "t");
        let expected =
            if grpc { "/opentelemetry.proto.collector.trace.v1.TraceService/Export" } else { "/v1/traces" };
        assert_eq!(path, expected);
        assert_eq!(
            (&collector.resource()["service.name"], &collector.resource()["service.version"]),
            (&json!("mine"), &json!(env!("CARGO_PKG_VERSION")))
        );
        let exported = "fanfold_spans_exported_total";
        soon(async {
            while proxy.metric(exported) != Some(11.0) {
                tokio::time::sleep(Duration::from_millis(5)).await
            }
        })
        .await;
        proxy.app.stop().await;
    }
}

#[tokio::test]
async fn a_relayed_chat_is_a_turn_of_one_round() {
    let lab = Lab::start().await;
    let collector = Collector::start(false).await;
    let proxy = Proxy::before(&lab, json!({ "traces": collector.settings(false) })).await;
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "hello" } }] }));
    assert_eq!(proxy.chat_with(&[("traceparent", &sampled())], &chat("x")).await.status, 200);
    let spans = collector.wait(2).await;
    let (whole, round) = (one(&spans, "invoke_agent default"), one(&spans, "chat script:x"));
    assert_eq!((whole.parent.as_str(), &round.parent), (CLIENT, &whole.id));
    assert_eq!(round.attributes["fanfold.upstream"], "main");
    assert!(whole.attributes["gen_ai.usage.input_tokens"].as_u64() > Some(0), "{whole:#?}");
    let journal = lab.journal();
    let (_, asked) = journal.of_script("x").next().expect("a question");
    assert_eq!(told(&asked.headers["traceparent"]), round.id);
    proxy.chat_with(&[("traceparent", &sampled())], &chat("absent")).await;
    let spans = collector.wait(4).await;
    assert!(spans[2].failed && spans[2].attributes["error.type"] == "refused", "{spans:#?}");
}

#[tokio::test]
async fn what_the_client_does_not_sample_goes_on_as_it_came() {
    let lab = Lab::start().await;
    let collector = Collector::start(false).await;
    let unsampled = format!("00-{TRACE}-{CLIENT}-00");
    let sample = json!({ "sample": 0.0 });
    for (traces, sent, expected) in [
        (json!({}), Some(unsampled.clone()), Some(unsampled)),
        (sample.clone(), Some(sampled()), None),
        (sample, None, None),
    ] {
        let recorded = sent.as_ref().is_some_and(|sent| sent.ends_with("-01"));
        let proxy = proxy(&lab, with(collector.settings(false), traces)).await;
        script(&lab, "s", json!([{ "name": "f", "arguments": {} }]));
        lab.clear();
        let headers: Vec<(&str, &str)> = sent.iter().map(|value| ("traceparent", value.as_str())).collect();
        let before = collector.spans().len();
        assert_eq!(proxy.chat_with(&headers, &chat("s")).await.status, 200);
        proxy.app.stop().await;
        assert_eq!(collector.spans().len() - before, if recorded { 4 } else { 0 });
        let seen: HashSet<String> =
            lab.journal().requests().map(|(_, r)| r.headers["traceparent"].clone()).collect();
        match (expected, recorded) {
            (Some(expected), _) => assert_eq!(seen, [expected].into()),
            (None, true) => assert_eq!(seen.len(), 3, "each of its own span: {seen:?}"),
            // One trace of our own, which says that nobody need record it.
            (None, false) => assert!(seen.len() == 1 && seen.iter().all(|s| s.ends_with("-00")), "{seen:?}"),
        }
    }
}

#[tokio::test]
async fn without_traces_nothing_is_made_or_changed() {
    let lab = Lab::start().await;
    let proxy = Proxy::before(&lab, json!({ "tools": { "f": tool(&lab, "echo", "f") } })).await;
    script(&lab, "s", json!([{ "name": "f", "arguments": {} }]));
    assert_eq!(proxy.chat(&chat("s")).await.status, 200);
    assert!(lab.journal().requests().all(|(_, r)| !r.headers.contains_key("traceparent")));
    script(&lab, "s", json!([{ "name": "f", "arguments": {} }]));
    lab.clear();
    assert_eq!(proxy.chat_with(&[("traceparent", &sampled())], &chat("s")).await.status, 200);
    assert_eq!(lab.journal().requests().filter(|(_, r)| r.headers["traceparent"] == sampled()).count(), 3);
    assert!(!proxy.app.metrics().contains("fanfold_spans_exported_total "));
}

#[tokio::test]
async fn failures_are_told_and_content_only_where_it_is_wanted() {
    let lab = Lab::start().await;
    let teams = json!({ "blue": { "keys": [key("k")] } });
    for content in [false, true] {
        let collector = Collector::start(false).await;
        let calls = json!([
            { "name": "fails", "arguments": { "city": "said in arguments" } },
            { "name": "f", "arguments": { "n": "no number" } },
            { "name": "invented", "arguments": {} },
        ]);
        script(&lab, "s", calls);
        let tools = json!({ "f": tool(&lab, "echo", "f"), "fails": tool(&lab, "fail?status=422", "fails") });
        let traces = with(collector.settings(false), json!({ "content": content, "text": "64B" }));
        let proxy = Proxy::before(&lab, json!({ "tools": tools, "traces": traces, "teams": teams })).await;
        assert_eq!(proxy.chat_with(&[("authorization", "Bearer k")], &chat("s")).await.status, 200);
        let spans = collector.wait(6).await;
        for (name, why) in [("fails", "error"), ("f", "invalid_arguments")] {
            let call = one(&spans, &format!("execute_tool {name}"));
            assert!(call.failed && call.attributes["error.type"] == why, "{call:#?}");
        }
        let whole = one(&spans, "invoke_agent blue");
        assert!(!whole.failed && one(&spans, "execute_tool invented").failed, "a tool is not the turn");
        let all: Vec<String> = spans.iter().map(|span| span.attributes.to_string()).collect();
        assert_eq!(all.iter().any(|text| text.contains("said in")), content, "{all:#?}");
        if content {
            let of = |span: &Span, name: &str| span.attributes[name].as_str().unwrap_or_default().to_owned();
            let messages: Value = serde_json::from_str(&of(whole, "gen_ai.input.messages")).expect("JSON");
            assert_eq!(messages, json!([{ "role": "user", "parts": [{ "type": "text", "content": "hi" }] }]));
            assert!(of(whole, "gen_ai.output.messages").contains("said in the answer"));
            let call = one(&spans, "execute_tool fails");
            assert_eq!(of(call, "gen_ai.tool.call.arguments"), r#"{"city":"said in arguments"}"#);
            let told = of(call, "gen_ai.tool.call.result");
            assert!(!told.is_empty() && told.len() <= 64, "{told}");
        }
        let broken = json!({ "steps": [{ "answer": { "status": 401, "headers": {}, "body": {} } }] });
        lab.script("s", json!({ "rounds": [broken] }));
        assert_eq!(proxy.chat_with(&[("authorization", "Bearer k")], &chat("s")).await.status, 502);
        let spans = collector.wait(8).await;
        for span in &spans[6..] {
            assert!(span.failed && span.attributes["error.type"] == "upstream_auth_error", "{span:#?}");
        }
    }
}

#[tokio::test]
async fn a_run_names_its_trace() {
    let lab = Lab::start().await;
    let collector = Collector::start(false).await;
    let proxy = proxy(&lab, collector.settings(false)).await;
    script(&lab, "s", json!([{ "name": "f", "arguments": {} }]));
    assert_eq!(
        proxy.chat_with(&[("traceparent", &sampled()), ("x-request-id", "r-1")], &chat("s")).await.status,
        200
    );
    let url = format!("http://{}/api/runs/r-1", proxy.app.admin_address);
    let got = support::client::send(http::Method::GET, &url, &[], None).await.expect("an answer");
    assert_eq!(got.json()["run"]["trace"], TRACE);
}

#[tokio::test]
async fn what_a_collector_does_not_take_now_is_sent_again_and_what_it_refuses_is_not() {
    for (grpc, later, never) in
        [(false, Answer::Http(503), Answer::Http(400)), (true, Answer::Grpc(14), Answer::Grpc(3))]
    {
        let lab = Lab::start().await;
        let collector = Collector::start(grpc).await;
        let proxy = proxy(&lab, collector.settings(grpc)).await;
        lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }], "repeat": true }));
        collector.answers(&[later, Answer::Taken { rejected: 1 }, never]);
        proxy.chat(&chat("x")).await;
        collector.wait(2).await;
        assert_eq!(collector.requests().len(), 2, "the same again");
        let dropped = "fanfold_spans_dropped_total{reason=\"refused\"}";
        let becomes = async |value| {
            soon(async {
                while proxy.metric(dropped) != Some(value) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        };
        becomes(1.0).await;
        assert_eq!(proxy.metric("fanfold_spans_exported_total"), Some(1.0), "one was rejected");
        proxy.chat(&chat("x")).await;
        becomes(3.0).await;
        assert_eq!(collector.requests().len(), 3);
        proxy.app.stop().await;
        assert_eq!(collector.requests().len(), 3, "what is refused is not sent again");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_dropped_and_counted_and_nobody_waits() {
    let lab = Lab::start().await;
    let collector = Collector::start(false).await;
    // Room for the spans of two turns or so.
    let traces = with(collector.settings(false), json!({ "buffer": "2KiB" }));
    let proxy = proxy(&lab, traces).await;
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }], "repeat": true }));
    collector.answers(&[Answer::Silence]);
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(within(proxy.chat(&chat("x"))).await.status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "the collector has not answered until now");
    let dropped = proxy.metric("fanfold_spans_dropped_total{reason=\"full\"}").expect("some");
    assert!((20.0..40.0).contains(&dropped), "{dropped}");
    within(proxy.app.stop()).await;
}

#[tokio::test]
async fn what_waits_is_sent_before_the_process_ends() {
    let lab = Lab::start().await;
    let collector = Collector::start(true).await;
    let proxy = proxy(&lab, with(collector.settings(true), json!({ "delay": "1h" }))).await;
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }], "repeat": true }));
    for _ in 0..3 {
        proxy.chat(&chat("x")).await;
    }
    assert!(collector.spans().is_empty());
    proxy.app.stop().await;
    assert_eq!(collector.spans().len(), 6);
}

#[tokio::test]
async fn a_collector_behind_tls_is_believed_by_the_authority_that_is_named() {
    for grpc in [false, true] {
        let lab = Lab::start().await;
        let certificate = Certificate::new();
        let collector = Collector::secure(grpc, &certificate).await;
        let endpoint = format!("https://localhost:{}", collector.address.port());
        let traces =
            with(collector.settings(grpc), json!({ "endpoint": endpoint, "ca": certificate.path() }));
        let proxy = proxy(&lab, traces).await;
        lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }] }));
        proxy.chat(&chat("x")).await;
        assert_eq!(collector.wait(2).await.len(), 2);
    }
}

#[tokio::test]
async fn what_waits_is_sent_when_a_reload_takes_traces_away() {
    let lab = Lab::start().await;
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }] }));
    let collector = Collector::start(false).await;
    let upstreams = "upstreams: { main: { base_url: LAB/v1 } }\n";
    let traces = with(collector.settings(false), json!({ "delay": "1h" }));
    let gateway = Gateway::start(&lab, &format!("{upstreams}traces: {traces}\n")).await;
    let url = format!("{}/chat/completions", gateway.base_url());
    let got = support::client::send(http::Method::POST, &url, &[], Some(&chat("x"))).await;
    assert_eq!(got.expect("an answer").status, 200);
    assert!(collector.spans().is_empty());
    gateway.reload(&lab, upstreams);
    assert_eq!(collector.wait(2).await.len(), 2);
}

#[tokio::test]
async fn the_log_says_once_that_the_collector_is_away_and_once_that_it_is_back() {
    let lab = Lab::start().await;
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }], "repeat": true }));
    let (address, _held) = closed_port();
    let yaml = format!(
        "upstreams: {{ main: {{ base_url: '{}' }} }}\ntraces: {{ endpoint: 'http://{address}', delay: 10ms }}\n",
        lab.base_url()
    );
    let mut process = Process::start(&yaml).await;
    let url = format!("{}/chat/completions", process.base_url());
    let ask = async || {
        let got = support::client::send(http::Method::POST, &url, &[], Some(&chat("x"))).await;
        assert_eq!(got.expect("an answer").status, 200);
    };
    ask().await;
    process.logged("traces do not reach their collector").await;
    ask().await;
    let collector = Collector::on(TcpListener::bind(address).await.expect("nobody else listens"), false);
    collector.wait(4).await;
    process.logged("traces reach their collector again").await;
    let log = process.log();
    for line in ["do not reach their collector", "reach their collector again"] {
        assert_eq!(log.matches(line).count(), 1, "{log}");
    }
}

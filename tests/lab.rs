//! The lab keeps its promises: what it plays and what it writes down is what the other suites trust.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::lab::Lab;
use support::lab::journal::{How, What};
use support::lab::script::Expected;
use support::ports::Port;
use support::redis::Redis;
use support::{client, fold};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Sends raw bytes and reads until the other side closes.
async fn raw(lab: &Lab, request: &str) -> (String, std::io::Result<usize>) {
    let mut stream = TcpStream::connect(lab.url().trim_start_matches("http://")).await.expect("a lab");
    stream.write_all(request.as_bytes()).await.expect("a reader");
    let mut all = Vec::new();
    let ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await.expect("an end");
    (String::from_utf8_lossy(&all).into_owned(), ended)
}

#[tokio::test]
async fn a_port_is_kept_from_everybody_but_the_program_it_is_for() {
    let (port, redis) = (Port::free(), Redis::stopped());
    let of_redis = redis.url().trim_start_matches("redis://").parse().expect("an address");
    for address in [port.address(), of_redis] {
        let connected = TcpStream::connect(address).await.map(drop).map_err(|error| error.kind());
        assert_eq!(connected, Err(std::io::ErrorKind::ConnectionRefused));
        let stranger = TcpSocket::new_v4().expect("a socket").bind(address).map_err(|error| error.kind());
        assert_eq!(stranger, Err(std::io::ErrorKind::AddrInUse));
        let _program = TcpListener::bind(address).await.expect("as servers do it");
        TcpStream::connect(address).await.expect("it listens");
    }
}

fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!("POST {path} HTTP/1.1\r\nhost: lab\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn chat(name: &str, stream: bool) -> Value {
    json!({ "model": format!("script:{name}"), "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }] })
}

/// Plays a script whose last step closes, and returns everything it wrote.
async fn played(lab: &Lab, steps: Value) -> (String, std::io::Result<usize>) {
    lab.script("t", json!({ "rounds": [{ "steps": steps }] }));
    raw(lab, &post("/v1/chat/completions", &chat("t", true))).await
}

#[tokio::test]
async fn a_body_is_written_piece_by_piece_and_cut_where_the_script_says() {
    let lab = Lab::start().await;
    let (text, ended) = played(&lab, json!([{ "events": [{ "a": 1 }, "x"] }, "close"])).await;
    assert!(ended.is_ok());
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("f\r\ndata: {\"a\":1}\n\n\r\n9\r\ndata: x\n\n\r\n"), "{text}");
    lab.script("t", json!({ "rounds": [{ "steps": [{ "send": "ab" }, "close"], "split": 1 }] }));
    let (text, _) = raw(&lab, &post("/v1/chat/completions", &chat("t", true))).await;
    assert!(text.ends_with("\r\n\r\n1\r\na\r\n1\r\nb\r\n"), "{text}");
}

#[tokio::test]
async fn bodies_may_end_by_closing_and_heads_may_be_garbage() {
    let lab = Lab::start().await;
    let steps = json!([{ "head": { "version": "1.0", "framing": "close" } }, { "hex": "68 69" }]);
    let (text, _) = played(&lab, steps).await;
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\nhi"), "{text}");
    let (text, _) = played(&lab, json!([{ "raw": "nonsense\r\n\r\n" }])).await;
    assert_eq!(text, "nonsense\r\n\r\n");
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let lab = Lab::start().await;
    let (_, ended) = played(&lab, json!([{ "send": "x" }, { "wait_ms": 50 }, "reset"])).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stall_lasts_until_it_is_released_or_the_peer_leaves() {
    let lab = Lab::start().await;
    lab.script("t", json!({ "rounds": [{ "steps": ["stall", { "json": {} }] }], "repeat": true }));
    let mut stream = TcpStream::connect(lab.url().trim_start_matches("http://")).await.unwrap();
    stream.write_all(post("/v1/chat/completions", &chat("t", false)).as_bytes()).await.unwrap();
    lab.wait_until(|seen| seen.of_script("t").count() == 1).await;
    lab.release("t");
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    stream.write_all(post("/v1/chat/completions", &chat("t", false)).as_bytes()).await.unwrap();
    let seen = lab.wait_until(|seen| seen.of_script("t").count() == 2).await;
    let second = seen.of_script("t").nth(1).unwrap().0.n;
    drop(stream);
    let seen = lab.wait_until(|seen| seen.how(second).is_some()).await;
    assert_eq!(seen.how(second), Some(How::PeerLeft));
}

#[tokio::test]
async fn rounds_follow_the_conversation_or_the_number_of_requests() {
    let lab = Lab::start().await;
    let rounds = json!([
        { "reply": { "calls": [{ "name": "f", "arguments": {} }] } },
        { "reply": { "text": "done" } }, { "steps": ["close"] },
    ]);
    lab.script("c", json!({ "rounds": rounds }));
    lab.script("r", json!({ "rounds": rounds, "advance": "requests" }));
    let mut after = chat("c", false);
    let messages = after["messages"].as_array_mut().unwrap();
    messages.push(json!({ "role": "assistant", "content": null, "tool_calls":
        [{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }] }));
    messages.push(json!({ "role": "tool", "tool_call_id": "a", "content": "ok" }));
    let all: String =
        [chat("c", false), chat("c", false), after, chat("r", false), chat("r", false), chat("r", true)]
            .iter()
            .map(|body| post("/v1/chat/completions", body))
            .collect();
    let (text, _) = raw(&lab, &all).await;
    let finishes: Vec<&str> =
        text.split("\"finish_reason\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(finishes, ["tool_calls", "tool_calls", "stop", "tool_calls", "stop"]);
}

#[tokio::test]
async fn requests_that_break_openais_rules_are_refused_and_noted() {
    let lab = Lab::start().await;
    lab.script("t", json!({ "rounds": [{ "steps": ["close"] }] }));
    let mut wrong = chat("t", false);
    wrong["parallel_tool_calls"] = json!(true);
    let all = post("/v1/chat/completions", &wrong) + &post("/v1/chat/completions", &chat("t", false));
    let (text, _) = raw(&lab, &all).await;
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("only allowed when 'tools'"), "{text}");
    let seen = lab.journal();
    assert!(seen.of_script("t").next().unwrap().1.refused.is_some());
}

#[tokio::test]
async fn tools_are_counted_with_how_many_ran_at_once() {
    let lab = Lab::start().await;
    let close = "GET /at/t/ HTTP/1.1\r\nhost: lab\r\n\r\n";
    lab.script("t", json!({ "rounds": [{ "steps": ["close"] }], "repeat": true }));
    let call = format!("GET /tool/sleep/nap?ms=60 HTTP/1.1\r\nhost: lab\r\n\r\n{close}");
    let (a, b, c) = tokio::join!(raw(&lab, &call), raw(&lab, &call), raw(&lab, &call));
    assert!([a, b, c].iter().all(|(text, _)| text.contains(r#""tool":"nap""#)));
    let (text, _) =
        raw(&lab, &format!("GET /tool/fail/f?status=503 HTTP/1.1\r\nhost: lab\r\n\r\n{close}")).await;
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    let seen = lab.journal();
    let nap = seen.tools["nap"];
    assert_eq!((nap.started, nap.complete, nap.running, nap.most_at_once), (3, 3, 0, 3));
    assert_eq!(seen.all_tools.started, 4);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let lab = Lab::start().await;
    lab.script("t", json!({ "early": true, "rounds": [{ "steps": [{ "answer": { "status": 413 } }] }] }));
    let head = "POST /at/t/v1/chat/completions HTTP/1.1\r\nhost: lab\r\ncontent-length: 1000000\r\n\r\n";
    let (text, _) = raw(&lab, head).await;
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
}

#[tokio::test]
async fn the_tests_own_requests_stay_out_of_the_journal() {
    let lab = Lab::start().await;
    let close = "GET /at/t/ HTTP/1.1\r\nhost: lab\r\n\r\n";
    let script = json!({ "rounds": [{ "steps": ["close"] }] });
    let own = post("/_script/t", &script);
    let (text, _) = raw(&lab, &format!("{own}GET /_journal HTTP/1.1\r\nhost: lab\r\n\r\n{close}")).await;
    assert!(text.contains(r#"{"ok":true}"#) && text.contains(r#""entries":[]"#), "{text}");
    let (text, _) = raw(&lab, &format!("{}{close}", post("/_script/u", &json!({ "rounds": [] })))).await;
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("a script needs a round"), "{text}");
    let opened = |seen: &support::lab::journal::Snapshot| {
        seen.entries.iter().filter(|entry| matches!(entry.what, What::Opened)).count()
    };
    assert_eq!(opened(&lab.journal()), 0);
}

#[test]
fn every_script_of_the_library_is_one_and_says_what_to_expect() {
    let all = support::scripts::all();
    assert!(all.len() >= 30, "the library has {} scripts", all.len());
    for (name, script) in &all {
        let script = support::scripts::read(name, script);
        assert_eq!(script.check(), Ok(()), "{name}");
        assert!(script.expected.is_some() && !script.about.is_empty() && !script.who.is_empty(), "{name}");
    }
}

/// A script of the library as a client without a proxy gets it.
async fn direct(lab: &Lab, name: &str, stream: bool) -> Result<fold::Folded, String> {
    let all = support::scripts::all();
    let (_, script) = all.iter().find(|(known, _)| known == name).expect("a script");
    lab.script(name, script.clone());
    let request = support::scripts::request(name, &support::scripts::read(name, script), stream);
    fold::answer(&client::chat(&lab.base_url(), &request).await?)
}

#[tokio::test]
async fn what_needs_no_repair_is_what_its_script_expects() {
    let lab = Lab::start().await;
    let all = support::scripts::all();
    for name in ["canonical-two-calls", "finish-length", "sse-byte-by-byte", "sse-cut-in-a-character"] {
        let (_, script) = all.iter().find(|(known, _)| known == name).unwrap();
        let expected = support::scripts::read(name, script).expected.unwrap();
        for stream in [true, false] {
            let folded = direct(&lab, name, stream).await;
            assert_eq!(folded.and_then(|folded| folded.check(&expected)), Ok(()), "{name}, {stream}");
        }
    }
}

#[tokio::test]
async fn what_needs_repair_is_told_from_what_does_not() {
    let lab = Lab::start().await;
    for (name, wrong) in [
        ("id-empty", "ids that are empty"),
        ("index-missing", "without an index"),
        ("no-done", "without [DONE]"),
        ("finish-twice", "after the finish"),
        ("sse-other-fields", "neither one data line"),
        ("chunk-id-changes", "id, created or model change"),
        ("end-without-finish", "without [DONE]"),
        ("legacy-function-call", "no finish_reason of"),
    ] {
        let told = direct(&lab, name, true).await.unwrap_err();
        assert!(told.contains(wrong), "{name}: {told}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_the_expected_one_is_told() {
    let lab = Lab::start().await;
    let folded = direct(&lab, "canonical-two-calls", true).await.unwrap();
    let mut wanted = match &folded {
        fold::Folded::Reply(reply) => reply.clone(),
        fold::Folded::Error(code) => panic!("{code:?}"),
    };
    assert_eq!(folded.check(&Expected::Reply(wanted.clone())), Ok(()));
    wanted.calls.swap(0, 1);
    assert!(folded.check(&Expected::Reply(wanted)).unwrap_err().starts_with("the list of calls differs"));
    assert!(folded.check(&Expected::Error { code: None }).is_err());
}

//! The demo shows what it says: tools in parallel, an answer that streams, metrics.

mod support;

use bytes::Bytes;
use fanfold::telemetry::metrics::TABLE;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use support::client::send;
use support::demo::Demo;

fn question(stream: bool) -> Value {
    json!({ "model": "demo", "stream": stream,
        "messages": [{ "role": "user", "content": "What is the weather in Paris, Tokyo and Lima?" }] })
}

#[tokio::test]
async fn its_three_calls_overlap_and_the_batch_takes_less_than_their_sum() {
    let demo = Demo::start(env!("CARGO_BIN_EXE_fanfold"));
    let url = format!("{}/v1/chat/completions", demo.proxy);
    let include = [("x-fanfold-include", "transcript")];
    let got = send(Method::POST, &url, &include, Some(&question(false))).await.unwrap();
    assert_eq!((got.header("x-fanfold-rounds"), got.header("x-fanfold-tool-calls")), ("2", "3"));
    let answer = got.json();
    let transcript = &answer["fanfold"]["transcript"];
    let calls = transcript["calls"].as_array().unwrap();
    let cities: Vec<&str> = calls.iter().map(|call| call["arguments"].as_str().unwrap()).collect();
    assert_eq!(cities, [r#"{"city":"Paris"}"#, r#"{"city":"Tokyo"}"#, r#"{"city":"Lima"}"#]);
    let at = |call: &Value, name: &str| call[name].as_f64().unwrap();
    let last_start = calls.iter().map(|call| at(call, "started_ms")).fold(0.0, f64::max);
    let first_end = calls.iter().map(|call| at(call, "ended_ms")).fold(f64::MAX, f64::min);
    assert!(last_start < first_end, "at one moment all three run: {transcript}");
    assert!(transcript["saved_ms"].as_f64().unwrap() > 0.0, "{transcript}");
    let first_round = at(&transcript["rounds"][0], "ended_ms");
    assert!(at(&calls[0], "started_ms") < first_round, "it starts while the model writes: {transcript}");
}

#[tokio::test]
async fn its_answer_comes_in_several_pieces() {
    let demo = Demo::start(env!("CARGO_BIN_EXE_fanfold"));
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::post(format!("{}/v1/chat/completions", demo.proxy))
        .header("content-type", "application/json")
        .body(Full::from(question(true).to_string()))
        .unwrap();
    let mut body = client.request(request).await.unwrap().into_body();
    let (mut pieces, mut text) = (0, String::new());
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        pieces += usize::from(data.windows(9).any(|part| part == b"\"content\""));
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    assert!(pieces >= 5, "the text arrived in {pieces} pieces: {text}");
    assert!(!text.contains("tool_calls"), "owned calls never appear: {text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn its_banner_has_what_to_paste_and_its_metrics_are_those_of_the_table() {
    let demo = Demo::start(env!("CARGO_BIN_EXE_fanfold"));
    for wanted in [&format!("{}/v1", demo.proxy), "curl -N", "curl -s", "x-fanfold-include: transcript"] {
        assert!(demo.banner.contains(wanted), "{wanted}:\n{}", demo.banner);
    }
    support::client::chat(&format!("{}/v1", demo.proxy), &question(false)).await.unwrap();
    let metrics = send(Method::GET, &format!("{}/metrics", demo.admin), &[], None).await.unwrap().body;
    for line in metrics.lines().filter(|line| !line.is_empty()) {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        let known = TABLE.iter().any(|row| name.starts_with(row.name));
        assert!(known, "not in the table: {line}");
        let value = line.rsplit(' ').next().unwrap();
        assert!(line.starts_with('#') || value.parse::<f64>().is_ok(), "no number: {line}");
    }
    let overlapped = r#"gen_ai_execute_tool_duration_seconds_count{tool="get_weather",outcome="ok"} 3"#;
    assert!(metrics.contains(overlapped), "{metrics}");
}

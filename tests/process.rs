//! The real binary as a process: how it starts, reads its configuration again, and stops.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::fold::{self, Folded};
use support::gateway::{closed_port, soon};
use support::lab::Lab;
use support::process::{Process, folder_with, run, write_config};
use support::raw;
use support::tls::Certificate;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Drains that do not keep a test waiting.
const DRAIN: &str = "server: { drain_accept: 600ms, drain: 15s }\n";

fn config(lab: &Lab, more: &str) -> String {
    format!(
        "upstreams: {{ main: {{ base_url: LAB/v1 }} }}\n\
         tools: {{ look: {{ http: {{ method: GET, url: LAB/tool/echo/look }}, effect: read }} }}\n{more}"
    )
    .replace("LAB", &lab.url())
}

/// Text at once, the rest when it is released.
fn slow(lab: &Lab, name: &str) {
    let chunk = |delta: Value, finish: Value| {
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] })
    };
    let first = chunk(json!({ "role": "assistant", "content": "Hel" }), Value::Null);
    let rest =
        [chunk(json!({ "content": "lo" }), Value::Null), chunk(json!({}), json!("stop")), json!("[DONE]")];
    let steps = json!([{ "events": [first] }, "stall", { "events": rest }]);
    lab.script(name, json!({ "rounds": [{ "steps": steps }], "repeat": true, "lenient": true }));
}

fn quick(lab: &Lab, name: &str) {
    lab.script(name, json!({ "rounds": [{ "reply": { "text": "fine" } }], "repeat": true }));
}

fn request(name: &str) -> Value {
    json!({ "model": format!("script:{name}"), "stream": true, "messages": [{ "role": "user", "content": "hi" }] })
}

async fn ask(process: &Process, name: &str) -> Result<Got, String> {
    soon(client::chat(&process.base_url(), &request(name))).await
}

/// An answer that has begun.
struct Begun {
    text: String,
    body: Incoming,
}

impl Begun {
    async fn ask(process: &Process, name: &str, headers: &[(&str, &str)]) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let mut asked = Request::post(format!("{}/chat/completions", process.base_url()));
        for (name, value) in headers {
            asked = asked.header(*name, *value);
        }
        let body = Full::from(request(name).to_string());
        let response = soon(client.request(asked.body(body).unwrap())).await.unwrap();
        let mut begun = Self { text: String::new(), body: response.into_body() };
        while !begun.text.contains("Hel") {
            let frame = soon(begun.body.frame()).await.unwrap().unwrap().into_data().unwrap();
            begun.text.push_str(std::str::from_utf8(&frame).unwrap());
        }
        begun
    }

    /// Reads to the end, which has to be clean.
    async fn rest(self) -> Result<Folded, String> {
        let rest = soon(self.body.collect()).await.map_err(|error| format!("it breaks off: {error}"))?;
        fold::stream(&(self.text + std::str::from_utf8(&rest.to_bytes()).unwrap()))
    }
}

fn is_hello(folded: &Result<Folded, String>) {
    match folded {
        Ok(Folded::Reply(reply)) => assert_eq!(reply.text, "Hello"),
        other => panic!("{other:?}"),
    }
}

async fn ready(process: &Process) -> (u16, String) {
    let got = soon(client::send(Method::GET, &format!("http://{}/readyz", process.admin), &[], None))
        .await
        .unwrap();
    (got.status.as_u16(), got.body)
}

#[tokio::test]
async fn a_configuration_with_mistakes_is_64_and_all_of_them_have_their_place() {
    let folder = folder_with(
        "upstreams: { main: { base_url: '${NOWHERE_SET}' } }\nlimits: { rounds: many }\ntoolz: {}\n",
    );
    for arguments in [&["serve"][..], &[], &["check"]] {
        let (code, _, err) = run(folder.path(), arguments).await;
        assert_eq!(code, 64, "{err}");
        for said in [
            "fanfold.yaml:3:",
            "NOWHERE_SET",
            "fanfold.yaml:4:",
            "rounds",
            "fanfold.yaml:5:",
            "did you mean `tools`?",
        ] {
            assert!(err.contains(said), "{said}: {err}");
        }
    }
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_setting_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = folder_with("upstreams: { main: { base_url: 'http://127.0.0.1:1/v1' } }\n");
    for (flag, setting) in [("--listen", "`listen`"), ("--admin-listen", "`admin.listen`")] {
        let (code, _, err) = run(folder.path(), &["serve", flag, &address.to_string()]).await;
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(&format!("{address} is in use")) && err.contains(setting), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_there_is_told_by_the_answer_and_by_check() {
    let (closed, _held) = closed_port();
    let process =
        Process::start(&format!("upstreams: {{ main: {{ base_url: 'http://{closed}/v1' }} }}\n")).await;
    let got = ask(&process, "x").await.unwrap();
    assert_eq!((got.status.as_u16(), &got.json()["error"]["code"]), (502, &json!("upstream_unreachable")));
    assert!(got.body.contains("ask the operator"), "{}", got.body);
    let (code, out, _) = run(process.folder.path(), &["check", "--online"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("main  FAILED") && out.contains("refused") && out.contains("base_url"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_swaps_the_configuration_under_a_running_turn() {
    let lab = Lab::start().await;
    slow(&lab, "slow");
    quick(&lab, "quick");
    let mut process = Process::start(&config(&lab, "")).await;
    let turn = Begun::ask(&process, "slow", &[]).await;
    assert_eq!(ask(&process, "quick").await.unwrap().status, 200);

    let narrow = config(&lab, "routes: [{ model: 'script:other', upstreams: [main] }]\n");
    write_config(process.folder.path(), &narrow);
    process.signal(Signal::HUP);
    process.logged("is used from now on").await;
    assert_eq!(ask(&process, "quick").await.unwrap().json()["error"]["code"], "model_not_found");
    process.metric_becomes("fanfold_config_reload_success", 1.0).await;

    write_config(process.folder.path(), "upstreams: {\n");
    process.signal(Signal::HUP);
    process.logged("the one before stays").await;
    process.metric_becomes("fanfold_config_reload_success", 0.0).await;
    assert_eq!(ask(&process, "quick").await.unwrap().status, 404, "the one before stays");
    assert_eq!(ready(&process).await.0, 200);

    // Without a signal, the change of the file is enough.
    write_config(process.folder.path(), &config(&lab, ""));
    let noticed = async {
        while ask(&process, "quick").await.unwrap().status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(noticed).await;
    process.metric_becomes("fanfold_config_reload_success", 1.0).await;

    lab.release("slow");
    is_hello(&turn.rest().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_finishes_what_is_in_flight_and_takes_nothing_new() {
    let lab = Lab::start().await;
    for name in ["turn", "relay"] {
        slow(&lab, name);
    }
    quick(&lab, "quick");
    let mut process = Process::start(&config(&lab, DRAIN)).await;
    let turn = Begun::ask(&process, "turn", &[]).await;
    let relay = Begun::ask(&process, "relay", &[("x-fanfold-tools", "none")]).await;
    // A connection that is there before the address is given up.
    let stream = TcpStream::connect(process.proxy).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);

    process.signal(Signal::TERM);
    process.logged("no longer ready").await;
    let (status, why) = ready(&process).await;
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("shutting down"), "{why}");
    assert_eq!(ask(&process, "quick").await.unwrap().status, 200, "at first everything is as before");

    // Pipelined behind a turn that is in flight when the refusing begins.
    let body = request("quick").to_string();
    let asked = Request::post("/v1/chat/completions")
        .header("host", "localhost")
        .body(Full::<Bytes>::from(body))
        .unwrap();
    let refused = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        sender.send_request(asked).await
    };
    if let Ok(answer) = soon(refused).await {
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "1");
        let body = soon(answer.into_body().collect()).await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("shutting_down"));
    }
    let connecting = TcpStream::connect(process.proxy).await;
    assert_eq!(
        connecting.err().map(|e| e.kind()),
        Some(io::ErrorKind::ConnectionRefused),
        "the address is given up"
    );
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(ready(&process).await.0, 503, "the admin side stays until the end");
    for name in ["turn", "relay"] {
        lab.release(name);
    }
    is_hello(&turn.rest().await);
    is_hello(&relay.rest().await);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_when_the_drain_runs_out_ends_with_an_error() {
    let lab = Lab::start().await;
    for name in ["turn", "relay"] {
        slow(&lab, name);
    }
    let process = Process::start(&config(&lab, "server: { drain_accept: 100ms, drain: 300ms }\n")).await;
    let turn = Begun::ask(&process, "turn", &[]).await;
    let relay = Begun::ask(&process, "relay", &[("x-fanfold-tools", "none")]).await;
    process.signal(Signal::TERM);
    let (turn, relay) = tokio::join!(turn.rest(), relay.rest());
    let ended = process.ended().await;
    assert_eq!(turn, Ok(Folded::Error(Some("shutting_down".into()))), "{}", ended.log);
    assert_eq!(relay, Ok(Folded::Error(Some("shutting_down".into()))), "{}", ended.log);
    assert_eq!(ended.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_everything_at_once_and_says_so() {
    let lab = Lab::start().await;
    for name in ["turn", "relay"] {
        slow(&lab, name);
    }
    lab.script("silent", json!({ "rounds": [{ "steps": ["stall"] }] }));
    let mut process = Process::start(&config(&lab, "server: { drain_accept: 60s, drain: 600s }\n")).await;
    let turn = Begun::ask(&process, "turn", &[]).await;
    let relay = Begun::ask(&process, "relay", &[("x-fanfold-tools", "none")]).await;
    let base_url = process.base_url();
    let silent = request("silent");
    let asking = client::chat(&base_url, &silent);
    let signals = async {
        soon(lab.wait_until(|seen| seen.of_script("silent").count() == 1)).await;
        process.signal(Signal::TERM);
        process.logged("no longer ready").await;
        process.signal(Signal::TERM);
    };
    let (turn, relay, silent, ()) = tokio::join!(turn.rest(), relay.rest(), soon(asking), signals);
    assert_eq!(turn, Ok(Folded::Error(Some("shutting_down".into()))));
    assert_eq!(relay, Ok(Folded::Error(Some("shutting_down".into()))));
    let silent = silent.unwrap();
    assert_eq!((silent.status.as_u16(), silent.header("retry-after")), (503, "1"), "{}", silent.body);
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_served_without_a_restart() {
    let lab = Lab::start().await;
    let mut certificate = Certificate::new();
    let mut process = Process::start(&config(&lab, &certificate.setting())).await;
    assert!(process.log().contains("https://"), "{}", process.log());
    let connect = async |certificate: &Certificate| {
        certificate.connect(TcpStream::connect(process.proxy).await.unwrap(), "http/1.1").await.map(drop)
    };
    assert!(connect(&certificate).await.is_ok());
    certificate.renew();
    assert!(connect(&certificate).await.is_err(), "not yet");
    let address = process.proxy;
    process.logged("the certificate was reloaded").await;
    let again = certificate.connect(TcpStream::connect(address).await.unwrap(), "h2").await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_with_an_authority_of_its_own_is_trusted_when_it_is_named() {
    let lab = Lab::start().await;
    quick(&lab, "quick");
    let certificate = Certificate::new();
    // The first proxy is the second one's upstream, with TLS.
    let first = Process::start(&config(&lab, &certificate.setting())).await;
    let url = format!("https://localhost:{}/v1", first.proxy.port());
    for (ca, status) in [(format!(", ca: '{}'", certificate.path()), 200), (String::new(), 502)] {
        let process = Process::start(&format!("upstreams: {{ main: {{ base_url: '{url}'{ca} }} }}\n")).await;
        let got = ask(&process, "quick").await.unwrap();
        assert_eq!(got.status, status, "{}", got.body);
        if status == 502 {
            assert_eq!(got.json()["error"]["code"], "upstream_tls_error");
            assert!(got.body.contains("`ca`"), "{}", got.body);
        }
        let (code, out, _) = run(process.folder.path(), &["check", "--online"]).await;
        assert_eq!(code, i32::from(status != 200), "{out}");
    }
    let folder =
        folder_with(&format!("upstreams: {{ main: {{ base_url: '{url}', ca: FOLDER/missing.pem }} }}\n"));
    let (code, _, err) = run(folder.path(), &["serve"]).await;
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("missing.pem"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_turn_leaves_nothing_behind_at_the_upstream() {
    let lab = Lab::start().await;
    slow(&lab, "slow");
    let process = Process::start(&config(&lab, "")).await;
    let turn = Begun::ask(&process, "slow", &[]).await;
    process.signal(Signal::KILL);
    soon(lab.wait_until(|seen| seen.connections_open == 0)).await;
    assert!(turn.rest().await.is_err(), "a cut answer does not look complete");
    assert_eq!(process.ended().await.code, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_no_answer() {
    let lab = Lab::start().await;
    quick(&lab, "unread");
    let process = Process::start(&config(&lab, "")).await;
    process.leave_unread();
    // Each leaves a line of more than 300 bytes; a pipe takes 64 KiB.
    for _ in 0..400 {
        let got = ask(&process, "unread").await.unwrap();
        assert!(got.body.contains("fine"), "{}", got.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_side_answers_on_its_own_port_only() {
    let lab = Lab::start().await;
    let process = Process::start(&config(&lab, "")).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(soon(raw::exchange(process.admin, get(path).as_bytes())).await.status, 200, "{path}");
        assert_eq!(soon(raw::exchange(process.proxy, get(path).as_bytes())).await.status, 404, "{path}");
    }
    assert_eq!(soon(raw::exchange(process.admin, get("/v1/models").as_bytes())).await.status, 404);
    assert!(process.metrics().await.contains("fanfold_build_info"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_document_is_read_again_and_a_broken_one_changes_nothing() {
    let lab = Lab::start().await;
    quick(&lab, "q");
    let folder = folder_with("");
    let spec = folder.path().join("api.json");
    let write = |operations: &[&str]| {
        let paths = operations.iter().map(|name| {
            (format!("/tool/echo/{name}"), json!({ "get": { "operationId": name, "summary": "Looks" } }))
        });
        let paths: serde_json::Map<String, Value> = paths.collect();
        let document = json!({ "openapi": "3.1.0", "servers": [{ "url": lab.url() }], "paths": paths });
        std::fs::write(&spec, document.to_string()).unwrap();
    };
    write(&["one"]);
    let yaml = format!(
        "upstreams: {{ main: {{ base_url: {}/v1 }} }}\ntools: {{ api: {{ openapi: {{ spec: FOLDER/api.json }} }} }}\n",
        lab.url()
    );
    write_config(folder.path(), &yaml);
    let mut process = Process::in_folder(folder).await;
    let offered = async |process: &Process| {
        lab.clear();
        ask(process, "q").await.unwrap();
        let body = lab.journal().bodies("q").remove(0);
        let tools = body["tools"].as_array().cloned().unwrap_or_default();
        tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(offered(&process).await, ["api__one"]);

    // Nobody signals it: a change of the document is seen by itself.
    write(&["one", "two"]);
    process.metric_becomes("fanfold_config_reload_success", 1.0).await;
    process.logged("is used from now on").await;
    assert_eq!(offered(&process).await, ["api__one", "api__two"]);
    lab.script("call", json!({ "rounds": [{ "reply": { "calls": [{ "name": "api__two", "arguments": {} }] } }, { "reply": { "text": "fine" } }] }));
    assert!(ask(&process, "call").await.unwrap().body.contains("fine"));
    assert_eq!(lab.journal().tools["two"].started, 1);

    std::fs::write(&spec, "{ \"openapi\": \"3.1.0\"").unwrap();
    process.metric_becomes("fanfold_config_reload_success", 0.0).await;
    process.logged("the one before stays").await;
    assert_eq!(offered(&process).await, ["api__one", "api__two"], "the old one stays in use");

    write(&["three"]);
    process.metric_becomes("fanfold_config_reload_success", 1.0).await;
    assert_eq!(offered(&process).await, ["api__three"]);
}

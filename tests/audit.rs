//! The audit log as a tool server sees it: no call arrives before its intent is in the file, whatever happens to
//! fanfold, and what cannot be written down is not run.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::fold::{self, Folded};
use support::gateway::soon;
use support::lab::Lab;
use support::process::{Process, folder_with, run};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How often the process is killed, at least, in each of the lanes that run side by side: a busy machine needs more of
/// them for as many calls.
const KILLS: usize = 100;
const LANES: usize = 2;

/// A tool server that looks into the audit log whenever a call arrives.
struct Tools {
    url: String,
    seen: Arc<Mutex<Seen>>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    log: PathBuf,
    /// Each call that arrived, by its idempotency key.
    calls: Vec<String>,
    /// Those whose intent was not in the log.
    unannounced: Vec<String>,
}

impl Seen {
    fn take(&mut self, key: &str) {
        // The first record with a key is its intent.
        let log = fs::read(&self.log).unwrap();
        let announced = memchr::memmem::find(&log, format!("\"key\":\"{key}\"").as_bytes()).is_some();
        self.calls.push(key.to_owned());
        if !announced {
            self.unannounced.push(key.to_owned());
        }
    }
}

impl Tools {
    async fn start(log: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen { log, ..Seen::default() }));
        let mut serving = JoinSet::new();
        let into = seen.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let into = into.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
                    into.lock().unwrap_or_else(PoisonError::into_inner).take(&key);
                    std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("saved")))))
                });
                connections.spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _cut = connection.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { url, seen, _serving: serving }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records of a log; a line that is none is left out.
fn records(log: &Path) -> Vec<Value> {
    let text = fs::read(log).unwrap();
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn intents(log: &Path) -> BTreeSet<String> {
    let intents = records(log).into_iter().filter(|record| record["event"] == "intent");
    intents.map(|record| record["key"].as_str().unwrap().to_owned()).collect()
}

fn config(lab: &Lab, tools: &Tools, audit: &str) -> String {
    format!(
        "upstreams: {{ main: {{ base_url: {}/v1 }} }}
tools:
  save:
    parameters: {{ type: object, properties: {{ n: {{ type: integer }} }} }}
    http: {{ method: POST, url: '{}/save' }}
server: {{ drain_accept: 0s }}
audit: {{ file: FOLDER/audit.jsonl{audit} }}
",
        lab.url(),
        tools.url
    )
}

/// Three calls in one reply, then an answer.
async fn lab() -> Lab {
    let lab = Lab::start().await;
    let call = |n: u32| json!({ "name": "save", "arguments": { "n": n } });
    let rounds =
        json!([{ "reply": { "calls": [call(1), call(2), call(3)] } }, { "reply": { "text": "done" } }]);
    lab.script("save", json!({ "rounds": rounds }));
    lab
}

fn chat() -> Value {
    json!({ "model": "script:save", "messages": [{ "role": "user", "content": "hi" }],
        "fanfold": { "include": ["transcript"] } })
}

async fn ask(process: &Process) -> Got {
    soon(client::chat(&process.base_url(), &chat())).await.unwrap()
}

/// A started process, its tool server and its log.
async fn started(lab: &Lab, audit: &str) -> (Process, Tools, PathBuf) {
    let folder = folder_with("");
    let log = folder.path().join("audit.jsonl");
    let tools = Tools::start(log.clone()).await;
    support::process::write_config(folder.path(), &config(lab, &tools, audit));
    (Process::in_folder(folder).await, tools, log)
}

#[tokio::test]
async fn a_tool_server_finds_the_intent_in_the_log_when_a_call_arrives() {
    for more in ["", ", sync: true"] {
        let lab = lab().await;
        let (process, tools, log) = started(&lab, more).await;
        let got = ask(&process).await;
        assert!(got.body.contains("done"), "{got:?}");
        let request_id = got.header("x-request-id").to_owned();
        process.signal(Signal::TERM);
        let folder = process.folder.path().to_owned();
        let kept = log.clone();
        let seen = std::mem::take(&mut *tools.seen());
        assert_eq!((seen.calls.len(), seen.unannounced.len()), (3, 0));
        // The process writes what is left before it ends, and its folder is there until then.
        let records = {
            let ended = soon(async {
                loop {
                    let found = records(&kept);
                    if found.iter().filter(|record| record["event"] == "outcome").count() == 3 {
                        break found;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            ended.await
        };
        for record in records.iter().filter(|record| record["event"] != "start") {
            assert_eq!(
                (&record["team"], &record["tool"], &record["effect"]),
                (&json!("default"), &json!("save"), &json!("write"))
            );
            assert_eq!(record["request_id"], json!(request_id));
            assert_eq!(record["arguments_sha256"].as_str().unwrap().len(), 64);
            assert!(
                record.get("arguments").is_none() && record["call_id"].as_str().unwrap().starts_with("call_")
            );
        }
        let (code, out, err) = run(&folder, &["audit", "verify", "audit.jsonl"]).await;
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("7 records are one chain, 3 intents and 3 outcomes"), "{out}");
        soon(process.ended()).await;
    }
}

/// The results of the calls, as the model got them.
fn results(got: &Got) -> Vec<String> {
    let calls = got.json()["fanfold"]["transcript"]["calls"].clone();
    calls.as_array().unwrap().iter().map(|call| call["result"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn without_a_log_no_call_with_effects_is_run_unless_the_operator_wants_it() {
    for (more, calls) in [("", 0), (", on_error: continue", 3)] {
        let lab = lab().await;
        let (mut process, tools, log) = started(&lab, more).await;
        // The log is moved away, and nothing can be made in its place.
        fs::rename(&log, log.with_extension("1")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", &log).unwrap();
        tools.seen().log = log.with_extension("1");
        process.signal(Signal::HUP);
        process.logged("the audit log cannot be written").await;
        let got = ask(&process).await;
        assert_eq!(tools.seen().calls.len(), calls, "{got:?}");
        let refused =
            results(&got).iter().filter(|result| result.contains("audit log cannot be written")).count();
        assert_eq!(refused, 3 - calls);
        process.metric_becomes("fanfold_audit_up", 0.0).await;
        // It goes on by itself when there is a place again.
        fs::remove_file(&log).unwrap();
        tools.seen().log.clone_from(&log);
        let got = ask(&process).await;
        assert!(
            matches!(fold::answer(&got), Ok(Folded::Reply(_))) && tools.seen().calls.len() == calls + 3,
            "{got:?}"
        );
        let both = ["audit", "verify", "audit.1", "audit.jsonl"];
        let (code, out, err) = run(process.folder.path(), &both).await;
        assert_eq!(code, 0, "{out}{err}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_written_stops_the_start() {
    let lab = lab().await;
    let folder = folder_with("");
    let tools = Tools::start(folder.path().join("audit.jsonl")).await;
    support::process::write_config(folder.path(), &config(&lab, &tools, ""));
    fs::write(folder.path().join("audit.jsonl"), "not a log\n").unwrap();
    let (code, _, err) = run(folder.path(), &["serve"]).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("audit.file") && err.contains("does not end like an audit log"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_it_is_killed_every_effect_has_its_intent() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        lanes.spawn(killed_again_and_again(seed.wrapping_add(lane as u64)));
    }
    lanes.join_all().await;
}

async fn killed_again_and_again(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = lab().await;
    let (mut process, tools, log) = started(&lab, "").await;
    let mut kills = 0;
    while kills < KILLS || (kills < 4 * KILLS && tools.seen().calls.len() <= KILLS) {
        kills += 1;
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            let base_url = process.base_url();
            clients.spawn(async move { while client::chat(&base_url, &chat()).await.is_ok() {} });
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..60_000))).await;
        let folder = process.killed().await;
        // Not joined: whoever has the port by now may answer them for long.
        clients.shutdown().await;
        process = Process::in_folder(folder).await;
    }
    let folder = process.killed().await;
    let seen = std::mem::take(&mut *tools.seen());
    assert!(seen.calls.len() > KILLS, "{} calls under load", seen.calls.len());
    assert!(seen.unannounced.is_empty(), "{:?}", seen.unannounced);
    let announced = intents(&log);
    assert!(seen.calls.iter().all(|key| announced.contains(key)));
    let distinct: BTreeSet<&String> = seen.calls.iter().collect();
    assert_eq!(distinct.len(), seen.calls.len(), "no call arrived twice");
    let (code, out, err) = run(folder.path(), &["audit", "verify", "audit.jsonl"]).await;
    assert_eq!(code, 0, "{out}{err}");
}

//! Nothing is left of a thousand calls of each kind of tool, once a reload has removed it.
//!
//! The real binary is counted by the system: its descriptors and its children, zombies among them. Tasks are counted
//! by a runtime that has nothing but fanfold and one client in it. Wants bubblewrap, a kernel with Landlock, and
//! Python 3.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::client;
use support::gateway::Gateway;
use support::lab::Lab;
use support::process::{Process, folder_with, write_config};
use tokio::time::{sleep, timeout};

const TURNS: usize = 20;
const CALLS: usize = 50;
const ROGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");
/// Every kind of tool: its entry under `tools:`, what the model calls, and how many processes fanfold then has beside
/// those of calls: the one that ends the others, and a server's.
const KINDS: [(&str, &str, usize); 7] = [
    ("web", "web", 0),
    ("api", "api__op", 0),
    ("far", "far__echo", 0),
    ("near", "near__echo", 2),
    ("none", "none", 1),
    ("landlock", "landlock", 1),
    ("bwrap", "bwrap", 1),
];

/// The tool of a kind; `folder` is for its document.
fn tool(kind: &str, lab: &Lab, folder: &Path) -> Value {
    let parameters = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
    let path = std::env::var("PATH").unwrap_or_default();
    match kind {
        "web" => {
            json!({ "parameters": parameters, "http": { "url": format!("{}/tool/echo/{{n}}", lab.url()) } })
        }
        "api" => {
            let n = json!({ "name": "n", "in": "path", "required": true, "schema": { "type": "integer" } });
            let document = json!({ "openapi": "3.1.0", "servers": [{ "url": lab.url() }], "paths": {
                "/tool/echo/{n}": { "get": { "operationId": "op", "parameters": [n] } } } });
            let file = folder.join("api.json");
            fs::write(&file, document.to_string()).unwrap();
            json!({ "openapi": { "spec": file } })
        }
        "far" => json!({ "mcp": { "url": format!("{}/tool/mcp", lab.url()) } }),
        "near" => json!({ "mcp": { "command": ["python3", ROGUE], "env": { "PATH": path } } }),
        sandbox => json!({ "parameters": parameters,
            "command": { "argv": ["/bin/echo", "{n}"], "sandbox": sandbox } }),
    }
}

/// A turn in which the model makes many calls of a tool at once. All of them must do well.
async fn ask(lab: &Lab, base_url: &str, name: &str) {
    // Its journal would grow with every call, and each of them looks through it.
    lab.clear();
    let chat = json!({ "model": format!("script:{name}"), "messages": [{ "role": "user", "content": "hi" }],
        "fanfold": { "include": ["transcript"] } });
    let asked = client::chat(base_url, &chat);
    let got = timeout(Duration::from_secs(120), asked).await.expect("in time").unwrap();
    let calls = got.json()["fanfold"]["transcript"]["calls"].as_array().cloned().unwrap_or_default();
    let failed = calls.iter().find(|call| call["outcome"] != "ok");
    assert!(calls.len() == CALLS && failed.is_none(), "{name}: {} {failed:?} {}", calls.len(), got.body);
}

fn script(lab: &Lab, name: &str) {
    let calls: Vec<Value> = (0..CALLS).map(|n| json!({ "name": name, "arguments": { "n": n } })).collect();
    let rounds = json!([{ "reply": { "calls": calls } }, { "reply": { "text": "done" } }]);
    lab.script(name, json!({ "rounds": rounds, "repeat": true, "lenient": true }));
}

/// What the system counts of a process: its descriptors, and its children, zombies among them.
fn counts(process: &Process) -> (usize, usize) {
    let proc = Path::new("/proc").join(process.id().to_string());
    let children = fs::read_dir(proc.join("task")).unwrap().filter_map(Result::ok);
    let children = children.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children = children.map(|line| line.split_whitespace().count()).sum();
    (fs::read_dir(proc.join("fd")).unwrap().count(), children)
}

/// Waits until a process has no more than this.
async fn settled(process: &Process, most: (usize, usize)) {
    process.metric_becomes("fanfold_tool_calls_in_flight", 0.0).await;
    let left = async {
        while counts(process).0 > most.0 || counts(process).1 > most.1 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let late = timeout(Duration::from_secs(40), left).await.is_err();
    assert!(!late, "{:?} descriptors and children, not {most:?}", counts(process));
}

/// Has every thread of the process serve a chat: it is in the nature of threads that each keeps its own connections.
async fn every_thread(process: &Process) {
    let chat = json!({ "model": "script:plain", "messages": [{ "role": "user", "content": "hi" }] });
    let (base_url, threads) =
        (process.base_url(), std::thread::available_parallelism().map_or(1, usize::from));
    for _ in 0..2 {
        let asked = (0..2 * threads).map(|_| client::chat(&base_url, &chat));
        assert!(futures_util::future::join_all(asked).await.iter().all(Result::is_ok));
    }
}

async fn a_thousand_calls(kind: &str) {
    let (_, name, processes) = KINDS.into_iter().find(|(known, ..)| *known == kind).unwrap();
    let lab = Lab::start().await;
    let folder = folder_with("");
    let upstream =
        format!("upstreams: {{ main: {{ base_url: {}/v1 }} }}\nserver: {{ drain_accept: 0s }}\n", lab.url());
    let tools = json!({ kind: tool(kind, &lab, folder.path()) });
    write_config(folder.path(), &upstream);
    lab.script("plain", json!({ "rounds": [{ "reply": { "text": "done" } }], "repeat": true }));
    let mut process = Process::in_folder(folder).await;
    // Pools and threads have come by then.
    every_thread(&process).await;
    script(&lab, name);
    let reload = async |process: &mut Process, more: &str, times: usize| {
        write_config(process.folder.path(), &format!("{upstream}{more}"));
        process.signal(Signal::HUP);
        let used = async {
            while process.log().matches("is used from now on").count() < times {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), used).await.expect("it reloads");
    };
    settled(&process, (usize::MAX, 0)).await;
    let before = counts(&process);
    reload(&mut process, &format!("tools: {tools}\n"), 1).await;
    if ["far", "near"].contains(&kind) {
        process.metric_becomes(&format!("fanfold_tool_servers_up{{server=\"{kind}\"}}"), 1.0).await;
    }
    // A reload lets connections go.
    every_thread(&process).await;
    ask(&lab, &process.base_url(), name).await;
    settled(&process, (usize::MAX, processes)).await;
    let warm = counts(&process);
    for _ in 0..TURNS {
        ask(&lab, &process.base_url(), name).await;
    }
    // None of them grows with the calls …
    settled(&process, (warm.0, processes)).await;
    // … and with the tool the rest goes.
    reload(&mut process, "", 2).await;
    settled(&process, before).await;
    assert!(!process.log().contains("panicked"), "{}", process.log());
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_leave_nothing_behind() {
    a_thousand_calls("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_operations_of_a_document_leave_nothing_behind() {
    a_thousand_calls("api").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_of_a_server_over_http_leave_nothing_behind() {
    a_thousand_calls("far").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_of_a_server_of_our_own_leave_nothing_behind() {
    a_thousand_calls("near").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_commands_leave_nothing_behind() {
    a_thousand_calls("none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_commands_behind_landlock_leave_nothing_behind() {
    a_thousand_calls("landlock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_commands_in_bubblewrap_leave_nothing_behind() {
    a_thousand_calls("bwrap").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_task_is_left_of_a_thousand_calls_of_each_kind() {
    let labs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let lab = labs.spawn(Lab::start()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = |tools: &Value| format!("upstreams: {{ lab: {{ base_url: LAB/v1 }} }}\ntools: {tools}\n");
    let gateway = Gateway::start(&lab, &config(&json!({}))).await;
    // The fences need the binary, and are the same to the runtime as a command without one.
    for (kind, name, _) in KINDS.into_iter().filter(|(kind, ..)| !["landlock", "bwrap"].contains(kind)) {
        gateway.metric_becomes("fanfold_connections", 0.0).await;
        sleep(Duration::from_millis(300)).await;
        let before = gateway.tasks();
        gateway.reload(&lab, &config(&json!({ kind: tool(kind, &lab, folder.path()) })));
        if ["far", "near"].contains(&kind) {
            gateway.metric_becomes(&format!("fanfold_tool_servers_up{{server=\"{kind}\"}}"), 1.0).await;
        }
        script(&lab, name);
        for _ in 0..TURNS {
            ask(&lab, &gateway.base_url(), name).await;
        }
        gateway.reload(&lab, &config(&json!({})));
        let left = async {
            while gateway.tasks() > before {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let late = timeout(Duration::from_secs(40), left).await.is_err();
        assert!(!late, "{kind}: {} tasks, {before} before", gateway.tasks());
    }
    gateway.ends_at_baseline(&lab).await;
    labs.shutdown_background();
}

//! Tool servers behind the real proxy: what a team has for itself, what was pinned, what is left when it is over.
//!
//! The servers are `tests/support/rogue.py`, which wants Python 3.

mod support;

use std::path::Path;
use std::time::Duration;

use fanfold::team::digest;
use serde_json::{Value, json};
use support::client;
use support::gateway::{Gateway, soon};
use support::lab::Lab;
use support::process::{self, Process, folder_with, run};
use tokio::time::sleep;

/// What every client here says of the trace it belongs to.
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const ROGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");

fn hex(key: &str) -> String {
    digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn teams() -> Value {
    json!({
        "blue": { "keys": [{ "sha256": hex("fk-blue") }] },
        "red": { "keys": [{ "sha256": hex("fk-red") }] },
        "grey": { "keys": [{ "sha256": hex("fk-grey") }], "tools": [] },
    })
}

fn config(tools: &Value, teams: &Value) -> String {
    let upstreams = json!({ "lab": { "base_url": "LAB/v1" } });
    format!("upstreams: {upstreams}\ntools: {tools}\nteams: {teams}\n")
}

/// One turn of a team in which the model makes these calls; what it was told of each, in order.
async fn turn(lab: &Lab, gateway: &Gateway, name: &str, key: &str, calls: &[(&str, Value)]) -> Vec<String> {
    let calls: Vec<Value> =
        calls.iter().map(|(name, arguments)| json!({ "name": name, "arguments": arguments })).collect();
    lab.script(name, json!({ "rounds": [{ "reply": { "calls": calls } }, { "reply": { "text": "done" } }] }));
    let bodies = asked(lab, gateway, name, key).await;
    let messages = bodies[1]["messages"].as_array().cloned().unwrap_or_default();
    let told = messages.iter().filter(|message| message["role"] == "tool");
    told.map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The names of the tools a team's model is offered.
async fn offered(lab: &Lab, gateway: &Gateway, name: &str, key: &str) -> Vec<String> {
    lab.script(name, json!({ "rounds": [{ "reply": { "text": "done" } }] }));
    let bodies = asked(lab, gateway, name, key).await;
    let tools = bodies[0]["tools"].as_array().cloned().unwrap_or_default();
    tools.iter().filter_map(|tool| Some(tool["function"]["name"].as_str()?.to_owned())).collect()
}

/// Asks, and gives the bodies that went to the model.
async fn asked(lab: &Lab, gateway: &Gateway, name: &str, key: &str) -> Vec<Value> {
    let body =
        json!({ "model": format!("script:{name}"), "messages": [{ "role": "user", "content": "hi" }] });
    let url = format!("{}/chat/completions", gateway.base_url());
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("traceparent", TRACE)];
    let got = soon(client::send(http::Method::POST, &url, &headers, Some(&body))).await.expect("an answer");
    assert!(got.body.contains("done"), "{}", got.body);
    lab.journal().bodies(name)
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn gone(pid: &str) {
    soon(async {
        while alive(pid) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The processes a rogue with this log has started so far.
fn started(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| Some(line.strip_prefix("start ")?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_has_its_own_process_with_its_own_environment_and_idle_ones_end() {
    let (lab, folder) = (Lab::start().await, tempfile::tempdir().expect("a folder"));
    let log = folder.path().join("log");
    let tools = json!({ "s": {
        "mcp": { "command": ["python3", ROGUE], "env": { "ROGUE_LOG": log, "CANARY": "nobody's" } },
        "share": "team", "idle": "3s", "only": ["echo"], "effect": "read",
        "teams": { "blue": { "env": { "CANARY": "blue's" } }, "red": { "env": { "CANARY": "red's" } } },
    } });
    let gateway = Gateway::start(&lab, &config(&tools, &teams())).await;
    assert_eq!(started(&log).len(), 0, "nobody needed it");
    assert!(offered(&lab, &gateway, "grey", "fk-grey").await.is_empty());
    assert_eq!(started(&log).len(), 0, "the team may not use it");

    let mut seen = Vec::new();
    for (name, key, canary) in
        [("one", "fk-blue", "blue's"), ("two", "fk-red", "red's"), ("three", "fk-blue", "blue's")]
    {
        let told = turn(&lab, &gateway, name, key, &[("s__echo", json!({ "a": name }))]).await;
        let told: Value = serde_json::from_str(&told[0]).expect("what the server heard");
        assert_eq!((&told["canary"], &told["arguments"]["a"]), (&json!(canary), &json!(name)));
        assert!(!told.to_string().contains("fk-"), "the client's key is not handed on: {told}");
        seen.push(told["pid"].to_string());
    }
    assert!(seen[0] != seen[1], "each team has its own process");
    // A process that was idle meanwhile, on a slow machine, was started anew.
    for pid in started(&log) {
        gone(&pid).await;
    }
    let before = started(&log).len();
    let told = turn(&lab, &gateway, "later", "fk-red", &[("s__echo", json!({}))]).await;
    assert!(told[0].contains("red's"), "{told:?}");
    assert_eq!(started(&log).len(), before + 1, "it is started again when the team needs it");
    gateway.ends_at_baseline(&lab).await;
    for pid in started(&log) {
        gone(&pid).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_whose_server_is_down_has_none_of_its_tools_and_the_others_keep_theirs() {
    let (lab, folder) = (Lab::start().await, tempfile::tempdir().expect("a folder"));
    let tools = json!({ "s": {
        "mcp": { "command": ["python3", ROGUE], "env": { "ROGUE_LOG": folder.path().join("log") }, "start_timeout": "15s" },
        "share": "team", "only": ["echo"], "effect": "read",
        "teams": { "red": { "env": { "ROGUE_FAILS": "1" } } },
    } });
    let gateway = Gateway::start(&lab, &config(&tools, &teams())).await;
    assert!(offered(&lab, &gateway, "red", "fk-red").await.is_empty());
    assert_eq!(offered(&lab, &gateway, "blue", "fk-blue").await, ["s__echo"]);
    assert!(offered(&lab, &gateway, "again", "fk-red").await.is_empty());
    let url = format!("http://{}/readyz?verbose", gateway.app.admin_address);
    let ready = client::send(http::Method::GET, &url, &[], None);
    let ready = soon(ready).await.expect("an answer").body;
    assert!(ready.contains("s of blue is up, 15 tools") && ready.contains("s of red is down: "), "{ready}");
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_tool_is_offered_as_it_was_accepted_and_no_other() {
    let command = json!(["python3", ROGUE]).to_string();
    let yaml = format!(
        "upstreams: {{ main: {{ base_url: 'http://127.0.0.1:1/v1' }} }}
tools: {{ s: {{ mcp: {{ command: {command}, env: {{ PATH: '{}' }} }}, pin: true, pins: FOLDER/pins.json, only: [echo, slow, new] }} }}
",
        std::env::var("PATH").unwrap_or_default()
    );
    let folder = folder_with(&yaml);
    let folder = folder.path();
    let (_, out, _) = run(folder, &["tools"]).await;
    assert!(out.contains("not accepted yet") && !out.contains("offered\n"), "{out}");
    let (code, out, err) = run(folder, &["tools", "accept"]).await;
    assert_eq!((code, out.contains("accepted 2 tools of s")), (0, true), "{out}{err}");
    let (code, out, err) = run(folder, &["tools"]).await;
    assert!(code == 0 && out.contains("s__echo") && out.contains("s__slow"), "{out}{err}");
    assert!(!out.contains("not accepted") && out.contains("left out by `only`"), "{out}");

    // One tool has changed since, one has come.
    let changed = std::fs::read_to_string(folder.join("fanfold.yaml"))
        .expect("the file")
        .replace("env: {", "env: { ROGUE_NEW: '1',");
    std::fs::write(folder.join("fanfold.yaml"), changed).expect("written");
    let (_, out, err) = run(folder, &["tools", "--json"]).await;
    let tools: Value = serde_json::from_str(&out).expect("JSON");
    let state = |name: &str| {
        let all = tools.as_array().expect("a list");
        all.iter()
            .find(|tool| tool["server"]["tool"] == name)
            .map(|tool| (tool["state"].clone(), tool["because"].clone()))
    };
    assert_eq!(state("echo"), Some(("offered".into(), Value::Null)), "{out}");
    let why =
        |text: &str| Some(("not offered".into(), Value::from(format!("{text} (`fanfold tools accept`)"))));
    assert_eq!(state("slow"), why("changed since it was accepted"));
    assert_eq!(state("new"), why("not accepted yet"));
    assert!(err.contains("warning: the tool `slow` of the server `s` is not offered: changed"), "{err}");

    let text = std::fs::read_to_string(folder.join("fanfold.yaml")).expect("the file");
    let process = Process::in_folder(folder_with(
        &text.split_once("upstreams").map(|(_, rest)| format!("upstreams{rest}")).unwrap_or_default(),
    ))
    .await;
    let of = |path: &str| format!("http://{}{path}", process.admin);
    let ready = soon(client::send(http::Method::GET, &of("/readyz?verbose"), &[], None))
        .await
        .expect("an answer")
        .body;
    assert!(ready.contains("the tool `slow` of the server `s` is not offered: changed"), "{ready}");
    let metrics =
        soon(client::send(http::Method::GET, &of("/metrics"), &[], None)).await.expect("an answer").body;
    assert!(metrics.contains("fanfold_tools_waiting{server=\"s\"} 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_even_when_fanfold_is_killed() {
    let yaml = format!(
        "upstreams: {{ main: {{ base_url: 'http://127.0.0.1:1/v1' }} }}
tools: {{ s: {{ mcp: {{ command: {}, env: {{ ROGUE_LOG: FOLDER/log, PATH: '{}' }} }} }} }}
",
        json!(["python3", ROGUE]),
        std::env::var("PATH").unwrap_or_default()
    );
    let process = Process::start(&yaml).await;
    let log = process.folder.path().join("log");
    let pids = soon(async {
        loop {
            let pids = started(&log);
            if !pids.is_empty() {
                return pids;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let _folder = process.killed().await;
    for pid in pids {
        gone(&pid).await;
    }
}

/// Lines of a log that begin like this, once there are so many.
async fn logged(log: &Path, beginning: &str, count: usize) -> Vec<String> {
    soon(async {
        loop {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines = text.lines().filter_map(|line| Some(line.strip_prefix(beginning)?.to_owned()));
            let lines: Vec<String> = lines.collect();
            if lines.len() >= count {
                return lines;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_a_killed_fanfold_however_stubborn() {
    let lab = Lab::start().await;
    // Neither the end of their input nor SIGTERM is heard, and each leaves somebody in a session of its own, with an
    // environment of its own.
    let stubborn = "trap '' TERM; setsid env -i /bin/sleep 600 & echo pid $! >>$ROGUE_LOG; sleep 600 & echo pid $! >>$ROGUE_LOG; echo pid $$ >>$ROGUE_LOG";
    let server = format!("{stubborn}; python3 {ROGUE}; while :; do sleep 600; done");
    let path = std::env::var("PATH").unwrap_or_default();
    let tools = json!({
        "s": { "mcp": { "command": ["bash", "-c", server], "env": { "ROGUE_LOG": "FOLDER/log", "PATH": path } } },
        "c": { "command": { "argv": ["/bin/bash", "-c", format!("{stubborn}; sleep 600")], "env": { "ROGUE_LOG": "FOLDER/command" } } },
    });
    let process =
        Process::start(&config(&tools, &json!({})).replace("LAB", &lab.url()).replace("teams: {}\n", ""))
            .await;
    lab.script("c", json!({ "rounds": [{ "reply": { "calls": [{ "name": "c", "arguments": {} }] } }] }));
    let body = json!({ "model": "script:c", "messages": [{ "role": "user", "content": "hi" }] });
    let base = process.base_url();
    let mut asking = tokio::task::JoinSet::new();
    asking.spawn(async move { client::chat(&base, &body).await });
    let folder = process.folder.path().to_owned();
    let mut pids = logged(&folder.join("log"), "pid ", 3).await;
    pids.extend(logged(&folder.join("command"), "pid ", 3).await);
    let keepers = children(process.id());
    let _folder = process.killed().await;
    for pid in pids.iter().chain(&keepers) {
        gone(pid).await;
    }
    assert!(asking.join_next().await.is_some_and(|asked| asked.expect("a task").is_err()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_with_a_tool_of_the_same_name_are_refused_with_both_owners() {
    let path = std::env::var("PATH").unwrap_or_default();
    let server = json!({ "prefix": "", "mcp": { "command": ["python3", ROGUE],
        "env": { "PATH": path } } });
    let yaml = config(&json!({ "first": server, "second": server }), &json!({}));
    let folder = folder_with(&yaml.replace("LAB", "http://127.0.0.1:1").replace("teams: {}\n", ""));
    let (code, _, said) = run(folder.path(), &["serve"]).await;
    assert_eq!(code, 64, "{said}");
    let clash = "the tool `echo` of the server `second` is not offered: the name `echo` belongs to";
    assert!(said.contains(clash) && said.contains("`first`") && said.contains("another `prefix`"), "{said}");
    let (code, _, said) = run(folder.path(), &["check", "--online"]).await;
    assert!(code == 64 && said.contains(clash), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_online_starts_a_teams_server_only_for_teams_that_may_use_it() {
    let lab = Lab::start().await;
    let tools = json!({ "s": { "share": "team",
        "mcp": { "command": ["python3", ROGUE], "env": { "ROGUE_LOG": "FOLDER/log" } } } });
    let folder = folder_with(&config(&tools, &teams()).replace("LAB", &lab.url()));
    let log = folder.path().join("log");
    let (code, said, err) = run(folder.path(), &["check", "--online"]).await;
    assert!(code == 0 && said.contains("s of blue") && said.contains("s of red"), "{code} {said} {err}");
    assert!(!said.contains("s of grey"), "that team may not use it: {said}");
    assert_eq!(started(&log).len(), 2);
    let (code, said, err) = run(folder.path(), &["tools", "--team", "grey"]).await;
    assert!(code == 0 && !said.contains("s__"), "{code} {said} {err}");
    assert_eq!(started(&log).len(), 2, "and it is not started to say so");

    let only_grey = json!({ "grey": teams()["grey"] });
    process::write_config(folder.path(), &config(&tools, &only_grey).replace("LAB", &lab.url()));
    let (code, said, err) = run(folder.path(), &["check", "--online"]).await;
    assert!(code == 0 && said.contains("not started: no team may use it"), "{code} {said} {err}");
    assert_eq!(started(&log).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_tool_whose_server_is_down_names_the_server_and_why() {
    let down = json!({ "mcp": { "command": ["/bin/false"] } });
    let up = json!({ "mcp": { "command": ["python3", ROGUE], "env": {} } });
    let call = |tools: Value, name: &'static str| async move {
        let yaml = config(&tools, &json!({})).replace("LAB", "http://127.0.0.1:1");
        let folder = folder_with(&yaml.replace("teams: {}\n", ""));
        run(folder.path(), &["call", name]).await
    };
    for (tools, name) in [
        (json!({ "s": down }), "s__echo"),
        (json!({ "s": down, "t": up }), "s__echo"),
        (json!({ "s": down }), "whatever"),
    ] {
        let (code, said, err) = call(tools, name).await;
        assert_eq!(code, 1, "{name}: {err}");
        assert!(err.contains("the tool server s is down: "), "{name}: {err}");
        assert!(said.is_empty() && !err.contains("there are no tools"), "{name}: {said} {err}");
        assert_eq!(err.matches("is down").count(), 1, "{name}: it is said once: {err}");
    }
    // What no server that is down could have is no tool at all.
    let (code, _, err) = call(json!({ "s": down, "t": up }), "t__ehco").await;
    assert!(
        code == 2 && err.contains("there is no tool `t__ehco`") && err.contains("t__echo"),
        "{code} {err}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tool_server_is_started_for_a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").to_string();
    let server = "touch $STARTED; exec python3 /dev/null";
    let tools = json!({ "s": { "mcp": { "command": ["sh", "-c", server],
        "env": { "STARTED": "FOLDER/started" } } } });
    let yaml = config(&tools, &json!({}));
    let folder = folder_with(&yaml.replace("LAB", "http://127.0.0.1:1").replace("teams: {}\n", ""));
    let (code, _, said) = run(folder.path(), &["serve", "--admin-listen", &port]).await;
    assert!(code == 1 && said.contains(&port), "{code} {said}");
    assert!(!folder.path().join("started").exists());
}

/// The children of a process.
fn children(pid: i32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").filter_map(Result::ok);
    let of = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    of.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_left_its_session_ends_with_fanfold_in_peace_as_well() {
    let tools = json!({ "s": { "mcp": {
        "command": ["bash", "-c", format!("setsid env -i /bin/sleep 600 & echo pid $! >>$ROGUE_LOG; exec python3 {ROGUE}")],
        "env": { "ROGUE_LOG": "FOLDER/log", "PATH": std::env::var("PATH").unwrap_or_default() },
    } } });
    let yaml =
        config(&tools, &json!({})).replace("LAB", "http://127.0.0.1:1") + "server: { drain_accept: 0s }\n";
    let process = Process::start(&yaml.replace("teams: {}\n", "")).await;
    let pids = logged(&process.folder.path().join("log"), "pid ", 1).await;
    assert!(pids.iter().all(|pid| alive(pid)));
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.ended().await.code, Some(0));
    for pid in pids {
        gone(&pid).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_has_its_own_headers_and_no_key_of_a_client_is_handed_on() {
    let lab = Lab::start().await;
    let tools = json!({ "s": {
        "mcp": { "url": "LAB/tool/mcp", "headers": { "authorization": "Bearer nobody's", "x-all": "1" } },
        "share": "team", "effect": "read",
        "teams": { "blue": { "headers": { "Authorization": "Bearer blue's" } }, "red": { "headers": { "authorization": "Bearer red's" } } },
    } });
    let gateway = Gateway::start(&lab, &config(&tools, &teams())).await;
    for (name, key) in [("one", "fk-blue"), ("two", "fk-red")] {
        let told = turn(&lab, &gateway, name, key, &[("s__echo", json!({ "team": name }))]).await;
        assert_eq!(told, [format!("{{\"team\":\"{name}\"}}")]);
    }
    let seen = lab.journal();
    let of_server: Vec<_> =
        seen.requests().map(|(_, request)| request).filter(|request| request.path == "/tool/mcp").collect();
    for (name, team) in [("one", "blue's"), ("two", "red's")] {
        let wanted = format!("Bearer {team}");
        let its = of_server.iter().filter(|request| request.headers["authorization"] == wanted);
        let calls: Vec<_> = its.filter(|request| request.body["method"] == "tools/call").collect();
        let [call] = calls[..] else { panic!("{} calls of {name}", calls.len()) };
        assert_eq!(call.body["params"]["arguments"]["team"], name);
        let meta = &call.body["params"]["_meta"];
        assert!(meta["traceparent"].as_str().is_some_and(|trace| trace.starts_with(&TRACE[..35])), "{meta}");
        assert!(meta["fanfold/idempotency-key"].as_str().is_some_and(|key| !key.is_empty()), "{meta}");
    }
    for request in of_server {
        assert!(request.headers["authorization"] != "Bearer nobody's" && request.headers["x-all"] == "1");
        let all = format!("{:?}{}", request.headers, request.body);
        assert!(!all.contains("fk-"), "{all}");
    }
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_standard_error_of_a_server_is_in_the_log_within_bounds_and_tame() {
    let script =
        format!("for n in $(seq 300); do echo line $n >&2; done; echo last >&2; exec python3 {ROGUE}");
    let tools = json!({ "s": { "mcp": {
        "command": ["bash", "-c", script],
        "env": { "PATH": std::env::var("PATH").unwrap_or_default() },
    } } });
    let yaml = config(&tools, &json!({})).replace("LAB", "http://127.0.0.1:1").replace("teams: {}\n", "");
    let process = Process::start(&yaml).await;
    process.metric_becomes("fanfold_tool_servers_up{server=\"s\"}", 1.0).await;
    let of_server = || -> Vec<String> {
        let log = process.log();
        log.lines().filter(|line| line.contains("standard error: ")).map(str::to_owned).collect()
    };
    soon(async {
        while of_server().len() < 50 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // No more than fifty in five seconds, of each start.
    let starts = process.log().matches("standard error: line 1\"").count();
    assert!((1..=2).contains(&starts) && of_server().len() <= 50 * starts, "{} lines", of_server().len());

    // The rogue itself writes a colour and a line of 5000 characters.
    let tools = json!({ "s": { "mcp": { "command": ["python3", ROGUE],
        "env": { "PATH": std::env::var("PATH").unwrap_or_default() } } } });
    let yaml = config(&tools, &json!({})).replace("LAB", "http://127.0.0.1:1").replace("teams: {}\n", "");
    let mut process = Process::start(&yaml).await;
    process.logged("standard error: yyy").await;
    for line in process.log().lines().filter(|line| line.contains("standard error: ")) {
        assert!(line.len() < 1500 && !line.contains("\\u001b") && !line.contains('\u{1b}'), "{line}");
    }
}

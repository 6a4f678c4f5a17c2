//! Faults of an MCP server: what the model is told of each, how often the call reaches the server, and that another
//! call of the same reply has its result; by the tool's effect, whole and streamed, in the first round and after
//! another tool wrote.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::support::door::Gate;
use super::support::faults::chunk;
use super::support::fold::{self, Folded};
use super::support::gateway::{SOON, closed_port, soon};
use super::support::lab::Lab;
use super::support::lab::journal::{Entry, Request, Snapshot};
use super::support::matrix::{Cells, Took, Watch};
use super::support::process::{self, Process};
use super::support::stage::Stage;
use super::tools::{EFFECTS, MODES, Mode, column, deadline};

const ROGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");

/// How long another call of the same server is on its way, in milliseconds.
const BESIDE: u64 = 300;

/// Faults that are played side by side, each in a process of its own.
const SIDE_BY_SIDE: usize = 3;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Server {
    /// It is `rogue.py`.
    Program,
    /// It is the lab's, with this query.
    Url(String),
    /// It is the lab's, with this query, and what is wrong is in the events of one answer: another call of the same
    /// server goes on.
    Events(String),
}

/// Whether a server can be called, before the fault and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Up {
    /// It is there again, at the latest when it was started again.
    Again,
    /// Until the fault.
    Before,
    /// At no time.
    Never,
}

/// A fault.
struct Row {
    fault: &'static str,
    server: Server,
    up: Up,
    /// The server's settings besides.
    more: Value,
    /// What the server is called for, in one round after the other.
    calls: &'static [&'static str],
    arguments: Value,
    /// What the server offers before the second call.
    then: &'static [&'static str],
    /// How many of the calls reach it.
    reached: usize,
    /// What the model is told of the last call.
    told: &'static str,
    /// Of a call that writes the model is told besides that its outcome is unknown.
    unknown: bool,
    /// The last call reaches it once more unless it writes, and this is what the model is told then.
    again: Option<&'static str>,
    /// What the server asked of fanfold in the middle of the call, and was told, in the order of its ids.
    asked: &'static str,
}

fn program(fault: &'static str, calls: &'static [&'static str], told: &'static str) -> Row {
    let (server, more) = (Server::Program, json!({}));
    Row {
        fault,
        server,
        up: Up::Again,
        more,
        calls,
        arguments: json!({}),
        then: &[],
        reached: 1,
        told,
        unknown: false,
        again: None,
        asked: "",
    }
}

fn http(fault: &'static str, query: &'static str, told: &'static str) -> Row {
    Row { server: Server::Url(query.to_owned()), ..program(fault, &["echo"], told) }
}

/// A server whose answer to a call is a stream with these steps.
fn events(fault: &'static str, steps: &Value, told: &'static str) -> Row {
    let query =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("says", &steps.to_string()).finish();
    Row { server: Server::Events(query), ..program(fault, &["echo"], told) }
}

fn never(row: Row) -> Row {
    Row { up: Up::Never, reached: 0, ..row }
}

fn unknown(row: Row) -> Row {
    Row { unknown: true, ..row }
}

const GONE: &str = "error: the server went away before it answered";
const LOST: &str = "error: the connection to the server failed";
const LATE: &str = "error: timed out after 3s";
const NOT_OFFERED: &str = "error: there is no tool `SERVER__echo`; the tools are: look, save";

fn programs() -> Vec<Row> {
    let changes = |fault, told| program(fault, &["change", "echo"], told);
    vec![
        // It says of this tool that it destroys: that makes it one that writes, whatever the settings say.
        program(
            "crashes",
            &["crash"],
            "error: the server went away before it answered; outcome unknown: may have been executed",
        ),
        unknown(program("ends, and a child keeps its output", &["leave"], GONE)),
        Row {
            up: Up::Before,
            more: json!({ "mcp": { "env": { "ROGUE_ONCE": "1" } } }),
            ..program(
                "is still down at the next call",
                &["leave", "echo"],
                "error: the server SERVER is not available right now; nothing was sent",
            )
        },
        program("garbage before the answer", &["garbage"], "fine"),
        unknown(program("flood", &["flood"], GONE)),
        unknown(program("late: answers of other calls", &["wrong"], LATE)),
        Row {
            more: json!({ "mcp": { "start_timeout": "4s" } }),
            ..unknown(program("late: says nothing more", &["mute"], LATE))
        },
        Row {
            arguments: json!({ "z": 9000 }),
            ..program(
                "a long answer",
                &["long"],
                "4096 bytes that end in xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… [cut: 4 KiB of 9000 bytes]",
            )
        },
        unknown(program(
            "an answer over the limit",
            &["long"],
            "error: the server's answer is larger than 8 MiB",
        )),
        program(
            "an error of the protocol",
            &["no"],
            "error: the server refused: no such thing (code -32602)",
        ),
        Row { then: &["echo", "new"], reached: 2, ..changes("changes its tools", "its answer") },
        Row {
            more: json!({ "pin": true, "pins": "FOLDER/pins.json" }),
            ..changes(
                "changes its tools, which are pinned",
                "error: the tool has changed and waits to be accepted; nothing was sent",
            )
        },
        never(Row {
            more: json!({ "mcp": { "start_timeout": "700ms", "command": ["python3", ROGUE, "hang"] } }),
            ..program("hangs in its hello", &["echo"], NOT_OFFERED)
        }),
        never(Row {
            more: json!({ "mcp": { "env": { "ROGUE_FAILS": "1" } } }),
            ..program("ends at once", &["echo"], NOT_OFFERED)
        }),
    ]
}

fn urls() -> Vec<Row> {
    let open = |fault, query, told| unknown(http(fault, query, told));
    vec![
        open("HTTP 500", "call=fail&status=500", "error: the server answered HTTP 500 Internal Server Error"),
        http(
            "HTTP 400",
            "call=fail&status=400",
            "error: HTTP 400 Bad Request: the tool SERVER failed as it was told to",
        ),
        open(
            "HTTP redirect",
            "call=redirect&to=/x",
            "error: the server answered HTTP 302 Found, which is not followed",
        ),
        http(
            "HTTP session gone",
            "session=s&call=fail&status=404",
            "error: the server has ended the session; the call was not run",
        ),
        open("HTTP closed after sending", "call=close", LOST),
        open("HTTP reset after sending", "call=reset", LOST),
        // Calls that write have a connection each. Whatever else is the first on its connection is not sent again.
        Row {
            calls: &["echo", "echo"],
            then: &["echo"],
            reached: 2,
            again: Some("{}"),
            ..open("HTTP closed after sending on a kept connection", "close=2", LOST)
        },
        open("HTTP another kind of answer", "call=binary", LOST),
        open("HTTP an answer that is no message", "call=echo", LOST),
        open("late: HTTP no answer in time", "call=hang", LATE),
        open("late: HTTP taken without an answer", "call=fail&status=202", LATE),
        Row {
            up: Up::Before,
            reached: 0,
            ..http("HTTP refused", "", "error: unreachable: the connection was refused")
        },
        never(http("HTTP nobody there", "", NOT_OFFERED)),
    ]
}

/// Faults inside of the stream that answers a call.
fn streams() -> Vec<Row> {
    let open = |fault, steps, told| unknown(events(fault, &steps, told));
    let half = "data: {\"jsonrpc\":\"2.0\",\"id\":ID,";
    let other = json!({ "jsonrpc": "2.0", "id": 1_000_000, "result": { "content": [{ "type": "text", "text": "not yours" }] } });
    let said = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "x" } });
    let asks = |id: &str, method: &str| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": { "messages": [], "maxTokens": 1, "message": "?", "requestedSchema": { "type": "object", "properties": {} } } });
    let asked = json!([
        asks("1", "ping"),
        asks("2", "sampling/createMessage"),
        asks("3", "roots/list"),
        asks("4", "elicitation/create")
    ]);
    let now_and_then = |text: &str| vec![json!({ "send": text }), json!({ "wait_ms": 100 })].into_iter();
    let dripping = |first: &str, then: &str| -> Value {
        now_and_then(first).chain((0..100).flat_map(|_| now_and_then(then))).collect()
    };
    let goes_on = |row: Row| match row.server {
        Server::Events(query) => Row { server: Server::Events(format!("{query}&goes_on=yes")), ..row },
        Server::Program | Server::Url(_) => row,
    };
    let behind_an_id = json!([{ "send": "id: ID\ndata: \n\n" }, { "wait_ms": 50 }, "close"]);
    vec![
        open(
            "events: closed in the middle of one",
            json!([{ "send": half }, { "wait_ms": 50 }, "close"]),
            GONE,
        ),
        open(
            "events: reset in the middle of one",
            json!([{ "send": half }, { "wait_ms": 50 }, "reset"]),
            GONE,
        ),
        open("events: ended in the middle of one", json!([{ "send": half }]), GONE),
        open(
            "events: closed before the blank line",
            json!([{ "send": "data: ANSWER\n" }, { "wait_ms": 50 }, "close"]),
            GONE,
        ),
        open("events: ended before the blank line", json!([{ "send": "data: ANSWER\n" }]), GONE),
        open("events: none", json!([{ "head": {} }]), GONE),
        open("events: ended without the answer", json!([{ "events": [said] }]), GONE),
        events("events: not JSON before the answer", &json!([{ "events": ["nonsense", "ANSWER"] }]), "{}"),
        open(
            "events: not UTF-8 before the answer",
            json!([{ "hex": "64 61 74 61 3a 20 7b 22 61 22 3a 22 ff 22 7d 0a 0a" }, { "events": ["ANSWER"] }]),
            GONE,
        ),
        open(
            "events: no field of an event before the answer",
            json!([{ "send": "nonsense\n\n" }, { "events": ["ANSWER"] }]),
            GONE,
        ),
        open("events: another call's answer first", json!([{ "events": [other, "ANSWER"] }]), GONE),
        open("events: only another call's answer", json!([{ "events": [other] }]), GONE),
        open("late: events: comments for ever", dripping(": wait\n\n", ": wait\n\n"), LATE),
        open("late: events: one byte now and then", dripping("data: {", " "), LATE),
        open("late: events: nothing more", json!([{ "head": {} }, "stall"]), LATE),
        open("events: one over the limit", json!([{ "send": "data: " }, { "flood": "x" }]), GONE),
        events("events: news before the answer", &json!([{ "events": [said, "ANSWER"] }]), "{}"),
        Row {
            asked: "1 {}, 2 -32601, 3 -32601, 4 -32601",
            ..events(
                "events: the server asks before it answers",
                &json!([{ "events": asked }, { "wait_ms": 200 }, { "events": ["ANSWER"] }]),
                "{}",
            )
        },
        events("events: the answer twice", &json!([{ "events": ["ANSWER", "ANSWER"] }]), "{}"),
        open("events: closed behind an id, and nobody goes on", behind_an_id.clone(), GONE),
        goes_on(events("events: closed behind an id, and it goes on", &behind_an_id, "{}")),
    ]
}

fn rows() -> Vec<Row> {
    [programs(), urls(), streams()].into_iter().flatten().collect()
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    let rows = rows().len();
    (rows, rows * EFFECTS.len() * MODES.len() * 2)
}

impl Row {
    /// Another call of the same server has nothing to do with it.
    const fn goes_on_beside(&self) -> bool {
        matches!(self.server, Server::Events(_))
    }
}

/// A cell, with a server of its own.
struct Cell {
    effect: &'static str,
    column: String,
    mode: Mode,
    after: bool,
    /// Names its server and its script.
    name: String,
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for effect in EFFECTS {
        for mode in MODES {
            cells.extend([false, true].map(|after| {
                let name = format!("{effect}_{}{}", mode as usize, usize::from(after));
                Cell { effect, column: format!("{effect}, {}", column(mode, after)), mode, after, name }
            }));
        }
    }
    cells
}

impl Cell {
    /// The settings of its server.
    fn server(&self, row: &Row, lab: SocketAddr, log: &Path) -> Value {
        let mut server = json!({ "effect": self.effect });
        match &row.server {
            Server::Program => {
                let path = std::env::var("PATH").unwrap_or_default();
                let env = json!({ "PATH": path, "ROGUE_LOG": log.join(&self.name) });
                server["mcp"] = json!({ "command": ["python3", ROGUE], "env": env });
                server["only"] = json!([row.calls, row.then].concat());
            }
            Server::Url(query) | Server::Events(query) => {
                server["mcp"] = json!({ "url": format!("http://{lab}/tool/mcp/{}?{query}", self.name) });
            }
        }
        if row.fault.starts_with("late") {
            server["timeout"] = json!("3s");
        }
        merge(&mut server, &row.more);
        server
    }

    fn wanted(&self, row: &Row) -> (String, Duration) {
        let writes = self.effect == "write";
        let more = if row.unknown && writes { "; outcome unknown: may have been executed" } else { "" };
        let (told, reached) = match row.again.filter(|_| !writes) {
            Some(told) => (told.to_owned(), row.reached + 1),
            None => (format!("{}{more}", row.told), row.reached),
        };
        let (beside, least) = if row.goes_on_beside() {
            (format!("{{\"run\":1}} and {{\"wait\":{BESIDE}}}"), Duration::from_millis(BESIDE))
        } else {
            ("{\"run\":1}".to_owned(), Duration::ZERO)
        };
        let line = line("done", &told, reached, &beside, usize::from(self.after), row.asked);
        (line, deadline(row.fault).max(least))
    }

    /// A call of its server.
    fn call(&self, tool: &str, arguments: &Value) -> Value {
        json!({ "name": format!("{}__{tool}", self.name), "arguments": arguments })
    }

    /// What it was, and how long it took: with a second call, from that on.
    async fn play(&self, stage: &Stage, row: &Row, log: &Path) -> (String, Took) {
        let (name, saved) = (self.name.as_str(), format!("save_{}", self.name));
        let counted =
            |tool: &str| json!({ "name": tool, "arguments": { "label": format!("{tool}_{name}") } });
        let mut calls = vec![self.call(row.calls[0], &row.arguments), counted("look")];
        if row.goes_on_beside() {
            calls.push(self.call("echo", &json!({ "wait": BESIDE })));
        }
        let mut rounds = vec![json!({ "reply": { "calls": calls } })];
        if self.after {
            rounds.insert(0, json!({ "reply": { "calls": [counted("save")] } }));
        }
        if self.mode == Mode::Begun {
            rounds[0]["reply"]["text"] = json!("Hel");
        }
        rounds.extend(row.calls.get(1).map(|tool| when_released(&self.call(tool, &json!({})))));
        rounds.push(json!({ "reply": { "text": "done" } }));
        stage.lab.script(name, json!({ "rounds": rounds }));
        // The others would only make each question longer.
        let offered = row.calls.iter().filter(|_| row.up != Up::Never).map(|tool| format!("{name}__{tool}"));
        let offered: Vec<String> =
            ["look".to_owned(), "save".to_owned()].into_iter().chain(offered).collect();
        let headers = [("x-fanfold-tools", offered.join(","))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let going_on = async {
            if row.calls.len() > 1 {
                offers(stage, name, row.then).await;
                stage.lab.release(name);
            }
            Watch::start(&stage.process)
        };
        let (watch, got) = tokio::join!(going_on, stage.ask(name, self.mode != Mode::Whole, &headers));
        let took = watch.stop();
        let end = match fold::answer(&got) {
            Ok(Folded::Reply(reply)) if reply.text.ends_with("done") && reply.finish == "stop" => {
                "done".to_owned()
            }
            other => format!("{other:?}"),
        };
        let of_us = |(_, request): &(&Entry, &Request)| request.tool.as_deref() == Some(name);
        let replies = row.asked.split(", ").filter(|asked| !asked.is_empty()).count();
        // They go their own ways. What does not come is missed below.
        let all = |seen: &Snapshot| seen.requests().filter(of_us).filter_map(reply).count() >= replies;
        let _late = tokio::time::timeout(SOON, stage.lab.wait_until(all)).await;
        let seen = stage.lab.journal();
        let last = seen.bodies(name).pop().unwrap_or_default();
        let messages = last["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let told = |id: &str| {
            let of = |message: &&Value| message["tool_call_id"] == id;
            messages.iter().find(of).and_then(|message| message["content"].as_str()).unwrap_or("nothing")
        };
        let beside = |at: usize| told(&format!("call_r{}c{at}", usize::from(self.after))).to_owned();
        let it = if row.calls.len() > 1 { told(LATER).to_owned() } else { beside(0) };
        let others =
            if row.goes_on_beside() { format!("{} and {}", beside(1), beside(2)) } else { beside(1) };
        let over_http = seen.requests().filter(of_us).filter(|(_, request)| {
            request.body["method"] == "tools/call" && request.body["params"]["arguments"]["wait"].is_null()
        });
        let written = std::fs::read_to_string(log.join(name)).unwrap_or_default();
        let reached = over_http.count() + written.lines().filter(|line| line.starts_with("call ")).count();
        let saves = seen.tools.get(&saved).map_or(0, |runs| runs.started);
        let mut asked: Vec<String> = seen.requests().filter(of_us).filter_map(reply).collect();
        asked.sort_unstable();
        let saves = usize::try_from(saves).expect("few");
        let line = line(&end, &tame(&it, name), reached, &others, saves, &asked.join(", "));
        (line, took)
    }
}

/// What fanfold told a server that had asked: the id, and the result or the code of the refusal.
fn reply((_, request): (&Entry, &Request)) -> Option<String> {
    let id = request.body["id"].as_str().filter(|_| request.body["method"].is_null())?;
    let refused = request.body["error"]["code"].as_i64().map(|code| code.to_string());
    Some(format!("{id} {}", refused.unwrap_or_else(|| request.body["result"].to_string())))
}

fn line(end: &str, told: &str, reached: usize, beside: &str, saved: usize, asked: &str) -> String {
    let asked = if asked.is_empty() { String::new() } else { format!(", asked of us and told {asked}") };
    format!("{end}, told `{told}`, reached {reached}, beside it {beside}, the other {saved}{asked}")
}

/// What the model was told, without what differs from cell to cell.
fn tame(told: &str, name: &str) -> String {
    if told.starts_with("{\"pid\"") {
        return "its answer".to_owned();
    }
    if told.len() > 300 {
        return format!("{} bytes that end in {}", told.len(), &told[told.len() - 60..]);
    }
    // A busy machine may be late by a second.
    told.replace(name, "SERVER").replace("after 4s", "after 3s")
}

/// The id of the call in that round.
const LATER: &str = "call_later0001";

/// A round that calls once the test says so.
fn when_released(call: &Value) -> Value {
    let arguments = call["arguments"].to_string();
    let function = json!({ "name": call["name"], "arguments": arguments });
    let call = json!({ "index": 0, "id": LATER, "type": "function", "function": function });
    let events = [chunk(json!({ "tool_calls": [call] }), Value::Null), chunk(json!({}), json!("tool_calls"))];
    json!({ "steps": [{ "head": {} }, "stall", { "events": events }, { "events": ["[DONE]"] }] })
}

/// Waits until a server offers these tools and no others.
async fn offers(stage: &Stage, server: &str, wanted: &[&str]) {
    let wanted: Vec<String> = wanted.iter().map(|tool| format!("{server}__{tool}")).collect();
    let changed = async {
        loop {
            let plan = stage.ask(server, false, &[("x-fanfold-dry-run", "plan")]).await.json();
            let tools = plan["body"]["tools"].as_array().cloned().unwrap_or_default();
            let names = tools.iter().filter_map(|tool| tool["function"]["name"].as_str());
            let mut names: Vec<&str> = names.filter(|name| name.starts_with(server)).collect();
            names.sort_unstable();
            if names == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(changed).await;
}

/// Adds what is in `more`, objects member by member.
fn merge(value: &mut Value, more: &Value) {
    let Value::Object(members) = more else { return *value = more.clone() };
    for (name, more) in members {
        merge(&mut value[name], more);
    }
}

async fn all_up(process: &Process, cells: &[Cell]) {
    for Cell { name, .. } in cells {
        process.metric_becomes(&format!("fanfold_tool_servers_up{{server=\"{name}\"}}"), 1.0).await;
    }
}

async fn play(row: Row, noted: &Cells) {
    let (lab, log) = (Lab::start().await, tempfile::tempdir().expect("a folder"));
    let (nobody, _held) = closed_port();
    let address: SocketAddr = lab.url().trim_start_matches("http://").parse().expect("an address");
    let gate = (row.up == Up::Before && row.server != Server::Program).then(|| Gate::open(address));
    let way = if row.up == Up::Never { nobody } else { gate.as_ref().map_or(address, |gate| gate.address) };
    let cells = cells();
    let mut config = json!({
        "upstreams": { "main": { "base_url": lab.base_url() } },
        "routes": [{ "model": "*", "upstreams": ["main"] }],
        "limits": { "tool_result": "4KiB" },
        "tools": super::upstream::tools(&lab),
        "teams": { "players": { "tools": ["*"] } },
    });
    for cell in &cells {
        config["tools"][&cell.name] = cell.server(&row, way, log.path());
    }
    let stage = Stage::in_folder(lab, config, async |folder| {
        if row.more["pin"] == true {
            let (code, out, err) = process::run(folder.path(), &["tools", "accept"]).await;
            assert_eq!(code, 0, "{out}{err}");
            std::fs::read_dir(log.path())
                .expect("logs")
                .for_each(|log| std::fs::remove_file(log.expect("a log").path()).expect("removed"));
        }
        let process = Process::in_folder(folder).await;
        if row.up != Up::Never {
            all_up(&process, &cells).await;
        }
        process
    })
    .await;
    let _held = match gate {
        Some(gate) => Some(gate.shut().await),
        None => None,
    };
    let played = cells.iter().map(async |cell| {
        let got = cell.play(&stage, &row, log.path()).await;
        noted.note(row.fault, &cell.column, cell.wanted(&row), got);
    });
    join_all(played).await;
    if row.up == Up::Again {
        all_up(&stage.process, &cells).await;
    }
    stage.calm(row.fault).await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_tool_server_costs_its_own_calls_only() {
    let noted = Cells::default();
    let playing = stream::iter(rows()).map(|row| play(row, &noted));
    playing.buffer_unordered(SIDE_BY_SIDE).collect::<Vec<()>>().await;
    noted.settle("servers", size().1);
}

//! Faults of a model: what it is told of a call that is wrong, that every id has exactly one answer, what runs all
//! the same, and what the client gets; whole and streamed, in the first round and after a tool wrote.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::client::Got;
use super::support::faults::{self, chunk, text};
use super::support::fold::{self, Folded};
use super::support::lab::Lab;
use super::support::lab::journal::Snapshot;
use super::support::lab::script::ExpectedReply;
use super::support::matrix::{Cells, Took, timed};
use super::support::proxy::declared;
use super::support::stage::Stage;
use super::tools::{MODES, Mode, column};
use super::upstream::{label, tools};

/// What a cell has to be.
#[derive(Debug, Clone)]
struct Wanted {
    /// The text and the finish of the answer.
    end: &'static str,
    /// Requests from the round on that is wrong.
    asked: usize,
    /// What the model is told, call by call.
    told: String,
    /// How often the tool that reads runs, and the one that writes.
    looked: usize,
    saved: usize,
    /// The last question lets the model call nothing more.
    closed: bool,
}

/// A fault.
struct Row {
    fault: &'static str,
    /// The calls of the reply. `LABEL` in them differs from cell to cell; a member that is null is left out.
    calls: Vec<Value>,
    finish: &'static str,
    /// The reply comes again and again.
    endless: bool,
    first: Wanted,
    /// After a tool wrote, which is counted as well.
    after: Wanted,
}

impl Row {
    /// A reply with some calls and one more, of which nothing is wrong.
    fn beside(fault: &'static str, calls: impl IntoIterator<Item = Value>, told: &str) -> Self {
        let fine = look("fine");
        let row = Self::only(fault, calls.into_iter().chain([fine]), &format!("{told}, ran"));
        row.looks(1)
    }

    fn only(fault: &'static str, calls: impl IntoIterator<Item = Value>, told: &str) -> Self {
        let first =
            Wanted { end: "done, stop", asked: 2, told: told.to_owned(), looked: 0, saved: 0, closed: false };
        let after = Wanted { saved: 1, ..first.clone() };
        Self { fault, calls: calls.into_iter().collect(), finish: "tool_calls", endless: false, first, after }
    }

    /// The same, the tool that reads running so often.
    fn looks(self, looked: usize) -> Self {
        Self { first: Wanted { looked, ..self.first }, after: Wanted { looked, ..self.after }, ..self }
    }

    /// The client has a tool, too, and is asked for its result.
    fn is_mixed(&self) -> bool {
        self.calls.iter().any(|call| call["name"] == "mine")
    }
}

fn call(name: &str, arguments: &str) -> Value {
    json!({ "name": name, "arguments": arguments })
}

fn look(label: &str) -> Value {
    call("look", &json!({ "label": format!("look_LABEL_{label}") }).to_string())
}

fn save() -> Value {
    call("save", r#"{"label":"save_LABEL_"}"#)
}

fn with_id(id: Value, mut call: Value) -> Value {
    call["id"] = id;
    call
}

const NO_JSON: &str = "error: the arguments are not valid JSON; nothing was run. Send the call again with arguments that are one JSON object";
const FEW: &str = "error: arguments break the schema at the top: \"label\" is a required property";
const NO_ROUNDS: &str = "[The answer ends here: the limit of 10 rounds of tool calls is reached, and the model asked for more.], length";
const NO_MORE: &str = "[The answer ends here: the same call failed 3 times in the same way, and the model asked for more.], length";

/// Calls of which nothing can be run.
fn broken() -> Vec<Row> {
    let nobody = |name: &str| format!("error: there is no tool `{name}`; the tools are: look, save");
    let arguments = |fault, arguments: &str, told: &str| Row::beside(fault, [call("save", arguments)], told);
    let deep = format!("{{\"label\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("{{\"label\":\"{}\"}}", "x".repeat(1 << 20));
    vec![
        Row::beside("unknown tool", [call("nobody", "{}")], &nobody("nobody")),
        // Nothing tells that it is there.
        Row::beside("a tool of another team", [call("still", "{}")], &nobody("still")),
        Row::beside("an endless name", [call(&"x".repeat(5000), "{}")], &nobody(&"x".repeat(100))),
        Row::beside("an empty name", [call("", "{}")], &nobody("")),
        Row::beside("no name", [json!({ "name": null, "arguments": "{}" })], &nobody("")),
        arguments("arguments that break off", "{\"label\":\"x", NO_JSON),
        arguments("arguments with bytes behind them", "{\"label\":\"x\"} x", NO_JSON),
        arguments("arguments that are no JSON", "label=x", NO_JSON),
        arguments("arguments that are a list", "[1]", "error: arguments must be a JSON object, not an array"),
        arguments(
            "arguments that are a text",
            "\"x\"",
            "error: arguments must be a JSON object, not a string",
        ),
        arguments("arguments that are null", "null", "error: arguments must be a JSON object, not null"),
        arguments(
            "arguments with equal keys",
            "{\"label\":\"x\",\"label\":\"y\"}",
            "error: arguments are not valid JSON: the key \"label\" appears twice at line 1 column 20",
        ),
        arguments(
            "arguments of a wrong type",
            "{\"label\":7}",
            "error: arguments break the schema at /label: 7 is not of type \"string\"",
        ),
        arguments("arguments too few", "{}", FEW),
        arguments(
            "arguments too many",
            "{\"label\":\"x\",\"more\":1}",
            "error: arguments break the schema at the top: Additional properties are not allowed ('more' was unexpected)",
        ),
        arguments("no arguments", "", FEW),
        arguments(
            "arguments too deep",
            &deep,
            "error: arguments are not valid JSON: recursion limit exceeded at line 1 column 136",
        ),
        arguments("arguments too long", &long, "error: arguments are 1048588 bytes long, more than 1048576"),
    ]
}

/// Calls that can be run although something is wrong with them.
fn odd() -> Vec<Row> {
    let two = |fault, id: &Value| {
        Row::beside(fault, ["a", "b"].map(|label| with_id(id.clone(), look(label))), "ran, ran").looks(3)
    };
    let unclosed = call("save", "{\"label\":\"save_LAB");
    vec![
        two("equal ids", &json!("call_1")),
        two("empty ids", &json!("")),
        two("no ids", &Value::Null),
        Row::beside("the same call twice", [look("a"), look("a")], "ran, ran").looks(2),
        Row { finish: "stop", ..Row::beside("a finish of none, and calls", [look("a")], "ran").looks(2) },
        Row { finish: "length", ..Row::beside("cut by the limit of tokens", [unclosed], NO_JSON) },
        {
            let row = Row::only("a finish of calls, and none", [], "nothing");
            let none = |wanted: Wanted, told: &str| Wanted {
                end: "Nothing., stop",
                asked: 1,
                told: told.to_owned(),
                ..wanted
            };
            // What was told is about the call before it.
            Row { first: none(row.first, "nothing"), after: none(row.after, "ran"), ..row }
        },
    ]
}

/// Too much of it.
fn too_many() -> Vec<Row> {
    let not_run = "error: not run: the limit of 64 tool calls in one turn is reached";
    let note = |reached: &str| {
        format!("\\n\\n[No more tools will be run: {reached}. Answer from the results you have.]")
    };
    let all_of_them = note("the limit of 64 tool calls is reached");
    let over = |row: Wanted, told: &str| Wanted { told: format!("{told}{all_of_them}"), closed: true, ..row };
    // The one that was made before counts.
    let many = |fault, number| {
        let row = Row::only(fault, (0..number).map(|_| save()), "64x ran");
        Row { first: Wanted { saved: 64, ..row.first }, after: Wanted { saved: 64, ..row.after }, ..row }
    };
    let all = many("as many calls as a turn may have", 64);
    let more = many("more calls than a turn may have", 66);
    let endless = |fault, call: Value, told: String, end, asked: [usize; 2], looked: [usize; 2]| {
        let row = Row::only(fault, [call], &told);
        let of = |wanted: Wanted, at: usize| Wanted {
            end,
            asked: asked[at],
            looked: looked[at],
            closed: true,
            ..wanted
        };
        Row { endless: true, first: of(row.first, 0), after: of(row.after, 1), ..row }
    };
    let rounds = note("the limit of 10 rounds of tool calls is reached");
    let same = note("the same call failed 3 times in the same way");
    vec![
        Row { after: over(all.after, &format!("63x ran, {not_run}")), ..all },
        Row {
            first: over(more.first, &format!("64x ran, {not_run}, {not_run}")),
            after: over(more.after, &format!("63x ran, {not_run}, {not_run}, {not_run}")),
            ..more
        },
        // The round before it is one of the ten.
        endless("an endless loop", look("a"), format!("ran{rounds}"), NO_ROUNDS, [11, 10], [10, 9]),
        endless(
            "the same wrong call again and again",
            call("look", "{\"label\":"),
            format!("{NO_JSON}{same}"),
            NO_MORE,
            [4, 4],
            [0, 0],
        ),
    ]
}

/// Replies that call the client's tool as well.
fn mixed() -> Vec<Row> {
    let mine = || call("mine", "{}");
    vec![
        Row::beside("a call of the client's beside it", [look("a"), mine()], "ran, theirs").looks(2),
        Row::beside(
            "an unknown tool beside a call of the client's",
            [call("nobody", "{}"), mine()],
            "error: there is no tool `nobody`; the tools are: look, save, mine, theirs",
        ),
        Row::beside(
            "broken arguments beside a call of the client's",
            [mine(), call("save", "{")],
            &format!("theirs, {NO_JSON}"),
        ),
    ]
}

fn rows() -> Vec<Row> {
    [broken(), odd(), too_many(), mixed()].into_iter().flatten().collect()
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    let rows = rows().len();
    (rows, rows * MODES.len() * 2)
}

/// A reply as an upstream streams it, each call in one chunk.
fn reply(row: &Row, label: &str, before: Option<&str>) -> Value {
    let mut events = vec![text(before.unwrap_or_default())];
    for (n, call) in row.calls.iter().enumerate() {
        let mut function =
            json!({ "arguments": call["arguments"].as_str().expect("a text").replace("LABEL", label) });
        if let Some(name) = call["name"].as_str() {
            function["name"] = json!(name);
        }
        let mut whole = json!({ "index": n, "type": "function", "function": function });
        match call.get("id") {
            Some(Value::Null) => {}
            Some(id) => whole["id"] = id.clone(),
            None => whole["id"] = json!(format!("call_n{n}")),
        }
        events.push(chunk(json!({ "tool_calls": [whole] }), Value::Null));
    }
    if row.calls.is_empty() {
        events.push(text("Nothing."));
    }
    events.push(chunk(json!({}), json!(row.finish)));
    json!({ "steps": [{ "events": events }, { "events": ["[DONE]"] }] })
}

async fn cell(stage: &Stage, row: &Row, mode: Mode, after: bool) -> (String, Took) {
    let name = label(&format!("{} {}", row.fault, column(mode, after)));
    let mut hello = (mode == Mode::Begun).then_some("Hel");
    let mut rounds = Vec::new();
    if after {
        let calls = json!([{ "name": "save", "arguments": { "label": format!("save_{name}_") } }]);
        rounds.push(json!({ "reply": { "text": hello.take(), "calls": calls } }));
    }
    rounds.push(reply(row, &name, hello));
    if !row.endless {
        rounds.push(json!({ "reply": { "text": "done" } }));
    }
    stage.lab.script(&name, json!({ "rounds": rounds, "repeat": row.endless }));
    let mut body = faults::chat(&name, mode != Mode::Whole);
    // Calls are found again by their ids and the history, which are like no other cell's.
    body["messages"][0]["content"] = json!(name);
    if row.is_mixed() {
        body["tools"] = json!([declared("mine")]);
    }
    let (mut got, mut took) = timed(&stage.process, stage.ask_with(&name, &body, &[])).await;
    if let (true, Ok(reply)) = (row.is_mixed(), answer(&got)) {
        assert_eq!((reply.finish.as_str(), reply.calls.len()), ("tool_calls", 1), "{name}: {reply:?}");
        go_on(&mut body, &reply);
        let (second, longer) = timed(&stage.process, stage.ask_with(&name, &body, &[])).await;
        (got, took) = (second, took + longer);
    }
    let end = match answer(&got) {
        Ok(reply) if reply.calls.is_empty() => {
            let said = reply.text.rsplit("\n\n").next().unwrap_or_default();
            format!("{}, {}", said.trim_start_matches("Hel"), reply.finish)
        }
        other => format!("{other:?}"),
    };
    for header in ["x-should-retry", "retry-after"] {
        assert_eq!(got.header(header), "", "{name}: {header}");
    }
    let seen = stage.lab.journal();
    let refused = seen.of_script(&name).filter_map(|(_, request)| request.refused.clone()).next();
    assert_eq!(refused, None, "{name}: what a strict upstream says");
    let ran = |tool: &str| {
        let label = format!("{tool}_{name}_");
        let of = seen.tools.iter().filter(|(known, _)| known.starts_with(&label));
        of.map(|(_, runs)| {
            assert!(runs.most_at_once <= 8, "{name}: {runs:?}");
            usize::try_from(runs.started).expect("few")
        })
        .sum()
    };
    let bodies = seen.bodies(&name);
    let closed = bodies.last().is_some_and(|body| body["tool_choice"] == "none" && body["tools"].is_array());
    let asked = bodies.len() - usize::from(after);
    let of =
        Wanted { end: "", asked, told: told(&seen, &name), looked: ran("look"), saved: ran("save"), closed };
    (line(&of, &end), took)
}

fn answer(got: &Got) -> Result<ExpectedReply, String> {
    match fold::answer(got)? {
        Folded::Reply(reply) => Ok(reply),
        Folded::Error(code) => Err(format!("{} {code:?}", got.status)),
    }
}

/// The conversation as a client goes on with it that ran its own call.
fn go_on(body: &mut Value, reply: &ExpectedReply) {
    let messages = body["messages"].as_array_mut().expect("messages");
    let id = reply.calls[0].id.clone();
    let call = json!({ "id": id, "type": "function", "function": { "name": "mine", "arguments": "{}" } });
    messages.push(json!({ "role": "assistant", "content": reply.text, "tool_calls": [call] }));
    messages.push(json!({ "role": "tool", "tool_call_id": id, "content": "theirs" }));
}

/// What the last question says of the calls of the reply before it, whose ids it answers once and in order.
fn told(seen: &Snapshot, name: &str) -> String {
    let last = seen.bodies(name).pop().unwrap_or_default();
    let messages = last["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(at) = messages.iter().rposition(|message| message["role"] == "assistant") else {
        return "nothing".to_owned();
    };
    let ids: Vec<&Value> =
        messages[at]["tool_calls"].as_array().expect("calls").iter().map(|call| &call["id"]).collect();
    let answered: Vec<&Value> = messages[at + 1..].iter().map(|message| &message["tool_call_id"]).collect();
    assert_eq!(ids, answered, "{name}: each call has its answer");
    assert!(ids.iter().all(|id| ids.iter().filter(|other| *other == id).count() == 1), "{name}: {ids:?}");
    let texts =
        messages[at + 1..].iter().map(|message| tame(message["content"].as_str().unwrap_or_default()));
    let mut told: Vec<(usize, String)> = Vec::new();
    for text in texts {
        match told.last_mut() {
            Some((times, same)) if *same == text => *times += 1,
            Some(_) | None => told.push((1, text)),
        }
    }
    let short = |(times, text): (usize, String)| {
        if times > 3 { format!("{times}x {text}") } else { vec![text; times].join(", ") }
    };
    told.into_iter().map(short).collect::<Vec<String>>().join(", ")
}

fn tame(told: &str) -> String {
    let told = told.replace('\n', "\\n");
    match told.strip_prefix("{\"run\":").and_then(|rest| rest.split_once('}')) {
        Some((_, rest)) => format!("ran{rest}"),
        None => told,
    }
}

fn line(of: &Wanted, end: &str) -> String {
    let Wanted { asked, told, looked, saved, closed, .. } = of;
    let closed = if *closed { ", then nothing may be called" } else { "" };
    format!("200, {end}, asked {asked}, told `{told}`{closed}, looked {looked}, saved {saved}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_model_is_told_to_it_and_runs_nothing_it_should_not() {
    let lab = Lab::start().await;
    let config = json!({
        "upstreams": { "main": { "base_url": lab.base_url() } },
        "routes": [{ "model": "*", "upstreams": ["main"] }],
        "tools": tools(&lab),
    });
    let (stage, cells) = (Stage::start(lab, config).await, Cells::default());
    for row in rows() {
        let columns = MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]);
        let played = columns.map(async |(mode, after)| {
            let wanted = if after { &row.after } else { &row.first };
            let got = cell(&stage, &row, mode, after).await;
            // There is nothing to wait for.
            cells.note(row.fault, column(mode, after), (line(wanted, wanted.end), Duration::ZERO), got);
        });
        join_all(played).await;
        stage.calm(row.fault).await;
    }
    stage.ends().await;
    cells.settle("model", size().1);
}

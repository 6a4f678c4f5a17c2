//! Faults of an upstream: what each of them is for a client that wants one JSON, for one whose stream
//! has nothing in it yet, and for one whose stream has begun; in the first round of a turn, and after a
//! tool with effects ran.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::client::Got;
use super::support::faults::{self, chunk, code, comments, named, status, text};
use super::support::gateway::metric;
use super::support::lab::Lab;
use super::support::matrix::{Cells, Took, timed};
use super::support::proxy::with;
use super::support::stage::Stage;

/// One tool that writes, one that reads; each counts its runs under a label.
pub(super) fn tools(lab: &Lab) -> Value {
    let parameters = json!({ "type": "object", "properties": { "label": { "type": "string" } }, "required": ["label"], "additionalProperties": false });
    let url = format!("{}/tool/count/{{label}}", lab.url());
    let tool = |method: &str, effect: &str| json!({ "effect": effect, "parameters": parameters, "http": { "method": method, "url": url } });
    json!({ "save": tool("POST", "write"), "look": tool("GET", "read") })
}

/// When the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// In the first round; the client wants one JSON.
    Whole,
    /// In the first round; of the stream nothing was sent.
    Unbegun,
    /// In the only round of a chat whose bytes go through; the client wants one JSON.
    Relayed,
    /// In the only round of a chat whose bytes go through; of the stream nothing was sent.
    RelayedUnbegun,
    /// In the second round; of the stream some text was sent in the first, and a tool read something.
    Begun,
    /// In the middle of the first round's text, which is shown as it comes.
    Amid,
    /// In the middle of the text of a chat whose bytes go through.
    RelayedAmid,
    /// In the round after a tool wrote; one JSON.
    WholeWritten,
    /// In the round after a tool wrote; the stream has no text.
    UnbegunWritten,
    /// In the round after a tool wrote; the stream has text.
    BegunWritten,
    /// In the middle of the text of the round after a tool wrote.
    AmidWritten,
}

use Column::{
    Amid, AmidWritten, Begun, BegunWritten, Relayed, RelayedAmid, RelayedUnbegun, Unbegun, UnbegunWritten,
    Whole, WholeWritten,
};

impl Column {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Whole => "whole, first round",
            Unbegun => "stream not begun, first round",
            Relayed => "whole, relayed",
            RelayedUnbegun => "stream not begun, relayed",
            Begun => "stream begun, second round",
            Amid => "stream begun, first round",
            RelayedAmid => "stream begun, relayed",
            WholeWritten => "whole, after a write",
            UnbegunWritten => "stream not begun, after a write",
            BegunWritten => "stream begun, after a write",
            AmidWritten => "stream begun, amid the round after a write",
        }
    }

    pub(super) const fn streams(self) -> bool {
        !matches!(self, Whole | Relayed | WholeWritten)
    }

    /// The tool that ran before.
    pub(super) const fn tool(self) -> Option<&'static str> {
        match self {
            Whole | Unbegun | Relayed | RelayedUnbegun | RelayedAmid | Amid => None,
            Begun => Some("look"),
            WholeWritten | UnbegunWritten | BegunWritten | AmidWritten => Some("save"),
        }
    }

    /// Bytes of the answer go through, for want of tools.
    pub(super) const fn relayed(self) -> bool {
        matches!(self, Relayed | RelayedUnbegun | RelayedAmid)
    }

    pub(super) const fn has_text_before(self) -> bool {
        matches!(self, Begun | BegunWritten)
    }
}

/// Of a fault that leaves nothing to be shown.
pub(super) const BEFORE: [Column; 8] =
    [Whole, Unbegun, Relayed, RelayedUnbegun, Begun, WholeWritten, UnbegunWritten, BegunWritten];
/// The same where a relayed chat goes through as it is.
pub(super) const OWN: [Column; 6] = [Whole, Unbegun, Begun, WholeWritten, UnbegunWritten, BegunWritten];
/// Of a fault behind some text.
const MIDDLE: [Column; 5] = [Whole, Amid, RelayedAmid, WholeWritten, AmidWritten];
/// Of a fault in what events say: those of a relayed chat go through as they are.
const READ: [Column; 4] = [Whole, Amid, WholeWritten, AmidWritten];

/// After so much silence an upstream is given up whose faults are late.
const SILENCE: Duration = Duration::from_millis(1500);
/// The longest pause before it is asked again.
const PAUSE: Duration = Duration::from_millis(400);

/// A fault.
pub(super) struct Row {
    pub(super) fault: &'static str,
    steps: Value,
    columns: &'static [Column],
    /// Requests the upstream sees in the round that fails, as long as none of it was shown.
    asked: usize,
    /// What a client gets that has got nothing yet.
    status: u16,
    code: &'static str,
    pub(super) retry_after: &'static str,
}

pub(super) fn row(fault: &'static str, steps: Value, asked: usize, status: u16, code: &'static str) -> Row {
    Row { fault, steps, columns: &BEFORE, asked, status, code, retry_after: "" }
}

/// The same behind some text.
fn behind_text(row: Row) -> Row {
    let mut steps = vec![json!({ "events": [text("Hel")] })];
    steps.extend(row.steps.as_array().expect("steps").iter().cloned());
    Row { steps: Value::Array(steps), columns: &MIDDLE, ..row }
}

fn before_anything_is_shown() -> Vec<Row> {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\nx-long: {}\r\n\r\n", "x".repeat(length));
    let raw = |text: &str| json!([{ "raw": text }]);
    let error = |code: Value| json!([{ "events": [{ "error": { "message": "inside", "code": code } }] }]);
    let mut rows = vec![
        row("reset before the head", json!(["reset"]), 2, 502, "upstream_reset"),
        row("closed before the head", json!(["close"]), 2, 502, "upstream_reset"),
        row(
            "reset inside the head",
            json!([{ "raw": "HTTP/1.1 200 OK\r\ncont" }, { "wait_ms": 50 }, "reset"]),
            2,
            502,
            "upstream_reset",
        ),
        row(
            "closed inside the head",
            json!([{ "raw": "HTTP/1.1 200 OK\r\ncont" }, "close"]),
            2,
            502,
            "upstream_reset",
        ),
        row("garbage head", raw("nonsense\r\n\r\n"), 1, 502, "upstream_protocol_error"),
        row(
            "two content-lengths",
            raw("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc"),
            1,
            502,
            "upstream_protocol_error",
        ),
        row(
            "101",
            raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            1,
            502,
            "upstream_protocol_error",
        ),
        row("204", raw("HTTP/1.1 204 No Content\r\n\r\n"), 1, 502, "upstream_protocol_error"),
        row(
            "redirect",
            json!([{ "answer": { "status": 302, "headers": { "location": "/x" } } }]),
            1,
            502,
            "upstream_protocol_error",
        ),
        row("huge headers", raw(&head(200_000)), 1, 502, "upstream_protocol_error"),
        row("late: no head in time", json!(["stall"]), 2, 504, "upstream_timeout"),
        row("late: stall in the body", json!([{ "head": {} }, "stall"]), 2, 504, "upstream_timeout"),
        row(
            "late: stall in the body of an error",
            json!([{ "head": { "status": 500 } }, { "send": "{" }, "stall"]),
            2,
            504,
            "upstream_timeout",
        ),
        row("late: comments for ever", json!(comments()), 2, 504, "upstream_timeout"),
        row(
            "late: one byte now and then",
            json!([{ "head": {} }, { "send": "d" }, { "wait_ms": 400 }, { "send": "a" }, { "wait_ms": 400 }, { "send": "t" }, { "wait_ms": 400 }, "stall"]),
            2,
            504,
            "upstream_timeout",
        ),
        row("cut", json!([{ "head": {} }, "close"]), 2, 502, "upstream_truncated"),
        row(
            "reset in the body",
            json!([{ "head": {} }, { "wait_ms": 50 }, "reset"]),
            2,
            502,
            "upstream_truncated",
        ),
        row(
            "short body",
            json!([{ "head": { "framing": "length", "length": 100 } }, { "send": "data: " }, "close"]),
            2,
            502,
            "upstream_truncated",
        ),
        row("half an event", json!([{ "send": "data: {\"id\":\"ch" }]), 2, 502, "upstream_truncated"),
        row(
            "half an event, then a cut",
            json!([{ "send": "data: {\"id\":\"ch" }, "close"]),
            2,
            502,
            "upstream_truncated",
        ),
        row("not JSON", json!([{ "send": "data: nonsense\n\n" }]), 2, 502, "upstream_invalid_reply"),
        row(
            "not UTF-8",
            json!([{ "hex": "64 61 74 61 3a 20 7b 22 61 22 3a 22 ff 22 7d 0a 0a" }]),
            2,
            502,
            "upstream_invalid_reply",
        ),
        row("200 with nothing", json!([{ "head": {} }]), 2, 502, "upstream_invalid_reply"),
        row(
            "200 with HTML",
            json!([{ "answer": { "headers": { "content-type": "text/html" }, "body": "<html></html>" } }]),
            2,
            502,
            "upstream_invalid_reply",
        ),
        row(
            "200 with an error body",
            json!([{ "json": { "error": { "message": "inside" } } }]),
            2,
            502,
            "upstream_error",
        ),
        row("200 with other JSON", json!([{ "json": { "hello": 1 } }]), 2, 502, "upstream_invalid_reply"),
        // Through a relay it goes as it is, with the header that says so.
        Row {
            columns: &OWN,
            ..row(
                "compressed, which nobody asked for",
                json!([{ "head": { "headers": { "content-type": "text/event-stream", "content-encoding": "gzip" } } }, { "send": "x" }]),
                2,
                502,
                "upstream_invalid_reply",
            )
        },
        row("only the end mark", json!([{ "events": ["[DONE]"] }]), 2, 502, "upstream_invalid_reply"),
        row("error inside the stream", error(json!("server_error")), 2, 502, "upstream_error"),
        row("error inside the stream with a number", error(json!(422)), 1, 422, "422"),
        Row {
            retry_after: "1",
            ..row(
                "quota inside the stream",
                error(json!("rate_limit_exceeded")),
                3,
                429,
                "rate_limit_exceeded",
            )
        },
        Row {
            retry_after: "1",
            ..row(
                "overloaded inside the stream",
                error(json!("overloaded_error")),
                3,
                529,
                "overloaded_error",
            )
        },
        row("our key inside the stream", error(json!("authentication_error")), 1, 502, "upstream_auth_error"),
        row(
            "event over the limit",
            json!([{ "events": [text(&"x".repeat(70_000))] }]),
            1,
            502,
            "upstream_reply_too_large",
        ),
        row(
            "whole reply over the limit",
            json!([{ "json": text(&"x".repeat(300_000)) }]),
            1,
            502,
            "upstream_reply_too_large",
        ),
        row("500", status(500, json!({})), 2, 502, "upstream_error"),
        row("502", status(502, json!({})), 2, 502, "upstream_error"),
        row("504", status(504, json!({})), 2, 502, "upstream_error"),
        row("401", status(401, json!({})), 1, 502, "upstream_auth_error"),
        row("403", status(403, json!({})), 1, 502, "upstream_auth_error"),
    ];
    for (name, refused) in [("400", 400), ("404", 404), ("409", 409), ("413", 413), ("422", 422)] {
        rows.push(row(name, status(refused, json!({})), 1, refused, "told"));
    }
    for (name, told, header, wait, asked, retry_after) in [
        ("429, soon", 429, "retry-after", "0.1", 3, "1"),
        ("429, later", 429, "retry-after", "30", 1, "30"),
        ("429, much later", 429, "retry-after", "3600", 1, "60"),
        ("503, soon", 503, "retry-after-ms", "100", 3, "1"),
        ("503, later", 503, "retry-after", "7", 1, "7"),
        ("529, later", 529, "retry-after", "7", 1, "7"),
    ] {
        let steps = status(told, json!({ (header): wait }));
        rows.push(Row { retry_after, ..row(name, steps, asked, told, "told") });
    }
    rows
}

/// Faults behind some text.
fn in_the_middle() -> Vec<Row> {
    let event = |value: Value| json!({ "events": [value] });
    let call = |i: usize| json!({ "index": i, "id": format!("c{i}"), "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let calls = (0..400).map(|i| chunk(json!({ "tool_calls": [call(i)] }), Value::Null)).collect();
    let error = |error: Value| json!([event(json!({ "error": error }))]);
    let large: Vec<Value> = (0..6).map(|_| event(text(&"x".repeat(60_000)))).collect();
    let rows = vec![
        row("too many calls", json!([{ "events": Value::Array(calls) }]), 1, 502, "upstream_reply_too_large"),
        row("reset behind text", json!([{ "wait_ms": 50 }, "reset"]), 2, 502, "upstream_truncated"),
        row("closed behind text", json!(["close"]), 2, 502, "upstream_truncated"),
        row("ended without a finish", json!([]), 2, 502, "upstream_truncated"),
        row("half an event behind text", json!([{ "send": "data: {\"id\":" }]), 2, 502, "upstream_truncated"),
        row(
            "half an event behind text, closed",
            json!([{ "send": "data: {\"id\":" }, "close"]),
            2,
            502,
            "upstream_truncated",
        ),
        row("late: stall behind text", json!(["stall"]), 2, 504, "upstream_timeout"),
        row("late: comments behind text", json!(comments()), 2, 504, "upstream_timeout"),
        row("not JSON behind text", json!([event(json!("nonsense"))]), 2, 502, "upstream_invalid_reply"),
        row(
            "event too large behind text",
            json!([event(text(&"x".repeat(70_000)))]),
            1,
            502,
            "upstream_reply_too_large",
        ),
        row("reply too large", json!(large), 1, 502, "upstream_reply_too_large"),
        row(
            "error behind text",
            error(json!({ "message": "inside", "code": "server_error" })),
            2,
            502,
            "upstream_error",
        ),
        Row {
            retry_after: "1",
            ..row("busy behind text", error(json!({ "message": "inside", "code": 429 })), 3, 429, "429")
        },
        row(
            "named error behind text",
            json!([{ "send": "event: error\ndata: {\"error\":{\"message\":\"inside\"}}\n\n" }]),
            2,
            502,
            "upstream_error",
        ),
        row(
            "flat error behind text",
            json!([{ "send": "event: error\ndata: overloaded\n\n" }]),
            2,
            502,
            "upstream_error",
        ),
    ];
    let relayed = ["upstream_truncated", "upstream_timeout", "upstream_reply_too_large"];
    let by_what_it_says = |row: Row| {
        if relayed.contains(&row.code) && row.fault != "too many calls" {
            row
        } else {
            Row { columns: &READ, ..row }
        }
    };
    rows.into_iter().map(behind_text).map(by_what_it_says).collect()
}

fn rows() -> Vec<Row> {
    let mut rows = before_anything_is_shown();
    rows.extend(in_the_middle());
    rows
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    let rows = rows();
    (rows.len(), rows.iter().map(|row| row.columns.len()).sum())
}

impl Row {
    /// Requests the upstream sees in the round that fails.
    const fn asked(&self, column: Column) -> usize {
        if matches!(column, Amid | RelayedAmid | AmidWritten) { 1 } else { self.asked }
    }

    /// The deadline of a cell: each time the upstream is asked it may be silent for so long.
    pub(super) fn within(&self, column: Column, silence: Duration) -> Duration {
        within(self.asked(column), silence)
    }
}

/// The deadline of what is asked so often and is silent each time.
pub(super) fn within(asked: usize, silence: Duration) -> Duration {
    let asked = u32::try_from(asked).expect("few");
    silence * asked + PAUSE * asked.saturating_sub(1)
}

/// The silence of a fault.
pub(super) fn silence(fault: &str) -> Duration {
    if fault.starts_with("late") { SILENCE } else { Duration::ZERO }
}

/// What a cell has to be.
pub(super) fn wanted(row: &Row, column: Column) -> String {
    let written = column.tool() == Some("save");
    let code = if written { "turn_failed_after_tools" } else { row.code };
    let shown = column.streams() && (column.tool().is_some() || matches!(column, Amid | RelayedAmid));
    let asked = row.asked(column);
    let (status, again, after) = match (shown, written) {
        (true, _) => (200, "", ""),
        (false, true) => (424, "false", ""),
        (false, false) => (row.status, "", row.retry_after),
    };
    told(status, code, after, again, asked, usize::from(column.tool().is_some()))
}

pub(super) fn told(status: u16, code: &str, after: &str, again: &str, asked: usize, ran: usize) -> String {
    let some = |name: &str, value: &str| {
        if value.is_empty() { String::new() } else { format!(", {name}: {value}") }
    };
    let (after, again) = (some("retry-after", after), some("x-should-retry", again));
    format!("{status} {code}{after}{again}, asked {asked}, ran {ran}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_an_upstream_has_its_answer() {
    let lab = Lab::start().await;
    let config = with(faults::config(&lab), json!({ "tools": tools(&lab) }));
    let stage = Stage::start(lab, config).await;
    let cells = Cells::default();
    for row in rows() {
        let played = row.columns.iter().map(async |column| {
            let got = cell(&stage, &row, *column).await;
            let deadline = row.within(*column, silence(row.fault));
            cells.note(row.fault, column.name(), (wanted(&row, *column), deadline), got);
        });
        join_all(played).await;
        stage.calm(row.fault).await;
    }
    let refused = "fanfold_upstream_credentials_refused_total{upstream=\"main\"}";
    assert!(metric(&stage.process.metrics().await, refused) >= 4.0);
    stage.ends().await;
    cells.settle("upstream", size().1);
}

/// A name that fits into a path.
pub(super) fn label(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

async fn cell(stage: &Stage, row: &Row, column: Column) -> (String, Took) {
    let name = named(row.fault, column.name());
    let label = label(&name);
    let mut rounds = vec![json!({ "steps": row.steps })];
    if let Some(tool) = column.tool() {
        let text = column.has_text_before().then_some("Hel");
        let calls = json!([{ "name": tool, "arguments": { "label": label } }]);
        rounds.insert(0, json!({ "reply": { "text": text, "calls": calls } }));
    }
    let fails = rounds.len() - 1;
    stage.lab.script(&name, json!({ "rounds": rounds, "repeat": true, "lenient": true }));
    // Without owned tools a chat goes through as bytes.
    let none = [("x-fanfold-tools", "none")];
    let headers = if column.relayed() { &none[..] } else { &[] };
    let (got, took) = timed(&stage.process, stage.ask(&name, column.streams(), headers)).await;
    let code = code(&name, &got);
    has_what_it_should(&name, column, &got);
    let seen = stage.lab.journal();
    let asked = seen.of_script(&name).filter(|(_, request)| request.round == Some(fails)).count();
    let ran = seen.tools.get(label.as_str()).map_or(0, |runs| runs.started);
    let (after, again) = (got.header("retry-after"), got.header("x-should-retry"));
    (told(got.status.as_u16(), &code, after, again, asked, usize::try_from(ran).expect("few")), took)
}

fn has_what_it_should(name: &str, column: Column, got: &Got) {
    if column.has_text_before() || matches!(column, Amid | RelayedAmid | AmidWritten) {
        assert!(got.body.contains("Hel"), "{name}: what was shown stays: {}", got.body);
    }
    if column.tool() == Some("save") {
        assert!(got.body.contains("save"), "{name}: it names the tool: {}", got.body);
    }
}

//! Faults of an upstream that are over when it is asked again: the client sees nothing of them, in the first round of a
//! turn and after another round, and a tool with effects that ran before does not run again.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::faults::{self, chunk, named, status, text};
use super::support::fold::{self, Folded};
use super::support::gateway::metric;
use super::support::lab::Lab;
use super::support::lab::journal::{How, Snapshot};
use super::support::matrix::{Cells, Took, timed};
use super::support::proxy::with;
use super::support::stage::Stage;
use super::upstream::{BEFORE, Column, OWN, label, silence, tools, within};

/// A fault.
struct Row {
    fault: &'static str,
    /// What goes wrong, request by request; then comes a good answer.
    fails: Vec<Value>,
    columns: &'static [Column],
    /// The connection on which it goes wrong was used before.
    kept: bool,
}

/// A fault of one request.
fn once(fault: &'static str, steps: Value) -> Row {
    Row { fault, fails: vec![steps], columns: &BEFORE, kept: false }
}

/// The same of two requests, one after the other.
fn twice(fault: &'static str, steps: Value) -> Row {
    Row { fails: vec![steps.clone(), steps], ..once(fault, Value::Null) }
}

fn rows() -> Vec<Row> {
    let role = json!({ "events": [chunk(json!({ "role": "assistant", "content": "" }), Value::Null)] });
    let error = |code: &str| json!([{ "events": [{ "error": { "message": "inside", "code": code } }] }]);
    let finished = json!([{ "events": [text("fine"), chunk(json!({}), json!("stop"))] }]);
    vec![
        Row { kept: true, ..once("closed on a kept connection", json!(["close"])) },
        once("reset before the head", json!(["reset"])),
        once("closed inside the head", json!([{ "raw": "HTTP/1.1 200 OK\r\ncont" }, "close"])),
        twice("429, soon, twice", status(429, json!({ "retry-after": "0.05" }))),
        twice("503, soon, twice", status(503, json!({ "retry-after-ms": "50" }))),
        once("500", status(500, json!({}))),
        once("504", status(504, json!({}))),
        once("late: no head in time", json!(["stall"])),
        once("late: stall in the body", json!([{ "head": {} }, "stall"])),
        once("cut", json!([{ "head": {} }, "close"])),
        once("half an event", json!([{ "send": "data: {\"id\":\"ch" }])),
        once("not JSON", json!([{ "send": "data: nonsense\n\n" }])),
        once("200 with nothing", json!([{ "head": {} }])),
        once(
            "200 with HTML",
            json!([{ "answer": { "headers": { "content-type": "text/html" }, "body": "<html></html>" } }]),
        ),
        once("error inside the stream", error("server_error")),
        // Of a relayed chat it was shown.
        Row { columns: &OWN, ..once("cut behind the role", json!([role, "close"])) },
        // That is no fault, and nothing is asked again.
        Row { columns: &OWN, ..once("a finish and no end mark", finished) },
    ]
}

impl Row {
    /// Requests of the round that does not go well at first.
    fn asked(&self) -> usize {
        if self.fault == "a finish and no end mark" { 1 } else { self.fails.len() + 1 }
    }

    fn wanted(&self, column: Column) -> (String, Duration) {
        let before = if column.has_text_before() { "Hel\\n\\n" } else { "" };
        let ran = usize::from(column.tool().is_some());
        let deadline = within(self.asked(), silence(self.fault));
        (line(&format!("200, {before}fine, stop"), self.asked(), ran), deadline)
    }
}

fn line(end: &str, asked: usize, ran: usize) -> String {
    format!("{end}, asked {asked}, ran {ran}")
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    let rows = rows();
    (rows.len(), rows.iter().map(|row| row.columns.len()).sum())
}

async fn cell(stage: &Stage, row: &Row, column: Column) -> (String, Took) {
    let name = named(row.fault, column.name());
    let label = label(&name);
    let good = json!({ "reply": { "text": "fine" } });
    let mut rounds: Vec<Value> = row.fails.iter().map(|steps| json!({ "steps": steps })).collect();
    rounds.push(good.clone());
    let none = [("x-fanfold-tools", "none")];
    let headers = if column.relayed() { &none[..] } else { &[] };
    let mut before = 0;
    if let Some(tool) = column.tool() {
        let text = column.has_text_before().then_some("Hel");
        let calls = json!([{ "name": tool, "arguments": { "label": label } }]);
        rounds.insert(0, json!({ "reply": { "text": text, "calls": calls } }));
        before = 1;
    } else if row.kept {
        rounds.insert(0, good);
        before = 1;
    }
    stage.lab.script(&name, json!({ "rounds": rounds, "advance": "requests" }));
    if row.kept && column.tool().is_none() {
        stage.ask(&name, column.streams(), headers).await;
    }
    let (got, took) = timed(&stage.process, stage.ask(&name, column.streams(), headers)).await;
    let mut end = match fold::answer(&got) {
        Ok(Folded::Reply(reply)) => {
            format!("{}, {}, {}", got.status.as_u16(), reply.text.replace('\n', "\\n"), reply.finish)
        }
        other => format!("{} {other:?}", got.status.as_u16()),
    };
    for header in ["x-should-retry", "retry-after"] {
        if !got.header(header).is_empty() {
            end = format!("{end}, {header}: {}", got.header(header));
        }
    }
    let seen = stage.lab.journal();
    let ran = seen.tools.get(label.as_str()).map_or(0, |runs| runs.started);
    (line(&end, seen.of_script(&name).count() - before, usize::try_from(ran).expect("few")), took)
}

/// Whether a connection was closed on that had been used before.
fn was_kept(seen: &Snapshot) -> bool {
    let asked: Vec<_> = seen.requests().filter(|(_, request)| request.script.is_some()).collect();
    asked.iter().enumerate().any(|(at, (entry, _))| {
        let closed = seen.how(entry.n) == Some(How::Cut);
        closed && asked[..at].iter().any(|(before, _)| before.connection == entry.connection)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_when_it_is_asked_again_is_not_seen_by_the_client() {
    let lab = Lab::start().await;
    let config = with(faults::config(&lab), json!({ "tools": tools(&lab) }));
    let (stage, cells) = (Stage::start(lab, config).await, Cells::default());
    for row in rows() {
        let played = row.columns.iter().map(async |column| {
            let got = cell(&stage, &row, *column).await;
            cells.note(row.fault, column.name(), row.wanted(*column), got);
        });
        join_all(played).await;
        assert!(!row.kept || was_kept(&stage.lab.journal()), "{}: on a fresh one each time", row.fault);
        stage.calm(row.fault).await;
    }
    let metrics = stage.process.metrics().await;
    stage.ends().await;
    cells.settle("heals", size().1);
    let busy = metric(&metrics, "fanfold_upstream_retries_total{reason=\"busy\"}");
    assert!(busy >= 32.0, "{busy}: two rows of eight cells, twice each");
}

//! Clients that repeat a request that was cut: what the repetition gets, and the one after it, how often the upstream
//! is asked and how often tools run; whole and streamed, by how the repetition is marked.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::leaving::{hold, ran, run, tools};
use super::support::client::Got;
use super::support::faults::{self, chunk, status, text};
use super::support::fold::{self, Folded};
use super::support::gateway::{metric, soon};
use super::support::lab::Lab;
use super::support::lab::journal::Snapshot;
use super::support::matrix::Cells;
use super::support::stage::Stage;
use super::support::tls::Certificate;
use super::support::ways::{Client, Way};
use super::tools::{MODES, Mode};

/// Where the first attempt was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The upstream said nothing yet.
    Unanswered,
    /// In the middle of a text; nothing ran.
    Amid,
    /// A tool read, and was stopped.
    Reads,
    /// A tool wrote, and has finished by now.
    Wrote,
    /// A tool writes.
    Writes,
    /// A tool had written; the upstream said nothing after it.
    After,
    /// The same, in the middle of the text after it.
    AmidAfter,
    /// It was answered, but the client does not know that.
    Unread,
    /// It is not cut before the repetition has come.
    Joined,
    /// It failed, after a tool had written.
    FailedAfter,
    /// It failed, before any did.
    FailedBefore,
    /// The repetition has the same key and another body.
    OtherBody,
}

use Cut::{
    After, Amid, AmidAfter, FailedAfter, FailedBefore, Joined, OtherBody, Reads, Unanswered, Unread, Writes,
    Wrote,
};

const CUTS: [(Cut, &str); 12] = [
    (Unanswered, "cut before the first byte"),
    (Amid, "cut in the middle of a text"),
    (Reads, "cut while a tool read"),
    (Wrote, "cut while a tool wrote, which has finished"),
    (Writes, "cut while a tool writes, which goes on"),
    (After, "cut after a tool wrote"),
    (AmidAfter, "cut in the middle of the text after a tool wrote"),
    (Unread, "cut behind the answer"),
    (Joined, "cut once the repetition has come"),
    (FailedAfter, "failed after a tool wrote"),
    (FailedBefore, "failed before a tool wrote"),
    (OtherBody, "the same key with another body"),
];

/// How a repetition is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// An SDK counts its attempts.
    Counted,
    /// All attempts have a key.
    Keyed,
    Both,
}

impl Cut {
    const fn modes(self) -> &'static [Mode] {
        match self {
            Unanswered => &[Mode::Whole, Mode::Unbegun],
            Amid | AmidAfter => &[Mode::Whole, Mode::Begun],
            Reads | Wrote | Writes | After | Unread | Joined | FailedAfter | FailedBefore | OtherBody => {
                &MODES
            }
        }
    }

    const fn marks(self) -> &'static [Mark] {
        match self {
            OtherBody => &[Mark::Keyed, Mark::Both],
            Unanswered | Amid | Reads | Wrote | Writes | After | AmidAfter | Unread | Joined
            | FailedAfter | FailedBefore => &[Mark::Counted, Mark::Keyed, Mark::Both],
        }
    }

    /// The tool that runs when it is cut.
    const fn held(self) -> Option<&'static str> {
        match self {
            Reads => Some("reads"),
            Wrote | Writes => Some("writes"),
            Unanswered | Amid | After | AmidAfter | Unread | Joined | FailedAfter | FailedBefore
            | OtherBody => None,
        }
    }

    /// Questions of the first attempt when it is cut; `None` if it goes on to its end.
    const fn questions(self) -> Option<usize> {
        match self {
            Unanswered | Amid | Reads | Wrote | Writes => Some(1),
            After | AmidAfter | Joined => Some(2),
            Unread | FailedAfter | FailedBefore | OtherBody => None,
        }
    }
}

/// A cell.
struct Cell {
    cut: Cut,
    mode: Mode,
    mark: Mark,
    /// Names its script, its first request, its key and its tools' runs.
    name: String,
}

impl Cell {
    fn column(&self) -> String {
        let mode = self.mode.words();
        let mark = match self.mark {
            Mark::Counted => "counted",
            Mark::Keyed => "with a key",
            Mark::Both => "counted, with a key",
        };
        format!("{mode}, {mark}")
    }

    fn label(&self, tool: &str) -> String {
        format!("{tool}.{}", self.name)
    }

    /// What the upstream says, question by question.
    fn script(&self) -> Value {
        let begun = (self.mode == Mode::Begun).then_some("Hel");
        let calls = |tool: &str, label: &str| json!({ "reply": { "text": begun, "calls": [{ "name": tool, "arguments": { "label": label } }] } });
        let (save, done) = (calls("save", &self.name), json!({ "reply": { "text": "done" } }));
        let steps = |steps: Value| json!({ "steps": steps });
        let (silent, halfway) =
            (steps(json!(["stall"])), steps(json!([{ "events": [text("Hel")] }, "stall"])));
        let end = json!({ "events": [text("done"), chunk(json!({}), json!("stop")), "[DONE]"] });
        let failure = json!({ "error": { "message": "inside", "code": "server_error" } });
        let failing = steps(status(500, json!({})));
        let rounds = match self.cut {
            Unanswered => vec![silent, save, done],
            Amid => vec![halfway, save, done],
            Reads => vec![calls("reads", &self.label("reads")), save, done],
            Wrote | Writes => vec![calls("writes", &self.label("writes"))],
            After => vec![save, silent],
            AmidAfter => vec![save, halfway],
            Unread | OtherBody => vec![save, done],
            Joined => vec![save, steps(json!(["stall", end]))],
            FailedAfter => vec![save, steps(status(400, json!({})))],
            FailedBefore if self.mode == Mode::Begun => {
                vec![steps(json!([{ "events": [text("Hel"), failure] }])), save, done]
            }
            FailedBefore => vec![failing.clone(), failing, save, done],
        };
        json!({ "rounds": rounds, "advance": "requests", "lenient": true })
    }

    fn body(&self) -> Value {
        faults::chat(&self.name, self.mode != Mode::Whole)
    }

    /// The headers of an attempt, from 0.
    fn headers(&self, attempt: usize) -> Vec<(&str, &str)> {
        let mut headers = Vec::new();
        if self.mark != Mark::Keyed {
            headers.push(("x-stainless-retry-count", ["0", "1", "2"][attempt]));
        }
        if self.mark != Mark::Counted {
            headers.push(("idempotency-key", self.name.as_str()));
        }
        if attempt == 0 {
            headers.push(("x-request-id", self.name.as_str()));
        }
        headers
    }

    /// What the repetition gets, and the one after it; how often the upstream is asked; what ran.
    fn wanted(&self) -> String {
        let begun = self.mode == Mode::Begun;
        let (own, again) = ("200 done", "200 done, replayed");
        let after = "424 turn_failed_after_tools, x-should-retry: false, replayed";
        // Of a stream the role is sent once the first reply has begun.
        let failed = if self.mode == Mode::Whole { after } else { "200 turn_failed_after_tools, replayed" };
        let (first, second, asked, ran) = match self.cut {
            Unanswered | Amid => (own, again, 3, "save complete"),
            Reads => (own, again, 3, "reads left, save complete"),
            Wrote | Writes => (after, after, 1, "writes complete"),
            After | AmidAfter => (after, after, 2, "save complete"),
            Unread | Joined => (again, again, 2, "save complete"),
            FailedAfter => (failed, failed, 2, "save complete"),
            // A stream that has begun is an answer, also one that ends with an error: a key keeps it.
            FailedBefore if begun && self.mark != Mark::Counted => {
                ("200 upstream_error, replayed", "200 upstream_error, replayed", 1, "nothing")
            }
            FailedBefore => (own, again, if begun { 3 } else { 4 }, "save complete"),
            OtherBody => ("422 idempotency_key_reused", again, 2, "save complete"),
        };
        line(first, second, asked, ran)
    }

    /// Asks for the first time; gives the client if it is still there.
    async fn begin(&self, stage: &Stage, unused: &Certificate) -> Option<Client> {
        stage.lab.script(&self.name, self.script());
        if let Some(tool) = self.cut.held() {
            hold(&stage.lab, &self.label(tool));
        }
        if self.cut.questions().is_none() {
            stage.ask_with(&self.name, &self.body(), &self.headers(0)).await;
            return None;
        }
        let headers = [&[("authorization", "Bearer fk-players")], &*self.headers(0)].concat();
        Some(Way::Plain.ask(stage.process.proxy, unused, &headers, &self.body()).await)
    }

    /// Whether it may be cut.
    fn is_there(&self, seen: &Snapshot) -> bool {
        let held = self.cut.held().is_none_or(|tool| seen.of_script(&self.label(tool)).count() == 1);
        self.cut.questions().is_none_or(|asked| seen.of_script(&self.name).count() == asked) && held
    }

    /// Waits until the first attempt is as it should be when the repetition comes.
    async fn is_cut(&self, stage: &Stage) {
        if self.cut == Joined || self.cut.questions().is_none() {
            return;
        }
        if self.cut.held() == Some("writes") {
            soon(run(&stage.process, &self.name, |run| run["client_gone"] == true)).await;
        }
        if self.cut == Wrote {
            stage.lab.release(&self.label("writes"));
        }
        if self.cut != Writes {
            soon(run(&stage.process, &self.name, |run| run["end"].is_object())).await;
        }
    }

    async fn again(&self, stage: &Stage, attempt: usize) -> String {
        let mut body = self.body();
        if self.cut == OtherBody && attempt == 1 {
            body["temperature"] = json!(0.5);
        }
        told(&stage.ask_with(&self.name, &body, &self.headers(attempt)).await)
    }
}

/// An answer, or an error, in one line.
pub(super) fn told(got: &Got) -> String {
    let end = match fold::answer(got) {
        Ok(Folded::Reply(reply)) if reply.text.ends_with("done") && reply.finish == "stop" => {
            "done".to_owned()
        }
        Ok(Folded::Error(Some(code))) => code,
        other => format!("{other:?}"),
    };
    let headers =
        [("retry-after", got.header("retry-after")), ("x-should-retry", got.header("x-should-retry"))];
    let headers = headers.iter().filter(|(_, value)| !value.is_empty());
    let headers: String = headers.map(|(name, value)| format!(", {name}: {value}")).collect();
    let replayed = if got.header("x-fanfold-replay-of").is_empty() { "" } else { ", replayed" };
    format!("{} {end}{headers}{replayed}", got.status.as_u16())
}

fn line(first: &str, second: &str, asked: usize, ran: &str) -> String {
    format!("{first}; then {second}; asked {asked}; ran: {ran}")
}

fn cells(cut: Cut) -> Vec<Cell> {
    let of = |mode: &Mode| {
        let mode = *mode;
        cut.marks().iter().map(move |mark| {
            let name = format!("{cut:?}-{mode:?}-{mark:?}");
            Cell { cut, mode, mark: *mark, name }
        })
    };
    cut.modes().iter().flat_map(of).collect()
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    (CUTS.len(), CUTS.iter().map(|(cut, _)| cells(*cut).len()).sum())
}

/// The first repetitions, all at once. What waits goes on once all have joined it.
async fn repeated(stage: &Stage, cells: &[Cell], first: Vec<Option<Client>>) -> Vec<String> {
    const JOINED: &str = "fanfold_repeated_requests_total{result=\"joined\"}";
    let joined = metric(&stage.process.metrics().await, JOINED);
    let go_on = async {
        let cut = cells[0].cut;
        if !matches!(cut, Joined | Writes) {
            return;
        }
        let all = joined + f64::from(u32::try_from(cells.len()).expect("few"));
        stage.process.metric_becomes(JOINED, all).await;
        drop(first);
        for cell in cells {
            soon(run(&stage.process, &cell.name, |run| run["client_gone"] == true)).await;
            let waits = if cut == Joined { cell.name.clone() } else { cell.label("writes") };
            stage.lab.release(&waits);
        }
    };
    tokio::join!(join_all(cells.iter().map(|cell| cell.again(stage, 1))), go_on).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_gets_one_answer_and_nothing_is_written_twice() {
    let lab = Lab::start().await;
    let config = json!({
        "upstreams": { "main": faults::patient(&lab.base_url()) },
        "routes": [{ "model": "*", "upstreams": ["main"] }],
        "tools": tools(&lab),
        "runs": { "keep": 2000 },
    });
    let (stage, unused, noted) = (Stage::start(lab, config).await, Certificate::new(), Cells::default());
    for (cut, fault) in CUTS {
        let cells = cells(cut);
        let mut first = join_all(cells.iter().map(|cell| cell.begin(&stage, &unused))).await;
        soon(stage.lab.wait_until(|seen| cells.iter().all(|cell| cell.is_there(seen)))).await;
        for (cell, client) in cells.iter().zip(&mut first) {
            if let Some(client) = client.as_mut().filter(|_| cell.mode == Mode::Begun) {
                client.until("Hel").await;
            }
        }
        if cut != Joined {
            first.clear();
        }
        join_all(cells.iter().map(|cell| cell.is_cut(&stage))).await;
        let again = repeated(&stage, &cells, first).await;
        let then = join_all(cells.iter().map(|cell| cell.again(&stage, 2))).await;
        let seen = stage.lab.journal();
        for (cell, (again, then)) in cells.iter().zip(again.iter().zip(&then)) {
            let got = line(again, then, seen.of_script(&cell.name).count(), &ran(&seen, &cell.name));
            noted.note_untimed(fault, cell.column(), cell.wanted(), got);
        }
        stage.calm(fault).await;
    }
    stage.ends().await;
    noted.settle("repeats", size().1);
}

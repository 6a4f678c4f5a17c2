//! The process ends while a turn is in flight: told to, with time enough and without; told to twice; killed; whole
//! and streamed, in the first round and after a tool wrote. Each cell is played with a process of its own.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::leaving::{audited, hold, listed, ran, tools};
use super::repeats::told;
use super::support::client::Got;
use super::support::faults::{self, chunk, text};
use super::support::gateway::soon;
use super::support::lab::Lab;
use super::support::lab::journal::Snapshot;
use super::support::matrix::Cells;
use super::support::process::{self, Process};
use super::tools::{MODES, Mode};

/// How many processes there are at once.
const SIDE_BY_SIDE: usize = 4;

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// SIGTERM, and time enough.
    InTime,
    /// SIGTERM, and not enough of it.
    Overdue,
    /// SIGTERM, all the time of the world, and SIGTERM again.
    Twice,
    /// SIGKILL.
    Killed,
}

/// Where the turn is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The upstream has not answered to the end.
    Reply,
    /// A tool runs.
    Reads,
    Writes,
}

use Ending::{InTime, Killed, Overdue, Twice};
use Place::{Reads, Reply, Writes};

const FAULTS: [(Ending, Place, &str); 12] = [
    (InTime, Reply, "SIGTERM in the upstream's reply"),
    (InTime, Reads, "SIGTERM while a tool reads"),
    (InTime, Writes, "SIGTERM while a tool writes"),
    (Overdue, Reply, "SIGTERM and no time for the upstream's reply"),
    (Overdue, Reads, "SIGTERM and no time for a tool that reads"),
    (Overdue, Writes, "SIGTERM and no time for a tool that writes"),
    (Twice, Reply, "SIGTERM twice in the upstream's reply"),
    (Twice, Reads, "SIGTERM twice while a tool reads"),
    (Twice, Writes, "SIGTERM twice while a tool writes"),
    (Killed, Reply, "SIGKILL in the upstream's reply"),
    (Killed, Reads, "SIGKILL while a tool reads"),
    (Killed, Writes, "SIGKILL while a tool writes"),
];

impl Place {
    const fn tool(self) -> Option<&'static str> {
        match self {
            Reply => None,
            Reads => Some("reads"),
            Writes => Some("writes"),
        }
    }
}

/// What came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Nothing, and the chat only goes through.
    Relayed,
    Save,
}

/// A cell.
struct Cell {
    fault: &'static str,
    ending: Ending,
    place: Place,
    mode: Mode,
    before: Before,
    /// Names its script, its request and its tools' runs.
    name: String,
}

impl Cell {
    fn column(&self) -> String {
        let mode = self.mode.words();
        let before = match self.before {
            Before::Nothing => "first round",
            Before::Relayed => "relayed",
            Before::Save => "after a write",
        };
        format!("{mode}, {before}")
    }

    /// Whether a tool wrote before.
    fn after(&self) -> bool {
        self.before == Before::Save
    }

    fn label(&self) -> String {
        format!("{}.{}", self.place.tool().unwrap_or_default(), self.name)
    }

    fn script(&self) -> Value {
        let call = |tool: &str, label: &str| json!({ "reply": { "calls": [{ "name": tool, "arguments": { "label": label } }] } });
        let end = json!({ "events": [text("done"), chunk(json!({}), json!("stop")), "[DONE]"] });
        let mut rounds = match self.place.tool() {
            None => vec![json!({ "steps": ["stall", end] })],
            Some(tool) => vec![call(tool, &self.label()), json!({ "reply": { "text": "done" } })],
        };
        if self.after() {
            rounds.insert(0, call("save", &self.name));
        }
        if self.mode == Mode::Begun {
            match rounds[0]["steps"].as_array_mut() {
                Some(steps) => steps.insert(0, json!({ "events": [text("Hel")] })),
                None => rounds[0]["reply"]["text"] = json!("Hel"),
            }
        }
        json!({ "rounds": rounds })
    }

    fn config(&self, lab: &Lab, log: &str) -> String {
        let (accept, drain) = match self.ending {
            InTime => ("500ms", "60s"),
            Overdue => ("100ms", "300ms"),
            Twice | Killed => ("60s", "600s"),
        };
        faults::yaml(&json!({
            "upstreams": { "main": { "base_url": lab.base_url() } },
            "tools": tools(lab),
            "audit": { "file": log },
            "server": { "drain_accept": accept, "drain": drain },
        }))
    }

    /// Questions the upstream gets before the end begins.
    fn questions(&self) -> usize {
        1 + usize::from(self.after())
    }

    fn wanted(&self) -> String {
        let writes = self.place == Writes;
        let streams = self.mode != Mode::Whole;
        // Of a stream the role is sent once the first reply has begun.
        let shown = streams && (self.after() || self.place != Reply || self.mode == Mode::Begun);
        let answer = match self.ending {
            InTime => "200 done",
            Killed => "broken off",
            Overdue | Twice => match (shown, self.after() || writes) {
                (true, true) => "200 turn_failed_after_tools",
                (true, false) => "200 shutting_down",
                (false, true) => "424 turn_failed_after_tools, x-should-retry: false",
                (false, false) => "503 shutting_down, retry-after: 1",
            },
        };
        let (late, code, goes_on) = match self.ending {
            InTime => ("503 shutting_down, retry-after: 1, and then nobody", "0", true),
            Overdue | Twice => ("none", "0", false),
            Killed => ("none", "none", false),
        };
        let asked = self.questions() + usize::from(goes_on && self.place != Reply);
        let (mut runs, mut written) = (Vec::new(), Vec::new());
        if self.after() {
            runs.push("save complete".to_owned());
            written.extend(["save intent".to_owned(), "save ok".to_owned()]);
        }
        if let Some(tool) = self.place.tool() {
            runs.push(format!("{tool} {}", if goes_on { "complete" } else { "left" }));
        }
        if writes {
            written.push("writes intent".to_owned());
            match self.ending {
                InTime => written.push("writes ok".to_owned()),
                Overdue | Twice => written.push("writes unknown".to_owned()),
                Killed => {}
            }
        }
        runs.sort();
        line(answer, late, asked, &listed(&runs), &listed(&written), code)
    }

    fn is_there(&self, seen: &Snapshot) -> bool {
        let held = self.place.tool().is_none() || seen.of_script(&self.label()).count() == 1;
        seen.of_script(&self.name).count() == self.questions() && held
    }

    async fn play(&self, lab: &Lab) -> String {
        lab.script(&self.name, self.script());
        if self.place != Reply {
            hold(lab, &self.label());
        }
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("audit.jsonl");
        let mut process = Process::start(&self.config(lab, &log.display().to_string())).await;
        let url = format!("{}/chat/completions", process.base_url());
        let body = faults::chat(&self.name, self.mode != Mode::Whole);
        let begun = Notify::new();
        let offered = if self.before == Before::Relayed { "none" } else { "save,reads,writes" };
        let headers = [("x-request-id", self.name.as_str()), ("x-fanfold-tools", offered)];
        let asking = soon(ask(&url, &headers, &body, &begun));
        let ending = async {
            soon(lab.wait_until(|seen| self.is_there(seen))).await;
            if self.mode == Mode::Begun {
                soon(begun.notified()).await;
            }
            self.end(lab, &mut process, &log).await
        };
        let (got, late) = tokio::join!(asking, ending);
        let code = process.ended().await.code;
        let answer = got.map_or_else(|_cut| "broken off".to_owned(), |got| told(&got));
        // What it held at the lab is closed by its end, if by nothing else.
        let over = |seen: &Snapshot| {
            !format!("{} {}", ran(seen, &self.name), asked(seen, &self.name)).contains("running")
        };
        let seen = soon(lab.wait_until(over)).await;
        let (number, written) = (seen.of_script(&self.name).count(), audited(&log, &self.name));
        let (verified, out, err) =
            process::run(folder.path(), &["audit", "verify", &log.display().to_string()]).await;
        assert_eq!(verified, 0, "{}: {out}{err}", self.name);
        let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        line(&answer, &late, number, &ran(&seen, &self.name), &written, &code)
    }

    /// Ends the process. Gives what somebody got who came late.
    async fn end(&self, lab: &Lab, process: &mut Process, log: &Path) -> String {
        match self.ending {
            InTime => {
                let late = Late::begin(process).await;
                process.signal(Signal::TERM);
                nobody_listens(process).await;
                let late = late.told().await;
                let waits = if self.place == Reply { self.name.clone() } else { self.label() };
                lab.release(&waits);
                format!("{late}, and then nobody")
            }
            Overdue => {
                process.signal(Signal::TERM);
                "none".to_owned()
            }
            Twice => {
                process.signal(Signal::TERM);
                process.logged("no longer ready").await;
                process.signal(Signal::TERM);
                "none".to_owned()
            }
            Killed => {
                // What ended before is written down, if not at once.
                let known = async {
                    while self.after() && !audited(log, &self.name).contains("save ok") {
                        sleep(Duration::from_millis(20)).await;
                    }
                };
                soon(known).await;
                process.signal(Signal::KILL);
                "none".to_owned()
            }
        }
    }
}

/// Asks, and says when the answer has some text. An answer that breaks off is an error.
async fn ask(url: &str, headers: &[(&str, &str)], body: &Value, begun: &Notify) -> Result<Got, String> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::post(url).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_string())).expect("a request");
    let (parts, mut answer) = client.request(request).await.map_err(|error| error.to_string())?.into_parts();
    let mut body = String::new();
    while let Some(frame) = answer.frame().await {
        let data = frame.map_err(|error| error.to_string())?.into_data().unwrap_or_default();
        body.push_str(std::str::from_utf8(&data).map_err(|error| error.to_string())?);
        if body.contains("Hel") {
            begun.notify_one();
        }
    }
    Ok(Got { status: parts.status, headers: parts.headers, body })
}

/// How the questions of a script ended.
fn asked(seen: &Snapshot, script: &str) -> &'static str {
    let running = seen.of_script(script).any(|(entry, _)| seen.how(entry.n).is_none());
    if running { "running" } else { "over" }
}

/// Somebody whose connection is there before the process refuses them, and whose request is not.
struct Late(TcpStream);

impl Late {
    async fn begin(process: &Process) -> Self {
        let mut stream = TcpStream::connect(process.proxy).await.expect("a listener");
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        // The other one's, and this.
        process.metric_becomes("fanfold_connections", 2.0).await;
        Self(stream)
    }

    /// Asks, and reads the answer.
    async fn told(mut self) -> String {
        let body = faults::chat("late", false).to_string();
        let rest = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if let Err(error) = self.0.write_all(rest.as_bytes()).await {
            return format!("nothing: {error}");
        }
        let mut answer = Vec::new();
        let _ended = soon(self.0.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or("nothing");
        let after = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap_or("missing");
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        format!(
            "{status} {}, retry-after: {after}",
            body["error"]["code"].as_str().unwrap_or("without a code")
        )
    }
}

/// Waits until new connections are refused.
async fn nobody_listens(process: &Process) {
    let refused = async {
        loop {
            match TcpStream::connect(process.proxy).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                Ok(_) | Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    soon(refused).await;
}

fn line(answer: &str, late: &str, asked: usize, ran: &str, written: &str, code: &str) -> String {
    format!(
        "{answer}; who comes late: {late}; asked {asked}; ran: {ran}; written down: {written}; exit code {code}"
    )
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (ending, place, fault) in FAULTS {
        let before = match place {
            Reply => &[Before::Nothing, Before::Relayed, Before::Save][..],
            Reads | Writes => &[Before::Nothing, Before::Save],
        };
        for mode in MODES {
            cells.extend(before.iter().map(|before| {
                let name = format!("{ending:?}-{place:?}-{mode:?}-{before:?}");
                Cell { fault, ending, place, mode, before: *before, name }
            }));
        }
    }
    cells
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    (FAULTS.len(), cells().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_in_flight_ends_as_its_process_does() {
    let (lab, noted) = (Lab::start().await, Cells::default());
    let play = async |cell: Cell| {
        let got = cell.play(&lab).await;
        noted.note_untimed(cell.fault, cell.column(), cell.wanted(), got);
    };
    stream::iter(cells()).map(play).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<()>>().await;
    soon(lab.wait_until(|seen| seen.connections_open == 0)).await;
    noted.settle("process", size().1);
}

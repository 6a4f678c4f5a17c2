//! Clients that leave: where in a turn, over what, and how; whole and streamed, in the first round and after a tool
//! wrote. What has to end ends, what has to finish finishes and is written down, and nothing more is begun.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::support::client;
use super::support::faults::{self, text};
use super::support::gateway::soon;
use super::support::lab::Lab;
use super::support::lab::journal::{How, Snapshot};
use super::support::matrix::Cells;
use super::support::process::Process;
use super::support::proxy::with;
use super::support::stage::Stage;
use super::support::tls::Certificate;
use super::support::ways::{Client, WAYS, Way};
use super::tools::{MODES, Mode};

/// The most that may pass between a client's leaving and the end of what has to end, on a machine that has other
/// things to do.
const LATEST: Duration = Duration::from_secs(3);

/// Where a turn is when its client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The upstream says nothing to the first question.
    Unanswered,
    /// It has said some text.
    Amid,
    /// It says nothing to the second question.
    Between,
    /// A tool runs.
    Reads,
    Sets,
    Writes,
    /// Two tools run.
    Both,
    /// Two tools run, and a call waits for its place.
    Queued,
}

use Place::{Amid, Between, Both, Queued, Reads, Sets, Unanswered, Writes};

const PLACES: [(Place, &str); 8] = [
    (Unanswered, "before the first byte"),
    (Amid, "in the middle of a text"),
    (Between, "between two rounds"),
    (Reads, "while a tool reads"),
    (Sets, "while an idempotent tool runs"),
    (Writes, "while a tool writes"),
    (Both, "while one tool reads and one writes"),
    (Queued, "while a call waits behind two that write"),
];

/// What came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Nothing, and the chat only goes through.
    Relayed,
    Look,
    Save,
}

impl Place {
    fn columns(self) -> Vec<(Mode, Before)> {
        use Before::{Look, Nothing, Relayed, Save};
        let modes: &[Mode] = match self {
            Unanswered => &[Mode::Whole, Mode::Unbegun],
            Amid => &[Mode::Whole, Mode::Begun],
            Between | Reads | Sets | Writes | Both | Queued => &MODES,
        };
        let before: &[Before] = match self {
            Unanswered => &[Nothing, Relayed],
            Amid => &[Nothing, Relayed, Save],
            Between => &[Look, Save],
            Reads | Sets | Writes | Both | Queued => &[Nothing, Save],
        };
        modes.iter().flat_map(|mode| before.iter().map(|before| (*mode, *before))).collect()
    }

    /// The tools that run: each waits until it is told to go on.
    const fn held(self) -> &'static [&'static str] {
        match self {
            Unanswered | Amid | Between => &[],
            Reads => &["reads"],
            Sets => &["sets"],
            Writes => &["writes"],
            Both => &["reads", "writes"],
            Queued => &["writes", "sets"],
        }
    }
}

/// Whether a tool goes on without its client.
fn finishes(tool: &str) -> bool {
    tool != "reads"
}

/// One tool of each effect that waits until its script is released, and two that answer at once.
pub(super) fn tools(lab: &Lab) -> Value {
    let mut tools = super::upstream::tools(lab);
    for (name, method, effect) in
        [("reads", "GET", "read"), ("sets", "POST", "idempotent"), ("writes", "POST", "write")]
    {
        let url = format!("{}/at/{{label}}", lab.url());
        tools[name] = json!({ "effect": effect, "parameters": tools["save"]["parameters"],
            "http": { "method": method, "url": url } });
    }
    tools
}

/// The script of a tool's call that waits.
pub(super) fn hold(lab: &Lab, label: &str) {
    let steps = json!([{ "steps": ["stall", { "json": { "held": label } }] }]);
    lab.script(label, json!({ "rounds": steps, "repeat": true, "lenient": true }));
}

/// How often tools ran for a cell, and how each run ended: sorted, as those that run side by side come in any order.
pub(super) fn ran(seen: &Snapshot, cell: &str) -> String {
    let of_cell =
        |label: &String| label == cell || label.strip_suffix(cell).is_some_and(|of| of.ends_with('.'));
    let mut runs: Vec<String> = seen
        .requests()
        .filter_map(|(entry, request)| {
            let label = request.tool.as_ref().or(request.script.as_ref().filter(|name| *name != cell))?;
            let how = seen.how(entry.n);
            let tool = label.strip_suffix(cell).unwrap_or_default().trim_end_matches('.');
            let tool = match (tool, request.method.as_str()) {
                ("", "GET") => "look",
                ("", _) => "save",
                (held, _) => held,
            };
            of_cell(label).then(|| format!("{tool} {}", ended(how)))
        })
        .collect();
    runs.sort();
    listed(&runs)
}

const fn ended(how: Option<How>) -> &'static str {
    match how {
        Some(How::Complete) => "complete",
        Some(How::PeerLeft) => "left",
        Some(How::Cut) => "cut",
        None => "running",
    }
}

pub(super) fn listed(words: &[String]) -> String {
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

/// What the audit log has of a request: tool by tool, and of each its intents before its outcomes.
pub(super) fn audited(log: &Path, request: &str) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut words: Vec<String> = records
        .filter(|record| record["request_id"] == request)
        .map(|record| {
            let tool = record["tool"].as_str().unwrap_or_default();
            format!("{tool} {}", record["outcome"].as_str().unwrap_or("intent"))
        })
        .collect();
    // By tool; those of one tool stay in their order.
    words.sort_by(|a, b| a.split(' ').next().cmp(&b.split(' ').next()));
    listed(&words)
}

/// The same, once every call that was begun has an end there.
async fn all_audited(log: &Path, request: &str) -> String {
    let ended = async {
        loop {
            let words = audited(log, request);
            if words == "nothing" || words.matches(" intent").count() * 2 == words.split(", ").count() {
                return words;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon(ended).await
}

/// A run of the process, once it is so.
pub(super) async fn run(process: &Process, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let url = format!("http://{}/api/runs/{id}", process.admin);
    loop {
        let got = client::send(http::Method::GET, &url, &[], None).await.expect("an answer");
        let run = got.json()["run"].clone();
        if wanted(&run) {
            return run;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A cell.
struct Cell {
    place: Place,
    way: Way,
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
            Before::Look => "after a read",
            Before::Save => "after a write",
        };
        format!("{}, {mode}, {before}", self.way.name())
    }

    /// The label of a tool's run that waits.
    fn label(&self, tool: &str) -> String {
        format!("{tool}.{}", self.name)
    }

    fn rounds(&self) -> Value {
        let call = |tool: &str, label: &str| json!({ "name": tool, "arguments": { "label": label } });
        let mut calls: Vec<Value> =
            self.place.held().iter().map(|tool| call(tool, &self.label(tool))).collect();
        if self.place == Queued {
            calls.push(call("save", &format!("queued.{}", self.name)));
        }
        let mut rounds = match self.place {
            Unanswered | Between => vec![json!({ "steps": ["stall"] })],
            Amid => vec![json!({ "steps": [{ "events": [text("Hel")] }, "stall"] })],
            Reads | Sets | Writes | Both | Queued => {
                vec![json!({ "reply": { "calls": calls } }), json!({ "reply": { "text": "never" } })]
            }
        };
        let first = match self.before {
            Before::Nothing | Before::Relayed => None,
            Before::Look => Some("look"),
            Before::Save => Some("save"),
        };
        if let Some(tool) = first {
            rounds.insert(0, json!({ "reply": { "calls": [call(tool, &self.name)] } }));
        }
        if self.mode == Mode::Begun && self.place != Amid {
            rounds[0]["reply"]["text"] = json!("Hel");
        }
        json!({ "rounds": rounds })
    }

    /// Questions the upstream gets.
    fn questions(&self) -> usize {
        1 + usize::from(matches!(self.before, Before::Look | Before::Save))
    }

    fn wanted(&self) -> String {
        let some =
            |words: Vec<&str>| listed(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let (mut ran, mut told, mut written) = (Vec::new(), Vec::new(), Vec::new());
        match self.before {
            Before::Nothing | Before::Relayed => {}
            Before::Look => {
                ran.push("look complete");
                told.push("look ok");
            }
            Before::Save => {
                ran.push("save complete");
                told.push("save ok");
                written.extend(["save intent", "save ok"]);
            }
        }
        let held = self.place.held();
        for (tool, left, complete, stopped, ok, record) in [
            ("reads", "reads left", "", "reads stopped", "", [""; 2]),
            ("sets", "", "sets complete", "", "sets ok", ["sets intent", "sets ok"]),
            ("writes", "", "writes complete", "", "writes ok", ["writes intent", "writes ok"]),
        ] {
            if held.contains(&tool) {
                ran.push(if finishes(tool) { complete } else { left });
                told.push(if finishes(tool) { ok } else { stopped });
                written.extend(record.iter().filter(|_| finishes(tool)));
            }
        }
        if self.place == Queued {
            told.push("save stopped");
        }
        ran.sort_unstable();
        told.sort_unstable();
        let question = if held.is_empty() { "left" } else { "complete" };
        line(self.questions(), question, &some(ran), "client_gone", &some(told), &some(written))
    }

    async fn ask(&self, scene: &Scene) -> Client {
        let lab = &scene.stage.lab;
        lab.script(&self.name, self.rounds());
        self.place.held().iter().for_each(|tool| hold(lab, &self.label(tool)));
        let mut headers = vec![("authorization", "Bearer fk-players"), ("x-request-id", self.name.as_str())];
        if self.before == Before::Relayed {
            headers.push(("x-fanfold-tools", "none"));
        }
        let body = faults::chat(&self.name, self.mode != Mode::Whole);
        self.way.ask(scene.address, &scene.certificate, &headers, &body).await
    }

    /// Whether the turn is in its place.
    fn is_there(&self, seen: &Snapshot) -> bool {
        let held = self.place.held().iter().map(|tool| self.label(tool));
        seen.of_script(&self.name).count() == self.questions()
            && held.into_iter().all(|label| seen.of_script(&label).count() == 1)
    }

    /// When that ended which ends by the client's leaving.
    fn left_at(&self, seen: &Snapshot) -> Option<f64> {
        let of = if self.place.held().is_empty() { self.name.clone() } else { self.label("reads") };
        let last = seen.of_script(&of).last()?.0.n;
        seen.end(last).filter(|(_, how)| *how == How::PeerLeft).map(|(at, _)| at)
    }

    /// What became of it.
    async fn outcome(&self, scene: &Scene) -> String {
        let run = soon(run(&scene.stage.process, &self.name, |run| run["end"].is_object())).await;
        let calls = run["calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let mut told: Vec<String> =
            calls.iter().map(|call| format!("{} {}", word(&call["tool"]), word(&call["outcome"]))).collect();
        told.sort();
        let seen = scene.stage.lab.journal();
        let questions: Vec<Option<How>> =
            seen.of_script(&self.name).map(|(entry, _)| seen.how(entry.n)).collect();
        let last = ended(questions.last().copied().flatten());
        let written = all_audited(&scene.log(), &self.name).await;
        line(
            questions.len(),
            last,
            &ran(&seen, &self.name),
            &word(&run["end"]["outcome"]),
            &listed(&told),
            &written,
        )
    }
}

fn line(asked: usize, question: &str, ran: &str, run: &str, told: &str, written: &str) -> String {
    format!("asked {asked}, the last {question}; ran: {ran}; the run: {run}, {told}; written down: {written}")
}

fn cells(place: Place, tls: bool) -> Vec<Cell> {
    let ways = WAYS.into_iter().filter(|way| way.is_tls() == tls);
    let of = |way| {
        place.columns().into_iter().map(move |(mode, before)| {
            let name = format!("{place:?}-{way:?}-{mode:?}-{before:?}");
            Cell { place, way, mode, before, name }
        })
    };
    ways.flat_map(of).collect()
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    let cells = PLACES.iter().map(|(place, _)| place.columns().len() * WAYS.len()).sum();
    (PLACES.len(), cells)
}

/// A process that clients leave.
struct Scene {
    stage: Stage,
    /// Where they come to.
    address: SocketAddr,
    certificate: Certificate,
    _tunnel: JoinSet<()>,
}

impl Scene {
    async fn start(tls: bool) -> Self {
        let (lab, certificate, mut tunnel) = (Lab::start().await, Certificate::new(), JoinSet::new());
        let mut config = json!({
            "upstreams": { "main": { "base_url": lab.base_url() } },
            "routes": [{ "model": "*", "upstreams": ["main"] }],
            "limits": { "calls_at_once": 2 },
            "tools": tools(&lab),
            "audit": { "file": "FOLDER/audit.jsonl" },
            "runs": { "keep": 2000 },
        });
        if tls {
            let files = json!({ "cert": certificate.path(), "key": certificate.key_path() });
            config = with(config, json!({ "tls": files }));
        }
        let mut address = None;
        let stage = Stage::in_folder(lab, config, async |folder| {
            let mut process = Process::in_folder(folder).await;
            address = Some(process.proxy);
            if tls {
                process.proxy = through(process.proxy, &certificate, &mut tunnel).await;
            }
            process
        })
        .await;
        Self { stage, address: address.expect("it serves"), certificate, _tunnel: tunnel }
    }

    fn log(&self) -> std::path::PathBuf {
        self.stage.process.folder.path().join("audit.jsonl")
    }
}

/// An address for those who speak no TLS: who asks beside the cells.
async fn through(to: SocketAddr, certificate: &Certificate, tunnel: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let connector = certificate.connector("http/1.1");
    tunnel.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut plain, _)) = listener.accept().await {
            let connector = connector.clone();
            connections.spawn(async move {
                let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
                let stream = TcpStream::connect(to).await.expect("a listener");
                let mut tls = connector.connect(name, stream).await.expect("a handshake");
                // Either side may end it.
                let _ended = copy_bidirectional(&mut plain, &mut tls).await;
            });
        }
    });
    address
}

/// Leaves, and waits until what has to end has ended; where nothing has to, until the leaving is known. Gives the
/// milliseconds that took, `None` if it was too long, and what is still there of the client.
async fn leave(scene: &Scene, cell: &Cell, client: Client) -> (Option<f64>, Option<Client>) {
    let Stage { lab, process, .. } = &scene.stage;
    let left = lab.now_ms();
    let still_there = client.leave(cell.way);
    let ended = async {
        if matches!(cell.place, Sets | Writes | Queued) {
            run(process, &cell.name, |run| run["client_gone"] == true).await;
            return lab.now_ms();
        }
        let seen = lab.wait_until(|seen| cell.left_at(seen).is_some()).await;
        cell.left_at(&seen).expect("as waited for")
    };
    let at = timeout(LATEST, ended).await.ok();
    (at.map(|at| at - left), still_there)
}

async fn play(tls: bool, noted: &Cells) {
    let scene = Scene::start(tls).await;
    let (stage, mut gone) = (&scene.stage, 0.0);
    for (place, fault) in PLACES {
        let cells = cells(place, tls);
        let mut clients = join_all(cells.iter().map(|cell| cell.ask(&scene))).await;
        soon(stage.lab.wait_until(|seen| cells.iter().all(|cell| cell.is_there(seen)))).await;
        for (cell, client) in cells.iter().zip(&mut clients) {
            if cell.mode == Mode::Begun {
                client.until("Hel").await;
            }
        }
        let (mut noticed, mut still_there) = (Vec::new(), Vec::new());
        for (cell, client) in cells.iter().zip(clients) {
            // One after the other, so that the times are those of one.
            let (took, rest) = leave(&scene, cell, client).await;
            noticed.push(took);
            still_there.push(rest);
        }
        for cell in &cells {
            for tool in place.held().iter().filter(|tool| finishes(tool)) {
                stage.lab.release(&cell.label(tool));
            }
        }
        for (cell, took) in cells.iter().zip(noticed) {
            let took = took.map_or_else(|| "too late".to_owned(), |ms| format!("{ms:.0} ms"));
            let [wanted, got] =
                [cell.wanted(), cell.outcome(&scene).await].map(|text| format!("{text}; {took}"));
            noted.note_untimed(fault, cell.column(), wanted.replace("too late", "in time"), got);
        }
        gone += f64::from(u32::try_from(cells.len()).expect("few"));
        stage.process.metric_becomes("fanfold_client_disconnects_total", gone).await;
        drop(still_there);
        stage.calm(fault).await;
    }
    scene.stage.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_is_noticed_and_nothing_more_is_begun() {
    let noted = Cells::default();
    tokio::join!(play(false, &noted), play(true, &noted));
    noted.settle("leaving", size().1);
}

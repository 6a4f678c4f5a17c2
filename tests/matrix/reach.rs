//! Faults of the way to an upstream: it cannot be found, reached or trusted, it is left alone for a while, or it
//! answers before it has heard; in the first round, and after another round and a tool with effects.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::client::Got;
use super::support::door::{Door, Then};
use super::support::faults::{self, code};
use super::support::gateway::soon;
use super::support::lab::Lab;
use super::support::matrix::{Cells, Took, Watch, timed};
use super::support::process::Process;
use super::support::proxy::with;
use super::support::stage::Stage;
use super::support::tls::Certificate;
use super::upstream::{BEFORE, Column, Row, label, row, told, tools, wanted};

/// What is wrong with the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Refused,
    Unresolved,
    Hole,
    NoTls,
    Expired,
    Untrusted,
    OtherName,
    Early,
    LeftAlone,
}

use Way::{Early, Expired, Hole, LeftAlone, NoTls, OtherName, Refused, Unresolved, Untrusted};

/// Each with the tries there are, and what a client gets that has got nothing yet.
const WAYS: [(Way, &str, usize, u16, &str); 9] = [
    (Refused, "refused", 3, 502, "upstream_unreachable"),
    (Unresolved, "no such name", 3, 502, "upstream_unreachable"),
    (Hole, "black hole", 2, 504, "upstream_timeout"),
    (NoTls, "no TLS there", 1, 502, "upstream_tls_error"),
    (Expired, "an expired certificate", 1, 502, "upstream_tls_error"),
    (Untrusted, "a certificate nobody signed", 1, 502, "upstream_tls_error"),
    (OtherName, "a certificate of another name", 1, 502, "upstream_tls_error"),
    (Early, "answers before it read the body, and resets", 1, 413, "told"),
    (LeftAlone, "left alone after a storm", 0, 503, "upstream_unavailable"),
];

/// After so long a black hole is given up.
const HOLE: Duration = Duration::from_millis(300);

/// An answer that does not wait for the body.
const EARLY: &str = "HTTP/1.1 413 Payload Too Large\r\ncontent-type: application/json\r\ncontent-length: 63\r\n\r\n{\"error\":{\"message\":\"m\",\"type\":\"t\",\"param\":null,\"code\":\"told\"}}";

/// What the doors show. All but the last are in the file that is trusted.
struct Certificates {
    good: Certificate,
    expired: Certificate,
    other: Certificate,
    untrusted: Certificate,
}

impl Certificates {
    fn new() -> Self {
        let of = Certificate::of;
        Self {
            good: of("localhost", false),
            expired: of("localhost", true),
            other: of("elsewhere.example", false),
            untrusted: of("localhost", false),
        }
    }

    /// Those that are trusted, in one file.
    fn write(&self, path: &Path) {
        let trusted = [&self.good, &self.expired, &self.other];
        let text: String =
            trusted.map(|one| std::fs::read_to_string(one.path()).expect("a certificate")).concat();
        std::fs::write(path, text).expect("written");
    }
}

/// One cell, and what it needs.
struct Cell {
    way: Way,
    row: Row,
    column: Column,
    /// Names its script, its model and its host.
    name: String,
    door: Door,
    /// Connections that its storm took.
    storm: AtomicUsize,
}

impl Cell {
    fn new(lab: SocketAddr, certificates: &Certificates, way: Way, row: Row, column: Column) -> Self {
        let http1 = |certificate: &Certificate| certificate.acceptor("http/1.1");
        let then = match way {
            Refused => Then::Refuses,
            // Whoever comes for the one left alone is closed on, and seen.
            Unresolved | LeftAlone => Then::Stays,
            Hole => Then::Swallows,
            NoTls => Then::Garbage,
            Expired => Then::Shows(http1(&certificates.expired)),
            Untrusted => Then::Shows(http1(&certificates.untrusted)),
            OtherName => Then::Shows(http1(&certificates.other)),
            Early => Then::Answers(EARLY),
        };
        let tls = way.encrypted().then(|| http1(&certificates.good));
        let door = Door::open(lab, column.tool().is_some(), tls, then);
        let name = label(&format!("{} {}", row.fault, column.name())).replace('_', "-");
        Self { way, row, column, name, door, storm: AtomicUsize::new(0) }
    }

    /// The name of its host, where that is found out.
    fn host(&self) -> String {
        format!("h{}.example", self.column as usize)
    }

    fn upstream(&self, trusted: &Path) -> Value {
        let port = self.door.address.port();
        let url = if self.way == Unresolved {
            format!("http://{}:{port}/v1", self.host())
        } else if self.way.encrypted() {
            format!("https://localhost:{port}/v1")
        } else {
            format!("http://127.0.0.1:{port}/v1")
        };
        // The others fail by themselves, and a busy machine may need longer for a handshake that is good.
        let most = if self.way == Hole { HOLE } else { Duration::from_secs(10) };
        let most = format!("{}ms", most.as_millis());
        let mut upstream = with(faults::patient(&url), json!({ "connect_timeout": most }));
        if self.way.encrypted() {
            upstream["ca"] = json!(trusted);
        }
        if self.way == LeftAlone {
            // Whatever the rest of the cell takes.
            upstream["breaker"] = json!({ "rest": "50s" });
        }
        upstream
    }

    fn body(&self) -> Value {
        let mut body = faults::chat(&self.name, self.column.streams());
        if self.way == Early {
            body["messages"][0]["content"] = json!("x".repeat(4_000_000));
        }
        body
    }

    /// From now on it is as the row says.
    async fn fails(&self, stage: &Stage) {
        self.door.shut().await;
        match self.way {
            Unresolved if self.column.tool().is_some() => {
                forget(&stage.process.folder.path().join("hosts"), &self.host());
            }
            LeftAlone => {
                let storm =
                    async { while self.ask(stage, &[("x-fanfold-tools", "none")]).await.status != 503 {} };
                soon(storm).await;
                let through = usize::from(self.column.tool().is_some());
                self.storm.store(self.door.accepted() - through, Ordering::Relaxed);
            }
            Unresolved | Refused | Hole | NoTls | Expired | Untrusted | OtherName | Early => {}
        }
    }

    async fn ask(&self, stage: &Stage, headers: &[(&str, &str)]) -> Got {
        stage.ask_with(&self.name, &self.body(), headers).await
    }

    fn wanted(&self) -> (String, Duration) {
        let silence = if self.way == Hole { HOLE } else { Duration::ZERO };
        (wanted(&self.row, self.column), self.row.within(self.column, silence))
    }

    /// What it was, and how long it took from the fault on.
    async fn play(&self, stage: &Stage) -> (String, Took) {
        let calls = json!([{ "name": self.column.tool(), "arguments": { "label": self.name } }]);
        let text = self.column.has_text_before().then_some("Hel");
        let reply = if self.column.tool().is_some() {
            json!({ "text": text, "calls": calls })
        } else {
            json!({ "text": "never" })
        };
        stage.lab.script(&self.name, json!({ "rounds": [{ "reply": reply }] }));
        let none = [("x-fanfold-tools", "none")];
        let headers = if self.column.relayed() { &none[..] } else { &[] };
        let (got, took) = if self.column.tool().is_some() {
            let spoiling = async {
                self.fails(stage).await;
                self.door.let_through();
                Watch::start(&stage.process)
            };
            let (watch, got) = tokio::join!(spoiling, self.ask(stage, headers));
            (got, watch.stop())
        } else {
            self.fails(stage).await;
            timed(&stage.process, self.ask(stage, headers)).await
        };
        let code = code(&self.name, &got);
        assert!(!got.body.contains("127.0.0.1") && !got.body.contains("os error"), "internals: {}", got.body);
        let through = usize::from(self.column.tool().is_some());
        let seen = stage.lab.journal();
        assert_eq!(seen.of_script(&self.name).count(), through, "{}: what reached the model", self.name);
        let ran = seen.tools.get(self.name.as_str()).map_or(0, |runs| runs.started);
        let accepted = self.door.accepted() - through - self.storm.load(Ordering::Relaxed);
        let run = stage.run(&got).await;
        let tries = run["rounds"][through]["again"].as_array().map_or(0, |again| again.len() + 1);
        let asked = if self.way == LeftAlone { accepted } else { tries };
        if self.way.is_seen() {
            assert_eq!(accepted, asked, "{}: connections, {run}", self.name);
        }
        let after = got.header("retry-after");
        // Some of its rest has gone.
        let rest = after.parse().is_ok_and(|seconds| (30..=50).contains(&seconds));
        let after = if rest { "50" } else { after };
        let ran = usize::try_from(ran).expect("few");
        (told(got.status.as_u16(), &code, after, got.header("x-should-retry"), asked, ran), took)
    }
}

impl Way {
    const fn encrypted(self) -> bool {
        matches!(self, NoTls | Expired | Untrusted | OtherName)
    }

    /// Whoever tries is seen at the door.
    const fn is_seen(self) -> bool {
        self.encrypted() || matches!(self, Early | LeftAlone)
    }
}

/// Takes a name out of a file of hosts, in one write that leaves the rest in its place.
fn forget(hosts: &Path, name: &str) {
    let at = std::fs::read_to_string(hosts).expect("hosts").find(name).expect("the name");
    let file = std::fs::OpenOptions::new().write(true).open(hosts).expect("hosts");
    file.write_all_at("x".repeat(name.len()).as_bytes(), at as u64).expect("written");
}

fn rows() -> Vec<(Way, Row)> {
    let of = |(way, fault, asked, status, code)| {
        let mut row = row(fault, Value::Null, asked, status, code);
        // Its rest.
        row.retry_after = if way == LeftAlone { "50" } else { "" };
        (way, row)
    };
    WAYS.map(of).into()
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    (WAYS.len(), WAYS.len() * BEFORE.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_the_way_has_its_answer() {
    let (lab, certificates, folder) =
        (Lab::start().await, Certificates::new(), tempfile::tempdir().expect("a folder"));
    let address: SocketAddr = lab.url().trim_start_matches("http://").parse().expect("an address");
    let trusted = folder.path().join("trusted.pem");
    certificates.write(&trusted);
    let each = |way: Way| {
        let of = move |column| {
            let row = rows().into_iter().find(|(other, _)| *other == way).expect("the row").1;
            (way, row, column)
        };
        BEFORE.map(of)
    };
    let cells: Vec<Cell> = WAYS
        .iter()
        .flat_map(|(way, ..)| each(*way))
        .map(|(way, row, column)| Cell::new(address, &certificates, way, row, column))
        .collect();
    let mut config = json!({ "upstreams": {}, "routes": [], "tools": tools(&lab) });
    for cell in &cells {
        config["upstreams"][&cell.name] = cell.upstream(&trusted);
        let route = json!({ "model": format!("script:{}", cell.name), "upstreams": [cell.name] });
        config["routes"].as_array_mut().expect("routes").push(route);
    }
    let found = |cell: &&Cell| cell.way == Unresolved && cell.column.tool().is_some();
    let known: Vec<String> = cells.iter().filter(found).map(Cell::host).collect();
    let stage = Stage::in_folder(lab, config, async |folder| {
        let text = format!("127.0.0.1 localhost {}\n", known.join(" "));
        std::fs::write(folder.path().join("hosts"), text).expect("written");
        Process::with_hosts(folder).await
    })
    .await;
    let noted = Cells::default();
    for (way, fault, ..) in WAYS {
        let played = cells.iter().filter(|cell| cell.way == way).map(async |cell| {
            noted.note(fault, cell.column.name(), cell.wanted(), cell.play(&stage).await);
        });
        join_all(played).await;
        stage.calm(fault).await;
    }
    stage.ends().await;
    noted.settle("reach", size().1);
}

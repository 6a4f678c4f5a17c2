//! Faults of a tool: what the model is told of each, how often the tool runs, and that the turn goes on;
//! by the tool's effect, whole and streamed, in the first round and after another tool wrote.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::fold::{self, Folded};
use super::support::gateway::{closed_port, soon};
use super::support::lab::Lab;
use super::support::matrix::{Cells, Took, timed};
use super::support::process::Process;
use super::support::stage::Stage;

pub(super) const EFFECTS: [&str; 3] = ["read", "idempotent", "write"];

/// How the client asks, and what its stream has before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Whole,
    Unbegun,
    Begun,
}

impl Mode {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Unbegun => "stream not begun",
            Self::Begun => "stream begun",
        }
    }
}

pub(super) const MODES: [Mode; 3] = [Mode::Whole, Mode::Unbegun, Mode::Begun];

/// How long a child sleeps that its parent leaves behind: as nobody else does.
fn nap() -> String {
    format!("31.{}", std::process::id())
}

/// Whether a process of this machine has this argument.
fn runs_somewhere(argument: &str) -> bool {
    let commands = std::fs::read_dir("/proc").expect("processes").filter_map(|entry| {
        // It may have ended since.
        std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok()
    });
    commands.into_iter().any(|command| command.split('\0').any(|word| word == argument))
}

/// How often a tool may run.
#[derive(Debug, Clone, Copy)]
enum Runs {
    /// Nothing ever reaches it.
    Never,
    /// Once, whatever its effect.
    Once,
    /// Twice, unless it writes.
    Again,
}

/// A fault.
struct Row {
    fault: &'static str,
    /// The tool's `http` or `command`; `LABEL` in it is where its runs are counted.
    tool: Value,
    runs: Runs,
    /// What the model is told, and what instead if the tool writes.
    told: &'static str,
    written: Option<&'static str>,
}

fn http(fault: &'static str, path: &str, runs: Runs, told: &'static str) -> Row {
    let url = format!("LAB/tool/{path}");
    Row { fault, tool: json!({ "method": "POST", "url": url }), runs, told, written: None }
}

/// A shell's script that first notes that it ran.
fn command(fault: &'static str, script: &str, told: &'static str) -> Row {
    let script = format!("echo ran >> \"$0\"; {script}");
    let argv = json!(["/bin/sh", "-c", script, "FOLDER/{label}"]);
    Row { fault, tool: json!({ "argv": argv }), runs: Runs::Once, told, written: None }
}

fn written(told: &'static str, row: Row) -> Row {
    Row { written: Some(told), ..row }
}

const LOST: &str =
    "error: outcome unknown: may have been executed (the connection was closed before an answer)";
const LATE: &str = "error: timed out after 3s";
const LATE_UNKNOWN: &str = "error: timed out after 3s; outcome unknown: may have been executed";

fn rows() -> Vec<Row> {
    use Runs::{Again, Never, Once};
    let elsewhere = |fault, url: &str, told| Row {
        fault,
        tool: json!({ "method": "POST", "url": url }),
        runs: Never,
        told,
        written: None,
    };
    vec![
        elsewhere("refused", "http://CLOSED/{label}", "error: unreachable: the connection was refused"),
        elsewhere("no such name", "http://NOBODY/{label}", "error: unreachable: its name was not found"),
        elsewhere("blocked by policy", "http://inside.example:4/{label}", "error: blocked by policy"),
        elsewhere("no TLS there", "https://PLAIN/{label}", "error: unreachable: TLS failed"),
        http(
            "404",
            "fail/{label}?status=404",
            Once,
            "error: HTTP 404 Not Found: the tool LABEL failed as it was told to",
        ),
        http(
            "500",
            "fail/{label}?status=500",
            Again,
            "error: HTTP 500 Internal Server Error: the tool LABEL failed as it was told to",
        ),
        http("redirect", "redirect/{label}?to=/x", Once, "error: redirect to /x not followed (HTTP 302)"),
        written(
            LOST,
            http(
                "reset after sending",
                "reset/{label}",
                Again,
                "error: no answer: the connection was closed before an answer",
            ),
        ),
        written(
            LOST,
            http(
                "closed after sending",
                "close/{label}",
                Again,
                "error: no answer: the connection was closed before an answer",
            ),
        ),
        http("empty", "text/{label}?text=", Once, "(empty)"),
        http("binary", "binary/{label}", Once, "binary data, image/png, 10 bytes"),
        http(
            "huge",
            "bytes/{label}?n=9000",
            Once,
            "4096 bytes that end in xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… [cut: 4 KiB of 9000 bytes]",
        ),
        written(LATE_UNKNOWN, http("late: no answer in time", "hang/{label}", Once, LATE)),
        written(LATE_UNKNOWN, http("late: one byte now and then", "drip/{label}", Once, LATE)),
        command("exit code", "echo why >&2; exit 3", "error: exit code 3: why"),
        command("killed", "kill -9 $$", "error: killed by signal 9 (SIGKILL)"),
        command(
            "prints a megabyte",
            "head -c 1000000 /dev/zero | tr '\\0' x",
            "4096 bytes that end in xxxxxxxxxxxxxxxxxxxxxxxxxxx… [cut: 4 KiB of 1000000 bytes]",
        ),
        command("leaves a child with its output", &format!("sleep {} & echo fine", nap()), "fine\\n"),
        written(LATE_UNKNOWN, command("late: does not end", "exec sleep 30", LATE)),
        written(
            LATE_UNKNOWN,
            command("late: ignores SIGTERM", "trap '' TERM; while :; do sleep 1; done", LATE),
        ),
    ]
}

/// How long a call may take whose fault is this.
pub(super) fn deadline(fault: &str) -> Duration {
    if fault.starts_with("late") { Duration::from_secs(3) } else { Duration::ZERO }
}

/// How many faults and how many cells there are.
pub(super) fn size() -> (usize, usize) {
    let rows = rows().len();
    (rows, rows * EFFECTS.len() * MODES.len() * 2)
}

/// The configuration: each row three times, once for each effect.
fn config(rows: &[Row], lab: &Lab, closed: &str, folder: &Path) -> Value {
    let parameters = json!({ "type": "object", "properties": { "label": { "type": "string" } }, "required": ["label"], "additionalProperties": false });
    let mut tools = json!({ "save": { "effect": "write", "parameters": parameters, "http": { "method": "POST", "url": "LAB/tool/count/{label}" } } });
    for (n, row) in rows.iter().enumerate() {
        for effect in EFFECTS {
            let kind = if row.tool.get("argv").is_some() { "command" } else { "http" };
            let mut tool = json!({ "effect": effect, "parameters": parameters, kind: row.tool });
            if row.fault.starts_with("late") {
                tool["timeout"] = json!("3s");
            }
            tools[format!("t{n}_{effect}")] = tool;
        }
    }
    let plain = lab.url().replace("http://", "");
    let tools = tools.to_string().replace("CLOSED", closed).replace("PLAIN", &plain);
    // No name at all, so nobody is asked for it.
    let tools = tools.replace("NOBODY", &"x".repeat(64));
    let tools = tools.replace("FOLDER", &folder.display().to_string()).replace("LAB", &lab.url());
    let tools: Value = serde_json::from_str(&tools).expect("JSON as before");
    json!({
        "upstreams": { "main": { "base_url": lab.base_url() } },
        "routes": [{ "model": "*", "upstreams": ["main"] }],
        "limits": { "tool_result": "4KiB" },
        "tools": tools,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_tool_is_news_for_the_model() {
    let (lab, folder) = (Lab::start().await, tempfile::tempdir().expect("a folder"));
    let (closed, _held) = closed_port();
    let (rows, cells) = (rows(), Cells::default());
    let config = config(&rows, &lab, &closed.to_string(), folder.path());
    let stage = Stage::in_folder(lab, config, async |folder| {
        // Whose name leads inside has not thereby named an address of the inside.
        std::fs::write(folder.path().join("hosts"), "127.0.0.1 localhost inside.example\n").expect("written");
        Process::with_hosts(folder).await
    })
    .await;
    for (n, row) in rows.iter().enumerate() {
        let mut all = Vec::new();
        for (effect, name) in EFFECTS.iter().enumerate() {
            for mode in MODES {
                all.extend([false, true].map(|after| (format!("t{n}_{name}"), effect, mode, after)));
            }
        }
        let played = all.into_iter().map(async |(tool, effect, mode, after)| {
            let got = cell(&stage, folder.path(), &tool, mode, after).await;
            let wanted = (wanted(row, effect, after), deadline(row.fault));
            cells.note(row.fault, format!("{}, {}", EFFECTS[effect], column(mode, after)), wanted, got);
        });
        join_all(played).await;
        stage.calm(row.fault).await;
        // What it left behind is nobody's child, so the process does not know of it.
        soon(async {
            while runs_somewhere(&nap()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    stage.ends().await;
    cells.settle("tools", size().1);
}

/// What a cell is called by how the client asks and whether a tool wrote before.
pub(super) fn column(mode: Mode, after: bool) -> String {
    format!("{}, {}", mode.words(), if after { "after a write" } else { "first round" })
}

fn wanted(row: &Row, effect: usize, after: bool) -> String {
    let writes = EFFECTS[effect] == "write";
    let runs = match row.runs {
        Runs::Never => 0,
        Runs::Once => 1,
        Runs::Again => 1 + usize::from(!writes),
    };
    let told = row.written.filter(|_| writes).unwrap_or(row.told);
    line(told, runs, usize::from(after))
}

fn line(told: &str, runs: usize, saved: usize) -> String {
    format!("done, told `{told}`, ran {runs}, the other {saved}")
}

async fn cell(stage: &Stage, folder: &Path, tool: &str, mode: Mode, after: bool) -> (String, Took) {
    let label = format!("{tool}_{}{}", mode as usize, usize::from(after));
    let text = (mode == Mode::Begun).then_some("Hel");
    let call = |tool: &str, label: &str| json!([{ "name": tool, "arguments": { "label": label } }]);
    let other = format!("save_{label}");
    let mut rounds =
        vec![json!({ "reply": { "calls": call(tool, &label) } }), json!({ "reply": { "text": "done" } })];
    if after {
        rounds.insert(0, json!({ "reply": { "calls": call("save", &other) } }));
    }
    rounds[0]["reply"]["text"] = json!(text);
    stage.lab.script(&label, json!({ "rounds": rounds }));
    // The others would only make each question longer.
    let offered = format!("{tool},save");
    let headers = [("x-fanfold-tools", offered.as_str())];
    let (got, took) = timed(&stage.process, stage.ask(&label, mode != Mode::Whole, &headers)).await;
    let end = match fold::answer(&got) {
        Ok(Folded::Reply(reply)) if reply.text.ends_with("done") && reply.finish == "stop" => {
            "done".to_owned()
        }
        other => format!("{other:?}"),
    };
    let seen = stage.lab.journal();
    let started = |label: &str| seen.tools.get(label).map_or(0, |runs| runs.started);
    let noted = std::fs::read_to_string(folder.join(&label)).map_or(0, |text| text.lines().count());
    let runs = usize::try_from(started(&label)).expect("few") + noted;
    let bodies = seen.bodies(&label);
    let told = bodies.last().and_then(|body| body["messages"].as_array()?.last()?["content"].as_str());
    let mut told = told.unwrap_or("nothing").replace(&label, "LABEL");
    if told.len() > 300 {
        told = format!("{} bytes that end in {}", told.len(), &told[told.len() - 60..]);
    }
    // A busy machine may be late by a second.
    told = told.replace('\n', "\\n").replace("after 4s", "after 3s");
    let line = line(&told, runs, usize::try_from(started(&other)).expect("few"));
    (if end == "done" { line } else { line.replacen("done", &end, 1) }, took)
}

//! README.md says what is so: its examples are run, its tables are compared with the program.
//!
//! The examples in Python and JavaScript are run by the suites in `tests/clients`, against the same
//! demo. `curl`, `jq` and `python3` have to be there.

#![expect(clippy::unwrap_used, reason = "a README that cannot be followed has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::CommandFactory;
use fanfold::audit::{self, Audit};
use fanfold::cli::Cli;
use fanfold::config::file::File;
use fanfold::policy::parallel::{Facts, decide};
use fanfold::policy::settings::StrictParallel;
use fanfold::telemetry::metrics::{Kind, TABLE};
use fanfold::telemetry::redact::{MEMBERS, PATTERNS};
use fanfold::wire::tool::{Effect, Outcome, OutcomeKind};
use serde_json::Value;
use support::demo::Demo;

/// A fenced block.
struct Block {
    info: String,
    text: String,
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

fn blocks() -> Vec<Block> {
    let readme = readme();
    let (mut blocks, mut lines) = (Vec::new(), readme.lines());
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { info: info.to_owned(), text: text.join("\n") + "\n" });
        }
    }
    blocks
}

fn only(info: &str) -> String {
    let mut found: Vec<Block> = blocks().into_iter().filter(|block| block.info == info).collect();
    assert_eq!(found.len(), 1, "one block of {info}");
    found.remove(0).text
}

/// The rows of the table whose head begins like this, each as its cells.
fn table(head: &str) -> Vec<Vec<String>> {
    let readme = readme();
    let rows: Vec<Vec<String>> = readme
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "no table {head}");
    rows
}

/// What stands between backquotes in a text.
fn code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Runs a shell script; its output, if it succeeded.
fn shell(script: &str, folder: &Path) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_fanfold")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env("PATH", path)
        .env("OPENAI_API_KEY", "sk-of-the-readme")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What bars of a drawing are made of, and what only they have in them.
const BARS: [char; 5] = ['·', '░', '▒', '█', '-'];
const BAR: &str = "··";

/// A line of a drawing or report without its bars, times and factors.
fn timed(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let steady = words.iter().enumerate().map(|(i, word)| {
        let unit = words.get(i + 1).is_some_and(|next| next.trim_end_matches(',') == "s");
        let factor = word.strip_prefix('×').is_some_and(|factor| factor.contains('.'));
        match *word {
            _ if (unit && word.parse::<f64>().is_ok()) || factor => "…",
            _ if word.chars().count() > 20 && word.chars().all(|c| BARS.contains(&c)) => "▒",
            word => word,
        }
    });
    steady.collect::<Vec<_>>().join(" ")
}

/// A text with everything taken out that differs from run to run: ids, dates, times.
fn lasting(text: &str) -> String {
    let steady = |line: &str| {
        let line = line.trim_end();
        let (name, _) = line.split_once(": ").unwrap_or((line, ""));
        match name {
            "x-request-id" | "date" => return format!("{name}: …"),
            "server-timing" => {
                let parts = line.split(',').map(|part| part.split_once("dur=").unwrap_or((part, "")).0);
                return parts.collect::<Vec<_>>().join("dur=…,");
            }
            _ => {}
        }
        if line.contains(" s, ") || line.contains(" s  ") || line.ends_with(" s") || line.contains(BAR) {
            return timed(line);
        }
        if !line.ends_with(" ms") {
            return line.to_owned();
        }
        let words = line.split(' ').map(|word| if word.parse::<f64>().is_ok() { "…" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    text.trim_end().lines().map(steady).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_block_is_of_a_kind_that_a_test_runs() {
    let kinds = [
        "sh start",
        "sh demo",
        "sh commands",
        "sh openapi",
        "python",
        "js",
        "yaml config",
        "yaml servers",
        "yaml openapi",
        "yaml routes",
        "yaml sandbox",
        "yaml teams",
        "yaml replicas",
        "yaml traces",
        "yaml redact",
        "sh bench",
        "sh measure",
        "text drawing",
        "text patterns",
        "json record",
        "sh audit",
    ];
    for (i, block) in blocks().iter().enumerate() {
        let is_output = block.info.ends_with(" output");
        let before = i.checked_sub(1).map(|i| blocks()[i].info.clone()).unwrap_or_default();
        let follows = ["sh demo", "sh openapi", "python", "js"].contains(&&*before);
        assert!(kinds.contains(&&*block.info) || (is_output && follows), "{} after {before}", block.info);
    }
}

#[test]
fn the_commands_to_start_with_are_there() {
    let text = only("sh start");
    let commands: Vec<&str> =
        text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect();
    assert_eq!(commands, ["cargo run --release -- demo", "tests/run"]);
    assert!(Cli::command().try_get_matches_from(["fanfold", "demo"]).is_ok());
    use std::os::unix::fs::PermissionsExt;
    let run = fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run")).unwrap();
    assert_ne!(run.permissions().mode() & 0o111, 0, "it can be run");
}

#[test]
fn what_is_asked_of_the_demo_answers_as_shown() {
    let demo = Demo::start(env!("CARGO_BIN_EXE_fanfold"));
    let folder = tempfile::tempdir().unwrap();
    let blocks = blocks();
    let mut asked = 0;
    for pair in blocks.windows(2).filter(|pair| pair[0].info == "sh demo") {
        let [script, shown] = pair else { continue };
        let here = script
            .text
            .replace("http://127.0.0.1:4100", &demo.proxy)
            .replace("http://127.0.0.1:4101", &demo.admin);
        assert_ne!(here, script.text, "it asks the demo: {here}");
        let got = shell(&here, folder.path());
        assert_eq!(lasting(&got), lasting(&shown.text), "\n{}\ngave\n{got}", script.text);
        asked += 1;
    }
    assert_eq!(asked, blocks.iter().filter(|block| block.info == "sh demo").count());
    assert!(asked >= 5, "{asked} examples");
}

#[test]
fn the_command_lines_work_in_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = shell(&only("sh commands"), folder.path());
    for said in ["fanfold.yaml is fine", "call_timeout: 30s", "\"count_words\"", "\n3\n", "keys: [{ sha256: "]
    {
        assert!(out.contains(said), "{said}:\n{out}");
    }
}

#[test]
fn every_command_is_in_the_table() {
    let table: BTreeSet<String> = table("| command |")
        .iter()
        .map(|row| code(&row[0])[0].trim_start_matches("fanfold ").to_owned())
        .collect();
    let there: BTreeSet<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
    assert_eq!(table, there);
}

#[test]
fn the_configuration_has_every_part_and_serves() {
    let text = only("yaml config");
    let written: Value = serde_saphyr::from_str(&text).unwrap();
    let written: BTreeSet<&String> = written.as_object().unwrap().keys().collect();
    let schema = serde_json::to_value(schemars::schema_for!(File)).unwrap();
    let there: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert_eq!(written, there);

    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(folder.path().join("fanfold.yaml"), text).unwrap();
    let serve = "export NOTES_TOKEN=t; fanfold check >/dev/null 2>warnings; test ! -s warnings
        fanfold serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 2>log & pid=$!
        for i in $(seq 200); do grep -q 'fanfold serves' log && break; sleep 0.05; done
        admin=$(grep -o '\"admin\":\"http://[^\"]*' log | cut -c10-)
        curl -s $admin/readyz; kill -KILL $pid; wait $pid || true; cat log";
    let out = shell(serve, folder.path());
    assert!(out.starts_with("ok\n") && out.contains("https://127.0.0.1:"), "{out}");
}

#[test]
fn the_teams_are_settings_without_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    fs::write(folder.path().join("fanfold.yaml"), upstream.to_owned() + &only("yaml teams")).unwrap();
    let out = shell("fanfold check 2>warnings; test ! -s warnings", folder.path());
    assert!(out.contains("blue") && out.contains("batch"), "{out}");
}

#[test]
fn the_traces_are_settings_without_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    fs::write(folder.path().join("fanfold.yaml"), upstream.to_owned() + &only("yaml traces")).unwrap();
    let out = shell("fanfold check 2>warnings; cat warnings", folder.path());
    assert!(out.contains("fanfold.yaml is fine") && !out.contains("warning"), "{out}");
}

#[test]
fn what_is_redacted_is_what_the_program_looks_for() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    fs::write(folder.path().join("fanfold.yaml"), upstream.to_owned() + &only("yaml redact")).unwrap();
    let out = shell("fanfold check 2>warnings; cat warnings", folder.path());
    assert!(out.contains("fanfold.yaml is fine") && !out.contains("warning"), "{out}");
    let names: Vec<String> = MEMBERS.iter().map(|name| format!("`{name}`")).collect();
    let said = readme().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains(&format!("looked for anyway: {}", names.join(", "))));
    let patterns: String = PATTERNS.iter().map(|(what, pattern)| format!("{what}:\n  {pattern}\n")).collect();
    assert_eq!(only("text patterns"), patterns);
    let most = fanfold::telemetry::redact::MOST;
    assert!(said.contains(&format!("Up to {most} names and {most} patterns")));
}

#[test]
fn what_telemetry_costs_is_measured_for_every_scenario_with_the_command_that_is_told() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/src/telemetry.rs");
    let source = fs::read_to_string(source).unwrap();
    let rows = table("| what is on |");
    // But for what all is compared with.
    let levels = source.split_once("const LEVELS: [(&str, &str); ").unwrap().1.split(']').next().unwrap();
    assert_eq!(rows.len(), levels.parse::<usize>().unwrap() - 1);
    for cell in rows.iter().flat_map(|row| &row[1..]) {
        let ratio: f64 = cell.parse().unwrap();
        assert!((0.5..3.0).contains(&ratio), "{cell}");
    }
    assert!(only("sh bench") == "tests/bench/run telemetry\n" && source.contains("pub async fn part"));
}

#[test]
fn what_requests_cost_is_measured_for_every_scenario_with_the_command_that_is_told() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(here.join("tests/bench/src/chat.rs")).unwrap();
    let told: Vec<[String; 2]> =
        table("| request |").into_iter().map(|row| [row[0].clone(), row[1].clone()]).collect();
    let mut wanted = Vec::new();
    for line in source.lines().filter_map(|line| line.trim().strip_prefix("scenario(\"")) {
        let name = line.split('"').next().unwrap();
        let connections = line.split("&[").nth(1).unwrap().split(']').next().unwrap();
        wanted.extend(connections.split(", ").map(|n| [name.to_owned(), n.to_owned()]));
    }
    assert!(wanted.len() > 10);
    assert_eq!(told, wanted);
    assert_eq!(only("sh measure"), "tests/bench/run\n");
    use std::os::unix::fs::PermissionsExt;
    assert!(fs::metadata(here.join("tests/bench/run")).unwrap().permissions().mode() & 0o100 != 0);
}

#[test]
fn the_tool_servers_are_settings_without_a_mistake() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    let teams = "teams: { blue: { keys: [{ sha256: \"09ae21604639c21cb5572b30566c73337f4552990b5611966ba0059e4a11c739\" }] } }\n";
    let text = [upstream, teams, &only("yaml servers")].concat();
    fs::write(folder.path().join("fanfold.yaml"), text).unwrap();
    let uvx = folder.path().join("uvx");
    fs::write(&uvx, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&uvx, fs::Permissions::from_mode(0o755)).unwrap();
    let out = shell(
        "export TICKETS_TOKEN=t CRM_TOKEN=t CRM_TOKEN_BLUE=t PATH=.:$PWD:$PATH; fanfold check",
        folder.path(),
    );
    assert!(out.contains("clock__*") && out.contains("https://mcp.example/mcp"), "{out}");
}

#[test]
fn a_document_becomes_the_tools_that_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    fs::write(folder.path().join("fanfold.yaml"), upstream.to_owned() + &only("yaml openapi")).unwrap();
    let document = "{ openapi: 3.1.0, paths: {
        '/invoices/{id}': { get: { operationId: getInvoice, parameters: [{ name: id, in: path, required: true, schema: { type: string } }] } },
        /invoices: { post: { operationId: postInvoice } },
        /invoices/search: { post: { operationId: searchInvoices, requestBody: { content: { application/json: {
            schema: { type: object, properties: { customer: { type: string } } } } } } } },
        /invoices/scan: { post: { operationId: getScan, requestBody: { required: true, content: { multipart/form-data: {} } } } } } }";
    fs::write(folder.path().join("billing.yaml"), document).unwrap();
    let blocks = blocks();
    let pair = blocks.windows(2).find(|pair| pair[0].info == "sh openapi").unwrap();
    let commands = format!(
        "export BILLING_TOKEN=t\n{}",
        pair[0].text.replace("fanfold check", "fanfold check >checked")
    );
    assert_eq!(lasting(&shell(&commands, folder.path())), lasting(&pair[1].text));
    let checked = fs::read_to_string(folder.path().join("checked")).unwrap();
    assert!(checked.contains("billing  getScan (#/paths/~1invoices~1scan/post): not a tool: "), "{checked}");
}

#[test]
fn the_routes_are_settings_without_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("fanfold.yaml"), only("yaml routes")).unwrap();
    let out = shell(
        "export KEY_1=a KEY_2=b AZURE_KEY=c BLUE_KEY=d; fanfold check 2>warnings; test ! -s warnings",
        folder.path(),
    );
    assert!(out.contains("-> west (3), east (1)") && out.contains("-> main as gpt-4.1-mini"), "{out}");
}

#[test]
fn every_setting_of_a_habit_is_one() {
    let schema = fanfold::config::schema();
    let known = &schema["$defs"]["Upstream"]["properties"];
    let rows = table("| habit |");
    for row in &rows {
        let setting = code(&row[1])[0].split_once(':').unwrap().0.to_owned();
        assert!(known[&setting]["description"].is_string(), "{setting}");
    }
    assert_eq!(rows.len(), 9);
}

#[test]
fn every_setting_of_a_shared_store_is_shown_with_its_default() {
    let folder = tempfile::tempdir().unwrap();
    let text = only("yaml replicas");
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    fs::write(folder.path().join("fanfold.yaml"), upstream.to_owned() + &text).unwrap();
    fs::write(folder.path().join("redis-ca.pem"), "x").unwrap();
    let out = shell("export REDIS_PASSWORD=secret; fanfold check; fanfold config print", folder.path());
    assert!(!out.contains("secret") && !out.contains("redis.example"), "{out}");

    let written: Value = serde_saphyr::from_str(&text).unwrap();
    let written = written["store"].as_object().unwrap();
    let schema = serde_json::to_value(schemars::schema_for!(File)).unwrap();
    let there = schema["$defs"]["SharedStore"]["properties"].as_object().unwrap();
    assert_eq!(written.keys().collect::<BTreeSet<_>>(), there.keys().collect::<BTreeSet<_>>());
    for (name, setting) in there {
        if let Some(default) = setting.get("default").filter(|default| !default.is_null()) {
            assert_eq!(&written[name], default, "{name}");
        }
    }
}

#[test]
fn the_records_of_the_audit_log_are_as_shown() {
    let names = |line: &str| -> Vec<String> {
        serde_json::from_str::<Value>(line).unwrap().as_object().unwrap().keys().cloned().collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    write_audit(&log);
    let written = fs::read_to_string(&log).unwrap();
    let shown = only("json record");
    for event in ["intent", "outcome"] {
        let of = |text: &str| text.lines().find(|line| line.contains(event)).map(names);
        assert_eq!(of(&shown), of(&written), "{event}");
    }
    let out = shell(&only("sh audit"), folder.path());
    assert!(out.contains("4 records are one chain, 2 intents and 1 outcomes"), "{out}");
    let lines: Vec<&str> = out.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(lines[0].contains("\"outcome\":\"error\"") && lines[1].contains("\"key\":\"k2\""), "{out}");
}

/// A log with a call that failed and one whose outcome is missing.
fn write_audit(log: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let settings = serde_json::from_value(serde_json::json!({ "file": log })).unwrap();
    let telemetry = fanfold::telemetry::Telemetry::new().unwrap();
    let audit = Audit::open(&settings, None, &telemetry).unwrap();
    let facts = |key: &str| audit::Facts {
        team: "blue".into(),
        request_id: "r".into(),
        call_id: "c".into(),
        key: key.into(),
        tool: "save_note".into(),
        effect: Effect::Write,
        arguments: "{}".into(),
    };
    runtime.block_on(async {
        let failed = Outcome::failed(OutcomeKind::Error, "no");
        audit.intent(facts("k1")).await.unwrap().ended(&failed).await;
        std::mem::forget(audit.intent(facts("k2")).await.unwrap());
        audit.flush().await;
    });
}

#[test]
fn the_command_and_the_server_in_a_sandbox_run() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let upstream = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }\n";
    let srv = folder.path().join("srv");
    let sandbox = only("yaml sandbox").replace("/srv", &srv.display().to_string());
    for part in ["words", "out", "notes"] {
        fs::create_dir_all(srv.join(part)).unwrap();
    }
    let serve = "#!/usr/bin/env python3\n".to_owned() + include_str!("support/rogue.py");
    fs::write(srv.join("notes/serve"), serve).unwrap();
    fs::set_permissions(srv.join("notes/serve"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("fanfold.yaml"), upstream.to_owned() + &sandbox).unwrap();
    let out = shell("fanfold check; fanfold call sort_lines '{\"text\": \"b\\na\"}'", folder.path());
    assert!(out.contains("sandboxes of this host") && out.trim_end().ends_with("a\nb"), "{out}");
    let out = shell("fanfold call notes__echo '{\"a\": \"behind a fence\"}'", folder.path());
    assert!(out.contains("behind a fence"), "{out}");
}

#[test]
fn limits_and_their_defaults_are_those_of_the_program() {
    let printed = shell("fanfold config print --defaults", tempfile::tempdir().unwrap().path());
    let printed: Value = serde_saphyr::from_str(&printed).unwrap();
    let said: BTreeMap<String, String> =
        table("| limit |").into_iter().map(|row| (code(&row[0])[0].clone(), row[1].clone())).collect();
    let mut there = BTreeMap::new();
    let upstream = &printed["upstreams"]["main"];
    let traces = serde_json::to_value(fanfold::telemetry::traces::settings::Settings::default()).unwrap();
    let parts = [
        ("limits", &printed["limits"]),
        ("runs", &printed["runs"]),
        ("server", &printed["server"]),
        ("traces", &traces),
        ("upstreams.NAME", upstream),
    ];
    for (part, values) in parts {
        for (name, value) in values.as_object().unwrap() {
            // A list, of names that are allowed, is no limit; nor is a switch.
            let limit = !value.is_array() && !value.is_boolean();
            if limit && (part != "upstreams.NAME" || name.ends_with("_timeout")) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                there.insert(format!("{part}.{name}"), value);
            }
        }
    }
    assert_eq!(said, there);
}

#[test]
fn metrics_are_those_of_the_program() {
    let said = table("| name |");
    let there: Vec<Vec<String>> = TABLE
        .iter()
        .map(|row| {
            let kind = match row.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            let labels: Vec<String> = row.labels.split_whitespace().map(|l| format!("`{l}`")).collect();
            vec![format!("`{}`", row.name), kind.into(), labels.join(", "), row.help.into()]
        })
        .collect();
    assert_eq!(said, there);
}

#[test]
fn the_rule_decides_as_its_table_says() {
    for row in table("| value |") {
        let rule = match &*code(&row[0])[0] {
            "serialize" => StrictParallel::Serialize,
            "auto" => StrictParallel::Auto,
            "reject" => StrictParallel::Reject,
            "off" => StrictParallel::Off,
            other => panic!("no such value: {other}"),
        };
        for (client, cell) in [None, Some(true), Some(false)].into_iter().zip(&row[1..]) {
            let facts = Facts {
                rule,
                any_tools: true,
                strict_tool: Some("t"),
                strict_is_clients: true,
                client,
                needs_rule: row[0].ends_with("needs it"),
                supported: true,
            };
            let decided = decide(&facts).map_or_else(|error| error.code, |decision| decision.to_string());
            assert_eq!(code(cell), [decided], "{} {client:?}", row[0]);
        }
    }
    assert_eq!(table("| value |").len(), 5);
}

/// Every `"code"` that follows a status in the source, as `status code`, tests aside.
fn codes_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes_in(&path, found);
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        let inside = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&path);
        let name = inside.to_string_lossy().into_owned();
        if name.contains("test") || name.contains("/demo/") || name.contains("/tools/") {
            continue;
        }
        for opening in ["ErrorReply::new(", " row(", "Self::new("] {
            for (at, _) in source.match_indices(opening) {
                let mut arguments = source[at + opening.len()..].split(',').map(str::trim);
                let status: Option<u16> = arguments.next().and_then(|word| word.parse().ok());
                let code = arguments.next().and_then(|word| word.strip_prefix('"')?.strip_suffix('"'));
                if let (Some(status), Some(code)) = (status, code) {
                    found.insert(format!("{status} {code}"));
                }
            }
        }
    }
}

#[test]
fn every_error_is_in_the_table_and_nothing_else() {
    let said: BTreeSet<String> = table("| status |")
        .iter()
        .flat_map(|row| code(&row[1]).into_iter().map(|code| format!("{} {code}", row[0])))
        .collect();
    let mut there = BTreeSet::new();
    codes_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut there);
    // Those whose status is no number beside the code in the source.
    for elsewhere in [
        "400 invalid_value",
        "400 incomplete_body",
        "400 invalid_host",
        "400 invalid_http",
        "405 method_not_allowed",
        "408 request_timeout",
        "413 request_too_large",
        "431 headers_too_large",
        "500 internal_error",
    ] {
        there.insert(elsewhere.into());
    }
    assert_eq!(said, there);
}

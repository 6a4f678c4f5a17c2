//! `fanfold tools`: the tools fanfold runs, as a model is told of them.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::check::word;
use super::servers::{Running, pin_files, team, up};
use super::{Exit, ServerFlags, loaded, out, runtime};
use crate::config::Loaded;
use crate::tools::text::tame;
use crate::tools::{Condition, NotOffered, Tool, pins, strict};
use crate::units::Span;

/// What `tools` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As JSON, with descriptions and parameters.
    #[arg(long)]
    json: bool,
    /// What this team has, and its own tool servers.
    #[arg(long, global = true)]
    team: Option<String>,
    #[command(flatten)]
    servers: ServerFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Accept the tools of servers with `pin: true` as they are now, and write that into the file of their pins.
    Accept {
        /// Only of these servers.
        server: Vec<String>,
    },
}

/// Prints the list; servers are started for it. 64 when something is wrong with the configuration, 1 when a server
/// is not up.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let read = loaded(path, &arguments.servers.flags())
        .and_then(|(loaded, catalog)| Ok((team(&loaded, arguments.team.as_deref())?, loaded, catalog)));
    let (team, loaded, catalog) = match read {
        Ok(read) => read,
        Err(exit) => return exit,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    let running = runtime.block_on(async {
        let running = Running::start(&loaded, &catalog, std::slice::from_ref(&team)).await;
        let digests = running.digests();
        running.stop().await;
        (running, digests)
    });
    let (running, digests) = running;
    if let Some(Command::Accept { server }) = &arguments.command {
        return accept(&loaded, &running, &digests, server);
    }
    running.complain();
    let exit = if running.standings.iter().all(up) { Exit::Fine } else { Exit::Failure };
    let tools = running.catalog.of_team(&team);
    if arguments.json {
        let all: Vec<Value> = tools
            .iter()
            .map(|tool| described(tool))
            .chain(tools.not_offered().iter().map(left_out))
            .collect();
        out::answer(&format!("{:#}\n", Value::Array(all)));
        return exit;
    }
    let offered = tools.iter().map(|tool| [row(tool), vec!["offered".into()]].concat());
    let blank = |name: String, kind: String, state: String| {
        vec![name, kind, "-".into(), "-".into(), "-".into(), state]
    };
    let left_out = tools.not_offered().iter().map(|tool| {
        blank(tame(&tool.name, 64), format!("mcp {}", tool.server), format!("not offered: {}", tool.why))
    });
    let down = running.standings.iter().filter(|standing| !up(standing)).map(|standing| {
        let why = match &standing.condition {
            Condition::Down(why) => format!("down: {why}"),
            Condition::Idle | Condition::Starting | Condition::Up { .. } => "not up in time".into(),
        };
        blank("?".into(), format!("mcp {}", standing.server), why)
    });
    let rows: Vec<Vec<String>> = offered.chain(left_out).chain(down).collect();
    match rows.is_empty() {
        true => out::report("there are no tools: add some under `tools:`\n"),
        false => {
            let head = ["name", "kind", "effect", "timeout", "strict", "state"].map(str::to_owned).to_vec();
            out::answer(&loaded.hide(&out::table(&[vec![head], rows].concat())));
        }
    }
    exit
}

/// Writes the digests of pinned servers into their files. What other servers have there stays.
fn accept(loaded: &Loaded, running: &Running, digests: &pins::All, only: &[String]) -> Exit {
    let files = pin_files(loaded);
    let unknown = only.iter().find(|name| !files.contains_key(name.as_str()));
    if let Some(name) = unknown {
        out::report(&format!("error: there is no server `{name}` with `pin: true`\n"));
        return Exit::Usage;
    }
    let mut exit = Exit::Fine;
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    for (server, file) in files.iter().filter(|(server, _)| wanted(server)) {
        let Some(tools) = digests.get(*server) else {
            let why = running.standings.iter().find(|standing| *standing.server == **server);
            let why = why.map(ToString::to_string).unwrap_or_default();
            out::report(&format!("error: nothing is accepted of `{server}`: the tool server {why}\n"));
            exit = Exit::Failure;
            continue;
        };
        let path = Path::new(file);
        let written = pins::read(path).and_then(|mut all| {
            all.insert((*server).to_owned(), tools.clone());
            pins::write(path, &all).map_err(|why| format!("the file {file} cannot be written: {why}"))
        });
        match written {
            Ok(()) => out::answer(&format!("accepted {} tools of {server} in {file}\n", tools.len())),
            Err(why) => {
                out::report(&format!("error: {why}\n"));
                exit = Exit::Failure;
            }
        }
    }
    if files.is_empty() {
        out::report("there is no server with `pin: true`\n");
    }
    exit
}

/// A tool that is not offered, as JSON.
fn left_out(tool: &NotOffered) -> Value {
    json!({
        "name": null,
        "kind": "mcp",
        "server": { "name": &*tool.server, "tool": &*tool.name },
        "state": "not offered",
        "because": tool.why.to_string(),
    })
}

/// Name, kind, effect, timeout, and whether it goes out strict.
pub(super) fn row(tool: &Tool) -> Vec<String> {
    let spec = tool.spec();
    vec![
        spec.name.to_string(),
        match tool.server().or_else(|| tool.document()) {
            None => tool.kind_name().into(),
            Some((owner, _)) => format!("{} {owner}", tool.kind_name()),
        },
        word(&spec.effect),
        Span(spec.timeout).to_string(),
        strictness(tool),
    ]
}

/// `strict`, or why not.
fn strictness(tool: &Tool) -> String {
    let faults = strict::check(&function(tool)["parameters"]);
    match (tool.spec().strict, faults.first()) {
        (true, _) => "strict".into(),
        (false, None) => "no, though its schema would fit".into(),
        (false, Some(fault)) => {
            let more = match faults.len() {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            format!("no: {}{more}", fault.message)
        }
    }
}

/// What a request says of the tool.
fn function(tool: &Tool) -> Value {
    let mut definition: Value = serde_json::from_str(&tool.spec().definition).unwrap_or_default();
    definition["function"].take()
}

fn described(tool: &Tool) -> Value {
    let spec = tool.spec();
    let function = function(tool);
    let faults: Vec<Value> = strict::check(&function["parameters"])
        .into_iter()
        .map(|fault| json!({ "path": fault.path, "message": fault.message }))
        .collect();
    json!({
        "name": &*spec.name,
        "kind": tool.kind_name(),
        "server": tool.server().map(|(server, name)| json!({ "name": server, "tool": name })),
        "document": tool.document().map(|(document, name)| json!({ "name": document, "operation": name })),
        "effect": spec.effect,
        "on_disconnect": spec.on_disconnect,
        "timeout": Span(spec.timeout),
        "state": "offered",
        "strict": spec.strict,
        "not_strict_because": faults,
        "description": function["description"],
        "parameters": function["parameters"],
    })
}

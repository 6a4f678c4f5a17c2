//! `fanfold tools`: the tools fanfold runs, as a model is told of them.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::check::word;
use super::servers::{Running, up};
use super::{Exit, ServerFlags, loaded, out, runtime};
use crate::tools::{Tool, strict};
use crate::units::Span;

/// What `tools` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As JSON, with descriptions and parameters.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    servers: ServerFlags,
}

/// Prints the list; servers are started for it. 64 when something is wrong with the configuration, 1 when a server
/// is not up.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let mut catalog = match loaded(path, &arguments.servers.flags()) {
        Ok((_, catalog)) => catalog,
        Err(exit) => return exit,
    };
    let mut exit = Exit::Fine;
    if catalog.servers() > 0 {
        let runtime = match runtime() {
            Ok(runtime) => runtime,
            Err(exit) => return exit,
        };
        let running = runtime.block_on(async {
            let running = Running::start(&catalog).await;
            running.stop().await;
            running
        });
        running.complain();
        if !running.standings.iter().all(up) {
            exit = Exit::Failure;
        }
        catalog = running.catalog;
    }
    if arguments.json {
        let all: Vec<Value> = catalog.iter().map(|tool| described(tool)).collect();
        out::answer(&format!("{:#}\n", Value::Array(all)));
        return exit;
    }
    let rows: Vec<Vec<String>> = catalog.iter().map(|tool| row(tool)).collect();
    match rows.is_empty() {
        true => out::report("there are no tools: add some under `tools:`\n"),
        false => {
            let head = ["name", "kind", "effect", "timeout", "strict"].map(str::to_owned).to_vec();
            out::answer(&out::table(&[vec![head], rows].concat()));
        }
    }
    exit
}

/// Name, kind, effect, timeout, and whether it goes out strict.
pub(super) fn row(tool: &Tool) -> Vec<String> {
    let spec = tool.spec();
    vec![
        spec.name.to_string(),
        match tool.server() {
            None => tool.kind_name().into(),
            Some((server, _)) => format!("{} {server}", tool.kind_name()),
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
        "effect": spec.effect,
        "on_disconnect": spec.on_disconnect,
        "timeout": Span(spec.timeout),
        "strict": spec.strict,
        "not_strict_because": faults,
        "description": function["description"],
        "parameters": function["parameters"],
    })
}

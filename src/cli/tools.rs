//! `fanfold tools`: the tools fanfold runs, as a model is told of them.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::check::word;
use super::{Exit, loaded, out};
use crate::config::Flags;
use crate::tools::{Tool, strict};
use crate::units::Span;

/// What `tools` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As JSON, with descriptions and parameters.
    #[arg(long)]
    json: bool,
}

/// Prints the list. 64 when something is wrong with the configuration.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let catalog = match loaded(path, &Flags { insecure_no_auth: true, ..Flags::default() }) {
        Ok((_, catalog)) => catalog,
        Err(exit) => return exit,
    };
    if arguments.json {
        let all: Vec<Value> = catalog.iter().map(|tool| described(tool)).collect();
        out::answer(&format!("{:#}\n", Value::Array(all)));
        return Exit::Fine;
    }
    let rows: Vec<Vec<String>> = catalog.iter().map(|tool| row(tool)).collect();
    match rows.is_empty() {
        true => out::report("there are no tools: add some under `tools:`\n"),
        false => {
            let head = ["name", "kind", "effect", "timeout", "strict"].map(str::to_owned).to_vec();
            out::answer(&out::table(&[vec![head], rows].concat()));
        }
    }
    Exit::Fine
}

/// Name, kind, effect, timeout, and whether it goes out strict.
pub(super) fn row(tool: &Tool) -> Vec<String> {
    let spec = tool.spec();
    vec![
        spec.name.to_string(),
        tool.kind_name().into(),
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
        "effect": spec.effect,
        "on_disconnect": spec.on_disconnect,
        "timeout": Span(spec.timeout),
        "strict": spec.strict,
        "not_strict_because": faults,
        "description": function["description"],
        "parameters": function["parameters"],
    })
}

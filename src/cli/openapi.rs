//! `fanfold config openapi`: an OpenAPI document, as the `tools:` of a configuration.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Exit, out};
use crate::config::print::yaml;
use crate::tools::openapi::{Operations, Unmapped, file, first_server, operations, tool_name};
use crate::tools::settings::{Http, Settings};
use crate::units::Secret;

/// What `config openapi` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The document, YAML or JSON.
    document: PathBuf,
    /// Where the API is. Default: the document's first server.
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
}

/// Prints `tools:`; what cannot be a tool is named in comments and on standard error. 1 when the document
/// cannot be read.
pub(super) fn run(arguments: &Arguments) -> Exit {
    match printed(arguments) {
        Ok(text) => {
            out::answer(&text);
            Exit::Fine
        }
        Err(why) => {
            out::report(&format!("error: {}: {why}\n", arguments.document.display()));
            Exit::Failure
        }
    }
}

fn printed(arguments: &Arguments) -> Result<String, String> {
    let document = file::read(&arguments.document)?;
    let base = Http { url: base_url(arguments, &document)?, ..plain()? };
    let mut found = operations(&document, &base, |_| true).map_err(|unfit| unfit.to_string())?;
    let mut tools: Map<String, Value> = Map::new();
    for (id, tool) in &found.mapped {
        let name = tool_name(id);
        if tools.contains_key(&name) {
            let why = format!("another operation has the name `{name}` already");
            found.unmapped.push(Unmapped { operation: id.clone(), at: "/paths".into(), why, partly: false });
            continue;
        }
        tools.insert(name, told(tool)?);
    }
    if tools.is_empty() {
        return Err(format!("no operation of it can be a tool\n{}", left_out(&found)));
    }
    let text = yaml(json!({ "tools": tools })).map_err(|problem| problem.message().to_owned())?;
    Ok(format!("{}{text}", left_out(&found)))
}

fn base_url(arguments: &Arguments, document: &Value) -> Result<String, String> {
    arguments.base_url.clone().or_else(|| first_server(document)).ok_or_else(|| {
        "say where the API is with --base-url https://…: the document names no whole address".into()
    })
}

/// The settings of an HTTP tool with every default.
fn plain() -> Result<Http, String> {
    serde_json::from_value(json!({ "url": "" })).map_err(|why| why.to_string())
}

/// A tool as it is written in a configuration. Its headers hold places and no secrets.
fn told(tool: &Settings) -> Result<Value, String> {
    let mut value = serde_json::to_value(tool).map_err(|why| why.to_string())?;
    let headers = tool.http.iter().flat_map(|http| &http.headers);
    for (name, header) in headers {
        if let Secret::Text(text) = header {
            value["http"]["headers"][name] = text.as_str().into();
        }
    }
    let (no, json) = (Value::Bool(false), Value::from("json"));
    for (part, name, default) in
        [("http", "follow_own_origin", &no), ("http", "body", &json), ("", "strict", &no)]
    {
        let of = if part.is_empty() { &mut value } else { &mut value[part] };
        if let Value::Object(map) = of
            && map.get(name) == Some(default)
        {
            map.shift_remove(name);
        }
    }
    Ok(value)
}

/// A comment for each operation, or part of one, that is not among the tools.
fn left_out(found: &Operations) -> String {
    found.unmapped.iter().map(|unmapped| format!("# {unmapped}\n")).collect()
}

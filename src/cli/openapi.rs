//! `fanfold config openapi`: an OpenAPI document, as the `tools:` of a configuration.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Exit, out};
use crate::config::print::yaml;
use crate::tools::openapi::{Operations, operations};
use crate::tools::settings::{Http, Settings};
use crate::units::Secret;

/// The largest document that is read, in bytes.
const LARGEST: u64 = 16 * 1024 * 1024;

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
    let document = read(&arguments.document)?;
    let base = Http { url: base_url(arguments, &document)?, ..plain()? };
    let found = operations(&document, &base)?;
    let tools: Map<String, Value> = found
        .mapped
        .iter()
        .map(|(name, tool)| Ok((name.clone(), told(tool)?)))
        .collect::<Result<_, String>>()?;
    if tools.is_empty() {
        return Err(format!("no operation of it can be a tool\n{}", left_out(&found)));
    }
    let text = yaml(&json!({ "tools": tools })).map_err(|problem| problem.message().to_owned())?;
    Ok(format!("{}{text}", left_out(&found)))
}

fn read(path: &Path) -> Result<Value, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|why| why.to_string())?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(|why| why.to_string())?;
    if text.len() as u64 > LARGEST {
        return Err("it is larger than 16MiB".into());
    }
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(&text).map_err(|why| why.to_string());
    }
    serde_saphyr::from_str(&text).map_err(|why| why.to_string())
}

fn base_url(arguments: &Arguments, document: &Value) -> Result<String, String> {
    let first = document.pointer("/servers/0/url").and_then(Value::as_str);
    let url = arguments.base_url.as_deref().or(first).unwrap_or_default();
    if !(url.starts_with("https://") || url.starts_with("http://")) || url.contains('{') {
        return Err(
            "say where the API is with --base-url https://…: the document names no whole address".into()
        );
    }
    Ok(url.to_owned())
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
    for (part, name) in [("http", "follow_own_origin"), ("", "strict")] {
        let of = if part.is_empty() { &mut value } else { &mut value[part] };
        if let Value::Object(map) = of
            && map.get(name) == Some(&Value::Bool(false))
        {
            map.shift_remove(name);
        }
    }
    Ok(value)
}

/// A comment for each operation, or part of one, that is not among the tools.
fn left_out(found: &Operations) -> String {
    let line = |u: &crate::tools::openapi::Unmapped| {
        let what = if u.partly { "without a part" } else { "not a tool" };
        format!(
            "# {}: {what}: {}\n",
            u.operation.replace(char::is_control, " "),
            u.why.replace(char::is_control, " ")
        )
    };
    found.unmapped.iter().map(line).collect()
}

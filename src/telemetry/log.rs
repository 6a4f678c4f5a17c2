//! Where log lines go: standard error, readable on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::json_lines::JsonLines;

/// The SDK of tool servers writes what they say into its lines, which may be what a person asked. What an operator
/// needs of it stands in lines of ours. HTTP/2's warns of every client that breaks its rules, so a flood of such
/// clients would be one of lines. A filter that names them gets theirs all the same.
const SILENT: [(&str, &str); 2] = [("rmcp", "rmcp=off"), ("h2", "h2=error")];

/// Starts logging. `level` is a filter as of `RUST_LOG`, which overrides it when set. A second call
/// changes nothing.
pub fn start(level: &str, json: Option<bool>) {
    let terminal = std::io::stderr().is_terminal();
    let silent = SILENT.iter().filter(|(name, _)| !level.contains(name)).map(|(_, filter)| *filter);
    let level = std::iter::once(level).chain(silent).collect::<Vec<_>>().join(",");
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = if json.unwrap_or(!terminal) {
        builder.event_format(JsonLines).finish().try_init()
    } else {
        builder.with_target(false).finish().try_init()
    };
    // A logger that is there already stays: tests and embedders may have their own.
    drop(started);
}

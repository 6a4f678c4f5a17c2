//! `fanfold serve`: the proxy, until a signal ends it.

use std::io::IsTerminal;
use std::path::Path;

use clap::Args;

use super::servers::up;
use super::{Exit, Overrides, loaded, out};
use crate::app::{App, Origin, Signals, StartError};
use crate::config::Loaded;
use crate::telemetry::log;
use crate::tools::{Catalog, Standing};
use crate::workers::{Threads, Workers};

/// So many tools are named.
const SHOWN: usize = 12;

#[derive(Debug, Clone, Default, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let flags = arguments.overrides.flags();
    let (loaded, catalog) = match loaded(path, &flags) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    out::report(&loaded.render_warnings(out::coloured()));
    let _log = log::start(&loaded.file.log.level, loaded.file.log.json);
    let origin = Origin { path: path.map(Path::to_owned), flags, watched: loaded.watched() };
    let (runtime, threads) = match threads() {
        Ok(threads) => threads,
        Err(exit) => return exit,
    };
    ended(runtime.block_on(serve(loaded, catalog, origin, threads.workers())))
}

async fn serve(
    loaded: Loaded,
    catalog: Catalog,
    origin: Origin,
    workers: &Workers,
) -> Result<(), StartError> {
    let signals = Signals::register(Some(&origin)).await?;
    let tool_servers = catalog.servers();
    let app = App::start(&loaded, catalog, workers).await?;
    let offered = app.tools();
    let tools = offered.iter().count();
    let scheme = if loaded.file.tls.is_some() { "https" } else { "http" };
    let base_url = format!("{scheme}://{}/v1", app.proxy_address);
    let admin = format!("http://{}", app.admin_address);
    if std::io::stderr().is_terminal() {
        let names: Vec<&str> = offered.iter().map(|tool| &*tool.spec().name).collect();
        out::report(&banner(&loaded, &base_url, &admin, &names, &app.standings()));
    }
    tracing::info!(
        base_url,
        admin,
        config = loaded.name(),
        upstreams = loaded.file.upstreams.len(),
        tools,
        tool_servers,
        teams = loaded.file.teams.len(),
        "fanfold serves"
    );
    app.run(signals, Some(origin)).await;
    Ok(())
}

/// What somebody at a terminal wants to know first. Mistakes and warnings of the file stand above it.
fn banner(loaded: &Loaded, base_url: &str, admin: &str, tools: &[&str], servers: &[Standing]) -> String {
    let mut rows = vec![
        ["base URL".to_owned(), base_url.to_owned()],
        ["inspector".into(), format!("{admin}/")],
        ["metrics".into(), format!("{admin}/metrics")],
        ["config".into(), loaded.name().to_owned()],
    ];
    let shown = tools.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    rows.push([
        "tools".into(),
        match tools.len() {
            0 => "none: chats are relayed".into(),
            more if more > SHOWN => format!("{shown} and {} more", more - SHOWN),
            _ => shown,
        },
    ]);
    let keys = if loaded.file.teams.is_empty() {
        "no keys: loopback only".into()
    } else {
        loaded.file.teams.keys().cloned().collect::<Vec<_>>().join(", ")
    };
    rows.push(["teams".into(), keys]);
    for server in servers.iter().filter(|server| !up(server)) {
        rows.push(["warning".into(), loaded.hide(&format!("the tool server {server}"))]);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    format!("fanfold {}\n\n{}\n", env!("CARGO_PKG_VERSION"), out::table(&rows))
}

/// What runs a process that serves: who serves connections, and the runtime of everything else.
pub(super) fn threads() -> Result<(tokio::runtime::Runtime, Threads), Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime
        .and_then(|runtime| {
            let threads = Threads::for_this_machine(runtime.handle())?;
            Ok((runtime, threads))
        })
        .map_err(|why| {
            out::report(&format!("fanfold cannot start: {why}\n"));
            Exit::Failure
        })
}

/// Says why it did not start, if it did not.
pub(super) fn ended(result: Result<(), StartError>) -> Exit {
    match result {
        Ok(()) => Exit::Fine,
        Err(error) => {
            out::report(&format!("fanfold cannot start: {error}\n"));
            match error {
                StartError::Clash(_) => Exit::BadConfig,
                StartError::Bind(_)
                | StartError::Upstream { .. }
                | StartError::Store { .. }
                | StartError::ToolServer { .. }
                | StartError::Audit(_)
                | StartError::Redact(_)
                | StartError::Traces(_)
                | StartError::System(_) => Exit::Failure,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, read_text};
    use crate::tools::Condition;

    #[test]
    fn the_banner_begins_with_the_base_url_and_names_what_is_wrong_with_its_cause() {
        let text = "upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }";
        let loaded = read_text("fanfold.yaml", text, &|_| None, &Flags::default()).finish().unwrap();
        let standing = |server: &str, condition| Standing {
            server: server.into(),
            team: None,
            place: "x".into(),
            required: false,
            condition,
        };
        let servers = [
            standing("clock", Condition::Down("no such program".into())),
            standing("fine", Condition::Up { tools: 1, revision: "r".into() }),
        ];
        let banner =
            banner(&loaded, "http://127.0.0.1:4100/v1", "http://127.0.0.1:4101", &["a", "b"], &servers);
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            banner,
            format!(
                "fanfold {version}\n\n  base URL   http://127.0.0.1:4100/v1\n  inspector  http://127.0.0.1:4101/\n  metrics    http://127.0.0.1:4101/metrics\n  config     fanfold.yaml\n  tools      a, b\n  teams      no keys: loopback only\n  warning    the tool server clock is down: no such program\n\n"
            )
        );
    }
}

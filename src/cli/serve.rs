//! `fanfold serve`: the proxy, until a signal ends it.

use std::path::Path;

use clap::Args;

use super::{Exit, Overrides, loaded, out};
use crate::app::{App, Origin, Signals, StartError};
use crate::config::Loaded;
use crate::telemetry::log;
use crate::tools::Catalog;

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
    log::start(&loaded.file.log.level, loaded.file.log.json);
    let origin = Origin { path: path.map(Path::to_owned), flags, watched: loaded.watched() };
    let runtime = match multi_thread() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    ended(runtime.block_on(serve(loaded, catalog, origin)))
}

async fn serve(loaded: Loaded, catalog: Catalog, origin: Origin) -> Result<(), StartError> {
    let signals = Signals::register(Some(&origin)).await?;
    let (tools, tool_servers) = (catalog.iter().count(), catalog.servers());
    let app = App::start(&loaded, catalog).await?;
    let scheme = if loaded.file.tls.is_some() { "https" } else { "http" };
    tracing::info!(
        base_url = format!("{scheme}://{}/v1", app.proxy_address),
        admin = format!("http://{}", app.admin_address),
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

/// The runtime of a process that serves.
pub(super) fn multi_thread() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|why| {
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
            Exit::Failure
        }
    }
}

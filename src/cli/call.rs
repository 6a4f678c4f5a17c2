//! `fanfold call TOOL JSON`: runs a tool once, as a model would.
//!
//! The result goes to standard output as the model would read it, how it went to standard error.
//! An interrupt stops the call as a client that leaves would.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::check::word;
use super::servers::{Running, team};
use super::{Exit, ServerFlags, loaded, out, runtime};
use crate::config::did_you_mean;
use crate::tools::{Call, Catalog, Progress, Tool, Tries};
use crate::wire::tool::{Outcome, OutcomeKind};

/// How long processes of an ended call are waited for.
const REAPING: Duration = Duration::from_secs(5);

/// What `call` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The tool's name.
    tool: String,
    /// The arguments, as JSON.
    #[arg(default_value = "{}")]
    json: String,
    /// With the tool servers of this team.
    #[arg(long)]
    team: Option<String>,
    #[command(flatten)]
    servers: ServerFlags,
}

/// 0 when the tool answered, 1 when the outcome is anything else or its server is down, 2 for a tool that is not there.
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
    let done = runtime.block_on(async {
        // A tool of the file needs no server.
        let running = match catalog.tool(&arguments.tool) {
            Some(_) => None,
            None => Some(Running::start(&loaded, &catalog, std::slice::from_ref(&team)).await),
        };
        let offered = running.as_ref().map(|running| running.catalog.of_team(&team));
        let catalog = offered.as_ref().unwrap_or(&catalog);
        let done = match catalog.tool(&arguments.tool) {
            Some(tool) => Ok(called(tool, &arguments.json).await),
            None => Err(missing(running.as_ref(), catalog, &arguments.tool)),
        };
        let _reaped = timeout(REAPING, catalog.settled()).await;
        if let Some(running) = &running {
            running.stop().await;
        }
        done
    });
    let (outcome, took) = match done {
        Ok(done) => done,
        Err(exit) => return exit,
    };
    out::answer(&format!("{}\n", outcome.content));
    out::report(&format!("{} in {}ms\n", word(&outcome.kind), took.as_millis()));
    match outcome.kind {
        OutcomeKind::Ok => Exit::Fine,
        OutcomeKind::Error
        | OutcomeKind::Timeout
        | OutcomeKind::InvalidArguments
        | OutcomeKind::Denied
        | OutcomeKind::Stopped => Exit::Failure,
    }
}

async fn called(tool: &Tool, json: &str) -> (Outcome, Duration) {
    let start = Instant::now();
    let call = Call {
        arguments: json.into(),
        idempotency_key: Uuid::now_v7().to_string(),
        request_id: Uuid::now_v7().to_string(),
        trace: None,
        result_limit: tool.result_limit(),
        deadline: start + tool.spec().timeout,
        progress: Progress::new(tool.spec().patience(None), Arc::default()),
        tries: Tries::default(),
    };
    let stop = CancellationToken::new();
    let running = tool.run(&call, &stop);
    tokio::pin!(running);
    let outcome = tokio::select! {
        outcome = &mut running => outcome,
        Ok(()) = tokio::signal::ctrl_c() => {
            stop.cancel();
            running.await
        }
    };
    (outcome, start.elapsed())
}

/// A tool that is not there may be one of a server that is down: that is nothing the caller did wrong.
fn missing(running: Option<&Running>, catalog: &Catalog, name: &str) -> Exit {
    let Some(running) = running else { return unknown(catalog, name) };
    let missed = running.missed(name);
    if missed.is_empty() {
        running.complain();
        return unknown(catalog, name);
    }
    for standing in missed {
        out::report(&format!("error: `{name}` cannot be called: the tool server {standing}\n"));
    }
    Exit::Failure
}

fn unknown(catalog: &Catalog, name: &str) -> Exit {
    let known: Vec<&str> = catalog.iter().map(|tool| &*tool.spec().name).collect();
    let question = did_you_mean(name, known.iter().copied());
    let more = question.unwrap_or_else(|| match known.is_empty() {
        true => "there are no tools: add some under `tools:`".into(),
        false => format!("there are {}", known.join(", ")),
    });
    out::report(&format!("error: there is no tool `{name}`: {more}\n"));
    Exit::Usage
}

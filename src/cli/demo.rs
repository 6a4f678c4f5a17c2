//! `fanfold demo`: the real proxy before a scripted model server and a few tools.

use clap::Args;

use super::serve::{ended, threads};
use super::{Exit, Overrides, out, refuse};
use crate::app::{App, Signals, StartError};
use crate::config::{Flags, process_env, read_text};
use crate::demo;
use crate::telemetry::log;
use crate::workers::Workers;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let _log = log::start("warn,fanfold=info", None);
    let flags = arguments.overrides.flags();
    let (runtime, threads) = match threads() {
        Ok(threads) => threads,
        Err(exit) => return exit,
    };
    runtime.block_on(serve(flags, threads.workers()))
}

async fn serve(flags: Flags, workers: &Workers) -> Exit {
    let signals = match Signals::register(None).await {
        Ok(signals) => signals,
        Err(error) => return ended(Err(error)),
    };
    let demo = match demo::start().await {
        Ok(demo) => demo,
        Err(why) => {
            return ended(Err(StartError::System(format!("the demo's servers cannot listen: {why}"))));
        }
    };
    let text = demo::config_yaml(&demo.addresses);
    let (loaded, catalog) = match read_text("the demo", &text, &process_env, &flags).finish_with_tools() {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(&problems),
    };
    let app = match App::start(&loaded, catalog, workers).await {
        Ok(app) => app,
        Err(error) => return ended(Err(error)),
    };
    out::answer(&banner(&app));
    app.run(signals, None).await;
    demo.stop().await;
    Exit::Fine
}

fn banner(app: &App) -> String {
    let (proxy, admin) = (app.proxy_address, app.admin_address);
    format!(
        r#"fanfold demo: the real proxy, a scripted model, four tools. No key, no network.

  base URL   http://{proxy}/v1
  inspector  http://{admin}/
  metrics    http://{admin}/metrics

Three parallel tool calls, streaming:

  curl -N http://{proxy}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "demo", "stream": true,
    "messages": [{{"role": "user", "content": "What is the weather in Paris, Tokyo and Lima?"}}]}}'

The same as one JSON, with what ran and when:

  curl -s http://{proxy}/v1/chat/completions -H 'content-type: application/json' \
    -H 'x-fanfold-include: transcript' -d '{{
    "model": "demo",
    "messages": [{{"role": "user", "content": "What is the weather in Paris, Tokyo and Lima?"}}]}}'

Or in another terminal: fanfold ask "What is the weather in Paris, Tokyo and Lima?"

Ctrl-C ends it.
"#
    )
}

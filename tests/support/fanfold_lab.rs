//! The lab as a process: a scripted upstream and tool server for test suites in any language.
//!
//! `fanfold-lab [PORT]` serves on that loopback port (a free one without it), with every script of
//! the library registered, prints its URL on one line, and ends on SIGTERM or SIGINT.

#[path = "mod.rs"]
mod support;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let port = std::env::args().nth(1).map_or(Ok(0), |text| text.parse());
    let Ok(port) = port else { return fail("usage: fanfold-lab [PORT]") };
    let lab = match support::lab::Lab::on(port).await {
        Ok(lab) => lab,
        Err(error) => return fail(&format!("cannot listen on port {port}: {error}")),
    };
    for (name, script) in support::scripts::all() {
        lab.script(&name, script);
    }
    say(&lab.url());
    let Ok(mut term) = signal(SignalKind::terminate()) else { return fail("no signals here") };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    lab.stop().await;
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "the URL is what the program has to say")]
fn say(url: &str) {
    println!("{url}");
}

#[expect(clippy::print_stderr, reason = "a program says why it failed")]
fn fail(why: &str) -> ExitCode {
    eprintln!("fanfold-lab: {why}");
    ExitCode::FAILURE
}

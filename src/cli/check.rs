//! `fanfold check`: everything that is wrong with the configuration, or what it amounts to.

use std::path::Path;

use clap::Args;

use super::tools::row;
use super::{Exit, Overrides, loaded, online, out};
use crate::config::{Loaded, process_env};
use crate::telemetry::traces::{Resolved, resolve};
use crate::tools::sandbox::Host;
use crate::tools::settings::Sandbox;
use crate::tools::{Catalog, Remark};
use crate::units::Secret;
use crate::upstream::settings::{Route, Target};

/// What `check` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
    /// Ask every upstream for its models: is it there, and does it take the key? Start every tool server, too.
    #[arg(long)]
    online: bool,
}

/// 0 when nothing is wrong, 64 when something is, 1 when an upstream does not answer as it should.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    match loaded(path, &arguments.overrides.flags()) {
        Err(exit) => exit,
        Ok((loaded, catalog)) => {
            out::report(&loaded.render_warnings(out::coloured()));
            out::answer(&summary(&loaded, &catalog));
            if arguments.online { online::run(&loaded, &catalog) } else { Exit::Fine }
        }
    }
}

/// Where traces go, and which.
fn traces(loaded: &Loaded) -> Vec<Vec<String>> {
    let Some(settings) = &loaded.file.traces else { return Vec::new() };
    // Mistakes were told when it was read.
    let resolved = resolve(settings, &process_env, &|_| Ok("secret".into())).ok().flatten();
    let row = |to: Resolved| {
        let part = format!("{} of the turns", to.sampling.ratio);
        let which = if to.sampling.heeds_client { format!("as the client says, else {part}") } else { part };
        let content = if settings.content { "with content" } else { "without content" };
        vec![to.url.to_string(), which, content.to_owned()]
    };
    resolved.map(row).into_iter().collect()
}

/// What the configuration amounts to.
fn summary(loaded: &Loaded, catalog: &Catalog) -> String {
    let file = &loaded.file;
    let mut text = format!("{} is fine\n", loaded.name());
    let mut part = |title: &str, rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            text.push_str(&format!("\n{title}\n{}", loaded.hide(&out::table(&rows))));
        }
    };
    let scheme = if file.tls.is_some() { "https" } else { "http" };
    part(
        "listen",
        vec![
            vec!["proxy".into(), format!("{scheme}://{}/v1", file.listen)],
            vec!["admin".into(), format!("http://{}", file.admin.listen)],
        ],
    );
    part("upstreams", upstreams(loaded));
    part("routes", file.routes.iter().map(route).collect());
    part("teams", teams(loaded));
    part("traces", traces(loaded));
    part("tool servers", servers(loaded));
    part("tools", catalog.iter().map(|tool| row(tool)).collect());
    let starts_something = |tool: &crate::tools::settings::Settings| {
        tool.command.is_some() || tool.mcp.as_ref().is_some_and(|mcp| mcp.command.is_some())
    };
    if file.tools.values().any(starts_something) {
        part("sandboxes of this host", sandboxes());
    }
    let remark = |remark: &Remark| vec![remark.entry.to_string(), remark.unmapped.to_string()];
    part("left out of OpenAPI documents", catalog.remarks().iter().map(remark).collect());
    text
}

fn sandboxes() -> Vec<Vec<String>> {
    let host = Host::default();
    let files = host.landlock(true).map(|()| "fences files");
    let landlock = host.landlock(false).map(|()| "fences files and TCP").or(files);
    let bwrap = host.bwrap().map(|_| "fences files, network and processes");
    let row = |name: &str, can: Result<&str, String>| {
        vec![name.to_owned(), can.map_or_else(|why| format!("no: {why}"), str::to_owned)]
    };
    vec![row("landlock", landlock), row("bwrap", bwrap)]
}

/// A route: the model, then its upstreams, with their shares and the model's name there.
fn route(route: &Route) -> Vec<String> {
    let target = |target: &Target| {
        let mut text = target.name().to_owned();
        if let Some(weight) = target.weight() {
            text.push_str(&format!(" ({weight})"));
        }
        if let Some(model) = target.model().or(route.upstream_model.as_deref()) {
            text.push_str(&format!(" as {model}"));
        }
        text
    };
    let targets: Vec<String> = route.upstreams.iter().map(target).collect();
    vec![route.model.clone(), format!("-> {}", targets.join(", "))]
}

fn upstreams(loaded: &Loaded) -> Vec<Vec<String>> {
    let key = |upstream: &crate::upstream::settings::Settings| {
        let mut keys = upstream.keys();
        match (keys.next(), keys.count()) {
            (None, _) => "no key".to_owned(),
            (Some(Secret::Text(_)), 0) => "key from the configuration".into(),
            (Some(Secret::Env { env }), 0) => format!("key from ${env}"),
            (Some(Secret::File { file }), 0) => format!("key from {file}"),
            (Some(_), more) => format!("{} keys", more + 1),
        }
    };
    let row = |(name, upstream): (&String, &crate::upstream::settings::Settings)| {
        vec![name.clone(), upstream.base_url.clone(), word(&upstream.kind), key(upstream)]
    };
    loaded.file.upstreams.iter().map(row).collect()
}

/// Servers: their tools are known only once they run.
fn servers(loaded: &Loaded) -> Vec<Vec<String>> {
    let row = |(name, tool): (&String, &crate::tools::settings::Settings)| {
        let mcp = tool.mcp.as_ref()?;
        let place = match (&mcp.url, &mcp.command) {
            (Some(url), _) => url.clone(),
            (None, Some(argv)) => argv.first().cloned().unwrap_or_default(),
            (None, None) => String::new(),
        };
        let names = format!("{}*", tool.prefix.clone().unwrap_or_else(|| format!("{name}__")));
        let required = if tool.required { "required" } else { "" };
        let fence = if mcp.sandbox == Sandbox::None { String::new() } else { word(&mcp.sandbox) };
        Some(vec![name.clone(), "mcp".into(), place, names, fence, required.into()])
    };
    loaded.file.tools.iter().filter_map(row).collect()
}

fn teams(loaded: &Loaded) -> Vec<Vec<String>> {
    let some = |what: &str, patterns: &Option<Vec<String>>| match patterns {
        None => format!("every {what}"),
        Some(patterns) if patterns.is_empty() => format!("no {what}"),
        Some(patterns) => format!("{what}s {}", patterns.join(", ")),
    };
    let row = |(name, team): (&String, &crate::team::settings::Settings)| {
        let keys = match team.keys.len() {
            1 => "1 key".into(),
            n => format!("{n} keys"),
        };
        vec![name.clone(), keys, some("model", &team.models), some("tool", &team.tools)]
    };
    loaded.file.teams.iter().map(row).collect()
}

/// A value of a closed set, as the file writes it.
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

//! `fanfold check --online`: is every upstream there, and does it take the key? Asks for the list
//! of models, which costs nothing. Does every tool server start, and what does it have?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::servers::{Running, up};
use super::{Exit, out, runtime};
use crate::config::{Loaded, process_env, secret};
use crate::telemetry::Telemetry;
use crate::tools::{Catalog, Condition};
use crate::units::Secret;
use crate::upstream::settings::Settings;
use crate::upstream::{Asking, Setup, Upstream};

/// How long one upstream may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest list of models that is read.
const LONGEST: usize = 8 * 1024 * 1024;

/// 0 when every upstream answers and takes its key, and every tool server is up; 64 when two of them have a tool of
/// the same name.
pub(super) fn run(loaded: &Loaded, catalog: &Catalog) -> Exit {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    let (mut rows, mut offered) = (Vec::new(), Vec::new());
    let mut exit = Exit::Fine;
    for (name, upstream) in &loaded.file.upstreams {
        let asked = runtime.block_on(async { timeout(PATIENCE, ask(loaded, name, upstream)).await });
        let (row, fine) = match asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
            Ok(said) => (said, true),
            Err(said) => (format!("FAILED: {said}"), false),
        };
        if !fine {
            exit = Exit::Failure;
        }
        rows.push(vec![name.clone(), row]);
    }
    if catalog.servers() > 0 {
        // Each team's own servers are asked with what the team has of its own.
        let mut teams: Vec<Arc<str>> = loaded.file.teams.keys().map(|team| team.as_str().into()).collect();
        if teams.is_empty() {
            teams.push("default".into());
        }
        let running = runtime.block_on(async {
            let running = Running::start(loaded, catalog, &teams).await;
            running.stop().await;
            running
        });
        for standing in &running.standings {
            let said = match &standing.condition {
                Condition::Up { tools, revision } => {
                    let owner = standing.team.as_deref().unwrap_or_default();
                    let offered = running.catalog.iter_of(owner).filter_map(|tool| tool.server());
                    let offered = offered.filter(|(server, _)| *server == &*standing.server).count();
                    format!("answers, {tools} tools, {offered} of them offered, revision {revision}")
                }
                Condition::Idle => "not started: no team may use it".into(),
                Condition::Starting => "FAILED: it did not start".into(),
                Condition::Down(why) => format!("FAILED: {why}"),
            };
            if !up(standing) {
                exit = Exit::Failure;
            }
            let name = match &standing.team {
                Some(team) => format!("{} of {team}", standing.server),
                None => standing.server.to_string(),
            };
            rows.push(vec![name, said]);
        }
        offered.extend(running.catalog.every().filter_map(|tool| {
            let (server, _) = tool.server()?;
            Some(vec![tool.spec().name.to_string(), server.to_owned()])
        }));
        offered.sort();
        offered.dedup();
        for tool in running.catalog.not_offered() {
            if tool.clashes() {
                exit = Exit::BadConfig;
                out::report(&format!("error: {tool}\n"));
            } else {
                out::report(&format!("warning: {tool}\n"));
            }
        }
    }
    out::answer(&format!("\nonline\n{}", loaded.hide(&out::table(&rows))));
    if !offered.is_empty() {
        out::answer(&format!("\noffered by tool servers\n{}", out::table(&offered)));
    }
    exit
}

/// What an upstream says to a question for its models, with each of its keys and those of teams.
async fn ask(loaded: &Loaded, name: &str, settings: &Settings) -> Result<String, String> {
    let mut said = String::new();
    let teams = loaded.file.teams.iter();
    let of_teams =
        teams.filter_map(|(team, of)| Some((format!("the key of `{team}`"), of.upstream_keys.get(name)?)));
    let own: Vec<&Secret> = settings.keys().collect();
    let several = own.len() > 1;
    let own = own.into_iter().enumerate().map(|(i, key)| (format!("key {}", i + 1), key));
    let mut keys: Vec<(String, Option<&Secret>)> =
        own.chain(of_teams).map(|(who, key)| (who, Some(key))).collect();
    if keys.is_empty() {
        keys.push((String::new(), None));
    }
    for (who, key) in keys {
        let only = Settings { api_key: key.cloned(), api_keys: Vec::new(), ..settings.clone() };
        let because =
            |why: String| if several || who.starts_with("the") { format!("{who}: {why}") } else { why };
        said = ask_with(name, &only).await.map_err(because)?;
    }
    Ok(said)
}

async fn ask_with(name: &str, settings: &Settings) -> Result<String, String> {
    let open =
        |secret: &Secret| secret::open(secret, &process_env).map(|text| text.expose_secret().to_owned());
    let telemetry = Telemetry::new().map_err(|why| why.to_string())?;
    let setup = Setup { team_keys: &BTreeMap::new(), before: None, telemetry: &telemetry };
    let upstream = Upstream::new(name, settings, setup, open).map_err(|why| why.message)?;
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("fanfold/", env!("CARGO_PKG_VERSION"))));
    let asking = Asking { team: "", model: None, again: false };
    let sent = upstream.forward_whole(Method::GET, "/models", headers, Bytes::new(), asking).await;
    let answer =
        sent.map_err(|failure| format!("{}: is `base_url` right, and does it run?", failure.detail))?;
    let answer = answer.response;
    let status = answer.status();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!("it refuses the key ({status})")),
        StatusCode::OK => {
            let body =
                Limited::new(answer.into_body(), LONGEST).collect().await.map_err(|why| why.to_string())?;
            let list: Option<serde_json::Value> = serde_json::from_slice(&body.to_bytes()).ok();
            match list.as_ref().and_then(|list| list["data"].as_array()) {
                Some(models) => Ok(format!("answers, {} models", models.len())),
                None => {
                    Err("it answers 200 to /models, but not with a list of models: is `base_url` right?"
                        .into())
                }
            }
        }
        StatusCode::NOT_FOUND => Ok("answers, but knows no /models (404): is `base_url` right?".into()),
        other => Err(format!("it answers {other} to /models")),
    }
}

//! A chat: read, planned, then relayed or made a turn.

use std::collections::HashMap;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::repeat::{Course, course};
use super::{
    Asked, Counted, Proxy, Refusal, SERVERS_OF_TEAM, holding, is_json, key, no_model, route, unknown_key,
};
use crate::engine::{parcel, parked_names, restore};
use crate::policy::parallel::Decision;
use crate::policy::pattern::fits_any;
use crate::policy::plan::{Circumstances, Habits, Plan, Rules, plan};
use crate::relay::body::Body;
use crate::relay::headers::{self, to_upstream};
use crate::relay::pass::{self, Passing, Targets};
use crate::relay::render::{To, first_question, relayed};
use crate::relay::watching::{Of, Passed};
use crate::relay::{Client, Started, begin};
use crate::team::money::price_of;
use crate::telemetry::metrics;
use crate::telemetry::traces::{About, Trace, Tracer};
use crate::upstream::{AskHead, Route, Target, chat_path};
use crate::wire::error::ErrorReply;
use crate::wire::failure::Fact;
use crate::wire::raw::{Raw, write_string};
use crate::wire::request::{ChatRequest, includes_transcript};

/// The longest list of tools a header may name.
const MOST_NAMED: usize = 256;
const TOOLS: HeaderName = HeaderName::from_static("x-fanfold-tools");
const INCLUDE: HeaderName = HeaderName::from_static("x-fanfold-include");
const DRY_RUN: HeaderName = HeaderName::from_static("x-fanfold-dry-run");

impl Proxy {
    pub(super) async fn chat(
        &self,
        request: Request<Incoming>,
        mut asked: Asked,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, incoming) = request.into_parts();
        content_type(&parts.headers)?;
        let (account, place) = self.enter(&mut asked).await?;
        self.with_servers_of_team(&mut asked, &parts.headers).await?;
        let held = self.read(&asked, &parts.headers, incoming).await?;
        let (body, reservation) = held.into_parts();
        let mut request = ChatRequest::read(&body)?;
        let route = route(&asked, &request.model)?;
        let messages = request.messages();
        let changed = restore_parked(&asked, &mut request).await;
        let narrowed = named_tools(&parts.headers)?;
        let price = price_of(&asked.snapshot.prices, &request.model);
        let rules = Rules { charged: account.charges_usage(price), ..rules(&asked, &route) };
        let stream = request.stream;
        // The operator's list goes beyond the models that are known to need it.
        let more = &asked.snapshot.policy.strict_parallel_models;
        let needs_rule = request.model.starts_with("ft:") || fits_any(more, &request.model);
        let targets = route.targets(|sum| fastrand::u32(..sum));
        let habits: Vec<Habits> =
            targets.iter().map(|target| route.habits(target, &request.model, needs_rule, stream)).collect();
        let planned = plan(
            &request,
            &Circumstances {
                offered: &asked.team.tools,
                narrowed: narrowed.as_deref(),
                transcript: wants_transcript(&parts.headers)?,
                changed,
                targets: &habits,
                rules: &rules,
            },
        )
        .map_err(|error| {
            if error.code == "too_many_tools" {
                asked.limit_hit("tools_per_request");
            }
            let conflict = error.code == "strict_parallel_conflict";
            Refusal { decision: conflict.then_some(Decision::CONFLICT), ..error.into() }
        })?;
        if matches!(planned, Plan::Relay(_))
            && stream
            && !request.include_usage
            && account.charges_usage(None)
        {
            return Err(unmetered().into());
        }
        let decision = match &planned {
            Plan::Relay(plans) => plans.first().map_or(Decision::UNSUPPORTED, |plan| plan.decision),
            Plan::Turn(turn) => turn.decision(),
        };
        tell(&mut asked, decision);
        let traces = asked.snapshot.parts.traces.clone();
        let trace = Trace::of(&parts.headers, traces.as_deref().map(Tracer::sampling));
        let mut headers = to_upstream(&parts.headers, &asked.id, true);
        let path = chat_path(parts.uri.query());
        match planned {
            _ if is_dry_run(&parts.headers)? => Ok(dry_run(&asked, &request, &planned, &body, &targets)),
            Plan::Relay(plans) => {
                let mut turn = pass::Turn {
                    request_id: asked.request_id(),
                    model: request.model.clone(),
                    decision,
                    run: None,
                    trace,
                    traces,
                    limits: rules.limits.clone(),
                    hold: asked.snapshot.server.keep_alive.0,
                    asked: Instant::now(),
                    first: None,
                };
                turn.trace.put(&mut headers, About::Round(1));
                let upstream = targets.first().map(|target| &target.upstream.name);
                let of = Of {
                    team: &asked.team.name,
                    route: &route,
                    upstream: upstream.unwrap_or(&asked.team.name),
                    stream: request.stream,
                    since: asked.since,
                };
                turn.run = Passed::begin(&asked.snapshot.parts, &turn, of, &body);
                let passing = Box::new(Passing {
                    targets: Targets::new(targets.clone()).ok_or_else(|| no_model(&request.model))?,
                    telemetry: asked.snapshot.parts.telemetry.clone(),
                    account,
                    price,
                    tasks: self.tasks.clone(),
                    model: route.model.clone(),
                    since: asked.since,
                    headers: asked.headers,
                    shutdown: self.shutdown.here(),
                    turn: Some(turn),
                });
                let question = |at: usize, refused: &[Fact]| {
                    let (target, mut plan) = (&targets[at], plans[at].clone());
                    for fact in refused {
                        plan.refuse(*fact);
                    }
                    (relayed(&request, To { target, plan: &plan }, &body), plan.decision)
                };
                let chat = pass::Chat { model: &request.model, body: &question };
                let gauge = Counted::new(asked.snapshot.parts.telemetry.turns_in_flight.clone());
                // Boxed: no turn has to have room for it.
                let passed = Box::pin(passing.pass(Method::POST, &path, headers, pass::Request::Chat(chat)));
                let response = passed.await;
                Ok(holding(response, (place, reservation, asked.in_flight, gauge)))
            }
            Plan::Turn(plan) => {
                // The key names the client's request, not the several a turn makes of it: an upstream
                // that honours it would answer every round like the first.
                headers.remove("idempotency-key");
                let headers = headers::apart(headers);
                let run = match course(&asked, &parts.headers, &body, &plan).await? {
                    Course::Run(run) => run,
                    Course::Answered(response) => {
                        return Ok(holding(response, (place, reservation, asked.in_flight)));
                    }
                };
                let server = &asked.snapshot.server;
                let request_id = asked.request_id();
                // The copy is the one to which nothing is added: it has no more room than it needs.
                let kept = asked.headers.clone();
                let client = Client {
                    headers: asked.headers,
                    buffer: server.write_buffer.0 / 8,
                    keep_alive: server.keep_alive.0,
                };
                let gauge = Counted::new(asked.snapshot.parts.telemetry.turns_in_flight.clone());
                let started = Box::new(Started {
                    parts: asked.snapshot.parts.clone(),
                    team: asked.team.clone(),
                    account,
                    price,
                    route,
                    targets,
                    plan,
                    request,
                    messages,
                    sent: body,
                    trace,
                    head: AskHead { headers, path },
                    headers: kept,
                    request_id,
                    gone: asked.peer.gone,
                    shutdown: self.shutdown.here(),
                    since: asked.since,
                });
                Ok(begin(started, run, client, &self.tasks, (place, reservation, gauge)).await)
            }
        }
    }
}

impl Proxy {
    /// Starts the tool servers that the team has for itself, if they do not run, and goes on with what they offer.
    async fn with_servers_of_team(&self, asked: &mut Asked, headers: &HeaderMap) -> Result<(), Refusal> {
        let tools = &asked.snapshot.parts.tools;
        let wants_none = named_tools(headers)?.is_some_and(|names| names.is_empty());
        if wants_none || !tools.has_servers_of_teams() {
            return Ok(());
        }
        let team = &asked.team;
        self.servers
            .ready(tools, &team.name, |beginning| team.may_use_some(beginning), SERVERS_OF_TEAM)
            .await;
        let snapshot = self.snapshot.load_full();
        // A reload meanwhile may have taken the key away.
        let key = key(headers).map_err(|_| unknown_key())?;
        asked.team = snapshot.teams.of_key(key, jiff::Timestamp::now()).map_err(|_| unknown_key())?;
        asked.snapshot = snapshot;
        Ok(())
    }
}

/// A stream that goes through as it is says what it used only if its client asks, and this team has a quota.
fn unmetered() -> ErrorReply {
    ErrorReply::invalid_value(
        "stream_options",
        "Your team has a quota of tokens or money, so a stream with `n` above 1 has to say what it used: send `\"stream_options\": {\"include_usage\": true}`.",
    )
}

fn content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |message: &str| Err(ErrorReply::new(415, "unsupported_media_type", message).into());
    if text(headers, &CONTENT_TYPE).is_some_and(|kind| !is_json(kind)) {
        return refuse("The body has to be JSON: send the header `content-type: application/json`.");
    }
    if text(headers, &CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return refuse("The body has to be sent as it is: leave out the header `content-encoding`.");
    }
    Ok(())
}

/// Puts parked results back; whether there were any. A store that is down has none.
async fn restore_parked(asked: &Asked, request: &mut ChatRequest) -> bool {
    let store = &asked.snapshot.parts.store;
    if store.parks_nothing() {
        return false;
    }
    let messages = request.messages();
    let names = parked_names(&messages);
    if names.is_empty() {
        return false;
    }
    let found = match store.find(&asked.team.name, &names).await {
        Ok(found) => found,
        Err(why) => {
            tracing::debug!(%why, "parked results are not looked up");
            return false;
        }
    };
    let read = |kept: Vec<Bytes>| kept.iter().filter_map(parcel::decode).collect::<Vec<_>>();
    let found: HashMap<&str, Vec<_>> =
        names.iter().map(String::as_str).zip(found.into_iter().map(read)).collect();
    let find = |name: &str| found.get(name).map(Vec::as_slice).unwrap_or_default();
    match restore(&request.model, &messages, asked.snapshot.limits.body.0, find) {
        Some(messages) => {
            request.set_messages(messages);
            true
        }
        None => false,
    }
}

/// The rules that hold: the process's, over them the team's, over those the route's.
fn rules(asked: &Asked, route: &Route) -> Rules {
    let (global, team) = (&asked.snapshot.policy, &asked.team);
    let limits = &asked.snapshot.limits;
    let lowered = limits.lowered_by(&team.limits).lowered_by(&route.limits);
    let parts = &asked.snapshot.parts;
    let traced = parts.traces.as_ref().is_some_and(|traces| traces.text().is_some());
    let cap = (lowered.call_timeout < limits.call_timeout).then_some(lowered.call_timeout.0);
    Rules {
        strict_parallel: route
            .policy
            .strict_parallel
            .or(team.policy.strict_parallel)
            .unwrap_or(global.strict_parallel),
        interim_text: route.policy.interim_text.or(team.policy.interim_text).unwrap_or(global.interim_text),
        call_timeout_cap: cap,
        keep_content: parts.log_content || parts.runs_content || traced,
        charged: false,
        limits: if lowered == **limits { limits.clone() } else { lowered.into() },
    }
}

/// Writes the decision where people look for it.
fn tell(asked: &mut Asked, decision: Decision) {
    headers::tell(&mut asked.headers, decision);
    let labels = [("decision", decision.word()), ("reason", decision.reason.word())];
    asked.snapshot.parts.telemetry.count(metrics::DECISIONS, &labels, 1);
}

/// `x-fanfold-tools: name,name` or `none`.
fn named_tools(headers: &HeaderMap) -> Result<Option<Vec<String>>, Refusal> {
    let wrong = |why: String| ErrorReply::invalid_value("x-fanfold-tools", why);
    let mut names = Vec::new();
    let mut lines = headers.get_all(TOOLS).iter().peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    for line in lines {
        let line =
            line.to_str().map_err(|_| wrong("The header names tools by letters, digits, _ and -.".into()))?;
        names.extend(line.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
    }
    if let [only] = names.as_slice()
        && only.eq_ignore_ascii_case("none")
    {
        return Ok(Some(Vec::new()));
    }
    if names.len() > MOST_NAMED {
        return Err(wrong(format!("The header names more than {MOST_NAMED} tools.")).into());
    }
    Ok(Some(names))
}

fn wants_transcript(headers: &HeaderMap) -> Result<bool, Refusal> {
    let Some(list) = text(headers, &INCLUDE) else { return Ok(false) };
    let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
    Ok(includes_transcript(&names)?)
}

fn is_dry_run(headers: &HeaderMap) -> Result<bool, Refusal> {
    match text(headers, &DRY_RUN) {
        None => Ok(false),
        Some("plan") => Ok(true),
        Some(_) => Err(ErrorReply::invalid_value(
            "x-fanfold-dry-run",
            "The header `x-fanfold-dry-run` takes `plan` only.",
        )
        .into()),
    }
}

/// What would be sent, and why; nothing is.
fn dry_run(
    asked: &Asked,
    request: &ChatRequest,
    planned: &Plan,
    body: &Bytes,
    targets: &[Target],
) -> Response<Body> {
    let (kind, plans) = match planned {
        Plan::Turn(turn) => ("turn", turn.targets.as_slice()),
        Plan::Relay(plans) => ("relay", plans.as_slice()),
    };
    let (Some(target), Some(plan)) = (targets.first(), plans.first()) else { return Response::default() };
    let to = To { target, plan };
    let body = match planned {
        Plan::Turn(turn) => first_question(request, turn, to),
        Plan::Relay(_) => relayed(request, to, body),
    };
    let mut out = b"{\"object\":\"fanfold.plan\",\"plan\":".to_vec();
    write_string(&mut out, kind);
    out.extend_from_slice(b",\"parallel\":");
    write_string(&mut out, &plan.decision.to_string());
    out.extend_from_slice(b",\"upstream\":");
    write_string(&mut out, &target.upstream.name);
    out.extend_from_slice(b",\"body\":");
    out.extend_from_slice(Raw::parse(body).unwrap_or(Raw::NULL).bytes());
    out.push(b'}');
    let mut response = Response::new(Body::Full(out.into()));
    *response.headers_mut() = asked.headers.clone();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

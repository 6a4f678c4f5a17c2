//! A chat: read, planned, then relayed or made a turn.

use std::collections::HashMap;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;

use super::{Asked, Proxy, Refusal, SERVERS_OF_TEAM, holding, is_json, key, route, unknown_key};
use crate::engine::{parcel, parked_names, restore};
use crate::policy::parallel::Decision;
use crate::policy::pattern::fits_any;
use crate::policy::plan::{Circumstances, Plan, Rules, plan};
use crate::relay::body::Body;
use crate::relay::headers::{self, to_upstream};
use crate::relay::pass::{self, Passing};
use crate::relay::watching::{Of, Passed};
use crate::relay::{Client, Started, begin, first_question};
use crate::telemetry::metrics;
use crate::upstream::{AskHead, Route};
use crate::wire::error::ErrorReply;
use crate::wire::raw::{Raw, write_string};
use crate::wire::request::{ChatRequest, Choice, Outgoing, includes_transcript};

/// The longest list of tools a header may name.
const MOST_NAMED: usize = 256;

impl Proxy {
    pub(super) async fn chat(
        &self,
        request: Request<Incoming>,
        mut asked: Asked,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, incoming) = request.into_parts();
        content_type(&parts.headers)?;
        let place = self.place(&asked.team)?;
        self.with_servers_of_team(&mut asked, &parts.headers).await?;
        let held = self.read(&asked, &parts.headers, incoming).await?;
        let (body, reservation) = held.into_parts();
        let mut request = ChatRequest::read(&body)?;
        let route = route(&asked, &request.model)?;
        let messages = request.messages();
        let changed = restore_parked(&asked, &mut request).await;
        let narrowed = named_tools(&parts.headers)?;
        let rules = rules(&asked, &route);
        let stream = request.stream;
        let needs_rule = fits_any(&asked.snapshot.policy.strict_parallel_models, &request.model);
        let habits = route.upstream.habits(&request.model, needs_rule, route.takes_parallel, stream);
        let planned = plan(
            &request,
            &Circumstances {
                offered: &asked.team.tools,
                narrowed: narrowed.as_deref(),
                transcript: wants_transcript(&parts.headers)?,
                changed,
                habits: &habits,
                rules: &rules,
            },
        )
        .inspect_err(|error| {
            if error.code == "too_many_tools" {
                asked.limit_hit("tools_per_request");
            }
        })?;
        let decision = match &planned {
            Plan::Relay { decision, .. } => *decision,
            Plan::Turn(turn) => turn.decision,
        };
        tell(&mut asked, decision);
        let mut headers = to_upstream(&parts.headers, &asked.request_id, true);
        match planned {
            _ if is_dry_run(&parts.headers)? => Ok(dry_run(&asked, &request, &planned, &body, &route)),
            Plan::Relay { rewrite, .. } => {
                let body = if rewrite { rewritten(&request, decision) } else { body };
                let mut turn = pass::Turn {
                    request_id: asked.request_id,
                    model: request.model.clone(),
                    decision,
                    run: None,
                };
                let of =
                    Of { team: &asked.team.name, route: &route, stream: request.stream, since: asked.since };
                turn.run = Passed::begin(&asked.snapshot.parts, &turn, of, &body);
                let passing = Passing {
                    upstream: route.upstream.clone(),
                    telemetry: asked.snapshot.parts.telemetry.clone(),
                    team: asked.team.name.clone(),
                    model: route.model.clone(),
                    since: asked.since,
                    headers: asked.headers,
                    shutdown: self.shutdown.clone(),
                    turn: Some(turn),
                };
                let chat = pass::Chat {
                    body,
                    model: &request.model,
                    without: &|| rewritten(&request, Decision::UNSUPPORTED),
                };
                let response =
                    passing.pass(Method::POST, "/chat/completions", headers, pass::Request::Chat(chat)).await;
                Ok(holding(response, (place, reservation, asked.in_flight)))
            }
            Plan::Turn(plan) => {
                // The key names the client's request, not the several a turn makes of it: an upstream
                // that honours it would answer every round like the first.
                headers.remove("idempotency-key");
                let server = &asked.snapshot.server;
                let client = Client {
                    headers: asked.headers,
                    buffer: server.write_buffer.0 / 4,
                    keep_alive: server.keep_alive.0,
                };
                let gauge = TurnInFlight::new(&asked.snapshot.parts.telemetry.turns_in_flight);
                let started = Started {
                    parts: asked.snapshot.parts.clone(),
                    team: asked.team.clone(),
                    route,
                    plan,
                    request,
                    messages,
                    sent: body,
                    traceparent: text(&parts.headers, "traceparent").map(str::to_owned),
                    head: AskHead { headers },
                    request_id: asked.request_id,
                    gone: asked.peer.gone,
                    shutdown: self.shutdown.clone(),
                    since: asked.since,
                };
                let response = begin(started, client, &self.tasks, (place, reservation, gauge)).await;
                // Without an answer there is nobody to read one.
                Ok(response.unwrap_or_default())
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
        asked.team = snapshot.teams.of_key(key(headers)).map_err(|_| unknown_key())?;
        asked.snapshot = snapshot;
        Ok(())
    }
}

/// Counts a turn as long as it lives.
struct TurnInFlight(::metrics::Gauge);

impl TurnInFlight {
    fn new(gauge: &::metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for TurnInFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |message: &str| Err(ErrorReply::new(415, "unsupported_media_type", message).into());
    if text(headers, CONTENT_TYPE.as_str()).is_some_and(|kind| !is_json(kind)) {
        return refuse("The body has to be JSON: send the header `content-type: application/json`.");
    }
    if text(headers, CONTENT_ENCODING.as_str()).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
    {
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
    let found: HashMap<&str, Vec<Bytes>> = names.iter().map(String::as_str).zip(found).collect();
    let find = |name: &str| found.get(name).into_iter().flatten().filter_map(parcel::decode).collect();
    match restore(&messages, find) {
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
    let cap = (lowered.call_timeout < limits.call_timeout).then_some(lowered.call_timeout.0);
    Rules {
        strict_parallel: route
            .policy
            .strict_parallel
            .or(team.policy.strict_parallel)
            .unwrap_or(global.strict_parallel),
        interim_text: route.policy.interim_text.or(team.policy.interim_text).unwrap_or(global.interim_text),
        call_timeout_cap: cap,
        keep_content: asked.snapshot.parts.log_content || asked.snapshot.parts.runs_content,
        limits: if lowered == **limits { limits.clone() } else { lowered.into() },
    }
}

/// Writes the decision where people look for it.
fn tell(asked: &mut Asked, decision: Decision) {
    headers::tell(&mut asked.headers, decision);
    let labels = [("decision", decision.word().into()), ("reason", decision.reason.word().into())];
    asked.snapshot.parts.telemetry.counter(metrics::DECISIONS, &labels).increment(1);
}

/// A relayed body with the one member changed that the rule decides about.
fn rewritten(request: &ChatRequest, decision: Decision) -> Bytes {
    request.render(&Outgoing {
        parallel: decision.send,
        stream: request.stream,
        choice: if request.tools.is_empty() && !request.legacy_functions {
            Choice::Drop
        } else {
            Choice::Keep
        },
        keep_stream_options: true,
        ..Outgoing::default()
    })
}

/// `x-fanfold-tools: name,name` or `none`.
fn named_tools(headers: &HeaderMap) -> Result<Option<Vec<String>>, Refusal> {
    let wrong = |why: String| ErrorReply::invalid_value("x-fanfold-tools", why);
    let mut names = Vec::new();
    let mut lines = headers.get_all("x-fanfold-tools").iter().peekable();
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
    let Some(list) = text(headers, "x-fanfold-include") else { return Ok(false) };
    let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
    Ok(includes_transcript(&names)?)
}

fn is_dry_run(headers: &HeaderMap) -> Result<bool, Refusal> {
    match text(headers, "x-fanfold-dry-run") {
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
    route: &Route,
) -> Response<Body> {
    let (kind, decision, body) = match planned {
        Plan::Turn(plan) => ("turn", plan.decision, first_question(request, plan)),
        Plan::Relay { decision, rewrite: true } => ("relay", *decision, rewritten(request, *decision)),
        Plan::Relay { decision, rewrite: false } => ("relay", *decision, body.clone()),
    };
    let mut out = b"{\"object\":\"fanfold.plan\",\"plan\":".to_vec();
    write_string(&mut out, kind);
    out.extend_from_slice(b",\"parallel\":");
    write_string(&mut out, &decision.to_string());
    out.extend_from_slice(b",\"upstream\":");
    write_string(&mut out, &route.upstream.name);
    out.extend_from_slice(b",\"body\":");
    out.extend_from_slice(Raw::parse(body).unwrap_or(Raw::NULL).bytes());
    out.push(b'}');
    let mut response = Response::new(Body::Full(out.into()));
    *response.headers_mut() = asked.headers.clone();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

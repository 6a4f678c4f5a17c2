//! The inspector: its page, and what the page, `fanfold tail` and `fanfold run` read. Nothing here changes
//! anything.
//!
//! ```text
//!  /  /inspector.js  /inspector.css     the page, inside the binary
//!  /api/runs  /api/runs/ID              runs, the newest first; one with everything that is known of it
//!  /api/events                          runs as they change, as server-sent events
//!  /api/tools  /api/config              what a model may call, and what the settings amount to
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::task::TaskTracker;

use crate::relay::body::{Body, Sender, channel};
use crate::runs::{Figures, Follower, Runs};
use crate::tools::{Catalog, Condition, Standing, Tool};

const JSON: &str = "application/json";
const PAGE: (&str, &str) = ("text/html; charset=utf-8", include_str!("page/inspector.html"));
const SCRIPT: (&str, &str) = ("text/javascript; charset=utf-8", include_str!("page/inspector.js"));
const STYLE: (&str, &str) = ("text/css; charset=utf-8", include_str!("page/inspector.css"));
/// Nothing but what this listener serves is loaded, and no page holds this one in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Silence in the events before a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes of events that wait for a watcher; who reads more slowly loses events.
const WAITING: usize = 256 * 1024;

/// How the tool servers are.
pub type Standings = Arc<dyn Fn() -> Vec<Standing> + Send + Sync>;

/// What the inspector looks at.
pub struct Inspector {
    /// The runs, if they are remembered.
    pub runs: Option<Arc<Runs>>,
    /// What is in use now.
    pub in_use: Arc<dyn Fn() -> InUse + Send + Sync>,
    /// How the tool servers are.
    pub standings: Standings,
    /// The settings in use, as JSON.
    pub config: Arc<ArcSwap<Box<RawValue>>>,
    /// Where clients go.
    pub base_url: String,
    /// The tasks that write events.
    pub tasks: TaskTracker,
}

/// What a reload may change.
#[derive(Debug, Clone)]
pub struct InUse {
    /// The tools.
    pub tools: Arc<Catalog>,
    /// What was said in a run is remembered.
    pub content: bool,
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page<'a> {
    Home,
    Script,
    Style,
    Runs,
    Run(&'a str),
    Events,
    Tools,
    Config,
}

impl<'a> Page<'a> {
    pub(super) fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/" => Self::Home,
            "/inspector.js" => Self::Script,
            "/inspector.css" => Self::Style,
            "/api/runs" => Self::Runs,
            "/api/events" => Self::Events,
            "/api/tools" => Self::Tools,
            "/api/config" => Self::Config,
            path => Self::Run(path.strip_prefix("/api/runs/").filter(|id| !id.is_empty())?),
        })
    }
}

impl Inspector {
    pub(super) fn answer(&self, page: Page<'_>) -> Response<Body> {
        match page {
            Page::Home => file(PAGE),
            Page::Script => file(SCRIPT),
            Page::Style => file(STYLE),
            Page::Runs => json_of(StatusCode::OK, &self.list()),
            Page::Run(id) => self.run(id),
            Page::Events => self.events(),
            Page::Tools => json_of(StatusCode::OK, &self.tools()),
            Page::Config => json_of(StatusCode::OK, &**self.config.load_full()),
        }
    }

    fn list(&self) -> Value {
        let runs = self.runs.as_ref().map(|runs| runs.list()).unwrap_or_default();
        let runs: Vec<_> = runs.iter().map(|run| run.summary()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "base_url": self.base_url,
            "remembers": self.runs.is_some(),
            "content": (self.in_use)().content,
            "runs": runs,
        })
    }

    fn run(&self, id: &str) -> Response<Body> {
        let id = percent_encoding::percent_decode_str(id).decode_utf8_lossy();
        let Some(found) = self.runs.as_ref().and_then(|runs| runs.find(&id)) else {
            let error = json!({ "error": "there is no such run, or it is not kept any more" });
            return json_of(StatusCode::NOT_FOUND, &error);
        };
        json_of(StatusCode::OK, &json!({ "run": &*found.run, "content": found.content.as_deref() }))
    }

    fn tools(&self) -> Value {
        let catalog = (self.in_use)().tools;
        let figures = |tool: &Tool| {
            let of = self.runs.as_ref().map(|runs| runs.figures(&tool.spec().name));
            of.unwrap_or_default()
        };
        let standings = (self.standings)();
        let servers: Vec<Value> = standings.iter().map(server).collect();
        let tools: Vec<Value> = catalog.iter().map(|of| tool(of, &standings, figures(of))).collect();
        json!({ "servers": servers, "tools": tools })
    }

    fn events(&self) -> Response<Body> {
        let following = match &self.runs {
            None => Err(StatusCode::NOT_FOUND),
            Some(runs) => runs.follow().ok_or(StatusCode::SERVICE_UNAVAILABLE),
        };
        let events = match following {
            Ok(events) => events,
            Err(status) => {
                let why = match status {
                    StatusCode::NOT_FOUND => "runs are not remembered: `runs.keep` is 0",
                    _ => "as many watch as may: see `runs.watchers`",
                };
                return json_of(status, &json!({ "error": why }));
            }
        };
        let (sender, receiver) = channel(WAITING);
        self.tasks.spawn(write_events(events, sender));
        let mut answer = Response::new(Body::Stream(receiver));
        headers(&mut answer, "text/event-stream");
        answer
    }
}

/// Writes events until nobody reads any more. A watcher that reads too slowly holds up this task only.
async fn write_events(mut events: Follower, sender: Sender) {
    let mut next = "retry: 1000\nevent: hello\ndata: {}\n\n".to_owned();
    loop {
        if sender.send(next).await.is_err() {
            return;
        }
        next = tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(KEEP_ALIVE) => ": keep-alive\n\n".into(),
            event = events.next() => match event {
                Ok(run) => format!("event: run\ndata: {}\n\n", run.get()),
                Err(RecvError::Lagged(lost)) => format!("event: lost\ndata: {lost}\n\n"),
                Err(RecvError::Closed) => return,
            },
        };
    }
}

fn tool(tool: &Tool, standings: &[Standing], figures: Figures) -> Value {
    let spec = tool.spec();
    let mut definition: Value = serde_json::from_str(&spec.definition).unwrap_or_default();
    let function = definition["function"].take();
    let of = tool.server().map(|(server, _)| server);
    // A server that is each team's own stands there once for each; one that is up is enough to call it.
    let named = standings.iter().filter(|standing| Some(&*standing.server) == of);
    let standing = named.max_by_key(|standing| state(standing) == "up");
    json!({
        "name": &*spec.name,
        "kind": tool.kind_name(),
        "server": of,
        "state": standing.map_or("up", state),
        "effect": spec.effect,
        "on_disconnect": spec.on_disconnect,
        "timeout": crate::units::Span(spec.timeout).to_string(),
        "strict": spec.strict,
        "at_once": tool.at_once(),
        "description": function["description"],
        "parameters": function["parameters"],
        "figures": figures,
    })
}

fn server(standing: &Standing) -> Value {
    json!({
        "name": &*standing.server,
        "team": standing.team.as_deref(),
        "place": standing.place,
        "required": standing.required,
        "state": state(standing),
        "says": standing.to_string(),
    })
}

fn state(standing: &Standing) -> &'static str {
    match standing.condition {
        Condition::Idle => "idle",
        Condition::Starting => "starting",
        Condition::Up { .. } => "up",
        Condition::Down(_) => "down",
    }
}

fn file((kind, text): (&'static str, &'static str)) -> Response<Body> {
    let mut answer = Response::new(Body::Full(text.into()));
    headers(&mut answer, kind);
    answer
}

fn json_of<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response<Body> {
    let mut answer = Response::new(Body::Full(serde_json::to_vec(value).unwrap_or_default().into()));
    *answer.status_mut() = status;
    headers(&mut answer, JSON);
    answer
}

/// What every answer says: it is not kept, not guessed at, and nobody else's.
fn headers(answer: &mut Response<Body>, kind: &'static str) {
    let all = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in all {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

//! What a path means: a chat, the list of models, anything else of the API, or a mistake.
//!
//! ```text
//! request ─▶ path ─▶ key ─▶ team ─▶ drain? ─▶ chat · models · relay
//! ```
//!
//! Every response has `x-request-id` and `x-fanfold-parallel`. A request takes one snapshot of
//! routes, tools and teams at its start, so a reload never changes it.

mod chat;
mod head;
mod models;
mod repeat;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use jiff::Timestamp;
use thread_local::ThreadLocal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::head::{
    Ambiguous, RETRY_COUNT, is_disguised, is_json, key, one_model, request_id, takes_forms, wrong_path,
};
use super::body::{self, BodyError, Bounds, Held, InFlightBudget};
use super::drain::{Drain, Stage};
use super::settings::Settings;
use super::visitors::{Foreign, Visitors};
use super::{Handler, Peer};
use crate::policy::parallel::Decision;
use crate::policy::settings as policy;
use crate::relay::body::Body;
use crate::relay::headers::{self, PARALLEL, REQUEST_ID, to_upstream};
use crate::relay::pass::{self, Passing, Targets};
use crate::relay::{Parts, error_response};
use crate::team::account::{self, Account};
use crate::team::fair::{Entry, NoPlace, Place, Queue};
use crate::team::money::{Price, price_of};
use crate::team::{Team, Teams};
use crate::telemetry::metrics;
use crate::tools::{Catalog, Servers};
use crate::upstream::Routes;
use crate::wire::error::ErrorReply;
use crate::wire::raw::Members;

/// The decision of a request that has no tools to decide about.
const NO_DECISION: &str = "off; reason=no_tools";
const CHAT: &str = "/v1/chat/completions";
/// How long a team's request waits for the tool servers the team has for itself; it goes on without the others.
const SERVERS_OF_TEAM: Duration = Duration::from_secs(5);

/// Everything a request needs that a reload may change.
#[derive(Debug)]
pub struct Snapshot {
    /// Who may ask.
    pub teams: Teams,
    /// Where models are.
    pub routes: Routes,
    /// What turns need.
    pub parts: Arc<Parts>,
    /// The rules, before teams and routes lay theirs over.
    pub policy: policy::Settings,
    /// Every bound.
    pub limits: Arc<policy::Limits>,
    /// What a client connection may take.
    pub server: Settings,
    /// What tokens cost.
    pub prices: Arc<BTreeMap<String, Price>>,
    /// What amounts of money are called.
    pub currency: Arc<str>,
}

impl Snapshot {
    /// The same, with another catalog: what servers offer has changed. Slots, upstreams and their memories stay.
    #[must_use]
    pub fn with_tools(&self, tools: Catalog) -> Self {
        let specs = |team: &str| tools.iter_of(team).map(|tool| tool.spec().clone()).collect();
        let of_tools = tools.every().filter_map(|tool| Some((tool.spec().name.clone(), tool.at_once()?)));
        let slots = Arc::new(self.parts.slots.with_tools(of_tools));
        Self {
            teams: self.teams.with_tools(specs),
            routes: self.routes.clone(),
            parts: Arc::new(Parts { tools: Arc::new(tools), slots, ..(*self.parts).clone() }),
            policy: self.policy.clone(),
            limits: self.limits.clone(),
            server: self.server.clone(),
            prices: self.prices.clone(),
            currency: self.currency.clone(),
        }
    }
}

/// The proxy.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// The current snapshot.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The tool servers.
    pub servers: Arc<Servers>,
    /// The stage of stopping.
    pub drain: Drain,
    /// The tasks of turns.
    pub tasks: TaskTracker,
    /// Cancelled when turns have to end at once.
    pub shutdown: Shutdown,
    /// The bytes that request bodies may hold together.
    pub bodies: Arc<InFlightBudget>,
    /// The places of turns that are in flight together.
    pub turns: Queue,
}

/// The token that ends turns at once, as one token for each thread: those who wait at one token share its lock,
/// whenever they are polled.
#[derive(Debug)]
pub struct Shutdown {
    token: CancellationToken,
    of_threads: ThreadLocal<CancellationToken>,
}

impl Shutdown {
    /// Follows this token.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self { token, of_threads: ThreadLocal::new() }
    }

    fn here(&self) -> CancellationToken {
        self.of_threads.get_or(|| self.token.child_token()).clone()
    }
}

/// One request, as far as it is known before its body is read.
struct Asked {
    snapshot: Arc<Snapshot>,
    team: Arc<Team>,
    /// The request's id: visible ASCII.
    id: HeaderValue,
    /// Headers of the response.
    headers: HeaderMap,
    since: Instant,
    peer: Peer,
    /// The drain waits as long as this is held.
    in_flight: TaskTrackerToken,
}

impl Asked {
    fn request_id(&self) -> String {
        self.id.to_str().unwrap_or_default().to_owned()
    }

    /// A limit was reached before there was a turn to count it.
    fn limit_hit(&self, limit: &'static str) {
        self.snapshot.parts.telemetry.count(metrics::LIMIT_HITS, &[("limit", limit)], 1);
    }
}

impl Handler for Proxy {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let since = Instant::now();
        let id = request_id(request.headers());
        let answered = match self.admit(&request, &peer, &id, since) {
            Ok(asked) => self.answer(request, asked).await,
            Err(error) => Err(error),
        };
        answered.unwrap_or_else(|refusal| refusal.into_response(of_every_response(id)))
    }

    fn headers(&self, request: &HeaderMap) -> HeaderMap {
        of_every_response(request_id(request))
    }
}

fn of_every_response(id: HeaderValue) -> HeaderMap {
    // Room for the quotas' headers and those of a stream; a stream keeps it as long as it goes on.
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(REQUEST_ID, id);
    headers.insert(PARALLEL, HeaderValue::from_static(NO_DECISION));
    headers
}

/// A request that is not served: the error, and headers only some have.
struct Refusal {
    error: ErrorReply,
    allow: Option<&'static str>,
    /// What was decided about parallel calls, if that is why.
    decision: Option<Decision>,
    /// How the team's quotas stand.
    quotas: account::Headers,
}

impl From<ErrorReply> for Refusal {
    fn from(error: ErrorReply) -> Self {
        Self { error, allow: None, decision: None, quotas: account::Headers::new() }
    }
}

impl Refusal {
    fn into_response(self, headers: HeaderMap) -> Response<Body> {
        let mut response = error_response(&self.error);
        response.headers_mut().extend(headers);
        put(response.headers_mut(), self.quotas);
        if let Some(decision) = self.decision {
            headers::tell(response.headers_mut(), decision);
        }
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl Proxy {
    /// Finds out who asks, and whether anything is served at all.
    fn admit(
        &self,
        request: &Request<Incoming>,
        peer: &Peer,
        id: &HeaderValue,
        since: Instant,
    ) -> Result<Asked, Refusal> {
        let path = request.uri().path();
        if !path.starts_with("/v1/")
            || path.starts_with("/v1/v1/")
            || path.contains("//")
            || is_disguised(path)
        {
            return Err(wrong_path(path).into());
        }
        let snapshot = self.snapshot.load_full();
        self.visitor(&snapshot, request)?;
        let key = key(request.headers()).map_err(|Ambiguous| unknown_key())?;
        let team = snapshot.teams.of_key(key, Timestamp::now()).map_err(|_| unknown_key())?;
        if self.drain.stage() >= Stage::Refusing {
            return Err(ErrorReply::shutting_down().into());
        }
        if request.headers().get(RETRY_COUNT).is_some_and(|count| count != "0") {
            snapshot.parts.telemetry.count(metrics::CLIENT_RETRIES, &[], 1);
        }
        let in_flight = self.tasks.token();
        let (headers, peer) = (of_every_response(id.clone()), peer.clone());
        Ok(Asked { snapshot, team, id: id.clone(), headers, since, peer, in_flight })
    }

    /// Without keys, a web page must not reach this listener through its visitor's browser.
    fn visitor(&self, snapshot: &Snapshot, request: &Request<Incoming>) -> Result<(), Refusal> {
        if snapshot.teams.asks_for_keys() || !self.address.ip().is_loopback() {
            return Ok(());
        }
        let visitors = Visitors::new(self.address, &snapshot.server.hosts);
        visitors.check_api(request.uri(), request.headers()).map_err(|foreign| {
            let message = match foreign {
                Foreign::Host => "Without keys this gateway answers to loopback names only: use http://127.0.0.1 or http://localhost, add the name to `server.hosts`, or set up keys (`teams`).",
                Foreign::Origin => "Without keys this gateway does not answer pages of other sites. Set up keys (`teams`) to use it from there.",
            };
            ErrorReply::new(403, "foreign_visitor", message).into()
        })
    }

    /// The large futures are boxed: hyper moves what it is given around several times.
    async fn answer(&self, request: Request<Incoming>, asked: Asked) -> Result<Response<Body>, Refusal> {
        match (request.uri().path(), request.method()) {
            (CHAT, &Method::POST) => Box::pin(self.chat(request, asked)).await,
            (CHAT, &Method::GET) => Box::pin(self.relay(request, asked)).await,
            (CHAT, _) => Err(wrong_method("GET, POST")),
            ("/v1/models", &Method::GET) => Ok(Box::pin(models::list(&asked)).await),
            ("/v1/models", _) => Err(wrong_method("GET")),
            _ => Box::pin(self.relay(request, asked)).await,
        }
    }

    /// Lets a request in: the team's quotas have something left, and there is a place for it.
    async fn enter(&self, asked: &mut Asked) -> Result<(Account, Place), Refusal> {
        let account = Account {
            team: asked.team.clone(),
            store: asked.snapshot.parts.store.clone(),
            telemetry: asked.snapshot.parts.telemetry.clone(),
            currency: asked.snapshot.currency.clone(),
        };
        match account.admit().await {
            Ok(quotas) => put(&mut asked.headers, quotas),
            Err((error, quotas)) => return Err(Refusal { quotas, ..error.into() }),
        }
        match self.place(asked).await {
            Ok(place) => Ok((account, place)),
            Err(refusal) => {
                account.not_served().await;
                Err(refusal)
            }
        }
    }

    /// Takes a place among the turns of the team and of the process, and waits for it in the team's turn,
    /// but not long: nothing of the body has been read yet. Whoever leaves gives up waiting.
    async fn place(&self, asked: &Asked) -> Result<Place, Refusal> {
        let limits = &asked.snapshot.limits;
        let ticket = match self.turns.enter(&asked.team.a_turn(), limits.turns_waiting_per_team) {
            Ok(Entry::Place(place)) => return Ok(place),
            Ok(Entry::Ticket(ticket)) => ticket,
            Err(NoPlace::OfTeam) => return Err(too_many_of_team().into()),
            Err(NoPlace::Crowded) => {
                asked.limit_hit("turns_waiting_per_team");
                return Err(overloaded().into());
            }
        };
        let telemetry = &asked.snapshot.parts.telemetry;
        let labels = [("team", &*asked.team.name)];
        let _waiting = Counted::new(telemetry.gauge(metrics::TURNS_WAITING, &labels));
        let since = Instant::now();
        let place = tokio::select! {
            place = ticket.place() => Ok(place),
            () = asked.peer.gone.cancelled() => Err(overloaded()),
            () = self.drain.reached(Stage::Refusing) => Err(ErrorReply::shutting_down()),
            () = tokio::time::sleep(limits.turn_wait.0) => {
                asked.limit_hit("turn_wait");
                Err(overloaded())
            }
        };
        telemetry.seconds(metrics::TURN_WAIT_SECONDS, &labels, since.elapsed());
        Ok(place?)
    }

    /// Hands a request through, bytes untouched.
    async fn relay(&self, request: Request<Incoming>, mut asked: Asked) -> Result<Response<Body>, Refusal> {
        let (account, place) = self.enter(&mut asked).await?;
        let (parts, incoming) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("", |p| p.as_str());
        let rest = target.strip_prefix("/v1").unwrap_or(target).to_owned();
        let headers = to_upstream(&parts.headers, &asked.id, false);
        let named;
        let (route, price, model, body, reservation) = if let Some(id) = one_model(&parts) {
            let route = route(&asked, &id)?;
            named = id;
            let held = pass::Held { body: Bytes::new(), model: Some(&named) };
            (route.clone(), None, route.model.clone(), pass::Request::Whole(held), None)
        } else if self.routed_by_model(&parts, &asked) {
            let held = self.read(&asked, &parts.headers, incoming).await?;
            let (body, reservation) = held.into_parts();
            let route = route_of_body(&asked, &body)?;
            named = model_of(&body).unwrap_or_default();
            let price = price_of(&asked.snapshot.prices, &named);
            let held = pass::Held { body, model: Some(&*named).filter(|name| !name.is_empty()) };
            (route.clone(), price, route.model.clone(), pass::Request::Whole(held), Some(reservation))
        } else if http_body::Body::is_end_stream(&incoming) {
            let route = asked.snapshot.routes.first().cloned().ok_or_else(|| no_model("-"))?;
            let held = pass::Held { body: Bytes::new(), model: None };
            (route.clone(), None, route.model.clone(), pass::Request::Whole(held), None)
        } else {
            let route = asked.snapshot.routes.first().cloned().ok_or_else(|| no_model("-"))?;
            let sent =
                http_body_util::BodyExt::boxed_unsync(http_body_util::BodyExt::map_err(incoming, Into::into));
            (route, None, metrics::OTHER.into(), pass::Request::Streamed(sent), None)
        };
        let targets = Targets::new(route.targets(|sum| fastrand::u32(..sum)));
        let passing = Box::new(Passing {
            targets: targets.ok_or_else(|| no_model("-"))?,
            telemetry: asked.snapshot.parts.telemetry.clone(),
            account,
            price,
            tasks: self.tasks.clone(),
            model,
            since: asked.since,
            headers: asked.headers,
            shutdown: self.shutdown.here(),
            turn: None,
        });
        let response = passing.pass(parts.method, &rest, headers, body).await;
        Ok(holding(response, (place, reservation, asked.in_flight)))
    }

    /// Whether the body has to be looked at: the model decides where it goes, whether it may, or what it costs.
    fn routed_by_model(&self, parts: &http::request::Parts, asked: &Asked) -> bool {
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        // Forms and files hold no JSON; anything else may, whatever it is called.
        let kind = kind.to_ascii_lowercase();
        let opaque = ["multipart/", "application/octet-stream"].iter().any(|of| kind.starts_with(of));
        // Where models are held back, a body is not a form because it says so.
        let opaque = opaque && (!asked.team.restricts_models() || takes_forms(parts.uri.path()));
        let has_body = !matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE);
        let matters = asked.snapshot.routes.ask_for_model()
            || asked.team.restricts_models()
            || !asked.snapshot.prices.is_empty();
        has_body && !opaque && matters
    }

    async fn read(&self, asked: &Asked, headers: &HeaderMap, incoming: Incoming) -> Result<Held, Refusal> {
        let server = &asked.snapshot.server;
        let bounds = Bounds {
            limit: asked.snapshot.limits.body.0,
            deadline: server.body_timeout.0,
            rate: server.body_rate.0,
        };
        body::read(headers, incoming, &bounds, &self.bodies).await.map_err(|error| {
            if matches!(error, BodyError::TooLarge { .. }) {
                asked.limit_hit("body");
            }
            let (status, code, message) = error.parts();
            let reply = ErrorReply::new(status.as_u16(), code, message);
            match error {
                BodyError::Overloaded => reply.retry_after(1),
                BodyError::TooLarge { .. } | BodyError::Timeout { .. } | BodyError::Broken => reply,
            }
            .into()
        })
    }
}

/// Lays headers over others.
fn put(headers: &mut HeaderMap, more: account::Headers) {
    for (name, value) in more {
        headers.insert(name, value);
    }
}

/// Counts in a gauge as long as it lives.
struct Counted(::metrics::Gauge);

impl Counted {
    fn new(gauge: ::metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Keeps `held` as long as the response's body lives.
fn holding<H: Send + 'static>(response: Response<Body>, held: H) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let body = http_body_util::BodyExt::map_frame(body, move |frame| {
        let _held = &held;
        frame
    });
    Response::from_parts(parts, Body::boxed(body))
}

fn route_of_body(asked: &Asked, body: &Bytes) -> Result<Arc<crate::upstream::Route>, Refusal> {
    if asked.team.restricts_models()
        && !body.is_empty()
        && let Err(why) = Members::read(body)
    {
        // Another reader might find a model in it that is not this team's.
        let message = format!("The body has to be one plain JSON object: {why}");
        return Err(ErrorReply::new(400, "invalid_json", message).into());
    }
    match model_of(body) {
        Some(model) => route(asked, &model),
        // What is no JSON names no model.
        None => asked.snapshot.routes.first().cloned().ok_or_else(|| no_model("-")),
    }
}

/// The model a body names; empty if what it names is no string.
fn model_of(body: &Bytes) -> Option<String> {
    let members = Members::read(body).ok()?;
    Some(members.find("model")?.as_string().unwrap_or_default().into_owned())
}

/// The route of a model the team may use.
fn route(asked: &Asked, model: &str) -> Result<Arc<crate::upstream::Route>, Refusal> {
    let allowed = asked.team.may_use_model(model);
    let found = asked.snapshot.routes.of(model).filter(|_| allowed);
    found.cloned().ok_or_else(|| no_model(model))
}

fn no_model(model: &str) -> Refusal {
    let model: String = model.chars().take(200).collect();
    ErrorReply::new(
        404,
        "model_not_found",
        format!("The model `{model}` does not exist or you do not have access to it."),
    )
    .about("model")
    .into()
}

fn unknown_key() -> ErrorReply {
    ErrorReply::new(
        401,
        "invalid_api_key",
        "Incorrect API key provided. This gateway has keys of its own: ask its operator for yours and send it as `Authorization: Bearer KEY`.",
    )
}

fn too_many_of_team() -> ErrorReply {
    ErrorReply::new(
        429,
        "rate_limit_exceeded",
        "Your team has as many requests in flight as it may. Try again when one of them is answered.",
    )
    .retry_after(1)
}

fn overloaded() -> ErrorReply {
    let message = "This gateway serves as many requests as it may. Try again shortly.";
    ErrorReply::new(503, "overloaded", message).retry_after(1)
}

fn wrong_method(allow: &'static str) -> Refusal {
    let error = ErrorReply::new(405, "method_not_allowed", format!("This path takes {allow} only."));
    Refusal { allow: Some(allow), ..error.into() }
}

//! One upstream: its address, credentials and habits, and the connections to it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};

use super::connect::{BoxError, Connector};
use super::fault;
use super::health::{Health, Key, Standing, Ticket};
use super::opening::{Opened, Patience, open};
use super::place::Place;
use super::reply::{Expect, Reply};
use super::settings::{Kind, Mode, Settings};
use super::upload::Upload;
use crate::policy::parallel::model_refuses_parameter;
use crate::policy::plan::Habits;
use crate::pool::{Body, Keep, Pool, Received, SendError, Sent};
use crate::telemetry::Telemetry;
use crate::trust;
use crate::units::Secret;
use crate::wire::error::Said;
use crate::wire::failure::{Fact, Failure, FailureKind, kind_of_status};
use crate::wire::history::Shape;

/// Idle connections are closed after this; most servers close theirs later.
const IDLE: Duration = Duration::from_secs(50);
/// The longest silence of a client that sends a body which is handed through.
const UPLOAD_STALL: Duration = Duration::from_secs(30);
/// The largest head of a response, and the most that is read at once, in bytes: less would take more reads for
/// what comes together.
const LARGEST_HEAD: usize = 64 * 1024;

/// Why an upstream cannot be used: a setting is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// The setting below `upstreams.NAME`.
    pub setting: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// What is the same in every ask of a turn.
#[derive(Debug, Clone)]
pub struct AskHead {
    /// The client's headers that go on, without credentials and hop-by-hop ones.
    pub headers: HeaderMap,
    /// Where it goes below an upstream's base URL.
    pub path: Cow<'static, str>,
}

/// Where chats are below an upstream's base URL, with the query of the client's request.
#[must_use]
pub fn chat_path(query: Option<&str>) -> Cow<'static, str> {
    const CHAT: &str = "/chat/completions";
    query.map_or(CHAT.into(), |query| format!("{CHAT}?{query}").into())
}

/// For whom and about what an upstream is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The team: it may have a key of its own.
    pub team: &'a str,
    /// The model's name at the upstream, where one is known.
    pub model: Option<&'a str>,
    /// The same was asked before.
    pub again: bool,
}

/// An answer whose bytes go through.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub response: Response<Received>,
    /// It refuses the key, and there is another one to try.
    pub other_key: bool,
}

/// What came of a chat whose reply goes through.
#[derive(Debug)]
pub enum Chatted {
    /// A reply.
    Opened(Opened),
    /// A refusal, or whatever else has a status of 400 or above.
    Refused(Answered),
}

/// What an upstream is built with, beside its settings.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// Keys of teams, by the team's name.
    pub team_keys: &'a BTreeMap<String, Secret>,
    /// The upstream of this name before a reload. What it remembers stays, if its settings do.
    pub before: Option<&'a Upstream>,
    /// Metrics.
    pub telemetry: &'a Telemetry,
}

/// One upstream.
pub struct Upstream {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// How it is asked.
    pub mode: Mode,
    settings: Settings,
    place: Place,
    headers: HeaderMap,
    key_header: HeaderName,
    keys: Vec<HeaderValue>,
    team_keys: BTreeMap<String, HeaderValue>,
    pool: Pool<Connector>,
    health: Arc<Health>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Upstream {
    /// An upstream as configured. `open` opens its secrets.
    pub fn new(
        name: &str,
        settings: &Settings,
        setup: Setup<'_>,
        open: impl Fn(&Secret) -> Result<String, String>,
    ) -> Result<Self, BuildError> {
        let wrong = |setting, message: String| BuildError { setting, message };
        let version = settings.api_version.as_deref();
        let place = Place::new(&settings.base_url, version).map_err(|e| wrong("base_url", e))?;
        let key = |setting, secret: &Secret| {
            let key = open(secret).map_err(|e| wrong(setting, e))?;
            let text = if settings.kind == Kind::Azure { key } else { format!("Bearer {key}") };
            secret_header(text)
                .ok_or_else(|| wrong(setting, "the key has characters that no header may have".into()))
        };
        let own = settings.keys().map(|secret| key("api_key", secret));
        let keys: Vec<HeaderValue> = own.collect::<Result<_, _>>()?;
        let team_keys = setup.team_keys.iter();
        let team_keys = team_keys.map(|(team, secret)| Ok((team.clone(), key("upstream_keys", secret)?)));
        let team_keys = team_keys.collect::<Result<_, _>>()?;
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let value = open(value).map_err(|e| wrong("headers", e))?;
            let header =
                HeaderName::try_from(name).map_err(|e| wrong("headers", format!("`{name}`: {e}")))?;
            let value = secret_header(value).ok_or_else(|| {
                wrong("headers", format!("`{name}` has characters that no header may have"))
            })?;
            headers.insert(header, value);
        }
        let tls = trust::tls(settings.ca.as_deref()).map_err(|e| wrong("ca", e))?;
        let connector = Connector::new(settings.connect_timeout.0, tls);
        let pool = Pool::new(connector, place.origin().clone(), Keep::For(IDLE), LARGEST_HEAD);
        let azure = settings.kind == Kind::Azure;
        Ok(Self {
            name: name.into(),
            mode: settings.mode,
            place,
            headers,
            key_header: if azure { HeaderName::from_static("api-key") } else { AUTHORIZATION },
            health: health(name, settings, &keys, setup),
            keys,
            team_keys,
            pool,
            settings: settings.clone(),
        })
    }

    /// The habits that matter for a request of this model. Each is also a setting.
    #[must_use]
    pub fn habits(&self, model: &str, takes_parallel: Option<bool>, streams: bool) -> Habits {
        let (set, kind) = (&self.settings, self.settings.kind);
        let no_format = matches!(kind, Kind::Gemini | Kind::Groq);
        let takes_parallel = takes_parallel.unwrap_or_else(|| !model_refuses_parameter(model));
        Habits {
            needs_serial_strict: set.needs_serial_strict.unwrap_or(kind == Kind::Azure),
            takes_parallel: takes_parallel && !self.health.has_learned(Fact::NoParallel, model),
            honours_tool_choice: set.honours_tool_choice.unwrap_or(kind != Kind::Ollama),
            takes_format_with_tools: set.response_format_with_tools.unwrap_or(!no_format),
            takes_effort_with_tools: set.reasoning_effort_with_tools.unwrap_or(true)
                && !self.health.has_learned(Fact::NoEffort, model),
            history: Shape {
                json_arguments: set.json_arguments.unwrap_or(kind == Kind::Ollama),
                short_ids: set.short_call_ids.unwrap_or(kind == Kind::Mistral),
                names_on_results: set.names_on_results.unwrap_or(kind == Kind::Gemini),
                answer_after_results: !set.user_after_results.unwrap_or(kind != Kind::Mistral),
                needs_tools: set.history_needs_tools.unwrap_or(kind == Kind::Anthropic),
            },
            streams: match self.mode {
                Mode::Stream => true,
                Mode::Whole => false,
                Mode::Follow => streams,
            },
        }
    }

    /// Remembers what is refused for this model.
    pub fn learn(&self, fact: Fact, model: &str) {
        self.health.learn(fact, model);
    }

    /// How it stands now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.health.standing()
    }

    /// Whether its paths name the model.
    #[must_use]
    pub const fn paths_name_models(&self) -> bool {
        self.place.names_models()
    }

    /// Asks for a chat completion. Nothing is sent before the reply is polled.
    #[must_use]
    pub fn ask(&self, body: Bytes, head: &AskHead, expect: Expect, asking: Asking<'_>) -> Reply {
        let mut headers = head.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let accept = if expect.stream { "text/event-stream" } else { "application/json" };
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let ticket = match self.admit(asking) {
            Ok(ticket) => ticket,
            Err(failure) => return Reply::failed(failure),
        };
        let body = Either::Left(Full::new(body));
        match self.request(Method::POST, &head.path, headers, body, asking, ticket.key) {
            Ok(request) => {
                let pool = self.pool.clone();
                let asked = Box::pin(async move { pool.send(request, || ()).await });
                let (head, stall) = (self.settings.head_timeout.0, self.settings.stall_timeout.0);
                Reply::new(asked, expect, head, stall, ticket)
            }
            Err(failure) => Reply::failed(failure),
        }
    }

    /// Sends a request whose body is held whole, for an answer whose bytes go through.
    pub async fn forward_whole(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        asking: Asking<'_>,
    ) -> Result<Answered, Box<Failure>> {
        let mut ticket = self.admit(asking)?;
        let answered = self.answer_to(method, path, headers, body, asking, ticket.key).await;
        judged(&mut ticket, answered)
    }

    /// Asks for a chat completion whose bytes go through; they are looked at before any of them does.
    /// A stream that has said nothing but comments goes through after `hold`.
    pub async fn forward_chat(
        &self,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        asking: Asking<'_>,
        expect: Expect,
        hold: Duration,
    ) -> Result<Chatted, Box<Failure>> {
        let mut ticket = self.admit(asking)?;
        let answered = self.answer_to(Method::POST, path, headers, body, asking, ticket.key).await;
        let opened = match answered {
            Ok(response) if response.status().as_u16() >= 400 => {
                return judged(&mut ticket, Ok(response)).map(Chatted::Refused);
            }
            Ok(response) if response.status() == StatusCode::OK => {
                ticket.accepted();
                open(response, expect, Patience { stall: self.settings.stall_timeout.0, hold }).await
            }
            Ok(response) => {
                let status = response.status().as_u16();
                Err(Failure::new(FailureKind::Protocol, format!("unexpected status {status}")))
            }
            Err(failure) => Err(failure),
        };
        match opened {
            Ok(opened) => {
                ticket.answered();
                Ok(Chatted::Opened(opened))
            }
            Err(mut failure) => {
                ticket.failed(&mut failure);
                Err(Box::new(failure))
            }
        }
    }

    /// The head of the answer to a request whose body is held whole.
    async fn answer_to(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        asking: Asking<'_>,
        key: Key,
    ) -> Result<Response<Received>, Failure> {
        let body = Either::Left(Full::new(body));
        let request = self.request(method, path, headers, body, asking, key)?;
        let sent = pin!(self.pool.send(request, || ()));
        match tokio::time::timeout(self.settings.head_timeout.0, sent).await {
            Ok(answered) => answered.map_err(|error| fault::of_sending(&error)),
            Err(_) => Err(late()),
        }
    }

    /// Sends a request whose body is handed through, for an answer whose bytes go through. The time
    /// for the head counts from the end of the body; until then the body has to go on.
    pub async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Sent,
        asking: Asking<'_>,
    ) -> Result<Answered, Box<Failure>> {
        let mut ticket = self.admit(asking)?;
        let (upload, progress) = Upload::new(body);
        let body = Either::Right(upload.boxed_unsync());
        let request = self.request(method, path, headers, body, asking, ticket.key)?;
        let mut sent = pin!(self.pool.send(request, || ()));
        let answered = loop {
            let state = progress.state();
            let allowed = if state.ended { self.settings.head_timeout.0 } else { UPLOAD_STALL };
            match tokio::time::timeout_at(state.last + allowed, &mut sent).await {
                Ok(answered) => break answered.map_err(|error| fault::of_sending(&error)),
                Err(_) if progress.state().last > state.last => {}
                Err(_) if state.ended => break Err(late()),
                Err(_) => break Err(Failure::new(FailureKind::ClientSlow, "the client's body stalled")),
            }
        };
        judged(&mut ticket, answered)
    }

    fn admit(&self, asking: Asking<'_>) -> Result<Ticket, Failure> {
        self.health.admit(asking.again, self.team_keys.contains_key(asking.team))
    }

    /// Its name among OpenTelemetry's providers.
    #[must_use]
    pub const fn provider(&self) -> &'static str {
        self.settings.kind.provider()
    }

    /// Its host and port.
    #[must_use]
    pub fn server(&self) -> (&str, u16) {
        self.place.server()
    }

    /// The longest silence inside a reply.
    #[must_use]
    pub const fn stall_timeout(&self) -> Duration {
        self.settings.stall_timeout.0
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
        asking: Asking<'_>,
        key: Key,
    ) -> Result<Request<Body>, Failure> {
        let target = self.place.path(path, asking.model);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = target.map_err(|e| Failure::new(FailureKind::Protocol, e.to_string()))?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.place.host().clone());
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        let key = match key {
            Key::None => None,
            Key::Own(at) => self.keys.get(at),
            Key::Team => self.team_keys.get(asking.team),
        };
        if let Some(key) = key {
            request.headers_mut().insert(self.key_header.clone(), key.clone());
        }
        Ok(request)
    }
}

/// A header whose value no debug output shows.
fn secret_header(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What the upstream before a reload remembers, if nothing of it changed; else a new memory.
fn health(name: &str, settings: &Settings, keys: &[HeaderValue], setup: Setup<'_>) -> Arc<Health> {
    match setup.before.filter(|before| before.settings == *settings) {
        Some(before) => {
            if before.keys != keys {
                before.health.forget_rests();
            }
            before.health.clone()
        }
        None => Health::new(name, settings, setup.telemetry),
    }
}

fn late() -> Failure {
    Failure::new(FailureKind::Timeout, "no head in time")
}

/// Tells the upstream's health how a question went whose answer goes through.
fn judged(
    ticket: &mut Ticket,
    answered: Result<Response<Received>, Failure>,
) -> Result<Answered, Box<Failure>> {
    match answered {
        Err(mut failure) => {
            ticket.failed(&mut failure);
            Err(Box::new(failure))
        }
        Ok(response) if response.status().as_u16() < 400 => {
            ticket.answered();
            Ok(Answered { response, other_key: false })
        }
        Ok(response) => {
            let status = response.status().as_u16();
            let kind = kind_of_status(status, &Said::default());
            let other_key = ticket.refused(kind, status, fault::retry_after(response.headers()));
            Ok(Answered { response, other_key })
        }
    }
}

/// An answer that is waited for.
pub(super) type Pending =
    Pin<Box<dyn Future<Output = Result<Response<Received>, SendError<BoxError>>> + Send>>;

//! An HTTP tool: one call is one request to a fixed origin.
//!
//! ```text
//!  arguments ─▶ form (pure) ─▶ attempt ─▶ connect (resolve, judge, open) ─▶ answer ─▶ outcome
//!                                 ▲                                            │
//!                                 └── fault (pure): once more, or never ───────┘
//! ```
//!
//! Every attempt of a call carries the same idempotency key. A tool with side effects opens a connection per
//! request, so that a server closing an idle one cannot leave its outcome in doubt.

pub(super) mod answer;
mod auth;
pub(super) mod connect;
pub(super) mod fault;
pub(super) mod form;
pub(super) mod origin;
mod written;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{Either, Full};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::answer::Answer;
pub(super) use self::connect::SystemRoots;
use self::connect::{ConnectError, Connector};
use self::fault::Fault;
pub(super) use self::fault::UNKNOWN;
use self::form::{Filled, Form};
use self::origin::own_origin;
use super::address::Reach;
use super::arguments::{Arguments, Schema};
use super::door::Made;
use super::load::Mistakes;
use super::{Call, settings, took};
use crate::pool::{Keep, Pool, SendError};
use crate::telemetry::traces::{TRACEPARENT, TRACESTATE};
use crate::wire::tool::{Effect, Outcome, OutcomeKind};

/// Redirects followed in one call, when the tool follows any.
const MAX_REDIRECTS: usize = 3;
/// The most bytes of a response's head.
const MAX_HEAD: usize = 64 * 1024;
/// How long a connection to a tool's server is kept.
pub(super) const IDLE: Duration = Duration::from_secs(15);
/// The shortest and longest pause before a second attempt, in milliseconds.
const PAUSE: std::ops::RangeInclusive<u64> = 50..=150;

type Connections = Pool<Connector>;

/// What a call of an HTTP tool needs.
#[derive(Debug)]
pub(super) struct Http {
    form: Form,
    /// See [`usual_headers`].
    usual: HeaderMap,
    connections: Connections,
    effect: Effect,
    follow_own_origin: bool,
}

/// The connections of several tools to one origin.
#[derive(Debug)]
pub(super) struct Clients {
    kept: Connections,
    fresh: Connections,
}

impl Clients {
    /// Reads what is the same for all of them.
    pub(super) fn load(
        settings: &settings::Http,
        schema: &Schema,
        roots: &SystemRoots,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let (form, connector) = Http::read(settings, schema, roots, mistakes)?;
        Some(Self {
            kept: connections(&form, connector.clone(), Effect::Read),
            fresh: connections(&form, connector, Effect::Write),
        })
    }
}

impl Http {
    /// Reads the settings; opens secrets and certificate files.
    pub(super) fn load(
        settings: &settings::Http,
        effect: Effect,
        schema: &Schema,
        roots: &SystemRoots,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let (form, connector) = Self::read(settings, schema, roots, mistakes)?;
        let connections = connections(&form, connector, effect);
        Some(Self::new(form, connections, effect, settings))
    }

    fn new(form: Form, connections: Connections, effect: Effect, settings: &settings::Http) -> Self {
        let usual = usual_headers(&form);
        Self { form, usual, connections, effect, follow_own_origin: settings.follow_own_origin }
    }

    /// The same for a tool that shares its connections with others of the same origin, networks and authorities.
    pub(super) fn share(
        settings: &settings::Http,
        effect: Effect,
        schema: &Schema,
        clients: &Clients,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let form = Form::load(settings, schema, mistakes)?;
        let connections = match effect {
            Effect::Read | Effect::Idempotent => clients.kept.clone(),
            Effect::Write => clients.fresh.clone(),
        };
        mistakes.is_empty().then(|| Self::new(form, connections, effect, settings))
    }

    fn read(
        settings: &settings::Http,
        schema: &Schema,
        roots: &SystemRoots,
        mistakes: &mut Mistakes,
    ) -> Option<(Form, Connector)> {
        let mut reach = networks("http", &settings.allow_cidrs, mistakes);
        let form = Form::load(settings, schema, mistakes);
        if let Some(form) = &form {
            origin::name_host("http", &form.origin, &mut reach, mistakes);
        }
        let secure = form.as_ref().is_some_and(|form| form.origin.secure);
        let tls = match connect::tls(settings.ca.as_deref(), roots, secure) {
            Ok(tls) => Some(tls),
            Err(message) => {
                mistakes.add(&["http", "ca"], message);
                None
            }
        };
        let (form, tls) = (form?, tls?);
        if !mistakes.is_empty() {
            return None;
        }
        Some((form, Connector::new(reach, tls)))
    }

    /// Whether these arguments make a request. The error is for the model.
    pub(super) fn check(&self, arguments: &Arguments<'_>, schema: &Schema) -> Result<(), String> {
        self.form.fill(arguments, schema).map(|_| ())
    }

    /// What these arguments become, for [`door`](super::door).
    pub(super) fn made(&self, arguments: &Arguments<'_>, schema: &Schema) -> Result<Made, String> {
        let Filled { uri, headers, body } = self.form.fill(arguments, schema)?;
        Ok(Made::Request { method: self.form.method.clone(), uri, headers, body })
    }

    /// Runs one call.
    pub(super) async fn run(
        &self,
        arguments: &Arguments<'_>,
        schema: &Schema,
        call: &Call,
        stop: &CancellationToken,
    ) -> Outcome {
        let started = Instant::now();
        let mut filled = match self.form.fill(arguments, schema) {
            Ok(filled) => filled,
            Err(what) => return Outcome::failed(OutcomeKind::InvalidArguments, &what),
        };
        for redirects in 0..=MAX_REDIRECTS {
            let answer = match self.ask(&filled, call, stop).await {
                Ok(answer) => answer,
                Err(fault) => {
                    let fault = if redirects > 0 { fault.after_redirect() } else { fault };
                    return fault::outcome(fault, self.effect, &took(call.deadline - started));
                }
            };
            match self.next(&filled.uri, &answer) {
                Some(uri) => filled.uri = uri,
                None => return answer.outcome(),
            }
        }
        let what = format!("more than {MAX_REDIRECTS} redirects");
        let what = if self.effect == Effect::Write { format!("{what}; {}", fault::UNKNOWN) } else { what };
        Outcome::failed(OutcomeKind::Error, &what)
    }

    /// Asks until there is an answer, or no reason to ask again.
    async fn ask(&self, filled: &Filled, call: &Call, stop: &CancellationToken) -> Result<Answer, Fault> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            if attempts > 1 {
                call.tries.tell();
            }
            let ended = self.attempt(filled, call, stop).await;
            let brief = ended.as_ref().map(|answer| answer.status).map_err(|fault| *fault);
            // Stopped or out of time, the answer at hand, if there is one, is still the best there is.
            if !fault::again(brief, self.effect, attempts) || !rested(call.deadline, stop).await {
                return ended;
            }
            tracing::debug!(request_id = call.request_id, ended = ?brief, "a tool's request is sent once more");
        }
    }

    async fn attempt(&self, filled: &Filled, call: &Call, stop: &CancellationToken) -> Result<Answer, Fault> {
        let mut request = Request::new(Either::Left(Full::new(filled.body.clone().unwrap_or_default())));
        *request.method_mut() = self.form.method.clone();
        // The connection is that of the URI's origin: a redirect stays there too.
        *request.uri_mut() = filled.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        *request.headers_mut() = headers(&self.usual, filled, call);
        let begun = AtomicBool::new(false);
        let sent = || begun.load(Ordering::Relaxed);
        let whole = async {
            let asked = self.connections.send(request, || begun.store(true, Ordering::Relaxed));
            Answer::read(asked.await.map_err(fault_of)?, call.result_limit).await
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Fault::Stopped { sent: sent() }),
            ended = whole => ended,
            () = tokio::time::sleep_until(call.deadline) => Err(Fault::Late { sent: sent() }),
        }
    }

    /// Where a redirect leads, when this tool follows it there: the same origin, the same method.
    fn next(&self, from: &Uri, answer: &Answer) -> Option<Uri> {
        if !self.follow_own_origin {
            return None;
        }
        let safe = self.form.method == Method::GET || self.form.method == Method::HEAD;
        let follows = match answer.status {
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => safe,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
                safe || self.effect != Effect::Write
            }
            _ => false,
        };
        let target = answer.location.as_deref().filter(|_| follows)?;
        own_origin(from, target)
    }
}

/// Waits a moment before another attempt. Gives whether there is one: the call has time left and is not stopped.
pub(super) async fn rested(deadline: Instant, stop: &CancellationToken) -> bool {
    let pause = Duration::from_millis(fastrand::u64(PAUSE));
    if Instant::now() + pause >= deadline {
        return false;
    }
    tokio::select! {
        () = tokio::time::sleep(pause) => true,
        () = stop.cancelled() => false,
    }
}

fn fault_of(error: SendError<ConnectError>) -> Fault {
    match error {
        SendError::Connect(error) => Fault::NotSent(error),
        SendError::Exchange { error, .. } if error.is_parse() => Fault::NoAnswer("the answer was not HTTP"),
        SendError::Exchange { .. } => Fault::NoAnswer("the connection was closed before an answer"),
    }
}

fn connections(form: &Form, connector: Connector, effect: Effect) -> Connections {
    let keep = match effect {
        Effect::Read | Effect::Idempotent => Keep::For(IDLE),
        Effect::Write => Keep::Never,
    };
    Pool::new(connector, form.origin.uri(), keep, MAX_HEAD)
}

/// The headers of every request, with empty ones where those of the call come: so a copy has room for them.
fn usual_headers(form: &Form) -> HeaderMap {
    let fixed = HeaderValue::from_static;
    HeaderMap::from_iter([
        (header::HOST, form.origin.host()),
        (header::ACCEPT_ENCODING, fixed("identity")),
        (header::USER_AGENT, fixed(concat!("fanfold/", env!("CARGO_PKG_VERSION")))),
        (header::ACCEPT, fixed("application/json, text/*;q=0.9, */*;q=0.1")),
        (HeaderName::from_static("idempotency-key"), fixed("")),
        (HeaderName::from_static("x-request-id"), fixed("")),
    ])
}

/// The usual headers, those of the settings on top of them, and those of the call.
fn headers(usual: &HeaderMap, filled: &Filled, call: &Call) -> HeaderMap {
    let mut headers = usual.clone();
    headers.extend(filled.headers.clone());
    // To find a header by its name takes longer than to go over the few there are.
    for (name, value) in &mut headers {
        let text = match name.as_str() {
            "idempotency-key" => &call.idempotency_key,
            "x-request-id" => &call.request_id,
            _ => continue,
        };
        if let Ok(text) = HeaderValue::from_str(text) {
            *value = text;
        }
    }
    if let Some(trace) = &call.trace {
        headers.insert(TRACEPARENT, trace.parent.clone());
        if let Some(state) = &trace.state {
            headers.insert(TRACESTATE, state.clone());
        }
    }
    if filled.body.is_some() {
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    }
    headers
}

/// The networks of `allow_cidrs` below a key of the settings.
pub(super) fn networks(key: &str, written: &[String], mistakes: &mut Mistakes) -> Reach {
    let mut opened = Vec::new();
    for (at, text) in written.iter().enumerate() {
        let read = text.parse::<ipnet::IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into));
        match read {
            Ok(net) => opened.push(net),
            Err(_) => mistakes.add_with_fix(
                &[key.to_owned(), "allow_cidrs".to_owned(), at.to_string()],
                format!("`{text}` is not a network"),
                "write an address and a prefix, such as 10.1.0.0/16",
            ),
        }
    }
    Reach::with(opened)
}

#[cfg(test)]
mod tests;

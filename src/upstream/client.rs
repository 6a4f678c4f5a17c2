//! One upstream: its address, credentials and habits, and the connections to it.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connect::{Connector, tls};
use super::fault;
use super::reply::{Expect, Reply};
use super::settings::{Kind, Mode, Settings};
use super::upload::Upload;
use crate::policy::parallel::model_refuses_parameter;
use crate::policy::plan::Habits;
use crate::wire::failure::{Failure, FailureKind};

/// What goes to an upstream: a body held whole, or one handed through.
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>>;
/// A body to be handed through.
pub type Sent = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// The most models one upstream's refusals of `parallel_tool_calls` are remembered for.
const MOST_LEARNED: usize = 256;
/// Idle connections are closed after this; most servers close theirs later.
const IDLE: Duration = Duration::from_secs(50);
/// The longest silence of a client that sends a body which is handed through.
const UPLOAD_STALL: Duration = Duration::from_secs(30);
/// The largest head of a response, in bytes.
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
#[derive(Debug, Clone, Default)]
pub struct AskHead {
    /// The client's headers that go on, without credentials and hop-by-hop ones.
    pub headers: HeaderMap,
}

/// One upstream.
pub struct Upstream {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// How it is asked.
    pub mode: Mode,
    kind: Kind,
    scheme: Scheme,
    authority: Authority,
    base_path: String,
    headers: HeaderMap,
    head_timeout: Duration,
    stall_timeout: Duration,
    needs_serial_strict: bool,
    honours_tool_choice: bool,
    client: Client<Connector, Body>,
    learned: RwLock<BTreeSet<String>>,
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
        open: impl Fn(&crate::units::Secret) -> Result<String, String>,
    ) -> Result<Self, BuildError> {
        let wrong = |setting, message: String| BuildError { setting, message };
        let uri: Uri = settings.base_url.parse().map_err(|e| wrong("base_url", format!("not a URL: {e}")))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(wrong("base_url", "a URL such as https://api.openai.com/v1 is needed".into()));
        };
        let path = parts.path_and_query.map(|p| p.path().trim_end_matches('/').to_owned());
        let mut headers = HeaderMap::new();
        if let Some(key) = &settings.api_key {
            let key = open(key).map_err(|e| wrong("api_key", e))?;
            let (header, value) = match settings.kind {
                Kind::Azure => (HeaderName::from_static("api-key"), key),
                Kind::Openai
                | Kind::Vllm
                | Kind::Ollama
                | Kind::Sglang
                | Kind::Mistral
                | Kind::Gemini
                | Kind::Anthropic
                | Kind::Groq => (AUTHORIZATION, format!("Bearer {key}")),
            };
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| wrong("api_key", "the key has characters that no header may have".into()))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        for (name, value) in &settings.headers {
            let value = open(value).map_err(|e| wrong("headers", e))?;
            let header =
                HeaderName::try_from(name).map_err(|e| wrong("headers", format!("`{name}`: {e}")))?;
            let mut value =
                HeaderValue::try_from(value).map_err(|e| wrong("headers", format!("`{name}`: {e}")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        let tls = tls(settings.ca.as_deref()).map_err(|e| wrong("ca", e))?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(LARGEST_HEAD)
            .build(Connector::new(settings.connect_timeout.0, tls));
        let kind = settings.kind;
        Ok(Self {
            name: name.into(),
            mode: settings.mode,
            kind,
            scheme,
            authority,
            base_path: path.unwrap_or_default(),
            headers,
            head_timeout: settings.head_timeout.0,
            stall_timeout: settings.stall_timeout.0,
            needs_serial_strict: settings.needs_serial_strict.unwrap_or(kind == Kind::Azure),
            honours_tool_choice: settings.honours_tool_choice.unwrap_or(kind != Kind::Ollama),
            client,
            learned: RwLock::new(BTreeSet::new()),
        })
    }

    /// The habits that matter for a request of this model.
    #[must_use]
    pub fn habits(
        &self,
        model: &str,
        needs_serial: bool,
        takes_parallel: Option<bool>,
        streams: bool,
    ) -> Habits {
        let takes_parallel = takes_parallel.unwrap_or_else(|| !model_refuses_parameter(model));
        Habits {
            needs_serial_strict: needs_serial || self.needs_serial_strict,
            takes_parallel: takes_parallel && !self.has_learned(model),
            honours_tool_choice: self.honours_tool_choice,
            tame_arguments: self.kind == Kind::Ollama,
            streams: match self.mode {
                Mode::Stream => true,
                Mode::Whole => false,
                Mode::Follow => streams,
            },
        }
    }

    fn has_learned(&self, model: &str) -> bool {
        self.learned.read().unwrap_or_else(PoisonError::into_inner).contains(model)
    }

    /// Remembers that `parallel_tool_calls` is refused for this model.
    pub fn learn_no_parallel(&self, model: &str) {
        let mut learned = self.learned.write().unwrap_or_else(PoisonError::into_inner);
        // What is forgotten is learned again when it matters.
        if learned.len() >= MOST_LEARNED {
            learned.clear();
        }
        learned.insert(model.to_owned());
    }

    /// Asks for a chat completion. Nothing is sent before the reply is polled.
    #[must_use]
    pub fn ask(&self, body: Bytes, head: &AskHead, expect: Expect) -> Reply {
        let mut headers = head.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let accept = if expect.stream { "text/event-stream" } else { "application/json" };
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        match self.request(Method::POST, "/chat/completions", headers, Either::Left(Full::new(body))) {
            Ok(request) => {
                Reply::new(self.client.request(request), expect, self.head_timeout, self.stall_timeout)
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
    ) -> Result<Response<Incoming>, Box<Failure>> {
        self.send(method, path, headers, Either::Left(Full::new(body))).await
    }

    /// Sends a request whose body is handed through, for an answer whose bytes go through. The time
    /// for the head counts from the end of the body; until then the body has to go on.
    pub async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Sent,
    ) -> Result<Response<Incoming>, Box<Failure>> {
        let (upload, progress) = Upload::new(body);
        let request =
            self.request(method, path, headers, Either::Right(upload.boxed_unsync())).map_err(Box::new)?;
        let mut sent = self.client.request(request);
        loop {
            let state = progress.state();
            let allowed = if state.ended { self.head_timeout } else { UPLOAD_STALL };
            match tokio::time::timeout_at(state.last + allowed, &mut sent).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(Box::new(fault::of_client(&error))),
                Err(_) if progress.state().last > state.last => {}
                Err(_) if state.ended => {
                    return Err(Box::new(Failure::new(FailureKind::Timeout, "no head in time")));
                }
                Err(_) => {
                    return Err(Box::new(Failure::new(FailureKind::ClientSlow, "the client's body stalled")));
                }
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>, Box<Failure>> {
        let request = self.request(method, path, headers, body).map_err(Box::new)?;
        match tokio::time::timeout(self.head_timeout, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Box::new(fault::of_client(&error))),
            Err(_) => Err(Box::new(Failure::new(FailureKind::Timeout, "no head in time"))),
        }
    }

    /// The longest silence inside a reply.
    #[must_use]
    pub const fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}", self.base_path))
            .build()
            .map_err(|e| Failure::new(FailureKind::Protocol, e.to_string()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }

    /// Whether a connection can be made; no model is called. For `check --online`.
    pub async fn probe(&self) -> Result<(), Failure> {
        let sent = self.forward_whole(Method::GET, "/models", HeaderMap::new(), Bytes::new()).await;
        let response = sent.map_err(|failure| *failure)?;
        match response.status().as_u16() {
            status @ (401 | 403) => Err(Failure::of_status(status, Bytes::new(), None)),
            _ => Ok(()),
        }
    }
}

/// The future of a response, as the client makes it.
pub(super) type Pending = ResponseFuture;

//! Requests to a server that is spoken to over HTTP, for the SDK's transport.
//!
//! The same names, addresses and certificates are judged as for an HTTP tool. Calls that do no harm if they reach the
//! server twice share kept connections. Every other request has one of its own, so that a server closing an idle one
//! cannot leave an outcome in doubt. Promises: no answer and no event of
//! more than [`MAX_MESSAGE`] bytes is held, no redirect is followed, no compression is asked for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, ErrorData, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Error as SseError, Sse, SseStream};
use tokio::time::timeout;

use super::asked::Harmless;
use super::listing::Schemas;
use super::plan::Address;
use super::stdio::MAX_MESSAGE;
use crate::pool::{Keep, Pool, Received, SendError};
use crate::tools::http::IDLE;
use crate::tools::http::answer::Answer;
use crate::tools::http::connect::{ConnectError, Connector};
use crate::tools::text::tame;

/// The most bytes of a response's head.
const MAX_HEAD: usize = 64 * 1024;
/// The most bytes of a refusal that are read.
const MAX_REFUSAL: usize = 16 * 1024;
/// How long a response may take to begin. The deadline of a call is far shorter.
const BEGIN: Duration = Duration::from_secs(3600);

const SESSION: &str = "mcp-session-id";
const LAST_EVENT: &str = "last-event-id";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HttpError {
    /// There was no connection: nothing was sent.
    NotSent(ConnectError),
    /// The request, or a part of it, went out.
    NoAnswer(&'static str),
    /// It was answered with this, and with nothing of the protocol.
    Status(Answer),
    /// Something in it cannot be sent.
    Unfit(&'static str),
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(why) => write!(f, "unreachable: {why}"),
            Self::Status(Answer { status, .. }) if status.is_redirection() => {
                write!(f, "the server answered HTTP {status}, which is not followed")
            }
            Self::Status(Answer { status, .. }) => write!(f, "the server answered HTTP {status}"),
            Self::NoAnswer(what) | Self::Unfit(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for HttpError {}

type Failed = StreamableHttpError<HttpError>;

/// Our own reason inside of an error of the SDK, which does not name it as a source.
pub(super) fn ours<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a HttpError> {
    if let StreamableHttpError::Client(ours) = cause(error)? { Some(ours) } else { None }
}

/// Whether the server has ended the session, and so has done nothing of what it was asked for.
pub(super) fn is_session_over(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause(error), Some(StreamableHttpError::SessionExpired))
}

fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Failed> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(failed) = error.downcast_ref::<Failed>() {
            return Some(failed);
        }
        source = error.source();
    }
    None
}

/// Sends requests to one server.
#[derive(Clone)]
pub(super) struct Requests {
    kept: Pool<Connector>,
    fresh: Pool<Connector>,
    host: HeaderValue,
    headers: HeaderMap,
    schemas: Schemas,
}

impl Requests {
    pub(super) fn new(address: &Address, schemas: Schemas) -> Self {
        let Address { origin, headers, connector, .. } = address;
        let pool = |keep| Pool::new(connector.clone(), origin.uri(), keep, MAX_HEAD);
        let (kept, fresh) = (pool(Keep::For(IDLE)), pool(Keep::Never));
        Self { kept, fresh, host: origin.host(), headers: headers.clone(), schemas }
    }

    async fn ask(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
        session: Option<&str>,
        more: HashMap<HeaderName, HeaderValue>,
        harmless: bool,
    ) -> Result<Response<Received>, Failed> {
        let unfit = |what| StreamableHttpError::Client(HttpError::Unfit(what));
        let uri: Uri = uri.parse().map_err(|_| unfit("the URL is not valid"))?;
        let target = uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        let mut headers = HeaderMap::new();
        headers.extend(more);
        if let Some(session) = session {
            let value =
                HeaderValue::from_str(session).map_err(|_| unfit("the server's session id is not valid"))?;
            headers.insert(SESSION, value);
        }
        headers.insert(header::HOST, self.host.clone());
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("fanfold/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(self.headers.clone());
        let send = async |pool: &Pool<Connector>| {
            let mut request = Request::new(Either::Left(Full::new(body.clone())));
            *request.method_mut() = method.clone();
            *request.uri_mut() = target.clone();
            *request.headers_mut() = headers.clone();
            pool.send(request, || ()).await
        };
        let sending = async {
            if !harmless {
                return send(&self.fresh).await.map_err(|error| failed(&error));
            }
            match send(&self.kept).await {
                Err(lost @ SendError::Exchange { reused: true, .. }) => {
                    // It may have arrived over the first: without a second connection that is what is known.
                    send(&self.fresh).await.map_err(|error| match error {
                        SendError::Connect(_) => failed(&lost),
                        SendError::Exchange { .. } => failed(&error),
                    })
                }
                sent => sent.map_err(|error| failed(&error)),
            }
        };
        let response = timeout(BEGIN, sending).await;
        let response =
            response.map_err(|_| StreamableHttpError::Client(HttpError::NoAnswer("no answer in time")))?;
        response.map_err(StreamableHttpError::Client)
    }

    /// The events of a response, each within the bound.
    fn events(&self, body: Received) -> BoxStream<'static, Result<Sse, SseError>> {
        let mut size = EventSize::default();
        let mut over = false;
        let frames = body.into_data_stream().map(move |frame| match frame {
            Ok(bytes) if size.fits(&bytes) => Ok(bytes),
            Ok(_) => Err(HttpError::NoAnswer("an event is too large")),
            Err(_) => Err(HttpError::NoAnswer("the answer broke off")),
        });
        let frames = frames.take_while(move |frame| {
            let go_on = !over;
            over = frame.is_err();
            std::future::ready(go_on)
        });
        let schemas = self.schemas.clone();
        let events = SseStream::from_bytes_stream(frames);
        events
            .inspect(move |event| {
                if let Ok(Sse { data: Some(data), .. }) = event {
                    schemas.note(data.as_bytes());
                }
            })
            .boxed()
    }

    async fn answered(
        &self,
        message: &ClientJsonRpcMessage,
        response: Response<Received>,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let wants_answer = matches!(message, ClientJsonRpcMessage::Request(_));
        let (head, body) = response.into_parts();
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let session = text(SESSION).map(str::to_owned);
        let kind = text("content-type").and_then(|kind| kind.split(';').next()).map(str::trim);
        match kind {
            _ if !wants_answer => Ok(StreamableHttpPostResponse::Accepted),
            Some(kind) if kind.eq_ignore_ascii_case(EVENTS) => {
                Ok(StreamableHttpPostResponse::Sse(self.events(body), session))
            }
            Some(kind) if kind.eq_ignore_ascii_case(JSON) => {
                let body = Limited::new(body, MAX_MESSAGE).collect().await.map_err(|error| {
                    if error.is::<http_body_util::LengthLimitError>() {
                        StreamableHttpError::ResponseBodyTooLarge { max_size: MAX_MESSAGE }
                    } else {
                        StreamableHttpError::Client(HttpError::NoAnswer("the answer broke off"))
                    }
                })?;
                let body = body.to_bytes();
                let message = serde_json::from_slice(&body).map_err(|_| {
                    StreamableHttpError::UnexpectedServerResponse("its answer is no message".into())
                })?;
                self.schemas.note(&body);
                Ok(StreamableHttpPostResponse::Json(message, session))
            }
            Some(_) | None => {
                Err(StreamableHttpError::UnexpectedContentType(kind.map(|kind| tame(kind, 80))))
            }
        }
    }
}

impl StreamableHttpClient for Requests {
    type Error = HttpError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _: Option<String>,
        mut headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        let body = Bytes::from(serde_json::to_vec(&message)?);
        let harmless = is_harmless(&message);
        let response = self.ask(Method::POST, &uri, body, session.as_deref(), headers, harmless).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(StreamableHttpPostResponse::Accepted),
            StatusCode::NOT_FOUND if session.is_some() => Err(StreamableHttpError::SessionExpired),
            status if status.is_success() => self.answered(&message, response).await,
            _ => refused(&message, session.is_some(), response).await,
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        _: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failed> {
        // Whether it knows how to end a session is its own business.
        self.ask(Method::DELETE, &uri, Bytes::new(), Some(&*session), headers, false).await.map(drop)
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        _: Option<String>,
        mut headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failed> {
        headers.insert(ACCEPT, HeaderValue::from_static(EVENTS));
        if let Some(id) = last_event.and_then(|id| HeaderValue::from_str(&id).ok()) {
            headers.insert(HeaderName::from_static(LAST_EVENT), id);
        }
        let response = self.ask(Method::GET, &uri, Bytes::new(), session.as_deref(), headers, false).await?;
        match response.status() {
            StatusCode::OK => Ok(self.events(response.into_body())),
            StatusCode::METHOD_NOT_ALLOWED => Err(StreamableHttpError::ServerDoesNotSupportSse),
            StatusCode::NOT_FOUND if session.is_some() => Err(StreamableHttpError::SessionExpired),
            status => {
                Err(StreamableHttpError::UnexpectedServerResponse(Cow::Owned(format!("HTTP {status}"))))
            }
        }
    }
}

/// What a status that is no success says. A server that does not know the question which opens a conversation of the
/// current revision may say so with any 4xx; that is an answer, and the older way is tried next.
async fn refused(
    message: &ClientJsonRpcMessage,
    in_session: bool,
    response: Response<Received>,
) -> Result<StreamableHttpPostResponse, Failed> {
    let broke_off = |_| StreamableHttpError::Client(HttpError::NoAnswer("the answer broke off"));
    let answer = Answer::read(response, MAX_REFUSAL).await.map_err(broke_off)?;
    let error = match serde_json::from_str(&answer.content) {
        Ok(ServerJsonRpcMessage::Error(error)) => Some(error),
        Ok(_) | Err(_) => None,
    };
    let status = answer.status;
    let auth = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let (id, opening) = match message {
        ClientJsonRpcMessage::Request(request) => {
            (Some(&request.id), matches!(request.request, ClientRequest::DiscoverRequest(_)))
        }
        ClientJsonRpcMessage::Response(_)
        | ClientJsonRpcMessage::Notification(_)
        | ClientJsonRpcMessage::Error(_) => (None, false),
    };
    match (id, error) {
        (Some(id), error) if opening && !in_session && status.is_client_error() && !auth => {
            let unknown = || ErrorData::invalid_request(format!("HTTP {status}"), None);
            let error = error.map_or_else(unknown, |error| error.error);
            Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(id.clone())), None))
        }
        // One of another request, or of none, would reach nobody.
        (Some(id), Some(error)) if !auth && error.id.as_ref() == Some(id) => {
            Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::Error(error), None))
        }
        (_, _) => Err(StreamableHttpError::Client(HttpError::Status(answer))),
    }
}

/// Whether a message may reach the server twice.
fn is_harmless(message: &ClientJsonRpcMessage) -> bool {
    let ClientJsonRpcMessage::Request(request) = message else { return false };
    let ClientRequest::CallToolRequest(call) = &request.request else { return false };
    call.extensions.get::<Harmless>().is_some()
}

fn failed(error: &SendError<ConnectError>) -> HttpError {
    match error {
        SendError::Connect(error) => HttpError::NotSent(*error),
        SendError::Exchange { .. } => HttpError::NoAnswer("the connection was closed before an answer"),
    }
}

/// Counts the bytes of the event that is being read.
#[derive(Debug, Default)]
struct EventSize {
    size: usize,
    line: usize,
}

impl EventSize {
    /// Whether the events of this frame stay within the bound. A blank line ends an event.
    fn fits(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match byte {
                b'\n' if self.line == 0 => self.size = 0,
                b'\n' => self.line = 0,
                b'\r' => {}
                _ => {
                    self.line += 1;
                    self.size += 1;
                }
            }
            if self.size > MAX_MESSAGE {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_line_ends_an_event_and_one_that_is_too_large_does_not_fit() {
        let mut size = EventSize::default();
        let half = vec![b'x'; MAX_MESSAGE / 2];
        for end in [&b"\n\n"[..], b"\r\n\r\n"] {
            for _ in 0..3 {
                assert!(size.fits(&half) && size.fits(end));
            }
        }
        assert!(size.fits(&half) && size.fits(b"\n") && size.fits(&half) && !size.fits(b"x"));
    }
}

//! Sends spans to a collector: OTLP over HTTP, or gRPC as one request of HTTP/2.
//!
//! ```text
//!  some ─▶ wait for more (delay, or enough) ─▶ request ─┬─ taken
//!                                              ▲        ├─ refused: dropped
//!                                              └─ pause ┴─ not now: again, for a minute at most
//! ```
//!
//! Who slows down whom: nobody. While the collector is away spans gather in the buffer, and what does not
//! fit is dropped. The log says once that it is away, and once that it is back.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::resolve::Resolved;
use super::settings::Protocol;
use super::span::{Value, attribute};
use super::{BATCH, Waiting};
use crate::telemetry::metrics;

/// The first pause before a batch is sent again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a batch is sent again, whatever the collector asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long a batch is sent again before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end waits for what is left to be sent.
const GOODBYE: Duration = Duration::from_secs(3);
/// Idle connections are closed after this.
const IDLE: Duration = Duration::from_secs(50);
/// The largest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 64 * 1024;
/// The longest reason that is logged, in characters.
const LONGEST_REASON: usize = 200;
/// What stands before a message in gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Statuses of gRPC after which OTLP sends again: cancelled, deadline exceeded, resource exhausted, aborted, out
/// of range, unavailable, data loss.
const MAY_BE_LATER: [u8; 7] = [1, 4, 8, 10, 11, 14, 15];

/// What sends the spans of one tracer.
pub struct Exporter {
    to: Resolved,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    resource: Resource,
    waiting: Arc<Waiting>,
    delay: Duration,
    /// Cancelled when the tracer is gone.
    over: CancellationToken,
    is_away: bool,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

/// Why spans were not taken.
#[derive(Debug, PartialEq)]
enum Fault {
    /// They will not be taken later either.
    Refused(String),
    /// They may be later; after so long, if the collector says so.
    NotNow(String, Option<Duration>),
}

impl Exporter {
    pub(super) fn new(to: Resolved, waiting: Arc<Waiting>, delay: Duration, over: CancellationToken) -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        http.set_connect_timeout(Some(to.timeout));
        let tls = HttpsConnectorBuilder::new().with_tls_config(to.tls.clone()).https_or_http();
        let connector = match to.protocol {
            Protocol::Grpc => tls.enable_http2().wrap_connector(http),
            Protocol::Http => tls.enable_http1().wrap_connector(http),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http2_only(to.protocol == Protocol::Grpc)
            .build(connector);
        let text = |(key, value): &(String, String)| attribute(key, Value::StringValue(value.clone()));
        let resource = Resource { attributes: to.resource.iter().map(text).collect(), ..Resource::default() };
        Self { to, client, resource, waiting, delay, over, is_away: false }
    }

    /// Sends until the tracer is gone or `stop` is cancelled, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let end = End { stop, over: self.over.clone() };
        let waiting = self.waiting.clone();
        while !end.is_there() {
            tokio::select! {
                () = waiting.some.notified() => {}
                () = end.comes() => {}
            }
            if waiting.spans().len() < BATCH {
                tokio::select! {
                    () = sleep(self.delay) => {}
                    () = waiting.enough.notified() => {}
                    () = end.comes() => {}
                }
            }
            while self.is_waiting() && !end.is_there() {
                // Whatever came of it has been told.
                let _ = self.deliver(&end).await;
            }
        }
        let until = Instant::now() + GOODBYE;
        while self.is_waiting() && Instant::now() < until && self.deliver(&end).await.is_ok() {}
        let left = std::mem::take(&mut *waiting.spans());
        waiting.gone(Waiting::size(&left));
        waiting.dropped("stopped", left.len());
    }

    fn is_waiting(&self) -> bool {
        !self.waiting.spans().is_empty()
    }

    /// Sends the oldest spans, again where that may help. At the end it is tried once.
    async fn deliver(&mut self, end: &End) -> Result<(), ()> {
        let batch = self.waiting.batch();
        let (count, bytes) = (batch.len(), Waiting::size(&batch));
        let message = self.message(batch);
        let (mut pause, patience) = (FIRST_PAUSE, Instant::now() + PATIENCE);
        let outcome = loop {
            let sent = tokio::select! {
                sent = self.send(message.clone()) => sent,
                () = end.is_long_over() => Err(Fault::NotNow("no answer in time".into(), None)),
            };
            let (why, wait) = match sent {
                Ok(rejected) => {
                    self.took(count, rejected);
                    break Ok(());
                }
                Err(Fault::Refused(why)) => {
                    self.failed(&why);
                    self.waiting.dropped("refused", count);
                    break Err(());
                }
                Err(Fault::NotNow(why, wait)) => (why, wait),
            };
            self.failed(&why);
            if end.is_there() || Instant::now() + pause > patience {
                self.waiting.dropped("unreachable", count);
                break Err(());
            }
            tokio::select! {
                () = sleep(wait.unwrap_or(pause).min(LONGEST_PAUSE)) => {}
                () = end.comes() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        self.waiting.gone(bytes);
        outcome
    }

    /// The collector took spans, but for so many.
    fn took(&mut self, count: usize, rejected: usize) {
        if std::mem::take(&mut self.is_away) {
            tracing::info!("traces reach their collector again");
        }
        let rejected = rejected.min(count);
        self.waiting.dropped("refused", rejected);
        let taken = self.waiting.telemetry.counter(metrics::SPANS_EXPORTED, &[]);
        taken.increment((count - rejected) as u64);
    }

    /// The log says once that it is away.
    fn failed(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_away, true) {
            let collector = self.to.url.authority().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%collector, %why, "traces do not reach their collector; they are kept while there is room (`traces.buffer`), and then dropped");
        }
    }

    fn message(&self, spans: Vec<Span>) -> Bytes {
        let scope = InstrumentationScope {
            name: "fanfold".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        };
        match self.to.protocol {
            Protocol::Http => request.encode_to_vec().into(),
            Protocol::Grpc => {
                let length = request.encoded_len();
                let mut message = BytesMut::with_capacity(PREFIX + length);
                // Not compressed; then the length.
                message.put_u8(0);
                message.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                message.put_slice(&request.encode_to_vec());
                message.freeze()
            }
        }
    }

    /// One request; how many spans were rejected.
    async fn send(&self, message: Bytes) -> Result<usize, Fault> {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.to.url.clone();
        let headers = request.headers_mut();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("fanfold/", env!("CARGO_PKG_VERSION"), " OTLP")),
        );
        headers.extend(self.to.headers.clone());
        let kind = match self.to.protocol {
            Protocol::Http => "application/x-protobuf",
            Protocol::Grpc => "application/grpc",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if self.to.protocol == Protocol::Grpc {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        let answered = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|error| Fault::NotNow(in_words(&error), None))?;
            match self.to.protocol {
                Protocol::Http => of_http(response).await,
                Protocol::Grpc => of_grpc(response).await,
            }
        };
        timeout(self.to.timeout, answered)
            .await
            .unwrap_or_else(|_| Err(Fault::NotNow("no answer in time".into(), None)))
    }
}

/// What ends an exporter.
struct End {
    stop: CancellationToken,
    over: CancellationToken,
}

impl End {
    fn is_there(&self) -> bool {
        self.stop.is_cancelled() || self.over.is_cancelled()
    }

    async fn comes(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.over.cancelled() => {}
        }
    }

    async fn is_long_over(&self) {
        self.comes().await;
        sleep(GOODBYE).await;
    }
}

async fn of_http(response: Response<Incoming>) -> Result<usize, Fault> {
    let (head, body) = response.into_parts();
    let read = Limited::new(body, LARGEST_ANSWER).collect().await.map(http_body_util::Collected::to_bytes);
    if head.status.is_success() {
        return Ok(read.map_or(0, |body| rejected(&body)));
    }
    let why = format!("it answers {}", head.status);
    match head.status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(Fault::NotNow(why, asked_for(&head.headers))),
        _ => Err(Fault::Refused(why)),
    }
}

/// How long a collector wants to be left alone, in seconds.
fn asked_for(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn of_grpc(response: Response<Incoming>) -> Result<usize, Fault> {
    let (head, body) = response.into_parts();
    let broken = |why: &str| Fault::NotNow(why.to_owned(), None);
    let read = Limited::new(body, LARGEST_ANSWER).collect().await;
    let read = read.map_err(|_| broken("its answer broke off"))?;
    // An answer without a message has its status in the head.
    let said = |name: &str| {
        let of = |headers: &HeaderMap| headers.get(name)?.to_str().ok().map(str::to_owned);
        read.trailers().and_then(of).or_else(|| of(&head.headers))
    };
    let Some(status) = said("grpc-status").and_then(|status| status.parse::<u8>().ok()) else {
        let why = format!("it answers {} without speaking gRPC", head.status);
        return Err(if head.status.is_server_error() { broken(&why) } else { Fault::Refused(why) });
    };
    if status == 0 {
        let body = read.to_bytes();
        return Ok(rejected(body.get(PREFIX..).unwrap_or_default()));
    }
    let message: String = said("grpc-message").unwrap_or_default().chars().take(LONGEST_REASON).collect();
    let why = format!("it answers gRPC status {status} {message}").trim_end().to_owned();
    Err(if MAY_BE_LATER.contains(&status) { broken(&why) } else { Fault::Refused(why) })
}

/// What a collector that took a request did not take of it.
fn rejected(body: &[u8]) -> usize {
    let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
    let rejected = answer.partial_success.map_or(0, |part| part.rejected_spans);
    usize::try_from(rejected).unwrap_or(0)
}

fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text.chars().take(LONGEST_REASON).collect()
}

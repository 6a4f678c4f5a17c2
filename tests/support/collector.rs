//! A collector that keeps what it is sent, over HTTP or gRPC, and answers as it is told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Told;
use opentelemetry_proto::tonic::trace::v1::Span as Proto;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::gateway::soon;
use super::tls::Certificate;

/// What it answers.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// All was taken but so many spans.
    Taken { rejected: i64 },
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC.
    Grpc(u8),
    /// Nothing, ever.
    Silence,
}

/// A running collector.
pub struct Collector {
    pub address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Kept {
    answers: VecDeque<Answer>,
    requests: Vec<(HeaderMap, String)>,
    spans: Vec<Span>,
    resource: Value,
}

/// A span in words.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub kind: i32,
    pub start: u64,
    pub end: u64,
    pub failed: bool,
    pub state: String,
    pub attributes: Value,
}

impl Collector {
    /// Starts one that speaks HTTP/1, or HTTP/2 without being asked whether it does, as gRPC wants it.
    pub async fn start(grpc: bool) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), grpc)
    }

    /// The same behind TLS.
    pub async fn secure(grpc: bool, certificate: &Certificate) -> Self {
        let acceptor = certificate.acceptor(if grpc { "h2" } else { "http/1.1" });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::behind(listener, grpc, Some(acceptor))
    }

    pub fn on(listener: TcpListener, grpc: bool) -> Self {
        Self::behind(listener, grpc, None)
    }

    fn behind(listener: TcpListener, grpc: bool, acceptor: Option<TlsAcceptor>) -> Self {
        let address = listener.local_addr().expect("bound");
        let kept = Arc::<Mutex<Kept>>::default();
        let mut tasks = JoinSet::new();
        let all = kept.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, acceptor) = (all.clone(), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => serve(stream, grpc, kept).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serve(stream, grpc, kept).await,
                            Err(error) => panic!("{error}"),
                        },
                    }
                });
            }
        });
        Self { address, kept, _tasks: tasks }
    }

    /// `traces:` for it.
    pub fn settings(&self, grpc: bool) -> Value {
        let protocol = if grpc { "grpc" } else { "http" };
        json!({ "endpoint": format!("http://{}", self.address), "protocol": protocol, "delay": "10ms" })
    }

    /// What it answers next, one after another, before it takes everything.
    pub fn answers(&self, answers: &[Answer]) {
        self.kept().answers.extend(answers);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("nobody panicked")
    }

    /// Head and path of each request.
    pub fn requests(&self) -> Vec<(HeaderMap, String)> {
        self.kept().requests.clone()
    }

    /// What the last request said of the process.
    pub fn resource(&self) -> Value {
        self.kept().resource.clone()
    }

    /// All spans that were taken.
    pub fn spans(&self) -> Vec<Span> {
        self.kept().spans.clone()
    }

    /// Waits until there are so many.
    pub async fn wait(&self, count: usize) -> Vec<Span> {
        soon(async {
            loop {
                let spans = self.spans();
                if spans.len() >= count {
                    return spans;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    grpc: bool,
    kept: Arc<Mutex<Kept>>,
) {
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| answer(request, grpc, kept.clone()));
    let ended = if grpc {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    };
    // The other side goes when it likes.
    drop(ended);
}

type Reply = Response<BoxBody<Bytes, Infallible>>;

async fn answer(
    request: Request<Incoming>,
    grpc: bool,
    kept: Arc<Mutex<Kept>>,
) -> Result<Reply, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let body = if grpc { body.slice(5..) } else { body };
    let sent = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let next = {
        let mut kept = kept.lock().expect("nobody panicked");
        kept.requests.push((head.headers, head.uri.path().to_owned()));
        let next = kept.answers.pop_front().unwrap_or(Answer::Taken { rejected: 0 });
        if let Answer::Taken { .. } = next {
            for resource in sent.resource_spans {
                kept.resource = attributes(&resource.resource.expect("a resource").attributes);
                let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                kept.spans.extend(all.map(|span| in_words(&span)));
            }
        }
        next
    };
    let full = |body: Vec<u8>| Full::from(Bytes::from(body));
    Ok(match next {
        Answer::Silence => std::future::pending().await,
        Answer::Http(status) => {
            let mut response = Response::new(full(Vec::new()).boxed());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            response
        }
        Answer::Grpc(status) => Response::builder()
            .header("grpc-status", status.to_string())
            .header("grpc-message", "not today")
            .body(full(Vec::new()).boxed())
            .expect("a response"),
        Answer::Taken { rejected } => {
            let part = ExportTracePartialSuccess { rejected_spans: rejected, error_message: String::new() };
            let message = ExportTraceServiceResponse { partial_success: (rejected > 0).then_some(part) };
            let message = message.encode_to_vec();
            if !grpc {
                return Ok(Response::new(full(message).boxed()));
            }
            let length = u32::try_from(message.len()).expect("small").to_be_bytes();
            let framed = [&[0], &length[..], &message].concat();
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            Response::new(full(framed).with_trailers(async move { Some(Ok(trailers)) }).boxed())
        }
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(all: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> Value {
    let value = |told: Option<&Told>| match told {
        Some(Told::StringValue(text)) => json!(text),
        Some(Told::IntValue(number)) => json!(number),
        Some(Told::DoubleValue(number)) => json!(number),
        Some(Told::BoolValue(is)) => json!(is),
        Some(Told::ArrayValue(list)) => json!(format!("{list:?}")),
        other => panic!("{other:?}"),
    };
    let each = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        (pair.key.clone(), value(pair.value.as_ref().and_then(|value| value.value.as_ref())))
    };
    all.iter().map(each).collect()
}

fn in_words(span: &Proto) -> Span {
    Span {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name.clone(),
        kind: span.kind,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        failed: span.status.as_ref().is_some_and(|status| status.code == 2),
        state: span.trace_state.clone(),
        attributes: attributes(&span.attributes),
    }
}

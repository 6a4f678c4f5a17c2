//! A small HTTP/1.1 server on a free loopback port, which stops when it is told to.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The most a request may weigh.
const REQUEST: usize = 16 * 1024 * 1024;
/// The most connections at once: those beyond wait to be accepted.
const CONNECTIONS: usize = 1024;
/// How long a head may take.
const HEAD: Duration = Duration::from_secs(30);

/// Serves `answer` on a free port until `stop`; every task is in `tasks`.
pub(super) async fn serve<A, F>(
    tasks: &TaskTracker,
    stop: CancellationToken,
    answer: A,
) -> io::Result<SocketAddr>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        while let Some(Ok(place)) = stop.run_until_cancelled(room.clone().acquire_owned()).await {
            let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely: a moment later there may be some.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let answer = answer.clone();
            let stop = stop.clone();
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let reply = answer(request);
                    async move { Ok::<_, Infallible>(reply.await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .serve_connection(TokioIo::new(stream), service);
                // A connection that breaks concerns its peer only, and the peer knows.
                let _ended = stop.run_until_cancelled(connection).await;
                drop(place);
            });
        }
    });
    Ok(address)
}

/// The request's body as JSON, or nothing if it is none.
pub(super) async fn json_body(request: Request<Incoming>) -> Option<Value> {
    let body = Limited::new(request.into_body(), REQUEST).collect().await.ok()?.to_bytes();
    serde_json::from_slice(&body).ok()
}

/// A JSON answer.
pub(super) fn json(status: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    respond(status, "application/json", body)
}

/// An answer of any kind.
pub(super) fn respond(status: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

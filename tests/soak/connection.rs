//! A client's connection: with TLS or without, HTTP/1.1 or HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::support::client::Got;
use super::support::tls::Certificate;

/// Bytes of a segment on an ordinary network. Those of the loopback are larger than what a client that reads slowly
/// has room for, and the kernel waits longer and longer before it sends a part of one.
const SEGMENT: u32 = 1460;
/// What a client takes of a stream of HTTP/2 before it has read it, in bytes.
const WINDOW: u32 = 64 * 1024;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where clients go in.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    /// With TLS, and what it is trusted by.
    pub(super) certificate: Option<Arc<Certificate>>,
}

/// The version a client speaks: with TLS it is agreed on by ALPN, without it is known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// An open connection; it is closed when this is dropped.
pub(super) struct Connection {
    sender: Sender,
    version: Version,
    _driving: JoinSet<()>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    pub(super) async fn open(door: &Door, version: Version) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT).expect("a size");
        let stream = socket.connect(door.address).await.expect("it accepts");
        Self::on(stream, door, version).await
    }

    async fn on(stream: TcpStream, door: &Door, version: Version) -> Self {
        let alpn = match version {
            Version::Http1 => "http/1.1",
            Version::Http2 => "h2",
        };
        match &door.certificate {
            Some(certificate) => {
                let stream = certificate.connect(stream, alpn).await.expect("a handshake");
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
                Self::over(stream, version).await
            }
            None => Self::over(stream, version).await,
        }
    }

    async fn over<S>(stream: S, version: Version) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (io, mut driving) = (TokioIo::new(stream), JoinSet::new());
        let sender = match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(io).await.expect("a connection");
                driving.spawn(async move { _ = connection.await });
                Sender::Http1(sender)
            }
            Version::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.initial_stream_window_size(WINDOW);
                let (sender, connection) = builder.handshake(io).await.expect("a connection");
                driving.spawn(async move { _ = connection.await });
                Sender::Http2(sender)
            }
        };
        Self { sender, version, _driving: driving }
    }

    /// Whether another request can be sent.
    pub(super) async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Asks. Over HTTP/2 it may be done many times at once: what is given back needs this no more, but to be open.
    pub(super) fn send(
        &mut self,
        headers: &[(&'static str, String)],
        body: Body,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + Send + use<> {
        let path = "/v1/chat/completions";
        let mut request = match self.version {
            Version::Http1 => Request::post(path).header("host", "localhost"),
            Version::Http2 => Request::post(format!("http://localhost{path}")),
        };
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(body).expect("a request");
        match &mut self.sender {
            Sender::Http1(sender) => Either::Left(sender.send_request(request)),
            Sender::Http2(sender) => Either::Right(sender.send_request(request)),
        }
    }
}

/// Reads an answer to its end; an error says how it broke off.
pub(super) async fn whole(answer: hyper::Result<Response<Incoming>>) -> Result<Got, String> {
    let (parts, body) = answer.map_err(|error| format!("{error:?}"))?.into_parts();
    let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    let body = String::from_utf8(body.to_vec()).map_err(|error| error.to_string())?;
    Ok(Got { status: parts.status, headers: parts.headers, body })
}

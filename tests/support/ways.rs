//! The ways in which a client is connected, and in which it leaves.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::gateway::soon;
use super::tls::Certificate;

/// How a client is connected, and how it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    /// One byte of another request is behind the first.
    PlainAndMore,
    /// It resets the connection instead of closing it.
    PlainReset,
    /// HTTP/2 without TLS; the connection is closed.
    Prior,
    /// The same, but only the stream is given up; the connection stays.
    PriorStream,
    Tls,
    TlsAndMore,
    /// HTTP/2 over TLS; the connection is closed.
    Http2,
    /// Only the stream is given up; the connection stays.
    Http2Stream,
}

use Way::{Http2, Http2Stream, Plain, PlainAndMore, PlainReset, Prior, PriorStream, Tls, TlsAndMore};

pub const WAYS: [Way; 9] =
    [Plain, PlainAndMore, PlainReset, Prior, PriorStream, Tls, TlsAndMore, Http2, Http2Stream];

impl Way {
    pub const fn is_tls(self) -> bool {
        match self {
            Plain | PlainAndMore | PlainReset | Prior | PriorStream => false,
            Tls | TlsAndMore | Http2 | Http2Stream => true,
        }
    }

    const fn is_http2(self) -> bool {
        matches!(self, Prior | PriorStream | Http2 | Http2Stream)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Plain => "HTTP/1.1",
            PlainAndMore => "HTTP/1.1 and a byte more",
            PlainReset => "HTTP/1.1 with a reset",
            Prior => "HTTP/2",
            PriorStream => "a stream of HTTP/2",
            Tls => "TLS",
            TlsAndMore => "TLS and a byte more",
            Http2 => "TLS, HTTP/2",
            Http2Stream => "TLS, a stream of HTTP/2",
        }
    }

    /// Connects and asks for a chat. The certificate is what TLS trusts.
    pub async fn ask(
        self,
        address: SocketAddr,
        certificate: &Certificate,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Client {
        let body = body.to_string();
        let stream = TcpStream::connect(address).await.expect("a listener");
        if self.is_http2() {
            if !self.is_tls() {
                return http2(stream, headers, body).await;
            }
            let stream = certificate.connect(stream, "h2").await.expect("a handshake");
            return http2(stream, headers, body).await;
        }
        let more = if matches!(self, PlainAndMore | TlsAndMore) { "G" } else { "" };
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{headers}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}{more}",
            body.len(),
        );
        let mut stream = stream;
        if self.is_tls() {
            let mut stream = certificate.connect(stream, "http/1.1").await.expect("a handshake");
            stream.write_all(request.as_bytes()).await.expect("sent");
            return Client::Tls(Box::new(stream));
        }
        stream.write_all(request.as_bytes()).await.expect("sent");
        Client::Plain(stream)
    }
}

/// A client that has asked.
pub enum Client {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Http2(Box<Http2Client>),
}

/// One that speaks HTTP/2.
pub struct Http2Client {
    /// The request's task.
    asking: JoinSet<()>,
    /// The connection's.
    _connected: JoinSet<()>,
    /// Keeps the connection open.
    _sender: SendRequest<Full<Bytes>>,
    /// What was read so far.
    read: watch::Receiver<String>,
}

async fn http2<S>(stream: S, headers: &[(&str, &str)], body: String) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("a handshake");
    let (mut asking, mut connected) = (JoinSet::new(), JoinSet::new());
    connected.spawn(async move {
        let _closed = connection.await;
    });
    let mut request =
        Request::post("https://localhost/v1/chat/completions").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Full::from(body)).expect("a request"));
    let (reading, read) = watch::channel(String::new());
    asking.spawn(async move {
        let mut answer = answer.await.expect("an answer").into_body();
        while let Some(Ok(frame)) = answer.frame().await {
            let data = frame.into_data().unwrap_or_default();
            reading.send_modify(|read| read.push_str(&String::from_utf8_lossy(&data)));
        }
    });
    Client::Http2(Box::new(Http2Client { asking, _connected: connected, _sender: sender, read }))
}

impl Client {
    /// Reads what comes until it contains a text.
    pub async fn until(&mut self, wanted: &str) {
        let mut all = String::new();
        while !all.contains(wanted) {
            let mut some = [0; 4096];
            let read = match self {
                Self::Plain(stream) => soon(stream.read(&mut some)).await,
                Self::Tls(stream) => soon(stream.read(&mut some)).await,
                Self::Http2(client) => {
                    let come = soon(client.read.wait_for(|read| read.contains(wanted))).await;
                    return drop(come.expect("it comes"));
                }
            };
            let read = read.expect("a connection");
            assert!(read > 0, "closed after {all:?}");
            all.push_str(&String::from_utf8_lossy(&some[..read]));
        }
    }

    /// Leaves. What is given back is still there, and no reason to go on.
    pub fn leave(self, way: Way) -> Option<Self> {
        match self {
            Self::Plain(stream) => {
                if way == PlainReset {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
                }
                None
            }
            Self::Tls(_) => None,
            Self::Http2(mut client) if matches!(way, PriorStream | Http2Stream) => {
                client.asking.abort_all();
                Some(Self::Http2(client))
            }
            Self::Http2(_) => None,
        }
    }
}

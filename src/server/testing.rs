//! A listener on port 0 with a probing handler, and clients that speak badly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use metrics::Gauge;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::body::{self, Bounds, InFlightBudget};
use super::drain::{Drain, Stage};
use super::listener::{Listener, Options};
use super::settings::{Settings, Tls};
use super::{Handler, Peer};
use crate::relay::body::{Body, Sender, channel};
use crate::units::Span;
use crate::workers::Workers;

/// What must happen happens within this time, or the test fails.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits for what must happen.
pub(crate) async fn soon<F: Future>(event: F) -> F::Output {
    time::timeout(SOON, event).await.expect("it should have happened by now")
}

/// What a probe saw.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request that is answered by nobody.
    Hangs,
    /// A request that is answered by the test.
    Streams(Sender),
    /// The client of one of these is gone.
    Gone,
}

/// Answers by path: `/ok`, `/hang`, `/stream`, `/body`, `/panic`, `/peer`.
#[derive(Debug)]
pub(crate) struct Probe {
    events: mpsc::UnboundedSender<Event>,
    bounds: Bounds,
    budget: Arc<InFlightBudget>,
    watchers: TaskTracker,
    capacity: usize,
}

impl Probe {
    fn watch(&self, peer: Peer) {
        let events = self.events.clone();
        self.watchers.spawn(async move {
            peer.gone.cancelled().await;
            events.send(Event::Gone).ok();
        });
    }
}

impl Handler for Probe {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        match request.uri().path() {
            "/hang" => {
                self.watch(peer);
                self.events.send(Event::Hangs).ok();
                std::future::pending().await
            }
            "/stream" => {
                self.watch(peer);
                let (sender, receiver) = channel(self.capacity);
                self.events.send(Event::Streams(sender)).ok();
                Response::new(Body::Stream(receiver))
            }
            "/body" => {
                self.watch(peer);
                let (head, incoming) = request.into_parts();
                match body::read(&head.headers, incoming, &self.bounds, &self.budget).await {
                    Ok(held) => Response::new(Body::from(format!("read {}", held.len()))),
                    Err(error) => {
                        let (status, _, message) = error.parts();
                        Response::builder().status(status).body(message.into()).unwrap()
                    }
                }
            }
            "/panic" => panic!("as asked"),
            "/peer" => Response::new(Body::from(format!("tls={} v={:?}", peer.tls, request.version()))),
            _ => Response::new(Body::from("ok")),
        }
    }
}

/// How the listener under test differs from the default.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) tls: Option<Tls>,
    pub(crate) connections: usize,
    pub(crate) bounds: Bounds,
    pub(crate) open: Gauge,
    pub(crate) workers: Workers,
}

impl Default for Setup {
    fn default() -> Self {
        let bounds = Bounds { limit: 100_000, deadline: SOON * 3, rate: 0 };
        Self {
            settings: Settings::default(),
            tls: None,
            connections: 1000,
            bounds,
            open: Gauge::noop(),
            workers: Workers::default(),
        }
    }
}

/// A listener that runs until the test ends.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
    pub(crate) serving: TaskTracker,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Running {
    /// Starts it.
    pub(crate) async fn start(setup: Setup) -> Self {
        let (events, seen) = mpsc::unbounded_channel();
        let capacity = super::connection::quarter(&setup.settings);
        let probe = Probe {
            events,
            bounds: setup.bounds,
            budget: InFlightBudget::new(1 << 20),
            watchers: TaskTracker::new(),
            capacity,
        };
        let options = Options {
            setting: "listen",
            settings: setup.settings,
            tls: setup.tls,
            connections: setup.connections,
            open: setup.open,
            workers: setup.workers,
        };
        let listener = Listener::bind("127.0.0.1:0", options).await.unwrap();
        let (address, drain, serving) = (listener.local_addr(), Drain::new(), TaskTracker::new());
        serving.spawn(listener.serve(Arc::new(probe), drain.clone()));
        serving.close();
        Self { address, drain, serving, events: seen }
    }

    /// Starts it as it is by default.
    pub(crate) async fn plain() -> Self {
        Self::start(Setup::default()).await
    }

    /// Starts it with changed settings.
    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut setup = Setup::default();
        change(&mut setup.settings);
        Self::start(setup).await
    }

    /// The next thing the probe sees.
    pub(crate) async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.unwrap()
    }

    /// The next thing is the test's turn to answer.
    pub(crate) async fn sender(&mut self) -> Sender {
        match self.event().await {
            Event::Streams(sender) => sender,
            other @ (Event::Hangs | Event::Gone) => panic!("{other:?}"),
        }
    }

    /// The next thing is a request that hangs.
    pub(crate) async fn hangs(&mut self) {
        assert!(matches!(self.event().await, Event::Hangs));
    }

    /// The next thing is a client's leaving.
    pub(crate) async fn gone(&mut self) {
        assert!(matches!(self.event().await, Event::Gone));
    }

    /// Nothing has been seen that was not asked for.
    pub(crate) fn quiet(&mut self) {
        assert!(self.events.try_recv().is_err());
    }

    /// Connects and writes.
    pub(crate) async fn say(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(bytes.as_ref()).await.unwrap();
        client
    }

    /// Connects, asks for a path, and reads all there is.
    pub(crate) async fn ask(&self, path: &str) -> String {
        let mut client = self.say(get(path, "connection: close\r\n")).await;
        to_end(&mut client).await
    }

    /// Everything ends.
    pub(crate) async fn ended(&self) {
        soon(self.serving.wait()).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.advance(Stage::Now);
    }
}

/// A GET with extra header lines.
pub(crate) fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n")
}

/// Reads until the other side closes or breaks.
pub(crate) async fn to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.ok();
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until what came contains `wanted`.
pub(crate) async fn until(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> String {
    let mut all = String::new();
    while !all.contains(wanted) {
        let mut some = [0; 4096];
        let read = soon(stream.read(&mut some)).await.unwrap();
        assert!(read > 0, "closed after {all:?}");
        all.push_str(&String::from_utf8_lossy(&some[..read]));
    }
    all
}

/// Certificate files for `localhost`.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    /// New files.
    pub(crate) fn new() -> (Self, CertificateDer<'static>) {
        let me = Self { folder: tempfile::tempdir().unwrap() };
        let der = me.renew();
        (me, der)
    }

    /// The settings that name them.
    pub(crate) fn settings(&self) -> Tls {
        let path = |name| self.folder.path().join(name).to_str().unwrap().to_owned();
        Tls { cert: path("cert.pem"), key: path("key.pem") }
    }

    /// Replaces both.
    pub(crate) fn renew(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let files = self.settings();
        std::fs::write(files.cert, made.cert.pem()).unwrap();
        std::fs::write(files.key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }
}

/// Connects with TLS, trusting exactly this certificate.
pub(crate) async fn tls(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.into()];
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// An HTTP/2 client on a connection; its task ends when the tracker's owner drops the connection.
pub(crate) async fn h2<S>(stream: S, tasks: &TaskTracker) -> http2::SendRequest<Empty<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tasks.spawn(connection);
    sender
}

/// An HTTP/2 request.
pub(crate) fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("https://localhost{path}")).body(Empty::new()).unwrap()
}

/// The text of an answer.
pub(crate) async fn text(answer: Response<Incoming>) -> String {
    String::from_utf8(soon(answer.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A POST to `/body` that announces its length.
pub(crate) fn post(length: usize, lines: &str) -> String {
    let name = header::CONTENT_LENGTH;
    format!("POST /body HTTP/1.1\r\nhost: localhost\r\n{name}: {length}\r\n{lines}\r\n")
}

/// Milliseconds, as a setting.
pub(crate) fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

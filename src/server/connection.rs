//! One client connection, from its first byte to its close.
//!
//! ```text
//! handshake ─▶ serve ──┬─ hyper is done ────────────────▶ end
//!  TLS, sniff          ├─ client left: gone, a moment ──▶ end
//!                      ├─ cut ──────────────────────────▶ end
//!                      ├─ head too slow ────────────────▶ end
//!                      ├─ broken rules of HTTP/2: silence ▶ end
//!                      └─ idle, draining: goodbye ──────▶ (hyper is done, or a moment)
//! ```

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{self, Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::activity::{Activity, Expired, Patience};
use super::drain::{Drain, Stage};
use super::exchange::{Answer, Exchange, PROGRESS, Progress};
use super::frames::FrameGuard;
use super::gate;
use super::io::{Leaving, Observed, Observer, Protocol, Socket};
use super::settings::Settings;
use super::unreadable::Unreadable;
use super::{Handler, Peer};
use crate::rare::{Once, Rare};

/// After the client left, or was told goodbye: how long hyper may take to end by itself.
const MOMENT: Duration = Duration::from_millis(50);
const GOODBYE: Duration = Duration::from_secs(1);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A request's head. It has at most 100 lines, which is what hyper allows unless it is told otherwise; told so, it
/// would make room for them anew for every head.
const HEAD_BYTES: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// Body bytes a client may send ahead of their reading, on one stream and on all.
const STREAM_WINDOW: u32 = 256 * 1024;
const WINDOW: u32 = 1024 * 1024;
/// Streams the client may reset before we took them, and we because of its mistakes.
const RESETS: usize = 64;
/// HTTP/2 pings that find a client that vanished without a word.
const PING_EVERY: Duration = Duration::from_secs(20);

/// What every connection of a listener shares.
#[derive(Debug)]
pub(crate) struct Shared<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) bounds: Bounds,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) drain: Drain,
    /// Owns the tasks of HTTP/2 streams.
    pub(crate) tasks: TaskTracker,
}

/// What one connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    patience: Patience,
    stall: Duration,
    buffer: usize,
}

impl Bounds {
    /// As the settings say.
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            patience: Patience { head: settings.header_timeout.0, idle: settings.idle_timeout.0 },
            stall: settings.stall_timeout.0,
            buffer: quarter(settings),
        }
    }
}

/// Bytes for a slow reader wait in the kernel, which takes twice what it is asked for, and in hyper; both are asked for
/// a quarter of the setting. The pipe of the answer gets an eighth, and what the upstream said beyond it the last one,
/// where many wait: see [`crate::pool`].
pub(crate) fn quarter(settings: &Settings) -> usize {
    (settings.write_buffer.0 / 4).clamp(16 * 1024, 1024 * 1024)
}

/// Serves one connection until it ends, or is `cut`. What serves is large and long-lived: it sits in one box, not in
/// nested futures, and what is around it is small.
pub(crate) async fn run<H: Handler>(
    shared: Arc<Shared<H>>,
    stream: TcpStream,
    address: SocketAddr,
    cut: CancellationToken,
) {
    let head = shared.bounds.patience.head;
    let mut socket = Socket::new(stream, shared.bounds.stall);
    let leaving = socket.leaving();
    let served: io::Result<()> = async {
        let Some(config) = &shared.tls else {
            let activity = Activity::new();
            let sniffed = cut.run_until_cancelled(time::timeout(head, socket.sniff())).await;
            let Some(sniffed) = sniffed else { return Ok(()) };
            let watch = Watch::new(&shared, activity, leaving, cut);
            Box::pin(serve(&shared, socket, sniffed??, watch, address)).await;
            return Ok(());
        };
        // Boxed: who speaks without TLS need not have room for it.
        let shaken = cut.run_until_cancelled(time::timeout(head, Box::pin(shake(config, socket)))).await;
        let Some(shaken) = shaken else { return Ok(()) };
        let (stream, protocol) = shaken??;
        let watch = Watch::new(&shared, Activity::new(), leaving, cut);
        Box::pin(serve(&shared, stream, protocol, watch, address)).await;
        Ok(())
    }
    .await;
    if let Err(error) = served {
        debug!(peer = %address, %error, "a connection ended before its first request");
    }
}

/// Shakes hands by TLS. Gives what is said inside of it, and the protocol that was agreed on.
async fn shake(config: &Arc<ServerConfig>, socket: Socket) -> io::Result<(Box<TlsStream<Socket>>, Protocol)> {
    let mut stream = Box::new(TlsAcceptor::from(Arc::clone(config)).accept(socket).await?);
    let protocol = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        Some(_) | None => Protocol::Http1,
    };
    stream.get_mut().0.speaks(protocol);
    Ok((stream, protocol))
}

async fn serve<H, S>(shared: &Shared<H>, transport: S, protocol: Protocol, watch: Watch, address: SocketAddr)
where
    H: Handler,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (activity, gone) = (Arc::clone(&watch.activity), watch.gone.clone());
    let (leaving, cut) = (watch.leaving.clone(), watch.cut.clone());
    let tls = shared.tls.is_some();
    let bounds = shared.bounds;
    let service = {
        let (activity, handler) = (Arc::clone(&activity), Arc::clone(&shared.handler));
        service_fn(move |request| {
            let exchange = Exchange::begin(&activity, gone.child_token());
            let peer = Peer { address, tls, gone: exchange.gone() };
            answer(Arc::clone(&handler), request, peer, exchange)
        })
    };
    let result = match protocol {
        Protocol::Http1 => {
            let handler = Arc::clone(&shared.handler);
            let unreadable = Unreadable::new(activity, move || handler.headers(&HeaderMap::new()));
            let io = TokioIo::new(Observed::new(transport, Observer::Bytes(unreadable)));
            let connection = pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    // One timer for idle connections and slow heads would be hyper's; ours are two.
                    .header_read_timeout(None)
                    .max_header_size(HEAD_BYTES)
                    .max_buf_size(bounds.buffer.max(HEAD_BYTES))
                    .serve_connection(io, service)
            );
            watch.drive(connection).await
        }
        Protocol::Http2 => {
            let io = TokioIo::new(Observed::new(transport, Observer::Frames(FrameGuard::new())));
            let streams = CancellationToken::new();
            let cut_streams = streams.clone().drop_guard();
            let executor = Streams { tasks: shared.tasks.clone(), cut: streams, stall: bounds.stall };
            // Boxed: connections of the other kind need not have room for it.
            let mut connection = Box::pin(
                http2::Builder::new(executor)
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(STREAMS)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
                    .max_pending_accept_reset_streams(RESETS)
                    .max_local_error_reset_streams(RESETS)
                    .max_send_buf_size(bounds.buffer)
                    .keep_alive_interval(PING_EVERY)
                    .keep_alive_timeout(PING_EVERY)
                    .serve_connection(io, service),
            );
            let result = watch.drive(connection.as_mut()).await;
            drop((connection, cut_streams));
            result
        }
    };
    let Err(error) = result else { return };
    debug!(peer = %address, %error, "a connection broke off");
    if protocol == Protocol::Http2 {
        cut.run_until_cancelled(leaving.in_silence()).await;
    }
}

type NoError = std::convert::Infallible;

/// Answers one request: the gate, then the handler, whose panic costs only this request.
async fn answer<H: Handler>(
    handler: Arc<H>,
    request: Request<Incoming>,
    peer: Peer,
    exchange: Exchange,
) -> Result<Response<Answer<H::Body>>, NoError> {
    let (head, body) = request.into_parts();
    let own = |mut response: Response<Bytes>, headers, exchange| {
        response.headers_mut().extend(headers);
        Ok(response.map(|bytes| Answer::own(bytes, exchange)))
    };
    if let Err(refusal) = gate::check(&head) {
        return own(refusal.answer(), handler.headers(&head.headers), exchange);
    }
    // After a panic the request is gone; its id has to be known all the same.
    let id = head.headers.get(REQUEST_ID).cloned();
    let handled =
        AssertUnwindSafe(handler.handle(Request::from_parts(head, body), peer)).catch_unwind().await;
    match handled {
        Ok(response) => Ok(response.map(|body| Answer::of_handler(body, exchange))),
        Err(_) => {
            error!("a request's handler panicked");
            let message = "the proxy failed while answering this request; its log says more";
            let answer = gate::error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message);
            let known = id.into_iter().map(|id| (REQUEST_ID, id)).collect();
            own(answer, handler.headers(&known), exchange)
        }
    }
}

/// Runs the streams of one HTTP/2 connection; they end with it, or when their client stalls.
#[derive(Debug, Clone)]
struct Streams {
    tasks: TaskTracker,
    cut: CancellationToken,
    stall: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (cut, stall) = (self.cut.clone(), self.stall);
        self.tasks.spawn(async move {
            let progress = Arc::new(Progress::default());
            tokio::select! {
                () = PROGRESS.scope(Arc::clone(&progress), stream) => {}
                () = progress.stalled(stall) => debug!("an HTTP/2 stream whose client takes nothing was reset"),
                () = cut.cancelled() => {}
            }
        });
    }
}

/// A hyper connection of either kind.
trait Connection: Future<Output = hyper::Result<()>> {
    /// Ends after what is in flight.
    fn goodbye(self: Pin<&mut Self>);
}

impl<I, S, B> Connection for http1::Connection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<crate::relay::body::BoxError>,
    B: http_body::Body<Error: Into<crate::relay::body::BoxError>> + 'static,
{
    fn goodbye(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Connection for http2::Connection<I, S, E>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<crate::relay::body::BoxError>,
    B: http_body::Body<Error: Into<crate::relay::body::BoxError>> + 'static,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn goodbye(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// What a connection is ended by, beside itself.
struct Watch {
    activity: Arc<Activity>,
    aside: Rare<Waiting>,
    gone: CancellationToken,
    patience: Patience,
    leaving: Leaving,
    cut: CancellationToken,
}

/// What is looked at when it rings.
struct Waiting {
    /// Each comes once, if at all. They ring by themselves: the timer is set for every request.
    signals: Once<Boxed, 3>,
    timer: Pin<Box<Sleep>>,
}

/// What came first.
enum Came {
    /// The connection is done.
    End(hyper::Result<()>),
    Signal(Signal),
    Expired(Expired),
}

/// Returns once, if at all.
type Boxed = Pin<Box<dyn Future<Output = Signal> + Send>>;

/// What a connection hears from outside.
#[derive(Debug, Clone, Copy)]
enum Signal {
    /// The client left.
    Gone,
    /// What is in flight is the last.
    Draining,
    /// It is over.
    Cut,
}

impl Watch {
    fn new<H>(shared: &Shared<H>, activity: Arc<Activity>, leaving: Leaving, cut: CancellationToken) -> Self {
        let (of_socket, drain, of_cut) = (leaving.clone(), shared.drain.clone(), cut.clone());
        let signals: [Boxed; 3] = [
            Box::pin(async move { of_socket.closed().await }.map(|()| Signal::Gone)),
            Box::pin(async move { drain.reached(Stage::Refusing).await }.map(|()| Signal::Draining)),
            Box::pin(of_cut.cancelled_owned().map(|()| Signal::Cut)),
        ];
        let timer = Box::pin(time::sleep(Duration::ZERO));
        let aside = Rare::new(Waiting { signals: Once::each(signals), timer });
        let (gone, patience) = (CancellationToken::new(), shared.bounds.patience);
        Self { activity, aside, gone, patience, leaving, cut }
    }

    async fn drive(mut self, mut connection: Pin<&mut impl Connection>) -> hyper::Result<()> {
        let mut end = None;
        loop {
            let came = tokio::select! {
                biased;
                came = poll_fn(|cx| self.poll_next(cx, connection.as_mut(), end.is_none())) => came,
                () = moment(end), if end.is_some() => return Ok(()),
            };
            match came {
                Came::End(result) => return result,
                Came::Signal(Signal::Gone) => {
                    self.gone.cancel();
                    end = Some(Instant::now() + MOMENT);
                }
                Came::Signal(Signal::Draining) => {
                    self.leaving.said_goodbye();
                    connection.as_mut().goodbye();
                }
                Came::Signal(Signal::Cut) | Came::Expired(Expired::Head) => return Ok(()),
                Came::Expired(Expired::Idle) => {
                    self.leaving.said_goodbye();
                    connection.as_mut().goodbye();
                    end = Some(Instant::now() + GOODBYE);
                }
            }
        }
    }

    /// Polls the connection, and then what it waits for beside it, unless that is quiet. Waking for what comes of the
    /// first poll, the end of every request, would only have everything polled once more.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        connection: Pin<&mut impl Connection>,
        expires: bool,
    ) -> Poll<Came> {
        self.aside.soon();
        if let Poll::Ready(result) = connection.poll(cx) {
            return Poll::Ready(Came::End(result));
        }
        self.aside.poll(cx, |Waiting { signals, timer }, cx| match signals.poll_next(cx) {
            Poll::Ready(signal) => Poll::Ready(Came::Signal(signal)),
            Poll::Pending if expires => {
                self.activity.poll_expired(self.patience, timer.as_mut(), cx).map(Came::Expired)
            }
            Poll::Pending => Poll::Pending,
        })
    }
}

async fn moment(end: Option<Instant>) {
    match end {
        Some(end) => time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

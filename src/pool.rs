//! Connections to one server, kept for the next request: an upstream's, or those of a tool.
//!
//! ```text
//!             ┌──────── nothing came of it: its request goes to another ────────┐
//!             ▼                                                                 │
//!  send ─▶ a free one, the last that became free ─▶ request ─▶ head ─▶ body ─▶ free again
//!             └─ none: connect ───────────────────────▲
//! ```
//!
//! HTTP/1.1 only: a connection serves one request at a time, and is free again when the body of its answer has
//! been read to the end. A request that waits keeps nobody else waiting: it has a connection of its own, so each
//! runtime has never more than it had requests at once. What is free for too long, or was closed by the server, is
//! let go.
//!
//! A connection lives on the runtime that made it. On another one it costs two threads, each of which wakes the
//! other; but less than a new one if nobody has much to do. So a request takes one of its own runtime, and borrows
//! that of another only if the connection has rested for a while and nothing has been borrowed for as long.
//!
//! hyper-util's general client does this for any number of places. Here there is one, so nothing is looked up,
//! and no task is spawned to put a connection back: that was a tenth of the cost of a request.

mod deaf;
mod sips;

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::rt::{Executor, Read, Write};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower_service::Service;

use self::deaf::Deaf;
use self::sips::{All, Sips};

/// How long a connection has not been used, and a runtime has not borrowed, before it borrows one.
const RESTED: Duration = Duration::from_millis(100);

/// Makes connections; the error says why there is none.
pub trait Connect:
    Service<Uri, Response: Read + Write + Unpin + Send + 'static, Future: Send> + Clone + Send + Sync
{
}

impl<C> Connect for C where
    C: Service<Uri, Response: Read + Write + Unpin + Send + 'static, Future: Send> + Clone + Send + Sync
{
}

/// The body of a request: held whole, or handed through.
pub type Body = Either<Full<Bytes>, Sent>;
/// A body to be handed through.
pub type Sent = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// Why there is no answer.
#[derive(Debug)]
pub enum SendError<E> {
    /// There is no connection.
    Connect(E),
    /// The connection failed.
    Exchange {
        /// How.
        error: hyper::Error,
        /// It had served before: its server may have closed it at that moment, and never seen the request.
        reused: bool,
    },
}

/// The connections to one place.
#[derive(Clone)]
pub struct Pool<C> {
    /// One for each runtime that has sent requests.
    homes: Arc<ArcSwap<Vec<Arc<Home>>>>,
    /// Counts the connections. The outer one is for clones of the pool, which count as one.
    all: Arc<All>,
    keep: Keep,
    connector: C,
    place: Uri,
    head: usize,
    rested: Duration,
}

/// The connections that live on one runtime. Others only borrow what has rested, and give it back.
struct Home {
    runtime: runtime::Id,
    keep: Keep,
    free: Mutex<Free>,
}

/// What becomes of a connection that has served a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It serves the next one, unless it is free for so long.
    For(Duration),
    /// It is closed: each request has a connection of its own, so that a server that closes one which is free
    /// cannot leave it in doubt whether a request arrived. The server is told, and closes it first: whoever does
    /// holds the port for a minute.
    Never,
}

#[derive(Default)]
struct Free {
    /// The one that became free last is the last.
    list: Vec<Connection>,
    /// Whoever lets go of what is free for too long, if there is anything; it ends when this is dropped.
    sweeper: Option<oneshot::Sender<()>>,
    /// When this runtime borrowed a connection of another.
    borrowed: Option<Instant>,
}

struct Connection {
    sender: SendRequest<Body>,
    since: Instant,
}

impl Connection {
    fn is_over(&self, idle: Duration) -> bool {
        self.sender.is_closed() || self.since.elapsed() >= idle
    }
}

impl<C> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<C: Connect> Pool<C> {
    /// Connections to the scheme, host and port of `place`. The head of an answer has at most `head` bytes.
    pub fn new(connector: C, place: Uri, keep: Keep, head: usize) -> Self {
        Self { homes: Arc::default(), all: Arc::default(), keep, connector, place, head, rested: RESTED }
    }

    /// Sends a request, whose URI is only a path, and gives the head of its answer. `begins` hears when there is
    /// a connection: from then on the server may have got something of the request.
    ///
    /// A connection may have been closed while it was free. What had not been written to it yet is sent on
    /// another one.
    pub async fn send(
        &self,
        request: Request<Body>,
        mut begins: impl FnMut() + Send,
    ) -> Result<Response<Received>, SendError<C::Error>> {
        let mut request = request;
        if self.keep == Keep::Never {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        loop {
            let kept = self.take();
            let reused = kept.is_some();
            let (home, mut sender) = match kept {
                Some(kept) => kept,
                // Boxed: most requests need no room for it.
                None => (self.home(), Box::pin(self.connect()).await?),
            };
            begins();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let lease = Lease { sender, home };
                    return Ok(response.map(|body| Received::new(body, lease)));
                }
                Err(mut failed) => match failed.take_message().filter(|_| reused) {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Exchange { error: failed.into_error(), reused }),
                },
            }
        }
    }

    /// A free connection of this runtime, or a borrowed one.
    fn take(&self) -> Option<(Arc<Home>, SendRequest<Body>)> {
        if self.keep == Keep::Never {
            return None;
        }
        let here = Handle::current().id();
        let homes = self.homes.load();
        let own = homes.iter().find(|home| home.runtime == here);
        if let Some(own) = own
            && let Some(sender) = own.take()
        {
            return Some((own.clone(), sender));
        }
        if homes.len() <= usize::from(own.is_some()) || !self.home().may_borrow(self.rested) {
            return None;
        }
        let mut others = homes.iter().filter(|home| home.runtime != here);
        others.find_map(|other| Some((other.clone(), other.take_rested(self.rested)?)))
    }

    /// Where connections of this runtime live.
    fn home(&self) -> Arc<Home> {
        let here = Handle::current().id();
        let of_here = |homes: &[Arc<Home>]| homes.iter().find(|home| home.runtime == here).cloned();
        let known = of_here(&self.homes.load());
        known.unwrap_or_else(|| {
            let new = Arc::new(Home { runtime: here, keep: self.keep, free: Mutex::default() });
            let before = self.homes.rcu(|homes| match of_here(homes) {
                Some(_) => homes.to_vec(),
                None => homes.iter().chain([&new]).cloned().collect(),
            });
            of_here(&before).unwrap_or(new)
        })
    }

    async fn connect(&self) -> Result<SendRequest<Body>, SendError<C::Error>> {
        let mut connector = self.connector.clone();
        let stream = connector.call(self.place.clone()).await.map_err(SendError::Connect)?;
        let made =
            Builder::new().max_buf_size(self.head).handshake(Deaf::new(Sips::new(stream, &self.all))).await;
        let (sender, connection) = made.map_err(|error| SendError::Exchange { error, reused: false })?;
        // It ends when its sender is dropped or its server closes it. How it ended, the request hears.
        TokioExecutor::new().execute(connection.map(|_ended| ()));
        Ok(sender)
    }
}

impl Home {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that became free last. One whose answer's end is still being read stays.
    fn take(&self) -> Option<SendRequest<Body>> {
        let Keep::For(idle) = self.keep else { return None };
        let list = &mut self.free().list;
        let mut at = list.len();
        while let Some(next) = at.checked_sub(1) {
            at = next;
            if list[at].is_over(idle) {
                list.remove(at);
            } else if list[at].sender.is_ready() {
                return Some(list.remove(at).sender);
            }
        }
        None
    }

    /// Whether nothing was borrowed for a while, which it is then.
    fn may_borrow(&self, rested: Duration) -> bool {
        let (borrowed, now) = (&mut self.free().borrowed, Instant::now());
        let may = borrowed.is_none_or(|at| now.duration_since(at) >= rested);
        if may {
            *borrowed = Some(now);
        }
        may
    }

    /// A connection that has not been used for a while, the one that became free first.
    fn take_rested(&self, rested: Duration) -> Option<SendRequest<Body>> {
        let Keep::For(idle) = self.keep else { return None };
        let list = &mut self.free().list;
        let rested = |connection: &&Connection| connection.since.elapsed() >= rested;
        let usable = |connection: &Connection| !connection.is_over(idle) && connection.sender.is_ready();
        let at = list.iter().take_while(rested).position(usable)?;
        Some(list.remove(at).sender)
    }

    fn put(self: &Arc<Self>, sender: SendRequest<Body>) {
        let Keep::For(idle) = self.keep else { return };
        if sender.is_closed() {
            return;
        }
        let mut free = self.free();
        free.list.push(Connection { sender, since: Instant::now() });
        // The runtime of the one there was may have ended.
        if free.sweeper.as_ref().is_none_or(oneshot::Sender::is_closed) {
            let (here, gone) = oneshot::channel();
            free.sweeper = Some(here);
            TokioExecutor::new().execute(sweep(Arc::downgrade(self), idle, gone));
        }
    }

    /// Lets go of what is free for too long; whether anything is left.
    fn sweep(&self, idle: Duration) -> bool {
        let mut free = self.free();
        free.list.retain(|connection| !connection.is_over(idle));
        if free.list.is_empty() {
            free.sweeper = None;
        }
        free.sweeper.is_some()
    }
}

/// Lets go of connections until none is free, or the pool is gone.
async fn sweep(home: Weak<Home>, idle: Duration, gone: oneshot::Receiver<()>) {
    let sweeping = async {
        loop {
            tokio::time::sleep(idle).await;
            if !home.upgrade().is_some_and(|home| home.sweep(idle)) {
                return;
            }
        }
    };
    tokio::select! {
        () = sweeping => {}
        _gone = gone => {}
    }
}

/// A connection in use.
struct Lease {
    sender: SendRequest<Body>,
    home: Arc<Home>,
}

/// The body of an answer. At its end its connection is free again; dropped before, the connection is closed,
/// unless hyper has the rest of the body already.
pub struct Received {
    body: Incoming,
    lease: Option<Lease>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.body.fmt(f)
    }
}

impl Received {
    fn new(body: Incoming, lease: Lease) -> Self {
        let mut received = Self { body, lease: Some(lease) };
        received.look_for_the_end();
        received
    }

    fn look_for_the_end(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(Lease { sender, home }) = self.lease.take() {
            home.put(sender);
        }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => self.look_for_the_end(),
            Some(Err(_)) => self.lease = None,
            None => self.give_back(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const IDLE: Duration = Duration::from_secs(50);

    /// Connects to an address.
    #[derive(Clone)]
    struct Plain(std::net::SocketAddr);

    impl Service<Uri> for Plain {
        type Response = TokioIo<TcpStream>;
        type Error = std::io::Error;
        type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Uri) -> Self::Future {
            Box::pin(TcpStream::connect(self.0).map(|stream| stream.map(TokioIo::new)))
        }
    }

    type Pool = super::Pool<Plain>;

    /// Serves connections by `serve`, and counts them.
    async fn server<S, F>(keep: Keep, serve: S) -> (Pool, Arc<AtomicUsize>)
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        TokioExecutor::new().execute(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                TokioExecutor::new().execute(serve(stream).map(|_ended| ()));
            }
        });
        (Pool::new(Plain(address), Uri::from_static("http://here/"), keep, 64 * 1024), connections)
    }

    async fn request_read(stream: &mut TcpStream) -> std::io::Result<()> {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut seen).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Answers every request, the body after a while.
    async fn answers(mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            request_read(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            stream.write_all(b"ok").await?;
        }
    }

    async fn asked(pool: &Pool) -> Response<Received> {
        let mut request = Request::new(Either::Left(Full::default()));
        request.headers_mut().insert("host", "here".parse().unwrap());
        pool.send(request, || ()).await.unwrap()
    }

    async fn read(answer: Response<Received>) -> Bytes {
        answer.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn clones_of_a_pool_are_not_taken_for_connections() {
        let (pool, _) = server(Keep::Never, answers).await;
        let clones = vec![pool.clone(); 200];
        let counted = || Arc::strong_count(&*pool.all) - 1;
        assert_eq!(counted(), 0);
        let answer = asked(&clones[7]).await;
        assert_eq!(counted(), 1);
        read(answer).await;
        let ended = async {
            while counted() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_serves_again_once_its_answer_has_been_read_and_not_before() {
        let (pool, connections) = server(Keep::For(IDLE), answers).await;
        for _ in 0..5 {
            assert_eq!(read(asked(&pool).await).await, "ok");
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        let (first, second) = (asked(&pool).await, asked(&pool).await);
        assert_eq!(connections.load(Ordering::Relaxed), 2);
        assert_eq!((read(first).await, read(second).await), ("ok".into(), "ok".into()));
        let (first, second) = (asked(&pool).await, asked(&pool).await);
        assert_eq!((read(first).await, read(second).await), ("ok".into(), "ok".into()));
        assert_eq!(connections.load(Ordering::Relaxed), 2, "both were free");
    }

    #[tokio::test]
    async fn what_ran_at_once_runs_at_once_again_over_the_same_connections() {
        let (pool, connections) = server(Keep::For(IDLE), answers).await;
        for _ in 0..3 {
            let asked = std::iter::repeat_with(|| asked(&pool).then(read)).take(100);
            futures_util::future::join_all(asked).await;
            assert_eq!(connections.load(Ordering::Relaxed), 100);
        }
    }

    /// Asks on a runtime of its own, so many times.
    async fn elsewhere(pool: &Pool, times: usize) {
        let pool = pool.clone();
        let ask = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for _ in 0..times {
                    assert_eq!(read(asked(&pool).await).await, "ok");
                }
            });
        };
        tokio::task::spawn_blocking(ask).await.unwrap();
    }

    #[tokio::test]
    async fn another_runtime_borrows_a_connection_only_once_that_has_rested_and_not_often() {
        const LONG: Duration = Duration::from_secs(1000);
        let (mut pool, connections) = server(Keep::For(LONG), answers).await;
        let made = || connections.load(Ordering::Relaxed);
        assert_eq!(read(asked(&pool).await).await, "ok");
        pool.rested = LONG;
        elsewhere(&pool, 3).await;
        assert_eq!(made(), 2, "one of its own, which ended with it");
        pool.rested = Duration::from_millis(1);
        tokio::time::sleep(Duration::from_millis(20)).await;
        elsewhere(&pool, 1).await;
        assert_eq!(made(), 2, "nobody had used the first one for a while");
        assert_eq!(read(asked(&pool).await).await, "ok");
        assert_eq!(made(), 2, "and its own runtime has it back");
    }

    #[tokio::test]
    async fn who_asks_often_has_connections_of_its_own() {
        let (mut pool, connections) = server(Keep::For(IDLE), answers).await;
        assert_eq!(read(asked(&pool).await).await, "ok");
        // The connection has rested, but who borrowed a moment ago does not borrow again.
        pool.rested = Duration::from_millis(200);
        tokio::time::sleep(Duration::from_millis(250)).await;
        elsewhere(&pool, 10).await;
        assert!((2..5).contains(&connections.load(Ordering::Relaxed)));
    }

    /// Answers as soon as it has seen a head, and closes with the rest unread: a reset.
    async fn refuses(mut stream: TcpStream) -> std::io::Result<()> {
        stream.read_exact(&mut [0; 10]).await?;
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno").await
    }

    #[tokio::test]
    async fn a_refusal_that_comes_before_all_was_sent_is_heard() {
        let (pool, _) = server(Keep::For(IDLE), refuses).await;
        for _ in 0..50 {
            let mut request = Request::new(Either::Left(Full::from(vec![7; 8_000_000])));
            request.headers_mut().insert("host", "here".parse().unwrap());
            let answer = pool.send(request, || ()).await.unwrap();
            assert_eq!(answer.status(), 413);
            assert_eq!(read(answer).await, "no");
        }
    }

    #[tokio::test]
    async fn where_none_is_kept_each_request_has_its_own() {
        let (pool, connections) = server(Keep::Never, answers).await;
        for n in 1..5 {
            assert_eq!(read(asked(&pool).await).await, "ok");
            assert_eq!(connections.load(Ordering::Relaxed), n);
        }
        assert!(pool.homes.load().iter().all(|home| home.free().list.is_empty()));
    }

    #[tokio::test]
    async fn it_is_told_that_a_request_begins_once_there_is_a_connection() {
        let (pool, _) = server(Keep::For(IDLE), answers).await;
        let mut begun = 0;
        pool.send(Request::new(Either::Left(Full::default())), || begun += 1).await.unwrap();
        assert_eq!(begun, 1);
        // Nobody listens at the address of a listener that is gone.
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let pool = Pool::new(Plain(gone), Uri::from_static("http://here/"), Keep::Never, 64 * 1024);
        let failed = pool.send(Request::new(Either::Left(Full::default())), || begun += 1).await;
        assert!(matches!(failed, Err(SendError::Connect(_))), "{failed:?}");
        assert_eq!(begun, 1);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_to_its_end_takes_its_connection_with_it() {
        let (pool, connections) = server(Keep::For(IDLE), answers).await;
        drop(asked(&pool).await);
        assert_eq!(read(asked(&pool).await).await, "ok");
        assert_eq!(connections.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_a_closed_connection_did_not_take_goes_to_another() {
        let once = |mut stream: TcpStream| async move {
            request_read(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await
        };
        let (pool, connections) = server(Keep::For(IDLE), once).await;
        for n in 1..5 {
            assert_eq!(read(asked(&pool).await).await, "ok");
            assert_eq!(connections.load(Ordering::Relaxed), n);
            // Its close is on the way.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_free_for_too_long_is_let_go() {
        let (pool, _) = server(Keep::For(IDLE), answers).await;
        assert_eq!(read(asked(&pool).await).await, "ok");
        let homes = |pool: &Pool| pool.homes.load_full();
        let free = |pool: &Pool| homes(pool).iter().map(|home| home.free().list.len()).sum::<usize>();
        assert_eq!(free(&pool), 1);
        tokio::time::sleep(IDLE + IDLE).await;
        assert_eq!(free(&pool), 0);
        assert!(homes(&pool)[0].free().sweeper.is_none(), "nobody waits for what is not there");
        assert_eq!(read(asked(&pool).await).await, "ok");
        assert_eq!(free(&pool), 1);
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        drop(pool);
        // Without the time going on: the one that swept, and the connection's two ends.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(tasks() < before - 1, "{} tasks of {before}", tasks());
    }
}

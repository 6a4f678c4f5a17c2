//! The connection's bytes: a socket that gives up on a client that takes nothing, and a view of
//! the plain bytes that tells what is going on.
//!
//! ```text
//! hyper ─ Observed ─ [ TLS ] ─ Socket ─ kernel
//! ```

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{self, Sleep};

use super::frames::{Flood, FrameGuard, PREFACE};
use super::unreadable::Unreadable;

/// After our last byte: how long a client may take to stop sending, so that its system does not
/// throw our answer away.
const LINGER: Duration = Duration::from_secs(2);
/// The most that is read and thrown away meanwhile: the rest of a large body, which many clients send to its
/// end before they read an answer.
const LINGER_BYTES: usize = 32 * 1024 * 1024;
/// The same on HTTP/2, whose clients read while they send. What goes on after our goodbye is a flood.
const LINGER_FRAMES: usize = 64 * 1024;
/// How long a client that broke the rules of HTTP/2 is left alone before its connection is closed. Whoever floods would
/// begin anew at once with the next one.
const SILENCE: Duration = Duration::from_secs(2);

/// The first read of a connection takes so much: most heads whole, with a short body.
const SNIFFED: usize = 4096;

/// Which HTTP a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A connected TCP socket.
///
/// A write that makes no progress for the stall time fails. Shutting down ends our side, then
/// reads and drops what the client still sends, for a bounded time. On HTTP/2 it does so after our goodbye only: what
/// ends without one is ended by its client, or in [silence](Leaving::in_silence).
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Arc<Line>,
    replay: Bytes,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    protocol: Protocol,
    lingering: Option<Linger>,
}

/// What the socket shares with those who watch it.
#[derive(Debug)]
struct Line {
    tcp: TcpStream,
    /// We said that what is in flight is the last.
    goodbye: AtomicBool,
}

#[derive(Debug)]
struct Linger {
    until: Pin<Box<Sleep>>,
    left: usize,
}

/// Sees the client close its side, beside whoever reads and writes the socket.
///
/// The runtime remembers that a socket's reading side was closed, and only that: nothing has to be
/// read for it, and bytes that were not asked for (a pipelined request) do not hide it.
#[derive(Debug, Clone)]
pub(crate) struct Leaving(Arc<Line>);

impl Leaving {
    /// Returns once the client closed its side, or the connection broke.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) async fn closed(&self) {
        // Interest in priority data also wakes for a closed reading side and, unlike interest in
        // readable data, not for data. An error means the runtime is going away: that is leaving too.
        loop {
            match self.0.tcp.ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => time::sleep(Duration::from_millis(10)).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Elsewhere only hyper's own detection remains, which an unread byte switches off.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) async fn closed(&self) {
        let _ = &self.0;
        std::future::pending::<()>().await;
    }

    /// Our side says goodbye: the end is a usual one.
    pub(crate) fn said_goodbye(&self) {
        self.0.goodbye.store(true, Ordering::Relaxed);
    }

    /// Holds a connection that broke off, for a while or until its client leaves: nothing is read and nothing said, so
    /// what the client goes on to send stays with it.
    pub(crate) async fn in_silence(self) {
        let _over = time::timeout(SILENCE, self.closed()).await;
    }
}

impl Socket {
    /// Wraps an accepted connection.
    pub(crate) fn new(stream: TcpStream, stall: Duration) -> Self {
        let stream = Arc::new(Line { tcp: stream, goodbye: AtomicBool::new(false) });
        Self {
            stream,
            replay: Bytes::new(),
            stall,
            stalled: None,
            protocol: Protocol::Http1,
            lingering: None,
        }
    }

    /// What it speaks, once that is known.
    pub(crate) fn speaks(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// A watcher for the client's leaving.
    pub(crate) fn leaving(&self) -> Leaving {
        Leaving(Arc::clone(&self.stream))
    }

    /// Reads what has come, until it tells the protocol, and keeps it for the next reader.
    pub(crate) async fn sniff(&mut self) -> io::Result<Protocol> {
        let mut start = BytesMut::new();
        loop {
            self.stream.tcp.readable().await?;
            let mut room = [0; SNIFFED];
            let mut read = ReadBuf::new(&mut room);
            match self.read_now(&mut read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                read => read?,
            }
            if read.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            start.extend_from_slice(read.filled());
            if let Some(protocol) = protocol_of(&start) {
                self.replay = start.freeze();
                self.speaks(protocol);
                return Ok(protocol);
            }
        }
    }

    /// Reads what there is. What the runtime remembers of the socket's readiness is forgotten where that was all.
    fn read_now(&self, into: &mut ReadBuf<'_>) -> io::Result<()> {
        let (room, mut drained) = (into.remaining(), false);
        // Less than there was room for is all there was: the runtime is told so, as after a read that
        // would block, and the next look at the socket costs no system call.
        let read = self.stream.tcp.try_io(Interest::READABLE, || match self.stream.tcp.try_read_buf(into) {
            Ok(read) if 0 < read && read < room => {
                drained = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
            read => read,
        });
        match read {
            Err(error) if !drained => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Settles one attempt to write: progress disarms the stall timer, waiting arms it.
    fn after_write(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let stall = self.stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(time::sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        let message = "the client took nothing of what was written to it";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }

    fn poll_try_write(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.tcp.poll_write_ready(cx))?;
            match attempt(&self.stream.tcp) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

/// The protocol, as soon as the first bytes tell it.
fn protocol_of(start: &[u8]) -> Option<Protocol> {
    match start {
        _ if start.starts_with(PREFACE) => Some(Protocol::Http2),
        _ if PREFACE.starts_with(start) => None,
        _ => Some(Protocol::Http1),
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let replayed = me.replay.len().min(into.remaining());
        if replayed > 0 {
            into.put_slice(&me.replay[..replayed]);
            me.replay.advance(replayed);
            if me.replay.is_empty() {
                // Empty bytes keep what they were a part of.
                me.replay = Bytes::new();
            }
        }
        if replayed > 0 && into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let readable = me.stream.tcp.poll_read_ready(cx);
            // What was sniffed comes with what follows it: a reader that gets it alone makes more room than it needs.
            if replayed > 0 && !matches!(readable, Poll::Ready(Ok(()))) {
                return Poll::Ready(Ok(()));
            }
            ready!(readable)?;
            match me.read_now(into) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if replayed == 0 => return Poll::Ready(Err(e)),
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = me.poll_try_write(cx, |stream| stream.try_write(bytes));
        me.after_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = me.poll_try_write(cx, |stream| stream.try_write_vectored(pieces));
        me.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut linger = match self.lingering.take() {
            Some(linger) => linger,
            None if self.protocol == Protocol::Http2 && !self.stream.goodbye.load(Ordering::Relaxed) => {
                return Poll::Ready(Ok(()));
            }
            None => {
                if SockRef::from(&self.stream.tcp).shutdown(Shutdown::Write).is_err() {
                    return Poll::Ready(Ok(()));
                }
                let left = match self.protocol {
                    Protocol::Http1 => LINGER_BYTES,
                    Protocol::Http2 => LINGER_FRAMES,
                };
                Linger { until: Box::pin(time::sleep(LINGER)), left }
            }
        };
        let mut waste = [0; 8192];
        loop {
            let mut waste = ReadBuf::new(&mut waste);
            match self.as_mut().poll_read(cx, &mut waste) {
                Poll::Ready(Ok(())) if !waste.filled().is_empty() && linger.left > 0 => {
                    linger.left = linger.left.saturating_sub(waste.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if linger.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.lingering = Some(linger);
        Poll::Pending
    }
}

/// The plain bytes between hyper and the transport, seen as they pass.
#[derive(Debug)]
pub(crate) struct Observed<S> {
    transport: S,
    observer: Observer,
    /// The last write was taken whole, so the next one begins something.
    whole: bool,
    /// What still has to go out in place of a write, and how long that was.
    instead: Option<(Bytes, usize)>,
}

/// Who looks at the bytes that pass.
#[derive(Debug)]
pub(crate) enum Observer {
    /// HTTP/1: a byte may begin a head, and an answer may be hyper's own.
    Bytes(Unreadable),
    /// HTTP/2: control frames are counted.
    Frames(FrameGuard),
}

impl<S> Observed<S> {
    /// Lets `observer` see what `transport` reads.
    pub(crate) fn new(transport: S, observer: Observer) -> Self {
        Self { transport, observer, whole: true, instead: None }
    }
}

impl<S: AsyncWrite + Unpin> Observed<S> {
    /// Writes what goes out in place of `bytes`, if anything does.
    fn poll_instead(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if let (Observer::Bytes(unreadable), None, true) = (&self.observer, &self.instead, self.whole) {
            self.instead = unreadable.instead(bytes).map(|instead| (instead, bytes.len()));
        }
        let (instead, length) = self.instead.as_mut()?;
        while !instead.is_empty() {
            match Pin::new(&mut self.transport).poll_write(cx, instead) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(written)) => instead.advance(written),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        let length = *length;
        self.instead = None;
        Some(Poll::Ready(Ok(length)))
    }

    fn written(&mut self, asked: usize, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = result {
            self.whole = written == asked;
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = into.filled().len();
        ready!(pin!(&mut me.transport).poll_read(cx, into))?;
        let new = &into.filled()[before..];
        match &mut me.observer {
            Observer::Bytes(unreadable) if !new.is_empty() => unreadable.byte(),
            Observer::Bytes(_) => {}
            Observer::Frames(guard) => guard.seen(new).map_err(|Flood| {
                io::Error::new(io::ErrorKind::InvalidData, "too many HTTP/2 control frames")
            })?,
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(instead) = self.poll_instead(cx, bytes) {
            return instead;
        }
        let result = Pin::new(&mut self.transport).poll_write(cx, bytes);
        self.written(bytes.len(), result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = pieces
            && let Some(instead) = self.poll_instead(cx, only)
        {
            return instead;
        }
        let result = Pin::new(&mut self.transport).poll_write_vectored(cx, pieces);
        self.written(pieces.iter().map(|piece| piece.len()).sum(), result)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol_as_soon_as_they_can() {
        assert_eq!(protocol_of(b"G"), Some(Protocol::Http1));
        assert_eq!(protocol_of(b"PRIME / HTTP/1.1\r\n"), Some(Protocol::Http1));
        for cut in 0..PREFACE.len() {
            assert_eq!(protocol_of(&PREFACE[..cut]), None);
        }
        assert_eq!(protocol_of(PREFACE), Some(Protocol::Http2));
        assert_eq!(protocol_of(&[PREFACE, &[0; 9]].concat()), Some(Protocol::Http2));
    }

    async fn pair(stall: Duration) -> (Socket, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Socket::new(listener.accept().await.unwrap().0, stall), client)
    }

    #[tokio::test]
    async fn what_was_sniffed_is_read_again() {
        let (mut socket, client) = pair(Duration::from_secs(30)).await;
        client.try_write(b"PRI * HT").unwrap();
        let write = async {
            tokio::task::yield_now().await;
            client.try_write(b"TP/1.1\r\n").unwrap();
        };
        let (protocol, ()) = tokio::join!(socket.sniff(), write);
        assert_eq!(protocol.unwrap(), Protocol::Http1);
        client.try_write(b"host: x\r\n").unwrap();
        socket.stream.tcp.readable().await.unwrap();
        let mut first = [0; 4];
        socket.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"PRI ");
        // The rest of it and what came after it are one read.
        let mut rest = [0; 64];
        let read = socket.read(&mut rest).await.unwrap();
        assert_eq!(&rest[..read], b"* HTTP/1.1\r\nhost: x\r\n");
        drop(client);
        assert_eq!(socket.read(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn leaving_is_seen_behind_unread_bytes() {
        let (socket, client) = pair(Duration::from_secs(30)).await;
        let leaving = socket.leaving();
        client.try_write(b"unread").unwrap();
        socket.stream.tcp.readable().await.unwrap();
        tokio::select! {
            biased;
            () = leaving.closed() => panic!("bytes are no leaving"),
            () = time::sleep(Duration::from_millis(20)) => {}
        }
        drop(client);
        time::timeout(Duration::from_secs(5), leaving.closed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        use tokio::io::AsyncWriteExt;
        let (mut socket, _client) = pair(Duration::from_millis(50)).await;
        let more_than_fits = vec![0; 64 << 20];
        let written = time::timeout(Duration::from_secs(10), socket.write_all(&more_than_fits)).await;
        assert_eq!(written.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn lingering_ends_when_the_client_closes() {
        use tokio::io::AsyncWriteExt;
        let (mut socket, mut client) = pair(Duration::from_secs(30)).await;
        let (ended, ()) = tokio::join!(socket.shutdown(), async {
            client.write_all(&vec![7; 100_000]).await.unwrap();
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            drop(client);
        });
        ended.unwrap();
    }
    #[tokio::test(start_paused = true)]
    async fn who_sends_frames_after_the_goodbye_is_soon_cut_off() {
        use tokio::io::AsyncWriteExt;
        for (protocol, lingers) in [(Protocol::Http1, LINGER), (Protocol::Http2, Duration::ZERO)] {
            let (mut socket, mut client) = pair(Duration::from_secs(30)).await;
            client.write_all(&vec![7; 2 * LINGER_FRAMES]).await.unwrap();
            socket.speaks(protocol);
            let begin = time::Instant::now();
            socket.shutdown().await.unwrap();
            assert_eq!(begin.elapsed().as_secs(), lingers.as_secs(), "{protocol:?}");
        }
    }
}

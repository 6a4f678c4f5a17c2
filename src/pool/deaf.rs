//! A connection whose server does not listen any more may still have been answered.
//!
//! A server that refuses a request before it has read all of it (413, 429, a wrong key) answers and closes. What is
//! written after that fails, and hyper gives up a connection that cannot be written to, the answer unread. So a
//! write that fails because the other end is gone counts as done: what there is to read tells the outcome, the
//! answer or the end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Goes on reading when writing has become useless.
#[derive(Debug)]
pub(super) struct Deaf<S> {
    stream: S,
    gone: bool,
}

impl<S: Write + Unpin> Deaf<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { stream, gone: false }
    }

    /// Writes, unless there is nobody to write to; `all` is what is done then.
    fn write<T>(
        &mut self,
        all: T,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        if self.gone {
            return Poll::Ready(Ok(all));
        }
        match ready!(write(Pin::new(&mut self.stream))) {
            Err(e) if matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) => {
                self.gone = true;
                Poll::Ready(Ok(all))
            }
            result => Poll::Ready(result),
        }
    }
}

impl<S: Read + Unpin> Read for Deaf<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: Write + Unpin> Write for Deaf<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(bytes.len(), |stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = pieces.iter().map(|piece| piece.len()).sum();
        self.write(all, |stream| stream.poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write((), |stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write((), |stream| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn what_was_answered_is_read_after_writing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        // To `TokioIo` and back: what hyper sees of it, as tokio's traits.
        let mut deaf = TokioIo::new(Deaf::new(TokioIo::new(client)));
        deaf.write_all(b"some").await.unwrap();
        server.write_all(b"no").await.unwrap();
        // Closed with something unread: a reset.
        drop(server);
        let mut answer = [0; 2];
        for _ in 0..100 {
            deaf.write_all(&[7; 1000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert!(deaf.inner().gone);
        deaf.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"no");
        assert!(!matches!(deaf.read(&mut answer).await, Ok(1..)));
    }
}

//! Reads little at a time where many read.
//!
//! hyper makes room for as much as a connection has to say, up to the longest head it may have, and what was read
//! keeps that room. An answer that is read as fast as it comes needs none of it; one whose reader is slow would hold
//! several times what waits for him. That is little for one connection, and much for a thousand.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, Take};

/// So many connections may read as much as they like.
const FEW: usize = 128;
/// The bytes of a read if there are more. hyper doubles its room whenever a read fills it: it stays at the power of two
/// above this.
const SIP: u64 = 16 * 1024 - 1;

/// All connections of a pool, and the pool with all its clones, which are one: a clone for each.
pub(super) type All = Arc<()>;

/// Reads at most [`SIP`] bytes at a time while there are more than [`FEW`] of its kind.
#[derive(Debug)]
pub(super) struct Sips<S> {
    stream: TokioIo<Take<TokioIo<S>>>,
    all: All,
}

impl<S: Read + Write + Unpin> Sips<S> {
    pub(super) fn new(stream: S, all: &All) -> Self {
        Self { stream: TokioIo::new(TokioIo::new(stream).take(SIP)), all: Arc::clone(all) }
    }

    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(self.stream.inner_mut().get_mut().inner_mut())
    }
}

impl<S: Read + Write + Unpin> Read for Sips<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // One is the pool's own.
        let many = Arc::strong_count(&self.all) > FEW + 1;
        self.stream.inner_mut().set_limit(if many { SIP } else { u64::MAX });
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: Read + Write + Unpin> Write for Sips<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.inner().get_ref().inner().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWrite as _, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn with_many_a_read_takes_a_sip_and_all_is_read_in_the_end() {
        let all = All::default();
        let (mut other, here) = tokio::io::duplex(1024 * 1024);
        let mut sips = TokioIo::new(Sips::new(TokioIo::new(here), &all));
        let said: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut into = vec![0; said.len()];
        let mut others: Vec<All> = vec![all.clone(); FEW];
        for many in [true, false] {
            other.write_all(&said).await.unwrap();
            let mut heard = Vec::new();
            while heard.len() < said.len() {
                let read = sips.read(&mut into).await.unwrap();
                let most = if many { SIP } else { said.len() as u64 };
                assert!(read > 0 && (heard.len() + read == said.len() || read as u64 == most));
                heard.extend_from_slice(&into[..read]);
            }
            assert!(heard == said);
            others.pop();
        }
        drop(other);
        assert_eq!(sips.read(&mut into).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_written_arrives() {
        let (mut other, here) = tokio::io::duplex(1024);
        let mut sips = TokioIo::new(Sips::new(TokioIo::new(here), &All::default()));
        assert!(sips.is_write_vectored());
        assert_eq!(sips.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")]).await.unwrap(), 2);
        sips.write_all(b"c").await.unwrap();
        sips.shutdown().await.unwrap();
        let mut heard = String::new();
        other.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "abc");
    }
}

//! Reads little at a time of what is long.
//!
//! hyper makes room for as much as a connection has to say, up to the longest head it may have, and what was read
//! keeps that room. An answer that is read as fast as it comes needs none of it; a long one whose reader is slow would
//! hold several times what waits for him.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, Take};

/// Bytes after a request that are read as they come: what arrives together goes on together.
const FREELY: u64 = 128 * 1024;
/// Bytes of a read from then on. hyper doubles its room whenever a read fills it, and halves it after two that fill
/// less than half: it stays at the power of two above this.
const SIP: u64 = 16 * 1024 - 1;

/// Reads at most [`SIP`] bytes at a time, but for the first [`FREELY`] after something was written.
#[derive(Debug)]
pub(super) struct Sips<S>(TokioIo<Take<TokioIo<S>>>);

impl<S: Read + Write + Unpin> Sips<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(TokioIo::new(TokioIo::new(stream).take(FREELY)))
    }

    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(self.0.inner_mut().get_mut().inner_mut())
    }

    /// The stream, before a request is written to it.
    fn asked(&mut self) -> Pin<&mut S> {
        self.0.inner_mut().set_limit(FREELY);
        self.stream()
    }
}

impl<S: Read + Write + Unpin> Read for Sips<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let bounded = self.0.inner_mut();
        // At its end it would say that the connection has ended.
        if bounded.limit() == 0 {
            bounded.set_limit(SIP);
        }
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl<S: Read + Write + Unpin> Write for Sips<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.asked().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.asked().poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.inner().get_ref().inner().is_write_vectored()
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
    async fn what_is_long_is_taken_in_sips_after_each_request_and_read_to_its_end() {
        let (mut other, here) = tokio::io::duplex(1024 * 1024);
        let mut sips = TokioIo::new(Sips::new(TokioIo::new(here)));
        let said: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut into = vec![0; said.len()];
        for _ in 0..2 {
            sips.write_all(b"?").await.unwrap();
            other.write_all(&said).await.unwrap();
            let (mut heard, mut reads) = (Vec::new(), Vec::new());
            while heard.len() < said.len() {
                let read = sips.read(&mut into).await.unwrap();
                assert_ne!(read, 0);
                heard.extend_from_slice(&into[..read]);
                reads.push(read as u64);
            }
            assert!(heard == said);
            assert_eq!(reads[0], FREELY);
            assert!(reads.len() > 2 && reads[1..].iter().all(|read| *read <= SIP), "{reads:?}");
        }
        drop(other);
        assert_eq!(sips.read(&mut into).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_written_arrives() {
        let (mut other, here) = tokio::io::duplex(1024);
        let mut sips = TokioIo::new(Sips::new(TokioIo::new(here)));
        assert!(sips.is_write_vectored());
        assert_eq!(sips.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")]).await.unwrap(), 2);
        sips.write_all(b"c").await.unwrap();
        sips.shutdown().await.unwrap();
        let mut heard = String::new();
        other.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "abc");
    }
}

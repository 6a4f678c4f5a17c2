//! Reads little at a time.
//!
//! hyper makes room for as much as a connection has to say, up to the longest head it may have, and what was read
//! keeps that room. An answer that is read as fast as it comes needs none of it; one whose reader is slow would hold
//! several times what waits for him.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, Take};

/// Bytes. hyper doubles its room whenever a read fills it: it stays at a power of two above this.
pub(super) const SIP: u64 = 16 * 1024 - 1;

/// Reads at most [`SIP`] bytes at a time.
#[derive(Debug)]
pub(super) struct Sips<S>(TokioIo<Take<TokioIo<S>>>);

impl<S: Read + Write + Unpin> Sips<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(TokioIo::new(TokioIo::new(stream).take(SIP)))
    }

    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(self.0.inner_mut().get_mut().inner_mut())
    }
}

impl<S: Read + Write + Unpin> Read for Sips<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.inner_mut().set_limit(SIP);
        Pin::new(&mut self.0).poll_read(cx, into)
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
    async fn a_read_takes_a_sip_and_all_is_read_in_the_end() {
        let (mut other, here) = tokio::io::duplex(1024 * 1024);
        let said: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut sips = TokioIo::new(Sips::new(TokioIo::new(here)));
        other.write_all(&said).await.unwrap();
        drop(other);
        let (mut heard, mut into) = (Vec::new(), vec![0; said.len()]);
        loop {
            let read = sips.read(&mut into).await.unwrap();
            assert!(read as u64 <= SIP);
            if read == 0 {
                break;
            }
            heard.extend_from_slice(&into[..read]);
        }
        assert_eq!(heard, said);
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

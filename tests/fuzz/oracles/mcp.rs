//! What a tool server writes on its standard output: the same messages however it is cut, and each of
//! them from one line.

use std::pin::Pin;
use std::task::{Context, Poll};

use fanfold::tools::door;
use tokio::io::{AsyncRead, ReadBuf};

use super::Choices;

pub fn hold(data: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    }
    let mut choices = Choices(data);
    let size = 1 + choices.below(256);
    let said = choices.rest();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let whole = door::mcp_messages(said).await;
            assert_eq!(door::mcp_messages(Pieces { bytes: said, size }).await, whole, "cut every {size}");
            let mut alone = Vec::new();
            for line in said.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
                let one = door::mcp_messages(line).await;
                assert!(one.len() <= 1, "two messages on a line");
                alone.extend(one);
            }
            assert_eq!(alone, whole, "each line by itself");
        });
    });
}

/// Gives its bytes in pieces of `size`.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let most = self.bytes.len().min(self.size).min(into.remaining());
        let (now, later) = self.bytes.split_at(most);
        into.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

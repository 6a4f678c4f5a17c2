//! Performs the steps of a round on a socket.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Semaphore;

use super::journal::How;
use super::script::{Answer, Framing, Head, Step};

/// The bytes that a flood writes at once, or a few more.
const FLOOD: usize = 64 * 1024;

/// How the bytes of a body are cut.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Bytes of one write; all at once without it.
    pub(super) split: Option<usize>,
    /// A pause after each write.
    pub(super) gap: Duration,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The next request may come.
    Keep,
    /// It is to be closed.
    Close(How),
}

/// A body being written.
struct Out<'a> {
    half: &'a mut OwnedWriteHalf,
    /// The head was written, with this framing.
    begun: Option<Framing>,
    pace: Pace,
}

/// Plays the steps to their end.
pub(super) async fn play(
    half: &mut OwnedWriteHalf,
    steps: &[Step],
    pace: Pace,
    releases: &Semaphore,
) -> io::Result<Then> {
    let mut out = Out { half, begun: None, pace };
    let mut raw = false;
    for step in steps {
        match step {
            Step::Head(head) => out.head(head).await?,
            Step::Json(body) => {
                out.answer(&Answer { status: 200, headers: [].into(), body: body.clone() }).await?;
            }
            Step::Answer(answer) => out.answer(answer).await?,
            Step::Events(events) => {
                for event in events {
                    let data = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
                    out.send(format!("data: {data}\n\n").as_bytes()).await?;
                }
            }
            Step::Send(text) => out.send(text.as_bytes()).await?,
            Step::Flood(text) => {
                let many = text.repeat(1 + FLOOD / text.len().max(1));
                loop {
                    out.send(many.as_bytes()).await?;
                }
            }
            Step::Hex(digits) => out.send(&bytes_of(digits)?).await?,
            Step::Raw(text) => {
                raw = true;
                out.half.write_all(text.as_bytes()).await?;
            }
            Step::WaitMs(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Step::Stall => releases.acquire().await.map_err(io::Error::other)?.forget(),
            Step::End => out.end().await?,
            Step::Close => return Ok(Then::Close(How::Cut)),
            Step::Reset => {
                let socket = socket2::SockRef::from(AsRef::<tokio::net::TcpStream>::as_ref(out.half));
                socket.set_linger(Some(Duration::ZERO))?;
                return Ok(Then::Close(How::Cut));
            }
        }
    }
    let closes = raw || out.begun == Some(Framing::Close);
    out.end().await?;
    Ok(if closes { Then::Close(How::Complete) } else { Then::Keep })
}

impl Out<'_> {
    async fn head(&mut self, head: &Head) -> io::Result<()> {
        let reason = http::StatusCode::from_u16(head.status).ok().and_then(|s| s.canonical_reason());
        let mut text = format!("HTTP/{} {} {}\r\n", head.version, head.status, reason.unwrap_or("Other"));
        for (name, value) in &head.headers {
            // Writing to a String cannot fail.
            let _ = write!(text, "{name}: {value}\r\n");
        }
        match head.framing {
            Framing::Chunked => text.push_str("transfer-encoding: chunked\r\n"),
            Framing::Length => {
                let _ = write!(text, "content-length: {}\r\n", head.length);
            }
            Framing::Close => text.push_str("connection: close\r\n"),
        }
        text.push_str("\r\n");
        self.begun = Some(head.framing);
        self.half.write_all(text.as_bytes()).await
    }

    async fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        let body = match answer.body.as_str() {
            Some(text) => text.to_owned(),
            None if answer.body == Value::Null => String::new(),
            None => answer.body.to_string(),
        };
        let mut headers = answer.headers.clone();
        headers.entry("content-type".into()).or_insert_with(|| "application/json".into());
        let head = Head {
            status: answer.status,
            headers,
            framing: Framing::Length,
            length: body.len(),
            version: "1.1".into(),
        };
        self.head(&head).await?;
        self.send(body.as_bytes()).await
    }

    /// A piece of the body, in its framing and at its pace.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.begun.is_none() {
            self.head(&Head::default()).await?;
        }
        for piece in bytes.chunks(self.pace.split.unwrap_or(bytes.len()).max(1)) {
            if self.begun == Some(Framing::Chunked) {
                let mut framed = format!("{:x}\r\n", piece.len()).into_bytes();
                framed.extend_from_slice(piece);
                framed.extend_from_slice(b"\r\n");
                self.half.write_all(&framed).await?;
            } else {
                self.half.write_all(piece).await?;
            }
            if !self.pace.gap.is_zero() {
                tokio::time::sleep(self.pace.gap).await;
            }
        }
        Ok(())
    }

    async fn end(&mut self) -> io::Result<()> {
        if self.begun == Some(Framing::Chunked) {
            self.half.write_all(b"0\r\n\r\n").await?;
            self.begun = Some(Framing::Length);
        }
        Ok(())
    }
}

fn bytes_of(digits: &str) -> io::Result<Vec<u8>> {
    let digits: Vec<u8> = digits.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(io::Error::other)?;
            u8::from_str_radix(pair, 16).map_err(io::Error::other)
        })
        .collect()
}

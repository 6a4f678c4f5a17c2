//! Reads HTTP/1.1 requests from a socket, and nothing more than that.

use std::collections::BTreeMap;
use std::io;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The most bytes of a head.
const HEAD: usize = 256 * 1024;
/// The most bytes of a body.
const BODY: usize = 128 * 1024 * 1024;

/// A request's head.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in small letters.
    pub headers: BTreeMap<String, String>,
}

impl Head {
    /// The path without its query.
    pub fn route(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    /// The parameters of the query, decoded.
    pub fn query(&self) -> BTreeMap<String, String> {
        let query = self.path.split_once('?').map(|(_, query)| query).unwrap_or_default();
        url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }
}

/// The reading half of a connection, with what was read ahead.
pub struct Reader {
    half: OwnedReadHalf,
    ahead: Vec<u8>,
}

impl Reader {
    pub fn new(half: OwnedReadHalf) -> Self {
        Self { half, ahead: Vec::new() }
    }

    async fn more(&mut self) -> io::Result<bool> {
        Ok(self.half.read_buf(&mut self.ahead).await? > 0)
    }

    /// The next head; nothing if the peer closed.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            let mut space = [httparse::EMPTY_HEADER; 128];
            let mut request = httparse::Request::new(&mut space);
            match request.parse(&self.ahead).map_err(io::Error::other)? {
                httparse::Status::Complete(length) => {
                    let mut head = Head {
                        method: request.method.unwrap_or_default().to_owned(),
                        path: request.path.unwrap_or_default().to_owned(),
                        headers: BTreeMap::new(),
                    };
                    for header in request.headers.iter() {
                        let value = String::from_utf8_lossy(header.value).into_owned();
                        let known = head.headers.entry(header.name.to_ascii_lowercase());
                        known.and_modify(|had| *had = format!("{had}, {value}")).or_insert(value);
                    }
                    self.ahead.drain(..length);
                    return Ok(Some(head));
                }
                httparse::Status::Partial if self.ahead.len() > HEAD => {
                    return Err(io::Error::other("the head is too long"));
                }
                httparse::Status::Partial => {
                    if !self.more().await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The body that belongs to a head.
    pub async fn body(&mut self, head: &Head, out: &mut OwnedWriteHalf) -> io::Result<Vec<u8>> {
        if head.headers.get("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if head.headers.get("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            return self.chunked().await;
        }
        let length = head.headers.get("content-length").map_or(Ok(0), |text| text.parse());
        self.exactly(length.map_err(io::Error::other)?).await
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > BODY {
            return Err(io::Error::other("the body is too long"));
        }
        while self.ahead.len() < length {
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.ahead.drain(..length).collect())
    }

    async fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
            if body.len() + size > BODY {
                return Err(io::Error::other("the body is too long"));
            }
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size).await?);
            let _end = self.line().await?;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.ahead.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(io::Error::other);
            }
            if self.ahead.len() > HEAD || !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Returns when the peer has closed or reset. Bytes that come before that are kept for the
    /// next request, up to a bound.
    pub async fn gone(&mut self) {
        while self.ahead.len() <= HEAD {
            if !matches!(self.more().await, Ok(true)) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

/// A body as the journal shows it.
pub fn shown(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into())
}

//! Requests as bytes, for what no HTTP library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// Sends a request that asks for `connection: close` and reads the answer.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let (mut read, mut write) = stream.split();
    let mut bytes = Vec::new();
    // An answer may come, and the connection be closed, before all was sent.
    let sending = async { write.write_all(request).await.ok() };
    let reading = async { read.read_to_end(&mut bytes).await.ok() };
    tokio::join!(sending, reading);
    parsed(&bytes)
}

/// Reads an answer from its bytes.
fn parsed(bytes: &[u8]) -> Answer {
    let mut space = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut space);
    let shown = || String::from_utf8_lossy(bytes).chars().take(300).collect::<String>();
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else {
        panic!("no answer: {:?}", shown())
    };
    let headers = response.headers.iter();
    let headers =
        headers.map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned())).collect();
    let mut answer = Answer { status: response.code.unwrap_or_default(), headers, body: Vec::new() };
    let rest = &bytes[head..];
    answer.body =
        if answer.header("transfer-encoding") == "chunked" { dechunked(rest) } else { rest.to_vec() };
    answer
}

fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) {
        let size = usize::try_from(size).expect("a size");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
    }
    panic!("the chunks break off")
}

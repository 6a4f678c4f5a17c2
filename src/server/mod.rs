//! Accepts, reads, answers, drains.
//!
//! ```text
//! listener ─▶ connection ─▶ gate ─▶ Handler::handle ─▶ relay::body
//!  accept      TLS, sniff,   Host,     proxy, admin      bytes out, bounded
//!  bound       deadlines,    CONNECT
//!  drain       leaving
//! ```
//!
//! Nothing here knows what a chat or a tool is: a [`Handler`] gets a request whose head is sound,
//! reads its body through [`body`], and answers with a body of its own, mostly a [`Body`](crate::relay::body::Body).

use std::error::Error;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

mod activity;
pub mod body;
mod connection;
pub mod drain;
mod exchange;
mod frames;
mod gate;
mod io;
pub mod listener;
pub mod proxy;

pub mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod unreadable;
pub mod visitors;

/// What answers the requests of a listener.
///
/// A handler may be dropped at any await, when the client left or the drain ran out; work that has
/// to go on belongs to a task with another owner. A handler that panics is answered for with 500.
pub trait Handler: Send + Sync + 'static {
    /// The body it answers with.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static;

    /// Answers one request.
    fn handle(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Headers for an answer that is given in its stead, to a request with these headers: one whose
    /// head is not sound, or one that it panicked over.
    fn headers(&self, _request: &HeaderMap) -> HeaderMap {
        HeaderMap::new()
    }
}

/// Who asked.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// The connection is encrypted.
    pub tls: bool,
    /// Cancelled when this request's client is gone: it closed its side of the connection, reset
    /// the HTTP/2 stream, took nothing for too long, or the answer was dropped before its end for
    /// any other reason. An answer that went out whole cancels nothing. A client that ends only its
    /// sending side counts as gone: the two look alike from here.
    pub gone: CancellationToken,
}

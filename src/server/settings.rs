//! `tls:`, `admin:` and `server:` of the file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Size, Span};

/// `tls:`: the listener's certificate; both files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with the certificate chain.
    pub cert: String,
    /// A PEM file with the private key.
    pub key: String,
}

/// `admin:`: the listener of health and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port.
    pub listen: String,
    /// `Host` names it answers to beside loopback ones (for a listener that is not on loopback).
    pub hosts: Vec<String>,
    /// Metrics are counted. Without them `/metrics` is empty.
    pub metrics: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:4101".into(), hosts: Vec::new(), metrics: true }
    }
}

/// `server:`: what a client connection may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Server")]
pub struct Settings {
    /// `Host` names the proxy answers to beside loopback ones while it asks for no keys.
    pub hosts: Vec<String>,
    /// The whole head of a request; also the TLS handshake.
    pub header_timeout: Span,
    /// The whole body of a chat request.
    pub body_timeout: Span,
    /// Less than so much body per second, after the first five seconds, is refused with 408.
    pub body_rate: Size,
    /// A connection without a request.
    pub idle_timeout: Span,
    /// A client that takes nothing of what is written to it.
    pub stall_timeout: Span,
    /// Bytes held for a client that reads slowly.
    pub write_buffer: Size,
    /// Silence in a stream before a `: keep-alive` comment.
    pub keep_alive: Span,
    /// After SIGTERM: how long new connections are still accepted.
    pub drain_accept: Span,
    /// After SIGTERM: how long turns in flight may go on.
    pub drain: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            header_timeout: Span::seconds(10),
            body_timeout: Span::seconds(30),
            body_rate: Size::kib(1),
            idle_timeout: Span::seconds(120),
            stall_timeout: Span::seconds(30),
            write_buffer: Size::kib(256),
            keep_alive: Span::seconds(10),
            drain_accept: Span::seconds(5),
            drain: Span::seconds(120),
        }
    }
}

//! A door for the fuzz targets in `tests/fuzz`, and for nobody else: what arguments become on their way
//! out, and what a tool server's lines become on their way in. Nothing is sent or run in here.

use std::ffi::OsString;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use rmcp::transport::Transport as _;
use tokio::io::AsyncRead;

use super::mcp::stdio_pipes;
use super::{Kind, Tool};

/// What a call would hand to the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// A request.
    Request {
        /// Its method.
        method: Method,
        /// Where it goes.
        uri: Uri,
        /// Its headers, those of fanfold aside.
        headers: HeaderMap,
        /// Its body.
        body: Option<Bytes>,
    },
    /// A process.
    Process {
        /// Its arguments, the program aside.
        elements: Vec<OsString>,
        /// Its standard input.
        stdin: Option<String>,
    },
    /// A call of a tool server, which checks its arguments itself.
    Message,
}

/// What these arguments would become. The error is what the model would read.
pub fn made(tool: &Tool, arguments: &str) -> Result<Made, String> {
    let arguments = tool.read(arguments).map_err(|outcome| outcome.content)?;
    match &tool.kind {
        Kind::Http(http) => http.made(&arguments, &tool.schema),
        Kind::Command(command) => command.made(&arguments),
        Kind::Mcp(_) => Ok(Made::Message),
    }
}

/// The messages, as JSON, that a tool server's standard output holds, until it ends or is given up.
pub async fn mcp_messages(read: impl AsyncRead + Unpin + Send) -> Vec<String> {
    let mut pipes = stdio_pipes(read, tokio::io::sink());
    let mut heard = Vec::new();
    while let Some(message) = pipes.receive().await {
        heard.push(serde_json::to_string(&message).unwrap_or_default());
    }
    heard
}

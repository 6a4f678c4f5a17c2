//! Small real servers and shorthands for the tests of this module.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Call, Catalog, Defaults, LoadError, Progress, Tool, Tries};
use crate::telemetry::traces::Carried;
use crate::wire::tool::{Outcome, Patience};

pub(super) const DEFAULTS: Defaults =
    Defaults { call_timeout: Duration::from_secs(30), tool_result: 64 * 1024 };

/// Builds tools from the JSON form of `tools:`.
pub(super) fn build(tools: Value) -> Result<Catalog, Vec<LoadError>> {
    let settings: BTreeMap<String, super::settings::Settings> = serde_json::from_value(tools).unwrap();
    Catalog::build(&settings, &DEFAULTS)
}

/// Builds one tool named `t`.
pub(super) fn tool(settings: Value) -> (Catalog, Arc<Tool>) {
    let catalog = build(serde_json::json!({ "t": settings })).unwrap();
    let tool = Arc::clone(catalog.tool("t").unwrap());
    (catalog, tool)
}

/// A call with plenty of time.
pub(super) fn call(arguments: &Value) -> Call {
    Call {
        arguments: arguments.to_string(),
        idempotency_key: "key-1".into(),
        request_id: "request-1".into(),
        trace: Some(Carried {
            parent: HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            state: Some(HeaderValue::from_static("vendor=1")),
        }),
        result_limit: 64 * 1024,
        deadline: Instant::now() + Duration::from_secs(20),
        progress: Progress::new(
            Patience { silent: Duration::from_secs(20), most: Duration::from_secs(20) },
            Arc::default(),
        ),
        tries: Tries::default(),
    }
}

/// Runs a call nobody stops.
pub(super) async fn run(tool: &Tool, arguments: Value) -> Outcome {
    tool.run(&call(&arguments), &CancellationToken::new()).await
}

/// A request as a server saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: String,
}

/// Instead of this answer the connection is closed.
#[derive(Debug, Clone)]
struct HangsUp;

/// No answer: the connection is closed after the request was read.
pub(super) fn hang_up() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    response.extensions_mut().insert(HangsUp);
    response
}

/// An HTTP server that answers as told and remembers what it was asked.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Answers the n-th request (from 0) with what `answer` makes of it.
    pub(super) async fn start(
        answer: impl Fn(usize, &Seen) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (count, log, answer) = (Arc::clone(&connections), Arc::clone(&seen), Arc::new(answer));
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                        let seen = Seen {
                            method: head.method.to_string(),
                            target: head.uri.to_string(),
                            headers: head.headers,
                            body: String::from_utf8_lossy(&body).into_owned(),
                        };
                        let number = {
                            let mut log = log.lock().unwrap();
                            log.push(seen.clone());
                            log.len() - 1
                        };
                        let answer = answer(number, &seen);
                        let hangs_up = answer.extensions().get::<HangsUp>().is_some();
                        if hangs_up { Err("hangs up") } else { Ok(answer) }
                    }
                });
                open.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, connections, seen, _tasks: tasks }
    }

    /// What it saw since the last time.
    pub(super) fn taken(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }
}

/// A response of this status and text.
pub(super) fn response(status: u16, text: &str) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    Response::builder().status(status).header("content-type", "text/plain").body(body).unwrap()
}

/// A certificate for 127.0.0.1, for a server, and the file of the authority behind it.
pub(super) fn tls(dir: &std::path::Path) -> (tokio_rustls::TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config).into(), ca.to_str().unwrap().into())
}

/// What a raw server does with a connection.
#[derive(Debug, Clone)]
pub(super) enum Script {
    /// Reads the request's head, then resets.
    Reset,
    /// Reads the request's head, then closes.
    Close,
    /// Reads the request's head, says this and closes.
    Say(Vec<u8>),
    /// Reads the request's head, says this and then nothing, until the other side closes.
    Hang(Vec<u8>),
    /// Reads the request's head, says the first and then the second for ever.
    Forever(Vec<u8>, Vec<u8>),
    /// Says this without reading.
    Blurt(Vec<u8>),
}

/// A TCP server that plays one script per connection, the last one for all further ones.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
    /// Connections whose other side has closed or that were played to the end.
    pub(super) over: tokio::sync::watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Raw {
    pub(super) async fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (ended, over) = tokio::sync::watch::channel(0);
        let (count, ended) = (Arc::clone(&connections), Arc::new(ended));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let script = scripts.get(number).or(scripts.last()).unwrap().clone();
                let ended = Arc::clone(&ended);
                open.spawn(async move {
                    let _ = play(stream, script).await;
                    ended.send_modify(|over| *over += 1);
                });
            }
        });
        Self { address, connections, over, _tasks: tasks }
    }

    pub(super) fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }
}

async fn play(mut stream: TcpStream, script: Script) -> std::io::Result<()> {
    if !matches!(script, Script::Blurt(_)) {
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
    }
    match script {
        Script::Reset => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
        Script::Close => stream.shutdown().await,
        Script::Say(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
        Script::Hang(bytes) => {
            stream.write_all(&bytes).await?;
            let mut rest = [0; 64];
            while stream.read(&mut rest).await? > 0 {}
            Ok(())
        }
        Script::Forever(first, then) => {
            stream.write_all(&first).await?;
            loop {
                stream.write_all(&then).await?;
            }
        }
        Script::Blurt(bytes) => {
            stream.write_all(&bytes).await?;
            let mut rest = [0; 64];
            while stream.read(&mut rest).await? > 0 {}
            Ok(())
        }
    }
}

/// Values that try to become more than a value.
pub(super) const HOSTILE: &[&str] = &[
    "",
    " ",
    ".",
    "..",
    "...",
    "/",
    "\\",
    "a/b",
    "a\\b",
    "../",
    "..\\",
    "../../etc/passwd",
    "..%2f",
    "%2e%2e",
    "%2e",
    "%2E%2E%2F",
    "%252e%252e",
    "%25252e%25252e%25252f",
    "..%252f",
    "%c0%ae%c0%ae",
    "%c0%af",
    "..%c0%af",
    "%2f",
    "%5c",
    "%00",
    "\0",
    "a\0b",
    "\r",
    "\n",
    "\r\n",
    "a\r\nx-evil: 1",
    "a\nx-evil: 1",
    "%0d%0ax-evil:%201",
    "a\r\n\r\nGET /evil",
    "\u{85}",
    "\u{2028}",
    "\u{7f}",
    "\t",
    "a\tb",
    "\u{1b}[31m",
    "?",
    "?evil=1",
    "a?evil=1",
    "#",
    "a#b",
    "&",
    "a&evil=1",
    "&&",
    "=",
    "a=b",
    ";",
    "a;evil=1",
    "..;",
    "..;/",
    ";/..",
    ":",
    "a:b",
    "@",
    "user@evil.example",
    "a@b:1/",
    "//evil.example",
    "///evil.example",
    "\\\\evil.example",
    "http://evil.example/",
    "https:evil.example",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "+",
    "a+b",
    "a b",
    "%20",
    "%",
    "%%",
    "%2",
    "%zz",
    "100%",
    "50%25",
    "*",
    "**",
    "~",
    "~root",
    "$HOME",
    "${HOME}",
    "$(id)",
    "`id`",
    "; id",
    "| id",
    "&& id",
    "|| id",
    "> /tmp/evil",
    "< /etc/passwd",
    "'",
    "\"",
    "'; id; '",
    "\"; id; \"",
    "a'b\"c",
    "{x}",
    "{{x}}",
    "}",
    "{",
    "{v}",
    "[x]",
    "(x)",
    "<script>",
    "!",
    "!!",
    "^",
    "-",
    "--",
    "-v",
    "--version",
    "-rf",
    "--output=/tmp/evil",
    "-o/tmp/evil",
    "@/etc/passwd",
    "\u{ff0e}\u{ff0e}",
    "\u{ff0f}",
    "\u{2215}",
    "\u{202e}abc",
    "\u{feff}",
    "\u{200b}",
    "ž",
    "日本",
    "🐎",
    "e\u{301}",
    "a\u{0}",
    "null",
    "true",
    "0",
    "-1",
    "1e9",
    "NaN",
    "[]",
    "{}",
    "\\u002e\\u002e",
    "\\x2e",
    "\\n",
    "CON",
    "aux.txt",
    "a,b",
    "a|b",
    "a^b",
    "HTTP/1.1",
    "Host: evil",
    "%u002e",
    "&#46;",
    "%e0%80%ae",
    "..;/",
    "..%2f",
    "%2e%2e%2f",
    "%252e%252e%252f",
    "..%c0%af",
    "..%ef%bc%8f",
    "....//",
    "..../",
    "..\\..\\",
    "%5c..%5c",
    "/%2e%2e/",
    "a/../../b",
    ";jsessionid=1",
    "a;b=c",
    "a?b",
    "a?b=c&d=e",
    "a#b",
    "%23",
    "%3f",
    "%26admin=true",
    "&admin=true",
    "=1",
    "q=1",
    "x&q=2",
    "x%00",
    "%00",
    "%0d%0aX-Evil: 1",
    "%0aX-Evil: 1",
    "a\r\nX-Evil: 1",
    "a\nX-Evil: 1",
    "a\rX-Evil: 1",
    "a\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil\r\n\r\n",
    "\u{2028}X-Evil: 1",
    "\u{85}X-Evil: 1",
    "Bearer evil",
    "x\tcontent-length: 0",
    "http://169.254.169.254/latest/meta-data/",
    "//evil.example/",
    "https:evil.example",
    "@evil.example",
    ":80@evil.example",
    "evil.example:80",
    "localhost",
    "127.0.0.1",
    "[::1]",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "data:text/html,x",
    "$(id)",
    "$(touch evil)",
    "`touch evil`",
    "; touch evil",
    "| touch evil",
    "|| touch evil",
    "&& touch evil",
    "& touch evil &",
    "\ntouch evil\n",
    "> evil",
    ">> evil",
    "< /etc/passwd",
    "<(touch evil)",
    "${IFS}touch${IFS}evil",
    "$IFS",
    "$HOME",
    "~root",
    "*",
    "?",
    "{a,b}",
    "'; touch evil; '",
    "\"; touch evil; \"",
    "-exec touch evil ;",
    "--config=/tmp/evil",
    "-",
    "+x",
    "--=",
    "\u{2010}v",
    "LD_PRELOAD=/tmp/evil.so",
    "__proto__",
    "constructor.prototype",
    "' OR '1'='1",
    "1; DROP TABLE x",
    "{{7*7}}",
    "<!--#exec cmd=\"touch evil\"-->",
];

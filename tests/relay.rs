//! Paths that are no chat go through: bytes, streams and headers, in both directions.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use support::gateway::{Gateway, soon};
use support::lab::Lab;
use support::process::Process;
use support::raw;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// A model server that answers by path, and shows what it got.
struct Upstream {
    url: String,
    seen: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    /// Lets an event stream go on.
    more: Arc<Notify>,
    _tasks: JoinSet<()>,
}

/// A body of `n` bytes that never repeats within its period.
const PERIOD: usize = 65_521;

fn pattern() -> Bytes {
    let mut random = fastrand::Rng::with_seed(7);
    (0..PERIOD).map(|_| random.u8(..)).collect()
}

fn patterned(n: usize) -> Body {
    let pattern = pattern();
    let frames = (0..n.div_ceil(PERIOD)).map(move |i| {
        let size = PERIOD.min(n - i * PERIOD);
        Ok(Frame::data(pattern.slice(..size)))
    });
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// Reads a body and says how long it is, if it is the pattern.
async fn read_pattern<B>(mut body: B) -> Option<usize>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let pattern = pattern();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.ok()?.into_data().ok()?;
        let mut rest = &data[..];
        while !rest.is_empty() {
            let at = length % PERIOD;
            let size = rest.len().min(PERIOD - at);
            if rest[..size] != pattern[at..at + size] {
                return None;
            }
            length += size;
            rest = &rest[size..];
        }
    }
    Some(length)
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, more) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let mut tasks = JoinSet::new();
        let (into, go_on) = (seen.clone(), more.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (into, go_on) = (into.clone(), go_on.clone());
                let service = service_fn(move |request| answer(request, into.clone(), go_on.clone()));
                connections.spawn(async move {
                    let served = hyper::server::conn::http1::Builder::new();
                    let _ended = served.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, seen, more, _tasks: tasks }
    }

    fn config(&self) -> String {
        format!("upstreams: {{ main: {{ base_url: '{}/v1', api_key: sk-upstream }} }}\n", self.url)
    }

    /// The target, headers and body of the last request.
    fn last(&self) -> (String, HeaderMap, Bytes) {
        self.seen.lock().unwrap().last().cloned().unwrap()
    }
}

const ODD: &str = "{ \"seed\" : 123456789012345678901234567890,\r\n\t\"x\":1.10 , \"e\":1E400,\"dup\":1,\"dup\":2,\"u\":\"\\u00e9\" }\n";

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    more: Arc<Notify>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let target = head.uri.to_string();
    let response = Response::builder();
    let full = |text: Bytes| Full::new(text).boxed_unsync();
    Ok(match head.uri.path() {
        "/v1/files" => {
            let length = read_pattern(body).await;
            response.body(full(format!("{{\"bytes\":{}}}", json!(length)).into())).unwrap()
        }
        "/v1/files/large/content" => {
            let n = head.uri.query().and_then(|q| q.parse().ok()).unwrap_or(0);
            response.header("content-type", "application/octet-stream").body(patterned(n)).unwrap()
        }
        "/v1/responses" => {
            let frames = futures_util::stream::unfold(0, move |n| {
                let more = more.clone();
                async move {
                    if n > 0 {
                        more.notified().await;
                    }
                    let event = format!("event: part\ndata: {{\"n\":{n}}}\n\n");
                    (n < 3).then(|| (Ok(Frame::data(event.into())), n + 1))
                }
            });
            response
                .header("content-type", "text/event-stream")
                .body(StreamBody::new(frames).boxed_unsync())
                .unwrap()
        }
        "/v1/models" => {
            let models = ["a-1", "a-2", "b-1"].map(|id| json!({ "id": id, "object": "model" }));
            response.body(full(json!({ "object": "list", "data": models }).to_string().into())).unwrap()
        }
        _ => {
            let body = body.collect().await.unwrap().to_bytes();
            seen.lock().unwrap().push((target, head.headers, body));
            response
                .header("content-type", "application/json; odd=yes")
                .header("openai-processing-ms", "7")
                .header("x-ratelimit-remaining-tokens", "99")
                .header("x-request-id", "theirs")
                .header("set-cookie", "a=1")
                .header("set-cookie", "b=2")
                .header("keep-alive", "timeout=5")
                .header("connection", "x-hop")
                .header("x-hop", "1")
                .header("proxy-authenticate", "Basic")
                .body(full(ODD.into()))
                .unwrap()
        }
    })
}

fn client<B>() -> Client<hyper_util::client::legacy::connect::HttpConnector, B>
where
    B: http_body::Body<Data: Send> + Send + Unpin + 'static,
{
    Client::builder(TokioExecutor::new()).build_http()
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_the_same_bytes_in_both_directions() {
    let (upstream, lab) = (Upstream::start().await, Lab::start().await);
    let gateway = Gateway::start(&lab, &upstream.config()).await;
    let text = format!(
        "POST /v1/embeddings?api-version=2%2F3&empty=&a=b%20c HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nauthorization: Bearer sk-client\r\napi-key: sk-client\r\ncookie: c=1\r\nx-request-id: mine-1\r\n\
         openai-organization: org\r\nx-stainless-lang: python\r\naccept-encoding: gzip, br\r\ntraceparent: 00-ab-cd-01\r\n\
         connection: close, x-mine\r\nx-mine: 1\r\nte: trailers\r\nkeep-alive: 5\r\nproxy-authorization: Basic x\r\nupgrade: h2c\r\n\
         x-fanfold-tools: none\r\nuser-agent: agent/1\r\n\r\n{ODD}",
        ODD.len()
    );
    let answer = soon(raw::exchange(gateway.app.proxy_address, text.as_bytes())).await;
    assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (200, ODD));
    let (target, headers, body) = upstream.last();
    assert_eq!(
        (target.as_str(), body.as_ref()),
        ("/v1/embeddings?api-version=2%2F3&empty=&a=b%20c", ODD.as_bytes())
    );
    let mut names: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    names.sort();
    let host = format!("host: {}", upstream.url.trim_start_matches("http://"));
    assert_eq!(
        names,
        [
            "accept-encoding: gzip, br",
            "authorization: Bearer sk-upstream",
            &format!("content-length: {}", ODD.len()),
            "content-type: application/json",
            &host,
            "traceparent: 00-ab-cd-01",
            "user-agent: agent/1",
            "x-request-id: mine-1",
            "x-stainless-lang: python",
        ]
    );
    for (name, value) in [
        ("content-type", "application/json; odd=yes"),
        ("openai-processing-ms", "7"),
        ("x-ratelimit-remaining-tokens", "99"),
        ("x-request-id", "mine-1"),
        ("x-fanfold-parallel", "off; reason=no_tools"),
        ("set-cookie", "a=1"),
        ("keep-alive", ""),
        ("x-hop", ""),
        ("proxy-authenticate", ""),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    for name in ["x-request-id", "content-type"] {
        assert_eq!(answer.headers.iter().filter(|(known, _)| known == name).count(), 1, "{name} comes once");
    }
    assert_eq!(answer.headers.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
    gateway.ends_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chats_query_goes_with_every_question() {
    let (upstream, lab) = (Upstream::start().await, Lab::start().await);
    let tool = "tools: { look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read } }\n";
    for config in [upstream.config(), format!("{}{tool}", upstream.config())] {
        let gateway = Gateway::start(&lab, &config).await;
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        let url = format!("{}/chat/completions?a=b%20c&empty=", gateway.base_url());
        let got = soon(support::client::send(Method::POST, &url, &[], Some(&body))).await.unwrap();
        assert_eq!(got.status, 502, "what this upstream says is no reply: {}", got.body);
        assert_eq!(upstream.last().0, "/v1/chat/completions?a=b%20c&empty=");
        gateway.ends_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_goes_through() {
    let (upstream, lab) = (Upstream::start().await, Lab::start().await);
    let gateway = Gateway::start(&lab, &upstream.config()).await;
    for (method, path) in [
        ("GET", "/v1/assistants/x"),
        ("DELETE", "/v1/files/x"),
        ("PUT", "/v1/x"),
        ("PATCH", "/v1/x"),
        ("HEAD", "/v1/x"),
        ("GET", "/v1/chat/completions?limit=2"),
        ("POST", "/v1/chat/completions/id"),
    ] {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let answer = soon(raw::exchange(gateway.app.proxy_address, text.as_bytes())).await;
        assert_eq!((answer.status, upstream.last().0.as_str()), (200, path), "{method}");
        assert_eq!(answer.body.is_empty(), method == "HEAD", "{method}");
        assert!(!answer.header("x-request-id").is_empty(), "{method}");
    }
    gateway.ends_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_apis_come_as_they_are_written() {
    let (upstream, lab) = (Upstream::start().await, Lab::start().await);
    let gateway = Gateway::start(&lab, &upstream.config()).await;
    let request = Request::post(format!("{}/responses", gateway.base_url()))
        .body(Full::new(Bytes::from("{}")))
        .unwrap();
    let mut body = soon(client().request(request)).await.unwrap().into_body();
    for n in 0..3 {
        // The next event is written only after this one has come.
        let frame = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, format!("event: part\ndata: {{\"n\":{n}}}\n\n"));
        upstream.more.notify_one();
    }
    assert!(soon(body.frame()).await.is_none(), "a clean end, with nothing added");
    drop(body);
    gateway.ends_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_models_has_what_the_key_may_use() {
    let (upstream, lab) = (Upstream::start().await, Lab::start().await);
    lab.script("a", json!({ "rounds": [{ "steps": [] }] }));
    let sha = |key: &str| {
        use sha2::Digest;
        sha2::Sha256::digest(key).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    let config = format!(
        "upstreams: {{ main: {{ base_url: '{}/v1' }}, lab: {{ base_url: LAB/v1 }} }}\n\
         routes: [{{ model: 'a-*', upstreams: [main] }}, {{ model: 'script:*', upstreams: [lab] }}]\n\
         teams: {{ all: {{ keys: [{{ sha256: {} }}] }}, few: {{ keys: [{{ sha256: {} }}], models: ['a-2'] }} }}\n",
        upstream.url,
        sha("all"),
        sha("few")
    );
    let gateway = Gateway::start(&lab, &config).await;
    for (key, wanted) in [("all", vec!["a-1", "a-2", "script:a"]), ("few", vec!["a-2"])] {
        let url = format!("{}/models", gateway.base_url());
        let key = format!("Bearer {key}");
        let got =
            soon(support::client::send(Method::GET, &url, &[("authorization", &key)], None)).await.unwrap();
        let list = got.json();
        let ids: Vec<&str> =
            list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
        assert_eq!((ids, &list["object"]), (wanted, &json!("list")));
        assert!(!got.header("x-request-id").is_empty() && !got.header("x-fanfold-parallel").is_empty());
    }
    gateway.ends_at_baseline(&lab).await;
}

/// Runs in the real binary, whose memory can be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn files_stream_in_both_directions_in_flat_memory() {
    const SIZE: usize = 200 * 1024 * 1024;
    const MOST: usize = 32 * 1024 * 1024;
    let upstream = Upstream::start().await;
    let process = Process::start(&upstream.config()).await;
    let small = Request::post(format!("{}/files", process.base_url())).body(patterned(1000)).unwrap();
    soon(client().request(small)).await.unwrap();
    let before = process.peak_memory();
    let upload = Request::post(format!("{}/files", process.base_url())).body(patterned(SIZE)).unwrap();
    let response =
        tokio::time::timeout(support::gateway::SOON * 4, client().request(upload)).await.unwrap().unwrap();
    let told: Value =
        serde_json::from_slice(&soon(response.into_body().collect()).await.unwrap().to_bytes()).unwrap();
    assert_eq!(told["bytes"], SIZE, "the upstream gets what was sent");
    let after_upload = process.peak_memory() - before;
    let download = Request::get(format!("{}/files/large/content?{SIZE}", process.base_url()))
        .body(Full::<Bytes>::default());
    let response = soon(client().request(download.unwrap())).await.unwrap();
    let got =
        tokio::time::timeout(support::gateway::SOON * 4, read_pattern(response.into_body())).await.unwrap();
    assert_eq!(got, Some(SIZE), "the client gets what was sent");
    let grown = process.peak_memory() - before;
    println!("200 MiB up: {after_upload} bytes more at the peak; then 200 MiB down: {grown}");
    assert!(grown < MOST, "{grown}");
}

//! Whatever clients and models send, the metrics have no series more: labels come from closed sets.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use support::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// All requests, and those before the series are first looked at.
const REQUESTS: usize = 100_000;
const WARM: usize = 8_000;
/// Connections that ask at once, and requests that are written to one at once.
const CONNECTIONS: usize = 16;
const AT_ONCE: usize = 25;
/// Kinds of requests, most of them paths outside of the API, which cost least.
const KINDS: usize = 25;
const CHAT: &str = "POST /v1/chat/completions";

/// Bytes of which whole messages are taken.
struct Messages {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Messages {
    fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::with_capacity(64 * 1024) }
    }

    /// The next message, head and body; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(length) = length(&self.buffer) {
                let message: Vec<u8> = self.buffer.drain(..length).collect();
                return Some(String::from_utf8(message).expect("text"));
            }
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// How long the first message is, if it is there whole. Chunks hold JSON, so their end is not in them.
fn length(bytes: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("text").to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        return Some(head + memchr::memmem::find(&bytes[head..], b"0\r\n\r\n")? + 5);
    }
    let length = text.split_once("content-length: ").map_or("0", |(_, rest)| rest);
    let length: usize = length.split("\r\n").next()?.trim().parse().expect("a number");
    (bytes.len() >= head + length).then_some(head + length)
}

/// A model server: with tools it calls one that it makes up, and then it answers.
async fn upstream() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut messages = Messages::new(stream);
                while let Some(request) = messages.next().await {
                    let invents = request.contains("\"tools\"") && !request.contains("\"role\":\"tool\"");
                    let message = match invents {
                        true => json!({ "role": "assistant", "content": null, "tool_calls": [
                            { "id": "c1", "type": "function", "function": { "name": word(), "arguments": "{}" } }] }),
                        false => json!({ "role": "assistant", "content": word() }),
                    };
                    let finish = if invents { "tool_calls" } else { "stop" };
                    let body = json!({ "id": word(), "object": "chat.completion", "created": 1, "model": word(),
                        "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
                        "usage": { "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 } });
                    let body = body.to_string();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if messages.stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (url, tasks)
}

/// A word nobody configured; its beginning is looked for in the metrics.
fn word() -> String {
    format!("zz{:x}", fastrand::u64(..))
}

/// One of the kinds of requests there are, with made-up words wherever a client may write one.
fn request(n: usize) -> String {
    let chat = || format!(r#"{{"model":"{}","messages":[{{"role":"user","content":"hi"}}]"#, word());
    let none = "x-fanfold-tools: none\r\n".to_owned();
    let (path, headers, body) = match n % KINDS {
        // Relayed: with the client's tools, or without any. Then a turn, and one with a tool there is not.
        0 if n.is_multiple_of(2) => (CHAT.to_owned(), none, chat() + "}"),
        0 => {
            let tools = format!(r#","tools":[{{"type":"function","function":{{"name":"{}"}}}}]}}"#, word());
            (CHAT.to_owned(), none, chat() + &tools)
        }
        1 => (CHAT.to_owned(), String::new(), chat() + "}"),
        2 => (CHAT.to_owned(), format!("x-fanfold-tools: {}\r\n", word()), chat() + "}"),
        3 => (format!("GET /v1/models/{}", word()), String::new(), String::new()),
        4..=6 => {
            (format!("{} /v1/{}", ["GET", "DELETE", "PATCH"][n % 3], word()), String::new(), String::new())
        }
        _ => (format!("GET /{}?{0}", word()), String::new(), String::new()),
    };
    format!(
        "{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-request-id: {}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        word(),
        body.len()
    )
}

/// Asks so many times; the statuses there were.
async fn ask(proxy: &Proxy, count: usize) -> BTreeSet<String> {
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let address = proxy.app.proxy_address;
        tasks.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("it listens");
            stream.set_nodelay(true).expect("a socket");
            let (mut messages, mut statuses) = (Messages::new(stream), BTreeSet::new());
            for at in (0..count / CONNECTIONS).step_by(AT_ONCE) {
                let all: String = (at..at + AT_ONCE).map(request).collect();
                messages.stream.write_all(all.as_bytes()).await.expect("it reads");
                for _ in 0..AT_ONCE {
                    let answer = messages.next().await.expect("an answer");
                    statuses.insert(answer[9..12].to_owned());
                }
            }
            statuses
        });
    }
    let all = async { tasks.join_all().await.into_iter().flatten().collect() };
    tokio::time::timeout(Duration::from_secs(600), all).await.expect("an end")
}

/// Every series there is, without its value.
fn series(metrics: &str) -> BTreeSet<String> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_requests_with_made_up_words_add_no_series() {
    let (url, _tasks) = upstream().await;
    let parameters = json!({ "type": "object", "properties": {} });
    let config = json!({
        "listen": "127.0.0.1:0",
        "admin": { "listen": "127.0.0.1:0" },
        "upstreams": { "main": { "base_url": url, "mode": "whole" } },
        "routes": [{ "model": "gpt-*", "upstreams": ["main"] }, { "model": "*", "upstreams": ["main"] }],
        "tools": { "f": { "parameters": parameters, "http": { "url": "http://127.0.0.1:9/" }, "effect": "read" } },
        "prices": { "zz*": { "input": 1, "output": 1 } },
        "log": { "level": "off" },
    });
    let proxy = Proxy::start(&config).await;
    let statuses = ask(&proxy, WARM).await;
    let before = series(&proxy.app.metrics());
    for name in ["gen_ai_server_request_duration", "fanfold_turns_total", "fanfold_cost_millionths_total"] {
        assert!(before.iter().any(|series| series.starts_with(name)), "{name} in {before:#?}");
    }
    assert_eq!(ask(&proxy, REQUESTS - WARM).await, statuses);
    let metrics = proxy.app.metrics();
    let added: Vec<String> = series(&metrics).difference(&before).cloned().collect();
    assert_eq!(added, [""; 0]);
    assert!(!metrics.contains("zz"), "a made-up word is in {metrics}");
    let requests: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("gen_ai_server_request_duration_seconds_count"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    // Of each kind of seven, the one that names a tool there is not is refused before it is counted, and the paths
    // outside of the API are nobody's.
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let share = (REQUESTS / KINDS * 6) as f64;
    assert!(requests >= share, "{requests} of {REQUESTS} were counted");
    proxy.app.stop().await;
}

//! The real proxy inside the test, in front of a lab.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fanfold::app::App;
use fanfold::config::{Flags, read_text};
use fanfold::workers::Threads;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::client::Got;
use super::fold::{self, Folded};
use super::lab::Lab;
use super::lab::script::ExpectedReply;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running proxy.
pub struct Proxy {
    pub app: App,
    _threads: Threads,
}

/// The smallest configuration in front of a lab, to be added to.
pub fn config(lab: &Lab) -> Value {
    json!({
        "listen": "127.0.0.1:0",
        "admin": { "listen": "127.0.0.1:0" },
        "upstreams": { "main": { "base_url": lab.base_url() } },
    })
}

/// A tool that asks the lab for `kind` (`echo`, `sleep?ms=300`) and is counted there as `label`. Its
/// arguments go into the body.
pub fn tool(lab: &Lab, kind: &str, label: &str) -> Value {
    let (kind, query) = kind.split_once('?').unwrap_or((kind, ""));
    let parameters = json!({ "type": "object", "properties": {
        "city": { "type": "string" }, "n": { "type": "integer" } } });
    let url = format!("{}/tool/{kind}/{label}?{query}", lab.url());
    let url = url.trim_end_matches('?');
    json!({ "parameters": parameters, "effect": "read", "http": { "method": "POST", "url": url } })
}

/// `value` with these members laid over it.
pub fn with(mut value: Value, more: Value) -> Value {
    let (Value::Object(members), Value::Object(more)) = (&mut value, more) else { panic!("two objects") };
    members.extend(more);
    value
}

/// A chat that plays a script.
pub fn chat(script: &str) -> Value {
    json!({ "model": format!("script:{script}"), "messages": [{ "role": "user", "content": "hi" }] })
}

/// A chat that plays a script and wants a stream, with usage.
pub fn streamed(script: &str) -> Value {
    with(chat(script), json!({ "stream": true, "stream_options": { "include_usage": true } }))
}

/// A tool as a client declares it.
pub fn declared(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name,
        "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } } })
}

/// A key and its digest, as `teams:` wants it.
pub fn key(key: &str) -> Value {
    let digest: String = fanfold::team::digest(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    json!({ "sha256": digest })
}

/// Waits for `future`, but not for ever.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an end in time")
}

impl Proxy {
    /// Starts with this configuration.
    pub async fn start(config: &Value) -> Self {
        let reading = read_text("test", &config.to_string(), &|_| None, &Flags::default());
        let (loaded, catalog) = reading.finish_with_tools().unwrap_or_else(|problems| panic!("{problems}"));
        let threads = Threads::start(2, &tokio::runtime::Handle::current()).expect("two threads");
        let app = App::start(&loaded, catalog, threads.workers()).await.expect("a free port");
        Self { app, _threads: threads }
    }

    /// In front of `lab`, with these members laid over the smallest configuration.
    pub async fn before(lab: &Lab, more: Value) -> Self {
        Self::start(&with(config(lab), more)).await
    }

    /// Sends a chat and gives the response as soon as its head is there.
    pub async fn open(&self, headers: &[(&str, &str)], body: String) -> Response<Incoming> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let url = format!("http://{}/v1/chat/completions", self.app.proxy_address);
        let mut request = Request::builder().method(Method::POST).uri(url);
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body)).expect("a request");
        within(client.request(request)).await.expect("a response")
    }

    /// Sends a chat as text, and gives the answer.
    pub async fn text(&self, headers: &[(&str, &str)], body: String) -> Got {
        let (parts, body) = self.open(headers, body).await.into_parts();
        let body = within(body.collect()).await.expect("a whole body").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        Got { status: parts.status, headers: parts.headers, body }
    }

    /// Sends a chat.
    pub async fn chat(&self, body: &Value) -> Got {
        self.text(&[], body.to_string()).await
    }

    /// Sends a chat with headers.
    pub async fn chat_with(&self, headers: &[(&str, &str)], body: &Value) -> Got {
        self.text(headers, body.to_string()).await
    }

    /// Sends a chat and folds the answer; panics if a client could not read it or it is an error.
    pub async fn reply(&self, body: &Value) -> ExpectedReply {
        reply(&self.chat(body).await)
    }

    /// A line of the metrics that begins so; its value.
    pub fn metric(&self, start: &str) -> Option<f64> {
        let metrics = self.app.metrics();
        let line = metrics.lines().find(|line| line.starts_with(start))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

/// An answer that ended well, folded.
pub fn reply(got: &Got) -> ExpectedReply {
    match fold::answer(got) {
        Ok(Folded::Reply(reply)) => reply,
        other => panic!("{other:?} in {got:?}"),
    }
}

/// The code of an answer that is an error.
pub fn code(got: &Got) -> String {
    match fold::answer(got) {
        Ok(Folded::Error(Some(code))) => code,
        other => panic!("{other:?} in {got:?}"),
    }
}

/// The objects of a streamed answer, `[DONE]` left out.
pub fn chunks(got: &Got) -> Vec<Value> {
    let data = got.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// Reads a streamed answer until its text so far contains `wanted`.
pub async fn read_until(body: &mut Incoming, wanted: &str) -> String {
    let mut read = BytesMut::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let frame = within(body.frame()).await.unwrap_or_else(|| panic!("{wanted} is not in {text}"));
        read.extend_from_slice(&frame.expect("a frame").into_data().unwrap_or_default());
    }
}

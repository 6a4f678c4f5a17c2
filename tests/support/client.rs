//! A plain HTTP client for tests: one request, the whole answer.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Got {
    /// The body as JSON; panics if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// A header as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Sends a request on a connection of its own. An answer that breaks off is an error.
pub async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Result<Got, String> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = Full::from(body.map(Value::to_string).unwrap_or_default());
    let request = request.body(body).map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| format!("{error:?}"))?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    let body = String::from_utf8(body.to_vec()).map_err(|error| error.to_string())?;
    Ok(Got { status: parts.status, headers: parts.headers, body })
}

/// Asks a chat server, given as an OpenAI SDK would be given it.
pub async fn chat(base_url: &str, body: &Value) -> Result<Got, String> {
    send(Method::POST, &format!("{base_url}/chat/completions"), &[], Some(body)).await
}

//! Asks a running fanfold: its proxy as a client would, its admin side for runs.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, USER_AGENT};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use super::http::chain;
use super::reading;
use crate::config::file::File;
use crate::config::{Flags, is_there, process_env};
use crate::sse::{Decoder, Event};
use crate::trust;

/// How long an answer that is not a stream may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read, and the largest event, in bytes.
const LARGEST: usize = 64 * 1024 * 1024;

/// Which fanfold is asked.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Whom {
    /// The admin side, instead of the configured one: http://127.0.0.1:4101
    #[arg(long, value_name = "URL")]
    pub(super) admin: Option<String>,
}

impl Whom {
    /// The address of its admin side, without a path and a `/` at the end.
    pub(super) fn admin(&self, path: Option<&Path>) -> String {
        let admin = self.admin.clone().unwrap_or_else(|| Addresses::of(path).admin);
        admin.trim_end_matches('/').to_owned()
    }
}

/// The addresses of a running fanfold.
pub(super) struct Addresses {
    /// With its `/v1`.
    pub(super) base_url: String,
    /// Without a path.
    pub(super) admin: String,
}

impl Addresses {
    /// What the configuration says, or what holds without one.
    pub(super) fn of(path: Option<&Path>) -> Self {
        let read = is_there(path, &process_env).then(|| reading(path, &Flags::default()).ok()).flatten();
        let (listen, admin, tls) = match read.as_ref().and_then(|reading| reading.file()) {
            Some(File { listen, admin, tls, .. }) => (listen.clone(), admin.listen.clone(), tls.is_some()),
            None => ("127.0.0.1:4100".into(), "127.0.0.1:4101".into(), false),
        };
        let scheme = if tls { "https" } else { "http" };
        Self {
            base_url: format!("{scheme}://{}/v1", reachable(&listen)),
            admin: format!("http://{}", reachable(&admin)),
        }
    }
}

/// An address that listens everywhere is reached here.
fn reachable(listen: &str) -> String {
    match listen.parse::<std::net::SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => match address {
            std::net::SocketAddr::V4(_) => format!("127.0.0.1:{}", address.port()),
            std::net::SocketAddr::V6(_) => format!("[::1]:{}", address.port()),
        },
        Ok(_) | Err(_) => listen.to_owned(),
    }
}

/// A client.
pub(super) struct Client(Legacy<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Client {
    pub(super) fn new() -> Result<Self, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust::tls(None)?)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Legacy::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a request; the answer's body has not been read.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let url = request.uri().to_string();
        self.0
            .request(request)
            .await
            .map_err(|why| format!("{url}: {}: does fanfold run there?", chain(&why)))
    }

    async fn get(&self, url: &str, accept: &str, key: Option<&str>) -> Result<Response<Incoming>, String> {
        let mut request = Request::get(url).header(ACCEPT, accept).header(USER_AGENT, agent());
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::default()).map_err(|why| format!("`{url}` is not a URL: {why}"))?;
        timeout(PATIENCE, self.send(request)).await.map_err(|_| format!("{url}: no answer in time"))?
    }

    /// Reads JSON. The error of an answer that is none is its own message, if it has one.
    pub(super) async fn json(&self, url: &str, key: Option<&str>) -> Result<Value, String> {
        let answer = self.get(url, "application/json", key).await?;
        let status = answer.status();
        let body =
            timeout(PATIENCE, whole(answer)).await.map_err(|_| format!("{url}: no answer in time"))??;
        if !status.is_success() {
            return Err(message(&body).unwrap_or_else(|| format!("{url}: {status}")));
        }
        serde_json::from_slice(&body).map_err(|_| format!("{url} is not answered with JSON: is it fanfold?"))
    }

    /// Follows what happens.
    pub(super) async fn events(&self, admin: &str) -> Result<Events, String> {
        let answer = self.get(&format!("{admin}/api/events"), "text/event-stream", None).await?;
        if answer.status().is_success() {
            return Ok(Events::new(answer.into_body()));
        }
        let status = answer.status();
        let body = whole(answer).await?;
        Err(message(&body).unwrap_or_else(|| format!("{admin}/api/events: {status}")))
    }
}

pub(super) const fn agent() -> &'static str {
    concat!("fanfold/", env!("CARGO_PKG_VERSION"))
}

/// A body as a whole.
pub(super) async fn whole(answer: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|why| why.to_string())
}

/// The message of an error, in OpenAI's shape or the admin side's.
pub(super) fn message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = &value["error"];
    error.as_str().or_else(|| error["message"].as_str()).map(str::to_owned)
}

/// Server-sent events as they come.
pub(super) struct Events {
    body: Incoming,
    decoder: Option<Decoder>,
    ready: std::collections::VecDeque<Event>,
}

impl Events {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, decoder: Some(Decoder::new(LARGEST)), ready: std::collections::VecDeque::new() }
    }

    /// The data of the next event; `None` at the end. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, String>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event.data));
            }
            let decoder = self.decoder.as_mut()?;
            let mut events = Vec::new();
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if decoder.push(data, &mut events).is_err() {
                        self.decoder = None;
                        return Some(Err("an event is too large".into()));
                    }
                }
                Some(Err(why)) => {
                    self.decoder = None;
                    return Some(Err(chain(&why)));
                }
                None => events.extend(self.decoder.take().and_then(Decoder::finish)),
            }
            self.ready.extend(events);
        }
    }
}

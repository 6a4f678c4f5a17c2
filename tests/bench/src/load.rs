//! The load: requests over so many connections for so long, and what they cost the process that serves.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep};

use crate::account::cpu;
use crate::alternate::{AFTERWARDS, Driven, Rounds, Slice};
use crate::lab::{BLUE, Target};
use crate::stats::Measured;

/// What is sent again and again.
#[derive(Clone)]
pub struct Shot {
    path: String,
    /// `None`: a GET.
    body: Option<Bytes>,
    key: &'static str,
    /// Anything but this status is a mistake of the benchmark.
    status: StatusCode,
}

impl Shot {
    pub fn get(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: None, key: BLUE, status: StatusCode::OK }
    }

    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { body: Some(body.into()), ..Self::get(path) }
    }

    /// A chat whose only message is so many bytes long.
    pub fn chat(model: &str, size: usize, stream: bool) -> Self {
        let text = "lorem ipsum ".repeat(size.div_ceil(12).max(1));
        let body = format!(
            r#"{{"model":"{model}","messages":[{{"role":"user","content":"{}"}}],"stream":{stream}}}"#,
            &text[..size.max(1)]
        );
        Self::post("/v1/chat/completions", body)
    }

    pub fn key(self, key: &'static str) -> Self {
        Self { key, ..self }
    }

    pub fn expecting(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body.as_deref().unwrap_or_default()).into_owned()
    }
}

/// A connection of a client.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// The connection itself, which ends with its client.
    _connection: JoinSet<hyper::Result<()>>,
}

impl Client {
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server listens");
        stream.set_nodelay(true).expect("a socket");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        let mut owner = JoinSet::new();
        owner.spawn(connection);
        Self { sender, host: format!("127.0.0.1:{port}"), _connection: owner }
    }

    /// The answer's head; its body is the caller's to read.
    pub async fn open(&mut self, shot: &Shot) -> hyper::Result<Response<Incoming>> {
        let request = request(shot, &self.host);
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// What fanfold would say if it were asked what it would ask.
    pub async fn plan(&mut self, shot: &Shot) -> String {
        let mut request = request(shot, &self.host);
        request.headers_mut().insert("x-fanfold-dry-run", HeaderValue::from_static("plan"));
        let answer = self.sender.send_request(request).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("a plan").to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    }

    /// The whole answer, whatever its status is.
    pub async fn ask(&mut self, shot: &Shot) -> hyper::Result<Response<()>> {
        let (head, mut body) = self.open(shot).await?.into_parts();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok(Response::from_parts(head, ()))
    }

    /// The whole answer, as it is expected to be.
    pub async fn shoot(&mut self, shot: &Shot) {
        let answer = self.ask(shot).await.expect("an answer");
        assert_eq!(answer.status(), shot.status, "{}", shot.path);
    }
}

fn request(shot: &Shot, host: &str) -> Request<Full<Bytes>> {
    let method = if shot.body.is_some() { "POST" } else { "GET" };
    Request::builder()
        .method(method)
        .uri(&shot.path)
        .header("host", host)
        .header("authorization", shot.key)
        .header("content-type", "application/json")
        .body(Full::new(shot.body.clone().unwrap_or_default()))
        .expect("a request")
}

/// Asks again and again over one connection of HTTP/2, with so many requests at once, whatever the answers are.
pub async fn over_http2(target: &Target, shot: &Shot, at_once: usize, time: Duration) {
    let stream = TcpStream::connect(("127.0.0.1", target.port)).await.expect("the server listens");
    let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = made.expect("a handshake");
    let mut owner = JoinSet::new();
    owner.spawn(connection);
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (mut sender, mut request) = (sender.clone(), request(shot, "localhost"));
        request.headers_mut().remove("host");
        *request.uri_mut() = format!("http://localhost{}", shot.path).parse().expect("a URL");
        tasks.spawn(async move {
            while Instant::now() < until {
                let answer = sender.send_request(request.clone()).await.expect("an answer");
                answer.into_body().collect().await.expect("a body");
            }
        });
    }
    tasks.join_all().await;
}

/// So many clients of one server, whose connections stay open from slice to slice.
pub struct Load {
    target: Target,
    shot: Shot,
    clients: Vec<Client>,
}

impl Load {
    /// All are connected before any of them asks.
    pub async fn connect(target: &Target, shot: &Shot, connections: usize) -> Self {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Client::connect(target.port).await);
        }
        Self { target: target.clone(), shot: shot.clone(), clients }
    }

    /// Each client asks for so long: as soon as it has its answer, or once in every `pace` at most.
    async fn ask(&mut self, pace: Option<Duration>, time: Duration) -> Slice {
        let before = cpu(self.target.pid);
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        let connections = self.clients.len() as f64;
        for (n, mut client) in self.clients.drain(..).enumerate() {
            let shot = self.shot.clone();
            tasks.spawn(async move {
                // Not all of them at the same moment.
                let phase = pace.map(|pace| Instant::now() + pace.mul_f64(n as f64 / connections));
                let mut beat = phase.zip(pace).map(|(phase, pace)| interval_at(phase, pace));
                let mut rounds = Rounds::until(until);
                while rounds.go_on() {
                    if let Some(beat) = &mut beat {
                        beat.tick().await;
                    }
                    let begin = Instant::now();
                    client.shoot(&shot).await;
                    rounds.took(begin.elapsed());
                }
                (client, rounds)
            });
        }
        let (clients, rounds): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().unzip();
        self.clients = clients;
        sleep(AFTERWARDS).await;
        Slice::of(rounds, cpu(self.target.pid) - before)
    }
}

impl Driven for Load {
    /// As fast as they can.
    async fn slice(&mut self, time: Duration) -> Slice {
        self.ask(None, time).await
    }
}

/// Fires at a server from so many connections, each as soon as it has its answer.
pub async fn fire(target: &Target, shot: &Shot, connections: usize, time: Duration) -> Measured {
    Load::connect(target, shot, connections).await.slice(time).await.measured()
}

/// Asks a server from so many connections, each once in every `pace` at most.
pub async fn paced(
    target: &Target,
    shot: &Shot,
    connections: usize,
    pace: Duration,
    time: Duration,
) -> Measured {
    Load::connect(target, shot, connections).await.ask(Some(pace), time).await.measured()
}

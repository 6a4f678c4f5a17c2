//! The load: requests over so many connections for so long, and what they cost the process that serves.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What is sent again and again.
#[derive(Clone)]
pub struct Shot {
    pub path: String,
    /// `None`: a GET.
    pub body: Option<Bytes>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Result {
    pub requests: u64,
    pub p50: f64,
    pub p99: f64,
    /// Microseconds of processor time of the serving process per request.
    pub cpu: f64,
}

/// Fires at a port and accounts the process `pid`.
pub async fn fire(port: u16, pid: u32, shot: &Shot, connections: usize, time: Duration) -> Result {
    let before = cpu(pid);
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let shot = shot.clone();
        tasks.spawn(async move {
            let mut sender = connect(port).await;
            let mut taken = Vec::new();
            while Instant::now() < until {
                let begin = Instant::now();
                one(&mut sender, port, &shot).await;
                taken.push(begin.elapsed());
            }
            taken
        });
    }
    let mut taken: Vec<Duration> = tasks.join_all().await.concat();
    summary(&mut taken, (cpu(pid) - before) * 1e6)
}

/// The ideal: a client that asks the model itself and runs its calls itself, side by side.
pub async fn ideal(port: u16, model: &str, connections: usize, time: Duration) -> Result {
    let numbers: Vec<u64> = model.split('-').skip(1).filter_map(|n| n.parse().ok()).collect();
    let (calls, millis, rounds) = (numbers[0], numbers[1], numbers[2]);
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let model = model.to_owned();
        tasks.spawn(async move {
            let mut asks = connect(port).await;
            let mut tools = Vec::new();
            for _ in 0..calls {
                tools.push(connect(port).await);
            }
            let mut taken = Vec::new();
            while Instant::now() < until {
                let begin = Instant::now();
                for round in 0..=rounds {
                    let past = r#"{"role":"assistant","tool_calls":[]},"#.repeat(round as usize);
                    let body = format!(r#"{{"model":"{model}","messages":[{past}{{"role":"user","content":"x"}}],"stream":true}}"#);
                    one(&mut asks, port, &Shot { path: "/v1/chat/completions".into(), body: Some(body.into()) }).await;
                    if round == rounds {
                        break;
                    }
                    let shot = Shot { path: format!("/tool?ms={millis}"), body: None };
                    let running = tools.iter_mut().map(|sender| one(sender, port, &shot));
                    futures_util::future::join_all(running).await;
                }
                taken.push(begin.elapsed());
            }
            taken
        });
    }
    let mut taken: Vec<Duration> = tasks.join_all().await.concat();
    summary(&mut taken, 0.0)
}

fn summary(taken: &mut [Duration], cpu: f64) -> Result {
    taken.sort_unstable();
    let at = |part: f64| {
        let index = ((taken.len() as f64 * part) as usize).min(taken.len().saturating_sub(1));
        taken.get(index).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    };
    Result { requests: taken.len() as u64, p50: at(0.5), p99: at(0.99), cpu: cpu / taken.len().max(1) as f64 }
}

/// Waits until something listens there.
pub async fn listens(port: u16) {
    for _ in 0..300 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nothing listens on port {port}");
}

async fn connect(port: u16) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server listens");
    stream.set_nodelay(true).expect("a socket");
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    sender
}

async fn one(sender: &mut SendRequest<Full<Bytes>>, port: u16, shot: &Shot) {
    let method = if shot.body.is_some() { "POST" } else { "GET" };
    let request = Request::builder()
        .method(method)
        .uri(&shot.path)
        .header("host", format!("127.0.0.1:{port}"))
        .header("content-type", "application/json")
        .body(Full::new(shot.body.clone().unwrap_or_default()))
        .expect("a request");
    sender.ready().await.expect("the connection stays open");
    let response = sender.send_request(request).await.expect("an answer");
    assert!(response.status().is_success(), "{} {}", shot.path, response.status());
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.expect("a whole body");
    }
}

/// Processor time of a process so far, in seconds: user and system, all its threads.
pub fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let field = |n: usize| rest.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (field(11) + field(12)) / 100.0
}

/// Resident memory of a process, in MiB.
pub fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

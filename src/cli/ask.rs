//! `fanfold ask "…"`: one turn of a running fanfold. The answer streams to standard output; how it comes about
//! is drawn on standard error, live where that is a terminal.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, USER_AGENT};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::client::{Addresses, Client, Events, Whom, agent, message, whole};
use super::waterfall::{Paint, draw, headline, tame};
use super::{Exit, answer_of, out};
use crate::config::process_env;

/// How often a live drawing is renewed while nothing is new.
const FRAME: Duration = Duration::from_millis(100);
/// How long the record of the run is waited for once the answer is complete.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `ask` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The question.
    question: String,
    /// The model; the first that is listed unless said.
    #[arg(long, short)]
    model: Option<String>,
    /// The proxy, instead of the configured one: http://127.0.0.1:4100/v1
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Only the answer.
    #[arg(long, short)]
    quiet: bool,
    /// The answer and everything that is known of its run, as JSON, once it is complete.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    whom: Whom,
}

/// 1 when there is no complete answer. The key is taken from `FANFOLD_API_KEY`.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let configured = match (&arguments.base_url, &arguments.whom.admin) {
        (Some(base_url), Some(admin)) => Addresses { base_url: base_url.clone(), admin: admin.clone() },
        (base_url, admin) => {
            let of = Addresses::of(path);
            Addresses {
                base_url: base_url.clone().unwrap_or(of.base_url),
                admin: admin.clone().unwrap_or(of.admin),
            }
        }
    };
    answer_of(ask(&configured, arguments)).err().unwrap_or(Exit::Fine)
}

async fn ask(at: &Addresses, arguments: &Arguments) -> Result<(), String> {
    let client = Client::new()?;
    let base_url = at.base_url.trim_end_matches('/');
    let key = process_env("FANFOLD_API_KEY").filter(|key| !key.is_empty());
    let model = match &arguments.model {
        Some(model) => model.clone(),
        None => {
            let list = client.json(&format!("{base_url}/models"), key.as_deref()).await?;
            let first = list["data"][0]["id"].as_str();
            first.ok_or("no model is listed: name one with --model")?.to_owned()
        }
    };
    let request_id = Uuid::now_v7().to_string();
    // Without the admin side there is still an answer.
    let admin = at.admin.trim_end_matches('/');
    let drawn = !arguments.quiet && !arguments.json;
    let events = if drawn { client.events(admin).await.ok() } else { None };
    let body = json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": arguments.question }] });
    let mut request = Request::post(format!("{base_url}/chat/completions"))
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, agent())
        .header("x-request-id", &request_id);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(Full::from(Bytes::from(body.to_string()))).map_err(|why| why.to_string())?;
    let mut view = View::new(request_id.clone(), events);
    let answer = tokio::select! {
        answer = client.send(request) => answer?,
        () = view.follow() => unreachable!("it follows without end"),
    };
    if !answer.status().is_success() {
        view.clear();
        let status = answer.status();
        let body = whole(answer).await?;
        return Err(message(&body).unwrap_or_else(|| format!("the answer is {status}")));
    }
    let mut stream = Events::new(answer.into_body());
    if arguments.json {
        return tell(&client, stream, admin, &request_id).await;
    }
    let mut ended = false;
    let mut open_line = false;
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = view.follow() => unreachable!("it follows without end"),
        };
        let Some(event) = event else { break };
        let event = event?;
        if event.as_ref() == b"[DONE]" {
            ended = true;
            continue;
        }
        let Ok(chunk) = serde_json::from_slice::<Value>(&event) else { continue };
        if let Some(error) = message(&event) {
            view.clear();
            return Err(if open_line { format!("\n{error}") } else { error });
        }
        if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            view.freeze();
            open_line = !text.ends_with('\n');
            // On a terminal nothing of it may be obeyed; a pipe gets what came.
            let tamed = std::io::stdout().is_terminal();
            out::answer(&if tamed {
                text.split('\n').map(tame).collect::<Vec<_>>().join("\n")
            } else {
                text.to_owned()
            });
        }
    }
    if open_line {
        out::answer("\n");
    }
    view.finish().await;
    if ended { Ok(()) } else { Err("the answer broke off".into()) }
}

/// The answer and its run as JSON. What came of an answer that fails is told as well.
async fn tell(client: &Client, mut stream: Events, admin: &str, request_id: &str) -> Result<(), String> {
    let (mut answer, mut failure) = (String::new(), Some("the answer broke off".to_owned()));
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) if event.as_ref() == b"[DONE]" => {
                failure = None;
                continue;
            }
            Ok(event) => event,
            Err(why) => {
                failure = Some(why);
                break;
            }
        };
        if let Some(error) = message(&event) {
            failure = Some(error);
            break;
        }
        if let Ok(chunk) = serde_json::from_slice::<Value>(&event) {
            answer.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
    }
    let found = record(client, &format!("{admin}/api/runs/{request_id}")).await;
    let told =
        json!({ "answer": answer, "error": failure, "run": found["run"], "content": found["content"] });
    out::answer(&format!("{told:#}\n"));
    failure.map_or(Ok(()), Err)
}

/// The run once it has ended; null without an admin side that has it.
async fn record(client: &Client, url: &str) -> Value {
    let ended = async {
        loop {
            match client.json(url, None).await {
                Ok(found) if found["run"]["end"].is_null() => tokio::time::sleep(FRAME).await,
                Ok(found) => return found,
                Err(_) => return Value::Null,
            }
        }
    };
    timeout(PATIENCE, ended).await.unwrap_or_default()
}

/// What is drawn beside the answer.
struct View {
    request_id: String,
    events: Option<Events>,
    run: Option<(Value, Instant)>,
    /// Lines of the drawing on the terminal.
    lines: usize,
    live: bool,
    /// A drawing stands above the answer already.
    drawn: bool,
    paint: Paint,
}

impl View {
    fn new(request_id: String, events: Option<Events>) -> Self {
        let live = events.is_some() && std::io::stderr().is_terminal();
        Self { request_id, events, run: None, lines: 0, live, drawn: false, paint: Paint(out::coloured()) }
    }

    /// Follows the run without end.
    async fn follow(&mut self) {
        loop {
            self.step().await;
            if self.live {
                self.redraw();
            }
        }
    }

    /// Waits for one event, or for the time of another picture.
    async fn step(&mut self) {
        let Some(events) = &mut self.events else { return std::future::pending().await };
        let live = self.live;
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(FRAME), if live => return,
        };
        match event {
            Some(Ok(event)) => {
                if let Ok(run) = serde_json::from_slice::<Value>(&event)
                    && run["request_id"] == self.request_id.as_str()
                {
                    self.run = Some((run, Instant::now()));
                }
            }
            Some(Err(_)) | None => self.events = None,
        }
    }

    fn drawing(&self) -> String {
        let Some((run, at)) = &self.run else { return String::new() };
        draw(run, reached(run) + at.elapsed().as_secs_f64() * 1000.0, self.paint)
    }

    fn redraw(&mut self) {
        let drawing = self.drawing();
        let up = if self.lines > 0 { format!("\x1b[{}A\x1b[J", self.lines) } else { String::new() };
        self.lines = drawing.lines().count();
        out::report(&format!("{up}{drawing}"));
    }

    /// The answer begins: what was drawn stays above it.
    fn freeze(&mut self) {
        if std::mem::take(&mut self.live) && self.lines > 0 {
            self.drawn = true;
            out::report("\n");
        }
    }

    fn clear(&mut self) {
        if self.lines > 0 {
            out::report(&format!("\x1b[{}A\x1b[J", self.lines));
        }
        self.live = false;
    }

    /// The whole of it, once the run has ended.
    async fn finish(mut self) {
        if self.events.is_none() && self.run.is_none() {
            return;
        }
        self.live = false;
        let ended =
            |run: &Option<(Value, Instant)>| run.as_ref().is_some_and(|(run, _)| !run["end"].is_null());
        let waited = timeout(PATIENCE, async {
            while !ended(&self.run) && self.events.is_some() {
                self.step().await;
            }
        });
        let _late = waited.await;
        if let Some((run, _)) = &self.run {
            let drawing = if self.drawn { String::new() } else { self.drawing() };
            out::report(&format!("\n{}{drawing}", headline(run, self.paint)));
            let _gone = std::io::stderr().flush();
        }
    }
}

/// The latest time a run tells of, in milliseconds.
fn reached(run: &Value) -> f64 {
    let times = |list: &str, names: &[&str]| {
        let all = run[list].as_array().into_iter().flatten();
        all.flat_map(|one| names.iter().filter_map(|name| one[*name].as_f64())).fold(0.0, f64::max)
    };
    times("rounds", &["asked", "first", "ended"]).max(times("calls", &["queued", "started", "ended"]))
}

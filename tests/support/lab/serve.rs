//! Accepts connections and answers what comes in on them.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/chat/completions` | by model: `script:NAME` plays NAME; the demo's models answer as in the demo |
//! | `/at/NAME/…` | plays NAME, whatever is asked |
//! | `/tool/…` | a tool |
//! | `/v1/models` | the scripts |
//! | `/v1/…` | the request itself, as JSON |
//! | `POST`, `DELETE /_script/NAME`, `GET /_scripts` | the test's own: scripts |
//! | `GET`, `DELETE /_journal`, `POST /_release/NAME`, `GET /_health` | the test's own: the rest |

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fanfold::demo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{Head, Reader, shown};
use super::journal::{By, How, Request, What};
use super::play::{Pace, Then, play};
use super::script::{Answer, Step};
use super::{State, tool};

/// Accepts until stopped.
pub(super) async fn accept(
    listener: TcpListener,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let numbers = AtomicU64::new(0);
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let id = numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let (state, stop) = (state.clone(), stop.clone());
        tasks.spawn(async move {
            let mut connection = Connection { id, state, own: false };
            connection.state.journal.note(id, What::Opened);
            let ended = stop.run_until_cancelled(connection.serve(stream)).await;
            let by = ended.and_then(Result::ok).unwrap_or(By::Lab);
            if !connection.own {
                connection.state.journal.note(id, What::Closed { by });
            }
        });
    }
}

struct Connection {
    id: u64,
    state: Arc<State>,
    /// It is the test's own and stays out of the journal.
    own: bool,
}

/// What to answer, and what is noted of it.
struct Plan {
    steps: Vec<Step>,
    pace: Pace,
    releases: Arc<Semaphore>,
    noted: Request,
}

impl Plan {
    fn of(steps: Vec<Step>, noted: Request) -> Self {
        Self { steps, pace: Pace::default(), releases: Arc::new(Semaphore::new(0)), noted }
    }
}

impl Connection {
    async fn serve(&mut self, stream: TcpStream) -> io::Result<By> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut reader = Reader::new(read);
        loop {
            let Ok(Some(head)) = reader.head().await else { return Ok(By::Peer) };
            let early = self.early(&head);
            let body = if early { Vec::new() } else { reader.body(&head, &mut write).await? };
            if head.path.starts_with("/_") {
                self.control(&head, &body, &mut write).await?;
                continue;
            }
            let mut plan = self.plan(&head, &shown(&body));
            plan.noted.text = String::from_utf8_lossy(&body).into();
            let tool = plan.noted.tool.clone();
            let request = self.state.journal.note(self.id, What::Request(Box::new(plan.noted)));
            let steps = match &tool {
                Some(label) => self.start(label, request, &head, &shown(&body)),
                None => plan.steps,
            };
            let then = tokio::select! {
                then = play(&mut write, &steps, plan.pace, &plan.releases) => then,
                () = reader.gone() => Ok(Then::Close(How::PeerLeft)),
            };
            let then = then.unwrap_or(Then::Close(How::PeerLeft));
            let how = match then {
                Then::Keep => How::Complete,
                Then::Close(how) => how,
            };
            if let Some(tool) = tool {
                self.state.journal.note(self.id, What::ToolEnded { request, tool, how });
            }
            self.state.journal.note(self.id, What::Answered { request, how });
            match then {
                Then::Keep if early => return Ok(By::Lab),
                Then::Keep => {}
                Then::Close(How::PeerLeft) => return Ok(By::Peer),
                // Dropping the half would end the stream in good order first.
                Then::Close(How::Cut) => {
                    write.forget();
                    return Ok(By::Lab);
                }
                Then::Close(How::Complete) => return Ok(By::Lab),
            }
        }
    }

    /// Notes a tool's start, and says what it does.
    fn start(&self, label: &str, request: u64, head: &Head, body: &Value) -> Vec<Step> {
        let journal = &self.state.journal;
        journal.note(self.id, What::ToolStarted { request, tool: label.to_owned() });
        let seen = journal.snapshot();
        let calls = seen
            .requests()
            .filter(|(_, request)| request.tool.as_deref() == Some(label) && tool::is_call(&request.body));
        let asked = tool::Asked {
            run: seen.tools.get(label).map_or(0, |runs| runs.started),
            calls: calls.map(|_| 1).sum(),
        };
        tool::steps(head, body, label, asked)
    }

    fn early(&self, head: &Head) -> bool {
        let known =
            by_path(head).and_then(|name| self.state.scripts().get(name).map(|known| known.script.early));
        known.unwrap_or(false)
    }

    fn plan(&self, head: &Head, body: &Value) -> Plan {
        let noted = Request {
            method: head.method.clone(),
            path: head.path.clone(),
            headers: head.headers.clone(),
            body: body.clone(),
            tool: tool::label(head.route()),
            ..Request::default()
        };
        if noted.tool.is_some() {
            return Plan::of(Vec::new(), noted);
        }
        if let Some(name) = by_path(head) {
            return self.scripted(name, body, noted);
        }
        match (head.method.as_str(), head.route()) {
            ("POST", "/v1/chat/completions") => {
                let model = body["model"].as_str().unwrap_or_default();
                match model.strip_prefix("script:") {
                    Some(name) => self.scripted(name, body, noted),
                    None => demo_answer(body, noted),
                }
            }
            ("GET", "/v1/models") => {
                let models: Vec<Value> = self
                    .state
                    .names()
                    .iter()
                    .map(|name| json!({ "id": format!("script:{name}"), "object": "model", "created": 0, "owned_by": "lab" }))
                    .collect();
                Plan::of(vec![Step::Json(json!({ "object": "list", "data": models }))], noted)
            }
            (_, route) if route.starts_with("/v1/") => {
                let back = json!({ "method": noted.method, "path": noted.path,
                    "headers": noted.headers, "body": noted.body });
                Plan::of(vec![Step::Json(back)], noted)
            }
            _ => Plan::of(vec![error(404, "the lab has nothing here", None)], noted),
        }
    }

    fn scripted(&self, name: &str, body: &Value, mut noted: Request) -> Plan {
        let Some((script, before, releases)) = self.state.take(name) else {
            let text = format!("the lab has no script {name}");
            return Plan::of(vec![error(404, &text, Some("model_not_found"))], noted);
        };
        noted.script = Some(name.to_owned());
        let chat = noted.path.ends_with("/chat/completions");
        if chat
            && !script.lenient
            && !script.early
            && let Err(refusal) = demo::rules::check(body)
        {
            noted.refused = Some(refusal.message.clone());
            let answer = Answer { status: refusal.status, headers: [].into(), body: refusal.body() };
            return Plan::of(vec![Step::Answer(answer)], noted);
        }
        let (n, round) = script.round(body, before);
        noted.round = Some(n);
        let Some(round) = round else {
            let text = format!("script {name} has no round {n}");
            return Plan::of(vec![error(500, &text, Some("script_over"))], noted);
        };
        let pace = Pace { split: round.split, gap: Duration::from_millis(round.gap_ms) };
        Plan { steps: round.steps(body, n), pace, releases, noted }
    }

    async fn control(
        &mut self,
        head: &Head,
        body: &[u8],
        write: &mut tokio::net::tcp::OwnedWriteHalf,
    ) -> io::Result<()> {
        if !self.own {
            self.own = true;
            self.state.journal.disown(self.id);
        }
        let step = self.control_answer(head, body);
        play(write, &[step], Pace::default(), &Semaphore::new(0)).await.map(drop)
    }

    fn control_answer(&self, head: &Head, body: &[u8]) -> Step {
        let route = head.route();
        let done = || Step::Json(json!({ "ok": true }));
        let (kind, name) = route.trim_start_matches("/_").split_once('/').unwrap_or((&route[2..], ""));
        match (head.method.as_str(), kind) {
            ("POST", "script") => {
                let script = serde_json::from_slice(body).map_err(|error| error.to_string());
                match script.and_then(|script| self.state.register(name, script)) {
                    Ok(()) => done(),
                    Err(wrong) => error(400, &wrong, None),
                }
            }
            ("DELETE", "script") if self.state.forget(name) => done(),
            ("POST", "release") if self.state.release(name) => done(),
            ("GET", "scripts") => Step::Json(json!(self.state.names())),
            ("GET", "journal") => Step::Json(json!(self.state.journal.snapshot())),
            ("DELETE", "journal") => {
                self.state.journal.clear();
                done()
            }
            ("GET", "health") => done(),
            _ => error(404, "the lab has no such control", None),
        }
    }
}

/// The script a path names.
fn by_path(head: &Head) -> Option<&str> {
    head.route().strip_prefix("/at/")?.split('/').next()
}

fn error(status: u16, message: &str, code: Option<&str>) -> Step {
    let body = json!({ "error": { "message": message, "type": "invalid_request_error",
        "param": null, "code": code } });
    Step::Answer(Answer { status, headers: [].into(), body })
}

fn demo_answer(body: &Value, mut noted: Request) -> Plan {
    let step = match demo::model::answer(body) {
        Err(refusal) => {
            noted.refused = Some(refusal.message.clone());
            Step::Answer(Answer { status: refusal.status, headers: [].into(), body: refusal.body() })
        }
        Ok(reply) if body["stream"] == true => {
            let usage = body["stream_options"]["include_usage"] == true;
            Step::Events(reply.chunks(usage).into_iter().map(Value::String).collect())
        }
        Ok(reply) => Step::Json(reply.whole()),
    };
    Plan::of(vec![step], noted)
}

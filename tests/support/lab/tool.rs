//! The lab's tools: `/tool/KIND`, or `/tool/KIND/LABEL` to be counted under a name of its own.
//!
//! | kind | answers |
//! |---|---|
//! | `echo` | `{"tool": LABEL, "query": {…}, "body": …}` |
//! | `text?text=…` | that text, as plain text |
//! | `sleep?ms=…` | as `echo`, after so long |
//! | `fail?status=…` | that status, with a short text |
//! | `hang` | never |
//! | `reset` | resets the connection |
//! | `close` | closes it |
//! | `drip` | a byte now and then, without an end |
//! | `binary` | some bytes that are no text |
//! | `bytes?n=…` | so many `x` |
//! | `redirect?to=…` | 302 |
//! | `count` | `{"run": N}`, the N-th start of its label |
//! | `mcp` | as a tool server of revision 2025-11-25 with one tool, `echo`, which answers with its arguments |
//!
//! Of `mcp` a query changes more:
//!
//! | query | what it does |
//! |---|---|
//! | `call=KIND` | a call is answered as by another tool |
//! | `close=N` | the N-th call is closed on |
//! | `says=STEPS` | a call is answered with these steps, as JSON; `ANSWER` in them is its answer, `ID` its id |
//! | `goes_on=yes` | a stream that is asked for again from an event on has the answer to the call of that event's id |
//! | `session=…` | it is in a session |
//!
//! A call whose arguments have a `wait` is answered after so many milliseconds, whatever the query says.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::Head;
use super::script::{Answer, Step};

/// The most bytes of `bytes`, and milliseconds of `sleep`.
const MOST: u64 = 256 * 1024 * 1024;

/// The label a path is counted under, if it is a tool's.
pub(super) fn label(route: &str) -> Option<String> {
    let mut parts = route.strip_prefix("/tool/")?.split('/');
    let kind = parts.next()?;
    Some(parts.next().unwrap_or(kind).to_owned())
}

/// Whether a message calls a tool of a tool server.
pub(super) fn is_call(message: &Value) -> bool {
    message["method"] == "tools/call"
}

/// How often a tool was asked, this time included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Its starts.
    pub(super) run: u64,
    /// As a tool server: calls among them.
    pub(super) calls: u64,
}

/// What a tool does.
pub(super) fn steps(head: &Head, body: &Value, label: &str, asked: Asked) -> Vec<Step> {
    let query = head.query();
    let mut kind = head.route().trim_start_matches("/tool/").split('/').next().unwrap_or_default().to_owned();
    let number = |name: &str, default: u64| {
        query.get(name).and_then(|text| text.parse().ok()).unwrap_or(default).min(MOST)
    };
    if kind == "mcp" && is_call(body) {
        if let Some(ms) = body["params"]["arguments"]["wait"].as_u64() {
            return vec![Step::WaitMs(ms.min(MOST)), mcp(head, body, None)];
        }
        if let Some(says) = query.get("says") {
            return says_instead(says, body);
        }
        kind = query.get("call").cloned().unwrap_or(kind);
        if number("close", 0) == asked.calls {
            kind = "close".to_owned();
        }
    }
    let echo = || Step::Json(json!({ "tool": label, "query": query, "body": body }));
    match kind.as_str() {
        "echo" => vec![echo()],
        "text" => vec![plain(200, query.get("text").map(String::as_str).unwrap_or_default())],
        "sleep" => vec![Step::WaitMs(number("ms", 100)), echo()],
        "fail" => {
            let status = u16::try_from(number("status", 500)).unwrap_or(500);
            vec![plain(status, &format!("the tool {label} failed as it was told to"))]
        }
        "hang" => vec![Step::WaitMs(Duration::from_secs(86_400).as_secs() * 1000)],
        "reset" => vec![Step::Reset],
        "close" => vec![Step::Close],
        "drip" => {
            let drop = [Step::Send("x".into()), Step::WaitMs(200)];
            let head = super::script::Head {
                headers: [("content-type".into(), "text/plain".into())].into(),
                ..Default::default()
            };
            std::iter::once(Step::Head(head)).chain(drop.into_iter().cycle().take(2000)).collect()
        }
        "binary" => {
            let headers = [("content-type".into(), "image/png".into())].into();
            let head = super::script::Head { headers, ..Default::default() };
            vec![Step::Head(head), Step::Hex("89 50 4e 47 0d 0a 1a 0a 00 ff".into())]
        }
        "bytes" => vec![plain(200, &"x".repeat(usize::try_from(number("n", 1024)).unwrap_or(0)))],
        "redirect" => {
            let to = query.get("to").cloned().unwrap_or_default();
            vec![Step::Answer(Answer {
                status: 302,
                headers: BTreeMap::from([("location".into(), to)]),
                body: Value::Null,
            })]
        }
        "count" => vec![Step::Json(json!({ "run": asked.run }))],
        "mcp" => vec![mcp(head, body, query.get("session"))],
        other => vec![plain(404, &format!("there is no tool kind {other}"))],
    }
}

/// What a tool server answers to a call.
fn answer(id: &Value, arguments: &Value) -> Value {
    let content = json!([{ "type": "text", "text": arguments.to_string() }]);
    json!({ "jsonrpc": "2.0", "id": id, "result": { "content": content } })
}

/// Steps, given as JSON, in which the answer to a call and its id have their places.
fn says_instead(steps: &str, call: &Value) -> Vec<Step> {
    let answer = answer(&call["id"], &call["params"]["arguments"]).to_string();
    // It stands inside of a text.
    let quoted = Value::String(answer).to_string();
    let steps = steps.replace("ANSWER", &quoted[1..quoted.len() - 1]).replace("ID", &call["id"].to_string());
    serde_json::from_str(&steps).unwrap_or_else(|error| vec![plain(500, &error.to_string())])
}

/// What a tool server says to a message, or to somebody who wants to listen.
fn mcp(head: &Head, message: &Value, session: Option<&String>) -> Step {
    if head.method == "GET" {
        let last = head.headers.get("last-event-id").and_then(|id| id.parse::<u64>().ok());
        return match last.filter(|_| head.query().contains_key("goes_on")) {
            Some(id) => Step::Events(vec![answer(&json!(id), &json!({}))]),
            None => plain(405, ""),
        };
    }
    let result = match message["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
            "serverInfo": { "name": "lab", "version": "1" },
        }),
        Some("tools/list") => json!({ "tools": [{ "name": "echo", "inputSchema": { "type": "object" } }] }),
        Some("tools/call") => answer(&message["id"], &message["params"]["arguments"])["result"].clone(),
        Some("server/discover") => return plain(400, "what?"),
        // Notifications, and answers to what the server asked.
        Some(_) | None => return plain(202, ""),
    };
    let headers = session.map(|session| ("mcp-session-id".to_owned(), session.clone())).into_iter().collect();
    let body = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
    Step::Answer(Answer { status: 200, headers, body })
}

fn plain(status: u16, text: &str) -> Step {
    let headers = BTreeMap::from([("content-type".into(), "text/plain; charset=utf-8".into())]);
    Step::Answer(Answer { status, headers, body: Value::String(text.to_owned()) })
}

//! A fast scripted model server and tool server.
//!
//! The model says what happens: `plain`; `burst` (256 chunks at once); `paced` (20 chunks, one every
//! 50 ms); `turn-CALLS-MS-ROUNDS` (so many calls of a tool that takes so long, in so many rounds).

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Body = BoxBody<Bytes, Infallible>;

/// Serves model and tools until the process ends.
pub async fn run(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the upstream's port is free");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    if path.starts_with("/tool") {
        let millis = query.split('&').find_map(|pair| pair.strip_prefix("ms=")?.parse().ok()).unwrap_or(0);
        if millis > 0 {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        return json("{\"ok\":true}");
    }
    if !path.ends_with("/chat/completions") {
        return json("{\"object\":\"list\",\"data\":[]}");
    }
    let model = model(&body);
    let stream = find(&body, b"\"stream\":true").is_some();
    match (model.as_str(), stream) {
        ("burst", _) => burst(),
        ("paced", _) => paced(),
        (turn, stream) if turn.starts_with("turn-") => turn_reply(turn, &body, stream),
        (_, true) => events(text_events(&["hello ", "there"])),
        (_, false) => json(WHOLE),
    }
}

const WHOLE: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello there","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

/// The head of the body is enough to find the model: the load generator writes it first.
fn model(body: &Bytes) -> String {
    let start = find(body, b"\"model\":\"").map_or(0, |at| at + 9);
    let end = body[start..].iter().position(|b| *b == b'"').map_or(start, |n| start + n);
    String::from_utf8_lossy(&body[start..end]).into_owned()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn json(text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed());
    response.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
    response
}

fn chunk(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_1\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}],\"usage\":null}}\n\n"
    )
}

fn text_events(words: &[&str]) -> String {
    let mut out = chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null");
    for word in words {
        out.push_str(&chunk(&format!("{{\"content\":\"{word}\"}}"), "null"));
    }
    out.push_str(&chunk("{}", "\"stop\""));
    out + "data: [DONE]\n\n"
}

fn events(text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
    response
}

fn burst() -> Response<Body> {
    events(text_events(&["word "; 256]))
}

fn paced() -> Response<Body> {
    let body = stream::unfold(0u32, |n| async move {
        let text = match n {
            0 => chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
            1..=20 => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                chunk("{\"content\":\"word \"}", "null")
            }
            21 => chunk("{}", "\"stop\"") + "data: [DONE]\n\n",
            _ => return None,
        };
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), n + 1))
    });
    let mut response = Response::new(StreamBody::new(body).boxed());
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
    response
}

/// Calls until the conversation has as many rounds of them as the model's name says.
fn turn_reply(model: &str, body: &[u8], stream: bool) -> Response<Body> {
    let numbers: Vec<u64> = model.split('-').skip(1).filter_map(|n| n.parse().ok()).collect();
    let (calls, millis, rounds) = (numbers[0], numbers[1], numbers[2]);
    let done = body.windows(12).filter(|window| *window == b"\"tool_calls\"").count() as u64;
    if done >= rounds {
        return if stream { events(text_events(&["done"])) } else { json(WHOLE) };
    }
    let call = |n: u64| {
        format!(
            "\"id\":\"call_{done}{n}\",\"type\":\"function\",\"function\":{{\"name\":\"t0\",\"arguments\":\"{{\\\"ms\\\":{millis},\\\"n\\\":{n}}}\"}}"
        )
    };
    if stream {
        let mut out = chunk("{\"role\":\"assistant\",\"content\":null}", "null");
        for n in 0..calls {
            out.push_str(&chunk(&format!("{{\"tool_calls\":[{{\"index\":{n},{}}}]}}", call(n)), "null"));
        }
        out.push_str(&chunk("{}", "\"tool_calls\""));
        return events(out + "data: [DONE]\n\n");
    }
    let calls: Vec<String> = (0..calls).map(|n| format!("{{{}}}", call(n))).collect();
    json(&format!(
        "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}},\"logprobs\":null,\"finish_reason\":\"tool_calls\"}}]}}",
        calls.join(",")
    ))
}

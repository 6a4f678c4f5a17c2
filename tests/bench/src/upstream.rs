//! A fast scripted model server and tool server.
//!
//! The model says what happens:
//!
//! | model | reply |
//! |---|---|
//! | `plain` | two words |
//! | `burst` | 256 chunks at once |
//! | `long` | 2 MB of chunks at once |
//! | `fail` | 500 |
//! | `paced-COUNT-GAP` | a chunk at once and then one every GAP ms, each with the moment it was written |
//! | `turn-CALLS-MS-ROUNDS` | so many calls of a tool that takes so long, in so many rounds |
//! | `slow-CALLS-GAP-MS` | a call every GAP ms; the last one runs for MS, those before it end before it does |
//!
//! Whoever asks for usage gets it, as from OpenAI.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::script::{DONE, WHOLE, call, chunk, opening, text_events, usage, whole_calls};

type Body = BoxBody<Bytes, Infallible>;

/// Serves model and tools until the process ends.
pub async fn run(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the upstream's port is free");
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        connections.spawn(async move {
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
            exactly(Duration::from_millis(millis)).await;
        }
        return json("{\"ok\":true}");
    }
    if !path.ends_with("/chat/completions") {
        return json("{\"object\":\"list\",\"data\":[]}");
    }
    let model = model(&body);
    let (name, numbers) = numbers(&model);
    let asked = Asked {
        stream: memmem::find(&body, b"\"stream\":true").is_some(),
        usage: memmem::find(&body, b"\"include_usage\":true").is_some(),
        rounds: memmem::find_iter(&body, b"\"tool_calls\"").count() as u64,
    };
    match (name, numbers.as_slice()) {
        ("fail", _) => {
            let mut response = json("{\"error\":{\"message\":\"out of order\",\"type\":\"server_error\"}}");
            *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
        ("burst", _) => events(text_events(&["word "; 256], asked.usage)),
        ("long", _) => events(LONG.clone()),
        ("paced", &[count, gap]) => paced(count, gap, asked.usage),
        ("turn", &[calls, millis, rounds]) if asked.rounds < rounds => {
            let of_round = |n| call(asked.rounds, n, millis);
            if asked.stream {
                turn(calls, asked.usage, of_round)
            } else {
                json(&whole_calls(calls, of_round))
            }
        }
        ("slow", &[calls, gap, millis]) if asked.rounds == 0 => slow(calls, gap, millis, asked.usage),
        _ if asked.stream => events(text_events(&["hello ", "there"], asked.usage)),
        _ => json(WHOLE),
    }
}

/// Waits for so long by the kernel's own timer. The runtime's ticks once a millisecond: behind it a delay of a tenth of
/// that would be a whole one or none at all.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for the sake of those who hand in a descriptor they do not own"
)]
async fn exactly(time: Duration) {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC);
    let timer = timer.expect("a timer");
    timer.set(Expiration::OneShot(time.into()), TimerSetTimeFlags::empty()).expect("a time");
    let timer = AsyncFd::with_interest(OwnedFd::from(timer), Interest::READABLE).expect("a timer");
    let _rang = timer.readable().await;
}

/// What of the request decides about the reply.
struct Asked {
    stream: bool,
    usage: bool,
    /// Rounds of calls that the conversation has so far.
    rounds: u64,
}

static LONG: LazyLock<Bytes> = LazyLock::new(|| text_events(&["x".repeat(4000).as_str(); 500], false).into());

/// The head of the body is enough to find the model: the load generator writes it first.
fn model(body: &Bytes) -> String {
    let start = memmem::find(body, b"\"model\":\"").map_or(0, |at| at + 9);
    let end = body[start..].iter().position(|b| *b == b'"').map_or(start, |n| start + n);
    String::from_utf8_lossy(&body[start..end]).into_owned()
}

/// A model's name and the numbers behind it.
fn numbers(model: &str) -> (&str, Vec<u64>) {
    let mut parts = model.split('-');
    let name = parts.next().unwrap_or_default();
    (name, parts.filter_map(|part| part.parse().ok()).collect())
}

fn json(text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed());
    response.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
    response
}

fn events(text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed());
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
    response
}

/// Pieces, number `n` of which is written `at(n)` after the first, until there is none.
fn timed(
    at: impl Fn(u64) -> Duration + Send + Sync + 'static,
    piece: impl Fn(u64) -> Option<String> + Send + Sync + 'static,
) -> Response<Body> {
    let begin = Instant::now();
    let body = stream::unfold((0u64, at, piece), move |(n, at, piece)| async move {
        // A sleep of no time would last until the next tick of a millisecond.
        if !at(n).is_zero() {
            sleep_until(begin + at(n)).await;
        }
        let text = piece(n)?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), (n + 1, at, piece)))
    });
    let mut response = Response::new(StreamBody::new(body).boxed());
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
    response
}

fn paced(count: u64, gap: u64, with_usage: bool) -> Response<Body> {
    let stamped = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        chunk(&format!("{{\"content\":\"t{} \"}}", now.as_nanos()), "null")
    };
    timed(
        move |n| Duration::from_millis(gap * n),
        move |n| match n {
            0 => Some(opening() + &stamped()),
            _ if n < count => Some(stamped()),
            _ if n == count => Some(chunk("{}", "\"stop\"") + usage(with_usage) + DONE),
            _ => None,
        },
    )
}

fn turn(calls: u64, with_usage: bool, of_round: impl Fn(u64) -> String) -> Response<Body> {
    let mut out = opening();
    for n in 0..calls {
        out += &chunk(&format!("{{\"tool_calls\":[{{\"index\":{n},{}}}]}}", of_round(n)), "null");
    }
    events(out + &chunk("{}", "\"tool_calls\"") + usage(with_usage) + DONE)
}

/// Call `n` is written at `n + 1` gaps, and known to be whole when the next begins.
fn slow(calls: u64, gap: u64, millis: u64, with_usage: bool) -> Response<Body> {
    timed(
        move |n| Duration::from_millis(gap * n.min(calls)),
        move |n| match n {
            0 => Some(opening()),
            _ if n <= calls => {
                let left = calls - n;
                let millis = if left == 0 { millis } else { (left - 1) * gap };
                let text = chunk(
                    &format!("{{\"tool_calls\":[{{\"index\":{},{}}}]}}", n - 1, call(0, n, millis)),
                    "null",
                );
                let end = chunk("{}", "\"tool_calls\"") + usage(with_usage) + DONE;
                Some(if left == 0 { text + &end } else { text })
            }
            _ => None,
        },
    )
}

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::tools::testing::{self, HOSTILE, Raw, Script, Server, build, call, response, run, tool};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";
const EFFECTS: [(&str, bool); 3] = [("read", true), ("idempotent", true), ("write", false)];

fn open() -> Value {
    json!({ "type": "object", "additionalProperties": true, "properties": { "v": {}, "h": {} } })
}

/// A tool with this `http:` and effect, whose one argument is `v`.
fn http(effect: &str, http: Value) -> (crate::tools::Catalog, std::sync::Arc<crate::tools::Tool>) {
    tool(json!({ "effect": effect, "parameters": open(), "http": http }))
}

async fn ask(effect: &str, settings: Value) -> Outcome {
    let (_catalog, tool) = http(effect, settings);
    run(&tool, json!({})).await
}

#[tokio::test]
async fn a_get_carries_its_arguments_and_our_headers() {
    let server = Server::start(|_, _| response(200, "sunny")).await;
    let (_catalog, tool) = http(
        "read",
        json!({ "url": server.url("/now/{v}?k=1"), "headers": { "x-key": "secret", "x-v": "v={h}" } }),
    );
    assert_eq!(run(&tool, json!({ "v": "Žatec", "days": 2 })).await, Outcome::ok("sunny"));
    let [seen] = server.seen().try_into().unwrap();
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), seen.body.as_str()),
        ("GET", "/now/%C5%BDatec?k=1&days=2", "")
    );
    assert!(run(&tool, json!({ "v": "x", "h": "ascii" })).await.content == "sunny");
    let seen = server.seen().pop().unwrap();
    let header = |name: &str| seen.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("x-key"), Some("secret"));
    assert_eq!(header("x-v"), Some("v=ascii"));
    assert_eq!(header("idempotency-key"), Some("key-1"));
    assert_eq!(header("x-request-id"), Some("request-1"));
    assert_eq!(header("traceparent"), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    assert_eq!(header("tracestate"), Some("vendor=1"));
    assert_eq!(header("accept-encoding"), Some("identity"));
    assert_eq!(header("user-agent"), Some(concat!("fanfold/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(header("host"), Some(server.address.to_string().as_str()));
    assert_eq!(header("content-type"), None);
}

#[tokio::test]
async fn a_post_carries_its_arguments_as_json() {
    let server = Server::start(|_, _| response(201, "made")).await;
    let (_catalog, tool) = http("write", json!({ "method": "POST", "url": server.url("/x") }));
    let mut call = call(&json!({}));
    call.arguments = r#"{"z":1.10,"a":123456789012345678901234567890}"#.into();
    assert_eq!(tool.run(&call, &CancellationToken::new()).await, Outcome::ok("made"));
    let [seen] = server.seen().try_into().unwrap();
    assert_eq!(seen.body, r#"{"z":1.10,"a":123456789012345678901234567890}"#);
    assert_eq!(seen.headers.get("content-type").unwrap(), "application/json");
}

#[tokio::test]
async fn no_hostile_value_changes_what_a_server_is_asked() {
    let server = Server::start(|_, _| response(200, "ok")).await;
    let (_catalog, tool) =
        http("read", json!({ "url": server.url("/a/{v}/z?q={v}"), "headers": { "x-v": "{v}" } }));
    for value in HOSTILE {
        let before = server.seen().len();
        let outcome = run(&tool, json!({ "v": value })).await;
        let seen = server.seen();
        if outcome.kind == OutcomeKind::InvalidArguments {
            assert_eq!(seen.len(), before, "{value:?} was refused and sent");
            continue;
        }
        assert_eq!((outcome, seen.len()), (Outcome::ok("ok"), before + 1), "{value:?}");
        let seen = seen.last().unwrap();
        let mut names: Vec<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "accept-encoding",
                "host",
                "idempotency-key",
                "traceparent",
                "tracestate",
                "user-agent",
                "x-request-id",
                "x-v"
            ]
        );
        assert_eq!(seen.target.matches(['/', '?', '&', '=']).count(), 5, "{value:?}: {}", seen.target);
    }
}

#[tokio::test]
async fn statuses_become_results() {
    for (status, text, expected) in [
        (200, "fine", Outcome::ok("fine")),
        (200, "", Outcome::ok("(empty)")),
        (204, "", Outcome::ok("(empty)")),
        (404, "no such city", Outcome::failed(OutcomeKind::Error, "HTTP 404 Not Found: no such city")),
        (429, "", Outcome::failed(OutcomeKind::Error, "HTTP 429 Too Many Requests: (empty)")),
        (304, "", Outcome::failed(OutcomeKind::Error, "HTTP 304 Not Modified: (empty)")),
    ] {
        let server = Server::start(move |_, _| response(status, text)).await;
        assert_eq!(ask("read", json!({ "url": server.url("/") })).await, expected);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_server_error_is_tried_again_only_where_that_does_no_harm() {
    for (effect, again) in EFFECTS {
        let server = Server::start(|_, _| response(503, "busy")).await;
        let outcome = ask(effect, json!({ "method": "POST", "url": server.url("/") })).await;
        assert_eq!(outcome.content, "error: HTTP 503 Service Unavailable: busy");
        let seen = server.seen();
        assert_eq!(seen.len(), 1 + usize::from(again), "{effect}");
        assert!(seen.iter().all(|seen| seen.headers.get("idempotency-key").unwrap() == "key-1"));
    }
    let server = Server::start(|number, _| response(if number == 0 { 500 } else { 200 }, "x")).await;
    assert_eq!(ask("read", json!({ "url": server.url("/") })).await, Outcome::ok("x"));
}

#[tokio::test]
async fn what_may_have_arrived_is_never_sent_again_by_a_write() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\nhalf".to_vec();
    for script in [
        Script::Reset,
        Script::Close,
        Script::Say(b"HTTP/1.1 20".to_vec()),
        Script::Say(b"\x16\x03\x01garbage\r\n\r\n".to_vec()),
        Script::Say(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        Script::Say(half),
    ] {
        for (effect, again) in EFFECTS {
            let server = Raw::start(vec![script.clone()]).await;
            let outcome = ask(effect, json!({ "method": "POST", "url": server.url("/") })).await;
            assert_eq!(outcome.kind, OutcomeKind::Error);
            assert_eq!(
                outcome.content.contains("outcome unknown: may have been executed"),
                !again,
                "{outcome:?}"
            );
            assert_eq!(server.count(), 1 + usize::from(again), "{effect} {script:?}");
            let server = Raw::start(vec![script.clone(), Script::Say(OK.to_vec())]).await;
            let outcome = ask(effect, json!({ "method": "POST", "url": server.url("/") })).await;
            assert_eq!(outcome == Outcome::ok("ok"), again, "{effect} {script:?}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn what_was_never_sent_is_tried_again_by_everyone() {
    for (effect, _) in EFFECTS {
        let server = Raw::start(vec![Script::Blurt(b"this is no TLS\r\n".to_vec())]).await;
        let outcome = ask(effect, json!({ "url": server.url("/").replace("http:", "https:") })).await;
        assert_eq!(outcome, Outcome::failed(OutcomeKind::Error, "unreachable: TLS failed"));
        assert_eq!(server.count(), 2, "{effect}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let outcome = ask("write", json!({ "url": format!("http://{closed}/") })).await;
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Error, "unreachable: the connection was refused"));
}

#[tokio::test]
async fn a_second_attempt_needs_time() {
    let server = Server::start(|_, _| response(500, "x")).await;
    let (_catalog, tool) = http("read", json!({ "url": server.url("/") }));
    let mut call = call(&json!({}));
    call.deadline = Instant::now() + Duration::from_millis(40);
    tool.run(&call, &CancellationToken::new()).await;
    assert!(server.seen().len() <= 1);
}

#[tokio::test]
async fn calls_at_once_run_again_over_the_connections_they_had_unless_they_write() {
    const AT_ONCE: usize = 40;
    for (effect, kept) in EFFECTS {
        let server = Server::start(|_, _| response(200, "ok")).await;
        let (_catalog, tool) = http(effect, json!({ "url": server.url("/") }));
        for _ in 0..3 {
            let calls = std::iter::repeat_with(|| run(&tool, json!({}))).take(AT_ONCE);
            let outcomes = futures_util::future::join_all(calls).await;
            assert!(outcomes.iter().all(|outcome| *outcome == Outcome::ok("ok")), "{outcomes:?}");
        }
        let connections = server.connections.load(Ordering::SeqCst);
        let expected = if kept { AT_ONCE } else { AT_ONCE * 3 };
        assert!(connections <= expected && (kept || connections == expected), "{effect}: {connections}");
        // A server that is to have no other request hears of it, and closes first.
        let told = |seen: &crate::tools::testing::Seen| seen.headers.get("connection").is_some();
        assert!(server.seen().iter().all(|seen| told(seen) != kept), "{effect}");
    }
}

#[tokio::test]
async fn a_target_refused_by_policy_is_denied_without_a_detail_and_never_reached() {
    let server = Server::start(|_, _| response(200, "secret")).await;
    let schema = Schema::compile(&open()).unwrap();
    let settings = serde_json::from_value(json!({ "url": server.url("/") })).unwrap();
    let mut tool =
        Http::load(&settings, Effect::Read, &schema, &SystemRoots::default(), &mut Mistakes::of("t"))
            .unwrap();
    let tls = connect::tls(None, &SystemRoots::default(), false).unwrap();
    // As if the name had resolved to loopback without being named.
    tool.connections = connections(&tool.form, Connector::new(Reach::default(), tls), Effect::Read);
    let arguments = Arguments::parse("{}").unwrap().0;
    let outcome = tool.run(&arguments, &schema, &call(&json!({})), &CancellationToken::new()).await;
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Denied, "blocked by policy"));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_host_name_that_stands_for_loopback_must_say_localhost_or_be_opened() {
    let server = Server::start(|_, _| response(200, "ok")).await;
    let url = server.url("/").replace("127.0.0.1", "localhost");
    assert_eq!(ask("read", json!({ "url": url })).await, Outcome::ok("ok"));
    let errors = build(json!({ "t": { "http": { "url": "http://169.254.1.1/" } } })).unwrap_err();
    assert_eq!(errors[0].fix.as_deref(), Some("open it with allow_cidrs: [\"169.254.1.1/32\"]"));
    assert!(
        build(
            json!({ "t": { "http": { "url": "http://169.254.1.1/", "allow_cidrs": ["169.254.0.0/16"] } } })
        )
        .is_ok()
    );
    let errors =
        build(json!({ "t": { "http": { "url": "http://h/", "allow_cidrs": ["10.0.0.0/8", "ten"] } } }))
            .unwrap_err();
    assert_eq!(errors[0].path, ["http", "allow_cidrs", "1"]);
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_with_the_deadline() {
    let first = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_vec();
    for script in [Script::Hang(Vec::new()), Script::Hang(first)] {
        for (effect, again) in EFFECTS {
            let mut server = Raw::start(vec![script.clone()]).await;
            let (_catalog, tool) = http(effect, json!({ "url": server.url("/") }));
            let mut call = call(&json!({}));
            call.deadline = Instant::now() + Duration::from_millis(200);
            let outcome = tool.run(&call, &CancellationToken::new()).await;
            assert_eq!(outcome.kind, OutcomeKind::Timeout);
            assert!(outcome.content.starts_with("error: timed out after "), "{outcome:?}");
            assert_eq!(outcome.content.contains("outcome unknown"), !again, "{outcome:?}");
            assert_eq!(server.count(), 1);
            server.over.wait_for(|over| *over == 1).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_stopped_or_dropped_call_closes_its_connection() {
    for dropped in [false, true] {
        let mut server = Raw::start(vec![Script::Hang(Vec::new())]).await;
        let (_catalog, tool) = http("read", json!({ "url": server.url("/") }));
        let stop = CancellationToken::new();
        let call = call(&json!({}));
        let mut running = Box::pin(tool.run(&call, &stop));
        while server.count() == 0 {
            tokio::select! {
                outcome = &mut running => panic!("{outcome:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        if dropped {
            drop(running);
        } else {
            stop.cancel();
            assert_eq!(running.await, Outcome::failed(OutcomeKind::Stopped, "stopped"));
        }
        server.over.wait_for(|over| *over == 1).await.unwrap();
    }
}

#[tokio::test]
async fn a_redirect_is_reported_and_not_followed() {
    let elsewhere = Server::start(|_, _| response(200, "stolen")).await;
    for status in [301, 302, 303, 307, 308] {
        let to = elsewhere.url("/steal");
        let server = Server::start(move |_, _| {
            let mut answer = response(status, "");
            answer.headers_mut().insert("location", to.parse().unwrap());
            answer
        })
        .await;
        for follow in [false, true] {
            let outcome = ask("read", json!({ "url": server.url("/"), "follow_own_origin": follow })).await;
            let says = format!("redirect to {} not followed (HTTP {status})", elsewhere.url("/steal"));
            assert_eq!(outcome, Outcome::failed(OutcomeKind::Error, &says));
        }
    }
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn redirects_on_the_own_origin_are_followed_where_that_does_no_harm() {
    let to_b = |status: u16| {
        Server::start(move |_, seen| {
            let mut answer = response(if seen.target == "/b?x=1" { 200 } else { status }, "b");
            answer.headers_mut().insert("location", "/b?x=1#frag".parse().unwrap());
            answer
        })
    };
    for (method, effect, status, follows) in [
        ("GET", "read", 301, true),
        ("GET", "write", 302, true),
        ("GET", "read", 307, true),
        ("POST", "idempotent", 307, true),
        ("PUT", "idempotent", 308, true),
        ("POST", "idempotent", 302, false),
        ("POST", "write", 307, false),
        ("POST", "write", 303, false),
    ] {
        let server = to_b(status).await;
        let outcome =
            ask(effect, json!({ "method": method, "url": server.url("/a"), "follow_own_origin": true }))
                .await;
        assert_eq!(outcome == Outcome::ok("b"), follows, "{method} {effect} {status}: {outcome:?}");
        let seen = server.seen();
        assert_eq!(seen.len(), 1 + usize::from(follows));
        assert!(
            seen.iter().all(|seen| seen.method == method && seen.headers.contains_key("idempotency-key"))
        );
    }
}

#[tokio::test]
async fn redirects_without_an_end_are_cut_off() {
    let server = Server::start(|number, _| {
        let mut answer = response(302, "");
        answer.headers_mut().insert("location", format!("/{number}").parse().unwrap());
        answer
    })
    .await;
    let outcome = ask("read", json!({ "url": server.url("/"), "follow_own_origin": true })).await;
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Error, "more than 3 redirects"));
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn a_huge_body_is_cut_and_its_size_told_when_known() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n";
    let known = [head.as_slice(), b"content-length: 1234567890\r\n\r\n"].concat();
    let chunked = [head.as_slice(), b"transfer-encoding: chunked\r\n\r\n"].concat();
    let chunk = [b"4000\r\n".as_slice(), &vec![b'x'; 0x4000], b"\r\n"].concat();
    for (first, then, says) in [
        (known, vec![b'x'; 0x4000], "… [cut: 64 KiB of 1234567890 bytes]"),
        (chunked, chunk, "… [cut: 64 KiB of more than 65536 bytes]"),
    ] {
        let mut server = Raw::start(vec![Script::Forever(first, then)]).await;
        let outcome = ask("read", json!({ "url": server.url("/") })).await;
        assert_eq!((outcome.kind, outcome.content.len()), (OutcomeKind::Ok, 65536));
        assert!(outcome.content.ends_with(says));
        server.over.wait_for(|over| *over == 1).await.unwrap();
    }
}

#[tokio::test]
async fn a_head_without_an_end_is_refused() {
    let mut server = Raw::start(vec![Script::Forever(
        b"HTTP/1.1 200 OK\r\n".to_vec(),
        b"x-a: bbbbbbbbbbbbbbbb\r\n".to_vec(),
    )])
    .await;
    let outcome = ask("write", json!({ "url": server.url("/") })).await;
    assert_eq!(outcome.kind, OutcomeKind::Error);
    server.over.wait_for(|over| *over == 1).await.unwrap();
}

#[tokio::test]
async fn what_is_no_text_is_described() {
    for (headers, body, says) in [
        ("content-type: image/png", &b"\x89PNG"[..], "binary data, image/png, 4 bytes"),
        ("content-type: application/octet-stream", b"text", "binary data, application/octet-stream, 4 bytes"),
        ("content-type: text/plain", b"a\xff\xfe", "binary data, text/plain, 3 bytes"),
        ("x-none: 1", b"a\0b", "binary data, 3 bytes"),
        ("x-none: 1", b"text", "text"),
        (
            "content-type: text/plain\r\ncontent-encoding: gzip",
            b"\x1f\x8b",
            "binary data, compressed with gzip, 2 bytes",
        ),
        ("content-type: application/json", "{\"a\":\"ž\"}".as_bytes(), "{\"a\":\"ž\"}"),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\ncontent-length: {}\r\n\r\n", body.len());
        let server = Raw::start(vec![Script::Say([head.as_bytes(), body].concat())]).await;
        assert_eq!(ask("read", json!({ "url": server.url("/") })).await, Outcome::ok(says));
    }
}

#[tokio::test]
async fn the_limit_of_a_call_holds_for_errors_too() {
    for status in [200, 404] {
        let server = Server::start(move |_, _| response(status, &"ž".repeat(10_000))).await;
        let (_catalog, tool) = http("read", json!({ "url": server.url("/") }));
        let mut call = call(&json!({}));
        call.result_limit = 1000;
        let outcome = tool.run(&call, &CancellationToken::new()).await;
        assert!(outcome.content.len() <= 1000 && outcome.content.ends_with("of 20000 bytes]"), "{outcome:?}");
    }
}

#[tokio::test]
async fn reads_share_connections_and_writes_do_not() {
    for (effect, connections) in [("read", 1), ("write", 3)] {
        let server = Server::start(|_, _| response(200, "ok")).await;
        let (_catalog, tool) = http(effect, json!({ "url": server.url("/") }));
        for _ in 0..3 {
            assert_eq!(run(&tool, json!({})).await, Outcome::ok("ok"));
            // The connection goes back to the pool when its task has run.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(server.connections.load(Ordering::SeqCst), connections, "{effect}");
    }
}

#[tokio::test]
async fn a_kept_connection_the_server_closed_is_no_fault() {
    let keep = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok".to_vec();
    for (effect, _) in EFFECTS {
        let server = Raw::start(vec![Script::Say(keep.clone())]).await;
        let (_catalog, tool) = http(effect, json!({ "url": server.url("/") }));
        for _ in 0..20 {
            assert_eq!(run(&tool, json!({})).await, Outcome::ok("ok"), "{effect}");
        }
    }
}

/// A TLS server with a certificate for 127.0.0.1, and the file of the authority behind it.
async fn tls_server(dir: &std::path::Path) -> (std::net::SocketAddr, String, JoinSet<()>) {
    let (acceptor, ca) = testing::tls(dir);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(OK).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, ca, tasks)
}

#[tokio::test]
async fn tls_is_checked_against_the_authorities_of_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let (address, ca, _tasks) = tls_server(dir.path()).await;
    let url = format!("https://{address}/");
    assert_eq!(ask("read", json!({ "url": url, "ca": ca })).await, Outcome::ok("ok"));
    let unknown = Outcome::failed(OutcomeKind::Error, "unreachable: TLS failed");
    assert_eq!(ask("read", json!({ "url": url })).await, unknown);
    let wrong_name = url.replace("127.0.0.1", "localhost");
    assert_eq!(ask("read", json!({ "url": wrong_name, "ca": ca })).await, unknown);
    let errors = build(json!({ "t": { "http": { "url": url, "ca": "/nonexistent.pem" } } })).unwrap_err();
    assert_eq!(errors[0].path, ["http", "ca"]);
}

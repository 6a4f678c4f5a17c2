//! Calls a server does not serve: refused with a status, of a tool that is gone, or never sent.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::tools::servers::pins;

/// Calls the tool `t` of a server that answers so. Gives what the model is told.
async fn told(effect: &str, status: u16, body: &'static str, kind: &'static str, limit: usize) -> String {
    let server = over_http(move |_| {
        let mut response = response(status, body);
        response.headers_mut().insert("content-type", kind.parse().unwrap());
        response
    })
    .await;
    let settings = json!({ "effect": effect, "mcp": { "url": server.url("/mcp") } });
    let rig = Rig::of(|_| json!({ "s": settings })).await;
    let call = super::super::Call { result_limit: limit, ..testing::call(&json!({})) };
    let outcome = rig.tool("s__t").run(&call, &CancellationToken::new()).await;
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let calls = server.seen().iter().filter(|seen| seen.body.contains("tools/call")).count();
    assert_eq!(calls, 1, "{effect} {status}");
    rig.servers.stop().await;
    outcome.content
}

/// Errors of the protocol that name no request, and one that nobody made.
const NOBODYS: &str = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no"}}"#;
const ANOTHERS: &str = r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"no"}}"#;

#[tokio::test]
async fn over_http_a_refusal_is_told_with_its_status_and_body_and_leaves_nothing_open() {
    const TEXT: &str = "text/plain";
    const JSON: &str = "application/json";
    for (status, body, kind, expected) in [
        (400, "no such city", TEXT, "error: HTTP 400 Bad Request: no such city"),
        (401, "who are you?", TEXT, "error: HTTP 401 Unauthorized"),
        (403, "{\"no\":1}", "application/json", "error: HTTP 403 Forbidden"),
        (404, "", TEXT, "error: HTTP 404 Not Found: (empty)"),
        (405, "no", TEXT, "error: HTTP 405 Method Not Allowed: no"),
        (413, "no", TEXT, "error: HTTP 413 Payload Too Large: no"),
        (415, "no", "image/png", "error: HTTP 415 Unsupported Media Type: binary data, image/png, 2 bytes"),
        (429, "later", TEXT, "error: HTTP 429 Too Many Requests: later"),
        (400, NOBODYS, JSON, &format!("error: HTTP 400 Bad Request: {NOBODYS}")),
        (429, ANOTHERS, JSON, &format!("error: HTTP 429 Too Many Requests: {ANOTHERS}")),
    ] {
        for effect in ["read", "write"] {
            assert_eq!(told(effect, status, body, kind, 64 * 1024).await, expected, "{effect}");
        }
    }
    let long = told("write", 400, "0123456789".repeat(5000).leak(), TEXT, 1024).await;
    assert!(long.len() <= 1024 && long.ends_with(" of 50000 bytes]"), "{long}");
}

#[tokio::test]
async fn over_http_what_may_have_been_begun_leaves_the_outcome_of_a_write_open() {
    for (status, said, body) in [
        (408, "408 Request Timeout", "x"),
        (500, "500 Internal Server Error", "x"),
        (500, "500 Internal Server Error", NOBODYS),
        (503, "503 Service Unavailable", ANOTHERS),
    ] {
        let told = told("write", status, body, "application/json", 1024).await;
        assert_eq!(told, format!("error: the server answered HTTP {said}; {UNKNOWN}"));
    }
}

#[tokio::test]
async fn a_pinned_tool_that_is_gone_and_one_that_changed_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pins.json");
    let settings = |rogues: &tempfile::TempDir| json!({ "s": rogue(rogues, "s", &[], json!({ "pin": true, "pins": path })) });
    let rig = Rig::of(settings).await;
    pins::write(&path, &rig.servers.digests(&rig.catalog)).unwrap();
    let rig = Rig::of(settings).await;
    let (changed, gone, mut news) = (rig.tool("s__echo"), rig.tool("s__slow"), rig.servers.news());
    assert_eq!(rig.call("s__change").await, Outcome::ok("changed"));
    news.changed().await.unwrap();
    assert_eq!(
        run(&changed, json!({})).await,
        Outcome::failed(
            OutcomeKind::Denied,
            "the tool has changed and waits to be accepted; nothing was sent"
        )
    );
    assert_eq!(
        run(&gone, json!({})).await,
        Outcome::failed(OutcomeKind::Error, "the server does not offer this tool any more; nothing was sent")
    );
    assert_eq!((rig.count("s", "call echo"), rig.count("s", "call slow")), (0, 0));
}

/// TLS before a server. So many connections as `broken` says, from now on, meet something else.
async fn behind_tls(
    dir: &std::path::Path,
    server: &Server,
    broken: &Arc<AtomicUsize>,
) -> (String, String, JoinSet<()>) {
    let (acceptor, ca) = testing::tls(dir);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/mcp", listener.local_addr().unwrap());
    let (behind, broken, mut tasks) = (server.address, Arc::clone(broken), JoinSet::new());
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let one_less = |left: usize| left.checked_sub(1);
            if broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                continue;
            }
            let acceptor = acceptor.clone();
            open.spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut to = TcpStream::connect(behind).await.unwrap();
                // Either side may end it.
                let _ended = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
            });
        }
    });
    (url, ca, tasks)
}

#[tokio::test]
async fn over_http_a_call_without_a_connection_is_tried_once_more_within_its_time() {
    const FAILED: &str = "unreachable: TLS failed";
    for effect in ["read", "write"] {
        for (failing, patience, expected, again) in [
            (1, Duration::from_secs(20), Outcome::ok("hi"), 1),
            (2, Duration::from_secs(20), Outcome::failed(OutcomeKind::Error, FAILED), 1),
            (1, Duration::from_millis(49), Outcome::failed(OutcomeKind::Error, FAILED), 0),
        ] {
            let server = hanging_up(usize::MAX, "application/json").await;
            let (dir, broken) = (tempfile::tempdir().unwrap(), Arc::default());
            let (url, ca, _tasks) = behind_tls(dir.path(), &server, &broken).await;
            let settings = json!({ "effect": effect, "mcp": { "url": url, "ca": ca } });
            let rig = Rig::of(|_| json!({ "s": settings })).await;
            let tool = rig.tool("s__t");
            broken.store(failing, Ordering::SeqCst);
            let call = super::super::Call {
                deadline: tokio::time::Instant::now() + patience,
                ..testing::call(&json!({}))
            };
            let outcome = tool.run(&call, &CancellationToken::new()).await;
            // On a busy machine even the first try may be late.
            let late = patience < Duration::from_secs(1) && outcome.kind == OutcomeKind::Timeout;
            assert!(outcome == expected || late, "{effect} {failing}: {outcome:?}");
            assert_eq!(call.tries.again().len(), again, "{effect} {failing}");
            let sent = server.seen().iter().filter(|seen| seen.body.contains("tools/call")).count();
            assert_eq!(sent, usize::from(outcome.kind == OutcomeKind::Ok), "{effect} {failing}");
            rig.servers.stop().await;
        }
    }
}

//! What heals by asking again, upstreams that cannot be reached or trusted, and chats that only go
//! through. The table of all other faults of an upstream is `tests/matrix.rs`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use futures_util::FutureExt;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::faults::{CONFIG, ask, chunk, code, comments, each, named, script, status, text};
use support::fold::{self, Folded};
use support::gateway::{Gateway, closed_port, soon};
use support::lab::Lab;

/// A tool makes a chat a turn.
const TOOL: &str = "
tools:
  save:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: POST, url: 'LAB/tool/count/{label}' }
    effect: write
";

async fn gateway(lab: &Lab) -> Gateway {
    Gateway::start(lab, &format!("{CONFIG}{TOOL}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_heals_by_asking_again_is_not_seen_by_the_client() {
    let lab = Lab::start().await;
    let gateway = gateway(&lab).await;
    let good = json!({ "reply": { "text": "fine" } });
    let busy = json!({ "steps": status(429, json!({ "retry-after": "0.05" })) });
    let role = json!({ "events": [chunk(json!({ "role": "assistant", "content": "" }), Value::Null)] });
    let cases: [(&str, Vec<Value>, usize); 7] = [
        (
            "closed on a connection of the pool",
            vec![good.clone(), json!({ "steps": ["close"] }), good.clone()],
            3,
        ),
        ("reset once", vec![json!({ "steps": ["reset"] }), good.clone()], 2),
        ("busy twice", vec![busy.clone(), busy, good.clone()], 3),
        ("500 once", vec![json!({ "steps": status(500, json!({})) }), good.clone()], 2),
        ("cut after the role", vec![json!({ "steps": [role, "close"] }), good.clone()], 2),
        ("late: stall once", vec![json!({ "steps": ["stall"] }), good.clone()], 2),
        (
            "no end mark",
            vec![json!({ "steps": [{ "events": [text("fine"), chunk(json!({}), json!("stop"))] }] })],
            1,
        ),
    ];
    let both = cases.iter().flat_map(|case| [(case, false), (case, true)]);
    each(
        both,
        |((name, ..), _)| (*name).to_owned(),
        async |((name, rounds, asked), stream)| {
            let name = named(name, if stream { "healed, streamed" } else { "healed" });
            lab.script(&name, json!({ "rounds": rounds, "advance": "requests" }));
            let times = if name.starts_with("closed on") { 2 } else { 1 };
            for _ in 0..times {
                let got = ask(&gateway, &name, stream, &[]).await;
                match fold::answer(&got) {
                    Ok(Folded::Reply(reply)) => {
                        assert_eq!((reply.text.as_str(), reply.finish.as_str()), ("fine", "stop"), "{name}")
                    }
                    other => panic!("{name}: {other:?} {}", got.body),
                }
            }
            assert_eq!(lab.journal().of_script(&name).count(), *asked, "{name}");
        },
    )
    .await;
    assert!(gateway.metric("fanfold_upstream_retries_total{reason=\"busy\"}") >= 4.0);
    gateway.ends_at_baseline(&lab).await;
}

/// A configuration whose only upstream is somewhere else.
fn elsewhere(base_url: &str, more: &str) -> String {
    format!(
        "upstreams: {{ main: {{ base_url: '{base_url}', connect_timeout: 300ms, breaker: {{ connects: 1000 }}{more} }} }}\n"
    )
}

async fn without_an_upstream(config: &str) -> (Vec<Got>, f64, Gateway) {
    let lab = Lab::start().await;
    let tool = "tools: { look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read } }\n";
    let gateway = Gateway::start(&lab, &format!("{config}{tool}")).await;
    let mut answers = Vec::new();
    for (stream, headers) in [
        (false, vec![]),
        (true, vec![]),
        (false, vec![("x-fanfold-tools", "none")]),
        (true, vec![("x-fanfold-tools", "none")]),
    ] {
        answers.push(ask(&gateway, "x", stream, &headers).await);
    }
    let retries = |reason: &str| format!("fanfold_upstream_retries_total{{reason=\"{reason}\"}}");
    let again = ["unreachable", "unresolved", "connect_timeout", "tls"]
        .map(|reason| gateway.metric(&retries(reason)));
    (answers, again.iter().sum(), gateway)
}

async fn unreachable(config: String, status: u16, wanted: &str, again: f64) {
    let (answers, retried, gateway) = without_an_upstream(&config).await;
    for got in &answers {
        assert_eq!(
            (got.status.as_u16(), code(&config, got).as_str()),
            (status, wanted),
            "{config}: {}",
            got.body
        );
        let message = got.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(!message.contains("127.0.0.1") && !message.contains("os error"), "internals: {message}");
    }
    assert!((retried - again * 4.0).abs() < 0.1, "{config}: asked again {retried} times in 4 requests");
    soon(gateway.app.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_is_asked_again_and_then_told() {
    let (closed, _held) = closed_port();
    let full = full_house();
    let hole = full.0;
    tokio::join!(
        unreachable(elsewhere(&format!("http://{closed}/v1"), ""), 502, "upstream_unreachable", 2.0).boxed(),
        unreachable(
            elsewhere(&format!("http://{}/v1", "x".repeat(64)), ""),
            502,
            "upstream_unreachable",
            2.0
        )
        .boxed(),
        unreachable(elsewhere(&format!("http://{hole}/v1"), ""), 504, "upstream_timeout", 1.0).boxed(),
    );
}

/// A listener whose queue is full, so that connecting to it takes for ever.
fn full_house() -> (std::net::SocketAddr, Vec<std::net::TcpStream>, socket2::Socket) {
    let (address, socket) = closed_port();
    socket.listen(0).expect("a listener");
    let patience = std::time::Duration::from_millis(200);
    let connect = || std::net::TcpStream::connect_timeout(&address, patience).ok();
    let taken = std::iter::from_fn(connect).take(64).collect();
    (address, taken, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_trusted_is_not_asked_again() {
    let plain = Lab::start().await;
    let (untrusted, folder) = tls_server(None).await;
    let (expired, folder_of_expired) = tls_server(Some((2020, 1, 1))).await;
    let ca = |folder: &tempfile::TempDir| format!(", ca: '{}'", folder.path().join("cert.pem").display());
    let other = tls_server(None).await;
    let url = |at: &std::net::SocketAddr| format!("https://localhost:{}/v1", at.port());
    let garbage = plain.url().replace("http:", "https:");
    tokio::join!(
        unreachable(elsewhere(&format!("{garbage}/v1"), ""), 502, "upstream_tls_error", 0.0).boxed(),
        unreachable(elsewhere(&url(&untrusted), &ca(&other.1)), 502, "upstream_tls_error", 0.0).boxed(),
        unreachable(elsewhere(&url(&expired), &ca(&folder_of_expired)), 502, "upstream_tls_error", 0.0)
            .boxed(),
        unreachable(
            elsewhere(&format!("https://127.0.0.1:{}/v1", untrusted.port()), &ca(&folder)),
            502,
            "upstream_tls_error",
            0.0
        )
        .boxed(),
    );
}

/// A server that shakes hands as `localhost` and then says nothing. Its certificate is in the folder.
async fn tls_server(ends: Option<(i32, u8, u8)>) -> (std::net::SocketAddr, tempfile::TempDir) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if let Some((year, month, day)) = ends {
        parameters.not_after = rcgen::date_time_ymd(year, month, day);
    }
    let certificate = parameters.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _refused = acceptor.accept(stream).await;
        }
    });
    (address, folder)
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_read_counts() {
    let lab = Lab::start().await;
    lab.script(
        "early",
        json!({ "early": true, "rounds": [{ "steps": status(413, json!({})) }], "repeat": true }),
    );
    let config = "upstreams: { main: { base_url: LAB/at/early/v1 } }\ntools: { look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read } }\n";
    let gateway = Gateway::start(&lab, config).await;
    for headers in [vec![], vec![("x-fanfold-tools", "none")]] {
        let body =
            json!({ "model": "m", "messages": [{ "role": "user", "content": "x".repeat(4_000_000) }] });
        let url = format!("{}/chat/completions", gateway.base_url());
        let got = soon(client::send(http::Method::POST, &url, &headers, Some(&body))).await.unwrap();
        assert_eq!((got.status.as_u16(), code("early", &got).as_str()), (413, "told"));
    }
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_stream_that_breaks_off_ends_with_an_error_event() {
    let lab = Lab::start().await;
    let gateway = gateway(&lab).await;
    let large = |length: usize| json!({ "events": [text(&"x".repeat(length))] });
    let too_large = Some("upstream_reply_too_large");
    // The finish is further back than what is remembered of the end.
    let padding = |_| json!({ "events": [{ "id": "c", "object": "chat.completion.chunk", "choices": [], "pad": "x".repeat(10_000) }] });
    let finish = json!({ "events": [chunk(json!({}), json!("stop"))] });
    let finished_long_ago = std::iter::once(finish).chain((0..20).map(padding)).collect();
    let cases = [
        ("reset", vec![json!({ "wait_ms": 50 }), json!("reset")], Some("upstream_truncated")),
        ("closed", vec![json!("close")], Some("upstream_truncated")),
        ("ended without a finish", vec![], Some("upstream_truncated")),
        ("half an event", vec![json!({ "send": "data: {\"id\":" })], Some("upstream_truncated")),
        ("late: stall", vec![json!("stall")], Some("upstream_timeout")),
        ("late: comments", comments(), Some("upstream_timeout")),
        ("event too large", vec![large(70_000)], too_large),
        ("reply too large", (0..6).map(|_| large(60_000)).collect(), too_large),
        ("much in small events", (0..20).map(|_| large(10_000)).collect(), Some("upstream_truncated")),
        ("finished", vec![json!({ "events": [chunk(json!({}), json!("stop")), "[DONE]"] })], None),
        ("finished without the end mark", vec![json!({ "events": [chunk(json!({}), json!("stop"))] })], None),
        ("finished, then much that says nothing", finished_long_ago, None),
        ("ended with the mark only", vec![json!({ "events": ["[DONE]"] })], None),
    ];
    each(
        cases.iter(),
        |(name, ..)| (*name).to_owned(),
        async |(name, tail, wanted)| {
            let name = named(name, "relayed in the middle");
            let mut steps = vec![json!({ "events": [text("Hel")] })];
            steps.extend(tail.iter().cloned());
            lab.script(&name, script(&[json!(steps)]));
            let got = ask(&gateway, &name, true, &[("x-fanfold-tools", "none")]).await;
            assert_eq!(got.status, 200, "{name}: {}", got.body);
            let first = format!("data: {}\n\n", text("Hel"));
            assert!(got.body.starts_with(&first), "{name}: bytes go through as they came: {}", got.body);
            match wanted {
                Some(wanted) => assert_eq!(code(&name, &got), *wanted, "{name}: {}", got.body),
                None => {
                    assert!(!got.body.contains("\"error\""), "{name}: {}", got.body);
                    assert!(got.body.ends_with("data: [DONE]\n\n"), "{name}: {}", got.body);
                    assert_eq!(got.body.matches("[DONE]").count(), 1, "{name}: {}", got.body);
                }
            }
            assert_eq!(lab.journal().of_script(&name).count(), 1, "{name}");
        },
    )
    .await;
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_stream_in_small_pieces_is_not_late() {
    let lab = Lab::start().await;
    let gateway = gateway(&lab).await;
    let events: Vec<Value> =
        (0..8).map(|_| text("x")).chain([chunk(json!({}), json!("stop")), json!("[DONE]")]).collect();
    let round = json!({ "steps": [{ "events": events }], "split": 3, "gap_ms": 5 });
    lab.script("late: in pieces", json!({ "rounds": [round] }));
    let got = ask(&gateway, "late: in pieces", true, &[("x-fanfold-tools", "none")]).await;
    assert!(got.body.ends_with("data: [DONE]\n\n") && !got.body.contains("\"error\""), "{}", got.body);
    assert_eq!(got.body.matches("\"content\":\"x\"").count(), 8, "{}", got.body);
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_chat_has_the_time_of_a_turn_and_is_measured_as_one() {
    let lab = Lab::start().await;
    let config = "upstreams: { main: { base_url: LAB/v1 } }\nlimits: { turn_timeout: 700ms }\n";
    let gateway = Gateway::start(&lab, config).await;
    let dripping: Vec<Value> =
        (0..40).flat_map(|_| [json!({ "events": [text("x")] }), json!({ "wait_ms": 50 })]).collect();
    lab.script("silent", script(&[json!(["stall"])]));
    lab.script("dripping", script(&[json!(dripping)]));
    lab.script("good", json!({ "rounds": [{ "reply": { "text": "fine" } }], "repeat": true }));
    for (name, stream, wanted) in [("silent", false, 504), ("silent", true, 504), ("dripping", true, 200)] {
        let got = ask(&gateway, name, stream, &[]).await;
        assert_eq!((got.status.as_u16(), code(name, &got).as_str()), (wanted, "turn_timeout"), "{name}");
    }
    for stream in [false, true] {
        assert_eq!(ask(&gateway, "good", stream, &[]).await.status, 200);
    }
    let count = |name: &str, outcome: &str| {
        gateway.metric(&format!("{name}_count{{team=\"default\",model=\"other\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!(count("gen_ai_server_request_duration_seconds", "timeout"), 3.0);
    assert_eq!(count("gen_ai_server_request_duration_seconds", "ok"), 2.0);
    let first = "gen_ai_server_time_to_first_token_seconds";
    assert_eq!((count(first, "timeout"), count(first, "ok")), (1.0, 1.0));
    let rounds = |outcome: &str| {
        let labels = format!("upstream=\"main\",model=\"other\",outcome=\"{outcome}\"");
        gateway.metric(&format!("gen_ai_client_operation_duration_seconds_count{{{labels}}}"))
    };
    assert_eq!((rounds("ok"), rounds("error")), (2.0, 3.0));
    assert_eq!(gateway.metric("fanfold_limit_hits_total{limit=\"turn_timeout\"}"), 3.0);
    gateway.ends_at_baseline(&lab).await;
}

//! Faults of an upstream while a chat only goes through. The table of all others is `tests/matrix.rs`.

mod support;

use serde_json::{Value, json};
use support::faults::{self, ask, chunk, code, comments, each, named, script, text};
use support::gateway::Gateway;
use support::lab::Lab;
use support::proxy::with;

async fn gateway(lab: &Lab) -> Gateway {
    // A tool makes a chat a turn.
    let look = json!({ "effect": "read", "http": { "method": "GET", "url": "LAB/tool/echo/look" } });
    let config = with(faults::config(lab), json!({ "tools": { "look": look } }));
    Gateway::start(lab, &faults::yaml(&config)).await
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
        (
            "the mark, then a reset",
            vec![json!({ "events": ["[DONE]"] }), json!({ "wait_ms": 50 }), json!("reset")],
            None,
        ),
        ("the mark, then closed", vec![json!({ "events": ["[DONE]"] }), json!("close")], None),
        ("the mark, then nothing", vec![json!({ "events": ["[DONE]"] }), json!("stall")], None),
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

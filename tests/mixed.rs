//! Replies that call the operator's tools and the client's own together: the client sees its calls
//! only, and when it comes back the upstream sees everything as it wrote it.

mod support;

use serde_json::{Value, json};
use support::lab::Lab;
use support::lab::journal::{Request, Snapshot};
use support::lab::script::ExpectedReply;
use support::proxy::{self, Proxy, chat, declared, streamed, tool, with, within};

/// A mixed reply, and an answer.
fn mixed(calls: &Value) -> Value {
    json!({ "rounds": [{ "reply": { "text": "Looking.", "calls": calls } }, { "reply": { "text": "done" } },
        { "reply": { "text": "more" } }] })
}

fn call(name: &str, id: &str) -> Value {
    json!({ "name": name, "id": id, "arguments": { "city": id } })
}

/// Three calls, the client's in the middle.
fn three() -> Value {
    json!([call("ours", "call_ours00001"), call("mine", "call_mine00001"), call("count", "call_ours00002")])
}

async fn start(lab: &Lab, more: Value) -> Proxy {
    let tools = json!({ "ours": tool(lab, "echo", "ours"), "count": tool(lab, "count", "count") });
    Proxy::before(lab, with(json!({ "tools": tools }), more)).await
}

/// A request whose client has a tool `mine`.
fn with_mine(request: Value) -> Value {
    with(request, json!({ "tools": [declared("mine")] }))
}

/// The conversation as a client goes on with it: what it saw, and the results of its own calls.
fn go_on(request: &Value, seen: &ExpectedReply) -> Value {
    let called = |call: &support::lab::script::ExpectedCall| {
        json!({ "id": call.id, "type": "function",
            "function": { "name": call.name, "arguments": call.arguments.to_string() } })
    };
    let calls: Vec<Value> = seen.calls.iter().map(called).collect();
    let mut next = request.clone();
    let messages = next["messages"].as_array_mut().expect("messages");
    messages.push(json!({ "role": "assistant", "content": seen.text, "tool_calls": calls }));
    // The client answers in an order of its own.
    for call in seen.calls.iter().rev() {
        let id = call.id.as_deref().unwrap_or_default();
        messages.push(json!({ "role": "tool", "tool_call_id": id, "content": format!("theirs for {id}") }));
    }
    next
}

/// The last request a script got.
fn last<'a>(seen: &'a Snapshot, script: &'a str) -> &'a Request {
    let (_, request) = seen.of_script(script).last().expect("a request");
    assert_eq!(request.refused, None, "{}", request.text);
    request
}

/// Roles, calls and answered ids of a request's messages.
fn outline(request: &Request) -> Vec<String> {
    let outline = |message: &Value| {
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        let calls: Vec<&str> = calls.filter_map(|call| call["id"].as_str()).collect();
        let answered = message["tool_call_id"].as_str().unwrap_or_default();
        format!("{} {}{answered}", message["role"].as_str().unwrap_or_default(), calls.join("+"))
    };
    request.body["messages"].as_array().expect("messages").iter().map(outline).collect()
}

const RESTORED: [&str; 5] = [
    "user ",
    "assistant call_ours00001+call_mine00001+call_ours00002",
    "tool call_ours00001",
    "tool call_mine00001",
    "tool call_ours00002",
];
const AS_THE_CLIENT_SAW_IT: [&str; 3] = ["user ", "assistant call_mine00001", "tool call_mine00001"];

#[tokio::test]
async fn the_client_sees_its_own_calls_and_the_upstream_everything_in_call_order() {
    let lab = Lab::start().await;
    for mode in ["stream", "whole"] {
        let upstream = json!({ "main": { "base_url": lab.base_url(), "mode": mode } });
        let proxy = start(&lab, json!({ "upstreams": upstream })).await;
        for (at, request) in [chat("m"), streamed("m")].into_iter().enumerate() {
            let request = with_mine(request);
            lab.clear();
            lab.script("m", mixed(&three()));
            let first = proxy.reply(&request).await;
            assert_eq!((first.text.as_str(), first.finish.as_str()), ("Looking.", "tool_calls"));
            let names: Vec<_> = first.calls.iter().map(|c| (c.name.as_str(), c.id.as_deref())).collect();
            assert_eq!(names, [("mine", Some("call_mine00001"))]);
            let follow_up = go_on(&request, &first);
            let second = proxy.reply(&follow_up).await;
            assert_eq!((second.text.as_str(), second.finish.as_str()), ("done", "stop"));
            let seen = lab.journal();
            assert_eq!(
                (seen.tools["ours"].started, seen.tools["count"].started),
                (1, 1),
                "nothing runs twice"
            );
            let asked = last(&seen, "m");
            assert_eq!(outline(asked), RESTORED);
            let messages = &asked.body["messages"];
            let called: Vec<&Value> =
                (0..3).map(|i| &messages[1]["tool_calls"][i]["function"]["name"]).collect();
            assert_eq!(called, ["ours", "mine", "count"]);
            assert_eq!(messages[1]["content"], "Looking.");
            assert!(messages[2]["content"].as_str().is_some_and(|text| text.contains("call_ours00001")));
            assert_eq!((&messages[2]["name"], &messages[4]["name"]), (&json!("ours"), &json!("count")));
            assert_eq!(messages[3]["content"], "theirs for call_mine00001");
            assert_eq!(messages[4]["content"], "{\"run\":1}");
            assert_eq!(proxy.metric("fanfold_mixed_replies_total"), Some(at as f64 + 1.0));
            // A later request with the same history.
            let mut later = follow_up;
            let messages = later["messages"].as_array_mut().expect("messages");
            messages.push(json!({ "role": "assistant", "content": "done" }));
            messages.push(json!({ "role": "user", "content": "and now?" }));
            lab.script("m", json!({ "rounds": [{ "reply": { "text": "again" } }] }));
            for _ in 0..2 {
                assert_eq!(proxy.reply(&later).await.text, "again");
                let outline = outline(last(&lab.journal(), "m"));
                assert_eq!(
                    (&outline[..5], &outline[5..]),
                    (&RESTORED.map(str::to_owned)[..], &["assistant ".into(), "user ".into()][..])
                );
            }
        }
    }
}

#[tokio::test]
async fn the_assistant_message_goes_back_byte_by_byte_as_the_upstream_wrote_it() {
    let lab = Lab::start().await;
    let message = r#"{"role":"assistant","content":null,"reasoning_content":"r\u00e9","n":1.10,"tool_calls":[{"id":"call_ours00001","type":"function","function":{"name":"ours","arguments":"{ \"city\" : \"x\" }"},"extra_content":{"z":1,"a":123456789012345678901234567890}},{"id":"call_mine00001","type":"function","function":{"name":"mine","arguments":"{}"},"extra_content":{"b":2}}]}"#;
    let whole = format!(
        r#"{{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{message},"finish_reason":"tool_calls"}}]}}"#
    );
    let chunk = |delta: &str| {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#
        )
    };
    let stream = json!([{ "events": [
        chunk(r#"{"role":"assistant","content":null,"reasoning_content":"r\u00e9","n":1.10}"#),
        chunk(r#"{"tool_calls":[{"index":0,"id":"call_ours00001","type":"function","function":{"name":"ours","arguments":"{ \"city\""},"extra_content":{"z":1,"a":123456789012345678901234567890}}]}"#),
        chunk(r#"{"tool_calls":[{"index":0,"function":{"arguments":" : \"x\" }"}}]}"#),
        chunk(r#"{"tool_calls":[{"index":1,"id":"call_mine00001","type":"function","function":{"name":"mine","arguments":"{}"},"extra_content":{"b":2}}]}"#),
        "[DONE]",
    ] }]);
    let round = json!({ "stream": stream, "whole": [{ "answer": { "body": whole } }] });
    lab.script("m", json!({ "rounds": [round, { "reply": { "text": "done" } }] }));
    for mode in ["stream", "whole"] {
        let upstream = json!({ "main": { "base_url": lab.base_url(), "mode": mode } });
        let proxy = start(&lab, json!({ "upstreams": upstream })).await;
        let request = with_mine(chat("m"));
        let got = proxy.chat(&request).await;
        assert!(
            got.body.contains(r#""extra_content":{"b":2}"#) && !got.body.contains("ours"),
            "{}",
            got.body
        );
        assert_eq!(proxy.reply(&go_on(&request, &proxy::reply(&got))).await.text, "done");
        let seen = lab.journal();
        assert!(last(&seen, "m").text.contains(message), "{mode}: {}", last(&seen, "m").text);
    }
}

#[tokio::test]
async fn the_rounds_before_a_mixed_reply_of_the_same_turn_are_restored_with_it() {
    let lab = Lab::start().await;
    let proxy = start(&lab, json!({})).await;
    let rounds = json!([
        { "reply": { "calls": [call("count", "call_before001")] } },
        { "reply": { "calls": three() } },
        { "reply": { "calls": [call("count", "call_after0001")] } },
        { "reply": { "text": "done" } },
    ]);
    lab.script("m", json!({ "rounds": rounds }));
    let request = with_mine(streamed("m"));
    let first = proxy.reply(&request).await;
    assert_eq!((first.calls.len(), first.finish.as_str()), (1, "tool_calls"));
    assert_eq!(proxy.reply(&go_on(&request, &first)).await.text, "done");
    let seen = lab.journal();
    let outline = outline(last(&seen, "m"));
    assert_eq!(outline[..3], ["user ", "assistant call_before001", "tool call_before001"]);
    assert_eq!(outline[3..7], RESTORED[1..]);
    assert_eq!(outline[7..], ["assistant call_after0001", "tool call_after0001"]);
    assert_eq!(seen.tools["count"].started, 3);
}

#[tokio::test]
async fn several_foreign_calls_are_numbered_anew_and_answered_in_any_order() {
    let lab = Lab::start().await;
    let proxy = start(&lab, json!({ "policy": { "interim_text": "hold" } })).await;
    let calls = json!([
        call("ours", "call_ours00001"),
        call("mine", "call_mine00001"),
        call("ours", "call_ours00002"),
        call("mine", "call_mine00002")
    ]);
    lab.script("m", mixed(&calls));
    for request in [with_mine(chat("m")), with_mine(streamed("m"))] {
        let got = proxy.chat(&request).await;
        let first = proxy::reply(&got);
        assert_eq!((first.calls.len(), first.text.as_str()), (2, "Looking."));
        assert_eq!(proxy.reply(&go_on(&request, &first)).await.text, "done");
        let outline = outline(last(&lab.journal(), "m"));
        let answers = ["call_ours00001", "call_mine00001", "call_ours00002", "call_mine00002"];
        assert_eq!(outline[1], format!("assistant {}", answers.join("+")));
        assert_eq!(outline[2..], answers.map(|id| format!("tool {id}")));
    }
}

#[tokio::test]
async fn without_what_was_parked_the_turn_goes_on_with_what_the_client_has() {
    let lab = Lab::start().await;
    lab.script("m", mixed(&three()));
    let request = with_mine(chat("m"));
    // Expired at once; never kept, for want of room; too large; and lost with the process.
    for limits in [
        json!({ "parked_for": "1ms" }),
        json!({ "parked_entries": 0 }),
        json!({ "parked_bytes": "100B" }),
        json!({}),
    ] {
        let restart = limits == json!({});
        let proxy = start(&lab, json!({ "limits": limits })).await;
        let first = proxy.reply(&request).await;
        assert_eq!(first.calls.len(), 1);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        let proxy = if restart { start(&lab, json!({})).await } else { proxy };
        let second = proxy.reply(&go_on(&request, &first)).await;
        assert_eq!((second.text.as_str(), second.finish.as_str()), ("done", "stop"));
        assert_eq!(outline(last(&lab.journal(), "m")), AS_THE_CLIENT_SAW_IT, "{limits}");
    }
}

#[tokio::test]
async fn another_team_with_the_same_ids_gets_nothing() {
    let lab = Lab::start().await;
    lab.script("m", mixed(&three()));
    let key = |key: &str| json!({ "keys": [proxy::key(key)] });
    let proxy = start(&lab, json!({ "teams": { "red": key("r"), "blue": key("b") } })).await;
    let request = with_mine(chat("m"));
    let first = proxy::reply(&proxy.chat_with(&[("authorization", "Bearer r")], &request).await);
    let follow_up = go_on(&request, &first);
    for (header, wanted) in [("Bearer b", AS_THE_CLIENT_SAW_IT.as_slice()), ("Bearer r", &RESTORED)] {
        let got = proxy.chat_with(&[("authorization", header)], &follow_up).await;
        assert_eq!(proxy::reply(&got).text, "done");
        assert_eq!(outline(last(&lab.journal(), "m")), wanted);
    }
}

#[tokio::test]
async fn ids_that_return_in_every_conversation_do_not_cross() {
    let lab = Lab::start().await;
    lab.script("m", mixed(&json!([call("count", "call_0"), call("mine", "call_1")])));
    let proxy = start(&lab, json!({})).await;
    let ask =
        |text: &str| with(with_mine(chat("m")), json!({ "messages": [{ "role": "user", "content": text }] }));
    let requests = [ask("one"), ask("two"), ask("three")];
    let mut firsts = Vec::new();
    for request in &requests {
        firsts.push(proxy.reply(request).await);
    }
    for (at, (request, first)) in requests.iter().zip(&firsts).enumerate().rev() {
        assert_eq!(proxy.reply(&go_on(request, first)).await.text, "done");
        let seen = lab.journal();
        let asked = last(&seen, "m");
        assert_eq!(outline(asked), ["user ", "assistant call_0+call_1", "tool call_0", "tool call_1"]);
        assert_eq!(asked.body["messages"][2]["content"], format!("{{\"run\":{}}}", at + 1));
    }
    // A conversation nothing was parked for.
    assert_eq!(proxy.reply(&go_on(&ask("four"), &firsts[0])).await.text, "done");
    assert_eq!(outline(last(&lab.journal(), "m")), ["user ", "assistant call_1", "tool call_1"]);
}

#[tokio::test]
async fn the_same_conversation_with_another_model_does_not_cross() {
    let lab = Lab::start().await;
    let proxy = start(&lab, json!({})).await;
    let mut asked = Vec::new();
    for script in ["m", "n"] {
        lab.script(script, mixed(&json!([call("count", "count:0"), call("mine", "mine:1")])));
        let request = with_mine(chat(script));
        let first = proxy.reply(&request).await;
        asked.push((script, go_on(&request, &first)));
    }
    for (at, (script, follow_up)) in asked.iter().enumerate() {
        assert_eq!(proxy.reply(follow_up).await.text, "done");
        let seen = lab.journal();
        let asked = last(&seen, script);
        assert_eq!(outline(asked), ["user ", "assistant count:0+mine:1", "tool count:0", "tool mine:1"]);
        assert_eq!(asked.body["messages"][2]["content"], format!("{{\"run\":{}}}", at + 1), "{script}");
    }
}

#[tokio::test]
async fn every_mixed_reply_of_a_conversation_is_restored_even_if_its_ids_return() {
    let lab = Lab::start().await;
    let proxy = start(&lab, json!({})).await;
    let ids = [["call_0", "call_1"], ["call_0", "call_1"], ["", ""], ["call_ours00003", "call_mine00003"]];
    let mut rounds: Vec<Value> = ids
        .iter()
        .map(|[ours, mine]| json!({ "reply": { "calls": [call("count", ours), call("mine", mine)] } }))
        .collect();
    rounds.push(json!({ "reply": { "text": "done" } }));
    lab.script("m", json!({ "rounds": rounds }));
    let mut request = with_mine(chat("m"));
    for round in 1..=ids.len() {
        let reply = proxy.reply(&request).await;
        assert_eq!((reply.calls.len(), reply.finish.as_str()), (1, "tool_calls"));
        request = go_on(&request, &reply);
        assert_eq!(lab.journal().tools["count"].started, round as u64);
    }
    assert_eq!(proxy.reply(&request).await.text, "done");
    let seen = lab.journal();
    let asked = last(&seen, "m");
    let messages = asked.body["messages"].as_array().expect("messages");
    assert_eq!(messages.len(), 1 + 3 * ids.len(), "{}", asked.text);
    for (i, round) in messages[1..].chunks(3).enumerate() {
        let id = |at: usize| &round[0]["tool_calls"][at]["id"];
        assert_eq!((&round[1]["tool_call_id"], &round[2]["tool_call_id"]), (id(0), id(1)));
        assert_eq!(round[1]["content"], format!("{{\"run\":{}}}", i + 1), "each reply has its own result");
    }
}

#[tokio::test]
async fn what_is_parked_is_bounded_and_the_oldest_goes_first() {
    let lab = Lab::start().await;
    let proxy = start(&lab, json!({ "limits": { "parked_entries": 2 } })).await;
    let mut asked = Vec::new();
    for i in 0..4 {
        let script = format!("m{i}");
        lab.script(
            &script,
            mixed(&json!([call("ours", "call_ours00001"), call("mine", &format!("call_mine0000{i}"))])),
        );
        let request = with_mine(chat(&script));
        let first = proxy.reply(&request).await;
        asked.push((script, go_on(&request, &first)));
        assert!(proxy.metric("fanfold_parked_entries").is_some_and(|n| n <= 2.0));
    }
    for (i, (script, follow_up)) in asked.iter().enumerate() {
        assert_eq!(proxy.reply(follow_up).await.text, "done");
        let restored = outline(last(&lab.journal(), script)).len() == 4;
        assert_eq!(restored, i >= 2, "{script}");
    }
}

#[tokio::test]
async fn a_foreign_call_is_shown_while_ours_still_run_and_the_end_waits_for_them() {
    let lab = Lab::start().await;
    let tools = json!({ "slow": tool(&lab, "sleep?ms=300", "slow") });
    let proxy = Proxy::before(&lab, json!({ "tools": tools })).await;
    lab.script("m", mixed(&json!([call("slow", "call_ours00001"), call("mine", "call_mine00001")])));
    let request = with_mine(streamed("m"));
    let mut body = proxy.open(&[], request.to_string()).await.into_body();
    let text = proxy::read_until(&mut body, "call_mine00001").await;
    assert!(!text.contains("\"finish_reason\":\"tool_calls\""), "{text}");
    assert_eq!(lab.journal().tools.get("slow").map_or(0, |runs| runs.complete), 0);
    let rest = proxy::read_until(&mut body, "[DONE]").await;
    assert!(rest.contains("\"finish_reason\":\"tool_calls\""), "{rest}");
    within(lab.wait_until(|seen| seen.tools["slow"].complete == 1)).await;
}

//! Turns through the real proxy: calls side by side and within their limits, what goes out, what
//! comes back, and every limit reached.

mod support;

use http::Method;
use serde_json::{Value, json};
use support::client;
use support::fold::Folded;
use support::lab::Lab;
use support::lab::journal::{How, Request, Snapshot, What};
use support::proxy::{self, Proxy, chat, declared, streamed, tool, with, within};

/// `n` calls of `tool`, each with another argument.
fn calls(tool: &str, n: usize) -> Value {
    (0..n).map(|i| json!({ "name": tool, "arguments": { "n": i }, "id": format!("call_{i}") })).collect()
}

/// A script that calls and then says `done`.
fn then_done(calls: &Value) -> Value {
    json!({ "rounds": [{ "reply": { "calls": calls } }, { "reply": { "text": "done" } }] })
}

/// The requests a script got.
fn requests<'a>(seen: &'a Snapshot, script: &'a str) -> Vec<&'a Request> {
    seen.of_script(script).map(|(_, request)| request).collect()
}

/// The tool messages of a request: id and content.
fn results(request: &Request) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let messages = request.body["messages"].as_array().expect("messages").iter();
    let tools = messages.filter(|message| message["role"] == "tool");
    tools.map(|message| (text(&message["tool_call_id"]), text(&message["content"]))).collect()
}

/// Starts and ends of a tool's calls, in order: `true` for a start.
fn starts_and_ends(seen: &Snapshot) -> Vec<bool> {
    seen.entries
        .iter()
        .filter_map(|entry| match entry.what {
            What::ToolStarted { .. } => Some(true),
            What::ToolEnded { .. } => Some(false),
            What::Opened | What::Closed { .. } | What::Request(_) | What::Answered { .. } => None,
        })
        .collect()
}

/// The arguments of a tool's calls, in the order of their arrival.
fn arguments(seen: &Snapshot, tool: &str) -> Vec<Value> {
    let asked = seen.requests().filter(|(_, request)| request.tool.as_deref() == Some(tool));
    asked.map(|(_, request)| request.body.clone()).collect()
}

async fn with_tools(lab: &Lab, tools: Value) -> Proxy {
    Proxy::before(lab, json!({ "tools": tools })).await
}

/// Events of one text each, of about 800 KB in all.
fn long_reply(end: &str) -> (String, String) {
    let word = |n: usize| format!("word {n}, ");
    let event = |text: Value, finish: Value| {
        let delta = json!({ "content": text });
        let chunk =
            json!({ "id": "c", "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
        format!("data: {chunk}{end}{end}")
    };
    let last = [event(Value::Null, "stop".into()), format!("data: [DONE]{end}{end}")];
    let stream = (0..8000).map(|n| event(word(n).into(), Value::Null)).chain(last).collect();
    (stream, (0..8000).map(word).collect())
}

// ---- a long reply

#[tokio::test]
async fn a_long_reply_arrives_whole_whoever_is_slow() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "t": tool(&lab, "echo", "t") })).await;
    for (end, split) in
        [("\n", None), ("\r\n", None), ("\r", None), ("\n", Some(40_000)), ("\r\n", Some(33_333))]
    {
        let (stream, said) = long_reply(end);
        let name = format!("long, {end:?}, {split:?}");
        let mut round = json!({ "steps": [{ "send": stream }] });
        if let Some(split) = split {
            round = with(round, json!({ "split": split, "gap_ms": 2 }));
        }
        lab.script(&name, json!({ "rounds": [round] }));
        let mut response = proxy.open(&[], streamed(&name).to_string()).await;
        // Everything between the model and this client fills up, and waits.
        let first = proxy::read_until(response.body_mut(), "word 0").await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let rest = http_body_util::BodyExt::collect(response).await.expect("the rest").to_bytes();
        let text = first + std::str::from_utf8(&rest).expect("text");
        match support::fold::stream(&text) {
            Ok(Folded::Reply(reply)) => assert!(reply.text == said, "{name}: {} bytes", reply.text.len()),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A question that follows a reply is sent in time, however little of that reply its client has taken by then.
#[tokio::test]
async fn a_client_that_is_behind_makes_no_upstream_late() {
    let lab = Lab::start().await;
    let more = json!({ "tools": { "t": tool(&lab, "echo", "t") }, "server": { "write_buffer": "64KiB" } });
    let mut config = with(proxy::config(&lab), more);
    config["upstreams"]["main"]["head_timeout"] = "2s".into();
    let proxy = Proxy::start(&config).await;
    let event = |delta: Value, finish: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
        format!("data: {}\n\n", json!({ "id": "c", "choices": [choice] }))
    };
    let call = json!([{ "index": 0, "id": "call_0", "function": { "name": "t", "arguments": "{}" } }]);
    let calls =
        [event(json!({ "tool_calls": call }), "tool_calls".into()), "data: [DONE]\n\n".to_owned()].concat();
    let text = event(json!({ "content": "word ".repeat(100) }), Value::Null);
    let mut responses = Vec::new();
    // Some of them fill whatever lies between the model and a client to its brim, and no more.
    for texts in (80..800).step_by(8) {
        let name = format!("{texts} texts");
        let first = json!({ "steps": [{ "send": text.repeat(texts) + &calls }] });
        lab.script(&name, json!({ "rounds": [first, { "reply": { "text": "done" } }] }));
        responses.push((name.clone(), proxy.open(&[], streamed(&name).to_string()).await));
    }
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    for (name, response) in responses {
        let body = within(http_body_util::BodyExt::collect(response)).await.expect("the rest").to_bytes();
        match support::fold::stream(std::str::from_utf8(&body).expect("text")) {
            Ok(Folded::Reply(reply)) => assert!(reply.text.ends_with("done"), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(requests(&lab.journal(), &name).len(), 2, "{name}");
    }
    assert_eq!(proxy.metric("fanfold_upstream_retries_total"), None, "an upstream was late");
}

// ---- side by side

#[tokio::test]
async fn eight_calls_run_side_by_side_and_come_back_in_call_order() {
    let lab = Lab::start().await;
    for mode in ["stream", "whole"] {
        let upstream = json!({ "main": { "base_url": lab.base_url(), "mode": mode } });
        let tools = json!({ "nap": tool(&lab, "sleep?ms=300", "nap") });
        let proxy = Proxy::before(&lab, json!({ "tools": tools, "upstreams": upstream })).await;
        eight_at_once(&lab, &proxy).await;
    }
}

async fn eight_at_once(lab: &Lab, proxy: &Proxy) {
    lab.clear();
    lab.script("eight", then_done(&calls("nap", 8)));
    let reply = proxy.reply(&chat("eight")).await;
    assert_eq!((reply.text.as_str(), reply.finish.as_str()), ("done", "stop"));
    let seen = lab.journal();
    assert_eq!((seen.tools["nap"].started, seen.tools["nap"].most_at_once), (8, 8));
    let order = starts_and_ends(&seen);
    assert!(order[..8].iter().all(|start| *start), "all begin before the first one ends: {order:?}");
    let results = results(requests(&seen, "eight")[1]);
    let ids: Vec<&str> = results.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["call_0", "call_1", "call_2", "call_3", "call_4", "call_5", "call_6", "call_7"]);
    for (i, (_, content)) in results.iter().enumerate() {
        assert!(content.contains(&format!("\"n\":{i}")), "{content}");
    }
    assert!(requests(&seen, "eight").iter().all(|request| request.refused.is_none()));
}

#[tokio::test]
async fn with_two_slots_never_more_than_two_run_and_the_rest_wait_in_order() {
    let lab = Lab::start().await;
    let tools = json!({ "nap": tool(&lab, "sleep?ms=60", "nap") });
    let proxy = Proxy::before(&lab, json!({ "tools": tools, "limits": { "calls_at_once": 2 } })).await;
    lab.script("eight", then_done(&calls("nap", 8)));
    assert_eq!(proxy.reply(&chat("eight")).await.text, "done");
    let seen = lab.journal();
    assert_eq!((seen.tools["nap"].started, seen.tools["nap"].most_at_once), (8, 2));
    let (mut started, mut ended) = (0, 0);
    for start in starts_and_ends(&seen) {
        if start {
            assert!(ended + 1 >= started, "call {started} begins when {ended} have ended");
            started += 1;
        } else {
            ended += 1;
        }
    }
    let mut order: Vec<i64> = arguments(&seen, "nap").iter().filter_map(|body| body["n"].as_i64()).collect();
    for pair in order.chunks_mut(2) {
        pair.sort_unstable();
    }
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_its_own_timeout_and_the_other_seven_are_kept() {
    let lab = Lab::start().await;
    let hang = with(tool(&lab, "hang", "hang"), json!({ "timeout": "300ms" }));
    let proxy = with_tools(&lab, json!({ "hang": hang, "fast": tool(&lab, "echo", "fast") })).await;
    let mut eight = calls("fast", 8);
    eight[3]["name"] = json!("hang");
    lab.script("eight", then_done(&eight));
    assert_eq!(proxy.reply(&chat("eight")).await.text, "done");
    let seen = lab.wait_until(|seen| seen.tools["hang"].running == 0).await;
    let results = results(requests(&seen, "eight")[1]);
    for (i, (id, content)) in results.iter().enumerate() {
        assert_eq!(*id, format!("call_{i}"));
        if i == 3 {
            assert_eq!(content, "error: timed out after 300ms");
        } else {
            assert!(content.contains(&format!("\"n\":{i}")), "{content}");
        }
    }
    let hung = seen.requests().find(|(_, request)| request.tool.as_deref() == Some("hang")).expect("a call");
    assert_eq!(seen.how(hung.0.n), Some(How::PeerLeft), "the call is stopped");
    assert_eq!(proxy.metric("fanfold_limit_hits_total{limit=\"call_timeout\"}"), Some(1.0));
    let timed_out = "gen_ai_execute_tool_duration_seconds_count{tool=\"hang\",outcome=\"timeout\"}";
    assert_eq!(proxy.metric(timed_out), Some(1.0));
}

#[tokio::test]
async fn a_call_whose_arguments_are_no_json_is_not_run_and_is_counted() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    let call = |name: &str, arguments: &str| json!({ "name": name, "arguments": arguments });
    lab.script(
        "bad",
        then_done(&json!([call("f", "{\"n\":"), call("f", "{\"n\":\"x\"}"), call("g", "{}"), call("f", "")])),
    );
    assert_eq!(proxy.reply(&chat("bad")).await.text, "done");
    let seen = lab.journal();
    assert_eq!(seen.tools["f"].started, 1);
    let results = results(requests(&seen, "bad")[1]);
    for ((_, content), wanted) in
        results.iter().zip(["not valid JSON", "/n", "there is no tool `g`", "\"tool\":\"f\""])
    {
        assert!(content.contains(wanted), "{content}: {wanted}");
    }
    let invalid = "gen_ai_execute_tool_duration_seconds_count{tool=\"f\",outcome=\"invalid_arguments\"}";
    assert_eq!(proxy.metric(invalid), Some(2.0));
}

/// A stream whose calls are complete one after another, and that stalls before its last event.
fn stalling(names: &[&str]) -> Value {
    let chunk = |delta: Value, finish: Value| {
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] })
    };
    let mut events = vec![chunk(json!({ "role": "assistant" }), Value::Null)];
    for (i, name) in names.iter().enumerate() {
        let call = json!({ "index": i, "id": format!("call_{i}"), "type": "function",
            "function": { "name": name, "arguments": format!("{{\"n\":{i}}}") } });
        events.push(chunk(json!({ "tool_calls": [call] }), Value::Null));
    }
    let end = json!([chunk(json!({}), json!("tool_calls")), "[DONE]"]);
    let steps = json!([{ "events": events }, "stall", { "events": end }]);
    json!({ "rounds": [{ "steps": steps }, { "reply": { "text": "done" } }] })
}

#[tokio::test]
async fn a_call_that_only_reads_starts_while_the_model_still_writes_and_one_with_effects_does_not() {
    let lab = Lab::start().await;
    let write = with(tool(&lab, "echo", "write"), json!({ "effect": "write" }));
    let idempotent = with(tool(&lab, "echo", "again"), json!({ "effect": "idempotent" }));
    let tools = json!({ "read": tool(&lab, "echo", "read"), "write": write, "again": idempotent });
    let proxy = with_tools(&lab, tools).await;
    for (script, request) in [("s", streamed("s")), ("w", chat("w"))] {
        lab.clear();
        lab.script(script, stalling(&["write", "again", "read", "read"]));
        let answer = proxy.chat(&request);
        let early = async {
            let seen =
                lab.wait_until(|seen| seen.tools.get("read").is_some_and(|runs| runs.complete == 1)).await;
            assert!(
                !seen.tools.contains_key("write") && !seen.tools.contains_key("again"),
                "{:?}",
                seen.tools
            );
            lab.release(script);
        };
        let (got, ()) = within(async { tokio::join!(answer, early) }).await;
        assert_eq!(proxy::reply(&got).text, "done");
        let seen = lab.journal();
        let runs = |tool: &str| seen.tools[tool].started;
        assert_eq!((runs("read"), runs("write"), runs("again")), (2, 1, 1));
        let finished = seen.how(seen.of_script(script).next().expect("a round").0.n);
        assert_eq!(finished, Some(How::Complete));
        let ids: Vec<String> = results(requests(&seen, script)[1]).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["call_0", "call_1", "call_2", "call_3"]);
    }
}

#[tokio::test]
async fn calls_that_are_all_opened_before_any_has_arguments_run_once_with_theirs() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "read": tool(&lab, "echo", "read") })).await;
    let part = |calls: Value| {
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{ "index": 0, "delta": { "tool_calls": calls }, "finish_reason": null }] })
    };
    let open = |i: usize| {
        json!([{ "index": i, "id": format!("call_{i}"), "type": "function",
            "function": { "name": "read", "arguments": "" } }])
    };
    let more = |i: usize, text: &str| json!([{ "index": i, "function": { "arguments": text } }]);
    let events = json!([
        part(open(0)),
        part(open(1)),
        part(open(2)),
        part(more(0, "{\"n\"")),
        part(more(1, "{\"n\"")),
        part(more(2, "{\"n\"")),
        part(more(0, ":0}")),
        part(more(1, ":1}")),
        part(more(2, ":2}")),
        "[DONE]"
    ]);
    lab.script(
        "s",
        json!({ "rounds": [{ "steps": [{ "events": events }] }, { "reply": { "text": "done" } }] }),
    );
    assert_eq!(proxy.reply(&chat("s")).await.text, "done");
    let mut ran = arguments(&lab.journal(), "read");
    ran.sort_by_key(|body| body["n"].as_i64());
    assert_eq!(ran, [json!({ "n": 0 }), json!({ "n": 1 }), json!({ "n": 2 })]);
}

#[tokio::test]
async fn calls_of_a_reply_that_fails_in_the_same_breath_are_never_begun() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "read": tool(&lab, "count", "read") })).await;
    let call = |i: usize| {
        json!({ "index": i, "id": format!("call_{i}"), "type": "function",
            "function": { "name": "read", "arguments": format!("{{\"n\":{i}}}") } })
    };
    let piece = |i| json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [call(i)] } }] });
    let error = json!({ "error": { "message": "broken", "type": "server_error", "code": 500 } });
    let fails: String =
        (0..7).map(piece).chain([error]).map(|event: Value| format!("data: {event}\n\n")).collect();
    let rounds = json!([{ "steps": [{ "send": fails }] }]);
    for (script, request) in [("s", streamed("s")), ("w", chat("w"))] {
        lab.script(script, json!({ "rounds": rounds }));
        let got = proxy.chat(&request).await;
        assert!(got.body.contains("upstream_error") && got.body.contains("broken"), "{}", got.body);
    }
    assert!(lab.journal().tools.is_empty());
}

#[tokio::test]
async fn the_same_reading_call_twice_runs_once_and_answers_both() {
    let lab = Lab::start().await;
    let write = with(tool(&lab, "count", "write"), json!({ "effect": "write" }));
    let proxy = with_tools(&lab, json!({ "read": tool(&lab, "count", "read"), "write": write })).await;
    let call =
        |name: &str, id: &str, arguments: &str| json!({ "name": name, "id": id, "arguments": arguments });
    lab.script(
        "twice",
        then_done(&json!([
            call("read", "a", r#"{"city":"x","n":1}"#),
            call("read", "b", r#"{ "n": 1, "city": "\u0078" }"#),
            call("read", "c", r#"{"city":"x","n":2}"#),
            call("write", "d", r#"{"n":1}"#),
            call("write", "e", r#"{"n":1}"#),
        ])),
    );
    for request in [chat("twice"), streamed("twice")] {
        lab.clear();
        assert_eq!(proxy.reply(&request).await.text, "done");
        let seen = lab.journal();
        assert_eq!((seen.tools["read"].started, seen.tools["write"].started), (2, 2));
        let results = results(requests(&seen, "twice")[1]);
        let ids: String = results.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!((ids.as_str(), &results[0].1), ("abcde", &results[1].1));
        assert_ne!(results[0].1, results[2].1);
    }
}

// ---- limits

/// A model that always calls, whatever it is told.
fn endless(calls: &Value) -> Value {
    json!({ "rounds": [{ "reply": { "calls": calls } }], "repeat": true })
}

const NOTE: &str = "[No more tools will be run: ";

#[tokio::test]
async fn rounds_end_with_one_last_question_and_never_with_an_empty_answer() {
    let lab = Lab::start().await;
    let limits = json!({ "rounds": 2 });
    for (honours, name) in [(true, "honours"), (false, "ignores")] {
        let upstream = json!({ "base_url": lab.base_url(), "honours_tool_choice": honours });
        let tools = json!({ "f": tool(&lab, "echo", "f") });
        let more = json!({ "tools": tools, "limits": limits, "upstreams": { "main": upstream } });
        let proxy = Proxy::before(&lab, more).await;
        lab.script(name, endless(&json!([{ "name": "f", "arguments": {} }])));
        for request in [chat(name), streamed(name)] {
            lab.clear();
            let reply = proxy.reply(&request).await;
            assert_eq!(reply.finish, "length");
            assert!(reply.text.contains("the limit of 2 rounds of tool calls is reached"), "{}", reply.text);
            assert!(reply.calls.is_empty());
            let seen = lab.journal();
            let asked = requests(&seen, name);
            assert_eq!((asked.len(), seen.tools["f"].started), (3, 2));
            let last = asked[2];
            assert_eq!(last.body.get("tools").is_some(), honours, "{}", last.text);
            assert_eq!(last.body.get("tool_choice"), honours.then_some(&json!("none")));
            assert!(asked[1].text.contains("tool_choice") || !asked[1].text.contains(NOTE));
            let results = results(last);
            assert!(results[1].1.contains(NOTE) && !results[0].1.contains(NOTE), "{results:?}");
        }
        assert_eq!(proxy.metric("fanfold_limit_hits_total{limit=\"rounds\"}"), Some(2.0));
        let call = json!({ "reply": { "calls": [{ "name": "f", "arguments": {} }] } });
        lab.script(name, json!({ "rounds": [call, call, { "reply": { "text": "so be it" } }] }));
        let reply = proxy.reply(&chat(name)).await;
        assert_eq!((reply.text.as_str(), reply.finish.as_str()), ("so be it", "stop"));
        lab.script(name, json!({ "rounds": [call, call, { "reply": { "text": "" } }] }));
        let reply = proxy.reply(&chat(name)).await;
        assert_eq!(reply.finish, "length");
        assert!(reply.text.contains("limit of 2 rounds"), "an empty last answer says why: {reply:?}");
    }
}

#[tokio::test]
async fn calls_over_the_limit_of_a_turn_are_not_run_and_the_model_is_told() {
    let lab = Lab::start().await;
    let tools = json!({ "f": tool(&lab, "echo", "f") });
    let proxy = Proxy::before(&lab, json!({ "tools": tools, "limits": { "calls_per_turn": 3 } })).await;
    lab.script("five", then_done(&calls("f", 5)));
    assert_eq!(proxy.reply(&chat("five")).await.text, "done");
    let seen = lab.journal();
    assert_eq!(seen.tools["f"].started, 3);
    let last = requests(&seen, "five")[1];
    assert_eq!(last.body["tool_choice"], "none");
    let results = results(last);
    assert_eq!(results.len(), 5);
    assert!(results[3].1.starts_with("error: not run: the limit of 3 tool calls"), "{results:?}");
    assert!(results[4].1.contains(NOTE), "{results:?}");
    assert_eq!(proxy.metric("fanfold_limit_hits_total{limit=\"calls_per_turn\"}"), Some(1.0));
}

#[tokio::test]
async fn the_same_call_with_the_same_error_again_and_again_ends_the_rounds() {
    let lab = Lab::start().await;
    let fails = tool(&lab, "fail?status=404", "f");
    let proxy =
        Proxy::before(&lab, json!({ "tools": { "f": fails }, "limits": { "identical_errors": 3 } })).await;
    lab.script("stubborn", endless(&json!([{ "name": "f", "arguments": { "city": "x" } }])));
    let reply = proxy.reply(&chat("stubborn")).await;
    assert_eq!(reply.finish, "length");
    assert!(reply.text.contains("the same call failed 3 times"), "{}", reply.text);
    let seen = lab.journal();
    assert_eq!((requests(&seen, "stubborn").len(), seen.tools["f"].started), (4, 3));
    assert_eq!(proxy.metric("fanfold_limit_hits_total{limit=\"identical_errors\"}"), Some(1.0));
}

#[tokio::test]
async fn a_tool_a_team_and_the_process_have_slots_that_turns_share() {
    let lab = Lab::start().await;
    let nap = |label: &str| tool(&lab, "sleep?ms=40", label);
    let one = with(nap("one"), json!({ "at_once": 1 }));
    let key = |name: &str| json!({ "keys": [proxy::key(name)] });
    let small = json!({ "keys": [proxy::key("small")], "limits": { "calls_at_once_per_team": 2 } });
    let more = json!({
        "tools": { "one": one, "many": nap("many") },
        "teams": { "red": key("red"), "blue": key("blue"), "small": small },
        "limits": { "calls_at_once_in_process": 6 },
    });
    let proxy = Proxy::before(&lab, more).await;
    for tool in ["one", "many"] {
        lab.script(tool, then_done(&calls(tool, 4)));
    }
    for (teams, tool, most) in
        [(["red", "blue"], "one", 1), (["small", "small"], "many", 2), (["red", "blue"], "many", 6)]
    {
        lab.clear();
        let keys = teams.map(|team| format!("Bearer {team}"));
        let ask = |key: &'_ str| {
            let header = key.to_owned();
            let proxy = &proxy;
            async move { proxy.chat_with(&[("authorization", &header)], &chat(tool)).await }
        };
        let (a, b) = within(async { tokio::join!(ask(&keys[0]), ask(&keys[1])) }).await;
        assert_eq!((proxy::reply(&a).text, proxy::reply(&b).text), ("done".into(), "done".into()));
        let seen = lab.journal();
        assert_eq!((seen.tools[tool].started, seen.tools[tool].most_at_once), (8, most), "{teams:?} {tool}");
    }
    let waited = "fanfold_tool_wait_seconds_count{tool=\"many\"}";
    assert_eq!(proxy.metric(waited), Some(16.0));
}

#[tokio::test]
async fn a_call_that_gets_no_slot_in_its_time_is_not_run() {
    let lab = Lab::start().await;
    let slow = with(tool(&lab, "sleep?ms=700", "slow"), json!({ "at_once": 1, "timeout": "1s" }));
    let proxy = with_tools(&lab, json!({ "slow": slow })).await;
    lab.script("three", then_done(&calls("slow", 3)));
    assert_eq!(proxy.reply(&chat("three")).await.text, "done");
    assert_eq!(
        proxy.metric("fanfold_tool_wait_seconds_count{tool=\"slow\"}"),
        Some(3.0),
        "waiting is measured"
    );
    let seen = lab.journal();
    let results = results(requests(&seen, "three")[1]);
    let last = &results[2].1;
    assert_eq!(last, "error: timed out after 1s waiting for a free slot; nothing was run");
    assert!(seen.tools["slow"].started <= 2, "{:?}", seen.tools);
}

#[tokio::test]
async fn a_turn_over_its_time_is_a_504_and_after_effects_a_424_that_invites_no_repetition() {
    let lab = Lab::start().await;
    let write = with(tool(&lab, "echo", "write"), json!({ "effect": "write" }));
    let tools = json!({ "write": write, "hang": tool(&lab, "hang", "hang") });
    let proxy = Proxy::before(&lab, json!({ "tools": tools, "limits": { "turn_timeout": "500ms" } })).await;
    lab.script("stalls", json!({ "rounds": [{ "steps": ["stall"] }] }));
    let call = |name: &str| json!({ "reply": { "calls": [{ "name": name, "arguments": {} }] } });
    lab.script("hangs", json!({ "rounds": [call("hang")] }));
    lab.script("wrote", json!({ "rounds": [call("write"), { "steps": ["stall"] }] }));
    for (script, status, wanted) in [
        ("stalls", 504, "turn_timeout"),
        ("hangs", 504, "turn_timeout"),
        ("wrote", 424, "turn_failed_after_tools"),
    ] {
        for request in [chat(script), streamed(script)] {
            lab.clear();
            let got = proxy.chat(&request).await;
            assert_eq!(proxy::code(&got), wanted, "{}", got.body);
            let begun = request["stream"] == true && script != "stalls";
            assert_eq!(got.status, if begun { 200 } else { status }, "{script}: {}", got.body);
            if status == 424 {
                assert!(got.body.contains("write"), "the calls that ran are named: {}", got.body);
                assert!(begun || got.header("x-should-retry") == "false");
            }
            lab.wait_until(|seen| {
                seen.all_tools.running == 0 && !seen.requests().any(|(e, _)| seen.how(e.n).is_none())
            })
            .await;
        }
    }
    assert_eq!(proxy.metric("fanfold_limit_hits_total{limit=\"turn_timeout\"}"), Some(6.0));
    assert_eq!(proxy.metric("fanfold_turns_in_flight"), Some(0.0));
}

#[tokio::test]
async fn a_model_that_never_pauses_outlasts_neither_the_time_of_a_turn_nor_its_client() {
    let lab = Lab::start().await;
    let chunk = json!({ "id": "c", "choices": [{ "index": 0, "delta": { "content": "a" } }] });
    let flood = format!("data: {chunk}\n\n");
    lab.script("floods", json!({ "rounds": [{ "steps": [{ "flood": flood }] }], "repeat": true }));
    let tools = json!({ "t": tool(&lab, "echo", "t") });
    let limits = json!({ "turn_timeout": "500ms", "reply": "64GiB" });
    let short = Proxy::before(&lab, json!({ "tools": tools, "limits": limits })).await;
    let got = short.chat(&chat("floods")).await;
    assert_eq!((got.status.as_u16(), proxy::code(&got).as_str()), (504, "turn_timeout"), "{}", got.body);
    let long = Proxy::before(&lab, json!({ "tools": tools, "limits": { "reply": "64GiB" } })).await;
    for request in [chat("floods"), streamed("floods")] {
        lab.clear();
        let mut asking = Box::pin(long.open(&[], request.to_string()));
        if request["stream"] == true {
            let mut response = asking.await;
            proxy::read_until(response.body_mut(), "\"a\"").await;
        } else {
            // Nothing tells from outside that the flood is being heard, so it is given time.
            let heard = tokio::time::sleep(std::time::Duration::from_millis(300));
            tokio::select! {
                got = &mut asking => panic!("{:?}", got.status()),
                () = heard => {}
            }
            drop(asking);
        }
        within(lab.wait_until(|seen| seen.requests().all(|(entry, _)| seen.how(entry.n).is_some()))).await;
    }
    assert_eq!(long.metric("fanfold_turns_in_flight"), Some(0.0));
}

#[tokio::test]
async fn a_result_over_its_limit_is_cut_with_a_marker_that_tells_its_size() {
    let lab = Lab::start().await;
    let small = with(tool(&lab, "bytes?n=5000", "small"), json!({ "result": "512B" }));
    let tools = json!({ "big": tool(&lab, "bytes?n=5000", "big"), "small": small });
    let key = |limits: Value| json!({ "keys": [proxy::key("k")], "limits": limits });
    for (teams, most) in
        [(json!({}), [2048, 512]), (json!({ "t": key(json!({ "tool_result": "256B" })) }), [256, 256])]
    {
        let more = json!({ "tools": tools, "limits": { "tool_result": "2KiB" }, "teams": teams });
        let proxy = Proxy::before(&lab, more).await;
        lab.clear();
        let call = |name: &str| json!({ "name": name, "arguments": {} });
        lab.script("cut", then_done(&json!([call("big"), call("small")])));
        let got = proxy.chat_with(&[("authorization", "Bearer k")], &chat("cut")).await;
        assert_eq!(proxy::reply(&got).text, "done");
        let seen = lab.journal();
        for ((_, content), most) in results(requests(&seen, "cut")[1]).iter().zip(most) {
            let kept = content.bytes().filter(|b| *b == b'x').count();
            assert!(kept <= most && kept > most / 2, "{kept} of {most}: {}", &content[content.len() - 100..]);
            assert!(content.contains("5000"), "{content}");
        }
    }
}

#[tokio::test]
async fn a_body_a_reply_and_an_event_over_their_limits_are_refused() {
    let lab = Lab::start().await;
    let limits = json!({ "body": "32KiB", "reply": "64KiB", "event": "16KiB" });
    let more = json!({ "tools": { "f": tool(&lab, "echo", "f") }, "limits": limits });
    let proxy = Proxy::before(&lab, more).await;
    let mut large = chat("x");
    large["messages"][0]["content"] = json!("x".repeat(40_000));
    let got = proxy.chat(&large).await;
    assert_eq!((got.status.as_u16(), proxy::code(&got).as_str()), (413, "request_too_large"));
    let text = |n: usize| {
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{ "index": 0, "delta": { "content": "x".repeat(n) }, "finish_reason": null }] })
    };
    lab.script("event", json!({ "rounds": [{ "steps": [{ "events": [text(20_000)] }] }] }));
    lab.script("reply", json!({ "rounds": [{ "steps": [{ "events": vec![text(10_000); 8] }] }] }));
    lab.script("whole", json!({ "rounds": [{ "steps": [{ "json": { "x": "x".repeat(70_000) } }] }] }));
    for script in ["event", "reply", "whole"] {
        let got = proxy.chat(&chat(script)).await;
        assert_eq!(
            (got.status.as_u16(), proxy::code(&got).as_str()),
            (502, "upstream_reply_too_large"),
            "{script}"
        );
        assert_eq!(lab.journal().of_script(script).count(), 1, "{script} is not asked again");
        let got = proxy.chat(&streamed(script)).await;
        assert_eq!(proxy::code(&got), "upstream_reply_too_large");
    }
}

#[tokio::test]
async fn more_calls_in_one_reply_than_any_model_needs_are_refused() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    lab.script("many", then_done(&calls("f", 300)));
    let got = proxy.chat(&chat("many")).await;
    assert_eq!((got.status.as_u16(), proxy::code(&got).as_str()), (502, "upstream_reply_too_large"));
    assert_eq!(proxy.metric("fanfold_limit_hits_total{limit=\"calls_in_reply\"}"), Some(1.0));
}

#[tokio::test]
async fn more_tools_than_a_request_may_have_are_refused_with_the_way_to_narrow_them() {
    let lab = Lab::start().await;
    let tools = json!({ "a": tool(&lab, "echo", "a"), "b": tool(&lab, "echo", "b") });
    let more = json!({ "tools": tools, "limits": { "tools_per_request": 2 } });
    let proxy = Proxy::before(&lab, more).await;
    lab.script("s", json!({ "rounds": [{ "reply": { "text": "hi" } }] }));
    let request = with(chat("s"), json!({ "tools": [declared("mine")] }));
    let got = proxy.chat(&request).await;
    assert_eq!((got.status.as_u16(), proxy::code(&got).as_str()), (400, "too_many_tools"));
    assert!(got.body.contains("x-fanfold-tools"), "{}", got.body);
    assert_eq!(lab.journal().requests().count(), 0);
    assert_eq!(proxy::reply(&proxy.chat_with(&[("x-fanfold-tools", "a")], &request).await).text, "hi");
}

#[tokio::test]
async fn a_team_and_a_route_lower_the_limits_of_a_turn_and_never_raise_them() {
    let lab = Lab::start().await;
    let team = |limits: Value| json!({ "keys": [proxy::key("k")], "limits": limits });
    let route = |limits: Value| json!([{ "model": "*", "upstreams": ["main"], "limits": limits }]);
    for (teams, routes, rounds) in [
        (team(json!({ "rounds": 2 })), route(json!({})), 2),
        (team(json!({ "rounds": 2 })), route(json!({ "rounds": 1 })), 1),
        (team(json!({ "rounds": 3 })), route(json!({ "rounds": 3 })), 3),
    ] {
        let tools = json!({ "f": tool(&lab, "echo", "f") });
        let more =
            json!({ "tools": tools, "limits": { "rounds": 3 }, "teams": { "t": teams }, "routes": routes });
        let proxy = Proxy::before(&lab, more).await;
        lab.clear();
        lab.script("endless", endless(&json!([{ "name": "f", "arguments": {} }])));
        let got = proxy.chat_with(&[("authorization", "Bearer k")], &chat("endless")).await;
        assert_eq!(proxy::reply(&got).finish, "length");
        assert_eq!(lab.journal().tools["f"].started, rounds);
    }
}

// ---- usage

/// A round with this usage, streamed and whole.
fn round_using(usage: &str, calls: bool) -> Value {
    let head = r#""id":"c","created":1,"model":"m""#;
    let call = r#""tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"f","arguments":"{}"}}]"#;
    let (delta, finish) = if calls { (call, "tool_calls") } else { (r#""content":"done""#, "stop") };
    let chunk = format!(
        r#"{{"object":"chat.completion.chunk",{head},"choices":[{{"index":0,"delta":{{{delta}}},"finish_reason":"{finish}"}}]}}"#
    );
    let content = if calls { r#""content":null,"# } else { "" };
    let whole = |usage: &str| {
        format!(
            r#"{{"object":"chat.completion",{head},"choices":[{{"index":0,"message":{{"role":"assistant",{content}{delta}}},"finish_reason":"{finish}"}}]{usage}}}"#
        )
    };
    if usage.is_empty() {
        return json!({ "stream": [{ "events": [chunk, "[DONE]"] }], "whole": [{ "answer": { "body": whole("") } }] });
    }
    let last = format!(r#"{{"object":"chat.completion.chunk",{head},"choices":[],"usage":{usage}}}"#);
    json!({ "stream": [{ "events": [chunk, last, "[DONE]"] }],
        "whole": [{ "answer": { "body": whole(&format!(",\"usage\":{usage}")) } }] })
}

#[tokio::test]
async fn usage_is_summed_over_the_rounds_member_by_member_and_marked_when_partial() {
    let lab = Lab::start().await;
    let one = r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4,"audio":null},"cost":0.5,"vendor":{"deep":{"units":1}}}"#;
    let two = r#"{"prompt_tokens":20,"completion_tokens":7,"total_tokens":27,"prompt_tokens_details":{"cached_tokens":6},"cost":0.25,"vendor":{"deep":{"units":2,"more":1}}}"#;
    let sum = json!({ "prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42,
        "prompt_tokens_details": { "cached_tokens": 10, "audio": null }, "cost": 0.75,
        "vendor": { "deep": { "units": 3, "more": 1 } } });
    lab.script("all", json!({ "rounds": [round_using(one, true), round_using(two, false)] }));
    lab.script("part", json!({ "rounds": [round_using("", true), round_using(two, false)] }));
    lab.script("none", json!({ "rounds": [round_using("", true), round_using("", false)] }));
    for mode in ["stream", "whole"] {
        let upstream = json!({ "base_url": lab.base_url(), "mode": mode });
        let tools = json!({ "f": tool(&lab, "echo", "f") });
        let proxy = Proxy::before(&lab, json!({ "tools": tools, "upstreams": { "main": upstream } })).await;
        assert_eq!(proxy.chat(&chat("all")).await.json()["usage"], sum);
        let usage_of = async |script: &str| {
            let got = proxy.chat(&streamed(script)).await;
            proxy::reply(&got);
            proxy::chunks(&got).pop().expect("a chunk")
        };
        let last = usage_of("all").await;
        assert_eq!((&last["usage"], &last["choices"]), (&sum, &json!([])));
        assert!(last["fanfold"].get("usage_partial").is_none(), "{last}");
        let last = usage_of("part").await;
        assert_eq!(
            (&last["usage"]["prompt_tokens"], &last["fanfold"]["usage_partial"]),
            (&json!(20), &json!(true))
        );
        let last = usage_of("none").await;
        assert_eq!((&last["usage"], &last["fanfold"]["usage_partial"]), (&Value::Null, &json!(true)));
        assert_eq!(
            proxy.metric(
                "gen_ai_client_token_usage_total{team=\"default\",model=\"other\",token_type=\"input\"}"
            ),
            Some(80.0)
        );
    }
}

#[tokio::test]
async fn a_usage_chunk_comes_only_if_it_was_asked_for_but_is_always_asked_for() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    lab.script("s", then_done(&calls("f", 1)));
    for (options, wanted) in [
        (json!({ "stream": true }), false),
        (json!({ "stream": true, "stream_options": { "include_usage": false } }), false),
        (json!({ "stream": true, "stream_options": null }), false),
        (json!({ "stream": true, "stream_options": { "include_usage": true } }), true),
    ] {
        lab.clear();
        let got = proxy.chat(&with(chat("s"), options.clone())).await;
        assert_eq!(proxy::reply(&got).usage.is_some(), wanted, "{options}");
        let empty = proxy::chunks(&got).iter().filter(|chunk| chunk["choices"] == json!([])).count();
        assert_eq!(empty, usize::from(wanted), "{}", got.body);
        let seen = lab.journal();
        assert!(requests(&seen, "s").iter().all(|r| r.body["stream_options"]["include_usage"] == true));
    }
}

// ---- what the client asks for

#[tokio::test]
async fn tool_choice_is_honoured_once_and_limits_what_is_run() {
    let lab = Lab::start().await;
    let tools = json!({ "a": tool(&lab, "echo", "a"), "b": tool(&lab, "echo", "b") });
    let proxy = with_tools(&lab, tools).await;
    lab.script("ab", then_done(&json!([{ "name": "a", "arguments": {} }, { "name": "b", "arguments": {} }])));
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let allowed = |mode: &str| json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": [named("b")] } });
    for (choice, second, ran_a) in [
        (json!("required"), None, true),
        (json!("auto"), Some(json!("auto")), true),
        (named("a"), None, true),
        (allowed("required"), Some(allowed("auto")), false),
        (allowed("auto"), Some(allowed("auto")), false),
    ] {
        lab.clear();
        let request = with(chat("ab"), json!({ "tool_choice": choice }));
        assert_eq!(proxy.reply(&request).await.text, "done");
        let seen = lab.journal();
        let asked = requests(&seen, "ab");
        assert_eq!(
            (&asked[0].body["tool_choice"], asked[1].body.get("tool_choice")),
            (&choice, second.as_ref())
        );
        assert_eq!(seen.tools.contains_key("a"), ran_a, "{choice}");
        assert_eq!(seen.tools["b"].started, 1);
        if !ran_a {
            assert!(
                results(asked[1])[0].1.starts_with("error: there is no tool `a`"),
                "{:?}",
                results(asked[1])
            );
        }
    }
    // `none`, and the forced choice of a tool of the client's, are no turn at all.
    for choice in [json!("none"), named("mine")] {
        lab.clear();
        let own = json!({ "tool_choice": choice, "tools": [declared("mine")] });
        let got = proxy.chat(&with(chat("ab"), own)).await;
        assert_eq!(proxy::reply(&got).calls.len(), 2, "{}", got.body);
        let seen = lab.journal();
        assert!(seen.tools.is_empty());
        let asked = requests(&seen, "ab");
        assert_eq!((asked.len(), asked[0].body["tools"].as_array().map(Vec::len)), (1, Some(1)));
    }
    lab.script("calm", json!({ "rounds": [{ "reply": { "text": "hi" } }] }));
    assert_eq!(proxy.reply(&with(chat("calm"), json!({ "tool_choice": "none" }))).await.text, "hi");
}

#[tokio::test]
async fn several_choices_do_not_go_with_tools_that_we_run() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    lab.script("s", json!({ "rounds": [{ "reply": { "text": "hi" } }], "repeat": true }));
    let two = with(chat("s"), json!({ "n": 2 }));
    let got = proxy.chat(&two).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("n")), "{}", got.body);
    assert_eq!(lab.journal().requests().count(), 0);
    let got = proxy.chat_with(&[("x-fanfold-tools", "none")], &two).await;
    assert_eq!(proxy::reply(&got).text, "hi");
    assert_eq!(requests(&lab.journal(), "s")[0].body["n"], 2);
}

#[tokio::test]
async fn a_transcript_comes_by_header_or_member_and_tells_rounds_calls_and_decision() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    lab.script("s", then_done(&calls("f", 2)));
    let header = [("x-fanfold-include", "transcript")];
    let member = json!({ "fanfold": { "include": ["transcript"] } });
    let by_header = proxy.chat_with(&header, &chat("s")).await;
    let by_member = proxy.chat(&with(chat("s"), member.clone())).await;
    let streamed_too = proxy.chat(&with(with(chat("s"), member), json!({ "stream": true }))).await;
    proxy::reply(&streamed_too);
    let last = proxy::chunks(&streamed_too).pop().expect("a chunk");
    assert_eq!((&last["choices"], last.get("usage")), (&json!([]), None));
    for own in [&by_header.json()["fanfold"], &by_member.json()["fanfold"], &last["fanfold"]] {
        assert_eq!((&own["rounds"], &own["tool_calls"]), (&json!(2), &json!(2)), "{own}");
        assert_eq!(own["parallel"], "on; reason=default");
        let transcript = &own["transcript"];
        assert_eq!(transcript["rounds"].as_array().map(Vec::len), Some(2));
        assert_eq!(transcript["rounds"][0]["usage"]["prompt_tokens"], 10);
        for (i, call) in transcript["calls"].as_array().expect("calls").iter().enumerate() {
            assert_eq!((&call["id"], &call["tool"]), (&json!(format!("call_{i}")), &json!("f")));
            assert_eq!(
                (&call["arguments"], &call["outcome"]),
                (&json!(format!("{{\"n\":{i}}}")), &json!("ok"))
            );
            assert!(
                call["result"].as_str().is_some_and(|result| result.contains("\"tool\":\"f\"")),
                "{call}"
            );
            assert!(call["started_ms"].is_number() && call["ended_ms"].is_number());
        }
    }
    let seen = lab.journal();
    for request in requests(&seen, "s") {
        assert!(!request.text.contains("fanfold") && !request.headers.keys().any(|h| h.contains("fanfold")));
    }
    assert!(proxy.chat(&chat("s")).await.json().get("fanfold").is_none());
    assert_eq!(by_header.header("x-fanfold-rounds"), "2");
    assert_eq!(by_header.header("x-fanfold-tool-calls"), "2");
    assert!(by_header.header("server-timing").contains("round2;dur="));
}

#[tokio::test]
async fn a_dry_run_shows_the_very_body_and_sends_nothing() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    lab.script("s", json!({ "rounds": [{ "reply": { "text": "hi" } }], "repeat": true }));
    let strict = json!([{ "type": "function", "function": { "name": "mine", "strict": true, "parameters":
        { "type": "object", "properties": {}, "required": [], "additionalProperties": false } } }]);
    for request in [
        chat("s"),
        streamed("s"),
        with(chat("s"), json!({ "tools": [declared("mine")], "tool_choice": "none" })),
        with(chat("s"), json!({ "tools": strict, "fanfold": { "tools": [] } })),
    ] {
        lab.clear();
        let dry = proxy.chat_with(&[("x-fanfold-dry-run", "plan")], &request).await;
        assert_eq!(lab.journal().requests().count(), 0, "nothing is sent");
        let sent = proxy.chat(&request).await;
        proxy::reply(&sent);
        let seen = lab.journal();
        let asked = &requests(&seen, "s")[0].text;
        assert!(dry.body.contains(&format!("\"body\":{asked}")), "{asked}\nis not in\n{}", dry.body);
        assert_eq!(dry.json()["parallel"], sent.header("x-fanfold-parallel"));
        assert_eq!(dry.header("x-fanfold-parallel"), sent.header("x-fanfold-parallel"));
    }
}

#[tokio::test]
async fn interim_text_is_shown_as_it_comes_or_held_back() {
    let lab = Lab::start().await;
    let tools = json!({ "f": tool(&lab, "echo", "f") });
    let call = json!({ "text": "Let me look.", "calls": [{ "name": "f", "arguments": {} }] });
    lab.script("s", json!({ "rounds": [{ "reply": call }, { "reply": { "text": "done" } }] }));
    for (policy, text) in [("stream", "Let me look.\n\ndone"), ("hold", "done")] {
        let more = json!({ "tools": tools, "policy": { "interim_text": policy } });
        let proxy = Proxy::before(&lab, more).await;
        for request in [chat("s"), streamed("s")] {
            assert_eq!(proxy.reply(&request).await.text, text);
        }
        assert!(lab.journal().of_script("s").last().expect("a round").1.text.contains("Let me look."));
    }
}

#[tokio::test]
async fn a_client_narrows_the_tools_and_is_told_what_it_may_not_use() {
    let lab = Lab::start().await;
    let tools =
        json!({ "a": tool(&lab, "echo", "a"), "b": tool(&lab, "echo", "b"), "c": tool(&lab, "echo", "c") });
    let team = json!({ "t": { "keys": [proxy::key("k")], "tools": ["a", "b"] } });
    let proxy = Proxy::before(&lab, json!({ "tools": tools, "teams": team })).await;
    lab.script("s", json!({ "rounds": [{ "reply": { "text": "hi" } }], "repeat": true }));
    let ask = async |headers: &[(&str, &str)], more: Value| {
        lab.clear();
        let headers = [headers, &[("authorization", "Bearer k")]].concat();
        proxy.chat_with(&headers, &with(chat("s"), more)).await
    };
    for (header, more, wanted) in [
        (None, json!({}), vec!["a", "b"]),
        (Some("b"), json!({}), vec!["b"]),
        (Some("none"), json!({}), vec![]),
        (Some(" b , a "), json!({ "fanfold": { "tools": [] } }), vec!["a", "b"]),
        (None, json!({ "fanfold": { "tools": ["a"] } }), vec!["a"]),
    ] {
        let header: Vec<_> = header.map(|names| ("x-fanfold-tools", names)).into_iter().collect();
        assert_eq!(proxy::reply(&ask(&header, more).await).text, "hi");
        let seen = lab.journal();
        let sent = &requests(&seen, "s")[0].body["tools"];
        let names: Vec<_> = sent.as_array().into_iter().flatten().map(|t| &t["function"]["name"]).collect();
        assert_eq!(names, wanted);
    }
    for (header, more, status, code) in [
        ("c", json!({}), 403, "tool_not_allowed"),
        ("nothing", json!({}), 403, "tool_not_allowed"),
        ("a", json!({ "tools": [declared("a")] }), 400, "tool_name_conflict"),
    ] {
        let got = ask(&[("x-fanfold-tools", header)], more).await;
        assert_eq!((got.status.as_u16(), proxy::code(&got).as_str()), (status, code));
        assert_eq!(lab.journal().requests().count(), 0);
    }
    // A model that calls a tool of another team's is told that there is none.
    lab.script("s", then_done(&calls("c", 1)));
    assert_eq!(proxy::reply(&ask(&[], json!({})).await).text, "done");
    let seen = lab.journal();
    assert!(seen.tools.is_empty() && results(requests(&seen, "s")[1])[0].1.contains("there is no tool `c`"));
}

// ---- the stream

#[tokio::test]
async fn a_silent_stream_is_kept_alive_and_stays_what_every_client_reads() {
    let lab = Lab::start().await;
    let tools = json!({ "nap": tool(&lab, "sleep?ms=400", "nap") });
    let proxy = Proxy::before(&lab, json!({ "tools": tools, "server": { "keep_alive": "100ms" } })).await;
    let call = json!({ "text": "Let me look.", "calls": calls("nap", 1) });
    lab.script("s", json!({ "rounds": [{ "reply": call }, { "reply": { "text": "done" } }] }));
    let got = proxy.chat(&streamed("s")).await;
    assert_eq!(proxy::reply(&got).text, "Let me look.\n\ndone");
    assert!(got.body.contains("\n\n: keep-alive\n\n"), "{}", got.body);
    assert_eq!(got.header("content-type"), "text/event-stream; charset=utf-8");
}

#[tokio::test]
async fn a_refusal_of_the_first_round_keeps_its_status_and_body_for_every_client() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    let body = r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded","n":1.10}}"#;
    for status in [400, 404, 413, 422] {
        let refuses = json!({ "steps": [{ "answer": { "status": status, "body": body } }] });
        lab.script("s", json!({ "rounds": [refuses] }));
        for request in [chat("s"), streamed("s")] {
            lab.clear();
            let got = proxy.chat(&request).await;
            assert_eq!((got.status.as_u16(), got.body.as_str()), (status, body));
            assert_eq!(lab.journal().of_script("s").count(), 1, "a refusal is not asked again");
        }
    }
}

// ---- the rule

#[tokio::test]
async fn a_refusal_of_the_parameter_is_learned() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    let refusal = json!({ "error": { "message": "Unrecognized request argument supplied: parallel_tool_calls",
        "type": "invalid_request_error", "param": null, "code": null } });
    let text = json!({ "reply": { "text": "hi" } });
    let refuses = json!({ "steps": [{ "answer": { "status": 400, "body": refusal } }] });
    lab.script("s", json!({ "advance": "requests", "rounds": [refuses, text, text] }));
    let request = with(chat("s"), json!({ "parallel_tool_calls": false }));
    for got in [proxy.chat(&request).await, proxy.chat(&request).await] {
        assert_eq!(proxy::reply(&got).text, "hi");
        assert_eq!(got.header("x-fanfold-parallel"), "on; reason=unsupported");
    }
    let seen = lab.journal();
    let sent: Vec<bool> =
        requests(&seen, "s").iter().map(|r| r.body.get("parallel_tool_calls").is_some()).collect();
    assert_eq!(sent, [true, false, false]);
    assert_eq!(proxy.metric("fanfold_parallel_refused_total{upstream=\"main\"}"), Some(1.0));
    // The same, where the client's own tools go through without a turn.
    let relayed = Proxy::before(&lab, json!({})).await;
    lab.script("t", json!({ "advance": "requests", "rounds": [refuses, text, text] }));
    lab.clear();
    let request = with(chat("t"), json!({ "tools": [declared("mine")], "parallel_tool_calls": true }));
    let got = relayed.chat(&request).await;
    assert_eq!((got.status.as_u16(), got.header("x-fanfold-parallel")), (200, "on; reason=unsupported"));
    assert_eq!(relayed.metric("fanfold_parallel_refused_total{upstream=\"main\"}"), Some(1.0));
    let sent: Vec<bool> =
        requests(&lab.journal(), "t").iter().map(|r| r.body.get("parallel_tool_calls").is_some()).collect();
    assert_eq!(sent, [true, false]);
    // Any other refusal goes through as it came.
    let other = r#"{"error" : {"message":"no","code":1.10}}"#;
    let refuses =
        json!({ "steps": [{ "answer": { "status": 400, "headers": { "x-own": "1" }, "body": other } }] });
    lab.script("u", json!({ "rounds": [refuses] }));
    let got = relayed.chat(&with(request, json!({ "model": "script:u" }))).await;
    assert_eq!((got.status.as_u16(), got.body.as_str(), got.header("x-own")), (400, other, "1"));
}

#[tokio::test]
async fn the_rule_holds_globally_per_team_and_per_route_and_is_visible() {
    let lab = Lab::start().await;
    lab.script("s", json!({ "rounds": [{ "reply": { "text": "hi" } }], "repeat": true }));
    let strict = json!([{ "type": "function", "function": { "name": "mine", "strict": true, "parameters":
        { "type": "object", "properties": {}, "required": [], "additionalProperties": false } } }]);
    // Rule; what goes out and is told without a word of the client's, and with its `true`.
    let table = [
        ("serialize", (Some(false), "off; reason=strict_tool"), (Some(false), "off; reason=strict_tool")),
        ("auto", (None, "on; reason=not_needed"), (Some(true), "on; reason=client")),
        ("reject", (Some(false), "off; reason=strict_tool"), (None, "refused")),
        ("off", (None, "on; reason=rule_off"), (Some(true), "on; reason=client")),
    ];
    for place in ["global", "team", "route"] {
        for (rule, silent, insists) in table {
            let policy = json!({ "strict_parallel": rule });
            let other = json!({ "strict_parallel": if rule == "off" { "serialize" } else { "off" } });
            let of = |here: &str| if place == here { policy.clone() } else { json!({}) };
            let more = json!({
                "tools": { "f": tool(&lab, "echo", "f") },
                "policy": if place == "global" { policy.clone() } else { other },
                "teams": { "t": { "keys": [proxy::key("k")], "policy": of("team") } },
                "routes": [{ "model": "*", "upstreams": ["main"], "policy": of("route") }],
            });
            let proxy = Proxy::before(&lab, more).await;
            for (client, (sent, told)) in [(None, silent), (Some(true), insists)] {
                lab.clear();
                let mut request = with(chat("s"), json!({ "tools": strict }));
                if let Some(client) = client {
                    request["parallel_tool_calls"] = json!(client);
                }
                let got = proxy.chat_with(&[("authorization", "Bearer k")], &request).await;
                let case = format!("{place} {rule} {client:?}: {}", got.body);
                if told == "refused" {
                    let error = &got.json()["error"];
                    assert_eq!(
                        (got.status.as_u16(), &error["code"]),
                        (400, &json!("strict_parallel_conflict")),
                        "{case}"
                    );
                    assert_eq!(error["param"], "parallel_tool_calls");
                    assert!(error["message"].as_str().is_some_and(|m| m.contains("`mine`")), "{case}");
                    assert_eq!(lab.journal().requests().count(), 0);
                    continue;
                }
                assert_eq!(proxy::reply(&got).text, "hi");
                let seen = lab.journal();
                let out = requests(&seen, "s")[0].body.get("parallel_tool_calls").and_then(Value::as_bool);
                assert_eq!((out, got.header("x-fanfold-parallel")), (sent, told), "{case}");
                let (decision, reason) = told.split_once("; reason=").expect("a reason");
                let metric = format!(
                    "fanfold_parallel_decisions_total{{decision=\"{decision}\",reason=\"{reason}\"}}"
                );
                assert!(proxy.metric(&metric).is_some_and(|n| n >= 1.0), "{case}: {metric}");
            }
        }
    }
}

#[tokio::test]
async fn metrics_tell_of_a_turn_on_the_admin_side() {
    let lab = Lab::start().await;
    let proxy = with_tools(&lab, json!({ "f": tool(&lab, "echo", "f") })).await;
    lab.script("s", then_done(&calls("f", 2)));
    assert_eq!(proxy.reply(&chat("s")).await.text, "done");
    let url = format!("http://{}/metrics", proxy.app.admin_address);
    let got = client::send(Method::GET, &url, &[], None).await.expect("metrics");
    for line in [
        "fanfold_turns_total{team=\"default\",outcome=\"ok\"} 1",
        "gen_ai_execute_tool_duration_seconds_count{tool=\"f\",outcome=\"ok\"} 2",
        "gen_ai_client_operation_duration_seconds_count{upstream=\"main\",model=\"other\",outcome=\"ok\"} 2",
        "fanfold_turns_in_flight 0",
        "fanfold_tool_calls_in_flight 0",
    ] {
        assert!(got.body.lines().any(|had| had == line), "{line} is not in\n{}", got.body);
    }
}

//! Whatever an upstream sends, a client gets the same answer from it: streamed or whole on either
//! side, its tools the client's or ours, its bytes cut anywhere; and what nobody here knows comes
//! through as it came.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfold::engine::{Action, Input, Part, Show, Turn};
use fanfold::policy::plan::{Circumstances, Habits, Plan, Rules, TurnPlan, plan};
use fanfold::policy::settings::{InterimText, Limits, StrictParallel};
use fanfold::sse::{Decoder, Event, USUAL_END, USUAL_START};
use fanfold::wire::error::Said;
use fanfold::wire::failure::{Failure, FailureKind};
use fanfold::wire::repeat::{Known, Repeat};
use fanfold::wire::reply::{Decoded, decode};
use fanfold::wire::request::ChatRequest;
use fanfold::wire::tool::{Effect, OnDisconnect, OwnedTool};
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::fold::{self, Folded};
use support::lab::Lab;
use support::lab::journal::Request;
use support::lab::script::{Expected, ExpectedReply, Script, Step};
use support::proxy::{self, Proxy, tool, with};
use support::scripts;

/// Upstream and client, streaming or whole.
const MODES: [(&str, bool); 4] = [("stream", true), ("stream", false), ("whole", true), ("whole", false)];

async fn before(lab: &Lab, mode: &str, tools: Value) -> Proxy {
    // So many broken replies would open the upstream's breaker.
    let upstream = json!({ "base_url": lab.base_url(), "mode": mode, "breaker": { "requests": 1_000_000 },
        "retries": { "per_second": 10_000 } });
    Proxy::before(lab, json!({ "upstreams": { "main": upstream }, "tools": tools })).await
}

/// Plays every script in every mode; gives the answers by script.
async fn all_modes(
    lab: &Lab,
    tools: &Value,
    declare: bool,
    change: impl Fn(&mut Value),
) -> Vec<(String, Script, Vec<Result<Folded, String>>)> {
    let proxies = [before(lab, "stream", tools.clone()).await, before(lab, "whole", tools.clone()).await];
    let all = scripts::all();
    let runs = all.iter().map(async |(name, script)| {
        let read = scripts::read(name, script);
        let mut answers = Vec::new();
        for (mode, stream) in MODES {
            let own = format!("{name}/{mode}/{stream}");
            let mut script = script.clone();
            change(&mut script);
            lab.script(&own, script);
            let mut request = scripts::request(&own, &read, stream);
            if !declare {
                request.as_object_mut().expect("an object").shift_remove("tools");
            }
            let proxy = &proxies[usize::from(mode == "whole")];
            answers.push(fold::answer(&proxy.chat(&request).await));
        }
        (name.clone(), read, answers)
    });
    join_all(runs).await
}

/// What differs between an answer and the expected one, and between the four answers.
fn faults(name: &str, expected: &Expected, answers: &[Result<Folded, String>]) -> Vec<String> {
    let mut faults = Vec::new();
    for ((mode, stream), answer) in MODES.iter().zip(answers) {
        let checked = answer.clone().and_then(|folded| folded.check(expected));
        if let Err(fault) = checked {
            faults.push(format!("{name}, upstream {mode}, client stream {stream}: {fault}"));
        }
    }
    let same: Vec<_> =
        answers.iter().map(|answer| answer.clone().map(|f| without_made_ids(f, expected))).collect();
    if same.windows(2).any(|pair| pair[0] != pair[1]) {
        faults.push(format!("{name}: the modes differ: {same:?}"));
    }
    faults
}

/// Ids that fanfold makes differ from answer to answer.
fn without_made_ids(mut folded: Folded, expected: &Expected) -> Folded {
    if let (Folded::Reply(got), Expected::Reply(wanted)) = (&mut folded, expected) {
        for (call, wanted) in got.calls.iter_mut().zip(&wanted.calls) {
            call.id = call.id.take().filter(|_| wanted.id.is_some());
        }
    }
    folded
}

#[tokio::test]
async fn every_habit_of_an_upstream_gives_the_same_answer_in_every_mode() {
    let lab = Lab::start().await;
    let tools = json!({ "never_called": tool(&lab, "echo", "never_called") });
    let mut wrong = Vec::new();
    for (name, script, answers) in all_modes(&lab, &tools, true, |_| {}).await {
        wrong.extend(faults(&name, &script.expected.expect("an expectation"), &answers));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(lab.journal().all_tools.started, 0);
    let refused: Vec<_> = lab.journal().requests().filter_map(|(_, r)| r.refused.clone()).collect();
    assert_eq!(refused, [""; 0]);
}

#[tokio::test]
async fn written_byte_by_byte_every_reply_is_the_same() {
    let lab = Lab::start().await;
    let tools = json!({ "never_called": tool(&lab, "echo", "never_called") });
    let mut wrong = Vec::new();
    let split = |script: &mut Value| script["rounds"][0]["split"] = json!(1);
    for (name, script, answers) in all_modes(&lab, &tools, true, split).await {
        wrong.extend(faults(&name, &script.expected.expect("an expectation"), &answers));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a client gets once fanfold ran the calls itself and the model answered from the results.
fn after_the_calls(script: &Script) -> Expected {
    let Some(Expected::Reply(first)) = script.expected.clone() else {
        return script.expected.clone().expect("an expectation");
    };
    if first.calls.is_empty() {
        return Expected::Reply(first);
    }
    let text = if first.text.is_empty() { "done".into() } else { format!("{}\n\ndone", first.text) };
    let more = script.rounds.len() as u64 - 1;
    let usage = first.usage.map(|[input, output]| [input + 10 * more, output + 5 * more]);
    Expected::Reply(ExpectedReply { text, finish: "stop".into(), usage, ..ExpectedReply::default() })
}

#[tokio::test]
async fn every_habit_is_survived_when_the_tools_are_ours_and_the_turn_goes_on() {
    let lab = Lab::start().await;
    let tools = json!({
        "get_weather": tool(&lab, "echo", "get_weather"), "get_time": tool(&lab, "echo", "get_time"),
    });
    let mut wrong = Vec::new();
    let all = all_modes(&lab, &tools, false, |_| {}).await;
    let seen = lab.journal();
    for (name, script, answers) in all {
        wrong.extend(faults(&name, &after_the_calls(&script), &answers));
        for (mode, stream) in MODES {
            let own = format!("{name}/{mode}/{stream}");
            let requests: Vec<&Request> = seen.of_script(&own).map(|(_, request)| request).collect();
            if let Some(refused) = requests.iter().find_map(|r| r.refused.clone()) {
                wrong.push(format!("{own}: refused: {refused}"));
            }
            let (Some(Expected::Reply(first)), Some(second)) = (&script.expected, requests.get(1)) else {
                continue;
            };
            if first.calls.is_empty() {
                wrong.push(format!("{own}: asked again although nothing was called"));
                continue;
            }
            if let Err(fault) = history(first, second, &message(&script), mode == "whole") {
                wrong.push(format!("{own}: {fault}\n{}", second.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The message of the script's first round as a whole completion, as the lab writes it.
fn message(script: &Script) -> Value {
    let steps = script.rounds[0].whole.as_deref().unwrap_or_default();
    let body = steps.iter().find_map(|step| match step {
        Step::Json(body) => Some(body),
        Step::Answer(answer) => Some(&answer.body),
        Step::Head(_)
        | Step::Events(_)
        | Step::Send(_)
        | Step::Flood(_)
        | Step::Hex(_)
        | Step::Raw(_)
        | Step::WaitMs(_)
        | Step::Stall
        | Step::End
        | Step::Close
        | Step::Reset => None,
    });
    body.map_or(Value::Null, |body| body["choices"][0]["message"].clone())
}

/// A member, or an element.
fn at<'a>(value: &'a Value, name: &str) -> &'a Value {
    name.parse::<usize>().map_or_else(|_| &value[name], |index| &value[index])
}

/// Whether a second round's request holds the first round as it has to.
fn history(first: &ExpectedReply, second: &Request, sent: &Value, whole: bool) -> Result<(), String> {
    let messages = second.body["messages"].as_array().ok_or("no messages")?;
    if messages.len() != 2 + first.calls.len() {
        return Err(format!("{} messages", messages.len()));
    }
    let calls = messages[1]["tool_calls"].as_array().ok_or("no calls in the assistant message")?;
    if calls.len() != first.calls.len() {
        return Err(format!("{} calls", calls.len()));
    }
    for ((wanted, call), result) in first.calls.iter().zip(calls).zip(&messages[2..]) {
        if wanted.id.as_deref().is_some_and(|id| call["id"] != id) {
            return Err(format!("the id of {call}"));
        }
        let typed = call["type"] == "function" || (whole && sent["tool_calls"][0].get("type").is_none());
        if call["function"]["name"] != *wanted.name || !typed {
            return Err(format!("the name or type of {call}"));
        }
        if result["role"] != "tool" || result["tool_call_id"] != call["id"] || result["name"] != *wanted.name
        {
            return Err(format!("{result} does not answer {call}"));
        }
        let content = result["content"].as_str().ok_or("no content")?;
        let ran = serde_json::from_str::<Value>(content).ok().map(|echo| echo["body"].clone());
        let good = if wanted.arguments.is_string() {
            content.starts_with("error: ")
        } else {
            ran.as_ref() == Some(&wanted.arguments) || (wanted.arguments == json!({}) && ran.is_some())
        };
        if !good {
            return Err(format!("the result {content:?} of {call}"));
        }
    }
    let untouched = first.calls.iter().all(|call| call.id.is_some())
        && sent["tool_calls"]
            .as_array()
            .is_some_and(|c| c.iter().all(|c| c["function"]["arguments"].is_string()));
    if whole && untouched && !second.text.contains(&sent.to_string()) {
        return Err("the assistant message is not as it was sent".into());
    }
    for path in &first.kept {
        let value = path.split('.').fold(sent, at);
        let member = format!("\"{}\":{value}", path.rsplit('.').next().unwrap_or_default());
        // A stream tells members in its own order.
        let same = path.split('.').fold(&messages[1], at) == value;
        if value.is_null() || !same || (whole && !second.text.contains(&member)) {
            return Err(format!("{path} was not kept: {member}"));
        }
    }
    Ok(())
}

// ---- cut at every byte

/// The bytes of the first round's stream.
fn bytes(script: &Script) -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in script.rounds[0].stream.as_deref().unwrap_or_default() {
        match step {
            Step::Events(events) => {
                for event in events {
                    let data = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
                    bytes.extend_from_slice(format!("data: {data}\n\n").as_bytes());
                }
            }
            Step::Send(text) | Step::Flood(text) => bytes.extend_from_slice(text.as_bytes()),
            Step::Hex(digits) => {
                let digits: Vec<u8> = digits.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
                let byte =
                    |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("digits");
                bytes.extend(digits.chunks(2).map(byte));
            }
            Step::Head(_) | Step::WaitMs(_) | Step::Stall | Step::End | Step::Close | Step::Reset => {}
            Step::Json(_) | Step::Answer(_) | Step::Raw(_) => panic!("no part of a stream"),
        }
    }
    bytes
}

fn events(frames: &[&[u8]]) -> Vec<Event> {
    let mut decoder = Decoder::new(1 << 20);
    let mut events = Vec::new();
    for frame in frames {
        decoder.push(Bytes::copy_from_slice(frame), &mut events).expect("small events");
    }
    events.extend(decoder.finish());
    events
}

fn turn_plan(script: &Script, owned: bool) -> Arc<TurnPlan> {
    let owned_tool = |name: &str| {
        Arc::new(OwnedTool {
            name: name.into(),
            definition: proxy::declared(name).to_string().into(),
            strict: false,
            effect: Effect::Read,
            on_disconnect: OnDisconnect::Stop,
            timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(30),
        })
    };
    let mut request = scripts::request("x", script, true);
    let names = if owned { ["get_weather", "get_time"].as_slice() } else { &["never_called"] };
    if owned {
        request.as_object_mut().expect("an object").shift_remove("tools");
    }
    let request = ChatRequest::read(&request.to_string().into()).expect("a request");
    let rules = Rules {
        strict_parallel: StrictParallel::Serialize,
        interim_text: InterimText::Stream,
        limits: Arc::new(Limits::default()),
        call_timeout_cap: None,
        keep_content: true,
        charged: false,
    };
    let offered = names.iter().map(|name| owned_tool(name)).collect();
    let with = Circumstances {
        offered: &offered,
        narrowed: None,
        transcript: false,
        changed: false,
        targets: &[Habits::default()],
        rules: &rules,
    };
    match plan(&request, &with) {
        Ok(Plan::Turn(plan)) => plan,
        other => panic!("{other:?}"),
    }
}

/// How the events are read.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Careful,
    /// As an upstream's reply is: what is as usual or like the one before is read at a glance.
    Quick,
}

/// What a turn does about these events.
fn actions(plan: &Arc<TurnPlan>, events: &[Event], reader: Reader) -> Vec<Action> {
    let mut repeat = Repeat::default();
    let mut turn = Turn::new(plan.clone(), 7);
    let mut actions = Vec::new();
    let mut step = |input| turn.step(input, Duration::ZERO, &mut actions);
    step(Input::Begin);
    step(Input::Accepted(1));
    let mut done = false;
    let mut rest = events;
    while let Some((event, others)) = rest.split_first() {
        if event.data.as_ref() == b"[DONE]" {
            done = true;
            break;
        }
        let these = std::mem::replace(&mut rest, others);
        if reader == Reader::Quick && !event.named_error {
            // A few at a time.
            let frame = these.iter().take(3).map(|event| [USUAL_START, &event.data, USUAL_END].concat());
            let frame = Bytes::from(frame.collect::<Vec<_>>().concat());
            if let Some(Known { texts, .. }) = repeat.skim(&frame, 0, frame.len()) {
                rest = &these[texts.count()..];
                step(Input::Texts(1, texts));
                continue;
            }
            if let Some(piece) = repeat.read(&event.data) {
                step(Input::Piece(1, piece));
                continue;
            }
        }
        let failed = match decode(&event.data, false) {
            Ok(Decoded::Piece(piece)) => {
                repeat.learn(&event.data, &piece);
                step(Input::Piece(1, piece));
                continue;
            }
            Ok(Decoded::Nothing) => continue,
            Ok(Decoded::Error(said)) => Failure::in_reply(&said),
            Err(_) if event.named_error => Failure::in_reply(&Said::read(&event.data)),
            Err(error) => Failure::new(FailureKind::InvalidReply, error.to_string()),
        };
        step(Input::Failed(1, Box::new(failed)));
        return actions;
    }
    step(Input::Ended { ask: 1, done });
    actions.into_iter().flat_map(as_parts).collect()
}

/// A text that is shown is a part that says nothing else.
fn as_parts(action: Action) -> Vec<Action> {
    let Action::Show(Show::Texts(texts)) = action else { return vec![action] };
    let part = |text| Part { round: 1, text: Some(text), ..Part::default() };
    texts.strings().map(|text| Action::Show(Show::Part(Box::new(part(text))))).collect()
}

#[test]
fn cut_at_every_byte_a_recorded_stream_gives_the_same_events_and_actions() {
    for (name, script) in scripts::all() {
        let script = scripts::read(&name, &script);
        let bytes = bytes(&script);
        let plans = [turn_plan(&script, false), turn_plan(&script, true)];
        let uncut = events(&[&bytes]);
        let expected = plans.each_ref().map(|plan| actions(plan, &uncut, Reader::Careful));
        let quick = plans.each_ref().map(|plan| actions(plan, &uncut, Reader::Quick));
        assert_eq!(quick, expected, "{name}, read at a glance");
        let failed = matches!(script.expected, Some(Expected::Error { .. }));
        assert!(expected.iter().all(|actions| failed || actions.len() > 1), "{name}: {expected:?}");
        for cut in 0..=bytes.len() {
            let (one, two) = bytes.split_at(cut);
            let events = events(&[one, two]);
            assert_eq!(events, uncut, "{name}, cut at {cut}");
            // Equal events give equal actions; that is looked at where the events are new objects.
            if cut % 64 == 0 {
                let actions = plans.each_ref().map(|plan| actions(plan, &events, Reader::Quick));
                assert_eq!(actions, expected, "{name}, cut at {cut}");
            }
        }
        let all: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(events(&all), uncut, "{name}, byte by byte");
    }
}

// ---- what nobody here knows

/// Members no one knows, in every form that reading them as JSON would change.
const ODD: &str = r#""zz":1,"odd":{"big":123456789012345678901234567890,"dec":1.10,"exp":1E30,"b":1,"a":[1.0,-0],"esc":"\u00e9\/"},"aa":null"#;

async fn owned_and_relayed(lab: &Lab) -> [Proxy; 2] {
    let tools = json!({ "f": tool(lab, "echo", "f") });
    [Proxy::before(lab, json!({ "tools": tools })).await, Proxy::before(lab, json!({})).await]
}

#[tokio::test]
async fn a_request_keeps_everything_at_every_level() {
    let lab = Lab::start().await;
    let inside = format!(
        r#""messages":[{{"role":"system","content":"s",{ODD}}},{{"role":"assistant","content":[{{"type":"text","text":"t",{ODD}}}],"tool_calls":[{{"id":"call_x","type":"function","function":{{"name":"mine","arguments":"{{}}",{ODD}}},"extra_content":{{{ODD}}}}}],"reasoning_content":"r","audio":{{{ODD}}}}},{{"role":"tool","tool_call_id":"call_x","content":"c",{ODD}}},{{"role":"user","content":"hi"}}"#
    );
    let theirs = format!(
        r#"{{"type":"function","function":{{"name":"mine","parameters":{{"type":"object","z":1,"a":1.10,{ODD}}},{ODD}}},{ODD}}}"#
    );
    let rest =
        format!(r#""seed":123456789012345678901234567890,"temperature":1.10,"metadata":{{{ODD}}},{ODD}"#);
    let [owned, relayed] = owned_and_relayed(&lab).await;
    for stream in [true, false] {
        let options = format!(r#""stream":{stream},"stream_options":{{"x":1.10,"include_usage":true}}"#);
        let options = if stream { options } else { "\"stream\":false".into() };
        for (name, proxy) in [("owned", &owned), ("relayed", &relayed)] {
            let script = format!("{name}{stream}");
            lab.script(
                &script,
                json!({ "rounds": [{ "reply": { "text": "x" } }, { "reply": { "text": "x" } }] }),
            );
            let body =
                format!(r#"{{"model":"script:{script}",{inside}],"tools":[{theirs}],{rest},{options}}}"#);
            let got = proxy.text(&[], body.clone()).await;
            assert_eq!(got.status, 200, "{}", got.body);
            let seen = lab.journal();
            let sent = &seen.of_script(&script).next().expect("a request").1.text;
            if name == "relayed" {
                assert_eq!(**sent, *body);
                continue;
            }
            for part in [&inside, &theirs, &rest] {
                assert!(sent.contains(part), "{script}: {part}\nis not in\n{sent}");
            }
            if stream {
                assert!(sent.contains(r#""stream_options":{"x":1.10,"include_usage":true}"#), "{sent}");
            }
        }
    }
}

/// A reply that calls `f` and carries [`ODD`] at every level, whole and as a stream.
fn odd_call(name: &str) -> (String, Value) {
    let call = format!(
        r#"{{"id":"call_odd123456","type":"function","function":{{"name":"{name}","arguments":"{{\"city\": \"P\\u00e4ris\"}}",{ODD}}},"extra_content":{{{ODD}}}}}"#
    );
    let message = format!(
        r#"{{"role":"assistant","content":"t\u00e9xt","reasoning_content":"b\u00e9cause","tool_calls":[{call}],{ODD}}}"#
    );
    let head = r#""id":"chatcmpl-odd","created":1760000000,"model":"m""#;
    let usage = r#""usage":{"prompt_tokens":52,"completion_tokens":31,"total_tokens":83,"cost":1.10}"#;
    let whole = format!(
        r#"{{"object":"chat.completion",{head},"choices":[{{"index":0,"message":{message},"score":1.10,"finish_reason":"tool_calls"}}],{usage},"sys":{{{ODD}}}}}"#
    );
    let chunk = |delta: &str, more: &str| {
        format!(
            r#"{{"object":"chat.completion.chunk",{head},"choices":[{{"index":0,"delta":{delta},"finish_reason":null{more}}}],"sys":{{{ODD}}}}}"#
        )
    };
    let pieces = format!(
        r#"{{"tool_calls":[{{"index":0,"id":"call_odd123456","type":"function","function":{{"name":"{name}","arguments":"{{\"city\"",{ODD}}},"extra_content":{{{ODD}}}}}]}}"#
    );
    let stream = json!([{ "events": [
        chunk(&format!(r#"{{"role":"assistant","content":"t\u00e9xt","reasoning_content":"b\u00e9",{ODD}}}"#), ""),
        chunk(r#"{"reasoning_content":"cause"}"#, ""),
        chunk(&pieces, ",\"score\":1.10"),
        chunk(r#"{"tool_calls":[{"index":0,"function":{"arguments":": \"P\\u00e4ris\"}"}}]}"#, ""),
        format!(r#"{{"object":"chat.completion.chunk",{head},"choices":[{{"index":0,"delta":{{}},"finish_reason":"tool_calls"}}]}}"#),
        format!(r#"{{"object":"chat.completion.chunk",{head},"choices":[],{usage}}}"#),
        "[DONE]",
    ] }]);
    let round = json!({ "stream": stream, "whole": [{ "answer": { "body": whole.clone() } }] });
    (whole, json!({ "rounds": [round, { "reply": { "text": "done" } }] }))
}

/// [`ODD`] without the member that is null, which fanfold leaves out of what it writes anew.
fn odd() -> &'static str {
    ODD.trim_end_matches(",\"aa\":null")
}

#[tokio::test]
async fn a_reply_that_goes_back_to_the_upstream_keeps_everything_at_every_level() {
    let lab = Lab::start().await;
    let tools = json!({ "f": tool(&lab, "echo", "f") });
    let (whole, script) = odd_call("f");
    for mode in ["stream", "whole"] {
        let proxy = before(&lab, mode, tools.clone()).await;
        lab.script(mode, script.clone());
        let reply = proxy.reply(&proxy::chat(mode)).await;
        assert_eq!(reply.text, "t\u{e9}xt\n\ndone");
        let seen = lab.journal();
        let second = &seen.of_script(mode).nth(1).expect("a second round").1.text;
        if mode == "whole" {
            let message = &whole[whole.find("{\"role\"").unwrap()..whole.find(",\"score\"").unwrap()];
            assert!(second.contains(message), "{message}\nis not in\n{second}");
        }
        let odd = odd();
        for part in [
            format!(r#""arguments":"{{\"city\": \"P\\u00e4ris\"}}",{odd}"#),
            format!(r#""extra_content":{{{ODD}}}"#),
            r#""reasoning_content":"b\u00e9cause""#.into(),
            r#""content":"t\u00e9xt""#.into(),
        ] {
            assert!(second.contains(&part), "{mode}: {part}\nis not in\n{second}");
        }
        assert!(second.matches("1E30").count() >= 3, "{second}");
    }
}

#[tokio::test]
async fn a_reply_keeps_everything_at_every_level_on_its_way_to_the_client() {
    let lab = Lab::start().await;
    let (whole, script) = odd_call("mine");
    let tools = json!({ "f": tool(&lab, "echo", "f") });
    let odd = odd();
    for mode in ["stream", "whole"] {
        let proxy = before(&lab, mode, tools.clone()).await;
        lab.script(mode, script.clone());
        for stream in [true, false] {
            let request = if stream { proxy::streamed(mode) } else { proxy::chat(mode) };
            let request = with(request, json!({ "tools": [proxy::declared("mine")] }));
            let got = proxy.chat(&request).await;
            assert_eq!(proxy::reply(&got).calls.len(), 1, "{}", got.body);
            let mut parts = vec![
                odd.to_owned(),
                format!(r#""extra_content":{{{ODD}}}"#),
                format!(r#""sys":{{{ODD}}}"#),
                r#""score":1.10"#.into(),
                r#""content":"t\u00e9xt""#.into(),
                r#""cost":1.10"#.into(),
            ];
            if !stream || mode == "whole" {
                parts.push(format!(r#""arguments":"{{\"city\": \"P\\u00e4ris\"}}",{odd}"#));
                parts.push(r#""reasoning_content":"b\u00e9cause""#.into());
            } else {
                parts.push(format!(r#""arguments":"{{\"city\"",{odd}"#));
            }
            for part in parts {
                assert!(got.body.contains(&part), "{mode}, {stream}: {part}\nis not in\n{}", got.body);
            }
        }
    }
    let relayed = Proxy::before(&lab, json!({})).await;
    let request = with(proxy::chat("whole"), json!({ "tools": [proxy::declared("mine")] }));
    let got = relayed.chat(&request).await;
    assert_eq!(got.body, whole);
    let timing = got.header("server-timing");
    assert!(timing.starts_with("round1;dur=") && timing.contains("tools;dur=0, overhead;dur="), "{timing}");
    let request = with(proxy::streamed("whole"), json!({ "tools": [proxy::declared("mine")] }));
    let streamed = relayed.chat(&request).await.body;
    assert_eq!(streamed.as_bytes(), bytes(&scripts::read("whole", &script)));
}

// ---- what a client sees when an upstream breaks

#[tokio::test]
async fn an_upstream_that_breaks_after_the_first_byte_ends_in_an_error_event_and_a_clean_end() {
    let lab = Lab::start().await;
    let proxy = before(&lab, "stream", json!({ "f": tool(&lab, "echo", "f") })).await;
    let chunk = |delta: Value| {
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] })
    };
    let begun =
        json!({ "events": [chunk(json!({ "role": "assistant" })), chunk(json!({ "content": "It is" }))] });
    for (name, end, code) in [
        ("closed", json!(["close"]), "upstream_truncated"),
        ("reset", json!([{ "wait_ms": 50 }, "reset"]), "upstream_truncated"),
        ("ended", json!(["end"]), "upstream_truncated"),
        ("half", json!([{ "send": "data: {\"id\"" }]), "upstream_truncated"),
        ("nonsense", json!([{ "events": ["<html>"] }]), "upstream_invalid_reply"),
        ("error", json!([{ "events": [{ "error": { "message": "boom" } }] }]), "upstream_error"),
    ] {
        let mut steps = vec![begun.clone()];
        steps.extend(end.as_array().expect("steps").clone());
        lab.script(name, json!({ "rounds": [{ "steps": steps }] }));
        let got = proxy.chat(&proxy::streamed(name)).await;
        assert_eq!((got.status.as_u16(), proxy::code(&got).as_str()), (200, code), "{name}: {}", got.body);
        assert!(got.body.contains("It is") && !got.body.contains("[DONE]"), "{name}: {}", got.body);
        assert_eq!(lab.journal().of_script(name).count(), 1, "{name}: what was shown is not asked again");
    }
}

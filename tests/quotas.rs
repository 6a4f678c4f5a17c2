//! Quotas and prices through the real proxy: what is refused, how it is told, and what a turn is charged.

mod support;

use http::Method;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::lab::Lab;
use support::proxy::{self, Proxy, chat, code, config, key, streamed, tool, with, within};

const BLUE: (&str, &str) = ("authorization", "Bearer fk-blue");
const NO_TOOLS: (&str, &str) = ("x-fanfold-tools", "none");
const RED: (&str, &str) = ("authorization", "Bearer fk-red");

/// One team with these settings, and one without quotas; `more` is laid over the configuration.
fn configured(lab: &Lab, blue: Value, more: Value) -> Value {
    let teams = json!({
        "blue": with(json!({ "keys": [key("fk-blue")] }), blue),
        "red": { "keys": [key("fk-red")] },
    });
    with(with(config(lab), json!({ "teams": teams })), more)
}

async fn proxy(lab: &Lab, blue: Value, more: Value) -> Proxy {
    lab.script("x", json!({ "rounds": [{ "reply": { "text": "x" } }], "repeat": true }));
    Proxy::start(&configured(lab, blue, more)).await
}

fn is_out(got: &Got, expected: &str) {
    assert_eq!((got.status.as_u16(), code(got).as_str()), (429, expected), "{got:?}");
}

fn denials(proxy: &Proxy, quota: &str) -> Option<f64> {
    proxy.metric(&format!("fanfold_quota_denials_total{{team=\"blue\",quota=\"{quota}\"}}"))
}

#[tokio::test]
async fn requests_over_the_quota_are_refused_and_told_when_to_come_back() {
    let lab = Lab::start().await;
    let proxy = proxy(&lab, json!({ "limits": { "requests_per_minute": 2 } }), json!({})).await;
    let first = proxy.chat_with(&[BLUE], &chat("x")).await;
    assert_eq!(first.status, 200);
    let told = ["limit", "remaining", "reset"]
        .map(|what| first.header(&format!("x-ratelimit-{what}-requests")).to_owned());
    assert_eq!(told, ["2", "1", "30s"]);
    // What is relayed counts as well.
    let url = format!("http://{}/v1/embeddings", proxy.app.proxy_address);
    let body = json!({ "model": "x" });
    let relayed = within(client::send(Method::POST, &url, &[BLUE], Some(&body))).await.expect("an answer");
    assert_eq!(relayed.header("x-ratelimit-remaining-requests"), "0");
    let refused = proxy.chat_with(&[BLUE], &chat("x")).await;
    is_out(&refused, "rate_limit_exceeded");
    assert_eq!(refused.header("x-ratelimit-limit-requests"), "2");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(denials(&proxy, "requests_per_minute"), Some(1.0));
    assert_eq!(lab.journal().of_script("x").count(), 1);
    let other = proxy.chat_with(&[RED], &chat("x")).await;
    assert_eq!((other.status.as_u16(), other.header("x-ratelimit-limit-requests")), (200, ""));
}

#[tokio::test]
async fn a_reload_gives_nobody_a_new_quota() {
    let lab = Lab::start().await;
    let limits = json!({ "limits": { "requests_per_minute": 1 } });
    let proxy = proxy(&lab, limits.clone(), json!({})).await;
    assert_eq!(proxy.chat_with(&[BLUE], &chat("x")).await.status, 200);
    let again = configured(&lab, limits, json!({ "policy": { "interim_text": "hold" } })).to_string();
    let reading = fanfold::config::read_text("test", &again, &|_| None, &fanfold::config::Flags::default());
    let (loaded, catalog) = reading.finish_with_tools().unwrap_or_else(|problems| panic!("{problems}"));
    proxy.app.reload(&loaded, catalog).expect("a good configuration");
    is_out(&proxy.chat_with(&[BLUE], &chat("x")).await, "rate_limit_exceeded");
}

#[tokio::test]
async fn tokens_are_counted_when_they_are_known_and_refused_when_none_are_left() {
    let lab = Lab::start().await;
    // A reply of the lab has 15.
    for (settings, expected) in [
        (json!({ "limits": { "tokens_per_minute": 16 } }), "rate_limit_exceeded"),
        (json!({ "budget": { "tokens_per_day": 16 } }), "insufficient_quota"),
        (json!({ "budget": { "tokens_per_month": 16 } }), "insufficient_quota"),
    ] {
        // Also a stream that could go through as it is, and whose client does not want to know.
        let unasked = with(chat("x"), json!({ "stream": true }));
        for (body, headers) in
            [(chat("x"), vec![BLUE]), (streamed("x"), vec![BLUE]), (unasked.clone(), vec![BLUE, NO_TOOLS])]
        {
            let proxy = proxy(&lab, settings.clone(), json!({})).await;
            for _ in 0..2 {
                let got = proxy.chat_with(&headers, &body).await;
                assert_eq!((got.status.as_u16(), got.body.contains("\"usage\":{")), (200, body != unasked));
            }
            let refused = proxy.chat_with(&headers, &body).await;
            is_out(&refused, expected);
            let never = expected == "insufficient_quota";
            assert_eq!(refused.header("x-should-retry"), if never { "false" } else { "" });
            assert_eq!(refused.header("retry-after").is_empty(), never);
        }
        let proxy = proxy(&lab, settings, json!({})).await;
        let two = with(unasked, json!({ "n": 2 }));
        let refused = proxy.chat_with(&[BLUE, NO_TOOLS], &two).await;
        assert_eq!((refused.status.as_u16(), code(&refused).as_str()), (400, "invalid_value"));
        let asks = with(two, json!({ "stream_options": { "include_usage": true } }));
        assert_eq!(proxy.chat_with(&[BLUE, NO_TOOLS], &asks).await.status, 200);
    }
}

/// A turn of `rounds` rounds with a call each, and what it says at last.
fn rounds(rounds: usize) -> Value {
    let call = |n: usize| json!({ "reply": { "calls": [{ "name": "f", "arguments": { "n": n } }] } });
    let mut all: Vec<Value> = (0..rounds).map(call).collect();
    all.push(json!({ "reply": { "text": "done" } }));
    json!({ "rounds": all })
}

#[tokio::test]
async fn a_turn_whose_budget_runs_out_ends_with_an_answer_that_says_why() {
    let lab = Lab::start().await;
    let tools = json!({ "tools": { "f": tool(&lab, "echo", "f") } });
    for (settings, quota, said) in [
        (json!({ "budget": { "tokens_per_day": 40 } }), "tokens_per_day", "the budget is used up"),
        (
            json!({ "limits": { "tokens_per_minute": 40 } }),
            "tokens_per_minute",
            "the quota of tokens a minute is used up",
        ),
    ] {
        for chat in [chat("long"), streamed("long")] {
            lab.clear();
            lab.script("long", rounds(8));
            let proxy = proxy(&lab, settings.clone(), tools.clone()).await;
            let reply = proxy::reply(&proxy.chat_with(&[BLUE], &chat).await);
            assert_eq!(reply.finish, "length", "{reply:?}");
            assert!(reply.text.contains(said));
            // Three rounds use the 40 up; the fourth is for the answer, and its call is not run.
            let seen = lab.journal();
            assert_eq!(seen.bodies("long").len(), 4);
            assert_eq!(seen.requests().filter(|(_, request)| request.tool.is_some()).count(), 3);
            assert_eq!(denials(&proxy, quota), Some(1.0));
        }
    }
}

#[tokio::test]
async fn tool_calls_over_the_quota_fail_one_by_one_and_the_turn_goes_on() {
    let lab = Lab::start().await;
    let tools = json!({ "tools": { "f": tool(&lab, "echo", "f") } });
    let proxy = proxy(&lab, json!({ "limits": { "tool_calls_per_minute": 2 } }), tools).await;
    let calls: Vec<Value> = (0..3).map(|n| json!({ "name": "f", "arguments": { "n": n } })).collect();
    lab.script(
        "calls",
        json!({ "rounds": [{ "reply": { "calls": calls } }, { "reply": { "text": "done" } }] }),
    );
    let reply = proxy::reply(&proxy.chat_with(&[BLUE], &chat("calls")).await);
    assert_eq!(reply.text, "done");
    let seen = lab.journal();
    assert_eq!(seen.requests().filter(|(_, request)| request.tool.is_some()).count(), 2);
    let last = seen.bodies("calls").pop().expect("a second question").to_string();
    assert_eq!(last.matches("the quota of 2 tool calls a minute is used up").count(), 1, "{last}");
    assert_eq!(denials(&proxy, "tool_calls_per_minute"), Some(1.0));
    assert_eq!(
        proxy.metric("gen_ai_execute_tool_duration_seconds_count{tool=\"f\",outcome=\"denied\"}"),
        Some(1.0)
    );
}

#[tokio::test]
async fn cost_is_said_and_charged_where_there_is_a_price() {
    let lab = Lab::start().await;
    lab.script("two", rounds(1));
    // 10 tokens of input and 5 of output a round: 10 · 2.50 + 5 · 10.00 = 75 millionths.
    let priced = json!({
        "tools": { "f": tool(&lab, "echo", "f") },
        "prices": { "script:two": { "input": 2.50, "output": 10.00 } },
        "currency": "EUR",
    });
    let proxy = proxy(&lab, json!({ "budget": { "cost_per_day": 0.0002 } }), priced).await;
    let got = proxy.chat_with(&[BLUE], &chat("two")).await;
    assert_eq!(got.header("x-fanfold-cost"), "0.00015 EUR");
    let labels = "{team=\"blue\",model=\"other\",currency=\"EUR\"}";
    let cost = proxy.metric("fanfold_cost_millionths_total{team=\"blue\"");
    assert_eq!(cost, Some(150.0), "{labels}");
    let free = proxy.chat_with(&[BLUE], &chat("x")).await;
    assert_eq!((free.status.as_u16(), free.header("x-fanfold-cost")), (200, ""));
    assert_eq!(proxy.chat_with(&[BLUE], &chat("two")).await.status, 200, "something is left");
    let refused = proxy.chat_with(&[BLUE], &chat("x")).await;
    is_out(&refused, "insufficient_quota");
    assert!(refused.body.contains("budget of 0.0002 EUR a day"), "{}", refused.body);
}

#[tokio::test]
async fn without_prices_nobody_speaks_of_cost() {
    let lab = Lab::start().await;
    lab.script("two", rounds(1));
    let proxy = proxy(&lab, json!({}), json!({ "tools": { "f": tool(&lab, "echo", "f") } })).await;
    let got = proxy.chat_with(&[BLUE, ("x-fanfold-include", "transcript")], &chat("two")).await;
    assert!(got.header("x-fanfold-cost").is_empty() && got.json()["fanfold"]["cost"].is_null(), "{got:?}");
    assert!(!proxy.app.metrics().contains("fanfold_cost_millionths_total{"));
}

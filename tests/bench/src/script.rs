//! The texts that the scripted model writes.

/// The last event of a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// A whole reply.
pub const WHOLE: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello there","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

/// One event.
pub fn chunk(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_1\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}],\"usage\":null}}\n\n"
    )
}

/// The event that begins a reply.
pub fn opening() -> String {
    chunk("{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}", "null")
}

/// The event that is sent to whoever asks for it.
pub fn usage(asked: bool) -> &'static str {
    if asked {
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_1\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\n\n"
    } else {
        ""
    }
}

/// A whole stream of words.
pub fn text_events(words: &[&str], with_usage: bool) -> String {
    let mut out = opening();
    for word in words {
        out += &chunk(&format!("{{\"content\":\"{word}\"}}"), "null");
    }
    out + &chunk("{}", "\"stop\"") + usage(with_usage) + DONE
}

/// The members of a call of a tool that takes `millis`.
pub fn call(round: u64, n: u64, millis: u64) -> String {
    format!(
        "\"id\":\"call_{round}_{n}\",\"type\":\"function\",\"function\":{{\"name\":\"t0\",\"arguments\":\"{{\\\"ms\\\":{millis},\\\"n\\\":{n}}}\"}}"
    )
}

/// A whole reply of calls.
pub fn whole_calls(calls: u64, call: impl Fn(u64) -> String) -> String {
    let calls: Vec<String> = (0..calls).map(|n| format!("{{{}}}", call(n))).collect();
    format!(
        "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":null,\"refusal\":null,\"tool_calls\":[{}]}},\"logprobs\":null,\"finish_reason\":\"tool_calls\"}}]}}",
        calls.join(",")
    )
}

/// What a client asks that offers so many tools and has the messages of past rounds.
pub fn question(model: &str, tools: usize, past: Vec<String>) -> String {
    let past: String = past.into_iter().map(|round| format!(",{round}")).collect();
    let tools: Vec<String> = (0..tools).map(tool).collect();
    format!(
        "{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"l\"}}{past}],\"stream\":true,\"tools\":[{}],\"stream_options\":{{\"include_usage\":true}}}}",
        tools.join(",")
    )
}

/// The declaration of one tool.
fn tool(n: usize) -> String {
    format!(
        "{{\"type\":\"function\",\"function\":{{\"name\":\"t{n}\",\"description\":\"Tool number {n}, for the benchmark\",\"parameters\":{{\"type\":\"object\",\"properties\":{{\"ms\":{{\"type\":\"integer\"}},\"n\":{{\"type\":\"integer\"}}}},\"required\":[\"ms\"],\"additionalProperties\":false}}}}}}"
    )
}

/// The messages of a round of calls: the model's, and one for each result.
pub fn whole_results(round: u64, calls: u64, millis: u64) -> String {
    let result = |n| {
        format!(
            "{{\"role\":\"tool\",\"tool_call_id\":\"call_{round}_{n}\",\"name\":\"t0\",\"content\":\"{{\\\"ok\\\":true}}\"}}"
        )
    };
    let results: Vec<String> = (0..calls).map(result).collect();
    let calls: Vec<String> = (0..calls).map(|n| format!("{{{}}}", call(round, n, millis))).collect();
    format!(
        "{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}},{}",
        calls.join(","),
        results.join(",")
    )
}

//! The scripted model: given a request, what it says. Pure, and the same every time.
//!
//! It looks at the last user message and at the tools it is offered:
//!
//! - *weather, forecast, temperature*: one call of the weather tool per city named;
//! - *time, clock*: the clock tool; *convert, currency, exchange*: the currency tool;
//!   *how many words, count … words*: the word-counting tool;
//! - any other tool whose name is made of words of the question (`get_location` for "my location").
//!
//! A tool is the first offered one with a fitting name, else with a fitting description. Calls go
//! out together, or one per round with `parallel_tool_calls: false`. A city that a location tool
//! answered is then asked about as if it had been named. When every call has its result, the answer
//! lists the results in the order of the calls. Everything else is answered in plain text.

use serde_json::Value;

use super::arguments::{self, Subject};
use super::cities::{self, City};
use super::reply::{Call, Reply};
use super::rules::{self, Refusal};

/// The chat models there are. The first is the one the demo tells people to use.
pub const MODELS: [&str; 8] = ["demo", "gpt-4o-mini", "gpt-4o", "gpt-4.1", "o1", "o3", "o3-mini", "o4-mini"];

/// When every reply says it was made: a fixed second, so that replies are the same each time.
pub const CREATED: u64 = 1_760_000_000;

/// The reply to a chat request, or why it is refused.
pub fn answer(request: &Value) -> Result<Reply, Refusal> {
    rules::check(request)?;
    let model = request["model"].as_str().unwrap_or_default();
    if !MODELS.contains(&model) {
        return Err(Refusal::no_such_model(model));
    }
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let talk = Talk::of(messages);
    let choice = Choice::of(request);
    let calls: Vec<Call> = calls(request, &talk, &choice)
        .into_iter()
        .enumerate()
        .map(|(index, wish)| Call {
            id: format!("call_demo{:04}{index:02}", messages.len()),
            name: wish.name,
            arguments: wish.arguments.to_string(),
        })
        .collect();
    let text = calls.is_empty().then(|| talk.text(&choice));
    let written = text.as_deref().unwrap_or_default().len()
        + calls.iter().map(|call| call.name.len() + call.arguments.len()).sum::<usize>();
    // A named function is the one forced choice after which OpenAI's servers say "stop".
    let finish =
        if calls.is_empty() || matches!(choice.mode, Mode::Named(_)) { "stop" } else { "tool_calls" };
    Ok(Reply {
        id: format!("chatcmpl-demo{:04}", messages.len()),
        created: CREATED,
        model: model.to_owned(),
        text,
        calls,
        finish: finish.to_owned(),
        prompt_tokens: tokens(messages.iter().map(|message| message.to_string().len()).sum()),
        completion_tokens: tokens(written),
    })
}

/// About four bytes are a token.
fn tokens(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(4)
}

/// `tool_choice`, and which tools it leaves.
struct Choice {
    mode: Mode,
    /// With `allowed_tools`: only these.
    only: Option<Vec<String>>,
}

enum Mode {
    Auto,
    None,
    Required,
    Named(String),
}

impl Choice {
    fn of(request: &Value) -> Self {
        let choice = &request["tool_choice"];
        let name = |of: &Value| of["function"]["name"].as_str().map(str::to_owned);
        let word = |mode: &Value| match mode.as_str() {
            Some("none") => Mode::None,
            Some("required") => Mode::Required,
            Some(_) | None => Mode::Auto,
        };
        let allowed = &choice["allowed_tools"];
        match (choice["type"].as_str(), name(choice)) {
            (Some("function"), Some(name)) => Self { mode: Mode::Named(name), only: None },
            (Some("allowed_tools"), _) => Self {
                mode: word(&allowed["mode"]),
                only: Some(allowed["tools"].as_array().into_iter().flatten().filter_map(name).collect()),
            },
            (Some(_) | None, _) => Self { mode: word(choice), only: None },
        }
    }
}

/// A call the model would like to make.
#[derive(Debug, Clone, PartialEq)]
struct Wish {
    name: String,
    arguments: Value,
}

/// The conversation since the last user message.
struct Talk<'a> {
    question: String,
    /// Each call made since, with what its tool answered.
    made: Vec<(Wish, &'a str)>,
}

impl<'a> Talk<'a> {
    fn of(messages: &'a [Value]) -> Self {
        let last = messages.iter().rposition(|message| message["role"] == "user");
        let question = last.map_or_else(String::new, |at| text_of(&messages[at]["content"]));
        let since = &messages[last.map_or(0, |at| at + 1)..];
        let made = since
            .iter()
            .enumerate()
            .flat_map(|(at, message)| {
                let calls = message["tool_calls"].as_array().into_iter().flatten();
                calls.map(move |call| {
                    let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
                    let wish = Wish {
                        name: call["function"]["name"].as_str().unwrap_or_default().to_owned(),
                        arguments: serde_json::from_str(arguments).unwrap_or_default(),
                    };
                    // An id may come again in a later round: the answer is the next message with it.
                    let result =
                        since[at..].iter().find(|m| m["role"] == "tool" && m["tool_call_id"] == call["id"]);
                    (wish, result.and_then(|m| m["content"].as_str()).unwrap_or_default())
                })
            })
            .collect();
        Self { question, made }
    }

    /// The cities asked about: those of the question, then those a location tool answered.
    fn cities(&self) -> Vec<&'static City> {
        let mut cities = cities::named_in(&self.question);
        for (wish, result) in &self.made {
            if wish.name.contains("location") {
                cities.extend(cities::named_in(result));
            }
        }
        let mut seen = Vec::new();
        cities.retain(|city| {
            !seen.contains(city) && {
                seen.push(*city);
                true
            }
        });
        cities
    }

    /// The answer, once there is nothing left to call.
    fn text(&self, choice: &Choice) -> String {
        if !self.made.is_empty() {
            let lines: Vec<String> = self.made.iter().map(|(wish, result)| line(wish, result)).collect();
            return format!("Here is what I found:\n{}", lines.join("\n"));
        }
        if matches!(choice.mode, Mode::None) {
            return "I was told to call no tool, so I can only say: please look out of the window.".into();
        }
        let said = self.question.trim();
        let heard = if said.is_empty() { "nothing".into() } else { format!("\"{said}\"") };
        format!(
            "This is the demo model: a script, the same every time. You said {heard}. \
             Ask me \"What is the weather in Paris, Tokyo and Lima?\" and I call a tool for each city."
        )
    }
}

fn line(wish: &Wish, result: &str) -> String {
    let summary = serde_json::from_str::<Value>(result)
        .ok()
        .and_then(|value| value["summary"].as_str().map(str::to_owned));
    match summary {
        Some(summary) => format!("- {summary}"),
        None if result.starts_with("error:") => format!("- {} did not work ({result})", wish.name),
        None => format!("- {}: {}", wish.name, result.trim()),
    }
}

/// The text of a message, be it a string or a list of parts.
fn text_of(content: &Value) -> String {
    match content.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let parts = content.as_array().into_iter().flatten();
            parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" ")
        }
    }
}

/// A tool of the request.
struct Offered<'a> {
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
}

/// The calls of this reply.
fn calls(request: &Value, talk: &Talk<'_>, choice: &Choice) -> Vec<Wish> {
    if matches!(choice.mode, Mode::None) {
        return Vec::new();
    }
    let offered: Vec<Offered<'_>> = request["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|tool| {
            let function = &tool["function"];
            Some(Offered {
                name: function["name"].as_str()?,
                description: function["description"].as_str().unwrap_or_default(),
                parameters: &function["parameters"],
            })
        })
        .filter(|tool| choice.only.as_ref().is_none_or(|only| only.iter().any(|name| name == tool.name)))
        .collect();
    let wanted = wanted(talk, &offered);
    let mut calls: Vec<Wish> =
        wanted.iter().filter(|wish| !talk.made.iter().any(|(made, _)| made == *wish)).cloned().collect();
    match &choice.mode {
        Mode::Auto | Mode::None => {}
        Mode::Required if calls.is_empty() => calls.extend(forced(talk, offered.first(), &wanted)),
        Mode::Required => {}
        Mode::Named(name) => {
            calls.retain(|wish| wish.name == *name);
            if calls.is_empty() {
                let wanted: Vec<Wish> = wanted.into_iter().filter(|wish| wish.name == *name).collect();
                calls.extend(forced(talk, offered.iter().find(|tool| tool.name == name), &wanted));
            }
        }
    }
    if request["parallel_tool_calls"] == false {
        calls.truncate(1);
    }
    calls
}

/// A call must be made although there is nothing (more) to ask: what was wanted first again, or
/// the given tool with whatever fits.
fn forced(talk: &Talk<'_>, tool: Option<&Offered<'_>>, wanted: &[Wish]) -> Option<Wish> {
    wanted.first().cloned().or_else(|| {
        let city = talk.cities().first().copied().or(Some(arguments::some_city()));
        tool.map(|tool| wish(tool, Subject { question: &talk.question, city }))
    })
}

fn wish(tool: &Offered<'_>, subject: Subject<'_>) -> Wish {
    Wish { name: tool.name.to_owned(), arguments: arguments::fill(tool.parameters, subject) }
}

/// Every call the question asks for, made or not.
fn wanted(talk: &Talk<'_>, offered: &[Offered<'_>]) -> Vec<Wish> {
    let words = words(&talk.question);
    let mut chosen: Vec<(&Offered<'_>, bool)> = Topic::ALL
        .iter()
        .filter(|topic| topic.asked(&words))
        .filter_map(|topic| topic.tool(offered).map(|tool| (tool, topic.needs_a_city())))
        .collect();
    for tool in offered.iter().filter(|tool| named(tool.name, &words)) {
        if !chosen.iter().any(|(known, _)| known.name == tool.name) {
            chosen.push((tool, false));
        }
    }
    let cities = talk.cities();
    let subject = |city| Subject { question: &talk.question, city };
    chosen
        .into_iter()
        .flat_map(|(tool, needs_a_city)| {
            if cities.is_empty() || !arguments::takes_a_city(tool.parameters) {
                let nowhere = needs_a_city && cities.is_empty();
                let one = (!nowhere).then(|| wish(tool, subject(cities.first().copied())));
                return one.into_iter().collect::<Vec<_>>();
            }
            cities.iter().map(|city| wish(tool, subject(Some(city)))).collect()
        })
        .collect()
}

/// The words of a text, in small letters.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether a tool's name, less its verb, is made of words of the question.
fn named(tool: &str, question: &[String]) -> bool {
    const VERBS: [&str; 10] =
        ["get", "fetch", "list", "search", "find", "read", "look", "lookup", "a", "the"];
    let mut parts = words(tool);
    parts.retain(|part| !VERBS.contains(&part.as_str()));
    !parts.is_empty() && parts.iter().all(|part| question.iter().any(|word| same(word, part)))
}

/// The same word, a plural `s` aside.
fn same(a: &str, b: &str) -> bool {
    a.strip_suffix('s').unwrap_or(a) == b.strip_suffix('s').unwrap_or(b)
}

/// What a question can be about.
#[derive(Clone, Copy)]
enum Topic {
    Weather,
    Clock,
    Currency,
    Words,
}

impl Topic {
    const ALL: [Self; 4] = [Self::Weather, Self::Clock, Self::Currency, Self::Words];

    fn asked(self, question: &[String]) -> bool {
        let any = |of: &[&str]| question.iter().any(|word| of.iter().any(|known| same(word, known)));
        match self {
            Self::Weather => any(&["weather", "forecast", "temperature", "rain", "sunny"]),
            Self::Clock => any(&["time", "clock"]),
            Self::Currency => any(&["convert", "currency", "currencie", "exchange"]),
            Self::Words => any(&["word"]) && any(&["many", "count", "number"]),
        }
    }

    fn tool<'a, 'b>(self, offered: &'a [Offered<'b>]) -> Option<&'a Offered<'b>> {
        let known: &[&str] = match self {
            Self::Weather => &["weather", "forecast", "temperature"],
            Self::Clock => &["clock", "time"],
            Self::Currency => &["currency", "exchange", "convert"],
            Self::Words => &["words", "word"],
        };
        let has = |text: &str| {
            let words = words(text);
            words.iter().any(|word| known.contains(&word.as_str()))
        };
        offered
            .iter()
            .find(|tool| has(tool.name))
            .or_else(|| offered.iter().find(|tool| has(tool.description)))
    }

    fn needs_a_city(self) -> bool {
        match self {
            Self::Weather => true,
            Self::Clock | Self::Currency | Self::Words => false,
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;

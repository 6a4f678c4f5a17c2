//! One run, as operators see it. Times are milliseconds since its request came.

use std::sync::Arc;

use serde::Serialize;

use crate::telemetry::redact::Redact;
use crate::wire::tool::{Effect, OutcomeKind};

/// What is known of a run from its start.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    /// Names the run: unlike the request's id, no client can choose it.
    pub id: String,
    /// The request's id, which the client knows.
    pub request_id: String,
    /// Who asks.
    pub team: Arc<str>,
    /// The model the client asked for.
    pub model: String,
    /// The pattern of the route that fits it.
    pub route: Arc<str>,
    /// Where it goes.
    pub upstream: Arc<str>,
    /// Whether tools may run, or bytes go through.
    pub kind: Kind,
    /// The client wants a stream.
    pub stream: bool,
    /// When it began, in milliseconds since 1970.
    pub began: u64,
    /// The id of its trace, if spans are made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// How many tools of ours the model could call.
    pub tools: usize,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A turn of the engine.
    Turn,
    /// A chat that went through.
    Relay,
}

/// What happened until now.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Progress {
    /// The decision about parallel calls, as in the response's header.
    pub parallel: String,
    /// The same, in plain words.
    pub because: &'static str,
    /// The rounds, in order.
    pub rounds: Vec<Round>,
    /// The owned calls, in order.
    pub calls: Vec<Call>,
    /// The limits that were reached.
    pub limits: Vec<&'static str>,
    /// A reply held owned and foreign calls.
    pub mixed: bool,
    /// The client left before the end.
    pub client_gone: bool,
}

/// One round.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Round {
    /// When it was first asked.
    pub asked: f64,
    /// When the first content came.
    pub first: Option<f64>,
    /// When the reply was complete, or failed for good.
    pub ended: Option<f64>,
    /// When it was asked again, and why.
    pub again: Vec<Again>,
    /// The upstream's finish reason.
    pub finish: Option<&'static str>,
    /// Tokens the upstream reported: input and output.
    pub tokens: Option<(u64, u64)>,
}

/// Another try.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Again {
    /// When.
    pub at: f64,
    /// Why, in one word.
    pub why: &'static str,
}

/// One owned call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Call {
    /// The round, from 1.
    pub round: u32,
    /// The call's id on the wire.
    pub id: String,
    /// The tool, or the name the model invented.
    pub tool: Arc<str>,
    /// What the tool does to the world; `None`: there is no such tool.
    pub effect: Option<Effect>,
    /// When it could have started but for a slot.
    pub queued: f64,
    /// When it started.
    pub started: Option<f64>,
    /// When its result was there.
    pub ended: Option<f64>,
    /// When it was tried again.
    pub again: Vec<f64>,
    /// How it ended.
    pub outcome: Option<OutcomeKind>,
    /// It shares the run of an equal call.
    pub shared: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Default, Serialize)]
pub struct End {
    /// When.
    pub total: f64,
    /// When the client saw the first content.
    pub first: Option<f64>,
    /// The metric's word for it.
    pub outcome: &'static str,
    /// The status of the answer, or the one an error inside a stream stands for. 0: nobody was there.
    pub status: u16,
    /// The error's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Time in which a tool was at work.
    pub tool_time: f64,
    /// Time in which neither the upstream nor a tool was.
    pub overhead: f64,
    /// Tokens of all rounds: input and output.
    pub tokens: (u64, u64),
    /// A round did not report its tokens.
    pub tokens_partial: bool,
    /// What it cost, with its currency, where its model has a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
}

/// The calls of one round, which ran side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Batch {
    /// The round, from 1.
    pub round: u32,
    /// How many calls ran.
    pub calls: usize,
    /// From the first start to the last end.
    pub wall: f64,
    /// What they would have taken one after another.
    pub sum: f64,
    /// How many times faster that was, as people are told it.
    pub factor: f64,
}

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// What was known from its start.
    #[serde(flatten)]
    pub about: Arc<About>,
    /// What happened.
    #[serde(flatten)]
    pub progress: Progress,
    /// The batches of calls that ended.
    pub batches: Vec<Batch>,
    /// How it ended; `None` while it runs.
    pub end: Option<End>,
}

impl Run {
    pub(super) fn new(about: Arc<About>, progress: Progress, end: Option<End>) -> Self {
        let batches = batches(&progress.calls);
        Self { about, progress, batches, end }
    }

    /// One line of a list.
    #[must_use]
    pub fn summary(&self) -> Summary<'_> {
        let Self { about, progress, end, .. } = self;
        Summary {
            id: &about.id,
            request_id: &about.request_id,
            team: &about.team,
            model: &about.model,
            kind: about.kind,
            began: about.began,
            rounds: progress.rounds.len(),
            calls: progress.calls.len(),
            failed: progress.calls.iter().filter(|call| call.failed()).count(),
            total: end.as_ref().map(|end| end.total),
            saved: self.batches.iter().map(|batch| (batch.sum - batch.wall).max(0.0)).sum(),
            outcome: end.as_ref().map(|end| end.outcome),
            error: end.as_ref().and_then(|end| end.error.as_deref()),
            tokens: end.as_ref().map(|end| end.tokens),
            cost: end.as_ref().and_then(|end| end.cost.as_deref()),
        }
    }

    /// The memory it takes, roughly and not too little, in bytes.
    pub(super) fn size(&self) -> usize {
        let strings = self.about.model.len() + self.about.request_id.len() + self.about.id.len();
        let again: usize = self.progress.rounds.iter().map(|r| r.again.len() * size_of::<Again>()).sum();
        let calls: usize = self
            .progress
            .calls
            .iter()
            .map(|call| size_of::<Call>() + call.id.len() + call.tool.len() + call.again.len() * 8)
            .sum();
        size_of::<Self>()
            + size_of::<About>()
            + strings
            + again
            + calls
            + self.progress.rounds.len() * size_of::<Round>()
            + self.batches.len() * size_of::<Batch>()
    }
}

impl Call {
    /// It ended otherwise than well.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.outcome.is_some_and(|outcome| outcome != OutcomeKind::Ok)
    }
}

/// One line of the list of runs.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "as in the run")]
pub struct Summary<'a> {
    pub id: &'a str,
    pub request_id: &'a str,
    pub team: &'a str,
    pub model: &'a str,
    pub kind: Kind,
    pub began: u64,
    pub rounds: usize,
    pub calls: usize,
    pub failed: usize,
    pub total: Option<f64>,
    pub saved: f64,
    pub outcome: Option<&'static str>,
    pub error: Option<&'a str>,
    pub tokens: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<&'a str>,
}

/// Per round, what its calls took together and in sum. Calls that shared another's run are that run.
fn batches(calls: &[Call]) -> Vec<Batch> {
    let mut all: Vec<(Batch, f64, f64)> = Vec::new();
    for call in calls.iter().filter(|call| !call.shared) {
        let (Some(started), Some(ended)) = (call.started, call.ended) else { continue };
        let took = (ended - started).max(0.0);
        match all.last_mut().filter(|(batch, ..)| batch.round == call.round) {
            Some((batch, first, last)) => {
                *first = first.min(started);
                *last = last.max(ended);
                batch.calls += 1;
                batch.sum += took;
                batch.wall = *last - *first;
            }
            None => {
                let batch = Batch { round: call.round, calls: 1, wall: took, sum: took, factor: 1.0 };
                all.push((batch, started, ended));
            }
        }
    }
    all.into_iter().map(|(batch, ..)| Batch { factor: factor(batch.sum, batch.wall), ..batch }).collect()
}

/// With one decimal, of the times as they are written beside it, so that nobody who divides them is surprised.
fn factor(sum: f64, wall: f64) -> f64 {
    let shown = |ms: f64| (ms / 10.0).round();
    let (sum, wall) = if shown(wall) > 0.0 { (shown(sum), shown(wall)) } else { (sum, wall) };
    if wall > 0.0 { (sum / wall * 10.0).round() / 10.0 } else { 1.0 }
}

/// What was said in a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Content {
    /// What the client sent.
    pub request: Option<Text>,
    /// Of each call, in the order of the run's.
    pub calls: Vec<CallContent>,
    /// What went upstream, ask by ask.
    pub asked: Vec<Asked>,
    /// What the client got.
    pub answer: Option<Text>,
    /// The error's message.
    pub error: Option<Text>,
}

/// What was said in a call.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CallContent {
    /// What the model sent.
    pub arguments: Option<Text>,
    /// What the model reads.
    pub result: Option<Text>,
}

/// A question to the upstream.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// The round, from 1.
    pub round: u32,
    /// How often this round was asked before.
    pub attempt: u8,
    /// The body; `None`: there was no memory left to keep it.
    pub body: Option<Text>,
}

/// A text, cut where it is longer than what is kept of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Text {
    /// The beginning, or all of it.
    pub text: String,
    /// The size of all of it, in bytes.
    pub bytes: usize,
}

impl Text {
    /// At most `most` bytes of it without its secrets, cut between characters.
    #[must_use]
    pub fn of(text: &str, most: usize, redact: &Redact) -> Self {
        let (text, bytes) = redact.beginning(text, most, 0);
        Self { text, bytes }
    }

    /// The same of bytes, in which what is not UTF-8 is shown as such.
    #[must_use]
    pub fn of_bytes(bytes: &[u8], most: usize, redact: &Redact) -> Self {
        // A character that the cut would split is shown as broken otherwise.
        let head = &bytes[..bytes.len().min(Redact::gathered(most))];
        let whole = match std::str::from_utf8(head) {
            Err(error) if error.error_len().is_none() => &head[..error.valid_up_to()],
            Ok(_) | Err(_) => head,
        };
        let (text, size) = redact.beginning(&String::from_utf8_lossy(whole), most, bytes.len() - whole.len());
        Self { text, bytes: size }
    }

    /// What was gathered, without its secrets; see [`Redact::gathered`].
    #[must_use]
    pub fn clean(&self, most: usize, redact: &Redact) -> Self {
        let (text, bytes) = redact.beginning(&self.text, most, self.bytes - self.text.len());
        Self { text, bytes }
    }

    /// Goes on, as far as there is room.
    pub fn push(&mut self, more: &str, most: usize) {
        // Once something was left out, nothing comes after the gap.
        if self.text.len() == self.bytes {
            let room = most.saturating_sub(self.text.len());
            self.text.push_str(&more[..more.floor_char_boundary(room)]);
        }
        self.bytes += more.len();
    }
}

impl Content {
    pub(super) fn size(&self) -> usize {
        let of = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.text.len());
        let calls: usize = self.calls.iter().map(|call| of(&call.arguments) + of(&call.result)).sum();
        let asked: usize = self.asked.iter().map(|asked| of(&asked.body)).sum();
        size_of::<Self>()
            + calls
            + asked
            + of(&self.request)
            + of(&self.answer)
            + of(&self.error)
            + self.calls.len() * size_of::<CallContent>()
            + self.asked.len() * size_of::<Asked>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn call(round: u32, queued: f64, started: f64, ended: f64) -> Call {
        Call {
            round,
            id: "c".into(),
            tool: "t".into(),
            effect: Some(Effect::Read),
            queued,
            started: Some(started),
            ended: Some(ended),
            again: Vec::new(),
            outcome: Some(OutcomeKind::Ok),
            shared: false,
        }
    }

    #[test]
    fn a_batch_takes_as_long_as_its_slowest_call_and_shared_calls_count_once() {
        let mut calls =
            vec![call(1, 0.0, 10.0, 110.0), call(1, 0.0, 20.0, 100.0), call(2, 200.0, 200.0, 250.0)];
        calls.push(Call { shared: true, ..call(2, 200.0, 200.0, 250.0) });
        calls.push(Call { ended: None, ..call(3, 300.0, 300.0, 0.0) });
        let batch = |round, calls, wall, sum, factor| Batch { round, calls, wall, sum, factor };
        assert_eq!(batches(&calls), [batch(1, 2, 100.0, 180.0, 1.8), batch(2, 1, 50.0, 50.0, 1.0)]);
    }

    #[test]
    fn how_many_times_faster_is_what_the_written_times_say() {
        assert_eq!(factor(2146.0, 1046.0), 2.0, "2.15 s and 1.05 s, although it was 2.052 times");
        assert_eq!(factor(2.0, 1.0), 2.0, "0.00 s, so it is what it was");
        assert_eq!(factor(0.0, 0.0), 1.0);
    }

    #[test]
    fn texts_are_cut_between_characters_and_tell_their_size() {
        let redact = Redact::new(&Default::default()).unwrap();
        let cut = Text { text: "a".into(), bytes: 3 };
        assert_eq!(
            (Text::of("aé", 2, &redact), Text::of_bytes("aé".as_bytes(), 2, &redact)),
            (cut.clone(), cut)
        );
        let long = "é".repeat(9_000);
        let cut = Text::of_bytes(&long.as_bytes()[1..], 9, &redact);
        assert_eq!(
            (cut.text.as_str(), cut.bytes),
            ("\u{fffd}ééé", 18_001),
            "what is broken takes three bytes"
        );
        let mut text = Text::default();
        for more in ["aé", "é", "z"] {
            text.push(more, 4);
        }
        assert_eq!(text, Text { text: "aé".into(), bytes: 6 }, "nothing follows a gap");
    }
}

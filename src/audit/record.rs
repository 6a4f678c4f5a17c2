//! One record: a line of JSON that holds the SHA-256 of the line before it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::wire::tool::{Effect, Outcome, OutcomeKind};

/// The SHA-256 of a line, its end left out.
pub(super) type Hash = [u8; 32];
/// What the first record of all has before it.
pub(super) const NOTHING: Hash = [0; 32];
/// How every line begins.
pub(super) const OPENING: &[u8] = b"{\"time\":\"";
/// What is written of an id a model made up, in bytes.
const LONGEST_ID: usize = 256;

/// A call, as the log knows it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whose request it is.
    pub team: Arc<str>,
    /// The request.
    pub request_id: String,
    /// The call's id in the model's reply.
    pub call_id: String,
    /// What the tool gets as `idempotency-key`: unlike the call's id, it is never there twice.
    pub key: String,
    /// The tool.
    pub tool: Arc<str>,
    /// What it does to the world.
    pub effect: Effect,
    /// The arguments as the model wrote them.
    pub arguments: String,
}

/// A call without its arguments, unless they are wanted.
#[derive(Debug, Clone)]
pub(super) struct Call {
    facts: Facts,
    digest: String,
    with_arguments: bool,
}

impl Call {
    pub(super) fn new(mut facts: Facts, with_arguments: bool) -> Self {
        let digest = hex(&Sha256::digest(facts.arguments.as_bytes()).into());
        if !with_arguments {
            facts.arguments = String::new();
        }
        let mut end = facts.call_id.len().min(LONGEST_ID);
        while !facts.call_id.is_char_boundary(end) {
            end -= 1;
        }
        facts.call_id.truncate(end);
        Self { facts, digest, with_arguments }
    }
}

/// What is to be written.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// The file was opened, or is mended: so many bytes before this record are a line that broke off.
    Start { torn: u64 },
    /// A call is about to leave.
    Intent(Call),
    /// A call ended.
    Outcome(Call, &'static str, Duration),
}

impl Entry {
    /// The line, its end left out.
    pub(super) fn line(&self, time: jiff::Timestamp, before: &Hash) -> Vec<u8> {
        let before = hex(before);
        let mut line =
            Line { time: format!("{time:.6}"), event: self.word(), prev: &before, ..Line::default() };
        match self {
            Self::Start { torn } => {
                line.pid = Some(std::process::id());
                line.version = Some(env!("CARGO_PKG_VERSION"));
                line.torn = (*torn > 0).then_some(*torn);
            }
            Self::Intent(call) => {
                line.call(call);
                line.arguments = call.with_arguments.then_some(&call.facts.arguments);
            }
            Self::Outcome(call, outcome, took) => {
                line.call(call);
                line.outcome = Some(outcome);
                line.ms = u64::try_from(took.as_millis()).ok();
            }
        }
        serde_json::to_vec(&line).unwrap_or_default()
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Intent(_) => "intent",
            Self::Outcome(..) => "outcome",
        }
    }
}

/// How a call ended, in the log's words.
pub(super) fn word(outcome: &Outcome) -> &'static str {
    if outcome.is_unknown() {
        return "unknown";
    }
    match outcome.kind {
        OutcomeKind::Ok => "ok",
        OutcomeKind::Error => "error",
        OutcomeKind::Timeout => "timeout",
        OutcomeKind::Stopped => "cancelled",
        OutcomeKind::InvalidArguments | OutcomeKind::Denied => "denied",
    }
}

#[derive(Default, Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    torn: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments_sha256: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    prev: &'a str,
}

impl<'a> Line<'a> {
    fn call(&mut self, call: &'a Call) {
        self.team = Some(&call.facts.team);
        self.request_id = Some(&call.facts.request_id);
        self.call_id = Some(&call.facts.call_id);
        self.key = Some(&call.facts.key);
        self.tool = Some(&call.facts.tool);
        self.effect = Some(call.facts.effect);
        self.arguments_sha256 = Some(&call.digest);
    }
}

/// What a reader of the log needs of a record.
#[derive(Debug, Deserialize)]
pub(super) struct Read {
    pub(super) event: String,
    #[serde(default)]
    pub(super) torn: u64,
    prev: String,
}

impl Read {
    /// The record a line holds; `None` if the line is none.
    pub(super) fn line(line: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(line).ok()?;
        (line.starts_with(OPENING) && unhex(&read.prev).is_some()).then_some(read)
    }

    pub(super) fn before(&self) -> Hash {
        unhex(&self.prev).unwrap_or(NOTHING)
    }
}

pub(super) fn hash(line: &[u8]) -> Hash {
    Sha256::digest(line).into()
}

pub(super) fn hex(hash: &Hash) -> String {
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut hash = NOTHING;
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(with_arguments: bool) -> Call {
        let facts = Facts {
            team: "blue".into(),
            request_id: "r-1".into(),
            call_id: "call_\"é".repeat(100),
            key: "k-1".into(),
            tool: "save".into(),
            effect: Effect::Write,
            arguments: "{\"password\":\"hunter2\"}".into(),
        };
        Call::new(facts, with_arguments)
    }

    fn written(entry: &Entry) -> String {
        let time: jiff::Timestamp = "2026-11-25T16:00:00Z".parse().unwrap();
        String::from_utf8(entry.line(time, &NOTHING)).unwrap()
    }

    #[test]
    fn arguments_are_a_digest_unless_they_are_asked_for() {
        let plain = written(&Entry::Intent(call(false)));
        assert!(
            plain.starts_with(
                "{\"time\":\"2026-11-25T16:00:00.000000Z\",\"event\":\"intent\",\"team\":\"blue\""
            )
        );
        let digest = hex(&hash(b"{\"password\":\"hunter2\"}"));
        assert!(plain.contains(&format!("\"arguments_sha256\":\"{digest}\"")), "{plain}");
        assert!(!plain.contains("hunter2") && plain.len() < 1000, "{plain}");
        assert!(written(&Entry::Intent(call(true))).contains("hunter2"));
        let outcome = written(&Entry::Outcome(call(true), "ok", Duration::from_millis(7)));
        assert!(!outcome.contains("hunter2") && outcome.contains("\"outcome\":\"ok\",\"ms\":7"), "{outcome}");
    }

    #[test]
    fn a_line_is_read_as_the_record_it_is_and_anything_else_is_none() {
        let line = written(&Entry::Start { torn: 3 });
        let read = Read::line(line.as_bytes()).unwrap();
        assert_eq!((read.event.as_str(), read.torn, read.before()), ("start", 3, NOTHING));
        for other in
            ["", "{}", "null", "{\"time\":\"x\"}", &line[..line.len() - 1], &line.replace("00\"}", "0\"}")]
        {
            assert!(Read::line(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn every_end_of_a_call_has_its_word() {
        use crate::wire::tool::UNKNOWN;
        let failed = |kind, what: &str| word(&Outcome::failed(kind, what));
        assert_eq!(word(&Outcome::ok(UNKNOWN)), "ok");
        assert_eq!(failed(OutcomeKind::Error, "x"), "error");
        assert_eq!(failed(OutcomeKind::Timeout, "x"), "timeout");
        assert_eq!(failed(OutcomeKind::Timeout, &format!("timed out; {UNKNOWN}")), "unknown");
        assert_eq!(failed(OutcomeKind::Stopped, "x"), "cancelled");
        assert_eq!(failed(OutcomeKind::Stopped, &format!("stopped; {UNKNOWN}")), "unknown");
        assert_eq!(failed(OutcomeKind::Denied, "x"), "denied");
        assert_eq!(failed(OutcomeKind::InvalidArguments, "x"), "denied");
    }
}

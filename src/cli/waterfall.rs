//! A run as text: rounds and calls as bars over one time, the calls of a batch bracketed.

use serde_json::Value;

/// The width of the bars, in characters.
const WIDTH: usize = 40;
/// The longest name of a tool that is written out.
const NAME: usize = 24;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with("36", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A text from a model or a client, without what a terminal would obey.
pub(super) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Rounded as the inspector does.
pub(super) fn seconds(ms: f64) -> String {
    format!("{:.2} s", (ms / 10.0).round() / 100.0)
}

/// The first line: model, outcome, time, team.
pub(super) fn headline(run: &Value, paint: Paint) -> String {
    let end = &run["end"];
    let outcome = end["outcome"].as_str().unwrap_or("running");
    let outcome = if matches!(outcome, "ok" | "running") { paint.good(outcome) } else { paint.bad(outcome) };
    let total = end["total"].as_f64().map(|ms| format!("  {}", seconds(ms))).unwrap_or_default();
    let of = |name: &str| tame(run[name].as_str().unwrap_or_default());
    let mut text =
        format!("{}  {outcome}{total}  team {}, upstream {}", of("model"), of("team"), of("upstream"));
    if let Some(tokens) = end["tokens"].as_array() {
        text.push_str(&format!(", {} + {} tokens", tokens[0], tokens[1]));
    }
    if let Some(cost) = end["cost"].as_str() {
        text.push_str(&format!(", {}", tame(cost)));
    }
    text.push('\n');
    text
}

/// What one batch saved: `batch 0.83 s, one after another 1.66 s, ×2.0`.
pub(super) fn batch(batch: &Value) -> String {
    let of = |name: &str| batch[name].as_f64().unwrap_or(0.0);
    format!("batch {}, one after another {}, ×{:.1}", seconds(of("wall")), seconds(of("sum")), of("factor"))
}

/// Rounds and calls. `now`: how far a run that goes on has come, in milliseconds.
pub(super) fn draw(run: &Value, now: f64, paint: Paint) -> String {
    let total = run["end"]["total"].as_f64().unwrap_or(now).max(1.0);
    let scale = Scale { total };
    let empty = Vec::new();
    let calls = run["calls"].as_array().unwrap_or(&empty);
    let mut text = String::new();
    for (i, round) in run["rounds"].as_array().unwrap_or(&empty).iter().enumerate() {
        text.push_str(&round_line(i + 1, round, &scale, paint));
        let of: Vec<&Value> =
            calls.iter().filter(|call| call["round"].as_u64() == Some(i as u64 + 1)).collect();
        for (at, call) in of.iter().enumerate() {
            let bracket = match (of.len(), at) {
                (1, _) => ' ',
                (_, 0) => '┌',
                (n, at) if at + 1 == n => '└',
                _ => '│',
            };
            text.push_str(&call_line(bracket, call, &scale, paint));
        }
        let done = run["batches"].as_array().unwrap_or(&empty).iter();
        let of_round = done.filter(|batch| batch["round"].as_u64() == Some(i as u64 + 1));
        for one in of_round.filter(|batch| batch["calls"].as_u64() > Some(1)) {
            text.push_str(&format!("  {}\n", paint.good(&batch(one))));
        }
    }
    text
}

fn round_line(number: usize, round: &Value, scale: &Scale, paint: Paint) -> String {
    let asked = round["asked"].as_f64().unwrap_or(0.0);
    let until = round["ended"].as_f64().unwrap_or(scale.total);
    let first = round["first"].as_f64().unwrap_or(until);
    let bar = scale.bar(&[(asked, first, '░'), (first, until, '▒')]);
    let took = match (round["ended"].as_f64(), round["first"].as_f64()) {
        (Some(_), Some(_)) => format!("{}, first token {}", seconds(until - asked), seconds(first - asked)),
        (Some(_), None) => seconds(until - asked),
        (None, _) => String::new(),
    };
    let again = round["again"].as_array().map_or(0, Vec::len);
    let again = if again > 0 { format!(", asked {} times", again + 1) } else { String::new() };
    format!("  {:<NAME$}  {}  {took}{again}\n", format!("round {number}"), paint.dim(&bar))
        .replace("  \n", "\n")
}

fn call_line(bracket: char, call: &Value, scale: &Scale, paint: Paint) -> String {
    let queued = call["queued"].as_f64().unwrap_or(0.0);
    let ended = call["ended"].as_f64().unwrap_or(scale.total);
    let started = call["started"].as_f64().unwrap_or(ended);
    let outcome = call["outcome"].as_str().unwrap_or("");
    let failed = !matches!(outcome, "ok" | "");
    let bar = scale.bar(&[(queued, started, '-'), (started, ended, '█')]);
    let bar = if failed { paint.bad(&bar) } else { paint.good(&bar) };
    let mut took = match (call["started"].is_null(), call["ended"].is_null()) {
        (false, false) => seconds(ended - started),
        (true, false) => "not run".into(),
        (_, true) => String::new(),
    };
    if failed {
        took.push_str(&format!(" {}", paint.bad(&outcome.replace('_', " "))));
    }
    if call["shared"] == true {
        took.push_str(" shared");
    }
    let again = call["again"].as_array().map_or(0, Vec::len);
    if again > 0 {
        took.push_str(&format!(", tried {} times", again + 1));
    }
    let name = tame(call["tool"].as_str().unwrap_or_default());
    let name: String = name.chars().take(NAME).collect();
    format!("{bracket} {name:<NAME$}  {bar}  {took}\n").replace("  \n", "\n")
}

struct Scale {
    total: f64,
}

impl Scale {
    /// Parts of a bar, each with what it is drawn with; every part has at least one character.
    fn bar(&self, parts: &[(f64, f64, char)]) -> String {
        let mut cells = vec!['·'; WIDTH];
        for (from, to, with) in parts.iter().filter(|(from, to, _)| to > from) {
            let (first, last) = (self.cell(*from), self.cell(*to));
            let last = last.max(first + 1).min(WIDTH);
            cells[first.min(WIDTH - 1)..last].fill(*with);
        }
        cells.into_iter().collect()
    }

    fn cell(&self, at: f64) -> usize {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the width"
        )]
        let cell = ((at / self.total).clamp(0.0, 1.0) * WIDTH as f64).round() as usize;
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run() -> Value {
        let call = |started: f64, ended: f64, outcome: &str| json!({ "round": 1, "tool": "get_weather", "queued": 100.0, "started": started, "ended": ended, "outcome": outcome, "again": [], "shared": false });
        json!({
            "model": "demo\u{1b}[2J", "team": "blue", "upstream": "main",
            "rounds": [
                { "asked": 0.0, "first": 100.0, "ended": 300.0, "again": [] },
                { "asked": 900.0, "first": 950.0, "ended": 1000.0, "again": [{ "at": 910.0, "why": "reset" }] },
            ],
            "calls": [call(100.0, 700.0, "ok"), call(300.0, 900.0, "timeout")],
            "batches": [{ "round": 1, "calls": 2, "wall": 800.0, "sum": 1200.0, "factor": 1.5 }],
            "end": { "total": 1000.0, "outcome": "ok", "tokens": [3, 4] },
        })
    }

    #[test]
    fn bars_lie_over_one_time_and_calls_of_a_batch_are_bracketed() {
        let expected = "  round 1                   ░░░░▒▒▒▒▒▒▒▒····························  0.30 s, first token 0.10 s
┌ get_weather               ····████████████████████████············  0.60 s
└ get_weather               ····--------████████████████████████····  0.60 s timeout
  batch 0.80 s, one after another 1.20 s, ×1.5
  round 2                   ····································░░▒▒  0.10 s, first token 0.05 s, asked 2 times
";
        assert_eq!(draw(&run(), 0.0, Paint(false)), expected);
    }

    #[test]
    fn what_still_runs_reaches_until_now_and_has_no_time_yet() {
        let run = json!({ "rounds": [{ "asked": 0.0, "first": null, "ended": null, "again": [] }], "calls": [], "batches": [] });
        let drawn = draw(&run, 500.0, Paint(false));
        assert_eq!(drawn, format!("  {:<NAME$}  {}\n", "round 1", "░".repeat(WIDTH)));
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_written() {
        let line = headline(&run(), Paint(false));
        assert_eq!(line, "demo\u{fffd}[2J  ok  1.00 s  team blue, upstream main, 3 + 4 tokens\n");
        assert!(headline(&run(), Paint(true)).contains("\u{1b}[36mok\u{1b}[0m"));
    }
}

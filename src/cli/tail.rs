//! `fanfold tail`: what happens in a running fanfold, a line for each round, batch and end.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use clap::Args;
use serde_json::Value;

use super::client::{Client, Whom};
use super::waterfall::{Paint, batch, seconds, tame};
use super::{Exit, answer_of, out};

/// Runs that are followed at once; the rest is told when it ends.
const FOLLOWED: usize = 10_000;

/// What `tail` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Every change of a run as a line of JSON.
    #[arg(long)]
    json: bool,
    /// End after so many runs have ended.
    #[arg(long, value_name = "NUMBER")]
    runs: Option<u64>,
    #[command(flatten)]
    whom: Whom,
}

/// 1 when there is nobody to follow, or it ends.
pub(super) fn run(path: Option<&Path>, arguments: &Arguments) -> Exit {
    let admin = arguments.whom.admin(path);
    answer_of(follow(&admin, arguments)).err().unwrap_or(Exit::Fine)
}

async fn follow(admin: &str, arguments: &Arguments) -> Result<(), String> {
    let mut events = Client::new()?.events(admin).await?;
    out::report(&format!("following {admin}\n"));
    let mut lines = Lines { paint: Paint(out::coloured_answer()), told: HashMap::new() };
    let mut left = arguments.runs.unwrap_or(u64::MAX);
    while let Some(event) = events.next().await {
        let event: Bytes = event?;
        let Ok(run) = serde_json::from_slice::<Value>(&event) else { continue };
        if let Value::Number(lost) = &run {
            out::report(&format!("{lost} updates were missed: this terminal is too slow\n"));
        }
        if run["id"].is_null() {
            continue;
        }
        let text = if arguments.json { format!("{run}\n") } else { lines.of(&run) };
        // A reader that has gone away wants no more.
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return Ok(());
        }
        left -= u64::from(!run["end"].is_null());
        if left == 0 {
            return Ok(());
        }
    }
    Err(format!("{admin} has ended"))
}

/// What was told of runs that go on: how many rounds, and how many batches.
struct Lines {
    paint: Paint,
    told: HashMap<String, (usize, usize)>,
}

impl Lines {
    /// What is new of a run.
    fn of(&mut self, run: &Value) -> String {
        let id = run["id"].as_str().unwrap_or_default();
        let (rounds, batches) = self.told.get(id).copied().unwrap_or_default();
        let empty = Vec::new();
        let list = |name: &str| run[name].as_array().unwrap_or(&empty);
        let ended = !run["end"].is_null();
        let short: String = id.chars().skip(id.chars().count().saturating_sub(6)).collect();
        let name = self.paint.dim(&short);
        let mut text = String::new();
        let over = |round: &&Value| !round["ended"].is_null() || ended;
        let there: Vec<&Value> = list("rounds").iter().take_while(over).collect();
        // A batch is whole when the next round was asked, or nothing more comes.
        let whole = if ended { usize::MAX } else { list("rounds").len() };
        let several: Vec<&Value> = list("batches")
            .iter()
            .filter(|batch| (batch["round"].as_u64().unwrap_or(0) as usize) < whole)
            .collect();
        let mut batch_at = batches;
        for (i, round) in there.iter().enumerate().skip(rounds.saturating_sub(1)) {
            if i >= rounds {
                text.push_str(&format!("{name}  {}\n", self.round(i, round, run)));
            }
            while let Some(one) =
                several.get(batch_at).filter(|one| one["round"].as_u64() == Some(i as u64 + 1))
            {
                batch_at += 1;
                if one["calls"].as_u64() > Some(1) {
                    let said = batch(one).replacen("batch", &format!("{} calls in", one["calls"]), 1);
                    text.push_str(&format!("{name}  {:<8} {}\n", "batch", self.paint.good(&said)));
                }
            }
        }
        if ended {
            self.told.remove(id);
            text.push_str(&format!("{name}  {}\n", self.end(run)));
        } else if self.told.len() < FOLLOWED || self.told.contains_key(id) {
            self.told.insert(id.to_owned(), (there.len(), batch_at));
        }
        text
    }

    fn round(&self, i: usize, round: &Value, run: &Value) -> String {
        let asked = round["asked"].as_f64().unwrap_or(0.0);
        let since = |name: &str| round[name].as_f64().map(|at| seconds(at - asked));
        let mut parts = Vec::new();
        parts.extend(since("first").map(|time| format!("first token {time}")));
        parts.extend(since("ended").map(|time| format!("reply {time}")));
        let calls: Vec<String> = run["calls"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|call| call["round"].as_u64() == Some(i as u64 + 1))
            .map(|call| tame(call["tool"].as_str().unwrap_or_default()))
            .collect();
        if !calls.is_empty() {
            parts.push(format!("calls {}", counted(&calls)));
        }
        for again in round["again"].as_array().into_iter().flatten() {
            parts
                .push(self.paint.bad(&format!("asked again: {}", again["why"].as_str().unwrap_or_default())));
        }
        let model = tame(run["model"].as_str().unwrap_or_default());
        let team = tame(run["team"].as_str().unwrap_or_default());
        format!("{:<8} {model}, {team}: {}", format!("round {}", i + 1), parts.join(", "))
    }

    fn end(&self, run: &Value) -> String {
        let end = &run["end"];
        let outcome = end["outcome"].as_str().unwrap_or_default();
        // As wide as `round 10`; the rest is said behind it.
        let (word, more) = match outcome {
            "client_gone" => ("gone", Some("the client left")),
            "failed_after_tools" => ("failed", Some("after tools ran")),
            word => (word, None),
        };
        let label = format!("{word:<8}");
        let label = if outcome == "ok" { self.paint.good(&label) } else { self.paint.bad(&label) };
        let number = |name: &str| run[name].as_array().map_or(0, Vec::len);
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let mut parts =
            vec![seconds(end["total"].as_f64().unwrap_or(0.0)), plural(number("rounds"), "round")];
        parts.push(plural(number("calls"), "call"));
        let difference =
            |batch: &Value| batch["sum"].as_f64().unwrap_or(0.0) - batch["wall"].as_f64().unwrap_or(0.0);
        let saved: f64 = run["batches"].as_array().into_iter().flatten().map(difference).sum();
        if saved >= 1.0 {
            parts.push(format!("{} saved", seconds(saved)));
        }
        if let Some(tokens) = end["tokens"].as_array() {
            parts.push(format!("{} + {} tokens", tokens[0], tokens[1]));
        }
        parts.extend(end["cost"].as_str().map(tame));
        parts.extend(more.map(str::to_owned));
        if let Some(error) = end["error"].as_str() {
            parts.push(self.paint.bad(error));
        }
        format!("{label} {}", parts.join(", "))
    }
}

/// Names in order, equal ones that follow each other counted: `a ×3, b`.
fn counted(names: &[String]) -> String {
    let parts: Vec<String> = names
        .chunk_by(|a, b| a == b)
        .map(
            |equal| {
                if equal.len() > 1 { format!("{} ×{}", equal[0], equal.len()) } else { equal[0].clone() }
            },
        )
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_round_batch_and_end_is_told_once() {
        let mut lines = Lines { paint: Paint(false), told: HashMap::new() };
        let call = json!({ "round": 1, "tool": "t" });
        let first = json!({ "asked": 0.0, "first": 100.0, "ended": null, "again": [] });
        let done = json!({ "asked": 0.0, "first": 100.0, "ended": 300.0, "again": [] });
        let second = json!({ "asked": 900.0, "first": 950.0, "ended": 1000.0, "again": [{ "at": 910.0, "why": "reset" }] });
        let batches = json!([{ "round": 1, "calls": 2, "wall": 800.0, "sum": 1600.0, "factor": 2.0 }]);
        let mut run = json!({ "id": "0000-abcdef", "model": "m", "team": "blue", "rounds": [first], "calls": [call, call], "batches": [], "end": null });
        assert_eq!(lines.of(&run), "");
        run["rounds"] = json!([done]);
        assert_eq!(
            lines.of(&run),
            "abcdef  round 1  m, blue: first token 0.10 s, reply 0.30 s, calls t ×2\n"
        );
        run["batches"] = batches;
        assert_eq!(lines.of(&run), "", "more calls of it may come");
        run["rounds"] = json!([done, { "asked": 900.0, "first": null, "ended": null, "again": [] }]);
        assert_eq!(lines.of(&run), "abcdef  batch    2 calls in 0.80 s, one after another 1.60 s, ×2.0\n");
        assert_eq!(lines.of(&run), "");
        run["rounds"] = json!([done, second]);
        run["end"] = json!({ "outcome": "ok", "total": 1000.0, "tokens": [1, 2], "cost": "0.03 EUR" });
        assert_eq!(
            lines.of(&run),
            "abcdef  round 2  m, blue: first token 0.05 s, reply 0.10 s, asked again: reset\n\
             abcdef  ok       1.00 s, 2 rounds, 2 calls, 0.80 s saved, 1 + 2 tokens, 0.03 EUR\n"
        );
        assert!(lines.told.is_empty());
    }

    #[test]
    fn every_outcome_fits_into_its_column() {
        for (outcome, line) in [
            ("client_gone", "abcdef  gone     1.00 s, 0 rounds, 0 calls, the client left"),
            ("failed_after_tools", "abcdef  failed   1.00 s, 0 rounds, 0 calls, after tools ran"),
            ("refused", "abcdef  refused  1.00 s, 0 rounds, 0 calls"),
        ] {
            let mut lines = Lines { paint: Paint(false), told: HashMap::new() };
            let run = json!({ "id": "0000-abcdef", "end": { "outcome": outcome, "total": 1000.0 } });
            assert_eq!(lines.of(&run), format!("{line}\n"));
        }
    }

    #[test]
    fn equal_names_are_counted() {
        assert_eq!(counted(&["a".into(), "a".into(), "b".into()]), "a ×2, b");
    }
}

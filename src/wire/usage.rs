//! Usage, summed over the rounds of a turn: every numeric member, nested and unknown ones included.

use super::raw::{Kind, Member, Members, Raw};

/// The tokens of one question to a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of input, those from the cache included.
    pub input: u64,
    /// Of the input, those that the model server had in its cache.
    pub cached: u64,
    /// Of output.
    pub output: u64,
}

impl Tokens {
    /// Those of a usage object, in the words of chat completions or of responses.
    #[must_use]
    pub fn of(usage: &Raw) -> Self {
        let Ok(members) = usage.members() else { return Self::default() };
        let count =
            |members: &Members, name: &str| members.find(name).and_then(|raw| raw.text().parse().ok());
        let first = |names: [&str; 2]| names.iter().find_map(|name| count(&members, name)).unwrap_or(0);
        let details = members.find("prompt_tokens_details").or_else(|| members.find("input_tokens_details"));
        let details = details.and_then(|details| details.members().ok());
        Self {
            input: first(["prompt_tokens", "input_tokens"]),
            cached: details.and_then(|details| count(&details, "cached_tokens")).unwrap_or(0),
            output: first(["completion_tokens", "output_tokens"]),
        }
    }

    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cached: self.cached.saturating_add(other.cached),
            output: self.output.saturating_add(other.output),
        }
    }
}

/// What the rounds reported, to be added up for whoever wants to see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sum {
    rounds: Vec<Raw>,
    tokens: Tokens,
    missing: bool,
}

impl Sum {
    /// Adds what one round reported, and gives its tokens; `None` marks the sum as partial.
    pub fn add(&mut self, usage: Option<&Raw>) -> Option<Tokens> {
        let Some(usage) = usage else {
            self.missing = true;
            return None;
        };
        let tokens = Tokens::of(usage);
        self.tokens = self.tokens.plus(tokens);
        self.rounds.push(usage.clone());
        Some(tokens)
    }

    /// The sum, added up here; a single round's usage keeps its text. `None` if no round reported any.
    #[must_use]
    pub fn total(&self) -> Option<Raw> {
        let (first, others) = self.rounds.split_first()?;
        Some(others.iter().fold(first.clone(), |sum, usage| added(&sum, usage, 0)))
    }

    /// Whether some round did not report its usage.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.missing
    }

    /// The tokens of the sum, 0 where nothing is said.
    #[must_use]
    pub const fn tokens(&self) -> Tokens {
        self.tokens
    }
}

fn added(a: &Raw, b: &Raw, depth: usize) -> Raw {
    match (a.kind(), b.kind()) {
        (Kind::Number, Kind::Number) => number(a.text(), b.text()),
        (Kind::Object, Kind::Object) if depth < 8 => {
            let (Ok(a), Ok(b)) = (a.members(), b.members()) else { return b.clone() };
            let both = |m: &Member| {
                m.with_value(
                    b.find(&m.name()).map_or_else(|| m.value.clone(), |v| added(&m.value, v, depth + 1)),
                )
            };
            let mut sum: Members = a.iter().map(both).collect();
            for member in b.iter().filter(|m| a.find(&m.name()).is_none()) {
                sum.push(member.clone());
            }
            sum.to_raw()
        }
        (_, Kind::Null) => a.clone(),
        _ => b.clone(),
    }
}

fn number(a: &str, b: &str) -> Raw {
    if let (Ok(a), Ok(b)) = (a.parse::<i128>(), b.parse::<i128>()) {
        return Raw::trusted(a.saturating_add(b).to_string().into());
    }
    let sum = a.parse::<f64>().unwrap_or(0.0) + b.parse::<f64>().unwrap_or(0.0);
    serde_json::to_string(&sum).map_or(Raw::NULL, |text| Raw::trusted(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(parts: &[Option<&'static str>]) -> Sum {
        let mut sum = Sum::default();
        for part in parts {
            sum.add(part.map(|text| Raw::parse(text).unwrap()).as_ref());
        }
        sum
    }

    #[test]
    fn every_numeric_member_is_added() {
        let sum = sum(&[
            Some(r#"{"prompt_tokens":3,"details":{"a":1,"x":null},"cost":0.5,"tier":"a"}"#),
            Some(r#"{"prompt_tokens":4,"details":{"a":2,"b":7},"cost":0.25,"tier":"b","new":1}"#),
        ]);
        assert_eq!(
            sum.total().unwrap().text(),
            r#"{"prompt_tokens":7,"details":{"a":3,"x":null,"b":7},"cost":0.75,"tier":"b","new":1}"#
        );
        assert_eq!((sum.tokens().input, sum.is_partial()), (7, false));
        assert_eq!(sum.tokens(), Tokens::of(&sum.total().unwrap()));
    }

    #[test]
    fn tokens_are_read_in_either_dialect() {
        for (usage, input, cached, output) in [
            (
                r#"{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}"#,
                3,
                2,
                4,
            ),
            (r#"{"input_tokens":3,"output_tokens":4,"input_tokens_details":{"cached_tokens":1}}"#, 3, 1, 4),
            (r#"{"prompt_tokens":3,"prompt_tokens_details":null}"#, 3, 0, 0),
            (r#"{"prompt_tokens":-3,"completion_tokens":"x"}"#, 0, 0, 0),
            ("null", 0, 0, 0),
        ] {
            let tokens = Tokens::of(&Raw::parse(usage.to_owned()).unwrap());
            assert_eq!(tokens, Tokens { input, cached, output }, "{usage}");
            assert_eq!(tokens.total(), input + output);
        }
    }

    #[test]
    fn one_round_keeps_its_text_and_a_silent_one_is_not_counted_as_zero() {
        assert_eq!(sum(&[Some(r#"{"a":1.10}"#)]).total().unwrap().text(), r#"{"a":1.10}"#);
        assert!(sum(&[Some("{\"a\":1}"), None]).is_partial());
        assert_eq!(sum(&[None]).total(), None);
    }
}

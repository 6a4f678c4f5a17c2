//! Money and prices, in whole numbers: what a model's tokens cost.
//!
//! An amount is counted in millionths of a millionth of the currency, so the price of a single token is
//! exact: prices are per million tokens and have at most six decimals. Which currency it is, is a word.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::policy::pattern::fits;
use crate::wire::usage::Tokens;

/// A millionth, in the smallest part that is counted.
const MICRO: u128 = 1_000_000;
/// A unit of the currency, in the smallest part that is counted.
const ONE: u128 = MICRO * MICRO;
/// Decimals an amount in the file may have.
const DECIMALS: usize = 6;
/// The most a file may say, in units of the currency: what a budget can count.
const MOST: u128 = 4_000_000;

/// An amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Money(u128);

impl Money {
    /// Reads `2.50`. The error is a sentence for the person who wrote the file.
    ///
    /// # Errors
    /// It is no amount, is negative or too large, or has more than six decimals.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no amount of money: write a number such as 2.50");
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(decimals) || text.ends_with('.') {
            return Err(wrong());
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > DECIMALS {
            return Err(format!("`{text}` has more than {DECIMALS} decimals"));
        }
        let millionths: u128 = format!("{whole}{decimals:0<DECIMALS$}").parse().map_err(|_| wrong())?;
        if millionths > MOST * MICRO {
            return Err(format!("`{text}` is more than can be counted, which is {MOST}"));
        }
        Ok(Self(millionths * MICRO))
    }

    /// In thousand-millionths of the currency, rounded up: as budgets count it.
    #[must_use]
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// In the smallest part that is counted: a millionth of a millionth of the currency.
    #[must_use]
    pub const fn smallest(self) -> u128 {
        self.0
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

/// As a decimal number, with all of its decimals and at least two.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:012}", self.0 % ONE);
        let shown = decimals.trim_end_matches('0').len().max(2);
        write!(f, "{}.{}", self.0 / ONE, &decimals[..shown])
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Money;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of money such as 2.50")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Money, E> {
                Money::parse(text).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Money, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Money, E> {
                self.visit_str(&number.to_string())
            }
            // The shortest text of a number that was read from up to fifteen digits is what was written.
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Money, E> {
                self.visit_str(&number.to_string())
            }
        }
        d.deserialize_any(Amount)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        match text.parse::<serde_json::Number>() {
            Ok(number) => number.serialize(s),
            Err(_) => s.serialize_str(&text),
        }
    }
}

impl JsonSchema for Money {
    fn schema_name() -> Cow<'static, str> {
        "Money".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "description": "an amount of money such as 2.50, of at most six decimals" })
    }
}

/// What a million tokens of a model cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A million tokens of input.
    pub input: Money,
    /// A million tokens of output.
    pub output: Money,
    /// A million tokens of input that the model server had in its cache. Default: like other input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<Money>,
}

impl Price {
    /// What so many tokens cost.
    #[must_use]
    pub fn of(&self, tokens: Tokens) -> Money {
        let cost = |count: u64, price: Money| u128::from(count).saturating_mul(price.0 / MICRO);
        let cached = tokens.cached.min(tokens.input);
        let parts = [
            cost(tokens.input - cached, self.input),
            cost(cached, self.cached_input.unwrap_or(self.input)),
            cost(tokens.output, self.output),
        ];
        Money(parts.into_iter().fold(0, u128::saturating_add))
    }
}

/// The price of a model: of all patterns that fit its name, the one with the most letters says it.
#[must_use]
pub fn price_of(prices: &BTreeMap<String, Price>, model: &str) -> Option<Price> {
    let letters = |pattern: &str| pattern.chars().filter(|c| *c != '*').count();
    let fitting = prices.iter().filter(|(pattern, _)| fits(pattern, model));
    let exact = |pattern: &str| !pattern.contains('*');
    fitting.max_by_key(|(pattern, _)| (exact(pattern), letters(pattern))).map(|(_, price)| *price)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(text: &str) -> Money {
        Money::parse(text).unwrap()
    }

    #[test]
    fn an_amount_is_what_was_written() {
        for (text, shown) in
            [("0", "0.00"), ("2.5", "2.50"), ("2.50", "2.50"), ("0.075", "0.075"), ("12.000001", "12.000001")]
        {
            assert_eq!(money(text).to_string(), shown);
        }
        for wrong in ["", ".", "-1", "1.", ".5", "1e3", "0.0000001", "4000001", "NaN", "1,5"] {
            assert!(Money::parse(wrong).is_err(), "{wrong}");
        }
        let read: Vec<Money> = serde_json::from_str("[0.1, 2.50, 3, 0.000001, 4000000]").unwrap();
        assert_eq!(read, ["0.1", "2.5", "3", "0.000001", "4000000"].map(money));
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Money>>(&written).unwrap(), read);
    }

    #[test]
    fn a_single_token_has_its_exact_price() {
        let price = Price { input: money("0.15"), output: money("0.60"), cached_input: Some(money("0.075")) };
        let cost = price.of(Tokens { input: 3, cached: 1, output: 1 });
        assert_eq!(cost.to_string(), "0.000000975");
        assert_eq!(cost.nanos(), 975);
        // A tenth is none in binary; ten million of them are a million all the same.
        let mut sum = Money::default();
        (0..1000).for_each(|_| sum += price.of(Tokens { input: 10_000, cached: 10_000, output: 0 }));
        assert_eq!(sum, money("0.75"));
        let all = Price { cached_input: None, ..price }.of(Tokens {
            input: u64::MAX,
            cached: u64::MAX,
            output: u64::MAX,
        });
        assert!(all > price.of(Tokens { input: 1, cached: 9, output: 0 }));
    }

    #[test]
    fn the_pattern_with_the_most_letters_says_the_price() {
        let of = |text: &str| Price { input: money(text), output: money("1"), cached_input: None };
        let prices = [("*", "1"), ("gpt-4o*", "2"), ("gpt-4o-mini*", "3"), ("gpt-4o", "4")];
        let prices: BTreeMap<String, Price> = prices.map(|(name, price)| (name.to_owned(), of(price))).into();
        for (model, price) in [("o3", "1"), ("gpt-4o-2024", "2"), ("gpt-4o-mini", "3"), ("gpt-4o", "4")] {
            assert_eq!(price_of(&prices, model).unwrap().input, money(price), "{model}");
        }
        assert_eq!(price_of(&BTreeMap::new(), "o3"), None);
    }
}

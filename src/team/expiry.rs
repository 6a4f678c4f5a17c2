//! When a key ends, as people write it.

use std::borrow::Cow;
use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The pattern an [`Expiry`] has to match in the file.
pub const EXPIRY_PATTERN: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2})?([Zz]|[+-][0-9]{2}:[0-9]{2}))?$";

/// A moment from which on something is worth nothing: the beginning of a day in UTC (`2027-01-31`), or a
/// timestamp with its offset (`2027-01-31T18:00:00+01:00`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(Timestamp);

impl Expiry {
    /// Reads `2027-01-31` or a timestamp. The error is a sentence for the person who wrote the file.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let day = || text.parse::<Date>().ok().filter(|_| text.len() == "2027-01-31".len());
        let midnight = day().and_then(|day| day.to_zoned(TimeZone::UTC).ok()).map(|day| day.timestamp());
        midnight.or_else(|| text.parse().ok()).map(Self).ok_or_else(|| {
            format!("`{text}` is no day: write one such as 2027-01-31, or a timestamp such as 2027-01-31T18:00:00Z")
        })
    }

    /// Whether it is over at this moment.
    #[must_use]
    pub fn is_over(self, now: Timestamp) -> bool {
        now >= self.0
    }

    /// Whether it is over within so many days of this moment.
    #[must_use]
    pub fn is_near(self, now: Timestamp, days: u16) -> bool {
        let then = now.checked_add((i64::from(days) * 24).hours());
        then.is_ok_and(|then| self.is_over(then))
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0.to_zoned(TimeZone::UTC);
        if at.time() == jiff::civil::Time::midnight() { at.date().fmt(f) } else { self.0.fmt(f) }
    }
}

impl<'de> Deserialize<'de> for Expiry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl Serialize for Expiry {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl JsonSchema for Expiry {
    fn schema_name() -> Cow<'static, str> {
        "Expiry".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": EXPIRY_PATTERN, "description": "a day (2027-01-31), or a timestamp (2027-01-31T18:00:00Z)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_a_key_at_its_first_moment_in_utc() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let day = Expiry::parse("2027-01-31").unwrap();
        assert!(!day.is_over(at("2027-01-30T23:59:59.999Z")));
        assert!(day.is_over(at("2027-01-31T00:00:00Z")));
        let moment = Expiry::parse("2027-01-31T18:00:00+01:00").unwrap();
        assert!(!moment.is_over(at("2027-01-31T16:59:59Z")) && moment.is_over(at("2027-01-31T17:00:00Z")));
        assert!(
            moment.is_near(at("2027-01-24T17:00:00Z"), 7) && !moment.is_near(at("2027-01-24T16:59:00Z"), 7)
        );
        assert_eq!(
            (day.to_string(), moment.to_string()),
            ("2027-01-31".into(), "2027-01-31T17:00:00Z".into())
        );
        let written = |expiry: Expiry| serde_json::to_string(&expiry).unwrap();
        for text in ["\"2027-01-31\"", "\"2027-01-31T17:00:00Z\""] {
            assert_eq!(written(serde_json::from_str(text).unwrap()), text);
        }
        for wrong in ["", "tomorrow", "2027-02-30", "2027-01-31T18:00:00", "31.1.2027", "2027"] {
            assert!(Expiry::parse(wrong).is_err(), "{wrong}");
            assert!(serde_json::from_value::<Expiry>(wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_schema_names_it_and_has_its_pattern() {
        let schema = schemars::schema_for!(Expiry).to_value();
        assert_eq!((&schema["title"], &schema["type"]), (&"Expiry".into(), &"string".into()));
        assert_eq!(schema["pattern"], EXPIRY_PATTERN);
    }
}

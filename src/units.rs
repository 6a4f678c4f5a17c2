//! Durations, sizes and secrets as people write them in a configuration file.
//!
//! Pure: a [`Secret`] says where its text is to be found; opening it is left to whoever starts
//! the part that needs it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written with a unit: `250ms`, `30s`, `5m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// The pattern a [`Span`] has to match in the file.
pub const SPAN_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$";
/// The pattern a [`Size`] has to match in the file.
pub const SIZE_PATTERN: &str = r"^[0-9]+(B|KB|MB|GB|KiB|MiB|GiB)$";

impl Span {
    /// So many whole seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Reads `30s`. The error is a sentence for the person who wrote the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a duration: write a number and a unit, such as 250ms, 30s, 5m or 1h");
        let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let unit = match unit {
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            "d" => 86400 * SECOND,
            _ => return Err(wrong()),
        };
        let nanos = times(number, unit).ok_or_else(wrong)?;
        match (u64::try_from(nanos / SECOND), u32::try_from(nanos % SECOND)) {
            (Ok(seconds), Ok(nanos)) => Ok(Self(Duration::new(seconds, nanos))),
            _ => Err(wrong()),
        }
    }
}

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// A decimal number times a unit, rounded down; exactly, so that what is written comes back.
fn times(number: &str, unit: u128) -> Option<u128> {
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) {
        return None;
    }
    let mut nanos = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    let mut worth = unit;
    for digit in part.bytes() {
        // What is left of a unit after so many digits may not divide by ten.
        worth /= 10;
        nanos = nanos.checked_add(u128::from(digit - b'0') * worth)?;
    }
    Some(nanos)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match self.0.subsec_nanos() % 1_000_000 {
            0 => {}
            part => return write!(f, "{millis}.{}ms", format!("{part:06}").trim_end_matches('0')),
        }
        match millis {
            m if m % 1000 != 0 => write!(f, "{m}ms"),
            m if m % 3_600_000 == 0 && m > 0 => write!(f, "{}h", m / 3_600_000),
            m => write!(f, "{}s", m / 1000),
        }
    }
}

/// A number of bytes, written with a unit: `512B`, `64KiB`, `16MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

impl Size {
    /// So many KiB.
    #[must_use]
    pub const fn kib(n: usize) -> Self {
        Self(n * 1024)
    }

    /// So many MiB.
    #[must_use]
    pub const fn mib(n: usize) -> Self {
        Self(n * 1024 * 1024)
    }

    /// Reads `64KiB`. The error is a sentence for the person who wrote the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a size: write a whole number and a unit, such as 512B, 64KiB or 16MiB")
        };
        let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let number: usize = number.parse().map_err(|_| wrong())?;
        let factor: usize = match unit {
            "B" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n > 0 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

macro_rules! written_as_text {
    ($type:ident, $pattern:expr, $about:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(d)?;
                $type::parse(&text).map_err(de::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $about })
            }
        }
    };
}
written_as_text!(Span, SPAN_PATTERN, "a duration: a number and a unit, such as 250ms, 30s, 5m or 1h");
written_as_text!(Size, SIZE_PATTERN, "a size: a whole number and a unit, such as 512B, 64KiB or 16MiB");

/// What stands for a secret.
pub const DOTS: &str = "••••";

/// Where a text may hold secrets in its URLs: the user and password, and every value of a query. What is a
/// `{place}` of a template is none.
#[must_use]
pub fn secrets_in_urls(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find("://").map(|i| at + i + 3) {
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
        let end = text[start..].find(ends).map_or(text.len(), |i| start + i);
        let authority = text[start..end].find(['/', '?', '#']).map_or(end, |i| start + i);
        if let Some(host) = text[start..authority].rfind('@') {
            found.push(start..start + host);
        }
        let query_end = text[start..end].find('#').map_or(end, |i| start + i);
        if let Some(query) = text[start..query_end].find('?').map(|i| start + i + 1) {
            let mut from = query;
            for part in text[query..query_end].split('&') {
                let value = part.find('=').map_or(0, |i| i + 1);
                let of = &part[value..];
                let place = of.strip_prefix('{').and_then(|of| of.strip_suffix('}'));
                if !of.is_empty() && place.is_none_or(|place| place.contains('}')) {
                    found.push(from + value..from + part.len());
                }
                from += part.len() + 1;
            }
        }
        at = end;
    }
    found
}

/// A text with dots in place of what [`secrets_in_urls`] finds.
#[must_use]
pub fn without_secrets_in_urls(text: &str) -> Cow<'_, str> {
    let found = secrets_in_urls(text);
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut out, mut copied) = (String::new(), 0);
    for secret in found {
        out.extend([&text[copied..secret.start], DOTS]);
        copied = secret.end;
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// A secret: text, `{ env: NAME }` or `{ file: PATH }`. It prints as dots and never shows its text.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Secret {
    /// The text itself (after `${VAR}` was filled in).
    Text(String),
    /// `{ env: NAME }`: an environment variable.
    Env {
        /// The variable's name.
        env: String,
    },
    /// `{ file: PATH }`: a file; one trailing line end is dropped.
    File {
        /// The file's path.
        file: String,
    },
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str(DOTS),
            Self::Env { env } => write!(f, "{{ env: {env} }}"),
            Self::File { file } => write!(f, "{{ file: {file} }}"),
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let (name, value) = match self {
            Self::Text(_) => return s.serialize_str(DOTS),
            Self::Env { env } => ("env", env),
            Self::File { file } => ("file", file),
        };
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry(name, value)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_urls_become_dots_and_the_rest_stays() {
        for (text, shown) in [
            ("https://a.example/v1", "https://a.example/v1"),
            (
                "https://a.example/x?q={q}&k=v&&e=&alone#part?",
                "https://a.example/x?q={q}&k=••••&&e=&••••#part?",
            ),
            ("redis://:p@ss@host:1/0", "redis://••••@host:1/0"),
            ("https://u@a?x={y}z&b={c}d{e}", "https://••••@a?x=••••&b=••••"),
            (
                "--url=https://a/?k=v 'http://b/?k=é' and a@b?c=d",
                "--url=https://a/?k=•••• 'http://b/?k=••••' and a@b?c=d",
            ),
            ("https://a/@me?t=https://u:p@b/?c", "https://a/@me?t=••••"),
            ("://?", "://?"),
        ] {
            assert_eq!(without_secrets_in_urls(text), shown);
        }
    }
}

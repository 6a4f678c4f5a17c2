//! `redact:` of the file: what is never kept or handed on of what is said in a turn, however much `content` is on.
//!
//! Whatever goes into a record of a run, into a span or into the log as content passes through here first. Two
//! things are looked for: values under a name that says they are secret, and text that looks like a secret
//! wherever it stands. Dots take its place. The work is bounded: the patterns are matched in time that is
//! proportional to the text, a text is looked at no further than is kept of it and a little more, and how many
//! patterns there may be is limited.

mod members;

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::DOTS;

/// Names whose values are always secret.
pub const MEMBERS: [&str; 13] = [
    "*password",
    "*passwd",
    "*passphrase",
    "*secret",
    "*token",
    "*api_key",
    "*access_key",
    "*secret_key",
    "*private_key",
    "*authorization",
    "*credentials",
    "cookie",
    "set_cookie",
];

/// What looks like a secret wherever it stands, and what it is.
pub const PATTERNS: [(&str, &str); 6] = [
    ("what follows `Bearer` or `Basic`", r"(?i)\b(?:bearer|basic)\s+([a-z0-9._~+/-]{8,}=*)"),
    ("a password in a URL", r#"://[^/\s:@"'\\]*:([^/\s@"'\\]+)@"#),
    ("a key of a model server: `sk-…`", r"\bsk-[A-Za-z0-9_-]{16,}"),
    ("a token of GitHub, or a key of AWS", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|A[KS]IA[0-9A-Z]{16})\b"),
    ("a JSON Web Token", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    ("a private key in PEM", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"),
];

/// The most names, and the most patterns, that may be added.
pub const MOST: usize = 64;
/// The longest name, in bytes.
const LONGEST_NAME: usize = 128;
/// The memory a compiled pattern may take, in bytes.
const LARGEST_PATTERN: usize = 256 * 1024;
/// How much further than what is kept a text is looked at, so that a secret at the cut is seen whole, in bytes.
const BEYOND: usize = 8 * 1024;

/// `redact:`: what is never kept or handed on of what is said, where the `content` of runs, traces or the log is on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Redact")]
pub struct Settings {
    /// The names and patterns that are looked for anyway.
    pub defaults: bool,
    /// More names whose values are secret, as members of JSON and as `name=value`. `*` stands for anything;
    /// capitals, `_` and `-` make no difference.
    pub members: Vec<String>,
    /// More patterns, as regular expressions, of what is secret. Of one with a group only the group is.
    pub patterns: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { defaults: true, members: Vec::new(), patterns: Vec::new() }
    }
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The list it stands in.
    pub list: &'static str,
    /// Its place there, from 0; `None`: the list as a whole.
    pub at: Option<usize>,
    /// What is wrong, as a sentence.
    pub message: String,
    /// What to do.
    pub fix: &'static str,
}

/// Puts dots in place of secrets.
#[derive(Debug, Clone)]
pub struct Redact {
    /// The whole of a member's name.
    names: Option<Regex>,
    /// `name=value`, then what was said to look like a secret.
    patterns: Vec<Regex>,
}

impl Redact {
    /// The error is everything that is wrong.
    pub fn new(settings: &Settings) -> Result<Self, Vec<Wrong>> {
        let mut wrong = Vec::new();
        for (list, length) in [("members", settings.members.len()), ("patterns", settings.patterns.len())] {
            if length > MOST {
                let message = format!("there may be no more than {MOST} of these");
                wrong.push(Wrong { list, at: None, message, fix: "join some of them: `*` and `|` help" });
            }
        }
        let mut names: Vec<String> = Vec::new();
        names.extend(MEMBERS.iter().filter(|_| settings.defaults).map(|name| expression(name)));
        for (at, name) in settings.members.iter().take(MOST).enumerate() {
            match mistake_of(name) {
                Some(message) => wrong.push(Wrong {
                    list: "members",
                    at: Some(at),
                    message,
                    fix: "write a name such as `pin` or `*_code`",
                }),
                None => names.push(expression(name)),
            }
        }
        let mut patterns = Vec::new();
        let names = (!names.is_empty()).then(|| names.join("|"));
        let own = names
            .iter()
            .map(|names| format!(r#"(?i)(?:^|[^a-z0-9_-])(?:{names})=([^\s&"'\\,;<>(){{}}\[\]]+)"#));
        let known = PATTERNS.iter().filter(|_| settings.defaults).map(|(_, pattern)| (*pattern).to_owned());
        for pattern in own.chain(known) {
            // Names are bounded, and a test compiles the patterns of ours.
            patterns.extend(RegexBuilder::new(&pattern).size_limit(LARGEST_PATTERN * 64).build());
        }
        for (at, pattern) in settings.patterns.iter().take(MOST).enumerate() {
            match compiled(pattern) {
                Ok(pattern) => patterns.push(pattern),
                Err((message, fix)) => wrong.push(Wrong { list: "patterns", at: Some(at), message, fix }),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let whole = names.map(|names| format!("(?i)^(?:{names})$"));
        let whole =
            whole.and_then(|whole| RegexBuilder::new(&whole).size_limit(LARGEST_PATTERN * 64).build().ok());
        Ok(Self { names: whole, patterns })
    }

    /// A text without its secrets.
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = match &self.names {
            Some(names) => members::masked(text, names),
            None => Cow::Borrowed(text),
        };
        for pattern in &self.patterns {
            if let Some(masked) = masked(pattern, &text) {
                text = Cow::Owned(masked);
            }
        }
        text
    }

    /// At most `most` bytes of the beginning of a text without its secrets, and how long it is in all. `more`
    /// bytes of it are not there.
    #[must_use]
    pub fn beginning(&self, text: &str, most: usize, more: usize) -> (String, usize) {
        let seen = text.floor_char_boundary(Self::gathered(most));
        let rest = text.len() - seen + more;
        let mut clean = self.text(&text[..seen]).into_owned();
        let bytes = clean.len() + rest;
        // Where it was looked at no further there may be half a secret.
        let most = if rest > 0 { most.min(clean.len().saturating_sub(BEYOND)) } else { most };
        clean.truncate(clean.floor_char_boundary(most));
        (clean, bytes)
    }

    /// The same of its end, of which `more` bytes before it are not there.
    #[must_use]
    pub fn end(&self, text: &str, most: usize, more: usize) -> (String, usize) {
        let from = text.ceil_char_boundary(text.len().saturating_sub(Self::gathered(most)));
        let rest = from + more;
        let clean = self.text(&text[from..]);
        let most = if rest > 0 { most.min(clean.len().saturating_sub(BEYOND)) } else { most };
        let kept = &clean[clean.ceil_char_boundary(clean.len() - most.min(clean.len()))..];
        (kept.to_owned(), clean.len() + rest)
    }

    /// How much of a text that is kept up to `most` has to be gathered before it is redacted.
    #[must_use]
    pub const fn gathered(most: usize) -> usize {
        most.saturating_add(BEYOND)
    }
}

/// A name as a regular expression.
fn expression(name: &str) -> String {
    let parts = name.chars().map(|c| match c {
        '*' => "[a-z0-9_-]*".to_owned(),
        '_' | '-' => "[_-]?".to_owned(),
        c => regex::escape(c.encode_utf8(&mut [0; 4])),
    });
    parts.collect()
}

fn mistake_of(name: &str) -> Option<String> {
    if !name.contains(|c: char| !matches!(c, '*' | '_' | '-')) {
        return Some(format!("`{name}` would be every name"));
    }
    if name.len() > LONGEST_NAME || name.contains(|c: char| c.is_control() || matches!(c, '"' | '\\')) {
        return Some(format!(
            "`{}` is not a name",
            name.escape_debug().take(LONGEST_NAME).collect::<String>()
        ));
    }
    None
}

fn compiled(pattern: &str) -> Result<Regex, (String, &'static str)> {
    let built = RegexBuilder::new(pattern).size_limit(LARGEST_PATTERN).build();
    let built = built.map_err(|why| {
        if matches!(why, regex::Error::CompiledTooBig(_)) {
            let fix = "repeat less: `{1,1000}` is a thousand times its part";
            return ("this pattern is too large".to_owned(), fix);
        }
        // The last line says what it is; the others draw the pattern, which the report does already.
        let text = why.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let fix = "see https://docs.rs/regex/latest/regex/#syntax; there is no look-around and there are no back-references";
        (format!("this is not a regular expression: {last}"), fix)
    })?;
    if built.is_match("") {
        return Err(("this pattern fits the empty text, so it fits everywhere".into(), "write `+` for `*`"));
    }
    Ok(built)
}

/// `None`: nothing fits.
fn masked(pattern: &Regex, text: &str) -> Option<String> {
    let mut out = String::new();
    let mut copied = 0;
    let mut hide = |part: regex::Match<'_>| {
        if !part.is_empty() {
            out.push_str(&text[copied..part.start()]);
            out.push_str(DOTS);
            copied = part.end();
        }
    };
    if pattern.captures_len() == 1 {
        pattern.find_iter(text).for_each(&mut hide);
    } else {
        let groups = pattern.captures_iter(text);
        groups.filter_map(|groups| groups.get(1).or_else(|| groups.get(0))).for_each(&mut hide);
    }
    (copied > 0).then(|| {
        out.push_str(&text[copied..]);
        out
    })
}

#[cfg(test)]
mod tests;

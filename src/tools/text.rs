//! What a model is given to read of a tool's bytes: text that fits, or a description of what is no text.
//!
//! Pure. Promises: never more than the limit, never half a character, never bytes that
//! are not text.

use std::fmt;

/// How long the whole was, of which a part was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// So many bytes.
    Exactly(u64),
    /// It went on after so many bytes.
    MoreThan(u64),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(bytes) => write!(f, "{bytes} bytes"),
            Self::MoreThan(bytes) => write!(f, "more than {bytes} bytes"),
        }
    }
}

/// The text, cut at a character boundary so that with the marker it takes at most `limit` bytes.
///
/// `text` may itself be only the beginning of what there was; `full` says how much that is. A limit
/// smaller than the marker leaves the marker alone.
#[must_use]
pub fn cut(mut text: String, limit: usize, full: Full) -> String {
    let whole = full == Full::Exactly(text.len() as u64);
    if whole && text.len() <= limit {
        return text;
    }
    let marker = match limit {
        kib if kib % 1024 == 0 => format!("… [cut: {} KiB of {full}]", kib / 1024),
        bytes => format!("… [cut: {bytes} bytes of {full}]"),
    };
    text.truncate(text.floor_char_boundary(limit.saturating_sub(marker.len())));
    text.push_str(&marker);
    text
}

/// The last `limit` bytes of a text, at a character boundary, with a sign that something came before.
#[must_use]
pub(super) fn tail(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let from = text.ceil_char_boundary(text.len() - limit.saturating_sub("…".len()));
    format!("…{}", text.get(from..).unwrap_or_default())
}

/// Bytes kept of a longer or equally long whole, as text. `None` when they are not UTF-8.
///
/// When the whole is longer than what was kept, the last character may be broken and is dropped.
pub(super) fn utf8(kept: Vec<u8>, full: Full) -> Option<String> {
    let partial = full != Full::Exactly(kept.len() as u64);
    let text = String::from_utf8(kept).or_else(|error| {
        let (valid, broken) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len());
        let mut kept = error.into_bytes();
        kept.truncate(valid);
        // Only where it was cut may a character be broken.
        if partial && broken.is_none() { String::from_utf8(kept).map_err(drop) } else { Err(()) }
    });
    text.ok().filter(|text| !text.contains('\0'))
}

/// What stands in place of bytes that are not text.
pub(super) fn describe(content_type: Option<&str>, full: Full) -> String {
    match content_type {
        Some(kind) => format!("binary data, {}, {full}", tame(kind, 80)),
        None => format!("binary data, {full}"),
    }
}

/// Somebody else's short text for one line of a message: control characters gone, at most `limit` bytes.
pub fn tame(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > limit {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}

/// Whether a `content-type` names something a model can read as text.
pub(super) fn is_text(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (family, name) = essence.split_once('/').unwrap_or((&essence, ""));
    match (family, name) {
        ("text", _) => true,
        ("application", name) => {
            ["json", "xml", "yaml"].iter().any(|word| {
                name == *word || name.ends_with(&format!("+{word}")) || name == format!("x-{word}")
            }) || [
                "x-ndjson",
                "ndjson",
                "jsonl",
                "javascript",
                "x-www-form-urlencoded",
                "graphql",
                "sql",
                "toml",
            ]
            .contains(&name)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fits_is_left_alone() {
        for text in ["", "a", "žluť", &"x".repeat(100)] {
            assert_eq!(cut(text.into(), 100, Full::Exactly(text.len() as u64)), text);
        }
    }

    #[test]
    fn a_cut_text_ends_at_a_character_says_the_full_size_and_stays_within_the_limit() {
        let long = "žluťoučký kůň 🐎 ".repeat(1000);
        for limit in (100..400).chain([1024, 2048, 10_000]) {
            let got = cut(long.clone(), limit, Full::Exactly(long.len() as u64));
            assert!(got.len() <= limit, "{limit}: {}", got.len());
            let (kept, marker) = got.split_once("… [cut: ").unwrap();
            assert!(long.starts_with(kept));
            assert!(marker.ends_with(&format!("of {} bytes]", long.len())), "{marker}");
        }
        assert!(
            cut("x".repeat(70_000), 65_536, Full::Exactly(1_234_567))
                .ends_with("… [cut: 64 KiB of 1234567 bytes]")
        );
        assert!(cut("x".repeat(10), 20, Full::MoreThan(9)).ends_with("[cut: 20 bytes of more than 9 bytes]"));
    }

    #[test]
    fn a_limit_below_the_marker_does_no_harm() {
        for limit in 0..40 {
            assert!(cut("ž".repeat(50), limit, Full::Exactly(100)).len() <= 60);
        }
    }

    #[test]
    fn a_character_broken_by_the_cut_is_dropped_but_a_broken_whole_is_no_text() {
        let bytes = "až".as_bytes();
        assert_eq!(utf8(bytes[..2].to_vec(), Full::Exactly(3)), Some("a".into()));
        assert_eq!(utf8(bytes[..2].to_vec(), Full::Exactly(2)), None);
        assert_eq!(utf8(vec![b'a', 0xff, b'b'], Full::Exactly(9)), None);
        assert_eq!(utf8(b"a\0b".to_vec(), Full::Exactly(3)), None);
        assert_eq!(utf8(bytes.to_vec(), Full::Exactly(3)), Some("až".into()));
    }

    #[test]
    fn the_tail_of_a_text_is_its_end() {
        assert_eq!(tail("abc", 3), "abc");
        assert_eq!(tail("abcdefgh", 6), "…fgh");
        let got = tail(&"ž".repeat(100), 20);
        assert!(got.starts_with('…') && got.ends_with('ž') && got.len() <= 20);
    }

    #[test]
    fn content_types_that_are_text() {
        for yes in [
            "text/plain",
            "text/html; charset=utf-8",
            "application/json",
            "Application/Problem+JSON; x=y",
            "application/x-ndjson",
            "application/atom+xml",
            "application/yaml",
            "application/x-yaml",
        ] {
            assert!(is_text(yes), "{yes}");
        }
        for no in [
            "image/png",
            "application/octet-stream",
            "application/zip",
            "",
            "json",
            "image/svg+png",
            "a/json",
        ] {
            assert!(!is_text(no), "{no}");
        }
    }

    #[test]
    fn somebody_elses_words_are_tamed() {
        assert_eq!(tame("a\r\nb\u{1b}[31m", 80), "a  b [31m");
        assert_eq!(tame("abcdef", 3), "abc…");
        assert_eq!(describe(Some("image/png"), Full::Exactly(12345)), "binary data, image/png, 12345 bytes");
    }
}

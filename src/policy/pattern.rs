//! Names with `*` in them.

/// Whether `name` fits `pattern`, in which each `*` stands for any text, also none.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether `name` fits one of `patterns`.
pub fn fits_any<'a>(patterns: impl IntoIterator<Item = &'a String>, name: &str) -> bool {
    patterns.into_iter().any(|pattern| fits(pattern, name))
}

/// Whether a pattern may fit a name that begins like this; which names there are shows only later.
#[must_use]
pub fn may_begin(pattern: &str, beginning: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.len() > beginning.len() && pattern.starts_with(beginning),
        Some((head, _)) => head.starts_with(beginning) || beginning.starts_with(head),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, expected) in [
            ("gpt-4", "gpt-4", true),
            ("gpt-4", "gpt-41", false),
            ("gpt-*", "gpt-4", true),
            ("gpt-*", "gp", false),
            ("*", "", true),
            ("*-mini", "o3-mini", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("a**", "a", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}

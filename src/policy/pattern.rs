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

/// Whether one of `patterns` may fit a name that begins like this.
pub fn any_may_begin<'a>(patterns: impl IntoIterator<Item = &'a String>, beginning: &str) -> bool {
    patterns.into_iter().any(|pattern| may_begin(pattern, beginning))
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
            ("*ab*b", "ab", false),
            ("*ab*b", "xxab", false),
            ("a**", "a", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn one_of_several_patterns_is_enough_and_one_is_needed() {
        let patterns = ["gpt-*".to_owned(), "o3".to_owned()];
        assert!(fits_any(&patterns, "gpt-4") && fits_any(&patterns, "o3"));
        assert!(!fits_any(&patterns, "o4") && !fits_any(&[], "o3"));
    }

    #[test]
    fn a_beginning_may_become_a_name_that_fits() {
        for (pattern, beginning, expected) in [
            ("files_read", "files_", true),
            ("files_read", "files_read", false),
            ("files_read", "web_", false),
            ("files_*", "files_", true),
            ("files_r*", "files_", true),
            ("f*", "files_", true),
            ("*", "files_", true),
            ("web_*", "files_", false),
            ("fa*", "files_", false),
        ] {
            assert_eq!(may_begin(pattern, beginning), expected, "{pattern} {beginning}");
            let patterns = ["mail_send".to_owned(), pattern.to_owned()];
            assert_eq!(any_may_begin(&patterns, beginning), expected, "one of two is {pattern}");
        }
    }
}

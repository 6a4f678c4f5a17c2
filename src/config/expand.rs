//! `${VAR}` and `${VAR:-default}` in the strings of the file.
//!
//! `$${` writes a plain `${`. What came out of a variable is not looked at again. How much may
//! come out in all is bounded.

use super::Env;
use super::problem::Problem;
use super::tree::{Kind, Node, Origin, Place};

/// The most bytes that variables may bring into one configuration.
const MOST: usize = 4 * 1024 * 1024;

/// Fills in the variables of a whole tree.
pub(super) struct Expander<'a> {
    pub(super) env: Env<'a>,
    /// The text of the file, to find the place of a variable.
    pub(super) text: &'a str,
    pub(super) problems: Vec<Problem>,
    /// Values of variables whose names say that they are secret: never printed.
    pub(super) hidden: Vec<String>,
    pub(super) brought: usize,
}

impl<'a> Expander<'a> {
    pub(super) fn new(env: Env<'a>, text: &'a str) -> Self {
        Self { env, text, problems: Vec::new(), hidden: Vec::new(), brought: 0 }
    }

    /// Fills in every string below a node. A string that cannot be filled in stays as it is.
    pub(super) fn expand(&mut self, node: &mut Node) {
        match &mut node.kind {
            Kind::Text(text) if text.contains("${") => {
                node.origin = match self.filled(text, &node.place) {
                    Some(filled) => {
                        *text = filled;
                        Origin::Environment
                    }
                    None => Origin::Missing,
                };
            }
            Kind::List(items) => items.iter_mut().for_each(|item| self.expand(item)),
            Kind::Map(entries) => entries.iter_mut().for_each(|entry| self.expand(&mut entry.value)),
            Kind::Text(_) | Kind::Null | Kind::Bool(_) | Kind::Number(_) => {}
        }
    }

    /// The text with its variables filled in; `None` when one cannot be, which is then a problem.
    fn filled(&mut self, text: &str, place: &Place) -> Option<String> {
        let mut out = String::with_capacity(text.len());
        let mut whole = true;
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if let Some(before) = rest[..at].strip_suffix('$') {
                out.push_str(before);
                out.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            out.push_str(&rest[..at]);
            let inside = &rest[at + 2..];
            let Some(end) = inside.find('}') else {
                self.problem("`${` has no closing `}`", "${", place, "write `$${` for a plain `${`");
                return None;
            };
            match self.variable(&inside[..end], place) {
                Some(value) => out.push_str(&value),
                None => whole = false,
            }
            rest = &inside[end + 1..];
        }
        out.push_str(rest);
        whole.then_some(out)
    }

    /// The value of `NAME` or `NAME:-default`.
    fn variable(&mut self, inside: &str, place: &Place) -> Option<String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let written = format!("${{{inside}}}");
        if !is_name(name) {
            let message = format!("`{written}` does not name an environment variable");
            self.problem(
                &message,
                &written,
                place,
                "write `${NAME}` or `${NAME:-default}`; `$${` is a plain `${`",
            );
            return None;
        }
        let value = (self.env)(name).filter(|value| default.is_none() || !value.is_empty());
        let Some(value) = value.or_else(|| default.map(str::to_owned)) else {
            let message = format!("the environment variable `{name}` is not set");
            let fix = format!("set {name}, or write a default: `${{{name}:-…}}`");
            self.problem(&message, &written, place, &fix);
            return None;
        };
        self.brought += value.len();
        if self.brought > MOST {
            self.problem(
                "environment variables bring too much text into this file",
                &written,
                place,
                "use less",
            );
            return None;
        }
        if sounds_secret(name) && value.len() >= 4 {
            self.hidden.push(value.clone());
        }
        Some(value)
    }

    fn problem(&mut self, message: &str, written: &str, place: &Place, fix: &str) {
        let inside = self.text.get(place.clone()).and_then(|text| text.find(written));
        let place =
            inside.map_or_else(|| place.clone(), |at| place.start + at..place.start + at + written.len());
        self.problems.push(Problem::at(message, place).fix(fix));
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether a name is that of something one does not show.
pub(super) fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["key", "token", "secret", "password", "passwd", "credential", "authorization", "cookie"]
        .iter()
        .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("example.org".into()),
            "EMPTY" => Some(String::new()),
            "API_TOKEN" => Some("s3cr3t".into()),
            "NESTED" => Some("${HOST}".into()),
            _ => None,
        }
    }

    fn expanded(value: &str) -> Result<String, Vec<String>> {
        let text = format!("a: '{value}'");
        let mut node = Node::parse(&text).expect("YAML");
        let mut expander = Expander::new(&env, &text);
        expander.expand(&mut node);
        if !expander.problems.is_empty() {
            return Err(expander.problems.iter().map(|p| p.message().to_owned()).collect());
        }
        match node.child("a").map(|n| n.kind.clone()) {
            Some(Kind::Text(text)) => Ok(text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn variables_and_defaults_are_filled_in() {
        for (written, wanted) in [
            ("https://${HOST}/v1", "https://example.org/v1"),
            ("${HOST}${HOST}", "example.orgexample.org"),
            ("${NONE:-fallback}", "fallback"),
            ("${NONE:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${HOST:-x}", "example.org"),
            ("$${HOST}", "${HOST}"),
            ("a $HOST and 5$", "a $HOST and 5$"),
            ("${NESTED}", "${HOST}"),
            ("${NONE:-http://x:1/a-b}", "http://x:1/a-b"),
        ] {
            assert_eq!(expanded(written).as_deref(), Ok(wanted), "{written}");
        }
    }

    #[test]
    fn every_missing_variable_is_reported() {
        assert_eq!(
            expanded("${ONE} ${TWO} ${HOST}"),
            Err(vec![
                "the environment variable `ONE` is not set".into(),
                "the environment variable `TWO` is not set".into()
            ])
        );
    }

    #[test]
    fn what_is_not_a_variable_is_said_so() {
        assert_eq!(expanded("${1x}"), Err(vec!["`${1x}` does not name an environment variable".into()]));
        assert_eq!(expanded("${HOST"), Err(vec!["`${` has no closing `}`".into()]));
    }

    #[test]
    fn values_of_secret_names_are_remembered_as_hidden() {
        let text = "a: ${API_TOKEN}\nb: ${HOST}\n";
        let mut node = Node::parse(text).expect("YAML");
        let mut expander = Expander::new(&env, text);
        expander.expand(&mut node);
        assert_eq!(expander.hidden, ["s3cr3t"]);
    }

    #[test]
    fn what_variables_bring_is_bounded() {
        let big = |_: &str| Some("x".repeat(1024 * 1024));
        let text = "a: ${A}${A}${A}${A}${A}";
        let mut node = Node::parse(text).expect("YAML");
        let mut expander = Expander::new(&big, text);
        expander.expand(&mut node);
        assert_eq!(expander.problems.len(), 1);
    }
}

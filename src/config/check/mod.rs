//! What the shape of a file cannot say: names that lead nowhere, limits that contradict each
//! other, secrets that are not there.
//!
//! Each file here looks at one part. They read the decoded file, take places from the tree, and
//! add to two lists: problems, which stop the start, and warnings, which do not.

mod audit;
mod limits;
mod listeners;
mod redact;
mod secrets;
mod store;
mod teams;
mod tools;
mod traces;
mod upstreams;

use super::file::File;
use super::problem::Problem;
use super::shape::Shape;
use super::tree::Node;
use super::{Env, Flags};

/// What the checks look at, and what they found.
pub(super) struct Check<'a> {
    pub(super) file: &'a File,
    /// The tree without what did not fit.
    pub(super) tree: &'a Node,
    /// The names as written, also of upstreams and tools that did not fit.
    pub(super) upstreams: &'a [String],
    pub(super) tools: &'a [String],
    pub(super) shape: &'a Shape,
    pub(super) env: Env<'a>,
    pub(super) flags: &'a Flags,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Check<'_> {
    /// Every check.
    pub(super) fn all(&mut self) {
        self.listeners();
        self.upstreams();
        self.routes();
        self.tools();
        self.teams();
        self.limits();
        self.audit();
        self.traces();
        self.redact();
        self.secrets();
        self.store();
        self.problems.retain(|problem| !problem.is_moot());
        self.warnings.retain(|problem| !problem.is_moot());
    }

    /// A problem at a path of the file, not yet in a list.
    fn here(&self, path: &[&str], message: impl Into<String>) -> Problem {
        let problem = Problem::maybe_at(message, self.tree.place_of(path));
        if self.tree.is_stand_in(path) { problem.moot() } else { problem }
    }

    fn wrong(&mut self, path: &[&str], message: impl Into<String>, fix: impl Into<String>) {
        let problem = self.here(path, message).fix(fix);
        self.problems.push(problem);
    }

    fn warn(&mut self, path: &[&str], message: impl Into<String>, fix: impl Into<String>) {
        let problem = self.here(path, message).fix(fix);
        self.warnings.push(problem);
    }
}

/// Whether a name matches a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    if !pattern.contains('*') {
        return rest.is_empty();
    }
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return true };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, wanted) in [
            ("*", "x", true),
            ("*", "", true),
            ("gpt-*", "gpt-4o", true),
            ("gpt-*", "xgpt-4o", false),
            ("gpt", "gpt", true),
            ("gpt", "gpt-4", false),
            ("a*b*c", "a--b--c", true),
            ("a*b*c", "a--c--b", false),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }
}

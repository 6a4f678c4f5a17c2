//! A mistake in the configuration, and the report that shows all of them with their places.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::print::hidden;

/// The most mistakes one report draws.
const MOST: usize = 100;

/// One mistake: what is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    message: String,
    place: Option<Range<usize>>,
    label: Option<String>,
    also: Option<Box<(Range<usize>, String)>>,
    fix: Option<String>,
    moot: bool,
}

impl Problem {
    /// A mistake without a place in the file.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: None, label: None, also: None, fix: None, moot: false }
    }

    /// A mistake at these bytes of the file.
    pub(super) fn at(message: impl Into<String>, place: Range<usize>) -> Self {
        Self { place: Some(place), ..Self::new(message) }
    }

    /// A mistake that may have a place.
    pub(super) fn maybe_at(message: impl Into<String>, place: Option<Range<usize>>) -> Self {
        Self { place, ..Self::new(message) }
    }

    /// A few words under the marked place.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// A second place that belongs to it.
    pub(super) fn also(mut self, place: Range<usize>, label: &str) -> Self {
        self.also = Some(Box::new((place, label.into())));
        self
    }

    /// What the person should do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// The same with dots in place of these texts, wherever they were quoted.
    pub(super) fn hiding(mut self, secrets: &[String]) -> Self {
        let hide = |text: &mut String| *text = hidden(text, secrets);
        hide(&mut self.message);
        self.label.iter_mut().chain(&mut self.fix).for_each(hide);
        self.also.iter_mut().for_each(|also| hide(&mut also.1));
        self
    }

    /// The sentence that says what is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// It is about something that was put there only so that the rest could be looked at.
    pub(super) fn moot(mut self) -> Self {
        self.moot = true;
        self
    }

    pub(super) const fn is_moot(&self) -> bool {
        self.moot
    }

    /// Whether it is about something that begins in this part of the text.
    pub(super) fn is_within(&self, part: &Range<usize>) -> bool {
        self.place.as_ref().is_some_and(|place| part.contains(&place.start))
    }

    fn order(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.start)
    }
}

/// The text of a configuration file: where it came from, and how it may be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The file, if it is one.
    pub path: Option<PathBuf>,
    /// How reports call it.
    pub(super) name: String,
    /// The text, with every literal secret in it replaced by asterisks, byte for byte.
    pub(super) shown: String,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Source {
    /// Replaces these bytes of what is shown by as many asterisks, unless they only name a variable.
    pub(super) fn mask(&mut self, place: Range<usize>) {
        if let Some(text) = self.shown.get(place.clone()).filter(|text| !only_names_a_variable(text)) {
            let stars: String = text.bytes().map(|b| if b == b'\n' { '\n' } else { '*' }).collect();
            self.shown.replace_range(place, &stars);
        }
    }
}

/// Whether a text is `${NAME}` and nothing else.
fn only_names_a_variable(text: &str) -> bool {
    let bare = text.trim().trim_matches(['"', '\'']);
    let name = bare.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// All mistakes of one configuration. Displays as a report for people, without colours.
#[derive(Debug, Clone)]
pub struct Problems {
    pub(super) source: Arc<Source>,
    pub(super) list: Vec<Problem>,
}

impl Problems {
    /// A mistake that has no file to point into.
    pub(super) fn without_source(problem: Problem) -> Self {
        let source = Source { path: None, name: String::new(), shown: String::new() };
        Self { source: Arc::new(source), list: vec![problem] }
    }

    /// The mistakes, in the order of the file.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// The whole report; `coloured` for a terminal.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        let mut text = render(&self.source, &self.list, Severity::Error, coloured);
        let count = match self.list.len() {
            1 => "1 mistake".to_owned(),
            n => format!("{n} mistakes"),
        };
        if !self.source.name.is_empty() {
            text.push_str(&format!("\n{count} in {}\n", self.source.name));
        }
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// How bad the things in a report are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Error,
    Warning,
}

/// The order of the file; what has no place comes first.
pub(super) fn sorted(mut list: Vec<Problem>) -> Vec<Problem> {
    list.sort_by_key(Problem::order);
    list.dedup();
    list
}

/// Draws these problems into the text they come from.
pub(super) fn render(source: &Source, list: &[Problem], severity: Severity, coloured: bool) -> String {
    let renderer = if coloured { Renderer::styled() } else { Renderer::plain() };
    let level = match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let drawn: Vec<String> = list
        .iter()
        .take(MOST)
        .map(|problem| {
            let title = level.clone().primary_title(problem.message.as_str());
            let mut group = match &problem.place {
                None => Group::with_title(title),
                Some(place) => title.element(snippet(source, problem, place.clone())),
            };
            if let Some(fix) = &problem.fix {
                group = group.element(Level::HELP.message(fix.as_str()));
            }
            renderer.render(&[group])
        })
        .collect();
    let mut text = drawn.join("\n\n");
    if !text.is_empty() {
        text.push('\n');
    }
    if let Some(more) = list.len().checked_sub(MOST).filter(|more| *more > 0) {
        text.push_str(&format!("\n… and {more} more\n"));
    }
    text
}

fn snippet<'a>(
    source: &'a Source,
    problem: &'a Problem,
    place: Range<usize>,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let mut primary = AnnotationKind::Primary.span(one_line(&source.shown, place));
    if let Some(label) = &problem.label {
        primary = primary.label(label.as_str());
    }
    let mut snippet = Snippet::source(source.shown.as_str()).path(source.name.as_str()).annotation(primary);
    if let Some((place, label)) = problem.also.as_deref() {
        let place = one_line(&source.shown, place.clone());
        snippet = snippet.annotation(AnnotationKind::Context.span(place).label(label.as_str()));
    }
    snippet
}

/// Cuts a place off at the end of its first line, so that a block of text is not drawn whole.
fn one_line(text: &str, place: Range<usize>) -> Range<usize> {
    let line = text.get(place.clone()).unwrap_or_default().lines().next().unwrap_or_default();
    let line = line.trim_end();
    place.start..place.start + line.len()
}

//! What is wrong with the tools of a configuration, all of it at once.

use super::place::Template;

/// One mistake in the settings of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The tool's name.
    pub tool: String,
    /// Where below the tool: `["http", "url"]`; empty for the tool as a whole.
    pub path: Vec<String>,
    /// The keys below the path of which one is missing; empty when something else is wrong.
    pub missing: &'static [&'static str],
    /// What is wrong, as a sentence. It never holds a secret.
    pub message: String,
    /// What to write instead, when that can be said.
    pub fix: Option<String>,
}

/// Collects the mistakes of one tool.
#[derive(Debug)]
pub(super) struct Mistakes {
    tool: String,
    all: Vec<LoadError>,
}

impl Mistakes {
    pub(super) fn of(tool: &str) -> Self {
        Self { tool: tool.into(), all: Vec::new() }
    }

    pub(super) fn add<S: ToString>(&mut self, path: &[S], message: impl Into<String>) {
        self.all.push(LoadError {
            tool: self.tool.clone(),
            path: path.iter().map(S::to_string).collect(),
            missing: &[],
            message: message.into(),
            fix: None,
        });
    }

    pub(super) fn add_with_fix<S: ToString>(
        &mut self,
        path: &[S],
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(path, message);
        if let Some(last) = self.all.last_mut() {
            last.fix = Some(fix.into());
        }
    }

    /// One of these keys of the tool has to be there, and none is.
    pub(super) fn add_missing(&mut self, keys: &'static [&'static str], message: &str, fix: &str) {
        self.add_with_fix::<&str>(&[], message, fix);
        if let Some(last) = self.all.last_mut() {
            last.missing = keys;
        }
    }

    /// Reads a template whose places must be arguments of the tool.
    pub(super) fn template(
        &mut self,
        path: &[&str],
        text: &str,
        known: impl Fn(&str) -> bool,
    ) -> Option<Template> {
        let template = match Template::parse(text) {
            Ok(template) => template,
            Err(why) => {
                self.add(path, why.message());
                return None;
            }
        };
        let before = self.all.len();
        for name in template.places().filter(|name| !known(name)) {
            let fix = format!("name it under parameters.properties: {name}: {{ type: string }}");
            self.add_with_fix(path, format!("`{{{name}}}` is not an argument of this tool"), fix);
        }
        (self.all.len() == before).then_some(template)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn into_inner(self) -> Vec<LoadError> {
        self.all
    }
}

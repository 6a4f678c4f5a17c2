//! `runs:` of the file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Size;

/// `runs:`: what is remembered of the last turns, for the inspector, `fanfold tail` and `fanfold run`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Runs")]
pub struct Settings {
    /// How many runs that ended are kept. 0: none, and running ones are not shown either.
    #[schemars(range(max = 100_000))]
    pub keep: u32,
    /// The memory all kept runs may take together.
    pub bytes: Size,
    /// Messages, arguments, results and answers are kept as well. Whoever reaches the admin side can read them.
    pub content: bool,
    /// How much is kept of one text: an argument, a result, a body, an answer.
    pub text: Size,
    /// Connections that may follow what happens at once.
    #[schemars(range(min = 1, max = 200))]
    pub watchers: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keep: 500, bytes: Size::mib(64), content: false, text: Size::kib(64), watchers: 32 }
    }
}

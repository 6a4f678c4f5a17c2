//! Turns a key into a team, and says what the team may use.

pub mod settings;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::policy::pattern::{fits_any, may_begin};
use crate::policy::settings::{LowerLimits, Overrides};
use crate::wire::tool::OwnedTool;

/// The longest key that is looked at, in bytes.
const LONGEST_KEY: usize = 512;

/// A team, with everything its requests need.
#[derive(Debug)]
pub struct Team {
    /// Its name: a label, and the space its parked results live in.
    pub name: Arc<str>,
    /// The operator's tools it may use, by name.
    pub tools: Vec<Arc<OwnedTool>>,
    /// Its rules.
    pub policy: Overrides,
    /// Its lower limits.
    pub limits: LowerLimits,
    /// Turns in flight at once.
    pub turns: Arc<Semaphore>,
    /// Calls running at once.
    pub calls: Arc<Semaphore>,
    models: Option<Vec<String>>,
    may_use: Option<Vec<String>>,
}

impl Team {
    /// Whether it may use a tool whose name begins like this.
    #[must_use]
    pub fn may_use_some(&self, beginning: &str) -> bool {
        let patterns = self.may_use.as_ref();
        patterns.is_none_or(|patterns| patterns.iter().any(|pattern| may_begin(pattern, beginning)))
    }

    /// The same team, its slots included, when the operator's tools are these.
    #[must_use]
    pub fn with_tools(&self, tools: &[Arc<OwnedTool>]) -> Self {
        Self {
            name: self.name.clone(),
            tools: usable(tools, self.may_use.as_deref()),
            policy: self.policy.clone(),
            limits: self.limits.clone(),
            turns: self.turns.clone(),
            calls: self.calls.clone(),
            models: self.models.clone(),
            may_use: self.may_use.clone(),
        }
    }

    /// Whether there are models it may not use.
    #[must_use]
    pub const fn restricts_models(&self) -> bool {
        self.models.is_some()
    }

    /// Whether it may use a model.
    #[must_use]
    pub fn may_use_model(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|patterns| fits_any(patterns, model))
    }
}

/// Bounds that hold for a team that sets none of its own.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Turns in flight at once.
    pub turns_at_once: u32,
    /// Calls running at once.
    pub calls_at_once: u32,
}

/// The teams, by the digests of their keys.
#[derive(Debug)]
pub struct Teams {
    by_digest: HashMap<[u8; 32], Arc<Team>>,
    open: Option<Arc<Team>>,
    all: Vec<Arc<Team>>,
}

/// No key, or one that belongs to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKey;

impl Teams {
    /// The teams of the file; with none of them, one team without keys, named `default`.
    #[must_use]
    pub fn new(
        settings: &BTreeMap<String, settings::Settings>,
        tools: &[Arc<OwnedTool>],
        defaults: Defaults,
    ) -> Self {
        if settings.is_empty() {
            let open = Arc::new(team("default", &settings::Settings::default(), tools, defaults));
            return Self { by_digest: HashMap::new(), open: Some(open.clone()), all: vec![open] };
        }
        let mut teams = Self { by_digest: HashMap::new(), open: None, all: Vec::new() };
        for (name, settings) in settings {
            let team = Arc::new(team(name, settings, tools, defaults));
            for key in &settings.keys {
                if let Some(digest) = digest_of_hex(&key.sha256) {
                    teams.by_digest.insert(digest, team.clone());
                }
            }
            teams.all.push(team);
        }
        teams
    }

    /// The same teams when the operator's tools for each of them are these.
    #[must_use]
    pub fn with_tools(&self, tools: impl Fn(&str) -> Vec<Arc<OwnedTool>>) -> Self {
        let all: Vec<Arc<Team>> =
            self.all.iter().map(|team| Arc::new(team.with_tools(&tools(&team.name)))).collect();
        let renewed = |team: &Arc<Team>| {
            let at = self.all.iter().position(|other| Arc::ptr_eq(other, team));
            at.and_then(|at| all.get(at)).unwrap_or(team).clone()
        };
        Self {
            by_digest: self.by_digest.iter().map(|(digest, team)| (*digest, renewed(team))).collect(),
            open: self.open.as_ref().map(renewed),
            all: all.clone(),
        }
    }

    /// Whether keys are asked for.
    #[must_use]
    pub const fn asks_for_keys(&self) -> bool {
        self.open.is_none()
    }

    /// The team of a key. Every wrong key takes the same way: one digest, one look-up.
    pub fn of_key(&self, key: Option<&[u8]>) -> Result<Arc<Team>, UnknownKey> {
        if let Some(open) = &self.open {
            return Ok(open.clone());
        }
        let digest = digest(key.filter(|key| key.len() <= LONGEST_KEY).unwrap_or_default());
        let found = self.by_digest.get_key_value(&digest);
        let equal = found.is_some_and(|(kept, _)| bool::from(kept.ct_eq(&digest)));
        found.filter(|_| equal && key.is_some()).map(|(_, team)| team.clone()).ok_or(UnknownKey)
    }

    /// All teams.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Team>> {
        self.all.iter()
    }
}

fn team(name: &str, settings: &settings::Settings, tools: &[Arc<OwnedTool>], defaults: Defaults) -> Team {
    let turns = settings.limits.turns_at_once.unwrap_or(defaults.turns_at_once);
    let calls = settings.limits.calls_at_once_per_team.unwrap_or(defaults.calls_at_once);
    Team {
        name: name.into(),
        tools: usable(tools, settings.tools.as_deref()),
        policy: settings.policy.clone(),
        limits: settings.limits.turn(),
        turns: Arc::new(Semaphore::new(turns as usize)),
        calls: Arc::new(Semaphore::new(calls as usize)),
        models: settings.models.clone(),
        may_use: settings.tools.clone(),
    }
}

fn usable(tools: &[Arc<OwnedTool>], patterns: Option<&[String]>) -> Vec<Arc<OwnedTool>> {
    let may_use = |tool: &&Arc<OwnedTool>| patterns.is_none_or(|patterns| fits_any(patterns, &tool.name));
    tools.iter().filter(may_use).cloned().collect()
}

/// The SHA-256 of a key.
#[must_use]
pub fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn digest_of_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(key: &str) -> String {
        digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn teams() -> Teams {
        let blue = settings::Settings {
            keys: vec![
                settings::Key { sha256: hex("fk-blue") },
                settings::Key { sha256: hex("fk-blue-2").to_uppercase() },
            ],
            models: Some(vec!["gpt-*".into()]),
            tools: Some(vec!["a*".into()]),
            ..settings::Settings::default()
        };
        let tool = |name: &str| {
            Arc::new(OwnedTool {
                name: name.into(),
                definition: "{}".into(),
                strict: false,
                effect: crate::wire::tool::Effect::Read,
                on_disconnect: crate::wire::tool::OnDisconnect::Stop,
                timeout: std::time::Duration::from_secs(1),
                max_timeout: std::time::Duration::from_secs(1),
            })
        };
        let defaults = Defaults { turns_at_once: 9, calls_at_once: 9 };
        Teams::new(&[("blue".to_owned(), blue)].into(), &[tool("ab"), tool("b")], defaults)
    }

    #[test]
    fn each_of_its_keys_finds_the_team_and_nothing_else_does() {
        let teams = teams();
        for key in ["fk-blue", "fk-blue-2"] {
            assert_eq!(&*teams.of_key(Some(key.as_bytes())).unwrap().name, "blue");
        }
        let long = vec![b'x'; 1 << 20];
        for key in [
            None,
            Some(&b""[..]),
            Some(b"fk-blue "),
            Some(b"fk-blu"),
            Some(hex("fk-blue").as_bytes()),
            Some(&long),
        ] {
            assert!(teams.of_key(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn a_team_has_its_tools_and_models_only() {
        let team = teams().of_key(Some(b"fk-blue")).unwrap();
        assert_eq!(team.tools.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["ab"]);
        assert!(team.may_use_model("gpt-4") && !team.may_use_model("o3"));
    }

    #[test]
    fn other_tools_change_what_a_team_has_and_nothing_else() {
        let before = teams();
        let old = before.of_key(Some(b"fk-blue")).unwrap();
        let tool = |name: &str| Arc::new(OwnedTool { name: name.into(), ..(*old.tools[0]).clone() });
        let after = before.with_tools(|_| vec![tool("b"), tool("ac"), tool("ad")]);
        for key in [&b"fk-blue"[..], b"fk-blue-2"] {
            let new = after.of_key(Some(key)).unwrap();
            assert_eq!(new.tools.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["ac", "ad"]);
            assert!(Arc::ptr_eq(&new.turns, &old.turns) && Arc::ptr_eq(&new.calls, &old.calls));
        }
        assert!(after.of_key(Some(b"x")).is_err());
        assert_eq!(old.tools.len(), 1);
    }

    #[test]
    fn without_teams_everybody_is_the_default_one() {
        let open = Teams::new(&BTreeMap::new(), &[], Defaults { turns_at_once: 1, calls_at_once: 1 });
        assert_eq!(&*open.of_key(None).unwrap().name, "default");
        assert!(!open.asks_for_keys());
    }
}

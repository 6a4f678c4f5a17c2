//! Turns a key into a team, says what the team may use, holds it to its quotas, and lets teams take turns.
//!
//! A request takes the team as it is when it comes. What a team may use is also asked again when a tool is
//! called: a permission that is taken away is gone at once, also for turns that are running, while limits and
//! rules of a running turn stay as they were. So there is one state of a team, `Rights`, that all its
//! generations share; everything else of it is fixed.

pub mod account;
pub mod expiry;
pub mod fair;
pub mod money;
pub mod quota;
pub mod settings;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use self::expiry::Expiry;
use self::fair::{Kind, Wanted};
use self::quota::Quotas;
use crate::policy::pattern::{any_may_begin, fits_any};
use crate::policy::settings::{LowerLimits, Overrides};
use crate::wire::tool::{OwnedTool, OwnedTools};

/// The longest key that is looked at, in bytes.
const LONGEST_KEY: usize = 512;

/// A team, with everything its requests need.
#[derive(Debug, Clone)]
pub struct Team {
    /// Its name: a label, and the space its parked results live in.
    pub name: Arc<str>,
    /// The operator's tools it may use.
    pub tools: OwnedTools,
    /// Its rules.
    pub policy: Overrides,
    /// Its lower limits.
    pub limits: LowerLimits,
    /// Turns in flight at once, if it has a number of its own.
    turns_at_once: Option<u32>,
    /// Calls running at once.
    calls_at_once: u32,
    share: u32,
    models: Option<Vec<String>>,
    may_use: Option<Vec<String>>,
    rights: Arc<Rights>,
    quotas: Quotas,
}

/// What a team may use now, whatever it was when a request came. Shared by all generations of a team.
#[derive(Debug)]
struct Rights(ArcSwap<MayUse>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum MayUse {
    Everything,
    These(Vec<String>),
    /// There is no such team any more.
    Nothing,
}

impl Team {
    /// Whether it may use a tool whose name begins like this.
    #[must_use]
    pub fn may_use_some(&self, beginning: &str) -> bool {
        self.may_use.as_ref().is_none_or(|patterns| any_may_begin(patterns, beginning))
    }

    /// The same team, when the operator's tools are these.
    #[must_use]
    pub fn with_tools(&self, tools: &[Arc<OwnedTool>]) -> Self {
        Self { tools: usable(tools, self.may_use.as_deref()), ..self.clone() }
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

    /// Whether it may call a tool at this moment, by the configuration in use now.
    #[must_use]
    pub fn may_call(&self, tool: &str) -> bool {
        match &**self.rights.0.load() {
            MayUse::Everything => true,
            MayUse::These(patterns) => fits_any(patterns, tool),
            MayUse::Nothing => false,
        }
    }

    /// A place among the turns. A team without a number of its own may hold, and wait for, as many as there are.
    #[must_use]
    pub fn a_turn(&self) -> Wanted {
        let at_once = self.turns_at_once.unwrap_or(u32::MAX);
        Wanted { team: self.name.clone(), at_once, share: self.share, kind: None }
    }

    /// A place among the calls, of a tool that may have a number of its own.
    #[must_use]
    pub fn a_call(&self, kind: Option<Kind>) -> Wanted {
        Wanted { team: self.name.clone(), at_once: self.calls_at_once, share: self.share, kind }
    }
}

/// Bounds that hold for a team that sets none of its own.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Calls running at once.
    pub calls_at_once: u32,
}

/// The teams, by the digests of their keys.
#[derive(Debug)]
pub struct Teams {
    by_digest: HashMap<[u8; 32], Holder>,
    open: Option<Arc<Team>>,
    all: Vec<Arc<Team>>,
}

/// Whose a key is, and until when.
#[derive(Debug)]
struct Holder {
    team: Arc<Team>,
    expires: Option<Expiry>,
}

/// No key, or one that belongs to nobody or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKey;

impl Teams {
    /// The teams of the file; with none of them, one team without keys, named `default`. Teams that were
    /// there before keep what they share, but what is new holds for them only once it
    /// [takes effect](Self::take_effect).
    #[must_use]
    pub fn new(
        settings: &BTreeMap<String, settings::Settings>,
        tools: &[Arc<OwnedTool>],
        defaults: Defaults,
        before: Option<&Self>,
    ) -> Self {
        if settings.is_empty() {
            let open = Arc::new(team("default", &settings::Settings::default(), tools, defaults, before));
            return Self { by_digest: HashMap::new(), open: Some(open.clone()), all: vec![open] };
        }
        let mut teams = Self { by_digest: HashMap::new(), open: None, all: Vec::new() };
        for (name, settings) in settings {
            let team = Arc::new(team(name, settings, tools, defaults, before));
            for key in &settings.keys {
                if let Some(digest) = digest_of_hex(&key.sha256) {
                    teams.by_digest.insert(digest, Holder { team: team.clone(), expires: key.expires });
                }
            }
            teams.all.push(team);
        }
        teams
    }

    /// From now on tools are called by what these teams may use, also in turns that began with the teams
    /// `before`; what is taken away is gone.
    pub fn take_effect(&self, before: Option<&Self>) {
        for team in &self.all {
            team.rights.0.store(Arc::new(may_use(team.may_use.as_deref())));
        }
        for gone in before.into_iter().flat_map(Self::iter).filter(|team| self.named(&team.name).is_none()) {
            gone.rights.0.store(Arc::new(MayUse::Nothing));
        }
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
        let holder = |holder: &Holder| Holder { team: renewed(&holder.team), expires: holder.expires };
        Self {
            by_digest: self.by_digest.iter().map(|(digest, of)| (*digest, holder(of))).collect(),
            open: self.open.as_ref().map(renewed),
            all: all.clone(),
        }
    }

    /// Whether keys are asked for.
    #[must_use]
    pub const fn asks_for_keys(&self) -> bool {
        self.open.is_none()
    }

    /// The team of a key at this moment. Every wrong key takes the same way: one digest, one look-up.
    ///
    /// # Errors
    /// It is nobody's, or was somebody's until its end.
    pub fn of_key(&self, key: Option<&[u8]>, now: Timestamp) -> Result<Arc<Team>, UnknownKey> {
        if let Some(open) = &self.open {
            return Ok(open.clone());
        }
        let digest = digest(key.filter(|key| key.len() <= LONGEST_KEY).unwrap_or_default());
        let found = self.by_digest.get_key_value(&digest);
        let equal = found.is_some_and(|(kept, _)| bool::from(kept.ct_eq(&digest)));
        let Some((_, holder)) = found.filter(|_| equal && key.is_some()) else { return Err(UnknownKey) };
        if holder.expires.is_some_and(|end| end.is_over(now)) {
            tracing::debug!(team = %holder.team.name, "a key that has expired was used");
            return Err(UnknownKey);
        }
        Ok(holder.team.clone())
    }

    /// All teams.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Team>> {
        self.all.iter()
    }

    fn named(&self, name: &str) -> Option<&Arc<Team>> {
        self.all.iter().find(|team| &*team.name == name)
    }
}

fn team(
    name: &str,
    settings: &settings::Settings,
    tools: &[Arc<OwnedTool>],
    defaults: Defaults,
    before: Option<&Teams>,
) -> Team {
    let rights = before.and_then(|before| before.named(name)).map(|team| team.rights.clone());
    Team {
        name: name.into(),
        tools: usable(tools, settings.tools.as_deref()),
        policy: settings.policy.clone(),
        limits: settings.limits.turn(),
        turns_at_once: settings.limits.turns_at_once,
        calls_at_once: settings.limits.calls_at_once_per_team.unwrap_or(defaults.calls_at_once),
        share: settings.share,
        models: settings.models.clone(),
        may_use: settings.tools.clone(),
        quotas: Quotas::new(&settings.limits, &settings.budget),
        rights: rights
            .unwrap_or_else(|| Arc::new(Rights(ArcSwap::from_pointee(may_use(settings.tools.as_deref()))))),
    }
}

fn may_use(patterns: Option<&[String]>) -> MayUse {
    patterns.map_or(MayUse::Everything, |patterns| MayUse::These(patterns.to_vec()))
}

fn usable(tools: &[Arc<OwnedTool>], patterns: Option<&[String]>) -> OwnedTools {
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
                settings::Key { sha256: hex("fk-blue"), expires: None },
                settings::Key { sha256: hex("fk-blue-2").to_uppercase(), expires: None },
                settings::Key { sha256: hex("fk-old"), expires: Some(Expiry::parse("2027-01-31").unwrap()) },
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
        let defaults = Defaults { calls_at_once: 9 };
        Teams::new(&[("blue".to_owned(), blue)].into(), &[tool("ab"), tool("b")], defaults, None)
    }

    fn now() -> Timestamp {
        "2027-01-30T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn each_of_its_keys_finds_the_team_and_nothing_else_does() {
        let teams = teams();
        for key in ["fk-blue", "fk-blue-2"] {
            assert_eq!(&*teams.of_key(Some(key.as_bytes()), now()).unwrap().name, "blue");
        }
        let long = vec![b'x'; 1 << 20];
        for key in [
            None,
            Some(&b""[..]),
            Some(b"fk-blue "),
            Some(b"fk-blu"),
            Some(b"Bearer fk-blue"),
            Some(hex("fk-blue").as_bytes()),
            Some(&long),
        ] {
            assert!(teams.of_key(key, now()).is_err(), "{key:?}");
        }
    }

    #[test]
    fn who_sends_no_key_has_none_even_where_the_empty_text_is_one() {
        let empty = settings::Settings {
            keys: vec![settings::Key { sha256: hex(""), expires: None }],
            ..settings::Settings::default()
        };
        let teams = Teams::new(&[("t".to_owned(), empty)].into(), &[], Defaults { calls_at_once: 9 }, None);
        assert!(teams.asks_for_keys());
        assert!(teams.of_key(None, now()).is_err());
    }

    #[test]
    fn a_key_longer_than_any_is_not_looked_at() {
        let key = |length: usize| "k".repeat(length);
        let keys = [LONGEST_KEY, LONGEST_KEY + 1];
        let long = settings::Settings {
            keys: keys.map(|length| settings::Key { sha256: hex(&key(length)), expires: None }).into(),
            ..settings::Settings::default()
        };
        let teams = Teams::new(&[("t".to_owned(), long)].into(), &[], Defaults { calls_at_once: 9 }, None);
        let found = keys.map(|length| teams.of_key(Some(key(length).as_bytes()), now()).is_ok());
        assert_eq!(found, [true, false]);
    }

    #[test]
    fn a_digest_is_sixty_four_digits() {
        let whole = hex("fk-blue");
        assert_eq!(digest_of_hex(&whole), Some(digest(b"fk-blue")));
        for wrong in
            ["", &whole[..62], &whole[..63], &format!("{whole}00"), &"é".repeat(32), &"xy".repeat(32)]
        {
            assert_eq!(digest_of_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_key_that_expired_is_like_one_that_never_was() {
        let teams = teams();
        assert!(teams.of_key(Some(b"fk-old"), now()).is_ok());
        assert!(teams.of_key(Some(b"fk-old"), "2027-01-31T00:00:00Z".parse().unwrap()).is_err());
    }

    #[test]
    fn what_is_taken_away_is_gone_at_once_and_what_is_given_is_not_there_before_it_takes_effect() {
        let before = teams();
        let running = before.of_key(Some(b"fk-blue"), now()).unwrap();
        assert!(running.may_call("ab") && !running.may_call("b"));
        let with = |name: &str, tools: Option<Vec<String>>| {
            let settings = settings::Settings { tools, ..settings::Settings::default() };
            let defaults = Defaults { calls_at_once: 9 };
            Teams::new(&[(name.to_owned(), settings)].into(), &[], defaults, Some(&before))
        };
        let after = with("blue", Some(vec!["b".into()]));
        assert!(running.may_call("ab"), "it is not in use yet");
        after.take_effect(Some(&before));
        assert!(!running.may_call("ab") && running.may_call("b"));
        with("blue", None).take_effect(Some(&before));
        assert!(running.may_call("ab"));
        with("red", None).take_effect(Some(&before));
        assert!(!running.may_call("ab"), "there is no such team any more");
    }

    #[test]
    fn a_team_has_its_tools_and_models_only() {
        let team = teams().of_key(Some(b"fk-blue"), now()).unwrap();
        assert_eq!(team.tools.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["ab"]);
        assert!(team.may_use_model("gpt-4") && !team.may_use_model("o3"));
        assert!(team.restricts_models());
        assert!(team.may_use_some("a") && team.may_use_some("ab_") && !team.may_use_some("b"));
        let open = Teams::new(&BTreeMap::new(), &[], Defaults { calls_at_once: 1 }, None);
        let open = open.of_key(None, now()).unwrap();
        assert!(open.may_use_model("o3") && !open.restricts_models() && open.may_use_some("b"));
    }

    #[test]
    fn a_team_waits_for_as_many_places_as_it_may_have_and_for_its_share() {
        let settings = |turns_at_once, calls_at_once_per_team| settings::Settings {
            share: 3,
            limits: settings::Limits { turns_at_once, calls_at_once_per_team, ..settings::Limits::default() },
            ..settings::Settings::default()
        };
        let of = |settings| team("t", &settings, &[], Defaults { calls_at_once: 9 }, None);
        let (own, common) = (of(settings(Some(2), Some(4))), of(settings(None, None)));
        let at_once = |wanted: Wanted| (wanted.at_once, wanted.share, wanted.kind.is_some());
        assert_eq!((at_once(own.a_turn()), at_once(own.a_call(None))), ((2, 3, false), (4, 3, false)));
        assert_eq!(
            (at_once(common.a_turn()), at_once(common.a_call(None))),
            ((u32::MAX, 3, false), (9, 3, false))
        );
    }

    #[test]
    fn other_tools_change_what_a_team_has_and_nothing_else() {
        let before = teams();
        let old = before.of_key(Some(b"fk-blue"), now()).unwrap();
        let tool = |name: &str| {
            Arc::new(OwnedTool { name: name.into(), ..(**old.tools.iter().next().unwrap()).clone() })
        };
        let after = before.with_tools(|_| vec![tool("b"), tool("ac"), tool("ad")]);
        for key in [&b"fk-blue"[..], b"fk-blue-2"] {
            let new = after.of_key(Some(key), now()).unwrap();
            assert_eq!(new.tools.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["ac", "ad"]);
            assert!(Arc::ptr_eq(&new.rights, &old.rights));
        }
        assert!(after.of_key(Some(b"x"), now()).is_err());
        assert_eq!(old.tools.len(), 1);
    }

    #[test]
    fn without_teams_everybody_is_the_default_one() {
        let open = Teams::new(&BTreeMap::new(), &[], Defaults { calls_at_once: 1 }, None);
        assert_eq!(&*open.of_key(None, now()).unwrap().name, "default");
        assert!(!open.asks_for_keys());
    }
}

//! A server, as the settings say: how each team reaches it, which of its tools are offered, and as what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::Withheld;
use super::pins::{self, Pins};
use crate::tools::arguments::Schema;
use crate::tools::load::Mistakes;
use crate::tools::mcp::{Link, Listed, Mcp, Plan, effect, offered, public};
use crate::tools::sandbox::Host;
use crate::tools::settings::{self, Settings, Share};
use crate::tools::{Defaults, Kind, Tool, check_name, http, on_disconnect};
use crate::units::Span;
use crate::wire::tool::{Effect, OnDisconnect, OwnedTool};

/// The longest beginning of the names of a server's tools.
const MAX_PREFIX: usize = 40;
/// How long a team's connection is kept without a request, when the settings do not say.
const IDLE: Duration = Duration::from_secs(600);

/// A server, as the settings say.
#[derive(Debug)]
pub(in crate::tools) struct Server {
    /// How it is reached where a team has nothing of its own.
    pub(super) plan: Arc<Plan>,
    sharing: Sharing,
    pins: Option<Pins>,
    only: Option<Vec<String>>,
    except: Vec<String>,
    /// What the names of its tools begin with.
    pub(in crate::tools) prefix: String,
    pub(super) required: bool,
    trusted: bool,
    effect: Effect,
    on_disconnect: Option<OnDisconnect>,
    timeout: Duration,
    max_timeout: Duration,
    at_once: Option<u32>,
    result: usize,
}

/// Who shares a connection.
#[derive(Debug)]
enum Sharing {
    Everybody,
    Team { plans: BTreeMap<String, Arc<Plan>>, idle: Duration },
}

impl Server {
    /// Reads the settings.
    pub(in crate::tools) fn load(
        name: &str,
        settings: &Settings,
        defaults: &Defaults,
        roots: &http::SystemRoots,
        host: &Host,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        check_name(name, mistakes);
        let mcp = settings.mcp.as_ref()?;
        if settings.http.is_some() || settings.command.is_some() {
            let other = if settings.http.is_some() { "http" } else { "command" };
            mistakes.add_with_fix(
                &["mcp"],
                format!("a tool has either `{other}` or `mcp`"),
                "remove one of them",
            );
        }
        let its_own = [
            ("description", settings.description.is_some()),
            ("parameters", settings.parameters.is_some()),
            ("strict", settings.strict),
        ];
        for (key, _) in its_own.into_iter().filter(|(_, given)| *given) {
            mistakes.add(&[key], format!("a server says the `{key}` of its tools itself"));
        }
        if settings.at_once == Some(0) {
            mistakes.add(&["at_once"], "with 0 its tools could never run");
        }
        let prefix = prefix(name, settings, mistakes);
        let timeout = settings.timeout.map_or(defaults.call_timeout, |timeout| timeout.0);
        let max_timeout = settings.max_timeout.map_or(timeout, |most| most.0);
        if max_timeout < timeout {
            let message = format!("it is less than the `timeout` of each call, {}", Span(timeout));
            mistakes.add_with_fix(&["max_timeout"], message, "raise it, or lower `timeout`");
        }
        let pins = settings.pin.then(|| Pins::read(settings.pins.as_deref(), name, mistakes));
        if settings.pins.is_some() && !settings.pin {
            mistakes.add_with_fix(&["pins"], "nothing is pinned", "add `pin: true`");
        }
        let plan = Plan::load(name, mcp, roots, host, mistakes)?;
        let sharing = sharing(
            name,
            settings,
            mcp,
            &|mcp, mistakes| Plan::load(name, mcp, roots, host, mistakes),
            mistakes,
        );
        mistakes.is_empty().then(|| Self {
            plan: Arc::new(plan),
            sharing,
            pins,
            only: settings.only.clone(),
            except: settings.except.clone().unwrap_or_default(),
            prefix,
            required: settings.required,
            trusted: settings.trust_annotations,
            effect: settings.effect.unwrap_or_default(),
            on_disconnect: settings.on_disconnect,
            timeout,
            max_timeout,
            at_once: settings.at_once,
            result: settings.result.map_or(defaults.tool_result, |size| size.0),
        })
    }

    /// Whether each team has a connection of its own.
    pub(in crate::tools) fn is_of_teams(&self) -> bool {
        matches!(self.sharing, Sharing::Team { .. })
    }

    /// How long a team's connection is kept without a request; `None` for one that everybody shares.
    pub(super) fn idle(&self) -> Option<Duration> {
        match self.sharing {
            Sharing::Everybody => None,
            Sharing::Team { idle, .. } => Some(idle),
        }
    }

    /// How a team reaches it.
    pub(super) fn plan_of(&self, team: Option<&str>) -> &Arc<Plan> {
        match (&self.sharing, team) {
            (Sharing::Team { plans, .. }, Some(team)) => plans.get(team).unwrap_or(&self.plan),
            (Sharing::Team { .. } | Sharing::Everybody, _) => &self.plan,
        }
    }

    /// Whether its tools have to be accepted.
    pub(super) fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// The digests of the tools of a list that the settings choose.
    pub(super) fn digests(&self, listed: &[Listed]) -> Vec<(String, String)> {
        let chosen = listed.iter().filter(|listed| offered(&listed.name, self.only.as_deref(), &self.except));
        chosen.map(|listed| (listed.name.to_string(), pins::digest(listed))).collect()
    }

    /// What becomes of a tool it has.
    pub(super) fn offer(&self, link: &Arc<Link>, listed: &Listed) -> Result<Tool, Withheld> {
        if !offered(&listed.name, self.only.as_deref(), &self.except) {
            return Err(Withheld::NotChosen);
        }
        let schema = listed.schema.as_ref().map_err(|why| Withheld::Unfit(Arc::clone(why)))?;
        let accepted = self.pins.as_ref().map(|pins| pins.check(listed)).transpose()?;
        Ok(self.tool(link, listed, schema, accepted))
    }

    fn tool(
        &self,
        link: &Arc<Link>,
        listed: &Listed,
        schema: &Arc<Schema>,
        accepted: Option<Arc<str>>,
    ) -> Tool {
        let effect = effect(self.effect, listed.said.as_ref(), self.trusted);
        let name: Arc<str> = public(&self.prefix, &listed.name).into();
        Tool {
            spec: Arc::new(OwnedTool {
                definition: definition(&name, listed).into(),
                name,
                strict: false,
                effect,
                on_disconnect: self.on_disconnect.unwrap_or_else(|| on_disconnect(effect)),
                timeout: self.timeout,
                max_timeout: self.max_timeout,
            }),
            schema: Arc::clone(schema),
            at_once: self.at_once,
            result: self.result,
            kind: Kind::Mcp(Box::new(Mcp {
                server: Arc::clone(&self.plan.name),
                link: Arc::clone(link),
                name: Arc::clone(&listed.name),
                effect,
                accepted,
            })),
            origin: None,
        }
    }
}

/// Who shares it, and what each team has of its own.
fn sharing(
    name: &str,
    settings: &Settings,
    mcp: &settings::Mcp,
    load: &dyn Fn(&settings::Mcp, &mut Mistakes) -> Option<Plan>,
    mistakes: &mut Mistakes,
) -> Sharing {
    if settings.share == Share::Process {
        let of_teams = [("teams", !settings.teams.is_empty()), ("idle", settings.idle.is_some())];
        for (key, _) in of_teams.into_iter().filter(|(_, given)| *given) {
            let message = format!("`{key}` belongs to a server that each team has for itself");
            mistakes.add_with_fix(&[key], message, "add `share: team`");
        }
        return Sharing::Everybody;
    }
    if settings.required {
        let message = "a server that is started for a team when the team needs it cannot be required";
        mistakes.add_with_fix(&["required"], message, "remove it, or `share: team`");
    }
    let mut plans = BTreeMap::new();
    for (team, own) in &settings.teams {
        let mut mcp = mcp.clone();
        mcp.headers.retain(|name, _| !own.headers.keys().any(|other| other.eq_ignore_ascii_case(name)));
        mcp.headers.extend(own.headers.clone());
        mcp.env.extend(own.env.clone());
        let mut of_team = Mistakes::of(name);
        if let Some(plan) = load(&mcp, &mut of_team) {
            plans.insert(team.clone(), Arc::new(plan.of_team(team)));
        }
        for mistake in of_team.into_inner() {
            // Everything else was told of the server itself.
            if let [_, part @ ("headers" | "env"), rest @ ..] =
                &*mistake.path.iter().map(String::as_str).collect::<Vec<_>>()
            {
                let path: Vec<&str> = ["teams", team, part].into_iter().chain(rest.iter().copied()).collect();
                let is_own = rest
                    .first()
                    .is_none_or(|key| own.headers.contains_key(*key) || own.env.contains_key(*key));
                if is_own {
                    mistakes.add(&path, mistake.message.clone());
                }
            }
        }
    }
    Sharing::Team { plans, idle: settings.idle.map_or(IDLE, |idle| idle.0) }
}

/// The element of a request's `tools`; the schema is the text the server sent.
fn definition(name: &str, listed: &Listed) -> String {
    #[derive(serde::Serialize)]
    struct Definition<'a> {
        r#type: &'static str,
        function: Function<'a>,
    }
    #[derive(serde::Serialize)]
    struct Function<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        parameters: &'a RawValue,
    }
    let parameters = serde_json::from_str::<&RawValue>(&listed.parameters);
    let function = |parameters| Function { name, description: listed.description.as_deref(), parameters };
    let text = parameters.and_then(|parameters| {
        serde_json::to_string(&Definition { r#type: "function", function: function(parameters) })
    });
    // It was JSON when it was listed.
    text.unwrap_or_default()
}

/// What the names of the tools of a server or a document begin with.
pub(in crate::tools) fn prefix(name: &str, settings: &Settings, mistakes: &mut Mistakes) -> String {
    let prefix = settings.prefix.clone().unwrap_or_else(|| format!("{name}__"));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if prefix.len() > MAX_PREFIX || !prefix.bytes().all(legal) {
        let fix = "write a short one under `prefix`, or \"\" for none";
        let message = format!(
            "names of tools cannot begin with `{prefix}`: letters, digits, _ and -, at most {MAX_PREFIX}"
        );
        match settings.prefix {
            Some(_) => mistakes.add_with_fix(&["prefix"], message, fix),
            None => mistakes.add_with_fix::<&str>(&[], message, fix),
        }
    }
    prefix
}

/// What only a server can have.
pub(in crate::tools) fn only_for_servers(settings: &Settings, mistakes: &mut Mistakes) {
    let given = [
        ("only", settings.only.is_some()),
        ("except", settings.except.is_some()),
        ("prefix", settings.prefix.is_some()),
        ("max_timeout", settings.max_timeout.is_some()),
        ("required", settings.required),
        ("share", settings.share != Share::default()),
        ("teams", !settings.teams.is_empty()),
        ("idle", settings.idle.is_some()),
        ("pin", settings.pin),
        ("pins", settings.pins.is_some()),
        ("trust_annotations", settings.trust_annotations),
    ];
    for (key, _) in given.into_iter().filter(|(_, given)| *given) {
        let whose = match key {
            "only" | "except" | "prefix" => "many tools at once: one with `mcp` or `openapi`",
            _ => "a server: a tool with `mcp`",
        };
        mistakes.add(&[key], format!("`{key}` belongs to {whose}"));
    }
}

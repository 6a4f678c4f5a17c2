//! Relay, turn or refuse: what becomes of a chat request.

use std::sync::Arc;
use std::time::Duration;

use super::parallel::{Decision, Facts, decide};
use super::settings::{InterimText, Limits, StrictParallel};
use crate::wire::error::ErrorReply;
use crate::wire::failure::Fact;
use crate::wire::history::Shape;
use crate::wire::request::{ChatRequest, ToolChoice};
use crate::wire::tool::{OwnedTool, OwnedTools};

/// What is known of the upstream and the model a request goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Habits {
    /// It weakens strict schemas in parallel calls.
    pub needs_serial_strict: bool,
    /// It takes `parallel_tool_calls`.
    pub takes_parallel: bool,
    /// It honours `tool_choice: "none"`.
    pub honours_tool_choice: bool,
    /// It takes `response_format` together with tools.
    pub takes_format_with_tools: bool,
    /// It takes a `reasoning_effort` other than `none` together with tools.
    pub takes_effort_with_tools: bool,
    /// How it wants a history.
    pub history: Shape,
    /// It is asked in streaming mode.
    pub streams: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            needs_serial_strict: false,
            takes_parallel: true,
            honours_tool_choice: true,
            takes_format_with_tools: true,
            takes_effort_with_tools: true,
            history: Shape::default(),
            streams: true,
        }
    }
}

/// The rules that hold for one request, of the process, the team and the route together.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The strict-versus-parallel rule.
    pub strict_parallel: StrictParallel,
    /// Whether text beside owned calls is shown.
    pub interim_text: InterimText,
    /// Every bound.
    pub limits: Arc<Limits>,
    /// A team or a route lowered the time of one call to this.
    pub call_timeout_cap: Option<Duration>,
    /// Arguments and results are kept until the turn is over: somebody wants to read them.
    pub keep_content: bool,
    /// What a round used is charged before the next one is asked, so it has to be known.
    pub charged: bool,
}

/// What becomes of a request that is not refused.
#[derive(Debug, Clone)]
pub enum Plan {
    /// Bytes go through; little may differ, and that only at upstreams whose plan says so.
    Relay(Vec<TargetPlan>),
    /// The turn engine takes it.
    Turn(Arc<TurnPlan>),
}

/// What was decided for one of the upstreams a request may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPlan {
    /// The decision of the rule.
    pub decision: Decision,
    /// The upstream's habits.
    pub habits: Habits,
    /// The body has to be written anew.
    pub rewrite: bool,
}

impl TargetPlan {
    /// What it turned out to refuse is left out.
    pub const fn refuse(&mut self, fact: Fact) {
        match fact {
            Fact::NoParallel => self.decision = Decision::UNSUPPORTED,
            Fact::NoEffort => self.habits.takes_effort_with_tools = false,
        }
        self.rewrite = true;
    }
}

/// What the engine has to know of a request.
#[derive(Debug, Clone)]
pub struct TurnPlan {
    /// The upstreams it may go to, in the order in which they are asked; there is at least one.
    pub targets: Vec<TargetPlan>,
    /// The client wants its answer in a format, by `response_format`.
    pub formatted: bool,
    /// The tools fanfold runs in this turn; a client's `allowed_tools` has narrowed them.
    pub owned: OwnedTools,
    /// The names of the tools the client declared; calls of them are the client's.
    pub foreign: Vec<String>,
    /// The first round's `tool_choice` forces a call and becomes auto afterwards.
    pub forcing: bool,
    /// The client wants a stream.
    pub stream: bool,
    /// The client wants a usage chunk.
    pub include_usage: bool,
    /// The client wants the transcript.
    pub transcript: bool,
    /// The client used `functions`.
    pub legacy_functions: bool,
    /// The rules.
    pub rules: Rules,
}

impl TurnPlan {
    /// No tools go out at all.
    #[must_use]
    pub fn has_no_tools(&self) -> bool {
        self.owned.is_empty() && self.foreign.is_empty() && !self.legacy_functions
    }

    /// What was decided for the upstream that is asked first.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.targets.first().map_or(Decision::UNSUPPORTED, |target| target.decision)
    }

    /// Whether arguments and results are kept until the turn is over.
    #[must_use]
    pub const fn keeps_content(&self) -> bool {
        self.transcript || self.rules.keep_content
    }
}

/// What the request is planned with.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The operator's tools this key may use.
    pub offered: &'a OwnedTools,
    /// Only these of them, says the request's header.
    pub narrowed: Option<&'a [String]>,
    /// The header asks for the transcript.
    pub transcript: bool,
    /// The messages were changed by restoring parked results.
    pub changed: bool,
    /// The habits of the upstreams, in the order in which they are asked; there is at least one.
    pub targets: &'a [Habits],
    /// The rules.
    pub rules: &'a Rules,
}

/// Plans a request.
pub fn plan(request: &ChatRequest, with: &Circumstances<'_>) -> Result<Plan, ErrorReply> {
    let owned = owned(request, with)?;
    let transcript = with.transcript || request.own.as_ref().is_some_and(|own| own.transcript);
    let no_tools = request.tools.is_empty() && owned.is_empty();
    let illegal = no_tools && request.has_tool_parameters();
    let rewrite = with.changed || request.own.is_some() || illegal;
    let mut targets = Vec::with_capacity(with.targets.len());
    for habits in with.targets {
        let decision = decide(&facts(request, &owned, with.rules, habits))?;
        // What the upstream refuses is only known to the engine.
        let refused = !no_tools
            && ((request.formatted && !habits.takes_format_with_tools) || !habits.takes_effort_with_tools);
        let rewrite = rewrite || refused || decision.send != request.parallel;
        targets.push(TargetPlan { decision, habits: habits.clone(), rewrite });
    }
    let rewrite = targets.iter().any(|target| target.rewrite);
    // A stream says what it used only if it was asked to, and the engine does ask.
    let unmetered = with.rules.charged && request.stream && !request.include_usage;
    if owned.is_empty() && (request.n != 1 || !(rewrite || transcript || unmetered)) {
        return Ok(Plan::Relay(targets));
    }
    if request.n != 1 {
        return Err(ErrorReply::invalid_value(
            "n",
            "This gateway runs tools for your requests, which works with `n: 1` only. Leave `n` out, or \
             send the header `x-fanfold-tools: none`.",
        ));
    }
    Ok(Plan::Turn(Arc::new(TurnPlan {
        targets,
        formatted: request.formatted,
        foreign: request.tools.iter().map(|tool| tool.name.clone()).collect(),
        forcing: matches!(
            request.tool_choice,
            ToolChoice::Required | ToolChoice::Function(_) | ToolChoice::Allowed { required: true, .. }
        ),
        stream: request.stream,
        include_usage: request.include_usage,
        transcript,
        legacy_functions: request.legacy_functions,
        rules: with.rules.clone(),
        owned,
    })))
}

/// The owned tools that apply to a request.
fn owned(request: &ChatRequest, with: &Circumstances<'_>) -> Result<OwnedTools, ErrorReply> {
    let wanted = match with.narrowed {
        Some(names) => Some(("x-fanfold-tools", names)),
        None => {
            request.own.as_ref().and_then(|own| own.tools.as_deref()).map(|names| ("fanfold.tools", names))
        }
    };
    if let Some((place, names)) = wanted
        && let Some(name) = names.iter().find(|name| with.offered.get(name).is_none())
    {
        return Err(ErrorReply::new(
            403,
            "tool_not_allowed",
            format!("There is no tool `{name}` that your key may use; `{place}` names it. Ask the operator of this gateway."),
        )
        .about(place));
    }
    let applies = |tool: &OwnedTool| {
        wanted.is_none_or(|(_, names)| names.iter().any(|name| **name == *tool.name))
            && choice_allows(request, tool, with)
    };
    if request.legacy_functions {
        return Ok(OwnedTools::default());
    }
    let owned = with.offered.filter(applies);
    if let Some(tool) = request.tools.iter().find(|tool| owned.get(&tool.name).is_some()) {
        return Err(ErrorReply::new(
            400,
            "tool_name_conflict",
            format!(
                "This gateway has a tool named `{0}` of its own, and your request declares one too. Rename yours, \
                 or leave the gateway's out with the header `x-fanfold-tools: none` (or a list without `{0}`).",
                tool.name
            ),
        )
        .about("tools"));
    }
    let most = with.rules.limits.tools_per_request as usize;
    let count = owned.len() + request.tools.len();
    if !owned.is_empty() && count > most {
        return Err(ErrorReply::new(
            400,
            "too_many_tools",
            format!(
                "The request has {} tools and this gateway adds {}: {count} in all, where providers take at most {most}. \
                 Name the gateway's tools you need in the header `x-fanfold-tools: name,name`.",
                request.tools.len(),
                owned.len()
            ),
        )
        .about("tools"));
    }
    Ok(owned)
}

/// Whether the client's `tool_choice` leaves room for a call of this tool.
fn choice_allows(request: &ChatRequest, tool: &OwnedTool, with: &Circumstances<'_>) -> bool {
    match &request.tool_choice {
        ToolChoice::Auto | ToolChoice::Required => true,
        ToolChoice::None | ToolChoice::Other => false,
        // A forced choice of one of ours leaves the others for later rounds.
        ToolChoice::Function(name) => with.offered.get(name).is_some(),
        ToolChoice::Allowed { names, .. } => names.iter().any(|name| **name == *tool.name),
    }
}

fn facts<'a>(request: &'a ChatRequest, owned: &'a OwnedTools, rules: &Rules, habits: &Habits) -> Facts<'a> {
    let clients = request.tools.iter().find(|tool| tool.strict).map(|tool| tool.name.as_str());
    let ours = owned.iter().find(|tool| tool.strict).map(|tool| &*tool.name);
    Facts {
        rule: rules.strict_parallel,
        any_tools: !request.tools.is_empty() || !owned.is_empty(),
        strict_tool: clients.or(ours),
        strict_is_clients: clients.is_some(),
        client: request.parallel,
        needs_rule: habits.needs_serial_strict,
        supported: habits.takes_parallel,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! The body of a question, in the form the upstream takes that is asked.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::Ask;
use crate::policy::plan::{TargetPlan, TurnPlan};
use crate::upstream::Target;
use crate::wire::history::{called_tools, list};
use crate::wire::raw::{Members, Raw};
use crate::wire::request::{ChatRequest, Choice, Outgoing};

/// Where a body goes: the upstream, and what was decided for it.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    /// The upstream.
    pub target: &'a Target,
    /// What was decided.
    pub plan: &'a TargetPlan,
}

impl To<'_> {
    /// Whether a request goes there as it came, as far as its habits go.
    fn takes_anything(&self) -> bool {
        let history = self.plan.habits.history;
        self.target.model.is_none() && !history.changes_messages() && !history.needs_tools
    }

    /// The body with everything that is special about this upstream.
    fn body(&self, request: &ChatRequest, out: Outgoing<'_>) -> Bytes {
        let shape = self.plan.habits.history;
        let own = request.messages();
        let shaped = shape.changes_messages().then(|| list(&shape.of_messages(&own, out.appended)));
        let none_declared = request.tools.is_empty() && out.owned.is_empty();
        let called = match shape.needs_tools && (out.drop_tools || none_declared) {
            true => called_tools(&own, out.appended),
            false => String::new(),
        };
        let mut out = Outgoing { model: self.target.model.as_deref(), ..out };
        if !called.is_empty() {
            out.drop_tools = false;
            out.choice = Choice::None;
            if none_declared {
                out.owned = &called;
            }
        }
        if shaped.is_some() {
            out.messages = shaped.as_ref();
            out.appended = &[];
        }
        request.render(&out)
    }
}

/// The body of an ask.
pub(super) fn asked(
    request: &ChatRequest,
    plan: &TurnPlan,
    to: To<'_>,
    appended: &[Raw],
    ask: &Ask,
) -> Bytes {
    to.body(
        request,
        Outgoing {
            appended,
            owned: plan.owned.definitions(),
            drop_tools: ask.drop_tools,
            choice: ask.choice,
            parallel: ask.parallel,
            drop_format: ask.drop_format && plan.formatted,
            no_effort: ask.no_effort,
            stream: to.plan.habits.streams,
            ..Outgoing::default()
        },
    )
}

/// The body that the first question of a turn would have.
#[must_use]
pub fn first_question(request: &ChatRequest, plan: &TurnPlan, to: To<'_>) -> Bytes {
    let mut actions = Vec::new();
    let plan = Arc::new(plan.clone());
    let mut turn = crate::engine::Turn::new(plan.clone(), 0);
    turn.step(crate::engine::Input::Begin, std::time::Duration::ZERO, &mut actions);
    match actions.first() {
        Some(crate::engine::Action::Ask(ask)) => asked(request, &plan, to, &[], ask),
        Some(_) | None => Bytes::new(),
    }
}

/// The body of a chat that goes through: as it came where that is possible.
#[must_use]
pub fn relayed(request: &ChatRequest, to: To<'_>, came: &Bytes) -> Bytes {
    let plan = to.plan;
    if !plan.rewrite && to.takes_anything() {
        return came.clone();
    }
    let has_tools = !request.tools.is_empty() || request.legacy_functions;
    to.body(
        request,
        Outgoing {
            parallel: plan.decision.send,
            stream: request.stream,
            choice: if has_tools { Choice::Keep } else { Choice::Drop },
            no_effort: !request.tools.is_empty() && !plan.habits.takes_effort_with_tools,
            keep_stream_options: true,
            ..Outgoing::default()
        },
    )
}

/// Any other body, with the model's name at the upstream.
pub(super) fn renamed(came: &Bytes, target: &Target) -> Bytes {
    let Some(model) = &target.model else { return came.clone() };
    match Members::read(came) {
        Ok(mut members) if members.find("model").is_some() => {
            members.set("model", Raw::string(model));
            members.to_raw().bytes().clone()
        }
        Ok(_) | Err(_) => came.clone(),
    }
}

//! Limits that contradict each other.

use super::Check;
use crate::policy::settings::LowerLimits;

impl Check<'_> {
    pub(super) fn limits(&mut self) {
        let file = self.file;
        let limits = &file.limits;
        if limits.body > limits.bodies_in_flight {
            let message = format!(
                "a body of {} would never fit into `bodies_in_flight`, which is {}",
                limits.body, limits.bodies_in_flight
            );
            self.wrong(&["limits", "bodies_in_flight"], message, "raise it, or lower `limits.body`");
        }
        if limits.event > limits.reply {
            let message =
                format!("one event may be larger ({}) than a whole reply ({})", limits.event, limits.reply);
            self.wrong(&["limits", "event"], message, "lower it, or raise `limits.reply`");
        }
        if limits.call_timeout > limits.turn_timeout {
            let message = format!("one call may take longer than a whole turn ({})", limits.turn_timeout);
            self.warn(&["limits", "call_timeout"], message, "lower it, or raise `limits.turn_timeout`");
        }
        for (i, route) in file.routes.iter().enumerate() {
            self.lower(&["routes", &i.to_string(), "limits"], &route.limits);
        }
        for (name, team) in &file.teams {
            let at = ["teams", name, "limits"];
            self.lower(&at, &team.limits.turn());
            self.at_most(&at, "turns_at_once", team.limits.turns_at_once, limits.turns_at_once);
            let calls = team.limits.calls_at_once_per_team;
            self.at_most(&at, "calls_at_once_per_team", calls, limits.calls_at_once_per_team);
        }
    }

    fn lower(&mut self, at: &[&str], lower: &LowerLimits) {
        let limits = &self.file.limits;
        self.at_most(at, "rounds", lower.rounds, limits.rounds);
        self.at_most(at, "calls_per_turn", lower.calls_per_turn, limits.calls_per_turn);
        self.at_most(at, "calls_at_once", lower.calls_at_once, limits.calls_at_once);
        self.at_most(at, "call_timeout", lower.call_timeout, limits.call_timeout);
        self.at_most(at, "turn_timeout", lower.turn_timeout, limits.turn_timeout);
        self.at_most(at, "tool_result", lower.tool_result, limits.tool_result);
    }

    fn at_most<T: PartialOrd + std::fmt::Display>(
        &mut self,
        at: &[&str],
        key: &str,
        own: Option<T>,
        global: T,
    ) {
        if let Some(own) = own.filter(|own| *own > global) {
            let path = [at, &[key]].concat();
            let message = format!("`{key}` may only be lowered here: {own} is more than the global {global}");
            self.wrong(&path, message, format!("lower it, or raise `limits.{key}`"));
        }
    }
}

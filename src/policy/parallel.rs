//! The strict-versus-parallel rule, as one pure function.
//!
//! A provider may drop or weaken `strict` schemas when the model emits several calls in one reply.
//! So a request that carries a strict tool goes out with `parallel_tool_calls: false`; a request
//! without one keeps parallel calls on. What is legal comes first: without tools, or where the model
//! refuses the parameter, it is left out.

use std::fmt;

use super::settings::StrictParallel;
use crate::wire::error::ErrorReply;

/// What the rule looks at.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The rule that applies.
    pub rule: StrictParallel,
    /// There are tools in the request as it goes out.
    pub any_tools: bool,
    /// The first strict tool among them.
    pub strict_tool: Option<&'a str>,
    /// The strict tool was sent by the client, not added by the operator.
    pub strict_is_clients: bool,
    /// What the client said.
    pub client: Option<bool>,
    /// The upstream or the model is known to need the rule (`auto` asks).
    pub needs_rule: bool,
    /// The upstream and the model take the parameter.
    pub supported: bool,
}

/// What goes out, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The parameter; `None` leaves it out.
    pub send: Option<bool>,
    /// Why.
    pub reason: Reason,
}

/// Why the decision is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing speaks against parallel calls.
    Default,
    /// The client said so.
    Client,
    /// A strict tool is in the request.
    StrictTool,
    /// There are no tools.
    NoTools,
    /// The model or the upstream does not take the parameter.
    Unsupported,
    /// There is a strict tool, but the operator switched the rule off.
    RuleOff,
    /// There is a strict tool, but this upstream keeps strict schemas in parallel calls.
    NotNeeded,
}

impl Decision {
    /// The model or the upstream does not take the parameter.
    pub const UNSUPPORTED: Self = Self { send: None, reason: Reason::Unsupported };

    /// What is told of a request that is refused: its strict tool would have needed this.
    pub const CONFLICT: Self = Self { send: Some(false), reason: Reason::StrictTool };

    /// `on` or `off`: whether several calls in one reply are possible.
    #[must_use]
    pub const fn word(self) -> &'static str {
        if self.is_off() { "off" } else { "on" }
    }

    const fn is_off(self) -> bool {
        matches!((self.send, self.reason), (Some(false), _) | (_, Reason::NoTools))
    }
}

impl Reason {
    /// The reason as a person would say it.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Default => "No tool is strict and the client did not say: calls may be parallel.",
            Self::Client => {
                "The client itself said what `parallel_tool_calls` is to be, and nothing speaks against it."
            }
            Self::StrictTool => {
                "A tool in the request is strict, and strict schemas are only kept when calls come one at a time."
            }
            Self::NoTools => "There are no tools, so there is nothing to be parallel.",
            Self::Unsupported => {
                "The model or its server does not take `parallel_tool_calls`, so it is left out."
            }
            Self::RuleOff => {
                "A tool is strict, but `policy.strict_parallel` is off here: the model may still call in parallel."
            }
            Self::NotNeeded => {
                "A tool is strict, but this model server keeps strict schemas in parallel calls as well."
            }
        }
    }
}

macro_rules! texts {
    ($($reason:ident $word:literal),*) => {
        impl Reason {
            /// The word in the header, the metric and the log.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$reason => $word),* }
            }
        }

        impl Decision {
            /// As in the response header: `off; reason=strict_tool`.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match (self.is_off(), self.reason) {
                    $((true, Reason::$reason) => concat!("off; reason=", $word),)*
                    $((false, Reason::$reason) => concat!("on; reason=", $word),)*
                }
            }
        }
    };
}

texts! {
    Default "default",
    Client "client",
    StrictTool "strict_tool",
    NoTools "no_tools",
    Unsupported "unsupported",
    RuleOff "rule_off",
    NotNeeded "not_needed"
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Decides about `parallel_tool_calls`.
pub fn decide(facts: &Facts<'_>) -> Result<Decision, ErrorReply> {
    let conflict = facts.strict_tool.filter(|_| facts.client == Some(true) && facts.strict_is_clients);
    if let (StrictParallel::Reject, Some(tool)) = (facts.rule, conflict) {
        return Err(ErrorReply::new(
            400,
            "strict_parallel_conflict",
            format!(
                "The tool `{tool}` says `strict: true`, and the request says `parallel_tool_calls: true`. \
                 Strict schemas are only kept when calls come one at a time: send `parallel_tool_calls: false`, \
                 or leave it out, or drop `strict` from the tool."
            ),
        )
        .about("parallel_tool_calls"));
    }
    Ok(legal(facts).unwrap_or_else(|| wished(facts)))
}

fn legal(facts: &Facts<'_>) -> Option<Decision> {
    match (facts.any_tools, facts.supported) {
        (false, _) => Some(Decision { send: None, reason: Reason::NoTools }),
        (true, false) => Some(Decision::UNSUPPORTED),
        (true, true) => None,
    }
}

fn wished(facts: &Facts<'_>) -> Decision {
    let strict = facts.strict_tool.is_some();
    let needed = match facts.rule {
        StrictParallel::Serialize | StrictParallel::Reject => true,
        StrictParallel::Auto => facts.needs_rule,
        StrictParallel::Off => false,
    };
    match facts.client {
        Some(false) => Decision { send: Some(false), reason: Reason::Client },
        _ if strict && needed => Decision { send: Some(false), reason: Reason::StrictTool },
        Some(true) => Decision { send: Some(true), reason: Reason::Client },
        None if strict && facts.rule == StrictParallel::Off => {
            Decision { send: None, reason: Reason::RuleOff }
        }
        None if strict => Decision { send: None, reason: Reason::NotNeeded },
        None => Decision { send: None, reason: Reason::Default },
    }
}

/// Whether a model is of a family that refuses `parallel_tool_calls`: o1, o3, o3-mini, o4-mini.
#[must_use]
pub fn model_refuses_parameter(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    ["o1", "o3", "o4-mini"]
        .iter()
        .any(|family| name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use StrictParallel::{Auto, Off, Reject, Serialize};

    /// The whole truth table: rule × strict × client × needs, tools present, parameter supported.
    #[test]
    fn truth_table() {
        let rules = [Serialize, Auto, Reject, Off];
        for rule in rules {
            for strict in [false, true] {
                for client in [None, Some(true), Some(false)] {
                    for needs in [false, true] {
                        let expected = match (rule, strict, client, needs) {
                            (_, _, Some(false), _) => "Some(false) off; reason=client",
                            (Reject, true, Some(true), _) => "refused",
                            (Serialize | Reject, true, None, _)
                            | (Serialize, true, Some(true), _)
                            | (Auto, true, None | Some(true), true) => "Some(false) off; reason=strict_tool",
                            (_, _, Some(true), _) => "Some(true) on; reason=client",
                            (Off, true, None, _) => "None on; reason=rule_off",
                            (Auto, true, None, false) => "None on; reason=not_needed",
                            (_, false, None, _) => "None on; reason=default",
                        };
                        let facts = Facts {
                            rule,
                            any_tools: true,
                            strict_tool: strict.then_some("t"),
                            strict_is_clients: true,
                            client,
                            needs_rule: needs,
                            supported: true,
                        };
                        let got =
                            decide(&facts).map_or_else(|_| "refused".into(), |d| format!("{:?} {d}", d.send));
                        assert_eq!(got, expected, "{facts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn legality_comes_before_every_rule_and_wish() {
        for rule in [Serialize, Auto, Off] {
            for client in [None, Some(true), Some(false)] {
                let facts = |any_tools, supported| Facts {
                    rule,
                    any_tools,
                    strict_tool: Some("t"),
                    strict_is_clients: true,
                    client,
                    needs_rule: true,
                    supported,
                };
                let sent = |any_tools, supported| decide(&facts(any_tools, supported)).unwrap();
                assert_eq!(sent(false, true), Decision { send: None, reason: Reason::NoTools });
                assert_eq!(sent(true, false), Decision { send: None, reason: Reason::Unsupported });
            }
        }
    }

    #[test]
    fn a_refusal_names_the_tool_and_the_field_and_only_blames_the_client_for_its_own_tool() {
        let facts = Facts {
            rule: Reject,
            any_tools: true,
            strict_tool: Some("lookup"),
            strict_is_clients: true,
            client: Some(true),
            needs_rule: false,
            supported: true,
        };
        let error = decide(&facts).unwrap_err();
        assert_eq!((error.status, error.code.as_str()), (400, "strict_parallel_conflict"));
        assert!(error.message.contains("lookup"));
        assert_eq!(error.param.as_deref(), Some("parallel_tool_calls"));
        let operators = decide(&Facts { strict_is_clients: false, ..facts }).unwrap();
        assert_eq!(operators, Decision { send: Some(false), reason: Reason::StrictTool });
    }

    #[test]
    fn the_word_says_whether_several_calls_are_possible_and_each_reason_has_its_own_sentence() {
        use Reason::{Client, Default, NoTools, NotNeeded, RuleOff, StrictTool, Unsupported};
        for (send, reason, word) in [
            (Some(false), Client, "off"),
            (Some(false), StrictTool, "off"),
            (None, NoTools, "off"),
            (Some(true), Client, "on"),
            (None, Default, "on"),
            (None, Unsupported, "on"),
            (None, RuleOff, "on"),
            (None, NotNeeded, "on"),
        ] {
            let decision = Decision { send, reason };
            assert_eq!(decision.word(), word, "{decision:?}");
            assert_eq!(decision.text(), format!("{word}; reason={}", reason.word()));
        }
        let reasons = [Client, Default, NoTools, NotNeeded, RuleOff, StrictTool, Unsupported];
        let sentences: std::collections::BTreeSet<_> = reasons.map(Reason::sentence).into();
        assert_eq!(sentences.len(), reasons.len());
        assert!(sentences.iter().all(|sentence| sentence.ends_with('.')), "{sentences:?}");
    }

    #[test]
    fn families_that_refuse_the_parameter() {
        for model in ["o1", "o1-mini", "o3", "o3-mini", "o3-mini-2025-01-31", "o4-mini", "openai/o3"] {
            assert!(model_refuses_parameter(model), "{model}");
        }
        for model in ["gpt-4o", "o4", "o10", "gpt-o1", "ft:o3x", "o3x"] {
            assert!(!model_refuses_parameter(model), "{model}");
        }
    }
}

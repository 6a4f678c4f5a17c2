//! What happens next, in scenes.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::policy::parallel::{Decision, Reason};
use crate::policy::plan::{Habits, Rules, TargetPlan, TurnPlan};
use crate::policy::settings::{InterimText, Limits, StrictParallel};
use crate::wire::failure::FailureKind;
use crate::wire::reply::{Decoded, decode};
use crate::wire::tool::{Effect, OnDisconnect, OutcomeKind};

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn plan() -> TurnPlan {
    let tool = |name: &str, effect, on_disconnect| {
        let tool = OwnedTool {
            name: name.into(),
            definition: "{}".into(),
            strict: false,
            effect,
            on_disconnect,
            timeout: ms(30_000),
            max_timeout: ms(45_000),
        };
        Arc::new(tool)
    };
    TurnPlan {
        targets: vec![TargetPlan {
            decision: Decision { send: None, reason: Reason::Default },
            habits: Habits::default(),
            rewrite: false,
        }],
        formatted: false,
        owned: [
            tool("read", Effect::Read, OnDisconnect::Stop),
            tool("look", Effect::Read, OnDisconnect::Stop),
            tool("write", Effect::Write, OnDisconnect::Finish),
        ]
        .into_iter()
        .collect(),
        foreign: vec!["theirs".into()],
        forcing: false,
        stream: true,
        include_usage: true,
        transcript: true,
        legacy_functions: false,
        rules: Rules {
            strict_parallel: StrictParallel::Serialize,
            interim_text: InterimText::Stream,
            limits: Arc::new(Limits::default()),
            call_timeout_cap: None,
            keep_content: true,
            charged: false,
        },
    }
}

/// A turn on a stage: inputs in, told actions out.
struct Scene {
    turn: Turn,
    now: Duration,
    ask: AskId,
}

impl Scene {
    fn new(plan: TurnPlan) -> Self {
        Self { turn: Turn::new(Arc::new(plan), 1), now: Duration::ZERO, ask: 0 }
    }

    /// A scene whose first question is out.
    fn begun(plan: TurnPlan) -> Self {
        let mut scene = Self::new(plan);
        assert_eq!(scene.step(Input::Begin), ["ask 1.0"]);
        scene
    }

    fn step(&mut self, input: Input) -> Vec<String> {
        let mut actions = Vec::new();
        self.turn.step(input, self.now, &mut actions);
        for action in &actions {
            if let Action::Ask(ask) = action {
                self.ask = ask.id;
            }
        }
        actions.iter().filter_map(told).collect()
    }

    fn after(&mut self, millis: u64) -> &mut Self {
        self.now += ms(millis);
        self
    }

    fn hear(&mut self, chunk: &str) -> Vec<String> {
        let Ok(Decoded::Piece(piece)) = decode(&chunk.to_owned().into(), false) else { panic!("{chunk}") };
        self.step(Input::Piece(self.ask, piece))
    }

    fn text(&mut self, text: &str) -> Vec<String> {
        self.hear(&format!(r#"{{"model":"m","choices":[{{"delta":{{"content":"{text}"}}}}]}}"#))
    }

    fn call(&mut self, index: usize, name: &str, arguments: &str) -> Vec<String> {
        let arguments = Raw::string(arguments);
        self.hear(&format!(
            r#"{{"choices":[{{"delta":{{"tool_calls":[{{"index":{index},"id":"c{index}","type":"function","function":{{"name":"{name}","arguments":{}}}}}]}}}}]}}"#,
            arguments.text()
        ))
    }

    fn end(&mut self, finish: &str) -> Vec<String> {
        let mut told = self.hear(&format!(
            r#"{{"choices":[{{"delta":{{}},"finish_reason":"{finish}"}}],"usage":{{"total_tokens":5}}}}"#
        ));
        told.extend(self.step(Input::Ended { ask: self.ask, done: true }));
        told
    }

    fn fail(&mut self, kind: FailureKind) -> Vec<String> {
        self.step(Input::Failed(self.ask, Box::new(Failure::new(kind, ""))))
    }

    fn ok(&mut self, run: RunId) -> Vec<String> {
        self.step(Input::Outcome(run, Outcome::ok(format!("result {run}"))))
    }

    /// Lets time pass until the turn's own deadline, and tells it so.
    fn wait(&mut self) -> Vec<String> {
        self.now = self.turn.deadline().unwrap();
        self.step(Input::Tick)
    }

    fn history(&self) -> Vec<&str> {
        self.turn.appended().iter().map(Raw::text).collect()
    }
}

/// An action in a few words. Heads are left out.
fn told(action: &Action) -> Option<String> {
    Some(match action {
        Action::Ask(ask) => {
            let mut told = format!("ask {}.{}", ask.round, ask.attempt);
            match ask.choice {
                Choice::Keep => {}
                Choice::Auto => told.push_str(" auto"),
                Choice::None => told.push_str(" none"),
                Choice::Drop => told.push_str(" drop"),
            }
            if ask.drop_tools {
                told.push_str(" without tools");
            }
            told
        }
        Action::Cancel => "cancel".into(),
        Action::Charge(round, usage) => format!("charge {round} {}", usage.text()),
        Action::Run(run) => format!("run {} {} {}", run.id, run.tool.name, run.arguments),
        Action::Stop(run) => format!("stop {run}"),
        Action::Show(Show::Begin(_)) => return None,
        Action::Show(Show::Texts(texts)) => {
            texts.strings().fold(String::from("show"), |told, text| told + " " + text.text())
        }
        Action::Show(Show::Part(part)) => {
            let mut told = String::from("show");
            if part.blank_line {
                told.push_str(" blank");
            }
            if let Some(text) = &part.text {
                told.push_str(&format!(" {}", text.text()));
            }
            for call in &part.calls {
                let opening =
                    call.opening.as_ref().map(|o| format!("{}:{}", o.id, o.name)).unwrap_or_default();
                let arguments = call.arguments.as_ref().map(Raw::text).unwrap_or_default();
                told.push_str(&format!(" call{} {opening} {arguments}", call.index));
            }
            told
        }
        Action::Park(parked) => format!("park {:?}", parked.foreign().collect::<Vec<_>>()),
        Action::Learn(fact) => format!("learn {fact:?}"),
        Action::Finish(Finish::Answer(reason)) => format!("finish {}", reason.word()),
        Action::Finish(Finish::Failed(error)) => format!("failed {} {}", error.status, error.code),
        Action::Finish(Finish::Gone) => "gone".into(),
    })
}

fn limited(change: impl FnOnce(&mut Limits)) -> TurnPlan {
    let mut plan = plan();
    let mut limits = Limits::default();
    change(&mut limits);
    plan.rules.limits = Arc::new(limits);
    plan
}

#[test]
fn a_plain_answer_streams_through() {
    let mut s = Scene::begun(plan());
    assert_eq!(s.text("hel"), ["show \"hel\""]);
    assert_eq!(s.text("lo"), ["show \"lo\""]);
    assert_eq!(s.end("stop"), ["finish stop"]);
    assert_eq!(s.turn.deadline(), None);
}

#[test]
fn results_go_back_in_call_order_whatever_the_order_they_came_in() {
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{\"x\":1}");
    assert_eq!(s.call(1, "write", "{\"x\":2}"), Vec::<String>::new());
    assert_eq!(s.end("tool_calls"), ["run 1 write {\"x\":1}", "run 2 write {\"x\":2}"]);
    assert_eq!(s.ok(2), Vec::<String>::new());
    assert_eq!(s.ok(1), ["ask 2.0"]);
    assert_eq!(
        s.history(),
        [
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c0","type":"function","function":{"name":"write","arguments":"{\"x\":1}"}},{"id":"c1","type":"function","function":{"name":"write","arguments":"{\"x\":2}"}}]}"#,
            r#"{"role":"tool","tool_call_id":"c0","name":"write","content":"result 1"}"#,
            r#"{"role":"tool","tool_call_id":"c1","name":"write","content":"result 2"}"#,
        ]
    );
    s.text("done");
    assert_eq!(s.end("stop"), ["finish stop"]);
    assert!(s.turn.usage().total().unwrap().text().contains("\"total_tokens\":10"));
}

#[test]
fn a_reading_tool_starts_as_soon_as_the_next_call_begins() {
    let mut s = Scene::begun(plan());
    assert_eq!(s.call(0, "read", "{}"), Vec::<String>::new());
    assert_eq!(s.call(1, "write", "{}"), ["run 1 read {}"]);
    assert_eq!(s.call(2, "read", "{\"x\":1}"), Vec::<String>::new());
    assert_eq!(s.end("tool_calls"), ["run 2 write {}", "run 3 read {\"x\":1}"]);
}

#[test]
fn a_call_that_has_no_arguments_yet_does_not_start_early() {
    let mut scene = Scene::begun(plan());
    assert_eq!(scene.call(0, "read", ""), [""; 0]);
    assert_eq!(scene.call(1, "read", ""), [""; 0]);
    assert_eq!(scene.call(0, "", "{\"x\":0}"), [""; 0]);
    assert_eq!(scene.call(1, "", "{\"x\":1}"), [""; 0]);
    assert_eq!(scene.end("tool_calls"), ["run 1 read {\"x\":0}", "run 2 read {\"x\":1}"]);
    let mut scene = Scene::begun(plan());
    scene.call(0, "read", "");
    scene.call(1, "look", "{}");
    assert_eq!(scene.end("tool_calls"), ["run 1 read {}", "run 2 look {}"]);
}

#[test]
fn calls_that_come_in_one_piece_run_once_each() {
    for kind in ["delta", "message"] {
        let mut scene = Scene::begun(plan());
        let call = |i: usize| {
            format!(r#"{{"id":"c{i}","type":"function","function":{{"name":"read","arguments":"[{i}]"}}}}"#)
        };
        let calls: Vec<String> = (0..4).map(call).collect();
        let reply = format!(r#"{{"choices":[{{"{kind}":{{"tool_calls":[{}]}}}}]}}"#, calls.join(","));
        let mut told = scene.hear(&reply);
        told.extend(scene.end("tool_calls"));
        assert_eq!(told, ["run 1 read [0]", "run 2 read [1]", "run 3 read [2]", "run 4 read [3]"], "{kind}");
        for run in 1..=3 {
            assert_eq!(scene.ok(run), [""; 0]);
        }
        assert_eq!(scene.ok(4), ["ask 2.0"]);
        assert_eq!(scene.turn.record().calls.len(), 4);
    }
}

#[test]
fn a_call_that_goes_on_after_it_started_early_starts_anew() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    assert_eq!(s.call(1, "look", "{}"), ["run 1 read {}"]);
    let more = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":" "}}]}}]}"#;
    assert_eq!(s.hear(more), ["stop 1"]);
    assert_eq!(s.ok(1), Vec::<String>::new());
    assert_eq!(s.end("tool_calls"), ["run 2 read {} ", "run 3 look {}"]);
}

#[test]
fn a_call_that_runs_keeps_the_name_it_began_with() {
    let wrapped = r#"{"tool_uses":[{"recipient_name":"read"}]}"#;
    for name in ["multi_tool_use.parallel", "look", "nobody"] {
        let mut s = Scene::begun(plan());
        s.call(0, "read", wrapped);
        assert_eq!(s.call(1, "look", "{}"), [format!("run 1 read {wrapped}")]);
        assert_eq!(s.call(0, name, ""), [""; 0], "{name}");
        assert_eq!(s.end("tool_calls"), ["run 2 look {}"], "{name}");
        s.ok(2);
        assert_eq!(s.ok(1), ["ask 2.0"], "{name}");
        assert!(s.history()[0].contains(r#""name":"read""#), "{}", s.history()[0]);
    }
}

#[test]
fn equal_reading_calls_run_once_and_answer_both_ids() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", r#"{"a":1,"b":2}"#);
    s.call(1, "read", r#"{"b":2, "a":1}"#);
    s.call(2, "write", "{}");
    s.call(3, "write", "{}");
    assert_eq!(s.end("tool_calls"), ["run 2 write {}", "run 3 write {}"]);
    s.ok(2);
    s.ok(3);
    assert_eq!(s.ok(1), ["ask 2.0"]);
    assert_eq!(s.history()[2], r#"{"role":"tool","tool_call_id":"c1","name":"read","content":"result 1"}"#);
}

#[test]
fn slots_are_filled_in_order() {
    let mut s = Scene::begun(limited(|l| l.calls_at_once = 2));
    for i in 0..4 {
        s.call(i, "write", &format!("{{\"i\":{i}}}"));
    }
    assert_eq!(s.end("tool_calls"), ["run 1 write {\"i\":0}", "run 2 write {\"i\":1}"]);
    assert_eq!(s.ok(2), ["run 3 write {\"i\":2}"]);
    assert_eq!(s.ok(3), ["run 4 write {\"i\":3}"]);
    s.ok(1);
    assert_eq!(s.ok(4), ["ask 2.0"]);
}

#[test]
fn bad_calls_get_an_error_result_and_the_others_run() {
    let mut s = Scene::begun(plan());
    s.call(0, "nobody", "{}");
    s.call(1, "write", "{\"x\":");
    s.call(2, "write", "");
    assert_eq!(s.end("tool_calls"), ["run 1 write {}"]);
    assert_eq!(s.ok(1), ["ask 2.0"]);
    let history = s.history();
    assert!(
        history[1].contains("error: there is no tool `nobody`; the tools are: look, read, write, theirs"),
        "{}",
        history[1]
    );
    assert!(history[2].contains("not valid JSON"), "{}", history[2]);
    let outcomes: Vec<_> = s.turn.record().calls.iter().map(|c| c.outcome).collect();
    assert_eq!(
        outcomes,
        [Some(OutcomeKind::Denied), Some(OutcomeKind::InvalidArguments), Some(OutcomeKind::Ok)]
    );
}

#[test]
fn a_wrapper_is_opened_into_its_calls() {
    let mut s = Scene::begun(plan());
    s.call(0, "multi_tool_use.parallel", r#"{"tool_uses":[{"recipient_name":"functions.read","parameters":{"x":1}},{"recipient_name":"functions.write","parameters":{}}]}"#);
    assert_eq!(s.end("tool_calls"), ["run 1 read {\"x\":1}", "run 2 write {}"]);
    s.ok(1);
    assert_eq!(s.ok(2), ["ask 2.0"]);
    assert!(!s.history()[0].contains("multi_tool_use"));
    assert_eq!(s.history().len(), 3);
}

#[test]
fn a_call_that_goes_on_again_and_again_starts_twice_and_no_more() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    let mut told = Vec::new();
    for n in 1..20 {
        told.extend(s.call(n, "write", "{}"));
        told.extend(s.call(0, "read", " "));
    }
    assert_eq!(told, ["run 1 read {}", "stop 1"]);
    let told = s.end("tool_calls");
    assert_eq!(told.iter().filter(|told| told.contains(" read ")).count(), 1, "{told:?}");
}

#[test]
fn wrappers_hold_no_more_calls_than_a_reply_may_have() {
    let mut s = Scene::begun(plan());
    let uses = vec![r#"{"recipient_name":"functions.read"}"#; 300].join(",");
    s.call(0, "multi_tool_use.parallel", &format!(r#"{{"tool_uses":[{uses}]}}"#));
    let told = s.end("tool_calls");
    assert!(told.last().is_some_and(|told| told.contains("upstream_reply_too_large")), "{told:?}");
    let mut s = Scene::begun(plan());
    let uses = vec![r#"{"recipient_name":"functions.read"}"#; 200].join(",");
    assert!(s.call(0, "read", "{}").is_empty());
    // Another call has begun, so this one is complete.
    assert_eq!(
        s.call(1, "multi_tool_use.parallel", &format!(r#"{{"tool_uses":[{uses}]}}"#)),
        ["run 1 read {}"]
    );
    s.call(2, "multi_tool_use.parallel", &format!(r#"{{"tool_uses":[{uses}]}}"#));
    let told = s.end("tool_calls");
    assert_eq!((told[0].as_str(), told.len()), ("stop 1", 2), "{told:?}");
    assert!(told[1].contains("upstream_reply_too_large"), "{told:?}");
}

#[test]
fn news_of_progress_give_a_call_more_time_but_no_more_than_the_most() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    s.end("tool_calls");
    // Before it has started there is nothing to extend.
    s.after(1_000).step(Input::Progress(1));
    assert_eq!(s.turn.deadline(), Some(ms(30_000)));
    s.step(Input::Started(1));
    assert_eq!(s.turn.deadline(), Some(ms(31_000)));
    s.after(10_000).step(Input::Progress(1));
    s.step(Input::Progress(7));
    assert_eq!(s.turn.deadline(), Some(ms(41_000)));
    s.after(20_000).step(Input::Progress(1));
    assert_eq!(s.turn.deadline(), Some(ms(46_000)), "the most, from its start");
    s.after(5_000).step(Input::Progress(1));
    assert_eq!(s.wait(), ["stop 1", "ask 2.0"]);
    assert!(s.history()[1].contains("error: timed out after 45s"), "{:?}", s.history());
    assert!(s.step(Input::Progress(1)).is_empty());
}

#[test]
fn nothing_gives_a_call_more_time_than_the_team_allows() {
    let mut plan = plan();
    plan.rules.call_timeout_cap = Some(ms(32_000));
    let mut s = Scene::begun(plan);
    s.call(0, "read", "{}");
    s.end("tool_calls");
    s.step(Input::Started(1));
    s.after(20_000).step(Input::Progress(1));
    assert_eq!(s.turn.deadline(), Some(ms(32_000)));
}

#[test]
fn a_call_that_takes_too_long_is_stopped_and_the_others_are_kept() {
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    s.call(1, "read", "{}");
    s.end("tool_calls");
    s.step(Input::Started(1));
    s.after(10).step(Input::Started(2));
    s.ok(2);
    assert_eq!(s.turn.deadline(), Some(ms(30_000)));
    assert_eq!(s.wait(), ["stop 1", "ask 2.0"]);
    assert!(s.history()[1].contains("error: timed out after 30s; outcome unknown: may have been executed"));
    assert!(s.history()[2].contains("result 2"));
    assert_eq!(s.ok(1), Vec::<String>::new(), "a late result falls through");
}

#[test]
fn time_spent_waiting_for_a_shared_slot_is_not_the_calls_own() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    s.end("tool_calls");
    s.after(20_000).step(Input::Started(1));
    assert_eq!(s.turn.deadline(), Some(ms(50_000)));
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    assert_eq!(s.wait(), ["stop 1", "ask 2.0"]);
    assert!(s.history()[1].contains("waiting for a free slot; nothing was run"));
}

fn charged() -> TurnPlan {
    let mut plan = plan();
    plan.rules.charged = true;
    plan
}

#[test]
fn a_round_is_charged_while_its_calls_run_and_before_the_next_is_asked() {
    let mut s = Scene::begun(charged());
    s.call(0, "write", "{}");
    assert_eq!(s.end("tool_calls"), [r#"charge 1 {"total_tokens":5}"#, "run 1 write {}"]);
    assert_eq!(s.ok(1), Vec::<String>::new(), "it waits for the charge");
    assert_eq!(s.step(Input::Charged(2, None)), Vec::<String>::new(), "of no round there is");
    assert_eq!(s.step(Input::Charged(1, None)), ["ask 2.0"]);
    s.call(0, "write", "{}");
    s.end("tool_calls");
    assert_eq!(s.step(Input::Charged(1, Some(Limit::Budget))), Vec::<String>::new(), "late news");
    assert_eq!(s.step(Input::Charged(2, None)), Vec::<String>::new());
    assert_eq!(s.ok(2), ["ask 3.0"]);
    s.text("so");
    assert_eq!(s.end("stop"), [r#"charge 3 {"total_tokens":5}"#, "finish stop"]);
    assert_eq!(s.step(Input::Charged(3, Some(Limit::Budget))), Vec::<String>::new());
    assert!(s.turn.record().limits.is_empty(), "what is used up after the last round ends nothing");
}

#[test]
fn a_quota_that_is_used_up_leaves_one_round_for_an_answer() {
    for (limit, said) in [
        (Limit::Budget, "the budget is used up"),
        (Limit::TokensPerMinute, "the quota of tokens a minute is used up"),
    ] {
        let mut s = Scene::begun(charged());
        s.call(0, "write", "{}");
        s.end("tool_calls");
        assert_eq!(s.step(Input::Charged(1, Some(limit))), Vec::<String>::new());
        assert_eq!(s.ok(1), ["ask 2.0 none"]);
        assert!(s.history()[1].contains(&format!("{said}. Answer from the results you have.]")));
        s.call(0, "write", "{}");
        let told = s.end("tool_calls");
        assert_eq!(told.last().map(String::as_str), Some("finish length"));
        assert!(told.iter().any(|action| action.contains(said)), "{told:?}");
        assert_eq!(s.turn.record().limits, [limit]);
    }
}

#[test]
fn a_charge_that_never_comes_back_holds_a_turn_no_longer_than_its_own_time() {
    let mut s = Scene::begun(charged());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.ok(1);
    assert_eq!(s.wait(), ["failed 424 turn_failed_after_tools"]);
}

#[test]
fn the_last_round_has_no_choice_and_a_note() {
    let mut s = Scene::begun(limited(|l| l.rounds = 2));
    for (round, next) in [(1, "ask 2.0"), (2, "ask 3.0 none")] {
        s.call(0, "write", "{}");
        s.end("tool_calls");
        assert_eq!(s.ok(round), [next]);
    }
    assert!(
        s.history()[3]
            .contains("the limit of 2 rounds of tool calls is reached. Answer from the results you have.]")
    );
    s.text("so");
    assert_eq!(s.end("stop"), ["finish stop"]);
    assert_eq!(s.turn.record().limits, [Limit::Rounds]);
}

#[test]
fn a_model_that_still_calls_in_the_last_round_is_not_obeyed_and_the_answer_says_why() {
    let mut s = Scene::begun(limited(|l| l.rounds = 1));
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.ok(1);
    s.call(0, "write", "{}");
    let told = s.end("tool_calls");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("The answer ends here: the limit of 1 rounds"), "{told:?}");
    assert_eq!(told[1], "finish length");
}

#[test]
fn the_last_round_is_never_an_empty_answer() {
    let mut s = Scene::begun(limited(|l| l.rounds = 1));
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.ok(1);
    let told = s.end("stop");
    assert!(told[0].contains("The answer ends here"), "{told:?}");
}

#[test]
fn an_upstream_that_ignores_the_choice_gets_no_tools_in_the_last_round() {
    let mut plan = limited(|l| l.rounds = 1);
    plan.targets[0].habits.honours_tool_choice = false;
    plan.targets[0].decision.send = Some(false);
    let mut s = Scene::begun(plan);
    s.call(0, "write", "{}");
    s.end("tool_calls");
    assert_eq!(s.ok(1), ["ask 2.0 drop without tools"]);
}

#[test]
fn calls_beyond_the_limit_are_not_run() {
    let mut s = Scene::begun(limited(|l| l.calls_per_turn = 2));
    for i in 0..3 {
        s.call(i, "write", &format!("{{\"i\":{i}}}"));
    }
    assert_eq!(s.end("tool_calls").len(), 2);
    s.ok(1);
    assert_eq!(s.ok(2), ["ask 2.0 none"]);
    assert!(s.history()[3].contains("not run: the limit of 2 tool calls in one turn is reached"));
}

#[test]
fn the_same_error_of_the_same_call_three_times_in_a_row_ends_the_tool_rounds() {
    let mut s = Scene::begun(plan());
    for (run, next) in [(1, "ask 2.0"), (2, "ask 3.0"), (3, "ask 4.0 none")] {
        s.call(0, "write", "{}");
        s.end("tool_calls");
        assert_eq!(s.step(Input::Outcome(run, Outcome::failed(OutcomeKind::Error, "no"))), [next]);
    }
    assert_eq!(s.turn.record().limits, [Limit::IdenticalErrors]);
}

#[test]
fn foreign_calls_are_shown_renumbered_and_ours_are_parked_with_their_results() {
    let mut s = Scene::begun(plan());
    assert_eq!(s.call(0, "read", "{}"), Vec::<String>::new());
    assert_eq!(s.call(1, "theirs", ""), ["show call0 c1:theirs \"\"", "run 1 read {}"]);
    let more = r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]}}]}"#;
    assert_eq!(s.hear(more), ["show call0  \"{}\""]);
    assert_eq!(s.end("tool_calls"), Vec::<String>::new());
    assert_eq!(s.ok(1), ["park [\"c1\"]", "finish tool_calls"]);
    assert!(s.turn.record().mixed);
}

#[test]
fn foreign_calls_alone_end_the_turn() {
    let mut s = Scene::begun(plan());
    s.call(0, "theirs", "{}");
    assert_eq!(s.end("stop"), ["finish tool_calls"]);
}

#[test]
fn a_blank_line_stands_between_the_texts_of_two_rounds() {
    let mut s = Scene::begun(plan());
    s.text("let me see");
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.ok(1);
    assert_eq!(s.text("so"), ["show blank \"so\""]);
    assert_eq!(s.text("!"), ["show \"!\""]);
}

#[test]
fn interim_text_is_held_until_the_round_is_known_to_be_the_last() {
    let mut plan = plan();
    plan.rules.interim_text = InterimText::Hold;
    let mut s = Scene::begun(plan);
    assert_eq!(s.text("let me see"), Vec::<String>::new());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.ok(1);
    s.text("so");
    assert_eq!(s.end("stop"), ["show \"so\"", "finish stop"]);
}

#[test]
fn a_forcing_choice_is_for_the_first_round_only() {
    let mut plan = plan();
    plan.forcing = true;
    let mut s = Scene::begun(plan);
    s.call(0, "write", "{}");
    s.end("tool_calls");
    assert_eq!(s.ok(1), ["ask 2.0 auto"]);
}

#[test]
fn a_failed_ask_is_asked_again_while_nothing_was_shown() {
    let mut s = Scene::begun(plan());
    assert_eq!(s.fail(FailureKind::Unreachable), Vec::<String>::new());
    assert_eq!(s.wait(), ["ask 1.1"]);
    s.fail(FailureKind::Unreachable);
    assert_eq!(s.wait(), ["ask 1.2"]);
    assert_eq!(s.fail(FailureKind::Unreachable), ["failed 502 upstream_unreachable"]);
    let mut s = Scene::begun(plan());
    s.text("x");
    assert_eq!(s.fail(FailureKind::Reset), ["failed 502 upstream_reset"]);
}

#[test]
fn early_runs_of_a_failed_ask_are_stopped_and_their_results_ignored() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    s.call(1, "read", "{\"x\":1}");
    assert_eq!(s.fail(FailureKind::Reset), ["stop 1"]);
    assert_eq!(s.wait(), ["ask 1.1"]);
    assert_eq!(s.ok(1), Vec::<String>::new());
    s.call(0, "read", "{}");
    assert_eq!(s.end("tool_calls"), ["run 2 read {}"]);
}

#[test]
fn calls_of_a_failed_ask_and_calls_that_start_anew_count_once() {
    let mut s = Scene::begun(limited(|l| l.calls_per_turn = 2));
    s.call(0, "read", "{}");
    s.call(1, "look", "{}");
    s.call(2, "read", "{\"x\":1}");
    s.call(3, "read", "{\"x\":2}");
    assert_eq!(s.fail(FailureKind::Reset), ["stop 1", "stop 2"]);
    assert_eq!(s.wait(), ["ask 1.1"]);
    s.call(0, "read", "{}");
    assert_eq!(s.call(1, "look", "{}"), ["run 3 read {}"]);
    let more = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":" "}}]}}]}"#;
    assert_eq!(s.hear(more), ["stop 3"]);
    assert_eq!(s.end("tool_calls"), ["run 4 read {} ", "run 5 look {}"]);
    s.ok(4);
    assert_eq!(s.ok(5), ["ask 2.0"], "both calls of the reply ran, and the limit is not reached");
    assert_eq!(s.turn.record().limits, []);
}

#[test]
fn a_limit_that_was_reached_is_still_told_when_the_last_round_is_asked_again() {
    let mut s = Scene::begun(limited(|l| l.calls_per_turn = 1));
    s.call(0, "read", "{}");
    s.call(1, "look", "{}");
    s.end("tool_calls");
    assert_eq!(s.ok(1), ["ask 2.0 none"]);
    s.fail(FailureKind::ServerError);
    assert_eq!(s.wait(), ["ask 2.1 none"]);
    s.call(0, "read", "{}");
    let told = s.end("tool_calls");
    assert!(told.iter().any(|action| action.contains("the limit of 1 tool calls is reached")), "{told:?}");
    assert_eq!(s.turn.record().limits, [Limit::CallsPerTurn]);
}

#[test]
fn after_an_effect_no_failure_invites_a_repetition() {
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.ok(1);
    assert_eq!(s.fail(FailureKind::Refused), ["failed 424 turn_failed_after_tools"]);
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    s.end("tool_calls");
    s.ok(1);
    assert_eq!(s.fail(FailureKind::Refused), ["failed 400 upstream_refused"]);
}

#[test]
fn a_refused_parameter_is_left_out_and_learned() {
    let mut plan = plan();
    plan.targets[0].decision.send = Some(false);
    let mut s = Scene::new(plan);
    let mut actions = Vec::new();
    s.turn.step(Input::Begin, ms(0), &mut actions);
    assert!(matches!(actions[0], Action::Ask(Ask { parallel: Some(false), .. })));
    actions.clear();
    let failure = Box::new(Failure::new(FailureKind::ParallelRefused, ""));
    s.turn.step(Input::Failed(1, failure), ms(1), &mut actions);
    assert!(
        matches!(
            actions[..],
            [Action::Learn(Fact::NoParallel), Action::Ask(Ask { parallel: None, id: 2, .. })]
        ),
        "{actions:?}"
    );
    s.ask = 2;
    assert_eq!(s.fail(FailureKind::ParallelRefused), ["failed 400 unsupported_parameter"]);
}

#[test]
fn an_end_without_a_finish_is_truncated_unless_the_upstream_said_done() {
    let mut s = Scene::begun(plan());
    s.text("x");
    assert_eq!(s.step(Input::Ended { ask: 1, done: false }), ["failed 502 upstream_truncated"]);
    let mut s = Scene::begun(plan());
    s.text("x");
    assert_eq!(s.step(Input::Ended { ask: 1, done: true }), ["finish stop"]);
}

#[test]
fn a_client_that_leaves_stops_what_may_be_stopped_and_nothing_new_starts() {
    let mut s = Scene::begun(limited(|l| l.calls_at_once = 2));
    s.call(0, "read", "{}");
    s.call(1, "write", "{}");
    s.call(2, "write", "{\"x\":1}");
    assert_eq!(s.end("tool_calls"), ["run 2 write {}"]);
    assert_eq!(s.step(Input::ClientGone), ["stop 1"]);
    assert_eq!(s.step(Input::ClientGone), Vec::<String>::new());
    assert_eq!(s.ok(2), ["gone"]);
    let mut s = Scene::begun(plan());
    assert_eq!(s.step(Input::ClientGone), ["cancel", "gone"]);
}

#[test]
fn the_whole_turn_has_a_deadline() {
    let mut s = Scene::begun(plan());
    s.call(0, "read", "{}");
    s.call(1, "read", "{\"x\":1}");
    s.now = ms(300_000);
    assert_eq!(s.step(Input::Tick), ["cancel", "stop 1", "failed 504 turn_timeout"]);
    assert_eq!(s.turn.record().limits, [Limit::TurnTimeout]);
}

#[test]
fn the_head_goes_out_after_ten_silent_seconds() {
    let mut s = Scene::begun(plan());
    s.step(Input::Accepted(1));
    assert_eq!(s.turn.deadline(), Some(ms(10_000)));
    s.now = ms(10_000);
    let mut actions = Vec::new();
    s.turn.step(Input::Tick, s.now, &mut actions);
    assert_eq!(actions, [Action::Show(Show::Begin(crate::wire::reply::Head::default()))]);
    assert_eq!(s.turn.deadline(), Some(ms(300_000)));
}

#[test]
fn a_turn_whose_calls_must_not_run_ends_and_invites_to_repeat() {
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    assert_eq!(s.end("tool_calls"), ["run 1 write {}"]);
    assert_eq!(s.step(Input::Superseded), ["stop 1", "failed 409 attempt_superseded"]);
    assert!(!s.turn.had_effects() && s.turn.unheard().is_none());
    assert_eq!(s.step(Input::Superseded), Vec::<String>::new());
    // With the client gone there is nobody to invite.
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.step(Input::ClientGone);
    assert_eq!(s.step(Input::Superseded), ["stop 1", "gone"]);
}

#[test]
fn a_client_that_left_is_told_later_which_tools_wrote() {
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.step(Input::Started(1));
    s.step(Input::ClientGone);
    assert_eq!(s.step(Input::Outcome(1, Outcome::ok("x"))), ["gone"]);
    let error = s.turn.unheard().unwrap();
    assert!(error.status == 424 && error.never_retry && error.message.contains("write"), "{error:?}");
}

#[test]
fn a_shutdown_ends_the_turn_with_an_error() {
    let mut s = Scene::begun(plan());
    assert_eq!(s.step(Input::Shutdown), ["cancel", "failed 503 shutting_down"]);
    assert_eq!(s.step(Input::Shutdown), Vec::<String>::new());
}

#[test]
fn calls_that_share_a_run_are_one_error_in_the_row() {
    let mut s = Scene::begun(plan());
    for i in 0..3 {
        s.call(i, "read", "{}");
    }
    s.end("tool_calls");
    assert_eq!(s.step(Input::Outcome(1, Outcome::failed(OutcomeKind::Error, "no"))), ["ask 2.0"]);
    assert!(s.turn.record().limits.is_empty());
}

#[test]
fn a_call_that_was_refused_before_it_ran_had_no_effect() {
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{\"x\":\"no\"}");
    s.end("tool_calls");
    s.step(Input::Started(1));
    s.step(Input::Outcome(1, Outcome::failed(OutcomeKind::InvalidArguments, "no")));
    assert_eq!(s.fail(FailureKind::Refused), ["failed 400 upstream_refused"]);
    let mut s = Scene::begun(plan());
    s.call(0, "write", "{}");
    s.end("tool_calls");
    s.step(Input::Started(1));
    s.ok(1);
    assert_eq!(s.fail(FailureKind::Refused), ["failed 424 turn_failed_after_tools"]);
}

#[test]
fn a_client_that_waits_for_the_whole_answer_sees_nothing_of_a_reply_that_is_asked_for_again() {
    let mut plan = plan();
    plan.stream = false;
    let mut s = Scene::begun(plan);
    assert_eq!(s.text("half"), Vec::<String>::new());
    assert_eq!(s.fail(FailureKind::Truncated), Vec::<String>::new());
    assert_eq!(s.wait(), ["ask 1.1"]);
    s.text("whole");
    assert_eq!(s.end("stop"), ["show \"whole\"", "finish stop"]);
}

#[test]
fn an_answer_without_the_clients_format_is_not_shown_but_asked_for_again_in_it() {
    let mut plan = plan();
    plan.formatted = true;
    plan.targets[0].habits.takes_format_with_tools = false;
    let mut s = Scene::begun(plan);
    assert_eq!(s.text("plain"), Vec::<String>::new());
    assert_eq!(s.end("stop"), ["ask 2.0 drop without tools"]);
    assert_eq!(s.text("formatted"), ["show \"formatted\""]);
    assert_eq!(s.end("stop"), ["finish stop"]);
}

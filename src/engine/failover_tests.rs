//! Several upstreams behind one turn.

use std::sync::Arc;

use super::tests::{ms, plan};
use super::*;
use crate::policy::plan::{Habits, TargetPlan, TurnPlan};
use crate::wire::failure::FailureKind;

/// A plan with two upstreams, of which the second has these habits.
fn two_upstreams(habits: Habits) -> TurnPlan {
    let mut plan = plan();
    let other = TargetPlan { habits, ..plan.targets[0].clone() };
    plan.targets.push(other);
    plan
}

fn asked(actions: &[Action]) -> Vec<Ask> {
    actions.iter().filter_map(|a| if let Action::Ask(ask) = a { Some(*ask) } else { None }).collect()
}

fn failed(turn: &mut Turn, ask: AskId, failure: Failure) -> Vec<Action> {
    let mut actions = Vec::new();
    turn.step(Input::Failed(ask, Box::new(failure)), ms(1), &mut actions);
    actions
}

#[test]
fn the_next_upstream_is_asked_at_once_by_its_own_habits() {
    let mut plan = two_upstreams(Habits { takes_format_with_tools: false, ..Habits::default() });
    plan.formatted = true;
    plan.targets[0].decision.send = Some(false);
    let mut turn = Turn::new(Arc::new(plan), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    let first = asked(&actions)[0];
    assert_eq!((first.target, first.parallel, first.drop_format), (0, Some(false), false));
    let actions = failed(&mut turn, first.id, Failure::new(FailureKind::ServerError, ""));
    let second = asked(&actions)[0];
    assert_eq!((second.target, second.attempt, second.parallel, second.drop_format), (1, 1, None, true));
    let actions = failed(&mut turn, second.id, Failure::new(FailureKind::ServerError, ""));
    assert!(
        matches!(&actions[..], [Action::Finish(Finish::Failed(error))] if error.status == 502),
        "{actions:?}"
    );
}

#[test]
fn upstreams_that_are_left_alone_are_passed_over_and_the_first_real_failure_is_told() {
    let mut turn = Turn::new(Arc::new(two_upstreams(Habits::default())), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    let actions = failed(&mut turn, asked(&actions)[0].id, Failure::new(FailureKind::Busy, ""));
    let actions = failed(&mut turn, asked(&actions)[0].id, Failure::left_alone(ms(3_000)));
    assert_eq!(asked(&actions)[0].target, 0, "the turn comes round");
    let actions = failed(&mut turn, asked(&actions)[0].id, Failure::left_alone(ms(3_000)));
    assert!(
        matches!(&actions[..], [Action::Finish(Finish::Failed(error))] if error.code == "overloaded"),
        "{actions:?}"
    );
}

#[test]
fn another_key_is_tried_at_the_same_upstream_before_the_next_one() {
    let mut turn = Turn::new(Arc::new(two_upstreams(Habits::default())), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    let refused = Failure { other_key: true, ..Failure::new(FailureKind::Credentials, "") };
    let actions = failed(&mut turn, asked(&actions)[0].id, refused);
    assert_eq!((asked(&actions)[0].target, asked(&actions)[0].attempt), (0, 1));
    assert_eq!(turn.record().rounds[0].again, 1);
}

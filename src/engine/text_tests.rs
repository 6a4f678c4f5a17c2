//! A text that comes as a text does what a piece does that says nothing else.

use std::sync::Arc;

use bytes::Bytes;

use super::tests::{ms, plan};
use super::{Action, Input, Part, Show, Turn};
use crate::policy::plan::TurnPlan;
use crate::policy::settings::InterimText;
use crate::wire::raw::Raw;
use crate::wire::reply::{Decoded, Piece, decode};
use crate::wire::tool::Outcome;

/// What is heard: of a text only the text, of anything else the chunk.
enum Said {
    Text(&'static str),
    Chunk(&'static str),
    Ended,
    BrokeOff,
    Ran,
}

use Said::{BrokeOff, Chunk, Ended, Ran, Text};

const CALL: Said = Chunk(
    r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"read","arguments":"{}"}}]}}]}"#,
);
const THEIRS: Said = Chunk(
    r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"d","function":{"name":"theirs","arguments":"{}"}}]}}]}"#,
);
const NEWS: Said = Chunk(r#"{"sys":1.10,"choices":[{"delta":{}}]}"#);
const STOP: Said = Chunk(r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":5}}"#);

/// What a turn does when all of this is said, texts in pieces or as texts.
fn actions(plan: &TurnPlan, said: &[Said], in_pieces: bool) -> (Vec<Action>, Vec<Raw>) {
    let mut turn = Turn::new(Arc::new(plan.clone()), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    for said in said {
        let last = |of: &dyn Fn(&Action) -> Option<u32>| actions.iter().rev().find_map(of).unwrap_or(0);
        let ask = last(&|action| if let Action::Ask(ask) = action { Some(ask.id) } else { None });
        let run = last(&|action| if let Action::Run(run) = action { Some(run.id) } else { None });
        let input = match said {
            Text(text) if in_pieces => {
                Input::Piece(ask, Box::new(Piece { text: Some(Raw::string(text)), ..Piece::default() }))
            }
            Text(text) => Input::Text(ask, Raw::string(text)),
            Chunk(chunk) => match decode(&Bytes::from_static(chunk.as_bytes()), false) {
                Ok(Decoded::Piece(piece)) => Input::Piece(ask, piece),
                other => panic!("{other:?}"),
            },
            Ended => Input::Ended { ask, done: true },
            BrokeOff => Input::Ended { ask, done: false },
            Ran => Input::Outcome(run, Outcome::ok("result")),
        };
        turn.step(input, ms(1), &mut actions);
        if let (BrokeOff, Some(pause)) = (said, turn.deadline()) {
            turn.step(Input::Tick, pause, &mut actions);
        }
    }
    (actions.into_iter().map(as_part).collect(), turn.appended().to_vec())
}

fn as_part(action: Action) -> Action {
    let Action::Show(show) = action else { return action };
    match show {
        Show::Text(text) => part(Part { text: Some(text), ..Part::default() }),
        // A text alone does not say which round it is of; nobody asks.
        Show::Part(of) => part(Part { round: 0, ..*of }),
        Show::Begin(_) => Action::Show(show),
    }
}

fn part(part: Part) -> Action {
    Action::Show(Show::Part(Box::new(part)))
}

#[test]
fn whatever_stands_around_it_a_text_is_shown_and_kept_like_one_in_a_piece() {
    let turns: [&[Said]; 5] = [
        &[Text("a"), Text("b"), Text("c"), STOP, Ended],
        &[NEWS, Text("a"), NEWS, Text("b"), NEWS, STOP, Ended],
        &[Text("a"), Text("b"), CALL, Text("c"), Ended, Ran, Text("d"), Text("e"), STOP, Ended],
        &[Text("a"), CALL, THEIRS, Text("b"), Ended, Ran],
        &[Text("a"), Text("b"), BrokeOff, Text("c"), Text("d"), STOP, Ended],
    ];
    let streams = plan();
    let whole = TurnPlan { stream: false, ..plan() };
    let mut holds = plan();
    holds.rules.interim_text = InterimText::Hold;
    for plan in [streams, whole, holds] {
        for said in turns {
            let expected = actions(&plan, said, true);
            assert!(matches!(expected.0.last(), Some(Action::Finish(_))), "{expected:?}");
            assert_eq!(actions(&plan, said, false), expected);
        }
    }
}

#[test]
fn more_of_a_text_is_shown_as_a_text() {
    let mut turn = Turn::new(Arc::new(plan()), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    turn.step(Input::Text(1, Raw::string("a")), ms(1), &mut actions);
    actions.clear();
    turn.step(Input::Text(1, Raw::string("b")), ms(1), &mut actions);
    turn.step(Input::Text(7, Raw::string("of another ask")), ms(1), &mut actions);
    assert_eq!(actions, [Action::Show(Show::Text(Raw::string("b")))]);
}

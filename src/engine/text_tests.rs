//! A text that comes as a text does what a piece does that says nothing else.

use std::sync::Arc;

use bytes::Bytes;

use super::tests::{ms, plan};
use super::{Action, Input, Part, Show, Turn};
use crate::policy::plan::TurnPlan;
use crate::policy::settings::InterimText;
use crate::wire::raw::Raw;
use crate::wire::reply::{Decoded, Piece, decode};
use crate::wire::texts::Texts;
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

/// How texts come.
#[derive(Clone, Copy)]
enum Come {
    InPieces,
    /// As texts, so many of those that follow one another at a time.
    Together(usize),
}

/// Texts in one piece of memory.
fn texts(all: &[Said]) -> Texts {
    let strings = all.iter().map(|said| match said {
        Text(text) => format!("\"{text}\""),
        Chunk(_) | Ended | BrokeOff | Ran => panic!("no text"),
    });
    let memory = Bytes::from(strings.collect::<String>());
    // Each is of one letter.
    let mut texts = Texts::at(memory, 1..2, 0);
    for at in 1..all.len() {
        texts.add(at * 3 + 1..at * 3 + 2);
    }
    texts
}

/// What a turn does when all of this is said.
fn actions(plan: &TurnPlan, said: &[Said], come: Come) -> (Vec<Action>, Vec<Raw>) {
    let mut turn = Turn::new(Arc::new(plan.clone()), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    let mut rest = said;
    while let Some((said, others)) = rest.split_first() {
        let last = |of: &dyn Fn(&Action) -> Option<u32>| actions.iter().rev().find_map(of).unwrap_or(0);
        let ask = last(&|action| if let Action::Ask(ask) = action { Some(ask.id) } else { None });
        let run = last(&|action| if let Action::Run(run) = action { Some(run.id) } else { None });
        let mut read = 1;
        let input = match (said, come) {
            (Text(text), Come::InPieces) => {
                Input::Piece(ask, Box::new(Piece { text: Some(Raw::string(text)), ..Piece::default() }))
            }
            (Text(_), Come::Together(most)) => {
                read = rest.iter().take_while(|said| matches!(said, Text(_))).count().min(most);
                Input::Texts(ask, texts(&rest[..read]))
            }
            (Chunk(chunk), _) => match decode(&Bytes::from_static(chunk.as_bytes()), false) {
                Ok(Decoded::Piece(piece)) => Input::Piece(ask, piece),
                other => panic!("{other:?}"),
            },
            (Ended, _) => Input::Ended { ask, done: true },
            (BrokeOff, _) => Input::Ended { ask, done: false },
            (Ran, _) => Input::Outcome(run, Outcome::ok("result")),
        };
        turn.step(input, ms(1), &mut actions);
        if let (BrokeOff, Some(pause)) = (said, turn.deadline()) {
            turn.step(Input::Tick, pause, &mut actions);
        }
        rest = &others[read - 1..];
    }
    (actions.into_iter().flat_map(as_parts).collect(), turn.appended().to_vec())
}

fn as_parts(action: Action) -> Vec<Action> {
    let Action::Show(show) = action else { return vec![action] };
    match show {
        Show::Texts(texts) => {
            texts.strings().map(|text| part(Part { text: Some(text), ..Part::default() })).collect()
        }
        // A text alone does not say which round it is of; nobody asks.
        Show::Part(of) => vec![part(Part { round: 0, ..*of })],
        Show::Begin(_) => vec![Action::Show(show)],
    }
}

fn part(part: Part) -> Action {
    Action::Show(Show::Part(Box::new(part)))
}

#[test]
fn whatever_stands_around_it_a_text_is_shown_and_kept_like_one_in_a_piece() {
    let turns: [&[Said]; 5] = [
        &[Text("a"), Text("b"), Text("c"), Text("d"), Text("e"), STOP, Ended],
        &[NEWS, Text("a"), Text("b"), NEWS, Text("c"), Text("d"), NEWS, STOP, Ended],
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
            let expected = actions(&plan, said, Come::InPieces);
            assert!(matches!(expected.0.last(), Some(Action::Finish(_))), "{expected:?}");
            for most in [1, 2, 3] {
                assert_eq!(actions(&plan, said, Come::Together(most)), expected, "{most} at a time");
            }
        }
    }
}

#[test]
fn more_of_a_text_is_shown_as_it_came() {
    let mut turn = Turn::new(Arc::new(plan()), 1);
    let mut actions = Vec::new();
    turn.step(Input::Begin, ms(0), &mut actions);
    turn.step(Input::Texts(1, texts(&[Text("a"), Text("b"), Text("c")])), ms(1), &mut actions);
    assert_eq!(actions.last(), Some(&Action::Show(Show::Texts(texts(&[Text("b"), Text("c")])))));
    actions.clear();
    turn.step(Input::Texts(1, texts(&[Text("d"), Text("e")])), ms(1), &mut actions);
    turn.step(Input::Texts(7, texts(&[Text("f")])), ms(1), &mut actions);
    assert_eq!(actions, [Action::Show(Show::Texts(texts(&[Text("d"), Text("e")])))]);
}

//! A reply in chunks, one for each line: the quick reader says what the careful one says, calls get all
//! of their arguments and nobody else's, and what is told of them is JSON.

use bytes::Bytes;
use fanfold::sse::{USUAL_END, USUAL_START};
use fanfold::wire::call::{Assembler, MOST_CALLS};
use fanfold::wire::fold::{FoldedMembers, Text};
use fanfold::wire::message::{self, Said};
use fanfold::wire::raw::{Kind, Raw};
use fanfold::wire::repeat::Repeat;
use fanfold::wire::reply::{Decoded, Piece, decode};
use serde::de::IgnoredAny;

use super::{Choices, text_of};

pub fn hold(data: &[u8]) {
    let mut choices = Choices(data);
    let legacy = choices.yes();
    let (mut repeat, mut calls, mut fresh) = (Repeat::default(), Assembler::default(), 0);
    let (mut text, mut members) = (Text::default(), FoldedMembers::default());
    let (mut texts, mut arguments) = (Vec::new(), Vec::<Vec<Raw>>::new());
    for line in choices.rest().split(|byte| *byte == b'\n') {
        let chunk = Bytes::copy_from_slice(line);
        let (quick, usual) = (known(&repeat, line), repeat.read(&chunk));
        let piece = match decode(&chunk, legacy) {
            Ok(Decoded::Piece(piece)) => *piece,
            Ok(Decoded::Error(_) | Decoded::Nothing) | Err(_) => {
                assert_eq!((quick, usual), (None, None), "the careful reader finds no piece in {chunk:?}");
                continue;
            }
        };
        assert!(serde_json::from_slice::<IgnoredAny>(&chunk).is_ok(), "a piece of what is no JSON");
        if let Some(quick) = quick {
            only_text(&quick, line, &piece);
        }
        if let Some(usual) = usual {
            same(*usual, &piece);
        }
        repeat.learn(&chunk, &piece);
        if let Some(more) = &piece.text {
            text.push(more);
            texts.push(more.clone());
        }
        piece.members.iter().for_each(|member| members.add(member));
        for call in &piece.calls {
            let before = calls.calls().len();
            let id = || {
                fresh += 1;
                format!("made-{fresh}")
            };
            let Ok(at) = calls.add(call, id) else {
                assert_eq!(before, MOST_CALLS);
                return;
            };
            arguments.resize_with(calls.calls().len(), Vec::new);
            arguments[at].extend(call.arguments.clone());
        }
    }
    assert!(calls.calls().len() <= MOST_CALLS);
    for (call, pieces) in calls.calls().iter().zip(&arguments) {
        let mut out = Vec::new();
        call.write(&mut out);
        let told = String::from_utf8_lossy(&out);
        assert!(serde_json::from_str::<IgnoredAny>(&told).is_ok(), "{told}");
        // Half a surrogate pair is passed on as it came, and has no text to compare.
        let Ok(written) = serde_json::from_str::<serde_json::Value>(&told) else { continue };
        assert_eq!(written["id"], call.id.as_str());
        if !call.is_custom() {
            assert_eq!(written["function"]["name"], call.name.as_str());
        }
        if let Some(whole) = joined(pieces) {
            assert_eq!(text_of(call.arguments_token().text()), Some(whole), "pieces of arguments");
        }
    }
    if let Some(whole) = joined(&texts) {
        assert_eq!((text.plain(), text_of(text.to_raw().text())), (whole.clone(), Some(whole)));
    }
    let list = calls.into_calls();
    let said = Said { whole: None, text: &text, members: &members, calls: &list, changed: false };
    let message = message::assistant(&said);
    assert!(serde_json::from_str::<IgnoredAny>(message.text()).is_ok(), "{}", message.text());
    ids_are_different(&list);
}

/// The text of a chunk whose event is known by sight, alone and where it is repeated: a JSON string.
fn known(repeat: &Repeat, chunk: &[u8]) -> Option<Vec<u8>> {
    let event = [USUAL_START, chunk, USUAL_END].concat();
    let known = |times: usize| repeat.skim(&event.repeat(times).into(), 0, usize::MAX);
    let one = known(1);
    let many = known(3);
    assert_eq!(one.is_some(), many.is_some(), "what follows an event does not matter");
    let (one, many) = (one?, many?);
    assert_eq!([one.end, many.end], [event.len(), 3 * event.len()], "an event ends with a blank line");
    let text = one.texts.strings().next()?;
    assert!(many.texts.strings().eq([&text, &text, &text].map(Raw::clone)));
    Some(text.bytes().to_vec())
}

/// Who takes a text for all there is leaves out what was said before, and nothing else.
pub fn only_text(quick: &[u8], chunk: &[u8], careful: &Piece) {
    let text = careful.text.as_ref().map(|text| &text.bytes()[..]);
    assert_eq!(Some(quick), text, "of {}", String::from_utf8_lossy(chunk));
    let quiet = careful.members.is_empty()
        && careful.calls.is_empty()
        && careful.finish.is_none()
        && careful.around.is_empty()
        && careful.usage.is_none()
        && careful.message.is_none();
    assert!(quiet, "the quick reader leaves out {careful:?}");
}

/// So does who reads on from the choices.
fn same(usual: Piece, careful: &Piece) {
    let mut careful = careful.clone();
    if usual.head != careful.head || usual.top != careful.top || usual.usage != careful.usage {
        assert!(careful.top.ends_with(&usual.top), "{usual:?} {careful:?}");
        assert!(usual.usage.is_none() || usual.usage == careful.usage, "{usual:?} {careful:?}");
        (careful.head, careful.top, careful.usage) =
            (usual.head.clone(), usual.top.clone(), usual.usage.clone());
    }
    assert_eq!(usual, careful);
}

/// The text of several JSON strings in a row; nothing if one of them is no string, or the whole is no text.
fn joined(pieces: &[Raw]) -> Option<String> {
    let mut whole = String::from("\"");
    for piece in pieces {
        if piece.kind() != Kind::String {
            return None;
        }
        whole.push_str(piece.text().strip_prefix('"')?.strip_suffix('"')?);
    }
    whole.push('"');
    text_of(&whole)
}

fn ids_are_different(calls: &[fanfold::wire::call::Call]) {
    // The test's own ids are no secret: a stream that uses them may have one twice.
    let mut ids: Vec<&str> = calls.iter().map(|call| call.id.as_str()).collect();
    ids.retain(|id| !id.starts_with("made-"));
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "an id twice: {ids:?}");
}

//! A parked reply out of a store: what is none is nothing, what is one is written again byte for byte,
//! and putting it back into a conversation loses nothing the client said.

use bytes::Bytes;
use fanfold::engine::{Parked, Slot, parcel, parked_names, restore};
use fanfold::wire::raw::{Kind, Raw};

use super::Choices;

/// The most bytes that are put back: now and then too few.
const MOST: usize = 1024;

pub fn hold(data: &[u8]) {
    let whole = Bytes::copy_from_slice(data);
    if let Some((print, parked)) = parcel::decode(&whole) {
        assert_eq!(parcel::encode(&print, &parked), whole, "another way to write the same");
    }
    made_up(data);
}

/// Lines of JSON: an assistant message, the results of some of its calls, the client's history.
fn made_up(data: &[u8]) {
    let mut choices = Choices(data);
    let (before, slots) = (choices.below(3), choices.below(4));
    let ours = choices.byte();
    let mut lines = choices.rest().split(|byte| *byte == b'\n').map(Bytes::copy_from_slice);
    let mut object = || {
        let raw = Raw::parse(lines.next()?).ok()?;
        (raw.kind() == Kind::Object).then_some(raw)
    };
    let Some(parked) = (|| {
        let before = (0..before).map(|_| object()).collect::<Option<_>>()?;
        let assistant = object()?;
        let slot = |n: usize| {
            let result = if ours >> n & 1 == 1 { Some(object()?) } else { None };
            Some(Slot { id: format!("call_{n}"), ours: result })
        };
        let slots = (0..slots).map(slot).collect::<Option<_>>()?;
        Some(Parked { before, assistant, slots })
    })() else {
        return;
    };
    let parcel = parcel::encode(&[7; 32], &parked);
    assert_eq!(parcel::decode(&parcel), Some(([7; 32], parked.clone())));
    for cut in 0..parcel.len() {
        assert_eq!(parcel::decode(&parcel.slice(..cut)), None, "cut at {cut}");
    }
    let Some(history) = lines.next().and_then(|line| Raw::parse(line).ok()) else { return };
    let names = parked_names(&history);
    let Ok(said) = history.elements(usize::MAX) else { return };
    let print = fanfold::engine::fingerprint("m", &Raw::parse(&b"[]"[..]).expect("JSON"));
    let kept = [(print, parked.clone())];
    let Some(restored) = restore("m", &history, MOST, |_| &kept) else { return };
    assert!(restored.bytes().len() <= history.bytes().len() + MOST, "more than may be put back");
    assert!(!names.is_empty(), "restored what was not asked for");
    let restored = Raw::parse(restored.bytes().clone()).expect("JSON").elements(usize::MAX).expect("a list");
    for message in said.iter().filter(|message| !message.text().contains("tool_calls")) {
        let count = |list: &[Raw]| list.iter().filter(|other| other.bytes() == message.bytes()).count();
        assert!(count(&restored) >= count(&said), "lost: {}", message.text());
    }
}

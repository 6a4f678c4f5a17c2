//! A parked reply as bytes, and back: what a store keeps, and what another replica reads.
//!
//! ```text
//! 1 │ fingerprint (32)    │ n │ n × text │ text │ n │ n × ( text │ 0, or 1 and text )
//!     of model and history  before         assistant  slots  id    ours
//! ```
//!
//! A text is its length and its bytes, and numbers are four bytes, the lowest first. JSON stays as
//! it came. The first byte says which form this is, so that replicas of two releases can share a store:
//! what a release does not know is as good as not there.

use bytes::Bytes;

use super::parked::{Parked, Slot};
use crate::wire::raw::{Kind, Raw};

/// The form written here.
const FORM: u8 = 1;

/// A parked reply and the fingerprint of the conversation before it, as bytes.
#[must_use]
pub fn encode(print: &[u8; 32], parked: &Parked) -> Bytes {
    let mut out = Vec::with_capacity(parked.size());
    out.push(FORM);
    out.extend_from_slice(print);
    number(&mut out, parked.before.len());
    parked.before.iter().for_each(|message| text(&mut out, message.bytes()));
    text(&mut out, parked.assistant.bytes());
    number(&mut out, parked.slots.len());
    for slot in &parked.slots {
        text(&mut out, slot.id.as_bytes());
        out.push(u8::from(slot.ours.is_some()));
        if let Some(ours) = &slot.ours {
            text(&mut out, ours.bytes());
        }
    }
    out.into()
}

fn number(out: &mut Vec<u8>, number: usize) {
    // A turn is far below 4 GiB, and a number too large for its place is refused when it is read.
    out.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    number(out, text.len());
    out.extend_from_slice(text);
}

/// Reads what [`encode`] wrote, sharing its memory. `None` if these bytes are anything else: they come
/// from outside, so nothing in them is believed, and nothing made of them is much larger than they are.
#[must_use]
pub fn decode(bytes: &Bytes) -> Option<([u8; 32], Parked)> {
    let mut rest = Rest(bytes.clone());
    if rest.take(1)?[0] != FORM {
        return None;
    }
    let print = rest.take(32)?.as_ref().try_into().ok()?;
    let before = (0..rest.number()?).map(|_| rest.message()).collect::<Option<_>>()?;
    let assistant = rest.message()?;
    let slots = (0..rest.number()?).map(|_| rest.slot()).collect::<Option<_>>()?;
    rest.0.is_empty().then_some((print, Parked { before, assistant, slots }))
}

/// What has not been read yet.
struct Rest(Bytes);

impl Rest {
    fn take(&mut self, much: usize) -> Option<Bytes> {
        (much <= self.0.len()).then(|| self.0.split_to(much))
    }

    fn number(&mut self) -> Option<usize> {
        let number: [u8; 4] = self.take(4)?.as_ref().try_into().ok()?;
        usize::try_from(u32::from_le_bytes(number)).ok()
    }

    fn text(&mut self) -> Option<Bytes> {
        let much = self.number()?;
        self.take(much)
    }

    /// An object; whatever else is in it is between the client and the upstream.
    fn message(&mut self) -> Option<Raw> {
        Raw::parse(self.text()?).ok().filter(|message| message.kind() == Kind::Object)
    }

    fn slot(&mut self) -> Option<Slot> {
        let id = String::from_utf8(self.text()?.into()).ok()?;
        let ours = match self.take(1)?[0] {
            0 => None,
            1 => Some(self.message()?),
            _ => return None,
        };
        Some(Slot { id, ours })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(text: &str) -> Raw {
        Raw::parse(text.to_owned()).unwrap()
    }

    fn parked() -> Parked {
        Parked {
            before: vec![raw(r#"{"role":"assistant","n":1.10}"#), raw(r#"{"role":"tool"}"#)],
            assistant: raw(r#"{ "role":"assistant","seed":123456789012345678901234567890,"b":1,"a":2}"#),
            slots: vec![
                Slot { id: "ours".into(), ours: Some(raw(r#"{"content":"é\n"}"#)) },
                Slot { id: "theirs".into(), ours: None },
            ],
        }
    }

    #[test]
    fn what_was_written_is_read_to_the_byte() {
        let bytes = encode(&[7; 32], &parked());
        assert_eq!(decode(&bytes), Some(([7; 32], parked())));
        let nothing = Parked { before: vec![], assistant: raw("{}"), slots: vec![] };
        assert_eq!(decode(&encode(&[0; 32], &nothing)), Some(([0; 32], nothing)));
    }

    #[test]
    fn what_is_cut_longer_or_of_another_release_is_not_there() {
        let bytes = encode(&[7; 32], &parked());
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes.slice(..end)), None, "{end}");
        }
        assert_eq!(decode(&[&bytes[..], b"x"].concat().into()), None);
        assert_eq!(decode(&[&[FORM + 1], &bytes[1..]].concat().into()), None);
    }

    #[test]
    fn huge_numbers_take_no_memory() {
        let mut bytes = encode(&[7; 32], &parked()).to_vec();
        bytes[33..37].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&bytes.into()), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_read_as_what_they_are(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = encode(&[7; 32], &parked()).to_vec();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            // Space around a message is not part of it.
            if let Some((print, parked)) = decode(&bytes.into()) {
                prop_assert_eq!(decode(&encode(&print, &parked)), Some((print, parked)));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes.clone().into());
            let _ = decode(&[&[FORM], &bytes[..]].concat().into());
        }
    }
}

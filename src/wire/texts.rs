//! Texts that came together.
//!
//! A fast model says many words in one frame, each a few bytes in an event of its own. They go from hand to hand as
//! one value: the frame they came in, and where they are in it.

use std::ops::Range;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::raw::{Kind, Raw};

/// One text after the other, each the inside of a JSON string, sharing one piece of memory.
#[derive(Clone)]
pub struct Texts {
    memory: Bytes,
    /// Where they are, quotes not included; at least one.
    places: SmallVec<[Range<usize>; 1]>,
    /// The bytes of all of them.
    bytes: usize,
}

impl Texts {
    /// One text: a JSON string. `None` if it is none.
    #[must_use]
    pub fn of(string: &Raw) -> Option<Self> {
        let memory = string.bytes().clone();
        (string.kind() == Kind::String).then(|| {
            let place = 1..memory.len() - 1;
            Self { memory, bytes: place.len(), places: smallvec![place] }
        })
    }

    /// The text at `place` of `memory`, with room for `more` texts. A place is the inside of a JSON string whose quotes
    /// stand around it.
    pub(crate) fn at(memory: Bytes, place: Range<usize>, more: usize) -> Self {
        let (bytes, mut places) = (place.len(), SmallVec::with_capacity(1 + more));
        places.push(place);
        Self { memory, places, bytes }
    }

    /// Adds another text of the same memory.
    pub(crate) fn add(&mut self, place: Range<usize>) {
        self.bytes += place.len();
        self.places.push(place);
    }

    /// Gives back room that is mostly empty: a reply may be kept in many of these until its end.
    pub(crate) fn trim(&mut self) {
        if self.places.capacity() > 2 * self.places.len() {
            self.places.shrink_to_fit();
        }
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.places.capacity()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// The bytes of all of them.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The insides, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(|place| &self.memory[place.clone()])
    }

    /// The JSON strings, in order.
    pub fn strings(&self) -> impl Iterator<Item = Raw> + '_ {
        self.places.iter().map(|place| self.string(place))
    }

    /// The first one as a JSON string, and the others.
    #[must_use]
    pub fn split_first(mut self) -> (Option<Raw>, Option<Self>) {
        let first = self.places.first().map(|place| self.string(place));
        if self.places.len() < 2 {
            return (first, None);
        }
        self.bytes -= self.places.remove(0).len();
        (first, Some(self))
    }

    fn string(&self, place: &Range<usize>) -> Raw {
        Raw::trusted(self.memory.slice(place.start - 1..place.end + 1))
    }
}

impl PartialEq for Texts {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Texts {}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.strings()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_one_memory_are_kept_in_order() {
        let memory = Bytes::from_static(b"\"a\" \"\" \"bc\"");
        let mut texts = Texts::at(memory.clone(), 1..2, 1);
        texts.add(5..5);
        texts.add(8..10);
        assert_eq!((texts.count(), texts.bytes()), (3, 3));
        assert_eq!(texts.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bc"]);
        assert_eq!(format!("{texts:?}"), r#"["a", "", "bc"]"#);
        let (first, others) = texts.split_first();
        let others = others.unwrap();
        assert_eq!((first, others.bytes()), (Some(Raw::string("a")), 2));
        assert_eq!(others.strings().collect::<Vec<_>>(), [Raw::string(""), Raw::string("bc")]);
        let (second, third) = others.split_first();
        assert_eq!((second, third.clone()), (Some(Raw::string("")), Texts::of(&Raw::string("bc"))));
        assert_eq!(third.unwrap().split_first(), (Some(Raw::string("bc")), None));
    }

    #[test]
    fn only_a_string_is_a_text() {
        assert_eq!(Texts::of(&Raw::NULL), None);
        assert_eq!(Texts::of(&Raw::string("")).unwrap().bytes(), 0);
    }
}

//! Text with `{name}` places, as the operator writes it in a URL, a header or an argument vector.
//!
//! Pure. There is no escape: a brace always belongs to a place.

/// Text with places, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Goes out as it is.
    Text(String),
    /// Stands for the argument of this name.
    Place(String),
}

/// Why a text is no template. The text itself is not in it: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// `{` without its `}`.
    Open,
    /// `}` without its `{`.
    Close,
    /// `{}`.
    Nameless,
}

impl Unreadable {
    /// The sentence for the person who wrote it.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Open => "a `{` has no `}` that belongs to it",
            Self::Close => "a `}` has no `{` that belongs to it",
            Self::Nameless => "`{}` names no argument",
        }
    }
}

impl Template {
    /// Reads a text.
    pub(super) fn parse(text: &str) -> Result<Self, Unreadable> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            if from.starts_with('}') {
                return Err(Unreadable::Close);
            }
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            let inside = from.get(1..).unwrap_or_default();
            let end = inside.find(['{', '}']).ok_or(Unreadable::Open)?;
            let (name, after) = inside.split_at(end);
            let after = after.strip_prefix('}').ok_or(Unreadable::Open)?;
            if name.is_empty() {
                return Err(Unreadable::Nameless);
            }
            pieces.push(Piece::Place(name.into()));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        Ok(Self { pieces })
    }

    /// Its parts, in order.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The names of its places, in order.
    pub(super) fn places(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Place(name) => Some(name.as_str()),
        })
    }

    /// The name of its place, when it consists of nothing else.
    pub(super) fn sole_place(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Place(name)] => Some(name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }
    fn place(name: &str) -> Piece {
        Piece::Place(name.into())
    }

    #[test]
    fn a_text_is_read_into_its_pieces() {
        let table: [(&str, &[Piece]); 6] = [
            ("", &[]),
            ("plain", &[text("plain")]),
            ("{a}", &[place("a")]),
            ("x{a}y", &[text("x"), place("a"), text("y")]),
            ("{a}{b c}", &[place("a"), place("b c")]),
            ("ž{ů}", &[text("ž"), place("ů")]),
        ];
        for (written, pieces) in table {
            assert_eq!(Template::parse(written).unwrap().pieces(), pieces, "{written}");
        }
        assert_eq!(Template::parse("{a}").unwrap().sole_place(), Some("a"));
        assert_eq!(Template::parse("{a}b").unwrap().sole_place(), None);
        assert_eq!(Template::parse("{a}b{c}").unwrap().places().collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn braces_must_pair() {
        for (written, why) in [
            ("{", Unreadable::Open),
            ("a{b", Unreadable::Open),
            ("{a{b}}", Unreadable::Open),
            ("{{a}}", Unreadable::Open),
            ("}", Unreadable::Close),
            ("{a}}", Unreadable::Close),
            ("{}", Unreadable::Nameless),
        ] {
            assert_eq!(Template::parse(written), Err(why), "{written}");
        }
    }
}

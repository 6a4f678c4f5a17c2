//! The names of keys: `NAMESPACE:{TEAM}:FAMILY:…`.
//!
//! The braces put all keys of a team on one node of a cluster, so that a script may touch them together.
//! What comes from outside (ids of calls, idempotency keys) appears as its digest: of one length, without
//! a character that means something, and not to be read by whoever may list keys.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::store::Key;

/// Makes the keys of a namespace.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    namespace: String,
}

/// The indexes of a family of a team, and the prefixes of what is in them.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) order: String,
    pub(super) ends: String,
    pub(super) sizes: String,
    pub(super) values: String,
    pub(super) names: String,
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    pub(super) fn shelf(&self, team: &str) -> Family {
        self.family(team, "parked")
    }

    pub(super) fn records(&self, team: &str) -> Family {
        self.family(team, "records")
    }

    pub(super) fn meter(&self, team: &str, name: &str, period: Option<i64>) -> String {
        let meter = format!("{}:meter:{}", self.team(team), plain(name));
        match period {
            Some(period) => format!("{meter}:{period}"),
            None => meter,
        }
    }

    fn family(&self, team: &str, family: &str) -> Family {
        let prefix = format!("{}:{family}", self.team(team));
        let key = |what: &str| format!("{prefix}:{what}");
        let (order, ends, sizes) = (key("order"), key("ends"), key("sizes"));
        Family { order, ends, sizes, values: key("value:"), names: key("name:") }
    }

    fn team(&self, team: &str) -> String {
        format!("{}:{{{}}}", self.namespace, plain(team))
    }
}

/// What a record is called in its family.
pub(super) fn member(key: Key<'_>) -> String {
    format!("{}:{}", key.space.word(), digest(key.name))
}

/// The digest of a name, in hexadecimal digits.
pub(super) fn digest(name: &str) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(name.as_bytes()) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A name as people wrote it, what could be mistaken for more than a name encoded.
fn plain(name: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(name, KEPT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Space;

    #[test]
    fn no_name_can_pretend_to_be_more() {
        let keys = Keys::new("fanfold");
        assert_eq!(keys.shelf("blue").order, "fanfold:{blue}:parked:order");
        assert_eq!(keys.shelf("a}:x{é").values, "fanfold:{a%7D%3Ax%7B%C3%A9}:parked:value:");
        assert_eq!(
            keys.meter("t", "tokens_per_day", Some(20_270_131)),
            "fanfold:{t}:meter:tokens_per_day:20270131"
        );
        let key = Key { space: Space::Keyed, team: "t", name: "a\0b" };
        assert_eq!(member(key).len(), "keyed:".len() + 64);
        assert_ne!(member(key), member(Key { space: Space::Alike, ..key }));
    }
}

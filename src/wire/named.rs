//! Members by name, in the order in which they first came.
//!
//! A server may name as many as it likes, in every piece anew, so each is found at once, and names beyond
//! [`MAX_MEMBERS`] are left out.

use std::hash::{Hash, Hasher};

use hashbrown::{DefaultHashBuilder, Equivalent};
use indexmap::IndexMap;

use super::raw::{MAX_MEMBERS, Member, Members, Raw};

/// What is known under each name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T>(IndexMap<Name, T, DefaultHashBuilder>);

/// A name as it was written; equal to others that mean the same.
#[derive(Debug, Clone)]
struct Name(Member);

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.0.is(&other.0.name())
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl Equivalent<Name> for str {
    fn equivalent(&self, name: &Name) -> bool {
        name.0.is(self)
    }
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(IndexMap::default())
    }
}

impl<T> Named<T> {
    /// What is known under a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.get(name)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.0.get_mut(name)
    }

    /// Puts what is known under the name of a member, in the place the name has or at the end.
    pub fn put(&mut self, member: &Member, known: T) {
        if let Some(before) = self.0.get_mut(&*member.name()) {
            *before = known;
        } else if self.0.len() < MAX_MEMBERS {
            self.0.insert(Name(member.with_value(Raw::NULL)), known);
        }
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The members that `value` makes of what is known.
    pub fn to_members(&self, value: impl Fn(&T) -> Raw) -> Members {
        self.0.iter().map(|(name, known)| name.0.with_value(value(known))).collect()
    }
}

impl Named<Raw> {
    /// The members, which are known no more. The room for others stays.
    pub fn take(&mut self) -> Vec<Member> {
        self.0.drain(..).map(|(name, value)| name.0.with_value(value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(text: &str) -> Member {
        Raw::parse(text.to_owned()).unwrap().members().unwrap().into_vec().remove(0)
    }

    #[test]
    fn a_name_is_the_same_however_it_is_written() {
        let mut named = Named::default();
        named.put(&member(r#"{"a":1}"#), 1);
        named.put(&member(r#"{"b":2}"#), 2);
        named.put(&member(r#"{"\u0061":3}"#), 3);
        assert_eq!((named.get("a"), named.get("b"), named.get("c")), (Some(&3), Some(&2), None));
        let text = named.to_members(|n| Raw::parse(n.to_string()).unwrap()).to_raw();
        assert_eq!(text.text(), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn names_beyond_the_bound_are_left_out() {
        let mut named = Named::default();
        for n in 0..MAX_MEMBERS + 5 {
            named.put(&Member::new(&format!("m{n}"), Raw::NULL), n);
        }
        assert_eq!((named.get("m1023"), named.get("m1024")), (Some(&1023), None));
        named.put(&Member::new("m0", Raw::NULL), 7);
        assert_eq!(named.get("m0"), Some(&7));
    }
}

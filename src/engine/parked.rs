//! Mixed replies: what is kept of them, and how it finds its way back into a conversation.
//!
//! The client saw the foreign calls only. When it comes back with their results, the assistant
//! message is put back as the upstream wrote it, with every result in call order, and the rounds
//! before it in the same turn are put in front of it.

use std::collections::HashSet;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::wire::raw::{Members, Raw};
use crate::wire::request::append_elements;

/// The most messages of a request that are looked through.
const MOST_MESSAGES: usize = 65_536;
/// The most names that are looked up for one request.
const MOST_NAMES: usize = 1024;
/// Ids with at least so many letters and digits in a row, a digit among them, are taken to be unique by themselves.
const UNIQUE_ID: usize = 9;

/// One mixed reply with our results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The messages of the turn's rounds before this reply.
    pub before: Vec<Raw>,
    /// The assistant message, as the upstream wrote it.
    pub assistant: Raw,
    /// Its calls, in order.
    pub slots: Vec<Slot>,
}

/// One call of a mixed reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its id.
    pub id: String,
    /// The tool message with our result; `None` for a foreign call.
    pub ours: Option<Raw>,
}

impl Parked {
    /// The ids of the foreign calls: what the client will come back with.
    pub fn foreign(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter(|slot| slot.ours.is_none()).map(|slot| slot.id.as_str())
    }

    /// The size in memory, about, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let slots =
            self.slots.iter().map(|s| s.id.len() + s.ours.as_ref().map_or(0, |m| m.bytes().len()) + 64);
        let before = self.before.iter().map(|m| m.bytes().len() + 32);
        self.assistant.bytes().len() + before.sum::<usize>() + slots.sum::<usize>() + 128
    }

    /// Whether the ids alone say which reply this is. Ids such as `call_0` or `functions.get_weather:0` return in
    /// every conversation of some servers: then the history must be the same too.
    fn has_unique_ids(&self) -> bool {
        self.foreign().all(|id| {
            let runs = id.split(|c: char| !c.is_ascii_alphanumeric());
            runs.filter(|run| run.bytes().any(|byte| byte.is_ascii_digit())).any(|run| run.len() >= UNIQUE_ID)
        })
    }
}

/// What a conversation is known by: the model the client asks, and role and content of each message, however it is
/// written down.
#[must_use]
pub fn fingerprint(model: &str, messages: &Raw) -> [u8; 32] {
    let messages = messages.elements(MOST_MESSAGES).unwrap_or_default();
    Prefixes::of(model, &messages).until(messages.len())
}

/// Fingerprints of the beginnings of a conversation, shorter ones asked for first: each message is
/// looked at once, however many there are.
struct Prefixes<'a> {
    messages: &'a [Raw],
    done: usize,
    hash: Sha256,
}

impl<'a> Prefixes<'a> {
    fn of(model: &str, messages: &'a [Raw]) -> Self {
        let mut hash = Sha256::new();
        add(&mut hash, model);
        Self { messages, done: 0, hash }
    }

    /// The fingerprint of the first `count` messages.
    fn until(&mut self, count: usize) -> [u8; 32] {
        for message in self.messages.get(self.done..count).unwrap_or_default() {
            let members = message.members().unwrap_or_default();
            for name in ["role", "content", "tool_call_id"] {
                let value = members.present(name);
                let text =
                    value.map(|v| crate::wire::call::canonical(v.text()).into_owned()).unwrap_or_default();
                add(&mut self.hash, &text);
            }
        }
        self.done = self.done.max(count);
        self.hash.clone().finalize().into()
    }
}

/// Adds a text so that it cannot be taken for a part of the next.
fn add(hash: &mut Sha256, text: &str) {
    hash.update(text.len().to_le_bytes());
    hash.update(text.as_bytes());
}

/// The names under which something may be parked for these messages: the first id of each message
/// with calls, each once. Of more than `MOST_NAMES` the last.
#[must_use]
pub fn parked_names(messages: &Raw) -> Vec<String> {
    if memchr::memmem::find(messages.bytes(), b"tool_calls").is_none() {
        return Vec::new();
    }
    let list = messages.elements(MOST_MESSAGES).unwrap_or_default();
    let mut seen = HashSet::new();
    let ids = list.iter().rev().filter_map(|message| called_ids(message)?.into_iter().next());
    ids.filter(|id| seen.insert(id.clone())).take(MOST_NAMES).collect()
}

/// Restores what is parked for these messages of a request to `model`. `find` gives the entries kept under a foreign id,
/// with the fingerprint of the conversation they belong to. `None` if nothing was restored.
///
/// Each entry is put back once, however often its ids return: where its history is, or else at the end. All of them
/// have `most` bytes at most; what does not fit stays as the client wrote it, and the last go first.
pub fn restore<'a>(
    model: &str,
    messages: &Raw,
    most: usize,
    find: impl Fn(&str) -> &'a [([u8; 32], Parked)],
) -> Option<Raw> {
    let list = messages.elements(MOST_MESSAGES).ok()?;
    let mut prefixes = Prefixes::of(model, &list);
    let mut found = Vec::new();
    let mut at = 0;
    while at < list.len() {
        let kept = called_ids(&list[at]).and_then(|ids| {
            let of_these =
                |(_, parked): &&([u8; 32], Parked)| parked.foreign().eq(ids.iter().map(String::as_str));
            let mut entries = find(ids.first()?).iter().filter(of_these);
            let first = entries.next()?;
            let only = entries.next().is_none() && first.1.has_unique_ids();
            let parked = if only {
                &first.1
            } else {
                // Which of them it is only the history says. Without one, the last of those whose ids are unique.
                let print = prefixes.until(at);
                let of_here = find(ids.first()?).iter().filter(of_these).find(|(theirs, _)| *theirs == print);
                &of_here.or_else(|| first.1.has_unique_ids().then_some(first))?.1
            };
            let answers = answers(&list[at + 1..], ids.len());
            answers_all(&answers, parked).then_some(Kept { at, parked, answers })
        });
        at += 1 + kept.as_ref().map_or(0, |kept| kept.answers.len());
        found.extend(kept);
    }
    // What was said last is what the conversation goes on from.
    let (mut left, mut used) = (most, HashSet::new());
    found.reverse();
    found.retain(|kept| {
        let size = kept.parked.size();
        let fits = size <= left && used.insert(std::ptr::from_ref(kept.parked));
        left -= if fits { size } else { 0 };
        fits
    });
    found.reverse();
    (!found.is_empty()).then(|| Raw::trusted(put_back(&list, &found).into()))
}

/// An entry, and where in a conversation it belongs.
struct Kept<'a> {
    /// The place of the message with its foreign calls.
    at: usize,
    parked: &'a Parked,
    /// The messages after it: the answers, with the ids they answer.
    answers: Vec<(String, Raw)>,
}

/// Whether these are the answers to the foreign calls, each of them once.
fn answers_all(answers: &[(String, Raw)], parked: &Parked) -> bool {
    answers.len() == parked.foreign().count()
        && parked.foreign().all(|wanted| answers.iter().any(|(id, _)| id == wanted))
}

/// The conversation with these entries in it, as text.
fn put_back(list: &[Raw], found: &[Kept<'_>]) -> Vec<u8> {
    let mut out: Vec<&Raw> = Vec::with_capacity(list.len() + 8);
    let mut next = 0;
    for Kept { at, parked, answers } in found {
        out.extend(&list[next..*at]);
        next = at + 1 + answers.len();
        out.extend(&parked.before);
        out.push(&parked.assistant);
        for slot in &parked.slots {
            let answer = || answers.iter().find(|(id, _)| *id == slot.id).map(|(_, message)| message);
            out.extend(slot.ours.as_ref().or_else(answer));
        }
    }
    out.extend(&list[next..]);
    let mut text = Vec::new();
    append_elements(&mut text, &Raw::trusted(Bytes::from_static(b"[]")), out.into_iter().map(Raw::bytes));
    text
}

/// The ids of an assistant message's calls.
fn called_ids(message: &Raw) -> Option<Vec<String>> {
    memchr::memmem::find(message.bytes(), b"tool_calls")?;
    let calls =
        message.members().ok()?.present("tool_calls")?.elements(crate::wire::call::MOST_CALLS).ok()?;
    let id = |call: &Raw| text(&call.members().ok()?, "id");
    let ids: Option<Vec<String>> = calls.iter().map(id).collect();
    ids.filter(|ids| !ids.is_empty())
}

/// The tool messages that follow directly, up to `most`, with the ids they answer.
fn answers(following: &[Raw], most: usize) -> Vec<(String, Raw)> {
    let answer = |message: &Raw| {
        let members = message.members().ok()?;
        if text(&members, "role")? != "tool" {
            return None;
        }
        Some((text(&members, "tool_call_id")?, message.clone()))
    };
    following.iter().take(most).map_while(answer).collect()
}

fn text(members: &Members, name: &str) -> Option<String> {
    members.present(name)?.as_string().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than any of these need.
    const MOST: usize = 1 << 20;

    fn raw(text: &str) -> Raw {
        Raw::parse(text.to_owned()).unwrap()
    }

    fn parked(id: &str) -> Parked {
        Parked {
            before: vec![raw(r#"{"role":"assistant","n":1}"#), raw(r#"{"role":"tool","n":2}"#)],
            assistant: raw(r#"{"role":"assistant","content":null,"x":1.10,"tool_calls":"both"}"#),
            slots: vec![
                Slot {
                    id: "o".into(),
                    ours: Some(raw(r#"{"role":"tool","tool_call_id":"o","content":"ours"}"#)),
                },
                Slot { id: id.into(), ours: None },
            ],
        }
    }

    fn history(id: &str, question: &str) -> Raw {
        raw(&format!(
            r#"[{{"role":"user","content":"{question}"}},{{"role":"assistant","tool_calls":[{{"id":"{id}","type":"function"}}]}},{{"role":"tool","tool_call_id":"{id}","content":"theirs"}},{{"role":"user","content":"more"}}]"#
        ))
    }

    fn restored(id: &str, question: &str) -> Option<Raw> {
        let print = fingerprint("m", &raw(r#"[{"content":"q","role":"user"}]"#));
        let kept = [(print, parked(id))];
        restore("m", &history(id, question), MOST, |wanted| if wanted == id { &kept } else { &[] })
    }

    #[test]
    fn everything_is_put_back_in_call_order() {
        let expected = r#"[{"role":"user","content":"q"},{"role":"assistant","n":1},{"role":"tool","n":2},{"role":"assistant","content":null,"x":1.10,"tool_calls":"both"},{"role":"tool","tool_call_id":"o","content":"ours"},{"role":"tool","tool_call_id":"call_f","content":"theirs"},{"role":"user","content":"more"}]"#;
        assert_eq!(restored("call_f", "q").unwrap().text(), expected);
    }

    #[test]
    fn ids_that_return_in_other_conversations_need_the_same_history() {
        assert!(restored("call_0", "q").is_some());
        assert!(restored("call_0", "another question").is_none());
        let print = fingerprint("another", &raw(r#"[{"role":"user","content":"q"}]"#));
        let kept = [(print, parked("call_0"))];
        assert_eq!(restore("m", &history("call_0", "q"), MOST, |_| &kept), None);
        assert!(restored("call_abcDEF123", "another question").is_some());
    }

    #[test]
    fn what_returns_again_and_again_is_put_back_once() {
        let one = history("call_abcDEF123", "q");
        let many = vec![&one.text()[1..one.text().len() - 1]; 50].join(",");
        let kept = [([0; 32], parked("call_abcDEF123"))];
        let restored = restore("m", &raw(&format!("[{many}]")), MOST, |_| &kept).unwrap();
        assert_eq!(restored.text().matches("ours").count(), 1);
        assert_eq!(restored.text().matches("theirs").count(), 50);
        let last = restored.text().rfind("theirs").unwrap();
        assert!(restored.text().find("ours").unwrap() > restored.text()[..last].rfind("theirs").unwrap());
    }

    #[test]
    fn ids_that_return_get_the_entry_of_their_place() {
        let ours = |id: &str, said: &str| {
            let mut parked = parked(id);
            parked.slots[0].ours = Some(raw(&format!(r#"{{"role":"tool","content":"{said}"}}"#)));
            parked
        };
        for id in ["call_get_weather", "functions.get_weather:0", "call_0", "call_abcDEF123"] {
            let once = history(id, "q");
            let first = fingerprint("m", &raw(r#"[{"content":"q","role":"user"}]"#));
            let inner = &once.text()[1..once.text().len() - 1];
            let second = fingerprint("m", &raw(&format!(r#"[{inner},{{"role":"user","content":"q"}}]"#)));
            // The newest is given first.
            let kept = [(second, ours(id, "second")), (first, ours(id, "first"))];
            let restored = restore("m", &raw(&format!("[{inner},{inner}]")), MOST, |_| &kept).unwrap();
            let (first, second) = (restored.text().find("first"), restored.text().find("second"));
            assert!(first.is_some() && first < second, "{id}: {}", restored.text());
        }
    }

    #[test]
    fn what_does_not_fit_stays_as_the_client_wrote_it_and_the_last_is_put_back_first() {
        let two = [history("call_abcDEF123", "q"), history("call_ghiJKL456", "q")];
        let both = two.each_ref().map(|one| &one.text()[1..one.text().len() - 1]).join(",");
        let size = parked("call_abcDEF123").size();
        let kept = ["call_abcDEF123", "call_ghiJKL456"].map(|id| ([0; 32], parked(id)));
        let restored = |most| {
            restore("m", &raw(&format!("[{both}]")), most, |_| &kept)
                .map(|messages| messages.text().find("ours").map(|at| at > messages.text().len() / 2))
        };
        assert_eq!(restored(2 * size), Some(Some(false)));
        assert_eq!(restored(2 * size - 1), Some(Some(true)));
        assert_eq!(restored(size - 1), None);
    }

    #[test]
    fn a_history_that_lacks_an_answer_is_left_alone() {
        let messages = raw(
            r#"[{"role":"assistant","tool_calls":[{"id":"call_abcDEF123"}]},{"role":"user","content":"never mind"}]"#,
        );
        let kept = [([0; 32], parked("call_abcDEF123"))];
        assert_eq!(restore("m", &messages, MOST, |_| &kept), None);
    }

    #[test]
    fn answers_to_other_calls_are_left_where_they_are() {
        let messages = raw(
            r#"[{"role":"assistant","tool_calls":[{"id":"call_abcDEF123"}]},{"role":"tool","tool_call_id":"call_other","content":"x"}]"#,
        );
        let kept = [([0; 32], parked("call_abcDEF123"))];
        assert_eq!(restore("m", &messages, MOST, |_| &kept), None);
    }

    #[test]
    fn names_are_asked_for_once_and_only_where_there_are_calls() {
        assert!(parked_names(&raw(r#"[{"role":"user","content":"q"}]"#)).is_empty());
        let call = |id: &str| format!(r#"{{"tool_calls":[{{"id":"{id}"}},{{"id":"other"}}]}}"#);
        let messages = format!("[{},{},{{}},{}]", call("a"), call("b"), call("a"));
        assert_eq!(parked_names(&raw(&messages)), ["a", "b"]);
        let many: Vec<String> = (0..=MOST_NAMES).map(|n| call(&n.to_string())).collect();
        let names = parked_names(&raw(&format!("[{}]", many.join(","))));
        assert_eq!((names.len(), names[0].as_str()), (MOST_NAMES, "1024"));
    }

    #[test]
    fn nothing_parked_nothing_changed() {
        assert_eq!(restore("m", &history("call_f", "q"), MOST, |_| &[]), None);
    }
}

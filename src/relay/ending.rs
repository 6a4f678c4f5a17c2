//! Whether a relayed stream of a chat ended as it should.
//!
//! Clients take a stream that just stops for a complete answer. So the end of a relayed one is looked
//! at: without a `finish_reason`, an error or `[DONE]` it broke off, and an error event says so,
//! as long as it can be told apart from what went before.

use memchr::memmem;

use crate::wire::raw::each_member;

/// How a stream ended, as far as its end tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// It only stopped.
    Broken,
    /// With a `finish_reason`.
    Finished,
    /// With an error that its reader understands.
    Failed,
    /// With `[DONE]`.
    Done,
}

/// What the end of a stream says of it.
pub(super) fn ending(tail: &[u8]) -> Ending {
    let lines = || tail.split(|b| matches!(b, b'\n' | b'\r')).filter_map(|line| line.strip_prefix(b"data:"));
    if lines().any(|data| data.trim_ascii() == b"[DONE]") {
        Ending::Done
    } else if memmem::find(tail, b"\"error\"").is_some() && lines().any(is_error) {
        Ending::Failed
    } else if has_value(tail, b"\"finish_reason\"") {
        Ending::Finished
    } else {
        Ending::Broken
    }
}

/// Whether the last line is the mark. The same in a text that a server writes is no line of its own.
pub(super) fn ends_with_mark(text: &[u8]) -> bool {
    let text = text.trim_ascii_end();
    if !text.ends_with(b"[DONE]") {
        return false;
    }
    let line = memchr::memchr2_iter(b'\n', b'\r', text).next_back().map_or(text, |at| &text[at + 1..]);
    line.strip_prefix(b"data:").is_some_and(|data| data.trim_ascii() == b"[DONE]")
}

/// Whether an event is an error as SDKs know it: an object with an `error` that says something.
fn is_error(data: &[u8]) -> bool {
    let mut error = false;
    let read = each_member(data.trim_ascii(), |name, value| {
        error |= name == "\"error\"" && value != "null";
        !error
    });
    error && read.is_ok()
}

/// Whether what follows the last line end of a stream is an event all the same: whole JSON, or the mark.
pub(super) fn is_event(rest: &[u8]) -> bool {
    rest.split(|b| matches!(b, b'\n' | b'\r')).all(|line| match line.strip_prefix(b"data:") {
        Some(data) => {
            let data = data.trim_ascii();
            data == b"[DONE]" || serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok()
        }
        None => line.is_empty() || memchr::memchr(b':', line).is_some(),
    })
}

/// Whether a member of this name has a value that says something. Inside of a JSON string the name's
/// closing quote would be escaped, so text is not taken for a member.
fn has_value(text: &[u8], name: &[u8]) -> bool {
    memmem::find_iter(text, name).any(|at| {
        let rest = text[at + name.len()..].trim_ascii_start();
        let value = rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start).unwrap_or_default();
        !value.is_empty() && !value.starts_with(b"null") && !value.starts_with(b"\"\"")
    })
}

/// Whether the last event is whole, so that another one may follow.
pub(super) fn is_between_events(tail: &[u8]) -> bool {
    tail.is_empty() || [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"].iter().any(|end| tail.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_a_line_of_its_own() {
        for mark in ["data: [DONE]\n\n", "data:[DONE]", "data: {}\n\ndata: [DONE]\r\n\r\n"] {
            assert!(ends_with_mark(mark.as_bytes()), "{mark}");
        }
        for text in
            ["data: {\"a\":\"[DONE]", "x data: [DONE]", "[DONE]\n", "data: [DONE]\n\ndata: {}\n\n", ""]
        {
            assert!(!ends_with_mark(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_stream_is_complete_with_a_finish_an_error_or_done() {
        for complete in [
            &b"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"[..],
            b"data: {\"finish_reason\" : \"length\"}\r\n\r\n",
            b"data: [DONE]\n\n",
            b"data:[DONE]\r\n\r\n",
            b"event: error\ndata: {\"error\":{\"message\":\"x\"}}\n\n",
        ] {
            assert_ne!(ending(complete), Ending::Broken, "{}", String::from_utf8_lossy(complete));
        }
    }

    #[test]
    fn a_stream_that_only_stops_is_not_complete_whatever_its_text_says() {
        for broken in [
            &b""[..],
            b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n",
            b"data: {\"choices\":[{\"finish_reason\":\"\"}]}\n\n",
            br#"data: {"delta":{"content":"data: [DONE] \"finish_reason\":\"stop\" \"error\":1"}}"#,
            b"data: {\"error\":null}\n\n",
            b"data: {\"finish_reason\":",
            b"data: {\"choices\":[],\"prompt_filter_results\":[{\"error\":{\"code\":\"x\"}}]}\n\n",
            b"data: [{\"error\":{\"message\":\"x\"}}]\n\n",
            b"event: error\ndata: overloaded\n\n",
        ] {
            assert_eq!(ending(broken), Ending::Broken, "{}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn a_last_event_may_lack_its_line_end_but_nothing_else() {
        for whole in [&b"data: [DONE]"[..], b"data: {\"a\":1}\n", b": comment", b"event: x\ndata: 1\r\n"] {
            assert!(is_event(whole), "{}", String::from_utf8_lossy(whole));
        }
        for half in [&b"data: {\"finish_reason\":\"stop\""[..], b"data: [DO", b"dat", b"data:"] {
            assert!(!is_event(half), "{}", String::from_utf8_lossy(half));
        }
    }

    #[test]
    fn an_error_event_only_follows_a_whole_event() {
        for whole in [&b""[..], b"data: x\n\n", b"data: x\r\n\r\n"] {
            assert!(is_between_events(whole));
        }
        for half in [&b"data: x"[..], b"data: x\n", b"data: x\r\n"] {
            assert!(!is_between_events(half));
        }
    }
}

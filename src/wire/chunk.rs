//! A chunk of a stream as servers usually write it, read in one pass.
//!
//! What is not plainly one (an error, a second choice, a whole message, usage in an unusual place, members of an
//! unusual kind, twice there or without number) is left to [`decode`](super::reply::decode), which reads with care.

use bytes::Bytes;

use super::raw::{MAX_MEMBERS, Member, Raw};
use super::reply::{CallPiece, FinishReason, MOST_CALLS_IN_A_PIECE, Piece, filled};
use super::scan::{Broken, Scan};

/// A chunk that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// What it says.
    pub piece: Box<Piece>,
    /// Where the value of `choices` begins.
    pub choices: usize,
}

/// Reads a chunk. `None`: it is for the careful reader.
#[must_use]
pub fn read(text: &Bytes) -> Option<Read> {
    let mut chunk = Chunk::new(text);
    let mut scan = Scan::new(std::str::from_utf8(text).ok()?);
    scan.members(|name, scan| chunk.top(name, scan)).ok()?;
    scan.end().ok()?;
    Some(Read { choices: chunk.choices?, piece: chunk.piece })
}

/// Reads a chunk from the value of `choices` on, which begins at `at`. What stands before is known.
#[must_use]
pub fn read_from(text: &Bytes, at: usize) -> Option<Box<Piece>> {
    let mut chunk = Chunk::new(text);
    let mut scan = Scan::from(std::str::from_utf8(text).ok()?, at)?;
    chunk.choices(&mut scan).ok()?;
    scan.more_members(|name, scan| chunk.top(name, scan)).ok()?;
    scan.end().ok()?;
    Some(chunk.piece)
}

struct Chunk<'a> {
    text: &'a Bytes,
    piece: Box<Piece>,
    choices: Option<usize>,
}

impl<'a> Chunk<'a> {
    fn new(text: &'a Bytes) -> Self {
        Self { text, piece: Box::default(), choices: None }
    }

    fn share(&self, part: &str) -> Raw {
        Raw::trusted(self.text.slice_ref(part.as_bytes()))
    }

    fn given(&self, value: &str) -> Option<Raw> {
        (value != "null").then(|| self.share(value))
    }

    fn member(&self, name: &str, value: &str) -> Member {
        Member::of_parts(self.share(name), self.share(value))
    }

    fn keep(members: &mut Vec<Member>, member: Member) -> Result<(), Broken> {
        members.push(member);
        if members.len() < MAX_MEMBERS / 2 { Ok(()) } else { Err(Broken) }
    }

    fn top(&mut self, name: &'a str, scan: &mut Scan<'a>) -> Result<(), Broken> {
        if name == "\"choices\"" {
            return self.choices(scan);
        }
        let value = scan.value()?;
        match name {
            "\"id\"" => self.piece.head.id = self.given(value),
            "\"created\"" => self.piece.head.created = self.given(value),
            "\"model\"" => self.piece.head.model = self.given(value),
            "\"object\"" if value != "\"error\"" => {}
            "\"error\"" if value == "null" => {}
            "\"object\"" | "\"error\"" | "\"x_groq\"" => return Err(Broken),
            "\"usage\"" => {
                if value.starts_with('{') {
                    self.piece.usage = Some(self.share(value));
                }
            }
            _ => {
                let member = self.member(name, value);
                return Self::keep(&mut self.piece.top, member);
            }
        }
        Ok(())
    }

    fn choices(&mut self, scan: &mut Scan<'a>) -> Result<(), Broken> {
        if self.choices.replace(scan.at()).is_some() {
            return Err(Broken);
        }
        let mut only = true;
        scan.elements(|scan| if std::mem::take(&mut only) { self.choice(scan) } else { Err(Broken) })
    }

    fn choice(&mut self, scan: &mut Scan<'a>) -> Result<(), Broken> {
        let mut deltas = 0;
        scan.members(|name, scan| {
            if name == "\"delta\"" && scan.peek() == Some(b'{') {
                deltas += 1;
                return if deltas == 1 { self.delta(scan) } else { Err(Broken) };
            }
            let value = scan.value()?;
            match name {
                "\"index\"" if value == "0" => {}
                "\"finish_reason\"" => self.piece.finish = FinishReason::of(value),
                "\"index\"" | "\"delta\"" | "\"message\"" => return Err(Broken),
                _ if value == "null" => {}
                "\"usage\"" => return Err(Broken),
                _ => {
                    let member = self.member(name, value);
                    return Self::keep(&mut self.piece.around, member);
                }
            }
            Ok(())
        })
    }

    fn delta(&mut self, scan: &mut Scan<'a>) -> Result<(), Broken> {
        scan.members(|name, scan| {
            if name == "\"tool_calls\"" && scan.peek() == Some(b'[') {
                return scan.elements(|scan| self.call(scan));
            }
            let value = scan.value()?;
            match name {
                "\"role\"" => {}
                "\"content\"" if value.starts_with('"') => {
                    self.piece.text = (value != "\"\"").then(|| self.share(value));
                }
                "\"function_call\"" => return Err(Broken),
                _ if value == "null" => {}
                "\"tool_calls\"" => return Err(Broken),
                _ => {
                    let member = self.member(name, value);
                    return Self::keep(&mut self.piece.members, member);
                }
            }
            Ok(())
        })
    }

    fn call(&mut self, scan: &mut Scan<'a>) -> Result<(), Broken> {
        if self.piece.calls.len() + 1 >= MOST_CALLS_IN_A_PIECE {
            return Err(Broken);
        }
        let (mut call, mut functions) = (CallPiece::default(), 0);
        scan.members(|name, scan| {
            if name == "\"function\"" {
                functions += 1;
                return if functions == 1 { self.function(&mut call, scan) } else { Err(Broken) };
            }
            let value = scan.value()?;
            match name {
                "\"index\"" => call.index = value.parse().ok(),
                "\"id\"" => call.id = filled(value),
                "\"type\"" => {
                    let usual = value == "\"function\"" || value == "\"\"";
                    call.kind = self.given(value).filter(|_| !usual);
                }
                _ if value == "null" => {}
                _ => return Self::keep(&mut call.members, self.member(name, value)),
            }
            Ok(())
        })?;
        self.piece.calls.push(call);
        Ok(())
    }

    fn function(&self, call: &mut CallPiece, scan: &mut Scan<'a>) -> Result<(), Broken> {
        scan.members(|name, scan| {
            let value = scan.value()?;
            match name {
                "\"name\"" => call.name = filled(value),
                "\"arguments\"" => call.arguments = self.given(value),
                _ if value == "null" => {}
                _ => return Self::keep(&mut call.function, self.member(name, value)),
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply::{Decoded, decode};

    /// Chunks as OpenAI, Azure, vLLM, Groq, Gemini, DeepSeek, OpenRouter and others write them.
    const USUAL: [&str; 14] = [
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x7"}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"h\u00e9 \"x\""},"logprobs":{"content":[{"token":"h","logprob":-0.10,"top_logprobs":[]}]},"finish_reason":null}]}"#,
        r#"{"choices":[{"content_filter_results":{"hate":{"filtered":false}},"delta":{"content":"a"},"finish_reason":null,"index":0,"logprobs":null}],"created":1,"id":"c","model":"m","object":"chat.completion.chunk","usage":null}"#,
        r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"reasoning_content":"hm","content":null},"finish_reason":null,"stop_reason":null}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"f","arguments":""}}]},"finish_reason":null}]}"#,
        r#"{"id":"c","choices":[{"delta":{"tool_calls":[{"index":0,"id":null,"type":null,"function":{"name":null,"arguments":"{\"x\":1}","q":null}},{"id":"","type":"","function":{"arguments":{"a":1.0}},"extra_content":{"g":[1]}}]}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"tool_calls":null,"audio":{"id":"a"}},"finish_reason":"tool_calls"}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop","native_finish_reason":"STOP"}],"error":null,"provider":"p"}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"type":"custom","custom":{"name":"c","input":"i"},"index":0}]},"finish_reason":""}]}"#,
        r#"{"id":"c","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":0}}}"#,
        r#"{"usage":{"total_tokens":1},"choices":[{"delta":{"content":"a","content":""},"x":1,"x":2}],"id":"a","id":null,"s":1.10,"s":2}"#,
        " { \"id\" : \"c\" ,\n\"choices\" : [ { \"index\" : 0 , \"delta\" : { \"content\" : \"a\" } } ] , \"k\" : [ 1E2 , {} ] } ",
        r#"{"choices":[{"index":0,"delta":{"content":[{"type":"text"}],"parsed":{"a":{"b":[null]}}},"finish_reason":7}],"usage":[]}"#,
    ];

    fn careful(text: &Bytes, legacy: bool) -> Option<Piece> {
        match decode(text, legacy) {
            Ok(Decoded::Piece(piece)) => Some(*piece),
            Ok(Decoded::Error(_) | Decoded::Nothing) | Err(_) => None,
        }
    }

    /// Whatever is read fast is read as the careful reader reads it.
    fn agrees(text: &[u8]) -> bool {
        let text = Bytes::copy_from_slice(text);
        let read = read(&text);
        if let Some(read) = &read {
            for legacy in [false, true] {
                assert_eq!(Some(&*read.piece), careful(&text, legacy).as_ref(), "{text:?}");
            }
            let (known, careful) = (read_from(&text, read.choices).unwrap(), careful(&text, false).unwrap());
            let said = |piece: &Piece| Piece {
                head: Default::default(),
                top: Vec::new(),
                usage: None,
                ..piece.clone()
            };
            assert_eq!(said(&known), said(&careful), "{text:?}");
        }
        read.is_some()
    }

    #[test]
    fn usual_chunks_are_read_as_the_careful_reader_reads_them() {
        for text in USUAL {
            assert!(agrees(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn cut_or_changed_anywhere_a_chunk_is_read_with_care_or_just_the_same() {
        for text in USUAL.map(str::as_bytes) {
            for at in 0..text.len() {
                assert!(!agrees(&text[..at]) || text[at..].trim_ascii().is_empty());
                for other in [b'"', b'{', b'}', b'[', b']', b',', b':', b'1', b' ', b'\\', 0xff] {
                    agrees(&[&text[..at], &[other], &text[at + 1..]].concat());
                }
            }
        }
    }

    #[test]
    fn everything_else_is_for_the_careful_reader() {
        for text in [
            r#"{"choices":[{"index":1,"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"error":{"message":"m"}}"#,
            r#"{"object":"error","message":"m","choices":[]}"#,
            r#"{"choices":[],"x_groq":{"usage":{"total_tokens":3}}}"#,
            r#"{"choices":[{"delta":{},"usage":{"total_tokens":3}}]}"#,
            r#"{"choices":[{"delta":{"function_call":{"name":"f","arguments":"{}"}}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[7]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"function":null}]}}]}"#,
            r#"{"choices":[{"delta":{},"delta":{"content":"a"}}]}"#,
            r#"{"choices":[],"choices":[{"delta":{"content":"a"}}]}"#,
            r#"{"choices":null,"usage":{"total_tokens":3}}"#,
            r#"{"usage":{"total_tokens":3}}"#,
            r#"[{"error":{"message":"m"}}]"#,
            "{}",
            "",
        ] {
            assert_eq!(read(&Bytes::from_static(text.as_bytes())), None, "{text}");
        }
    }
}

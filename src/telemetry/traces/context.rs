//! Which trace a request belongs to, and the ids of its spans.
//!
//! Ids are fixed before anything goes out and follow from one number: nothing has to be kept for the spans
//! that are made when the turn is over.
//!
//! | the client sends | `traces` off | on |
//! |---|---|---|
//! | a sampled `traceparent` | goes on as it came | spans below the client's; each request names the span it belongs to |
//! | one that is not sampled | goes on as it came | goes on as it came |
//! | none, or a malformed one | nothing is sent to tools | a trace of our own; if it is not sampled, it says so |

use http::{HeaderMap, HeaderName, HeaderValue};

/// `traceparent`.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest `tracestate` that goes on, in bytes; W3C asks for at least this.
const LONGEST_STATE: usize = 512;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// The trace a request belongs to, as it is told to whoever is asked next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// `traceparent`.
    pub parent: HeaderValue,
    /// `tracestate`, if there is one.
    pub state: Option<HeaderValue>,
}

impl Carried {
    /// Writes it into a request, in place of what was there.
    fn put(self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.parent);
        match self.state {
            Some(state) => _ = headers.insert(TRACESTATE, state),
            None => _ = headers.remove(TRACESTATE),
        }
    }
}

/// What a span is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The whole turn.
    Turn,
    /// A round, from 1.
    Round(u32),
    /// A run of a call, by its number in the turn.
    Run(u32),
    /// A call that had no run of its own, by its place in the record.
    Call(u32),
}

impl About {
    const fn number(self) -> u64 {
        let (kind, number) = match self {
            Self::Turn => (0, 0),
            Self::Round(number) => (1, number),
            Self::Run(number) => (2, number),
            Self::Call(number) => (3, number),
        };
        (kind << 32) | number as u64
    }
}

/// The trace of one request.
#[derive(Debug, Clone, Default)]
pub enum Trace {
    /// None.
    #[default]
    None,
    /// The client's; no spans are made.
    Client(Carried),
    /// One of our own that is not sampled.
    Unsampled(Carried),
    /// One that spans are made for.
    Recorded(Recorded),
}

/// A trace that spans are made for.
#[derive(Debug, Clone)]
pub struct Recorded {
    trace: [u8; 16],
    /// The client's span.
    parent: Option<[u8; 8]>,
    state: Option<HeaderValue>,
    seed: u64,
}

/// Whether traces without a word of the client's are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// How many of them, from 0 to 1.
    pub ratio: f64,
    /// What the client says counts first.
    pub heeds_client: bool,
}

impl Trace {
    /// The trace of a request with these headers. `sampling`: none where traces are off.
    #[must_use]
    pub fn of(headers: &HeaderMap, sampling: Option<Sampling>) -> Self {
        let client = Client::of(headers);
        let Some(sampling) = sampling else {
            return client.map_or(Self::None, |client| Self::Client(client.carried));
        };
        let chance = fastrand::f64() < sampling.ratio;
        match client {
            Some(client) => {
                let recorded = if sampling.heeds_client { client.sampled } else { chance };
                if !recorded {
                    return Self::Client(client.carried);
                }
                let (trace, parent, state) = (client.trace, Some(client.span), client.carried.state);
                Self::Recorded(Recorded { trace, parent, state, seed: seed() })
            }
            None => {
                let trace = fastrand::u128(1..).to_be_bytes();
                let made = Recorded { trace, parent: None, state: None, seed: seed() };
                match chance {
                    true => Self::Recorded(made),
                    // Whoever is asked next need not throw dice of its own.
                    false => Self::Unsampled(made.carried(About::Turn, 0)),
                }
            }
        }
    }

    /// Whether requests on its behalf are told something else than the client said.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::Unsampled(_) | Self::Recorded(_))
    }

    /// Writes it into the headers of a request that goes on with those of the client.
    pub fn put(&self, headers: &mut HeaderMap, about: About) {
        if self.is_ours()
            && let Some(carried) = self.carried(about)
        {
            carried.put(headers);
        }
    }

    /// What a request on behalf of this is told.
    #[must_use]
    pub fn carried(&self, about: About) -> Option<Carried> {
        match self {
            Self::None => None,
            Self::Client(carried) | Self::Unsampled(carried) => Some(carried.clone()),
            Self::Recorded(recorded) => Some(recorded.carried(about, SAMPLED)),
        }
    }

    /// The trace, if spans are made for it.
    #[must_use]
    pub const fn recorded(&self) -> Option<&Recorded> {
        match self {
            Self::Recorded(recorded) => Some(recorded),
            Self::None | Self::Client(_) | Self::Unsampled(_) => None,
        }
    }
}

impl Recorded {
    fn carried(&self, about: About, flags: u8) -> Carried {
        let text = format!("00-{}-{}-{flags:02x}", self.name(), hex(&self.span(about)));
        // It is hexadecimal digits and hyphens.
        let parent = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        Carried { parent, state: self.state.clone() }
    }

    /// The trace's id as people write it.
    #[must_use]
    pub fn name(&self) -> String {
        hex(&self.trace)
    }

    /// The trace's id.
    #[must_use]
    pub const fn id(&self) -> [u8; 16] {
        self.trace
    }

    /// The client's span, which the turn's is below.
    #[must_use]
    pub const fn parent(&self) -> Option<[u8; 8]> {
        self.parent
    }

    /// `tracestate`, as it came.
    #[must_use]
    pub fn state(&self) -> &str {
        self.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default()
    }

    /// The id of a span. Two of one turn differ: the numbers do, and mixing takes no two to the same.
    #[must_use]
    pub fn span(&self, about: About) -> [u8; 8] {
        match mixed(self.seed.wrapping_add(about.number())) {
            // No span has this id; and no other span of the turn has the seed's.
            0 => self.seed.to_be_bytes(),
            id => id.to_be_bytes(),
        }
    }
}

fn seed() -> u64 {
    fastrand::u64(1..)
}

/// Every bit of the number in every bit of the result, one to one (the finish of splitmix64).
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |at: u8| char::from(DIGITS[usize::from(at & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// What a client says of its trace.
struct Client {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
    carried: Carried,
}

impl Client {
    /// `None`: nothing that W3C's Trace Context would let us go on with.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let (parent, None) = (lines.next()?, lines.next()) else { return None };
        let text = parent.to_str().ok()?;
        let mut fields = text.split('-');
        let mut field = |length: usize| fields.next().filter(|field| field.len() == length);
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let [version] = bytes::<1>(version)?;
        let more = fields.next().is_some();
        if version == 0xff || (version == 0 && more) {
            return None;
        }
        let (trace, span, [flags]) = (bytes::<16>(trace)?, bytes::<8>(span)?, bytes::<1>(flags)?);
        if trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let carried = Carried { parent: parent.clone(), state: state(headers) };
        Some(Self { trace, span, sampled: flags & SAMPLED != 0, carried })
    }
}

/// Several lines are one list. A list that is too long is left out whole: a part would lie.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(TRACESTATE).iter();
    let first = lines.next()?;
    let mut all = first.as_bytes().to_vec();
    for line in lines {
        all.push(b',');
        all.extend_from_slice(line.as_bytes());
    }
    let fits = !all.is_empty() && all.len() <= LONGEST_STATE;
    HeaderValue::from_maybe_shared(bytes::Bytes::from(all)).ok().filter(|_| fits)
}

/// So many bytes, in lower-case hexadecimal.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut bytes = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const ALL: Sampling = Sampling { ratio: 1.0, heeds_client: true };
    const NONE: Sampling = Sampling { ratio: 0.0, heeds_client: true };

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn sampled() -> String {
        format!("00-{TRACE}-b7ad6b7169203331-01")
    }

    fn text(trace: &Trace, about: About) -> Option<String> {
        trace.carried(about).map(|carried| carried.parent.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_a_client_says_is_heeded_and_malformed_words_are_not() {
        let longer = format!("cc-{TRACE}-b7ad6b7169203331-01-what-the-future-brings");
        for good in [sampled(), longer] {
            let trace = Trace::of(&headers(&[("traceparent", &good)]), Some(NONE));
            let recorded = trace.recorded().expect("recorded whatever the ratio");
            assert_eq!((recorded.name().as_str(), recorded.parent()), (TRACE, bytes("b7ad6b7169203331")));
            let told = text(&trace, About::Round(1)).unwrap();
            assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-01"), "{told}");
            assert_ne!(told, good, "the request is below the round's span, not the client's");
        }
        for bad in [
            "",
            "00",
            &sampled().to_uppercase(),
            &format!("00-{TRACE}-0000000000000000-01"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            &format!("ff-{TRACE}-b7ad6b7169203331-01"),
            &format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            &format!("00-{TRACE}-b7ad6b7169203331-1"),
            &format!("00-{TRACE}-b7ad6b716920333-01"),
            &format!("0g-{TRACE}-b7ad6b7169203331-01"),
        ] {
            let bad = headers(&[("traceparent", bad), ("tracestate", "a=b")]);
            assert_eq!(Trace::of(&bad, None).carried(About::Turn), None, "{bad:?}");
            let made = Trace::of(&bad, Some(ALL));
            let recorded = made.recorded().expect("a trace of our own");
            assert_ne!(recorded.name(), TRACE);
            assert_eq!((recorded.parent(), made.carried(About::Turn).unwrap().state), (None, None));
        }
        let twice = headers(&[("traceparent", &sampled()), ("traceparent", &sampled())]);
        assert_eq!(Trace::of(&twice, None).carried(About::Turn), None);
    }

    #[test]
    fn what_is_not_recorded_goes_on_as_it_came() {
        let unsampled = format!("00-{TRACE}-b7ad6b7169203331-02");
        let client = headers(&[("traceparent", &unsampled)]);
        for sampling in [None, Some(ALL), Some(NONE)] {
            let trace = Trace::of(&client, sampling);
            assert!(trace.recorded().is_none());
            assert_eq!(text(&trace, About::Run(3)).as_deref(), Some(unsampled.as_str()));
        }
        let off = Trace::of(&headers(&[("traceparent", &sampled())]), None);
        assert_eq!(text(&off, About::Run(3)), Some(sampled()));
        let heedless = Sampling { ratio: 0.0, heeds_client: false };
        let not = Trace::of(&headers(&[("traceparent", &sampled())]), Some(heedless));
        assert_eq!((not.recorded().is_none(), text(&not, About::Turn)), (true, Some(sampled())));
    }

    #[test]
    fn a_trace_that_is_not_sampled_says_so() {
        assert!(Trace::of(&HeaderMap::new(), None).carried(About::Turn).is_none());
        let trace = Trace::of(&HeaderMap::new(), Some(NONE));
        let told = text(&trace, About::Round(1)).unwrap();
        assert!(told.ends_with("-00") && trace.recorded().is_none(), "{told}");
        assert_eq!(text(&trace, About::Run(7)), Some(told), "one trace for all of the turn");
    }

    #[test]
    fn the_ratio_is_that_of_the_traces_that_are_recorded() {
        fastrand::seed(7);
        let half = Sampling { ratio: 0.5, heeds_client: true };
        let recorded = (0..2000).filter(|_| Trace::of(&HeaderMap::new(), Some(half)).recorded().is_some());
        assert!((900..1100).contains(&recorded.count()));
    }

    #[test]
    fn spans_of_a_turn_have_ids_of_their_own() {
        let trace = Trace::of(&HeaderMap::new(), Some(ALL));
        let recorded = trace.recorded().unwrap();
        let all = (0..1000).flat_map(|n| [About::Round(n), About::Run(n), About::Call(n)]);
        let ids: HashSet<[u8; 8]> = all.chain([About::Turn]).map(|about| recorded.span(about)).collect();
        assert_eq!((ids.len(), ids.contains(&[0; 8])), (3001, false));
    }

    #[test]
    fn the_state_goes_on_as_one_list_and_never_in_part() {
        let of = |lines: &[&str]| {
            let mut headers = headers(&[("traceparent", &sampled())]);
            lines.iter().for_each(|l| _ = headers.append(TRACESTATE, HeaderValue::from_str(l).unwrap()));
            Trace::of(&headers, Some(ALL)).carried(About::Turn).unwrap().state
        };
        assert_eq!(of(&["a=1", "b=2,c=3"]), Some(HeaderValue::from_static("a=1,b=2,c=3")));
        assert_eq!(of(&[""]), None);
        assert_eq!(of(&[&"x".repeat(LONGEST_STATE + 1)]), None);
        let mut request = headers(&[("traceparent", "x"), ("tracestate", "old=1")]);
        Trace::of(&HeaderMap::new(), Some(ALL)).put(&mut request, About::Turn);
        assert!(!request.contains_key(TRACESTATE) && request[TRACEPARENT] != "x");
    }
}

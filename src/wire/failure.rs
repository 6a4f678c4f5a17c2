//! How asking an upstream can fail, and what follows from each way.
//!
//! One table decides everything that depends on the kind: the status and code the client sees, and
//! how often the question may be asked again while nothing of the reply was shown. Where a route has
//! several upstreams, the next one is asked; [`FailureKind::moves_on`] says because of what.

use std::time::Duration;

use super::error::{ErrorReply, Said};

/// The ways in which one ask fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The upstream's name does not resolve.
    Unresolved,
    /// Nothing listens there, or the connection broke before the request was sent.
    Unreachable,
    /// The connection was not established in time.
    ConnectTimeout,
    /// TLS failed: certificate, name, protocol.
    Tls,
    /// The connection was reset before or inside the head of the reply.
    Reset,
    /// What came is not HTTP as agreed.
    Protocol,
    /// No head, or no progress inside the reply, in time.
    Timeout,
    /// The client's own body did not go on.
    ClientSlow,
    /// The reply ended before it was complete.
    Truncated,
    /// A 200 whose content is no reply.
    InvalidReply,
    /// The reply, an event or a call in it is over a limit.
    TooLarge,
    /// An error object inside a 200.
    InReply,
    /// 400, 404, 413, 422 and the like: the request is at fault.
    Refused,
    /// 400 that names `parallel_tool_calls` as unknown or unsupported.
    ParallelRefused,
    /// 400 that says that the model takes no tools beside a `reasoning_effort`.
    EffortRefused,
    /// 400 `tool_use_failed`: the model's own call did not parse at the upstream.
    ToolUseFailed,
    /// 401 or 403: fanfold's credentials are wrong.
    Credentials,
    /// 429, 503 or 529: come back later.
    Busy,
    /// Another 5xx.
    ServerError,
    /// Not asked: the upstream failed too often just now and is left alone.
    LeftAlone,
    /// Not asked again: enough questions to this upstream are repetitions already.
    Withheld,
}

/// What an upstream turned out to refuse for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// `parallel_tool_calls`.
    NoParallel,
    /// Tools together with a `reasoning_effort`.
    NoEffort,
}

/// What the table says of one kind.
struct Row {
    status: u16,
    code: &'static str,
    again: u8,
    label: &'static str,
    message: &'static str,
}

const fn row(status: u16, code: &'static str, again: u8, label: &'static str, message: &'static str) -> Row {
    Row { status, code, again, label, message }
}

impl FailureKind {
    const fn row(self) -> Row {
        match self {
            Self::Unresolved => row(
                502,
                "upstream_unreachable",
                2,
                "unresolved",
                "The model server's name could not be resolved. Ask the operator of this gateway to check the upstream's base_url.",
            ),
            Self::Unreachable => row(
                502,
                "upstream_unreachable",
                2,
                "unreachable",
                "The model server could not be reached. Try again, or ask the operator of this gateway.",
            ),
            Self::ConnectTimeout => row(
                504,
                "upstream_timeout",
                1,
                "connect_timeout",
                "The model server did not accept a connection in time. Try again later.",
            ),
            Self::Tls => row(
                502,
                "upstream_tls_error",
                0,
                "tls",
                "No trusted TLS connection to the model server could be made. Ask the operator of this gateway to check its certificate and the upstream's `ca` setting.",
            ),
            Self::Reset => row(
                502,
                "upstream_reset",
                1,
                "reset",
                "The model server closed the connection before it answered. Try again.",
            ),
            Self::Protocol => row(
                502,
                "upstream_protocol_error",
                0,
                "protocol",
                "The model server did not answer in valid HTTP. Ask the operator of this gateway to check the upstream's base_url.",
            ),
            Self::Timeout => row(
                504,
                "upstream_timeout",
                1,
                "timeout",
                "The model server did not answer in time. Try again later.",
            ),
            Self::ClientSlow => row(
                408,
                "request_timeout",
                0,
                "client_slow",
                "The request body came too slowly: it has to go on within 30 seconds.",
            ),
            Self::Truncated => row(
                502,
                "upstream_truncated",
                1,
                "truncated",
                "The model server's reply broke off before it was complete. Try again.",
            ),
            Self::InvalidReply => row(
                502,
                "upstream_invalid_reply",
                1,
                "invalid_reply",
                "The model server's reply could not be understood. Try again, or ask the operator of this gateway to check the upstream's base_url.",
            ),
            Self::TooLarge => row(
                502,
                "upstream_reply_too_large",
                0,
                "too_large",
                "The model server's reply is larger than this gateway accepts. Ask for less, or ask the operator to raise the limit.",
            ),
            Self::InReply => row(
                502,
                "upstream_error",
                1,
                "in_reply",
                "The model server reported an error inside its reply.",
            ),
            Self::Refused => {
                row(400, "upstream_refused", 0, "refused", "The model server refused the request.")
            }
            Self::ParallelRefused => row(
                400,
                "unsupported_parameter",
                1,
                "parallel_refused",
                "The model server does not take parallel_tool_calls.",
            ),
            Self::EffortRefused => row(
                400,
                "unsupported_parameter",
                1,
                "effort_refused",
                "The model takes no tools together with reasoning_effort.",
            ),
            Self::ToolUseFailed => row(
                400,
                "tool_use_failed",
                1,
                "tool_use_failed",
                "The model produced a tool call that its server could not read. Try again.",
            ),
            Self::Credentials => row(
                502,
                "upstream_auth_error",
                0,
                "credentials",
                "The model server refused this gateway's credentials. This is not about your own key: ask the operator of this gateway.",
            ),
            Self::Busy => row(503, "overloaded", 2, "busy", "The model server is busy. Try again later."),
            Self::ServerError => {
                row(502, "upstream_error", 1, "server_error", "The model server failed. Try again later.")
            }
            Self::LeftAlone => row(
                503,
                "upstream_unavailable",
                0,
                "left_alone",
                "The model server failed too often just now and is not asked for a moment. Try again later.",
            ),
            Self::Withheld => row(
                503,
                "upstream_unavailable",
                0,
                "withheld",
                "The model server fails too often to be asked again right now. Try again later.",
            ),
        }
    }

    /// How often the question may be asked again because of this.
    #[must_use]
    pub const fn again(self) -> u8 {
        self.row().again
    }

    /// What is to be learned from it.
    #[must_use]
    pub const fn fact(self) -> Option<Fact> {
        if matches!(self, Self::ParallelRefused) {
            return Some(Fact::NoParallel);
        }
        if matches!(self, Self::EffortRefused) { Some(Fact::NoEffort) } else { None }
    }

    /// Whether the next upstream of the route may do better. What the request or our own settings are
    /// to blame for, it would not.
    #[must_use]
    pub const fn moves_on(self) -> bool {
        match self {
            Self::Unresolved
            | Self::Unreachable
            | Self::ConnectTimeout
            | Self::Reset
            | Self::Timeout
            | Self::Truncated
            | Self::InvalidReply
            | Self::InReply
            | Self::Busy
            | Self::ServerError
            | Self::LeftAlone => true,
            Self::Tls
            | Self::Protocol
            | Self::ClientSlow
            | Self::TooLarge
            | Self::Refused
            | Self::ParallelRefused
            | Self::EffortRefused
            | Self::ToolUseFailed
            | Self::Credentials
            | Self::Withheld => false,
        }
    }

    /// How often a question may be asked again because of this, by whom it goes to: `upstreams` of them
    /// take turns.
    #[must_use]
    pub fn again_among(self, upstreams: usize) -> u8 {
        let others = u8::try_from(upstreams.saturating_sub(1)).unwrap_or(u8::MAX);
        if self.moves_on() { self.again().max(others) } else { self.again() }
    }

    /// The label of metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        self.row().label
    }
}

/// One failed ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub kind: FailureKind,
    /// What the client reads if it cannot be mended.
    pub reply: ErrorReply,
    /// The upstream's wish before the next ask.
    pub wait: Option<Duration>,
    /// What the log says beside the kind: for operators, never for clients.
    pub detail: String,
    /// One of the upstream's keys was refused, and it has another to try.
    pub other_key: bool,
}

/// The longest `retry-after` that is waited for inside a turn.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest `retry-after` that is handed to a client, in seconds.
pub const LONGEST_RETRY_AFTER: u64 = 60;

impl Failure {
    /// A failure in which the upstream said nothing that could be passed on.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let row = kind.row();
        let reply = ErrorReply::new(row.status, row.code, row.message);
        Self { kind, reply, wait: None, detail: detail.into(), other_key: false }
    }

    /// An answer with a status of 400 or above. `wait` is its `retry-after`.
    #[must_use]
    pub fn of_status(status: u16, body: bytes::Bytes, wait: Option<Duration>) -> Self {
        let said = Said::read(&body);
        let kind = kind_of_status(status, &said);
        let mut failure = Self::new(kind, format!("status {status}: {}", short(&said.message)));
        let passes = matches!(
            kind,
            FailureKind::Refused
                | FailureKind::ParallelRefused
                | FailureKind::EffortRefused
                | FailureKind::ToolUseFailed
                | FailureKind::Busy
        );
        if passes {
            failure.reply = passed_on(status, &said, body);
        }
        if kind == FailureKind::Busy {
            failure.wait = wait;
            let seconds = wait.map_or(1, |w| w.as_secs().max(1));
            failure.reply.retry_after = Some(seconds.min(LONGEST_RETRY_AFTER));
        }
        failure
    }

    /// An upstream that is left alone for `wait`.
    #[must_use]
    pub fn left_alone(wait: Duration) -> Self {
        let mut failure = Self::new(FailureKind::LeftAlone, "not asked: it failed too often just now");
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        failure.reply.retry_after = Some(seconds.clamp(1, LONGEST_RETRY_AFTER));
        failure
    }

    /// An error object inside a 200: mapped to the status its code means.
    #[must_use]
    pub fn in_reply(said: &Said) -> Self {
        if said.code == "tool_use_failed" {
            return Self::of_status(400, error_body(400, said), None);
        }
        let status = status_of(&said.code).or_else(|| status_of(&said.kind)).unwrap_or(502);
        if kind_of_status(status, said) != FailureKind::ServerError {
            let mut failure = Self::of_status(status, error_body(status, said), None);
            failure.detail = format!("inside the reply: {}", short(&said.message));
            return failure;
        }
        let mut failure = Self::new(FailureKind::InReply, short(&said.message));
        if !said.message.is_empty() {
            failure.reply.message = format!("The model server reported: {}", said.message);
        }
        failure
    }

    /// Whether the wait the upstream asks for is short enough to be waited for inside the turn.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.wait.is_none_or(|wait| wait <= LONGEST_WAIT)
    }
}

/// The status that a code or type of an error stands for, in the words of OpenAI, Anthropic and those who speak like
/// them; a number stands for itself.
fn status_of(code: &str) -> Option<u16> {
    Some(match code {
        "invalid_request_error" | "invalid_value" | "context_length_exceeded" => 400,
        "authentication_error" | "invalid_api_key" => 401,
        "permission_error" | "permission_denied" => 403,
        "not_found_error" | "model_not_found" => 404,
        "request_too_large" => 413,
        "rate_limit_exceeded" | "rate_limit_error" | "insufficient_quota" => 429,
        "server_error" | "api_error" | "internal_server_error" => 502,
        "service_unavailable" | "service_unavailable_error" => 503,
        "overloaded" | "overloaded_error" => 529,
        number => number.parse().ok().filter(|n| (400..600).contains(n))?,
    })
}

/// What a status of 400 or above means, with what the body says.
#[must_use]
pub fn kind_of_status(status: u16, said: &Said) -> FailureKind {
    match status {
        401 | 403 => FailureKind::Credentials,
        429 | 503 | 529 => FailureKind::Busy,
        400 | 422 if refuses_parallel(said) => FailureKind::ParallelRefused,
        400 if refuses_effort(said) => FailureKind::EffortRefused,
        400 if said.code == "tool_use_failed" => FailureKind::ToolUseFailed,
        400..=499 => FailureKind::Refused,
        _ => FailureKind::ServerError,
    }
}

/// Whether an error says that the model takes no tools together with a `reasoning_effort`.
fn refuses_effort(said: &Said) -> bool {
    let message = said.message.to_ascii_lowercase();
    ["reasoning_effort", "tools", "not supported"].iter().all(|word| message.contains(word))
}

/// Whether an error says that the parameter itself is unknown or unsupported, in the words of the
/// servers that are known to say so.
fn refuses_parallel(said: &Said) -> bool {
    let names_it = said.message.contains("parallel_tool_calls") || said.param == "parallel_tool_calls";
    let message = said.message.to_ascii_lowercase();
    let unknown = [
        "unsupported",
        "not supported",
        "not support",
        "n't support",
        "unrecognized",
        "unrecognised",
        "not recognized",
        "not recognised",
        "unknown",
        "unexpected",
        "extra inputs",
        "extraneous",
        "not permitted",
        "not allowed",
        "not a valid",
        "invalid parameter",
        "invalid argument",
    ];
    names_it && (said.code == "unsupported_parameter" || unknown.iter().any(|word| message.contains(word)))
}

fn passed_on(status: u16, said: &Said, body: bytes::Bytes) -> ErrorReply {
    let code = if said.code.is_empty() { "upstream_refused" } else { &said.code };
    let message = if said.message.is_empty() {
        format!("The model server refused the request with status {status}.")
    } else {
        said.message.clone()
    };
    // A body that is no JSON would surprise an SDK: it is replaced by the error object.
    let own = super::raw::Raw::parse(body.clone()).is_ok_and(|_| !said.message.is_empty());
    ErrorReply { body: own.then_some(body), ..ErrorReply::new(status, code, message) }
}

fn error_body(status: u16, said: &Said) -> bytes::Bytes {
    let param = (!said.param.is_empty()).then(|| said.param.clone());
    ErrorReply { param, ..ErrorReply::new(status, said.code.clone(), said.message.clone()) }.to_body()
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn of(status: u16, body: &'static str) -> Failure {
        Failure::of_status(status, Bytes::from_static(body.as_bytes()), None)
    }

    #[test]
    fn refusals_of_the_parameter_are_recognised_in_every_known_wording() {
        for body in [
            r#"{"error":{"message":"Unsupported parameter: 'parallel_tool_calls' is not supported with this model.","code":"unsupported_parameter","param":"parallel_tool_calls"}}"#,
            r#"{"error":{"message":"Unrecognized request argument supplied: parallel_tool_calls"}}"#,
            r#"{"error":{"message":"Unknown parameter: 'parallel_tool_calls'."}}"#,
            r#"{"detail":"parallel_tool_calls: Extra inputs are not permitted"}"#,
            r#"{"detail":[{"loc":["body","parallel_tool_calls"],"msg":"extra fields not permitted","type":"value_error.extra"}]}"#,
            r#"{"error":{"message":"This model does not support parallel_tool_calls."}}"#,
            r#"{"error":{"message":"`parallel_tool_calls` isn't supported here"}}"#,
            r#"{"error":{"message":"Additional properties are not allowed ('parallel_tool_calls' was given)"}}"#,
            r#"{"message":"extraneous key [parallel_tool_calls] is not permitted"}"#,
        ] {
            assert_eq!(of(400, body).kind, FailureKind::ParallelRefused, "{body}");
        }
        let legality = r#"{"error":{"message":"Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are specified."}}"#;
        assert_eq!(of(400, legality).kind, FailureKind::Refused);
        assert_eq!(of(400, r#"{"error":{"message":"Unknown parameter: 'x'."}}"#).kind, FailureKind::Refused);
    }

    #[test]
    fn a_model_that_takes_no_tools_beside_an_effort_says_so() {
        let body = r#"{"error":{"message":"Function tools with reasoning_effort are not supported for gpt-5.6 in /v1/chat/completions. Please use /v1/responses instead."}}"#;
        assert_eq!(of(400, body).kind, FailureKind::EffortRefused);
        let other = r#"{"error":{"message":"Unsupported value: 'reasoning_effort' does not support 'x'."}}"#;
        assert_eq!(of(400, other).kind, FailureKind::Refused);
    }

    #[test]
    fn several_upstreams_take_turns_as_often_as_there_are_others() {
        let among = |kind: FailureKind| [1, 2, 4].map(|count| kind.again_among(count));
        assert_eq!(among(FailureKind::ServerError), [1, 1, 3]);
        assert_eq!(among(FailureKind::Unreachable), [2, 2, 3]);
        assert_eq!(among(FailureKind::LeftAlone), [0, 1, 3]);
        assert_eq!(among(FailureKind::Tls), [0, 0, 0]);
        assert_eq!(among(FailureKind::Credentials), [0, 0, 0]);
        assert_eq!(among(FailureKind::ToolUseFailed), [1, 1, 1]);
    }

    #[test]
    fn an_upstream_that_is_left_alone_says_when_to_come_back() {
        let after = |millis| Failure::left_alone(Duration::from_millis(millis)).reply.retry_after;
        assert_eq!([after(0), after(1), after(4_001), after(90_000)], [Some(1), Some(1), Some(5), Some(60)]);
    }

    #[test]
    fn a_refusal_keeps_its_status_and_body() {
        let body =
            r#"{"error":{"message":"too long","code":"context_length_exceeded","param":null,"x":1.10}}"#;
        let failure = of(400, body);
        assert_eq!(
            (failure.reply.status, failure.reply.to_body()),
            (400, Bytes::from_static(body.as_bytes()))
        );
        assert_eq!(of(413, "<html>").reply.status, 413);
        assert!(of(413, "<html>").reply.to_body().starts_with(b"{\"error\""));
    }

    #[test]
    fn our_own_credentials_are_never_the_clients_problem() {
        for status in [401, 403] {
            let failure = of(status, r#"{"error":{"message":"Incorrect API key provided: sk-abc"}}"#);
            assert_eq!((failure.reply.status, failure.reply.code.as_str()), (502, "upstream_auth_error"));
            assert!(!String::from_utf8_lossy(&failure.reply.to_body()).contains("sk-abc"));
        }
    }

    #[test]
    fn errors_inside_a_reply_are_mapped_by_their_code() {
        let said = |code: &str| Said { message: "m".into(), code: code.into(), ..Said::default() };
        for (code, status) in [
            ("429", 429),
            ("rate_limit_exceeded", 429),
            ("400", 400),
            ("502", 502),
            ("boom", 502),
            ("", 502),
            ("40303", 502),
            ("529", 529),
            ("overloaded_error", 529),
            ("service_unavailable", 503),
            ("not_found_error", 404),
            // The key that was refused is fanfold's own.
            ("authentication_error", 502),
            ("403", 502),
        ] {
            assert_eq!(Failure::in_reply(&said(code)).reply.status, status, "{code}");
        }
        let typed = Said { kind: "invalid_request_error".into(), ..said("string_above_max_length") };
        let failure = Failure::in_reply(&typed);
        assert_eq!((failure.reply.status, failure.reply.code.as_str()), (400, "string_above_max_length"));
        let busy = Failure::in_reply(&said("overloaded_error"));
        assert_eq!((busy.kind, busy.reply.kind()), (FailureKind::Busy, "api_error"));
    }

    #[test]
    fn a_long_retry_after_is_neither_waited_for_nor_handed_on() {
        let failure = Failure::of_status(429, Bytes::new(), Some(Duration::from_secs(600)));
        assert!(!failure.may_wait());
        assert_eq!(failure.reply.retry_after, Some(60));
        assert!(Failure::of_status(503, Bytes::new(), Some(Duration::from_secs(3))).may_wait());
    }
}

//! The error object every OpenAI SDK reads: `{"error":{"message","type","param","code"}}`.

use bytes::Bytes;

use super::raw::{Raw, write_string};

/// An answer that is an error: what the client reads, and how its SDK should treat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// `error.code`: what programs match on.
    pub code: String,
    /// `error.message`: who failed and what to do about it.
    pub message: String,
    /// `error.param`: the member of the request that is at fault.
    pub param: Option<String>,
    /// `retry-after`, in seconds.
    pub retry_after: Option<u64>,
    /// `x-should-retry: false` goes out: repeating would repeat an effect, or cannot help.
    pub never_retry: bool,
    /// An upstream's own error body, passed on as it came.
    pub body: Option<Bytes>,
}

impl ErrorReply {
    /// An error with this status, code and message.
    pub fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after: None,
            never_retry: false,
            body: None,
        }
    }

    /// 400 `invalid_value`: this member of the request has a value fanfold cannot use.
    #[must_use]
    pub fn invalid_value(param: &str, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_value", message).about(param)
    }

    /// 503 `shutting_down`: the process ends.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::new(503, "shutting_down", "This gateway is being restarted. Try again.").retry_after(1)
    }

    /// 504 `turn_timeout`: the whole request took longer than `limit`.
    #[must_use]
    pub fn turn_timeout(limit: impl std::fmt::Display) -> Self {
        let message = format!(
            "The answer was not complete within {limit}, this gateway's limit for a whole request. Ask for less at once."
        );
        Self::new(504, "turn_timeout", message)
    }

    /// 409 `attempt_superseded`: another attempt of the same request runs its tools.
    #[must_use]
    pub fn superseded() -> Self {
        Self::new(
            409,
            "attempt_superseded",
            "Another attempt of this request is already running its tools. Repeat the request to get its answer.",
        )
        .retry_after(1)
    }

    /// Names the member of the request that is at fault.
    #[must_use]
    pub fn about(mut self, param: &str) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Asks the client to come back after so many seconds.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Tells SDKs not to repeat the request.
    #[must_use]
    pub const fn never_retry(mut self) -> Self {
        self.never_retry = true;
        self
    }

    /// `error.type`, as OpenAI names it for the status.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (self.status, self.code.as_str()) {
            (_, "insufficient_quota") => "insufficient_quota",
            (401, _) => "authentication_error",
            (403, _) => "permission_error",
            (429, _) => "rate_limit_error",
            (500.., _) => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The body of the answer: the upstream's own, or one made of the parts.
    #[must_use]
    pub fn to_body(&self) -> Bytes {
        self.body.clone().unwrap_or_else(|| self.object().into())
    }

    /// The error object, for a body or a `data:` line. An upstream's own body that is one line of
    /// JSON with an `error` object goes on as it is.
    #[must_use]
    pub fn to_event(&self) -> Bytes {
        match &self.body {
            Some(body) if has_error_object(body) && memchr::memchr2(b'\n', b'\r', body).is_none() => {
                body.clone()
            }
            _ => self.object().into(),
        }
    }

    fn object(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.message.len() + 128);
        out.extend_from_slice(b"{\"error\":{\"message\":");
        write_string(&mut out, &self.message);
        out.extend_from_slice(b",\"type\":");
        write_string(&mut out, self.kind());
        out.extend_from_slice(b",\"param\":");
        match &self.param {
            Some(param) => write_string(&mut out, param),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"code\":");
        write_string(&mut out, &self.code);
        out.extend_from_slice(b"}}");
        out
    }
}

fn has_error_object(body: &Bytes) -> bool {
    Raw::parse(body.clone())
        .and_then(|raw| raw.members())
        .is_ok_and(|m| m.find("error").is_some_and(|e| e.kind() == super::raw::Kind::Object))
}

/// What an upstream's error body says, in whichever of the known shapes it comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// The message.
    pub message: String,
    /// The code, numbers as text; the type where there is none.
    pub code: String,
    /// `type`.
    pub kind: String,
    /// `param`.
    pub param: String,
}

impl Said {
    /// Reads `{"error":{…}}`, `{"error":"…"}`, `[{"error":…}]`, `{"object":"error",…}`,
    /// `{"detail":…}`; anything else gives empty texts.
    #[must_use]
    pub fn read(body: &Bytes) -> Self {
        Raw::parse(body.clone()).ok().and_then(|raw| Self::of(&raw, 0)).unwrap_or_default()
    }

    /// What an error value says; `None` if `value` is no error.
    #[must_use]
    pub fn of_value(value: &Raw) -> Option<Self> {
        Self::of(value, 0)
    }

    fn of(value: &Raw, depth: u8) -> Option<Self> {
        if depth > 3 {
            return None;
        }
        if let Some(text) = value.as_string() {
            return (depth > 0).then(|| Self { message: text.into_owned(), ..Self::default() });
        }
        if let Ok(elements) = value.elements(1) {
            return Self::of(elements.first()?, depth + 1);
        }
        let members = value.members().ok()?;
        if let Some(inner) = members.present("error") {
            return Self::of(inner, depth + 1);
        }
        let text = |name: &str| {
            members
                .present(name)
                .map(|v| v.as_string().map_or_else(|| v.text().to_owned(), std::borrow::Cow::into_owned))
        };
        let message = text("message").or_else(|| text("detail"));
        if depth == 0 && message.is_none() {
            return None;
        }
        let kind = text("type").unwrap_or_default();
        let code = text("code").unwrap_or_else(|| kind.clone());
        let param = text("param").unwrap_or_default();
        Some(Self { message: message.unwrap_or_default(), code, kind, param })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_all_four_members() {
        let error = ErrorReply::invalid_value("n", "use \"1\"");
        assert_eq!(
            error.to_body(),
            r#"{"error":{"message":"use \"1\"","type":"invalid_request_error","param":"n","code":"invalid_value"}}"#
        );
    }

    #[test]
    fn an_upstreams_own_body_goes_on_unless_it_would_break_the_event() {
        let with = |body: &'static str| ErrorReply {
            body: Some(Bytes::from_static(body.as_bytes())),
            ..ErrorReply::new(400, "c", "m")
        };
        let own = "{\"error\":{\"message\":\"x\",\"more\":1.10}}";
        assert_eq!(with(own).to_event(), own);
        assert_eq!(with("{\n\"error\":{}}").to_body(), "{\n\"error\":{}}");
        assert!(with("{\n\"error\":{}}").to_event().starts_with(b"{\"error\":{\"message\":\"m\""));
        assert!(with("<html>").to_event().starts_with(b"{\"error\":"));
    }

    #[test]
    fn every_known_shape_of_an_upstream_error_is_read() {
        for (body, message, code) in [
            (r#"{"error":{"message":"m","code":"c"}}"#, "m", "c"),
            (r#"{"error":{"message":"m","code":429}}"#, "m", "429"),
            (r#"{"error":{"message":"m","type":"t","code":null}}"#, "m", "t"),
            (r#"[{"error":{"message":"m","code":400}}]"#, "m", "400"),
            (r#"{"object":"error","message":"m","code":40303}"#, "m", "40303"),
            (r#"{"error":"m"}"#, "m", ""),
            (r#"{"detail":"m"}"#, "m", ""),
            ("<html>", "", ""),
            ("{\"id\":1}", "", ""),
        ] {
            let said = Said::read(&Bytes::from_static(body.as_bytes()));
            assert_eq!((said.message.as_str(), said.code.as_str()), (message, code), "{body}");
        }
    }
}

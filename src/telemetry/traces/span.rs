//! Spans, as OTLP has them, made when what they tell of is over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind as Kind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span as Proto, Status};

use super::context::{About, Recorded};

/// Spans are told to be part of a recorded trace, and whether their parent is in another process.
const SAMPLED: u32 = 1;
const KNOWS_WHETHER_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// When a turn began: times since then become times of day.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Duration,
}

impl Clock {
    /// Something began so long ago.
    #[must_use]
    pub fn began(ago: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: now.saturating_sub(ago) }
    }

    fn nanos(self, since: Duration) -> u64 {
        u64::try_from((self.began + since).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A span that is being written.
#[derive(Debug)]
pub struct Span(Proto);

impl Span {
    /// A span of the trace. `from` and `to` are since the clock's beginning.
    #[must_use]
    pub fn new(trace: &Recorded, about: About, name: String, times: (Clock, Duration, Duration)) -> Self {
        let (clock, from, to) = times;
        let parent = match about {
            About::Turn => trace.parent().map_or_else(Vec::new, |parent| parent.to_vec()),
            About::Round(_) | About::Run(_) | About::Call(_) => trace.span(About::Turn).to_vec(),
        };
        let remote = if about == About::Turn && !parent.is_empty() { IS_REMOTE } else { 0 };
        Self(Proto {
            trace_id: trace.id().to_vec(),
            span_id: trace.span(about).to_vec(),
            parent_span_id: parent,
            trace_state: trace.state().to_owned(),
            flags: SAMPLED | KNOWS_WHETHER_REMOTE | remote,
            name,
            kind: Kind::Internal as i32,
            start_time_unix_nano: clock.nanos(from),
            end_time_unix_nano: clock.nanos(to.max(from)),
            ..Proto::default()
        })
    }

    /// Below this one of the same trace, instead of the turn's.
    #[must_use]
    pub fn below(mut self, trace: &Recorded, about: About) -> Self {
        self.0.parent_span_id = trace.span(about).to_vec();
        self
    }

    /// On which side of a request it stands.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind as i32;
        self
    }

    /// Says something about it.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Told>) -> Self {
        if let Told(Some(value)) = value.into() {
            self.0.attributes.push(attribute(key, value));
        }
        self
    }

    /// It ended otherwise than well: the class of the error, as `error.type`.
    #[must_use]
    pub fn failed(mut self, class: Option<&str>) -> Self {
        let Some(class) = class else { return self };
        self.0.status = Some(Status { message: String::new(), code: StatusCode::Error as i32 });
        self.with("error.type", class)
    }

    /// As it is sent.
    #[must_use]
    pub(super) fn into_proto(self) -> Proto {
        self.0
    }
}

pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The value of an attribute; nothing where there is none to tell.
#[derive(Debug)]
pub struct Told(Option<Value>);

impl From<&str> for Told {
    fn from(text: &str) -> Self {
        Self((!text.is_empty()).then(|| Value::StringValue(text.to_owned())))
    }
}

impl From<String> for Told {
    fn from(text: String) -> Self {
        Self((!text.is_empty()).then_some(Value::StringValue(text)))
    }
}

impl From<bool> for Told {
    fn from(is: bool) -> Self {
        Self(Some(Value::BoolValue(is)))
    }
}

impl From<u64> for Told {
    fn from(number: u64) -> Self {
        Self(Some(Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX))))
    }
}

impl From<f64> for Told {
    fn from(number: f64) -> Self {
        Self(Some(Value::DoubleValue(number)))
    }
}

/// A list of one.
impl From<[&str; 1]> for Told {
    fn from([text]: [&str; 1]) -> Self {
        let values = vec![AnyValue { value: Some(Value::StringValue(text.to_owned())) }];
        Self((!text.is_empty()).then_some(Value::ArrayValue(ArrayValue { values })))
    }
}

impl<T: Into<Self>> From<Option<T>> for Told {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self(None), Into::into)
    }
}

//! `traces:` of the file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Secret, Size, Span};

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, as protobuf.
    Http,
}

/// `traces:`: a trace of each turn goes to an OpenTelemetry collector. What is left out is taken from the
/// standard `OTEL_…` variables.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Traces")]
pub struct Settings {
    /// The collector's URL. `/v1/traces` is added for `protocol: http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How the collector is spoken to: `http` if nothing says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// More request headers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// `service.name`: `fanfold` if nothing says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The part of the turns that is traced, from 0 to 1, where the client does not say whether its trace is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<f64>,
    /// Messages, arguments, results and answers go into the spans as well.
    pub content: bool,
    /// How much of one text goes into a span.
    pub text: Size,
    /// The memory that spans may take until they are sent; what does not fit is dropped.
    pub buffer: Size,
    /// How long spans wait for others to be sent with.
    pub delay: Span,
    /// How long one request to the collector may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: None,
            headers: BTreeMap::new(),
            ca: None,
            service: None,
            sample: None,
            content: false,
            text: Size::kib(16),
            buffer: Size::mib(16),
            delay: Span::seconds(1),
            timeout: None,
        }
    }
}

//! Traces: which turns have one, what it is called towards others, and how its spans get to a collector.
//!
//! ```text
//!  headers ─▶ Trace ── ids ─▶ upstreams, tools
//!               └─ the turn is over ─▶ spans ─▶ Tracer ─▶ [buffer] ─▶ Exporter ─▶ collector
//!                                                  └─ what does not fit is dropped and counted
//! ```
//!
//! A turn carries the ids of its trace and nothing else; spans are made from its record when it is over.
//! Nothing here makes a turn wait. Without `traces` there is no tracer, and nothing of this is done.

mod context;
mod export;
mod resolve;
pub mod settings;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use opentelemetry_proto::tonic::trace::v1::Span as Proto;
use prost::Message;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::context::{About, Carried, Recorded, Sampling, TRACEPARENT, TRACESTATE, Trace};
pub use self::export::Exporter;
pub use self::resolve::{Env, Resolved, Wrong, resolve};
use self::settings::Settings;
pub use self::span::{Clock, Kind, Span, Told};
use super::{Telemetry, metrics};

/// Spans of one request to the collector.
const BATCH: usize = 512;
/// Bytes of one request to the collector, roughly; most collectors take 4 MiB over gRPC.
const BATCH_BYTES: usize = 1024 * 1024;

/// Takes spans and hands them on. When the last handle is gone, what is left is sent, and the exporter ends.
#[derive(Debug)]
pub struct Tracer {
    /// What it was made of.
    pub settings: Settings,
    sampling: Sampling,
    waiting: Arc<Waiting>,
    _open: DropGuard,
}

/// Spans that wait to be sent.
#[derive(Debug)]
struct Waiting {
    spans: Mutex<Vec<Proto>>,
    /// What they and those that are being sent take, in bytes.
    bytes: AtomicUsize,
    most: usize,
    telemetry: Telemetry,
    /// There is something to send.
    some: Notify,
    /// There is enough for a request.
    enough: Notify,
}

impl Tracer {
    /// A tracer, and what sends its spans.
    #[must_use]
    pub fn new(settings: &Settings, resolved: Resolved, telemetry: &Telemetry) -> (Self, Exporter) {
        let waiting = Arc::new(Waiting {
            spans: Mutex::default(),
            bytes: AtomicUsize::new(0),
            most: settings.buffer.0,
            telemetry: telemetry.clone(),
            some: Notify::new(),
            enough: Notify::new(),
        });
        let open = CancellationToken::new();
        let sampling = resolved.sampling;
        let exporter = Exporter::new(resolved, waiting.clone(), settings.delay.0, open.clone());
        let settings = settings.clone();
        (Self { settings, sampling, waiting, _open: open.drop_guard() }, exporter)
    }

    /// Which traces are recorded.
    #[must_use]
    pub const fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// How much of one text goes into a span; `None`: nothing that was said does.
    #[must_use]
    pub fn text(&self) -> Option<usize> {
        self.settings.content.then_some(self.settings.text.0)
    }

    /// Takes the spans of a turn. What there is no room for is dropped, the whole turn's.
    pub fn take(&self, spans: Vec<Span>) {
        let spans: Vec<Proto> = spans.into_iter().map(Span::into_proto).collect();
        let bytes = Waiting::size(&spans);
        let waiting = &self.waiting;
        let room = waiting.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|held| *held <= waiting.most)
        });
        if room.is_err() {
            return waiting.dropped("full", spans.len());
        }
        let mut held = waiting.spans();
        held.extend(spans);
        let enough = held.len() >= BATCH;
        drop(held);
        waiting.some.notify_one();
        if enough {
            waiting.enough.notify_one();
        }
    }
}

impl Waiting {
    fn spans(&self) -> MutexGuard<'_, Vec<Proto>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest, as many as fit into one request.
    fn batch(&self) -> Vec<Proto> {
        let mut spans = self.spans();
        let mut bytes = 0;
        let fits = |span: &&Proto| {
            bytes += span.encoded_len();
            bytes <= BATCH_BYTES
        };
        let count = spans.iter().take(BATCH).take_while(fits).count();
        // One that is larger than a request goes alone.
        let count = count.max(1).min(spans.len());
        spans.drain(..count).collect()
    }

    fn size(spans: &[Proto]) -> usize {
        spans.iter().map(Message::encoded_len).sum()
    }

    /// So many bytes are free.
    fn gone(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn dropped(&self, why: &'static str, count: usize) {
        if count == 0 {
            return;
        }
        self.telemetry.count(metrics::SPANS_DROPPED, &[("reason", why)], count as u64);
    }
}

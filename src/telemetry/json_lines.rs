//! Log lines as JSON: one object a line, the event's fields beside time, level and target.
//!
//! The same members as tracing-subscriber's own JSON has with flattened events. That one sends every number and
//! text through formatting and a general serializer, which made the line of a turn a fifth of the whole cost of a
//! chat that is handed through; this one writes into one buffer.

use std::fmt::{self, Write as _};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::wire::raw::write_string;

/// Formats events as JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = line(jiff::Timestamp::now(), event);
        writer.write_str(std::str::from_utf8(&line).map_err(|_| fmt::Error)?)
    }
}

fn line(now: jiff::Timestamp, event: &Event<'_>) -> Vec<u8> {
    let metadata = event.metadata();
    let mut line = Line(Vec::with_capacity(512));
    line.0.extend_from_slice(b"{\"timestamp\":\"");
    line.plain(format_args!("{now:.6}"));
    line.0.extend_from_slice(b"\",\"level\":\"");
    line.0.extend_from_slice(metadata.level().as_str().as_bytes());
    line.0.push(b'"');
    event.record(&mut line);
    line.name("target");
    write_string(&mut line.0, metadata.target());
    line.0.extend_from_slice(b"}\n");
    line.0
}

/// A line that is being written.
struct Line(Vec<u8>);

impl Line {
    /// Names stand in the code, where they are plain words.
    fn name(&mut self, name: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Text that needs no escaping.
    fn plain(&mut self, text: fmt::Arguments<'_>) {
        // Writing to memory cannot fail.
        let _ = Plain(&mut self.0).write_fmt(text);
    }

    fn number(&mut self, field: &Field, number: impl Serialize) {
        self.name(field.name());
        // JSON has no word for what is no number.
        if serde_json::to_writer(&mut self.0, &number).is_err() {
            self.0.extend_from_slice(b"null");
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field.name());
        write_string(&mut self.0, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.number(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.number(field, value);
    }

    /// Everything else, and also the larger integers, which become text as they do elsewhere.
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field.name());
        self.0.push(b'"');
        // A value that fails to be shown is shown as far as it went.
        let _ = write!(Escaping(&mut self.0), "{value:?}");
        self.0.push(b'"');
    }
}

struct Plain<'a>(&'a mut Vec<u8>);

impl fmt::Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Writes into a JSON string that is open.
struct Escaping<'a>(&'a mut Vec<u8>);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.0.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        let start = self.0.len();
        write_string(self.0, text);
        // Without the quotes around it.
        self.0.remove(start);
        self.0.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_object_with_every_field_in_its_kind() {
        let out = Shared::default();
        let writer = out.clone();
        let subscriber =
            tracing_subscriber::fmt().event_format(JsonLines).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                text = "a \"b\"\n\u{1}é",
                shown = %"c\\d\te",
                debug = ?Some("x"),
                count = 7u64,
                minus = -3,
                ms = 1.25,
                nothing = f64::NAN,
                yes = true,
                "turn {}", 1
            );
            tracing::warn!("plain");
        });
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        let mut first = lines[0].clone();
        let time = first["timestamp"].take();
        let time = time.as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == "2026-01-01T00:00:00.000000Z".len());
        assert_eq!(
            first,
            serde_json::json!({
                "timestamp": null, "level": "INFO", "message": "turn 1", "text": "a \"b\"\n\u{1}é", "shown": "c\\d\te",
                "debug": "Some(\"x\")", "count": 7, "minus": -3, "ms": 1.25, "nothing": null, "yes": true,
                "target": "fanfold::telemetry::json_lines::tests"
            })
        );
        assert_eq!((&lines[1]["level"], &lines[1]["message"]), (&"WARN".into(), &"plain".into()));
    }
}

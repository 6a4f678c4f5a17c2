//! Where log lines go: standard error, readable on a terminal, JSON otherwise.
//!
//! A thread of its own writes them, so that nobody's answer waits for who reads the log, and lines that come
//! together leave together.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::json_lines::JsonLines;

/// The SDK of tool servers writes what they say into its lines, which may be what a person asked. What an operator
/// needs of it stands in lines of ours. HTTP/2's warns of every client that breaks its rules, so a flood of such
/// clients would be one of lines. A filter that names them gets theirs all the same.
const SILENT: [(&str, &str); 2] = [("rmcp", "rmcp=off"), ("h2", "h2=error")];

/// So many lines wait for a reader that is slow; those after them are lost, and counted.
const LINES: usize = 8 * 1024;
/// After lines were written, those of so long are gathered before the next are.
const GATHERED: Duration = Duration::from_millis(5);

/// The lines that were lost, where logging was started.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// How many lines were lost so far, because nobody read the log.
#[must_use]
pub fn lost() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

/// Starts logging, until what is returned is dropped: by then all lines are written. `level` is a filter as of
/// `RUST_LOG`, which overrides it when set. A second call changes nothing.
pub fn start(level: &str, json: Option<bool>) -> WorkerGuard {
    let terminal = std::io::stderr().is_terminal();
    let silent = SILENT.iter().filter(|(name, _)| !level.contains(name)).map(|(_, filter)| *filter);
    let level = std::iter::once(level).chain(silent).collect::<Vec<_>>().join(",");
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (lines, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .thread_name("log")
        .finish(Gathering(BufWriter::with_capacity(32 * 1024, std::io::stderr())));
    let lost = lines.error_counter();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).with_ansi(colours);
    let started = if json.unwrap_or(!terminal) {
        builder.event_format(JsonLines).finish().try_init()
    } else {
        builder.with_target(false).finish().try_init()
    };
    // A logger that is there already stays: tests and embedders may have their own.
    if started.is_ok() {
        LOST.get_or_init(|| lost);
    }
    guard
}

/// Rests after each writing, which is when no line waits: who logs meanwhile has nobody to wake.
struct Gathering<W: Write>(BufWriter<W>);

impl<W: Write> Write for Gathering<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        std::thread::sleep(GATHERED);
        Ok(())
    }
}

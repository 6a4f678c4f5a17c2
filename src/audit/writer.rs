//! The thread that writes. One for each file, so that no call waits in the runtime for a disk.
//!
//! ```text
//!  intent ─▶ channel ─▶ all that is there ─▶ one write (─▶ one sync) ─▶ each intent is told
//!  outcome ────┘             (at most BATCH)
//! ```
//!
//! Who slows down whom: while the disk is slow the channel fills, and calls with effects wait to leave.
//! A write that fails closes the file; the next batch opens it again, so a disk that has room again, or
//! a file that may be written again, is used without a restart.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot};

use super::file::{Log, named};
use super::record::{Entry, Hash};
use crate::telemetry::{Telemetry, metrics};

/// Records that wait to be written.
const WAITING: usize = 1024;
/// Records of one write.
const BATCH: usize = 256;

/// It could not be written; the log has said why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotWritten;

type Told = oneshot::Sender<Result<(), NotWritten>>;

#[derive(Debug)]
enum Message {
    Write {
        entry: Box<Entry>,
        /// On the disk, not only with the system.
        sync: bool,
        told: Option<Told>,
    },
    /// The file may have been moved away.
    Reopen,
    /// Tells when all before it is written.
    Flush(Told),
}

impl Message {
    /// An entry nobody waits for.
    fn handed(entry: Entry) -> Self {
        Self::Write { entry: Box::new(entry), sync: false, told: None }
    }
}

/// Sends records to the thread. When the last one is gone the thread writes what is left, and ends.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) path: PathBuf,
    messages: mpsc::Sender<Message>,
}

impl Writer {
    /// Opens the file and starts the thread. A file that cannot be opened now is opened later if `later`.
    pub(super) fn start(path: &Path, later: bool, telemetry: &Telemetry) -> io::Result<Self> {
        let mut state = State {
            path: path.to_owned(),
            log: None,
            head: None,
            failing: false,
            telemetry: telemetry.clone(),
        };
        telemetry.gauge(metrics::AUDIT_UP, &[]).set(1.0);
        telemetry.counter(metrics::AUDIT_NOT_WRITTEN, &[]).absolute(0);
        match state.open() {
            Err(error) if later => state.failed(&error),
            opened => opened?,
        }
        let (messages, waiting) = mpsc::channel(WAITING);
        std::thread::Builder::new().name("audit".into()).spawn(move || state.run(waiting))?;
        Ok(Self { path: path.to_owned(), messages })
    }

    /// Waits until an entry is written.
    pub(super) async fn write(&self, entry: Entry, sync: bool) -> Result<(), NotWritten> {
        let (told, hear) = oneshot::channel();
        let message = Message::Write { entry: Box::new(entry), sync, told: Some(told) };
        self.messages.send(message).await.map_err(|_| NotWritten)?;
        hear.await.unwrap_or(Err(NotWritten))
    }

    /// Hands an entry over; waits only while the channel is full.
    pub(super) async fn hand(&self, entry: Entry) {
        let _thread_is_gone = self.messages.send(Message::handed(entry)).await;
    }

    /// Hands an entry over if there is room for it.
    pub(super) fn try_hand(&self, entry: Entry) {
        if self.messages.try_send(Message::handed(entry)).is_err() {
            tracing::error!("an audit record was lost: too many wait to be written");
        }
    }

    /// Opens the file anew before the next record.
    pub(super) fn reopen(&self) {
        if self.messages.try_send(Message::Reopen).is_err() {
            tracing::error!("the audit log is not opened anew: too many records wait to be written");
        }
    }

    /// Waits until everything handed over so far is written.
    pub(super) async fn flush(&self) {
        let (told, hear) = oneshot::channel();
        if self.messages.send(Message::Flush(told)).await.is_ok() {
            let _thread_is_gone = hear.await;
        }
    }
}

struct State {
    path: PathBuf,
    log: Option<Log>,
    /// The last record there was, whichever file it is in.
    head: Option<Hash>,
    failing: bool,
    telemetry: Telemetry,
}

impl State {
    fn run(mut self, mut waiting: mpsc::Receiver<Message>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = Batch::default();
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Write { entry, sync, told } => batch.add(*entry, sync, told),
                    Message::Reopen => {
                        self.write(std::mem::take(&mut batch));
                        self.log = None;
                        match self.open() {
                            Ok(()) => {
                                tracing::info!(file = %self.path.display(), "the audit log was opened anew")
                            }
                            Err(error) => self.failed(&error),
                        }
                    }
                    Message::Flush(told) => {
                        self.write(std::mem::take(&mut batch));
                        let _nobody_waits = told.send(Ok(()));
                    }
                }
                next = if batch.entries.len() < BATCH { waiting.try_recv().ok() } else { None };
            }
            self.write(batch);
        }
    }

    /// Opens the file and writes that it did.
    fn open(&mut self) -> io::Result<()> {
        let mut log = Log::open(&self.path, self.head)?;
        if log.torn() > 0 {
            tracing::warn!(file = %self.path.display(), bytes = log.torn(), "the last line of the audit log had broken off; it stays as it is, and the chain goes on from the record before it");
        }
        let appended = match log.torn() {
            0 => log.append(&[Entry::Start { torn: 0 }]),
            // Mending says that it starts.
            _ => log.append(&[]),
        };
        self.head = Some(log.head());
        appended.error.map_or(Ok(()), Err)?;
        self.log = Some(log);
        Ok(())
    }

    fn write(&mut self, batch: Batch) {
        if batch.entries.is_empty() {
            return;
        }
        if self.log.is_none()
            && let Err(error) = self.open()
        {
            self.failed(&error);
            return self.lost(batch.told, 0);
        }
        let Some(log) = &mut self.log else { return };
        let appended = log.append(&batch.entries);
        self.head = Some(log.head());
        let synced = if batch.sync && appended.error.is_none() { log.sync() } else { Ok(()) };
        let unsure = synced.is_err();
        match appended.error.map_or(Ok(()), Err).and(synced) {
            Ok(()) => self.works(),
            Err(error) => {
                self.log = None;
                self.failed(&error);
            }
        }
        self.lost(batch.told, if unsure { 0 } else { appended.whole });
    }

    /// Tells everyone; the first `whole` are written.
    fn lost(&self, told: Vec<Option<Told>>, whole: usize) {
        let lost = told.len().saturating_sub(whole) as u64;
        self.telemetry.count(metrics::AUDIT_NOT_WRITTEN, &[], lost);
        for (i, told) in told.into_iter().enumerate() {
            if let Some(told) = told {
                let _nobody_waits = told.send(if i < whole { Ok(()) } else { Err(NotWritten) });
            }
        }
    }

    fn works(&mut self) {
        if std::mem::replace(&mut self.failing, false) {
            self.telemetry.gauge(metrics::AUDIT_UP, &[]).set(1.0);
            tracing::info!(file = %self.path.display(), "the audit log is written again");
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.telemetry.gauge(metrics::AUDIT_UP, &[]).set(0.0);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!("the audit log cannot be written: {}", named(&self.path, error));
        }
    }
}

/// Records of one write, and who waits for each.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    told: Vec<Option<Told>>,
    sync: bool,
}

impl Batch {
    fn add(&mut self, entry: Entry, sync: bool, told: Option<Told>) {
        self.entries.push(entry);
        self.told.push(told);
        self.sync |= sync;
    }
}

//! The file: only ever appended to, by one process at a time.
//!
//! A line may break off: the process was killed while it wrote, or the disk was full. What is left of it stays where
//! it is. The next write ends it with [`MEND`] and a `start` record that says how many bytes it has, and the chain
//! goes on from the last record that is whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::record::{Entry, Hash, NOTHING, OPENING, Read, hash};

/// How much of the end of a file is searched for its last record. A record is at most 1 MiB of arguments, written
/// with escapes, and some hundred bytes.
const END: u64 = 8 * 1024 * 1024;
/// What ends a line that broke off. A line of which only its end is missing must not become a record by it.
pub(super) const MEND: &[u8] = b"~\n";
/// How much is read of it at first.
const FIRST: u64 = 64 * 1024;

/// An audit log that is open.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    /// The hash of the last record.
    head: Hash,
    /// Bytes behind the last record that are none.
    torn: u64,
}

/// How far a write got.
#[derive(Debug)]
pub(super) struct Appended {
    /// So many of the entries are written whole.
    pub(super) whole: usize,
    /// Why not all of them.
    pub(super) error: Option<io::Error>,
}

impl Log {
    /// Opens it, or makes it. Its chain goes on from its last record; that of a new file from `before`.
    pub(super) fn open(path: &Path, before: Option<Hash>) -> io::Result<Self> {
        let new = !path.exists();
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other(
                    "another process writes to it: each fanfold needs a file of its own",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if new {
            // The name has to survive a loss of power as well.
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        let (head, torn) = end(&mut file)?;
        Ok(Self { file, head: head.or(before).unwrap_or(NOTHING), torn })
    }

    pub(super) const fn head(&self) -> Hash {
        self.head
    }

    /// How many bytes at the end are no record.
    pub(super) const fn torn(&self) -> u64 {
        self.torn
    }

    /// Appends these entries in one write; a line that broke off before them is ended first.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Appended {
        let now = jiff::Timestamp::now();
        let (mut out, mut lines, mut head) = (Vec::new(), Vec::new(), self.head);
        let mut add = |out: &mut Vec<u8>, entry: &Entry| {
            let line = entry.line(now, &head);
            head = hash(&line);
            out.extend_from_slice(&line);
            out.push(b'\n');
            lines.push((out.len(), head));
        };
        let mends = self.torn > 0;
        if mends {
            out.extend_from_slice(MEND);
            add(&mut out, &Entry::Start { torn: self.torn });
        }
        entries.iter().for_each(|entry| add(&mut out, entry));
        let (written, error) = write(&mut self.file, &out);
        let whole = lines.iter().take_while(|(end, _)| *end <= written).count();
        match whole.checked_sub(1).map(|last| lines[last]) {
            Some((end, head)) => {
                self.head = head;
                self.torn = (written - end) as u64;
            }
            None => self.torn += written as u64,
        }
        Appended { whole: whole.saturating_sub(usize::from(mends)), error }
    }

    /// Waits until what was written is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Writes until all is written or it fails; how many bytes went out.
fn write(file: &mut File, out: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < out.len() {
        match file.write(&out[written..]) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

/// The hash of the last record, and how many bytes follow it.
fn end(file: &mut File) -> io::Result<(Option<Hash>, u64)> {
    let length = file.metadata()?.len();
    let foreign = || io::Error::other("it is not empty, and does not end like an audit log");
    let mut wanted = FIRST.min(length);
    loop {
        file.seek(SeekFrom::Start(length - wanted))?;
        let mut text = Vec::new();
        (&mut *file).take(wanted).read_to_end(&mut text)?;
        if let Some((head, torn)) = last_record(&text, wanted == length) {
            return Ok((Some(head), torn));
        }
        if wanted == length {
            // Nothing, or the very first line broke off.
            let common = text.len().min(OPENING.len());
            let ours = text[..common] == OPENING[..common];
            return if ours { Ok((None, length)) } else { Err(foreign()) };
        }
        if wanted >= END {
            return Err(foreign());
        }
        wanted = (wanted * 8).min(END).min(length);
    }
}

/// The last record in the end of a file, and how many bytes follow it. `all`: the text begins with a line.
fn last_record(text: &[u8], all: bool) -> Option<(Hash, u64)> {
    let ends: Vec<usize> = memchr::memchr_iter(b'\n', text).collect();
    for (i, end) in ends.iter().enumerate().rev() {
        let start = match i.checked_sub(1) {
            Some(before) => ends[before] + 1,
            None if all => 0,
            None => return None,
        };
        let line = &text[start..*end];
        if Read::line(line).is_some() {
            return Some((hash(line), (text.len() - end - 1) as u64));
        }
    }
    None
}

/// A path, and how people call it in messages.
pub(super) fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", PathBuf::from(path).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Log {
        Log::open(path, None).unwrap()
    }

    fn start(log: &mut Log) {
        let appended = log.append(&[Entry::Start { torn: 0 }]);
        assert!(appended.error.is_none() && appended.whole == 1);
    }

    #[test]
    fn the_chain_goes_on_after_a_restart_and_in_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut log = open(&path);
        assert_eq!(log.head(), NOTHING);
        start(&mut log);
        let head = log.head();
        drop(log);
        let mut log = open(&path);
        assert_eq!((log.head(), log.torn()), (head, 0));
        start(&mut log);
        let head = log.head();
        let other = Log::open(&folder.path().join("b"), Some(head)).unwrap();
        assert_eq!(other.head(), head);
    }

    #[test]
    fn a_line_that_broke_off_at_any_byte_is_ended_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut log = open(&path);
        start(&mut log);
        let head = log.head();
        let first = std::fs::metadata(&path).unwrap().len();
        start(&mut log);
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        for cut in first..whole.len() as u64 {
            std::fs::write(&path, &whole[..usize::try_from(cut).unwrap()]).unwrap();
            let mut log = open(&path);
            assert_eq!((log.head(), log.torn()), (head, cut - first), "{cut}");
            start(&mut log);
            drop(log);
            super::super::verify::file(&path, None).unwrap_or_else(|e| panic!("{cut}: {e:?}"));
        }
        // The very first line may break off as well.
        std::fs::write(&path, &whole[..5]).unwrap();
        let mut log = open(&path);
        assert_eq!((log.head(), log.torn()), (NOTHING, 5));
        start(&mut log);
        super::super::verify::file(&path, None).unwrap();
    }

    #[test]
    fn a_mended_line_may_break_off_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut log = open(&path);
        start(&mut log);
        drop(log);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"time\":\"2\n{\"time");
        std::fs::write(&path, &text).unwrap();
        let mut log = open(&path);
        assert_eq!(log.torn(), 17);
        start(&mut log);
        super::super::verify::file(&path, None).unwrap();
    }

    #[test]
    fn another_process_and_another_kind_of_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let _held = open(&path);
        assert!(Log::open(&path, None).unwrap_err().to_string().contains("another process"));
        for other in ["hello\n", "{\"a\":1}\n", "x"] {
            let path = folder.path().join("b");
            std::fs::write(&path, other).unwrap();
            assert!(Log::open(&path, None).unwrap_err().to_string().contains("audit log"), "{other}");
        }
    }

    #[test]
    fn a_full_disk_loses_the_lines_that_do_not_fit_and_no_other() {
        // /dev/full refuses every write; it cannot be locked or searched like a file, so it is put in place.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut log = open(&path);
        start(&mut log);
        let head = log.head();
        let file =
            std::mem::replace(&mut log.file, OpenOptions::new().append(true).open("/dev/full").unwrap());
        let appended = log.append(&[Entry::Start { torn: 0 }]);
        assert_eq!((appended.whole, appended.error.unwrap().kind()), (0, io::ErrorKind::StorageFull));
        assert_eq!((log.head(), log.torn()), (head, 0));
        log.file = file;
        start(&mut log);
        super::super::verify::file(&path, None).unwrap();
    }
}

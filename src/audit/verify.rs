//! Follows the chain of a log from record to record.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use super::file::MEND;
use super::record::{Hash, NOTHING, Read, hash, hex};

/// The longest line that is read.
const LONGEST: u64 = 8 * 1024 * 1024;

/// What a sound log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sound {
    /// Records.
    pub records: u64,
    /// Intents.
    pub intents: u64,
    /// Outcomes.
    pub outcomes: u64,
    /// Lines that broke off and were mended.
    pub mended: u64,
    /// The bytes of a last line that broke off and is not mended yet.
    pub torn: u64,
    /// Whether records of an earlier file go before it.
    pub continues: bool,
    head: Hash,
}

impl Sound {
    /// The hash of the last record: kept elsewhere, it shows that no record was cut off the end.
    #[must_use]
    pub fn head(&self) -> String {
        hex(&self.head)
    }
}

/// Why a log is not sound.
#[derive(Debug)]
pub enum Broken {
    /// It cannot be read.
    Unreadable(io::Error),
    /// A line is no record, and no record after it says that it broke off.
    NoRecord {
        /// Counted from 1.
        line: u64,
    },
    /// A record does not follow the one before it: something was changed, taken out or put in.
    Unchained {
        /// Counted from 1.
        line: u64,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "it cannot be read: {error}"),
            Self::NoRecord { line } => write!(f, "line {line} is no record"),
            Self::Unchained { line } => write!(
                f,
                "the record in line {line} does not follow the one before it: something was changed, taken out or put in"
            ),
        }
    }
}

impl std::error::Error for Broken {}

/// Checks a log. `before`: what the file before it was found to be, of which this one has to be the continuation.
pub fn file(path: &Path, before: Option<&Sound>) -> Result<Sound, Broken> {
    let mut input = BufReader::new(File::open(path).map_err(Broken::Unreadable)?);
    let mut sound = Sound { head: before.map_or(NOTHING, |b| b.head), ..Sound::default() };
    // Where a run of lines that are no record began, and how many bytes it has.
    let mut gap: Option<(u64, u64)> = None;
    let (mut number, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read =
            io::Read::take(&mut input, LONGEST).read_until(b'\n', &mut line).map_err(Broken::Unreadable)?;
        if read == 0 {
            break;
        }
        number += 1;
        let whole = line.strip_suffix(b"\n");
        let Some((text, record)) = whole.and_then(|text| Some((text, Read::line(text)?))) else {
            let (from, bytes) = gap.unwrap_or((number, 0));
            gap = Some((from, bytes + read as u64));
            continue;
        };
        if let Some((from, bytes)) = gap.take() {
            // What broke off, and what was put behind it.
            if record.event != "start" || record.torn + MEND.len() as u64 != bytes {
                return Err(Broken::NoRecord { line: from });
            }
            sound.mended += 1;
        }
        follows(&record, number, before.is_none(), &mut sound)?;
        sound.head = hash(text);
    }
    match gap {
        // The last line may be broken off; a whole one that is no record may not.
        Some((from, _)) if from != number || line_ended(path) => Err(Broken::NoRecord { line: from }),
        Some((_, bytes)) => Ok(Sound { torn: bytes, ..sound }),
        None => Ok(sound),
    }
}

fn line_ended(path: &Path) -> bool {
    use std::os::unix::fs::FileExt as _;
    let last = || {
        let file = File::open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, file.metadata()?.len().saturating_sub(1))?;
        io::Result::Ok(byte[0] == b'\n')
    };
    last().unwrap_or(true)
}

fn follows(record: &Read, line: u64, alone: bool, sound: &mut Sound) -> Result<(), Broken> {
    let first = sound.records == 0;
    if first && alone {
        sound.continues = record.before() != NOTHING;
    } else if record.before() != sound.head {
        return Err(Broken::Unchained { line });
    }
    sound.records += 1;
    match record.event.as_str() {
        "intent" => sound.intents += 1,
        "outcome" => sound.outcomes += 1,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::file::Log;
    use crate::audit::record::Entry;

    fn written(records: usize) -> (tempfile::TempDir, std::path::PathBuf, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut log = Log::open(&path, None).unwrap();
        log.append(&vec![Entry::Start { torn: 0 }; records]);
        let lines =
            std::fs::read_to_string(&path).unwrap().lines().map(|line| line.to_owned() + "\n").collect();
        (folder, path, lines)
    }

    #[test]
    fn a_changed_missing_or_added_record_is_found() {
        let (_folder, path, lines) = written(4);
        assert_eq!(file(&path, None).unwrap().records, 4);
        let check = |lines: &[String]| {
            std::fs::write(&path, lines.concat()).unwrap();
            file(&path, None)
        };
        let mut changed = lines.clone();
        changed[1] = changed[1].replace("0.1.0", "0.1.1");
        assert!(matches!(check(&changed), Err(Broken::Unchained { line: 3 })));
        let mut missing = lines.clone();
        missing.remove(2);
        assert!(matches!(check(&missing), Err(Broken::Unchained { line: 3 })));
        let mut twice = lines.clone();
        twice.insert(1, lines[1].clone());
        assert!(matches!(check(&twice), Err(Broken::Unchained { line: 3 })));
        let mut added = lines.clone();
        added.insert(2, "{}\n".into());
        assert!(matches!(check(&added), Err(Broken::NoRecord { line: 3 })));
        added.remove(2);
        added.push("{}\n".into());
        assert!(matches!(check(&added), Err(Broken::NoRecord { line: 5 })));
        // What the chain cannot show by itself: a beginning or an end that was cut off.
        assert!(check(&lines[1..]).unwrap().continues);
        assert_eq!(check(&lines[..3]).unwrap().records, 3);
    }

    #[test]
    fn a_torn_last_line_is_told_and_files_are_read_in_order() {
        let (_folder, path, lines) = written(4);
        std::fs::write(&path, lines[..2].concat()).unwrap();
        let first = file(&path, None).unwrap();
        std::fs::write(&path, lines[2..].concat() + &lines[3][..9]).unwrap();
        let second = file(&path, Some(&first)).unwrap();
        assert_eq!((second.records, second.torn), (2, 9));
        assert!(matches!(file(&path, Some(&second)), Err(Broken::Unchained { line: 1 })));
    }
}

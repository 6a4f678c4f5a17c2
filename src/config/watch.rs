//! Notices that the configuration should be read again.
//!
//! A SIGHUP says so at once. Besides, the content of the files is looked at every few seconds:
//! watching file events would miss what container platforms do (a ConfigMap is swapped through a
//! symlink, a bind mount is replaced). A file that is just not there is waited for, and a new
//! content counts only when it is the same twice, so that a half-written file is not taken.
//!
//! Nothing runs between two calls of [`Watcher::changed`]; whoever calls it owns the task.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::tools::openapi::file::LARGEST;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(3);
/// How long a new content has to stay as it is.
const SETTLE: Duration = Duration::from_millis(200);
/// Bytes read at once.
const READ: usize = 64 * 1024;
/// The most files that are watched.
const MOST: usize = 256;

/// Why the configuration should be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A SIGHUP arrived.
    Signal,
    /// A watched file has another content.
    File,
}

/// Watches the configuration's files and SIGHUP.
#[derive(Debug)]
pub struct Watcher {
    signal: Signal,
    ticks: Interval,
    files: Vec<Watched>,
    /// A signal arrived and has not been told yet.
    signalled: bool,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// The digest of the content; `None` as long as there was none to read.
    seen: Option<[u8; 32]>,
}

impl Watcher {
    /// Watches these files (see [`super::Loaded::watched`]) from their present content on. The
    /// error is that of registering for the signal.
    pub async fn new(paths: Vec<PathBuf>) -> io::Result<Self> {
        let signal = signal(SignalKind::hangup())?;
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = Self { signal, ticks, files: Vec::new(), signalled: false };
        watcher.watch(paths).await;
        Ok(watcher)
    }

    /// Watches these files from now on; those known already keep what was seen of them. The first
    /// 256 are watched.
    pub async fn watch(&mut self, paths: Vec<PathBuf>) {
        let mut files = Vec::with_capacity(paths.len().min(MOST));
        for path in paths.into_iter().take(MOST) {
            let seen = match self.files.iter().find(|known| known.path == path) {
                Some(known) => known.seen,
                None => digest(&path).await,
            };
            files.push(Watched { path, seen });
        }
        self.files = files;
    }

    /// Resolves when the configuration should be read again. May be dropped at any point: nothing
    /// is lost but the wait.
    pub async fn changed(&mut self) -> Cause {
        loop {
            if self.signalled {
                self.look().await;
                self.signalled = false;
                return Cause::Signal;
            }
            tokio::select! {
                Some(()) = self.signal.recv() => self.signalled = true,
                _ = self.ticks.tick() => if self.look().await {
                    return Cause::File;
                },
            }
        }
    }

    /// Looks at all files, and remembers what it saw only when all have been looked at.
    async fn look(&mut self) -> bool {
        let mut seen = Vec::with_capacity(self.files.len());
        for file in &self.files {
            seen.push(match digest(&file.path).await {
                Some(now) if Some(now) != file.seen => settled(file, now).await,
                Some(_) | None => file.seen,
            });
        }
        let changed = self.files.iter().zip(&seen).any(|(file, seen)| file.seen != *seen);
        for (file, seen) in self.files.iter_mut().zip(seen) {
            file.seen = seen;
        }
        changed
    }
}

/// The new digest if it stays for a moment, otherwise the old one: the next look will tell.
async fn settled(file: &Watched, now: [u8; 32]) -> Option<[u8; 32]> {
    sleep(SETTLE).await;
    match digest(&file.path).await {
        Some(again) if again == now => Some(now),
        Some(_) | None => file.seen,
    }
}

/// The digest of a file's content, as far as a document may be long.
async fn digest(path: &PathBuf) -> Option<[u8; 32]> {
    let mut file = tokio::fs::File::open(path).await.ok()?.take(LARGEST + 1);
    let mut digest = Sha256::new();
    let mut buffer = vec![0; READ];
    loop {
        match file.read(&mut buffer).await.ok()? {
            0 => return Some(digest.finalize().into()),
            count => digest.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    async fn watcher(path: &std::path::Path) -> Watcher {
        Watcher::new(vec![path.into()]).await.expect("signals")
    }

    /// Time is paused: the clock jumps as soon as nothing else is left to do.
    async fn quiet(watcher: &mut Watcher) {
        assert!(timeout(EVERY * 4, watcher.changed()).await.is_err(), "nothing changed");
    }

    #[tokio::test(start_paused = true)]
    async fn another_content_is_noticed_and_the_same_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fanfold.yaml");
        std::fs::write(&path, "a").unwrap();
        let mut watcher = watcher(&path).await;
        std::fs::write(&path, "a").unwrap();
        quiet(&mut watcher).await;
        std::fs::write(&path, "b").unwrap();
        assert_eq!(watcher.changed().await, Cause::File);
        quiet(&mut watcher).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_symlink_that_is_swapped_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (dir, text) in [("one", "a"), ("two", "b")] {
            std::fs::create_dir(at(dir)).unwrap();
            std::fs::write(at(dir).join("fanfold.yaml"), text).unwrap();
        }
        std::os::unix::fs::symlink("one", at("data")).unwrap();
        let mut watcher = watcher(&at("data").join("fanfold.yaml")).await;
        std::os::unix::fs::symlink("two", at("new")).unwrap();
        std::fs::rename(at("new"), at("data")).unwrap();
        assert_eq!(watcher.changed().await, Cause::File);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_gone_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fanfold.yaml");
        std::fs::write(&path, "a").unwrap();
        let mut watcher = watcher(&path).await;
        std::fs::remove_file(&path).unwrap();
        quiet(&mut watcher).await;
        std::fs::write(&path, "a").unwrap();
        quiet(&mut watcher).await;
        std::fs::write(&path, "b").unwrap();
        assert_eq!(watcher.changed().await, Cause::File);
    }

    #[tokio::test]
    async fn a_sighup_is_noticed() {
        let mut watcher = Watcher::new(Vec::new()).await.expect("signals");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        assert_eq!(watcher.changed().await, Cause::Signal);
    }
}

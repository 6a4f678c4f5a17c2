//! Counts the control frames a client sends on HTTP/2.
//!
//! Neither hyper nor h2 bounds PING and SETTINGS, each of which costs an answer, nor PRIORITY and
//! unknown types, which cost time. This reads only frame heads as the bytes pass by and never
//! holds or changes one. Frames that belong to requests are free: HEADERS and CONTINUATION have
//! h2's own bounds, DATA with content has flow control, WINDOW_UPDATE follows what we send.

use std::time::Duration;

use tokio::time::Instant;

/// What every HTTP/2 client sends first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// Control frames that may come at once.
const BURST: u32 = 1_000;
/// One more is allowed each time this has passed (50 a second).
const REFILL: Duration = Duration::from_millis(20);

/// Too many control frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flood;

/// The control frames of one connection.
#[derive(Debug)]
pub(crate) struct FrameGuard {
    skip: usize,
    head: [u8; HEAD],
    filled: usize,
    left: u32,
    since: Instant,
}

impl FrameGuard {
    /// Before the first byte of the preface.
    pub(crate) fn new() -> Self {
        Self { skip: PREFACE.len(), head: [0; HEAD], filled: 0, left: BURST, since: Instant::now() }
    }

    /// Looks at bytes as they came in, cut anywhere.
    pub(crate) fn seen(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD {
                self.filled = 0;
                let [a, b, c, kind, ..] = self.head;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if costs(kind, self.skip) {
                    self.spend()?;
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self) -> Result<(), Flood> {
        if self.left == 0 {
            let earned = self.since.elapsed().as_millis() / REFILL.as_millis();
            if earned == 0 {
                return Err(Flood);
            }
            self.left = u32::try_from(earned).unwrap_or(BURST).min(BURST);
            self.since = Instant::now();
        }
        self.left -= 1;
        Ok(())
    }
}

/// Whether a frame of this type and length is counted.
fn costs(kind: u8, length: usize) -> bool {
    const DATA: u8 = 0x0;
    const HEADERS: u8 = 0x1;
    const WINDOW_UPDATE: u8 = 0x8;
    const CONTINUATION: u8 = 0x9;
    match kind {
        DATA => length == 0,
        HEADERS | WINDOW_UPDATE | CONTINUATION => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 0], payload].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn pings_beyond_the_burst_are_a_flood_however_they_are_cut() {
        for size in [1, 7, 17, 4096] {
            let mut guard = FrameGuard::new();
            let mut bytes = PREFACE.to_vec();
            for _ in 0..BURST {
                bytes.extend(frame(0x6, &[0; 8]));
            }
            for chunk in bytes.chunks(size) {
                assert_eq!(guard.seen(chunk), Ok(()));
            }
            assert_eq!(guard.seen(&frame(0x6, &[0; 8])), Err(Flood));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_window_updates_are_free() {
        let mut guard = FrameGuard::new();
        guard.seen(PREFACE).unwrap();
        for _ in 0..10 * BURST {
            guard.seen(&frame(0x1, b"head")).unwrap();
            guard.seen(&frame(0x0, b"body that looks like \0\0\x08\x06\0\0\0\0\0")).unwrap();
            guard.seen(&frame(0x8, &[0, 0, 1, 0])).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_allowance_comes_back_with_time() {
        let mut guard = FrameGuard::new();
        guard.seen(PREFACE).unwrap();
        let ping = frame(0x6, &[0; 8]);
        for _ in 0..BURST {
            guard.seen(&ping).unwrap();
        }
        assert_eq!(guard.seen(&ping), Err(Flood));
        tokio::time::advance(REFILL * 3).await;
        assert_eq!((0..5).filter(|_| guard.seen(&ping).is_ok()).count(), 3);
    }
}

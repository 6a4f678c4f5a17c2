//! What is compared is driven alternately, in short slices: a machine's pace changes by half within a minute, and
//! what lies a tenth of a second apart has the same.

use std::time::Duration;

use tokio::time::Instant;

use crate::TIMES;
use crate::stats::{Measured, Times};

/// Into so many slices the time of one measurement is cut, if what is asked is answered at once.
pub const MANY: u32 = 10;
/// What a server does after its last answer has ended by then: it writes its log every few milliseconds.
pub const AFTERWARDS: Duration = Duration::from_millis(20);

/// What one client does in a slice. The time of its first request counts for nothing: all clients begin at once, which
/// they never do later.
pub struct Rounds {
    until: Instant,
    requests: usize,
    times: Times,
}

impl Rounds {
    pub fn until(until: Instant) -> Self {
        Self { until, requests: 0, times: Times::default() }
    }

    pub fn go_on(&self) -> bool {
        self.requests < 2 || Instant::now() < self.until
    }

    pub fn took(&mut self, time: Duration) {
        if self.requests > 0 {
            self.times.add(time);
        }
        self.requests += 1;
    }
}

/// What came of one or several slices.
#[derive(Clone, Default)]
pub struct Slice {
    times: Times,
    requests: usize,
    /// Seconds of processor time of the serving process.
    cpu: f64,
}

impl Slice {
    pub fn of(rounds: Vec<Rounds>, cpu: f64) -> Self {
        let requests = rounds.iter().map(|rounds| rounds.requests).sum();
        let times = Times::all(rounds.into_iter().map(|rounds| rounds.times).collect());
        Self { times, requests, cpu }
    }

    fn add(&mut self, other: Self) {
        self.times.join(other.times);
        self.requests += other.requests;
        self.cpu += other.cpu;
    }

    pub fn measured(self) -> Measured {
        Measured::new(self.times, self.requests, self.cpu)
    }
}

/// What can be driven for a while, and again.
pub trait Driven {
    /// For so long, and until what has begun by then has ended.
    async fn slice(&mut self, time: Duration) -> Slice;
}

/// Drives each for so long in a measurement, of which there are three, after a short one that is not counted. The
/// time of each is cut into `slices`, in each of which another one is the first. The medians of each.
pub async fn alternately(all: &mut [impl Driven], slices: u32, time: Duration) -> Vec<Measured> {
    let mut measured = vec![Vec::new(); all.len()];
    measurement(all, slices, time / 4).await;
    for _ in 0..TIMES {
        for (results, result) in measured.iter_mut().zip(measurement(all, slices, time).await) {
            results.push(result.measured());
        }
    }
    measured.iter().map(|results| Measured::median(results)).collect()
}

async fn measurement(all: &mut [impl Driven], slices: u32, time: Duration) -> Vec<Slice> {
    let mut sums = vec![Slice::default(); all.len()];
    for slice in 0..slices as usize {
        for step in 0..all.len() {
            let at = (slice + step) % all.len();
            sums[at].add(all[at].slice(time / slices).await);
        }
    }
    sums
}

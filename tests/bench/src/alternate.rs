//! What is compared is driven alternately, in short slices: a machine's pace changes by half within a minute, and
//! what lies a tenth of a second apart has the same.

use std::time::Duration;

use crate::TIMES;
use crate::stats::{Measured, Times};

/// Into so many slices the time of one measurement is cut.
const SLICES: u32 = 10;

/// What came of one or several slices.
#[derive(Clone, Default)]
pub struct Slice {
    /// One for each request.
    pub times: Times,
    /// Seconds of processor time of the serving process.
    pub cpu: f64,
}

impl Slice {
    fn add(&mut self, other: Self) {
        self.times.join(other.times);
        self.cpu += other.cpu;
    }

    pub fn measured(self) -> Measured {
        Measured::new(self.times, self.cpu)
    }
}

/// What can be driven for a while, and again.
pub trait Driven {
    /// For so long, and until what has begun by then has ended.
    async fn slice(&mut self, time: Duration) -> Slice;
}

/// Drives each for so long in a measurement, of which there are three, after a short one that is not counted.
/// The medians of each.
pub async fn alternately(all: &mut [impl Driven], time: Duration) -> Vec<Measured> {
    let mut measured = vec![Vec::new(); all.len()];
    measurement(all, time / 4).await;
    for _ in 0..TIMES {
        for (results, result) in measured.iter_mut().zip(measurement(all, time).await) {
            results.push(result.measured());
        }
    }
    measured.iter().map(|results| Measured::median(results)).collect()
}

async fn measurement(all: &mut [impl Driven], time: Duration) -> Vec<Slice> {
    let mut sums = vec![Slice::default(); all.len()];
    for _ in 0..SLICES {
        for (driven, sum) in all.iter_mut().zip(&mut sums) {
            sum.add(driven.slice(time / SLICES).await);
        }
    }
    sums
}

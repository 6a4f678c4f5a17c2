//! Quantiles and medians.

use std::time::Duration;

/// Times in microseconds, of which quantiles are asked.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.add_us(time.as_secs_f64() * 1e6);
    }

    pub fn add_us(&mut self, time: f64) {
        self.0.push(time);
    }

    pub fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn all(parts: Vec<Self>) -> Self {
        Self(parts.into_iter().flat_map(|part| part.0).collect())
    }

    /// The value below which `part` of all are; 0 when there are none.
    pub fn at(&mut self, part: f64) -> f64 {
        let index = ((self.0.len() as f64 * part) as usize).min(self.0.len().saturating_sub(1));
        if self.0.is_empty() {
            return 0.0;
        }
        *self.0.select_nth_unstable_by(index, f64::total_cmp).1
    }
}

/// The median of one figure of several measurements.
pub fn median<T>(all: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut figures = Times(all.iter().map(of).collect());
    figures.at(0.5)
}

/// What came of a load.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    pub requests: usize,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Microseconds of processor time of the serving process per request.
    pub cpu: f64,
}

impl Measured {
    /// Of the times of requests, how many there were, and the processor time spent on all of them, in seconds.
    pub fn new(mut times: Times, requests: usize, cpu: f64) -> Self {
        Self { requests, p50: times.at(0.5), p99: times.at(0.99), cpu: cpu * 1e6 / requests.max(1) as f64 }
    }

    /// The median of each figure by itself.
    pub fn median(all: &[Self]) -> Self {
        Self {
            requests: all.iter().map(|one| one.requests).sum(),
            p50: median(all, |one| one.p50),
            p99: median(all, |one| one.p99),
            cpu: median(all, |one| one.cpu),
        }
    }
}

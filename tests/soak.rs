//! Processes under load with everything going wrong now and then, and nothing of it left afterwards.
//!
//! There are two, one with TLS and one without, each before a lab of its own (`soak/side.rs`). Their clients speak
//! HTTP/1.1 and HTTP/2, leave, are slow, stall, repeat themselves (`soak/clients.rs`); their configuration is read
//! again and again, and is broken now and then; their tool server crashes.
//!
//! Runs for some seconds among the other tests, and for as long as one likes by itself:
//! `FANFOLD_SOAK=1800 cargo test --test soak -- --nocapture` (seconds). From two minutes on it also
//! holds the memory to a slope. `FANFOLD_SEED` repeats the choices of a run.

mod support;

#[path = "soak/clients.rs"]
mod clients;
#[path = "soak/connection.rs"]
mod connection;
#[path = "soak/side.rs"]
mod side;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clients::{Habit, Tally};
use futures_util::future::join_all;
use rustix::process::Signal;
use side::{Holds, Side};
use support::hostile::Attack;
use support::tls::Certificate;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long it runs among the other tests.
const SHORT: Duration = Duration::from_secs(12);
/// What takes longer than this has failed: the proxy's own limits are far below.
const LATE: Duration = Duration::from_secs(60);
/// How long a client may take nothing of its answer, and how long the whole of its request may take.
const STALL: Duration = Duration::from_secs(2);
const BODY: Duration = Duration::from_secs(3);
/// Clients of each process whose request's head, or handshake, never ends.
const HALF_OPEN: usize = 4;
/// Memory that may be left over, and that may be added in a minute of the second half, in bytes.
const LEFT_OVER: usize = 48 << 20;
const SLOPE: f64 = 1.5 * 1024.0 * 1024.0;

/// Bytes a minute, by the method of least squares.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let n = samples.len() as f64;
    let (mx, my) =
        (samples.iter().map(|s| s.0).sum::<f64>() / n, samples.iter().map(|s| s.1).sum::<f64>() / n);
    let over: f64 = samples.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let under: f64 = samples.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    60.0 * over / under.max(f64::EPSILON)
}

/// The load of both sides. It is over when all clients are done.
async fn begin(sides: &[Arc<Side>], until: Instant, seed: u64, tally: &Arc<Tally>) -> JoinSet<()> {
    let (mut load, mut seed) = (JoinSet::new(), seed);
    let mut next = || {
        seed += 1;
        seed
    };
    for side in sides {
        for habit in Habit::ALL {
            load.spawn(clients::load(next(), habit, side.clone(), until, tally.clone()));
        }
        load.spawn(clients::trouble(next(), side.clone(), until, tally.clone()));
        let half_open = Attack::HalfOpen.begin(side.door.address, HALF_OPEN, "").await;
        load.spawn(async move {
            tokio::time::sleep_until(until).await;
            drop(half_open);
        });
    }
    load
}

/// Memory over time: a sample a second.
struct Watched {
    side: Arc<Side>,
    before: Holds,
    samples: Vec<(f64, f64)>,
}

impl Watched {
    /// Waits until what was begun has ended, and looks at what is held then.
    async fn from_now_on(side: Arc<Side>) -> Self {
        side.drained().await;
        side.lab.clear();
        let before = side.holds_at_rest().await;
        Self { side, before, samples: Vec::new() }
    }

    /// Holds it to the bounds, and says what it found.
    #[expect(clippy::print_stderr, reason = "the numbers are worth reading")]
    async fn is_as_before(&self, length: Duration) {
        self.side.drained().await;
        self.side.forgets().await;
        let after = self.side.holds_no_more_than(self.before).await;
        let repeated = |result| format!("fanfold_repeated_requests_total{{result=\"{result}\"}}");
        let joined = self.side.metric(&repeated("joined")).await;
        let replayed = self.side.metric(&repeated("replayed")).await;
        let growth = slope(&self.samples[self.samples.len() / 2..]);
        eprintln!(
            "before {:?}\nafter  {after:?}\n{joined} joined, {replayed} replayed, {:.2} MiB a minute in the second half, {:.1} MiB at most",
            self.before,
            growth / 1_048_576.0,
            self.samples.iter().map(|s| s.1).fold(0.0, f64::max) / 1_048_576.0,
        );
        assert!(after.memory <= self.before.memory + LEFT_OVER, "memory");
        if length >= Duration::from_secs(120) {
            assert!(growth < SLOPE, "memory grows");
        }
    }
}

// More threads than processors: clients are to be slow only where they want to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_load_with_faults_everything_is_as_before() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = number("FANFOLD_SOAK").map_or(SHORT, Duration::from_secs);
    let seed = number("FANFOLD_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("repeat with FANFOLD_SEED={seed}");
    let sides = [Arc::new(Side::start(None).await), Arc::new(Side::start(Some(Certificate::new())).await)];
    // Everything once, so that what is made once is there.
    let tally = Arc::new(Tally::default());
    let warm = Instant::now() + length.min(Duration::from_secs(20)) / 4;
    let mut warming = begin(&sides, warm, seed, &tally).await;
    while let Some(done) = warming.join_next().await {
        done.unwrap();
    }
    let mut watched = join_all(sides.iter().map(|side| Watched::from_now_on(side.clone()))).await;

    let start = Instant::now();
    let mut load = begin(&sides, start + length, seed + 1000, &tally).await;
    while !load.is_empty() {
        let second = sleep(Duration::from_secs(1));
        tokio::pin!(second);
        loop {
            tokio::select! {
                done = load.join_next() => match done {
                    Some(done) => done.unwrap(),
                    None => break,
                },
                () = &mut second => break,
            }
        }
        for one in &mut watched {
            one.samples.push((start.elapsed().as_secs_f64(), one.side.process.resident_memory() as f64));
            // What the lab remembers is this test's memory, and it looks at all of it.
            one.side.lab.clear();
        }
    }
    eprintln!("{tally:?} in {length:?}");
    join_all(watched.iter().map(|one| one.is_as_before(length))).await;
    let had = |counter: &AtomicU64, least| counter.load(Ordering::Relaxed) > least;
    assert!(had(&tally.answers, 50) && had(&tally.left, 5) && had(&tally.reloads, 5), "hardly any load");
    assert!(had(&tally.stalled, 5) && had(&tally.slow, 0), "hardly any slow and stalled clients");
    assert!(had(&tally.replayed, 0), "hardly any repeated requests");
    drop(watched);
    for side in sides {
        let process = Arc::into_inner(side).unwrap().process;
        process.signal(Signal::TERM);
        let log = process.ended().await.log;
        let panics: String = log.lines().filter(|line| line.contains("panicked")).collect();
        assert!(panics.is_empty(), "{panics}");
    }
}

//! Streams of 20 chunks a second: how late each chunk is, what it costs, and what a thousand of them hold.
//!
//! The upstream writes into each chunk when it wrote it, so a chunk's lateness is what lies between that
//! and the client's reading it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use memchr::memmem;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::TIMES;
use crate::account::{cpu, resident};
use crate::lab::{Lab, Target};
use crate::load::{Client, Shot};
use crate::report::Part;
use crate::stats::{Times, median};

/// Between two chunks of a stream.
const GAP: Duration = Duration::from_millis(50);
/// In which all streams of a slice begin.
const RAMP: Duration = Duration::from_secs(1);
/// Slices of a measurement, alternately of each server.
const SLICES: u32 = 3;

/// What came of so many streams in one or several slices.
#[derive(Clone, Default)]
struct Seen {
    first: Times,
    later: Times,
    /// Seconds of processor time of the server, and the chunks that were read meanwhile.
    cpu: f64,
    read: u64,
    /// MiB at most.
    resident: f64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.first.join(other.first);
        self.later.join(other.later);
        self.cpu += other.cpu;
        self.read += other.read;
        self.resident = self.resident.max(other.resident);
    }

    fn result(mut self) -> Result {
        Result {
            first_p50: self.first.at(0.5),
            later_p50: self.later.at(0.5),
            later_p99: self.later.at(0.99),
            cpu: self.cpu * 1e6 / self.read.max(1) as f64,
            resident: self.resident,
        }
    }
}

/// The figures of a measurement, times in microseconds, processor time for each chunk.
#[derive(Clone)]
struct Result {
    first_p50: f64,
    later_p50: f64,
    later_p99: f64,
    cpu: f64,
    resident: f64,
}

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let targets = lab.side_by_side().await;
    let mut part = Part::new(
        "streams",
        "Streams of 20 chunks a second, beside the bare relay",
        &[
            "streams",
            "through",
            "first token p50 µs",
            "added",
            "later chunk p50 µs",
            "added",
            "p99 µs",
            "CPU µs/chunk",
            "ratio",
            "idle MiB",
            "with streams",
            "more",
        ],
    );
    part.note(
        "First token: from the request to the first text. Later chunk: from the moment the upstream writes it to the \
         client's reading it.",
    );
    for target in &targets {
        Client::connect(target.port).await.shoot(&Shot::chat("plain", 30, true)).await;
    }
    let idle: Vec<f64> = targets.iter().map(|target| resident(target.pid)).collect();
    for count in [16, 1000] {
        let mut all = vec![Vec::new(); targets.len()];
        for _ in 0..TIMES {
            let mut sums = vec![Seen::default(); targets.len()];
            for _ in 0..SLICES {
                for (target, sum) in targets.iter().zip(&mut sums) {
                    sum.add(streams(target, count, time / SLICES).await);
                }
            }
            for (sum, results) in sums.into_iter().zip(&mut all) {
                results.push(sum.result());
            }
        }
        let all: Vec<Result> = all.iter().map(|results| middle(results)).collect();
        lines(&mut part, count, &targets, &all, &idle);
    }
    part
}

fn lines(part: &mut Part, count: usize, targets: &[Target], all: &[Result], idle: &[f64]) {
    let base = &all[0];
    for ((target, result), idle) in targets.iter().zip(all).zip(idle) {
        let (first, later) = (result.first_p50 - base.first_p50, result.later_p50 - base.later_p50);
        let (ratio, more) = (result.cpu / base.cpu, result.resident - idle);
        part.row(vec![
            count.into(),
            target.name.into(),
            result.first_p50.into(),
            first.into(),
            result.later_p50.into(),
            later.into(),
            result.later_p99.into(),
            result.cpu.into(),
            ratio.into(),
            (*idle).into(),
            result.resident.into(),
            more.into(),
        ]);
        if target.name.starts_with("fanfold") {
            let figure = |what: &str| format!("{what}, {count} streams, {}", target.name);
            part.bound(figure("first token added, p50"), first, 200.0, "µs");
            part.bound(figure("later chunk added, p50"), later, 200.0, "µs");
            if count == 1000 {
                part.bound(figure("CPU per chunk, paced"), ratio, 1.3, "× relay");
                part.bound(figure("memory above idle"), more, 60.0, "MiB");
            }
        }
    }
}

fn middle(all: &[Result]) -> Result {
    Result {
        first_p50: median(all, |one| one.first_p50),
        later_p50: median(all, |one| one.later_p50),
        later_p99: median(all, |one| one.later_p99),
        cpu: median(all, |one| one.cpu),
        resident: median(all, |one| one.resident),
    }
}

/// So many streams, begun one after another; what counts is the time when all of them run.
async fn streams(target: &Target, count: usize, time: Duration) -> Seen {
    let chunks = ((RAMP + time).as_secs_f64() / GAP.as_secs_f64()).ceil() as u64 + 20;
    let shot = Shot::chat(&format!("paced-{chunks}-{}", GAP.as_millis()), 30, true);
    let read = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let counted = begin + RAMP;
    let until = counted + time;
    let mut tasks = JoinSet::new();
    for n in 0..count {
        let (shot, read, port) = (shot.clone(), read.clone(), target.port);
        tasks.spawn(async move {
            sleep(RAMP.mul_f64(0.9 * n as f64 / count as f64)).await;
            stream(port, &shot, &read, counted, until).await
        });
    }
    sleep_until(counted).await;
    let (cpu_before, read_before) = (cpu(target.pid), read.load(Ordering::Relaxed));
    sleep_until(until).await;
    let (cpu, read) = (cpu(target.pid) - cpu_before, read.load(Ordering::Relaxed) - read_before);
    let resident = resident(target.pid);
    let mut seen = Seen { cpu, read, resident, ..Seen::default() };
    for (head, tail) in tasks.join_all().await {
        seen.first.add(head);
        seen.later.join(tail);
    }
    // The servers close what the clients left.
    sleep(Duration::from_millis(300)).await;
    seen
}

/// One stream until then: how long its first text took, and how late the others were from `counted` on.
async fn stream(
    port: u16,
    shot: &Shot,
    read: &AtomicU64,
    counted: Instant,
    until: Instant,
) -> (Duration, Times) {
    let mut client = Client::connect(port).await;
    let begin = Instant::now();
    let mut body = client.open(shot).await.expect("an answer").into_body();
    let (mut first, mut later) = (None, Times::default());
    while Instant::now() < until || first.is_none() {
        let frame = body.frame().await.expect("the stream goes on").expect("a frame");
        let Some(data) = frame.data_ref() else { continue };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos();
        for stamp in stamps(data) {
            read.fetch_add(1, Ordering::Relaxed);
            if first.is_none() {
                first = Some(begin.elapsed());
            } else if Instant::now() >= counted {
                later.add_us(now.saturating_sub(stamp) as f64 / 1e3);
            }
        }
    }
    (first.expect("text"), later)
}

/// The moments that chunks say they were written at.
fn stamps(data: &[u8]) -> impl Iterator<Item = u128> + '_ {
    const BEFORE: &[u8] = b"\"content\":\"t";
    memmem::find_iter(data, BEFORE).filter_map(|at| {
        let digits = &data[at + BEFORE.len()..];
        let end = digits.iter().position(|byte| *byte == b' ')?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    })
}

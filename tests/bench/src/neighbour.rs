//! A noisy neighbour: how long a quiet team waits while another asks for far more than its share.
//!
//! The noise comes from a process of its own. It goes in turn to the fanfold that the quiet team asks and to
//! another one with the same settings, which nobody else asks: what that costs the quiet team is the
//! machine's share of it, for the noise takes processor time wherever it goes.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::TIMES;
use crate::lab::{Lab, RED, Setup, TEAMS, Target, side};
use crate::load::{Client, Shot, paced};
use crate::report::Part;
use crate::stats::Measured;

/// Requests of the noisy team a second, of which each is a turn with a call of 10 to 30 ms: calls that all took
/// equally long would end in step, and so would the places they give up.
const NOISE: usize = 1000;
/// Connections of the quiet team, each of which asks ten times a second: enough of them for a p99.
const QUIET: usize = 5;
const MODEL: &str = "turn-1-20-1";
const NOISY: std::ops::RangeInclusive<usize> = 10..=30;
/// What the noisy team wants is a multiple of this: 8 calls of 20 ms are 400 turns a second.
const SCARCE: &str = "limits: { turns_at_once: 16, calls_at_once_in_process: 8 }\n";
/// Runs before what is measured, so that queues are as full as they get, and after it.
const LEAD: Duration = Duration::from_millis(1500);

pub async fn part(time: Duration) -> Part {
    let mut part = Part::new(
        "neighbour",
        "A quiet team beside one that asks 1,000 times a second",
        &["limits", "noise", "quiet p50 ms", "ratio", "quiet p99 ms", "ratio", "noise answered/s", "shed/s"],
    );
    part.note(format!(
        "Turns with one call of 20 ms, in the noise of 10 to 30 ms. The quiet team asks {} times a second. Scarce: 16 turns and 8 calls at once in \
         the process, so 400 turns a second; wide: as by default. Noise elsewhere: at another fanfold on this machine.",
        QUIET * 10
    ));
    let time = time.max(Duration::from_secs(1)) * 2;
    for (name, limits) in [("scarce", SCARCE), ("wide", "")] {
        beside(&mut part, name, limits, time).await;
    }
    part
}

async fn beside(part: &mut Part, name: &str, limits: &str, time: Duration) {
    let mut lab = Lab::start().await;
    let more = format!("{limits}{TEAMS}");
    let setup = Setup { tools: 1, more: &more, ..Setup::default() };
    let (here, elsewhere) = (lab.fanfold("here", &setup).await, lab.fanfold("elsewhere", &setup).await);
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    let mut told = [[0.0; 2]; 3];
    quiet(&here, Duration::from_millis(300)).await;
    for _ in 0..TIMES {
        for (at, noisy) in [None, Some(&here), Some(&elsewhere)].into_iter().enumerate() {
            let (result, noise) = with_noise(&here, noisy, time).await;
            all[at].push(result);
            for (sum, rate) in told[at].iter_mut().zip(noise) {
                *sum += rate / TIMES as f64;
            }
        }
    }
    let all = all.map(|results| Measured::median(&results));
    let base = all[0];
    for ((noise, result), [answered, shed]) in ["none", "here", "elsewhere"].into_iter().zip(all).zip(told) {
        part.row(vec![
            name.into(),
            noise.into(),
            (result.p50 / 1e3).into(),
            (result.p50 / base.p50).into(),
            (result.p99 / 1e3).into(),
            (result.p99 / base.p99).into(),
            answered.into(),
            shed.into(),
        ]);
    }
    part.bound(format!("quiet team's p50, {name} limits"), all[1].p50 / base.p50, 1.25, "× without noise");
    part.bound(format!("quiet team's p99, {name} limits"), all[1].p99 / base.p99, 1.25, "× without noise");
}

async fn quiet(target: &Target, time: Duration) -> Measured {
    paced(target, &Shot::chat(MODEL, 1, false), QUIET, Duration::from_millis(100), time).await
}

/// The quiet team's times, and how many requests of the noisy one were answered and shed in a second.
async fn with_noise(target: &Target, noisy: Option<&Target>, time: Duration) -> (Measured, [f64; 2]) {
    let Some(noisy) = noisy else { return (quiet(target, time).await, [0.0; 2]) };
    let seconds = (time + LEAD * 2).as_secs_f64();
    let mut child = side(&["noise", &noisy.port.to_string(), &seconds.to_string()]);
    sleep(LEAD).await;
    let result = quiet(target, time).await;
    let mut said = String::new();
    let mut out = child.stdout.take().expect("its output");
    out.read_to_string(&mut said).await.expect("what the noise did");
    let counts: Vec<f64> = said.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let &[answered, shed] = counts.as_slice() else { panic!("the noise said {said:?}") };
    // What it left behind is cleared away.
    sleep(Duration::from_millis(300)).await;
    (result, [answered / seconds, shed / seconds])
}

/// Asks as often as the noisy team does, for so long, and says how many were answered and shed.
pub async fn noise(port: u16, time: Duration) {
    // As many clients as requests a second, so that each has a second for its answer.
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for (n, millis) in NOISY.cycle().take(NOISE).enumerate() {
        let shot = Shot::chat(&format!("turn-1-{millis}-1"), 1, false).key(RED);
        tasks.spawn(async move {
            let phase = Duration::from_secs(1).mul_f64(n as f64 / NOISE as f64);
            let mut beat = interval_at(Instant::now() + phase, Duration::from_secs(1));
            // Who is late does not ask twice to make up for it.
            beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
            sleep(phase).await;
            let mut client = Client::connect(port).await;
            let mut counts = [0u64; 2];
            loop {
                beat.tick().await;
                let left = until.saturating_duration_since(Instant::now());
                match timeout(left, client.ask(&shot)).await {
                    Ok(Ok(answer)) => counts[usize::from(!answer.status().is_success())] += 1,
                    Ok(Err(_)) => client = Client::connect(port).await,
                    Err(_) => return counts,
                }
            }
        });
    }
    let counts = tasks.join_all().await;
    let sum = |at: usize| counts.iter().map(|counts| counts[at]).sum::<u64>();
    println!("{} {}", sum(0), sum(1));
}

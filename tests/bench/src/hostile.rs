//! Clients that mean harm: what good clients wait meanwhile, and what the harm costs in memory.
//!
//! The attack comes from a process of its own. It goes in turn to the fanfold that the good clients ask and
//! to another one with the same settings, which nobody else asks: what that costs the good clients is the
//! machine's share of it, for an attack takes processor time wherever it goes.

#[path = "../../support/hostile.rs"]
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use self::support::Attack;
use crate::TIMES;
use crate::account::{cpu, open_files, resident};
use crate::lab::{Lab, Setup, Target, side};
use crate::load::{Client, Shot, paced};
use crate::report::Part;
use crate::stats::{Measured, median};

/// What is measured, and whether only once the attack does nothing but hold on.
const ATTACKS: [(Attack, bool); 7] = [
    (Attack::HalfOpen, false),
    (Attack::ReadsNothing, false),
    (Attack::ReadsNothing, true),
    (Attack::RapidReset, false),
    (Attack::Continuation, false),
    (Attack::Pings, false),
    (Attack::Settings, false),
];
/// Connections of good clients, each of which asks fifty times a second.
const GOOD: usize = 10;
const PACE: Duration = Duration::from_millis(20);
/// An attack ends by itself after so many seconds, if nobody ends it.
const LONGEST: u64 = 60;

/// What an attack did while good clients asked.
#[derive(Clone, Default)]
struct Seen {
    good: Measured,
    /// MiB at most, beyond what there was before.
    memory: f64,
    /// Connections at its beginning.
    connections: f64,
    /// Of one core, in percent.
    busy: f64,
}

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    // No keys: the attacks have none. Everything else is as by default.
    // What they make an upstream write does not come from the one that the good clients need.
    let long = Some(lab.another_upstream().await);
    let setup = Setup { tools: 10, long, ..Setup::default() };
    let (here, elsewhere) = (lab.fanfold("here", &setup).await, lab.fanfold("elsewhere", &setup).await);
    let mut part = Part::new(
        "hostile",
        "Good clients beside hostile ones",
        &[
            "attack",
            "clients",
            "on",
            "connections",
            "good p50 ms",
            "ratio",
            "good p99 ms",
            "ratio",
            "fanfold busy %",
            "memory MiB",
            "KiB/client",
        ],
    );
    part.note(format!(
        "Good: chats with ten tools offered, {} a second. Elsewhere: the same attack on another fanfold on this machine, \
         while the good clients ask this one. Clients that read nothing begin with a thousand requests for 2 MB, which is \
         load like any; what they do from then on is the attack. Memory: the most that fanfold grew. Open files \
         allowed: {}.",
        GOOD as u128 * 1000 / PACE.as_millis(),
        open_files()
    ));
    let time = time.max(Duration::from_millis(500)) * 2;
    good(&here, time / 2).await;
    for (attack, held) in ATTACKS {
        let clients = clients(attack);
        let mut all = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..TIMES {
            for (at, on) in [None, Some(&here), Some(&elsewhere)].into_iter().enumerate() {
                all[at].push(under((attack, held), clients, &here, on, time).await);
            }
        }
        let all = all.map(|seen| middle(&seen));
        lines(&mut part, (attack, held), clients, &all);
    }
    part
}

/// As many as the full attack has, if so many files may be open.
fn clients(attack: Attack) -> usize {
    let room = usize::try_from(open_files()).unwrap_or(usize::MAX).saturating_sub(500);
    if room < attack.clients() {
        eprintln!("{}: {room} clients only, more files may not be open (ulimit -Hn)", attack.name());
    }
    attack.clients().min(room)
}

fn lines(part: &mut Part, (attack, held): (Attack, bool), clients: usize, all: &[Seen; 3]) {
    let begins = attack == Attack::ReadsNothing && !held;
    let name = if begins { "reads nothing, as it begins" } else { attack.name() };
    let base = all[0].good;
    for (on, seen) in ["nobody", "this one", "elsewhere"].into_iter().zip(all) {
        let here = on == "this one";
        let only_here = |figure: f64| if here { figure.into() } else { serde_json::Value::Null };
        part.row(vec![
            name.into(),
            clients.into(),
            on.into(),
            only_here(seen.connections),
            (seen.good.p50 / 1e3).into(),
            (seen.good.p50 / base.p50).into(),
            (seen.good.p99 / 1e3).into(),
            (seen.good.p99 / base.p99).into(),
            seen.busy.into(),
            only_here(seen.memory),
            only_here(seen.memory * 1024.0 / clients as f64),
        ]);
    }
    let harmed = &all[1];
    if begins {
        return;
    }
    part.bound(format!("good p99 under {name}"), harmed.good.p99 / base.p99, 1.25, "× without");
    // What is the machine's own share is not in this one.
    let figure = format!("good p99 under {name}, beside the same on another fanfold");
    part.bound(figure, harmed.good.p99 / all[2].good.p99, 1.25, "× elsewhere");
    if attack == Attack::ReadsNothing {
        part.bound(
            format!("memory per client, {name}"),
            harmed.memory * 1024.0 / clients as f64,
            512.0,
            "KiB",
        );
    }
}

fn middle(all: &[Seen]) -> Seen {
    Seen {
        good: Measured::median(&all.iter().map(|seen| seen.good).collect::<Vec<_>>()),
        memory: median(all, |seen| seen.memory),
        connections: median(all, |seen| seen.connections),
        busy: median(all, |seen| seen.busy),
    }
}

async fn good(target: &Target, time: Duration) -> Measured {
    paced(target, &Shot::chat("plain", 30, false), GOOD, PACE, time).await
}

/// Asks as good clients do while an attack goes on there, or none.
async fn under(
    (attack, held): (Attack, bool),
    clients: usize,
    target: &Target,
    on: Option<&Target>,
    time: Duration,
) -> Seen {
    let before = resident(target.pid);
    let attackers = match on {
        Some(victim) => Some(begun(attack, clients, victim).await),
        None => None,
    };
    if let Some(victim) = on.filter(|_| held) {
        calm(victim).await;
    }
    let connections = connections(target).await;
    let spent = cpu(target.pid);
    let (mut most, mut asking) = (resident(target.pid), Box::pin(good(target, time)));
    let good = loop {
        match timeout(Duration::from_millis(20), &mut asking).await {
            Ok(good) => break good,
            Err(_) => most = most.max(resident(target.pid)),
        }
    };
    let busy = (cpu(target.pid) - spent) / time.as_secs_f64() * 100.0;
    if let Some(mut attackers) = attackers {
        attackers.kill().await.expect("it ran until now");
        gone(on.expect("a victim")).await;
    }
    Seen { good, memory: most - before, connections, busy }
}

/// The attack, once all its clients have begun.
async fn begun(attack: Attack, clients: usize, victim: &Target) -> Child {
    let arguments = [attack.name(), &victim.port.to_string(), &clients.to_string()].map(str::to_owned);
    let mut child = side(&["attack", &arguments[0], &arguments[1], &arguments[2]]);
    let out = child.stdout.take().expect("its output");
    let mut lines = BufReader::new(out).lines();
    let said = timeout(Duration::from_secs(20), lines.next_line()).await;
    said.expect("the attack begins").expect("its output");
    // Connections that a full backlog turned away come a second later.
    for _ in 0..50 {
        sleep(Duration::from_millis(100)).await;
        let lasting = matches!(attack, Attack::HalfOpen | Attack::ReadsNothing);
        if !lasting || connections(victim).await >= clients as f64 * 0.98 {
            break;
        }
    }
    child
}

/// Waits until the victim has had little to do for a while: a connection that a full backlog turned away is tried
/// again a second later.
async fn calm(victim: &Target) {
    const LOOK: Duration = Duration::from_millis(200);
    let mut calm = 0;
    for _ in 0..75 {
        let before = cpu(victim.pid);
        sleep(LOOK).await;
        calm = if cpu(victim.pid) - before < LOOK.as_secs_f64() * 0.05 { calm + 1 } else { 0 };
        if calm == 6 {
            break;
        }
    }
}

/// Waits until the attack's connections are closed, and a little for what follows from it.
async fn gone(victim: &Target) {
    for _ in 0..100 {
        if connections(victim).await <= 2.0 * GOOD as f64 {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_millis(500)).await;
}

/// How many connections it has, by its own count.
async fn connections(target: &Target) -> f64 {
    let mut client = Client::connect(target.admin).await;
    let answer = client.open(&Shot::get("/metrics")).await.expect("an answer");
    let body = answer.into_body().collect().await.expect("metrics").to_bytes();
    let text = String::from_utf8_lossy(&body);
    let line = text.lines().find_map(|line| line.strip_prefix("fanfold_connections"));
    line.and_then(|rest| rest.split_whitespace().last()?.parse().ok()).unwrap_or(0.0)
}

/// Attacks until it is ended. Says when all clients have begun.
pub async fn attack(name: &str, port: u16, clients: usize) {
    open_files();
    let attack = Attack::ALL.into_iter().find(|attack| attack.name() == name).expect("an attack");
    let body = Shot::chat("long", 30, true).text();
    let _clients = attack.begin(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), clients, &body).await;
    println!("begun");
    sleep(Duration::from_secs(LONGEST)).await;
}

//! What an open breaker's refusals take, beside the bare relay's answers.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;

use crate::TIMES;
use crate::lab::{Lab, Setup, TEAMS, Target};
use crate::load::{Client, Shot, fire, paced};
use crate::report::Part;
use crate::stats::Measured;

/// What a connection asks in a second where it does not ask as fast as it can.
const A_SECOND: u32 = 50;

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let relay = lab.relay().await;
    // It stays open for as long as this is measured.
    let setup = Setup { upstream: ", breaker: { rest: 60s }", more: TEAMS, ..Setup::default() };
    let fanfold = lab.fanfold("fanfold, shedding", &setup).await;
    let tripped = open(&fanfold).await;
    let shed = Shot::chat("fail", 30, false).expecting(StatusCode::SERVICE_UNAVAILABLE);
    let plain = Shot::chat("plain", 30, false);
    let mut part = Part::new(
        "breaker",
        "An open breaker sheds: 503 with retry-after, beside the bare relay's answers",
        &["conn.", "each a second", "from", "requests", "p50 µs", "p99 µs", "CPU µs"],
    );
    part.note(format!(
        "{tripped} requests failed before the breaker opened. As fast as they can, 32 connections wait for the processor, \
         whoever answers; the bound holds where there is one connection, or where each asks {A_SECOND} times a second."
    ));
    for (connections, pace) in [(1, None), (32, Some(Duration::from_secs(1) / A_SECOND)), (32, None)] {
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..TIMES {
            for (results, (target, shot)) in all.iter_mut().zip([(&relay, &plain), (&fanfold, &shed)]) {
                results.push(match pace {
                    Some(pace) => paced(target, shot, connections, pace, time).await,
                    None => fire(target, shot, connections, time).await,
                });
            }
        }
        let each = if pace.is_some() { A_SECOND.into() } else { "as fast as it can".into() };
        let [answered, shed] = all.map(|results| Measured::median(&results));
        for (from, result) in [(relay.name, answered), (fanfold.name, shed)] {
            part.row(vec![
                connections.into(),
                Value::clone(&each),
                from.into(),
                result.requests.into(),
                result.p50.into(),
                result.p99.into(),
                result.cpu.into(),
            ]);
        }
        if connections == 1 || pace.is_some() {
            part.bound(format!("shed by an open breaker, p50, {connections} conn."), shed.p50, 1000.0, "µs");
            part.bound(format!("shed by an open breaker, p99, {connections} conn."), shed.p99, 1000.0, "µs");
        }
    }
    part
}

/// Asks a failing upstream until the breaker opens, and says how often it was asked.
async fn open(target: &Target) -> usize {
    let mut client = Client::connect(target.port).await;
    for asked in 0..200 {
        let answer = client.ask(&Shot::chat("fail", 30, false)).await.expect("an answer");
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
            return asked;
        }
    }
    panic!("the breaker did not open");
}

//! Lets an instrumented fanfold do what it does at work, so that it writes down which of its code that is.
//!
//! `deploy/profiled` builds such a one, runs this, and builds another by what was written down. It is written when the
//! process ends by itself, so this ends it as an operator does.

use std::time::Duration;

use crate::lab::{Lab, ROOM, Setup, TEAMS};
use crate::load::{Shot, fire};

/// What is asked, and over how many connections: about what the benchmark measures.
fn work(tools: usize) -> Vec<(Shot, usize)> {
    let embeddings =
        Shot::post("/v1/embeddings", r#"{"model":"plain","input":"lorem ipsum dolor sit amet"}"#);
    let mut work = vec![(Shot::get("/v1/files"), 32), (embeddings, 32)];
    for stream in [false, true] {
        work.extend([30, 65_536].map(|size| (Shot::chat("plain", size, stream), 32)));
        let turns = ["turn-5-0-1", "turn-5-0-3", "turn-5-20-1", "slow-5-5-5"];
        let turns = turns.iter().filter(|_| tools > 0);
        work.extend(turns.map(|turn| (Shot::chat(turn, 1, stream), 16)));
    }
    work.push((Shot::chat("burst", 30, true), 32));
    work.push((Shot::chat("paced-20-10", 30, true), 256));
    work
}

pub async fn train(time: Duration) {
    for tools in [0, 10] {
        let mut lab = Lab::start().await;
        let more = format!("{ROOM}{TEAMS}");
        let target = lab.fanfold("instrumented", &Setup { tools, more: &more, ..Setup::default() }).await;
        for (shot, connections) in work(tools) {
            fire(&target, &shot, connections, time).await;
        }
        lab.ends(&target).await;
    }
}

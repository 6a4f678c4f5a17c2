//! Lets an instrumented fanfold do what it does at work, so that it writes down which of its code that is.
//!
//! `deploy/profiled` builds such a one, runs this, and builds another by what was written down. It is written when the
//! process ends by itself, so this ends it as an operator does.

use std::time::Duration;

use hyper::StatusCode;

use crate::lab::{Lab, ROOM, Setup, TEAMS, Target};
use crate::load::{Shot, fire, over_http2};

/// What is asked, and over how many connections: about what the benchmark measures.
fn work(tools: usize) -> Vec<(Shot, usize)> {
    let mut work = vec![(Shot::get("/v1/files"), 32), (embeddings(), 32)];
    for stream in [false, true] {
        work.extend([30, 65_536].map(|size| (Shot::chat("plain", size, stream), 32)));
        let turns = ["turn-5-0-1", "turn-5-0-3", "turn-5-20-1", "slow-5-5-5"];
        let turns = turns.iter().filter(|_| tools > 0);
        work.extend(turns.map(|turn| (Shot::chat(turn, 1, stream), 16)));
    }
    work.push((Shot::chat("plain", 1 << 20, false), 8));
    work.push((Shot::chat("burst", 30, true), 32));
    work.push((Shot::chat("paced-20-10", 30, true), 256));
    work
}

fn embeddings() -> Shot {
    Shot::post("/v1/embeddings", r#"{"model":"plain","input":"lorem ipsum dolor sit amet"}"#)
}

pub async fn train(time: Duration) {
    for tools in [0, 10] {
        let mut lab = Lab::start().await;
        let more = format!("{ROOM}{TEAMS}");
        let target = lab.fanfold("instrumented", &Setup { tools, more: &more, ..Setup::default() }).await;
        for (shot, connections) in work(tools) {
            fire(&target, &shot, connections, time).await;
        }
        otherwise(&target, time).await;
        lab.ends(&target).await;
    }
    encrypted(time).await;
}

/// The same in other ways: over HTTP/2, and what is refused.
async fn otherwise(target: &Target, time: Duration) {
    for shot in [Shot::chat("plain", 30, false), Shot::chat("turn-5-0-3", 1, true), Shot::get("/v1/files")] {
        over_http2(target, &shot, 16, time).await;
    }
    let unknown = Shot::chat("plain", 30, false).key("Bearer nobody").expecting(StatusCode::UNAUTHORIZED);
    let broken = Shot::post("/v1/chat/completions", "{").expecting(StatusCode::BAD_REQUEST);
    for shot in [unknown, broken] {
        fire(target, &shot, 8, time).await;
    }
    // It fails, and then nobody asks it any more.
    over_http2(target, &Shot::chat("fail", 30, false), 8, time).await;
}

/// With TLS on both sides: one of them asks another one.
async fn encrypted(time: Duration) {
    let mut lab = Lab::start().await;
    let (cert, key) = lab.certificate();
    let more = format!("{ROOM}{TEAMS}tls: {{ cert: {}, key: {} }}\n", cert.display(), key.display());
    let behind = lab.fanfold("behind", &Setup { more: &more, ..Setup::default() }).await;
    let upstream = format!(", ca: {}, api_key: sk-bench-blue", cert.display());
    let base_url = Some(format!("https://localhost:{}/v1", behind.port));
    let more = format!("{ROOM}{TEAMS}");
    let setup = Setup { tools: 10, base_url, upstream: &upstream, more: &more, long: None };
    let target = lab.fanfold("in front", &setup).await;
    for stream in [false, true] {
        fire(&target, &Shot::chat("plain", 30, stream), 32, time).await;
    }
    fire(&target, &embeddings(), 32, time).await;
    fire(&target, &Shot::chat("burst", 30, true), 16, time).await;
    fire(&target, &Shot::chat("turn-5-0-3", 1, true), 16, time).await;
    lab.ends(&target).await;
    lab.ends(&behind).await;
}

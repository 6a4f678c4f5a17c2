//! What the clients do, each in a way of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Body, Connection, Version, whole};
use super::side::{CRASH, LONGEST, LONGEST_TEXT, Side, Variant};
use super::support::client::Got;
use super::support::fold::{self, Folded};
use super::{BODY, LATE, STALL};

/// Requests one after another on a connection of HTTP/1.1, and streams at once on one of HTTP/2.
const MANY: usize = 16;
/// What a slow reader reads before it pauses, in bytes.
const BIT: usize = 32 * 1024;
/// How long a client reads nothing that is to be cut off, which takes [`STALL`].
const SILENT: Duration = STALL.saturating_mul(2);
/// The kernel says in steps of about so many bytes that there is room again. So who read less in [`STALL`], because
/// the machine is busy, may have been cut off as well.
const STEP: usize = 256 * 1024;
const REPLAY_OF: &str = "x-fanfold-replay-of";

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    /// Asks, and reads the answer to its end.
    Reads,
    /// Asks, and leaves after a while.
    Leaves,
    /// Asks much on one connection.
    Many,
    /// Reads a long answer bit by bit.
    ReadsSlowly,
    /// Reads the beginning of a long answer and no more.
    StopsReading,
    /// Sends its request in pieces.
    SendsSlowly,
    /// Sends a half of it.
    StopsSending,
    /// Leaves, and asks the same again, twice.
    Repeats,
}

impl Habit {
    pub(super) const ALL: [Self; 8] = [
        Self::Reads,
        Self::Leaves,
        Self::Many,
        Self::ReadsSlowly,
        Self::StopsReading,
        Self::SendsSlowly,
        Self::StopsSending,
        Self::Repeats,
    ];

    /// Of 32 times.
    const fn often(self) -> usize {
        match self {
            Self::Reads => 14,
            Self::Leaves => 6,
            Self::Many | Self::Repeats => 3,
            Self::ReadsSlowly | Self::SendsSlowly => 2,
            Self::StopsReading | Self::StopsSending => 1,
        }
    }

    /// How long it takes at least; nothing to speak of for most.
    fn lasts(self) -> Duration {
        match self {
            Self::StopsReading => SILENT,
            Self::StopsSending => BODY,
            Self::ReadsSlowly => Duration::from_secs(5),
            Self::Reads | Self::Leaves | Self::Many | Self::SendsSlowly | Self::Repeats => Duration::ZERO,
        }
    }

    fn some(chance: &mut fastrand::Rng) -> Self {
        let all: Vec<Self> = Self::ALL.into_iter().flat_map(|habit| vec![habit; habit.often()]).collect();
        all[chance.usize(..all.len())]
    }
}

/// How the load went.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) answers: AtomicU64,
    pub(super) left: AtomicU64,
    /// Slow readers that got everything.
    pub(super) slow: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Readers that were cut off, and senders.
    pub(super) stalled: AtomicU64,
    pub(super) replayed: AtomicU64,
    pub(super) reloads: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A request.
#[derive(Clone)]
struct Ask {
    name: &'static str,
    body: Value,
    headers: Vec<(&'static str, String)>,
}

impl Ask {
    fn of(name: &'static str, stream: bool, content: &str) -> Self {
        let mut body = json!({ "model": format!("script:{name}"), "stream": stream, "messages": [{ "role": "user", "content": content }] });
        if name == "mixed" {
            body["tools"] = json!([{ "type": "function", "function": { "name": "theirs", "parameters": { "type": "object" } } }]);
        }
        Self { name, body, headers: vec![] }
    }

    fn some(side: &Side, chance: &mut fastrand::Rng) -> Self {
        let name = side.scripts[chance.usize(..side.scripts.len())];
        let content = "x".repeat(if chance.u8(..20) == 0 { 300_000 } else { 20 });
        let mut ask = Self::of(name, chance.bool(), &content);
        if chance.u8(..16) == 0 {
            ask.body["messages"] = json!("nonsense");
        }
        if chance.u8(..3) == 0 {
            ask.headers.push(("x-fanfold-tools", "none".into()));
        } else if chance.u8(..4) == 0 {
            ask.headers.push(("idempotency-key", format!("once-{}", chance.u64(..))));
        }
        ask
    }

    /// Its bytes only go through.
    fn is_relayed(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == "x-fanfold-tools")
    }

    fn bytes(&self) -> Bytes {
        self.body.to_string().into()
    }

    fn whole_body(&self) -> Body {
        Full::new(self.bytes()).boxed_unsync()
    }

    /// Sends it whole and reads the answer to its end.
    async fn on(&self, connection: &mut Connection) -> Result<Got, String> {
        whole(connection.send(&self.headers, self.whole_body()).await).await
    }

    /// What came has to be an answer or an error of ours.
    fn judge(&self, got: &Result<Got, String>, tally: &Tally) {
        let name = self.name;
        match got {
            Ok(got) if got.status == 503 => count(&tally.refused),
            Ok(got) => {
                let folded = fold::answer(got);
                assert!(self.is_relayed() || folded.is_ok(), "{name}: {folded:?} in {got:?}");
                count(&tally.answers);
            }
            // Bytes that only go through may break off, which is how a client is told.
            Err(error) => assert!(self.is_relayed(), "{name}: {error}"),
        }
    }
}

/// One client: first by its own habit in both versions of HTTP, then by any, until the end.
pub(super) async fn load(seed: u64, habit: Habit, side: Arc<Side>, until: Instant, tally: Arc<Tally>) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let client = |chance: &mut fastrand::Rng, version| Client {
        side: side.clone(),
        tally: tally.clone(),
        chance: chance.fork(),
        version,
    };
    let (one, two) = (client(&mut chance, Version::Http1), client(&mut chance, Version::Http2));
    tokio::join!(one.play(habit), two.play(habit));
    while Instant::now() < until {
        let version = if chance.bool() { Version::Http1 } else { Version::Http2 };
        let some = Habit::some(&mut chance);
        // What would go on long after the end is not begun.
        let habit = if Instant::now() + some.lasts() > until { Habit::Reads } else { some };
        client(&mut chance, version).play(habit).await;
    }
}

/// Has the configuration read again and again, and the tool server end now and then.
pub(super) async fn trouble(seed: u64, side: Arc<Side>, until: Instant, tally: Arc<Tally>) {
    let mut chance = fastrand::Rng::with_seed(seed);
    // Each once, so that what is made once is there.
    for variant in [Variant::OtherTools, Variant::Broken, Variant::OtherServer] {
        side.reload(variant).await;
        count(&tally.reloads);
    }
    while Instant::now() < until {
        sleep(Duration::from_millis(chance.u64(300..900))).await;
        let variant = match chance.u8(..8) {
            0 => Variant::Broken,
            1 => Variant::OtherServer,
            2 | 3 => Variant::OtherTools,
            4 => {
                let mut connection = Connection::open(&side.door, Version::Http1).await;
                let ask = Ask::of(CRASH, true, "hi");
                let got = timeout(LATE, ask.on(&mut connection)).await.expect("an answer");
                ask.judge(&got, &tally);
                continue;
            }
            5.. => Variant::Usual,
        };
        side.reload(variant).await;
        count(&tally.reloads);
    }
    side.reload(Variant::Usual).await;
}

/// The least that was read in any such time; no bound if it was over sooner.
fn least_in(time: Duration, progress: &[(Instant, usize)]) -> usize {
    let Some((end, _)) = progress.last() else { return usize::MAX };
    let whole = progress.iter().enumerate().filter(|(_, (from, _))| *from + time <= *end);
    let read = whole.map(|(n, (from, before))| {
        let within = progress[n..].iter().take_while(|(at, _)| *at <= *from + time);
        within.last().map_or(0, |(_, after)| after - before)
    });
    read.min().unwrap_or(usize::MAX)
}

struct Client {
    side: Arc<Side>,
    tally: Arc<Tally>,
    chance: fastrand::Rng,
    version: Version,
}

impl Client {
    async fn play(mut self, habit: Habit) {
        let version = self.version;
        let played = async {
            match habit {
                Habit::Reads => self.reads().await,
                Habit::Leaves => self.leaves().await,
                Habit::Many => self.many().await,
                Habit::ReadsSlowly => self.reads_slowly().await,
                Habit::StopsReading => self.stops_reading().await,
                Habit::SendsSlowly => self.sends_slowly().await,
                Habit::StopsSending => self.stops_sending().await,
                Habit::Repeats => self.repeats().await,
            }
        };
        timeout(LATE, Box::pin(played))
            .await
            .unwrap_or_else(|_| panic!("{habit:?} over {version:?}: no end"));
    }

    async fn open(&self) -> Connection {
        Connection::open(&self.side.door, self.version).await
    }

    fn ask(&mut self) -> Ask {
        Ask::some(&self.side, &mut self.chance)
    }

    /// So many milliseconds at most.
    fn pause(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.chance.u64(..most))
    }

    async fn reads(&mut self) {
        let ask = self.ask();
        let got = ask.on(&mut self.open().await).await;
        ask.judge(&got, &self.tally);
    }

    /// The connection is closed, or over HTTP/2 perhaps only the stream: then it serves the next one.
    async fn leaves(&mut self) {
        let (ask, after) = (self.ask(), self.pause(400));
        let mut connection = self.open().await;
        let _left = timeout(after, ask.on(&mut connection)).await;
        count(&self.tally.left);
        if self.version == Version::Http2 && self.chance.bool() {
            let ask = self.ask();
            ask.judge(&ask.on(&mut connection).await, &self.tally);
        }
    }

    async fn many(&mut self) {
        match self.version {
            Version::Http1 => self.many_after_another().await,
            Version::Http2 => self.many_at_once().await,
        }
    }

    async fn many_after_another(&mut self) {
        let mut connection = self.open().await;
        for _ in 0..MANY / 2 {
            if !connection.is_ready().await {
                connection = self.open().await;
            }
            let ask = self.ask();
            let got = ask.on(&mut connection).await;
            ask.judge(&got, &self.tally);
            if got.is_ok_and(|got| got.header("connection") == "close") {
                connection = self.open().await;
            }
        }
    }

    /// Some are given up on the way, and one is not read at all: the others do not wait for it.
    async fn many_at_once(&mut self) {
        let mut connection = self.open().await;
        let unread = connection.send(&[], Ask::of(LONGEST, true, "hi").whole_body()).await;
        let mut all = Vec::new();
        for _ in 0..MANY {
            let ask = self.ask();
            let left = (self.chance.u8(..4) == 0).then(|| self.pause(400));
            let answer = connection.send(&ask.headers, ask.whole_body());
            let tally = self.tally.clone();
            all.push(async move {
                let got = timeout(left.unwrap_or(LATE), async { whole(answer.await).await }).await;
                match got {
                    Ok(got) => ask.judge(&got, &tally),
                    Err(_) if left.is_some() => count(&tally.left),
                    Err(_) => panic!("{}: no answer beside others", ask.name),
                }
            });
        }
        join_all(all).await;
        drop(unread);
    }

    /// Slow is not stalled: it gets everything.
    async fn reads_slowly(&mut self) {
        let ask = Ask::of(LONGEST, true, "hi");
        let pause = Duration::from_millis(20) + self.pause(40);
        let mut connection = self.open().await;
        let begun = Instant::now();
        let answer = connection.send(&ask.headers, ask.whole_body()).await;
        let answer = answer.unwrap_or_else(|error| panic!("a slow reader: {error:?}"));
        let (parts, mut body) = answer.into_parts();
        let (mut read, mut progress) = (Vec::new(), vec![(begun, 0)]);
        while let Some(frame) = body.frame().await {
            progress.push((Instant::now(), read.len()));
            let Ok(frame) = frame else {
                let least = least_in(STALL, &progress);
                assert!(least < STEP, "a slow reader over {:?} was cut off: {progress:?}", self.version);
                return count(&self.tally.stalled);
            };
            let bits = read.len() / BIT;
            read.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            if read.len() / BIT > bits {
                sleep(pause).await;
            }
        }
        let body = String::from_utf8(read).expect("UTF-8");
        let got = Got { status: parts.status, headers: parts.headers, body };
        match fold::answer(&got) {
            Ok(Folded::Reply(reply)) => assert_eq!(reply.text.len(), LONGEST_TEXT),
            Ok(Folded::Error(_)) if got.status == 503 => return count(&self.tally.refused),
            other => panic!("a slow reader: {other:?} {}", got.status),
        }
        count(&self.tally.slow);
    }

    /// It is cut off, so what it reads in the end is not all. On a busy machine it may take a while until as much
    /// is said as buffers hold, and longer until that is noticed.
    async fn stops_reading(&mut self) {
        let ask = Ask::of(LONGEST, true, "hi");
        for silent in [SILENT, SILENT * 2, SILENT * 4] {
            let mut connection = self.open().await;
            let answer = connection.send(&ask.headers, ask.whole_body()).await;
            sleep(silent).await;
            match whole(answer).await {
                Ok(got) if got.status == 503 => return count(&self.tally.refused),
                Ok(_) => {}
                Err(_) => return count(&self.tally.stalled),
            }
        }
        panic!("who reads nothing over {:?} is not cut off", self.version);
    }

    async fn sends_slowly(&mut self) {
        let ask = self.ask();
        let (bytes, pause) = (ask.bytes(), self.pause(100));
        let piece = bytes.len().div_ceil(8).max(1);
        let pieces: Vec<Bytes> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let pieces = stream::iter(pieces).then(move |piece| async move {
            sleep(pause).await;
            Ok::<_, Infallible>(Frame::data(piece))
        });
        let mut connection = self.open().await;
        let got = whole(connection.send(&ask.headers, StreamBody::new(pieces).boxed_unsync()).await).await;
        ask.judge(&got, &self.tally);
    }

    async fn stops_sending(&mut self) {
        let ask = self.ask();
        let bytes = ask.bytes();
        let half = bytes.slice(..bytes.len() / 2);
        let half = stream::iter([Ok::<_, Infallible>(Frame::data(half))]).chain(stream::pending());
        let mut connection = self.open().await;
        let got = whole(connection.send(&ask.headers, StreamBody::new(half).boxed_unsync()).await).await;
        let got = got.unwrap_or_else(|error| panic!("half a request over {:?}: {error}", self.version));
        assert!([408, 503].contains(&got.status.as_u16()), "half a request: {got:?}");
        count(&self.tally.stalled);
    }

    /// The second may join the first or come after its end; the third gets what the second got, if that is known.
    async fn repeats(&mut self) {
        let names = ["plain", "slow", "three", "writes", "cut after a write"];
        let name = names[self.chance.usize(..names.len())];
        let mut first = Ask::of(name, self.chance.bool(), &format!("hi {}", self.chance.u64(..)));
        let mut again = first.clone();
        let keyed = self.chance.bool();
        if keyed {
            let key = ("idempotency-key", format!("again-{}", self.chance.u64(..)));
            first.headers.push(key.clone());
            again.headers.push(key);
        } else {
            again.headers.push(("x-stainless-retry-count", "1".into()));
        }
        let (leaves, begins) = (self.pause(400), self.pause(500));
        let mut connection = self.open().await;
        let leaving = async {
            let _left = timeout(leaves, first.on(&mut connection)).await;
            drop(connection);
        };
        let coming = async {
            sleep(begins).await;
            again.on(&mut self.open().await).await
        };
        let ((), second) = tokio::join!(leaving, coming);
        again.judge(&second, &self.tally);
        let third = again.on(&mut self.open().await).await;
        again.judge(&third, &self.tally);
        let (Ok(second), Ok(third)) = (second, third) else { panic!("{name}: broken off") };
        if third.header(REPLAY_OF).is_empty() {
            return;
        }
        let run_of = |got: &Got| match got.header(REPLAY_OF) {
            "" => got.header("x-request-id").to_owned(),
            run => run.to_owned(),
        };
        if run_of(&second) == run_of(&third) {
            assert_eq!((second.status, &second.body), (third.status, &third.body), "{name}");
            count(&self.tally.replayed);
        } else {
            // On a busy machine the second may overtake the first, which then is a request like any other without a
            // key: it runs, too, and it is the last to have run.
            assert!(!keyed, "{name}: one key, two runs");
        }
    }
}

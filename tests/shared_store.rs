//! A real Redis keeps every promise of a store, and is missed and found again as it should be.
//!
//! Not among the tests of a plain `cargo test`: `tests/run replicas` installs redis-server.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fanfold::store::meter::{Bucket, Budget, Charge, Level, Meter, Period, Rate, Rule};
use fanfold::store::{BUCKET, Capacity, Claim, Health, Key, Space, Store, StoreError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::cmd;
use serde_json::json;
use support::gateway::soon;
use support::redis::Redis;
use support::store::roomy;
use tokio::task::JoinSet;

/// A Redis in which each store has a namespace of its own.
struct Server {
    redis: Redis,
    stores: AtomicUsize,
}

impl Server {
    async fn start() -> Self {
        Self { redis: Redis::start().await, stores: AtomicUsize::new(0) }
    }

    async fn store(&self, capacity: Capacity) -> Store {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        self.redis.store(capacity, json!({ "namespace": format!("test-{number}") })).await
    }
}

support::store::promises!(Server);

fn team() -> Arc<str> {
    "blue".into()
}

fn key(name: &str) -> Key<'_> {
    Key { space: Space::Keyed, team: "blue", name }
}

fn budget(amount: u64) -> Meter {
    Meter { name: "tokens".into(), rule: Rule::Budget(Budget { amount, period: Period::Month }) }
}

async fn keep(store: &Store, name: &str, value: &'static str) -> Result<(), StoreError> {
    store.keep(&team(), name, Bytes::from_static(value.as_bytes())).await
}

async fn find(store: &Store, name: &str) -> Vec<Bytes> {
    store.find(&team(), &[name.to_owned()]).await.expect("looked up").swap_remove(0)
}

/// Waits until the store answers.
async fn answers(store: &Store) {
    soon(async {
        while store.read(key("any")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Does something while the store is kept up, as it is in a running fanfold.
async fn kept_up<T>(store: &Store, what: impl Future<Output = T>) -> T {
    tokio::select! {
        () = store.keep_up(|_| ()) => unreachable!("it never ends"),
        done = what => done,
    }
}

#[tokio::test]
async fn replicas_of_a_namespace_share_everything_and_others_nothing() {
    let redis = Redis::start().await;
    let one = redis.store(roomy(), json!({})).await;
    let two = redis.store(roomy(), json!({})).await;
    let other = redis.store(roomy(), json!({ "namespace": "other" })).await;
    keep(&one, "a", "x").await.expect("kept");
    assert_eq!((find(&two, "a").await.len(), find(&other, "a").await.len()), (1, 0));
    let claim = async |store: &Store| store.claim(key("run"), Bytes::new(), Duration::from_secs(60)).await;
    assert!(matches!(claim(&one).await, Ok(Claim::Yours(_))));
    assert!(matches!(claim(&two).await, Ok(Claim::Taken(_))));
    assert!(matches!(claim(&other).await, Ok(Claim::Yours(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_a_hundred_is_one_quota_for_all_replicas() {
    let redis = Redis::start().await;
    let stores =
        [Arc::new(redis.store(roomy(), json!({})).await), Arc::new(redis.store(roomy(), json!({})).await)];
    let mut takes = JoinSet::new();
    for n in 0..300 {
        let store = stores[n % 2].clone();
        takes.spawn(async move {
            let hundred = Meter { name: "requests".into(), rule: budget(100).rule };
            store.take(&team(), &[Charge { meter: &hundred, amount: 1 }]).await.expect("counted").admitted()
        });
    }
    let admitted = takes.join_all().await.into_iter().filter(|admitted| *admitted).count();
    assert_eq!(admitted, 100);
}

#[tokio::test]
async fn everything_in_it_expires() {
    let redis = Redis::start().await;
    let store = redis.store(roomy(), json!({})).await;
    let minute = Duration::from_secs(60);
    for n in 0..5 {
        keep(&store, &n.to_string(), "x").await.expect("kept");
    }
    let Ok(Claim::Yours(first)) = store.claim(key("run"), Bytes::new(), minute).await else { panic!("free") };
    store.extend(key("run"), first, minute).await.expect("asked").expect("ours");
    let rate = Meter { name: "requests".into(), rule: Rule::Rate(Rate::per_minute(60, 10)) };
    let tokens = budget(100);
    let charges = [Charge { meter: &rate, amount: 1 }, Charge { meter: &tokens, amount: 1 }];
    store.take(&team(), &charges).await.expect("counted");
    store.debit(&team(), &charges).await.expect("counted");
    store.refund(&team(), &charges).await.expect("counted");
    let keys = redis.keys().await;
    assert!(keys.len() >= 10, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("fanfold:{blue}:"), "{key}");
        let left: i64 = redis.ask(cmd("PTTL").arg(&key)).await;
        assert!(left > 0, "{key} never expires");
    }
}

#[tokio::test]
async fn what_ended_is_no_longer_counted() {
    let redis = Redis::start().await;
    let mut capacity = roomy();
    capacity.records.entries = 3;
    let store = redis.store(capacity, json!({})).await;
    let claim = async |name, millis| {
        let claim = store.claim(key(name), Bytes::new(), Duration::from_millis(millis)).await;
        assert!(matches!(claim, Ok(Claim::Yours(_))), "{name}");
    };
    claim("long", 600_000).await;
    claim("short", 50).await;
    claim("short too", 50).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    claim("another", 600_000).await;
    claim("and another", 600_000).await;
    assert!(store.read(key("long")).await.expect("asked").is_some(), "only what had ended went");
    let counted: u64 = redis.ask(cmd("ZCARD").arg("fanfold:{blue}:records:order")).await;
    assert_eq!(counted, 3);
}

#[tokio::test]
async fn while_it_is_down_operations_fail_at_once_and_quotas_are_counted_here() {
    let mut redis = Redis::start().await;
    let local = redis.store(roomy(), json!({})).await;
    let deny = redis.store(roomy(), json!({ "on_error": "deny" })).await;
    let tokens = budget(10);
    let take = async |store: &Store, amount| store.take(&team(), &[Charge { meter: &tokens, amount }]).await;
    assert_eq!(take(&local, 4).await.expect("counted").standings[0].remaining, 6);
    redis.kill();
    assert!(matches!(keep(&local, "a", "x").await, Err(StoreError::Down(_))));
    let counted = take(&local, 3).await.expect("counted");
    assert!(counted.local && counted.admitted());
    assert_eq!(counted.standings[0].remaining, 7, "from nothing");
    assert!(!take(&local, 8).await.expect("counted").admitted());
    assert!(matches!(take(&deny, 1).await, Err(StoreError::Down(_))));
    redis.run().await;
    kept_up(&local, answers(&local)).await;
    let counted = take(&local, 1).await.expect("counted");
    assert_eq!((counted.local, counted.standings[0].remaining), (false, 9), "an empty server counts anew");
    keep(&local, "a", "y").await.expect("kept");
    assert_eq!(find(&local, "a").await, [Bytes::from_static(b"y")]);
}

#[tokio::test]
async fn a_silent_server_costs_one_timeout_and_then_nothing() {
    let redis = Redis::start().await;
    let store = redis.store(roomy(), json!({ "timeout": "200ms" })).await;
    keep(&store, "a", "x").await.expect("kept");
    redis.freeze();
    let slow = store.find(&team(), &["a".into()]).await;
    assert_eq!(slow, Err(StoreError::Down("no answer within 200 ms".into())));
    // Nothing is waited for any more: thousands of these would take minutes.
    let many = async {
        for _ in 0..10_000 {
            assert!(store.find(&team(), &["a".into()]).await.is_err());
        }
    };
    soon(many).await;
    redis.thaw();
    kept_up(&store, answers(&store)).await;
    assert_eq!(find(&store, "a").await.len(), 1, "what was kept is still there");
}

#[tokio::test]
async fn news_is_told_of_what_changed() {
    let mut redis = Redis::start().await;
    let store = redis.store(roomy(), json!({ "timeout": "1s" })).await;
    let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
    let story = async {
        assert_eq!(soon(news.recv()).await, Some(Health::Up));
        redis.kill();
        while store.read(key("any")).await.is_ok() {}
        let Some(Health::Down(why)) = soon(news.recv()).await else { panic!("it is down") };
        assert!(!why.is_empty());
        redis.run().await;
        while soon(news.recv()).await != Some(Health::Up) {}
    };
    tokio::select! {
        () = store.keep_up(|health| told.send(health.clone()).expect("heard")) => {}
        () = story => {}
    }
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_gets_them_again() {
    let redis = Redis::start().await;
    let store = redis.store(roomy(), json!({})).await;
    keep(&store, "a", "one").await.expect("kept");
    let _: String = redis.ask(cmd("SCRIPT").arg("FLUSH")).await;
    keep(&store, "a", "two").await.expect("kept");
    assert_eq!(find(&store, "a").await.len(), 2);
}

#[tokio::test]
async fn a_refused_write_is_an_error_and_reading_goes_on() {
    let redis = Redis::start().await;
    let store = redis.store(roomy(), json!({})).await;
    keep(&store, "a", "one").await.expect("kept");
    let set = async |name: &str, value: &str| -> String {
        redis.ask(cmd("CONFIG").arg("SET").arg(name).arg(value)).await
    };
    set("maxmemory-policy", "noeviction").await;
    set("maxmemory", "1").await;
    let Err(StoreError::Down(why)) = keep(&store, "b", "two").await else { panic!("no memory") };
    assert!(why.contains("OOM"), "{why}");
    assert_eq!(find(&store, "a").await.len(), 1, "the connection is as good as before");
    set("maxmemory", "0").await;
    keep(&store, "b", "two").await.expect("kept");
}

#[tokio::test]
async fn what_others_put_under_our_keys_is_survived() {
    let redis = Redis::start().await;
    let store = redis.store(roomy(), json!({})).await;
    keep(&store, "a", "one").await.expect("kept");
    store.claim(key("run"), Bytes::new(), Duration::from_secs(60)).await.expect("asked");
    let tokens = budget(100);
    let charge = [Charge { meter: &tokens, amount: 1 }];
    store.take(&team(), &charge).await.expect("counted");
    for name in redis.keys().await {
        for command in ["SET", "LPUSH", "SADD"] {
            let _: redis::Value = redis.ask(cmd("DEL").arg(&name)).await;
            let _: redis::Value = redis.ask(cmd(command).arg(&name).arg("999999999999999999999 x")).await;
            let _ = store.find(&team(), &["a".into()]).await;
            let _ = keep(&store, "a", "two").await;
            let _ = store.claim(key("run"), Bytes::new(), Duration::from_secs(60)).await;
            let _ = store.read(key("run")).await;
            store.take(&team(), &charge).await.expect("counted here, if not there");
        }
        let _: redis::Value = redis.ask(cmd("DEL").arg(&name)).await;
    }
    let _: String = redis.ask(&cmd("FLUSHALL")).await;
    keep(&store, "a", "three").await.expect("kept");
    assert_eq!(find(&store, "a").await, [Bytes::from_static(b"three")]);
}

/// Steps of a meter: how long after the one before, what, and how much.
type Steps = Vec<(u64, u8, u64)>;

/// The formula here, step by step: what is admitted and the level after it.
fn here(bucket: Bucket, steps: &Steps) -> Vec<(bool, u64)> {
    let mut level = Level::default();
    let mut now = 0;
    let each = steps.iter().map(|(pause, deed, amount)| {
        now += pause;
        let found = bucket.leaked(level, now);
        let admitted = bucket.admits(found, *amount);
        level = match deed {
            0 if admitted => bucket.debit(found, *amount),
            0 => found,
            1 => bucket.debit(found, *amount),
            _ => bucket.refund(found, *amount),
        };
        (admitted, level.full)
    });
    each.collect()
}

/// The same there, in one call.
const THERE: &str = "
    local leak, unit, capacity = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local full, at, now, answer = 0, 0, 0, {}
    for i = 4, #ARGV, 3 do
      local deed, amount = ARGV[i + 1], tonumber(ARGV[i + 2])
      now = now + ARGV[i]
      full, at = leaked(full, at, now, leak), now
      local yes = admits(full, amount, unit, capacity)
      if deed == '1' or deed == '0' and yes then full = debit(full, amount, unit) end
      if deed == '2' then full = refund(full, amount, unit) end
      answer[#answer + 1] = yes and 1 or 0
      answer[#answer + 1] = full
    end
    return answer";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_formula_there_is_the_formula_here() {
    let redis = Redis::start().await;
    let client = redis::Client::open(redis.url()).expect("a client");
    let script = redis::Script::new(&[BUCKET, THERE].join("\n"));
    let amounts = prop_oneof![0u64..10, 0u64..1_000_000, any::<u64>()];
    let pauses = prop_oneof![0u64..100, 0u64..100_000, 0u64..10_000_000_000];
    let rates = (amounts.clone(), 1u64..100_000_000, amounts.clone(), any::<bool>());
    let steps = proptest::collection::vec((pauses, 0u8..3, amounts), 1..60);
    let mut runner = TestRunner::default();
    let compared = tokio::task::spawn_blocking(move || {
        runner.run(&(rates, steps), |((amount, window, burst, is_rate), steps)| {
            let rule = match is_rate {
                true => Rule::Rate(Rate::new(amount, Duration::from_millis(window), burst)),
                false => Rule::Budget(Budget { amount, period: Period::Day }),
            };
            let bucket = rule.bucket();
            let mut call = script.prepare_invoke();
            call.arg(bucket.leak).arg(bucket.unit).arg(bucket.capacity);
            for (pause, deed, amount) in &steps {
                call.arg(*pause).arg(*deed).arg(*amount);
            }
            let mut connection = client.get_connection().expect("a connection");
            let there: Vec<(bool, u64)> = call.invoke(&mut connection).expect("an answer");
            prop_assert_eq!(there, here(bucket, &steps));
            Ok(())
        })
    });
    compared.await.expect("no panic").unwrap_or_else(|error| panic!("{error}"));
}

//! What every store promises, whatever it is made of. Each promise is a test for each kind of store.

#![allow(unused_macros, unused_imports, reason = "most test binaries have no store of their own")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfold::store::meter::{Budget, Charge, Denial, Meter, Period, Rate, Rule, Taken};
use fanfold::store::{Bounds, Capacity, Claim, Key, Record, Space, Store, StoreError, Version};

use tokio::task::JoinSet;

use super::gateway::soon;

/// Makes a test of every promise. `$bed::start()` prepares whatever stores need, and `store` of the bed makes a
/// fresh one with a [`Capacity`].
macro_rules! promises {
    ($bed:ident) => {
        $crate::support::store::promises! { $bed:
            a_team_finds_what_it_kept_the_newest_first_and_no_other_team_does
            many_names_are_looked_up_at_once_and_in_order
            what_is_on_the_shelf_expires
            the_shelf_has_room_for_so_many_and_the_oldest_goes
            the_shelf_has_room_for_so_many_bytes_and_the_oldest_goes
            one_name_has_room_for_64_values
            values_are_any_bytes_to_the_byte
            of_many_claims_at_once_one_wins
            a_record_is_written_only_in_the_state_it_is_known_in
            a_removed_record_can_be_claimed_and_the_former_owner_cannot_touch_it
            a_record_that_expired_is_gone_for_its_owner_too
            an_extended_record_is_young_and_unchanged
            records_of_teams_and_spaces_are_apart
            there_is_room_for_so_many_records_and_the_one_longest_not_written_goes
            there_is_room_for_so_many_bytes_of_records
            what_is_too_large_is_refused_and_leaves_what_is_there
            a_take_counts_all_charges_or_none
            a_debit_goes_below_nothing_and_a_refund_comes_back
            a_charge_of_nothing_asks_whether_anything_is_left
            a_charge_larger_than_the_quota_never_fits
            a_rate_comes_back_with_time
            a_budget_lasts_until_the_end_of_its_period
            of_many_takes_at_once_as_many_are_admitted_as_there_are
            teams_have_meters_of_their_own
        }
    };
    ($bed:ident: $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let bed = $bed::start().await;
            $crate::support::store::$name(&async |capacity| bed.store(capacity).await).await;
        })*
    };
}
pub(crate) use promises;

/// Room for more than any test keeps.
pub fn roomy() -> Capacity {
    let bounds = Bounds { entries: 1_000, bytes: 10_000_000, age: Duration::from_secs(3600) };
    Capacity { parked: bounds, records: bounds }
}

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(300);

fn team(name: &str) -> Arc<str> {
    name.into()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn keep(store: &Store, team_name: &str, name: &str, value: &str) {
    store.keep(&team(team_name), name, bytes(value)).await.expect("kept");
}

async fn find(store: &Store, team_name: &str, name: &str) -> Vec<String> {
    let found = store.find(&team(team_name), &[name.to_owned()]).await.expect("looked up");
    found[0].iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn key(name: &str) -> Key<'_> {
    Key { space: Space::Keyed, team: "blue", name }
}

async fn claim(store: &Store, name: &str, value: &str) -> Claim {
    store.claim(key(name), bytes(value), LONG).await.expect("asked")
}

async fn claimed(store: &Store, name: &str, value: &str) -> Version {
    match claim(store, name, value).await {
        Claim::Yours(version) => version,
        Claim::Taken(record) => panic!("there is {record:?}"),
    }
}

async fn read(store: &Store, key: Key<'_>) -> Option<Record> {
    store.read(key).await.expect("asked")
}

async fn value(store: &Store, name: &str) -> Option<String> {
    read(store, key(name)).await.map(|record| String::from_utf8_lossy(&record.value).into_owned())
}

pub async fn a_team_finds_what_it_kept_the_newest_first_and_no_other_team_does<F>(make: &F)
where
    F: AsyncFn(Capacity) -> Store,
{
    let store = make(roomy()).await;
    keep(&store, "blue", "a", "one").await;
    keep(&store, "blue", "a", "two").await;
    keep(&store, "blue", "b", "three").await;
    assert_eq!(find(&store, "blue", "a").await, ["two", "one"]);
    assert_eq!(find(&store, "blue", "b").await, ["three"]);
    assert!(find(&store, "blue", "c").await.is_empty());
    assert!(find(&store, "red", "a").await.is_empty());
    // Names and teams that look like another's when they are put together.
    keep(&store, "blue:a", "b", "apart").await;
    assert!(find(&store, "blue", "a:b").await.is_empty());
}

pub async fn many_names_are_looked_up_at_once_and_in_order<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    for n in 0..300 {
        keep(&store, "blue", &format!("n{n}"), &n.to_string()).await;
    }
    let names: Vec<String> = (0..400).map(|n| format!("n{n}")).collect();
    let found = store.find(&team("blue"), &names).await.expect("looked up");
    assert_eq!(found.len(), 400);
    for (n, values) in found.iter().enumerate() {
        let wanted: &[Bytes] = if n < 300 { &[bytes(&n.to_string())] } else { &[] };
        assert_eq!(values, wanted, "{n}");
    }
    assert!(store.find(&team("blue"), &[]).await.expect("looked up").is_empty());
}

pub async fn what_is_on_the_shelf_expires<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let mut capacity = roomy();
    capacity.parked.age = SHORT;
    let store = make(capacity).await;
    keep(&store, "blue", "a", "one").await;
    gone(async || find(&store, "blue", "a").await.is_empty()).await;
    keep(&store, "blue", "a", "two").await;
    assert!(!find(&store, "blue", "a").await.contains(&"one".to_owned()));
}

/// Waits until something is gone.
async fn gone(is_gone: impl AsyncFn() -> bool) {
    soon(async {
        while !is_gone().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

pub async fn the_shelf_has_room_for_so_many_and_the_oldest_goes<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let mut capacity = roomy();
    capacity.parked.entries = 3;
    let store = make(capacity).await;
    for name in ["a", "b", "c", "d"] {
        keep(&store, "blue", name, name).await;
    }
    assert!(find(&store, "blue", "a").await.is_empty());
    for name in ["b", "c", "d"] {
        assert_eq!(find(&store, "blue", name).await, [name]);
    }
}

pub async fn the_shelf_has_room_for_so_many_bytes_and_the_oldest_goes<F: AsyncFn(Capacity) -> Store>(
    make: &F,
) {
    let mut capacity = roomy();
    capacity.parked.bytes = 10_000;
    let store = make(capacity).await;
    let value = "x".repeat(4_000);
    for name in ["a", "b", "c"] {
        keep(&store, "blue", name, &value).await;
    }
    assert!(find(&store, "blue", "a").await.is_empty());
    assert_eq!((find(&store, "blue", "b").await.len(), find(&store, "blue", "c").await.len()), (1, 1));
}

pub async fn one_name_has_room_for_64_values<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    for n in 0..70 {
        keep(&store, "blue", "call_0", &n.to_string()).await;
    }
    let found = find(&store, "blue", "call_0").await;
    assert_eq!((found.len(), found[0].as_str(), found[63].as_str()), (64, "69", "6"));
}

pub async fn values_are_any_bytes_to_the_byte<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let all: Bytes = (0..=255).cycle().take(70_000).collect::<Vec<u8>>().into();
    store.keep(&team("blue"), "a\0\n\u{1f9ea}", all.clone()).await.expect("kept");
    let found = store.find(&team("blue"), &["a\0\n\u{1f9ea}".into()]).await.expect("looked up");
    assert_eq!(found[0], std::slice::from_ref(&all));
    assert!(matches!(store.claim(key("a\0\n"), all.clone(), LONG).await, Ok(Claim::Yours(_))));
    assert_eq!(read(&store, key("a\0\n")).await.expect("there").value, all);
    keep(&store, "blue", "empty", "").await;
    assert_eq!(find(&store, "blue", "empty").await, [""]);
}

pub async fn of_many_claims_at_once_one_wins<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = Arc::new(make(roomy()).await);
    let mut claims = JoinSet::new();
    for n in 0..50 {
        let store = store.clone();
        claims.spawn(async move { (n, claim(&store, "run", &n.to_string()).await) });
    }
    let mut winners = Vec::new();
    let mut seen = Vec::new();
    for claimed in claims.join_all().await {
        match claimed {
            (n, Claim::Yours(_)) => winners.push(n.to_string()),
            (_, Claim::Taken(record)) => seen.push(String::from_utf8_lossy(&record.value).into_owned()),
        }
    }
    assert_eq!((winners.len(), seen.len()), (1, 49));
    assert!(seen.iter().all(|value| *value == winners[0]));
}

pub async fn a_record_is_written_only_in_the_state_it_is_known_in<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let first = claimed(&store, "run", "begun").await;
    let second = store.replace(key("run"), first, bytes("done"), LONG).await.expect("asked").expect("ours");
    assert_eq!(store.replace(key("run"), first, bytes("stale"), LONG).await, Ok(None));
    assert_eq!(store.extend(key("run"), first, LONG).await, Ok(None));
    assert_eq!(store.remove(key("run"), first).await, Ok(false));
    let record = read(&store, key("run")).await.expect("there");
    assert_eq!((record.version, &record.value[..]), (second, &b"done"[..]));
    let Claim::Taken(seen) = claim(&store, "run", "again").await else { panic!("it was there") };
    assert_eq!((seen.version, seen.value), (second, record.value));
    assert_eq!(store.replace(key("none"), first, bytes("x"), LONG).await, Ok(None));
}

pub async fn a_removed_record_can_be_claimed_and_the_former_owner_cannot_touch_it<F>(make: &F)
where
    F: AsyncFn(Capacity) -> Store,
{
    let store = make(roomy()).await;
    let first = claimed(&store, "run", "one").await;
    assert_eq!(store.remove(key("run"), first).await, Ok(true));
    assert_eq!(store.remove(key("run"), first).await, Ok(false));
    claimed(&store, "run", "two").await;
    assert_eq!(store.replace(key("run"), first, bytes("three"), LONG).await, Ok(None));
    assert_eq!(value(&store, "run").await.as_deref(), Some("two"));
}

pub async fn a_record_that_expired_is_gone_for_its_owner_too<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let Ok(Claim::Yours(mine)) = store.claim(key("run"), bytes("one"), SHORT).await else { panic!("free") };
    gone(async || read(&store, key("run")).await.is_none()).await;
    assert_eq!(store.replace(key("run"), mine, bytes("late"), LONG).await, Ok(None));
    assert_eq!(store.extend(key("run"), mine, LONG).await, Ok(None));
    claimed(&store, "run", "two").await;
    // And none lives longer than the store lets it.
    let mut capacity = roomy();
    capacity.records.age = SHORT;
    let store = make(capacity).await;
    claimed(&store, "run", "one").await;
    gone(async || read(&store, key("run")).await.is_none()).await;
}

pub async fn an_extended_record_is_young_and_unchanged<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let first = claimed(&store, "run", "one").await;
    tokio::time::sleep(SHORT).await;
    let old = read(&store, key("run")).await.expect("there");
    assert!(old.age >= SHORT - Duration::from_millis(5), "{:?}", old.age);
    let second = store.extend(key("run"), first, LONG).await.expect("asked").expect("ours");
    let young = read(&store, key("run")).await.expect("there");
    assert!(young.age < old.age + SHORT, "{:?}", young.age);
    assert_eq!((young.version, young.value), (second, old.value));
    assert_ne!(first, second);
}

pub async fn records_of_teams_and_spaces_are_apart<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let keys = [
        Key { space: Space::Keyed, team: "blue", name: "a" },
        Key { space: Space::Alike, team: "blue", name: "a" },
        Key { space: Space::Keyed, team: "red", name: "a" },
        Key { space: Space::Keyed, team: "blue:a", name: "b" },
        Key { space: Space::Keyed, team: "blue", name: "a:b" },
    ];
    for (n, key) in keys.iter().enumerate() {
        let claim = store.claim(*key, bytes(&n.to_string()), LONG).await;
        assert!(matches!(claim, Ok(Claim::Yours(_))), "{key:?}");
    }
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(read(&store, *key).await.expect("there").value, bytes(&n.to_string()));
    }
}

pub async fn there_is_room_for_so_many_records_and_the_one_longest_not_written_goes<F>(make: &F)
where
    F: AsyncFn(Capacity) -> Store,
{
    let mut capacity = roomy();
    capacity.records.entries = 3;
    let store = make(capacity).await;
    let first = claimed(&store, "a", "a").await;
    for name in ["b", "c"] {
        claimed(&store, name, name).await;
    }
    store.extend(key("a"), first, LONG).await.expect("asked").expect("ours");
    claimed(&store, "d", "d").await;
    assert_eq!(value(&store, "b").await, None);
    for name in ["a", "c", "d"] {
        assert_eq!(value(&store, name).await.as_deref(), Some(name));
    }
}

pub async fn there_is_room_for_so_many_bytes_of_records<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let mut capacity = roomy();
    capacity.records.bytes = 10_000;
    let store = make(capacity).await;
    let large = "x".repeat(6_000);
    claimed(&store, "a", "small").await;
    let b = claimed(&store, "b", &large).await;
    // Writing a record again does not count it twice.
    store.replace(key("b"), b, bytes(&large), LONG).await.expect("asked").expect("ours");
    assert_eq!(value(&store, "a").await.as_deref(), Some("small"));
    claimed(&store, "c", &large).await;
    assert_eq!((value(&store, "a").await, value(&store, "b").await), (None, None));
    assert_eq!(value(&store, "c").await, Some(large));
}

pub async fn what_is_too_large_is_refused_and_leaves_what_is_there<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let mut capacity = roomy();
    (capacity.parked.bytes, capacity.records.bytes) = (5_000, 5_000);
    let store = make(capacity).await;
    keep(&store, "blue", "a", "one").await;
    let mine = claimed(&store, "a", "one").await;
    let huge = Bytes::from(vec![b'x'; 5_001]);
    assert_eq!(store.keep(&team("blue"), "b", huge.clone()).await, Err(StoreError::TooLarge));
    assert_eq!(store.claim(key("b"), huge.clone(), LONG).await, Err(StoreError::TooLarge));
    assert_eq!(store.replace(key("a"), mine, huge, LONG).await, Err(StoreError::TooLarge));
    assert_eq!(find(&store, "blue", "a").await, ["one"]);
    assert_eq!(value(&store, "a").await.as_deref(), Some("one"));
}

fn rate(name: &'static str, amount: u64, burst: u64) -> Meter {
    Meter { name: name.into(), rule: Rule::Rate(Rate::per_minute(amount, burst)) }
}

fn budget(name: &'static str, amount: u64) -> Meter {
    Meter { name: name.into(), rule: Rule::Budget(Budget { amount, period: Period::Month }) }
}

fn of<'a>(meter: &'a Meter, amount: u64) -> Charge<'a> {
    Charge { meter, amount }
}

async fn take(store: &Store, charges: &[Charge<'_>]) -> Taken {
    store.take(&team("blue"), charges).await.expect("counted")
}

fn remaining(taken: &Taken) -> Vec<i64> {
    taken.standings.iter().map(|standing| standing.remaining).collect()
}

pub async fn a_take_counts_all_charges_or_none<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    // One an hour: while the test runs nothing comes back.
    let hour = Rate::new(1, Duration::from_secs(3600), 10);
    let requests = Meter { name: "requests".into(), rule: Rule::Rate(hour) };
    let tokens = budget("tokens", 100);
    let first = take(&store, &[of(&requests, 1), of(&tokens, 60)]).await;
    assert!(first.admitted() && !first.local);
    assert_eq!(remaining(&first), [9, 40]);
    let second = take(&store, &[of(&requests, 1), of(&tokens, 60)]).await;
    assert!(!second.admitted());
    assert_eq!(remaining(&second), [9, 40]);
    assert_eq!(second.standings[0].denial, None);
    assert!(matches!(second.standings[1].denial, Some(Denial::For(_))));
    let third = take(&store, &[of(&requests, 1), of(&tokens, 40)]).await;
    assert_eq!((third.admitted(), remaining(&third)), (true, vec![8, 0]));
}

pub async fn a_debit_goes_below_nothing_and_a_refund_comes_back<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let tokens = budget("tokens", 100);
    let blue = team("blue");
    let debited = store.debit(&blue, &[of(&tokens, 250)]).await.expect("counted");
    assert_eq!((remaining(&debited), debited.admitted()), (vec![-150], true));
    assert!(!take(&store, &[of(&tokens, 0)]).await.admitted());
    let refunded = store.refund(&blue, &[of(&tokens, 160)]).await.expect("counted");
    assert_eq!(remaining(&refunded), [10]);
    let all = store.refund(&blue, &[of(&tokens, 1_000)]).await.expect("counted");
    assert_eq!(remaining(&all), [100], "never more than there is");
    assert!(take(&store, &[of(&tokens, 100)]).await.admitted());
}

pub async fn a_charge_of_nothing_asks_whether_anything_is_left<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let tokens = budget("tokens", 1);
    let asked = take(&store, &[of(&tokens, 0)]).await;
    assert_eq!((asked.admitted(), remaining(&asked)), (true, vec![1]));
    assert!(take(&store, &[of(&tokens, 1)]).await.admitted());
    assert!(!take(&store, &[of(&tokens, 0)]).await.admitted());
}

pub async fn a_charge_larger_than_the_quota_never_fits<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let (requests, tokens) = (rate("requests", 100, 10), budget("tokens", 5));
    let taken = take(&store, &[of(&requests, 11), of(&tokens, 6)]).await;
    let denials: Vec<_> = taken.standings.iter().map(|standing| standing.denial).collect();
    assert_eq!(denials, [Some(Denial::Ever), Some(Denial::Ever)]);
    assert_eq!(remaining(&taken), [10, 5]);
}

pub async fn a_rate_comes_back_with_time<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let second = Rate::new(10, Duration::from_secs(1), 1);
    let calls = Meter { name: "calls".into(), rule: Rule::Rate(second) };
    store.debit(&team("blue"), &[of(&calls, 4)]).await.expect("counted");
    let denied = take(&store, &[of(&calls, 1)]).await;
    let Some(Denial::For(wait)) = denied.standings[0].denial else { panic!("{denied:?}") };
    assert!(wait <= Duration::from_millis(400) && denied.standings[0].reset >= wait, "{denied:?}");
    gone(async || take(&store, &[of(&calls, 1)]).await.admitted()).await;
}

pub async fn a_budget_lasts_until_the_end_of_its_period<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let month = take(&store, &[of(&budget("tokens", 10), 10)]).await.standings[0];
    assert!(month.reset <= Duration::from_secs(31 * 86_400), "{month:?}");
    let day = Meter { name: "day".into(), rule: Rule::Budget(Budget { amount: 1, period: Period::Day }) };
    let day = take(&store, &[of(&day, 2)]).await.standings[0];
    assert!(day.reset <= Duration::from_secs(86_400) && day.reset <= month.reset, "{day:?} {month:?}");
    assert_eq!((day.limit, month.limit), (1, 10));
}

pub async fn of_many_takes_at_once_as_many_are_admitted_as_there_are<F: AsyncFn(Capacity) -> Store>(
    make: &F,
) {
    let store = Arc::new(make(roomy()).await);
    let mut takes = JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        takes.spawn(async move {
            let (calls, tokens) = (budget("calls", 37), budget("tokens", 90));
            take(&store, &[of(&calls, 1), of(&tokens, 2)]).await.admitted()
        });
    }
    let admitted = takes.join_all().await.into_iter().filter(|admitted| *admitted).count();
    assert_eq!(admitted, 37);
}

pub async fn teams_have_meters_of_their_own<F: AsyncFn(Capacity) -> Store>(make: &F) {
    let store = make(roomy()).await;
    let tokens = budget("tokens", 1);
    for name in ["blue", "red"] {
        assert!(store.take(&team(name), &[of(&tokens, 1)]).await.expect("counted").admitted(), "{name}");
    }
    assert!(!take(&store, &[of(&tokens, 1)]).await.admitted());
    // Another quota under the same name goes on from what was counted.
    assert_eq!(remaining(&take(&store, &[of(&budget("tokens", 5), 1)]).await), [3]);
}

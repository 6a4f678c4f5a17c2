//! Attempts of one request in every order that matters, at one replica and at two with one store.

use http::{HeaderMap, StatusCode};

use super::*;
use crate::store::{Bounds, Capacity};

const SETTINGS: Settings =
    Settings { age: Duration::from_secs(600), answer: 100, lease: Duration::from_secs(10), deny: false };
const PATIENCE: Duration = Duration::from_secs(300);

/// Two replicas with one store.
fn replicas() -> (Arc<Ledger>, Arc<Ledger>) {
    let bounds = Bounds { entries: 100, bytes: 100_000, age: Duration::from_secs(600) };
    let store = Arc::new(Store::memory(&Capacity { parked: bounds, records: bounds }));
    (Ledger::new(store.clone(), None, SETTINGS), Ledger::new(store, None, SETTINGS))
}

/// Two replicas with one store that can lose what it has, and that store.
fn forgetful() -> (Arc<Ledger>, Arc<Ledger>, Arc<Store>) {
    let bounds = Bounds { entries: 100, bytes: 100_000, age: Duration::from_secs(600) };
    let memory = || Store::memory(&Capacity { parked: bounds, records: bounds });
    let store = Arc::new(memory());
    let ledger = || Ledger::new(store.clone(), Some(memory()), SETTINGS);
    (ledger(), ledger(), store.clone())
}

/// The store comes back without the record of the request `a`.
async fn lose(store: &Store) {
    let key = Key { space: crate::store::Space::Alike, team: "blue", name: "a" };
    let record = store.read(key).await.unwrap().unwrap();
    assert!(store.remove(key, record.version).await.unwrap());
}

fn attempt(key: Option<&str>, body: &str, retry: bool) -> Attempt {
    Attempt {
        team: "blue".into(),
        key: key.map(str::to_owned),
        alike: body.into(),
        retry,
        request_id: format!("of {body}"),
    }
}

fn first() -> Attempt {
    attempt(None, "a", false)
}

fn again() -> Attempt {
    attempt(None, "a", true)
}

fn keyed(body: &str) -> Attempt {
    attempt(Some("k"), body, false)
}

/// Clocks of different replicas tell attempts apart by milliseconds, so tests let one pass.
fn a_moment() {
    std::thread::sleep(Duration::from_millis(3));
}

async fn find(ledger: &Arc<Ledger>, attempt: Attempt) -> Found {
    a_moment();
    ledger.find(attempt, PATIENCE).await
}

async fn begin(ledger: &Arc<Ledger>, attempt: Attempt) -> Owner {
    let found = find(ledger, attempt).await;
    let told = format!("{found:?}");
    let Found::Begin(run) = found else { panic!("{told}") };
    run
}

async fn join(ledger: &Arc<Ledger>, attempt: Attempt) -> Listener {
    let found = find(ledger, attempt).await;
    let told = format!("{found:?}");
    let Found::Join(listener) = found else { panic!("{told}") };
    listener
}

async fn replay(ledger: &Arc<Ledger>, attempt: Attempt) -> Answer {
    let found = find(ledger, attempt).await;
    let told = format!("{found:?}");
    let Found::Replay(answer, of) = found else { panic!("{told}") };
    assert_eq!(of, "of a");
    answer
}

async fn refused(ledger: &Arc<Ledger>, attempt: Attempt) -> ErrorReply {
    let found = find(ledger, attempt).await;
    let told = format!("{found:?}");
    let Found::Refuse(error) = found else { panic!("{told}") };
    error
}

fn say(run: &Run, status: u16, text: &str) {
    run.tape.begin(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
    run.tape.push(&text.to_owned().into());
    run.tape.end();
}

async fn end(run: Owner, status: u16, effects: bool) {
    say(&run, status, "answer");
    run.end(End::Told { effects }).await;
}

#[tokio::test(start_paused = true)]
async fn first_attempts_are_never_merged_and_both_may_have_effects() {
    let (here, there) = replicas();
    let (one, two, three) =
        (begin(&here, first()).await, begin(&here, first()).await, begin(&there, first()).await);
    for run in [&one, &two, &three] {
        assert_eq!(run.permit("save").await, Ok(()));
    }
    end(one, 200, true).await;
    end(two, 200, true).await;
    end(three, 200, true).await;
    // Long after a repetition, the same request once more is a new one.
    assert_eq!(replay(&here, again()).await.body, "answer");
    let run = begin(&here, first()).await;
    assert_eq!(run.permit("save").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_repetition_joins_what_runs_and_is_told_how_it_ended() {
    for status in [200, 424] {
        let (here, there) = replicas();
        let run = begin(&here, first()).await;
        let listener = join(&here, again()).await;
        assert!(!listener.late);
        run.permit("save").await.unwrap();
        let waiting = replay(&there, again());
        let ending = async {
            sleep(Duration::from_secs(60)).await;
            end(run, status, true).await;
        };
        let (answer, ()) = tokio::join!(waiting, ending);
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (status, &b"answer"[..]));
        for ledger in [&here, &there] {
            assert_eq!(replay(ledger, again()).await.status.as_u16(), status);
        }
        sleep(SETTINGS.age).await;
        drop(begin(&here, again()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn what_had_no_effect_is_not_kept_and_its_repetition_runs() {
    let (here, there) = replicas();
    end(begin(&here, first()).await, 200, false).await;
    end(begin(&there, again()).await, 200, false).await;
    let run = begin(&here, again()).await;
    run.permit("save").await.unwrap();
    // It was permitted, but refused before it did anything.
    end(run, 200, false).await;
    drop(begin(&there, again()).await);
}

#[tokio::test(start_paused = true)]
async fn a_key_has_one_run_and_one_body() {
    let (here, there) = replicas();
    let run = begin(&here, keyed("a")).await;
    drop(join(&here, keyed("a")).await);
    assert_eq!(refused(&here, keyed("b")).await.status, 422);
    assert_eq!(refused(&there, keyed("b")).await.code, "idempotency_key_reused");
    end(run, 200, false).await;
    for ledger in [&here, &there] {
        assert_eq!(replay(ledger, keyed("a")).await.body, "answer");
        assert_eq!(refused(ledger, keyed("b")).await.status, 422);
    }
    // Another team's key, and another key, are others.
    drop(begin(&here, Attempt { team: "red".into(), ..keyed("b") }).await);
    drop(begin(&here, attempt(Some("l"), "b", false)).await);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_invites_to_repeat_is_not_kept_unless_there_were_effects() {
    for (status, kept) in [(400, true), (404, true), (408, false), (409, false), (429, false), (502, false)] {
        let (here, _) = replicas();
        end(begin(&here, keyed("a")).await, status, false).await;
        match find(&here, keyed("a")).await {
            Found::Replay(answer, _) => assert!(kept && answer.status == status, "{status}"),
            Found::Begin(_) => assert!(!kept, "{status}"),
            other @ (Found::Join(_) | Found::Refuse(_)) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn when_its_replica_died_a_repetition_is_told_once_and_runs_only_if_there_was_no_effect() {
    let (here, there) = replicas();
    let run = begin(&here, first()).await;
    run.permit("save").await.unwrap();
    sleep(SETTINGS.lease * 5).await;
    let waiting = ledger_waits(&there, again());
    assert!(waiting.await, "its owner lives");
    drop(run);
    let began = Instant::now();
    let error = refused(&there, again()).await;
    assert_eq!(
        (error.status, error.code.as_str(), error.never_retry),
        (424, "turn_failed_after_tools", true)
    );
    assert!(error.message.contains("save") && began.elapsed() <= SETTINGS.lease + LOOK * 2, "{error:?}");

    let (here, there) = replicas();
    drop(begin(&here, keyed("a")).await);
    let run = begin(&there, keyed("a")).await;
    run.permit("save").await.unwrap();
}

/// Whether an attempt is still waiting after a while.
async fn ledger_waits(ledger: &Arc<Ledger>, attempt: Attempt) -> bool {
    tokio::time::timeout(SETTINGS.lease * 3, find(ledger, attempt)).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn of_an_attempt_whose_client_left_unnoticed_and_its_repetition_one_may_have_effects() {
    // The repetition came first.
    let (here, there) = replicas();
    let old = begin(&here, first()).await;
    let new = begin(&there, again()).await;
    assert_eq!(old.permit("save").await, Err(Refused::Superseded));
    assert_eq!(old.permit("save").await, Err(Refused::Superseded), "the answer stays");
    assert_eq!(new.permit("save").await, Ok(()));
    // The effect came first.
    let (here, there) = replicas();
    let old = begin(&here, first()).await;
    assert_eq!(old.permit("save").await, Ok(()));
    assert!(ledger_waits(&there, again()).await);
    // A repetition of the repetition came first.
    let (here, there) = replicas();
    let one = begin(&here, again()).await;
    drop(join(&here, again()).await);
    assert!(one.leave(), "nobody listens");
    assert!(ledger_waits(&there, again()).await, "it has not ended yet");
    one.end(End::Unheard(None)).await;
    drop(begin(&there, again()).await);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_left_is_joined_as_long_as_it_has_effects() {
    let (here, _) = replicas();
    let run = begin(&here, first()).await;
    let listener = join(&here, again()).await;
    assert!(!run.leave(), "somebody listens");
    drop(listener);
    run.deserted().await;
    run.permit("save").await.unwrap();
    assert!(run.leave());
    let late = join(&here, again()).await;
    assert!(late.late);
    let error =
        Answer { status: StatusCode::FAILED_DEPENDENCY, headers: HeaderMap::new(), body: "left".into() };
    run.tape.begin(StatusCode::OK, &HeaderMap::new());
    run.end(End::Unheard(Some(error))).await;
    assert_eq!(late.tape.whole().await.unwrap().body, "left");
    assert_eq!(replay(&here, again()).await.status, 424);
    // Without effects it is as if it had not been.
    let (here, _) = replicas();
    let run = begin(&here, first()).await;
    assert!(run.leave());
    drop(begin(&here, again()).await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_is_an_error_and_no_second_run() {
    let (here, there) = replicas();
    let run = begin(&here, first()).await;
    run.permit("save").await.unwrap();
    say(&run, 200, &"x".repeat(SETTINGS.answer + 1));
    run.end(End::Told { effects: true }).await;
    for ledger in [&here, &there] {
        let error = refused(ledger, again()).await;
        assert!(error.status == 424 && error.message.contains("too large"), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_runs_that_ended_or_broke_off() {
    let (here, _) = replicas();
    end(begin(&here, keyed("a")).await, 200, false).await;
    drop(begin(&here, first()).await);
    let listener = {
        let run = begin(&here, first()).await;
        let listener = join(&here, again()).await;
        drop(run);
        listener
    };
    assert!(here.running().is_empty());
    assert!(listener.tape.head().await.is_none(), "it broke off");
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_ran_it_knows_when_the_store_has_lost_it_and_tells_the_store_again() {
    let (here, there, store) = forgetful();
    let run = begin(&here, first()).await;
    run.permit("save").await.unwrap();
    end(run, 200, true).await;
    lose(&store).await;
    assert_eq!(replay(&here, again()).await.body, "answer");
    assert_eq!(replay(&there, again()).await.body, "answer");
    // An answer too large to be kept is known to have been one.
    let (here, _, store) = forgetful();
    let run = begin(&here, first()).await;
    run.permit("save").await.unwrap();
    say(&run, 200, &"x".repeat(SETTINGS.answer + 1));
    run.end(End::Told { effects: true }).await;
    lose(&store).await;
    assert!(refused(&here, again()).await.message.contains("save"));
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_written_anew_when_the_store_has_lost_it() {
    let (here, there, store) = forgetful();
    let run = begin(&here, first()).await;
    run.permit("save").await.unwrap();
    lose(&store).await;
    sleep(SETTINGS.lease / 2).await;
    let waiting = replay(&there, again());
    let ending = async {
        sleep(Duration::from_secs(60)).await;
        // Once more, just before its end.
        lose(&store).await;
        end(run, 200, true).await;
    };
    let (answer, ()) = tokio::join!(waiting, ending);
    assert_eq!(answer.body, "answer");
}

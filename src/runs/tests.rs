use super::*;
use crate::units::Size;

fn runs(keep: u32, bytes: usize) -> Arc<Runs> {
    let settings = Settings { keep, bytes: Size(bytes), text: Size(100), watchers: 2, content: true };
    Runs::new(&settings).unwrap()
}

/// A turn of the team `blue` that has begun. The name of its model would be markup.
pub(crate) fn begin(runs: &Arc<Runs>, id: &str) -> Watch {
    let about = About {
        id: id.into(),
        request_id: format!("of-{id}"),
        team: "blue".into(),
        model: "<b>m</b>".into(),
        route: "*".into(),
        upstream: "main".into(),
        kind: Kind::Turn,
        stream: false,
        began: 1,
        trace: None,
        tools: 0,
    };
    runs.begin(about, Progress::default())
}

fn end(watch: Watch, said: usize) {
    let content =
        Content { answer: Some(Text { text: "x".repeat(said), bytes: said }), ..Content::default() };
    watch.end(|_| {}, End { outcome: "ok", ..End::default() }, Some(content));
}

fn ids(runs: &Runs) -> Vec<String> {
    runs.list().iter().map(|run| run.about.id.clone()).collect()
}

#[test]
fn no_more_runs_are_kept_than_may_be() {
    let runs = runs(2, 1_000_000);
    for id in ["1", "2", "3"] {
        end(begin(&runs, id), 0);
    }
    let _running = begin(&runs, "4");
    assert_eq!(ids(&runs), ["4", "3", "2"]);
    assert!(runs.find("1").is_none() && runs.find("of-3").is_some() && runs.find("4").is_some());
    assert!(Runs::new(&Settings { keep: 0, ..Settings::default() }).is_none());
}

#[test]
fn no_more_bytes_are_kept_than_may_be() {
    let runs = runs(100, 100_000);
    for id in 0..10 {
        end(begin(&runs, &id.to_string()), 30_000);
    }
    assert!(ids(&runs).len() == 3 || ids(&runs).len() == 2, "{:?}", ids(&runs));
    assert!(runs.kept().bytes <= 100_000);
    end(begin(&runs, "large"), 200_000);
    let found = runs.find("large").unwrap();
    assert!(found.content.is_none(), "a run that is too large is kept without what was said");
}

#[test]
fn what_runs_hold_while_they_go_on_is_bounded_and_given_back() {
    let runs = runs(10, 250);
    let mut first = begin(&runs, "1");
    let mut second = begin(&runs, "2");
    let redact = Redact::new(&Default::default()).unwrap();
    let body = "x".repeat(300);
    assert_eq!(first.hold(body.as_bytes(), &redact).unwrap().text.len(), 100, "the beginning");
    assert!(first.hold(body.as_bytes(), &redact).is_some());
    assert!(second.hold(body.as_bytes(), &redact).is_none(), "no memory left");
    drop(first);
    assert!(second.hold(body.as_bytes(), &redact).is_some());
}

#[test]
fn a_run_that_is_dropped_is_lost_and_not_running_for_ever() {
    let runs = runs(10, 100_000);
    drop(begin(&runs, "1"));
    let run = runs.find("1").unwrap().run;
    assert_eq!(run.end.as_ref().unwrap().outcome, "lost");
    assert!(runs.kept().running.is_empty());
}

#[tokio::test]
async fn a_slow_watcher_loses_updates_and_nobody_waits_for_it() {
    let runs = runs(10, 100_000);
    let mut slow = runs.follow().unwrap();
    let watch = begin(&runs, "1");
    for _ in 0..EVENTS + 10 {
        watch.change(|_| {});
    }
    assert!(matches!(slow.next().await, Err(broadcast::error::RecvError::Lagged(11))));
    assert!(slow.next().await.unwrap().get().contains("\"id\":\"1\""));
}

#[test]
fn no_more_follow_than_may() {
    let runs = runs(10, 100_000);
    let first = runs.follow();
    let second = runs.follow();
    assert!(first.is_some() && second.is_some() && runs.follow().is_none());
    drop(first);
    assert!(runs.follow().is_some());
}

//! The log as calls see it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::audit::verify::Sound;
use crate::telemetry::metrics;

struct Bench {
    folder: tempfile::TempDir,
    telemetry: Telemetry,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), telemetry: Telemetry::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn open(&self, settings: &Settings) -> Audit {
        Audit::open(settings, None, &self.telemetry).unwrap()
    }

    fn settings(&self) -> Settings {
        Settings { file: self.path(), on_error: OnError::Deny, sync: false, arguments: false }
    }

    fn not_written(&self) -> String {
        let text = self.telemetry.render();
        text.lines().find(|line| line.starts_with(metrics::AUDIT_NOT_WRITTEN)).unwrap_or_default().to_owned()
    }
}

fn facts(key: &str) -> Facts {
    Facts {
        team: "blue".into(),
        request_id: "r".into(),
        call_id: "c".into(),
        key: key.into(),
        tool: "save".into(),
        effect: Effect::Write,
        arguments: "{}".into(),
    }
}

fn records(path: &Path) -> Vec<(String, String, String)> {
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let lines = std::fs::read_to_string(path).unwrap();
    let each = |line| {
        let value: Value = serde_json::from_str(line).unwrap();
        (text(&value, "event"), text(&value, "key"), text(&value, "outcome"))
    };
    lines.lines().map(each).collect()
}

fn sound(path: &Path, before: Option<&Sound>) -> Sound {
    verify::file(path, before).unwrap()
}

#[tokio::test]
async fn an_intent_is_in_the_file_before_it_is_told_and_an_outcome_follows() {
    for sync in [false, true] {
        let bench = Bench::new();
        let audit = bench.open(&Settings { sync, ..bench.settings() });
        let pending = audit.intent(facts("k1")).await.unwrap();
        assert_eq!(records(&bench.path())[1].1, "k1");
        pending.ended(&Outcome::ok("fine")).await;
        drop(audit.intent(facts("k2")).await.unwrap());
        audit.flush().await;
        let of =
            |event: &str, key: &str, outcome: &str| (event.to_owned(), key.to_owned(), outcome.to_owned());
        let wanted = [
            of("intent", "k1", ""),
            of("outcome", "k1", "ok"),
            of("intent", "k2", ""),
            of("outcome", "k2", "unknown"),
        ];
        assert_eq!(records(&bench.path())[1..], wanted);
        assert_eq!(sound(&bench.path(), None).records, 5);
    }
}

#[tokio::test]
async fn many_calls_at_once_make_one_chain() {
    let bench = Bench::new();
    let audit = Arc::new(bench.open(&bench.settings()));
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..500 {
        let audit = audit.clone();
        calls.spawn(async move {
            audit.intent(facts(&i.to_string())).await.unwrap().ended(&Outcome::ok("")).await
        });
    }
    calls.join_all().await;
    audit.flush().await;
    let sound = sound(&bench.path(), None);
    assert_eq!((sound.intents, sound.outcomes), (500, 500));
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_or_goes_on_until_it_can_be_again() {
    for on_error in [OnError::Deny, OnError::Continue] {
        let bench = Bench::new();
        let settings = Settings { on_error, ..bench.settings() };
        let audit = bench.open(&settings);
        // The file is moved away, and nothing can be made in its place.
        let moved = bench.folder.path().join("moved");
        std::fs::rename(bench.path(), &moved).unwrap();
        std::fs::create_dir(bench.path()).unwrap();
        let again = Audit::open(&settings, Some(&audit), &bench.telemetry).unwrap();
        match (again.intent(facts("k")).await, on_error) {
            (Err(outcome), OnError::Deny) => {
                assert!(outcome.kind == OutcomeKind::Denied && outcome.content.contains("audit log"));
            }
            (Ok(pending), OnError::Continue) => pending.ended(&Outcome::ok("")).await,
            (other, _) => panic!("{other:?}"),
        }
        again.flush().await;
        assert!(!bench.not_written().ends_with(" 0"), "{}", bench.not_written());
        assert!(bench.telemetry.render().contains("fanfold_audit_up 0"));
        std::fs::remove_dir(bench.path()).unwrap();
        again.intent(facts("later")).await.unwrap().ended(&Outcome::ok("")).await;
        again.flush().await;
        assert!(bench.telemetry.render().contains("fanfold_audit_up 1"));
        let first = sound(&moved, None);
        assert_eq!(sound(&bench.path(), Some(&first)).intents, 1);
    }
}

#[tokio::test]
async fn a_rotated_file_is_left_alone_and_the_chain_goes_on_in_the_new_one() {
    let bench = Bench::new();
    let audit = bench.open(&bench.settings());
    let pending = audit.intent(facts("k1")).await.unwrap();
    let moved = bench.folder.path().join("audit.jsonl.1");
    std::fs::rename(bench.path(), &moved).unwrap();
    let again = Audit::open(&bench.settings(), Some(&audit), &bench.telemetry).unwrap();
    // A turn of before the reload still has the old handle.
    pending.ended(&Outcome::ok("")).await;
    again.flush().await;
    let first = sound(&moved, None);
    let second = sound(&bench.path(), Some(&first));
    assert_eq!((first.intents, first.outcomes, second.outcomes, second.continues), (1, 0, 1, false));
    assert!(sound(&bench.path(), None).continues);
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_stops_the_start_unless_it_may_go_on_without() {
    let bench = Bench::new();
    let settings = Settings { file: bench.folder.path().join("no/such/folder"), ..bench.settings() };
    let error = Audit::open(&settings, None, &bench.telemetry).unwrap_err();
    assert!(error.starts_with("audit.file: ") && error.contains("no/such/folder"), "{error}");
    let settings = Settings { on_error: OnError::Continue, ..settings };
    let audit = Audit::open(&settings, None, &bench.telemetry).unwrap();
    audit.intent(facts("k")).await.unwrap().ended(&Outcome::ok("")).await;
}

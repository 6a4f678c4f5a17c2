//! Servers that misbehave: `tests/support/rogue.py`, which wants Python 3, and HTTP servers in this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Plan;
use crate::tools::http::SystemRoots;
use crate::tools::load::Mistakes;
use crate::tools::sandbox::Host;
use crate::tools::testing::{self, Server, build, response, run};
use crate::tools::{Catalog, Condition, Servers, Tool};
use crate::wire::tool::{Effect, Outcome, OutcomeKind};

mod unserved;

const UNKNOWN: &str = "outcome unknown: may have been executed";

/// Servers made of settings, and a folder for what they write down.
struct Rig {
    catalog: Catalog,
    servers: Servers,
    dir: Arc<tempfile::TempDir>,
}

/// The settings of a rogue that writes into `log`.
fn rogue(dir: &tempfile::TempDir, log: &str, modes: &[&str], more: Value) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");
    let argv: Vec<&str> = ["python3", script].into_iter().chain(modes.iter().copied()).collect();
    let mut tool = json!({ "mcp": { "command": argv, "env": { "ROGUE_LOG": dir.path().join(log) } } });
    for (key, value) in more.as_object().into_iter().flatten() {
        tool[key] = value.clone();
    }
    tool
}

impl Rig {
    async fn of(settings: impl FnOnce(&tempfile::TempDir) -> Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = build(settings(&dir)).unwrap();
        let servers = Servers::new();
        servers.adopt(&catalog);
        servers.tried(&catalog, Duration::from_secs(60)).await;
        Self { catalog, servers, dir: Arc::new(dir) }
    }

    /// One rogue named `s`.
    async fn one(more: Value) -> Self {
        Self::of(|dir| json!({ "s": rogue(dir, "s", &[], more) })).await
    }

    fn tool(&self, name: &str) -> Arc<Tool> {
        let view = self.servers.view(&self.catalog);
        let names: Vec<&str> = view.iter().map(|tool| &*tool.spec().name).collect();
        Arc::clone(view.tool(name).unwrap_or_else(|| panic!("{name} is not among {names:?}")))
    }

    async fn call(&self, name: &str) -> Outcome {
        run(&self.tool(name), json!({})).await
    }

    fn path(&self, log: &str) -> PathBuf {
        self.dir.path().join(log)
    }

    /// Waits until a server has written a line that begins like this; gives the rest of it.
    async fn logged(&self, log: &str, beginning: &str) -> String {
        loop {
            let text = std::fs::read_to_string(self.path(log)).unwrap_or_default();
            if let Some(rest) = text.lines().find_map(|line| line.strip_prefix(beginning)) {
                return rest.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn count(&self, log: &str, line: &str) -> usize {
        let text = std::fs::read_to_string(self.path(log)).unwrap_or_default();
        text.lines().filter(|written| written.starts_with(line)).count()
    }

    fn condition(&self, server: &str) -> Condition {
        let all = self.servers.standings(&self.catalog);
        all.into_iter().find(|standing| &*standing.server == server).unwrap().condition
    }

    async fn until(&self, server: &str, wanted: impl Fn(&Condition) -> bool) -> Condition {
        let mut news = self.servers.news();
        loop {
            let condition = self.condition(server);
            if wanted(&condition) {
                return condition;
            }
            news.changed().await.unwrap();
        }
    }

    async fn down(&self, server: &str) -> String {
        match self.until(server, |condition| matches!(condition, Condition::Down(_))).await {
            Condition::Down(why) => why.to_string(),
            Condition::Idle | Condition::Starting | Condition::Up { .. } => unreachable!(),
        }
    }

    async fn up(&self, server: &str) {
        self.until(server, |condition| matches!(condition, Condition::Up { .. })).await;
    }
}

fn alive(pid: &str) -> bool {
    // A zombie is no longer alive; who has to reap it is somebody else.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn gone(pid: &str) {
    while alive(pid) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn echoed(outcome: &Outcome) -> Value {
    assert_eq!(outcome.kind, OutcomeKind::Ok, "{outcome:?}");
    serde_json::from_str(&outcome.content).unwrap()
}

#[tokio::test]
async fn a_call_reaches_the_server_with_its_arguments_its_identity_and_its_trace() {
    for (modes, revision) in [(&[][..], "2025-06-18"), (&["modern"], "2026-07-28")] {
        let rig = Rig::of(|dir| json!({ "s": rogue(dir, "s", modes, json!({})) })).await;
        assert_eq!(rig.condition("s"), Condition::Up { tools: 15, revision: revision.into() });
        let tool = rig.tool("s__echo");
        let got = echoed(&run(&tool, json!({ "z": 7, "a": [{ "y": 1, "b": "ž" }] })).await);
        assert_eq!(got["arguments"].to_string(), r#"{"z":7,"a":[{"y":1,"b":"ž"}]}"#);
        assert_eq!(got["meta"]["fanfold/idempotency-key"], "key-1");
        assert!(got["meta"]["traceparent"].as_str().unwrap().starts_with("00-0af7651916cd43dd"));
        assert_eq!(got["meta"]["tracestate"], "vendor=1");
        assert_eq!(rig.count("s", "start"), 1, "no second start was needed");
        rig.servers.stop().await;
    }
}

#[tokio::test]
async fn tools_are_offered_as_the_server_describes_and_the_settings_allow() {
    let rig = Rig::of(|dir| {
        json!({
            "s": rogue(dir, "s", &[], json!({ "only": ["echo", "a.*", "crash"], "effect": "read" })),
            "t": rogue(dir, "t", &[], json!({ "except": ["*o*", "a*", "c*", "g*", "l*", "st*"], "prefix": "", "trust_annotations": true })),
            "u": rogue(dir, "u", &[], json!({ "only": ["echo"], "prefix": "", "trust_annotations": true, "timeout": "3s" })),
        })
    })
    .await;
    let view = rig.servers.view(&rig.catalog);
    let offered: Vec<(&str, Effect)> =
        view.iter().map(|tool| (&*tool.spec().name, tool.spec().effect)).collect();
    let (dotted, rest) = (offered[2], [&offered[..2], &offered[3..]].concat());
    assert!(dotted.0.starts_with("s__a_b_") && dotted.1 == Effect::Read, "{offered:?}");
    let wanted = [
        ("echo", Effect::Read),
        ("mute", Effect::Write),
        ("s__crash", Effect::Write),
        ("s__echo", Effect::Read),
    ];
    assert_eq!(rest, wanted);
    assert_eq!(run(view.tool(dotted.0).unwrap(), json!({})).await, Outcome::ok("did a.b"));
    let echo = view.tool("echo").unwrap();
    assert_eq!(echo.server(), Some(("u", "echo")));
    assert_eq!(echo.spec().timeout, Duration::from_secs(3));
    // The number is longer than any number type.
    assert_eq!(
        &*echo.spec().definition,
        r#"{"type":"function","function":{"name":"echo","description":"does echo","parameters":{"type":"object","required":[],"properties":{"z":{"type":"integer","maximum":123456789012345678901234567890},"a":{}}}}}"#
    );
    let outcome = run(echo, json!({ "z": "x" })).await;
    assert_eq!(outcome.kind, OutcomeKind::InvalidArguments, "{outcome:?}");
    assert_eq!(rig.count("u", "call"), 0);
}

#[tokio::test]
async fn a_name_that_two_owners_have_is_refused_to_the_second_and_both_are_named() {
    let rig = Rig::of(|dir| {
        json!({
            "echo": { "command": { "argv": ["/bin/echo", "mine"] } },
            "s": rogue(dir, "s", &[], json!({ "only": ["echo", "no"], "prefix": "" })),
            "t": rogue(dir, "t", &[], json!({ "only": ["no"], "prefix": "" })),
        })
    })
    .await;
    let view = rig.servers.view(&rig.catalog);
    assert_eq!(view.iter().map(|tool| tool.kind_name()).collect::<Vec<_>>(), ["command", "mcp"]);
    let clashes: Vec<String> = view.not_offered().iter().map(ToString::to_string).collect();
    let clashes = clashes.join("\n");
    assert!(
        clashes.contains("the tool `echo` of the server `s` is not offered: the name `echo` belongs to the tool of the configuration"),
        "{clashes}"
    );
    assert!(
        clashes.contains(
            "the tool `no` of the server `t` is not offered: the name `no` belongs to `no` of the server `s`"
        ),
        "{clashes}"
    );
}

#[tokio::test]
async fn a_call_that_is_stopped_or_late_is_cancelled_and_its_late_answer_is_dropped() {
    let rig = Rig::one(json!({})).await;
    let (tool, stop) = (rig.tool("s__late"), CancellationToken::new());
    let call = testing::call(&json!({}));
    let (outcome, ()) = tokio::join!(tool.run(&call, &stop), async {
        rig.logged("s", "call late").await;
        stop.cancel();
    });
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Stopped, &format!("stopped; {UNKNOWN}")));
    rig.logged("s", "cancelled").await;
    let short = || super::Call {
        deadline: tokio::time::Instant::now() + Duration::from_millis(300),
        ..testing::call(&json!({}))
    };
    let outcome = rig.tool("s__slow").run(&short(), &stop.child_token()).await;
    assert_eq!(outcome.kind, OutcomeKind::Stopped, "it was stopped before it began");
    let outcome = rig.tool("s__slow").run(&short(), &CancellationToken::new()).await;
    assert_eq!(outcome.kind, OutcomeKind::Timeout);
    assert!(outcome.content.starts_with("error: timed out after ") && outcome.content.ends_with(UNKNOWN));
    while rig.count("s", "cancelled") < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A future that is dropped cancels as well.
    let tool = rig.tool("s__slow");
    let call = testing::call(&json!({}));
    let never = CancellationToken::new();
    tokio::select! {
        outcome = tool.run(&call, &never) => panic!("{outcome:?}"),
        () = async { while rig.count("s", "call slow") < 2 { tokio::time::sleep(Duration::from_millis(10)).await; } } => {}
    }
    while rig.count("s", "cancelled") < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(rig.call("s__echo").await.kind, OutcomeKind::Ok);
    assert_eq!(rig.count("s", "start"), 1);
}

#[tokio::test]
async fn news_of_progress_give_a_call_more_time_but_no_more_than_the_most() {
    let rig = Rig::one(json!({ "effect": "read", "timeout": "1200ms", "max_timeout": "4s" })).await;
    let tool = rig.tool("s__steps");
    assert_eq!(tool.spec().max_timeout, Duration::from_secs(4));
    let heard = Arc::new(tokio::sync::Notify::new());
    let call = |steps: u32| super::Call {
        deadline: tokio::time::Instant::now() + tool.spec().timeout,
        progress: crate::tools::Progress::new(tool.spec().patience(None), Arc::clone(&heard)),
        ..testing::call(&json!({ "z": steps }))
    };
    let never = CancellationToken::new();
    // Two seconds, with news every quarter of one.
    assert_eq!(tool.run(&call(8), &never).await, Outcome::ok("took its time"));
    heard.notified().await;
    let outcome = tool.run(&call(40), &never).await;
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Timeout, "timed out after 4s"));
    // Silence is no progress.
    let outcome = rig.tool("s__slow").run(&call(1), &never).await;
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Timeout, "timed out after 1.2s"));
}

#[tokio::test]
async fn a_crash_costs_its_own_calls_only_and_the_server_comes_back() {
    let rig = Rig::of(|dir| {
        json!({ "s": rogue(dir, "s", &[], json!({})), "t": rogue(dir, "t", &[], json!({ "effect": "read" })) })
    })
    .await;
    let (slow, echo, late) = (rig.tool("s__slow"), rig.tool("s__echo"), rig.tool("t__late"));
    let pid = echoed(&run(&echo, json!({})).await)["pid"].to_string();
    let (call, stop) = (testing::call(&json!({})), CancellationToken::new());
    let both = async {
        let crash = async {
            rig.logged("s", "call slow").await;
            rig.logged("t", "call late").await;
            rig.call("s__crash").await
        };
        tokio::join!(run(&slow, json!({})), crash)
    };
    let (undisturbed, (one, two)) = tokio::join!(late.run(&call, &stop), async {
        let both = both.await;
        stop.cancel();
        both
    });
    for outcome in [one, two] {
        assert_eq!(outcome.kind, OutcomeKind::Error);
        assert_eq!(outcome.content, format!("error: the server went away before it answered; {UNKNOWN}"));
    }
    assert_eq!(undisturbed.kind, OutcomeKind::Stopped, "it ran until the test stopped it");
    rig.until("s", |condition| matches!(condition, Condition::Down(why) if why.contains("exit status: 7")))
        .await;
    assert!(rig.servers.view(&rig.catalog).tool("s__echo").is_none(), "what is down is not offered");
    let outcome = run(&echo, json!({})).await;
    assert!(
        outcome.content.contains("is not available") && !outcome.content.contains(UNKNOWN),
        "{outcome:?}"
    );
    rig.up("s").await;
    // The tool of an earlier catalog works again, too.
    assert_ne!(echoed(&run(&echo, json!({})).await)["pid"].to_string(), pid);
    assert_eq!((rig.count("s", "call slow"), rig.count("s", "call crash")), (1, 1), "nothing was sent again");
}

#[tokio::test]
async fn garbage_wrong_ids_and_a_message_without_measure_cost_no_other_call() {
    let rig = Rig::one(json!({ "effect": "read" })).await;
    assert_eq!(rig.call("s__garbage").await, Outcome::ok("fine"));
    let wrong = rig.tool("s__wrong");
    let (call, stop) = (testing::call(&json!({})), CancellationToken::new());
    let (outcome, long) = tokio::join!(wrong.run(&call, &stop), async {
        rig.logged("s", "read wrong").await;
        let long = rig.call("s__long").await;
        stop.cancel();
        long
    });
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Stopped, "stopped"));
    assert_eq!(long, Outcome::failed(OutcomeKind::Error, "the server's answer is larger than 8 MiB"));
    let no = rig.call("s__no").await;
    assert_eq!(no.content, "error: the server refused: no such thing (code -32602)");
    assert_eq!(rig.count("s", "start"), 1);
}

#[tokio::test]
async fn an_answer_without_measure_to_a_call_that_writes_leaves_its_outcome_open() {
    let outcome = Rig::one(json!({})).await.call("s__long").await;
    let told = format!("the server's answer is larger than 8 MiB; {UNKNOWN}");
    assert_eq!(outcome, Outcome::failed(OutcomeKind::Error, &told));
}

#[tokio::test]
async fn an_answer_to_somebody_elses_id_reaches_nobody() {
    let rig = Rig::of(|dir| {
        let read = || json!({ "effect": "read" });
        json!({ "s": rogue(dir, "s", &[], read()), "t": rogue(dir, "t", &[], read()) })
    })
    .await;
    // Both connections count their calls alike, so the ids of one are pending on the other.
    let (slow, wrong) = (rig.tool("t__slow"), rig.tool("s__wrong"));
    let (call, stop) = (testing::call(&json!({})), CancellationToken::new());
    let (mine, lost, later) = tokio::join!(slow.run(&call, &stop), wrong.run(&call, &stop), async {
        rig.logged("t", "call slow").await;
        rig.logged("s", "read wrong").await;
        // What was said of ids to come is not taken for the answers of calls that have them now.
        let mut later = Vec::new();
        for n in 0..5 {
            later.push(echoed(&run(&rig.tool("s__echo"), json!({ "a": n })).await)["arguments"]["a"].clone());
        }
        stop.cancel();
        later
    });
    for outcome in [mine, lost] {
        assert_eq!(outcome, Outcome::failed(OutcomeKind::Stopped, "stopped"));
    }
    assert_eq!(later, [0, 1, 2, 3, 4]);
    assert_eq!((rig.count("s", "start"), rig.count("t", "start")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_tried_again_after_one_to_sixty_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("server");
    std::fs::copy("/bin/true", &program).unwrap();
    let catalog = build(json!({ "s": { "mcp": { "command": [program] } } })).unwrap();
    // Without its program a start fails in no time.
    std::fs::remove_file(&program).unwrap();
    let servers = Servers::new();
    let mut news = servers.news();
    servers.adopt(&catalog);
    let mut moments = Vec::new();
    while moments.len() < 9 {
        news.changed().await.unwrap();
        moments.push(tokio::time::Instant::now());
    }
    let pauses = moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64());
    for (pause, wanted) in pauses.zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]) {
        assert!((wanted..wanted * 1.1 + 0.01).contains(&pause), "{pause} s, not {wanted}");
    }
}

#[tokio::test]
async fn a_flood_ends_the_server_and_its_calls_are_told() {
    let rig = Rig::one(json!({})).await;
    let outcome = rig.call("s__flood").await;
    assert_eq!(outcome.content, format!("error: the server went away before it answered; {UNKNOWN}"));
    let pid = rig.logged("s", "start").await;
    gone(&pid).await;
    rig.up("s").await;
}

#[tokio::test]
async fn a_server_that_never_says_hello_is_down_and_leaves_nothing() {
    let rig = Rig::of(|dir| {
        let mut hangs = rogue(dir, "s", &["hang"], json!({}));
        hangs["mcp"]["start_timeout"] = "700ms".into();
        json!({ "s": hangs })
    })
    .await;
    assert_eq!(rig.down("s").await, "it did not start within 700ms");
    assert_eq!(rig.servers.view(&rig.catalog).iter().count(), 0);
    rig.servers.stop().await;
    if let Some(pid) =
        std::fs::read_to_string(rig.path("s")).ok().and_then(|log| Some(log.lines().next()?.to_owned()))
    {
        gone(pid.trim_start_matches("start ")).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_in_a_call_is_asked_and_started_again() {
    let rig = Rig::of(|dir| {
        let mut settings = rogue(dir, "s", &[], json!({}));
        settings["mcp"]["start_timeout"] = "4s".into();
        json!({ "s": settings })
    })
    .await;
    let pid = rig.logged("s", "start").await;
    let call = super::Call {
        deadline: tokio::time::Instant::now() + Duration::from_millis(300),
        ..testing::call(&json!({}))
    };
    let outcome = rig.tool("s__mute").run(&call, &CancellationToken::new()).await;
    assert_eq!(outcome.kind, OutcomeKind::Timeout);
    assert!(rig.down("s").await.contains("did not list its tools"));
    gone(&pid).await;
    rig.up("s").await;
}

#[tokio::test]
async fn changed_tools_are_offered_and_a_tool_of_before_still_runs() {
    let rig = Rig::one(json!({})).await;
    let (before, mut news) = (rig.tool("s__echo"), rig.servers.news());
    assert_eq!(rig.call("s__change").await, Outcome::ok("changed"));
    news.changed().await.unwrap();
    let view = rig.servers.view(&rig.catalog);
    assert_eq!(view.iter().map(|tool| &*tool.spec().name).collect::<Vec<_>>(), ["s__echo", "s__new"]);
    assert_eq!(run(&before, json!({})).await.kind, OutcomeKind::Ok);
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_pipe_open_hides_no_exit_and_does_not_survive() {
    let rig = Rig::one(json!({})).await;
    let outcome = rig.call("s__leave").await;
    assert!(outcome.content.ends_with(UNKNOWN), "{outcome:?}");
    let grandchild = rig.logged("s", "grandchild").await;
    gone(&grandchild).await;
    rig.up("s").await;
}

#[tokio::test]
async fn what_a_server_asks_of_us_is_not_supported() {
    let rig = Rig::one(json!({})).await;
    assert_eq!(rig.call("s__ask").await, Outcome::ok("[-32601, -32601, -32601]"));
}

#[tokio::test]
async fn a_server_outlives_a_reload_that_does_not_change_it_and_ends_when_nobody_holds_it() {
    let rig = Rig::one(json!({})).await;
    let first = rig.logged("s", "start").await;
    let settings = |more: Value| build(json!({ "s": rogue(&rig.dir, "s", &[], more) })).unwrap();
    let renamed = settings(json!({ "prefix": "x_", "effect": "read" }));
    rig.servers.adopt(&renamed);
    let view = rig.servers.view(&renamed);
    let echo = Arc::clone(view.tool("x_echo").unwrap());
    assert_eq!(echoed(&run(&echo, json!({})).await)["pid"].to_string(), first);
    // Another program is another server; the one before stays as long as a turn may use it.
    let mut other = rogue(&rig.dir, "other", &["modern"], json!({}));
    other["mcp"]["env"]["X"] = "y".into();
    rig.servers.adopt(&build(json!({ "s": other })).unwrap());
    assert_eq!(echoed(&run(&echo, json!({})).await)["pid"].to_string(), first);
    drop((echo, view));
    gone(&first).await;
    let second = rig.logged("other", "start").await;
    rig.up("s").await;
    rig.servers.stop().await;
    assert!(!alive(&second), "stopping waits until nothing is left");
    assert_eq!(rig.count("other", "end of input"), 1, "it could leave by itself");
}

#[test]
fn all_mistakes_of_a_server_are_told_at_once() {
    let errors = build(json!({
        "a": { "mcp": { "command": ["no-such-program-here"], "headers": { "x": "y" } }, "description": "d", "prefix": "a b" },
        "b": { "mcp": { "url": "http://10.0.0.1:99999/" } },
        "c": { "mcp": { "url": "https://h.example/mcp", "command": ["sh"] }, "http": { "url": "https://h.example/" } },
        "d": { "mcp": {} },
        "e": { "command": { "argv": ["/bin/echo"] }, "prefix": "", "required": true },
        "f": { "mcp": { "url": "https://h.example/mcp", "headers": { "mcp-session-id": "x", "authorization": "a\nb" }, "allow_cidrs": ["x"] } },
        "g": { "mcp": { "command": ["sh"], "env": { "T": { "env": "FANFOLD_TEST_NO_SUCH_VARIABLE" } }, "dir": "x" } },
        "h": { "mcp": { "url": "https://h.example/mcp", "sandbox": "bwrap", "may": { "network": true } } },
        "i": { "mcp": { "command": ["sh"], "may": { "network": true } } },
    }))
    .unwrap_err();
    let told: Vec<(&str, String)> =
        errors.iter().map(|error| (error.tool.as_str(), error.path.join("."))).collect();
    assert_eq!(
        told,
        [
            ("a", "description"),
            ("a", "prefix"),
            ("a", "mcp.headers"),
            ("a", "mcp.command.0"),
            ("b", "mcp.url"),
            ("c", "mcp"),
            ("c", "mcp.url"),
            ("d", "mcp"),
            ("e", "prefix"),
            ("e", "required"),
            ("f", "mcp.allow_cidrs.0"),
            ("f", "mcp.headers.authorization"),
            ("f", "mcp.headers.mcp-session-id"),
            ("g", "mcp.dir"),
            ("g", "mcp.env.T"),
            ("h", "mcp.sandbox"),
            ("h", "mcp.may"),
            ("i", "mcp.may"),
        ]
        .map(|(tool, path)| (tool, path.to_owned()))
    );
}

#[test]
fn a_fence_this_host_cannot_put_up_is_a_mistake_of_the_server_with_the_reason() {
    for sandbox in ["landlock", "bwrap"] {
        let settings =
            serde_json::from_value(json!({ "command": ["sh"], "sandbox": sandbox, "start_timeout": "1s" }));
        let (host, mut mistakes) = (Host::without("no such kernel"), Mistakes::of("s"));
        let roots = SystemRoots::default();
        let plan = Plan::load("s", &settings.unwrap(), &roots, &host, &mut mistakes);
        assert!(plan.is_none(), "it is never started without its fence");
        let told = mistakes.into_inner();
        assert_eq!(told[0].path, ["mcp", "sandbox"]);
        assert_eq!(told[0].message, "this host cannot do it: no such kernel");
    }
}

/// An HTTP server of the older revision, which answers a call as told.
async fn over_http(
    call: impl Fn(&Value) -> hyper::Response<http_body_util::Full<bytes::Bytes>> + Send + Sync + 'static,
) -> Server {
    Server::start(move |_, seen| {
        let message: Value = serde_json::from_str(&seen.body).unwrap_or_default();
        let result = |result: Value| {
            let text = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }).to_string();
            let mut response = response(200, &text);
            response.headers_mut().insert("content-type", "application/json".parse().unwrap());
            response
        };
        match message["method"].as_str() {
            Some("server/discover") => response(400, "what?"),
            Some("initialize") => result(json!({
                "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                "serverInfo": { "name": "h", "version": "1" },
            })),
            Some("tools/list") => result(json!({ "tools": [
                { "name": "t", "inputSchema": { "type": "object" } },
            ] })),
            Some("tools/call") => call(&message),
            Some(_) => response(202, ""),
            None => response(405, ""),
        }
    })
    .await
}

#[tokio::test]
async fn over_http_an_answer_may_be_json_or_events_and_the_headers_go_along() {
    let server = over_http(|message| {
        let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "content": [{ "type": "text", "text": "hi" }] } });
        let mut response = response(200, &format!(": comment\n\nid: 1\ndata: {answer}\n\n"));
        response.headers_mut().insert("content-type", "text/event-stream; charset=utf-8".parse().unwrap());
        response
    })
    .await;
    let settings =
        json!({ "mcp": { "url": server.url("/mcp?a=b"), "headers": { "authorization": "Bearer secret" } } });
    let rig = Rig::of(|_| json!({ "s": settings })).await;
    assert_eq!(rig.condition("s"), Condition::Up { tools: 1, revision: "2025-11-25".into() });
    assert_eq!(rig.call("s__t").await, Outcome::ok("hi"));
    let seen = server.seen();
    assert!(
        seen.iter().all(|seen| seen.headers["authorization"] == "Bearer secret" && seen.target == "/mcp?a=b")
    );
    assert!(
        seen.iter().any(|seen| seen.headers.get("mcp-protocol-version").is_some_and(|v| v == "2025-11-25"))
    );
    rig.servers.stop().await;
}

/// A server whose n-th call, from 0, is not answered: it is read and the connection closed. The others are, with
/// JSON or an event.
async fn hanging_up(at: usize, kind: &'static str) -> Server {
    let calls = AtomicUsize::new(0);
    over_http(move |message| {
        if calls.fetch_add(1, Ordering::SeqCst) == at {
            return testing::hang_up();
        }
        let result = json!({ "content": [{ "type": "text", "text": "hi" }] });
        let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
        let text =
            if kind == "application/json" { answer.to_string() } else { format!("data: {answer}\n\n") };
        let mut response = response(200, &text);
        response.headers_mut().insert("content-type", kind.parse().unwrap());
        response
    })
    .await
}

/// Calls as a server saw them: whether their connection was to be closed.
fn closing(server: &Server) -> Vec<bool> {
    let calls = server.seen().into_iter().filter(|seen| seen.body.contains("tools/call"));
    calls.map(|seen| seen.headers.contains_key("connection")).collect()
}

#[tokio::test]
async fn over_http_calls_that_read_share_a_connection_and_those_that_write_have_one_each() {
    const JSON: &str = "application/json";
    for (effect, kind, kept) in [
        ("read", JSON, true),
        ("read", "text/event-stream", true),
        ("idempotent", JSON, true),
        ("write", JSON, false),
    ] {
        let server = hanging_up(usize::MAX, kind).await;
        let settings = json!({ "effect": effect, "mcp": { "url": server.url("/mcp") } });
        let rig = Rig::of(|_| json!({ "s": settings })).await;
        let before = server.connections.load(Ordering::SeqCst);
        for _ in 0..5 {
            assert_eq!(rig.call("s__t").await, Outcome::ok("hi"));
        }
        let made = server.connections.load(Ordering::SeqCst) - before;
        assert_eq!(made, if kept { 1 } else { 5 }, "{effect}");
        assert_eq!(closing(&server), [!kept; 5], "{effect}");
        rig.servers.stop().await;
    }
}

#[tokio::test]
async fn over_http_a_kept_connection_that_turns_out_to_be_closed_is_no_news_and_any_other_is() {
    for (effect, at, expected, seen) in [
        ("read", 1, Outcome::ok("hi"), vec![false, false, true]),
        ("read", 0, Outcome::failed(OutcomeKind::Error, "the connection to the server failed"), vec![false]),
        (
            "write",
            1,
            Outcome::failed(OutcomeKind::Error, &format!("the connection to the server failed; {UNKNOWN}")),
            vec![true, true],
        ),
    ] {
        let server = hanging_up(at, "application/json").await;
        let settings = json!({ "effect": effect, "mcp": { "url": server.url("/mcp") } });
        let rig = Rig::of(|_| json!({ "s": settings })).await;
        for n in 0..=at {
            let outcome = rig.call("s__t").await;
            let expected = if n == at { expected.clone() } else { Outcome::ok("hi") };
            assert_eq!(outcome, expected, "{effect}, call {n}");
        }
        assert_eq!(closing(&server), seen, "{effect}");
        rig.servers.stop().await;
    }
}

#[tokio::test]
async fn over_http_what_is_no_answer_is_an_error_and_nothing_is_sent_twice() {
    for (status, body, kind) in [
        (500, "broken", "text/plain"),
        (302, "", "text/plain"),
        (200, "<html>", "text/html"),
        (200, "{", "application/json"),
        (200, "", "application/json"),
        (200, "data: {", "text/event-stream"),
        (200, "huge", "application/json"),
    ] {
        let server = over_http(move |message| {
            let text = match body {
                "huge" => json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "content": [{ "type": "text", "text": "x".repeat(9 << 20) }] } }).to_string(),
                body => body.to_owned(),
            };
            let mut response = response(status, &text);
            response.headers_mut().insert("content-type", kind.parse().unwrap());
            response.headers_mut().insert("location", "http://127.0.0.1:1/".parse().unwrap());
            response
        })
        .await;
        let rig = Rig::of(|_| json!({ "s": { "mcp": { "url": server.url("/mcp") } } })).await;
        let call = super::Call {
            deadline: tokio::time::Instant::now() + Duration::from_secs(2),
            ..testing::call(&json!({}))
        };
        let outcome = rig.tool("s__t").run(&call, &CancellationToken::new()).await;
        assert_ne!(outcome.kind, OutcomeKind::Ok, "{status} {body}");
        assert!(outcome.content.ends_with(UNKNOWN), "{status} {body}: {}", outcome.content);
        let said = format!("the server answered HTTP {status} ");
        assert_eq!(outcome.content.contains(&said), status != 200, "{status} {body}: {}", outcome.content);
        let calls = server.seen().iter().filter(|seen| seen.body.contains("tools/call")).count();
        assert_eq!(calls, 1, "{status} {body}");
        rig.servers.stop().await;
    }
}

#[tokio::test]
async fn over_http_a_server_that_has_gone_is_unreachable_and_then_down() {
    let server = over_http(|_| response(500, "")).await;
    let rig = Rig::of(|_| json!({ "s": { "mcp": { "url": server.url("/mcp") } } })).await;
    let tool = rig.tool("s__t");
    drop(server);
    // Nothing was sent, so nothing is unknown.
    let outcome = run(&tool, json!({})).await;
    assert_eq!(outcome.content, "error: unreachable: the connection was refused");
    assert!(rig.down("s").await.contains("listing its tools failed"));
}

#[tokio::test]
async fn over_http_a_server_that_is_not_there_or_not_allowed_is_down() {
    let rig = Rig::of(|_| {
        json!({
            "gone": { "mcp": { "url": "http://127.0.0.1:1/mcp" } },
            "refused": { "mcp": { "url": "http://fanfold-test.localhost:1/mcp", "start_timeout": "5s" } },
        })
    })
    .await;
    assert_eq!(rig.down("gone").await, "unreachable: the connection was refused");
    let why = rig.down("refused").await;
    assert!(why.contains("blocked by policy") || why.contains("name was not found"), "{why}");
}

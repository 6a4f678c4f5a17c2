use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::tools::testing::{HOSTILE, build, call, run, tool};
use crate::tools::{Catalog, Tool};

/// A directory with a script in it, and a tool that runs it with its places `{a}` and `{b}`.
struct Script {
    dir: tempfile::TempDir,
    catalog: Catalog,
    tool: Arc<Tool>,
}

impl Script {
    fn new(text: &str, more: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        std::fs::write(&path, text).unwrap();
        let mut command = json!({ "argv": ["/bin/sh", path, "{a}", "{b}"], "env": { "D": dir.path() } });
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (catalog, tool) = tool(json!({
            "parameters": { "type": "object", "properties": { "a": {}, "b": {} } },
            "effect": "read",
            "command": command,
        }));
        Self { dir, catalog, tool }
    }

    async fn run(&self, arguments: Value) -> Outcome {
        run(&self.tool, arguments).await
    }

    async fn until(&self, millis: u64) -> Outcome {
        let mut call = call(&json!({}));
        call.deadline = Instant::now() + Duration::from_millis(millis);
        self.tool.run(&call, &CancellationToken::new()).await
    }

    /// The process id a script wrote into this file of its directory, once it has.
    async fn pid(&self, file: &str) -> Pid {
        let path = self.dir.path().join(file);
        for _ in 0..1000 {
            if let Some(pid) = read_pid(&path) {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{file} was never written");
    }
}

use rustix::process::Pid;

fn read_pid(path: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(path).ok()?;
    text.strip_suffix('\n')?.parse().ok().and_then(Pid::from_raw)
}

/// Whether a process, a zombie included, still has this id.
fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()
}

/// Waits until a process that is not our child has ended; whoever adopted it may be slow to reap it.
async fn ends(pid: Pid) {
    for _ in 0..1000 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("process {pid:?} lives on");
}

#[tokio::test]
async fn a_command_reads_its_input_and_its_output_is_the_result() {
    let (_catalog, tool) = tool(json!({
        "parameters": { "type": "object", "properties": { "text": { "type": "string" } }, "required": ["text"] },
        "command": { "argv": ["/usr/bin/wc", "-w"], "stdin": "{text}" },
    }));
    assert_eq!(run(&tool, json!({ "text": "one two three" })).await, Outcome::ok("3\n"));
    assert_eq!(tool.kind_name(), "command");
}

#[tokio::test]
async fn each_argument_stays_one_element_whatever_it_is() {
    let echo = Script::new(
        "printf '%s:' \"$#\"; for a; do printf '<%s>' \"$a\"; done",
        json!({ "allow_dash": ["a"] }),
    );
    for value in HOSTILE {
        let outcome = echo.run(json!({ "a": value })).await;
        if value.contains('\0') {
            assert_eq!(outcome.kind, OutcomeKind::InvalidArguments);
        } else {
            assert_eq!(outcome, Outcome::ok(format!("1:<{value}>")), "{value:?}");
        }
    }
    let files: Vec<_> =
        std::fs::read_dir(echo.dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["script"], "no second process ran");
    assert_eq!(echo.run(json!({ "a": "x", "b": [1, "y"] })).await, Outcome::ok("2:<x><[1,\"y\"]>"));
    assert_eq!(echo.run(json!({ "a": null, "b": 1.5 })).await, Outcome::ok("1:<1.5>"));
    assert_eq!(echo.run(json!({})).await, Outcome::ok("0:"));
}

#[tokio::test]
async fn a_value_cannot_become_an_option() {
    let inside = ["/bin/echo", "{a}", "x{a}", "{a}{b}"];
    let (_catalog, tool) = tool(json!({
        "parameters": { "type": "object", "properties": { "a": {}, "b": {} } },
        "command": { "argv": inside, "allow_dash": [] },
    }));
    for (arguments, name) in [
        (json!({ "a": "-v" }), "a"),
        (json!({ "a": "--" }), "a"),
        (json!({ "a": -1 }), "a"),
        (json!({ "a": "", "b": "-v" }), "b"),
        (json!({ "b": "-v" }), "b"),
    ] {
        let outcome = run(&tool, arguments).await;
        assert_eq!(outcome.kind, OutcomeKind::InvalidArguments);
        assert!(outcome.content.contains(&format!("\"{name}\" may not begin with \"-\"")), "{outcome:?}");
    }
    assert_eq!(run(&tool, json!({ "a": "1", "b": "-v" })).await, Outcome::ok("1 x1 1-v\n"));
}

#[test]
fn an_element_may_be_as_long_as_the_kernel_takes_it_and_no_longer() {
    let (_catalog, tool) = tool(json!({
        "parameters": { "type": "object", "properties": { "a": {}, "b": {} } },
        "command": { "argv": ["/bin/echo", "{a}{b}"] },
    }));
    let check = |a: usize, b: usize| {
        let arguments = json!({ "a": "x".repeat(a), "b": "y".repeat(b) });
        tool.check_arguments(&arguments.to_string()).map_err(|outcome| outcome.kind)
    };
    assert_eq!(check(MAX_ELEMENT, 0), Ok(()));
    assert_eq!(check(MAX_ELEMENT - 5, 5), Ok(()));
    for (a, b) in [(MAX_ELEMENT + 1, 0), (MAX_ELEMENT, 1), (MAX_ELEMENT - 5, 7)] {
        assert_eq!(check(a, b), Err(OutcomeKind::InvalidArguments), "{a} {b}");
    }
}

#[tokio::test]
async fn a_failure_is_told_with_its_code_and_the_end_of_standard_error() {
    let fails = |text: &str| Script::new(text, json!({}));
    for (text, says) in [
        ("exit 3", "error: exit code 3"),
        ("echo out; exit 4", "error: exit code 4: out"),
        ("echo out; echo wrong >&2; exit 5", "error: exit code 5: wrong"),
        ("kill -SEGV $$", "error: killed by signal 11 (SIGSEGV)"),
        ("kill -KILL $$", "error: killed by signal 9 (SIGKILL)"),
    ] {
        let outcome = fails(text).run(json!({})).await;
        assert_eq!((outcome.kind, outcome.content.as_str()), (OutcomeKind::Error, says));
    }
    let long =
        "i=0; while [ $i -lt 3000 ]; do echo \"line $i and some more words\" >&2; i=$((i+1)); done; exit 1";
    let outcome = fails(long).run(json!({})).await;
    assert!(outcome.content.ends_with("line 2999 and some more words"), "{outcome:?}");
    assert!(outcome.content.len() < ERROR_TAIL + 50);
}

#[tokio::test]
async fn output_is_cut_described_or_said_to_be_empty() {
    let prints = |text: &str| Script::new(text, json!({}));
    assert_eq!(prints("true").run(json!({})).await, Outcome::ok("(empty)"));
    assert_eq!(prints("printf 'a\\377b'").run(json!({})).await, Outcome::ok("binary data, 3 bytes"));
    let outcome = prints("head -c 1000000 /dev/zero | tr '\\0' x").run(json!({})).await;
    assert_eq!((outcome.kind, outcome.content.len()), (OutcomeKind::Ok, 65536));
    assert!(outcome.content.ends_with("… [cut: 64 KiB of 1000000 bytes]"));
}

#[tokio::test]
async fn who_prints_without_an_end_is_stopped() {
    for text in ["exec yes", "exec yes >&2", "trap '' TERM PIPE; yes; yes"] {
        let script = Script::new(&format!("echo $$ >$D/pid; {text}"), json!({}));
        let outcome = script.run(json!({})).await;
        assert!(
            outcome.content.starts_with("error: it printed more than 64 MiB and was stopped"),
            "{}",
            outcome.content
        );
        assert!(!exists(script.pid("pid").await));
    }
}

#[tokio::test]
async fn the_environment_is_what_the_settings_say_and_nothing_else() {
    let (_catalog, tool) =
        tool(json!({ "command": { "argv": ["/usr/bin/env"], "env": { "TOKEN": "a{b}" } } }));
    assert_eq!(run(&tool, json!({})).await, Outcome::ok("LANG=C.UTF-8\nPATH=/usr/bin:/bin\nTOKEN=a{b}\n"));
}

#[tokio::test]
async fn each_call_has_an_empty_directory_of_its_own_that_is_gone_afterwards() {
    let script = Script::new("pwd; ls -A | wc -l; mkdir -p x/y; touch x/y/z", json!({}));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let outcome = script.run(json!({})).await;
        let (dir, count) = outcome.content.split_once('\n').unwrap();
        assert_eq!(count.trim(), "0");
        assert!(!Path::new(dir).exists());
        assert!(seen.insert(dir.to_owned()), "{dir} twice");
    }
    let fixed = tempfile::tempdir().unwrap();
    let script = Script::new("pwd", json!({ "dir": fixed.path() }));
    assert_eq!(script.run(json!({})).await, Outcome::ok(format!("{}\n", fixed.path().display())));
    assert!(fixed.path().exists());
}

#[tokio::test]
async fn resource_limits_hold() {
    let limits =
        json!({ "rlimits": { "memory": "512MiB", "cpu": "7s", "open_files": 33, "file_size": "1MiB" } });
    // Limits are set just after the start.
    let script =
        Script::new("sleep 0.2; ulimit -v; ulimit -t; ulimit -n; ulimit -c; ulimit -H -n", limits.clone());
    assert_eq!(script.run(json!({})).await, Outcome::ok("524288\n7\n33\n0\n33\n"));
    let script = Script::new("sleep 0.2; exec dd if=/dev/zero of=big bs=65536 count=100 2>/dev/null", limits);
    let outcome = script.run(json!({})).await;
    assert!(outcome.content.contains("SIGXFSZ"), "{outcome:?}");
}

#[tokio::test]
async fn out_of_time_ends_even_who_ignores_sigterm() {
    for (text, marked) in
        [("exec sleep 1000", false), ("trap 'echo x >$D/term' TERM; while :; do sleep 0.02; done", true)]
    {
        let script = Script::new(&format!("echo $$ >$D/pid; {text}"), json!({}));
        let outcome = script.until(300).await;
        assert_eq!(outcome.kind, OutcomeKind::Timeout);
        assert!(outcome.content.starts_with("error: timed out after "), "{outcome:?}");
        assert!(!exists(script.pid("pid").await), "a zombie stayed");
        assert_eq!(script.dir.path().join("term").exists(), marked, "SIGTERM comes first");
        assert_eq!(script.catalog.children(), 0);
    }
}

#[tokio::test]
async fn who_stops_in_time_may_tidy_up() {
    let script = Script::new(
        "echo $$ >$D/pid; trap 'echo bye >&2; echo bye; echo bye >$D/bye; exit 0' TERM; while :; do sleep 0.02; done",
        json!({}),
    );
    assert_eq!(script.until(300).await.kind, OutcomeKind::Timeout);
    assert!(script.dir.path().join("bye").exists());
}

#[tokio::test]
async fn a_stopped_or_dropped_call_leaves_no_process_and_no_directory() {
    let text = "pwd >$D/dir; sleep 1000 & echo $! >$D/child; echo $$ >$D/pid; wait";
    for dropped in [false, true] {
        let script = Script::new(text, json!({}));
        let (call, stop) = (call(&json!({})), CancellationToken::new());
        let mut running = Box::pin(script.tool.run(&call, &stop));
        let pid = tokio::select! {
            outcome = &mut running => panic!("{outcome:?}"),
            pid = script.pid("pid") => pid,
        };
        if dropped {
            drop(running);
        } else {
            stop.cancel();
            assert_eq!(running.await, Outcome::failed(OutcomeKind::Stopped, "stopped"));
        }
        script.catalog.settled().await;
        assert!(!exists(pid), "the leader stayed");
        ends(script.pid("child").await).await;
        let dir = std::fs::read_to_string(script.dir.path().join("dir")).unwrap();
        assert!(!Path::new(dir.trim()).exists());
    }
}

#[tokio::test]
async fn a_call_that_is_over_before_it_began_runs_nothing() {
    let script = Script::new("echo x >$D/ran", json!({}));
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(script.tool.run(&call(&json!({})), &stop).await.kind, OutcomeKind::Stopped);
    assert_eq!(script.until(0).await.kind, OutcomeKind::Timeout);
    assert_eq!(script.catalog.children(), 0);
    assert!(!script.dir.path().join("ran").exists());
}

#[tokio::test]
async fn who_closed_its_output_can_still_be_ended() {
    let script = Script::new("echo $$ >$D/pid; exec >&- 2>&-; exec sleep 1000", json!({}));
    assert_eq!(script.until(300).await.kind, OutcomeKind::Timeout);
    assert!(!exists(script.pid("pid").await));
}

#[test]
fn a_runtime_that_goes_down_takes_its_processes_along() {
    let script = Script::new("sleep 1000 & echo $! >$D/child; echo $$ >$D/pid; wait", json!({}));
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let pids = first.block_on(async {
        let (call, stop) = (call(&json!({})), CancellationToken::new());
        let mut running = Box::pin(script.tool.run(&call, &stop));
        tokio::select! {
            outcome = &mut running => panic!("{outcome:?}"),
            pid = script.pid("pid") => [pid, script.pid("child").await],
        }
    });
    first.shutdown_background();
    runtime().block_on(async {
        for pid in pids {
            ends(pid).await;
        }
    });
}

#[tokio::test]
async fn who_forks_is_not_waited_for_and_its_children_end_with_it() {
    let script = Script::new("sleep 1000 & echo $! >$D/child; echo done", json!({}));
    assert_eq!(script.run(json!({})).await, Outcome::ok("done\n"));
    ends(script.pid("child").await).await;
}

#[tokio::test]
async fn a_grandchild_that_left_the_group_cannot_hold_the_result_back() {
    let script = Script::new(
        "setsid sh -c 'echo $$ >$D/child; exec sleep 1000' & while ! [ -s $D/child ]; do sleep 0.01; done; echo done",
        json!({}),
    );
    assert_eq!(script.run(json!({})).await, Outcome::ok("done\n"));
    let child = script.pid("child").await;
    assert!(exists(child), "it is out of reach without a sandbox");
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    ends(child).await;
}

#[tokio::test]
async fn input_nobody_reads_and_output_nobody_waits_for_do_no_harm() {
    let text = "x".repeat(900_000);
    for (script, says) in [
        ("true", "(empty)"),
        ("exec <&-; echo ok", "ok\n"),
        ("exec cat >/dev/null", "(empty)"),
        ("wc -c", "900000\n"),
    ] {
        let script = Script::new(script, json!({ "argv": ["/bin/sh", "-c", script], "stdin": "{a}" }));
        assert_eq!(script.run(json!({ "a": text })).await, Outcome::ok(says));
    }
    // Closes its output and lives on.
    let script = Script::new("exec >&- 2>&-; sleep 0.2; exit 7", json!({}));
    assert_eq!(script.run(json!({})).await.content, "error: exit code 7");
}

#[tokio::test]
async fn many_at_once_leave_nothing_behind() {
    let script = Script::new("echo $$; cat; exit $1", json!({ "stdin": "{b}" }));
    let calls: Vec<_> = (0..40).map(|n| call(&json!({ "a": n % 2, "b": "text" }))).collect();
    let stop = CancellationToken::new();
    let outcomes =
        futures_util::future::join_all(calls.iter().map(|call| script.tool.run(call, &stop))).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(
            outcome.kind,
            if n % 2 == 0 { OutcomeKind::Ok } else { OutcomeKind::Error },
            "{outcome:?}"
        );
        let pid = outcome.content.trim_start_matches("error: exit code 1: ").lines().next().unwrap();
        assert!(!Path::new("/proc").join(pid).exists());
    }
    assert_eq!(script.catalog.children(), 0);
}

#[tokio::test]
async fn a_write_that_was_ended_says_that_nobody_knows() {
    let (_catalog, tool) = tool(json!({ "command": { "argv": ["/bin/sleep", "1000"] } }));
    let mut call = call(&json!({}));
    call.deadline = Instant::now() + Duration::from_millis(100);
    let outcome = tool.run(&call, &CancellationToken::new()).await;
    assert!(outcome.content.ends_with("outcome unknown: may have been executed"), "{outcome:?}");
}

#[tokio::test]
async fn a_program_that_is_gone_is_an_error_of_the_call() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let (_catalog, tool) = tool(json!({ "command": { "argv": [program] } }));
    std::fs::remove_file(&program).unwrap();
    let outcome = run(&tool, json!({})).await;
    assert_eq!(
        outcome,
        Outcome::failed(OutcomeKind::Error, "the command could not be run: entity not found")
    );
}

#[test]
fn settings_that_cannot_run_are_all_named_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    for (command, path, says) in [
        (json!({ "argv": [] }), "argv", "missing"),
        (json!({ "argv": ["wc"] }), "argv.0", "not an absolute path"),
        (json!({ "argv": ["/nonexistent/wc"] }), "argv.0", "entity not found"),
        (json!({ "argv": [plain] }), "argv.0", "not an executable file"),
        (json!({ "argv": [dir.path()] }), "argv.0", "not an executable file"),
        (json!({ "argv": ["/bin/{a}"] }), "argv.0", "cannot have places"),
        (json!({ "argv": ["/bin/echo", "x", "{nobody}"] }), "argv.2", "`{nobody}` is not an argument"),
        (json!({ "argv": ["/bin/echo", "{a"] }), "argv.1", "no `}`"),
        (json!({ "argv": ["/bin/echo", "a\0b"] }), "argv.1", "NUL"),
        (json!({ "argv": ["/bin/echo"], "stdin": "{nobody}" }), "stdin", "is not an argument"),
        (json!({ "argv": ["/bin/echo"], "allow_dash": ["nobody"] }), "allow_dash.0", "is not an argument"),
        (json!({ "argv": ["/bin/echo"], "dir": "relative" }), "dir", "absolute path of a directory"),
        (json!({ "argv": ["/bin/echo"], "dir": "/nonexistent" }), "dir", "absolute path of a directory"),
        (json!({ "argv": ["/bin/echo"], "env": { "A=B": "x" } }), "env.A=B", "not the name"),
        (json!({ "argv": ["/bin/echo"], "env": { "A": "s3cr3t\0" } }), "env.A", "NUL"),
        (
            json!({ "argv": ["/bin/echo"], "env": { "A": { "env": "FANFOLD_TEST_NO_SUCH_VARIABLE" } } }),
            "env.A",
            "is not set",
        ),
    ] {
        let parameters = json!({ "type": "object", "properties": { "a": {} } });
        let errors = build(json!({ "t": { "parameters": parameters, "command": command } })).unwrap_err();
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        assert_eq!(error.path.join("."), format!("command.{path}"), "{error:?}");
        assert!(error.message.contains(says) && !error.message.contains("s3cr3t"), "{error:?}");
    }
    let errors = build(json!({ "t": { "command": { "argv": ["wc"] } } })).unwrap_err();
    assert_eq!(errors[0].fix.as_deref(), Some("write /usr/bin/wc"));
}

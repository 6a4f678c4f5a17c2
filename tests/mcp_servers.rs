//! Tool servers nobody here wrote, unmodified, behind the real proxy.
//!
//! Not among the tests of a plain `cargo test`: `tests/run mcp` installs the servers and says where they are.
//! `FANFOLD_MCP_NODE` is a folder with the programs of npm packages, `FANFOLD_MCP_PYTHON` one of a Python environment.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fanfold::app::App;
use fanfold::config::{Flags, read_text};
use fanfold::tools::{Call, Catalog, Defaults, Progress, Servers};
use fanfold::workers::Workers;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::lab::Lab;
use support::ports::Port;
use tokio::time::{sleep, timeout};

fn program(variable: &str, name: &str) -> String {
    let Some(folder) = std::env::var_os(variable) else {
        panic!("{variable} is not set: run these tests with `tests/run mcp`");
    };
    let path = PathBuf::from(folder).join(name);
    assert!(path.exists(), "{} is missing: run these tests with `tests/run mcp`", path.display());
    path.display().to_string()
}

fn node(name: &str) -> String {
    program("FANFOLD_MCP_NODE", name)
}

fn python(name: &str) -> String {
    program("FANFOLD_MCP_PYTHON", name)
}

/// A server over HTTP, in a process of its own.
struct Everything {
    child: Child,
    url: String,
}

impl Everything {
    async fn start(port: &Port) -> Self {
        let mut command = Command::new(node("mcp-server-everything"));
        command.arg("streamableHttp").env("PORT", port.number().to_string());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a server");
        let server = Self { child, url: format!("http://{}/mcp", port.address()) };
        while tokio::net::TcpStream::connect(port.address()).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        server
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// fanfold before a lab, with these tools.
struct Rig {
    lab: Lab,
    app: App,
}

impl Rig {
    async fn start(tools: Value) -> Self {
        let lab = Lab::start().await;
        let config = json!({
            "listen": "127.0.0.1:0",
            "admin": { "listen": "127.0.0.1:0" },
            "upstreams": { "lab": { "base_url": lab.base_url() } },
            "tools": tools,
        });
        let reading = read_text("the test", &config.to_string(), &|_| None, &Flags::default());
        let (loaded, catalog) = reading.finish_with_tools().unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::start(&loaded, catalog, &Workers::default()).await.expect("it starts");
        Self { lab, app }
    }

    /// One turn in which the model makes these calls at once. Gives what it was told of each, in order.
    async fn turn(&self, name: &str, calls: &[(&str, Value)]) -> Vec<String> {
        let calls: Vec<Value> =
            calls.iter().map(|(name, arguments)| json!({ "name": name, "arguments": arguments })).collect();
        let rounds = json!([{ "reply": { "calls": calls } }, { "reply": { "text": "done" } }]);
        self.lab.script(name, json!({ "rounds": rounds }));
        let body = json!({ "model": format!("script:{name}"), "stream": true, "messages": [{ "role": "user", "content": "hi" }] });
        let base = format!("http://{}/v1", self.app.proxy_address);
        let got = timeout(Duration::from_secs(60), client::chat(&base, &body))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(got.body.contains("done") && got.body.contains("[DONE]"), "{}", got.body);
        let bodies = self.lab.journal().bodies(name);
        let messages = bodies[1]["messages"].as_array().cloned().unwrap_or_default();
        let told = messages.iter().filter(|message| message["role"] == "tool");
        told.map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The names of the tools the model is offered now.
    async fn offered(&self) -> Vec<String> {
        self.lab.script("offered", json!({ "rounds": [{ "reply": { "text": "done" } }], "repeat": true }));
        self.lab.clear();
        let body = json!({ "model": "script:offered", "messages": [{ "role": "user", "content": "hi" }] });
        let base = format!("http://{}/v1", self.app.proxy_address);
        client::chat(&base, &body).await.expect("an answer");
        let bodies = self.lab.journal().bodies("offered");
        let tools = bodies[0]["tools"].as_array().cloned().unwrap_or_default();
        tools.iter().filter_map(|tool| Some(tool["function"]["name"].as_str()?.to_owned())).collect()
    }

    async fn admin(&self, path: &str) -> Got {
        let url = format!("http://{}{path}", self.app.admin_address);
        client::send(http::Method::GET, &url, &[], None).await.expect("an answer")
    }

    async fn until_metric(&self, line: &str) {
        let wait = async {
            while !self.app.metrics().lines().any(|written| written == line) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(90), wait).await.unwrap_or_else(|_| panic!("{line}"));
    }
}

/// The processes whose command line has this text.
fn processes(text: &str) -> Vec<String> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let has = |pid: &String| {
        pid.bytes().all(|byte| byte.is_ascii_digit())
            && *pid != std::process::id().to_string()
            && std::fs::read(Path::new("/proc").join(pid).join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(text))
    };
    pids.filter(has).collect()
}

fn kill(pid: &str, signal: &str) {
    let status = Command::new("/bin/kill").args([signal, pid]).status().expect("kill");
    assert!(status.success(), "{pid}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_servers_a_request_and_a_command_answer_in_one_turn() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("note.txt"), "what is written").expect("a file");
    let git = |arguments: &[&str]| {
        let done = Command::new("git").args(arguments).current_dir(dir.path()).output().expect("git");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    let port = Port::free();
    let everything = Everything::start(&port).await;
    let lab = Lab::start().await;
    let path = dir.path().display().to_string();
    let rig = Rig::start(json!({
        "clock": { "mcp": { "command": [python("mcp-server-time")] }, "effect": "read" },
        "git": { "mcp": { "command": [python("mcp-server-git"), "--repository", path] } },
        "files": { "mcp": { "command": [node("mcp-server-filesystem"), path] }, "prefix": "", "only": ["read_*"] },
        "every": { "mcp": { "command": [node("mcp-server-everything"), "stdio"] }, "except": ["*subscri*"] },
        "far": { "mcp": { "url": everything.url }, "only": ["echo"] },
        "weather": { "http": { "url": format!("{}/tool/echo/weather?city={{city}}", lab.url()) }, "effect": "read",
            "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } },
        "words": { "command": { "argv": ["/bin/echo", "{text}"] },
            "parameters": { "type": "object", "properties": { "text": { "type": "string" } } } },
    }))
    .await;
    for server in ["clock", "git", "files", "every", "far"] {
        rig.until_metric(&format!("fanfold_tool_servers_up{{server=\"{server}\"}} 1")).await;
    }
    let offered = rig.offered().await;
    for name in [
        "clock__get_current_time",
        "git__git_status",
        "read_text_file",
        "every__echo",
        "far__echo",
        "weather",
        "words",
    ] {
        assert!(offered.iter().any(|offered| offered == name), "{name} is not among {offered:?}");
    }
    assert!(!offered.iter().any(|name| name == "write_file" || name.contains("subscri")), "{offered:?}");
    let told = rig
        .turn(
            "all",
            &[
                ("clock__get_current_time", json!({ "timezone": "Europe/Prague" })),
                ("git__git_status", json!({ "repo_path": path })),
                ("read_text_file", json!({ "path": format!("{path}/note.txt") })),
                ("every__echo", json!({ "message": "near" })),
                ("far__echo", json!({ "message": "far" })),
                ("weather", json!({ "city": "Lima" })),
                ("words", json!({ "text": "said" })),
                ("every__get-tiny-image", json!({})),
                ("every__get-sum", json!({ "a": "x" })),
                ("read_text_file", json!({ "path": "/etc/passwd" })),
            ],
        )
        .await;
    let parts = [
        "\"timezone\": \"Europe/Prague\"",
        "note.txt",
        "what is written",
        "Echo: near",
        "Echo: far",
        "\"city\":\"Lima\"",
        "said",
        "[image, image/png,",
        "error: arguments break the schema",
        "error: ",
    ];
    assert_eq!(told.len(), parts.len(), "{told:?}");
    for (told, part) in told.iter().zip(parts) {
        assert!(told.contains(part), "{part:?} is not in {told:?}");
    }
    let ready = rig.admin("/readyz?verbose").await;
    assert!(ready.body.contains("[~] tool_servers: clock is up"), "{}", ready.body);
    rig.app.stop().await;
    let left = processes(&path);
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_a_call_costs_that_call_only_and_comes_back() {
    let mark = tempfile::tempdir().expect("a folder");
    let mark = mark.path().display().to_string();
    let rig = Rig::start(json!({
        "every": { "mcp": { "command": [node("mcp-server-everything"), "stdio", mark] } },
        "clock": { "mcp": { "command": [python("mcp-server-time")] } },
    }))
    .await;
    rig.until_metric("fanfold_tool_servers_up{server=\"every\"} 1").await;
    rig.until_metric("fanfold_tool_servers_up{server=\"clock\"} 1").await;
    let [pid] = processes(&mark).try_into().expect("one process");
    let calls = [
        ("every__trigger-long-running-operation", json!({ "duration": 25, "steps": 50 })),
        ("clock__get_current_time", json!({ "timezone": "UTC" })),
    ];
    let (told, ()) = tokio::join!(rig.turn("killed", &calls), async {
        while !rig.app.metrics().lines().any(|line| line == "fanfold_tool_calls_in_flight 1") {
            sleep(Duration::from_millis(20)).await;
        }
        kill(&pid, "-KILL");
    });
    assert!(told[0].ends_with("outcome unknown: may have been executed"), "{told:?}");
    assert!(told[1].contains("\"timezone\": \"UTC\""), "{told:?}");
    rig.until_metric("fanfold_tool_servers_up{server=\"every\"} 0").await;
    assert!(rig.admin("/readyz").await.status.is_success(), "it is not required");
    assert!(!rig.offered().await.iter().any(|name| name.starts_with("every__")));
    rig.until_metric("fanfold_tool_servers_up{server=\"every\"} 1").await;
    let told = rig.turn("again", &[("every__echo", json!({ "message": "back" }))]).await;
    assert_eq!(told, ["Echo: back"]);
    rig.app.stop().await;
    assert!(processes(&mark).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_over_http_may_go_and_come_and_one_that_hangs_stops_nothing() {
    let port = Port::free();
    let everything = Everything::start(&port).await;
    let rig = Rig::start(json!({
        "far": { "mcp": { "url": everything.url, "start_timeout": "3s" }, "timeout": "2s" },
        "gone": { "mcp": { "command": ["sleep", "600"], "start_timeout": "1s" } },
    }))
    .await;
    let ready = rig.admin("/readyz?verbose").await;
    assert!(
        ready.body.contains("[~] tool_servers: gone is down: it did not start within 1s"),
        "{}",
        ready.body
    );
    assert_eq!(rig.turn("here", &[("far__echo", json!({ "message": "a" }))]).await, ["Echo: a"]);
    // It takes connections, but says nothing more.
    let pid = everything.child.id().to_string();
    kill(&pid, "-STOP");
    let told = rig.turn("hung", &[("far__echo", json!({ "message": "b" }))]).await;
    assert!(
        told[0].starts_with("error: timed out after ") && told[0].ends_with("may have been executed"),
        "{told:?}"
    );
    rig.until_metric("fanfold_tool_servers_up{server=\"far\"} 0").await;
    kill(&pid, "-CONT");
    drop(everything);
    let _everything = Everything::start(&port).await;
    rig.until_metric("fanfold_tool_servers_up{server=\"far\"} 1").await;
    assert_eq!(rig.turn("back", &[("far__echo", json!({ "message": "c" }))]).await, ["Echo: c"]);
    rig.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_required_server_nothing_starts() {
    let lab = Lab::start().await;
    let config = json!({
        "listen": "127.0.0.1:0",
        "admin": { "listen": "127.0.0.1:0" },
        "upstreams": { "lab": { "base_url": lab.base_url() } },
        "tools": { "s": { "mcp": { "command": ["false"] }, "required": true } },
    });
    let reading = read_text("the test", &config.to_string(), &|_| None, &Flags::default());
    let (loaded, catalog) = reading.finish_with_tools().unwrap_or_else(|problems| panic!("{problems}"));
    let error = App::start(&loaded, catalog, &Workers::default()).await.err().expect("no start").to_string();
    assert!(error.contains("`s` is required") && error.contains("exit status: 1"), "{error}");
}

/// What README.md and the help show, with the servers it names: `uvx` is a script that runs what is installed here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_of_the_readme_run_from_its_file_and_from_flags() {
    use std::os::unix::fs::PermissionsExt as _;
    let port = Port::free();
    let everything = Everything::start(&port).await;
    let lab = Lab::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let clock = PathBuf::from(python("mcp-server-time"));
    let uvx = folder.path().join("uvx");
    let script = format!(
        "#!/bin/sh\nname=$1; shift; exec {}/$name \"$@\"\n",
        clock.parent().expect("a folder").display()
    );
    std::fs::write(&uvx, script).expect("a script");
    std::fs::set_permissions(&uvx, std::fs::Permissions::from_mode(0o755)).expect("it runs");
    let run = |arguments: &[&str]| {
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfold"));
        command.args(arguments).current_dir(folder.path()).env_clear().env("PATH", path);
        command.envs(["TICKETS_TOKEN", "CRM_TOKEN", "CRM_TOKEN_BLUE"].map(|name| (name, "t")));
        command.env("OPENAI_API_KEY", "unused").env("OPENAI_BASE_URL", lab.base_url());
        let done = command.stdin(Stdio::null()).output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        (done.status.success(), said, String::from_utf8_lossy(&done.stderr).into_owned())
    };
    // Without a file.
    let (fine, said, errors) =
        run(&["tools", "--mcp", "uvx mcp-server-time", "--mcp", &format!("far={}", everything.url)]);
    assert!(fine && said.contains("get_current_time") && said.contains("far__echo"), "{said}{errors}");
    let arguments =
        ["call", "--mcp", "clock=uvx mcp-server-time", "clock__get_current_time", "{\"timezone\": \"UTC\"}"];
    let (fine, said, errors) = run(&arguments);
    assert!(fine && said.contains("\"timezone\": \"UTC\"") && errors.contains("ok in "), "{said}{errors}");
    let (fine, said, errors) = run(&["check", "--online", "--mcp", "clock=uvx mcp-server-time"]);
    assert!(
        fine && said.contains("offered by tool servers") && said.contains("clock__convert_time"),
        "{said}{errors}"
    );

    // The file that is shown, its addresses led here.
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    let block = readme
        .split("```yaml servers\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the block");
    let block = block
        .replace("https://mcp.example/mcp", &everything.url)
        .replace("https://crm.example/mcp", &everything.url);
    let block = block.replace("only: [search, \"get_*\"]", "only: [echo, \"get-*\"]");
    let upstream = format!("upstreams: {{ main: {{ base_url: '{}' }} }}\n", lab.base_url());
    let teams = format!("teams: {{ blue: {{ keys: [{{ sha256: \"{}\" }}] }} }}\n", "09".repeat(32));
    std::fs::write(folder.path().join("fanfold.yaml"), upstream + &block + &teams).expect("a file");
    let (fine, said, errors) = run(&["tools", "--team", "blue"]);
    let line = |name: &str| {
        said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default().to_owned()
    };
    assert!(fine && line("clock__get_current_time").contains("read"), "{said}{errors}");
    assert!(line("echo").contains("offered") && !said.contains("crm__echo"), "{said}");
    assert!(said.contains("not accepted yet"), "{said}");
    let (fine, said, errors) = run(&["tools", "accept"]);
    assert!(fine && said.contains("tools of crm"), "{said}{errors}");
    let (fine, said, errors) = run(&["call", "--team", "blue", "crm__echo", "{\"message\": \"hello\"}"]);
    assert!(fine && said.contains("Echo: hello"), "{said}{errors}");
    let (fine, said, errors) = run(&["check", "--online"]);
    assert!(fine && said.contains("crm of blue") && said.contains("clock__convert_time"), "{said}{errors}");
}

/// fanfold signs in nowhere on its own; what a server wants to see is written into `headers` of its settings.
const SIGNS_IN_NOWHERE: Result<(), &str> = Err("signing in (OAuth) is not supported");

/// All of the suite's scenarios for clients, and why fanfold does not pass one. README.md has the same reasons.
const SCENARIOS: [(&str, Result<(), &str>); 26] = [
    ("initialize", Ok(())),
    ("tools_call", Ok(())),
    ("sse-retry", Ok(())),
    ("elicitation-sep1034-client-defaults", Err("elicitation is not supported: there is nobody to ask")),
    ("auth/metadata-default", SIGNS_IN_NOWHERE),
    ("auth/metadata-var1", SIGNS_IN_NOWHERE),
    ("auth/metadata-var2", SIGNS_IN_NOWHERE),
    ("auth/metadata-var3", SIGNS_IN_NOWHERE),
    ("auth/basic-cimd", SIGNS_IN_NOWHERE),
    ("auth/scope-from-www-authenticate", SIGNS_IN_NOWHERE),
    ("auth/scope-from-scopes-supported", SIGNS_IN_NOWHERE),
    ("auth/scope-omitted-when-undefined", SIGNS_IN_NOWHERE),
    ("auth/scope-step-up", SIGNS_IN_NOWHERE),
    ("auth/scope-retry-limit", SIGNS_IN_NOWHERE),
    ("auth/token-endpoint-auth-basic", SIGNS_IN_NOWHERE),
    ("auth/token-endpoint-auth-post", SIGNS_IN_NOWHERE),
    ("auth/token-endpoint-auth-none", SIGNS_IN_NOWHERE),
    ("auth/pre-registration", SIGNS_IN_NOWHERE),
    ("auth/2025-03-26-oauth-metadata-backcompat", SIGNS_IN_NOWHERE),
    ("auth/2025-03-26-oauth-endpoint-fallback", SIGNS_IN_NOWHERE),
    // A client must not ask for a token for another resource. Ours asks for none.
    ("auth/resource-mismatch", Ok(())),
    ("auth/offline-access-scope", SIGNS_IN_NOWHERE),
    ("auth/offline-access-not-supported", SIGNS_IN_NOWHERE),
    ("auth/client-credentials-jwt", SIGNS_IN_NOWHERE),
    ("auth/client-credentials-basic", SIGNS_IN_NOWHERE),
    ("auth/cross-app-access-complete-flow", SIGNS_IN_NOWHERE),
];

/// The published conformance suite, with `fanfold tools` and `fanfold call` as the client.
#[test]
fn the_conformance_suite_finds_the_client_sound() {
    let folder = tempfile::tempdir().expect("a folder");
    let client = folder.path().join("client");
    let script = format!(
        "#!/bin/sh\nfor url; do :; done\nexport OPENAI_API_KEY=unused\ncase $MCP_CONFORMANCE_SCENARIO in\n\
        tools_call) exec {0} call --mcp \"s=$url\" s__add_numbers '{{\"a\": 5, \"b\": 3}}' ;;\n\
        sse-retry) exec {0} call --mcp \"s=$url\" s__test_reconnection ;;\n\
        elicitation-*) exec {0} call --mcp \"s=$url\" s__test_client_elicitation_defaults ;;\n\
        *) exec {0} tools --mcp \"s=$url\" ;;\nesac\n",
        env!("CARGO_BIN_EXE_fanfold")
    );
    std::fs::write(&client, script).expect("a script");
    std::fs::set_permissions(&client, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it runs");
    let suite = |arguments: &[&str]| {
        let mut command = Command::new("node");
        command.arg(node("conformance")).args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        let done = command.output().expect("the suite runs");
        (
            done.status.success(),
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr),
        )
    };
    let (_, listed) = suite(&["list"]);
    let clients = listed.split_once("Client scenarios").map(|(_, rest)| rest).unwrap_or_default();
    let names = clients.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split(' ').next());
    let names: BTreeSet<&str> = names.collect();
    assert_eq!(names, SCENARIOS.map(|(name, _)| name).into(), "every scenario is known here: {listed}");
    let client = client.display().to_string();
    for (name, wanted) in SCENARIOS {
        let (passed, said) = suite(&["client", "--command", &client, "--scenario", name]);
        assert_eq!(passed, wanted.is_ok(), "{name}, which should differ only because {wanted:?}\n{said}");
    }
}

/// The calls of two teams on one server, and on a server that each has for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_interleaved_calls_of_two_teams_never_cross() {
    const CALLS: u64 = 50_000;
    const AT_ONCE: u64 = 64;
    let rogue = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");
    let own = |canary: &str| json!({ "env": { "CANARY": canary } });
    let settings = serde_json::from_value(json!({
        "shared": { "mcp": { "command": ["python3", rogue] }, "only": ["echo"], "prefix": "shared_" },
        "own": { "mcp": { "command": ["python3", rogue] }, "only": ["echo"], "prefix": "own_",
            "share": "team", "teams": { "blue": own("blue"), "red": own("red") } },
    }))
    .expect("settings");
    let defaults = Defaults { call_timeout: Duration::from_secs(120), tool_result: 65_536 };
    let catalog = Catalog::build(&settings, &defaults).expect("a catalog");
    let servers = Servers::new();
    servers.adopt(&catalog);
    let teams: [Arc<str>; 2] = ["blue".into(), "red".into()];
    for team in &teams {
        servers.need(&catalog, team, |_| true);
    }
    servers.tried(&catalog, Duration::from_secs(60)).await;
    let view = Arc::new(servers.view(&catalog));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..AT_ONCE {
        let (view, team) = (view.clone(), teams[(worker % 2) as usize].clone());
        workers.spawn(async move {
            let mut done = 0;
            for n in 0..(2 * CALLS).div_ceil(AT_ONCE) {
                let name = if n % 10 == 0 { "own_echo" } else { "shared_echo" };
                let tool = view.tool_of(&team, name).expect("its tool");
                let key = format!("{team}-{worker}-{n}");
                let call = Call {
                    arguments: json!({ "a": key }).to_string(),
                    idempotency_key: key.clone(),
                    request_id: key.clone(),
                    trace: None,
                    result_limit: 65_536,
                    deadline: tokio::time::Instant::now() + Duration::from_secs(120),
                    progress: Progress::new(tool.spec().patience(None), Arc::default()),
                    tries: fanfold::tools::Tries::default(),
                };
                let outcome = tool.run(&call, &tokio_util::sync::CancellationToken::new()).await;
                let heard: Value = serde_json::from_str(&outcome.content)
                    .unwrap_or_else(|_| panic!("what the server heard, not {outcome:?}"));
                assert_eq!(heard["arguments"]["a"], *key, "{outcome:?}");
                assert_eq!(heard["meta"]["fanfold/idempotency-key"], *key, "{outcome:?}");
                if name == "own_echo" {
                    assert_eq!(heard["canary"], *team, "{outcome:?}");
                }
                done += 1;
            }
            done
        });
    }
    let done: u64 = workers.join_all().await.into_iter().sum();
    assert!(done >= 2 * CALLS, "{done}");
    servers.stop().await;
}

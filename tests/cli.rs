//! The command line, as people and scripts use it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;

use assert_cmd::Command;
use tempfile::TempDir;

/// The binary in a folder of its own, with nothing in the environment.
fn fanfold(folder: &TempDir) -> Command {
    let mut command = Command::cargo_bin("fanfold").expect("the binary");
    command.current_dir(folder.path()).env_clear();
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn folder_with(config: &str) -> TempDir {
    let folder = folder();
    std::fs::write(folder.path().join("fanfold.yaml"), config).expect("written");
    folder
}

/// Runs it and gives exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

/// A server that gives one answer to the first request and hands back that request's head.
fn server(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.extend(byte);
        }
        stream.write_all(answer.as_bytes()).expect("answered");
        String::from_utf8(head).expect("ASCII")
    });
    (address, thread)
}

const SOUND: &str = "upstreams: { main: { base_url: http://127.0.0.1:1/v1, api_key: hush-hush } }\n";

#[test]
fn a_sound_file_is_summed_up() {
    let folder = folder_with(&format!(
        "{SOUND}tools: {{ clock: {{ command: {{ argv: [/bin/date] }}, effect: read, timeout: 5s }} }}\nteams: {{ blue: {{ keys: [{{ sha256: {} }}], tools: [clock] }} }}\n",
        "ab".repeat(32)
    ));
    let (code, out, err) = run(fanfold(&folder).arg("check"));
    assert_eq!((code, err.as_str()), (0, ""));
    // What this host can do, it says last.
    let (out, _) = out.split_once("\nsandboxes of this host\n").expect("the sandboxes");
    assert_eq!(
        out,
        "\
fanfold.yaml is fine

listen
  proxy  http://127.0.0.1:4100/v1
  admin  http://127.0.0.1:4101

upstreams
  main  http://127.0.0.1:1/v1  openai  key from the configuration

teams
  blue  1 key  every model  tools clock

tools
  clock  command  read  5s  no, though its schema would fit
"
    );
}

#[test]
fn a_file_with_mistakes_is_64_and_all_of_them_are_said() {
    let folder = folder_with("upstream: {}\nupstreams: { main: { base_url: nowhere, kind: opnai } }\n");
    let (code, out, err) = run(fanfold(&folder).arg("check"));
    assert_eq!((code, out.as_str()), (64, ""));
    for said in [
        "fanfold.yaml:1:1",
        "did you mean `upstreams`?",
        "fanfold.yaml:2:32",
        "did you mean `openai`?",
        "3 mistakes",
    ] {
        assert!(err.contains(said), "{said}:\n{err}");
    }
    assert!(!err.contains('\u{1b}'), "no colours into a pipe");
}

#[test]
fn another_file_can_be_named_before_and_after_the_command() {
    let folder = folder();
    std::fs::write(folder.path().join("other.yaml"), SOUND).unwrap();
    assert_eq!(run(fanfold(&folder).args(["--config", "other.yaml", "check"])).0, 0);
    assert_eq!(run(fanfold(&folder).args(["check", "--config", "other.yaml"])).0, 0);
    let (code, _, err) = run(fanfold(&folder).args(["check", "--config", "missing.yaml"]));
    assert_eq!(code, 64);
    assert!(err.contains("missing.yaml cannot be read: No such file"), "{err}");
}

#[test]
fn without_anything_to_go_by_it_says_what_to_do() {
    let (code, _, err) = run(fanfold(&folder()).arg("check"));
    assert_eq!(code, 64);
    for way in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "fanfold config init", "--config"] {
        assert!(err.contains(way), "{way}:\n{err}");
    }
}

#[test]
fn the_environment_alone_is_enough() {
    let (code, out, _) = run(fanfold(&folder()).arg("check").env("OPENAI_API_KEY", "sk-hush"));
    assert_eq!(code, 0);
    assert!(out.contains("https://api.openai.com/v1") && !out.contains("sk-hush"), "{out}");
}

#[test]
fn a_public_address_needs_keys_or_the_flag() {
    let folder = folder_with(SOUND);
    assert_eq!(run(fanfold(&folder).args(["check", "--listen", "0.0.0.0:4100"])).0, 64);
    let allowed = run(fanfold(&folder).args(["check", "--listen", "0.0.0.0:4100", "--insecure-no-auth"]));
    assert_eq!(allowed.0, 0);
    assert!(allowed.2.starts_with("warning: everybody who reaches 0.0.0.0:4100"), "{}", allowed.2);
}

#[test]
fn wrong_usage_is_2() {
    let folder = folder();
    for arguments in
        [&["chekc"][..], &["check", "--nonsense"], &["completions", "tcl"], &["healthcheck", "--url", "::"]]
    {
        assert_eq!(run(fanfold(&folder).args(arguments)).0, 2, "{arguments:?}");
    }
}

#[test]
fn the_example_passes_its_own_check_and_is_never_overwritten() {
    let folder = folder();
    assert_eq!(run(fanfold(&folder).args(["config", "init"])).0, 0);
    let (code, out, err) = run(fanfold(&folder).arg("check").env("OPENAI_API_KEY", "sk-hush"));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let (code, _, err) = run(fanfold(&folder).arg("check"));
    assert_eq!(code, 64);
    assert!(err.contains("the environment variable `OPENAI_API_KEY` is not set"), "{err}");

    let path = folder.path().join("fanfold.yaml");
    std::fs::write(&path, "mine").unwrap();
    let (code, _, err) = run(fanfold(&folder).args(["config", "init"]));
    assert_eq!(code, 1);
    assert!(err.contains("exists already"), "{err}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn what_is_printed_has_dots_for_secrets_and_loads_again() {
    let folder = folder_with(SOUND);
    let (code, written, _) = run(fanfold(&folder).args(["config", "print"]));
    assert_eq!(code, 0);
    assert!(
        written.contains("••••") && !written.contains("hush") && !written.contains("limits"),
        "{written}"
    );
    let (_, all, _) = run(fanfold(&folder).args(["config", "print", "--defaults"]));
    assert!(all.contains("turn_timeout: 300s") && !all.contains("hush"), "{all}");
    let again = folder_with(&all.replace("••••", "x"));
    assert_eq!(run(fanfold(&again).arg("check")).0, 0);
}

#[test]
fn the_defaults_are_printed_without_any_file() {
    let (code, out, _) = run(fanfold(&folder()).args(["config", "print", "--defaults"]));
    assert_eq!(code, 0);
    for line in ["listen: 127.0.0.1:4100", "rounds: 10", "bodies_in_flight: 512MiB", "connect_timeout: 10s"] {
        assert!(out.contains(line), "{line}:\n{out}");
    }
}

#[test]
fn the_schema_is_json() {
    let (code, out, _) = run(fanfold(&folder()).args(["config", "schema"]));
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(schema["properties"]["upstreams"]["minProperties"], 1);
}

const TOOLS: &str = r#"upstreams: { main: { base_url: http://127.0.0.1:1/v1 } }
tools:
  words:
    description: Count words
    parameters: { type: object, properties: { text: { type: string } }, required: [text] }
    command: { argv: [/usr/bin/wc, -w], stdin: "{text}" }
    effect: read
  fail: { command: { argv: [/bin/false] } }
  strict: { command: { argv: [/bin/true] }, strict: true, timeout: 2s }
"#;

#[test]
fn tools_are_listed_for_people_and_for_programs() {
    let folder = folder_with(TOOLS);
    let (code, out, err) = run(fanfold(&folder).arg("tools"));
    assert_eq!((code, err.as_str()), (0, ""));
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().take(5).collect()).collect();
    assert_eq!(rows[0], ["name", "kind", "effect", "timeout", "strict"]);
    assert_eq!(rows[1], ["fail", "command", "write", "30s", "no,"]);
    assert_eq!(rows[2], ["strict", "command", "write", "2s", "strict"]);
    assert_eq!(rows[3], ["words", "command", "read", "30s", "no:"]);

    let (_, json, _) = run(fanfold(&folder).args(["tools", "--json"]));
    let all: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(all[2]["name"], "words");
    assert_eq!(all[2]["parameters"]["required"][0], "text");
    assert_eq!(all[2]["on_disconnect"], "stop");
    assert_eq!(all[1]["not_strict_because"].as_array().map(Vec::len), Some(0));

    let none = folder_with(SOUND);
    assert_eq!(run(fanfold(&none).arg("tools")).0, 0);
    assert_eq!(run(fanfold(&none).args(["tools", "--json"])).1, "[]\n");
}

#[test]
fn a_tool_is_called_as_a_model_would() {
    let folder = folder_with(TOOLS);
    let call = |arguments: &[&str]| run(fanfold(&folder).arg("call").args(arguments));
    let (code, out, err) = call(&["words", r#"{"text":"one two three"}"#]);
    assert_eq!((code, out.trim()), (0, "3"));
    assert!(err.starts_with("ok in ") && err.ends_with("ms\n"), "{err}");

    let (code, out, err) = call(&["words", r#"{"txet":"one"}"#]);
    assert!(
        code == 1 && out.starts_with("error: ") && err.starts_with("invalid_arguments in "),
        "{out}{err}"
    );
    let (code, out, err) = call(&["fail"]);
    assert!(code == 1 && out.starts_with("error: ") && err.starts_with("error in "), "{out}{err}");
    let (code, _, err) = call(&["wrods"]);
    assert_eq!((code, err.as_str()), (2, "error: there is no tool `wrods`: did you mean `words`?\n"));
}

#[test]
fn tools_of_the_command_line_want_neither_a_file_nor_a_model_server() {
    let folder = folder();
    let words = ["--tool", "words=/usr/bin/wc -w"];
    let (code, out, err) = run(fanfold(&folder).arg("tools").args(words));
    assert!(code == 0 && out.contains("words"), "{out}{err}");
    let (code, out, err) = run(fanfold(&folder).arg("call").args(words).args(["words", r#"{"text":"a b"}"#]));
    assert_eq!((code, out.trim()), (0, "2"), "{err}");
    // Who serves them does, and without any there is nothing to show.
    for arguments in [&["serve", "--tool", "words=/usr/bin/wc -w"][..], &["tools"]] {
        let (code, _, err) = run(fanfold(&folder).args(arguments));
        assert!(code == 64 && err.contains("OPENAI_BASE_URL"), "{err}");
    }
}

#[test]
fn mistakes_of_tools_are_in_the_report_of_check() {
    let folder = folder_with(&format!(
        "{SOUND}tools: {{ t: {{ http: {{ url: \"gopher://x\" }} }} }}\nlimits: {{ rounds: 0 }}\n"
    ));
    let (code, _, err) = run(fanfold(&folder).arg("check"));
    assert_eq!(code, 64);
    for said in ["fanfold.yaml:2:28", "gopher", "`rounds` must be at least 1", "2 mistakes"] {
        assert!(err.contains(said), "{said}:\n{err}");
    }
}

#[test]
fn keys_are_new_each_time_and_their_hashes_fit() {
    let folder = folder();
    let new = || run(fanfold(&folder).args(["keys", "new"])).1;
    let (first, second) = (new(), new());
    assert_ne!(first, second);
    let (key, line) = first.split_once('\n').expect("two lines");
    assert!(key.starts_with("fk-") && key.len() == 46, "{key}");
    assert!(key[3..].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{key}");

    let from_argument = run(fanfold(&folder).args(["keys", "hash", key]));
    assert_eq!((from_argument.0, from_argument.1.as_str()), (0, line));
    let from_input = run(fanfold(&folder).args(["keys", "hash"]).write_stdin(format!("{key}\n")));
    assert_eq!((from_input.0, from_input.1.as_str()), (0, line));
    let team = folder_with(&format!("{SOUND}teams:\n  blue:\n    {line}"));
    assert_eq!(run(fanfold(&team).arg("check")).0, 0, "the line is one of the file's");
}

#[test]
fn no_key_or_several_lines_are_refused() {
    let folder = folder();
    assert_eq!(run(fanfold(&folder).args(["keys", "hash"]).write_stdin("\n")).0, 2);
    assert_eq!(run(fanfold(&folder).args(["keys", "hash"]).write_stdin("a\nb\n")).0, 1);
    assert_eq!(run(fanfold(&folder).args(["keys", "hash"]).write_stdin("x".repeat(5000))).0, 1);
}

#[test]
fn health_is_asked_where_the_file_says() {
    let (address, asked) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let folder = folder_with(&format!("{SOUND}admin: {{ listen: \"{address}\" }}\n"));
    assert_eq!(run(fanfold(&folder).arg("healthcheck")), (0, String::new(), String::new()));
    assert!(asked.join().expect("asked").starts_with("GET /readyz HTTP/1.1\r\n"));
}

#[test]
fn whatever_is_not_ready_is_1() {
    let folder = folder_with(SOUND);
    let (address, _asked) = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    let url = format!("http://{address}/readyz");
    let (code, _, err) = run(fanfold(&folder).args(["healthcheck", "--url", &url]));
    assert_eq!((code, err.as_str()), (1, "not ready: 503 Service Unavailable\n"));

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(run(fanfold(&folder).args(["healthcheck", "--url", &format!("http://{closed}/")])).0, 1);
    assert_eq!(run(fanfold(&folder).args(["healthcheck", "--url", "https://127.0.0.1/"])).0, 1);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let (code, _, err) = run(fanfold(&folder).args(["healthcheck", "--url", &url]));
    assert_eq!(code, 1);
    assert!(err.contains("did not answer within 2s"), "{err}");
}

#[test]
fn online_says_of_each_upstream_whether_it_takes_the_key() {
    let check = |answer: &'static str| {
        let (address, asked) = server(answer);
        let config = format!(
            "upstreams: {{ main: {{ base_url: \"http://{address}/v1\", api_key: {{ env: KEY }} }} }}"
        );
        let result = run(fanfold(&folder_with(&config)).args(["check", "--online"]).env("KEY", "sk-1"));
        (result, asked.join().expect("asked"))
    };
    let list = "HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\n{\"data\":[{},{},{},{}]}";
    let ((code, out, _), head) = check(list);
    assert!(code == 0 && out.ends_with("online\n  main  answers, 4 models\n"), "{out}");
    assert!(
        head.starts_with("GET /v1/models HTTP/1.1\r\n") && head.contains("authorization: Bearer sk-1\r\n"),
        "{head}"
    );

    let ((code, out, _), _) = check("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
    assert!(code == 1 && out.contains("FAILED: it refuses the key (401 Unauthorized)"), "{out}");
    let ((code, out, _), _) = check("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>");
    assert!(code == 1 && out.contains("is `base_url` right?"), "{out}");

    let (code, out, _) = run(fanfold(&folder_with(SOUND)).args(["check", "--online"]));
    assert!(code == 1 && out.contains("FAILED: ") && out.contains("Connection refused"), "{out}");
}

#[test]
fn completions_are_a_script() {
    let (code, out, _) = run(fanfold(&folder()).args(["completions", "bash"]));
    assert_eq!(code, 0);
    assert!(out.contains("complete -F _fanfold"), "{out}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = folder();
    let binary = assert_cmd::cargo::cargo_bin("fanfold");
    let script =
        format!("{} config schema | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}", binary.display());
    let output = std::process::Command::new("bash").arg("-c").arg(script).current_dir(folder.path()).output();
    let output = output.expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
    assert!(output.stderr.is_empty());
    assert!(!Path::new("fanfold.yaml").exists());
}

#[test]
fn an_openapi_document_becomes_tools_that_can_be_put_into_the_file() {
    let document = r#"
openapi: 3.0.3
servers: [{ url: "http://127.0.0.1:9/api" }]
paths:
  /invoices/{id}:
    get:
      operationId: getInvoice
      summary: One invoice
      parameters:
        - { name: id, in: path, required: true, schema: { type: string } }
        - { name: X-Trace, in: header, schema: { type: string } }
  /upload:
    post:
      operationId: upload
      requestBody: { required: true, content: { multipart/form-data: {} } }
"#;
    let folder = folder();
    std::fs::write(folder.path().join("billing.yaml"), document).expect("written");
    let (exit, tools, _) = run(fanfold(&folder).args(["config", "openapi", "billing.yaml"]));
    assert_eq!(exit, 0);
    assert!(
        tools.contains("# upload (#/paths/~1upload/post): not a tool: the body is a form without"),
        "{tools}"
    );
    let config = format!("upstreams: {{ main: {{ base_url: \"http://127.0.0.1:9/v1\" }} }}\n{tools}");
    std::fs::write(folder.path().join("fanfold.yaml"), &config).expect("written");
    let (exit, said, complaint) = run(fanfold(&folder).arg("check"));
    assert_eq!((exit, complaint.as_str()), (0, ""), "{config}");
    assert!(said.contains("getInvoice"), "{said}");
    let other = ["config", "openapi", "billing.yaml", "--base-url", "https://billing.example"];
    assert!(run(fanfold(&folder).args(other)).1.contains("https://billing.example/invoices/{id}"));
    std::fs::write(folder.path().join("old.json"), "{\"swagger\": \"2.0\"}").expect("written");
    let (exit, _, complaint) =
        run(fanfold(&folder).args(["config", "openapi", "old.json", "--base-url", "http://x"]));
    assert_eq!(exit, 1);
    assert!(complaint.contains("Swagger 2.0"), "{complaint}");
}

//! No secret of a configuration is shown: not by a page of the admin side, not in the log, not by a command.

mod support;

use http::Method;
use serde_json::json;
use support::client;
use support::lab::Lab;
use support::process::{self, Process};
use support::proxy::chat;

/// Secrets everywhere one may be written as text. Each begins with `hush-`. Ports at 1 refuse connections.
fn config(lab: &Lab) -> String {
    format!(
        "
upstreams:
  main: {{ base_url: {}, api_key: hush-api-key, headers: {{ x-key: hush-header }} }}
  far: {{ base_url: 'http://127.0.0.1:1/v1', api_keys: [hush-one, hush-two] }}
routes: [{{ model: far, upstreams: [far] }}, {{ model: '*', upstreams: [main] }}]
tools:
  asks:
    description: Asks
    parameters: {{ type: object, properties: {{ q: {{ type: string }} }}, required: [q], additionalProperties: false }}
    http: {{ method: GET, url: 'http://127.0.0.1:1/ask?q={{q}}&appid=hush-in-a-query&hush-alone', headers: {{ authorization: hush-bearer }} }}
    effect: read
  server: {{ mcp: {{ url: 'http://127.0.0.1:1/mcp?api_key=hush-of-mcp', headers: {{ x-token: hush-mcp-header }} }} }}
  program:
    mcp: {{ command: [/bin/false, 'http://user:hush-password@a.example/', '--url=https://a.example/?k=hush-argument'], env: {{ TOKEN: hush-env }} }}
  pets:
    openapi: {{ spec: pets.json, base_url: 'http://127.0.0.1:1/pets', auth: {{ query: {{ name: key, value: hush-openapi }} }} }}
traces: {{ endpoint: 'http://127.0.0.1:1/v1/traces?token=hush-collector', headers: {{ x-token: hush-otlp }} }}
log: {{ level: 'debug,h2=info' }}
runs: {{ content: true }}
teams: {{ blue: {{ keys: [{{ sha256: '{}' }}], upstream_keys: {{ main: hush-of-a-team }} }} }}
",
        lab.base_url(),
        "09ae21604639c21cb5572b30566c73337f4552990b5611966ba0059e4a11c739"
    )
}

const PETS: &str = r#"{ "openapi": "3.0.3", "info": { "title": "pets", "version": "1" },
  "paths": { "/pets": { "get": { "operationId": "listPets", "responses": { "200": { "description": "ok" } } } } } }"#;

#[track_caller]
fn tells_none(of: &str, text: &str) {
    let told: Vec<&str> = text.lines().filter(|line| line.contains("hush-")).collect();
    assert!(told.is_empty(), "{of}:\n{}", told.join("\n"));
}

#[tokio::test]
async fn no_page_of_the_admin_side_and_no_line_of_the_log_shows_a_secret() {
    let lab = Lab::start().await;
    let calls =
        json!([{ "name": "asks", "arguments": { "q": "a" } }, { "name": "pets__listPets", "arguments": {} }]);
    lab.script("s", json!({ "rounds": [{ "reply": { "calls": calls } }, { "reply": { "text": "done" } }], "advance": "requests" }));
    let folder = process::folder_with(&config(&lab).replace("teams:", "# teams:"));
    std::fs::write(folder.path().join("pets.json"), PETS).expect("written");
    let mut fanfold = Process::in_folder(folder).await;
    let got = client::chat(&fanfold.base_url(), &chat("s")).await.expect("an answer");
    assert!(got.body.contains("done"), "{}", got.body);
    let _refused = client::chat(&fanfold.base_url(), &chat("far")).await;
    fanfold.logged("traces do not reach").await;
    let of_model = lab.journal().bodies("s").iter().map(ToString::to_string).collect::<String>();
    assert!(of_model.contains("error: "), "both tools failed: {of_model}");
    tells_none("what the model sees", &of_model);
    let admin = |path: String| {
        let url = format!("http://{}{path}", fanfold.admin);
        async move { client::send(Method::GET, &url, &[], None).await.expect("an answer").body }
    };
    let runs = admin("/api/runs".into()).await;
    let runs: serde_json::Value = serde_json::from_str(&runs).expect("JSON");
    let mut paths: Vec<String> = [
        "/",
        "/inspector.js",
        "/api/runs",
        "/api/tools",
        "/api/config",
        "/metrics",
        "/livez",
        "/readyz",
        "/readyz?verbose",
    ]
    .map(str::to_owned)
    .into();
    paths.extend(
        runs["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| format!("/api/runs/{}", run["id"].as_str().unwrap())),
    );
    assert!(paths.len() >= 11, "{paths:?}");
    for path in paths {
        tells_none(&path, &admin(path.clone()).await);
    }
    let settings = admin("/api/config".into()).await;
    for shown in
        ["ask?q={q}&appid=••••&••••", "/mcp?api_key=••••", "http://••••@a.example/", "/v1/traces?token=••••"]
    {
        assert!(settings.contains(shown), "{shown}: {settings}");
    }
    // A reload with a mistake tells of it, with the lines around it.
    let broken = config(&lab).replace("teams:", "# teams:").replace("effect: read", "efect: read");
    process::write_config(fanfold.folder.path(), &broken);
    fanfold.signal(rustix::process::Signal::HUP);
    fanfold.logged("efect").await;
    tells_none("the log", &fanfold.log());
}

#[tokio::test]
async fn no_command_shows_a_secret_of_the_configuration() {
    let lab = Lab::start().await;
    let folder = process::folder_with(&config(&lab));
    std::fs::write(folder.path().join("pets.json"), PETS).expect("written");
    let commands: [&[&str]; 8] = [
        &["config", "print"],
        &["config", "print", "--defaults"],
        &["check"],
        &["check", "--online"],
        &["tools"],
        &["tools", "--json"],
        &["call", "asks", r#"{"q":"a"}"#],
        &["call", "server__x", "{}"],
    ];
    for command in commands {
        let (_, out, err) = process::run(folder.path(), command).await;
        assert!(!out.is_empty() || !err.is_empty(), "{command:?}");
        tells_none(&command.join(" "), &format!("{out}{err}"));
    }
    for (mistake, instead) in [
        ("effect: read", "efect: read"),
        ("127.0.0.1:1/v1'", "user:hush-user@127.0.0.1:1/v1?key=hush-key'"),
        ("127.0.0.1:1/pets'", "127.0.0.1:1/pets?key=hush-key'"),
        ("127.0.0.1:1/ask", "user:hush-user@127.0.0.1:1/ask"),
        ("127.0.0.1:1/v1/traces", "user:hush-user@127.0.0.1:1/v1/traces"),
        ("runs:", "runs: [ # http://a.example/?k=hush-not-yaml\n"),
    ] {
        let text = config(&lab);
        assert!(text.contains(mistake), "{mistake}");
        process::write_config(folder.path(), &text.replacen(mistake, instead, 1));
        let (code, out, err) = process::run(folder.path(), &["check"]).await;
        assert_eq!(code, 64, "{instead}: {out}");
        tells_none(instead, &format!("{out}{err}"));
    }
}

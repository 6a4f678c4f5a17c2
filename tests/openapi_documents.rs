//! An OpenAPI document nobody here wrote, as tools, against a mock server that is generated from it and refuses what
//! does not fit it.
//!
//! Not among the tests of a plain `cargo test`: `tests/run openapi` installs both and says where they are.
//! `FANFOLD_OPENAPI_NODE` is a folder with `node_modules`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fanfold::config::{Flags, read_text};
use fanfold::tools::{Call, Catalog, Progress};
use fanfold::wire::tool::{Effect, Outcome, OutcomeKind};
use serde_json::{Value, json};
use support::ports::Port;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

fn modules() -> PathBuf {
    let folder = std::env::var_os("FANFOLD_OPENAPI_NODE");
    PathBuf::from(folder.expect("FANFOLD_OPENAPI_NODE is not set: run these tests with `tests/run openapi`"))
}

fn document() -> PathBuf {
    modules().join("node_modules/@figma/rest-api-spec/openapi/openapi.yaml")
}

/// A mock server made of the document. It ends when this is dropped.
struct Mock {
    child: Child,
    port: Port,
}

impl Mock {
    async fn start() -> Self {
        let port = Port::free();
        let mut command = Command::new(modules().join("node_modules/.bin/prism"));
        command
            .args(["mock", "--errors", "-h", "127.0.0.1", "-p", &port.number().to_string()])
            .arg(document());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mock = Self { child, port };
        let up = async {
            while tokio::net::TcpStream::connect(mock.port.address()).await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        // It wants most of a minute of a processor, which a busy machine takes minutes to give.
        timeout(Duration::from_secs(600), up).await.expect("the mock server starts");
        mock
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn load(openapi: &str, more: &str) -> Catalog {
    let text = format!(
        "upstreams: {{ main: {{ base_url: 'http://127.0.0.1:1/v1' }} }}\ntools:\n  figma:\n    openapi: {{ spec: '{}', {openapi} }}\n{more}",
        document().display()
    );
    let read = read_text("fanfold.yaml", &text, &|_| None, &Flags::default()).finish_with_tools();
    read.unwrap_or_else(|problems| panic!("{}", problems.render(false))).1
}

async fn run(catalog: &Catalog, name: &str, arguments: &Value) -> Outcome {
    let tool = catalog.tool(&format!("figma__{name}")).unwrap_or_else(|| panic!("no tool {name}"));
    let call = Call {
        arguments: arguments.to_string(),
        idempotency_key: "key".into(),
        request_id: "request".into(),
        trace: None,
        result_limit: 64 * 1024,
        deadline: Instant::now() + Duration::from_secs(60),
        progress: Progress::new(tool.spec().patience(None), Arc::default()),
        tries: fanfold::tools::Tries::default(),
    };
    tool.run(&call, &CancellationToken::new()).await
}

#[test]
fn every_operation_is_a_tool_or_is_named_with_its_reason() {
    let catalog = load("base_url: 'https://api.figma.com'", "");
    let (tools, left_out) = (catalog.iter().count(), catalog.remarks());
    let missing = left_out.iter().filter(|remark| !remark.unmapped.partly).count();
    assert!(tools >= 50, "{tools} tools, {left_out:#?}");
    assert_eq!(tools + missing, 54, "{left_out:#?}");
    let effect = |name: &str| catalog.tool(&format!("figma__{name}")).unwrap().spec().effect;
    assert_eq!((effect("getMe"), effect("postWebhook")), (Effect::Read, Effect::Write));
    assert_eq!((effect("putWebhook"), effect("deleteComment")), (Effect::Idempotent, Effect::Idempotent));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_called_fits_the_document_in_the_eyes_of_a_server_made_of_it() {
    let mock = Mock::start().await;
    let auth = format!(
        "base_url: 'http://{}', auth: {{ header: {{ name: X-Figma-Token, value: t }} }}",
        mock.port.address()
    );
    let catalog = load(&auth, "    result: 64KiB\n");
    let calls = [
        ("getMe", json!({})),
        ("getFileMeta", json!({ "file_key": "a b/…".replace('/', "-") })),
        ("getTeamProjects", json!({ "team_id": "1" })),
        ("getImages", json!({ "file_key": "k", "ids": "1:2,1:3", "scale": 1.5, "format": "png" })),
        ("getOEmbed", json!({ "url": "https://www.figma.com/file/x?node-id=1&a=b", "maxwidth": 640 })),
        ("getTeamComponents", json!({ "team_id": "1", "page_size": 30 })),
        ("getWebhooks", json!({ "context": "team", "context_id": "7" })),
        ("getComments", json!({ "file_key": "k", "as_md": true })),
        ("postComment", json!({ "file_key": "k", "message": "hello", "client_meta": { "x": 1, "y": 2 } })),
        ("deleteComment", json!({ "file_key": "k", "comment_id": "9" })),
        (
            "postDevResources",
            json!({ "dev_resources": [{ "name": "n", "url": "https://x.example", "file_key": "k", "node_id": "1:2" }] }),
        ),
        ("getFileVersions", json!({ "file_key": "k" })),
        ("deleteDevResource", json!({ "file_key": "k", "dev_resource_id": "d" })),
    ];
    for (name, arguments) in &calls {
        let outcome = run(&catalog, name, arguments).await;
        assert_eq!(outcome.kind, OutcomeKind::Ok, "{name}: {outcome:?}");
    }
    // The mock looks at what it gets: without the credentials it refuses.
    let anonymous = load(&format!("base_url: 'http://{}'", mock.port.address()), "");
    let refused = run(&anonymous, "getMe", &json!({})).await;
    assert!(refused.content.contains("HTTP 401"), "{refused:?}");
    // And what does not fit the document never leaves.
    let broken = run(&catalog, "getImages", &json!({ "file_key": "k" })).await;
    assert_eq!(broken.kind, OutcomeKind::InvalidArguments, "{broken:?}");
}

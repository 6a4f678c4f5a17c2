//! Calls a server does not serve: of a tool that is gone.

use super::*;
use crate::tools::servers::pins;

#[tokio::test]
async fn a_pinned_tool_that_is_gone_and_one_that_changed_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pins.json");
    let settings = |rogues: &tempfile::TempDir| json!({ "s": rogue(rogues, "s", &[], json!({ "pin": true, "pins": path })) });
    let rig = Rig::of(settings).await;
    pins::write(&path, &rig.servers.digests(&rig.catalog)).unwrap();
    let rig = Rig::of(settings).await;
    let (changed, gone, mut news) = (rig.tool("s__echo"), rig.tool("s__slow"), rig.servers.news());
    assert_eq!(rig.call("s__change").await, Outcome::ok("changed"));
    news.changed().await.unwrap();
    assert_eq!(
        run(&changed, json!({})).await,
        Outcome::failed(
            OutcomeKind::Denied,
            "the tool has changed and waits to be accepted; nothing was sent"
        )
    );
    assert_eq!(
        run(&gone, json!({})).await,
        Outcome::failed(OutcomeKind::Error, "the server does not offer this tool any more; nothing was sent")
    );
    assert_eq!((rig.count("s", "call echo"), rig.count("s", "call slow")), (0, 0));
}

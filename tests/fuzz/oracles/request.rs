//! A request's body: what is read of it is what any reader of JSON reads, and what goes out has every
//! member that is not fanfold's to write byte for byte as it came, in its order.

use bytes::Bytes;
use fanfold::wire::call::canonical;
use fanfold::wire::raw::{Members, Raw, each_member};
use fanfold::wire::request::{ChatRequest, Choice, OWN_MEMBER, Outgoing};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::text_of;

/// Members that are written anew.
const OURS: [&str; 5] = ["tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options"];

pub fn hold(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let tree: Option<Value> = serde_json::from_slice(data).ok();
    any_object(&body, tree.as_ref());
    let request = match ChatRequest::read(&body) {
        Ok(request) => request,
        Err(error) => {
            assert_eq!(error.status, 400, "it is the client's fault");
            return;
        }
    };
    assert!(serde_json::from_slice::<IgnoredAny>(data).is_ok(), "read, but no JSON");
    // A tree cannot be had of all JSON: its reader gives up on numbers and on nesting sooner.
    let Some(tree) = tree else { return };
    assert_eq!(tree["model"], request.model.as_str());
    assert!(tree["messages"].is_array());
    assert_eq!(tree.get("stream").and_then(Value::as_bool).unwrap_or(false), request.stream);
    assert_eq!(tree.get("parallel_tool_calls").and_then(Value::as_bool), request.parallel);
    let declared = tree.get("tools").and_then(Value::as_array).map_or(0, Vec::len);
    assert!(request.tools.len() <= declared, "tools that nobody declared");
    let out = rendered(&request);
    let again = ChatRequest::read(&out).expect("what goes out can be read");
    assert_eq!((&again.model, again.stream, &again.tools), (&request.model, request.stream, &request.tools));
    assert_eq!(rendered(&again), out, "written twice it is the same");
    assert_eq!(others(&out), others(&body), "members that are not ours");
}

fn rendered(request: &ChatRequest) -> Bytes {
    request.render(&Outgoing {
        parallel: request.parallel,
        choice: Choice::Keep,
        stream: request.stream,
        keep_stream_options: true,
        ..Outgoing::default()
    })
}

/// Name and text of every member that is not ours.
fn others(body: &Bytes) -> Vec<(String, String)> {
    let mut others = Vec::new();
    each_member(body, |name, value| {
        let plain = text_of(name).expect("a name");
        if plain != OWN_MEMBER && !OURS.contains(&plain.as_str()) {
            // Ours to compare by, not by how its name is written.
            others.push((plain, value.to_owned()));
        }
        true
    })
    .expect("an object");
    others
}

/// What holds for every object, request or not.
fn any_object(body: &Bytes, tree: Option<&Value>) {
    if let Ok(members) = Members::read(body) {
        let out = members.to_raw();
        let again = out.members().expect("what was written can be read");
        assert_eq!(again, members);
        if let Some(tree) = tree {
            for member in &members {
                let value: Option<Value> = serde_json::from_str(member.value.text()).ok();
                assert_eq!(value.as_ref(), tree.get(member.name().as_ref()), "{}", member.name());
            }
        }
    }
    let Ok(raw) = Raw::parse(body.clone()) else { return };
    let sorted = canonical(raw.text());
    assert_eq!(canonical(&sorted), sorted, "sorted twice");
    if let (Some(tree), Ok(sorted)) = (tree, serde_json::from_str::<Value>(&sorted)) {
        assert_eq!(*tree, sorted, "sorting changes nothing else");
    }
}

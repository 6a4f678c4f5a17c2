//! The library of scripts in the folder beside this file: habits of real upstreams that a proxy
//! has to survive, each with what a client should get out of it.

use std::path::Path;

use serde_json::{Value, json};

use super::lab::script::Script;

/// Every script, by its name.
pub fn all() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/scripts");
    let files = std::fs::read_dir(&folder).expect("the folder of scripts");
    let mut all: Vec<(String, Value)> = files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("a text");
            let script = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, script)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// One script, read.
pub fn read(name: &str, script: &Value) -> Script {
    serde_json::from_value(script.clone()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A request that plays a script, with its tools declared by the client.
pub fn request(name: &str, script: &Script, stream: bool) -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    let tool = |name| json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let mut request = json!({
        "model": format!("script:{name}"),
        "messages": [{ "role": "user", "content": "What is the weather in Paris and the time in Tokyo?" }],
    });
    if !script.tools.is_empty() {
        request["tools"] = script.tools.iter().map(tool).collect();
    }
    if stream {
        request["stream"] = json!(true);
        request["stream_options"] = json!({ "include_usage": true });
    }
    request
}

//! What a server says of its tools.
//!
//! The SDK reads a schema into a tree, which rounds long numbers. So every answer that holds tools is also
//! [noted](Schemas::note) as the text it came as, and that text is what a model gets to see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rmcp::model::{
    ClientRequest, ListToolsRequest, PaginatedRequestParams, ServerResult, Tool, ToolAnnotations,
};
use rmcp::{Peer, RoleClient};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::tools::arguments::Schema;
use crate::tools::text::tame;

/// The most pages of tools a server is asked for.
const MAX_PAGES: usize = 64;
/// The most tools of one server.
pub(super) const MAX_TOOLS: usize = 1000;
/// The most bytes of descriptions and schemas of one server.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// A tool as its server describes it.
#[derive(Debug, Clone)]
pub(in crate::tools) struct Listed {
    /// Its name for the server.
    pub(in crate::tools) name: Arc<str>,
    /// What the model is told.
    pub(in crate::tools) description: Option<Arc<str>>,
    /// The schema of its arguments, as it came.
    pub(in crate::tools) parameters: Arc<str>,
    /// The same, compiled; or why it is no good.
    pub(in crate::tools) schema: Result<Arc<Schema>, Arc<str>>,
    /// What the server says of its effects.
    pub(in crate::tools) said: Option<ToolAnnotations>,
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        // A schema is the same when its text is.
        self.name == other.name
            && self.description == other.description
            && self.parameters == other.parameters
            && self.said == other.said
    }
}

/// The texts of the schemas of the answers that came in, by the tools' names.
#[derive(Debug, Clone, Default)]
pub(super) struct Schemas(Arc<Mutex<HashMap<String, Arc<str>>>>);

impl Schemas {
    /// Keeps the schemas of a message, if it has any. Cheap for all others.
    pub(super) fn note(&self, message: &[u8]) {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            result: Tools<'a>,
        }
        #[derive(Deserialize)]
        struct Tools<'a> {
            #[serde(borrow)]
            tools: Vec<Named<'a>>,
        }
        #[derive(Deserialize)]
        struct Named<'a> {
            name: String,
            #[serde(borrow, rename = "inputSchema")]
            schema: &'a RawValue,
        }
        if memchr::memmem::find(message, b"\"inputSchema\"").is_none() {
            return;
        }
        let Ok(answer) = serde_json::from_slice::<Answer<'_>>(message) else { return };
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tool in answer.result.tools {
            if noted.len() < MAX_TOOLS || noted.contains_key(&tool.name) {
                noted.insert(tool.name, tool.schema.get().into());
            }
        }
    }

    fn take(&self) -> HashMap<String, Arc<str>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks a server for all of its tools, page by page. A tool whose schema is no good is told of in the log. The error is for the operator.
pub(super) async fn list(
    server: &str,
    peer: &Peer<RoleClient>,
    schemas: &Schemas,
) -> Result<Vec<Listed>, String> {
    let mut tools: Vec<Tool> = Vec::new();
    let mut cursor = None;
    schemas.take();
    for _ in 0..MAX_PAGES {
        let params = PaginatedRequestParams::default().with_cursor(cursor);
        let request = ClientRequest::ListToolsRequest(ListToolsRequest::with_param(params));
        let page = match peer.send_request(request).await {
            Ok(ServerResult::ListToolsResult(page)) => page,
            Ok(_) => return Err("it answered the question for its tools with something else".into()),
            Err(error) => return Err(format!("listing its tools failed: {}", tame(&error.to_string(), 300))),
        };
        tools.extend(page.tools);
        if tools.len() > MAX_TOOLS {
            return Err(format!("it has more than {MAX_TOOLS} tools"));
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return read(server, tools, &schemas.take());
        }
    }
    Err(format!("its list of tools has more than {MAX_PAGES} pages"))
}

fn read(server: &str, tools: Vec<Tool>, texts: &HashMap<String, Arc<str>>) -> Result<Vec<Listed>, String> {
    let mut bytes = 0;
    let mut listed = Vec::with_capacity(tools.len());
    for tool in tools {
        let value = Value::Object((*tool.input_schema).clone());
        let parameters =
            texts.get(&*tool.name).cloned().unwrap_or_else(|| Arc::from(value.to_string().as_str()));
        let description = tool.description.as_deref().or(tool.title.as_deref()).map(Arc::from);
        bytes += parameters.len() + description.as_ref().map_or(0, |text: &Arc<str>| text.len());
        if bytes > MAX_BYTES {
            return Err(format!("its tools are described in more than {} MiB", MAX_BYTES >> 20));
        }
        let schema = Schema::compile(&value).map(Arc::new).map_err(|broken| {
            let why = format!("{} ({})", broken.message, tame(&broken.path.join("."), 100));
            tracing::warn!(
                server,
                tool = tame(&tool.name, 100),
                "a tool is left out: its schema is no good: {why}"
            );
            Arc::from(why)
        });
        let name = Arc::from(&*tool.name);
        listed.push(Listed { name, description, parameters, schema, said: tool.annotations });
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_stays_the_text_it_came_as() {
        let schemas = Schemas::default();
        let text = r#"{"type":"object","properties":{"z":{"type":"number","maximum":123456789012345678901234567890},"a":{"multipleOf":1.10}}}"#;
        let answer = format!(
            r#"{{"result":{{"nextCursor":"x","tools":[{{"name":"a.b","description":"d","inputSchema":{text}}}]}},"jsonrpc":"2.0","id":3}}"#
        );
        schemas.note(answer.as_bytes());
        schemas.note(br#"{"result":{"content":[{"type":"text","text":"\"inputSchema\""}]}}"#);
        let tool: Tool = serde_json::from_str(&format!(r#"{{"name":"a.b","inputSchema":{text}}}"#)).unwrap();
        let listed = read("s", vec![tool], &schemas.take()).unwrap();
        assert_eq!(&*listed[0].parameters, text);
        assert!(schemas.take().is_empty());
    }

    #[test]
    fn a_tool_whose_schema_is_no_good_is_left_out_alone() {
        let tool = |text: &str| serde_json::from_str::<Tool>(text).unwrap();
        let tools = vec![
            tool(r#"{"name":"bad","inputSchema":{"type":"object","properties":{"x":{"type":"strnig"}}}}"#),
            tool(r#"{"name":"good","title":"t","inputSchema":{"type":"object"}}"#),
        ];
        let listed = read("s", tools, &HashMap::new()).unwrap();
        let good: Vec<bool> = listed.iter().map(|tool| tool.schema.is_ok()).collect();
        assert_eq!(good, [false, true]);
        assert_eq!(listed[1].description.as_deref(), Some("t"));
    }
}

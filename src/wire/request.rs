//! A chat request: the members fanfold reads, and all the others as they came.
//!
//! Promises: [`ChatRequest::read`] goes over the body once and copies nothing; what
//! [`ChatRequest::render`] writes differs from the body only in the members named in [`Outgoing`].

use bytes::Bytes;

use super::error::ErrorReply;
use super::raw::{Kind, Member, Members, Raw, ReadError, each_element, structure, write_string};

/// The member of a request that is fanfold's own and never leaves it.
pub const OWN_MEMBER: &str = "fanfold";
/// The longest name of a model, in bytes.
const LONGEST_MODEL: usize = 512;
/// The most tools a client may declare before the merged limit is even looked at.
const MOST_CLIENT_TOOLS: usize = 4096;

/// A tool the client declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTool {
    /// Its name; empty for kinds without one.
    pub name: String,
    /// It says `strict: true`.
    pub strict: bool,
}

/// The request's `tool_choice`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// Absent, null or `"auto"`.
    #[default]
    Auto,
    /// `"none"`.
    None,
    /// `"required"`.
    Required,
    /// One function by name.
    Function(String),
    /// `allowed_tools`: only these.
    Allowed {
        /// The mode is `required`.
        required: bool,
        /// The names of the functions.
        names: Vec<String>,
    },
    /// Something fanfold does not know; it goes on as it is.
    Other,
}

/// What the request asks of fanfold itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Own {
    /// `"tools": […]`: only these of the operator's tools.
    pub tools: Option<Vec<String>>,
    /// `"include": ["transcript"]`.
    pub transcript: bool,
}

/// A chat request as it came, with what fanfold has to know of it.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    members: Members,
    /// `model`.
    pub model: String,
    /// `stream: true`.
    pub stream: bool,
    /// `stream_options.include_usage: true`.
    pub include_usage: bool,
    /// `parallel_tool_calls`, null being absent.
    pub parallel: Option<bool>,
    /// `tool_choice`.
    pub tool_choice: ToolChoice,
    /// `tools`.
    pub tools: Vec<ClientTool>,
    /// `n`, 1 when absent.
    pub n: u64,
    /// `response_format` asks for something else than text.
    pub formatted: bool,
    /// `functions` is there: the ancient form of `tools`, left to client and upstream.
    pub legacy_functions: bool,
    /// The member `fanfold`, if there is one.
    pub own: Option<Own>,
}

impl ChatRequest {
    /// Reads a body.
    pub fn read(body: &Bytes) -> Result<Self, ErrorReply> {
        let members = Members::read(body).map_err(|e| not_json(&e))?;
        structure(body).map_err(|e| not_json(&e))?;
        let model = match members.find("model") {
            None => return Err(wrong("model", "the request needs a `model`: a string such as \"gpt-4.1\"")),
            Some(value) => text_of("model", value)?,
        };
        if model.len() > LONGEST_MODEL {
            return Err(wrong("model", &format!("`model` is longer than {LONGEST_MODEL} bytes")));
        }
        match members.find("messages") {
            None => return Err(wrong("messages", "the request needs `messages`: an array of messages")),
            Some(value) if value.kind() != Kind::Array => return Err(not_a("messages", "an array", value)),
            Some(_) => {}
        }
        let include_usage = match members.present("stream_options") {
            None => false,
            Some(options) => flag_of(
                "stream_options.include_usage",
                object_of("stream_options", options)?.find("include_usage"),
            )?
            .unwrap_or(false),
        };
        Ok(Self {
            model,
            stream: flag_of("stream", members.find("stream"))?.unwrap_or(false),
            include_usage,
            parallel: flag_of("parallel_tool_calls", members.find("parallel_tool_calls"))?,
            tool_choice: members.present("tool_choice").map_or(Ok(ToolChoice::Auto), tool_choice)?,
            tools: members.present("tools").map_or(Ok(Vec::new()), client_tools)?,
            n: members
                .present("n")
                .map_or(Ok(1), |n| n.text().parse().map_err(|_| not_a("n", "a whole number", n)))?,
            formatted: members.present("response_format").is_some_and(is_a_format),
            legacy_functions: members.present("functions").is_some(),
            own: members.find(OWN_MEMBER).map(own).transpose()?,
            members,
        })
    }

    /// The array of messages.
    #[must_use]
    pub fn messages(&self) -> Raw {
        self.members.find("messages").cloned().unwrap_or(Raw::NULL)
    }

    /// Puts other messages in their place.
    pub fn set_messages(&mut self, messages: Raw) {
        self.members.set("messages", messages);
    }

    /// Whether the request carries `tool_choice` or `parallel_tool_calls` at all, null included.
    #[must_use]
    pub fn has_tool_parameters(&self) -> bool {
        self.members.find("tool_choice").is_some() || self.members.find("parallel_tool_calls").is_some()
    }

    /// The body to send.
    #[must_use]
    pub fn render(&self, out: &Outgoing<'_>) -> Bytes {
        let mut body = Vec::with_capacity(self.size() + out.size());
        let mut writer = Writer { body: &mut body, first: true };
        let (mut tools, mut choice, mut parallel, mut stream, mut options, mut effort) =
            (false, false, false, false, false, false);
        for member in &self.members {
            if member.is("messages") {
                writer.name("messages");
                let messages = out.messages.unwrap_or(&member.value);
                append_elements(writer.body, messages, out.appended.iter().map(Raw::bytes));
            } else if member.is("model") && out.model.is_some() {
                writer.text("model", out.model.unwrap_or_default());
            } else if member.is("tools") {
                tools = true;
                self.write_tools(&mut writer, out);
            } else if member.is("tool_choice") {
                choice = true;
                out.write_choice(&mut writer, Some(member));
            } else if member.is("parallel_tool_calls") {
                parallel = true;
                writer.flag("parallel_tool_calls", out.parallel);
            } else if member.is("stream") {
                stream = true;
                writer.flag("stream", Some(out.stream));
            } else if member.is("stream_options") {
                options = true;
                out.write_stream_options(&mut writer, Some(&member.value));
            } else if member.is("reasoning_effort") && out.no_effort {
                effort = true;
                writer.text("reasoning_effort", "none");
            } else if !(member.is(OWN_MEMBER) || out.drop_format && member.is("response_format")) {
                writer.member(member);
            }
        }
        if !effort && out.no_effort {
            writer.text("reasoning_effort", "none");
        }
        if !tools {
            self.write_tools(&mut writer, out);
        }
        if !choice {
            out.write_choice(&mut writer, None);
        }
        if !parallel {
            writer.flag("parallel_tool_calls", out.parallel);
        }
        if !stream && out.stream {
            writer.flag("stream", Some(true));
        }
        if !options {
            out.write_stream_options(&mut writer, None);
        }
        body.push(b'}');
        body.into()
    }

    fn size(&self) -> usize {
        self.members.iter().map(|m| m.value.bytes().len() + 24).sum()
    }

    fn write_tools(&self, writer: &mut Writer<'_>, out: &Outgoing<'_>) {
        let client = self.members.present("tools").filter(|_| !self.tools.is_empty());
        if out.drop_tools || (client.is_none() && out.owned.is_empty()) {
            return;
        }
        writer.name("tools");
        let empty = Raw::trusted(Bytes::from_static(b"[]"));
        append_elements(
            writer.body,
            client.unwrap_or(&empty),
            Some(out.owned).filter(|some| !some.is_empty()).into_iter(),
        );
    }
}

/// What goes out differently from what came in.
#[derive(Debug, Clone, Default)]
pub struct Outgoing<'a> {
    /// Another model name.
    pub model: Option<&'a str>,
    /// Other messages in place of the client's own.
    pub messages: Option<&'a Raw>,
    /// Messages after them.
    pub appended: &'a [Raw],
    /// Definitions of the tools to add, as JSON text, separated by commas.
    pub owned: &'a str,
    /// No tools at all.
    pub drop_tools: bool,
    /// What becomes of `tool_choice`.
    pub choice: Choice,
    /// `parallel_tool_calls`; `None` leaves it out.
    pub parallel: Option<bool>,
    /// `response_format` is left out.
    pub drop_format: bool,
    /// `reasoning_effort` is `none`.
    pub no_effort: bool,
    /// `stream`, and with it the wish for usage.
    pub stream: bool,
    /// `stream_options` stays as it came: usage is not ours to ask for.
    pub keep_stream_options: bool,
}

/// What becomes of `tool_choice`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// As the client said.
    #[default]
    Keep,
    /// Left out, which means `auto`; an `allowed_tools` list keeps its list with mode `auto`.
    Auto,
    /// `"none"`.
    None,
    /// Left out whatever it was.
    Drop,
}

impl Outgoing<'_> {
    fn size(&self) -> usize {
        self.appended.iter().map(|m| m.bytes().len() + 1).sum::<usize>() + self.owned.len() + 160
    }

    fn write_choice(&self, writer: &mut Writer<'_>, sent: Option<&Member>) {
        match self.choice {
            Choice::Keep => {
                if let Some(sent) = sent {
                    writer.member(sent);
                }
            }
            Choice::None => writer.text("tool_choice", "none"),
            Choice::Auto => {
                if let Some(allowed) = sent.and_then(|m| allowed_as_auto(&m.value)) {
                    writer.name("tool_choice");
                    writer.body.extend_from_slice(allowed.bytes());
                }
            }
            Choice::Drop => {}
        }
    }

    fn write_stream_options(&self, writer: &mut Writer<'_>, sent: Option<&Raw>) {
        if self.keep_stream_options {
            if let Some(sent) = sent {
                writer.name("stream_options");
                writer.body.extend_from_slice(sent.bytes());
            }
            return;
        }
        if !self.stream {
            return;
        }
        let Some(mut options) = sent.and_then(|raw| raw.members().ok()) else {
            writer.name("stream_options");
            writer.body.extend_from_slice(b"{\"include_usage\":true}");
            return;
        };
        options.set("include_usage", Raw::trusted(Bytes::from_static(b"true")));
        writer.name("stream_options");
        writer.body.extend_from_slice(options.to_raw().bytes());
    }
}

/// `allowed_tools` with its mode set to `auto`; `None` for every other choice.
fn allowed_as_auto(choice: &Raw) -> Option<Raw> {
    let mut members = choice.members().ok()?;
    if members.find("type")?.as_string()? != "allowed_tools" {
        return None;
    }
    match members.find("allowed_tools").and_then(|inner| inner.members().ok()) {
        Some(mut inner) => {
            inner.set("mode", Raw::string("auto"));
            members.set("allowed_tools", inner.to_raw());
        }
        None => members.set("mode", Raw::string("auto")),
    }
    Some(members.to_raw())
}

struct Writer<'a> {
    body: &'a mut Vec<u8>,
    first: bool,
}

impl Writer<'_> {
    fn next(&mut self) {
        self.body.push(if std::mem::take(&mut self.first) { b'{' } else { b',' });
    }

    /// A name of ours, which needs no escaping.
    fn name(&mut self, name: &str) {
        self.next();
        self.body.push(b'"');
        self.body.extend_from_slice(name.as_bytes());
        self.body.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        write_string(self.body, value);
    }

    fn flag(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.name(name);
            self.body.extend_from_slice(if value { b"true" } else { b"false" });
        }
    }

    fn member(&mut self, member: &Member) {
        self.next();
        member.write(self.body);
    }
}

/// Appends the array `array` with `more` elements at its end.
pub(crate) fn append_elements<'a>(
    out: &mut Vec<u8>,
    array: &Raw,
    more: impl Iterator<Item = impl AsRef<[u8]> + 'a>,
) {
    let text = array.bytes();
    let inner = text.get(..text.len().saturating_sub(1)).unwrap_or(b"[");
    out.extend_from_slice(inner);
    let mut empty = inner[1..].iter().all(u8::is_ascii_whitespace);
    for element in more {
        if !std::mem::take(&mut empty) {
            out.push(b',');
        }
        out.extend_from_slice(element.as_ref());
    }
    out.push(b']');
}

fn not_json(error: &ReadError) -> ErrorReply {
    ErrorReply::new(
        400,
        "invalid_json",
        format!("We could not read the body of your request as a JSON object: {error}."),
    )
}

fn wrong(param: &str, message: &str) -> ErrorReply {
    ErrorReply::invalid_value(param, message)
}

fn not_a(param: &str, wanted: &str, value: &Raw) -> ErrorReply {
    wrong(param, &format!("`{param}` must be {wanted}, not {}", value.kind().word()))
}

fn text_of(param: &str, value: &Raw) -> Result<String, ErrorReply> {
    value.as_string().map(std::borrow::Cow::into_owned).ok_or_else(|| not_a(param, "a string", value))
}

fn flag_of(param: &str, value: Option<&Raw>) -> Result<Option<bool>, ErrorReply> {
    let Some(value) = value else { return Ok(None) };
    match value.kind() {
        Kind::True => Ok(Some(true)),
        Kind::False => Ok(Some(false)),
        Kind::Null => Ok(None),
        Kind::Object | Kind::Array | Kind::String | Kind::Number => Err(not_a(param, "true or false", value)),
    }
}

fn object_of(param: &str, value: &Raw) -> Result<Members, ErrorReply> {
    if value.kind() != Kind::Object {
        return Err(not_a(param, "an object", value));
    }
    value.members().map_err(|e| wrong(param, &format!("`{param}` could not be read: {e}")))
}

/// Whether a `response_format` asks for something else than text.
fn is_a_format(value: &Raw) -> bool {
    let kind = value.members().ok().and_then(|format| Some(format.find("type")?.as_string()?.into_owned()));
    kind.as_deref() != Some("text")
}

fn client_tools(value: &Raw) -> Result<Vec<ClientTool>, ErrorReply> {
    if value.kind() != Kind::Array {
        return Err(not_a("tools", "an array", value));
    }
    let (mut tools, mut failed) = (Vec::new(), None);
    let body = value.bytes();
    each_element(body, |element| {
        let param = format!("tools[{}]", tools.len());
        let raw = Raw::trusted(body.slice_ref(element.as_bytes()));
        match client_tool(&param, &raw) {
            Ok(_) if tools.len() >= MOST_CLIENT_TOOLS => {
                failed = Some(wrong("tools", &format!("more than {MOST_CLIENT_TOOLS} tools")));
            }
            Ok(tool) => tools.push(tool),
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    })
    .map_err(|e| not_json(&e))?;
    failed.map_or(Ok(tools), Err)
}

fn client_tool(param: &str, raw: &Raw) -> Result<ClientTool, ErrorReply> {
    let members = object_of(param, raw)?;
    // A function has its parts one level down; other kinds (custom) likewise under their own name.
    let inner = match members.present("function").or_else(|| members.present("custom")) {
        Some(inner) => object_of(&format!("{param}.function"), inner)?,
        None => Members::default(),
    };
    let name = match inner.find("name") {
        Some(name) => text_of(&format!("{param}.function.name"), name)?,
        None if members.find("function").is_some() => {
            return Err(wrong(&format!("{param}.function.name"), "a function needs a `name`"));
        }
        None => String::new(),
    };
    let strict = flag_of(&format!("{param}.function.strict"), inner.find("strict"))?.unwrap_or(false);
    Ok(ClientTool { name, strict })
}

fn tool_choice(value: &Raw) -> Result<ToolChoice, ErrorReply> {
    if let Some(word) = value.as_string() {
        return match word.as_ref() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" | "any" => Ok(ToolChoice::Required),
            _ => Ok(ToolChoice::Other),
        };
    }
    let members = object_of("tool_choice", value)?;
    match members.present("type").and_then(Raw::as_string).as_deref() {
        Some("function") => named_function(&members),
        Some("allowed_tools") => {
            let inner = match members.present("allowed_tools") {
                Some(inner) => object_of("tool_choice.allowed_tools", inner)?,
                None => members.clone(),
            };
            let required = inner.present("mode").and_then(Raw::as_string).is_some_and(|m| m == "required");
            Ok(ToolChoice::Allowed { required, names: allowed_names(&inner)? })
        }
        _ => Ok(ToolChoice::Other),
    }
}

fn named_function(members: &Members) -> Result<ToolChoice, ErrorReply> {
    let function = members.present("function").ok_or_else(|| {
        wrong("tool_choice.function", "a `tool_choice` of type function needs `function: {name}`")
    })?;
    let function = object_of("tool_choice.function", function)?;
    let name = function.find("name").ok_or_else(|| wrong("tool_choice.function.name", "a name is needed"))?;
    text_of("tool_choice.function.name", name).map(ToolChoice::Function)
}

fn allowed_names(inner: &Members) -> Result<Vec<String>, ErrorReply> {
    let param = "tool_choice.allowed_tools.tools";
    let tools = inner.present("tools").ok_or_else(|| wrong(param, "`allowed_tools` needs `tools`"))?;
    let tools = tools.elements(MOST_CLIENT_TOOLS).map_err(|_| not_a(param, "an array", tools))?;
    let name_of = |tool: &Raw| {
        let members = object_of(param, tool)?;
        let holder = match members.present("function") {
            Some(function) => object_of(param, function)?,
            None => members,
        };
        holder.find("name").map_or_else(|| Ok(String::new()), |name| text_of(param, name))
    };
    tools.iter().map(name_of).collect()
}

fn own(value: &Raw) -> Result<Own, ErrorReply> {
    let members = object_of(OWN_MEMBER, value)?;
    let mut own = Own::default();
    for member in &members {
        if member.is("tools") {
            own.tools = Some(texts_of("fanfold.tools", &member.value)?);
        } else if member.is("include") {
            own.transcript = includes_transcript(&texts_of("fanfold.include", &member.value)?)?;
        } else {
            let name = member.name();
            return Err(wrong(
                &format!("fanfold.{name}"),
                "the member `fanfold` takes `tools` and `include` only",
            ));
        }
    }
    Ok(own)
}

/// Whether a list of things to include names the transcript; anything else in it is an error.
pub fn includes_transcript(names: &[String]) -> Result<bool, ErrorReply> {
    match names.iter().find(|name| *name != "transcript") {
        Some(name) => {
            Err(wrong("fanfold.include", &format!("`{name}` cannot be included; only `transcript` can")))
        }
        None => Ok(!names.is_empty()),
    }
}

fn texts_of(param: &str, value: &Raw) -> Result<Vec<String>, ErrorReply> {
    let elements =
        value.elements(MOST_CLIENT_TOOLS).map_err(|_| not_a(param, "an array of strings", value))?;
    elements.iter().map(|e| text_of(param, e)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ChatRequest, ErrorReply> {
        ChatRequest::read(&Bytes::copy_from_slice(text.as_bytes()))
    }

    fn rendered(text: &str, out: &Outgoing<'_>) -> String {
        String::from_utf8(read(text).unwrap().render(out).to_vec()).unwrap()
    }

    const SMALL: &str = r#"{"seed":123456789012345678901234567890,"model":"m","temperature":1.10,"messages":[{"role":"user","content":"x","y":1E1}],"zz":{"b":1,"a":2}}"#;

    #[test]
    fn what_is_not_changed_goes_out_as_it_came() {
        assert_eq!(rendered(SMALL, &Outgoing::default()), SMALL);
    }

    #[test]
    fn changes_stay_in_their_place_and_additions_come_last() {
        let text = r#"{"tools":[{"type":"function","function":{"name":"a"}}],"fanfold":{},"messages":[],"stream_options":{"x":1},"model":"m"}"#;
        let out = Outgoing {
            model: Some("n"),
            appended: &[Raw::string("hello")],
            owned: "{\"o\":1}",
            parallel: Some(false),
            stream: true,
            ..Outgoing::default()
        };
        assert_eq!(
            rendered(text, &out),
            r#"{"tools":[{"type":"function","function":{"name":"a"}},{"o":1}],"messages":["hello"],"stream_options":{"x":1,"include_usage":true},"model":"n","parallel_tool_calls":false,"stream":true}"#
        );
    }

    #[test]
    fn tools_are_added_to_any_list_of_a_clients_own() {
        let f = r#"{"type":"function","function":{"name":"f"}}"#;
        let more = [(r#"{"o":1},{"p":2}"#, r#",{"o":1},{"p":2}"#), ("", "")];
        for (owned, added) in more {
            let with = |tools: &str| {
                let out = Outgoing { owned, ..Outgoing::default() };
                rendered(&format!(r#"{{"model":"m"{tools},"messages":[]}}"#), &out)
            };
            let alone = if owned.is_empty() { String::new() } else { format!(r#","tools":[{owned}]"#) };
            for none in ["", r#","tools":[]"#, r#","tools":[ ]"#] {
                assert_eq!(with(none).replace(r#","messages":[]"#, ""), format!(r#"{{"model":"m"{alone}}}"#));
            }
            let spaced = format!(r#","tools":[ {f} ]"#);
            assert!(with(&spaced).contains(&format!(r#""tools":[ {f} {added}]"#)), "{}", with(&spaced));
        }
    }

    #[test]
    fn a_forcing_choice_becomes_auto_and_a_list_keeps_its_names() {
        let with = |choice: &str| format!(r#"{{"model":"m","messages":[],"tool_choice":{choice}}}"#);
        let auto = Outgoing { choice: Choice::Auto, ..Outgoing::default() };
        assert_eq!(rendered(&with("\"required\""), &auto), r#"{"model":"m","messages":[]}"#);
        let list = r#"{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"a"}}]}}"#;
        assert!(rendered(&with(list), &auto).contains(r#""mode":"auto","tools":[{"#));
        assert!(
            rendered(&with(list), &Outgoing { choice: Choice::None, ..Outgoing::default() })
                .ends_with(r#""tool_choice":"none"}"#)
        );
    }

    #[test]
    fn choices_are_read() {
        let choice = |text: &str| {
            read(&format!(r#"{{"model":"m","messages":[],"tool_choice":{text}}}"#)).map(|r| r.tool_choice)
        };
        assert_eq!(choice("null"), Ok(ToolChoice::Auto));
        assert_eq!(choice("\"none\""), Ok(ToolChoice::None));
        assert_eq!(
            choice(r#"{"type":"function","function":{"name":"f"}}"#),
            Ok(ToolChoice::Function("f".into()))
        );
        assert_eq!(
            choice(
                r#"{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"f"}},{"type":"function","name":"g"}]}}"#
            ),
            Ok(ToolChoice::Allowed { required: true, names: vec!["f".into(), "g".into()] })
        );
        assert_eq!(choice(r#"{"type":"custom","custom":{"name":"f"}}"#), Ok(ToolChoice::Other));
        assert_eq!(choice("7").unwrap_err().param.as_deref(), Some("tool_choice"));
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (text, code, param) in [
            ("", "invalid_json", None),
            ("[]", "invalid_json", None),
            (r#"{"model":"m","messages":[]}}"#, "invalid_json", None),
            (r#"{"model":"m","model":"m","messages":[]}"#, "invalid_json", None),
            (r#"{"messages":[]}"#, "invalid_value", Some("model")),
            (r#"{"model":7,"messages":[]}"#, "invalid_value", Some("model")),
            (r#"{"model":"m"}"#, "invalid_value", Some("messages")),
            (r#"{"model":"m","messages":{}}"#, "invalid_value", Some("messages")),
            (r#"{"model":"m","messages":[],"stream":"yes"}"#, "invalid_value", Some("stream")),
            (r#"{"model":"m","messages":[],"stream_options":7}"#, "invalid_value", Some("stream_options")),
            (r#"{"model":"m","messages":[],"n":1.5}"#, "invalid_value", Some("n")),
            (r#"{"model":"m","messages":[],"tools":{}}"#, "invalid_value", Some("tools")),
            (r#"{"model":"m","messages":[],"tools":[7]}"#, "invalid_value", Some("tools[0]")),
            (
                r#"{"model":"m","messages":[],"tools":[{"function":{"name":7}}]}"#,
                "invalid_value",
                Some("tools[0].function.name"),
            ),
            (
                r#"{"model":"m","messages":[],"tools":[{"function":{"name":"a","strict":1}}]}"#,
                "invalid_value",
                Some("tools[0].function.strict"),
            ),
            (r#"{"model":"m","messages":[],"fanfold":{"toolz":[]}}"#, "invalid_value", Some("fanfold.toolz")),
            (
                r#"{"model":"m","messages":[],"fanfold":{"include":["x"]}}"#,
                "invalid_value",
                Some("fanfold.include"),
            ),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(
                (error.status, error.code.as_str(), error.param.as_deref()),
                (400, code, param),
                "{text}"
            );
        }
    }

    #[test]
    fn absent_and_null_are_the_same() {
        let request = read(r#"{"model":"m","messages":[],"stream":null,"tools":null,"n":null,"parallel_tool_calls":null,"stream_options":null}"#).unwrap();
        assert_eq!((request.stream, request.tools.len(), request.n, request.parallel), (false, 0, 1, None));
    }
}

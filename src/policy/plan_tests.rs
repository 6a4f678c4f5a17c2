//! What becomes of requests.

use bytes::Bytes;

use super::*;
use crate::wire::tool::{Effect, OnDisconnect};

fn tool(name: &str, strict: bool) -> Arc<OwnedTool> {
    Arc::new(OwnedTool {
        name: name.into(),
        definition: format!("{{\"type\":\"function\",\"function\":{{\"name\":\"{name}\"}}}}").into(),
        strict,
        effect: Effect::Read,
        on_disconnect: OnDisconnect::Stop,
        timeout: Duration::from_secs(30),
        max_timeout: Duration::from_secs(30),
    })
}

fn rules() -> Rules {
    Rules {
        strict_parallel: StrictParallel::Serialize,
        interim_text: InterimText::Stream,
        limits: Arc::new(Limits::default()),
        call_timeout_cap: None,
        keep_content: false,
    }
}

struct Case {
    offered: Vec<Arc<OwnedTool>>,
    narrowed: Option<Vec<String>>,
    rules: Rules,
    habits: Habits,
}

fn case(offered: &[&str]) -> Case {
    Case {
        offered: offered.iter().map(|name| tool(name, false)).collect(),
        narrowed: None,
        rules: rules(),
        habits: Habits::default(),
    }
}

impl Case {
    fn plan(&self, more: &str) -> Result<Plan, ErrorReply> {
        let body = format!(r#"{{"model":"m","messages":[]{more}}}"#);
        let request = ChatRequest::read(&Bytes::from(body)).unwrap();
        plan(
            &request,
            &Circumstances {
                offered: &self.offered,
                narrowed: self.narrowed.as_deref(),
                transcript: false,
                changed: false,
                habits: &self.habits,
                rules: &self.rules,
            },
        )
    }

    /// `relay`, `rewrite`, `turn NAMES` or the error's code; then the decision.
    fn told(&self, more: &str) -> String {
        match self.plan(more) {
            Err(error) => error.code,
            Ok(Plan::Relay { decision, rewrite }) => {
                format!("{} {decision}", if rewrite { "rewrite" } else { "relay" })
            }
            Ok(Plan::Turn(turn)) => {
                let names: Vec<_> = turn.owned.keys().map(|name| &**name).collect();
                format!("turn {} {}", names.join("+"), turn.decision)
            }
        }
    }
}

const STRICT: &str = r#","tools":[{"type":"function","function":{"name":"f","strict":true}}]"#;
const PLAIN: &str = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;

#[test]
fn without_owned_tools_bytes_go_through_unless_the_rule_changes_them() {
    let case = case(&[]);
    assert_eq!(case.told(""), "relay off; reason=no_tools");
    assert_eq!(case.told(PLAIN), "relay on; reason=default");
    assert_eq!(case.told(STRICT), "turn  off; reason=strict_tool");
    assert_eq!(case.told(&format!("{STRICT},\"parallel_tool_calls\":false")), "relay off; reason=client");
    assert_eq!(case.told(&format!("{STRICT},\"n\":2")), "rewrite off; reason=strict_tool");
    assert_eq!(case.told(",\"parallel_tool_calls\":true"), "turn  off; reason=no_tools");
    assert_eq!(case.told(",\"tool_choice\":\"auto\""), "turn  off; reason=no_tools");
    assert_eq!(case.told(",\"fanfold\":{}"), "turn  off; reason=no_tools");
}

#[test]
fn owned_tools_make_a_turn_and_stay_parallel_beside_their_own_validation() {
    assert_eq!(case(&["a", "b"]).told(""), "turn a+b on; reason=default");
    assert_eq!(case(&["a"]).told(PLAIN), "turn a on; reason=default");
    assert_eq!(case(&["a"]).told(STRICT), "turn a off; reason=strict_tool");
    let mut strict = case(&[]);
    strict.offered = vec![tool("s", true)];
    assert_eq!(strict.told(""), "turn s off; reason=strict_tool");
}

#[test]
fn a_response_format_that_is_strict_is_no_strict_tool() {
    let format =
        r#","response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":{}}}"#;
    assert_eq!(case(&["a"]).told(format), "turn a on; reason=default");
}

#[test]
fn the_choice_decides_which_owned_tools_apply() {
    let case = case(&["a", "b"]);
    let choice = |text: &str| case.told(&format!("{PLAIN},\"tool_choice\":{text}"));
    assert_eq!(choice("\"none\""), "relay on; reason=default");
    assert_eq!(choice("\"required\""), "turn a+b on; reason=default");
    assert_eq!(choice(r#"{"type":"function","function":{"name":"f"}}"#), "relay on; reason=default");
    assert_eq!(choice(r#"{"type":"function","function":{"name":"b"}}"#), "turn a+b on; reason=default");
    let list = r#"{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"b"}}]}}"#;
    assert_eq!(choice(list), "turn b on; reason=default");
}

#[test]
fn a_client_narrows_by_header_or_member_and_asks_for_nothing_it_may_not_use() {
    let mut narrowed = case(&["a", "b"]);
    assert_eq!(narrowed.told(r#","fanfold":{"tools":["b"]}"#), "turn b on; reason=default");
    assert_eq!(narrowed.told(r#","fanfold":{"tools":["z"]}"#), "tool_not_allowed");
    narrowed.narrowed = Some(vec![]);
    assert_eq!(narrowed.told(""), "relay off; reason=no_tools");
    narrowed.narrowed = Some(vec!["a".into()]);
    assert_eq!(narrowed.told(""), "turn a on; reason=default");
}

#[test]
fn what_cannot_work_is_refused_with_the_fix() {
    assert_eq!(case(&["f"]).told(PLAIN), "tool_name_conflict");
    assert_eq!(case(&["a"]).told(",\"n\":2"), "invalid_value");
    let names: Vec<String> = (0..128).map(|i| format!("t{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(case(&names).told(PLAIN), "too_many_tools");
    assert!(case(&names).told("").starts_with("turn"));
    let mut reject = case(&["a"]);
    reject.rules.strict_parallel = StrictParallel::Reject;
    assert_eq!(reject.told(&format!("{STRICT},\"parallel_tool_calls\":true")), "strict_parallel_conflict");
}

#[test]
fn a_model_that_refuses_the_parameter_does_not_get_it() {
    let mut case = case(&["a"]);
    case.habits.takes_parallel = false;
    assert_eq!(case.told(",\"parallel_tool_calls\":true"), "turn a on; reason=unsupported");
}

#[test]
fn a_client_of_the_ancient_functions_is_left_alone() {
    assert_eq!(case(&["a"]).told(r#","functions":[{"name":"f"}]"#), "relay off; reason=no_tools");
}

//! What becomes of requests.

use bytes::Bytes;

use super::*;
use crate::policy::parallel::Reason;
use crate::wire::tool::{Effect, OnDisconnect, OwnedTools};

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
        charged: false,
    }
}

struct Case {
    offered: OwnedTools,
    narrowed: Option<Vec<String>>,
    transcript: bool,
    changed: bool,
    rules: Rules,
    habits: Habits,
}

fn case(offered: &[&str]) -> Case {
    Case {
        offered: offered.iter().map(|name| tool(name, false)).collect(),
        narrowed: None,
        transcript: false,
        changed: false,
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
                transcript: self.transcript,
                changed: self.changed,
                targets: std::slice::from_ref(&self.habits),
                rules: &self.rules,
            },
        )
    }

    fn turn(&self, more: &str) -> Arc<TurnPlan> {
        match self.plan(more).unwrap() {
            Plan::Turn(turn) => turn,
            Plan::Relay(_) => panic!("{more} is no turn"),
        }
    }

    /// `relay`, `rewrite`, `turn NAMES` or the error's code; then the decision.
    fn told(&self, more: &str) -> String {
        match self.plan(more) {
            Err(error) => error.code,
            Ok(Plan::Relay(targets)) => {
                let TargetPlan { decision, rewrite, .. } = &targets[0];
                format!("{} {decision}", if *rewrite { "rewrite" } else { "relay" })
            }
            Ok(Plan::Turn(turn)) => {
                let names: Vec<_> = turn.owned.iter().map(|tool| &*tool.name).collect();
                format!("turn {} {}", names.join("+"), turn.decision())
            }
        }
    }
}

const STRICT: &str = r#","tools":[{"type":"function","function":{"name":"f","strict":true}}]"#;
const PLAIN: &str = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;

#[test]
fn a_stream_whose_use_is_charged_is_a_turn_unless_its_client_asks_for_the_usage_itself() {
    let free = case(&[]);
    let charged = Case { rules: Rules { charged: true, ..rules() }, ..case(&[]) };
    let relays = |case: &Case, more: &str| matches!(case.plan(more), Ok(Plan::Relay(_)));
    for (more, is_relayed) in [
        ("", true),
        (r#","stream":true"#, false),
        (r#","stream":true,"stream_options":{"include_usage":false}"#, false),
        (r#","stream":true,"stream_options":{"include_usage":true}"#, true),
        (r#","stream":true,"n":2"#, true),
    ] {
        assert!(relays(&free, more));
        assert_eq!(relays(&charged, more), is_relayed, "{more}");
    }
    assert!(!charged.turn(r#","stream":true"#).include_usage);
}

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
    strict.offered = [tool("s", true)].into_iter().collect();
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

#[test]
fn parked_results_that_were_restored_make_a_turn() {
    let mut case = case(&[]);
    assert_eq!(case.told(PLAIN), "relay on; reason=default");
    case.changed = true;
    assert_eq!(case.told(PLAIN), "turn  on; reason=default");
}

#[test]
fn a_transcript_is_asked_for_by_header_or_member() {
    let mut case = case(&[]);
    assert!(!case.turn(r#","fanfold":{}"#).transcript);
    assert!(case.turn(r#","fanfold":{"include":["transcript"]}"#).transcript);
    assert_eq!(case.told(""), "relay off; reason=no_tools");
    case.transcript = true;
    assert!(case.turn("").transcript);
    assert!(case.turn(r#","fanfold":{}"#).transcript);
}

#[test]
fn content_is_kept_for_a_transcript_or_for_who_reads_it_later() {
    let mut case = case(&["a"]);
    assert!(!case.turn("").keeps_content());
    case.rules.keep_content = true;
    assert!(case.turn("").keeps_content());
    case.rules.keep_content = false;
    case.transcript = true;
    assert!(case.turn("").keeps_content());
}

#[test]
fn what_an_upstream_does_not_take_together_with_tools_is_written_anew() {
    const FORMAT: &str = r#","response_format":{"type":"json_object"}"#;
    let mut case = case(&[]);
    let both = format!("{PLAIN}{FORMAT}");
    assert_eq!(case.told(&both), "relay on; reason=default");
    case.habits.takes_format_with_tools = false;
    assert_eq!(case.told(&both), "turn  on; reason=default");
    assert_eq!(case.told(PLAIN), "relay on; reason=default");
    assert_eq!(case.told(FORMAT), "relay off; reason=no_tools");
    case.habits.takes_format_with_tools = true;
    case.habits.takes_effort_with_tools = false;
    assert_eq!(case.told(PLAIN), "turn  on; reason=default");
    assert_eq!(case.told(""), "relay off; reason=no_tools");
}

#[test]
fn what_an_upstream_turns_out_to_refuse_is_left_out_from_then_on() {
    let before = TargetPlan {
        decision: Decision { send: Some(false), reason: Reason::StrictTool },
        habits: Habits::default(),
        rewrite: false,
    };
    let after = |fact| {
        let mut target = before.clone();
        target.refuse(fact);
        target
    };
    let parallel = TargetPlan { decision: Decision::UNSUPPORTED, rewrite: true, ..before.clone() };
    assert_eq!(after(Fact::NoParallel), parallel);
    let habits = Habits { takes_effort_with_tools: false, ..Habits::default() };
    assert_eq!(after(Fact::NoEffort), TargetPlan { habits, rewrite: true, ..before.clone() });
}

#[test]
fn a_turn_knows_whether_any_tool_goes_out() {
    let own = r#","fanfold":{}"#;
    assert!(case(&[]).turn(own).has_no_tools());
    assert!(!case(&["a"]).turn(own).has_no_tools());
    assert!(!case(&[]).turn(&format!("{own}{PLAIN}")).has_no_tools());
    assert!(!case(&[]).turn(&format!(r#"{own},"functions":[{{"name":"f"}}]"#)).has_no_tools());
}

#[test]
fn only_a_choice_that_demands_a_call_forces_one() {
    let forcing = |choice: &str| case(&["a"]).turn(&format!(",\"tool_choice\":{choice}")).forcing;
    let allowed = |mode: &str| {
        format!(
            r#"{{"type":"allowed_tools","allowed_tools":{{"mode":"{mode}","tools":[{{"type":"function","function":{{"name":"a"}}}}]}}}}"#
        )
    };
    assert!(forcing("\"required\"") && forcing(&allowed("required")));
    assert!(forcing(r#"{"type":"function","function":{"name":"a"}}"#));
    assert!(!forcing("\"auto\"") && !forcing(&allowed("auto")));
}

#[test]
fn the_bound_of_tools_is_for_what_this_gateway_adds() {
    let tools: Vec<_> =
        (0..129).map(|i| format!(r#"{{"type":"function","function":{{"name":"t{i}"}}}}"#)).collect();
    let tools = format!(",\"tools\":[{}]", tools.join(","));
    assert_eq!(case(&[]).told(&tools), "relay on; reason=default");
    assert_eq!(case(&["a"]).told(&tools), "too_many_tools");
}

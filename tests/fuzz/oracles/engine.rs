//! The engine's promises, held against inputs in any order: each byte chooses what is heard next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fanfold::engine::{Action, AskId, Input, Limit, RunId, Show, Turn};
use fanfold::policy::parallel::{Decision, Reason};
use fanfold::policy::plan::{Habits, Rules, TargetPlan, TurnPlan};
use fanfold::policy::settings::{InterimText, Limits, StrictParallel};
use fanfold::wire::failure::{Failure, FailureKind};
use fanfold::wire::raw::Raw;
use fanfold::wire::reply::{CallPiece, FinishReason, Piece};
use fanfold::wire::texts::Texts;
use fanfold::wire::tool::{Effect, OnDisconnect, Outcome, OutcomeKind, OwnedTool, OwnedTools};

use super::Choices;

/// The most inputs of one turn.
const STEPS: usize = 400;

pub fn hold(data: &[u8]) {
    let log = play(data);
    assert_eq!(play(data), log, "the same inputs give the same actions");
}

/// Plays the bytes and gives what was heard and done.
pub fn play(data: &[u8]) -> Vec<String> {
    let mut play = Play::new(data);
    for _ in 0..STEPS {
        if play.choices.is_empty() {
            break;
        }
        let later = play.choices.byte();
        play.now += ms(u64::from(later));
        let input = play.input();
        play.step(input);
    }
    play.wait_it_out();
    play.log
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn plan() -> TurnPlan {
    let tool = |name: &str, effect, on_disconnect| {
        let (timeout, max_timeout) = (ms(30_000), ms(45_000));
        let definition = "{}".into();
        let tool = OwnedTool {
            name: name.into(),
            definition,
            strict: false,
            effect,
            on_disconnect,
            timeout,
            max_timeout,
        };
        Arc::new(tool)
    };
    TurnPlan {
        targets: vec![TargetPlan {
            decision: Decision { send: None, reason: Reason::Default },
            habits: Habits::default(),
            rewrite: false,
        }],
        formatted: false,
        owned: [
            tool("read", Effect::Read, OnDisconnect::Stop),
            tool("look", Effect::Read, OnDisconnect::Stop),
            tool("write", Effect::Write, OnDisconnect::Finish),
        ]
        .into_iter()
        .collect(),
        foreign: vec!["theirs".into()],
        forcing: false,
        stream: true,
        include_usage: true,
        transcript: true,
        legacy_functions: false,
        rules: Rules {
            strict_parallel: StrictParallel::Serialize,
            interim_text: InterimText::Stream,
            limits: Arc::new(Limits::default()),
            call_timeout_cap: None,
            keep_content: true,
            charged: false,
        },
    }
}

/// A play: chosen inputs, and what has to hold of the actions.
struct Play<'a> {
    choices: Choices<'a>,
    turn: Turn,
    now: Duration,
    last_ask: AskId,
    /// The runs that are out, with the round and the id of their calls.
    open: BTreeMap<RunId, (u32, String)>,
    finished: bool,
    /// Something was shown to the client.
    begun: bool,
    /// A tool with effects was run.
    wrote: bool,
    /// The last ask, as its round and attempt.
    asked: (u32, u8),
    /// The runs that were answered or stopped.
    over: BTreeSet<RunId>,
    /// The round that is being charged.
    charging: Option<u32>,
    asks: u32,
    runs: usize,
    /// The calls of the last ask's reply that ran.
    ran: BTreeSet<String>,
    limits: Arc<Limits>,
    log: Vec<String>,
}

impl<'a> Play<'a> {
    fn new(data: &'a [u8]) -> Self {
        let mut choices = Choices(data);
        let mut plan = plan();
        let mut small = |from: u32, to: usize| from + u32::try_from(choices.below(to)).expect("small");
        let limits = Arc::new(Limits {
            rounds: small(1, 3),
            calls_per_turn: small(1, 5),
            calls_at_once: small(1, 3),
            identical_errors: small(1, 3),
            ..Limits::default()
        });
        plan.rules.limits = limits.clone();
        plan.rules.charged = choices.yes();
        plan.forcing = choices.yes();
        plan.stream = choices.yes();
        plan.targets[0].habits.honours_tool_choice = choices.yes();
        plan.targets[0].decision.send = choices.yes().then_some(true);
        if choices.yes() {
            plan.rules.interim_text = InterimText::Hold;
        }
        for _ in 0..choices.below(3) {
            plan.targets.push(plan.targets[0].clone());
        }
        plan.formatted = choices.yes();
        plan.targets[0].habits.takes_format_with_tools = choices.yes();
        if choices.seldom(8) {
            plan.owned = OwnedTools::default();
        }
        let seed = u64::from(choices.byte());
        Self {
            choices,
            turn: Turn::new(Arc::new(plan), seed),
            now: ms(0),
            last_ask: 0,
            open: BTreeMap::new(),
            finished: false,
            begun: false,
            wrote: false,
            asked: (0, 0),
            over: BTreeSet::new(),
            charging: None,
            asks: 0,
            runs: 0,
            ran: BTreeSet::new(),
            limits,
            log: Vec::new(),
        }
    }

    fn number(&mut self, below: usize) -> u32 {
        u32::try_from(self.choices.below(below)).expect("small")
    }

    fn some_ask(&mut self) -> AskId {
        if self.choices.seldom(6) { self.number(4) } else { self.last_ask }
    }

    fn some_run(&mut self) -> RunId {
        let open: Vec<RunId> = self.open.keys().copied().collect();
        match open.len() {
            0 => self.number(6),
            _ if self.choices.seldom(5) => self.number(6),
            n => open[self.choices.below(n)],
        }
    }

    fn piece(&mut self) -> Box<Piece> {
        let mut piece = Piece::default();
        match self.choices.below(6) {
            0 => piece.text = Some(Raw::string("t")),
            1 => piece.finish = Some(FinishReason::Stop),
            2 => piece.finish = Some(FinishReason::ToolCalls),
            _ => {
                for _ in 0..=self.choices.below(4) {
                    piece.calls.push(self.call());
                }
            }
        }
        if self.choices.seldom(3) {
            piece.usage = Raw::parse("{\"prompt_tokens\":1}").ok();
        }
        Box::new(piece)
    }

    fn call(&mut self) -> CallPiece {
        let names = ["read", "look", "write", "theirs", "nobody", "multi_tool_use.parallel"];
        let texts = [
            "{}",
            "",
            "{\"x\":1}",
            "{\"x\"",
            "{\"tool_uses\":[{\"recipient_name\":\"read\"}]}",
            "{\"tool_uses\":[{\"recipient_name\":\"write\",\"parameters\":{\"x\":1}},{\"recipient_name\":\"write\"}]}",
        ];
        let name = names[self.choices.below(names.len())];
        let arguments = texts[self.choices.below(texts.len())];
        CallPiece {
            index: self.choices.yes().then(|| u64::from(self.number(4))),
            id: self.choices.yes().then(|| format!("c{}", self.number(4))),
            name: (!self.choices.seldom(4)).then(|| name.into()),
            arguments: Some(Raw::string(arguments)),
            ..CallPiece::default()
        }
    }

    fn input(&mut self) -> Input {
        match self.choices.below(43) {
            0..=1 => Input::Begin,
            2..=3 => Input::Accepted(self.some_ask()),
            4..=17 => {
                let ask = self.some_ask();
                let piece = self.piece();
                match &piece.text {
                    Some(text) if *piece == (Piece { text: piece.text.clone(), ..Piece::default() }) => {
                        Input::Texts(ask, Texts::of(text).expect("a text is a string"))
                    }
                    Some(_) | None => Input::Piece(ask, piece),
                }
            }
            18..=22 => Input::Ended { ask: self.some_ask(), done: self.choices.yes() },
            23..=24 => {
                let kinds = [
                    FailureKind::Reset,
                    FailureKind::Refused,
                    FailureKind::ParallelRefused,
                    FailureKind::Busy,
                    FailureKind::EffortRefused,
                    FailureKind::LeftAlone,
                    FailureKind::Withheld,
                    FailureKind::ServerError,
                ];
                let kind = kinds[self.choices.below(kinds.len())];
                Input::Failed(self.some_ask(), Box::new(Failure::new(kind, "")))
            }
            25 => Input::Started(self.some_run()),
            26 => match self.choices.yes() {
                true => Input::Started(self.some_run()),
                false => Input::Progress(self.some_run()),
            },
            27..=36 => {
                let ends = [
                    Outcome::ok("r"),
                    Outcome::failed(OutcomeKind::Error, "e"),
                    Outcome::failed(OutcomeKind::Timeout, "t"),
                ];
                let end = ends[self.choices.below(ends.len())].clone();
                Input::Outcome(self.some_run(), end)
            }
            37..=38 => {
                let other = self.number(4);
                let round = self.charging.filter(|_| !self.choices.seldom(5)).unwrap_or(other);
                let limits = [None, None, Some(Limit::Budget), Some(Limit::TokensPerMinute)];
                Input::Charged(round, limits[self.choices.below(4)])
            }
            39 if self.choices.seldom(6) => Input::ClientGone,
            40 if self.choices.seldom(12) => Input::Shutdown,
            41 if self.choices.seldom(12) => Input::Superseded,
            _ => Input::Tick,
        }
    }

    fn step(&mut self, input: Input) {
        self.log.push(format!("{:?} {input:?}", self.now));
        if let Input::Outcome(run, _) = &input
            && self.open.remove(run).is_some()
        {
            self.over.insert(*run);
        }
        if matches!(&input, Input::Charged(round, _) if Some(*round) == self.charging) {
            self.charging = None;
        }
        let mut actions = Vec::new();
        self.turn.step(input, self.now, &mut actions);
        for action in &actions {
            self.log.push(format!("    {action:?}"));
            assert!(!self.finished, "an action after the finish");
            self.check(action);
        }
        assert_eq!(self.turn.is_done(), self.finished);
        assert_eq!(self.turn.deadline().is_none(), self.finished, "a deadline until the finish");
        if self.finished {
            assert!(self.open.is_empty(), "runs left over");
        }
    }

    fn check(&mut self, action: &Action) {
        match action {
            Action::Ask(ask) => {
                // What ran for a reply that is asked for again does not count.
                if ask.round == self.asked.0 {
                    self.runs -= self.ran.len();
                }
                self.ran.clear();
                self.asks += 1;
                self.last_ask = ask.id;
                assert_eq!(self.charging, None, "asked before the round was charged");
                assert!(ask.round <= self.limits.rounds + 1, "rounds");
                assert!(ask.round >= self.asked.0, "back to an earlier round");
                self.asked = (ask.round, ask.attempt);
            }
            Action::Run(run) => {
                // A call whose arguments went on after it had started runs anew.
                self.runs += usize::from(self.ran.insert(run.call_id.clone()));
                self.wrote |= run.tool.effect == Effect::Write;
                let call = (run.round, run.call_id.clone());
                assert!(!self.open.values().any(|other| *other == call), "a call that runs already");
                assert!(!self.over.contains(&run.id), "a run number once more");
                assert!(self.open.insert(run.id, call).is_none(), "a run number twice");
                assert!(self.open.len() <= self.limits.calls_at_once as usize, "slots");
            }
            Action::Stop(run) => {
                assert!(self.open.remove(run).is_some(), "stopped what does not run");
                self.over.insert(*run);
            }
            Action::Show(Show::Begin(_)) => {
                assert!(!std::mem::replace(&mut self.begun, true), "the answer begins once");
            }
            Action::Show(Show::Part(_) | Show::Texts(_)) => {
                assert!(self.begun, "a part before the beginning")
            }
            Action::Finish(_) => self.finished = true,
            Action::Charge(round, _) => {
                assert!(self.charging.replace(*round).is_none(), "two rounds charged at once");
            }
            Action::Cancel | Action::Park(_) | Action::Learn(_) => {}
        }
    }

    /// Time alone brings every turn to its end.
    fn wait_it_out(&mut self) {
        for _ in 0..64 {
            let Some(deadline) = self.turn.deadline() else { break };
            self.now = self.now.max(deadline);
            self.step(Input::Tick);
        }
        assert!(self.finished || self.asks == 0, "no end");
        assert!(self.runs <= self.limits.calls_per_turn as usize, "calls");
    }
}

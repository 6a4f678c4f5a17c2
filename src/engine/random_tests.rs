//! The engine's promises, held against inputs in random order.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::tests::{ms, plan};
use super::*;
use crate::policy::settings::{InterimText, Limits};
use crate::wire::failure::FailureKind;
use crate::wire::reply::CallPiece;
use crate::wire::tool::OutcomeKind;

const ORDERS: u64 = 20_000;
const STEPS: usize = 60;

/// A play of one seed: chosen inputs, and what has to hold of the actions.
struct Play {
    chance: fastrand::Rng,
    turn: Turn,
    now: Duration,
    last_ask: AskId,
    /// The runs that are out, with the round and the id of their calls.
    open: BTreeMap<RunId, (u32, String)>,
    finished: bool,
    asks: u32,
    runs: u32,
    limits: Arc<Limits>,
    log: Vec<String>,
}

impl Play {
    fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut plan = plan();
        let limits = Arc::new(Limits {
            rounds: chance.u32(1..4),
            calls_per_turn: chance.u32(1..6),
            calls_at_once: chance.u32(1..4),
            identical_errors: chance.u32(1..4),
            ..Limits::default()
        });
        plan.rules.limits = limits.clone();
        plan.forcing = chance.bool();
        plan.stream = chance.bool();
        plan.habits.honours_tool_choice = chance.bool();
        plan.decision.send = chance.bool().then_some(true);
        if chance.bool() {
            plan.rules.interim_text = InterimText::Hold;
        }
        if chance.u8(..8) == 0 {
            plan.owned.clear();
        }
        let turn = Turn::new(Arc::new(plan), seed);
        Self {
            chance,
            turn,
            now: ms(0),
            last_ask: 0,
            open: BTreeMap::new(),
            finished: false,
            asks: 0,
            runs: 0,
            limits,
            log: Vec::new(),
        }
    }

    fn some_ask(&mut self) -> AskId {
        if self.chance.u8(..6) == 0 { self.chance.u32(0..4) } else { self.last_ask }
    }

    fn some_run(&mut self) -> RunId {
        let open: Vec<RunId> = self.open.keys().copied().collect();
        match open.len() {
            0 => self.chance.u32(0..6),
            _ if self.chance.u8(..5) == 0 => self.chance.u32(0..6),
            n => open[self.chance.usize(..n)],
        }
    }

    fn piece(&mut self) -> Box<Piece> {
        let mut piece = Piece::default();
        match self.chance.u8(..6) {
            0 => piece.text = Some(Raw::string("t")),
            1 => piece.finish = Some(FinishReason::Stop),
            2 => piece.finish = Some(FinishReason::ToolCalls),
            _ => {
                for _ in 0..self.chance.usize(1..5) {
                    piece.calls.push(self.call());
                }
            }
        }
        Box::new(piece)
    }

    fn call(&mut self) -> CallPiece {
        let name =
            ["read", "look", "write", "theirs", "nobody", "multi_tool_use.parallel"][self.chance.usize(..6)];
        let arguments = ["{}", "", "{\"x\":1}", "{\"x\"", "{\"tool_uses\":[{\"recipient_name\":\"read\"}]}"]
            [self.chance.usize(..5)];
        CallPiece {
            index: self.chance.bool().then(|| self.chance.u64(..4)),
            id: self.chance.bool().then(|| format!("c{}", self.chance.u8(..4))),
            name: (self.chance.u8(..4) > 0).then(|| name.into()),
            arguments: Some(Raw::string(arguments)),
            ..CallPiece::default()
        }
    }

    fn input(&mut self) -> Input {
        match self.chance.u8(..40) {
            0..=1 => Input::Begin,
            2..=3 => Input::Accepted(self.some_ask()),
            4..=17 => Input::Piece(self.some_ask(), self.piece()),
            18..=22 => Input::Ended { ask: self.some_ask(), done: self.chance.bool() },
            23 => {
                let kinds = [
                    FailureKind::Reset,
                    FailureKind::Refused,
                    FailureKind::ParallelRefused,
                    FailureKind::Busy,
                ];
                let kind = kinds[self.chance.usize(..kinds.len())];
                Input::Failed(self.some_ask(), Box::new(Failure::new(kind, "")))
            }
            24 => Input::Started(self.some_run()),
            25 => match self.chance.bool() {
                true => Input::Started(self.some_run()),
                false => Input::Progress(self.some_run()),
            },
            26..=35 => {
                let outcome = if self.chance.bool() {
                    Outcome::ok("r")
                } else {
                    Outcome::failed(OutcomeKind::Error, "e")
                };
                Input::Outcome(self.some_run(), outcome)
            }
            36..=37 => Input::Tick,
            38 if self.chance.u8(..6) == 0 => Input::ClientGone,
            39 if self.chance.u8(..12) == 0 => Input::Shutdown,
            _ => Input::Tick,
        }
    }

    fn step(&mut self, input: Input) {
        self.log.push(format!("{:?} {input:?}", self.now));
        if let Input::Outcome(run, _) = &input {
            self.open.remove(run);
        }
        let mut actions = Vec::new();
        self.turn.step(input, self.now, &mut actions);
        for action in &actions {
            self.log.push(format!("    {action:?}"));
            assert!(!self.finished, "an action after the finish");
            match action {
                Action::Ask(ask) => {
                    self.asks += 1;
                    self.last_ask = ask.id;
                    assert!(ask.round <= self.limits.rounds + 1, "rounds");
                }
                Action::Run(run) => {
                    self.runs += 1;
                    let call = (run.round, run.call_id.clone());
                    assert!(!self.open.values().any(|other| *other == call), "a call that runs already");
                    assert!(self.open.insert(run.id, call).is_none(), "a run number twice");
                    assert!(self.open.len() <= self.limits.calls_at_once as usize, "slots");
                }
                Action::Stop(run) => assert!(self.open.remove(run).is_some(), "stopped what does not run"),
                Action::Finish(_) => self.finished = true,
                Action::Cancel | Action::Show(_) | Action::Park(_) | Action::LearnNoParallel => {}
            }
        }
        assert_eq!(self.turn.is_done(), self.finished);
        assert_eq!(self.turn.deadline().is_none(), self.finished, "a deadline until the finish");
        if self.finished {
            assert!(self.open.is_empty(), "runs left over");
        }
    }

    fn play(&mut self) {
        for _ in 0..STEPS {
            self.now += ms(self.chance.u64(..300));
            let input = self.input();
            self.step(input);
        }
        // Time alone brings every turn to its end.
        for _ in 0..64 {
            let Some(deadline) = self.turn.deadline() else { break };
            self.now = self.now.max(deadline);
            self.step(Input::Tick);
        }
        assert!(self.finished || self.asks == 0, "no end");
        assert!(self.runs <= self.limits.calls_per_turn, "calls");
    }
}

#[test]
fn the_promises_hold_for_random_orders_of_inputs() {
    let first = std::env::var("FANFOLD_SEED").ok().and_then(|s| s.parse().ok());
    let seeds = first.map_or(0..ORDERS, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let mut play = Play::new(seed);
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play.play()));
        if let Err(panic) = held {
            eprintln!("{}\nrepeat with FANFOLD_SEED={seed}", play.log.join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_actions() {
    for seed in 0..200 {
        let (mut one, mut two) = (Play::new(seed), Play::new(seed));
        one.play();
        two.play();
        assert_eq!(one.log, two.log, "seed {seed}");
    }
}

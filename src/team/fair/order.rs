//! Who is next: places that teams share, without a clock and without waiting. Pure.
//!
//! A place counts three times: among all places, among the team's, and, if it has a kind with a number of
//! its own (a tool), among that kind's. Whoever finds all three free has the place at once. Everybody else
//! waits with its team, and teams are served in turn (deficit round robin: a team may take as many places
//! in its turn as its share says, and what does not fit now is passed over).
//!
//! ```text
//! ring:  [ not yet served in this round … | served, and waiting again … ]
//!                                         ▲ who begins to wait and was not served in this round
//! ```
//!
//! So a team that asks now and then waits for the next place, not for the one after: those that always wait had
//! their turn.
//!
//! Promises: nobody waits who could have a place. No place is held while waiting for another, so nobody
//! waits for each other. Within a team and a kind, first come, first served. A team that waits with a
//! thousand is served as often as one that waits with one, if their shares are equal. What nobody holds
//! and nobody waits for takes no memory.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

/// Names one that waits. Later ones have higher numbers.
pub(super) type Number = u64;

/// What a place counts towards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The team.
    pub team: Arc<str>,
    /// How many places it may hold.
    pub at_once: u32,
    /// How many of those that wait are served in one turn of the team; at least one.
    pub share: u32,
    /// A kind of place with a number of its own.
    pub kind: Option<Kind>,
}

/// A kind of place that there are only so many of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: Arc<str>,
    /// How many there are.
    pub at_once: u32,
}

/// What became of a wish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The place is taken.
    Yours,
    /// It waits under this number.
    Waits(Number),
}

/// The places, who holds them and who waits.
#[derive(Debug)]
pub(super) struct Order<W> {
    places: u32,
    held: u32,
    lanes: HashMap<Arc<str>, Lane<W>>,
    kinds: HashMap<Arc<str>, Used>,
    /// The teams that wait, the next one first.
    ring: VecDeque<Arc<str>>,
    /// So many of those, the first ones, have had no turn in this round.
    ahead: usize,
    /// Teams that were served in this round.
    had: HashSet<Arc<str>>,
    next: Number,
}

/// One team.
#[derive(Debug)]
struct Lane<W> {
    used: Used,
    share: u32,
    /// Places it may still take before it is the next team's turn.
    left: u32,
    /// Those that wait, by kind; in order.
    waiting: BTreeMap<Option<Arc<str>>, VecDeque<(Number, W)>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    held: u32,
    most: u32,
    waiting: u32,
}

impl Used {
    const fn has_room(self) -> bool {
        self.held < self.most
    }

    const fn is_idle(self) -> bool {
        self.held == 0 && self.waiting == 0
    }
}

impl<W> Order<W> {
    pub(super) fn new(places: u32) -> Self {
        Self {
            places,
            held: 0,
            lanes: HashMap::new(),
            kinds: HashMap::new(),
            ring: VecDeque::new(),
            ahead: 0,
            had: HashSet::new(),
            next: 0,
        }
    }

    /// Another number of places; those that are held stay held.
    pub(super) fn resize(&mut self, places: u32) -> Vec<W> {
        self.places = places;
        self.serve()
    }

    /// How many of a team hold a place, and how many wait.
    pub(super) fn of_team(&self, team: &str) -> (u32, u32) {
        self.lanes.get(team).map_or((0, 0), |lane| (lane.used.held, lane.used.waiting))
    }

    /// Takes a place, if it is free.
    pub(super) fn try_take(&mut self, wanted: &Wanted) -> bool {
        self.adopt(wanted);
        let free = self.held < self.places
            && self.lanes.get(&wanted.team).is_some_and(|lane| lane.used.has_room())
            && self.kind_has_room(wanted.kind.as_ref().map(|kind| &kind.name));
        if free {
            self.hold(&wanted.team, wanted.kind.as_ref().map(|kind| &kind.name));
        } else {
            self.forget(&wanted.team, wanted.kind.as_ref().map(|kind| &kind.name));
        }
        free
    }

    /// Takes a place, or waits for one.
    pub(super) fn ask(&mut self, wanted: &Wanted, waiter: impl FnOnce() -> W) -> Asked {
        if self.try_take(wanted) {
            return Asked::Yours;
        }
        self.adopt(wanted);
        self.next += 1;
        let number = self.next;
        let kind = wanted.kind.as_ref().map(|kind| kind.name.clone());
        if let Some(used) = kind.as_ref().and_then(|kind| self.kinds.get_mut(kind)) {
            used.waiting += 1;
        }
        if let Some(lane) = self.lanes.get_mut(&wanted.team) {
            if lane.used.waiting == 0 && self.had.contains(&wanted.team) {
                self.ring.push_back(wanted.team.clone());
            } else if lane.used.waiting == 0 {
                self.ring.insert(self.ahead, wanted.team.clone());
                self.ahead += 1;
            }
            lane.used.waiting += 1;
            lane.waiting.entry(kind).or_default().push_back((number, waiter()));
        }
        Asked::Waits(number)
    }

    /// Gives a place back; those that have one now.
    pub(super) fn give_back(&mut self, wanted: &Wanted) -> Vec<W> {
        let kind = wanted.kind.as_ref().map(|kind| &kind.name);
        self.held -= 1;
        if let Some(lane) = self.lanes.get_mut(&wanted.team) {
            lane.used.held -= 1;
        }
        if let Some(used) = kind.and_then(|kind| self.kinds.get_mut(kind)) {
            used.held -= 1;
        }
        self.forget(&wanted.team, kind);
        self.serve()
    }

    /// Somebody waits no longer; whether it was still waiting.
    pub(super) fn leave(&mut self, wanted: &Wanted, number: Number) -> bool {
        let name = wanted.kind.as_ref().map(|kind| kind.name.clone());
        let Some(lane) = self.lanes.get_mut(&wanted.team) else { return false };
        let Some(queue) = lane.waiting.get_mut(&name) else { return false };
        let Ok(at) = queue.binary_search_by_key(&number, |(number, _)| *number) else { return false };
        queue.remove(at);
        self.waits_no_more(&wanted.team, name.as_ref());
        self.forget(&wanted.team, name.as_ref());
        true
    }

    /// Gives free places to those that wait, team by team.
    fn serve(&mut self) -> Vec<W> {
        let mut served = Vec::new();
        let mut passed_over = 0;
        while self.held < self.places && passed_over < self.ring.len() {
            if self.ahead == 0 {
                self.ahead = self.ring.len();
                self.had.clear();
            }
            let Some(team) = self.ring.front().cloned() else { break };
            let Some(kind) = self.next_of(&team) else {
                self.end_turn(&team);
                passed_over += 1;
                continue;
            };
            passed_over = 0;
            let Some(lane) = self.lanes.get_mut(&team) else { break };
            if lane.left == 0 {
                lane.left = lane.share.max(1);
            }
            lane.left -= 1;
            let ends = lane.left == 0;
            let first = lane.waiting.get_mut(&kind).and_then(VecDeque::pop_front);
            if ends {
                self.end_turn(&team);
            }
            self.had.insert(team.clone());
            self.waits_no_more(&team, kind.as_ref());
            self.hold(&team, kind.as_ref());
            served.extend(first.map(|(_, waiter)| waiter));
        }
        served
    }

    /// The kind of the team's first that fits, if one does.
    #[expect(clippy::option_option, reason = "one that fits, of a kind or of none")]
    fn next_of(&self, team: &str) -> Option<Option<Arc<str>>> {
        let lane = self.lanes.get(team).filter(|lane| lane.used.has_room())?;
        let fits = lane.waiting.iter().filter(|(kind, _)| self.kind_has_room(kind.as_ref()));
        let first = fits.min_by_key(|(_, queue)| queue.front().map_or(Number::MAX, |(number, _)| *number));
        first.map(|(kind, _)| kind.clone())
    }

    fn kind_has_room(&self, kind: Option<&Arc<str>>) -> bool {
        kind.is_none_or(|kind| self.kinds.get(kind).is_some_and(|used| used.has_room()))
    }

    /// The numbers that hold from now on are those of the last wish.
    fn adopt(&mut self, wanted: &Wanted) {
        let lane = self.lanes.entry(wanted.team.clone()).or_insert_with(|| Lane {
            used: Used::default(),
            share: 1,
            left: 0,
            waiting: BTreeMap::new(),
        });
        lane.used.most = wanted.at_once;
        lane.share = wanted.share;
        if let Some(kind) = &wanted.kind {
            self.kinds.entry(kind.name.clone()).or_default().most = kind.at_once;
        }
    }

    fn hold(&mut self, team: &Arc<str>, kind: Option<&Arc<str>>) {
        self.held += 1;
        if let Some(lane) = self.lanes.get_mut(team) {
            lane.used.held += 1;
        }
        if let Some(used) = kind.and_then(|kind| self.kinds.get_mut(kind)) {
            used.held += 1;
        }
    }

    /// One of a team's waits no more, because it has a place or left.
    fn waits_no_more(&mut self, team: &Arc<str>, kind: Option<&Arc<str>>) {
        if let Some(used) = kind.and_then(|kind| self.kinds.get_mut(kind)) {
            used.waiting -= 1;
        }
        let Some(lane) = self.lanes.get_mut(team) else { return };
        lane.used.waiting -= 1;
        lane.waiting.retain(|_, queue| !queue.is_empty());
        if lane.used.waiting == 0 {
            lane.left = 0;
            if let Some(at) = self.ring.iter().position(|other| other == team) {
                self.ring.remove(at);
                self.ahead -= usize::from(at < self.ahead);
            }
            if self.ring.is_empty() {
                self.had.clear();
            }
        }
    }

    /// It is the next team's turn.
    fn end_turn(&mut self, team: &Arc<str>) {
        if let Some(lane) = self.lanes.get_mut(team) {
            lane.left = 0;
        }
        self.ring.rotate_left(1);
        self.ahead -= 1;
    }

    /// Drops what nobody holds and nobody waits for.
    fn forget(&mut self, team: &Arc<str>, kind: Option<&Arc<str>>) {
        if self.lanes.get(team).is_some_and(|lane| lane.used.is_idle()) {
            self.lanes.remove(team);
        }
        if let Some(kind) = kind.filter(|kind| self.kinds.get(*kind).is_some_and(|used| used.is_idle())) {
            self.kinds.remove(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(team: &str) -> Wanted {
        Wanted { team: team.into(), at_once: 100, share: 1, kind: None }
    }

    fn of_kind(team: &str, name: &str, at_once: u32) -> Wanted {
        Wanted { kind: Some(Kind { name: name.into(), at_once }), ..of(team) }
    }

    /// A name for each that waits: its team, and how many of it waited before.
    fn wait(order: &mut Order<String>, wanted: &Wanted, name: &str) -> Number {
        match order.ask(wanted, || name.to_owned()) {
            Asked::Waits(number) => number,
            Asked::Yours => panic!("{name} did not have to wait"),
        }
    }

    #[test]
    fn a_team_with_one_request_is_next_whoever_else_waits() {
        let mut order = Order::new(1);
        assert!(order.try_take(&of("noisy")));
        for n in 0..1000 {
            wait(&mut order, &of("noisy"), &format!("noisy {n}"));
        }
        wait(&mut order, &of("quiet"), "quiet");
        assert_eq!(order.give_back(&of("noisy")), ["noisy 0"]);
        assert_eq!(order.give_back(&of("noisy")), ["quiet"]);
        assert_eq!(order.give_back(&of("quiet")), ["noisy 1"]);
    }

    #[test]
    fn who_begins_to_wait_comes_before_those_who_had_their_turn() {
        let mut order = Order::new(1);
        assert!(order.try_take(&of("noisy")));
        for n in 0..1000 {
            wait(&mut order, &of("noisy"), &format!("noisy {n}"));
        }
        assert_eq!(order.give_back(&of("noisy")), ["noisy 0"]);
        for team in ["quiet", "calm"] {
            wait(&mut order, &of(team), team);
        }
        assert_eq!(order.give_back(&of("noisy")), ["quiet"]);
        assert_eq!(order.give_back(&of("quiet")), ["calm"]);
        assert_eq!(order.give_back(&of("calm")), ["noisy 1"]);
    }

    #[test]
    fn who_comes_back_at_once_takes_nobodys_turn() {
        let mut order = Order::new(1);
        let mut holder = of("x");
        assert!(order.try_take(&holder));
        for n in 0..100 {
            wait(&mut order, &of("noisy"), &format!("noisy {n}"));
        }
        let mut served = Vec::new();
        for team in ["a", "b"] {
            wait(&mut order, &of(team), team);
        }
        for _ in 0..9 {
            let team = order.give_back(&holder).remove(0);
            holder = of(team.split(' ').next().unwrap());
            if &*holder.team != "noisy" {
                wait(&mut order, &holder, &team);
            }
            served.push(team);
        }
        assert_eq!(served, ["noisy 0", "a", "b", "noisy 1", "a", "b", "noisy 2", "a", "b"]);
    }

    #[test]
    fn a_share_is_how_many_are_served_in_one_turn() {
        let mut order = Order::new(1);
        assert!(order.try_take(&of("x")));
        let big = Wanted { share: 3, ..of("big") };
        for n in 0..6 {
            wait(&mut order, &big, &format!("big {n}"));
            wait(&mut order, &of("small"), &format!("small {n}"));
        }
        let mut holder = of("x");
        let mut served = Vec::new();
        while let Some(name) = order.give_back(&holder).pop() {
            holder = if name.starts_with("big") { big.clone() } else { of("small") };
            served.push(name);
        }
        let expected = [
            "big 0", "big 1", "big 2", "small 0", "big 3", "big 4", "big 5", "small 1", "small 2", "small 3",
            "small 4", "small 5",
        ];
        assert_eq!(served, expected);
    }

    #[test]
    fn a_kind_that_is_full_holds_up_nobody_of_another() {
        let mut order = Order::new(2);
        let (slow, fast) = (of_kind("a", "slow", 1), of("a"));
        assert!(order.try_take(&slow));
        wait(&mut order, &slow, "slow");
        assert!(order.try_take(&fast), "there is a place, and the kind has no number");
        wait(&mut order, &fast, "fast");
        assert_eq!(order.give_back(&fast), ["fast"]);
        assert_eq!(order.give_back(&slow), ["slow"]);
    }

    #[test]
    fn a_team_at_its_own_number_leaves_places_to_others() {
        let mut order = Order::new(3);
        let narrow = Wanted { at_once: 1, ..of("narrow") };
        assert!(order.try_take(&narrow));
        wait(&mut order, &narrow, "second");
        assert!(order.try_take(&of("other")) && order.try_take(&of("other")));
        wait(&mut order, &of("other"), "third");
        assert_eq!(order.give_back(&of("other")), ["third"]);
        assert_eq!(order.give_back(&narrow), ["second"]);
    }

    #[test]
    fn who_leaves_is_not_served_and_leaves_nothing_behind() {
        let mut order = Order::new(1);
        assert!(order.try_take(&of("a")));
        let first = wait(&mut order, &of_kind("b", "t", 1), "first");
        wait(&mut order, &of_kind("b", "t", 1), "second");
        assert!(order.leave(&of_kind("b", "t", 1), first));
        assert!(!order.leave(&of_kind("b", "t", 1), first));
        assert_eq!(order.give_back(&of("a")), ["second"]);
        assert!(order.give_back(&of_kind("b", "t", 1)).is_empty());
        assert!(order.lanes.is_empty() && order.kinds.is_empty() && order.ring.is_empty());
    }

    #[test]
    fn more_places_serve_those_that_wait_and_fewer_take_none_away() {
        let mut order = Order::new(1);
        assert!(order.try_take(&of("a")));
        wait(&mut order, &of("a"), "second");
        wait(&mut order, &of("a"), "third");
        assert_eq!(order.resize(2), ["second"]);
        assert!(order.resize(1).is_empty());
        assert!(order.give_back(&of("a")).is_empty(), "one is still more than there may be");
        assert_eq!(order.give_back(&of("a")), ["third"]);
    }

    proptest! {
        /// Whatever happens in whatever order: numbers are kept, nobody waits for a free place, and at the
        /// end everybody was served and nothing is left.
        #[test]
        fn numbers_are_kept_and_nobody_waits_for_a_free_place(
            places in 1u32..5, steps in proptest::collection::vec((0u8..3, 0usize..4, 0usize..3, any::<prop::sample::Index>()), 1..200),
        ) {
            let teams = ["a", "b", "c", "d"];
            let wanted = |team: usize, kind: usize| Wanted {
                at_once: u32::try_from(team).unwrap() + 1,
                share: u32::try_from(team).unwrap(),
                ..match kind { 0 => of(teams[team]), 1 => of_kind(teams[team], "one", 1), _ => of_kind(teams[team], "two", 2) }
            };
            let mut order: Order<Number> = Order::new(places);
            let mut held: Vec<Wanted> = Vec::new();
            let mut waiting: BTreeMap<Number, Wanted> = BTreeMap::new();
            let serve = |served: Vec<Number>, held: &mut Vec<Wanted>, waiting: &mut BTreeMap<Number, Wanted>| {
                held.extend(served.iter().map(|number| waiting.remove(number).unwrap()));
            };
            for (deed, team, kind, at) in steps {
                match deed {
                    0 => {
                        let wanted = wanted(team, kind);
                        let number = order.next + 1;
                        match order.ask(&wanted, || number) {
                            Asked::Yours => held.push(wanted),
                            Asked::Waits(number) => { waiting.insert(number, wanted); }
                        }
                    }
                    1 if !held.is_empty() => {
                        let gone = held.swap_remove(at.index(held.len()));
                        serve(order.give_back(&gone), &mut held, &mut waiting);
                    }
                    2 if !waiting.is_empty() => {
                        let number = *waiting.keys().nth(at.index(waiting.len())).unwrap();
                        prop_assert!(order.leave(&waiting.remove(&number).unwrap(), number));
                    }
                    _ => {}
                }
                let held_by = |fits: &dyn Fn(&Wanted) -> bool| u32::try_from(held.iter().filter(|w| fits(w)).count()).unwrap();
                let has_room = |w: &Wanted| held_by(&|_| true) < places
                    && held_by(&|other| other.team == w.team) < w.at_once
                    && w.kind.as_ref().is_none_or(|kind| held_by(&|other| other.kind.as_ref() == Some(kind)) < kind.at_once);
                prop_assert!(held_by(&|_| true) <= places);
                prop_assert!(waiting.values().all(|w| !has_room(w)));
            }
            while let Some(gone) = held.pop() {
                serve(order.give_back(&gone), &mut held, &mut waiting);
            }
            prop_assert!(waiting.is_empty());
            prop_assert!(order.lanes.is_empty() && order.kinds.is_empty() && order.ring.is_empty() && order.held == 0);
            prop_assert!(order.ahead == 0 && order.had.is_empty());
        }
    }
}

//! Places that teams share and wait for: among the turns of the process, and among its tool calls.
//!
//! [`Queue`] is the shell of `order`: it wakes those that are served. While there is room a place costs
//! one lock that is held for a few look-ups; nobody waits and nothing is allocated but the team's name in a
//! map.

mod order;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use self::order::{Asked, Number, Order};
pub use self::order::{Kind, Wanted};

/// Who waits is told through a channel.
type Waiting = Order<oneshot::Sender<()>>;

/// The places of one sort. Clones share them.
#[derive(Debug, Clone)]
pub struct Queue {
    order: Arc<Mutex<Waiting>>,
}

/// A place that is held; dropped, it is the next one's.
#[derive(Debug)]
pub struct Place {
    queue: Queue,
    wanted: Wanted,
}

/// Why there is no place and no waiting for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The team holds, or waits for, as many as it may.
    OfTeam,
    /// As many of the team wait as may.
    Crowded,
}

impl Queue {
    /// So many places.
    #[must_use]
    pub fn new(places: u32) -> Self {
        Self { order: Arc::new(Mutex::new(Order::new(places))) }
    }

    /// Another number of places; those that are held stay held.
    pub fn resize(&self, places: u32) {
        let served = self.order().resize(places);
        tell(served);
    }

    /// Takes a place, if one is free.
    #[must_use]
    pub fn try_take(&self, wanted: &Wanted) -> Option<Place> {
        self.order().try_take(wanted).then(|| self.place(wanted))
    }

    /// Takes a place, waiting for it as long as it takes. Dropping the future gives up waiting.
    pub async fn take(&self, wanted: &Wanted) -> Place {
        let entry = self.ask(&mut self.order(), wanted);
        match entry {
            Entry::Place(place) => place,
            Entry::Ticket(ticket) => ticket.place().await,
        }
    }

    /// Takes a place, or a ticket for one if fewer than `waiting` of the team wait already. Those that wait
    /// count among those the team may hold.
    ///
    /// # Errors
    /// There is neither.
    pub fn enter(&self, wanted: &Wanted, waiting: u32) -> Result<Entry, NoPlace> {
        let mut order = self.order();
        let (held, waits) = order.of_team(&wanted.team);
        if held.saturating_add(waits) >= wanted.at_once {
            return Err(NoPlace::OfTeam);
        }
        if waits < waiting {
            return Ok(self.ask(&mut order, wanted));
        }
        if order.try_take(wanted) { Ok(Entry::Place(self.place(wanted))) } else { Err(NoPlace::Crowded) }
    }

    /// How many of a team hold a place, and how many wait.
    #[must_use]
    pub fn of_team(&self, team: &str) -> (u32, u32) {
        self.order().of_team(team)
    }

    fn ask(&self, order: &mut Waiting, wanted: &Wanted) -> Entry {
        let mut told = None;
        let asked = order.ask(wanted, || {
            let (tell, receive) = oneshot::channel();
            told = Some(receive);
            tell
        });
        match asked {
            Asked::Yours => Entry::Place(self.place(wanted)),
            Asked::Waits(number) => {
                Entry::Ticket(Ticket { queue: self.clone(), wanted: wanted.clone(), number, told })
            }
        }
    }

    fn place(&self, wanted: &Wanted) -> Place {
        Place { queue: self.clone(), wanted: wanted.clone() }
    }

    fn order(&self) -> MutexGuard<'_, Waiting> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, wanted: &Wanted) {
        let served = self.order().give_back(wanted);
        tell(served);
    }
}

/// Who has left in the meantime gives its place back when its ticket is dropped.
fn tell(served: Vec<oneshot::Sender<()>>) {
    for waiter in served {
        let _ = waiter.send(());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.give_back(&self.wanted);
    }
}

/// What [`Queue::enter`] gives.
#[derive(Debug)]
pub enum Entry {
    /// A place.
    Place(Place),
    /// The right to one, in its turn.
    Ticket(Ticket),
}

/// Waits for a place. Dropped, it waits no longer.
#[derive(Debug)]
pub struct Ticket {
    queue: Queue,
    wanted: Wanted,
    number: Number,
    /// `None` once the place was handed on.
    told: Option<oneshot::Receiver<()>>,
}

impl Ticket {
    /// The place, when it is this one's turn.
    pub async fn place(mut self) -> Place {
        if let Some(told) = &mut self.told {
            // The other end is kept by the order until it has spoken.
            let _ = told.await;
        }
        self.told = None;
        self.queue.place(&self.wanted)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.told.is_none() {
            return;
        }
        let waited = self.queue.order().leave(&self.wanted, self.number);
        if !waited {
            self.queue.give_back(&self.wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn of(team: &str, at_once: u32) -> Wanted {
        Wanted { team: team.into(), at_once, share: 1, kind: None }
    }

    fn ticket(queue: &Queue, wanted: &Wanted) -> Ticket {
        match queue.enter(wanted, 9) {
            Ok(Entry::Ticket(ticket)) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_place_that_is_given_back_is_the_next_ones() {
        let queue = Queue::new(1);
        let first = queue.try_take(&of("a", 9)).unwrap();
        let mut second = Box::pin(ticket(&queue, &of("a", 9)).place());
        let mut third = Box::pin(ticket(&queue, &of("b", 9)).place());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.as_mut().now_or_never().unwrap();
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().is_some());
        assert!(queue.try_take(&of("a", 9)).is_some());
    }

    #[tokio::test]
    async fn who_stops_waiting_gives_up_its_turn_served_or_not() {
        let queue = Queue::new(1);
        let first = queue.try_take(&of("a", 9)).unwrap();
        let (second, third, fourth) =
            (ticket(&queue, &of("a", 9)), ticket(&queue, &of("a", 9)), ticket(&queue, &of("a", 9)));
        drop(second);
        drop(first);
        assert_eq!(queue.of_team("a"), (1, 1), "the third is served but has not looked yet");
        drop(third);
        assert!(fourth.place().now_or_never().is_some());
        assert_eq!(queue.of_team("a"), (0, 0));
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let queue = Queue::new(1);
        let _held = queue.try_take(&of("a", 3)).unwrap();
        assert_eq!(queue.enter(&of("a", 3), 0).unwrap_err(), NoPlace::Crowded);
        let _waits = queue.enter(&of("a", 3), 1).unwrap();
        assert_eq!(queue.enter(&of("a", 3), 1).unwrap_err(), NoPlace::Crowded);
        let _waits_too = queue.enter(&of("a", 3), 2).unwrap();
        assert_eq!(queue.enter(&of("a", 3), 9).unwrap_err(), NoPlace::OfTeam);
        assert!(
            matches!(queue.enter(&of("b", 3), 1), Ok(Entry::Ticket(_))),
            "other teams wait by themselves"
        );
    }
}

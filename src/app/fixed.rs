//! What stays as it was at the start, whatever a reload reads: sockets and what is held open.

use crate::config::file::File;
use crate::policy::settings::Limits;

/// The settings a process starts with and keeps.
#[derive(Debug)]
pub(super) struct Fixed(Box<File>);

impl Fixed {
    pub(super) fn new(file: &File) -> Self {
        Self(Box::new(file.clone()))
    }

    /// The settings that are others now, and wait for a restart.
    pub(super) fn waiting(&self, now: &File) -> Vec<&'static str> {
        let then = &self.0;
        let limits = kept(&then.limits).into_iter().zip(kept(&now.limits));
        let mut waiting: Vec<&'static str> = [
            ("listen", then.listen != now.listen),
            ("tls", then.tls != now.tls),
            ("admin", then.admin != now.admin),
            ("server", then.server != now.server),
            ("store", then.store != now.store),
            ("runs", then.runs != now.runs),
            ("log", then.log != now.log),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect();
        waiting.extend(limits.filter_map(|((name, then), (_, now))| (then != now).then_some(name)));
        waiting
    }
}

/// The limits of what is made once, each as a number.
fn kept(limits: &Limits) -> [(&'static str, u128); 10] {
    [
        ("limits.connections", limits.connections.into()),
        ("limits.bodies_in_flight", limits.bodies_in_flight.0 as u128),
        ("limits.parked_entries", limits.parked_entries.into()),
        ("limits.parked_bytes", limits.parked_bytes.0 as u128),
        ("limits.parked_for", limits.parked_for.0.as_nanos()),
        ("limits.ledger_entries", limits.ledger_entries.into()),
        ("limits.ledger_bytes", limits.ledger_bytes.0 as u128),
        ("limits.ledger_for", limits.ledger_for.0.as_nanos()),
        ("limits.ledger_answer", limits.ledger_answer.0 as u128),
        ("limits.ledger_lease", limits.ledger_lease.0.as_nanos()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn file(more: &str) -> File {
        let text = format!("upstreams: {{ main: {{ base_url: 'http://h/v1' }} }}\n{more}\n");
        crate::config::read_text("a", &text, &|_| None, &Flags::default())
            .finish()
            .expect("a sound file")
            .file
    }

    #[test]
    fn what_waits_for_a_restart_is_named_and_nothing_else() {
        let fixed = Fixed::new(&file(""));
        assert_eq!(fixed.waiting(&file("")), Vec::<&str>::new());
        let others = "limits: { rounds: 3, ledger_for: 1h }\nlisten: 127.0.0.1:1\nstore: { redis: 'redis://h' }\npolicy: { strict_parallel: off }";
        assert_eq!(fixed.waiting(&file(others)), ["listen", "store", "limits.ledger_for"]);
    }
}
